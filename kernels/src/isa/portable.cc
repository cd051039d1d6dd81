#define NEXTSCALE_ISA isa_portable
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/portable.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/portable.h"
#include "../product/dot_product.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kPortable = isa_portable::table("portable");

}  // namespace nextscale

#define NEXTSCALE_ISA isa_avx2
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/avx2.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/avx2.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kAvx2 = isa_avx2::table("avx2");

}  // namespace nextscale

#define NEXTSCALE_ISA isa_avx2
#define NEXTSCALE_HAS_WIDE_PRODUCT
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/avx2.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/avx2.h"
#include "../product/avx2_wide.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kAvx2 = isa_avx2::table("avx2");

}  // namespace nextscale

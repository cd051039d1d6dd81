#define NEXTSCALE_ISA isa_avx_vnni
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/avx2.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/avx_vnni.h"
#include "../product/dot_product.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kAvxVnni = isa_avx_vnni::table("avx_vnni");

}  // namespace nextscale

#define NEXTSCALE_ISA isa_avx512_vnni
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/avx512.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/avx512_vnni.h"
#include "../product/dot_product.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kAvx512Vnni = isa_avx512_vnni::table("avx512_vnni");

}  // namespace nextscale

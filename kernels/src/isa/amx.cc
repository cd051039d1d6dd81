#define NEXTSCALE_ISA isa_amx
#define NEXTSCALE_HAS_TILES
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/avx512.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/amx_tiles.h"
#include "../product/tile_product.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kAmx = isa_amx::table("amx");

}  // namespace nextscale

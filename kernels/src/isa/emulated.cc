#define NEXTSCALE_ISA isa_emulated
#define NEXTSCALE_HAS_TILES
#include "../compiler.h"
#include "../kernels.h"
#include "../vector/portable.h"
#include "../vector/mathematics.h"
#include "../product/product.h"
#include "../product/emulated_tiles.h"
#include "../product/tile_product.h"
#include "../kernels/all.h"

namespace nextscale {

const Kernels kEmulated = isa_emulated::table("emulated");

}  // namespace nextscale

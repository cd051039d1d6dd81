// The tiles of AMX: eight registers of 16 rows of 64 bytes.
#ifndef NEXTSCALE_PRODUCT_AMX_TILES_H_
#define NEXTSCALE_PRODUCT_AMX_TILES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Tiles can be used while one of these lives on the thread's stack.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static const Configuration configuration;
    _tile_loadconfig(&configuration);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Written out, since GCC 12's own functions do not say that a load reads memory and a store writes it.
#define NEXTSCALE_TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define NEXTSCALE_TILE_LOAD(t, from, stride)                                                                   \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(static_cast<const void*>(from)),                      \
                   "r"(static_cast<int64_t>(stride))                                                           \
                   : "memory")
#define NEXTSCALE_TILE_STORE(t, to, stride)                                                                    \
  __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(static_cast<void*>(to)),                          \
                   "r"(static_cast<int64_t>(stride))                                                           \
                   : "memory")
#define NEXTSCALE_TILE_PRODUCT(c, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define NEXTSCALE_TILE_PRODUCT_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AMX_TILES_H_

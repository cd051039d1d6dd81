// The integer product that linear layers, convolutions and attention share.
//
// Each instruction set has a `multiply` with this contract:
//
//   void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums);
//
// sums int32 [2][16][32] = rows u8 [2][16][64 steps] times one panel s8 [64 steps, 32] ([steps][2][16][64], see Panels).
// The integers are exact. Of the sums of rows that a block does not have, nothing is promised.
#ifndef NEXTSCALE_PRODUCT_PRODUCT_H_
#define NEXTSCALE_PRODUCT_PRODUCT_H_

#include <cstdint>

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kBlock = 16;         // rows of a block
constexpr int64_t kPanel = 32;         // columns of a panel
constexpr int64_t kStep = 64;          // k of a step
constexpr int64_t kPanelStep = 2048;   // bytes of a step of a panel
constexpr int64_t kTile = 1024;        // bytes of a step of a block whose rows lie together

// Two blocks of up to 16 rows. Row i of block b begins its step s at begin[b] + i * stride + (offsets ? offsets[s] : s *
// step). All 16 rows of a block that has any can be read.
struct Rows {
  const uint8_t* begin[2];
  int64_t count[2];  // rows that matter; 0: there is no such block
  int64_t stride, step;
  const int64_t* offsets;
  const int32_t* quads = nullptr;  // of 4 k in each step that the weights have, if not all 16; tiles multiply all
  int64_t ahead = 0;  // weights are fetched so many bytes before they are read; 0: they are in a cache
  int64_t offset(int64_t s) const { return offsets ? offsets[s] : s * step; }
  int32_t quads_of(int64_t s) const { return quads ? quads[s] : 16; }

  // Rows of both blocks as one list: row j begins at row(j), and its sums are those of row place(j) of 32.
  int64_t all() const { return count[0] + count[1]; }
  const uint8_t* row(int64_t j) const {
    return j < count[0] ? begin[0] + j * stride : begin[1] + (j - count[0]) * stride;
  }
  int64_t place(int64_t j) const { return j < count[0] ? j : kBlock + j - count[0]; }
  // What lies `ahead` of some bytes of a panel, while its first rows are multiplied.
  void fetch(const int8_t* weights, int64_t bytes) const {
    if (ahead)
      for (int64_t i = 0; i < bytes; i += 64) NEXTSCALE_FETCH(weights + ahead + i);
  }
};

#ifndef NEXTSCALE_HAS_TILES
class Tiles {};  // what `multiply` needs while it is used: nothing
#endif

// Rows u8 [count, k], `pitch` apart, as blocks of tiles [K / 64][16][64], where a block's 16 rows of a step lie together:
// rows 4096 bytes apart would share a few lines of the cache. Missing k are zero; missing rows are left as they are.
inline void tile_block(const uint8_t* rows, int64_t count, int64_t k, int64_t pitch, uint8_t* tiles) {
  const int64_t steps = k / kStep, rest = k % kStep;
  for (int64_t i = 0; i < kBlock && i < count; ++i) {
    const uint8_t* row = rows + i * pitch;
    uint8_t* to = tiles + i * kStep;
    for (int64_t s = 0; s < steps; ++s, row += kStep, to += kTile) std::memcpy(to, row, kStep);
    if (!rest) continue;
    std::memset(to, 0, kStep);
    std::memcpy(to, row, static_cast<size_t>(rest));
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_PRODUCT_H_

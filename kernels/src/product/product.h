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
constexpr int64_t kCacheLine = 64;     // bytes
constexpr int64_t kSoon = 8192;        // bytes ahead that one pass over the weights fetches: in the next page
constexpr int64_t kTile = 1024;        // bytes of a step of half a panel, or of a block whose rows lie together

// Which weights a product fetches from memory beside its own. Where several products share that work, each fetches its
// part of what lies some bytes ahead into the second cache; else what is soon in use comes into the first.
struct Ahead {
  int64_t bytes = 0, part = 0, parts = 0;  // no parts: nothing is fetched
};

// Two blocks of up to 16 rows. Row i of block b begins its step s at begin[b] + i * stride + (offsets ? offsets[s] : s *
// step). All 16 rows of a block that has any can be read.
struct Rows {
  const uint8_t* begin[2];
  int64_t count[2];  // rows that matter; 0: there is no such block
  int64_t stride, step;
  const int64_t* offsets;
  const int32_t* quads = nullptr;  // of 4 k in each step that the weights have, if not all 16; tiles multiply all
  Ahead ahead = {};
  int64_t offset(int64_t s) const { return offsets ? offsets[s] : s * step; }
  int32_t quads_of(int64_t s) const { return quads ? quads[s] : 16; }

  // Rows of both blocks as one list: row j begins at row(j), and its sums are those of row place(j) of 32.
  int64_t all() const { return count[0] + count[1]; }
  const uint8_t* row(int64_t j) const {
    return j < count[0] ? begin[0] + j * stride : begin[1] + (j - count[0]) * stride;
  }
  int64_t place(int64_t j) const { return j < count[0] ? j : kBlock + j - count[0]; }
  // To be called by each of several passes over the weights, for all bytes of them; `soon` bytes ahead are used next.
  NEXTSCALE_INLINED void fetch(const int8_t* weights, int64_t bytes, int64_t soon, int64_t pass, int64_t passes) const {
    const int64_t first = kCacheLine * (ahead.part + ahead.parts * pass), apart = kCacheLine * ahead.parts * passes;
    if (ahead.parts == 1) {
      for (int64_t i = first; i < bytes; i += apart) NEXTSCALE_FETCH(weights + soon + i);
    } else if (ahead.parts > 1) {
      for (int64_t i = first; i < bytes; i += apart) NEXTSCALE_FETCH_FAR(weights + ahead.bytes + i);
    }
  }
};

// Some rows of a list and some steps of a product: one of several passes over the same weights.
struct Pass {
  int64_t row, rows, first, end;
  int64_t index, passes, soon;
  NEXTSCALE_INLINED void fetch(const Rows& list, const int8_t* weights, int64_t bytes) const {
    list.fetch(weights, bytes, soon, index, passes);
  }
};

// f(pass) for all rows, at most kRows at once in shares of about the same size, and all steps, kSteps at once while their
// weights stay in the first cache. There is a pass of each row even if there are no steps.
template <int kRows, int kSteps, class F>
inline void in_passes(const Rows& rows, int64_t steps, F f) {
  const int64_t all = rows.all(), passes = (all + kRows - 1) / kRows, together = passes > 1 ? kSteps : steps;
  int64_t first = 0;
  do {
    const int64_t end = first + together < steps ? first + together : steps;
    for (int64_t i = 0; i < passes; ++i) {
      const int64_t row = all * i / passes;
      f(Pass{row, all * (i + 1) / passes - row, first, end, i, passes, passes > 1 ? kSteps * kPanelStep : kSoon});
    }
    first = end;
  } while (first < steps);
}

#ifndef NEXTSCALE_HAS_TILES
class Tiles {};  // what `multiply` needs while it is used: nothing
#endif

// How the 16 rows of a block lie in memory of ours. Tiles read the rows' 64 bytes of a step together; else a row's own
// bytes are together, with 64 more after them: rows a power of two apart would share a few lines of the cache.
struct BlockLayout {
  int64_t stride, step, bytes;  // from row to row, from step to step, of a block
  explicit BlockLayout(int64_t steps)
#ifdef NEXTSCALE_HAS_TILES
      : stride(kStep), step(kTile), bytes(steps * kTile) {}
#else
      : stride(steps * kStep + 64), step(kStep), bytes(kBlock * stride) {}
#endif
};

// Rows u8 [count, k], one after another, become a block. Missing k are zero; missing rows are left as they are.
inline void lay_out_block(const uint8_t* rows, int64_t count, int64_t k, const BlockLayout& layout, uint8_t* block) {
  const int64_t steps = k / kStep, rest = k % kStep;
  for (int64_t i = 0; i < kBlock && i < count; ++i) {
    const uint8_t* row = rows + i * k;
    uint8_t* to = block + i * layout.stride;
    for (int64_t s = 0; s < steps; ++s, row += kStep, to += layout.step) std::memcpy(to, row, kStep);
    if (!rest) continue;
    std::memset(to, 0, kStep);
    std::memcpy(to, row, static_cast<size_t>(rest));
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_PRODUCT_H_

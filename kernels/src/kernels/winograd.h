// 3x3 convolutions with 16 instead of 36 products for 2x2 results (Winograd, F(2x2, 3x3)), in integers and exact.
//
// Of a tile of 4x4 codes d, a kernel g and the results y, with * element by element:
//
//   y = A' [(G g G') * (B' d B)] A,   B' d = d0 - d2, d1 + d2, d2 - d1, d1 - d3
//                                     2 G g = 2 g0, g0 + g1 + g2, g0 - g1 + g2, 2 g2
//                                     A' m = m0 + m1 + m2, m1 - m2 - m3
//
// Weights are those of 2 G, so that results are four times the sums. All numbers that are multiplied fit 16 bits: where
// products are of 16 bits anyway this needs fewer of them, while those of bytes are faster without it.
#ifndef NEXTSCALE_KERNELS_WINOGRAD_H_
#define NEXTSCALE_KERNELS_WINOGRAD_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kPlanes = 16;             // numbers of a tile
constexpr int64_t kTileNumbers = 12288;     // of a plane of all inputs: 400 KB in all planes, which the cache keeps
constexpr int kNumbersSlot = 6, kSumsSlot = 7;

struct Tiling {
  int64_t across, down, channels;  // channels filled up to 16
  int64_t tiles() const { return across * down; }
  int64_t rows() const { return ceil_div(tiles(), kWideRows) * kWideRows; }
  int64_t plane() const { return rows() * channels; }
};

// B' d B of the copy's tiles: s16 [16][rows][channels]. The channels after the last are the next pixel's.
inline void transform_codes(const uint8_t* copy, int64_t pitch, int64_t pixel, const Tiling& tiling, int16_t* numbers) {
  for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
    const uint8_t* corner = copy + tile / tiling.across * 2 * pitch + tile % tiling.across * 2 * pixel;
    for (int64_t c = 0; c < tiling.channels; c += kLanes) {
      H lines[4][4];
      NEXTSCALE_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint8_t* at = corner + j * pixel + c;
        const H d0 = widen(at), d1 = widen(at + pitch), d2 = widen(at + 2 * pitch), d3 = widen(at + 3 * pitch);
        lines[0][j] = d0 - d2, lines[1][j] = d1 + d2, lines[2][j] = d2 - d1, lines[3][j] = d1 - d3;
      }
      int16_t* to = numbers + tile * tiling.channels + c;
      NEXTSCALE_UNROLL
      for (int i = 0; i < 4; ++i, to += 4 * tiling.plane()) {
        store(to, lines[i][0] - lines[i][2]);
        store(to + tiling.plane(), lines[i][1] + lines[i][2]);
        store(to + 2 * tiling.plane(), lines[i][2] - lines[i][1]);
        store(to + 3 * tiling.plane(), lines[i][1] - lines[i][3]);
      }
    }
  }
}

// A quarter of A' m A of one tile's sums, 16 outputs in each plane of each input.
template <int kInputs>
struct TileSums {
  I y[2][2][kInputs];
  TileSums(const int32_t* sums, int64_t plane) {
    for (int i = 0; i < kInputs; ++i, sums += kPlanes * plane) {
      I upper[4], lower[4];
      NEXTSCALE_UNROLL
      for (int j = 0; j < 4; ++j) {
        const I m0 = load(sums + j * plane), m1 = load(sums + (4 + j) * plane), m2 = load(sums + (8 + j) * plane),
                m3 = load(sums + (12 + j) * plane);
        upper[j] = m0 + m1 + m2;
        lower[j] = m1 - m2 - m3;
      }
      y[0][0][i] = shift_right_signed<2>(upper[0] + upper[1] + upper[2]);
      y[0][1][i] = shift_right_signed<2>(upper[1] - upper[2] - upper[3]);
      y[1][0][i] = shift_right_signed<2>(lower[0] + lower[1] + lower[2]);
      y[1][1][i] = shift_right_signed<2>(lower[1] - lower[2] - lower[3]);
    }
  }
};

// 16 outputs of the chunk.
template <int kInputs, class To>
inline void winograd_outputs(const ConvolutionArgs& a, const Chunk& chunk, const Tiling& tiling, const int16_t* numbers,
                             int64_t block, int32_t* sums) {
  const int64_t pairs = tiling.channels / 2, plane = tiling.rows() * kLanes;
  const int16_t* weights = a.transformed + block * kPlanes * pairs * 2 * kLanes;
  for (int64_t p = 0; p < kPlanes; ++p)
    for (int64_t i = p; i < kInputs * kPlanes; i += kPlanes)
      for (int64_t row = 0; row < tiling.rows(); row += kWideRows)
        multiply_wide(numbers + i * tiling.plane() + row * tiling.channels, tiling.channels,
                      weights + p * pairs * 2 * kLanes, pairs, sums + i * plane + row * kLanes);
  const Outputs<kInputs, To> finish(a, 0, block / 2);
  const int64_t half = block % 2, outputs = a.out - block * kLanes;
  for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
    const int64_t y = tile / tiling.across * 2, x = tile % tiling.across * 2;
    const TileSums<kInputs> of_tile(sums + tile * kLanes, plane);
    for (int64_t i = 0; i < least_of(2, chunk.height - y); ++i)
      for (int64_t j = 0; j < least_of(2, chunk.width - x); ++j) {
        const int64_t pixel = (chunk.picture * a.height + chunk.y + y + i) * a.width + chunk.x + x + j;
        finish(of_tile.y[i][j], half, pixel * a.out + block * kLanes, outputs);
      }
  }
}

template <int kInputs, class To>
inline void winograd(const ConvolutionArgs& a, const Parallel& parallel) {
  const int64_t channels = ceil_div(a.channels, kLanes) * kLanes, blocks = ceil_div(a.out, kLanes);
  const int64_t tiles = most_of(kTileNumbers / (kInputs * channels), 1);
  const int64_t width = least_of(a.width, 2 * tiles);
  const int64_t height = least_of(a.height, 2 * most_of(tiles / ceil_div(width, 2), 1));
  in_chunks(a, width, height, blocks, parallel, [&](const Chunk& chunk, int64_t first, int64_t end) {
    const Tiling tiling{ceil_div(chunk.width, 2), ceil_div(chunk.height, 2), channels};
    const Copies<kInputs> copies(a, chunk);
    auto* numbers = static_cast<int16_t*>(
        thread_memory(kNumbersSlot, static_cast<size_t>(kInputs * kPlanes * tiling.plane()) * sizeof(int16_t)));
    auto* sums = static_cast<int32_t*>(
        thread_memory(kSumsSlot, static_cast<size_t>(kInputs * kPlanes * tiling.rows() * kLanes) * sizeof(int32_t)));
    for (int i = 0; i < kInputs; ++i)
      transform_codes(copies.begin[i], chunk.pitch(a.channels), a.channels, tiling,
                      numbers + i * kPlanes * tiling.plane());
    for (int64_t block = first; block < end; ++block)
      winograd_outputs<kInputs, To>(a, chunk, tiling, numbers, block, sums);
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_WINOGRAD_H_

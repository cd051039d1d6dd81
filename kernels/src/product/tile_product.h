// The product by tiles, those of AMX or emulated ones. Its caller holds `Tiles`.
#ifndef NEXTSCALE_PRODUCT_TILE_PRODUCT_H_
#define NEXTSCALE_PRODUCT_TILE_PRODUCT_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// A tile that comes from the second cache keeps the few places from which memory is awaited: fetched far ahead, weights
// of some blocks of rows came later than without (benchmarks/NOTES.md).
constexpr bool kFetchesFar = false;

// The product, with other work done after each step: `between()` runs beside the tiles' own products.
template <class Between>
inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums, Between between) {
  NEXTSCALE_TILE_ZERO(0);
  NEXTSCALE_TILE_ZERO(1);
  if (rows.count[1] > 0) {  // each tile that is loaded serves two products
    NEXTSCALE_TILE_ZERO(2);
    NEXTSCALE_TILE_ZERO(3);
    for (int64_t s = 0; s < steps; ++s) {
      const int8_t* w = panel + s * kPanelStep;
      rows.fetch(w, kPanelStep, kSoon, 0, 1);
      NEXTSCALE_TILE_LOAD(6, w, 64);
      NEXTSCALE_TILE_LOAD(4, rows.begin[0] + rows.offset(s), rows.stride);
      NEXTSCALE_TILE_PRODUCT(0, 4, 6);
      NEXTSCALE_TILE_LOAD(7, w + kTile, 64);
      NEXTSCALE_TILE_PRODUCT(1, 4, 7);
      NEXTSCALE_TILE_LOAD(5, rows.begin[1] + rows.offset(s), rows.stride);
      NEXTSCALE_TILE_PRODUCT(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT(3, 5, 7);
      between();
    }
    NEXTSCALE_TILE_STORE(2, sums + kBlock * kPanel, 4 * kPanel);
    NEXTSCALE_TILE_STORE(3, sums + kBlock * kPanel + 16, 4 * kPanel);
  } else {
    for (int64_t s = 0; s < steps; ++s) {
      const int8_t* w = panel + s * kPanelStep;
      rows.fetch(w, kPanelStep, kSoon, 0, 1);
      NEXTSCALE_TILE_LOAD(4, rows.begin[0] + rows.offset(s), rows.stride);
      NEXTSCALE_TILE_LOAD(6, w, 64);
      NEXTSCALE_TILE_PRODUCT(0, 4, 6);
      NEXTSCALE_TILE_LOAD(7, w + kTile, 64);
      NEXTSCALE_TILE_PRODUCT(1, 4, 7);
      between();
    }
  }
  NEXTSCALE_TILE_STORE(0, sums, 4 * kPanel);
  NEXTSCALE_TILE_STORE(1, sums + 16, 4 * kPanel);
}
inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  multiply(rows, panel, steps, sums, [] {});
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_TILE_PRODUCT_H_

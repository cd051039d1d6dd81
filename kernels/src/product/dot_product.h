// The product by an instruction that multiplies 4 bytes u8 with 4 bytes s8 in each lane and adds them up.
//
// An instruction set gives, before it includes this file:
//
//   constexpr int kRegisterRows, kRegisterColumns;   // rows, and vectors of 16 columns, whose sums fit into registers
//   struct Sums;                                     // of one row and 16 columns
//   Sums zero_sums(); void add_products(Sums&, int32_t four_of_a, const int8_t* group); void store_sums(int32_t*, Sums);
#ifndef NEXTSCALE_PRODUCT_DOT_PRODUCT_H_
#define NEXTSCALE_PRODUCT_DOT_PRODUCT_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// M rows of both blocks, from number `row` on, times kRegisterColumns vectors of 16 columns, of which `column` is the
// first.
template <int M>
NEXTSCALE_ALONE void dot_rows(const Rows& rows, int64_t row, const int8_t* panel, int64_t steps, int column,
                              int32_t* sums) {
  const uint8_t* begin[M];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i) begin[i] = rows.row(row + i);
  Sums acc[M][kRegisterColumns];
  for (int i = 0; i < M; ++i)
    for (int c = 0; c < kRegisterColumns; ++c) acc[i][c] = zero_sums();
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t offset = rows.offset(s);
    const int8_t* w = panel + s * kPanelStep + column * kTile;
    const int32_t quads = rows.quads_of(s);
    rows.fetch(w, kRegisterColumns * kTile, row / M, rows.all() / M);
    for (int32_t p = 0; p < quads; ++p)
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i) {
        int32_t four;
        std::memcpy(&four, begin[i] + offset + 4 * p, 4);
        for (int c = 0; c < kRegisterColumns; ++c) add_products(acc[i][c], four, w + c * kTile + 64 * p);
      }
  }
  for (int i = 0; i < M; ++i)
    for (int c = 0; c < kRegisterColumns; ++c)
      store_sums(sums + rows.place(row + i) * kPanel + 16 * (column + c), acc[i][c]);
}

template <int M>
inline void dot_groups(const Rows& rows, int64_t row, const int8_t* panel, int64_t steps, int32_t* sums) {
  for (; row + M <= rows.all(); row += M)
    for (int c = 0; c < 2; c += kRegisterColumns) dot_rows<M>(rows, row, panel, steps, c, sums);
  if constexpr (M > 1) {
    if (row < rows.all()) dot_groups<M / 2>(rows, row, panel, steps, sums);
  }
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  dot_groups<kRegisterRows>(rows, 0, panel, steps, sums);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_DOT_PRODUCT_H_

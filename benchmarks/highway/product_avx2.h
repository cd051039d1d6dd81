// kernels/src/product/avx2.h written with Highway: what benchmarks/highway_speed.py builds in its place.
#ifndef NEXTSCALE_PRODUCT_AVX2_H_
#define NEXTSCALE_PRODUCT_AVX2_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

using Wide = hn::FixedTag<int16_t, 16>;
using WideNumbers = hn::VFromD<Wide>;
using Sums = hn::VFromD<Ints>;
constexpr Wide dw{};

struct Halves {
  WideNumbers even, odd;
};
inline Halves halves_of_weights(const int8_t* eight_groups) {
  const auto w = hn::BitCast(dw, hn::LoadU(hn::FixedTag<int8_t, 32>(), eight_groups));
  return {hn::ShiftRight<8>(hn::ShiftLeft<8>(w)), hn::ShiftRight<8>(w)};
}
inline Halves halves_of_row(const uint8_t* group) {
  int32_t four;
  std::memcpy(&four, group, 4);
  const hn::RebindToUnsigned<Wide> du;
  const auto x = hn::BitCast(du, hn::Set(di, four));
  return {hn::BitCast(dw, hn::And(x, hn::Set(du, 255))), hn::BitCast(dw, hn::ShiftRight<8>(x))};
}
inline void add_products(Sums& acc, const Halves& x, const Halves& w) {
  acc = hn::Add(acc, hn::WidenMulPairwiseAdd(di, x.even, w.even));
  acc = hn::Add(acc, hn::WidenMulPairwiseAdd(di, x.odd, w.odd));
}

template <int M, int C>
NEXTSCALE_ALONE void multiply_rows(const Rows& rows, int64_t row, const int8_t* panel, int64_t steps, int column,
                                   int32_t* sums) {
  const uint8_t* begin[M];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i) begin[i] = rows.row(row + i);
  Sums acc[M][C];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; ++c) acc[i][c] = hn::Zero(di);
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t offset = rows.offset(s);
    const int8_t* w = panel + s * kPanelStep + column / 16 * kTile + column % 16 * 4;
    const int32_t quads = rows.quads_of(s);
    rows.fetch(w, C / 2 * kTile, row / M, rows.all() / M);
    for (int32_t p = 0; p < quads; ++p, w += 64) {
      const auto weights = [&](int c) { return halves_of_weights(w + c / 2 * kTile + c % 2 * 32); };
      const auto numbers = [&](int i) { return halves_of_row(begin[i] + offset + 4 * p); };
      if constexpr (M < C) {
        Halves x[M];
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) x[i] = numbers(i);
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) {
          const Halves eight = weights(c);
          NEXTSCALE_UNROLL
          for (int i = 0; i < M; ++i) add_products(acc[i][c], x[i], eight);
        }
      } else {
        Halves eight[C];
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) eight[c] = weights(c);
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) {
          const Halves x = numbers(i);
          NEXTSCALE_UNROLL
          for (int c = 0; c < C; ++c) add_products(acc[i][c], x, eight[c]);
        }
      }
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i)
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) NEXTSCALE_IN_REGISTER(acc[i][c].raw);
    }
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; ++c) hn::StoreU(acc[i][c], di, sums + rows.place(row + i) * kPanel + column + 8 * c);
}

template <int M, int C>
inline int64_t multiply_groups(const Rows& rows, int64_t row, const int8_t* panel, int64_t steps, int32_t* sums) {
  for (; row + M <= rows.all(); row += M)
    for (int column = 0; column < kPanel; column += 8 * C) multiply_rows<M, C>(rows, row, panel, steps, column, sums);
  return row;
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  int64_t row = multiply_groups<4, 2>(rows, 0, panel, steps, sums);
  row = multiply_groups<2, 4>(rows, row, panel, steps, sums);
  multiply_groups<1, 4>(rows, row, panel, steps, sums);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX2_H_

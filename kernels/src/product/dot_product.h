// The product by an instruction that multiplies 4 bytes u8 with 4 bytes s8 in each lane and adds them up.
//
// An instruction set gives, before it includes this file:
//
//   constexpr int kRegisterRows, kRegisterColumns;   // rows, and vectors of 16 columns, whose sums fit into registers
//   struct Sums;                                     // of one row and 16 columns
//   Sums zero_sums(); Sums load_sums(const int32_t*); void store_sums(int32_t*, Sums);
//   void add_products(Sums&, int32_t four_of_a, const int8_t* group);
#ifndef NEXTSCALE_PRODUCT_DOT_PRODUCT_H_
#define NEXTSCALE_PRODUCT_DOT_PRODUCT_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr bool kFetchesFar = true;

// M rows times kRegisterColumns vectors of 16 columns, of which `column` is the first. Beyond step 0 the sums grow.
template <int M>
NEXTSCALE_ALONE void dot_rows(const Rows& rows, const Pass& pass, const int8_t* panel, int column, int32_t* sums) {
  const uint8_t* begin[M];
  int32_t* to[M];
  Sums acc[M][kRegisterColumns];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i) {
    begin[i] = rows.row(pass.row + i);
    to[i] = sums + rows.place(pass.row + i) * kPanel + 16 * column;
    NEXTSCALE_UNROLL
    for (int c = 0; c < kRegisterColumns; ++c) acc[i][c] = pass.first == 0 ? zero_sums() : load_sums(to[i] + 16 * c);
  }
  for (int64_t s = pass.first; s < pass.end; ++s) {
    const int64_t offset = rows.offset(s);
    const int8_t* w = panel + s * kPanelStep + column * kTile;
    const int32_t quads = rows.quads_of(s);
    pass.fetch(rows, w, kRegisterColumns * kTile);
    for (int32_t p = 0; p < quads; ++p)
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i) {
        int32_t four;
        std::memcpy(&four, begin[i] + offset + 4 * p, 4);
        NEXTSCALE_UNROLL
        for (int c = 0; c < kRegisterColumns; ++c) add_products(acc[i][c], four, w + c * kTile + 64 * p);
      }
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < kRegisterColumns; ++c) store_sums(to[i] + 16 * c, acc[i][c]);
}

template <int M>
inline void dot_pass(const Rows& rows, const Pass& pass, const int8_t* panel, int32_t* sums) {
  if constexpr (M > 1) {
    if (pass.rows < M) return dot_pass<M - 1>(rows, pass, panel, sums);
  }
  for (int c = 0; c < 2; c += kRegisterColumns) dot_rows<M>(rows, pass, panel, c, sums);
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  // The first cache holds the weights of 4 steps, those of the next and all rows.
  in_passes<kRegisterRows, 4>(rows, steps, [&](const Pass& pass) { dot_pass<kRegisterRows>(rows, pass, panel, sums); });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_DOT_PRODUCT_H_

// Four products and their sum in each lane, in plain C++.
#ifndef NEXTSCALE_PRODUCT_PORTABLE_H_
#define NEXTSCALE_PRODUCT_PORTABLE_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kRegisterRows = 2, kRegisterColumns = 1;

struct Sums {
  int32_t v[16];
};
inline Sums zero_sums() { return {}; }
inline Sums load_sums(const int32_t* from) {
  Sums sums;
  std::memcpy(sums.v, from, sizeof sums.v);
  return sums;
}
inline void add_products(Sums& acc, int32_t four, const int8_t* group) {
  uint8_t a[4];
  std::memcpy(a, &four, 4);
  for (int lane = 0; lane < 16; ++lane)
    for (int e = 0; e < 4; ++e) acc.v[lane] += static_cast<int32_t>(a[e]) * group[4 * lane + e];
}
inline void store_sums(int32_t* to, const Sums& acc) { std::memcpy(to, acc.v, sizeof acc.v); }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_PORTABLE_H_

// Four products and their sum in each lane: vpdpbusd on 64 bytes.
#ifndef NEXTSCALE_PRODUCT_AVX512_VNNI_H_
#define NEXTSCALE_PRODUCT_AVX512_VNNI_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// 16 of the 32 registers hold sums, which is more than an instruction takes cycles, and 8 divides a block.
constexpr int kRegisterRows = 8, kRegisterColumns = 2;

using Sums = __m512i;
inline Sums zero_sums() { return _mm512_setzero_si512(); }
inline void add_products(Sums& acc, int32_t four, const int8_t* group) {
  acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(four), _mm512_loadu_si512(group));
}
inline void store_sums(int32_t* to, Sums acc) { _mm512_storeu_si512(to, acc); }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX512_VNNI_H_

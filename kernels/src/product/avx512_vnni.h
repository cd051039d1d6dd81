// Four products and their sum in each lane: vpdpbusd on 64 bytes.
#ifndef NEXTSCALE_PRODUCT_AVX512_VNNI_H_
#define NEXTSCALE_PRODUCT_AVX512_VNNI_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// 24 of the 32 registers hold sums: more than two instructions a cycle for 5 cycles, which they take, and few loads.
constexpr int kRegisterRows = 12, kRegisterColumns = 2;

using Sums = __m512i;
inline Sums zero_sums() { return _mm512_setzero_si512(); }
inline Sums load_sums(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void add_products(Sums& acc, int32_t four, const int8_t* group) {
  acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(four), _mm512_loadu_si512(group));
}
inline void store_sums(int32_t* to, Sums acc) { _mm512_storeu_si512(to, acc); }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX512_VNNI_H_

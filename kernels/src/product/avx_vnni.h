// Four products and their sum in each lane: vpdpbusd on 32 bytes, of processors without AVX-512.
#ifndef NEXTSCALE_PRODUCT_AVX_VNNI_H_
#define NEXTSCALE_PRODUCT_AVX_VNNI_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kRegisterRows = 6, kRegisterColumns = 1;

struct Sums {
  __m256i lo, hi;
};
inline Sums zero_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Sums load_sums(const int32_t* from) {
  const __m256i* p = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1)};
}
inline void add_products(Sums& acc, int32_t four, const int8_t* group) {
  const __m256i a = _mm256_set1_epi32(four);
  const __m256i* w = reinterpret_cast<const __m256i*>(group);
  acc.lo = _mm256_dpbusd_avx_epi32(acc.lo, a, _mm256_loadu_si256(w));
  acc.hi = _mm256_dpbusd_avx_epi32(acc.hi, a, _mm256_loadu_si256(w + 1));
}
inline void store_sums(int32_t* to, const Sums& acc) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), acc.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + 1, acc.hi);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX_VNNI_H_

// Numbers, or the numbers of codes, plus those of more codes, each channel in its own scale.
#ifndef NEXTSCALE_KERNELS_ADD_CODES_H_
#define NEXTSCALE_KERNELS_ADD_CODES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Of n lanes of a channel's numbers, from number i of all and channel c on.
template <bool kNumbers, bool kTwoCodes>
inline F sum_at(const AddCodesArgs& a, const float* offset, int64_t i, int64_t c) {
  F y = load(offset + c);
  if constexpr (kNumbers) y = load(a.x + i) + y;
  if constexpr (kTwoCodes) y = fma(to_float(load_u8(a.codes[1] + i)), load(a.scale[1] + c), y);
  return fma(to_float(load_u8(a.codes[0] + i)), load(a.scale[0] + c), y);
}
template <bool kNumbers, bool kTwoCodes>
inline F sum_at(const AddCodesArgs& a, const float* offset, int64_t i, int64_t c, int64_t n) {
  F y = load(offset + c, n);
  if constexpr (kNumbers) y = load(a.x + i, n) + y;
  if constexpr (kTwoCodes) y = fma(to_float(load_u8(a.codes[1] + i, n)), load(a.scale[1] + c, n), y);
  return fma(to_float(load_u8(a.codes[0] + i, n)), load(a.scale[0] + c, n), y);
}

template <bool kNumbers, bool kTwoCodes>
inline void add_codes_to(const AddCodesArgs& a, const float* offset, const Parallel& parallel) {
  const int64_t span = 1 + kTaskNumbers / a.channels;
  parallel(ceil_div(a.pixels, span), [&](int64_t task) {
    const int64_t end = least_of(a.pixels, (task + 1) * span) * a.channels;
    for (int64_t i = task * span * a.channels; i < end; i += a.channels) {
      int64_t c = 0;
      for (; c + kLanes <= a.channels; c += kLanes)
        store(a.y + i + c, sum_at<kNumbers, kTwoCodes>(a, offset, i + c, c));
      if (const int64_t n = a.channels - c) store(a.y + i + c, sum_at<kNumbers, kTwoCodes>(a, offset, i + c, c, n), n);
    }
  });
}

inline void add_codes(const AddCodesArgs& a, const Parallel& parallel, const Workspace& workspace) {
  if (a.pixels == 0 || a.channels == 0) return;
  const float* offset = a.offset;
  if (!offset) {
    float* zeros = workspace.take<float>(a.channels);
    for (int64_t c = 0; c < a.channels; ++c) zeros[c] = 0;
    offset = zeros;
  }
  if (a.x)
    add_codes_to<true, false>(a, offset, parallel);
  else if (a.codes[1])
    add_codes_to<false, true>(a, offset, parallel);
  else
    add_codes_to<false, false>(a, offset, parallel);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ADD_CODES_H_

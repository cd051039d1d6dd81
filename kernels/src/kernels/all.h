// The kernels of one instruction set, and their table.
#ifndef NEXTSCALE_KERNELS_ALL_H_
#define NEXTSCALE_KERNELS_ALL_H_

#include "quantize.h"  // first: others use it

#include "caches.h"  // before the attentions, which use these two
#include "coded_caches.h"
#include "attention_vectors.h"
#ifdef NEXTSCALE_HAS_TILES
#include "attention_tiles.h"
#endif

#include "add_codes.h"
#include "attention.h"
#include "convolution.h"
#include "group_norm.h"
#include "integer_attention.h"
#include "linear.h"
#include "norm.h"
#include "sample.h"
#ifdef NEXTSCALE_HAS_WIDE_PRODUCT
#include "winograd.h"
#endif

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

#ifdef NEXTSCALE_HAS_WIDE_PRODUCT
constexpr bool kWinograd = true;
#else
constexpr bool kWinograd = false;
template <int, class>
inline void winograd(const ConvolutionArgs&, const Parallel&) {}
#endif
template <int kInputs, class To>
inline void convolution_to(const ConvolutionArgs& a, const Parallel& parallel) {
  a.transformed ? winograd<kInputs, To>(a, parallel) : direct_convolution<kInputs, To>(a, parallel);
}
inline void convolution(const ConvolutionArgs& a, const Parallel& parallel) {
  if (a.batch == 0 || a.height == 0 || a.width == 0) return;
  if (a.y_codes) return convolution_to<1, ToCodes>(a, parallel);
  a.fine ? convolution_to<2, ToFloats>(a, parallel) : convolution_to<1, ToFloats>(a, parallel);
}

constexpr Kernels table(const char* isa) {
  return {
      isa,
      quantize,
      norm,
      linear,
      attention,
      integer_attention,
      kWinograd,
      convolution,
      group_norm,
      add_codes,
      sample,
  };
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ALL_H_

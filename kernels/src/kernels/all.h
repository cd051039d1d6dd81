// The kernels of one instruction set, and their table.
#ifndef NEXTSCALE_KERNELS_ALL_H_
#define NEXTSCALE_KERNELS_ALL_H_

#include "quantize.h"  // first: others use it

#include "add_codes.h"
#include "attention.h"
#include "convolution.h"
#include "group_norm.h"
#include "linear.h"
#include "norm.h"

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr Kernels table(const char* isa) {
  return {
      isa,
      quantize,
      norm,
      linear,
      attention,
      convolution,
      group_norm,
      add_codes,
  };
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ALL_H_

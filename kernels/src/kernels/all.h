// The kernels of one instruction set, and their table.
#ifndef NEXTSCALE_KERNELS_ALL_H_
#define NEXTSCALE_KERNELS_ALL_H_

#include "quantize.h"

#include "norm.h"

#include "linear.h"

#include "attention.h"

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr Kernels table(const char* isa) { return {isa, quantize, norm, linear, attention}; }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ALL_H_

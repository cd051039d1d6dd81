// Which instruction set the kernels use.
#ifndef NEXTSCALE_CPU_H_
#define NEXTSCALE_CPU_H_

#include "kernels.h"

namespace nextscale {

// The kernels of the best set that this processor has, or of the one that NEXTSCALE_OPS_ISA names; null if that is none
// that it has.
const Kernels* choose_kernels();

}  // namespace nextscale

#endif  // NEXTSCALE_CPU_H_

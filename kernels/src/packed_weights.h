// Weights in the layout that the kernels read, made once from a constant of the graph.
#ifndef NEXTSCALE_PACKED_WEIGHTS_H_
#define NEXTSCALE_PACKED_WEIGHTS_H_

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace nextscale {

// Bytes that begin at a multiple of 64, all zero: large memory comes so from the system, without a pass over it.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes) : memory_(std::calloc(bytes + 64, 1), std::free) {
    if (!memory_) throw std::bad_alloc();
  }
  int8_t* begin() const {
    return reinterpret_cast<int8_t*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63});
  }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
};

class PackedWeights {
 public:
  // Of weights s8 [k, n].
  PackedWeights(const int8_t* weights, int64_t k, int64_t n);
  const Panels& panels() const { return panels_; }

 private:
  Panels panels_;
  AlignedBytes codes_;
  std::vector<int32_t> sums_;
};

}  // namespace nextscale

#endif  // NEXTSCALE_PACKED_WEIGHTS_H_

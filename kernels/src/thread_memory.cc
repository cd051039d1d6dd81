#include <cstdlib>
#include <new>

#include "kernels.h"

namespace nextscale {
namespace {

constexpr size_t kAlignment = 64;
constexpr int kSlots = 8;

struct Memory {
  void* begin = nullptr;
  size_t bytes = 0;
  void* aligned() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(begin) + kAlignment - 1) & ~uintptr_t{kAlignment - 1});
  }
  ~Memory() { std::free(begin); }
};

thread_local Memory memories[kSlots];

}  // namespace

void* thread_memory(int slot, size_t bytes) {
  Memory& memory = memories[slot];
  if (memory.bytes < bytes) {
    std::free(memory.begin);
    memory.bytes = 0;
    memory.begin = std::malloc(bytes + kAlignment);
    if (!memory.begin) throw std::bad_alloc();
    memory.bytes = bytes;
  }
  return memory.aligned();
}

}  // namespace nextscale

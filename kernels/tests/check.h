// What a check of a kernel is made of: random shapes and numbers, results on each instruction set and number of threads,
// and their comparison.
#ifndef NEXTSCALE_TESTS_CHECK_H_
#define NEXTSCALE_TESTS_CHECK_H_

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu.h"
#include "kernels.h"

namespace nextscale::check {

// Memory of just these bytes, so that AddressSanitizer sees whoever goes beyond them.
using Bytes = std::unique_ptr<unsigned char[]>;

// Threads and memory as a session has them. Tasks are taken from the last to the first: a kernel must not lean on their
// order.
class Session {
 public:
  explicit Session(int threads) : threads_(threads) {}
  Parallel parallel() { return Parallel(run, this, threads_); }
  Workspace workspace() { return Workspace(take, this); }

 private:
  static void run(void* pool, size_t tasks, Parallel::Task task, void* data) {
    std::atomic<size_t> left{tasks};
    const auto work = [&] {
      for (size_t i = left.load(); i > 0;)
        if (left.compare_exchange_weak(i, i - 1)) {
          task(data, i - 1);
          i = left.load();
        }
    };
    std::vector<std::thread> others;
    for (int i = 1; i < static_cast<Session*>(pool)->threads_; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }
  static void* take(void* owner, size_t bytes) {
    auto& memory = static_cast<Session*>(owner)->memory_;
    void* taken = nullptr;
    if (posix_memalign(&taken, 64, bytes) != 0) std::abort();
    std::memset(taken, 0xa5, bytes);  // what is not initialized must not matter
    memory.emplace_back(taken, std::free);
    return taken;
  }

  int threads_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> memory_;
};

// An instruction set that this processor has.
inline std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const char* isa : {"portable", "emulated", "avx2", "avx_vnni", "avx512_vnni", "amx"}) {
    setenv("NEXTSCALE_OPS_ISA", isa, 1);
    if (const Kernels* kernels = choose_kernels()) found.push_back(kernels);
  }
  unsetenv("NEXTSCALE_OPS_ISA");
  return found;
}

// One case of one kernel. A check draws sizes, inputs and outputs of it, puts them into the kernel's arguments, and
// ends with `same_everywhere`.
class Case {
 public:
  Case(std::string name, uint64_t seed) : name_(std::move(name)), seed_(seed), random_(seed) {}

  int64_t from(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_); }
  bool maybe() { return from(0, 1) == 1; }

  // A size that a failure will tell: often few, often next to a whole number of vectors or steps.
  int64_t size(const char* name, int64_t most, int64_t least = 1) {
    int64_t n = from(least, most);
    if (from(0, 2) == 0) n = from(least, least + 4);
    if (from(0, 2) == 0) n = 16 * from(0, most / 16) + from(-1, 1);
    return told(name, n < least ? least : n > most ? most : n);
  }
  // One that may be nothing.
  int64_t count(const char* name, int64_t most) { return from(0, 29) == 0 ? told(name, 0) : size(name, most); }
  int64_t told(const char* name, int64_t value) {
    shape_ += std::string(" ") + name + "=" + std::to_string(value);
    return value;
  }

  // Numbers like activations; quarters among them, so that there are ties, and some that are far larger.
  const float* floats(int64_t n, float spread = 1, bool outliers = true) {
    auto* to = make<float>(n);
    const bool ties = maybe();
    std::normal_distribution<float> normal(0, spread);
    for (int64_t i = 0; i < n; ++i) {
      const float x = normal(random_);
      to[i] = ties ? std::nearbyint(x * 4) / 4 : outliers && from(0, 999) == 0 ? x * 1e4f : x;
    }
    return to;
  }
  const float* scales(int64_t n) {
    auto* to = make<float>(n);
    for (int64_t i = 0; i < n; ++i) to[i] = maybe() ? 0.25f : static_cast<float>(from(1, 1000)) * 1e-3f;
    return to;
  }
  template <class T>
  const T* integers(int64_t n, int64_t least, int64_t most) {
    auto* to = make<T>(n);
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from(0, 15) == 0 ? most : from(least, most));
    return to;
  }
  const uint8_t* codes(int64_t n) { return integers<uint8_t>(n, 0, 255); }
  QParams qparams(int32_t qmax = 255) {
    return {static_cast<float>(from(1, 100)) * 1e-2f, static_cast<int32_t>(from(0, qmax))};
  }

  // `n` numbers for the kernel to write. Where it works in another way with tiles, they may differ by `on_tiles`.
  template <class T>
  T* output(int64_t n, double on_tiles = 0) {
    auto* to = make<T>(n);
    outputs_.push_back({reinterpret_cast<unsigned char*>(to), n * static_cast<int64_t>(sizeof(T)), on_tiles,
                        [](const unsigned char* at) {
                          T value;
                          std::memcpy(&value, at, sizeof value);
                          return static_cast<double>(value);
                        },
                        static_cast<int64_t>(sizeof(T))});
    return to;
  }

  // How numbers [rows, tokens, k] become codes.
  Coding coding(Ranges ranges, int64_t rows, int64_t tokens, int64_t k, double on_tiles = 0) {
    Coding c;
    c.ranges = ranges;
    told("ranges", static_cast<int64_t>(ranges));
    if (ranges == Ranges::kNone) return c;
    const auto bits = static_cast<int32_t>(told("bits", maybe() ? 8 : from(2, 8)));
    c.qmax = (1 << bits) - 1;
    c.known[0] = qparams(c.qmax);
    c.known[1] = qparams(c.qmax);
    c.token_zero_point = static_cast<int32_t>(from(1, c.qmax - 1));
    if (ranges == Ranges::kImage) {
      const auto images = [&] {
        for (int64_t n = from(1, rows > 0 ? rows : 1);; --n)
          if (rows % n == 0) return n;
      };
      c.image_rows = told("image_rows", rows > 0 ? rows / images() : 1);
    }
    const bool pair = ranges == Ranges::kPair;
    for (int i = 0; i < (pair ? 2 : 1); ++i) c.codes[i] = output<uint8_t>((pair ? rows / 2 : rows) * tokens * k, on_tiles);
    if (ranges == Ranges::kImage || ranges == Ranges::kToken) {
      const int64_t n = ranges == Ranges::kImage ? rows : rows * tokens;
      c.scale = output<float>(n);
      c.zero_point = output<uint8_t>(n);
    }
    return c;
  }
  Ranges any_ranges(bool none, int64_t rows) {
    for (;;) {
      const auto ranges = static_cast<Ranges>(from(none ? 0 : 1, 4));
      if (ranges != Ranges::kPair || rows % 2 == 0) return ranges;
    }
  }

  // Calls on each instruction set and with each number of threads; the outputs must be those of one thread of portable
  // code. What tiles may round differently must be as near as it says, and with all numbers of threads the same.
  void same_everywhere(const std::function<void(const Kernels&, const Parallel&, const Workspace&)>& call) {
    std::vector<std::vector<unsigned char>> portable, own;
    unsigned char fill = 0x3c;
    for (const Kernels* kernels : all_kernels()) {
      const bool tiles = std::strcmp(kernels->isa, "amx") == 0 || std::strcmp(kernels->isa, "emulated") == 0;
      for (const int threads : {1, 2, 3, 8}) {
        for (const Output& output : outputs_) std::memset(output.begin, fill, static_cast<size_t>(output.bytes));
        fill = static_cast<unsigned char>(fill * 5 + 1);  // what a kernel leaves out differs from time to time
        Session session(threads);
        call(*kernels, session.parallel(), session.workspace());
        if (portable.empty()) portable = copied();
        if (threads == 1) own = copied();
        for (size_t i = 0; i < outputs_.size(); ++i) {
          compare(i, portable[i].data(), tiles ? outputs_[i].on_tiles : 0, kernels->isa, threads);
          compare(i, own[i].data(), 0, kernels->isa, threads);
        }
      }
    }
  }

 private:
  struct Output {
    unsigned char* begin;
    int64_t bytes;
    double on_tiles;
    double (*number)(const unsigned char*);
    int64_t size;
  };

  template <class T>
  T* make(int64_t n) {
    inputs_.emplace_back(new unsigned char[static_cast<size_t>(n) * sizeof(T)]);
    return reinterpret_cast<T*>(inputs_.back().get());
  }

  std::vector<std::vector<unsigned char>> copied() const {
    std::vector<std::vector<unsigned char>> all;
    for (const Output& output : outputs_) all.emplace_back(output.begin, output.begin + output.bytes);
    return all;
  }

  void compare(size_t number, const unsigned char* expected, double near, const char* isa, int threads) const {
    const Output& output = outputs_[number];
    if (output.bytes == 0 || std::memcmp(expected, output.begin, static_cast<size_t>(output.bytes)) == 0) return;
    for (int64_t i = 0; i < output.bytes; i += output.size) {
      const double wanted = output.number(expected + i), found = output.number(output.begin + i);
      if (near > 0 && std::fabs(wanted - found) <= near) continue;
      if (std::memcmp(expected + i, output.begin + i, static_cast<size_t>(output.size)) == 0) continue;
      std::fprintf(stderr,
                   "%s on %s with %d threads: element %lld of output %zu is %.9g, expected %.9g\nof the shape%s\n"
                   "again: kernels_check --kernel %s --seed %llu --cases 1\n",
                   name_.c_str(), isa, threads, static_cast<long long>(i / output.size), number, found, wanted,
                   shape_.c_str(), name_.c_str(), static_cast<unsigned long long>(seed_));
      std::exit(1);
    }
  }

  std::string name_, shape_;
  uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<Bytes> inputs_;
  std::vector<Output> outputs_;
};

}  // namespace nextscale::check

#endif  // NEXTSCALE_TESTS_CHECK_H_

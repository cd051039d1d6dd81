// What this processor can do at most, by instruction: u8 x s8 operations per second with all operands in registers, and
// bytes per second read from memory.
//
//     c++ -O2 -std=c++17 -pthread processor_limits.cc && ./a.out THREADS
//
// Prints one JSON object; an instruction that the processor lacks is left out.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kChains = 12;  // independent sums: more than latency times units
constexpr int kRounds = 7;

#define IN_REGISTER(v) __asm__ volatile("" : "+v"(v))

// Each function makes n times kChains products, or n times 4 of tiles.
__attribute__((target("avx512f,avx512vnni"))) void dpbusd_512(int64_t n) {
  __m512i sums[kChains] = {}, x = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = _mm512_dpbusd_epi32(sums[c], x, x);
      IN_REGISTER(sums[c]);
    }
}

__attribute__((target("avx2,avxvnni"))) void dpbusd_256(int64_t n) {
  __m256i sums[kChains] = {}, x = _mm256_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = _mm256_dpbusd_avx_epi32(sums[c], x, x);
      IN_REGISTER(sums[c]);
    }
}

__attribute__((target("avx2"))) void maddwd_256(int64_t n) {  // exact on AVX2: two instructions for 8 x 2 products
  __m256i sums[kChains] = {}, x = _mm256_set1_epi16(3);
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      IN_REGISTER(x);  // else the product is made once, before the loop
      sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(x, x));
      IN_REGISTER(sums[c]);
    }
}

void tdpbusd(int64_t n) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } tiles;
  __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
  __asm__ volatile("tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7" ::);
  for (int64_t i = 0; i < n; ++i)
    __asm__ volatile(
        "tdpbusd %%tmm6, %%tmm4, %%tmm0\n tdpbusd %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbusd %%tmm6, %%tmm5, %%tmm2\n tdpbusd %%tmm7, %%tmm5, %%tmm3" ::);
  __asm__ volatile("tilerelease" ::);
}

bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// The best rate of some rounds; all threads begin together, and the last one's end counts.
double rate(int threads, double amount, const std::function<void(int)>& work) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<int> ready{0};
    std::vector<double> begin(threads), end(threads);
    const auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t)
      all.emplace_back([&, t] {
        ++ready;
        while (ready < threads) {
        }
        begin[t] = now();
        work(t);
        end[t] = now();
      });
    for (auto& thread : all) thread.join();
    const double seconds = *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
    best = std::max(best, threads * amount / seconds);
  }
  return best;
}

// Bytes per second that all threads read together, each from memory of its own.
double memory_rate(int threads) {
  constexpr size_t kWords = size_t{96} << 17;  // 96 MiB a thread: beyond any cache
  std::vector<std::vector<uint64_t>> memory;
  for (int t = 0; t < threads; ++t) memory.emplace_back(kWords, t + 1);
  std::vector<uint64_t> sums(threads);
  const double found = rate(threads, kWords * 8.0, [&](int t) {
    uint64_t lanes[8] = {};
    for (size_t i = 0; i < kWords; i += 8)
#pragma GCC unroll 8
      for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += memory[t][i + lane];
    for (const uint64_t lane : lanes) sums[t] += lane;
  });
  for (const uint64_t sum : sums)
    if (sum == 0) std::abort();  // the sums are used
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  if (threads < 1 || threads > 1024) {
    std::fprintf(stderr, "error: expected the number of threads, 1 to 1024\n");
    return 2;
  }
  struct Instruction {
    const char* name;
    bool here;
    void (*run)(int64_t);
    int64_t times;
    double operations;  // of one time, a multiply-add being two
  };
  const Instruction instructions[] = {
      {"tdpbusd", __builtin_cpu_supports("amx-int8") && may_use_tiles(), tdpbusd, 2000000, 4.0 * 2 * 16 * 16 * 64},
      {"vpdpbusd 512", __builtin_cpu_supports("avx512vnni") != 0, dpbusd_512, 8000000, kChains * 2.0 * 64},
      {"vpdpbusd 256", __builtin_cpu_supports("avxvnni") != 0, dpbusd_256, 8000000, kChains * 2.0 * 32},
      {"vpmaddwd 256", __builtin_cpu_supports("avx2") != 0, maddwd_256, 8000000, kChains * 2.0 * 16},
  };
  std::string text = "{\"threads\": " + std::to_string(threads);
  for (const Instruction& one : instructions)
    if (one.here) {
      const double found = rate(threads, one.operations * static_cast<double>(one.times), [&](int) { one.run(one.times); });
      text += ", \"" + std::string(one.name) + "\": " + std::to_string(found);
    }
  std::printf("%s, \"memory\": %.0f}\n", text.c_str(), memory_rate(threads));
}

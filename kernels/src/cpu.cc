#include "cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(_M_X64)
#include <intrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nextscale {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_M_X64) && !defined(__x86_64__)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

uint64_t saved_by_system() {  // which registers the system saves for a thread: XCR0
#if defined(_M_X64) && !defined(__x86_64__)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
#endif
}

constexpr bool bit(uint32_t word, int i) { return (word >> i & 1) != 0; }

// Linux gives a process the tiles' state when it first asks for it.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, amx = false;
};

Features detect() {
  Features f;
  const Registers basic = cpuid(1, 0);
  if (!bit(basic.c, 27)) return f;  // OSXSAVE
  const uint64_t saved = saved_by_system();
  const Registers seven = cpuid(7, 0), more = cpuid(7, 1);
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
  f.avx2 = ymm && bit(basic.c, 12) && bit(seven.b, 5);  // with FMA
  f.avx_vnni = f.avx2 && bit(more.a, 4);
  f.avx512_vnni = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) &&
                  bit(seven.c, 11);  // F, DQ, BW, VL, VNNI: Cascade Lake has them
  f.amx = f.avx512_vnni && tiles && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) &&  // BF16, TILE, INT8
          may_use_tiles();
  return f;
}

#endif

struct Candidate {
  const Kernels* kernels;
  bool here;
};

}  // namespace

const Kernels* choose_kernels() {
#if defined(__x86_64__) || defined(_M_X64)
  static const Features found = detect();
  const Candidate candidates[] = {
      {&kAmx, found.amx},
      {&kAvx512Vnni, found.avx512_vnni},
      {&kAvxVnni, found.avx_vnni},
      {&kAvx2, found.avx2},
      {&kPortable, true},
#else
  const Candidate candidates[] = {
      {&kPortable, true},
#endif
#ifdef NEXTSCALE_OPS_EMULATED
      {&kEmulated, true},
#endif
  };
  const char* wanted = std::getenv("NEXTSCALE_OPS_ISA");
  for (const Candidate& candidate : candidates)
    if (candidate.here && (!wanted || !*wanted || std::strcmp(wanted, candidate.kernels->isa) == 0))
      return candidate.kernels;
  return nullptr;
}

}  // namespace nextscale

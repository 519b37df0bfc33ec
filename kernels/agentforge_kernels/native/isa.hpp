// Which instruction sets this machine offers, and the level in use (chosen at run time, or forced).
#pragma once

#include <atomic>

#include "common.hpp"

#if AGENTFORGE_X86
#include <cpuid.h>
#endif
#if AGENTFORGE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace agentforge {

// Ordered: a higher level is faster where present.
enum Isa : int { kPortable = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512Vnni = 3, kAmxInt8 = 4 };
constexpr int kIsaLevels = 5;

static inline const char* isa_name(int level) {
  static const char* const names[kIsaLevels] = {"portable", "avx2", "avxvnni", "avx512vnni", "amxint8"};
  return names[level];
}

#if AGENTFORGE_X86
// Extended control register 0: which register states the operating system saves on a task switch.
static inline uint64_t saved_register_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

#if AGENTFORGE_AMX
// Linux lets a process use tiles only after it has asked (Documentation/arch/x86/xstate.rst), because their 8 KB
// enlarge the frame of every signal; it refuses where an alternative signal stack is too small. Asked once.
static inline bool tiles_permitted() {
  static const bool permitted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return permitted;
}
#else
static inline bool tiles_permitted() { return false; }
#endif

// Bit numbers: Intel SDM volume 2A, CPUID leaves 1 and 7; volume 1, 13.3 (XCR0 bits 1, 2: SSE and AVX;
// 5, 6, 7: AVX-512 mask and upper registers; 17, 18: tiles).
static inline bool isa_reported(int level) {
  if (level == kPortable) return true;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const bool xsave_enabled = c >> 27 & 1, fma = c >> 12 & 1, avx = c >> 28 & 1, half = c >> 29 & 1;
  if (!xsave_enabled || !fma || !avx || !half) return false;
  const uint64_t states = saved_register_states();
  if ((states & 0x6) != 0x6) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const uint32_t most_subleaf = a;
  if (!(b >> 5 & 1)) return false;  // AVX2
  if (level == kAvx2) return true;
  if (level == kAvxVnni) {
    if (most_subleaf < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
    return a >> 4 & 1;
  }
  const bool foundation = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
  if (!foundation || !dq || !bw || !vl || !(c >> 11 & 1) || (states & 0xe0) != 0xe0) return false;
  if (level == kAvx512Vnni) return true;
  const bool tiles = d >> 24 & 1, tiles_of_int8 = d >> 25 & 1;
  return tiles && tiles_of_int8 && (states & 0x60000) == 0x60000 && tiles_permitted();
}
#else
static inline bool isa_reported(int level) { return level == kPortable; }
#endif

static inline int best_isa() {
  static const int best = [] {
    int level = kIsaLevels - 1;
    while (!isa_reported(level)) --level;
    return level;
  }();
  return best;
}

static std::atomic<int> forced_isa{-1};

static inline int current_isa() {
  const int forced = forced_isa.load(std::memory_order_relaxed);
  return forced >= 0 ? forced : best_isa();
}

}  // namespace agentforge

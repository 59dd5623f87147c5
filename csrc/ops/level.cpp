// Which instruction-set level this machine gets.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../cpu/levels.h"

namespace msf::cpu {
namespace {

Level best() {
#if defined(MSF_X86_LEVELS)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  if (has_avx512) return Level::kAvx512;
  if (has_avx2) return Level::kAvx2;
#endif
  return Level::kBaseline;
}

Level choose() {
  const char* asked = std::getenv("MSF_CPU_LEVEL");
  if (asked == nullptr || *asked == '\0') return best();
  const Level available = best();
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
  for (int i = 0; i <= static_cast<int>(available); ++i) {
    if (std::strcmp(asked, kNames[i]) == 0) return static_cast<Level>(i);
  }
  throw std::runtime_error("MSF_CPU_LEVEL must be baseline, avx2 or avx512, and at most what this CPU has (" +
                           std::string(kNames[static_cast<int>(available)]) + "); got " + asked);
}

}  // namespace

Level level() {
  static const Level chosen = choose();
  return chosen;
}

bool has_pair_dots() {
#if defined(MSF_X86_LEVELS) && defined(MSF_COMPILES_PAIR_DOTS)
  return level() == Level::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace msf::cpu

// The instruction-set levels that the CPU loops are compiled for, and the choice of one when the library is first used.
//
// Every file of this folder is compiled once per level into the namespace msf::cpu::<level>. It must define nothing with
// external linkage outside that namespace and include no standard header that does.
#pragma once

#include <cstdint>

// Whether this compiler knows the dot products of pairs of bfloat16 (AVX-512 BF16).
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 10
#define MSF_COMPILES_PAIR_DOTS 1
#endif

namespace msf::cpu {

enum class Level { kBaseline, kAvx2, kAvx512 };

// The best level of this machine, or the one that the environment variable MSF_CPU_LEVEL names.
Level level();

// Whether that level may use the processor's dot products of pairs of bfloat16.
bool has_pair_dots();

}  // namespace msf::cpu

#if defined(MSF_X86_LEVELS)
#define MSF_DECLARE_LEVELS(name, ...)                                  \
  namespace msf::cpu::baseline {                                       \
  void name(__VA_ARGS__);                                              \
  }                                                                    \
  namespace msf::cpu::avx2 {                                           \
  void name(__VA_ARGS__);                                              \
  }                                                                    \
  namespace msf::cpu::avx512 {                                         \
  void name(__VA_ARGS__);                                              \
  }
#define MSF_AT_LEVEL(name)                                             \
  (::msf::cpu::level() == ::msf::cpu::Level::kAvx512                   \
       ? &::msf::cpu::avx512::name                                     \
       : ::msf::cpu::level() == ::msf::cpu::Level::kAvx2 ? &::msf::cpu::avx2::name : &::msf::cpu::baseline::name)
#else
#define MSF_DECLARE_LEVELS(name, ...) \
  namespace msf::cpu::baseline {      \
  void name(__VA_ARGS__);             \
  }
#define MSF_AT_LEVEL(name) (&::msf::cpu::baseline::name)
#endif

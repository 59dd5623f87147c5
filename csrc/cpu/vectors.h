// Vectors of float as wide as the level's registers, with the few operations that the convolution needs.
//
// In a namespace without a name, like everything that is compiled for several levels.
#pragma once

#include <cstdint>

#include "msf/math.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace msf::cpu::MSF_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));

#define MSF_INLINE inline __attribute__((always_inline))

MSF_INLINE Vector load(const float* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

MSF_INLINE void store(float* to, Vector value) { __builtin_memcpy(to, &value, sizeof(value)); }

MSF_INLINE Vector broadcast(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return Vector{value, value, value, value};
#endif
}

// a * b + c, rounded as the scalar `multiply_add` of this level
MSF_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

MSF_INLINE Vector multiply_add(float a, Vector b, Vector c) { return multiply_add(broadcast(a), b, c); }

// The first n <= kWidth elements; the others are zero, or stay as they are.
MSF_INLINE Vector load_first(const float* from, int64_t n) {
  if (n >= kWidth) return load(from);
  float values[kWidth] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = from[i];
  return load(values);
}

MSF_INLINE void store_first(float* to, Vector value, int64_t n) {
  if (n >= kWidth) return store(to, value);
  float values[kWidth];
  store(values, value);
  for (int64_t i = 0; i < n; ++i) to[i] = values[i];
}

}  // namespace
}  // namespace msf::cpu::MSF_LEVEL

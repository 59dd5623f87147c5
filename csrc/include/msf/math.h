// Elementary functions in float: branch-free, so that loops over them vectorise, and the same on host and device.
//
// The polynomials are minimax fits of this project's own (Remez), with coefficients rounded to float one after another.
#pragma once

#include "msf/number.h"

namespace msf {

constexpr float kRoundToInt = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits

MSF_HOST_DEVICE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

MSF_HOST_DEVICE double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// a * b + c: rounded once where the processor can (CUDA, AVX2 and later, ARM), else twice.
MSF_HOST_DEVICE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

MSF_HOST_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// e^-y = mantissa * power within 1e-7 (1 + |y|) of itself, held between 2^-126 and 2^127. What the error adds to a sigmoid
// is within a rounding: the more |y|, the nearer that is to 0 or 1.
MSF_HOST_DEVICE void exp_minus(float y, float& mantissa, float& power) {
  float t = y * -0x1.715476p0f;  // e^-y = 2^t
  t = t < -126.0f ? -126.0f : t;
  t = t > 127.0f ? 127.0f : t;
  const float shifted = t + kRoundToInt;
  const float r = t - (shifted - kRoundToInt);  // in [-1/2, 1/2], exact
  // In pairs of terms: half as long a chain of dependent operations as Horner's.
  const float r2 = r * r;
  const float low = multiply_add(0x1.62e430p-1f, r, 1.0f);
  const float middle = multiply_add(0x1.c6af9ep-5f, r, 0x1.ebfb94p-3f);
  const float high = multiply_add(0x1.5ef4dep-10f, r, 0x1.3b6816p-7f);
  float p = multiply_add(0x1.179a3ep-13f, r2, high);
  p = multiply_add(p, r2, middle);
  mantissa = multiply_add(p, r2, low);
  power = float_of((bits_of(shifted) << 23) + 0x3f800000u);  // 2 to the integer part of t
}

// ln x for normal x > 0, accurate relative to the result also next to x = 1.
MSF_HOST_DEVICE float logarithm(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  const uint32_t bits = bits_of(x) + (0x3f800000u - 0x3f3504f3u);
  const float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  const float f = float_of((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 0x1.b11f34p-5f;
  p = multiply_add(p, f, -0x1.be6c02p-4f);
  p = multiply_add(p, f, 0x1.f01006p-4f);
  p = multiply_add(p, f, -0x1.0104d4p-3f);
  p = multiply_add(p, f, 0x1.2302fap-3f);
  p = multiply_add(p, f, -0x1.552f06p-3f);
  p = multiply_add(p, f, 0x1.99a542p-3f);
  p = multiply_add(p, f, -0x1.000070p-2f);
  p = multiply_add(p, f, 0x1.555548p-2f);
  const float f2 = f * f;
  const float tail = (f * f2 * p + e * -0x1.bd0106p-13f) - 0.5f * f2;
  return e * 0.693359375f + (f + tail);  // e ln 2 in two parts, the first product exact
}

// cosine and sine of a full turn times v, for v in [0, 1].
MSF_HOST_DEVICE void cosine_sine_of_turns(float v, float& cosine, float& sine) {
  const float shifted = v * 4.0f + kRoundToInt;
  const uint32_t quarter = bits_of(shifted);
  const float r = v - (shifted - kRoundToInt) * 0.25f;  // in [-1/8, 1/8], exact
  const float z = r * r;
  float s = -0x1.33198ep6f;
  s = multiply_add(s, z, 0x1.4680a4p6f);
  s = multiply_add(s, z, -0x1.4abc24p5f);
  s = multiply_add(s, z, 0x1.921fb6p2f);
  s = s * r;
  float c = 0x1.d46d98p5f;
  c = multiply_add(c, z, -0x1.55b132p6f);
  c = multiply_add(c, z, 0x1.03c1aep6f);
  c = multiply_add(c, z, -0x1.3bd3ccp4f);
  c = multiply_add(c, z, 1.0f);
  const bool is_odd = (quarter & 1u) != 0;
  const uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30;
  const uint32_t sine_sign = (quarter & 2u) << 30;
  cosine = float_of(bits_of(is_odd ? s : c) ^ cosine_sign);
  sine = float_of(bits_of(is_odd ? c : s) ^ sine_sign);
}

// y sigmoid(y); where that is below 1e-36 in magnitude it is not accurate relative to itself.
MSF_HOST_DEVICE float silu(float y) {
  float mantissa, power;
  exp_minus(y, mantissa, power);
  return y / multiply_add(mantissa, power, 1.0f);
}

// The derivative of y sigmoid(y): sigmoid(y) (1 + y sigmoid(-y)), with sigmoid(-y) = e^-y sigmoid(y), not 1 - sigmoid(y).
MSF_HOST_DEVICE float silu_slope(float y) {
  float mantissa, power;
  exp_minus(y, mantissa, power);
  const float sigmoid = 1.0f / multiply_add(mantissa, power, 1.0f);
  return sigmoid * multiply_add(y, mantissa * power * sigmoid, 1.0f);
}

}  // namespace msf

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

// e^x within 2 units in the last place; 0 below -104, infinity above 89. Not for NaN.
MSF_HOST_DEVICE float exponential(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 104.0f ? 104.0f : x;
  const float shifted = x * 0x1.715476p0f + kRoundToInt;  // x / ln 2
  const float n = shifted - kRoundToInt;
  const float r = (x - n * 0.693359375f) - n * -0x1.bd0106p-13f;  // n ln 2 in two parts, the first product exact
  float p = 0x1.6ac814p-10f;
  p = p * r + 0x1.123de6p-7f;
  p = p * r + 0x1.555858p-5f;
  p = p * r + 0x1.55548cp-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = 1.0f + (r + r * r * p);
  // 2^n as two factors, since n itself may be outside the exponent's range.
  const int32_t whole = static_cast<int32_t>(bits_of(shifted)) - static_cast<int32_t>(bits_of(kRoundToInt));
  const int32_t half = whole >> 1;
  const float scale_1 = float_of(static_cast<uint32_t>(half + 127) << 23);
  const float scale_2 = float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * scale_1 * scale_2;
}

// ln x for normal x > 0, accurate relative to the result also next to x = 1.
MSF_HOST_DEVICE float logarithm(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  const uint32_t bits = bits_of(x) + (0x3f800000u - 0x3f3504f3u);
  const float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  const float f = float_of((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 0x1.b11f34p-5f;
  p = p * f + -0x1.be6c02p-4f;
  p = p * f + 0x1.f01006p-4f;
  p = p * f + -0x1.0104d4p-3f;
  p = p * f + 0x1.2302fap-3f;
  p = p * f + -0x1.552f06p-3f;
  p = p * f + 0x1.99a542p-3f;
  p = p * f + -0x1.000070p-2f;
  p = p * f + 0x1.555548p-2f;
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
  s = s * z + 0x1.4680a4p6f;
  s = s * z + -0x1.4abc24p5f;
  s = s * z + 0x1.921fb6p2f;
  s = s * r;
  float c = 0x1.d46d98p5f;
  c = c * z + -0x1.55b132p6f;
  c = c * z + 0x1.03c1aep6f;
  c = c * z + -0x1.3bd3ccp4f;
  c = c * z + 1.0f;
  const bool is_odd = (quarter & 1u) != 0;
  const uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30;
  const uint32_t sine_sign = (quarter & 2u) << 30;
  cosine = float_of(bits_of(is_odd ? s : c) ^ cosine_sign);
  sine = float_of(bits_of(is_odd ? c : s) ^ sine_sign);
}

// y sigmoid(y)
MSF_HOST_DEVICE float silu(float y) { return y / (1.0f + exponential(-y)); }

// The derivative of y sigmoid(y)
MSF_HOST_DEVICE float silu_slope(float y) {
  const float sigmoid = 1.0f / (1.0f + exponential(-y));
  return sigmoid * (1.0f + y * (1.0f - sigmoid));
}

}  // namespace msf

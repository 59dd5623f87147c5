// Element types, and `assign`, which converts between them; narrowing rounds to nearest even.
#pragma once

#include <cstring>

#include "msf/macros.h"

namespace msf {

enum class Scalar : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

MSF_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

MSF_HOST_DEVICE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

MSF_HOST_DEVICE void assign(float& to, float from) { to = from; }

MSF_HOST_DEVICE void assign(float& to, double from) { to = static_cast<float>(from); }

MSF_HOST_DEVICE void assign(float& to, BFloat16 from) { to = float_of(static_cast<uint32_t>(from.bits) << 16); }

MSF_HOST_DEVICE void assign(float& to, Float16 from) {
  const uint32_t sign = static_cast<uint32_t>(from.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(from.bits & 0x7fffu) << 13;
  // Exponent bias 15 -> 127 by an exact product; a subnormal is a subnormal float before it.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  to = float_of(sign | (magnitude >= 0x0f800000u ? special : finite));
}

MSF_HOST_DEVICE void assign(BFloat16& to, float from) {
  const uint32_t bits = bits_of(from);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
}

MSF_HOST_DEVICE void assign(Float16& to, float from) {
  const uint32_t bits = bits_of(from);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the addition rounds at 2^-24, the spacing of the subnormals.
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  to.bits = static_cast<uint16_t>(sign | half);
}

MSF_HOST_DEVICE void assign(double& to, double from) { to = from; }

template <typename T>
MSF_HOST_DEVICE void assign(double& to, T from) {
  float value;
  assign(value, from);
  to = value;
}

template <typename T>
MSF_HOST_DEVICE void assign(T& to, double from) {
  assign(to, static_cast<float>(from));
}

// Element i of a vector whose type is known at run time only.
MSF_HOST_DEVICE double read(const void* data, Scalar type, int64_t i) {
  double value = 0;
  switch (type) {
    case Scalar::kFloat32:
      assign(value, static_cast<const float*>(data)[i]);
      break;
    case Scalar::kFloat64:
      assign(value, static_cast<const double*>(data)[i]);
      break;
    case Scalar::kFloat16:
      assign(value, static_cast<const Float16*>(data)[i]);
      break;
    case Scalar::kBFloat16:
      assign(value, static_cast<const BFloat16*>(data)[i]);
      break;
  }
  return value;
}

MSF_HOST_DEVICE void write(void* data, Scalar type, int64_t i, double value) {
  switch (type) {
    case Scalar::kFloat32:
      assign(static_cast<float*>(data)[i], value);
      break;
    case Scalar::kFloat64:
      assign(static_cast<double*>(data)[i], value);
      break;
    case Scalar::kFloat16:
      assign(static_cast<Float16*>(data)[i], value);
      break;
    case Scalar::kBFloat16:
      assign(static_cast<BFloat16*>(data)[i], value);
      break;
  }
}

}  // namespace msf

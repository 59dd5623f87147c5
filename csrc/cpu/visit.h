// From a run-time element type to a typed pointer, or to types.
#pragma once

#include "msf/number.h"

namespace msf::cpu {

template <typename F>
static inline void visit(Scalar type, const void* data, int64_t offset, F&& f) {
  switch (type) {
    case Scalar::kFloat32:
      return f(static_cast<const float*>(data) + offset);
    case Scalar::kFloat64:
      return f(static_cast<const double*>(data) + offset);
    case Scalar::kFloat16:
      return f(static_cast<const Float16*>(data) + offset);
    case Scalar::kBFloat16:
      return f(static_cast<const BFloat16*>(data) + offset);
  }
}

template <typename F>
static inline void visit(Scalar type, void* data, int64_t offset, F&& f) {
  switch (type) {
    case Scalar::kFloat32:
      return f(static_cast<float*>(data) + offset);
    case Scalar::kFloat64:
      return f(static_cast<double*>(data) + offset);
    case Scalar::kFloat16:
      return f(static_cast<Float16*>(data) + offset);
    case Scalar::kBFloat16:
      return f(static_cast<BFloat16*>(data) + offset);
  }
}

// Element type and type of the arithmetic: double for double, else float.
template <typename T>
struct Types {
  using Element = T;
  using Compute = float;
};

template <>
struct Types<double> {
  using Element = double;
  using Compute = double;
};

template <typename F>
static inline void dispatch(Scalar type, F&& f) {
  switch (type) {
    case Scalar::kFloat32:
      return f(Types<float>{});
    case Scalar::kFloat64:
      return f(Types<double>{});
    case Scalar::kFloat16:
      return f(Types<Float16>{});
    case Scalar::kBFloat16:
      return f(Types<BFloat16>{});
  }
}

template <typename To, typename From>
static inline void convert(To* to, const From* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) assign(to[i], from[i]);
}

}  // namespace msf::cpu

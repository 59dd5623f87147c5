// Winograd's short convolutions F(outputs, taps) along one axis, by Lagrange interpolation at symmetric points and
// infinity. For points p_i, and with M(x) the product of all x - p_i:
//   inputs:   t_i = coefficients of M(x) / (x - p_i) . d,   t_infinity = coefficients of M . d
//   taps:     row i is (1, p_i, p_i^2, ...) / product over j != i of (p_i - p_j), and (0, ..., 0, 1) at infinity
//   outputs:  y_k = sum over i of p_i^k m_i, and m_infinity in the last
// Points are chosen for small errors: those of F(4, 3) are the roots of 1/2 and 2, so that all products of coefficients
// stay near 1; those of F(4, 2) were searched for, and make every coefficient exact in float.
// S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308.
#pragma once

#include "msf/convolution.h"
#include "vectors.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

// The transform of the taps.
template <int kInputs, int kTaps>
struct Factors {
  double of[kInputs][kTaps];
};

template <int kTaps, int kPoints>
constexpr Factors<kPoints + 1, kTaps> factors_of(const double (&points)[kPoints]) {
  Factors<kPoints + 1, kTaps> factors{};
  for (int i = 0; i < kPoints; ++i) {
    double value = 1.0;
    for (int j = 0; j < kPoints; ++j) value /= i == j ? 1.0 : points[i] - points[j];
    for (int tap = 0; tap < kTaps; ++tap, value *= points[i]) factors.of[i][tap] = value;
  }
  factors.of[kPoints][kTaps - 1] = 1.0;
  return factors;
}

struct Direct {
  static constexpr ConvForm kForm = ConvForm::kDirect;
  static constexpr int kInputs = 1, kOutputs = 1, kTaps = 1;
  static constexpr Factors<1, 1> kFactors{{{1.0}}};
  static MSF_INLINE void input(const Vector (&d)[1], Vector (&t)[1]) { t[0] = d[0]; }
  static MSF_INLINE void output(const Vector (&m)[1], Vector (&y)[1]) { y[0] = m[0]; }
};

struct Two {  // F(2, 3)
  static constexpr ConvForm kForm = ConvForm::kTwo;
  static constexpr int kInputs = 4, kOutputs = 2, kTaps = 3;
  static constexpr double kPoints[] = {0, 1, -1};
  static constexpr auto kFactors = factors_of<kTaps>(kPoints);
  static MSF_INLINE void input(const Vector (&d)[4], Vector (&t)[4]) {
    t[0] = d[2] - d[0];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }
  static MSF_INLINE void output(const Vector (&m)[4], Vector (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
  }
};

// What the points +-a and +-b contribute to four outputs.
template <typename Form>
MSF_INLINE void outputs_of_pairs(Vector a_plus, Vector a_minus, Vector b_plus, Vector b_minus, Vector (&y)[4]) {
  constexpr double a = Form::kA, b = Form::kB;
  const Vector even_a = a_plus + a_minus, odd_a = a_plus - a_minus;
  const Vector even_b = b_plus + b_minus, odd_b = b_plus - b_minus;
  y[0] = even_a + even_b;
  y[1] = multiply_add(static_cast<float>(a), odd_a, static_cast<float>(b) * odd_b);
  y[2] = multiply_add(static_cast<float>(a * a), even_a, static_cast<float>(b * b) * even_b);
  y[3] = multiply_add(static_cast<float>(a * a * a), odd_a, static_cast<float>(b * b * b) * odd_b);
}

struct Four {  // F(4, 3)
  static constexpr ConvForm kForm = ConvForm::kFour;
  static constexpr int kInputs = 6, kOutputs = 4, kTaps = 3;
  static constexpr double kA = 0.70710678118654752440, kB = 1.41421356237309504880;  // a b = 1
  static constexpr double kPoints[] = {0, kA, -kA, kB, -kB};
  static constexpr auto kFactors = factors_of<kTaps>(kPoints);
  static MSF_INLINE void input(const Vector (&d)[6], Vector (&t)[6]) {
    constexpr float a = static_cast<float>(kA), b = static_cast<float>(kB);
    t[0] = multiply_add(-2.5f, d[2], d[0] + d[4]);
    const Vector even_a = multiply_add(-2.0f, d[2], d[4]), odd_a = multiply_add(a, d[3], -b * d[1]);
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    const Vector even_b = multiply_add(-0.5f, d[2], d[4]), odd_b = multiply_add(b, d[3], -a * d[1]);
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = multiply_add(-2.5f, d[3], d[1] + d[5]);
  }
  static MSF_INLINE void output(const Vector (&m)[6], Vector (&y)[4]) {
    outputs_of_pairs<Four>(m[1], m[2], m[3], m[4], y);
    y[0] = m[0] + y[0];
    y[3] = y[3] + m[5];
  }
};

struct Doubling {  // F(4, 2)
  static constexpr ConvForm kForm = ConvForm::kDoubling;
  static constexpr int kInputs = 5, kOutputs = 4, kTaps = 2;
  static constexpr double kA = 0.375, kB = 1.25;
  static constexpr double kPoints[] = {kA, -kA, kB, -kB};
  static constexpr auto kFactors = factors_of<kTaps>(kPoints);
  static MSF_INLINE void input(const Vector (&d)[5], Vector (&t)[5]) {
    constexpr float a = static_cast<float>(kA), b = static_cast<float>(kB);
    const Vector even_a = multiply_add(-b * b, d[1], d[3]), odd_a = a * multiply_add(-b * b, d[0], d[2]);
    t[0] = even_a + odd_a;
    t[1] = even_a - odd_a;
    const Vector even_b = multiply_add(-a * a, d[1], d[3]), odd_b = b * multiply_add(-a * a, d[0], d[2]);
    t[2] = even_b + odd_b;
    t[3] = even_b - odd_b;
    t[4] = multiply_add(-(a * a + b * b), d[2], multiply_add(a * a * b * b, d[0], d[4]));
  }
  static MSF_INLINE void output(const Vector (&m)[5], Vector (&y)[4]) {
    outputs_of_pairs<Doubling>(m[0], m[1], m[2], m[3], y);
    y[3] = y[3] + m[4];
  }
};

struct DoublingTwo {  // F(2, 2)
  static constexpr ConvForm kForm = ConvForm::kDoublingTwo;
  static constexpr int kInputs = 3, kOutputs = 2, kTaps = 2;
  static constexpr double kPoints[] = {0, 1};
  static constexpr auto kFactors = factors_of<kTaps>(kPoints);
  static MSF_INLINE void input(const Vector (&d)[3], Vector (&t)[3]) {
    t[0] = d[1] - d[0];
    t[1] = d[1];
    t[2] = d[2] - d[1];
  }
  static MSF_INLINE void output(const Vector (&m)[3], Vector (&y)[2]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

template <typename F>
MSF_INLINE void visit_form(ConvForm form, F&& f) {
  switch (form) {
    case ConvForm::kDirect: return f(Direct{});
    case ConvForm::kTwo: return f(Two{});
    case ConvForm::kFour: return f(Four{});
    case ConvForm::kDoubling: return f(Doubling{});
    case ConvForm::kDoublingTwo: return f(DoublingTwo{});
  }
}

}  // namespace
}  // namespace msf::cpu::MSF_LEVEL

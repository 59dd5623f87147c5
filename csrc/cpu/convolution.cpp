// The convolution in float32. Sums are chains of 64 multiply-adds, or of 32 where there are few, so that roundings do not
// pile up over hundreds of channels.
#include "convolution_parts.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

struct Floats {
  using Element = float;
  static constexpr int64_t kPer = 1;
  static int64_t chain_of(int64_t inner) { return inner < 128 ? 32 : 64; }
  static MSF_INLINE Vector pack(const Vector (&parts)[1]) { return parts[0]; }
  static MSF_INLINE Vector multiply_add(Vector row, Vector column, Vector sum) {
    return cpu::MSF_LEVEL::multiply_add(row, column, sum);
  }
  static MSF_INLINE float value_of(float element) { return element; }
  static MSF_INLINE Vector load_first(const float* from, int64_t n) { return cpu::MSF_LEVEL::load_first(from, n); }
  static MSF_INLINE void store_first(float* to, Vector value, int64_t n) { cpu::MSF_LEVEL::store_first(to, value, n); }
};

}  // namespace

void convolution(const ConvArgs& args, int64_t begin, int64_t end) { convolve<Floats>(args, begin, end); }

}  // namespace msf::cpu::MSF_LEVEL

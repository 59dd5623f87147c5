// The convolution in bfloat16 with the processor's own dot products of pairs (AVX-512 BF16): a word is a pair of adjacent
// channels. Transforms and sums are float; the transformed inputs are rounded to bfloat16 once, as the weights are.
#include "levels.h"

#if defined(__AVX512F__) && defined(MSF_COMPILES_PAIR_DOTS)
#include <immintrin.h>
#pragma GCC target("avx512bf16")

#include "convolution_parts.h"
#include "msf/number.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

struct Pairs {
  using Element = BFloat16;
  static constexpr int64_t kPer = 2;
  static int64_t chain_of(int64_t inner) { return inner; }  // what bfloat16 rounds is far more than a sum of floats does
  static MSF_INLINE Vector pack(const Vector (&parts)[2]) {
    return reinterpret_cast<Vector>(_mm512_cvtne2ps_pbh(parts[1], parts[0]));
  }
  static MSF_INLINE Vector multiply_add(Vector row, Vector column, Vector sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(row), reinterpret_cast<__m512bh>(column));
  }
  static MSF_INLINE float value_of(BFloat16 element) {
    float value;
    assign(value, element);
    return value;
  }
  static MSF_INLINE Vector load_first(const BFloat16* from, int64_t n) {
    const __m256i bits = n >= kWidth ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                     : _mm256_maskz_loadu_epi16(first(n), from);
    return reinterpret_cast<Vector>(__builtin_convertvector(reinterpret_cast<Halves>(bits), Words) << 16);
  }
  static MSF_INLINE void store_first(BFloat16* to, Vector value, int64_t n) {
    const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    if (n >= kWidth) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
    _mm256_mask_storeu_epi16(to, first(n), bits);
  }

 private:
  typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));
  typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
  static MSF_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>(n > 0 ? (1u << n) - 1 : 0); }
};

}  // namespace

void convolution_of_pairs(const ConvArgs& args, int64_t begin, int64_t end) { convolve<Pairs>(args, begin, end); }

}  // namespace msf::cpu::MSF_LEVEL

#else

#include "kernels.h"

namespace msf::cpu::MSF_LEVEL {

void convolution_of_pairs(const ConvArgs&, int64_t, int64_t) { __builtin_trap(); }

}  // namespace msf::cpu::MSF_LEVEL

#endif

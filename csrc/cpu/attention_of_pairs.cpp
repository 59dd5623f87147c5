// Attention in bfloat16 with the processor's own dot products of pairs (AVX-512 BF16): whole rows of scores, so that the
// softmax sees a row once, and keys and values packed by pairs once per head.
#include "attention_parts.h"
#include "kernels.h"

#if defined(__AVX512F__) && defined(MSF_COMPILES_PAIR_DOTS)
#include <immintrin.h>
#endif

namespace msf::cpu::MSF_LEVEL {

#if defined(__AVX512F__) && defined(MSF_COMPILES_PAIR_DOTS)
#define MSF_PAIR_DOTS __attribute__((target("avx512bf16")))

namespace {

constexpr int64_t kLanes = 16;
constexpr int kMaxRows = 6;     // rows of a tile: 6 x 4 accumulators leave registers for 4 columns and a broadcast
constexpr int kMaxColumns = 4;  // vectors of a tile's row

// c[r, 16 w + lane] = sum over p of a[r, p] . b[p, 16 w + lane], each element a pair of bfloat16.
template <int kRows, int kColumns>
MSF_PAIR_DOTS void multiply_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                                 int64_t n_pairs, float* c, int64_t c_stride) {
  __m512 sum[kRows][kColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < kColumns; ++w) sum[r][w] = _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < n_pairs; ++p) {
    __m512bh column[kColumns];
#pragma GCC unroll 4
    for (int w = 0; w < kColumns; ++w) {
      column[w] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + p * b_stride + w * kLanes));
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512bh row = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[r * a_stride + p])));
#pragma GCC unroll 4
      for (int w = 0; w < kColumns; ++w) sum[r][w] = _mm512_dpbf16_ps(sum[r][w], row, column[w]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < kColumns; ++w) _mm512_storeu_ps(c + r * c_stride + w * kLanes, sum[r][w]);
  }
}

using Tile = void (*)(const uint32_t*, int64_t, const uint32_t*, int64_t, int64_t, float*, int64_t);

template <int kRows>
Tile tile_of(int columns) {
  constexpr Tile kTiles[] = {multiply_tile<kRows, 1>, multiply_tile<kRows, 2>, multiply_tile<kRows, 3>,
                             multiply_tile<kRows, 4>};
  return kTiles[columns - 1];
}

Tile tile_of(int rows, int columns) {
  switch (rows) {
    case 1: return tile_of<1>(columns);
    case 2: return tile_of<2>(columns);
    case 3: return tile_of<3>(columns);
    case 4: return tile_of<4>(columns);
    case 5: return tile_of<5>(columns);
    default: return tile_of<kMaxRows>(columns);
  }
}

// The product of `rows` <= 6 rows of pairs with all columns; their number is a multiple of 16.
void multiply_rows(int rows, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t n_pairs, int64_t n_columns,
                   float* c) {
  for (int64_t column = 0; column < n_columns; column += kMaxColumns * kLanes) {
    const int64_t left = (n_columns - column) / kLanes;
    const int width = static_cast<int>(left < kMaxColumns ? left : kMaxColumns);
    tile_of(rows, width)(a, a_stride, b + column, n_columns, n_pairs, c + column, n_columns);
  }
}

// 2^t for t <= 0, within 1e-7 of itself.
MSF_PAIR_DOTS __m512 exp2_of(__m512 t) {
  const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(t, whole);
  __m512 p = _mm512_set1_ps(0x1.179a3ep-13f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5ef4dep-10f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.3b6816p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c6af9ep-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebfb94p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e430p-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// Turns a row of scores into weights 2^((score - maximum) * scale), as bfloat16; returns their sum. The maximum is taken
// off first: of large scores the product alone would lose what tells them apart.
MSF_PAIR_DOTS float weigh(float* scores, int64_t n_keys, int64_t n_columns, float scale, BFloat16* weights) {
  for (int64_t j = n_keys; j < n_columns; ++j) scores[j] = -__builtin_inff();
  __m512 largest = _mm512_loadu_ps(scores);
  for (int64_t j = kLanes; j < n_columns; j += kLanes) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + j));
  const __m512 maximum = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < n_columns; j += kLanes) {
    const __m512 weight = exp2_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), maximum), factor));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight)));
  }
  return _mm512_reduce_add_ps(sum);
}

MSF_PAIR_DOTS void write_row(const float* from, float factor, int64_t n, BFloat16* to) {
  const __m512 scale = _mm512_set1_ps(factor);
  for (int64_t d = 0; d < n; d += kLanes) {
    const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(from + d), scale);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + d), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
  }
}

uint32_t pair(BFloat16 first, BFloat16 second) { return first.bits | static_cast<uint32_t>(second.bits) << 16; }

// to[p, t] = (k[t, 2p], k[t, 2p + 1]), with zeros for tokens beyond the last
void pack_keys(const BFloat16* keys, int64_t token_stride, int64_t n_tokens, int64_t n_columns, int64_t head_dim,
               uint32_t* to) {
  for (int64_t t = 0; t < n_columns; ++t) {
    const BFloat16* key = keys + t * token_stride;
    for (int64_t p = 0; p < head_dim / 2; ++p) {
      to[p * n_columns + t] = t < n_tokens ? pair(key[2 * p], key[2 * p + 1]) : 0;
    }
  }
}

// to[p, d] = (v[2p, d], v[2p + 1, d]), with zeros for tokens beyond the last
void pack_values(const BFloat16* values, int64_t token_stride, int64_t n_tokens, int64_t n_columns, int64_t head_dim,
                 uint32_t* to) {
  for (int64_t p = 0; p < n_columns / 2; ++p) {
    const BFloat16* first = values + 2 * p * token_stride;
    for (int64_t d = 0; d < head_dim; ++d) {
      const BFloat16 zero{0};
      to[p * head_dim + d] = pair(2 * p < n_tokens ? first[d] : zero, 2 * p + 1 < n_tokens ? first[token_stride + d] : zero);
    }
  }
}

}  // namespace

void attention_of_pairs(const AttentionArgs& args, int64_t begin, int64_t end) {
  const int64_t n_columns = (args.n_tokens + kLanes - 1) / kLanes * kLanes;
  const int64_t n_pairs = args.head_dim / 2;
  const float scale = score_factor(args.head_dim) * 0x1.715476p0f;  // softmax to base 2
  const int64_t words = n_pairs * n_columns + n_columns / 2 * args.head_dim + kMaxRows * n_columns / 2;
  const int64_t floats = kMaxRows * (n_columns + args.head_dim);
  auto* memory = new uint32_t[static_cast<size_t>(words + floats)];
  uint32_t* keys = memory;
  uint32_t* values = keys + n_pairs * n_columns;
  auto* weights = reinterpret_cast<BFloat16*>(values + n_columns / 2 * args.head_dim);  // [rows, n_columns]
  auto* scores = reinterpret_cast<float*>(memory + words);
  float* mixed = scores + kMaxRows * n_columns;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t item = task / args.n_heads, head = task % args.n_heads;
    const auto* queries = static_cast<const BFloat16*>(args.qkv) + item * args.item_stride + head * args.head_stride;
    const int64_t tokens = args.n_tokens;
    pack_keys(queries + args.part_stride, args.token_stride, tokens, n_columns, args.head_dim, keys);
    pack_values(queries + 2 * args.part_stride, args.token_stride, tokens, n_columns, args.head_dim, values);
    for (int64_t first = 0; first < tokens; first += kMaxRows) {
      const int rows = static_cast<int>(tokens - first < kMaxRows ? tokens - first : kMaxRows);
      const auto* query = reinterpret_cast<const uint32_t*>(queries + first * args.token_stride);
      multiply_rows(rows, query, args.token_stride / 2, keys, n_pairs, n_columns, scores);
      float sums[kMaxRows];
      for (int r = 0; r < rows; ++r) {
        sums[r] = weigh(scores + r * n_columns, tokens, n_columns, scale, weights + r * n_columns);
      }
      multiply_rows(rows, reinterpret_cast<const uint32_t*>(weights), n_columns / 2, values, n_columns / 2,
                    args.head_dim, mixed);
      for (int r = 0; r < rows; ++r) {
        auto* out = static_cast<BFloat16*>(args.out) + ((item * tokens + first + r) * args.n_heads + head) * args.head_dim;
        write_row(mixed + r * args.head_dim, 1.0f / sums[r], args.head_dim, out);
      }
    }
  }
  delete[] memory;
}

#else

void attention_of_pairs(const AttentionArgs&, int64_t, int64_t) { __builtin_trap(); }

#endif

}  // namespace msf::cpu::MSF_LEVEL

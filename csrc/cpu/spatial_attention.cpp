// Attention in float arithmetic, for every element type and processor: whole rows of scores, keys and values widened to
// float once per head.
#include "attention_parts.h"
#include "kernels.h"
#include "vectors.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

// A tile's sums, a row of the second factor and a broadcast stay in registers.
constexpr int kMaxRows = 6;
#if defined(__AVX512F__)
constexpr int kMaxColumns = 4;
#else
constexpr int kMaxColumns = 2;
#endif
constexpr int64_t kLanes = 16;  // columns are whole blocks of so many, on every level

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// c[r, j] = sum over p of a[r, p] b[p, j], for kR rows and kC vectors of columns.
template <int kR, int kC>
void multiply_tile(const float* a, int64_t a_stride, int64_t n_inner, const float* b, int64_t stride, float* c) {
  Vector sum[kR][kC];
  MSF_UNROLL
  for (int r = 0; r < kR; ++r) {
    MSF_UNROLL
    for (int w = 0; w < kC; ++w) sum[r][w] = Vector{};
  }
  for (int64_t p = 0; p < n_inner; ++p) {
    Vector column[kC];
    MSF_UNROLL
    for (int w = 0; w < kC; ++w) column[w] = load(b + p * stride + w * kWidth);
    MSF_UNROLL
    for (int r = 0; r < kR; ++r) {
      const Vector factor = broadcast(a[r * a_stride + p]);
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) sum[r][w] = multiply_add(factor, column[w], sum[r][w]);
    }
  }
  MSF_UNROLL
  for (int r = 0; r < kR; ++r) {
    MSF_UNROLL
    for (int w = 0; w < kC; ++w) store(c + r * stride + w * kWidth, sum[r][w]);
  }
}

using Tile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*);

template <int kC>
Tile tile_of(int64_t rows) {
  constexpr Tile kTiles[] = {multiply_tile<1, kC>, multiply_tile<2, kC>, multiply_tile<3, kC>,
                             multiply_tile<4, kC>, multiply_tile<5, kC>, multiply_tile<6, kC>};
  static_assert(sizeof(kTiles) / sizeof(Tile) == kMaxRows);
  return kTiles[rows - 1];
}

Tile tile_of(int64_t rows, int64_t columns) {
#if defined(__AVX512F__)
  if (columns == 3) return tile_of<3>(rows);
  if (columns > 3) return tile_of<4>(rows);
#endif
  return columns == 1 ? tile_of<1>(rows) : tile_of<2>(rows);
}

// The product of at most kMaxRows rows with all columns, whole blocks of kLanes.
void multiply_rows(int64_t rows, const float* a, int64_t a_stride, int64_t n_inner, const float* b, int64_t n_columns,
                   float* c) {
  for (int64_t column = 0; column < n_columns; column += kMaxColumns * kWidth) {
    const int64_t left = (n_columns - column) / kWidth;
    tile_of(rows, left < kMaxColumns ? left : kMaxColumns)(a, a_stride, n_inner, b + column, n_columns, c + column);
  }
}

// Turns scores into weights e^(score - maximum), zero beyond the last key; returns their sum.
float weigh(float* scores, int64_t n_keys, int64_t n_columns) {
  for (int64_t j = n_keys; j < n_columns; ++j) scores[j] = scores[0];
  Vector largest = load(scores);
  for (int64_t j = kWidth; j < n_columns; j += kWidth) {
    const Vector value = load(scores + j);
    largest = value > largest ? value : largest;
  }
  float lanes[kLanes] = {};
  store(lanes, largest);
  float maximum = lanes[0];
  for (int64_t lane = 1; lane < kWidth; ++lane) maximum = lanes[lane] > maximum ? lanes[lane] : maximum;
  float partial[kLanes] = {};
  for (int64_t j = 0; j < n_columns; j += kLanes) {
    float* block = scores + j;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float mantissa, power;
      exp_minus(maximum - block[lane], mantissa, power);
      block[lane] = mantissa * power;
    }
    for (int64_t lane = n_keys - j; lane < kLanes; ++lane) block[lane] = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += block[lane];
  }
  float sum = 0;
  for (const float part : partial) sum += part;
  return sum;
}

template <typename T>
void attend(const AttentionArgs& args, int64_t begin, int64_t end) {
  const int64_t tokens = args.n_tokens, head_dim = args.head_dim;
  const int64_t n_columns = padded(tokens), width = padded(head_dim);
  const int64_t floats = head_dim * n_columns + tokens * width + kMaxRows * (head_dim + n_columns + width);
  auto* memory = new float[static_cast<size_t>(floats)];
  float* keys = memory;                           // [D, columns]
  float* values = keys + head_dim * n_columns;    // [T, width]
  float* queries = values + tokens * width;       // [rows, D]
  float* scores = queries + kMaxRows * head_dim;     // [rows, columns]
  float* mixed = scores + kMaxRows * n_columns;      // [rows, width]
  const float scale = score_factor(head_dim);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t item = task / args.n_heads, head = task % args.n_heads;
    const T* packed = static_cast<const T*>(args.qkv) + item * args.item_stride + head * args.head_stride;
    for (int64_t t = 0; t < n_columns; ++t) {
      const T* key = packed + args.part_stride + t * args.token_stride;
      for (int64_t d = 0; d < head_dim; ++d) {
        float value = 0;
        if (t < tokens) assign(value, key[d]);
        keys[d * n_columns + t] = value;
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const T* value = packed + 2 * args.part_stride + t * args.token_stride;
      convert(values + t * width, value, head_dim);
      for (int64_t d = head_dim; d < width; ++d) values[t * width + d] = 0;
    }
    for (int64_t first = 0; first < tokens; first += kMaxRows) {
      const int64_t rows = tokens - first < kMaxRows ? tokens - first : kMaxRows;
      for (int64_t r = 0; r < rows; ++r) {
        convert(queries + r * head_dim, packed + (first + r) * args.token_stride, head_dim);
        for (int64_t d = 0; d < head_dim; ++d) queries[r * head_dim + d] *= scale;
      }
      multiply_rows(rows, queries, head_dim, head_dim, keys, n_columns, scores);
      float sums[kMaxRows];
      for (int64_t r = 0; r < rows; ++r) sums[r] = weigh(scores + r * n_columns, tokens, n_columns);
      multiply_rows(rows, scores, n_columns, tokens, values, width, mixed);
      for (int64_t r = 0; r < rows; ++r) {
        T* out = static_cast<T*>(args.out) + ((item * tokens + first + r) * args.n_heads + head) * head_dim;
        for (int64_t d = 0; d < head_dim; ++d) assign(out[d], mixed[r * width + d] / sums[r]);
      }
    }
  }
  delete[] memory;
}

}  // namespace

void spatial_attention(const AttentionArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) { attend<typename decltype(types)::Element>(args, begin, end); });
}

}  // namespace msf::cpu::MSF_LEVEL

// Attention in float arithmetic, for every element type and processor: whole rows of scores, keys and values widened to
// float once per head.
#include "attention_parts.h"
#include "kernels.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kRows = 4;    // rows of a tile
constexpr int64_t kBlock = 32;  // columns of a tile, whose sums stay in registers

int64_t padded(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// c[r, j] = sum over p of a[r, p] b[p, j]; the columns are whole blocks.
void multiply_rows(int64_t rows, const float* a, int64_t a_stride, int64_t n_inner, const float* b, int64_t n_columns,
                   float* c) {
  for (int64_t column = 0; column < n_columns; column += kBlock) {
    float sum[kRows][kBlock] = {};
    for (int64_t p = 0; p < n_inner; ++p) {
      const float* __restrict from = b + p * n_columns + column;
      for (int64_t r = 0; r < rows; ++r) {
        const float factor = a[r * a_stride + p];
        for (int64_t j = 0; j < kBlock; ++j) sum[r][j] = multiply_add(factor, from[j], sum[r][j]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < kBlock; ++j) c[r * n_columns + column + j] = sum[r][j];
    }
  }
}

// Turns scores into weights e^(score - maximum); returns their sum.
float weigh(float* scores, int64_t n_keys) {
  float maximum = scores[0];
  for (int64_t j = 1; j < n_keys; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
  float partial[kBlock] = {};
  for (int64_t j = 0; j < n_keys; ++j) {
    float mantissa, power;
    exp_minus(maximum - scores[j], mantissa, power);
    scores[j] = mantissa * power;
  }
  for (int64_t j = 0; j < n_keys; ++j) partial[j % kBlock] += scores[j];
  float sum = 0;
  for (const float part : partial) sum += part;
  return sum;
}

template <typename T>
void attend(const AttentionArgs& args, int64_t begin, int64_t end) {
  const int64_t tokens = args.n_tokens, head_dim = args.head_dim;
  const int64_t n_columns = padded(tokens), width = padded(head_dim);
  const int64_t floats = head_dim * n_columns + tokens * width + kRows * (head_dim + n_columns + width);
  auto* memory = new float[static_cast<size_t>(floats)];
  float* keys = memory;                           // [D, columns]
  float* values = keys + head_dim * n_columns;    // [T, width]
  float* queries = values + tokens * width;       // [rows, D]
  float* scores = queries + kRows * head_dim;     // [rows, columns]
  float* mixed = scores + kRows * n_columns;      // [rows, width]
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
    for (int64_t first = 0; first < tokens; first += kRows) {
      const int64_t rows = tokens - first < kRows ? tokens - first : kRows;
      for (int64_t r = 0; r < rows; ++r) {
        convert(queries + r * head_dim, packed + (first + r) * args.token_stride, head_dim);
        for (int64_t d = 0; d < head_dim; ++d) queries[r * head_dim + d] *= scale;
      }
      multiply_rows(rows, queries, head_dim, head_dim, keys, n_columns, scores);
      float sums[kRows];
      for (int64_t r = 0; r < rows; ++r) {
        sums[r] = weigh(scores + r * n_columns, tokens);
      }
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

// Attention over the pixels of a map, from packed queries, keys and values.
#pragma once

#include "msf/number.h"

namespace msf {

// Head h of item n has its queries at qkv + n * item_stride + h * head_stride, its keys `part_stride` behind them and
// its values behind those by as much; token t is t * token_stride further on. The outputs are contiguous.
struct AttentionArgs {
  const void* qkv;
  Scalar type;  // of qkv and out; not float64
  int64_t item_stride, token_stride, head_stride, part_stride;
  void* out;  // [N, T, H, D]
  int64_t n_heads, n_tokens, head_dim;
};

}  // namespace msf

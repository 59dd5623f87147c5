// What both forms of the attention share.
#pragma once

#include "msf/math.h"
#include "msf/spatial_attention.h"

namespace msf::cpu {

// 1 / sqrt(head dimension)
static inline float score_factor(int64_t head_dim) {
  return static_cast<float>(1.0 / square_root(static_cast<double>(head_dim)));
}

}  // namespace msf::cpu

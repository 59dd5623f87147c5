// The loops of the group norm over the two memory layouts. A run is values next to each other: in a planar map pixels
// of one channel, in an interleaved (channels-last) map channels of one pixel.
#pragma once

#include "lanes.h"
#include "msf/group_norm.h"
#include "visit.h"

namespace msf::cpu {

template <typename T>
static inline float value_of(T x) {
  float value;
  assign(value, x);
  return value;
}

template <bool kSilu>
static inline __attribute__((always_inline)) float activated(float y) {
  return kSilu ? silu(y) : y;
}

}  // namespace msf::cpu

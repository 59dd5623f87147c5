// Sums in a fixed order that vectorises: sixteen partial sums, whatever the instruction set, then their tree.
#pragma once

#include <cstdint>

namespace msf::cpu {

constexpr int kLanes = 16;

template <typename C>
static inline double sum_of_lanes(const C (&lanes)[kLanes]) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

// sum over i of value(i), for i in [0, n) and n at most a few thousand (a lane's sum is one of type C)
template <typename C, typename F>
static inline __attribute__((always_inline)) double sum(int64_t n, F&& value) {
  C lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += value(i + lane);
  }
  for (int lane = 0; i + lane < n; ++lane) lanes[lane] += value(i + lane);
  return sum_of_lanes(lanes);
}

}  // namespace msf::cpu

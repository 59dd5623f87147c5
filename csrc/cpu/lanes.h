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

// f(i, lane) for i in [0, n) and the lane i % kLanes, in a form that vectorises.
template <typename F>
static inline __attribute__((always_inline)) void for_each_lane(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) f(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) f(i + lane, lane);
}

// sum over i in [0, n) of value(i), for n of at most a few thousand (a lane's sum is one of type C)
template <typename C, typename F>
static inline __attribute__((always_inline)) double sum(int64_t n, F&& value) {
  C lanes[kLanes] = {};
  for_each_lane(n, [&](int64_t i, int lane) { lanes[lane] += value(i); });
  return sum_of_lanes(lanes);
}

}  // namespace msf::cpu

// What the loops of the group norm share: element access, the seam between x and skip, the cut into tasks.
#pragma once

#include "msf/group_norm.h"
#include "visit.h"

namespace msf::cpu {

template <typename T>
static inline __attribute__((always_inline)) float value_of(T x) {
  float value;
  assign(value, x);
  return value;
}

template <bool kSilu>
static inline __attribute__((always_inline)) float activated(float y) {
  return kSilu ? silu(y) : y;
}

// The end of the run of channels that starts at `channel` and lies in one of x and skip.
static inline int64_t run_end(const MapView& x, int64_t channel, int64_t end) {
  return channel < x.n_channels && x.n_channels < end ? x.n_channels : end;
}

template <typename Args, typename F>
static inline void for_each_task(const Args& args, int64_t begin, int64_t end, F&& f) {
  const int64_t tasks_per_item = (args.n_groups + args.task_groups - 1) / args.task_groups;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = (task % tasks_per_item) * args.task_groups;
    const int64_t last = first + args.task_groups < args.n_groups ? first + args.task_groups : args.n_groups;
    f(task / tasks_per_item, first, last);
  }
}

}  // namespace msf::cpu

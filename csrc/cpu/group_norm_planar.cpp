// Group norm of maps whose pixels are next to each other: every loop runs over pixels of one channel.
#include "group_norm_parts.h"
#include "kernels.h"
#include "lanes.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kRun = 2048;         // values whose moments are taken at once
constexpr int64_t kPilot = kLanes;     // values whose mean is the centre of a row's first run
constexpr int64_t kKeptValues = 16384; // gradients of a group that are kept between the passes of the backward

// A run is summed about the mean of what came before (the first run about that of a few of its values), which is as
// exact as about its own: where the two means differ by much, their difference is part of the variance.
template <typename T>
Moments row_moments(const T* row, int64_t n_pixels) {
  const int64_t n_pilot = kPilot < n_pixels ? kPilot : n_pixels;
  float centre = 0;
  if (n_pilot > 0) {
    centre = static_cast<float>(sum<float>(n_pilot, [&](int64_t i) { return value_of(row[i]); }) /
                                static_cast<double>(n_pilot));
  }
  Moments total{0, 0, 0};
  for (int64_t start = 0; start < n_pixels; start += kRun) {
    const int64_t n = start + kRun < n_pixels ? kRun : n_pixels - start;
    const T* from = row + start;
    const double count = static_cast<double>(n);
    float deviations[kLanes] = {}, squares[kLanes] = {};
    for_each_lane(n, [&](int64_t i, int lane) {
      const float d = value_of(from[i]) - centre;
      deviations[lane] += d;
      squares[lane] = multiply_add(d, d, squares[lane]);
    });
    const double deviation = sum_of_lanes(deviations);
    const double shift = deviation / count;
    total = merged(total, {count, centre + shift, sum_of_lanes(squares) - deviation * shift});
    centre = static_cast<float>(total.mean);
  }
  return total;
}

template <bool kSilu, typename T>
void forward_row(const T* row, T* out, int64_t n_pixels, const ChannelMap& map) {
  const float slope = map.rstd * map.gain;
  const float offset = map.rest * map.gain + map.offset;
  for (int64_t i = 0; i < n_pixels; ++i) {
    assign(out[i], activated<kSilu>(multiply_add(value_of(row[i]) - map.centre, slope, offset)));
  }
}

template <bool kSilu, typename T>
void forward_group(const GroupNormArgs& args, int64_t item, int64_t group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t first = group * group_channels;
  Moments moments{0, 0, 0};
  for (int64_t c = first; c < first + group_channels; ++c) {
    Moments row = row_moments(channel_data<const T>(args.x, args.skip, item, c), args.n_pixels);
    row.mean += entry(args.affine.add, item, c, 0);
    moments = merged(moments, row);
  }
  const double rstd = reciprocal_std(moments, args.eps);
  args.mean[item * args.n_groups + group] = static_cast<float>(moments.mean);
  args.rstd[item * args.n_groups + group] = static_cast<float>(rstd);
  for (int64_t c = first; c < first + group_channels; ++c) {
    forward_row<kSilu>(channel_data<const T>(args.x, args.skip, item, c),
                       static_cast<T*>(args.out.data) + item * args.out.strides.item + c * args.out.strides.channel,
                       args.n_pixels, channel_map(args.affine, item, c, moments.mean, rstd));
  }
}

template <typename T>
inline __attribute__((always_inline)) float normalised(T x, const ChannelMap& map) {
  return multiply_add(value_of(x) - map.centre, map.rstd, map.rest);
}

// g[i], the gradient before the SiLU, of n values of a row
template <bool kSilu, typename T>
void gradients_before_silu(const T* row, const T* grad, int64_t n, const ChannelMap& map, float* g) {
  for (int64_t i = 0; i < n; ++i) {
    const float y = multiply_add(normalised(row[i], map), map.gain, map.offset);
    g[i] = gradient_before_silu<kSilu>(value_of(grad[i]), y);
  }
}

template <bool kSilu, typename T>
void backward_group(const GroupNormBwdArgs& args, int64_t item, int64_t group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t first = group * group_channels;
  const double mean = args.mean[item * args.n_groups + group];
  const double rstd = args.rstd[item * args.n_groups + group];
  double* sums = args.sums + item * 3 * args.n_channels;
  const T* grad_out = static_cast<const T*>(args.grad_out.data) + item * args.grad_out.strides.item;
  const double count = static_cast<double>(group_channels * args.n_pixels);
  const bool is_kept = group_channels * args.n_pixels <= kKeptValues;
  float kept[kKeptValues], one_run[kRun];

  double mean_g = 0, mean_g_xhat = 0;
  for (int64_t c = first; c < first + group_channels; ++c) {
    const ChannelMap map = channel_map(args.affine, item, c, mean, rstd);
    const T* row = channel_data<const T>(args.x, args.skip, item, c);
    const T* grad = grad_out + c * args.grad_out.strides.channel;
    double sum_g = 0, sum_g_xhat = 0, sum_xhat = 0;
    for (int64_t start = 0; start < args.n_pixels; start += kRun) {
      const int64_t n = start + kRun < args.n_pixels ? kRun : args.n_pixels - start;
      float* g = is_kept ? kept + (c - first) * args.n_pixels + start : one_run;
      gradients_before_silu<kSilu>(row + start, grad + start, n, map, g);
      sum_g += sum<float>(n, [&](int64_t i) { return g[i]; });
      float g_xhat[kLanes] = {}, xhat[kLanes] = {};
      for_each_lane(n, [&](int64_t i, int lane) {
        const float value = normalised(row[start + i], map);
        g_xhat[lane] = multiply_add(g[i], value, g_xhat[lane]);
        xhat[lane] += value;
      });
      sum_g_xhat += sum_of_lanes(g_xhat);
      sum_xhat += sum_of_lanes(xhat);
    }
    sums[c] = sum_g;
    sums[args.n_channels + c] = sum_g_xhat;
    sums[2 * args.n_channels + c] = sum_xhat;
    mean_g += map.gain * sum_g / count;
    mean_g_xhat += map.gain * sum_g_xhat / count;
  }

  const float g_share = static_cast<float>(mean_g);
  const float xhat_share = static_cast<float>(mean_g_xhat);
  for (int64_t c = first; c < first + group_channels; ++c) {
    const ChannelMap map = channel_map(args.affine, item, c, mean, rstd);
    const T* row = channel_data<const T>(args.x, args.skip, item, c);
    const T* grad = grad_out + c * args.grad_out.strides.channel;
    T* to = channel_data<T>(args.grad_x, args.grad_skip, item, c);
    double* channel_sums = sums + c;
    channel_sums[2 * args.n_channels] =
        sum_of_grad_h(map, channel_sums[0], channel_sums[2 * args.n_channels], args.n_pixels, mean_g, mean_g_xhat);
    for (int64_t start = 0; start < args.n_pixels; start += kRun) {
      const int64_t n = start + kRun < args.n_pixels ? kRun : args.n_pixels - start;
      const float* g = is_kept ? kept + (c - first) * args.n_pixels + start : one_run;
      if (!is_kept) gradients_before_silu<kSilu>(row + start, grad + start, n, map, one_run);
      for (int64_t i = 0; i < n; ++i) {
        const float g_part = multiply_add(map.gain, g[i], -g_share);
        assign(to[start + i], map.rstd * multiply_add(-normalised(row[start + i], map), xhat_share, g_part));
      }
    }
  }
}

}  // namespace

void group_norm_planar(const GroupNormArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using T = typename decltype(types)::Element;
    for_each_task(args, begin, end, [&](int64_t item, int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group) {
        args.silu ? forward_group<true, T>(args, item, group) : forward_group<false, T>(args, item, group);
      }
    });
  });
}

void group_norm_bwd_planar(const GroupNormBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using T = typename decltype(types)::Element;
    for_each_task(args, begin, end, [&](int64_t item, int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group) {
        args.silu ? backward_group<true, T>(args, item, group) : backward_group<false, T>(args, item, group);
      }
    });
  });
}

}  // namespace msf::cpu::MSF_LEVEL

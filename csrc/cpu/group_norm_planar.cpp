// Group norm of maps whose pixels are next to each other: every loop runs over pixels of one channel.
#include "group_norm_parts.h"
#include "kernels.h"
#include "lanes.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kRun = 2048;          // values whose moments are taken at once, about their own mean
constexpr int64_t kKeptValues = 16384;  // gradients of a group that are kept between the passes of the backward

template <typename T>
CountedMoments row_moments(const T* row, int64_t n_pixels) {
  CountedMoments total{0, 0, 0};
  for (int64_t start = 0; start < n_pixels; start += kRun) {
    const int64_t n = start + kRun < n_pixels ? kRun : n_pixels - start;
    const T* from = row + start;
    const double count = static_cast<double>(n);
    const float centre = static_cast<float>(sum<float>(n, [&](int64_t i) { return value_of(from[i]); }) / count);
    float deviations[kLanes] = {}, squares[kLanes] = {};
    for_each_lane(n, [&](int64_t i, int lane) {
      const float d = value_of(from[i]) - centre;
      deviations[lane] += d;
      squares[lane] = multiply_add(d, d, squares[lane]);
    });
    const double deviation = sum_of_lanes(deviations);
    const double shift = deviation / count;
    total = merged(total, {count, centre + shift, sum_of_lanes(squares) - deviation * shift});
  }
  return total;
}

template <bool kSilu, typename T>
void forward_row(const T* row, T* out, int64_t n_pixels, const ChannelMap& map) {
  const float centre = map.centre, slope = map.slope, offset = map.offset;
  for (int64_t i = 0; i < n_pixels; ++i) {
    assign(out[i], activated<kSilu>(affine_of(value_of(row[i]) - centre, slope, offset)));
  }
}

template <bool kSilu, typename T>
void forward_group(const GroupNormArgs& args, int64_t item, int64_t group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t first = group * group_channels;
  CountedMoments moments{0, 0, 0};
  for (int64_t c = first; c < first + group_channels; ++c) {
    CountedMoments row = row_moments(channel_data<const T>(args.x, args.skip, item, c), args.n_pixels);
    row.mean += entry(args.affine.add, item, c, 0);
    moments = merged(moments, row);
  }
  const double rstd = reciprocal_std(moments, args.eps);
  args.mean[item * args.n_groups + group] = moments.mean;
  args.rstd[item * args.n_groups + group] = rstd;
  for (int64_t c = first; c < first + group_channels; ++c) {
    forward_row<kSilu>(channel_data<const T>(args.x, args.skip, item, c),
                       static_cast<T*>(args.out.data) + item * args.out.strides.item + c * args.out.strides.channel,
                       args.n_pixels, channel_map(args.affine, item, c, moments.mean, rstd));
  }
}

// g[i], the gradient before the SiLU, of n values of a row
template <bool kSilu, typename T>
void gradients_before_silu(const T* row, const T* grad, int64_t n, const ChannelMap& map, float* g) {
  const float centre = map.centre, slope = map.slope, offset = map.offset;
  for (int64_t i = 0; i < n; ++i) {
    const float y = affine_of(value_of(row[i]) - centre, slope, offset);
    g[i] = gradient_before_silu<kSilu>(value_of(grad[i]), y);
  }
}

template <typename T>
void add_sums(const T* row, const float* g, int64_t n, float centre, ChannelSums& sums) {
  float g_lanes[kLanes] = {}, g_u_lanes[kLanes] = {}, u_lanes[kLanes] = {};
  for_each_lane(n, [&](int64_t i, int lane) {
    const float u = value_of(row[i]) - centre;
    g_lanes[lane] += g[i];
    g_u_lanes[lane] = multiply_add(g[i], u, g_u_lanes[lane]);
    u_lanes[lane] += u;
  });
  sums.g += sum_of_lanes(g_lanes);
  sums.g_u += sum_of_lanes(g_u_lanes);
  sums.u += sum_of_lanes(u_lanes);
}

template <bool kSilu, typename T>
void backward_group(const GroupNormBwdArgs& args, int64_t item, int64_t group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t first = group * group_channels;
  const double mean = args.mean[item * args.n_groups + group];
  const double rstd = args.rstd[item * args.n_groups + group];
  double* sums_g = args.sums + item * 3 * args.n_channels;
  double* sums_g_xhat = sums_g + args.n_channels;
  double* sums_grad_h = sums_g_xhat + args.n_channels;  // until the second pass: of u
  const T* grad_out = static_cast<const T*>(args.grad_out.data) + item * args.grad_out.strides.item;
  // Without pixels the sums are zero, and so must be the means.
  const double count = args.n_pixels > 0 ? static_cast<double>(group_channels * args.n_pixels) : 1.0;
  const bool is_kept = group_channels * args.n_pixels <= kKeptValues;
  float kept[kKeptValues], one_run[kRun];

  double mean_g = 0, mean_g_xhat = 0;
  for (int64_t c = first; c < first + group_channels; ++c) {
    const ChannelMap map = channel_map(args.affine, item, c, mean, rstd);
    const T* row = channel_data<const T>(args.x, args.skip, item, c);
    const T* grad = grad_out + c * args.grad_out.strides.channel;
    ChannelSums sums{0, 0, 0};
    for (int64_t start = 0; start < args.n_pixels; start += kRun) {
      const int64_t n = start + kRun < args.n_pixels ? kRun : args.n_pixels - start;
      float* g = is_kept ? kept + (c - first) * args.n_pixels + start : one_run;
      gradients_before_silu<kSilu>(row + start, grad + start, n, map, g);
      add_sums(row + start, g, n, map.centre, sums);
    }
    sums_g[c] = sums.g;
    sums_g_xhat[c] = sum_of_g_xhat(map, sums);
    sums_grad_h[c] = sums.u;
    mean_g += map.gain * sums.g / count;
    mean_g_xhat += map.gain * sums_g_xhat[c] / count;
  }

  for (int64_t c = first; c < first + group_channels; ++c) {
    const ChannelMap map = channel_map(args.affine, item, c, mean, rstd);
    const ChannelSums sums{sums_g[c], 0, sums_grad_h[c]};
    const GradientMap gradient = gradient_map(map, sums, args.n_pixels, mean_g, mean_g_xhat);
    sums_grad_h[c] = gradient.sum;
    const T* row = channel_data<const T>(args.x, args.skip, item, c);
    const T* grad = grad_out + c * args.grad_out.strides.channel;
    T* to = channel_data<T>(args.grad_x, args.grad_skip, item, c);
    for (int64_t start = 0; start < args.n_pixels; start += kRun) {
      const int64_t n = start + kRun < args.n_pixels ? kRun : args.n_pixels - start;
      const float* g = is_kept ? kept + (c - first) * args.n_pixels + start : one_run;
      if (!is_kept) gradients_before_silu<kSilu>(row + start, grad + start, n, map, one_run);
      const float centre = map.centre, slope = map.slope, of_u = gradient.of_u, constant = gradient.constant;
      for (int64_t i = 0; i < n; ++i) {
        const float u = value_of(row[start + i]) - centre;
        assign(to[start + i], gradient_of(g[i], u, slope, of_u, constant));
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

// Group norm of maps whose pixels are next to each other: every loop runs over pixels of one channel.
#include "group_norm_parts.h"
#include "kernels.h"
#include "lanes.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kRun = 2048;  // values whose moments are taken at once, about their own mean

template <typename T>
Moments row_moments(const T* row, int64_t n_pixels) {
  Moments total{0, 0, 0};
  for (int64_t start = 0; start < n_pixels; start += kRun) {
    const int64_t n = start + kRun < n_pixels ? kRun : n_pixels - start;
    const T* from = row + start;
    const double count = static_cast<double>(n);
    const float centre = static_cast<float>(sum<float>(n, [&](int64_t i) { return value_of(from[i]); }) / count);
    const double deviation = sum<float>(n, [&](int64_t i) { return value_of(from[i]) - centre; });
    const double squares = sum<float>(n, [&](int64_t i) {
      const float d = value_of(from[i]) - centre;
      return d * d;
    });
    const double shift = deviation / count;
    total = merged(total, {count, centre + shift, squares - deviation * shift});
  }
  return total;
}

template <bool kSilu, typename T>
void forward_row(const T* row, T* out, int64_t n_pixels, const ChannelMap& map) {
  const float slope = map.rstd * map.gain;
  const float offset = map.rest * map.gain + map.offset;
  for (int64_t i = 0; i < n_pixels; ++i) {
    assign(out[i], activated<kSilu>((value_of(row[i]) - map.centre) * slope + offset));
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

struct RowSums {
  double g, g_xhat;
};

// `xhat` and g of a value, which both passes of the backward need.
template <bool kSilu, typename T>
inline __attribute__((always_inline)) void normalised(T x, T grad, const ChannelMap& map, float& xhat, float& g) {
  xhat = (value_of(x) - map.centre) * map.rstd + map.rest;
  g = gradient_before_silu<kSilu>(value_of(grad), xhat * map.gain + map.offset);
}

template <bool kSilu, typename T>
RowSums sum_row(const T* row, const T* grad, int64_t n_pixels, const ChannelMap& map) {
  RowSums total{0, 0};
  float g[kRun], g_xhat[kRun];
  for (int64_t start = 0; start < n_pixels; start += kRun) {
    const int64_t n = start + kRun < n_pixels ? kRun : n_pixels - start;
    for (int64_t i = 0; i < n; ++i) {
      float xhat;
      normalised<kSilu>(row[start + i], grad[start + i], map, xhat, g[i]);
      g_xhat[i] = g[i] * xhat;
    }
    total.g += sum<float>(n, [&](int64_t i) { return g[i]; });
    total.g_xhat += sum<float>(n, [&](int64_t i) { return g_xhat[i]; });
  }
  return total;
}

template <bool kSilu, typename T>
double backward_row(const T* row, const T* grad, T* grad_row, int64_t n_pixels, const ChannelMap& map, float mean_g,
                    float mean_g_xhat) {
  double total = 0;
  float grad_h[kRun];
  for (int64_t start = 0; start < n_pixels; start += kRun) {
    const int64_t n = start + kRun < n_pixels ? kRun : n_pixels - start;
    for (int64_t i = 0; i < n; ++i) {
      float xhat, g;
      normalised<kSilu>(row[start + i], grad[start + i], map, xhat, g);
      grad_h[i] = map.rstd * (map.gain * g - mean_g - xhat * mean_g_xhat);
      assign(grad_row[start + i], grad_h[i]);
    }
    total += sum<float>(n, [&](int64_t i) { return grad_h[i]; });
  }
  return total;
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

  double mean_g = 0, mean_g_xhat = 0;
  for (int64_t c = first; c < first + group_channels; ++c) {
    const ChannelMap map = channel_map(args.affine, item, c, mean, rstd);
    const RowSums row = sum_row<kSilu>(channel_data<const T>(args.x, args.skip, item, c),
                                       grad_out + c * args.grad_out.strides.channel, args.n_pixels, map);
    sums[c] = row.g;
    sums[args.n_channels + c] = row.g_xhat;
    mean_g += map.gain * row.g / count;
    mean_g_xhat += map.gain * row.g_xhat / count;
  }
  for (int64_t c = first; c < first + group_channels; ++c) {
    sums[2 * args.n_channels + c] = backward_row<kSilu>(
        channel_data<const T>(args.x, args.skip, item, c), grad_out + c * args.grad_out.strides.channel,
        channel_data<T>(args.grad_x, args.grad_skip, item, c), args.n_pixels,
        channel_map(args.affine, item, c, mean, rstd), static_cast<float>(mean_g), static_cast<float>(mean_g_xhat));
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

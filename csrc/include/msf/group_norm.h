// Group norm over [x ; skip] + add, affine, scale-shift, SiLU: statistics, one element forward, one element backward.
#pragma once

#include "msf/maps.h"
#include "msf/math.h"

namespace msf {

// Mean and sum of squared deviations of `count` values; merging never subtracts squares of means.
struct CountedMoments {
  double count, mean, m2;
};

MSF_HOST_DEVICE CountedMoments merged(const CountedMoments& a, const CountedMoments& b) {
  const double count = a.count + b.count;
  if (count == 0) return a;
  const double delta = b.mean - a.mean;
  return {count, a.mean + delta * (b.count / count), a.m2 + b.m2 + delta * delta * (a.count * b.count / count)};
}

MSF_HOST_DEVICE double reciprocal_std(const CountedMoments& moments, double eps) {
  return 1.0 / square_root((moments.count > 0 ? moments.m2 / moments.count : 0.0) + eps);
}

// A feature map of which the norm reads or writes a run of channels.
struct MapView {
  void* data;  // null: absent
  MapStrides strides;
  int64_t n_channels;
};

// The element of channel `channel` of [x ; skip] at the first pixel of an item.
template <typename T>
MSF_HOST_DEVICE T* channel_data(const MapView& x, const MapView& skip, int64_t item, int64_t channel) {
  const bool is_skip = channel >= x.n_channels;
  const MapView& map = is_skip ? skip : x;
  const int64_t within = is_skip ? channel - x.n_channels : channel;
  return static_cast<T*>(map.data) + item * map.strides.item + within * map.strides.channel;
}

// A vector [C], or rows [N or 1, C]; null: absent.
struct Rows {
  void* data;
  Scalar type;
  int64_t item_stride;
};

MSF_HOST_DEVICE double entry(const Rows& rows, int64_t item, int64_t channel, double absent) {
  return rows.data == nullptr ? absent : read(rows.data, rows.type, item * rows.item_stride + channel);
}

// The affine parameters of the norm, before and after it.
struct Affine {
  Rows weight, bias, add, scale, shift;
};

// What a channel of an item does to a value x, with u = x - centre:
//   xhat = (x + add - mean) * rstd                                  = (u + rest) * rstd
//   y = xhat * (weight * (1 + scale)) + (bias * (1 + scale) + shift) = u * slope + offset
// The centre is rounded to float, and the rest is what that loses; slope and offset are rounded once.
struct ChannelMap {
  float centre, slope, offset;
  double rest, gain, rstd;
};

MSF_HOST_DEVICE ChannelMap channel_map(const Affine& affine, int64_t item, int64_t channel, double mean, double rstd) {
  const double factor = 1.0 + entry(affine.scale, item, channel, 0);
  const double gain = entry(affine.weight, item, channel, 1) * factor;
  const double offset = entry(affine.bias, item, channel, 0) * factor + entry(affine.shift, item, channel, 0);
  const double exact_centre = mean - entry(affine.add, item, channel, 0);
  const float centre = static_cast<float>(exact_centre);
  const double rest = centre - exact_centre;
  return {centre, static_cast<float>(rstd * gain), static_cast<float>(rest * rstd * gain + offset), rest, gain, rstd};
}

// Sums over a channel's pixels of g, the gradient of y, of g * u and of u.
struct ChannelSums {
  double g, g_u, u;
};

MSF_HOST_DEVICE double sum_of_g_xhat(const ChannelMap& map, const ChannelSums& sums) {
  return map.rstd * (sums.g_u + map.rest * sums.g);
}

// grad_h = rstd (gain g - mean_g - xhat mean_g_xhat) = slope g + of_u u + constant, where the means over the group are
// those of gain g and gain g xhat. Its sum over the pixels follows from the other sums: adding up rounded values would
// lose most of a sum that nearly cancels.
struct GradientMap {
  float of_u, constant;
  double sum;
};

MSF_HOST_DEVICE GradientMap gradient_map(const ChannelMap& map, const ChannelSums& sums, int64_t n_pixels,
                                         double mean_g, double mean_g_xhat) {
  const double of_u = -map.rstd * map.rstd * mean_g_xhat;
  const double constant = -map.rstd * mean_g + of_u * map.rest;
  return {static_cast<float>(of_u), static_cast<float>(constant),
          map.rstd * map.gain * sums.g + of_u * sums.u + constant * static_cast<double>(n_pixels)};
}

// Work is cut into tasks of `task_groups` groups of one item (the last task of an item may have fewer). A task writes
// only its own channels of the scratch memory; the cut changes no bit of the result.
struct GroupNormArgs {
  MapView x, skip;  // read only
  MapView out;
  Scalar type;  // of the maps; not float64
  Affine affine;
  double* mean;     // [N, G]; not float: a rounded mean would shift every xhat of the backward the same way
  double* rstd;     // [N, G]
  double* moments;  // scratch [N, 2, C]
  float* scratch;   // [N, 3, C]
  int64_t n_items, n_groups, n_channels, n_pixels, task_groups;
  double eps;
  bool silu;
};

struct GroupNormBwdArgs {
  MapView x, skip, grad_out;  // read only
  MapView grad_x, grad_skip;
  Scalar type;
  Affine affine;
  const double* mean;
  const double* rstd;
  double* sums;    // [N, 3, C]: over an item's pixels, of g, g * xhat and grad_h
  float* scratch;  // [N, 8, C]
  int64_t n_items, n_groups, n_channels, n_pixels, task_groups;
  bool silu;
};

// Gradients of the affine parameters, of which any may be absent; from the sums of GroupNormBwdArgs.
struct GroupNormParameterArgs {
  Affine affine;  // read only
  Affine grads;   // a row stride of 0 sums over the items
  const double* sums;
  int64_t n_items, n_channels;
};

MSF_HOST_DEVICE void add_entry(const Rows& rows, int64_t item, int64_t n_items, int64_t channel, double value,
                               double& total) {
  if (rows.data == nullptr) return;
  total += value;
  const bool is_per_item = rows.item_stride != 0;
  if (is_per_item || item == n_items - 1) {
    write(rows.data, rows.type, item * rows.item_stride + channel, is_per_item ? value : total);
  }
}

// All parameter gradients of one channel, summed over the items in their order.
MSF_HOST_DEVICE void parameter_gradients(const GroupNormParameterArgs& args, int64_t channel) {
  double weight = 0, bias = 0, add = 0, scale = 0, shift = 0;
  for (int64_t item = 0; item < args.n_items; ++item) {
    const double* sums = args.sums + item * 3 * args.n_channels + channel;
    const double g = sums[0], g_xhat = sums[args.n_channels], grad_h = sums[2 * args.n_channels];
    const double factor = 1.0 + entry(args.affine.scale, item, channel, 0);
    const double grad_factor =
        entry(args.affine.weight, item, channel, 1) * g_xhat + entry(args.affine.bias, item, channel, 0) * g;
    add_entry(args.grads.weight, item, args.n_items, channel, factor * g_xhat, weight);
    add_entry(args.grads.bias, item, args.n_items, channel, factor * g, bias);
    add_entry(args.grads.add, item, args.n_items, channel, grad_h, add);
    add_entry(args.grads.scale, item, args.n_items, channel, grad_factor, scale);
    add_entry(args.grads.shift, item, args.n_items, channel, g, shift);
  }
}

// y of u = x - centre.
MSF_HOST_DEVICE float affine_of(float u, float slope, float offset) { return multiply_add(u, slope, offset); }

// grad_h of g and u, in the terms of GradientMap.
MSF_HOST_DEVICE float gradient_of(float g, float u, float slope, float of_u, float constant) {
  return multiply_add(slope, g, multiply_add(of_u, u, constant));
}

// g, the gradient of y, from that of silu(y) or of y itself.
template <bool kSilu>
MSF_HOST_DEVICE float gradient_before_silu(float grad, float y) {
  return kSilu ? grad * silu_slope(y) : grad;
}

}  // namespace msf

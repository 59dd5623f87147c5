// Group norm of maps whose channels are next to each other (channels-last): every loop runs over channels of one pixel.
#include "group_norm_parts.h"
#include "kernels.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kRunValues = 8192;  // values whose moments are taken at once
constexpr int64_t kPilotPixels = 8;   // pixels whose means are the centres of an item's first run
constexpr int64_t kGradientRun = 16;  // pixels whose gradients are summed in float before they go into double

// Pixels of such a run: few enough for a sum in float. It depends on the map only, never on how the work is cut.
int64_t run_pixels(int64_t n_channels) {
  const int64_t n = kRunValues / (n_channels > 0 ? n_channels : 1);
  return n < 8 ? 8 : n > 64 ? 64 : n;
}

// sum[c] += x[p, c] over n pixels
template <typename T>
void add_pixels(const T* __restrict from, int64_t stride, int64_t n, int64_t channels, float* __restrict sum) {
  int64_t p = 0;
  for (; p + 4 <= n; p += 4) {
    const T* row = from + p * stride;
    for (int64_t c = 0; c < channels; ++c) {
      sum[c] += (value_of(row[c]) + value_of(row[stride + c])) +
                (value_of(row[2 * stride + c]) + value_of(row[3 * stride + c]));
    }
  }
  for (; p < n; ++p) {
    for (int64_t c = 0; c < channels; ++c) sum[c] += value_of(from[p * stride + c]);
  }
}

// deviation[c] += x[p, c] - centre[c], squares[c] += its square
template <typename T>
void add_deviations(const T* __restrict from, int64_t stride, int64_t n, int64_t channels,
                    const float* __restrict centre, float* __restrict deviation, float* __restrict squares) {
  int64_t p = 0;
  for (; p + 4 <= n; p += 4) {
    const T* row = from + p * stride;
    for (int64_t c = 0; c < channels; ++c) {
      const float d0 = value_of(row[c]) - centre[c];
      const float d1 = value_of(row[stride + c]) - centre[c];
      const float d2 = value_of(row[2 * stride + c]) - centre[c];
      const float d3 = value_of(row[3 * stride + c]) - centre[c];
      deviation[c] += (d0 + d1) + (d2 + d3);
      squares[c] += multiply_add(d0, d0, d1 * d1) + multiply_add(d2, d2, d3 * d3);
    }
  }
  for (; p < n; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      const float d = value_of(from[p * stride + c]) - centre[c];
      deviation[c] += d;
      squares[c] = multiply_add(d, d, squares[c]);
    }
  }
}

// Calls f(first pixel of the run `start`, pixel stride, first channel, number of channels) for x and skip.
template <typename T, typename F>
void for_each_source(const MapView& x, const MapView& skip, int64_t item, int64_t start, int64_t begin, int64_t end,
                     F&& f) {
  for (int64_t c = begin; c < end;) {
    const int64_t c_end = run_end(x, c, end);
    const int64_t stride = (c < x.n_channels ? x : skip).strides.pixel;
    f(channel_data<T>(x, skip, item, c) + start * stride, stride, c, c_end - c);
    c = c_end;
  }
}

// The moments of channels [begin, end) of one item, without `add`. A run is summed about the mean of what came before
// (the first run about that of its first pixels). That is as exact as about its own mean, but for a factor of at most
// the ratio of the two lengths: where the two means differ by much, their difference is part of the variance.
template <typename T>
void channel_moments(const GroupNormArgs& args, int64_t item, int64_t begin, int64_t end) {
  double* mean = args.moments + item * 2 * args.n_channels;
  double* m2 = mean + args.n_channels;
  float* centre = args.scratch + item * 3 * args.n_channels;
  float* deviation = centre + args.n_channels;
  float* squares = deviation + args.n_channels;
  for (int64_t c = begin; c < end; ++c) mean[c] = m2[c] = centre[c] = 0;
  const int64_t n_pilot = kPilotPixels < args.n_pixels ? kPilotPixels : args.n_pixels;
  for_each_source<const T>(args.x, args.skip, item, 0, begin, end,
                           [&](const T* from, int64_t stride, int64_t c, int64_t channels) {
                             add_pixels(from, stride, n_pilot, channels, centre + c);
                           });
  for (int64_t c = begin; c < end; ++c) centre[c] /= static_cast<float>(n_pilot > 0 ? n_pilot : 1);

  const int64_t run = run_pixels(args.n_channels);
  for (int64_t start = 0; start < args.n_pixels; start += run) {
    const int64_t n = start + run < args.n_pixels ? run : args.n_pixels - start;
    for (int64_t c = begin; c < end; ++c) deviation[c] = squares[c] = 0;
    for_each_source<const T>(args.x, args.skip, item, start, begin, end,
                             [&](const T* from, int64_t stride, int64_t c, int64_t channels) {
                               add_deviations(from, stride, n, channels, centre + c, deviation + c, squares + c);
                             });
    const double inverse_n = 1.0 / static_cast<double>(n);
    const double share = static_cast<double>(n) / static_cast<double>(start + n);
    const double cross = static_cast<double>(start) * share;
    for (int64_t c = begin; c < end; ++c) {
      const double shift = deviation[c] * inverse_n;
      const double delta = centre[c] + shift - mean[c];
      m2[c] += (squares[c] - deviation[c] * shift) + delta * delta * cross;
      mean[c] += delta * share;
      centre[c] = static_cast<float>(mean[c]);
    }
  }
}

// to[p, c] = silu((x[p, c] - centre[c]) slope[c] + offset[c]) over n pixels
template <bool kSilu, typename T>
void write_pixels(const T* from, int64_t stride, T* to, int64_t to_stride, int64_t n, int64_t channels,
                  const float* __restrict centre, const float* __restrict slope, const float* __restrict offset) {
  for (int64_t p = 0; p < n; ++p) {
    const T* __restrict row = from + p * stride;
    T* __restrict to_row = to + p * to_stride;
    for (int64_t c = 0; c < channels; ++c) {
      assign(to_row[c], activated<kSilu>(affine_of(value_of(row[c]) - centre[c], slope[c], offset[c])));
    }
  }
}

template <bool kSilu, typename T>
void forward_task(const GroupNormArgs& args, int64_t item, int64_t first_group, int64_t last_group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t begin = first_group * group_channels;
  const int64_t end = last_group * group_channels;
  channel_moments<T>(args, item, begin, end);

  const double* mean = args.moments + item * 2 * args.n_channels;
  const double* m2 = mean + args.n_channels;
  float* centre = args.scratch + item * 3 * args.n_channels;
  float* slope = centre + args.n_channels;
  float* offset = slope + args.n_channels;
  const double pixels = static_cast<double>(args.n_pixels);
  const double inverse_channels = args.n_pixels > 0 ? 1.0 / static_cast<double>(group_channels) : 0.0;
  for (int64_t group = first_group; group < last_group; ++group) {
    // Channels are equally long, so their moments merge without a division each, which is most of the work on small maps.
    const int64_t first = group * group_channels, last = first + group_channels;
    double total = 0, within = 0, between = 0;
    for (int64_t c = first; c < last; ++c) total += mean[c] + entry(args.affine.add, item, c, 0);
    const double group_mean = total * inverse_channels;
    for (int64_t c = first; c < last; ++c) {
      const double delta = mean[c] + entry(args.affine.add, item, c, 0) - group_mean;
      within += m2[c];
      between += delta * delta;
    }
    const CountedMoments moments{pixels * static_cast<double>(group_channels), group_mean, within + pixels * between};
    const double rstd = reciprocal_std(moments, args.eps);
    args.mean[item * args.n_groups + group] = moments.mean;
    args.rstd[item * args.n_groups + group] = rstd;
    for (int64_t c = group * group_channels; c < (group + 1) * group_channels; ++c) {
      const ChannelMap map = channel_map(args.affine, item, c, moments.mean, rstd);
      centre[c] = map.centre;
      slope[c] = map.slope;
      offset[c] = map.offset;
    }
  }

  T* out = static_cast<T*>(args.out.data) + item * args.out.strides.item;
  for_each_source<const T>(args.x, args.skip, item, 0, begin, end,
                           [&](const T* from, int64_t stride, int64_t c, int64_t channels) {
                             write_pixels<kSilu>(from, stride, out + c, args.out.strides.pixel, args.n_pixels,
                                                 channels, centre + c, slope + c, offset + c);
                           });
}

// The channel and gradient maps of one item, one array per member, and sums over a run of pixels.
struct BackwardScratch {
  float *centre, *slope, *offset, *of_u, *constant, *g, *g_u, *u;

  BackwardScratch(float* memory, int64_t n_channels) {
    float** members[] = {&centre, &slope, &offset, &of_u, &constant, &g, &g_u, &u};
    for (int i = 0; i < 8; ++i) *members[i] = memory + i * n_channels;
  }
};

// g_sum[c] += g, g_u_sum[c] += g * u and u_sum[c] += u over n pixels
template <bool kSilu, typename T>
void add_gradients(const T* from, int64_t stride, const T* grad, int64_t grad_stride, int64_t n, int64_t channels,
                   const float* __restrict centre, const float* __restrict slope, const float* __restrict offset,
                   float* __restrict g_sum, float* __restrict g_u_sum, float* __restrict u_sum) {
  const auto gradient_of = [&](const T* x, const T* grad_y, int64_t c, float& u) __attribute__((always_inline)) {
    u = value_of(x[c]) - centre[c];
    return gradient_before_silu<kSilu>(value_of(grad_y[c]), affine_of(u, slope[c], offset[c]));
  };
  int64_t p = 0;
  for (; p + 2 <= n; p += 2) {
    const T* __restrict row = from + p * stride;
    const T* __restrict grad_row = grad + p * grad_stride;
    for (int64_t c = 0; c < channels; ++c) {
      float u0, u1;
      const float g0 = gradient_of(row, grad_row, c, u0);
      const float g1 = gradient_of(row + stride, grad_row + grad_stride, c, u1);
      g_sum[c] += g0 + g1;
      g_u_sum[c] += multiply_add(g0, u0, g1 * u1);
      u_sum[c] += u0 + u1;
    }
  }
  for (; p < n; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      float u;
      const float g = gradient_of(from + p * stride, grad + p * grad_stride, c, u);
      g_sum[c] += g;
      g_u_sum[c] = multiply_add(g, u, g_u_sum[c]);
      u_sum[c] += u;
    }
  }
}

// grad_x[p, c] = slope g + of_u u + constant over n pixels
template <bool kSilu, typename T>
void write_gradients(const T* from, int64_t stride, const T* grad, int64_t grad_stride, T* to, int64_t to_stride,
                     int64_t n, int64_t channels, const float* __restrict centre, const float* __restrict slope,
                     const float* __restrict offset, const float* __restrict of_u, const float* __restrict constant) {
  for (int64_t p = 0; p < n; ++p) {
    const T* __restrict row = from + p * stride;
    const T* __restrict grad_row = grad + p * grad_stride;
    T* __restrict to_row = to + p * to_stride;
    for (int64_t c = 0; c < channels; ++c) {
      const float u = value_of(row[c]) - centre[c];
      const float g = gradient_before_silu<kSilu>(value_of(grad_row[c]), affine_of(u, slope[c], offset[c]));
      assign(to_row[c], gradient_of(g, u, slope[c], of_u[c], constant[c]));
    }
  }
}

template <bool kSilu, typename T>
void backward_task(const GroupNormBwdArgs& args, int64_t item, int64_t first_group, int64_t last_group) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const int64_t begin = first_group * group_channels;
  const int64_t end = last_group * group_channels;
  const BackwardScratch s(args.scratch + item * 8 * args.n_channels, args.n_channels);
  double* sums_g = args.sums + item * 3 * args.n_channels;
  double* sums_g_xhat = sums_g + args.n_channels;       // until all pixels are seen: of g * u
  double* sums_grad_h = sums_g_xhat + args.n_channels;  // until then: of u
  const T* grad_out = static_cast<const T*>(args.grad_out.data) + item * args.grad_out.strides.item;
  const int64_t grad_stride = args.grad_out.strides.pixel;
  const auto map_of = [&](int64_t c) {
    const int64_t group = item * args.n_groups + c / group_channels;
    return channel_map(args.affine, item, c, args.mean[group], args.rstd[group]);
  };
  for (int64_t c = begin; c < end; ++c) {
    const ChannelMap map = map_of(c);
    s.centre[c] = map.centre;
    s.slope[c] = map.slope;
    s.offset[c] = map.offset;
    sums_g[c] = sums_g_xhat[c] = sums_grad_h[c] = 0;
  }

  for (int64_t start = 0; start < args.n_pixels; start += kGradientRun) {
    const int64_t n = start + kGradientRun < args.n_pixels ? kGradientRun : args.n_pixels - start;
    for (int64_t c = begin; c < end; ++c) s.g[c] = s.g_u[c] = s.u[c] = 0;
    for_each_source<const T>(
        args.x, args.skip, item, start, begin, end, [&](const T* from, int64_t stride, int64_t c, int64_t channels) {
          add_gradients<kSilu>(from, stride, grad_out + start * grad_stride + c, grad_stride, n, channels,
                               s.centre + c, s.slope + c, s.offset + c, s.g + c, s.g_u + c, s.u + c);
        });
    for (int64_t c = begin; c < end; ++c) {
      sums_g[c] += s.g[c];
      sums_g_xhat[c] += s.g_u[c];
      sums_grad_h[c] += s.u[c];
    }
  }

  // Without pixels the sums are zero, and so must be the means.
  const double count = args.n_pixels > 0 ? static_cast<double>(group_channels * args.n_pixels) : 1.0;
  for (int64_t group = first_group; group < last_group; ++group) {
    const int64_t group_begin = group * group_channels;
    double mean_g = 0, mean_g_xhat = 0;
    for (int64_t c = group_begin; c < group_begin + group_channels; ++c) {
      const ChannelMap map = map_of(c);
      sums_g_xhat[c] = sum_of_g_xhat(map, {sums_g[c], sums_g_xhat[c], sums_grad_h[c]});
      mean_g += map.gain * sums_g[c] / count;
      mean_g_xhat += map.gain * sums_g_xhat[c] / count;
    }
    for (int64_t c = group_begin; c < group_begin + group_channels; ++c) {
      const GradientMap gradient =
          gradient_map(map_of(c), {sums_g[c], 0, sums_grad_h[c]}, args.n_pixels, mean_g, mean_g_xhat);
      s.of_u[c] = gradient.of_u;
      s.constant[c] = gradient.constant;
      sums_grad_h[c] = gradient.sum;
    }
  }

  for_each_source<const T>(
      args.x, args.skip, item, 0, begin, end, [&](const T* from, int64_t stride, int64_t c, int64_t channels) {
        const int64_t to_stride = (c < args.x.n_channels ? args.grad_x : args.grad_skip).strides.pixel;
        write_gradients<kSilu>(from, stride, grad_out + c, grad_stride,
                               channel_data<T>(args.grad_x, args.grad_skip, item, c), to_stride, args.n_pixels,
                               channels, s.centre + c, s.slope + c, s.offset + c, s.of_u + c, s.constant + c);
      });
}

}  // namespace

void group_norm_interleaved(const GroupNormArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using T = typename decltype(types)::Element;
    for_each_task(args, begin, end, [&](int64_t item, int64_t first, int64_t last) {
      args.silu ? forward_task<true, T>(args, item, first, last) : forward_task<false, T>(args, item, first, last);
    });
  });
}

void group_norm_bwd_interleaved(const GroupNormBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using T = typename decltype(types)::Element;
    for_each_task(args, begin, end, [&](int64_t item, int64_t first, int64_t last) {
      args.silu ? backward_task<true, T>(args, item, first, last) : backward_task<false, T>(args, item, first, last);
    });
  });
}

}  // namespace msf::cpu::MSF_LEVEL

// Group norm in small steps: sums per channel, statistics per group, one pass over the elements. In a planar map pixels
// are next to each other, in an interleaved (channels-last) map channels are.
#include "launch.cuh"
#include "launchers.h"

namespace msf::cuda {
namespace {

// An interleaved block of threads: so many neighbouring channels, so many pixels at once.
constexpr int kBlockChannels = 32;
constexpr int kBlockPixels = kThreads / kBlockChannels;

template <typename T>
__device__ __forceinline__ float value_of(T x) {
  float value;
  assign(value, x);
  return value;
}

__device__ __forceinline__ int64_t pixel_stride(const MapView& x, const MapView& skip, int64_t channel) {
  return (channel < x.n_channels ? x : skip).strides.pixel;
}

// A channel that this thread sums over some of its pixels, together with other threads.
struct Lane {
  int64_t item, channel, first_pixel, pixel_step;
  bool is_inside;
};

// Planar: a block per channel. Interleaved: a block per kBlockChannels channels.
template <bool kInterleaved>
__device__ Lane lane_of(int64_t block, int64_t n_channels) {
  if constexpr (kInterleaved) {
    const int64_t slabs = (n_channels + kBlockChannels - 1) / kBlockChannels;
    const int64_t channel = block % slabs * kBlockChannels + threadIdx.x % kBlockChannels;
    return {block / slabs, channel, threadIdx.x / kBlockChannels, kBlockPixels, channel < n_channels};
  } else {
    return {block / n_channels, block % n_channels, threadIdx.x, kThreads, true};
  }
}

int64_t lane_blocks(bool interleaved, int64_t n_items, int64_t n_channels) {
  return n_items * (interleaved ? (n_channels + kBlockChannels - 1) / kBlockChannels : n_channels);
}

// The sum over the threads of one channel; valid in those with first_pixel 0. `shared` holds kThreads numbers.
template <bool kInterleaved>
__device__ double channel_sum(double value, double* shared) {
  if constexpr (kInterleaved) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < kBlockChannels) {
      for (int i = 1; i < kBlockPixels; ++i) value += shared[threadIdx.x + i * kBlockChannels];
    }
    return value;
  } else {
    return block_sum(value, shared);
  }
}

// Mean and squared deviations of each channel, the latter about the mean, in a second pass over what is in the cache.
template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) moments_kernel(GroupNormArgs args, int64_t n_blocks) {
  __shared__ double shared[kThreads];
  __shared__ double means[kBlockChannels];
  for (int64_t block = blockIdx.x; block < n_blocks; block += gridDim.x) {
    const Lane lane = lane_of<kInterleaved>(block, args.n_channels);
    const T* from = nullptr;
    int64_t stride = 0;
    if (lane.is_inside) {
      from = channel_data<const T>(args.x, args.skip, lane.item, lane.channel);
      stride = pixel_stride(args.x, args.skip, lane.channel);
    }
    double total = 0;
    if (lane.is_inside) {
      for (int64_t p = lane.first_pixel; p < args.n_pixels; p += lane.pixel_step) total += value_of(from[p * stride]);
    }
    total = channel_sum<kInterleaved>(total, shared);
    const int own = kInterleaved ? threadIdx.x % kBlockChannels : 0;
    if (lane.first_pixel == 0) means[own] = args.n_pixels > 0 ? total / static_cast<double>(args.n_pixels) : 0.0;
    __syncthreads();
    const double mean = means[own];
    const float centre = static_cast<float>(mean);
    double squares = 0;
    if (lane.is_inside) {
      for (int64_t p = lane.first_pixel; p < args.n_pixels; p += lane.pixel_step) {
        const float d = value_of(from[p * stride]) - centre;
        squares += static_cast<double>(d * d);
      }
    }
    squares = channel_sum<kInterleaved>(squares, shared);
    if (lane.is_inside && lane.first_pixel == 0) {
      double* moments = args.moments + lane.item * 2 * args.n_channels + lane.channel;
      moments[0] = mean;
      moments[args.n_channels] = squares;
    }
  }
}

// One thread per group: its statistics, and the maps of its channels.
__global__ void __launch_bounds__(kThreads) statistics_kernel(GroupNormArgs args) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  for (int64_t i = first_piece(); i < args.n_items * args.n_groups; i += piece_stride()) {
    const int64_t item = i / args.n_groups, first = i % args.n_groups * group_channels;
    const double* mean = args.moments + item * 2 * args.n_channels;
    const double* m2 = mean + args.n_channels;
    CountedMoments moments{0, 0, 0};
    for (int64_t c = first; c < first + group_channels; ++c) {
      moments = merged(moments, {static_cast<double>(args.n_pixels), mean[c] + entry(args.affine.add, item, c, 0), m2[c]});
    }
    const double rstd = reciprocal_std(moments, args.eps);
    args.mean[i] = moments.mean;
    args.rstd[i] = rstd;
    float* scratch = args.scratch + item * 3 * args.n_channels;
    for (int64_t c = first; c < first + group_channels; ++c) {
      const ChannelMap map = channel_map(args.affine, item, c, moments.mean, rstd);
      scratch[c] = map.centre;
      scratch[args.n_channels + c] = map.slope;
      scratch[2 * args.n_channels + c] = map.offset;
    }
  }
}

// The n neighbouring elements that piece i is: pixels of a channel, or channels of a pixel.
struct Piece {
  int64_t item, channel, pixel;
};

template <bool kInterleaved, int n>
__device__ Piece piece_at(int64_t i, int64_t n_channels, int64_t n_pixels) {
  if constexpr (kInterleaved) {
    const int64_t per_pixel = n_channels / n;
    return {i / per_pixel / n_pixels, i % per_pixel * n, i / per_pixel % n_pixels};
  } else {
    const int64_t per_channel = n_pixels / n;
    return {i / per_channel / n_channels, i / per_channel % n_channels, i % per_channel * n};
  }
}

template <typename T, bool kInterleaved, int n>
__global__ void __launch_bounds__(kThreads) forward_kernel(GroupNormArgs args) {
  for (int64_t i = first_piece(); i < args.n_items * args.n_channels * args.n_pixels / n; i += piece_stride()) {
    const Piece piece = piece_at<kInterleaved, n>(i, args.n_channels, args.n_pixels);
    const Pack<T, n> x = load_pack<T, n>(channel_data<const T>(args.x, args.skip, piece.item, piece.channel) +
                                         piece.pixel * pixel_stride(args.x, args.skip, piece.channel));
    const float* centre = args.scratch + piece.item * 3 * args.n_channels + piece.channel;
    const float* slope = centre + args.n_channels;
    const float* offset = slope + args.n_channels;
    Pack<T, n> out;
    MSF_UNROLL
    for (int j = 0; j < n; ++j) {
      const int c = kInterleaved ? j : 0;
      const float y = affine_of(value_of(x.values[j]) - centre[c], slope[c], offset[c]);
      assign(out.values[j], args.silu ? silu(y) : y);
    }
    store_pack<T, n>(static_cast<T*>(args.out.data) + piece.item * args.out.strides.item +
                         piece.channel * args.out.strides.channel + piece.pixel * args.out.strides.pixel,
                     out);
  }
}

__device__ __forceinline__ float before_silu(bool has_silu, float grad, float y) {
  return has_silu ? gradient_before_silu<true>(grad, y) : grad;
}

// Sums of g, g u and u of each channel.
template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) gradient_sums_kernel(GroupNormBwdArgs args, int64_t n_blocks) {
  __shared__ double shared[kThreads];
  const int64_t group_channels = args.n_channels / args.n_groups;
  for (int64_t block = blockIdx.x; block < n_blocks; block += gridDim.x) {
    const Lane lane = lane_of<kInterleaved>(block, args.n_channels);
    ChannelSums sums{0, 0, 0};
    if (lane.is_inside) {
      const int64_t group = lane.item * args.n_groups + lane.channel / group_channels;
      const ChannelMap map = channel_map(args.affine, lane.item, lane.channel, args.mean[group], args.rstd[group]);
      const T* from = channel_data<const T>(args.x, args.skip, lane.item, lane.channel);
      const int64_t stride = pixel_stride(args.x, args.skip, lane.channel);
      const T* grad = static_cast<const T*>(args.grad_out.data) + lane.item * args.grad_out.strides.item +
                      lane.channel * args.grad_out.strides.channel;
      for (int64_t p = lane.first_pixel; p < args.n_pixels; p += lane.pixel_step) {
        const float u = value_of(from[p * stride]) - map.centre;
        const float y = affine_of(u, map.slope, map.offset);
        const float g = before_silu(args.silu, value_of(grad[p * args.grad_out.strides.pixel]), y);
        sums.g += g;
        sums.g_u += static_cast<double>(g * u);
        sums.u += u;
      }
    }
    sums.g = channel_sum<kInterleaved>(sums.g, shared);
    sums.g_u = channel_sum<kInterleaved>(sums.g_u, shared);
    sums.u = channel_sum<kInterleaved>(sums.u, shared);
    if (lane.is_inside && lane.first_pixel == 0) {
      double* out = args.sums + lane.item * 3 * args.n_channels + lane.channel;
      out[0] = sums.g;
      out[args.n_channels] = sums.g_u;
      out[2 * args.n_channels] = sums.u;
    }
  }
}

// One thread per group: the sums of g xhat and grad_h, and what the elements' gradients need of each channel.
__global__ void __launch_bounds__(kThreads, 2) gradient_maps_kernel(GroupNormBwdArgs args) {
  const int64_t group_channels = args.n_channels / args.n_groups;
  const double count = static_cast<double>(group_channels * args.n_pixels);
  for (int64_t i = first_piece(); i < args.n_items * args.n_groups; i += piece_stride()) {
    const int64_t item = i / args.n_groups, first = i % args.n_groups * group_channels;
    double* sums_g = args.sums + item * 3 * args.n_channels;
    double* sums_g_xhat = sums_g + args.n_channels;
    double* sums_grad_h = sums_g_xhat + args.n_channels;
    double mean_g = 0, mean_g_xhat = 0;
    for (int64_t c = first; c < first + group_channels; ++c) {
      const ChannelMap map = channel_map(args.affine, item, c, args.mean[i], args.rstd[i]);
      sums_g_xhat[c] = sum_of_g_xhat(map, {sums_g[c], sums_g_xhat[c], sums_grad_h[c]});
      mean_g += map.gain * sums_g[c] / count;
      mean_g_xhat += map.gain * sums_g_xhat[c] / count;
    }
    float* scratch = args.scratch + item * 8 * args.n_channels;
    for (int64_t c = first; c < first + group_channels; ++c) {
      const ChannelMap map = channel_map(args.affine, item, c, args.mean[i], args.rstd[i]);
      const GradientMap gradient =
          gradient_map(map, {sums_g[c], 0, sums_grad_h[c]}, args.n_pixels, mean_g, mean_g_xhat);
      sums_grad_h[c] = gradient.sum;
      const float members[] = {map.centre, map.slope, map.offset, gradient.of_u, gradient.constant};
      for (int member = 0; member < 5; ++member) scratch[member * args.n_channels + c] = members[member];
    }
  }
}

template <typename T, bool kInterleaved, int n>
__global__ void __launch_bounds__(kThreads) backward_kernel(GroupNormBwdArgs args) {
  for (int64_t i = first_piece(); i < args.n_items * args.n_channels * args.n_pixels / n; i += piece_stride()) {
    const Piece piece = piece_at<kInterleaved, n>(i, args.n_channels, args.n_pixels);
    const Pack<T, n> x = load_pack<T, n>(channel_data<const T>(args.x, args.skip, piece.item, piece.channel) +
                                         piece.pixel * pixel_stride(args.x, args.skip, piece.channel));
    const Pack<T, n> grad = load_pack<T, n>(
        static_cast<const T*>(args.grad_out.data) + piece.item * args.grad_out.strides.item +
        piece.channel * args.grad_out.strides.channel + piece.pixel * args.grad_out.strides.pixel);
    const float* centre = args.scratch + piece.item * 8 * args.n_channels + piece.channel;
    const float* slope = centre + args.n_channels;
    const float* offset = slope + args.n_channels;
    const float* of_u = offset + args.n_channels;
    const float* constant = of_u + args.n_channels;
    Pack<T, n> grad_x;
    MSF_UNROLL
    for (int j = 0; j < n; ++j) {
      const int c = kInterleaved ? j : 0;
      const float u = value_of(x.values[j]) - centre[c];
      const float g = before_silu(args.silu, value_of(grad.values[j]), affine_of(u, slope[c], offset[c]));
      assign(grad_x.values[j], gradient_of(g, u, slope[c], of_u[c], constant[c]));
    }
    store_pack<T, n>(channel_data<T>(args.grad_x, args.grad_skip, piece.item, piece.channel) +
                         piece.pixel * pixel_stride(args.grad_x, args.grad_skip, piece.channel),
                     grad_x);
  }
}

__global__ void __launch_bounds__(kThreads) parameters_kernel(GroupNormParameterArgs args) {
  for (int64_t c = first_piece(); c < args.n_channels; c += piece_stride()) parameter_gradients(args, c);
}

// Whether runs of n elements of a map start at multiples of n and at 16 bytes.
bool is_packable(const MapView& map, bool interleaved, int64_t n) {
  if (map.data == nullptr) return true;
  const int64_t outer = interleaved ? map.strides.pixel : map.strides.channel;
  return (!interleaved || map.n_channels % n == 0) && map.strides.item % n == 0 && outer % n == 0 &&
         is_aligned(map.data);
}

// Calls f(types, whether interleaved, elements per pack) with constants.
template <typename F>
void dispatch_norm(Scalar type, bool interleaved, int64_t n_pixels, std::initializer_list<MapView> maps, F&& f) {
  dispatch(type, [&](auto types) {
    using T = typename decltype(types)::Element;
    constexpr int kWidth = 16 / sizeof(T);
    bool is_packed = interleaved || n_pixels % kWidth == 0;
    for (const MapView& map : maps) is_packed = is_packed && is_packable(map, interleaved, kWidth);
    const auto with_layout = [&](auto layout) {
      if (is_packed) {
        f(types, layout, std::integral_constant<int, kWidth>{});
      } else {
        f(types, layout, std::integral_constant<int, 1>{});
      }
    };
    interleaved ? with_layout(std::true_type{}) : with_layout(std::false_type{});
  });
}

unsigned one_block_each(int64_t tasks) { return static_cast<unsigned>(tasks < kMaxBlocks ? tasks : kMaxBlocks); }

}  // namespace

const char* group_norm_silu(const GroupNormArgs& args, bool interleaved, void* stream) {
  const int64_t blocks = lane_blocks(interleaved, args.n_items, args.n_channels);
  const int64_t elements = args.n_items * args.n_channels * args.n_pixels;
  if (args.n_items * args.n_groups == 0) return nullptr;
  dispatch_norm(args.type, interleaved, args.n_pixels, {args.x, args.skip, args.out}, [&](auto types, auto layout, auto width) {
    using T = typename decltype(types)::Element;
    constexpr bool kInterleaved = decltype(layout)::value;
    constexpr int n = decltype(width)::value;
    if (blocks > 0) launch(moments_kernel<T, kInterleaved>, one_block_each(blocks), stream, args, blocks);
    launch(statistics_kernel, blocks_for(args.n_items * args.n_groups), stream, args);
    if (elements > 0) launch(forward_kernel<T, kInterleaved, n>, blocks_for(elements / n), stream, args);
  });
  return last_error();
}

const char* group_norm_silu_bwd(const GroupNormBwdArgs& args, const GroupNormParameterArgs& parameters,
                                bool interleaved, void* stream) {
  const int64_t blocks = lane_blocks(interleaved, args.n_items, args.n_channels);
  const int64_t elements = args.n_items * args.n_channels * args.n_pixels;
  if (blocks == 0) return nullptr;
  dispatch_norm(args.type, interleaved, args.n_pixels, {args.x, args.skip, args.grad_out, args.grad_x, args.grad_skip},
                [&](auto types, auto layout, auto width) {
                  using T = typename decltype(types)::Element;
                  constexpr bool kInterleaved = decltype(layout)::value;
                  constexpr int n = decltype(width)::value;
                  launch(gradient_sums_kernel<T, kInterleaved>, one_block_each(blocks), stream, args, blocks);
                  launch(gradient_maps_kernel, blocks_for(args.n_items * args.n_groups), stream, args);
                  if (elements > 0) {
                    launch(backward_kernel<T, kInterleaved, n>, blocks_for(elements / n), stream, args);
                  }
                });
  launch(parameters_kernel, blocks_for(args.n_channels), stream, parameters);
  return last_error();
}

}  // namespace msf::cuda

#include "launch.cuh"
#include "launchers.h"

namespace msf::cuda {
namespace {

constexpr int kPixelsPerThread = kPixelChunk / kThreads;
constexpr int kChannelTile = 16;  // channels whose gradients a thread holds at once

template <typename C, typename T>
__device__ C distance_to(const T* pixel, int64_t channel_stride, const C* code, int64_t n_channels) {
  C squared = 0;
  for (int64_t k = 0; k < n_channels; ++k) {
    C value;
    assign(value, pixel[k * channel_stride]);
    squared = with_channel(squared, value, code[k]);
  }
  return square_root(squared);
}

template <typename C, typename T>
__global__ void __launch_bounds__(kThreads) distance_kernel(ClassDistanceArgs args) {
  __shared__ double shared[kThreads / 32];
  const C* codes = static_cast<const C*>(args.codes);
  for (int64_t task = blockIdx.x; task < args.n_items * pixel_chunks(args.n_pixels); task += gridDim.x) {
    const PixelRange chunk = pixels_of(task, args.n_pixels);
    const T* map = static_cast<const T*>(args.semantic) + chunk.item * args.strides.item;
    int32_t* votes = args.chunk_votes + task * args.n_classes;
    C smallest[kPixelsPerThread];
    int32_t nearest[kPixelsPerThread] = {};
    MSF_UNROLL
    for (int j = 0; j < kPixelsPerThread; ++j) smallest[j] = static_cast<C>(__builtin_huge_valf());
    for (int64_t c = 0; c < args.n_classes; ++c) {
      double total = 0;
      MSF_UNROLL
      for (int j = 0; j < kPixelsPerThread; ++j) {
        const int64_t pixel = chunk.begin + threadIdx.x + j * kThreads;
        if (pixel < chunk.end) {
          const C distance =
              distance_to(map + pixel * args.strides.pixel, args.strides.channel, codes + c * args.n_channels,
                          args.n_channels);
          total += distance;
          compare(distance, static_cast<int32_t>(c), smallest[j], nearest[j]);
        }
      }
      total = block_sum(total, shared);
      if (threadIdx.x == 0) {
        args.chunk_sums[task * args.n_classes + c] = total;
        votes[c] = 0;
      }
    }
    __syncthreads();
    // Only this block adds to these counters, and integers may be added in any order.
    MSF_UNROLL
    for (int j = 0; j < kPixelsPerThread; ++j) {
      if (chunk.begin + threadIdx.x + j * kThreads < chunk.end) atomicAdd(votes + nearest[j], 1);
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) merge_kernel(ClassDistanceArgs args) {
  for (int64_t entry = first_piece(); entry < args.n_items * args.n_classes; entry += piece_stride()) {
    merge_chunks<C>(args, entry);
  }
}

// One thread per pixel.
template <typename C, typename T>
__global__ void __launch_bounds__(kThreads, 1) grad_semantic_kernel(ClassDistanceBwdArgs args) {
  const C* codes = static_cast<const C*>(args.codes);
  for (int64_t i = first_piece(); i < args.n_items * args.n_pixels; i += piece_stride()) {
    const int64_t item = i / args.n_pixels, pixel = i % args.n_pixels;
    const T* from = static_cast<const T*>(args.semantic) + item * args.strides.item + pixel * args.strides.pixel;
    T* to = static_cast<T*>(args.grad_semantic) + item * args.grad_strides.item + pixel * args.grad_strides.pixel;
    const C* grad_distance = static_cast<const C*>(args.grad_distance) + item * args.n_classes;
    for (int64_t tile = 0; tile < args.n_channels; tile += kChannelTile) {
      C values[kChannelTile] = {}, grads[kChannelTile] = {};
      MSF_UNROLL
      for (int k = 0; k < kChannelTile; ++k) {
        if (tile + k < args.n_channels) assign(values[k], from[(tile + k) * args.strides.channel]);
      }
      for (int64_t c = 0; c < args.n_classes; ++c) {
        const C* code = codes + c * args.n_channels;
        const C distance = distance_to(from, args.strides.channel, code, args.n_channels);
        const C factor = gradient_factor(grad_distance[c] / static_cast<C>(args.n_pixels), distance);
        MSF_UNROLL
        for (int k = 0; k < kChannelTile; ++k) {
          if (tile + k < args.n_channels) grads[k] = with_class(grads[k], factor, values[k], code[tile + k]);
        }
      }
      MSF_UNROLL
      for (int k = 0; k < kChannelTile; ++k) {
        if (tile + k < args.n_channels) assign(to[(tile + k) * args.grad_strides.channel], grads[k]);
      }
    }
  }
}

// One block per chunk of pixels and class.
template <typename C, typename T>
__global__ void __launch_bounds__(kThreads) grad_codes_kernel(ClassDistanceBwdArgs args) {
  __shared__ double shared[kThreads / 32];
  const int64_t tasks = args.n_items * pixel_chunks(args.n_pixels);
  for (int64_t block = blockIdx.x; block < tasks * args.n_classes; block += gridDim.x) {
    const int64_t task = block / args.n_classes, c = block % args.n_classes;
    const PixelRange chunk = pixels_of(task, args.n_pixels);
    const T* map = static_cast<const T*>(args.semantic) + chunk.item * args.strides.item;
    const C* code = static_cast<const C*>(args.codes) + c * args.n_channels;
    const C mean_grad = static_cast<const C*>(args.grad_distance)[chunk.item * args.n_classes + c] /
                        static_cast<C>(args.n_pixels);
    for (int64_t tile = 0; tile < args.n_channels; tile += kChannelTile) {
      double totals[kChannelTile] = {};
      for (int64_t pixel = chunk.begin + threadIdx.x; pixel < chunk.end; pixel += kThreads) {
        const T* from = map + pixel * args.strides.pixel;
        const C distance = distance_to(from, args.strides.channel, code, args.n_channels);
        const C factor = gradient_factor(mean_grad, distance);
        MSF_UNROLL
        for (int k = 0; k < kChannelTile; ++k) {
          if (tile + k < args.n_channels) {
            C value;
            assign(value, from[(tile + k) * args.strides.channel]);
            totals[k] -= code_share(factor, value, code[tile + k]);
          }
        }
      }
      MSF_UNROLL
      for (int k = 0; k < kChannelTile; ++k) {
        if (tile + k < args.n_channels) {
          const double total = block_sum(totals[k], shared);
          if (threadIdx.x == 0) {
            args.chunk_grad_codes[(task * args.n_classes + c) * args.n_channels + tile + k] = total;
          }
        }
      }
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) merge_grad_codes_kernel(ClassDistanceBwdArgs args) {
  const int64_t entries = args.n_classes * args.n_channels;
  for (int64_t entry = first_piece(); entry < entries; entry += piece_stride()) merge_code_gradients<C>(args, entry);
}

unsigned one_block_each(int64_t tasks) { return static_cast<unsigned>(tasks < kMaxBlocks ? tasks : kMaxBlocks); }

}  // namespace

const char* class_distance(const ClassDistanceArgs& args, void* stream) {
  const int64_t tasks = args.n_items * pixel_chunks(args.n_pixels);
  dispatch(args.semantic_type, [&](auto types) {
    using Type = decltype(types);
    using C = typename Type::Compute;
    launch(distance_kernel<C, typename Type::Element>, one_block_each(tasks), stream, args);
    launch(merge_kernel<C>, blocks_for(args.n_items * args.n_classes), stream, args);
  });
  return last_error();
}

const char* class_distance_bwd(const ClassDistanceBwdArgs& args, void* stream) {
  const int64_t tasks = args.n_items * pixel_chunks(args.n_pixels);
  const int64_t entries = args.n_classes * args.n_channels;
  dispatch(args.semantic_type, [&](auto types) {
    using Type = decltype(types);
    using C = typename Type::Compute;
    using T = typename Type::Element;
    if (args.n_items > 0 && args.n_channels > 0) {
      launch(grad_semantic_kernel<C, T>, blocks_for(args.n_items * args.n_pixels), stream, args);
    }
    if (args.grad_codes != nullptr && entries > 0) {
      if (tasks > 0) {
        launch(grad_codes_kernel<C, T>, one_block_each(tasks * args.n_classes), stream, args);
      }
      launch(merge_grad_codes_kernel<C>, blocks_for(entries), stream, args);
    }
  });
  return last_error();
}

}  // namespace msf::cuda

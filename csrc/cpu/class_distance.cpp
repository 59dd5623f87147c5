#include "kernels.h"
#include "lanes.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

// What a block of pixels needs stays in the first two cache levels.
constexpr int64_t kBlock = 512;
constexpr int64_t kPlaneValues = 16384;

int64_t block_size(int64_t n_channels) {
  const int64_t fitting = kPlaneValues / (n_channels > 1 ? n_channels : 1) / kLanes * kLanes;
  return fitting < kBlock ? fitting : kBlock;
}

// A block of pixels as C, channel after channel.
template <typename C>
struct Planes {
  C values[kPlaneValues];
  int64_t stride;

  const C* channel(int64_t k) const { return values + k * stride; }

  template <typename T>
  void load(const T* map, const MapStrides& strides, int64_t n_channels, int64_t n) {
    for (int64_t k = 0; k < n_channels; ++k) {
      const T* from = map + k * strides.channel;
      C* to = values + k * stride;
      for (int64_t i = 0; i < n; ++i) assign(to[i], from[i * strides.pixel]);
    }
  }
};

// Calls f(i, lane, d) with the distance d of pixel i to the code; kChannels is 0 where it is not known.
template <int kChannels, typename C, typename F>
inline __attribute__((always_inline)) void for_each_distance_to(const Planes<C>& planes, const C* code,
                                                                int64_t n_channels, int64_t n, F&& f) {
  if constexpr (kChannels > 0) {
    for_each_lane(n, [&](int64_t i, int lane) {
      C squared = 0;
      for (int k = 0; k < kChannels; ++k) squared = with_channel(squared, planes.channel(k)[i], code[k]);
      f(i, lane, square_root(squared));
    });
  } else {
    C squared[kBlock];
    for (int64_t i = 0; i < n; ++i) squared[i] = 0;
    for (int64_t k = 0; k < n_channels; ++k) {
      const C* value = planes.channel(k);
      const C target = code[k];
      for (int64_t i = 0; i < n; ++i) squared[i] = with_channel(squared[i], value[i], target);
    }
    for_each_lane(n, [&](int64_t i, int lane) { f(i, lane, square_root(squared[i])); });
  }
}

template <typename C, typename F>
inline __attribute__((always_inline)) void for_each_distance(const Planes<C>& planes, const C* code,
                                                             int64_t n_channels, int64_t n, F&& f) {
  switch (n_channels) {
    case 1:
      return for_each_distance_to<1>(planes, code, n_channels, n, f);
    case 2:
      return for_each_distance_to<2>(planes, code, n_channels, n, f);
    case 3:
      return for_each_distance_to<3>(planes, code, n_channels, n, f);
    case 4:
      return for_each_distance_to<4>(planes, code, n_channels, n, f);
    default:
      return for_each_distance_to<0>(planes, code, n_channels, n, f);
  }
}

template <typename C, typename T>
void forward_chunk(const ClassDistanceArgs& args, int64_t task) {
  const auto [item, begin, end] = pixels_of(task, args.n_pixels);
  const T* map = static_cast<const T*>(args.semantic) + item * args.strides.item;
  const C* codes = static_cast<const C*>(args.codes);
  double* sums = args.chunk_sums + task * args.n_classes;
  int32_t* votes = args.chunk_votes + task * args.n_classes;
  for (int64_t c = 0; c < args.n_classes; ++c) {
    sums[c] = 0;
    votes[c] = 0;
  }

  Planes<C> planes;
  planes.stride = block_size(args.n_channels);
  C smallest[kBlock];
  int32_t nearest[kBlock];
  for (int64_t start = begin; start < end; start += planes.stride) {
    const int64_t n = start + planes.stride < end ? planes.stride : end - start;
    planes.load(map + start * args.strides.pixel, args.strides, args.n_channels, n);
    for (int64_t i = 0; i < n; ++i) {
      smallest[i] = static_cast<C>(__builtin_inff());
      nearest[i] = 0;
    }
    for (int64_t c = 0; c < args.n_classes; ++c) {
      C lanes[kLanes] = {};
      for_each_distance(planes, codes + c * args.n_channels, args.n_channels, n, [&](int64_t i, int lane, C distance) {
        lanes[lane] += distance;
        compare(distance, static_cast<int32_t>(c), smallest[i], nearest[i]);
      });
      sums[c] += sum_of_lanes(lanes);
    }
    for (int64_t c = 0; c < args.n_classes; ++c) {
      int32_t count = 0;
      for (int64_t i = 0; i < n; ++i) count += nearest[i] == static_cast<int32_t>(c);
      votes[c] += count;
    }
  }
}

template <typename C, typename T>
void backward_chunk(const ClassDistanceBwdArgs& args, int64_t task) {
  const auto [item, begin, end] = pixels_of(task, args.n_pixels);
  const T* map = static_cast<const T*>(args.semantic) + item * args.strides.item;
  T* grad_map = static_cast<T*>(args.grad_semantic) + item * args.grad_strides.item;
  const C* codes = static_cast<const C*>(args.codes);
  const C* grad_distance = static_cast<const C*>(args.grad_distance) + item * args.n_classes;
  double* grad_codes = nullptr;
  if (args.chunk_grad_codes != nullptr) {
    grad_codes = args.chunk_grad_codes + task * args.n_classes * args.n_channels;
    for (int64_t i = 0; i < args.n_classes * args.n_channels; ++i) grad_codes[i] = 0;
  }

  Planes<C> planes, grads;
  planes.stride = grads.stride = block_size(args.n_channels);
  C factor[kBlock];
  for (int64_t start = begin; start < end; start += planes.stride) {
    const int64_t n = start + planes.stride < end ? planes.stride : end - start;
    planes.load(map + start * args.strides.pixel, args.strides, args.n_channels, n);
    for (int64_t i = 0; i < args.n_channels * grads.stride; ++i) grads.values[i] = 0;
    for (int64_t c = 0; c < args.n_classes; ++c) {
      const C* code = codes + c * args.n_channels;
      const C mean_grad = grad_distance[c] / static_cast<C>(args.n_pixels);
      for_each_distance(planes, code, args.n_channels, n, [&](int64_t i, int, C distance) {
        factor[i] = gradient_factor(mean_grad, distance);
      });
      for (int64_t k = 0; k < args.n_channels; ++k) {
        const C* value = planes.channel(k);
        C* grad = grads.values + k * grads.stride;
        const C target = code[k];
        for (int64_t i = 0; i < n; ++i) grad[i] = with_class(grad[i], factor[i], value[i], target);
        if (grad_codes != nullptr) {
          grad_codes[c * args.n_channels + k] -=
              sum<C>(n, [&](int64_t i) { return code_share(factor[i], value[i], target); });
        }
      }
    }
    for (int64_t k = 0; k < args.n_channels; ++k) {
      T* to = grad_map + k * args.grad_strides.channel + start * args.grad_strides.pixel;
      const C* grad = grads.channel(k);
      for (int64_t i = 0; i < n; ++i) assign(to[i * args.grad_strides.pixel], grad[i]);
    }
  }
}

}  // namespace

void class_distance(const ClassDistanceArgs& args, int64_t begin, int64_t end) {
  dispatch(args.semantic_type, [&](auto types) {
    using Type = decltype(types);
    for (int64_t task = begin; task < end; ++task) {
      forward_chunk<typename Type::Compute, typename Type::Element>(args, task);
    }
  });
}

void class_distance_merge(const ClassDistanceArgs& args, int64_t begin, int64_t end) {
  dispatch(args.semantic_type, [&](auto types) {
    using C = typename decltype(types)::Compute;
    for (int64_t entry = begin * args.n_classes; entry < end * args.n_classes; ++entry) merge_chunks<C>(args, entry);
  });
}

void class_distance_bwd(const ClassDistanceBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.semantic_type, [&](auto types) {
    using Type = decltype(types);
    for (int64_t task = begin; task < end; ++task) {
      backward_chunk<typename Type::Compute, typename Type::Element>(args, task);
    }
  });
}

void class_distance_bwd_merge(const ClassDistanceBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.semantic_type, [&](auto types) {
    using C = typename decltype(types)::Compute;
    for (int64_t entry = begin; entry < end; ++entry) merge_code_gradients<C>(args, entry);
  });
}

}  // namespace msf::cpu::MSF_LEVEL

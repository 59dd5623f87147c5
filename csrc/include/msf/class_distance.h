// L2 distance of every pixel to every class code: its mean per class, and how many pixels are nearest to each class.
#pragma once

#include "msf/maps.h"
#include "msf/math.h"

namespace msf {

// Pixels are summed in chunks of this many, and the chunks in order: the same sum whatever the threads do.
constexpr int64_t kPixelChunk = 8192;

MSF_HOST_DEVICE int64_t pixel_chunks(int64_t n_pixels) { return (n_pixels + kPixelChunk - 1) / kPixelChunk; }

// The pixels of one item that are task number `task`, of all items' chunks one after another.
struct PixelRange {
  int64_t item, begin, end;
};

MSF_HOST_DEVICE PixelRange pixels_of(int64_t task, int64_t n_pixels) {
  const int64_t chunks = pixel_chunks(n_pixels);
  const int64_t begin = task % chunks * kPixelChunk;
  return {task / chunks, begin, begin + kPixelChunk < n_pixels ? begin + kPixelChunk : n_pixels};
}

// A squared distance with the share of one more channel; the distance is its square root.
template <typename C>
MSF_HOST_DEVICE C with_channel(C squared, C value, C target) {
  const C difference = value - target;
  return multiply_add(difference, difference, squared);
}

// Takes class `c` if it is nearer than those before it, so that ties go to the lowest class. Before any, the smallest
// distance is infinite and the nearest class 0.
template <typename C>
MSF_HOST_DEVICE void compare(C distance, int32_t c, C& smallest, int32_t& nearest) {
  const bool is_nearer = distance < smallest;
  smallest = is_nearer ? distance : smallest;
  nearest = is_nearer ? c : nearest;
}

// The gradient of the mean distance to a class over the distance of one pixel; zero on the code itself. `mean_grad` is
// the gradient of the mean over the number of pixels.
template <typename C>
MSF_HOST_DEVICE C gradient_factor(C mean_grad, C distance) {
  return distance > 0 ? mean_grad / distance : C(0);
}

// A channel's gradient with the share of one more class.
template <typename C>
MSF_HOST_DEVICE C with_class(C grad, C factor, C value, C target) {
  return multiply_add(factor, value - target, grad);
}

// What a pixel takes from the gradient of a code's channel.
template <typename C>
MSF_HOST_DEVICE C code_share(C factor, C value, C target) {
  return factor * (value - target);
}

// C is the type of the arithmetic: double for a float64 map, else float.
struct ClassDistanceArgs {
  const void* semantic;  // [N, K, H, W]
  Scalar semantic_type;
  MapStrides strides;
  const void* codes;   // C [n_classes, K], contiguous
  void* distance;      // C [N, n_classes]
  void* votes;         // C [N, n_classes]
  double* chunk_sums;  // [N, chunks, n_classes]
  int32_t* chunk_votes;  // [N, chunks, n_classes]
  int64_t n_items, n_channels, n_classes, n_pixels;
};

struct ClassDistanceBwdArgs {
  const void* semantic;
  Scalar semantic_type;
  MapStrides strides;
  const void* codes;          // C [n_classes, K], contiguous
  const void* grad_distance;  // C [N, n_classes], contiguous
  void* grad_semantic;        // as semantic
  MapStrides grad_strides;
  double* chunk_grad_codes;  // [N, chunks, n_classes, K], or null: without the gradient of the codes
  void* grad_codes;          // C [n_classes, K], or null
  int64_t n_items, n_channels, n_classes, n_pixels;
};

// Entry item * n_classes + c of the results, from the chunks in their order.
template <typename C>
MSF_HOST_DEVICE void merge_chunks(const ClassDistanceArgs& args, int64_t entry) {
  const int64_t chunks = pixel_chunks(args.n_pixels);
  const int64_t item = entry / args.n_classes, c = entry % args.n_classes;
  double distance = 0, votes = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t at = (item * chunks + chunk) * args.n_classes + c;
    distance += args.chunk_sums[at];
    votes += args.chunk_votes[at];
  }
  static_cast<C*>(args.distance)[entry] = static_cast<C>(distance / static_cast<double>(args.n_pixels));
  static_cast<C*>(args.votes)[entry] = static_cast<C>(votes / static_cast<double>(args.n_pixels));
}

// Entry c * n_channels + k of the gradient of the codes, from all items' chunks in their order.
template <typename C>
MSF_HOST_DEVICE void merge_code_gradients(const ClassDistanceBwdArgs& args, int64_t entry) {
  const int64_t parts = args.n_items * pixel_chunks(args.n_pixels);
  const int64_t entries = args.n_classes * args.n_channels;
  double total = 0;
  for (int64_t part = 0; part < parts; ++part) total += args.chunk_grad_codes[part * entries + entry];
  static_cast<C*>(args.grad_codes)[entry] = static_cast<C>(total);
}

}  // namespace msf

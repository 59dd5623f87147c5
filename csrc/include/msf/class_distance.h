// L2 distance of every pixel to every class code: its mean per class, and how many pixels are nearest to each class.
#pragma once

#include "msf/maps.h"
#include "msf/math.h"

namespace msf {

// Pixels are summed in chunks of this many, and the chunks in order: the same sum whatever the threads do.
constexpr int64_t kPixelChunk = 8192;

MSF_HOST_DEVICE int64_t pixel_chunks(int64_t n_pixels) { return (n_pixels + kPixelChunk - 1) / kPixelChunk; }

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

}  // namespace msf

// A point of the symmetric path and the velocity there; image and semantic streams run in opposite directions.
#pragma once

#include "msf/maps.h"
#include "msf/philox.h"

namespace msf {

constexpr int64_t kImageStream = 0;
constexpr int64_t kSemanticStream = 1;

// `keep` is 1 - sigma_min.
template <typename C>
MSF_HOST_DEVICE void image_point(C noise, C image, C t, C keep, C& z, C& dz) {
  z = multiply_add(1 - keep * t, noise, t * image);
  dz = multiply_add(-keep, noise, image);
}

template <typename C>
MSF_HOST_DEVICE void semantic_point(C noise, C semantic, C t, C keep, C& z, C& dz) {
  z = multiply_add(1 - keep * t, semantic, t * noise);
  dz = multiply_add(-keep, semantic, noise);
}

// Gradients with respect to the image and the semantic map, from those of z and dz.
template <typename C>
MSF_HOST_DEVICE C image_gradient(C grad_z, C grad_dz, C t, C) {
  return multiply_add(t, grad_z, grad_dz);
}

template <typename C>
MSF_HOST_DEVICE C semantic_gradient(C grad_z, C grad_dz, C t, C keep) {
  return multiply_add(1 - keep * t, grad_z, -keep * grad_dz);
}

struct SymmetricPathArgs {
  const void* image;     // [N, C, H, W]
  const void* semantic;  // [N, K, H, W]
  void* z;               // [N, C + K, H, W]
  void* dz;              // as z
  Scalar type;           // of all four; float64 computes in double, everything else in float
  MapStrides image_strides, semantic_strides, out_strides;
  const void* t;  // [N, n_times], n_times 1 or 2
  Scalar t_type;
  int32_t n_times;
  const int64_t* sample_index;  // [N]
  int64_t seed;
  double keep;
  int64_t n_items, image_channels, semantic_channels, n_pixels;
};

struct SymmetricPathBwdArgs {
  const void* grad_z;   // [N, C + K, H, W]
  const void* grad_dz;  // as grad_z
  void* grad_image;     // [N, C, H, W]
  void* grad_semantic;  // [N, K, H, W]
  Scalar type;          // of all four; float64 computes in double, everything else in float
  MapStrides z_strides, dz_strides, image_strides, semantic_strides;
  const void* t;  // [N, n_times], n_times 1 or 2
  Scalar t_type;
  int32_t n_times;
  double keep;
  int64_t n_items, image_channels, semantic_channels, n_pixels;
};

// The time of the image stream or of the semantic stream.
template <typename Args>
MSF_HOST_DEVICE double stream_time(const Args& args, int64_t item, bool is_image) {
  return read(args.t, args.t_type, item * args.n_times + (is_image ? 0 : args.n_times - 1));
}

}  // namespace msf

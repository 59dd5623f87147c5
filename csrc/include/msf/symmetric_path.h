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
  z = (1 - keep * t) * noise + t * image;
  dz = image - keep * noise;
}

template <typename C>
MSF_HOST_DEVICE void semantic_point(C noise, C semantic, C t, C keep, C& z, C& dz) {
  z = (1 - keep * t) * semantic + t * noise;
  dz = noise - keep * semantic;
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

}  // namespace msf

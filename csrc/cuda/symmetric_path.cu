#include "launch.cuh"
#include "launchers.h"

namespace msf::cuda {
namespace {

// Four positions of one stream of one item: one counter. In packs where pixels are next to each other and fill packs.
template <bool kIsImage, bool kIsPacked, typename C, typename T>
__device__ void four_points(const SymmetricPathArgs& args, int64_t item, int64_t position) {
  const int64_t channels = kIsImage ? args.image_channels : args.semantic_channels;
  const int64_t first_channel = kIsImage ? 0 : args.image_channels;
  const MapStrides& strides = kIsImage ? args.image_strides : args.semantic_strides;
  const T* from = static_cast<const T*>(kIsImage ? args.image : args.semantic) + item * strides.item;
  T* z = static_cast<T*>(args.z) + item * args.out_strides.item;
  T* dz = static_cast<T*>(args.dz) + item * args.out_strides.item;
  const C t = static_cast<C>(stream_time(args, item, kIsImage));
  const C keep = static_cast<C>(args.keep);
  float noise[4];
  four_normals(noise_key(args.seed, kIsImage ? kImageStream : kSemanticStream, args.sample_index[item]),
               static_cast<uint32_t>(position / 4), noise[0], noise[1], noise[2], noise[3]);

  const auto point = [&](float normal, T element, T& z_element, T& dz_element) {
    C value, z_value, dz_value;
    assign(value, element);
    if constexpr (kIsImage) {
      image_point<C>(normal, value, t, keep, z_value, dz_value);
    } else {
      semantic_point<C>(normal, value, t, keep, z_value, dz_value);
    }
    assign(z_element, z_value);
    assign(dz_element, dz_value);
  };

  if constexpr (kIsPacked) {
    const int64_t channel = position / args.n_pixels, pixel = position % args.n_pixels;
    const int64_t out = (first_channel + channel) * args.out_strides.channel + pixel;
    const Pack<T, 4> elements = load_pack<T, 4>(from + channel * strides.channel + pixel);
    Pack<T, 4> z_elements, dz_elements;
    MSF_UNROLL
    for (int i = 0; i < 4; ++i) point(noise[i], elements.values[i], z_elements.values[i], dz_elements.values[i]);
    store_pack<T, 4>(z + out, z_elements);
    store_pack<T, 4>(dz + out, dz_elements);
  } else {
    MSF_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (position + i >= channels * args.n_pixels) return;
      const int64_t channel = (position + i) / args.n_pixels, pixel = (position + i) % args.n_pixels;
      const int64_t out = (first_channel + channel) * args.out_strides.channel + pixel * args.out_strides.pixel;
      point(noise[i], from[channel * strides.channel + pixel * strides.pixel], z[out], dz[out]);
    }
  }
}

template <bool kIsPacked, typename C, typename T>
__global__ void __launch_bounds__(kThreads) path_kernel(SymmetricPathArgs args) {
  const int64_t image_pieces = (args.image_channels * args.n_pixels + 3) / 4;
  const int64_t item_pieces = image_pieces + (args.semantic_channels * args.n_pixels + 3) / 4;
  for (int64_t piece = first_piece(); piece < args.n_items * item_pieces; piece += piece_stride()) {
    const int64_t item = piece / item_pieces;
    const int64_t within = piece % item_pieces;
    if (within < image_pieces) {
      four_points<true, kIsPacked, C, T>(args, item, 4 * within);
    } else {
      four_points<false, kIsPacked, C, T>(args, item, 4 * (within - image_pieces));
    }
  }
}

template <typename C, typename T>
__global__ void __launch_bounds__(kThreads) path_bwd_kernel(SymmetricPathBwdArgs args) {
  const int64_t channels = args.image_channels + args.semantic_channels;
  for (int64_t i = first_piece(); i < args.n_items * channels * args.n_pixels; i += piece_stride()) {
    const int64_t pixel = i % args.n_pixels;
    const int64_t channel = i / args.n_pixels % channels;
    const int64_t item = i / args.n_pixels / channels;
    const bool is_image = channel < args.image_channels;
    const MapStrides& strides = is_image ? args.image_strides : args.semantic_strides;
    const int64_t to_channel = is_image ? channel : channel - args.image_channels;
    T* to = static_cast<T*>(is_image ? args.grad_image : args.grad_semantic);
    C grad_z, grad_dz;
    assign(grad_z, static_cast<const T*>(args.grad_z)[item * args.z_strides.item + channel * args.z_strides.channel +
                                                      pixel * args.z_strides.pixel]);
    assign(grad_dz, static_cast<const T*>(args.grad_dz)[item * args.dz_strides.item +
                                                        channel * args.dz_strides.channel +
                                                        pixel * args.dz_strides.pixel]);
    const C t = static_cast<C>(stream_time(args, item, is_image));
    const C keep = static_cast<C>(args.keep);
    assign(to[item * strides.item + to_channel * strides.channel + pixel * strides.pixel],
           is_image ? image_gradient(grad_z, grad_dz, t, keep) : semantic_gradient(grad_z, grad_dz, t, keep));
  }
}

bool is_packable(const MapStrides& strides, const void* data) {
  return strides.pixel == 1 && strides.item % 4 == 0 && strides.channel % 4 == 0 && is_aligned(data);
}

}  // namespace

const char* symmetric_path(const SymmetricPathArgs& args, void* stream) {
  const bool is_packed = args.n_pixels % 4 == 0 && is_packable(args.image_strides, args.image) &&
                         is_packable(args.semantic_strides, args.semantic) &&
                         is_packable(args.out_strides, args.z) && is_packable(args.out_strides, args.dz);
  const int64_t pieces = args.n_items * ((args.image_channels * args.n_pixels + 3) / 4 +
                                         (args.semantic_channels * args.n_pixels + 3) / 4);
  dispatch(args.type, [&](auto types) {
    using Type = decltype(types);
    auto* kernel = is_packed ? path_kernel<true, typename Type::Compute, typename Type::Element>
                             : path_kernel<false, typename Type::Compute, typename Type::Element>;
    launch(kernel, blocks_for(pieces), stream, args);
  });
  return last_error();
}

const char* symmetric_path_bwd(const SymmetricPathBwdArgs& args, void* stream) {
  const int64_t pieces = args.n_items * (args.image_channels + args.semantic_channels) * args.n_pixels;
  dispatch(args.type, [&](auto types) {
    using Type = decltype(types);
    launch(path_bwd_kernel<typename Type::Compute, typename Type::Element>, blocks_for(pieces), stream, args);
  });
  return last_error();
}

}  // namespace msf::cuda

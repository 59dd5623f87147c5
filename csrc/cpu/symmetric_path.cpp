#include "kernels.h"
#include "noise.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

// Positions [start, start + n) of one stream of one item, all in one channel.
template <bool kIsImage, typename C, typename T>
void points(const float* noise, const T* from, int64_t from_stride, C t, C keep, T* z, T* dz, int64_t out_stride,
            int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    C value, z_value, dz_value;
    assign(value, from[i * from_stride]);
    if constexpr (kIsImage) {
      image_point<C>(noise[i], value, t, keep, z_value, dz_value);
    } else {
      semantic_point<C>(noise[i], value, t, keep, z_value, dz_value);
    }
    assign(z[i * out_stride], z_value);
    assign(dz[i * out_stride], dz_value);
  }
}

template <bool kIsImage, typename C, typename T>
void stream_run(const SymmetricPathArgs& args, int64_t item, int64_t run) {
  const int64_t channels = kIsImage ? args.image_channels : args.semantic_channels;
  const int64_t first_channel = kIsImage ? 0 : args.image_channels;
  const MapStrides& from_strides = kIsImage ? args.image_strides : args.semantic_strides;
  const T* from = static_cast<const T*>(kIsImage ? args.image : args.semantic) + item * from_strides.item;
  T* z = static_cast<T*>(args.z) + item * args.out_strides.item;
  T* dz = static_cast<T*>(args.dz) + item * args.out_strides.item;

  const double t = stream_time(args, item, kIsImage);
  const int64_t begin = run * kNoiseRun;
  const int64_t size = channels * args.n_pixels;
  const int64_t end = begin + kNoiseRun < size ? begin + kNoiseRun : size;
  float noise[kNoiseRun];
  fill_normals(noise_key(args.seed, kIsImage ? kImageStream : kSemanticStream, args.sample_index[item]),
               static_cast<uint32_t>(begin / 4), (end - begin + 3) / 4, noise);
  for (int64_t start = begin; start < end;) {
    const int64_t channel = start / args.n_pixels;
    const int64_t pixel = start % args.n_pixels;
    const int64_t left_in_channel = args.n_pixels - pixel;
    const int64_t n = end - start < left_in_channel ? end - start : left_in_channel;
    const int64_t out = (first_channel + channel) * args.out_strides.channel + pixel * args.out_strides.pixel;
    points<kIsImage, C, T>(noise + (start - begin), from + channel * from_strides.channel + pixel * from_strides.pixel,
                           from_strides.pixel, static_cast<C>(t), static_cast<C>(args.keep), z + out, dz + out,
                           args.out_strides.pixel, n);
    start += n;
  }
}

template <typename C, typename T>
void path(const SymmetricPathArgs& args, int64_t begin, int64_t end) {
  const int64_t image_runs = noise_runs(args.image_channels * args.n_pixels);
  const int64_t semantic_runs = noise_runs(args.semantic_channels * args.n_pixels);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t item = i / (image_runs + semantic_runs);
    const int64_t run = i % (image_runs + semantic_runs);
    if (run < image_runs) {
      stream_run<true, C, T>(args, item, run);
    } else {
      stream_run<false, C, T>(args, item, run - image_runs);
    }
  }
}

template <typename C, typename T>
void path_bwd(const SymmetricPathBwdArgs& args, int64_t begin, int64_t end) {
  const int64_t channels = args.image_channels + args.semantic_channels;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t item = i / channels;
    const int64_t channel = i % channels;
    const bool is_image = channel < args.image_channels;
    const MapStrides& to_strides = is_image ? args.image_strides : args.semantic_strides;
    const int64_t to_channel = is_image ? channel : channel - args.image_channels;
    const T* z = static_cast<const T*>(args.grad_z) + item * args.z_strides.item + channel * args.z_strides.channel;
    const T* dz = static_cast<const T*>(args.grad_dz) + item * args.dz_strides.item + channel * args.dz_strides.channel;
    T* to = static_cast<T*>(is_image ? args.grad_image : args.grad_semantic) + item * to_strides.item +
            to_channel * to_strides.channel;
    const C t = static_cast<C>(stream_time(args, item, is_image));
    const C keep = static_cast<C>(args.keep);
    for (int64_t p = 0; p < args.n_pixels; ++p) {
      C grad_z, grad_dz;
      assign(grad_z, z[p * args.z_strides.pixel]);
      assign(grad_dz, dz[p * args.dz_strides.pixel]);
      const C grad = is_image ? image_gradient(grad_z, grad_dz, t, keep) : semantic_gradient(grad_z, grad_dz, t, keep);
      assign(to[p * to_strides.pixel], grad);
    }
  }
}

}  // namespace

void symmetric_path_bwd(const SymmetricPathBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using Type = decltype(types);
    path_bwd<typename Type::Compute, typename Type::Element>(args, begin, end);
  });
}

void symmetric_path(const SymmetricPathArgs& args, int64_t begin, int64_t end) {
  dispatch(args.type, [&](auto types) {
    using Type = decltype(types);
    path<typename Type::Compute, typename Type::Element>(args, begin, end);
  });
}

}  // namespace msf::cpu::MSF_LEVEL

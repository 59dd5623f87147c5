#include "operators.h"
#include "run.h"

namespace msf {

std::tuple<Tensor, Tensor> symmetric_path_fwd(const Tensor& image, const Tensor& semantic, const Tensor& t,
                                              const Tensor& sample_index, int64_t seed, double sigma_min) {
  SymmetricPathArgs args{};
  args.n_items = image.size(0);
  args.image_channels = image.size(1);
  args.semantic_channels = semantic.size(1);
  args.n_pixels = image.size(2) * image.size(3);
  const std::vector<int64_t> sizes{args.n_items, args.image_channels + args.semantic_channels, image.size(2),
                                   image.size(3)};
  const bool channels_last = is_channels_last(image) || is_channels_last(semantic);
  Tensor z = empty(image, sizes, image.scalar_type(), channels_last);
  Tensor dz = empty(image, sizes, image.scalar_type(), channels_last);
  if (z.numel() == 0) return {z, dz};

  const Tensor dense_image = has_pixel_stride(image) ? image : torch::stable::contiguous(image);
  const Tensor dense_semantic = has_pixel_stride(semantic) ? semantic : torch::stable::contiguous(semantic);
  const Tensor dense_t = torch::stable::contiguous(t);
  const Tensor dense_index = torch::stable::contiguous(sample_index);
  args.image = dense_image.const_data_ptr();
  args.semantic = dense_semantic.const_data_ptr();
  args.z = z.mutable_data_ptr();
  args.dz = dz.mutable_data_ptr();
  args.type = scalar_of(image, "image");
  args.image_strides = map_strides(dense_image);
  args.semantic_strides = map_strides(dense_semantic);
  args.out_strides = map_strides(z);
  args.t = dense_t.const_data_ptr();
  args.t_type = scalar_of(t, "t");
  args.n_times = t.dim() == 2 ? 2 : 1;
  args.sample_index = dense_index.const_data_ptr<int64_t>();
  args.seed = seed;
  args.keep = 1.0 - sigma_min;
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(image)) {
    const CudaScope scope(image);
    check_launch("symmetric_path", cuda::symmetric_path(args, scope.stream()));
  } else
#endif
  {
    const int64_t runs = cpu::noise_runs(args.image_channels * args.n_pixels) +
                         cpu::noise_runs(args.semantic_channels * args.n_pixels);
    run_cpu(MSF_AT_LEVEL(symmetric_path), args, args.n_items * runs, grain(4 * cpu::kNoiseRun));
  }
  return {z, dz};
}

std::tuple<Tensor, Tensor> symmetric_path_bwd(const Tensor& grad_z, const Tensor& grad_dz, const Tensor& t,
                                              double sigma_min, int64_t n_image_channels) {
  SymmetricPathBwdArgs args{};
  args.n_items = grad_z.size(0);
  args.image_channels = n_image_channels;
  args.semantic_channels = grad_z.size(1) - n_image_channels;
  args.n_pixels = grad_z.size(2) * grad_z.size(3);
  const auto gradient = [&](int64_t channels) {
    return empty(grad_z, {args.n_items, channels, grad_z.size(2), grad_z.size(3)}, grad_z.scalar_type(),
                 is_channels_last(grad_z));
  };
  Tensor grad_image = gradient(args.image_channels);
  Tensor grad_semantic = gradient(args.semantic_channels);
  if (grad_z.numel() == 0) return {grad_image, grad_semantic};
  const Tensor dense_z = has_pixel_stride(grad_z) ? grad_z : torch::stable::contiguous(grad_z);
  const Tensor dense_dz = has_pixel_stride(grad_dz) ? grad_dz : torch::stable::contiguous(grad_dz);
  const Tensor dense_t = torch::stable::contiguous(t);
  args.grad_z = dense_z.const_data_ptr();
  args.grad_dz = dense_dz.const_data_ptr();
  args.grad_image = grad_image.mutable_data_ptr();
  args.grad_semantic = grad_semantic.mutable_data_ptr();
  args.type = scalar_of(grad_z, "grad_z");
  args.z_strides = map_strides(dense_z);
  args.dz_strides = map_strides(dense_dz);
  args.image_strides = map_strides(grad_image);
  args.semantic_strides = map_strides(grad_semantic);
  args.t = dense_t.const_data_ptr();
  args.t_type = scalar_of(t, "t");
  args.n_times = t.dim() == 2 ? 2 : 1;
  args.keep = 1.0 - sigma_min;
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(grad_z)) {
    const CudaScope scope(grad_z);
    check_launch("symmetric_path_bwd", cuda::symmetric_path_bwd(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(symmetric_path_bwd), args, args.n_items * grad_z.size(1), grain(args.n_pixels));
  return {grad_image, grad_semantic};
}

}  // namespace msf

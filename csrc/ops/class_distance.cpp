#include <algorithm>

#include "operators.h"
#include "run.h"

namespace msf {

std::tuple<Tensor, Tensor> class_distance_fwd(const Tensor& semantic, const Tensor& codes) {
  const ScalarType type = compute_type(semantic);
  const Tensor map = has_pixel_stride(semantic) ? semantic : torch::stable::contiguous(semantic);
  const Tensor dense_codes = torch::stable::contiguous(torch::stable::to(codes, type));
  ClassDistanceArgs args{};
  args.n_items = semantic.size(0);
  args.n_channels = semantic.size(1);
  args.n_classes = codes.size(0);
  args.n_pixels = semantic.size(2) * semantic.size(3);
  Tensor distance = empty(semantic, {args.n_items, args.n_classes}, type);
  Tensor votes = empty(semantic, {args.n_items, args.n_classes}, type);
  if (args.n_items == 0) return {distance, votes};
  const int64_t chunks = args.n_items * pixel_chunks(args.n_pixels);
  const Tensor chunk_sums = empty(semantic, {chunks, args.n_classes}, ScalarType::Double);
  const Tensor chunk_votes = empty(semantic, {chunks, args.n_classes}, ScalarType::Int);
  args.semantic = map.const_data_ptr();
  args.semantic_type = scalar_of(semantic, "semantic");
  args.strides = map_strides(map);
  args.codes = dense_codes.const_data_ptr();
  args.distance = distance.mutable_data_ptr();
  args.votes = votes.mutable_data_ptr();
  args.chunk_sums = chunk_sums.mutable_data_ptr<double>();
  args.chunk_votes = chunk_votes.mutable_data_ptr<int32_t>();
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(semantic)) {
    const CudaScope scope(semantic);
    check_launch("class_distance", cuda::class_distance(args, scope.stream()));
  } else
#endif
  {
    const int64_t chunk_work = args.n_classes * std::min(args.n_pixels, kPixelChunk);
    run_cpu(MSF_AT_LEVEL(class_distance), args, chunks, grain(chunk_work));
    run_cpu(MSF_AT_LEVEL(class_distance_merge), args, args.n_items, grain(args.n_classes));
  }
  return {distance, votes};
}

std::tuple<Tensor, Tensor> class_distance_bwd(const Tensor& grad_distance, const Tensor& semantic,
                                              const Tensor& codes, bool needs_codes) {
  const ScalarType type = compute_type(semantic);
  const Tensor map = has_pixel_stride(semantic) ? semantic : torch::stable::contiguous(semantic);
  const Tensor dense_codes = torch::stable::contiguous(torch::stable::to(codes, type));
  const Tensor dense_grad = torch::stable::contiguous(torch::stable::to(grad_distance, type));
  ClassDistanceBwdArgs args{};
  args.n_items = semantic.size(0);
  args.n_channels = semantic.size(1);
  args.n_classes = codes.size(0);
  args.n_pixels = semantic.size(2) * semantic.size(3);
  Tensor grad_semantic = empty(semantic, semantic.sizes(), semantic.scalar_type(), is_channels_last(semantic));
  Tensor grad_codes = empty(codes, {needs_codes ? args.n_classes : 0, args.n_channels}, type);
  const int64_t chunks = args.n_items * pixel_chunks(args.n_pixels);
  const Tensor chunk_grad_codes =
      empty(semantic, {needs_codes ? chunks : 0, args.n_classes, args.n_channels}, ScalarType::Double);
  args.semantic = map.const_data_ptr();
  args.semantic_type = scalar_of(semantic, "semantic");
  args.strides = map_strides(map);
  args.codes = dense_codes.const_data_ptr();
  args.grad_distance = dense_grad.const_data_ptr();
  args.grad_semantic = grad_semantic.mutable_data_ptr();
  args.grad_strides = map_strides(grad_semantic);
  if (needs_codes) {
    args.chunk_grad_codes = chunk_grad_codes.mutable_data_ptr<double>();
    args.grad_codes = grad_codes.mutable_data_ptr();
  }
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(semantic)) {
    const CudaScope scope(semantic);
    check_launch("class_distance_bwd", cuda::class_distance_bwd(args, scope.stream()));
  } else
#endif
  {
    const int64_t chunk_work = args.n_classes * std::min(args.n_pixels, kPixelChunk);
    run_cpu(MSF_AT_LEVEL(class_distance_bwd), args, chunks, grain(2 * chunk_work));
    if (needs_codes) {
      run_cpu(MSF_AT_LEVEL(class_distance_bwd_merge), args, args.n_classes * args.n_channels, grain(chunks));
    }
  }
  return {grad_semantic, torch::stable::to(grad_codes, codes.scalar_type())};
}

}  // namespace msf

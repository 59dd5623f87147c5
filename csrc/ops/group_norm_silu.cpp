#include <algorithm>

#include "operators.h"
#include "run.h"

namespace msf {
namespace {

MapView view(const Tensor& map) {
  // The kernels do not write through the views of inputs.
  return {const_cast<void*>(map.const_data_ptr()), map_strides(map), map.size(1)};
}

// Parameters, kept contiguous while a kernel reads them.
class Parameters {
 public:
  Rows rows(const std::optional<Tensor>& parameter, const char* name) {
    if (!parameter.has_value()) return {};
    kept_.push_back(torch::stable::contiguous(*parameter));
    const Tensor& dense = kept_.back();
    const bool is_per_item = dense.dim() == 2 && dense.size(0) > 1;
    return {const_cast<void*>(dense.const_data_ptr()), scalar_of(dense, name), is_per_item ? dense.size(1) : 0};
  }

 private:
  std::vector<Tensor> kept_;
};

// Groups of a task. Interleaved rows are read whole where there are items enough for the threads.
int64_t task_groups(int64_t n_items, int64_t n_groups, int64_t n_channels, bool interleaved) {
  if (!interleaved || n_groups == 0 || n_channels == 0) return 1;
  const int64_t threads = torch::stable::get_num_threads();
  if (n_items % threads == 0 || n_items >= 8 * threads) return n_groups;
  const int64_t tasks_per_item = (4 * threads + n_items - 1) / n_items;
  const int64_t cache_line_groups = std::max<int64_t>(1, 32 * n_groups / n_channels);
  return std::clamp(n_groups / tasks_per_item, std::min(cache_line_groups, n_groups), n_groups);
}

void refuse_float64(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "x must be float16, bfloat16 or float32");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> group_norm_silu_fwd(const Tensor& x, int64_t num_groups, const Tensor& weight,
                                                       const Tensor& bias, const std::optional<Tensor>& skip,
                                                       const std::optional<Tensor>& add,
                                                       const std::optional<Tensor>& scale,
                                                       const std::optional<Tensor>& shift, double eps, bool silu) {
  refuse_float64(x);
  GroupNormArgs args{};
  args.n_items = x.size(0);
  args.n_groups = num_groups;
  args.n_channels = weight.size(0);
  args.n_pixels = x.size(2) * x.size(3);
  args.eps = eps;
  args.silu = silu;
  const bool interleaved = is_channels_last(x);
  Tensor out = empty(x, {args.n_items, args.n_channels, x.size(2), x.size(3)}, x.scalar_type(), interleaved);
  Tensor mean = empty(x, {args.n_items, num_groups}, ScalarType::Double);
  Tensor rstd = empty(x, {args.n_items, num_groups}, ScalarType::Double);

  const Tensor x_map = in_format(x, interleaved);
  const std::optional<Tensor> skip_map = skip.has_value() ? std::optional(in_format(*skip, interleaved)) : std::nullopt;
  const int64_t scratch_items = interleaved || runs_on_cuda(x) ? args.n_items : 0;
  const Tensor moments = empty(x, {scratch_items, 2, args.n_channels}, ScalarType::Double);
  const Tensor scratch = empty(x, {scratch_items, 3, args.n_channels}, ScalarType::Float);
  Parameters parameters;
  args.x = view(x_map);
  if (skip_map.has_value()) args.skip = view(*skip_map);
  args.out = view(out);
  args.type = scalar_of(x, "x");
  args.affine = {parameters.rows(weight, "weight"), parameters.rows(bias, "bias"), parameters.rows(add, "add"),
                 parameters.rows(scale, "scale"), parameters.rows(shift, "shift")};
  args.mean = mean.mutable_data_ptr<double>();
  args.rstd = rstd.mutable_data_ptr<double>();
  args.moments = moments.mutable_data_ptr<double>();
  args.scratch = scratch.mutable_data_ptr<float>();
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(x)) {
    const CudaScope scope(x);
    check_launch("group_norm_silu", cuda::group_norm_silu(args, interleaved, scope.stream()));
  } else
#endif
  {
    args.task_groups = task_groups(args.n_items, num_groups, args.n_channels, interleaved);
    const int64_t tasks = args.n_items * ((num_groups + args.task_groups - 1) / args.task_groups);
    const int64_t task_values = args.n_channels / num_groups * args.task_groups * args.n_pixels;
    run_cpu(interleaved ? MSF_AT_LEVEL(group_norm_interleaved) : MSF_AT_LEVEL(group_norm_planar), args, tasks,
            grain(4 * task_values));
  }
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_silu_bwd(
    const Tensor& grad_out, const Tensor& mean, const Tensor& rstd, const Tensor& x, int64_t num_groups,
    const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& skip, const std::optional<Tensor>& add,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, bool silu) {
  refuse_float64(x);
  const auto gradient_of = [&](const std::optional<Tensor>& parameter) {
    return parameter.has_value() ? empty(x, parameter->sizes(), parameter->scalar_type())
                                 : empty(x, {0}, x.scalar_type());
  };
  Tensor grad_x = empty(x, x.sizes(), x.scalar_type(), is_channels_last(x));
  Tensor grad_skip = skip.has_value() ? empty(x, skip->sizes(), x.scalar_type(), is_channels_last(*skip))
                                      : empty(x, {0}, x.scalar_type());
  Tensor grad_weight = gradient_of(weight), grad_bias = gradient_of(bias), grad_add = gradient_of(add),
         grad_scale = gradient_of(scale), grad_shift = gradient_of(shift);
  if (x.size(0) == 0) {
    for (Tensor* grad : {&grad_weight, &grad_bias, &grad_add, &grad_scale, &grad_shift}) torch::stable::zero_(*grad);
    return {grad_x, grad_weight, grad_bias, grad_skip, grad_add, grad_scale, grad_shift};
  }

  GroupNormBwdArgs args{};
  args.n_items = x.size(0);
  args.n_groups = num_groups;
  args.n_channels = weight.size(0);
  args.n_pixels = x.size(2) * x.size(3);
  args.silu = silu;
  const bool interleaved = is_channels_last(x);
  const Tensor x_map = in_format(x, interleaved);
  const Tensor grad_map = in_format(grad_out, interleaved);
  std::optional<Tensor> skip_map, grad_skip_map;
  if (skip.has_value()) {
    skip_map = in_format(*skip, interleaved);
    grad_skip_map = is_channels_last(grad_skip) == interleaved
                        ? grad_skip
                        : empty(x, skip->sizes(), x.scalar_type(), interleaved);
  }
  const Tensor dense_mean = torch::stable::contiguous(mean);
  const Tensor dense_rstd = torch::stable::contiguous(rstd);
  const Tensor sums = empty(x, {args.n_items, 3, args.n_channels}, ScalarType::Double);
  const int64_t scratch_items = interleaved || runs_on_cuda(x) ? args.n_items : 0;
  const Tensor scratch = empty(x, {scratch_items, 8, args.n_channels}, ScalarType::Float);
  Parameters parameters;
  args.x = view(x_map);
  args.grad_out = view(grad_map);
  args.grad_x = view(grad_x);
  if (skip.has_value()) {
    args.skip = view(*skip_map);
    args.grad_skip = view(*grad_skip_map);
  }
  args.type = scalar_of(x, "x");
  args.affine = {parameters.rows(weight, "weight"), parameters.rows(bias, "bias"), parameters.rows(add, "add"),
                 parameters.rows(scale, "scale"), parameters.rows(shift, "shift")};
  args.mean = dense_mean.const_data_ptr<double>();
  args.rstd = dense_rstd.const_data_ptr<double>();
  args.sums = sums.mutable_data_ptr<double>();
  args.scratch = scratch.mutable_data_ptr<float>();

  GroupNormParameterArgs parameter_args{};
  parameter_args.affine = args.affine;
  parameter_args.grads = {parameters.rows(grad_weight, "weight"), parameters.rows(grad_bias, "bias"),
                          add.has_value() ? parameters.rows(grad_add, "add") : Rows{},
                          scale.has_value() ? parameters.rows(grad_scale, "scale") : Rows{},
                          shift.has_value() ? parameters.rows(grad_shift, "shift") : Rows{}};
  parameter_args.sums = args.sums;
  parameter_args.n_items = args.n_items;
  parameter_args.n_channels = args.n_channels;
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(x)) {
    const CudaScope scope(x);
    check_launch("group_norm_silu_bwd",
                 cuda::group_norm_silu_bwd(args, parameter_args, interleaved, scope.stream()));
  } else
#endif
  {
    args.task_groups = task_groups(args.n_items, num_groups, args.n_channels, interleaved);
    const int64_t tasks = args.n_items * ((num_groups + args.task_groups - 1) / args.task_groups);
    const int64_t task_values = args.n_channels / num_groups * args.task_groups * args.n_pixels;
    run_cpu(interleaved ? MSF_AT_LEVEL(group_norm_bwd_interleaved) : MSF_AT_LEVEL(group_norm_bwd_planar), args, tasks,
            grain(8 * task_values));
    run_cpu(MSF_AT_LEVEL(group_norm_parameters), parameter_args, args.n_channels, grain(16 * args.n_items));
  }
  if (skip.has_value() && grad_skip_map->get() != grad_skip.get()) torch::stable::copy_(grad_skip, *grad_skip_map);
  return {grad_x, grad_weight, grad_bias, grad_skip, grad_add, grad_scale, grad_shift};
}

}  // namespace msf

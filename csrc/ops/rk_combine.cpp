#include "operators.h"
#include "run.h"

namespace msf {
namespace {

void check_slopes(size_t n_slopes, const std::vector<double>& weights) {
  STD_TORCH_CHECK(n_slopes <= kMaxSlopes && n_slopes == weights.size(), "slopes must be at most ", kMaxSlopes,
                  " tensors with one weight each; got ", n_slopes, " and ", weights.size(), " weights");
}

// Fills in the step; returns the tensor that the arguments point into.
template <typename Args>
std::optional<Tensor> set_step(Args& args, const Tensor& state, double dt, const std::optional<Tensor>& dt_items) {
  args.dt = dt;
  args.n_items = dt_items.has_value() ? state.size(0) : 1;
  args.item_size = state.numel() / args.n_items;
  if (!dt_items.has_value()) return std::nullopt;
  const Tensor dense = torch::stable::contiguous(*dt_items);
  args.dt_items = dense.const_data_ptr();
  args.dt_type = scalar_of(dense, "dt");
  return dense;
}

}  // namespace

void rk_combine_out(const Tensor& state, const std::vector<Tensor>& slopes, const std::vector<double>& weights,
                    double dt, const std::optional<Tensor>& dt_items, Tensor out, std::optional<Tensor> cast_out) {
  check_slopes(slopes.size(), weights);
  const int64_t numel = state.numel();
  if (numel == 0) return;

  // All tensors in one layout: that of `out` if it can be walked item by item, else contiguous.
  Tensor target = is_dense_by_item(out) ? out : empty(out, out.sizes(), out.scalar_type());
  std::vector<Tensor> inputs{in_layout(state, target)};
  for (const Tensor& slope : slopes) inputs.push_back(in_layout(slope, target));
  std::optional<Tensor> cast_target;
  if (cast_out.has_value()) {
    cast_target = has_layout(*cast_out, target) ? *cast_out : empty_like(target, cast_out->scalar_type());
  }

  RkCombineArgs args{};
  args.state = inputs[0].const_data_ptr();
  args.state_type = scalar_of(state, "state");
  args.out = target.mutable_data_ptr();
  args.n_slopes = static_cast<int32_t>(slopes.size());
  for (size_t i = 0; i < slopes.size(); ++i) {
    args.slopes[i] = inputs[i + 1].const_data_ptr();
    args.slope_types[i] = scalar_of(slopes[i], "slopes");
    args.weights[i] = weights[i];
  }
  if (cast_target.has_value()) {
    args.cast_out = cast_target->mutable_data_ptr();
    args.cast_type = scalar_of(*cast_target, "cast_to");
  }
  const std::optional<Tensor> dense_dt = set_step(args, state, dt, dt_items);
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(state)) {
    const CudaScope scope(state);
    check_launch("rk_combine", cuda::rk_combine(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(rk_combine), args, numel, grain(1));

  if (target.get() != out.get()) torch::stable::copy_(out, target);
  if (cast_target.has_value() && cast_target->get() != cast_out->get()) torch::stable::copy_(*cast_out, *cast_target);
}

Tensor rk_combine_fwd(const Tensor& state, const std::vector<Tensor>& slopes, const std::vector<double>& weights,
                      double dt, const std::optional<Tensor>& dt_items) {
  Tensor out = empty(state, state.sizes(), state.scalar_type(), is_channels_last(state));
  rk_combine_out(state, slopes, weights, dt, dt_items, out, std::nullopt);
  return out;
}

std::tuple<Tensor, Tensor> rk_combine_cast_fwd(const Tensor& state, const std::vector<Tensor>& slopes,
                                               const std::vector<double>& weights, double dt,
                                               const std::optional<Tensor>& dt_items, ScalarType cast_to) {
  Tensor out = empty(state, state.sizes(), state.scalar_type(), is_channels_last(state));
  Tensor cast_out = empty_like(out, cast_to);
  rk_combine_out(state, slopes, weights, dt, dt_items, out, cast_out);
  return {out, cast_out};
}

std::vector<Tensor> rk_combine_bwd(const Tensor& grad, const std::vector<double>& weights, double dt,
                                   const std::optional<Tensor>& dt_items, const std::vector<int64_t>& dtype_codes) {
  constexpr ScalarType kTypes[] = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double};
  check_slopes(dtype_codes.size(), weights);
  std::vector<Tensor> grad_slopes;
  for (const int64_t code : dtype_codes) {
    STD_TORCH_CHECK(code >= 0 && code < 4, "dtype_codes must be in [0, 4); got ", code);
    grad_slopes.push_back(empty(grad, grad.sizes(), kTypes[code], is_channels_last(grad)));
  }
  if (grad.numel() == 0 || grad_slopes.empty()) return grad_slopes;
  const Tensor dense_grad = in_layout(grad, grad_slopes[0]);
  RkCombineBwdArgs args{};
  args.grad = dense_grad.const_data_ptr();
  args.grad_type = scalar_of(grad, "grad");
  args.n_slopes = static_cast<int32_t>(grad_slopes.size());
  for (size_t i = 0; i < grad_slopes.size(); ++i) {
    args.grad_slopes[i] = grad_slopes[i].mutable_data_ptr();
    args.slope_types[i] = scalar_of(grad_slopes[i], "dtype_codes");
    args.weights[i] = weights[i];
  }
  const std::optional<Tensor> dense_dt = set_step(args, grad, dt, dt_items);
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(grad)) {
    const CudaScope scope(grad);
    check_launch("rk_combine_bwd", cuda::rk_combine_bwd(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(rk_combine_bwd), args, grad.numel(), grain(1));
  return grad_slopes;
}

Tensor rk_combine_bwd_dt(const Tensor& grad, const std::vector<Tensor>& slopes, const std::vector<double>& weights) {
  check_slopes(slopes.size(), weights);
  Tensor grad_dt = empty(grad, {grad.size(0)}, compute_type(grad));
  if (grad.numel() == 0) {
    torch::stable::zero_(grad_dt);
    return grad_dt;
  }
  const Tensor dense_grad = is_dense_by_item(grad) ? grad : torch::stable::contiguous(grad);
  std::vector<Tensor> inputs;
  RkCombineBwdDtArgs args{};
  args.grad = dense_grad.const_data_ptr();
  args.grad_type = scalar_of(grad, "grad");
  args.n_slopes = static_cast<int32_t>(slopes.size());
  for (size_t i = 0; i < slopes.size(); ++i) {
    inputs.push_back(in_layout(slopes[i], dense_grad));
    args.slopes[i] = inputs.back().const_data_ptr();
    args.slope_types[i] = scalar_of(slopes[i], "slopes");
    args.weights[i] = weights[i];
  }
  args.grad_dt = grad_dt.mutable_data_ptr();
  args.n_items = grad.size(0);
  args.item_size = grad.numel() / args.n_items;
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(grad)) {
    const CudaScope scope(grad);
    check_launch("rk_combine_bwd_dt", cuda::rk_combine_bwd_dt(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(rk_combine_bwd_dt), args, args.n_items, grain(args.item_size));
  return grad_dt;
}

}  // namespace msf

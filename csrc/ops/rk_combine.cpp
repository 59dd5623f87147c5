#include "operators.h"
#include "run.h"

namespace msf {

void rk_combine_out(const Tensor& state, const std::vector<Tensor>& slopes, const std::vector<double>& weights,
                    double dt, const std::optional<Tensor>& dt_items, Tensor out, std::optional<Tensor> cast_out) {
  STD_TORCH_CHECK(slopes.size() <= kMaxSlopes && slopes.size() == weights.size(), "slopes must be at most ",
                  kMaxSlopes, " tensors with one weight each; got ", slopes.size(), " and ", weights.size(),
                  " weights");
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
  args.dt = dt;
  args.n_items = 1;
  std::optional<Tensor> dt_dense;
  if (dt_items.has_value()) {
    dt_dense = torch::stable::contiguous(*dt_items);
    args.dt_items = dt_dense->const_data_ptr();
    args.dt_type = scalar_of(*dt_dense, "dt");
    args.n_items = state.size(0);
  }
  args.item_size = numel / args.n_items;

#if defined(MSF_WITH_CUDA)
  if (state.is_cuda()) {
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

}  // namespace msf

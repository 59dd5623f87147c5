#include <cmath>

#include "msf/scaled_error.h"
#include "operators.h"
#include "run.h"

namespace msf {
namespace {

// Channels of a map of an item's shape that are summed one by one, so that both layouts of maps add alike; else 1.
int64_t rows_of(const Tensor& state) {
  constexpr int64_t kMaxRows = 64;    // sixteen pixels with all their channels fit the kernel's buffer
  constexpr int64_t kLeastPixels = 64;
  if (state.dim() != 4 || state.size(1) > kMaxRows || state.size(2) * state.size(3) < kLeastPixels) return 1;
  return state.size(1);
}

template <typename C>
void write_roots(C* out, const ScaledErrorArgs& args, int64_t n_items) {
  for (int64_t item = 0; item < n_items; ++item) {
    double total = 0;
    for (int64_t block = 0; block < args.n_blocks; ++block) total += args.partial[item * args.n_blocks + block];
    out[item] = static_cast<C>(std::sqrt(total / static_cast<double>(args.item_size)));
  }
}

}  // namespace

Tensor scaled_error_norm(const Tensor& state, const Tensor& next_state, const std::vector<Tensor>& slopes,
                         const std::vector<double>& weights, double dt, const std::optional<Tensor>& dt_items,
                         double rtol, double atol) {
  STD_TORCH_CHECK(slopes.size() <= kMaxSlopes && slopes.size() == weights.size(), "slopes must be at most ", kMaxSlopes,
                  " tensors with one weight each; got ", slopes.size(), " and ", weights.size(), " weights");
  Tensor out = empty(state, {state.size(0)}, compute_type(state));
  if (state.numel() == 0) {
    torch::stable::zero_(out);
    return out;
  }
  ScaledErrorArgs args{};
  args.n_rows = rows_of(state);
  args.is_interleaved = args.n_rows > 1 && is_channels_last(state);
  const Tensor dense = args.is_interleaved ? state : torch::stable::contiguous(state);
  std::vector<Tensor> inputs{dense, in_layout(next_state, dense)};
  args.state = inputs[0].const_data_ptr();
  args.next_state = inputs[1].const_data_ptr();
  args.state_type = scalar_of(state, "state");
  args.n_slopes = static_cast<int32_t>(slopes.size());
  for (size_t i = 0; i < slopes.size(); ++i) {
    inputs.push_back(in_layout(slopes[i], dense));
    args.slopes[i] = inputs.back().const_data_ptr();
    args.slope_types[i] = scalar_of(slopes[i], "slopes");
    args.weights[i] = weights[i];
  }
  args.dt = dt;
  Tensor dense_dt;
  if (dt_items.has_value()) {
    dense_dt = torch::stable::contiguous(*dt_items);
    args.dt_items = dense_dt.const_data_ptr();
    args.dt_type = scalar_of(dense_dt, "dt");
  }
  args.rtol = rtol;
  args.atol = atol;
  const int64_t n_items = state.size(0);
  args.item_size = state.numel() / n_items;
  args.n_blocks = (args.item_size / args.n_rows + kErrorBlock - 1) / kErrorBlock;
  Tensor partial = empty(state, {n_items * args.n_blocks}, ScalarType::Double);
  args.partial = static_cast<double*>(partial.mutable_data_ptr());
  const int64_t block_size = args.item_size / args.n_blocks;
  run_cpu(MSF_AT_LEVEL(scaled_error_norm), args, n_items * args.n_blocks, grain(block_size));
  if (args.state_type == Scalar::kFloat64) {
    write_roots(static_cast<double*>(out.mutable_data_ptr()), args, n_items);
  } else {
    write_roots(static_cast<float*>(out.mutable_data_ptr()), args, n_items);
  }
  return out;
}

}  // namespace msf

#include <algorithm>

#include "operators.h"
#include "run.h"

namespace msf {
namespace {

ConvForm form_of(int64_t form) {
  STD_TORCH_CHECK(form >= 0 && form <= static_cast<int64_t>(ConvForm::kDoublingTwo), "form must be 0 to 4; got ", form);
  return static_cast<ConvForm>(form);
}

void require_float32(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, name, " must be float32");
}

// Rows of so many words that are transformed at once: as many as keep what is made of them in the second-level cache; but
// enough to share what is read of the weight, and all of them where they are few.
int64_t rows_of_block(const ConvArgs& args, int64_t words) {
  constexpr int64_t kCached = 128 * 1024, kFewest = 28, kMost = 168, kFew = 64;
  if (args.n_rows() <= kFew) return args.n_rows();
  const int64_t side = tile_inputs(args.form);
  return std::clamp(kCached / (side * side * (words + kPanel)), kFewest, kMost) / kFewest * kFewest;
}

void require_dtype_of(const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(other.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
}

}  // namespace

int64_t cpu_level() { return static_cast<int64_t>(cpu::level()); }

Tensor convolution_weight(const Tensor& weight, int64_t form) {
  require_float32(weight, "weight");
  ConvWeightArgs args{};
  args.form = form_of(form);
  const bool is_direct = args.form == ConvForm::kDirect;
  const bool is_phased = is_doubling(args.form) || (is_direct && weight.dim() == 5);
  const int64_t axis = is_phased ? 1 : 0;
  STD_TORCH_CHECK(weight.dim() == 4 + axis, "weight must have ", 4 + axis, " axes for form ", form);
  args.out_channels = weight.size(axis);
  args.in_channels = weight.size(axis + 1);
  args.side = weight.size(axis + 2);
  const bool fits = is_phased ? weight.size(0) == 4 && args.side == 2 : args.side == 3 || (is_direct && args.side == 1);
  STD_TORCH_CHECK(fits && weight.size(axis + 3) == args.side, "weight has not the taps of form ", form);
  const int64_t side = is_direct ? args.side : tile_inputs(args.form);
  const int64_t phases = is_phased ? 4 : 1, panels = pieces_of(args.out_channels, kPanel);
  Tensor packed = empty(weight, {phases, panels, side * side, args.in_channels, kPanel}, ScalarType::Float);
  if (packed.numel() == 0) return packed;
  args.weight = weight.const_data_ptr<float>();
  args.phase_stride = axis == 1 ? weight.stride(0) : 0;
  args.out_stride = weight.stride(axis);
  args.in_stride = weight.stride(axis + 1);
  args.row_stride = weight.stride(axis + 2);
  args.column_stride = weight.stride(axis + 3);
  args.packed = packed.mutable_data_ptr<float>();
  run_cpu(MSF_AT_LEVEL(convolution_weight), args, phases * panels, 1);
  return packed;
}

Tensor convolution_fwd(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& residual, int64_t out_channels, int64_t form, int64_t stride) {
  const bool is_of_pairs = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(is_of_pairs ? cpu::has_pair_dots() : x.scalar_type() == ScalarType::Float,
                  "x must be float32, or bfloat16 where the processor has dot products of its pairs");
  require_dtype_of(x, weight, "weight");
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W]");
  ConvArgs args{};
  args.form = form_of(form);
  args.n_items = x.size(0);
  args.in_channels = x.size(1);
  args.height = x.size(2);
  args.width = x.size(3);
  args.out_channels = out_channels;
  const bool is_direct = args.form == ConvForm::kDirect;
  args.stride = is_direct ? stride : 1;
  STD_TORCH_CHECK(stride >= 1 && args.stride == stride, "stride must be 1, or more in the direct form; got ", stride);
  args.phase_height = pieces_of(args.height, stride);
  args.phase_width = pieces_of(args.width, stride);
  STD_TORCH_CHECK(weight.dim() == (is_of_pairs ? 6 : 5) && weight.is_contiguous(),
                  "weight must be what convolution_weight made, for bfloat16 in pairs of input channels");
  const int64_t frequencies = weight.size(2);
  const bool is_phased = is_doubling(args.form) || (is_direct && frequencies == 4);
  args.n_phases = is_phased ? 4 : 1;
  args.step = is_phased ? 2 : 1;
  args.side = is_phased ? 2 : is_direct && frequencies == 1 ? 1 : 3;
  STD_TORCH_CHECK(!is_phased || stride == 1, "stride must be 1 for doubled maps; got ", stride);
  const int64_t inputs = is_direct ? args.side : tile_inputs(args.form);
  const int64_t words = pieces_of(args.in_channels, is_of_pairs ? 2 : 1);
  STD_TORCH_CHECK(weight.size(0) == args.n_phases && weight.size(1) == args.n_panels() &&
                      frequencies == inputs * inputs && weight.size(3) == words && weight.size(4) == kPanel &&
                      (!is_of_pairs || weight.size(5) == 2),
                  "weight must be what convolution_weight made for form ", form, ", ", args.in_channels, " inputs and ",
                  out_channels, " outputs");
  const std::vector<int64_t> sizes{args.n_items, out_channels, args.step * args.phase_height,
                                   args.step * args.phase_width};
  Tensor out = empty(x, sizes, x.scalar_type(), true);
  if (out.numel() == 0) return out;

  const Tensor dense_x = in_format(x, true);
  args.x = dense_x.const_data_ptr();
  args.x_item_stride = map_strides(dense_x).item;
  args.x_pixel_stride = map_strides(dense_x).pixel;
  args.weight = static_cast<const float*>(weight.const_data_ptr());
  Tensor dense_bias, dense_residual;
  if (bias.has_value()) {
    require_dtype_of(x, *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out_channels, "bias must have ", out_channels, " elements");
    dense_bias = torch::stable::contiguous(*bias);
    args.bias = dense_bias.const_data_ptr();
  }
  if (residual.has_value()) {
    require_dtype_of(x, *residual, "residual");
    STD_TORCH_CHECK(residual->dim() == 4 && std::equal(sizes.begin(), sizes.end(), residual->sizes().begin()),
                    "residual must have the shape of the result");
    dense_residual = in_format(*residual, true);
    const int64_t pixels = sizes[2] * sizes[3];
    const auto step = [&] { return pixels > 1 ? map_strides(dense_residual).pixel : dense_residual.stride(0); };
    if (args.n_items > 1 && dense_residual.stride(0) != pixels * step()) {  // as of every other item of a map
      dense_residual = empty(*residual, sizes, x.scalar_type(), true);
      torch::stable::copy_(dense_residual, *residual);
    }
    args.residual = dense_residual.const_data_ptr();
    args.residual_pixel_stride = step();
  }
  args.out = out.mutable_data_ptr();
  args.block_rows = rows_of_block(args, words * (is_direct ? args.side * args.side : 1));
  run_cpu(is_of_pairs ? MSF_AT_LEVEL(convolution_of_pairs) : MSF_AT_LEVEL(convolution), args, args.n_pieces(), 1);
  return out;
}

}  // namespace msf

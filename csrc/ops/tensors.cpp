#include "tensors.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#if defined(MSF_WITH_CUDA)
// Weak, so that a library with CUDA code also loads, and serves CPU tensors, where torch has none.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream)
    __attribute__((weak));
#endif

namespace msf {
namespace {

constexpr int64_t kElementsPerThread = 32768;

// Whether the axes, innermost first, fill one piece of memory.
bool is_dense(const Tensor& x, const std::vector<size_t>& axes) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  int64_t expected = 1;
  for (const size_t axis : axes) {
    if (sizes[axis] == 1) continue;
    if (strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

}  // namespace

Scalar scalar_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Scalar::kFloat32;
    case ScalarType::Double:
      return Scalar::kFloat64;
    case ScalarType::Half:
      return Scalar::kFloat16;
    case ScalarType::BFloat16:
      return Scalar::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

bool is_channels_last(const Tensor& x) { return x.dim() == 4 && !x.is_contiguous() && is_dense(x, {1, 3, 2, 0}); }

Tensor empty(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_like(const Tensor& like, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional(dtype)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt),         from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

bool is_dense_by_item(const Tensor& x) {
  if (x.is_contiguous()) return true;
  const auto strides = x.strides();
  std::vector<size_t> axes;
  for (size_t axis = 1; axis < strides.size(); ++axis) axes.push_back(axis);
  std::sort(axes.begin(), axes.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  axes.push_back(0);
  return is_dense(x, axes);
}

bool has_layout(const Tensor& x, const Tensor& like) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const auto wanted = like.strides();
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] > 1 && strides[axis] != wanted[axis]) return false;
  }
  return true;
}

Tensor in_layout(const Tensor& x, const Tensor& like) {
  if (has_layout(x, like)) return x;
  Tensor copy = empty_like(like, x.scalar_type());
  torch::stable::copy_(copy, x);
  return copy;
}

bool has_pixel_stride(const Tensor& x) {
  return x.size(2) <= 1 || x.size(3) <= 1 || x.stride(2) == x.size(3) * x.stride(3);
}

MapStrides map_strides(const Tensor& x) {
  const int64_t pixel = x.size(3) > 1 ? x.stride(3) : x.size(2) > 1 ? x.stride(2) : 1;
  return {x.stride(0), x.stride(1), pixel};
}

Tensor in_format(const Tensor& x, bool channels_last) {
  const bool is_innermost = channels_last ? x.size(1) <= 1 || x.stride(1) == 1 : map_strides(x).pixel == 1;
  if (is_innermost && has_pixel_stride(x)) return x;
  Tensor copy = empty(x, x.sizes(), x.scalar_type(), channels_last);
  torch::stable::copy_(copy, x);
  return copy;
}

int64_t grain(int64_t elements_per_piece) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_piece));
}

#if defined(MSF_WITH_CUDA)
#if !defined(MSF_EMULATED)
CudaScope::CudaScope(const Tensor& x) : guard_(x.get_device_index()) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
}
#endif

void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, "msf_native::", op, ": CUDA error: ", error);
}
#endif

}  // namespace msf

#include "tensors.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace msf {
namespace {

constexpr int64_t kElementsPerThread = 32768;

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

Tensor empty_like(const Tensor& like, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional(dtype)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt),         from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

bool is_dense_by_item(const Tensor& x) {
  if (x.is_contiguous()) return true;
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  std::vector<std::pair<int64_t, size_t>> axes;  // (stride, axis), innermost first
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] > 1) axes.emplace_back(strides[axis], axis);
  }
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (const auto& [stride, axis] : axes) {
    if (stride != expected) return false;
    expected *= sizes[axis];
  }
  return axes.empty() || sizes[0] <= 1 || axes.back().second == 0;
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

int64_t grain(int64_t elements_per_piece) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_piece));
}

#if defined(MSF_WITH_CUDA)
CudaScope::CudaScope(const Tensor& x) : guard_(x.get_device_index()) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
}

void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, "msf_native::", op, ": CUDA error: ", error);
}
#endif

}  // namespace msf

// What every operator needs from torch: element types, allocation, layouts, and the stream of a CUDA tensor.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "msf/maps.h"
#include "msf/number.h"

namespace msf {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The element type that the kernels know; raises with the argument's name for any other.
Scalar scalar_of(const Tensor& x, const char* name);

// Type of the arithmetic: double for float64, else float.
ScalarType compute_type(const Tensor& x);

// Whether a map of four axes is dense with channels innermost, and not contiguous at the same time.
bool is_channels_last(const Tensor& x);

// Uninitialised, on the device of `like`; channels-last or contiguous.
Tensor empty(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype, bool channels_last = false);

// Uninitialised, with the sizes and the strides of `like`, which is dense.
Tensor empty_like(const Tensor& like, ScalarType dtype);

// Whether the elements fill one piece of memory, with those of each item of axis 0 next to each other.
bool is_dense_by_item(const Tensor& x);

// Whether the elements of two tensors of one shape have the same offsets.
bool has_layout(const Tensor& x, const Tensor& like);

// `x` itself if its elements are where those of `like` are, else a copy that has them there.
Tensor in_layout(const Tensor& x, const Tensor& like);

// Whether pixel (h, w) of a map is at (h * W + w) * stride; the strides of such a map.
bool has_pixel_stride(const Tensor& x);
MapStrides map_strides(const Tensor& x);

// `x` itself if its channels (or else its pixels) are next to each other, else a copy in which they are.
Tensor in_format(const Tensor& x, bool channels_last);

// Pieces of work that a thread should get at least.
int64_t grain(int64_t elements_per_piece);

// Whether the CUDA kernels serve a tensor. MSF_EMULATED: in tests they run on the CPU, see docs/cuda-emulation.md.
inline bool runs_on_cuda(const Tensor& x) {
#if defined(MSF_EMULATED)
  return !x.is_cuda();
#else
  return x.is_cuda();
#endif
}

#if defined(MSF_EMULATED)
struct CudaScope {
  explicit CudaScope(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#elif defined(MSF_WITH_CUDA)
// Makes the tensor's device current while it lives, and knows its stream.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& x);
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

#if defined(MSF_WITH_CUDA)
// Raises if a launcher returned the text of an error.
void check_launch(const char* op, const char* error);
#endif

}  // namespace msf

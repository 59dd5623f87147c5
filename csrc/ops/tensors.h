// What every operator needs from torch: element types, allocation, layouts, and the stream of a CUDA tensor.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "msf/number.h"

namespace msf {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The element type that the kernels know; raises with the argument's name for any other.
Scalar scalar_of(const Tensor& x, const char* name);

// Uninitialised, with the sizes and, where dense, the strides of `like`.
Tensor empty_like(const Tensor& like, ScalarType dtype);

// Whether the elements fill one piece of memory, with those of each item of axis 0 next to each other.
bool is_dense_by_item(const Tensor& x);

// Whether the elements of two tensors of one shape have the same offsets.
bool has_layout(const Tensor& x, const Tensor& like);

// `x` itself if its elements are where those of `like` are, else a copy that has them there.
Tensor in_layout(const Tensor& x, const Tensor& like);

// Pieces of work that a thread should get at least.
int64_t grain(int64_t elements_per_piece);

#if defined(MSF_WITH_CUDA)
// Makes the tensor's device current while it lives, and knows its stream.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& x);
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// Raises if a launcher returned the text of an error.
void check_launch(const char* op, const char* error);
#endif

}  // namespace msf

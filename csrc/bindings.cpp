// Schemas of the operators, and their kernels for the CPU and, where built, CUDA.
#include "ops/operators.h"

STABLE_TORCH_LIBRARY(msf_native, m) {
  m.def("rk_combine_fwd(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items) -> Tensor");
  m.def(
      "rk_combine_cast_fwd(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
      "ScalarType cast_to) -> (Tensor, Tensor)");
  m.def(
      "rk_combine_out(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
      "Tensor(a!) out, Tensor(b!)? cast_out) -> ()");
}

#define MSF_IMPLEMENT(m)                                               \
  m.impl("rk_combine_fwd", TORCH_BOX(&msf::rk_combine_fwd));           \
  m.impl("rk_combine_cast_fwd", TORCH_BOX(&msf::rk_combine_cast_fwd)); \
  m.impl("rk_combine_out", TORCH_BOX(&msf::rk_combine_out));

STABLE_TORCH_LIBRARY_IMPL(msf_native, CPU, m) { MSF_IMPLEMENT(m) }

#if defined(MSF_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(msf_native, CUDA, m) { MSF_IMPLEMENT(m) }
#endif

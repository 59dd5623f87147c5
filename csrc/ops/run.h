// Runs a kernel on the device of a tensor: CPU loops on torch's threads, or a CUDA launch on the current stream.
#pragma once

#include "../cpu/kernels.h"
#include "tensors.h"
#if defined(MSF_WITH_CUDA)
#include "../cuda/launchers.h"
#endif

namespace msf {

// `kernel` does pieces [begin, end); a thread gets at least `pieces_per_thread` of them.
template <typename Args>
void run_cpu(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t n_pieces,
             int64_t pieces_per_thread) {
  torch::stable::parallel_for(0, n_pieces, pieces_per_thread,
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace msf

// What the sources of csrc/cuda use of CUDA, for the host compiler; see docs/cuda-emulation.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define __shared__ static  // one copy is enough: one block runs at a time

struct dim3 {
  unsigned x, y, z;
};

// Those of the CUDA thread that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace emulation {

// Runs `body` in every thread of every block, in the order that MSF_EMULATED_ORDER names.
void launch(unsigned n_blocks, unsigned block_threads, const std::function<void()>& body);

void barrier(const char* file, int line);

// Waits for all lanes of `mask` and returns the bits that lane `source` gave.
uint64_t exchange(unsigned mask, uint64_t bits, unsigned source, const char* file, int line);

}  // namespace emulation

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulation::barrier(file, line);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned lane = threadIdx.x % 32;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::exchange(mask, bits, lane + offset < 32 ? lane + offset : lane, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }

inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }

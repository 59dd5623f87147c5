// What all kernels share: the grid, 16-byte packs of elements, sums over a block, dispatch on element types.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <type_traits>

#include "msf/number.h"

namespace msf::cuda {

// Some kernels also name a number of blocks per multiprocessor, low enough for the registers that they need: left to
// itself, the compiler spills a few of them to fit one block more.
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond that, threads take several pieces

inline unsigned blocks_for(int64_t pieces) {
  const int64_t blocks = (pieces + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// Blocks of kThreads threads on a stream. MSF_EMULATED: on the CPU, in tests, see docs/cuda-emulation.md.
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), unsigned blocks, void* stream, const Args&... args) {
#if defined(MSF_EMULATED)
  emulation::launch(blocks, kThreads, [&] { kernel(args...); });
  static_cast<void>(stream);
#else
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
#endif
}

// for (int64_t piece = first_piece(); piece < n; piece += piece_stride())
static __device__ __forceinline__ int64_t first_piece() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t piece_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

inline const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Neighbouring elements that are loaded and stored together, 16 bytes at a time.
template <typename T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Pack {
  T values[n];
};

template <typename T, int n>
static __device__ __forceinline__ Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}

template <typename T, int n>
static __device__ __forceinline__ void store_pack(T* to, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

static __device__ __forceinline__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over a block of kThreads threads, in one order; valid in thread 0. `shared` holds kThreads / 32 numbers.
static __device__ __forceinline__ double block_sum(double value, double* shared) {
  value = warp_sum(value);
  __syncthreads();  // the previous use of `shared` is over
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) value = warp_sum(threadIdx.x < kThreads / 32 ? shared[threadIdx.x] : 0.0);
  return value;
}

template <typename T>
struct Types {
  using Element = T;
  using Compute = float;
};

template <>
struct Types<double> {
  using Element = double;
  using Compute = double;
};

template <typename F>
void dispatch(Scalar type, F&& f) {
  switch (type) {
    case Scalar::kFloat32:
      return f(Types<float>{});
    case Scalar::kFloat64:
      return f(Types<double>{});
    case Scalar::kFloat16:
      return f(Types<Float16>{});
    case Scalar::kBFloat16:
      return f(Types<BFloat16>{});
  }
}

}  // namespace msf::cuda

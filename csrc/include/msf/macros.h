// How a function is marked so that it compiles for the host and, under nvcc, for the device too.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MSF_HOST_DEVICE static __host__ __device__ __forceinline__
#define MSF_UNROLL _Pragma("unroll")
#else
// Internal linkage: the same header is compiled for several instruction sets, and a merged copy could use the wrong one.
#define MSF_HOST_DEVICE static inline __attribute__((always_inline))
#define MSF_UNROLL _Pragma("GCC unroll 16")
#endif

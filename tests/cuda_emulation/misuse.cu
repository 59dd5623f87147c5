// What no kernel may do, each by name: MISUSE=NAME ends the process, or prints what it found.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace msf::cuda {
namespace {

float* out;

void early_return() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void shuffle_of_some() {
  if (threadIdx.x % 32 < 16) __shfl_down_sync(0xffffffffu, 1.0, 1);
}

void shuffle_without_itself() { __shfl_down_sync(0xfffffffeu, 1.0, 1); }

void shared_before_written() {
  __shared__ float shared[64];
  if (threadIdx.x == 0) out[blockIdx.x] = shared[5];
  shared[threadIdx.x] = 1.0f;
}

void sum_of_a_warp() {
  double value = threadIdx.x;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) out[blockIdx.x * 2 + threadIdx.x / 32] = static_cast<float>(value);
}

}  // namespace
}  // namespace msf::cuda

int main() {
  using namespace msf::cuda;
  float values[4] = {};
  out = values;
  const std::string name = std::getenv("MISUSE");
  if (name == "early return") emulation::launch(2, 64, early_return);
  if (name == "two barriers") emulation::launch(2, 64, two_barriers);
  if (name == "shuffle of some") emulation::launch(2, 64, shuffle_of_some);
  if (name == "shuffle without itself") emulation::launch(2, 64, shuffle_without_itself);
  if (name == "shared before written") emulation::launch(2, 64, shared_before_written);
  if (name == "sum of a warp") emulation::launch(2, 64, sum_of_a_warp);
  if (name == "no block") emulation::launch(0, 64, sum_of_a_warp);
  if (name == "too many blocks") emulation::launch(1u << 31, 64, sum_of_a_warp);
  if (name == "too many threads") emulation::launch(1, 1025, sum_of_a_warp);
  std::printf("%s:", cudaGetErrorString(cudaGetLastError()));
  for (const float value : values) std::printf(" %g", value);
  std::printf("\n");
}

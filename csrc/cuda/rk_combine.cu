#include "launch.cuh"
#include "launchers.h"

namespace msf::cuda {
namespace {

constexpr int kPack = 8;

// Calls f(j, value) for the n elements from element i on.
template <int n, typename C, typename T, typename F>
__device__ void for_pack(const void* from, int64_t i, F&& f) {
  const Pack<T, n> pack = load_pack<T, n>(static_cast<const T*>(from) + i);
  MSF_UNROLL
  for (int j = 0; j < n; ++j) {
    C value;
    assign(value, pack.values[j]);
    f(j, value);
  }
}

template <int n, typename C, typename T>
__device__ void add_pack(const void* slopes, int64_t i, C coefficient, C* sum) {
  for_pack<n, C, T>(slopes, i, [&](int j, C slope) { sum[j] = with_slope(sum[j], coefficient, slope); });
}

template <int n, typename C, typename T>
__device__ void write_pack(void* to, int64_t i, const C* values) {
  Pack<T, n> pack;
  MSF_UNROLL
  for (int j = 0; j < n; ++j) assign(pack.values[j], values[j]);
  store_pack<T, n>(static_cast<T*>(to) + i, pack);
}

// The type is the same for all threads, so the branch does not diverge.
template <int n, typename C>
__device__ void add_any(Scalar type, const void* slopes, int64_t i, C coefficient, C* sum) {
  switch (type) {
    case Scalar::kFloat32:
      return add_pack<n, C, float>(slopes, i, coefficient, sum);
    case Scalar::kFloat64:
      return add_pack<n, C, double>(slopes, i, coefficient, sum);
    case Scalar::kFloat16:
      return add_pack<n, C, Float16>(slopes, i, coefficient, sum);
    case Scalar::kBFloat16:
      return add_pack<n, C, BFloat16>(slopes, i, coefficient, sum);
  }
}

template <int n, typename C>
__device__ void write_any(Scalar type, void* to, int64_t i, const C* values) {
  switch (type) {
    case Scalar::kFloat32:
      return write_pack<n, C, float>(to, i, values);
    case Scalar::kFloat64:
      return write_pack<n, C, double>(to, i, values);
    case Scalar::kFloat16:
      return write_pack<n, C, Float16>(to, i, values);
    case Scalar::kBFloat16:
      return write_pack<n, C, BFloat16>(to, i, values);
  }
}

// Elements begin + n * piece .. begin + n * piece + n - 1, which are of one item.
template <int n, typename C, typename S>
__global__ void __launch_bounds__(kThreads, 4) combine_kernel(RkCombineArgs args, int64_t begin, int64_t end) {
  for (int64_t i = begin + n * first_piece(); i < end; i += n * piece_stride()) {
    const double dt = item_step(args, i / args.item_size);
    C sum[n] = {};
    for (int k = 0; k < args.n_slopes; ++k) {
      add_any<n>(args.slope_types[k], args.slopes[k], i, coefficient_of<C>(args, dt, k), sum);
    }
    for_pack<n, C, S>(args.state, i, [&](int j, C state) { sum[j] = with_state(sum[j], state); });
    write_pack<n, C, S>(args.out, i, sum);
    if (args.cast_out != nullptr) write_any<n>(args.cast_type, args.cast_out, i, sum);
  }
}

template <int n, typename C, typename S>
__global__ void __launch_bounds__(kThreads) combine_bwd_kernel(RkCombineBwdArgs args, int64_t begin, int64_t end) {
  for (int64_t i = begin + n * first_piece(); i < end; i += n * piece_stride()) {
    const double dt = item_step(args, i / args.item_size);
    C grad[n];
    for_pack<n, C, S>(args.grad, i, [&](int j, C value) { grad[j] = value; });
    for (int k = 0; k < args.n_slopes; ++k) {
      const C coefficient = coefficient_of<C>(args, dt, k);
      C scaled[n];
      MSF_UNROLL
      for (int j = 0; j < n; ++j) scaled[j] = coefficient * grad[j];
      write_any<n>(args.slope_types[k], args.grad_slopes[k], i, scaled);
    }
  }
}

// One block per item.
template <typename C, typename S>
__global__ void __launch_bounds__(kThreads) combine_bwd_dt_kernel(RkCombineBwdDtArgs args) {
  __shared__ double shared[kThreads / 32];
  for (int64_t item = blockIdx.x; item < args.n_items; item += gridDim.x) {
    double total = 0;
    for (int64_t j = threadIdx.x; j < args.item_size; j += kThreads) {
      const int64_t i = item * args.item_size + j;
      C direction = 0;
      for (int k = 0; k < args.n_slopes; ++k) {
        add_any<1>(args.slope_types[k], args.slopes[k], i, coefficient_of<C>(args, 1.0, k), &direction);
      }
      C grad;
      assign(grad, static_cast<const S*>(args.grad)[i]);
      total += static_cast<double>(grad * direction);
    }
    total = block_sum(total, shared);
    if (threadIdx.x == 0) static_cast<C*>(args.grad_dt)[item] = static_cast<C>(total);
  }
}

// Calls launch(pack width, begin, end) for the elements that can be taken in packs, then for the others.
template <typename F>
void launch_packed(bool is_aligned, int64_t n_items, int64_t item_size, F&& launch) {
  const int64_t numel = n_items * item_size;
  const bool has_packs = is_aligned && (n_items == 1 || item_size % kPack == 0);
  const int64_t packed = has_packs ? numel / kPack * kPack : 0;
  if (packed > 0) launch(std::integral_constant<int, kPack>{}, int64_t{0}, packed);
  if (packed < numel) launch(std::integral_constant<int, 1>{}, packed, numel);
}

}  // namespace

const char* rk_combine(const RkCombineArgs& args, void* stream) {
  bool aligned = is_aligned(args.state) && is_aligned(args.out) && is_aligned(args.cast_out);
  for (int k = 0; k < args.n_slopes; ++k) aligned = aligned && is_aligned(args.slopes[k]);
  dispatch(args.state_type, [&](auto types) {
    using Type = decltype(types);
    launch_packed(aligned, args.n_items, args.item_size, [&](auto width, int64_t begin, int64_t end) {
      launch(combine_kernel<decltype(width)::value, typename Type::Compute, typename Type::Element>,
             blocks_for((end - begin) / width), stream, args, begin, end);
    });
  });
  return last_error();
}

const char* rk_combine_bwd(const RkCombineBwdArgs& args, void* stream) {
  bool aligned = is_aligned(args.grad);
  for (int k = 0; k < args.n_slopes; ++k) aligned = aligned && is_aligned(args.grad_slopes[k]);
  dispatch(args.grad_type, [&](auto types) {
    using Type = decltype(types);
    launch_packed(aligned, args.n_items, args.item_size, [&](auto width, int64_t begin, int64_t end) {
      launch(combine_bwd_kernel<decltype(width)::value, typename Type::Compute, typename Type::Element>,
             blocks_for((end - begin) / width), stream, args, begin, end);
    });
  });
  return last_error();
}

const char* rk_combine_bwd_dt(const RkCombineBwdDtArgs& args, void* stream) {
  const unsigned blocks = static_cast<unsigned>(args.n_items < kMaxBlocks ? args.n_items : kMaxBlocks);
  dispatch(args.grad_type, [&](auto types) {
    using Type = decltype(types);
    launch(combine_bwd_dt_kernel<typename Type::Compute, typename Type::Element>, blocks, stream, args);
  });
  return last_error();
}

}  // namespace msf::cuda

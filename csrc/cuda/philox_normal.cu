#include "launch.cuh"
#include "launchers.h"

namespace msf::cuda {
namespace {

constexpr int kPositions = 8;  // two counters per thread: 16 bytes also of a two-byte type

template <typename T, bool kIsPacked>
__global__ void __launch_bounds__(kThreads) normal_kernel(PhiloxNormalArgs args) {
  const int64_t pieces_per_item = (args.item_size + kPositions - 1) / kPositions;
  for (int64_t piece = first_piece(); piece < args.n_items * pieces_per_item; piece += piece_stride()) {
    const int64_t item = piece / pieces_per_item;
    const int64_t position = piece % pieces_per_item * kPositions;
    const NoiseKey key = noise_key(args.seed, args.stream, args.sample_index[item]);
    float normals[kPositions];
    MSF_UNROLL
    for (int half = 0; half < 2; ++half) {
      float* n = normals + 4 * half;
      four_normals(key, static_cast<uint32_t>(position / 4 + half), n[0], n[1], n[2], n[3]);
    }
    T* out = static_cast<T*>(args.out) + item * args.item_size + position;
    if constexpr (kIsPacked) {
      Pack<T, kPositions> pack;
      MSF_UNROLL
      for (int i = 0; i < kPositions; ++i) assign(pack.values[i], normals[i]);
      store_pack<T, kPositions>(out, pack);
    } else {
      MSF_UNROLL
      for (int i = 0; i < kPositions; ++i) {
        if (position + i < args.item_size) assign(out[i], normals[i]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) words_kernel(PhiloxWordsArgs args) {
  const uint32_t key0 = static_cast<uint32_t>(args.key[0]);
  const uint32_t key1 = static_cast<uint32_t>(args.key[1]);
  for (int64_t i = first_piece(); i < args.n; i += piece_stride()) {
    const int64_t* counter = args.counter + 4 * i;
    uint32_t c0 = static_cast<uint32_t>(counter[0]), c1 = static_cast<uint32_t>(counter[1]);
    uint32_t c2 = static_cast<uint32_t>(counter[2]), c3 = static_cast<uint32_t>(counter[3]);
    philox(c0, c1, c2, c3, key0, key1);
    int64_t* words = args.words + 4 * i;
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
  }
}

}  // namespace

const char* philox_normal(const PhiloxNormalArgs& args, void* stream) {
  const int64_t pieces = args.n_items * ((args.item_size + kPositions - 1) / kPositions);
  const bool is_packed = args.item_size % kPositions == 0 && is_aligned(args.out);
  dispatch(args.out_type, [&](auto types) {
    using T = typename decltype(types)::Element;
    auto* kernel = is_packed ? normal_kernel<T, true> : normal_kernel<T, false>;
    launch(kernel, blocks_for(pieces), stream, args);
  });
  return last_error();
}

const char* philox_words(const PhiloxWordsArgs& args, void* stream) {
  launch(words_kernel, blocks_for(args.n), stream, args);
  return last_error();
}

}  // namespace msf::cuda

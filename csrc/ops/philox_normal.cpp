#include "operators.h"
#include "run.h"

namespace msf {

Tensor philox_normal_fwd(const Tensor& sample_index, const std::vector<int64_t>& shape, int64_t seed, int64_t stream,
                         ScalarType dtype) {
  std::vector<int64_t> sizes{sample_index.size(0)};
  PhiloxNormalArgs args{};
  args.n_items = sample_index.size(0);
  args.item_size = 1;
  for (const int64_t size : shape) {
    sizes.push_back(size);
    args.item_size *= size;
  }
  Tensor out = empty(sample_index, sizes, dtype);
  if (out.numel() == 0) return out;
  const Tensor index = torch::stable::contiguous(sample_index);
  args.sample_index = index.const_data_ptr<int64_t>();
  args.out = out.mutable_data_ptr();
  args.out_type = scalar_of(out, "dtype");
  args.seed = seed;
  args.stream = stream;
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(out)) {
    const CudaScope scope(out);
    check_launch("philox_normal", cuda::philox_normal(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(philox_normal), args, args.n_items * cpu::noise_runs(args.item_size), grain(4 * cpu::kNoiseRun));
  return out;
}

Tensor philox_words_fwd(const Tensor& counter, const Tensor& key) {
  Tensor words = empty(counter, counter.sizes(), ScalarType::Long);
  if (words.numel() == 0) return words;
  const Tensor dense_counter = torch::stable::contiguous(counter);
  const Tensor dense_key = torch::stable::contiguous(key);
  PhiloxWordsArgs args{};
  args.counter = dense_counter.const_data_ptr<int64_t>();
  args.key = dense_key.const_data_ptr<int64_t>();
  args.words = words.mutable_data_ptr<int64_t>();
  args.n = counter.size(0);
#if defined(MSF_WITH_CUDA)
  if (runs_on_cuda(words)) {
    const CudaScope scope(words);
    check_launch("philox_words", cuda::philox_words(args, scope.stream()));
  } else
#endif
    run_cpu(MSF_AT_LEVEL(philox_words), args, args.n, grain(16));
  return words;
}

}  // namespace msf

#include "kernels.h"
#include "noise.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {

void philox_normal(const PhiloxNormalArgs& args, int64_t begin, int64_t end) {
  const int64_t runs_per_item = noise_runs(args.item_size);
  for (int64_t run = begin; run < end; ++run) {
    const int64_t item = run / runs_per_item;
    const int64_t start = (run % runs_per_item) * kNoiseRun;
    const int64_t n = start + kNoiseRun < args.item_size ? kNoiseRun : args.item_size - start;
    float normals[kNoiseRun];
    fill_normals(noise_key(args.seed, args.stream, args.sample_index[item]), static_cast<uint32_t>(start / 4),
                 (n + 3) / 4, normals);
    visit(args.out_type, args.out, item * args.item_size + start, [&](auto* out) { convert(out, normals, n); });
  }
}

void philox_words(const PhiloxWordsArgs& args, int64_t begin, int64_t end) {
  const uint32_t key0 = static_cast<uint32_t>(args.key[0]);
  const uint32_t key1 = static_cast<uint32_t>(args.key[1]);
  for (int64_t i = begin; i < end; ++i) {
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

}  // namespace msf::cpu::MSF_LEVEL

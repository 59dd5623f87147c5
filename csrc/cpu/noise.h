// Runs of Philox normals, vectorised over the counter.
#pragma once

#include "msf/philox.h"

namespace msf::cpu {

// The normals of n_blocks blocks of four positions; writes up to the next multiple of 16 blocks.
static inline void fill_normals(const NoiseKey& key, uint32_t first_block, int64_t n_blocks, float* normals) {
  constexpr int kLanes = 16;
  for (int64_t start = 0; start < n_blocks; start += kLanes) {
    float n0[kLanes], n1[kLanes], n2[kLanes], n3[kLanes];
    const uint32_t block = first_block + static_cast<uint32_t>(start);
    for (int lane = 0; lane < kLanes; ++lane) {
      four_normals(key, block + static_cast<uint32_t>(lane), n0[lane], n1[lane], n2[lane], n3[lane]);
    }
    float* out = normals + 4 * start;
    for (int lane = 0; lane < kLanes; ++lane) {
      out[4 * lane] = n0[lane];
      out[4 * lane + 1] = n1[lane];
      out[4 * lane + 2] = n2[lane];
      out[4 * lane + 3] = n3[lane];
    }
  }
}

}  // namespace msf::cpu

// Philox4x32-10 (Salmon et al., SC 2011) and normals from it by Box and Muller.
#pragma once

#include "msf/math.h"

namespace msf {

// Replaces the four counter words by the four random words of the key.
MSF_HOST_DEVICE void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key0, uint32_t key1) {
  MSF_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// A word as a number in (0, 1], rounded to float before the exact product.
MSF_HOST_DEVICE float uniform(uint32_t word) { return static_cast<float>(word) * 0x1p-32f + 0x1p-33f; }

MSF_HOST_DEVICE void box_muller(uint32_t radius_word, uint32_t angle_word, float& first, float& second) {
  const float radius = square_root(-2.0f * logarithm(uniform(radius_word)));
  float cosine, sine;
  cosine_sine_of_turns(uniform(angle_word), cosine, sine);
  first = radius * cosine;
  second = radius * sine;
}

// What identifies the noise of one sample.
struct NoiseKey {
  uint32_t key0, key1;    // low and high half of the seed
  uint32_t stream;
  uint32_t index0, index1;  // low and high half of the sample index
};

MSF_HOST_DEVICE NoiseKey noise_key(int64_t seed, int64_t stream, int64_t sample_index) {
  const uint64_t s = static_cast<uint64_t>(seed);
  const uint64_t i = static_cast<uint64_t>(sample_index);
  return {static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32), static_cast<uint32_t>(stream),
          static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32)};
}

// The normals of positions 4 block .. 4 block + 3.
MSF_HOST_DEVICE void four_normals(const NoiseKey& key, uint32_t block, float& n0, float& n1, float& n2, float& n3) {
  uint32_t c0 = block, c1 = key.stream, c2 = key.index0, c3 = key.index1;
  philox(c0, c1, c2, c3, key.key0, key.key1);
  box_muller(c0, c1, n0, n1);
  box_muller(c2, c3, n2, n3);
}

struct PhiloxNormalArgs {
  const int64_t* sample_index;  // [n_items]
  void* out;                    // [n_items, item_size], contiguous
  Scalar out_type;
  int64_t seed;
  int64_t stream;
  int64_t n_items;
  int64_t item_size;
};

struct PhiloxWordsArgs {
  const int64_t* counter;  // [n, 4]; the low 32 bits count
  const int64_t* key;      // [2]
  int64_t* words;          // [n, 4]
  int64_t n;
};

}  // namespace msf

// Where the elements of a feature map [N, C, H, W] are: pixel (h, w) is number h * W + w.
#pragma once

#include <cstdint>

namespace msf {

struct MapStrides {
  int64_t item, channel, pixel;
};

}  // namespace msf

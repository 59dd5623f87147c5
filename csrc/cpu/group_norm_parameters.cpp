// Gradients of the group norm's parameters from the sums over each item's pixels.
#include "kernels.h"

namespace msf::cpu::MSF_LEVEL {

void group_norm_parameters(const GroupNormParameterArgs& args, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) parameter_gradients(args, channel);
}

}  // namespace msf::cpu::MSF_LEVEL

// Launches of the CUDA kernels: pointers of one device, which is current, and a stream of it. Each returns null, or the
// text of a CUDA error. No header of CUDA is needed to call them.
#pragma once

#include "msf/class_distance.h"
#include "msf/group_norm.h"
#include "msf/philox.h"
#include "msf/rk_combine.h"
#include "msf/symmetric_path.h"

namespace msf::cuda {

const char* rk_combine(const RkCombineArgs& args, void* stream);
const char* rk_combine_bwd(const RkCombineBwdArgs& args, void* stream);
const char* rk_combine_bwd_dt(const RkCombineBwdDtArgs& args, void* stream);
const char* philox_normal(const PhiloxNormalArgs& args, void* stream);
const char* philox_words(const PhiloxWordsArgs& args, void* stream);
const char* symmetric_path(const SymmetricPathArgs& args, void* stream);
const char* symmetric_path_bwd(const SymmetricPathBwdArgs& args, void* stream);
const char* class_distance(const ClassDistanceArgs& args, void* stream);
const char* class_distance_bwd(const ClassDistanceBwdArgs& args, void* stream);
const char* group_norm_silu(const GroupNormArgs& args, bool interleaved, void* stream);
const char* group_norm_silu_bwd(const GroupNormBwdArgs& args, const GroupNormParameterArgs& parameters,
                                bool interleaved, void* stream);

}  // namespace msf::cuda

// Entry points of the CPU loops: each does a range of independent pieces of work, in one thread.
#pragma once

#include "levels.h"
#include "msf/class_distance.h"
#include "msf/convolution.h"
#include "msf/group_norm.h"
#include "msf/philox.h"
#include "msf/rk_combine.h"
#include "msf/scaled_error.h"
#include "msf/spatial_attention.h"
#include "msf/symmetric_path.h"

namespace msf::cpu {

constexpr int64_t kNoiseRun = 1024;  // normals that are made at once

static inline int64_t noise_runs(int64_t n_positions) { return (n_positions + kNoiseRun - 1) / kNoiseRun; }

}  // namespace msf::cpu

// Elements [begin, end) of the flat result.
MSF_DECLARE_LEVELS(rk_combine, const RkCombineArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(rk_combine_bwd, const RkCombineBwdArgs& args, int64_t begin, int64_t end)

// Items [begin, end).
MSF_DECLARE_LEVELS(rk_combine_bwd_dt, const RkCombineBwdDtArgs& args, int64_t begin, int64_t end)

// Blocks [begin, end) of kErrorBlock pixels, those of an item after those of the item before.
MSF_DECLARE_LEVELS(scaled_error_norm, const ScaledErrorArgs& args, int64_t begin, int64_t end)

// Runs [begin, end), the runs of an item after those of the item before.
MSF_DECLARE_LEVELS(philox_normal, const PhiloxNormalArgs& args, int64_t begin, int64_t end)

// Counters [begin, end).
MSF_DECLARE_LEVELS(philox_words, const PhiloxWordsArgs& args, int64_t begin, int64_t end)

// Runs [begin, end): for each item those of the image, then those of the semantic map.
MSF_DECLARE_LEVELS(symmetric_path, const SymmetricPathArgs& args, int64_t begin, int64_t end)

// Channels [begin, end) of the joint gradient, those of an item after those of the item before.
MSF_DECLARE_LEVELS(symmetric_path_bwd, const SymmetricPathBwdArgs& args, int64_t begin, int64_t end)

// Chunks [begin, end) of pixels, those of an item after those of the item before; then items, or entries of the codes.
MSF_DECLARE_LEVELS(class_distance, const ClassDistanceArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(class_distance_merge, const ClassDistanceArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(class_distance_bwd, const ClassDistanceBwdArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(class_distance_bwd_merge, const ClassDistanceBwdArgs& args, int64_t begin, int64_t end)

// Tasks [begin, end), see GroupNormArgs. Planar: pixels are next to each other; interleaved: channels are.
MSF_DECLARE_LEVELS(group_norm_planar, const GroupNormArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(group_norm_interleaved, const GroupNormArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(group_norm_bwd_planar, const GroupNormBwdArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(group_norm_bwd_interleaved, const GroupNormBwdArgs& args, int64_t begin, int64_t end)

// Channels [begin, end).
MSF_DECLARE_LEVELS(group_norm_parameters, const GroupNormParameterArgs& args, int64_t begin, int64_t end)

// Heads [begin, end), those of an item after those of the item before. Of pairs: bfloat16, head dimension a multiple of
// 16, and only where `has_pair_dots()`.
MSF_DECLARE_LEVELS(spatial_attention, const AttentionArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(attention_of_pairs, const AttentionArgs& args, int64_t begin, int64_t end)

// Panels [begin, end) of the weight, those of a phase after those of the phase before; then pieces, see ConvArgs. Of
// pairs: bfloat16, and only where `has_pair_dots()`.
MSF_DECLARE_LEVELS(convolution_weight, const ConvWeightArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(convolution, const ConvArgs& args, int64_t begin, int64_t end)
MSF_DECLARE_LEVELS(convolution_of_pairs, const ConvArgs& args, int64_t begin, int64_t end)

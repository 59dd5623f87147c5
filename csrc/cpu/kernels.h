// Entry points of the CPU loops: each does a range of independent pieces of work, in one thread.
#pragma once

#include "levels.h"
#include "msf/rk_combine.h"

// Elements [begin, end) of the flat result.
MSF_DECLARE_LEVELS(rk_combine, const RkCombineArgs& args, int64_t begin, int64_t end)

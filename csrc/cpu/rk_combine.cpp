#include <type_traits>

#include "kernels.h"
#include "lanes.h"
#include "slopes.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int kMaxPlainSlopes = 6;
constexpr int64_t kPlainBlock = 16384;  // no sum is kept, and fewer turns disturb the prefetcher less

template <typename C, typename S>
void add_state(C* sum, const S* state, S* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    C value;
    assign(value, state[i]);
    sum[i] = with_state(sum[i], value);
    assign(out[i], sum[i]);
  }
}

// Calls f(start, n, coefficients) for blocks of elements that belong to one item, the last block first: what the
// velocity field wrote last is still in the near cache, and what is written last here is what the field reads first.
template <typename C, typename Args, typename F>
void for_each_block(const Args& args, int64_t begin, int64_t end, int64_t max_size, F&& f) {
  C coefficients[kMaxSlopes];
  int64_t coefficients_of = -1;
  for (int64_t stop = end; stop > begin;) {
    const int64_t item = (stop - 1) / args.item_size;
    const int64_t item_begin = item * args.item_size;
    int64_t n = begin > item_begin ? stop - begin : stop - item_begin;
    n = n < max_size ? n : max_size;
    if (item != coefficients_of) {
      const double dt = item_step(args, item);
      for (int i = 0; i < args.n_slopes; ++i) coefficients[i] = coefficient_of<C>(args, dt, i);
      coefficients_of = item;
    }
    f(stop - n, n, coefficients);
    stop -= n;
  }
}

// The same arithmetic in one loop, for slopes of the state's own type, up to the six of Dormand and Prince's method: no
// sum goes through memory.
template <int kSlopes, typename C>
void add_all(const RkCombineArgs& args, const C* coefficients, int64_t start, int64_t n) {
  const C* slopes[kSlopes];
  for (int i = 0; i < kSlopes; ++i) slopes[i] = static_cast<const C*>(args.slopes[i]) + start;
  const C* state = static_cast<const C*>(args.state) + start;
  C* out = static_cast<C*>(args.out) + start;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep  // out may be state itself, which would otherwise send the loop to its scalar version
#endif
  for (int64_t i = 0; i < n; ++i) {
    C sum = coefficients[0] * slopes[0][i];
    for (int k = 1; k < kSlopes; ++k) sum = with_slope(sum, coefficients[k], slopes[k][i]);
    out[i] = with_state(sum, state[i]);
  }
}

bool is_plain(const RkCombineArgs& args) {
  bool is_plain = args.cast_out == nullptr && args.n_slopes >= 1 && args.n_slopes <= kMaxPlainSlopes;
  for (int i = 0; i < args.n_slopes; ++i) is_plain = is_plain && args.slope_types[i] == args.state_type;
  return is_plain;
}

template <typename C>
void combine_plain(const RkCombineArgs& args, int64_t begin, int64_t end) {
  for_each_block<C>(args, begin, end, kPlainBlock, [&](int64_t start, int64_t n, const C* coefficients) {
    switch (args.n_slopes) {
      case 1:
        return add_all<1>(args, coefficients, start, n);
      case 2:
        return add_all<2>(args, coefficients, start, n);
      case 3:
        return add_all<3>(args, coefficients, start, n);
      case 4:
        return add_all<4>(args, coefficients, start, n);
      case 5:
        return add_all<5>(args, coefficients, start, n);
      default:
        return add_all<kMaxPlainSlopes>(args, coefficients, start, n);
    }
  });
}

template <typename C, typename S>
void combine(const RkCombineArgs& args, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<C, S>) {
    if (is_plain(args)) return combine_plain<C>(args, begin, end);
  }
  for_each_block<C>(args, begin, end, kBlock, [&](int64_t start, int64_t n, const C* coefficients) {
    C sum[kBlock];
    add_slopes(args, coefficients, start, n, sum);
    add_state(sum, static_cast<const S*>(args.state) + start, static_cast<S*>(args.out) + start, n);
    if (args.cast_out != nullptr) {
      visit(args.cast_type, args.cast_out, start, [&](auto* out) { convert(out, sum, n); });
    }
  });
}

template <typename C, typename S>
void combine_bwd(const RkCombineBwdArgs& args, int64_t begin, int64_t end) {
  for_each_block<C>(args, begin, end, kBlock, [&](int64_t start, int64_t n, const C* coefficients) {
    C grad[kBlock];
    convert(grad, static_cast<const S*>(args.grad) + start, n);
    for (int i = 0; i < args.n_slopes; ++i) {
      visit(args.slope_types[i], args.grad_slopes[i], start, [&](auto* grad_slope) {
        for (int64_t j = 0; j < n; ++j) assign(grad_slope[j], coefficients[i] * grad[j]);
      });
    }
  });
}

template <typename C, typename S>
void combine_bwd_dt(const RkCombineBwdDtArgs& args, int64_t item) {
  C weights[kMaxSlopes];
  for (int i = 0; i < args.n_slopes; ++i) weights[i] = coefficient_of<C>(args, 1.0, i);
  double total = 0;
  for (int64_t start = item * args.item_size; start < (item + 1) * args.item_size; start += kBlock) {
    const int64_t left = (item + 1) * args.item_size - start;
    const int64_t n = left < kBlock ? left : kBlock;
    C direction[kBlock];
    add_slopes(args, weights, start, n, direction);
    const S* grad = static_cast<const S*>(args.grad) + start;
    total += sum<C>(n, [&](int64_t i) {
      C value;
      assign(value, grad[i]);
      return value * direction[i];
    });
  }
  static_cast<C*>(args.grad_dt)[item] = static_cast<C>(total);
}

}  // namespace

void rk_combine(const RkCombineArgs& args, int64_t begin, int64_t end) {
  dispatch(args.state_type, [&](auto types) {
    using Type = decltype(types);
    combine<typename Type::Compute, typename Type::Element>(args, begin, end);
  });
}

void rk_combine_bwd(const RkCombineBwdArgs& args, int64_t begin, int64_t end) {
  dispatch(args.grad_type, [&](auto types) {
    using Type = decltype(types);
    combine_bwd<typename Type::Compute, typename Type::Element>(args, begin, end);
  });
}

void rk_combine_bwd_dt(const RkCombineBwdDtArgs& args, int64_t begin, int64_t end) {
  dispatch(args.grad_type, [&](auto types) {
    using Type = decltype(types);
    for (int64_t item = begin; item < end; ++item) {
      combine_bwd_dt<typename Type::Compute, typename Type::Element>(args, item);
    }
  });
}

}  // namespace msf::cpu::MSF_LEVEL

#include "msf/scaled_error.h"

#include "kernels.h"
#include "lanes.h"
#include "slopes.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

// Adds the squares of n <= kBlock scaled errors that are next to each other: element i to lanes[i % width].
template <typename C, typename S>
void add_squares(const ScaledErrorArgs& args, const C* coefficients, int64_t start, int64_t n, C* lanes, int width) {
  C scaled[kBlock];
  add_slopes(args, coefficients, start, n, scaled);
  const S* state = static_cast<const S*>(args.state) + start;
  const S* next_state = static_cast<const S*>(args.next_state) + start;
  const C rtol = static_cast<C>(args.rtol), atol = static_cast<C>(args.atol);
  for (int64_t i = 0; i < n; ++i) {
    C before, after;
    assign(before, state[i]);
    assign(after, next_state[i]);
    scaled[i] /= tolerance_of(before, after, rtol, atol);
  }
  if (width == kLanes) {
    for_each_lane(n, [&](int64_t i, int lane) { lanes[lane] = multiply_add(scaled[i], scaled[i], lanes[lane]); });
  } else {
    for (int64_t begin = 0; begin < n; begin += width) {
      const C* turn = scaled + begin;
      const int64_t left = n - begin < width ? n - begin : width;
      for (int64_t i = 0; i < left; ++i) lanes[i] = multiply_add(turn[i], turn[i], lanes[i]);
    }
  }
}

// The sum of a block of pixels: lanes of a row, then rows from the first to the last, whatever the layout.
template <typename C, typename S>
double sum_of_block(const ScaledErrorArgs& args, const C* coefficients, int64_t item, int64_t block) {
  const int64_t n_pixels = args.item_size / args.n_rows;
  const int64_t begin = block * kErrorBlock;
  const int64_t n = n_pixels - begin < kErrorBlock ? n_pixels - begin : kErrorBlock;
  const int64_t item_begin = item * args.item_size;
  double total = 0;
  if (!args.is_interleaved) {
    for (int64_t row = 0; row < args.n_rows; ++row) {
      C lanes[kLanes] = {};
      add_squares<C, S>(args, coefficients, item_begin + row * n_pixels + begin, n, lanes, kLanes);
      total += sum_of_lanes(lanes);
    }
    return total;
  }
  C lanes[kBlock] = {};  // [kLanes, n_rows]
  const int n_rows = static_cast<int>(args.n_rows), width = kLanes * n_rows;
  const int64_t turns = kBlock / width * width;
  for (int64_t i = 0; i < n * n_rows; i += turns) {
    const int64_t left = n * n_rows - i;
    add_squares<C, S>(args, coefficients, item_begin + begin * n_rows + i, left < turns ? left : turns, lanes, width);
  }
  for (int row = 0; row < n_rows; ++row) {
    C of_row[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) of_row[lane] = lanes[lane * n_rows + row];
    total += sum_of_lanes(of_row);
  }
  return total;
}

}  // namespace

void scaled_error_norm(const ScaledErrorArgs& args, int64_t begin, int64_t end) {
  dispatch(args.state_type, [&](auto types) {
    using Type = decltype(types);
    using C = typename Type::Compute;
    C coefficients[kMaxSlopes];
    int64_t coefficients_of = -1;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t item = piece / args.n_blocks;
      if (item != coefficients_of) {
        const double dt = item_step(args, item);
        for (int i = 0; i < args.n_slopes; ++i) coefficients[i] = coefficient_of<C>(args, dt, i);
        coefficients_of = item;
      }
      args.partial[piece] = sum_of_block<C, typename Type::Element>(args, coefficients, item, piece % args.n_blocks);
    }
  });
}

}  // namespace msf::cpu::MSF_LEVEL

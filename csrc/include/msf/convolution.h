// Convolution of feature maps with 1x1 or 3x3 taps as products of transformed maps and weights: how the work is cut.
//
// Every form multiplies, for each of its frequencies, a matrix [rows, inner] by a matrix [inner, outputs]. A row is a
// tile of the output map (direct: a pixel), the inner axis the channels of the input (direct: of all taps).
#pragma once

#include "msf/macros.h"

namespace msf {

// Direct: no transform. The others are Winograd's F(outputs, taps) in both axes: F(2, 3), F(4, 3), F(4, 2) and F(2, 2).
//
// A map that is doubled by repetition is convolved in four phases, one per parity of the output's row and column: each is
// a convolution of the small map with 2x2 summed taps, direct, F(4, 2) or F(2, 2).
enum class ConvForm : int64_t { kDirect, kTwo, kFour, kDoubling, kDoublingTwo };

MSF_HOST_DEVICE constexpr bool is_doubling(ConvForm form) {
  return form == ConvForm::kDoubling || form == ConvForm::kDoublingTwo;
}

constexpr int64_t kPanel = 32;  // output channels that are next to each other in the packed weight
constexpr int64_t kChunk = 16;  // words of a packed row that are next to each other

// Input values per axis of a tile, and output values.
MSF_HOST_DEVICE constexpr int64_t tile_inputs(ConvForm form) {
  constexpr int64_t kInputs[] = {1, 4, 6, 5, 3};
  return kInputs[static_cast<int64_t>(form)];
}
MSF_HOST_DEVICE constexpr int64_t tile_outputs(ConvForm form) {
  constexpr int64_t kOutputs[] = {1, 2, 4, 4, 2};
  return kOutputs[static_cast<int64_t>(form)];
}

MSF_HOST_DEVICE constexpr int64_t pieces_of(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// A member that leaves no copy of its own, which would be merged across instruction sets.
#define MSF_MEMBER __attribute__((always_inline))

struct ConvWeightArgs {
  const float* weight;  // [phases, K, C, side, side]
  int64_t phase_stride, out_stride, in_stride, row_stride, column_stride;
  float* packed;  // [phases, panels, frequencies, inner, kPanel], zeros beyond the last output
  int64_t in_channels, out_channels, side;
  ConvForm form;
};

// Maps and bias are float32, or bfloat16 (of pairs). A thread's pieces are [begin, end) of phases x blocks of rows x panels; consecutive panels of a block share its
// transformed input.
struct ConvArgs {
  const void* x;  // [N, H, W, C], channels next to each other
  int64_t x_item_stride, x_pixel_stride;
  const float* weight;   // as packed above; of pairs: words of two inner elements each, zeros beyond the last
  const void* bias;      // [K], or null
  const void* residual;  // [N * OH * OW, K], channels next to each other, or null
  int64_t residual_pixel_stride;
  void* out;  // [N, OH, OW, K], dense
  int64_t n_items, in_channels, out_channels, height, width;
  int64_t n_phases, step;             // 4 and 2 for doubled maps, else 1 and 1; step: from an output to the next of its phase
  int64_t phase_height, phase_width;  // outputs of one phase
  int64_t side, stride;               // taps per axis and, direct only, step of the input
  int64_t block_rows;                 // rows that are transformed at once
  ConvForm form;

  MSF_MEMBER int64_t n_panels() const { return pieces_of(out_channels, kPanel); }
  MSF_MEMBER int64_t tiles_down() const { return pieces_of(phase_height, tile_outputs(form)); }
  MSF_MEMBER int64_t tiles_across() const { return pieces_of(phase_width, tile_outputs(form)); }
  MSF_MEMBER int64_t n_rows() const { return n_items * tiles_down() * tiles_across(); }
  MSF_MEMBER int64_t n_blocks() const { return pieces_of(n_rows(), block_rows); }
  MSF_MEMBER int64_t n_pieces() const { return n_phases * n_blocks() * n_panels(); }
};

}  // namespace msf

// The weights of a convolution, transformed in double and rounded once, in panels of output channels.
#include "kernels.h"
#include "winograd.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int kMaxTaps = 3;

// The taps of one input channel for all outputs of a panel, zeros beyond the last output.
void gather(const ConvWeightArgs& args, const float* from, int64_t n_out, double* to) {
  for (int64_t row = 0; row < args.side; ++row) {
    for (int64_t column = 0; column < args.side; ++column) {
      const float* tap = from + row * args.row_stride + column * args.column_stride;
      for (int64_t k = 0; k < n_out; ++k) to[k] = tap[k * args.out_stride];
      for (int64_t k = n_out; k < kPanel; ++k) to[k] = 0;
      to += kPanel;
    }
  }
}

template <typename Form>
void transform(const double* taps, int64_t frequency_stride, float* to) {
  constexpr int kInputs = Form::kInputs, kTaps = Form::kTaps;
  double rows[kInputs][kTaps][kPanel];
  MSF_UNROLL
  for (int i = 0; i < kInputs; ++i) {
    for (int s = 0; s < kTaps; ++s) {
      for (int64_t k = 0; k < kPanel; ++k) {
        double sum = 0;
        for (int r = 0; r < kTaps; ++r) sum += Form::kFactors.of[i][r] * taps[(r * kTaps + s) * kPanel + k];
        rows[i][s][k] = sum;
      }
    }
  }
  for (int i = 0; i < kInputs; ++i) {
    MSF_UNROLL
    for (int j = 0; j < kInputs; ++j) {
      float* frequency = to + (i * kInputs + j) * frequency_stride;
      for (int64_t k = 0; k < kPanel; ++k) {
        double sum = 0;
        for (int s = 0; s < kTaps; ++s) sum += rows[i][s][k] * Form::kFactors.of[j][s];
        frequency[k] = static_cast<float>(sum);
      }
    }
  }
}

}  // namespace

void convolution_weight(const ConvWeightArgs& args, int64_t begin, int64_t end) {
  const int64_t panels = pieces_of(args.out_channels, kPanel), channels = args.in_channels;
  const bool is_direct = args.form == ConvForm::kDirect;
  const int64_t n_taps = args.side * args.side;
  const int64_t inputs = tile_inputs(args.form);
  const int64_t panel_size = (is_direct ? n_taps : inputs * inputs) * channels * kPanel;
  double taps[kMaxTaps * kMaxTaps * kPanel];
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece % panels * kPanel;
    const int64_t n_out = args.out_channels - first < kPanel ? args.out_channels - first : kPanel;
    const float* from = args.weight + piece / panels * args.phase_stride + first * args.out_stride;
    float* to = args.packed + piece * panel_size;
    for (int64_t c = 0; c < channels; ++c) {
      gather(args, from + c * args.in_stride, n_out, taps);
      float* of_channel = to + c * kPanel;
      if (is_direct) {
        for (int64_t tap = 0; tap < n_taps; ++tap) {
          float* values = of_channel + tap * channels * kPanel;
          for (int64_t k = 0; k < kPanel; ++k) values[k] = static_cast<float>(taps[tap * kPanel + k]);
        }
      } else {
        visit_form(args.form, [&](auto form) { transform<decltype(form)>(taps, channels * kPanel, of_channel); });
      }
    }
  }
}

}  // namespace msf::cpu::MSF_LEVEL

// The weights of a convolution, transformed in double and rounded once, in panels of output channels.
#include "kernels.h"
#include "winograd.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kMaxTaps = 9;

// The taps of up to kChunk input channels for all outputs of a panel, zeros beyond the last output: to[c, tap, k]. What
// is next to each other in the weight, in either memory format, is read at once.
void gather(const ConvWeightArgs& args, const float* from, int64_t n_out, int64_t n_in, float* to) {
  const int64_t n_taps = args.side * args.side;
  for (int64_t k = 0; k < kPanel; ++k) {
    const float* of_output = from + k * args.out_stride;
    for (int64_t tap = 0; tap < n_taps; ++tap) {
      const int64_t offset = tap / args.side * args.row_stride + tap % args.side * args.column_stride;
      for (int64_t c = 0; c < n_in; ++c) {
        to[(c * n_taps + tap) * kPanel + k] = k < n_out ? of_output[offset + c * args.in_stride] : 0;
      }
    }
  }
}

template <typename Form>
void transform(const float* taps, int64_t frequency_stride, float* to) {
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
  float taps[kChunk * kMaxTaps * kPanel];
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece % panels * kPanel;
    const int64_t n_out = args.out_channels - first < kPanel ? args.out_channels - first : kPanel;
    const float* from = args.weight + piece / panels * args.phase_stride + first * args.out_stride;
    float* to = args.packed + piece * panel_size;
    for (int64_t c = 0; c < channels; ++c) {
      if (c % kChunk == 0) {
        gather(args, from + c * args.in_stride, n_out, channels - c < kChunk ? channels - c : kChunk, taps);
      }
      const float* of_channel = taps + c % kChunk * n_taps * kPanel;
      if (is_direct) {
        for (int64_t tap = 0; tap < n_taps; ++tap) {
          __builtin_memcpy(to + (tap * channels + c) * kPanel, of_channel + tap * kPanel, kPanel * sizeof(float));
        }
      } else {
        visit_form(args.form, [&](auto form) {
          transform<decltype(form)>(of_channel, channels * kPanel, to + c * kPanel);
        });
      }
    }
  }
}

}  // namespace msf::cpu::MSF_LEVEL

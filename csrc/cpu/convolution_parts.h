// Convolutions by transformed tiles: input tiles are transformed into packed rows once per block of rows; then, for each
// panel of output channels, every frequency is a product of matrices whose sums stay in registers, and the transform of
// the outputs adds the bias and the residual while it writes.
//
// What is multiplied are words of 32 bits. `Numbers` says what a word holds and how it is multiplied:
//   Element         type of the maps and of the bias; transforms and sums are float
//   kPer            elements of a word
//   pack            a vector of words from kPer vectors of float
//   multiply_add    sum + the product of two words, as float
//   chain_of(inner) words that are summed in one chain; chains are added one after another
//   load_first, store_first, value_of    between elements and float
//
// Every output is summed over the inner axis in one order, whatever else is computed beside it.
#pragma once

#include <utility>

#include "kernels.h"
#include "winograd.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kRows = 14;  // rows of a tile of the product: 14 x 2 sums, a row of the weight and a broadcast
#else
constexpr int64_t kRows = 6;
#endif
constexpr int kColumns = 2;  // vectors of a tile's row
constexpr int64_t kGap = 16;  // words between frequencies, so that not all are in one set of the cache
constexpr int64_t kCacheLine = 16;
constexpr int64_t kLines = kPanel / kCacheLine;  // of a row of the weight

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// m[r, j] = sum over i of v[r, i] u[i, j], for kR rows and kC vectors, in chains that are added one after another.
// v: [chunks, kRows, kChunk]; u: [inner, kPanel]; words, carried as float.
template <typename Numbers, int kR, int kC>
void multiply_tile(const float* v, const float* u, int64_t inner, int64_t chain, float* m, const float* ahead,
                   int64_t ahead_step) {
  for (int64_t first = 0; first < inner; first += chain) {
    Vector sum[kR][kC];
    MSF_UNROLL
    for (int r = 0; r < kR; ++r) {
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) sum[r][w] = Vector{};
    }
    const auto add = [&](int64_t i) __attribute__((always_inline)) {
      Vector column[kC];
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) column[w] = load(u + i * kPanel + w * kWidth);
      MSF_UNROLL
      for (int r = 0; r < kR; ++r) {
        const Vector row = broadcast(v[r * kChunk + i]);
        MSF_UNROLL
        for (int w = 0; w < kC; ++w) sum[r][w] = Numbers::multiply_add(row, column[w], sum[r][w]);
      }
    };
    int64_t left = smaller(chain, inner - first);
    for (; left >= kChunk; left -= kChunk) {
      for (int64_t i = 0; i < kChunk; i += 2) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += ahead_step;
        add(i);
        __builtin_prefetch(ahead, 0, 2);
        ahead += ahead_step;
        add(i + 1);
      }
      v += kRows * kChunk;
      u += kChunk * kPanel;
    }
    for (int64_t i = 0; i < left; ++i) add(i);
    MSF_UNROLL
    for (int r = 0; r < kR; ++r) {
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) {
        float* to = m + r * kPanel + w * kWidth;
        store(to, first == 0 ? sum[r][w] : load(to) + sum[r][w]);
      }
    }
  }
}

using Tile = void (*)(const float*, const float*, int64_t, int64_t, float*, const float*, int64_t);

template <typename Numbers>
struct TileKernel {
  using Function = Tile;
  template <int kR, int kC>
  static constexpr Function of = multiply_tile<Numbers, kR, kC>;
};

// The kernel of so many rows, of 1 to kRows, with kC vectors of columns.
template <typename Kernel, int kC, int... kR>
typename Kernel::Function kernel_of(int64_t rows, std::integer_sequence<int, kR...>) {
  constexpr typename Kernel::Function kKernels[] = {Kernel::template of<kR + 1, kC>...};
  return kKernels[rows - 1];
}

template <typename Kernel, int kC>
typename Kernel::Function kernel_of(int64_t rows) {
  return kernel_of<Kernel, kC>(rows, std::make_integer_sequence<int, kRows>());
}

template <typename Kernel>
typename Kernel::Function kernel_of(int64_t rows, int64_t columns) {
  return columns == 1 ? kernel_of<Kernel, 1>(rows) : kernel_of<Kernel, kColumns>(rows);
}

// Words that hold the channels of a pixel, and those of a packed row.
template <typename Numbers>
int64_t words_of_pixel(const ConvArgs& args) {
  return pieces_of(args.in_channels, Numbers::kPer);
}
template <typename Numbers>
int64_t words_of_row(const ConvArgs& args) {
  return words_of_pixel<Numbers>(args) * (args.form == ConvForm::kDirect ? args.side * args.side : 1);
}

template <typename Numbers>
void read_bias(const ConvArgs& args, int64_t channel, int64_t n, float (&bias)[kPanel]) {
  if (args.bias == nullptr) return;
  const auto* from = static_cast<const typename Numbers::Element*>(args.bias) + channel;
  for (int64_t k = 0; k < n; ++k) bias[k] = Numbers::value_of(from[k]);
}

// The lines that hold up to kPanel outputs of a pixel.
template <typename Element>
void prefetch_outputs(const Element* to) {
  __builtin_prefetch(to, 1);
  if constexpr (sizeof(Element) == 4) __builtin_prefetch(to + kCacheLine, 1);
}

// Where a row of the product is in the maps.
struct Position {
  int64_t item, down, across;  // the tile
};

Position position_of(const ConvArgs& args, int64_t row) {
  const int64_t across = args.tiles_across(), tiles = args.tiles_down() * across;
  return {row / tiles, row % tiles / across, row % across};
}

template <typename Form, typename Numbers>
class Block {
  using Element = typename Numbers::Element;

 public:
  explicit Block(const ConvArgs& args)
      : args_(args), inner_(words_of_row<Numbers>(args)), chain_(Numbers::chain_of(inner_)) {
    const int64_t row_tiles = pieces_of(args.block_rows, kRows);
    tile_stride_ = pieces_of(inner_, kChunk) * kRows * kChunk;
    v_stride_ = row_tiles * tile_stride_ + kGap;
    m_stride_ = row_tiles * kRows * kPanel + kGap;
    const int64_t zeros = pieces_of(words_of_pixel<Numbers>(args), kChunk) * kChunk;
    memory_ = new float[static_cast<size_t>(kCacheLine + zeros + kFrequencies * (v_stride_ + m_stride_))];
    const auto misplaced = reinterpret_cast<uintptr_t>(memory_) / sizeof(float) % kCacheLine;
    float* first = memory_ + (kCacheLine - misplaced);
    for (int64_t c = 0; c < zeros; ++c) first[c] = 0;
    zeros_ = reinterpret_cast<const Element*>(first);
    v_ = first + zeros;
    m_ = v_ + kFrequencies * v_stride_;
    positions_ = new Position[static_cast<size_t>(args.block_rows)];
  }
  ~Block() {
    delete[] positions_;
    delete[] memory_;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Packs the inputs of rows [first, first + n) of a phase.
  void read(int64_t phase, int64_t first, int64_t n) {
    phase_ = phase;
    n_ = n;
    tile_rows_ = pieces_of(n, pieces_of(n, kRows));
    for (int64_t row = 0; row < n; ++row) {
      positions_[row] = position_of(args_, first + row);
      float* to = v_ + row / tile_rows_ * tile_stride_ + row % tile_rows_ * kChunk;
      if constexpr (Form::kForm == ConvForm::kDirect) {
        gather(positions_[row], to);
      } else {
        transform_input(positions_[row], to);
      }
    }
  }

  // Multiplies by a panel of the weight and writes its outputs.
  void write(int64_t panel) {
    const int64_t first_channel = panel * kPanel;
    const int64_t n_out = smaller(kPanel, args_.out_channels - first_channel);
    const float* u = args_.weight + (phase_ * args_.n_panels() + panel) * kFrequencies * inner_ * kPanel;
    float bias[kPanel] = {};
    read_bias<Numbers>(args_, first_channel, n_out, bias);
    if constexpr (kFrequencies == 1) {  // a tile's outputs are complete, and still in the first-level cache
      for (int64_t row = 0; row < n_; row += tile_rows_) {
        const int64_t end = smaller(n_, row + tile_rows_);
        prefetch_tiles(row, end, first_channel);
        multiply(0, row, u, n_out);
        transform_outputs(row, end, bias, first_channel, n_out);
      }
    } else {
      for (int64_t f = 0; f < kFrequencies; ++f, u += inner_ * kPanel) {
        prefetch_tiles(n_ * f / kFrequencies, n_ * (f + 1) / kFrequencies, first_channel);
        for (int64_t row = 0; row < n_; row += tile_rows_) multiply(f, row, u, n_out);
      }
      transform_outputs(0, n_, bias, first_channel, n_out);
    }
  }

 private:
  static constexpr int kInputs = Form::kInputs, kOutputs = Form::kOutputs;
  static constexpr int64_t kFrequencies = kInputs * kInputs;

  const Element* pixel(int64_t item, int64_t row, int64_t column) const {
    const bool is_inside = row >= 0 && row < args_.height && column >= 0 && column < args_.width;
    if (!is_inside) return zeros_;
    return static_cast<const Element*>(args_.x) + item * args_.x_item_stride +
           (row * args_.width + column) * args_.x_pixel_stride;
  }

  // The taps of an output pixel, one after another.
  void gather(const Position& at, float* to) const {
    const int64_t channels = args_.in_channels, ring = args_.side / 2, words = words_of_pixel<Numbers>(args_);
    const int64_t top = at.down * args_.stride - ring + phase_ / 2;
    const int64_t left = at.across * args_.stride - ring + phase_ % 2;
    int64_t word = 0;
    for (int64_t tap = 0; tap < args_.side * args_.side; ++tap) {
      const Element* from = pixel(at.item, top + tap / args_.side, left + tap % args_.side);
      if (channels % (kChunk * Numbers::kPer) == 0) {
        for (int64_t w = 0; w < words; w += kChunk, word += kChunk) {
          __builtin_memcpy(to + word * kRows, from + w * Numbers::kPer, kChunk * sizeof(float));
        }
      } else {
        for (int64_t c = 0; c < channels; c += Numbers::kPer, ++word) {
          Element elements[Numbers::kPer] = {};
          for (int64_t e = 0; e < smaller(Numbers::kPer, channels - c); ++e) elements[e] = from[c + e];
          __builtin_memcpy(to + word / kChunk * kRows * kChunk + word % kChunk, elements, sizeof(float));
        }
      }
    }
  }

  void transform_input(const Position& at, float* to) const {
    const int64_t top = at.down * kOutputs - 1 + phase_ / 2, left = at.across * kOutputs - 1 + phase_ % 2;
    const Element* from[kInputs][kInputs];
    for (int i = 0; i < kInputs; ++i) {
      for (int j = 0; j < kInputs; ++j) from[i][j] = pixel(at.item, top + i, left + j);
    }
    const int64_t channels = args_.in_channels;
    for (int64_t word = 0; word * Numbers::kPer < channels; word += kWidth) {
      Vector rows[kInputs][Numbers::kPer][kInputs];
      MSF_UNROLL
      for (int64_t part = 0; part < Numbers::kPer; ++part) {
        const int64_t c = word * Numbers::kPer + part * kWidth;
        MSF_UNROLL
        for (int j = 0; j < kInputs; ++j) {
          Vector d[kInputs], t[kInputs];
          MSF_UNROLL
          for (int i = 0; i < kInputs; ++i) d[i] = Numbers::load_first(from[i][j] + c, channels - c);
          Form::input(d, t);
          MSF_UNROLL
          for (int i = 0; i < kInputs; ++i) rows[i][part][j] = t[i];
        }
      }
      float* chunk = to + word / kChunk * kRows * kChunk + word % kChunk;
      MSF_UNROLL
      for (int i = 0; i < kInputs; ++i) {
        Vector t[Numbers::kPer][kInputs];
        MSF_UNROLL
        for (int64_t part = 0; part < Numbers::kPer; ++part) Form::input(rows[i][part], t[part]);
        MSF_UNROLL
        for (int j = 0; j < kInputs; ++j) {
          Vector parts[Numbers::kPer];
          MSF_UNROLL
          for (int64_t part = 0; part < Numbers::kPer; ++part) parts[part] = t[part][j];
          store(chunk + (i * kInputs + j) * v_stride_, Numbers::pack(parts));
        }
      }
    }
  }

  void multiply(int64_t frequency, int64_t row, const float* u, int64_t n_out) const {
    const int64_t rows = smaller(tile_rows_, n_ - row), n_vectors = pieces_of(n_out, kWidth);
    const float* v = v_ + frequency * v_stride_ + row / tile_rows_ * tile_stride_;
    float* m = m_ + frequency * m_stride_ + row * kPanel;
    // The first two products with a frequency prefetch what follows it, each one of the two lines of a row.
    int64_t line = row == 0 ? 0 : row == tile_rows_ ? kPanel / kColumns / kWidth : kLines;
    for (int64_t vector = 0; vector < n_vectors; vector += kColumns, ++line) {
      const Tile tile = kernel_of<TileKernel<Numbers>>(rows, smaller(kColumns, n_vectors - vector));
      const bool is_prefetching = line < kLines;
      const float* ahead = is_prefetching ? u + inner_ * kPanel + line * kCacheLine : u;
      tile(v, u + vector * kWidth, inner_, chain_, m + vector * kWidth, ahead, is_prefetching ? kPanel : 0);
    }
  }

  void transform_outputs(int64_t begin, int64_t end, const float* bias, int64_t channel, int64_t n_out) const {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t k = 0; k < n_out; k += kWidth) {
        transform_output(positions_[row], m_ + row * kPanel + k, load(bias + k), channel + k, smaller(kWidth, n_out - k));
      }
    }
  }

  // The outputs of a tile that are on the map, and the number of the first pixel of their row i.
  int64_t height_of(const Position& at) const { return smaller(kOutputs, args_.phase_height - at.down * kOutputs); }
  int64_t width_of(const Position& at) const { return smaller(kOutputs, args_.phase_width - at.across * kOutputs); }
  int64_t pixel_of(const Position& at, int64_t i) const {
    const int64_t row = (at.item * args_.phase_height + at.down * kOutputs + i) * args_.step + phase_ / 2;
    return (row * args_.phase_width + at.across * kOutputs) * args_.step + phase_ % 2;
  }

  void prefetch_tiles(int64_t begin, int64_t end, int64_t channel) const {
    const int64_t step = args_.step * args_.out_channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t height = height_of(positions_[row]), width = width_of(positions_[row]);
      for (int64_t i = 0; i < height; ++i) {
        const Element* to = out() + pixel_of(positions_[row], i) * args_.out_channels + channel;
        for (int64_t j = 0; j < width; ++j, to += step) prefetch_outputs(to);
      }
    }
  }

  void transform_output(const Position& at, const float* m, Vector bias, int64_t channel, int64_t n) const {
    Vector columns[kOutputs][kInputs];
    MSF_UNROLL
    for (int j = 0; j < kInputs; ++j) {
      Vector d[kInputs], y[kOutputs];
      MSF_UNROLL
      for (int i = 0; i < kInputs; ++i) d[i] = load(m + (i * kInputs + j) * m_stride_);
      Form::output(d, y);
      MSF_UNROLL
      for (int i = 0; i < kOutputs; ++i) columns[i][j] = y[i];
    }
    const int64_t height = height_of(at), width = width_of(at);
    for (int64_t i = 0; i < height; ++i) {
      Vector y[kOutputs];
      Form::output(columns[i], y);
      const int64_t pixel = pixel_of(at, i);
      for (int64_t j = 0; j < width; ++j) {
        Vector value = y[j] + bias;
        if (args_.residual != nullptr) {
          const auto* residual = static_cast<const Element*>(args_.residual);
          value += Numbers::load_first(residual + (pixel + j * args_.step) * args_.residual_pixel_stride + channel, n);
        }
        Numbers::store_first(out() + (pixel + j * args_.step) * args_.out_channels + channel, value, n);
      }
    }
  }

  Element* out() const { return static_cast<Element*>(args_.out); }

  const ConvArgs& args_;
  int64_t inner_, chain_, tile_stride_, v_stride_, m_stride_;
  float *memory_, *v_, *m_;
  const Element* zeros_;
  Position* positions_;
  int64_t phase_ = 0;  // twice the parity of the output's row, plus that of its column
  int64_t n_ = 0, tile_rows_ = 0;
};

// The sums of kR pixels with kC vectors of outputs, in the chains of multiply_tile, read where the map is.
template <typename Numbers, int kR, int kC>
void multiply_pixels(const float* x, int64_t stride, const float* u, int64_t inner, int64_t chain, float* m) {
  for (int64_t first = 0; first < inner; first += chain) {
    Vector sum[kR][kC];
    MSF_UNROLL
    for (int r = 0; r < kR; ++r) {
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) sum[r][w] = Vector{};
    }
    const int64_t end = smaller(first + chain, inner);
    for (int64_t i = first; i < end; ++i) {
      Vector column[kC];
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) column[w] = load(u + i * kPanel + w * kWidth);
      MSF_UNROLL
      for (int r = 0; r < kR; ++r) {
        const Vector row = broadcast(x[r * stride + i]);
        MSF_UNROLL
        for (int w = 0; w < kC; ++w) sum[r][w] = Numbers::multiply_add(row, column[w], sum[r][w]);
      }
    }
    MSF_UNROLL
    for (int r = 0; r < kR; ++r) {
      MSF_UNROLL
      for (int w = 0; w < kC; ++w) {
        float* to = m + r * kPanel + w * kWidth;
        store(to, first == 0 ? sum[r][w] : load(to) + sum[r][w]);
      }
    }
  }
}

using Pixels = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*);

template <typename Numbers>
struct PixelKernel {
  using Function = Pixels;
  template <int kR, int kC>
  static constexpr Function of = multiply_pixels<Numbers, kR, kC>;
};

// One tap, stride 1: the map is the packed matrix already, and a row of the product is a pixel of any item.
template <typename Numbers>
void convolve_pixels(const ConvArgs& args, int64_t begin, int64_t end) {
  using Element = typename Numbers::Element;
  const int64_t inner = words_of_pixel<Numbers>(args), chain = Numbers::chain_of(inner), panels = args.n_panels();
  const int64_t n_rows = args.n_rows(), stride = args.x_pixel_stride / Numbers::kPer;
  const auto* x = static_cast<const float*>(args.x);
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t channel = piece % panels * kPanel;
    const int64_t n_out = smaller(kPanel, args.out_channels - channel), n_vectors = pieces_of(n_out, kWidth);
    const float* u = args.weight + piece % panels * inner * kPanel;
    float bias[kPanel] = {};
    read_bias<Numbers>(args, channel, n_out, bias);
    const int64_t first = piece / panels * args.block_rows, last = smaller(first + args.block_rows, n_rows);
    const int64_t tile_rows = pieces_of(last - first, pieces_of(last - first, kRows));
    for (int64_t row = first; row < last; row += tile_rows) {
      const int64_t rows = smaller(tile_rows, last - row);
      for (int64_t r = 0; r < rows; ++r) {
        prefetch_outputs(static_cast<const Element*>(args.out) + (row + r) * args.out_channels + channel);
      }
      float m[kRows * kPanel];
      for (int64_t vector = 0; vector < n_vectors; vector += kColumns) {
        const Pixels tile = kernel_of<PixelKernel<Numbers>>(rows, smaller(kColumns, n_vectors - vector));
        tile(x + row * stride, stride, u + vector * kWidth, inner, chain, m + vector * kWidth);
      }
      for (int64_t r = 0; r < rows; ++r) {
        auto* to = static_cast<Element*>(args.out) + (row + r) * args.out_channels + channel;
        for (int64_t k = 0; k < n_out; k += kWidth) {
          Vector value = load(m + r * kPanel + k) + load(bias + k);
          if (args.residual != nullptr) {
            const auto* residual = static_cast<const Element*>(args.residual);
            value += Numbers::load_first(residual + (row + r) * args.residual_pixel_stride + channel + k, n_out - k);
          }
          Numbers::store_first(to + k, value, n_out - k);
        }
      }
    }
  }
}

// Whether the words of pixels follow each other at one distance, across items too.
template <typename Numbers>
bool is_matrix(const ConvArgs& args) {
  const bool is_dense = args.n_items == 1 || args.x_item_stride == args.height * args.width * args.x_pixel_stride;
  const bool is_of_words = args.in_channels % Numbers::kPer == 0 && args.x_pixel_stride % Numbers::kPer == 0 &&
                           reinterpret_cast<uintptr_t>(args.x) % sizeof(float) == 0;
  return args.form == ConvForm::kDirect && args.side == 1 && args.stride == 1 && args.n_phases == 1 && is_dense &&
         is_of_words;
}

template <typename Form, typename Numbers>
void convolve_blocks(const ConvArgs& args, int64_t begin, int64_t end) {
  Block<Form, Numbers> block(args);
  const int64_t panels = args.n_panels(), blocks = args.n_blocks();
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t panel = piece % panels, number = piece / panels % blocks;
    if (panel == 0 || piece == begin) {
      const int64_t first = number * args.block_rows;
      block.read(piece / (panels * blocks), first, smaller(args.block_rows, args.n_rows() - first));
    }
    block.write(panel);
  }
}

template <typename Numbers>
void convolve(const ConvArgs& args, int64_t begin, int64_t end) {
  if (is_matrix<Numbers>(args)) return convolve_pixels<Numbers>(args, begin, end);
  visit_form(args.form, [&](auto form) { convolve_blocks<decltype(form), Numbers>(args, begin, end); });
}

}  // namespace
}  // namespace msf::cpu::MSF_LEVEL

// Convolutions u8 x s8 of pictures, channels last, whose results are codes or floats.
//
// A task has a chunk of a picture's pixels and some panels of outputs. It copies the chunk with a border of one pixel,
// which the cache keeps while the panels pass; the border of the picture has the zero point's code, for which the bias
// makes up. 16 pixels of a line are 16 rows of a product, `stride` pixels apart; a line of the kernel is one stretch.
//
// Where inputs have two bytes, the coarse and then the fine rows meet the same panel, and their sums one epilogue.
#ifndef NEXTSCALE_KERNELS_CONVOLUTION_H_
#define NEXTSCALE_KERNELS_CONVOLUTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kChunkWidth = 256, kChunkPixels = 512;  // at most, but for chunks of one line; twice with stride 2
constexpr int64_t kConvolutionTasks = 32;                 // at least, if there are as many panels
constexpr int kChunkSlot = 5, kOffsetsSlot = 6;

struct Chunk {
  int64_t picture, y, x, height, width;
  int64_t pitch(int64_t channels) const { return (width + 2) * channels; }  // bytes from line to line of a copy
};

// The chunk of one input with a border, of which `zero` is the code.
inline void copy_with_border(const ConvolutionArgs& a, const Chunk& chunk, const uint8_t* x, int32_t zero,
                             uint8_t* copy) {
  const int64_t c = a.channels, pitch = chunk.pitch(c);
  const int64_t left = chunk.x > 0 ? 0 : 1;
  const int64_t right = chunk.x + chunk.width < a.width ? 0 : 1;
  for (int64_t i = 0; i < chunk.height + 2; ++i) {
    uint8_t* to = copy + i * pitch;
    const int64_t y = chunk.y + i - 1;
    if (y < 0 || y >= a.height) {
      std::memset(to, zero, static_cast<size_t>(pitch));
      continue;
    }
    const uint8_t* from = x + ((chunk.picture * a.height + y) * a.width + chunk.x - 1 + left) * c;
    std::memset(to, zero, static_cast<size_t>(left * c));
    std::memcpy(to + left * c, from, static_cast<size_t>(pitch - (left + right) * c));
    std::memset(to + pitch - right * c, zero, static_cast<size_t>(right * c));
  }
}

// The chunk of each input with a border, [height + 2, width + 2, channels]. One more line, and what 16 pixels of the
// result need of it, can be read.
template <int kInputs>
struct Copies {
  const uint8_t* begin[kInputs];
  Copies(const ConvolutionArgs& a, const Chunk& chunk) {
    const int64_t bytes = (chunk.height + 3) * chunk.pitch(a.channels) + kBlock * a.stride * a.channels + kStep;
    auto* memory = static_cast<uint8_t*>(thread_memory(kChunkSlot, static_cast<size_t>(kInputs * bytes)));
    const uint8_t* const inputs[] = {a.x, a.fine};
    const int32_t zeros[] = {a.zero_point, kFineZero};
    for (int i = 0; i < kInputs; ++i, memory += bytes) {
      copy_with_border(a, chunk, inputs[i], zeros[i], memory);
      begin[i] = memory;
    }
  }
};

// What is done with up to 16 numbers for the elements from `at` on of the result.
struct ToCodes {
  uint8_t* y;
  explicit ToCodes(const ConvolutionArgs& a) : y(a.y_codes) {}
  void operator()(F x, int64_t at, int64_t n) const {
    store_bytes(y + at, nearest(min(max(x, splat(0.0f)), splat(255.0f))), n);
  }
};
struct ToFloats {
  float* y;
  const float* residual;
  explicit ToFloats(const ConvolutionArgs& a) : y(a.y), residual(a.residual) {}
  void operator()(F x, int64_t at, int64_t n) const { store(y + at, residual ? x + load(residual + at, n) : x, n); }
};

// The end of 32 outputs: the sums of each input's codes become numbers.
template <int kInputs, class To>
struct Outputs {
  I offset[kInputs][2];
  F scale[2];
  To to;
  Outputs(const ConvolutionArgs& a, int64_t kernel, int64_t panel) : to(a) {
    const int32_t zeros[] = {a.zero_point, kFineZero};
    for (int half = 0; half < 2; ++half) {
      const int64_t n = panel * kPanel + half * kLanes;
      for (int i = 0; i < kInputs; ++i) offset[i][half] = splat(-zeros[i]) * load(a.weight[kernel].sums + n);
      I& finest = offset[kInputs - 1][half];
      finest = finest + load(a.bias[kernel] + n);
      scale[half] = load(a.scale[kernel] + n);
    }
  }
  void operator()(const I (&sums)[kInputs], int64_t half, int64_t at, int64_t outputs) const {
    F x = to_float(sums[0] + offset[0][half]);
    if constexpr (kInputs == 2) x = x + to_float(sums[1] + offset[1][half]) * splat(1.0f / kFineSteps);
    to(x * scale[half], at, outputs);
  }
};

// The outputs of one panel of one kernel in the chunk.
template <int kInputs, class To>
inline void convolve(const ConvolutionArgs& a, const Chunk& chunk, const Copies<kInputs>& copies,
                     const int64_t* offsets, const int32_t* quads, int64_t kernel, int64_t panel) {
  const Panels& weight = a.weight[kernel];
  const int8_t* codes = weight.codes + panel * weight.panel_bytes();
  const Outputs<kInputs, To> finish(a, kernel, panel);
  const int64_t width = chunk.width / a.stride, height = chunk.height / a.stride, pitch = chunk.pitch(a.channels);
  const int64_t across = ceil_div(width, kBlock), blocks = height * across;
  const int64_t zoom = a.kernels == 4 ? 2 : 1, down = kernel / 2, right = kernel % 2;
  const int64_t before = a.stride - 1;  // of the border, which no window has
  alignas(64) int32_t sums[kInputs][2 * kBlock * kPanel];
  for (int64_t first = 0; first < blocks; first += 2) {
    int64_t from[2] = {}, count[2] = {}, to[2] = {};
    for (int b = 0; b < 2 && first + b < blocks; ++b) {
      const int64_t y = (first + b) / across, x = (first + b) % across * kBlock;
      from[b] = (y * a.stride + before + down) * pitch + (x * a.stride + before + right) * a.channels;
      count[b] = least_of(kBlock, width - x);
      const int64_t line = ((chunk.picture * a.height + chunk.y) / a.stride + y) * zoom + down;
      to[b] = ((line * (a.width / a.stride) + chunk.x / a.stride + x) * zoom + right) * a.out + panel * kPanel;
    }
    for (int i = 0; i < kInputs; ++i) {
      const uint8_t* copy = copies.begin[i];
      const Rows rows{{copy + from[0], copy + from[1]}, {count[0], count[1]}, a.stride * a.channels, 0, offsets, quads};
      multiply(rows, codes, weight.steps(), sums[i]);
    }
    for (int b = 0; b < 2; ++b)
      for (int64_t pixel = 0; pixel < count[b]; ++pixel)
        for (int64_t half = 0; half < 2; ++half) {
          I of_inputs[kInputs];
          for (int i = 0; i < kInputs; ++i)
            of_inputs[i] = load(sums[i] + (b * kBlock + pixel) * kPanel + half * kLanes);
          const int64_t output = half * kLanes;
          finish(of_inputs, half, to[b] + pixel * zoom * a.out + output, a.out - panel * kPanel - output);
        }
  }
}

// f(chunk, first, end) for all chunks of at most this size, and groups of the `units` that each has to do.
template <class Do>
inline void in_chunks(const ConvolutionArgs& a, int64_t width, int64_t height, int64_t units, const Parallel& parallel,
                      Do f) {
  const int64_t across = ceil_div(a.width, width), down = ceil_div(a.height, height), chunks = a.batch * down * across;
  const int64_t per_task = ceil_div(units, least_of(units, ceil_div(kConvolutionTasks, chunks)));
  const int64_t groups = ceil_div(units, per_task);
  parallel(chunks * groups, [&](int64_t task) {
    const int64_t at = task / groups, y = at / across % down * height, x = at % across * width;
    const int64_t first = task % groups * per_task;
    f(Chunk{at / across / down, y, x, least_of(height, a.height - y), least_of(width, a.width - x)}, first,
      least_of(units, first + per_task));
  });
}

template <int kInputs, class To>
inline void direct_convolution(const ConvolutionArgs& a, const Parallel& parallel) {
  const int64_t width = least_of(a.width, kChunkWidth);
  const int64_t height = least_of(a.height, a.stride * ceil_div(kChunkPixels, width));
  const int64_t panels = a.weight[0].count();
  in_chunks(a, width, height, a.kernels * panels, parallel, [&](const Chunk& chunk, int64_t first, int64_t end) {
    const Copies<kInputs> copies(a, chunk);
    const int64_t steps = a.weight[0].steps(), of_line = steps / a.size;
    auto* offsets = static_cast<int64_t*>(
        thread_memory(kOffsetsSlot, static_cast<size_t>(steps) * (sizeof(int64_t) + sizeof(int32_t))));
    auto* quads = reinterpret_cast<int32_t*>(offsets + steps);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t k = s % of_line * kStep;
      offsets[s] = s / of_line * chunk.pitch(a.channels) + k;
      quads[s] = static_cast<int32_t>(ceil_div(least_of(kStep, a.size * a.channels - k), 4));
    }
    [[maybe_unused]] const Tiles tiles;  // from here on nothing is thrown
    for (int64_t unit = first; unit < end; ++unit)
      convolve<kInputs, To>(a, chunk, copies, offsets, quads, unit / panels, unit % panels);
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_CONVOLUTION_H_

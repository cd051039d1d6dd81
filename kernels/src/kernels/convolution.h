// Convolutions u8 x s8 of pictures, channels last, whose results are codes.
//
// A task has a chunk of a picture's pixels and some panels of outputs. It copies the chunk with a border of one pixel,
// which the cache keeps while the panels pass; the border of the picture has the zero point's code, for which the bias
// makes up. 16 pixels of a line are 16 rows of a product, a pixel apart; a line of the kernel is one stretch of them.
#ifndef NEXTSCALE_KERNELS_CONVOLUTION_H_
#define NEXTSCALE_KERNELS_CONVOLUTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kChunkWidth = 256, kChunkPixels = 512;  // at most, but for a chunk of one line
constexpr int64_t kConvolutionTasks = 32;                 // at least, if there are as many panels
constexpr int kChunkSlot = 5, kOffsetsSlot = 6;

struct Chunk {
  int64_t picture, y, x, height, width;
  int64_t pitch(int64_t channels) const { return (width + 2) * channels; }  // bytes from line to line of the copy
};

// The chunk with a border, [height + 2, width + 2, channels]. One more line, and 16 pixels of it, can be read.
inline const uint8_t* with_border(const ConvolutionArgs& a, const Chunk& chunk) {
  const int64_t c = a.channels, pitch = chunk.pitch(c);
  auto* copy = static_cast<uint8_t*>(
      thread_memory(kChunkSlot, static_cast<size_t>((chunk.height + 3) * pitch + kBlock * c + kStep)));
  const int64_t left = chunk.x > 0 ? 0 : 1;
  const int64_t right = chunk.x + chunk.width < a.width ? 0 : 1;
  const auto code = static_cast<int>(a.zero_point);
  for (int64_t i = 0; i < chunk.height + 2; ++i) {
    uint8_t* to = copy + i * pitch;
    const int64_t y = chunk.y + i - 1;
    if (y < 0 || y >= a.height) {
      std::memset(to, code, static_cast<size_t>(pitch));
      continue;
    }
    const uint8_t* from = a.x + ((chunk.picture * a.height + y) * a.width + chunk.x - 1 + left) * c;
    std::memset(to, code, static_cast<size_t>(left * c));
    std::memcpy(to + left * c, from, static_cast<size_t>(pitch - (left + right) * c));
    std::memset(to + pitch - right * c, code, static_cast<size_t>(right * c));
  }
  return copy;
}

// Codes of the sums of 32 outputs.
struct ResultCodes {
  I bias[2];
  F scale[2];
  ResultCodes(const ConvolutionArgs& a, int64_t kernel, int64_t panel) {
    for (int half = 0; half < 2; ++half) {
      const int64_t n = panel * kPanel + half * kLanes;
      bias[half] = load(a.bias[kernel] + n) - splat(a.zero_point) * load(a.weight[kernel].sums + n);
      scale[half] = load(a.scale[kernel] + n);
    }
  }
  I operator()(I sums, int64_t half) const {
    const F x = to_float(sums + bias[half]) * scale[half];
    return nearest(min(max(x, splat(0.0f)), splat(255.0f)));
  }
};

// The codes of up to 16 pixels, `stride` bytes apart.
inline void store_codes(const ResultCodes& codes, const int32_t* sums, int64_t pixels, int64_t outputs, uint8_t* y,
                        int64_t stride) {
  for (int64_t i = 0; i < pixels; ++i, y += stride, sums += kPanel) {
    const I left = codes(load(sums), 0), right = codes(load(sums + kLanes), 1);
    if (outputs >= kPanel) {
      store_bytes(y, left);
      store_bytes(y + kLanes, right);
    } else {
      store_bytes(y, left, outputs);
      store_bytes(y + kLanes, right, outputs - kLanes);
    }
  }
}

// The outputs of one panel of one kernel in the chunk.
inline void convolve(const ConvolutionArgs& a, const Chunk& chunk, const uint8_t* copy, const int64_t* offsets,
                     const int32_t* quads, int64_t kernel, int64_t panel) {
  const Panels& weight = a.weight[kernel];
  const int8_t* codes = weight.codes + panel * weight.panel_bytes();
  const ResultCodes result(a, kernel, panel);
  const int64_t across = ceil_div(chunk.width, kBlock), blocks = chunk.height * across, pitch = chunk.pitch(a.channels);
  const int64_t zoom = a.kernels == 4 ? 2 : 1, down = kernel / 2, right = kernel % 2;
  alignas(64) int32_t sums[2 * kBlock * kPanel];
  for (int64_t first = 0; first < blocks; first += 2) {
    Rows rows{{copy, copy}, {0, 0}, a.channels, 0, offsets, quads};
    uint8_t* to[2] = {};
    for (int b = 0; b < 2 && first + b < blocks; ++b) {
      const int64_t y = (first + b) / across, x = (first + b) % across * kBlock;
      rows.begin[b] = copy + (y + down) * pitch + (x + right) * a.channels;
      rows.count[b] = least_of(kBlock, chunk.width - x);
      const int64_t line = (chunk.picture * a.height + chunk.y + y) * zoom + down;
      to[b] = a.y + ((line * a.width + chunk.x + x) * zoom + right) * a.out + panel * kPanel;
    }
    multiply(rows, codes, weight.steps(), sums);
    for (int b = 0; b < 2; ++b)
      store_codes(result, sums + b * kBlock * kPanel, rows.count[b], a.out - panel * kPanel, to[b], zoom * a.out);
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

inline void direct_convolution(const ConvolutionArgs& a, const Parallel& parallel) {
  const int64_t width = least_of(a.width, kChunkWidth);
  const int64_t height = least_of(a.height, ceil_div(kChunkPixels, width));
  const int64_t panels = a.weight[0].count();
  in_chunks(a, width, height, a.kernels * panels, parallel, [&](const Chunk& chunk, int64_t first, int64_t end) {
    const uint8_t* copy = with_border(a, chunk);
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
      convolve(a, chunk, copy, offsets, quads, unit / panels, unit % panels);
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_CONVOLUTION_H_

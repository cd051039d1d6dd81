#include <algorithm>
#include <limits>

#include "file_pages.h"
#include "operators.h"

namespace nextscale {
namespace {

constexpr size_t kX = 0, kZeroPoint = 1, kWeight = 2, kInputsOfKernel = 3, kFine = kWeight + 4 * kInputsOfKernel,
                 kResidual = kFine + 1;
constexpr int64_t kLargestSum = std::numeric_limits<int32_t>::max();
// Pairs of channels whose transformed weights, 32 bytes each, are worth their memory: more than 8 MB leave the cache
// before they are read again, so that little is gained.
constexpr int64_t kMostTransformed = int64_t{8 << 20} / 32;

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One kernel's weights: s8 [out, C, size, size], or the columns of a product of patches, [size size C, out].
struct Weights {
  const int8_t* codes;
  int64_t out, channels, size;
  bool columns;

  static Weights of(const Info& info, size_t input, int64_t size) {
    const Tensor weight = info.constant(input);
    const Shape& shape = weight.shape;
    const bool columns = shape.size() == 2;
    const bool fits = columns ? shape[0] % (size * size) == 0
                              : shape.size() == 4 && shape[2] == size && shape[3] == size && shape[1] >= 1;
    if (!fits || shape[0] < 1 || shape[columns ? 1 : 0] < 1)
      info.fail("the input weight has the shape " + in_words(shape) + ", expected " + in_words({-1, -1, size, size}) +
                " or " + std::to_string(size * size) + " numbers for each channel in " + in_words({-1, -1}));
    if (columns) return {weight.as<int8_t>(), shape[1], shape[0] / (size * size), size, true};
    return {weight.as<int8_t>(), shape[0], shape[1], size, false};
  }
  int64_t count() const { return out * channels * size * size; }
  bool same_shape(const Weights& other) const { return out == other.out && channels == other.channels; }
  int8_t at(int64_t o, int64_t c, int64_t y, int64_t x) const {
    return columns ? codes[((y * size + x) * channels + c) * out + o] : codes[((o * channels + c) * size + y) * size + x];
  }
};

// One kernel's weights in panels, its scale and bias.
struct PackedKernel {
  std::vector<int8_t> codes;
  std::vector<int32_t> sums, bias;
  std::vector<float> scale;
  std::vector<int16_t> transformed;
  Panels panels;

  PackedKernel(const Info& info, size_t number, const Weights& weight, bool winograd) {
    const size_t first = kWeight + number * kInputsOfKernel;
    const Tensor to_codes = info.constant(first + 1), in_sum = info.constant(first + 2);
    const int64_t out = weight.out, channels = weight.channels, size = weight.size, filled = up(out, 32);
    for (const Tensor* of_outputs : {&to_codes, &in_sum})
      if (of_outputs->shape != Shape{out})
        info.fail(std::string("the input ") + (of_outputs == &to_codes ? "scale" : "bias") + " has the shape " +
                  in_words(of_outputs->shape) + ", expected " + in_words({out}));
    panels.k = size * up(size * channels, 64);
    panels.n = out;
    sums.resize(static_cast<size_t>(filled));
    bias.assign(in_sum.as<int32_t>(), in_sum.as<int32_t>() + out);
    bias.resize(static_cast<size_t>(filled));
    scale.assign(to_codes.as<float>(), to_codes.as<float>() + out);
    scale.resize(static_cast<size_t>(filled));
    int64_t largest_of_all = 0;
    for (int64_t o = 0; o < out; ++o) {
      int64_t sum = 0, largest = 0;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < size * size; ++i) {
          const int64_t code = weight.at(o, c, i / size, i % size);
          sum += code;
          largest += code < 0 ? -code : code;
        }
      const int64_t offset = bias[static_cast<size_t>(o)];
      if (255 * largest + (offset < 0 ? -offset : offset) > kLargestSum)
        info.fail("the sum of output " + std::to_string(o) + " could leave int32");
      sums[static_cast<size_t>(o)] = static_cast<int32_t>(sum);
      largest_of_all = std::max(largest_of_all, largest);
    }
    // Winograd's sums are four times these.
    if (winograd && 4 * 255 * largest_of_all <= kLargestSum && out * channels <= kMostTransformed)
      transform(weight);
    else
      pack(weight);
    drop_file_pages(weight.codes, static_cast<size_t>(weight.count()));
    panels.codes = codes.data();
    panels.sums = sums.data();
  }

 private:
  void pack(const Weights& weight) {
    const int64_t channels = weight.channels, size = weight.size, line = up(size * channels, 64);
    codes.resize(static_cast<size_t>(panels.count() * panels.panel_bytes()));
    for (int64_t o = 0; o < weight.out; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < size; ++y)
          for (int64_t x = 0; x < size; ++x) {
            const int64_t k = y * line + x * channels + c;
            const int64_t step = o / 32 * panels.steps() + k / 64;
            const int64_t at = ((step * 2 + o / 16 % 2) * 16 + k / 4 % 16) * 64 + o % 16 * 4 + k % 4;
            codes[static_cast<size_t>(at)] = weight.at(o, c, y, x);
          }
  }

  // The weights 4 G g G' of kernels/winograd.h.
  void transform(const Weights& g) {
    constexpr int kTransform[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
    const int64_t filled = up(g.channels, 16);
    transformed.resize(static_cast<size_t>(up(g.out, 16) * 16 * filled));
    for (int64_t o = 0; o < g.out; ++o)
      for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t plane = 0; plane < 16; ++plane) {
          const int *down = kTransform[plane / 4], *right = kTransform[plane % 4];
          int total = 0;
          for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) total += down[i] * right[j] * g.at(o, c, i, j);
          const int64_t at = (((o / 16 * 16 + plane) * filled + c / 2 * 2) * 16) + o % 16 * 2 + c % 2;
          transformed[static_cast<size_t>(at)] = static_cast<int16_t>(total);
        }
  }
};

class Convolution final : public Kernel {
 public:
  Convolution(const Info& info, const Kernels& kernels) : kernels_(kernels) {
    const bool upsample = info.flag("upsample");
    size_ = upsample ? 2 : 3;
    stride_ = info.integer("stride", 1);
    if (stride_ != 1 && stride_ != 2) info.fail("stride is " + std::to_string(stride_) + ", expected 1 or 2");
    if (stride_ == 2 && upsample) info.fail("upsample has stride 1");
    const std::string result = info.text("result", "codes");
    if (result != "codes" && result != "float") info.fail("result is '" + result + "', expected codes or float");
    to_codes_ = result == "codes", fine_ = info.has_input(kFine), residual_ = info.has_input(kResidual);
    if (to_codes_ && (fine_ || residual_))
      info.fail(std::string("the input ") + (fine_ ? "fine" : "residual") + " is for float results");
    const Weights first = Weights::of(info, kWeight, size_);
    for (size_t i = 0; i < (upsample ? size_t{4} : size_t{1}); ++i) {
      const size_t input = kWeight + kInputsOfKernel * i;
      if (!info.has_input(input + 2)) info.fail("upsample needs 4 kernels");
      const Weights weight = Weights::of(info, input, size_);
      if (!weight.same_shape(first))
        info.fail("kernels of the shapes " + in_words(info.constant(kWeight).shape) + " and " +
                  in_words(info.constant(input).shape));
      packed_.emplace_back(new PackedKernel(info, i, weight, kernels.winograd && !upsample && stride_ == 1));
    }
    out_ = first.out, channels_ = first.channels;
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(kX, {-1, -1, -1, channels_}), zero_point = context.input(kZeroPoint);
    if (!zero_point.given() || zero_point.size() != 1) context.fail("the input x_zero_point must have one element");
    ConvolutionArgs a{};
    a.x = x.as<uint8_t>();
    a.batch = x.shape[0], a.height = x.shape[1], a.width = x.shape[2], a.channels = channels_, a.out = out_;
    a.zero_point = *zero_point.as<uint8_t>();
    if (a.height % stride_ || a.width % stride_)
      context.fail("stride 2 needs an even height and width, found " + in_words({a.height, a.width}));
    a.kernels = static_cast<int64_t>(packed_.size()), a.size = size_, a.stride = stride_;
    for (size_t i = 0; i < packed_.size(); ++i) {
      a.weight[i] = packed_[i]->panels;
      a.scale[i] = packed_[i]->scale.data();
      a.bias[i] = packed_[i]->bias.data();
    }
    if (!packed_[0]->transformed.empty()) a.transformed = packed_[0]->transformed.data();
    const int64_t zoom = packed_.size() == 4 ? 2 : 1;
    const Shape result{a.batch, zoom * a.height / stride_, zoom * a.width / stride_, out_};
    if (to_codes_) {
      a.y_codes = context.output<uint8_t>(0, result);
    } else {
      if (fine_) a.fine = context.input(kFine, x.shape).as<uint8_t>();
      if (residual_) a.residual = context.input(kResidual, result).as<float>();
      a.y = context.output<float>(1, result);
    }
    kernels_.convolution(a, context.parallel());
  }

 private:
  const Kernels& kernels_;
  int64_t size_, stride_, out_, channels_;
  bool to_codes_, fine_, residual_;
  std::vector<std::unique_ptr<PackedKernel>> packed_;
};

}  // namespace

const Operator& convolution_operator() {
  static const Operator op{{"Convolution",
                            {{"x", kUint8},
                             {"x_zero_point", kUint8},
                             {"weight", kInt8},
                             {"scale", kFloat},
                             {"bias", kInt32},
                             {"weight_01", kInt8, true},
                             {"scale_01", kFloat, true},
                             {"bias_01", kInt32, true},
                             {"weight_10", kInt8, true},
                             {"scale_10", kFloat, true},
                             {"bias_10", kInt32, true},
                             {"weight_11", kInt8, true},
                             {"scale_11", kFloat, true},
                             {"bias_11", kInt32, true},
                             {"fine", kUint8, true},
                             {"residual", kFloat, true}},
                            {{"codes", kUint8, true}, {"y", kFloat, true}}},
                           make_kernel<Convolution>};
  return op;
}

}  // namespace nextscale

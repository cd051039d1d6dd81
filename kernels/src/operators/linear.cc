#include <array>
#include <mutex>

#include "coding.h"
#include "file_pages.h"
#include "operators.h"
#include "packed_weights.h"

namespace nextscale {
namespace {

// Inputs after the codes and their qparams.
enum Further { kWeight, kWeightScale, kBias, kResidual, kGain, kYScale };

// What is constant of a layer, as the kernels read it.
struct Layer {
  PackedWeights weight;
  std::vector<float> scale, bias;
};

// A tensor of one value for each column, or one for all, filled up to whole panels. `from`, here and below, is where
// the tensors come from, and what says that one does not fit.
template <class From>
std::vector<float> by_column(const From& from, const Tensor& tensor, const char* name, const Panels& weight) {
  if (tensor.size() != 1 && tensor.size() != weight.n)
    from.fail(std::string("the input ") + name + " has " + std::to_string(tensor.size()) + " elements, expected 1 or " +
              std::to_string(weight.n));
  std::vector<float> values(static_cast<size_t>(weight.count() * 32), 0.0f);
  for (int64_t i = 0; i < weight.n; ++i) values[static_cast<size_t>(i)] = tensor.as<float>()[tensor.size() == 1 ? 0 : i];
  return values;
}

template <class From>
PackedWeights packed(const From& from, const Tensor& weight) {
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1)
    from.fail("the input weight has the shape " + in_words(weight.shape) + ", expected [K, N] of at least 1");
  if (weight.shape[0] > 1 << 16)  // beyond it the sums of 255 * 128 leave int32
    from.fail("K is " + std::to_string(weight.shape[0]) + ", expected at most 65536");
  PackedWeights found(weight.as<int8_t>(), weight.shape[0], weight.shape[1]);
  drop_file_pages(weight.as<int8_t>(), static_cast<size_t>(weight.size()));
  return found;
}

template <class From>
std::unique_ptr<Layer> make_layer(const From& from, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  auto layer = std::make_unique<Layer>(Layer{packed(from, weight), {}, {}});
  layer->scale = by_column(from, scale, "weight_scale", layer->weight.panels());
  if (bias.given()) layer->bias = by_column(from, bias, "bias", layer->weight.panels());
  return layer;
}

// Of both: kFirst is the first input after the codes and their qparams.
template <bool kPair>
class Linear final : public Kernel {
 public:
  Linear(const Info& info, const Kernels& kernels)
      : kernels_(kernels), coding_(info, "none") {
    if (info.is_constant(kFirst + kWeight)) {
      const Tensor bias = info.has_input(kFirst + kBias) ? info.constant(kFirst + kBias) : Tensor{};
      layer_ = make_layer(info, info.constant(kFirst + kWeight), info.constant(kFirst + kWeightScale), bias);
    }
    const std::string activation = info.text("activation", "none");
    gelu_ = activation == "gelu_tanh";
    if (!gelu_ && activation != "none") info.fail("activation is '" + activation + "', expected none or gelu_tanh");
    if (gelu_ && info.has_input(kFirst + kResidual)) info.fail("an activation and a residual exclude each other");
    if (info.has_input(kFirst + kResidual) != info.has_input(kFirst + kGain))
      info.fail("residual and gain go together");
  }

  void compute(const Context& context) const override {
    const Layer& layer = layer_ ? *layer_ : layer_of_first_call(context);
    const Panels& weight = layer.weight.panels();
    const Tensor codes = context.input(0, {-1, -1, weight.k});
    LinearArgs a{};
    a.pair = kPair;
    a.codes[0] = codes.as<uint8_t>();
    a.rows = codes.shape[0] * (kPair ? 2 : 1);
    a.tokens = codes.shape[1];
    if (kPair) {
      a.codes[1] = context.input(1, codes.shape).as<uint8_t>();
      a.known[0] = context.qparams(2, 3);
      a.known[1] = context.qparams(4, 5);
    } else {
      qparams(context, a);
    }
    a.weight = weight;
    a.weight_scale = layer.scale.data();
    a.bias = layer.bias.empty() ? nullptr : layer.bias.data();
    a.gelu = gelu_;
    const Shape result{a.rows, a.tokens, weight.n};
    if (context.input(kFirst + kResidual).given()) {
      a.residual = context.input(kFirst + kResidual, result).as<float>();
      a.gain = context.input(kFirst + kGain, {a.rows, 1, weight.n}).as<float>();
    }
    if (coding_.ranges() == Ranges::kNone) a.y = context.output<float>(0, result);
    a.coding = coding_.with(context, kFirst + kYScale, 1, result);
    kernels_.linear(a, context.parallel(), context.workspace());
  }

 private:
  static constexpr size_t kFirst = kPair ? 6 : 3;

  static void qparams(const Context& context, LinearArgs& a) {
    const Tensor scale = context.input(1), zero_point = context.input(2);
    a.scales = scale.given() ? scale.size() : 0;
    const int64_t all = a.rows * a.tokens;
    if ((a.scales != 1 && a.scales != a.rows && a.scales != all) || !zero_point.given() ||
        zero_point.size() != a.scales)
      context.fail("scale has " + std::to_string(a.scales) + " elements and zero_point " +
                   std::to_string(zero_point.given() ? zero_point.size() : 0) + ", expected both 1, " +
                   std::to_string(a.rows) + " or " + std::to_string(all));
    a.scale = scale.as<float>();
    a.zero_point = zero_point.as<uint8_t>();
  }

  // ONNX Runtime before 1.30 does not tell that an input is constant if it is an outer graph's. The first call's is then
  // taken for all.
  const Layer& layer_of_first_call(const Context& context) const {
    const Tensor weight = context.input(kFirst + kWeight), scale = context.input(kFirst + kWeightScale),
                 bias = context.input(kFirst + kBias);
    const std::array<const void*, 3> inputs{weight.data, scale.data, bias.data};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!first_) {
      first_ = make_layer(context, weight, scale, bias);
      inputs_of_first_ = inputs;
    }
    if (inputs != inputs_of_first_) context.fail("the inputs weight, weight_scale and bias must be constant");
    return *first_;
  }

  const Kernels& kernels_;
  CodingAttributes coding_;
  std::unique_ptr<const Layer> layer_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<const Layer> first_;
  mutable std::array<const void*, 3> inputs_of_first_{};
  bool gelu_ = false;
};

Schema schema(const char* name, std::vector<Port> inputs) {
  const std::vector<Port> further{{"weight", kInt8},
                                  {"weight_scale", kFloat},
                                  {"bias", kFloat, true},
                                  {"residual", kFloat, true},
                                  {"gain", kFloat, true},
                                  {"y_scale", kFloat, true},
                                  {"y_zero_point", kUint8, true},
                                  {"y_difference_scale", kFloat, true},
                                  {"y_difference_zero_point", kUint8, true}};
  inputs.insert(inputs.end(), further.begin(), further.end());
  return {name,
          std::move(inputs),
          {{"y", kFloat, true},
           {"codes", kUint8, true},
           {"difference", kUint8, true},
           {"code_scale", kFloat, true},
           {"code_zero_point", kUint8, true}}};
}

}  // namespace

const Operator& linear_operator() {
  static const Operator op{schema("Linear", {{"codes", kUint8}, {"scale", kFloat}, {"zero_point", kUint8}}),
                           make_kernel<Linear<false>>};
  return op;
}

const Operator& pair_linear_operator() {
  static const Operator op{schema("PairLinear",
                                  {{"u", kUint8},
                                   {"d", kUint8},
                                   {"u_scale", kFloat},
                                   {"u_zero_point", kUint8},
                                   {"d_scale", kFloat},
                                   {"d_zero_point", kUint8}}),
                           make_kernel<Linear<true>>};
  return op;
}

}  // namespace nextscale

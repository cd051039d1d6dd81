#include "operators.h"

namespace nextscale {
namespace {

// The inputs of CodesGroupNorm; GroupNorm has no input_scale.
template <bool kCodes>
class GroupNorm final : public Kernel {
  static constexpr size_t kX = 0, kInputScale = 1, kInputOffset = kCodes ? 2 : 1, kWeight = kInputOffset + 1,
                          kBias = kWeight + 1, kScale = kBias + 1, kZeroPoint = kScale + 1;

 public:
  GroupNorm(const Info& info, const Kernels& kernels)
      : kernels_(kernels),
        groups_(info.integer("groups")),
        epsilon_(info.number("epsilon")),
        silu_(info.integer("silu", 0) != 0),
        to_codes_(info.has_input(kScale)),
        fine_(info.flag("fine")) {
    if (fine_ && !to_codes_) info.fail("fine is what codes leave over: the input scale is missing");
    if (groups_ < 1) info.fail("groups must be positive");
    if (!(epsilon_ > 0)) info.fail("epsilon must be positive");
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(kX, {-1, -1, -1});
    GroupNormArgs a{};
    a.batch = x.shape[0], a.pixels = x.shape[1], a.channels = x.shape[2], a.groups = groups_;
    if (a.channels % groups_)
      context.fail("x has " + std::to_string(a.channels) + " channels, which are not " + std::to_string(groups_) +
                   " groups");
    const auto of_channels = [&](size_t i) { return context.input(i, {a.channels}).template as<float>(); };
    if constexpr (kCodes) {
      a.codes = x.as<uint8_t>();
      a.input_scale = of_channels(kInputScale);
    } else {
      a.x = x.as<float>();
    }
    if (context.input(kInputOffset).given()) a.input_offset = of_channels(kInputOffset);
    a.weight = of_channels(kWeight), a.bias = of_channels(kBias);
    a.epsilon = epsilon_, a.silu = silu_;
    if (to_codes_) {
      a.y_scale = context.channel_scales(kScale, a.channels);
      a.range = a.y_scale ? QParams{1, context.zero_point(kZeroPoint)} : context.qparams(kScale, kZeroPoint);
      if (fine_ && a.y_scale) context.fail("fine is what codes in one scale leave over");
      a.y_codes = context.output<uint8_t>(0, x.shape);
      if (fine_) a.y_fine = context.output<uint8_t>(2, x.shape);
    } else {
      a.y = context.output<float>(1, x.shape);
    }
    kernels_.group_norm(a, context.parallel(), context.workspace());
  }

 private:
  const Kernels& kernels_;
  int64_t groups_;
  float epsilon_;
  bool silu_, to_codes_, fine_;
};

const std::vector<Port> kResults = {{"codes", kUint8, true}, {"y", kFloat, true}, {"fine", kUint8, true}};

}  // namespace

const Operator& group_norm_operator() {
  static const Operator op{{"GroupNorm",
                            {{"x", kFloat},
                             {"input_offset", kFloat, true},
                             {"weight", kFloat},
                             {"bias", kFloat},
                             {"scale", kFloat, true},
                             {"zero_point", kUint8, true}},
                            kResults},
                           make_kernel<GroupNorm<false>>};
  return op;
}

const Operator& codes_group_norm_operator() {
  static const Operator op{{"CodesGroupNorm",
                            {{"x", kUint8},
                             {"input_scale", kFloat},
                             {"input_offset", kFloat, true},
                             {"weight", kFloat},
                             {"bias", kFloat},
                             {"scale", kFloat, true},
                             {"zero_point", kUint8, true}},
                            kResults},
                           make_kernel<GroupNorm<true>>};
  return op;
}

}  // namespace nextscale

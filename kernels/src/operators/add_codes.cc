#include "operators.h"

namespace nextscale {
namespace {

enum Input { kX, kCodes, kScale, kMoreCodes, kMoreScale, kOffset };

class AddCodes final : public Kernel {
 public:
  AddCodes(const Info& info, const Kernels& kernels) : kernels_(kernels) {
    if (info.has_input(kX) && info.has_input(kMoreCodes)) info.fail("more_codes are for want of x");
  }

  void compute(const Context& context) const override {
    const Tensor codes = context.input(kCodes, {-1, -1, -1});
    AddCodesArgs a{};
    a.channels = codes.shape[2];
    a.pixels = codes.shape[0] * codes.shape[1];
    const auto of_channels = [&](size_t i) { return context.input(i, {a.channels}).as<float>(); };
    a.codes[0] = codes.as<uint8_t>();
    a.scale[0] = of_channels(kScale);
    if (context.input(kX).given()) a.x = context.input(kX, codes.shape).as<float>();
    if (context.input(kMoreCodes).given()) {
      a.codes[1] = context.input(kMoreCodes, codes.shape).as<uint8_t>();
      a.scale[1] = of_channels(kMoreScale);
    }
    if (context.input(kOffset).given()) a.offset = of_channels(kOffset);
    a.y = context.output<float>(0, codes.shape);
    kernels_.add_codes(a, context.parallel(), context.workspace());
  }

 private:
  const Kernels& kernels_;
};

}  // namespace

const Operator& add_codes_operator() {
  static const Operator op{{"AddCodes",
                            {{"x", kFloat, true},
                             {"codes", kUint8},
                             {"scale", kFloat},
                             {"more_codes", kUint8, true},
                             {"more_scale", kFloat, true},
                             {"offset", kFloat, true}},
                            {{"y", kFloat}}},
                           make_kernel<AddCodes>};
  return op;
}

}  // namespace nextscale

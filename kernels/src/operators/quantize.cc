#include "coding.h"
#include "operators.h"

namespace nextscale {
namespace {

class Quantize final : public Kernel {
 public:
  Quantize(const Info& info, const Kernels& kernels)
      : kernels_(kernels), coding_(info, "static"), fine_(info.flag("fine")) {
    if (fine_ && (coding_.ranges() != Ranges::kStatic || info.integer("bits", 8) != 8))
      info.fail("fine is for static ranges of 8 bits");
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0, {-1, -1, -1});
    const Coding coding = coding_.with(context, 1, 0, x.shape);
    uint8_t* fine = fine_ ? context.output<uint8_t>(4, x.shape) : nullptr;
    kernels_.quantize({x.as<float>(), x.shape[0], x.shape[1], x.shape[2], coding, fine}, context.parallel(),
                      context.workspace());
  }

 private:
  const Kernels& kernels_;
  CodingAttributes coding_;
  bool fine_;
};

}  // namespace

const Operator& quantize_operator() {
  static const Operator op{{"Quantize",
                            {{"x", kFloat},
                             {"scale", kFloat, true},
                             {"zero_point", kUint8, true},
                             {"difference_scale", kFloat, true},
                             {"difference_zero_point", kUint8, true}},
                            {{"codes", kUint8},
                             {"difference", kUint8, true},
                             {"code_scale", kFloat, true},
                             {"code_zero_point", kUint8, true},
                             {"fine", kUint8, true}}},
                           make_kernel<Quantize>};
  return op;
}

}  // namespace nextscale

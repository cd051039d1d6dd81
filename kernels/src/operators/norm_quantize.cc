#include "coding.h"
#include "operators.h"

namespace nextscale {
namespace {

class NormQuantize final : public Kernel {
 public:
  NormQuantize(const Info& info, const Kernels& kernels)
      : kernels_(kernels), coding_(info, "static"), epsilon_(info.number("epsilon")) {
    if (!(epsilon_ > 0)) info.fail("epsilon must be positive");
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0, {-1, -1, -1});
    const Shape modulation{x.shape[0], 1, x.shape[2]};
    const Tensor gain = context.input(1, modulation), shift = context.input(2, modulation);
    NormArgs a{x.as<float>(), gain.as<float>(), shift.as<float>(), x.shape[0], x.shape[1], x.shape[2], epsilon_, {}};
    a.coding = coding_.with(context, 3, 0, x.shape);
    kernels_.norm(a, context.parallel(), context.workspace());
  }

 private:
  const Kernels& kernels_;
  CodingAttributes coding_;
  float epsilon_;
};

}  // namespace

const Operator& norm_quantize_operator() {
  static const Operator op{{"NormQuantize",
                            {{"x", kFloat},
                             {"gain", kFloat},
                             {"shift", kFloat},
                             {"scale", kFloat, true},
                             {"zero_point", kUint8, true},
                             {"difference_scale", kFloat, true},
                             {"difference_zero_point", kUint8, true}},
                            {{"codes", kUint8},
                             {"difference", kUint8, true},
                             {"code_scale", kFloat, true},
                             {"code_zero_point", kUint8, true}}},
                           make_kernel<NormQuantize>};
  return op;
}

}  // namespace nextscale

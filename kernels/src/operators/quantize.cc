#include "coding.h"
#include "operators.h"

namespace nextscale {
namespace {

class Quantize final : public Kernel {
 public:
  Quantize(const Info& info, const Kernels& kernels) : kernels_(kernels), coding_(info, "static") {}

  void compute(const Context& context) const override {
    const Tensor x = context.input(0, {-1, -1, -1});
    const Coding coding = coding_.with(context, 1, 0, x.shape);
    kernels_.quantize({x.as<float>(), x.shape[0], x.shape[1], x.shape[2], coding}, context.parallel(),
                      context.workspace());
  }

 private:
  const Kernels& kernels_;
  CodingAttributes coding_;
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
                             {"code_zero_point", kUint8, true}}},
                           make_kernel<Quantize>};
  return op;
}

}  // namespace nextscale

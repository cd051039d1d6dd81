#include "operators.h"

namespace nextscale {
namespace {

enum Input { kX, kScale, kZeroPoint };

class Quantize final : public Kernel {
 public:
  Quantize(const Info& info, const Kernels& kernels) : kernels_(kernels), bits_(info.integer("bits", 8)) {
    if (bits_ < 2 || bits_ > 8) info.fail("bits must be 2 to 8");
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(kX, {-1, -1, -1});
    QuantizeArgs a{};
    a.x = x.as<float>();
    a.rows = x.shape[0], a.tokens = x.shape[1], a.k = x.shape[2];
    a.ranges = Ranges::kStatic;
    a.qmax = (1 << bits_) - 1;
    a.known[0] = context.qparams(kScale, kZeroPoint);
    a.codes[0] = context.output<uint8_t>(0, x.shape);
    kernels_.quantize(a, context.parallel(), context.workspace());
  }

 private:
  const Kernels& kernels_;
  int64_t bits_;
};

}  // namespace

const Operator& quantize_operator() {
  static const Operator op{{"Quantize",
                            {{"x", kFloat}, {"scale", kFloat, true}, {"zero_point", kUint8, true}},
                            {{"codes", kUint8}}},
                           make_kernel<Quantize>};
  return op;
}

}  // namespace nextscale

#include "operators.h"

namespace nextscale {
namespace {

enum Input { kLogits, kUniforms, kForced, kTopK, kTopP };

class Sample final : public Kernel {
 public:
  Sample(const Info&, const Kernels& kernels) : kernels_(kernels) {}

  void compute(const Context& context) const override {
    const Tensor logits = context.input(kLogits, {-1, -1, -1});
    const Shape tokens{logits.shape[0], logits.shape[1]};
    SampleArgs a{};
    a.rows = tokens[0] * tokens[1], a.entries = logits.shape[2];
    a.logits = logits.as<float>();
    a.uniforms = context.input(kUniforms, tokens).as<float>();
    a.forced = context.input(kForced, tokens).as<int64_t>();
    a.top_k = *context.input(kTopK, {}).as<int64_t>();
    a.top_p = *context.input(kTopP, {}).as<float>();
    if (a.entries == 0) context.fail("logits are of no entries");
    if (a.top_k > a.entries)
      context.fail("top_k is " + std::to_string(a.top_k) + ", expected at most " + std::to_string(a.entries));
    a.tokens = context.output<int64_t>(0, tokens);
    kernels_.sample(a, context.parallel());
  }

 private:
  const Kernels& kernels_;
};

}  // namespace

const Operator& sample_operator() {
  static const Operator op{{"Sample",
                            {{"logits", kFloat},
                             {"uniforms", kFloat},
                             {"forced", kInt64},
                             {"top_k", kInt64},
                             {"top_p", kFloat}},
                            {{"tokens", kInt64}}},
                           make_kernel<Sample>};
  return op;
}

}  // namespace nextscale

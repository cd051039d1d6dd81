#include "attention_inputs.h"
#include "coding.h"
#include "operators.h"

namespace nextscale {
namespace {

enum Output { kY, kCodes, kPresentKey = 3 };

// With caches of float32, or of codes with the scales of their tokens.
template <bool kCoded>
class Attention final : public Kernel {
 public:
  Attention(const Info& info, const Kernels& kernels)
      : kernels_(kernels), coding_(info, "none"), heads_(info.integer("heads")) {
    if (heads_ < 1) info.fail("heads is " + std::to_string(heads_) + ", expected 1 or more");
    if (coding_.ranges() != Ranges::kNone && coding_.ranges() != Ranges::kPair)
      info.fail("ranges must be none or pair");
  }

  void compute(const Context& context) const override {
    AttentionArgs a = attention_inputs(context, heads_);
    const Shape result{a.rows, a.tokens, heads_ * a.size};
    if (coding_.ranges() == Ranges::kNone) a.y = context.output<float>(kY, result);
    a.coding = coding_.with(context, kScale, kCodes, result);
    kCoded ? add_coded_caches(context, kLast, kPresentKey, a) : add_caches(context, kLast, kPresentKey, a);
    kernels_.attention(a, context.parallel(), context.workspace());
  }

 private:
  static constexpr size_t kScale = kCoded ? 8 : 6, kLast = kScale + 4;  // the scale is of the result
  const Kernels& kernels_;
  CodingAttributes coding_;
  int64_t heads_;
};

}  // namespace

const Operator& attention_operator() {
  static const Operator op{{"Attention",
                            {{"query", kFloat},
                             {"key", kFloat},
                             {"value", kFloat},
                             {"past_key", kFloat},
                             {"past_value", kFloat},
                             {"query_scale", kFloat},
                             {"u_scale", kFloat, true},
                             {"u_zero_point", kUint8, true},
                             {"d_scale", kFloat, true},
                             {"d_zero_point", kUint8, true},
                             {"last", kBool, true}},
                            {{"y", kFloat, true},
                             {"codes", kUint8, true},
                             {"difference", kUint8, true},
                             {"present_key", kFloat},
                             {"present_value", kFloat}}},
                           make_kernel<Attention<false>>};
  return op;
}

const Operator& codes_attention_operator() {
  static const Operator op{{"CodesAttention",
                            {{"query", kFloat},
                             {"key", kFloat},
                             {"value", kFloat},
                             {"past_key", kUint8},
                             {"past_value", kUint8},
                             {"query_scale", kFloat},
                             {"past_key_scale", kFloat},
                             {"past_value_scale", kFloat},
                             {"u_scale", kFloat, true},
                             {"u_zero_point", kUint8, true},
                             {"d_scale", kFloat, true},
                             {"d_zero_point", kUint8, true},
                             {"last", kBool, true}},
                            {{"y", kFloat, true},
                             {"codes", kUint8, true},
                             {"difference", kUint8, true},
                             {"present_key", kUint8},
                             {"present_value", kUint8},
                             {"present_key_scale", kFloat},
                             {"present_value_scale", kFloat}}},
                           make_kernel<Attention<true>>};
  return op;
}

}  // namespace nextscale

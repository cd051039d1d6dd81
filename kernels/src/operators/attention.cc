#include "coding.h"
#include "operators.h"

namespace nextscale {
namespace {

enum Input { kQuery, kKey, kValue, kPastKey, kPastValue, kQueryScale, kScale };
enum Output { kY, kCodes, kPresentKey = 3, kPresentValue };

class Attention final : public Kernel {
 public:
  Attention(const Info& info, const Kernels& kernels)
      : kernels_(kernels), coding_(info, "none"), heads_(info.integer("heads")) {
    if (heads_ < 1) info.fail("heads is " + std::to_string(heads_) + ", expected 1 or more");
    if (coding_.ranges() != Ranges::kNone && coding_.ranges() != Ranges::kPair)
      info.fail("ranges must be none or pair");
  }

  void compute(const Context& context) const override {
    const Tensor query = context.input(kQuery, {-1, -1, -1});
    const int64_t rows = query.shape[0], tokens = query.shape[1], width = query.shape[2], size = width / heads_;
    if (size * heads_ != width || size % 8 || size == 0)
      context.fail("query has " + std::to_string(width) + " channels, expected " + std::to_string(heads_) +
                   " heads of a multiple of 8");
    const Tensor past_key = context.input(kPastKey, {rows, heads_, size, -1});
    const int64_t past = past_key.shape[3], total = past + tokens;
    AttentionArgs a{};
    a.rows = rows, a.heads = heads_, a.size = size, a.tokens = tokens, a.past = past;
    a.query = query.as<float>();
    a.key = context.input(kKey, query.shape).as<float>();
    a.value = context.input(kValue, query.shape).as<float>();
    a.past_key = past_key.as<float>();
    a.past_value = context.input(kPastValue, {rows, heads_, past, size}).as<float>();
    a.query_scale = context.input(kQueryScale, {heads_}).as<float>();
    if (coding_.ranges() == Ranges::kNone) a.y = context.output<float>(kY, query.shape);
    a.coding = coding_.with(context, kScale, kCodes, query.shape);
    a.present_key = context.output<float>(kPresentKey, {rows, heads_, size, total});
    a.present_value = context.output<float>(kPresentValue, {rows, heads_, total, size});
    kernels_.attention(a, context.parallel(), context.workspace());
  }

 private:
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
                             {"d_zero_point", kUint8, true}},
                            {{"y", kFloat, true},
                             {"codes", kUint8, true},
                             {"difference", kUint8, true},
                             {"present_key", kFloat},
                             {"present_value", kFloat}}},
                           make_kernel<Attention>};
  return op;
}

}  // namespace nextscale

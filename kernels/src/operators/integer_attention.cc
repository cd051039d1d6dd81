#include <cmath>

#include "attention_inputs.h"
#include "operators.h"

namespace nextscale {
namespace {

constexpr size_t kStage = 6, kLast = 7;
constexpr int64_t kMostKeys = 1 << 16;  // 255 * 128 times as many is less than 2^31
enum Output { kY, kPresentKey, kOverflow = 3 };

Weights weights_of(const Info& info) {
  const std::string name = info.text("weights", "");
  if (name == "uniform") return Weights::kUniform;
  if (name == "row") return Weights::kRow;
  if (name == "log2") return Weights::kLog2;
  if (name == "log2-row") return Weights::kLog2Row;
  info.fail("weights is '" + name + "', expected uniform, row, log2 or log2-row");
}

class IntegerAttention final : public Kernel {
 public:
  IntegerAttention(const Info& info, const Kernels& kernels)
      : kernels_(kernels),
        weights_(weights_of(info)),
        heads_(info.integer("heads")),
        image_rows_(info.integer("image_rows", 1)),
        theta_(info.number("theta", 0.0f)),
        places_(info.integers("places")) {
    const int64_t bits = info.integer("bits", 8);
    if (heads_ < 1) info.fail("heads is " + std::to_string(heads_) + ", expected 1 or more");
    if (image_rows_ < 1) info.fail("image_rows is " + std::to_string(image_rows_) + ", expected 1 or more");
    if (bits < 2 || bits > 8) info.fail("bits is " + std::to_string(bits) + ", expected 2 to 8");
    if (!(theta_ >= 0 && theta_ <= 1)) info.fail("theta must be 0 to 1");
    qmax_ = (1 << bits) - 1;
    for (const int64_t places : places_)
      if (places < 0) info.fail("places must not be negative");
    for (const float magnitude : info.numbers("magnitudes")) {
      if (!(magnitude >= 0)) info.fail("magnitudes must not be negative");
      // In double, and then float32: as the stock graph's constants were made.
      scales_.push_back(static_cast<float>(2.0 * static_cast<double>(magnitude) / qmax_));
    }
    if (!scales_.empty() && scales_.size() != 3)
      info.fail("magnitudes has " + std::to_string(scales_.size()) + " numbers, expected 3 or none");
  }

  void compute(const Context& context) const override {
    IntegerAttentionArgs a{};
    a.base = attention_inputs(context, heads_);
    if (a.base.rows % image_rows_)
      context.fail("images have " + std::to_string(image_rows_) + " rows, found " + std::to_string(a.base.rows) +
                   " in all");
    if (a.base.past + a.base.tokens > kMostKeys)
      context.fail("there are " + std::to_string(a.base.past + a.base.tokens) + " keys, expected at most " +
                   std::to_string(kMostKeys));
    a.weights = weights_;
    a.qmax = qmax_;
    a.image_rows = image_rows_;
    a.known_scales = scales_.empty() ? nullptr : scales_.data();
    a.theta = theta_;
    a.places = places_.empty() ? -1 : places_at(context);
    a.base.y = context.output<float>(kY, {a.base.rows, a.base.tokens, heads_ * a.base.size});
    add_caches(context, kLast, kPresentKey, a.base);
    if (context.wants_output(kOverflow)) a.overflow = context.output<int64_t>(kOverflow, {});
    kernels_.integer_attention(a, context.parallel(), context.workspace());
  }

 private:
  int64_t places_at(const Context& context) const {
    const Tensor stage = context.input(kStage);
    if (!stage.given() && places_.size() == 1) return places_[0];
    if (!stage.given() || stage.size() != 1) context.fail("the input stage must have one element");
    const int64_t at = *stage.as<int64_t>();
    if (at < 0 || at >= static_cast<int64_t>(places_.size()))
      context.fail("the input stage is " + std::to_string(at) + ", expected 0 to " +
                   std::to_string(places_.size() - 1));
    return places_[static_cast<size_t>(at)];
  }

  const Kernels& kernels_;
  Weights weights_;
  int64_t heads_, image_rows_;
  float theta_;
  std::vector<int64_t> places_;
  std::vector<float> scales_;
  int32_t qmax_ = 0;
};

}  // namespace

const Operator& integer_attention_operator() {
  static const Operator op{{"IntegerAttention",
                            {{"query", kFloat},
                             {"key", kFloat},
                             {"value", kFloat},
                             {"past_key", kFloat},
                             {"past_value", kFloat},
                             {"query_scale", kFloat},
                             {"stage", kInt64, true},
                             {"last", kBool, true}},
                            {{"y", kFloat},
                             {"present_key", kFloat},
                             {"present_value", kFloat},
                             {"overflow", kInt64, true}}},
                           make_kernel<IntegerAttention>};
  return op;
}

}  // namespace nextscale

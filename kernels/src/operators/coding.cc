#include "coding.h"

namespace nextscale {
namespace {

Ranges ranges_of(const Info& info, const std::string& name) {
  if (name == "none") return Ranges::kNone;
  if (name == "static") return Ranges::kStatic;
  if (name == "pair") return Ranges::kPair;
  if (name == "image") return Ranges::kImage;
  if (name == "token") return Ranges::kToken;
  info.fail("ranges is '" + name + "', expected none, static, pair, image or token");
}

}  // namespace

CodingAttributes::CodingAttributes(const Info& info, const char* otherwise) {
  coding_.ranges = ranges_of(info, info.text("ranges", otherwise));
  const int64_t bits = info.integer("bits", 8);
  if (bits < 2 || bits > 8) info.fail("bits is " + std::to_string(bits) + ", expected 2 to 8");
  coding_.qmax = (1 << bits) - 1;
  coding_.image_rows = info.integer("image_rows", 1);
  if (coding_.image_rows < 1) info.fail("image_rows is " + std::to_string(coding_.image_rows) + ", expected 1 or more");
  if (coding_.ranges != Ranges::kToken) return;
  const int64_t zero_point = info.integer("token_zero_point");
  if (zero_point < 1 || zero_point >= coding_.qmax)
    info.fail("token_zero_point is " + std::to_string(zero_point) + ", expected 1 to " + std::to_string(coding_.qmax - 1));
  coding_.token_zero_point = static_cast<int32_t>(zero_point);
}

Coding CodingAttributes::with(const Context& context, size_t first_input, size_t first_output, const Shape& result) const {
  Coding coding = coding_;
  const int64_t rows = result[0], tokens = result[1], k = result[2];
  if (coding.ranges == Ranges::kStatic || coding.ranges == Ranges::kPair)
    coding.known[0] = context.qparams(first_input, first_input + 1);
  if (coding.ranges == Ranges::kPair) {
    coding.known[1] = context.qparams(first_input + 2, first_input + 3);
    if (rows % 2) context.fail("a pair has an even number of rows, found " + std::to_string(rows));
    for (size_t i = 0; i < 2; ++i) coding.codes[i] = context.output<uint8_t>(first_output + i, {rows / 2, tokens, k});
    return coding;
  }
  if (coding.ranges == Ranges::kNone) return coding;
  coding.codes[0] = context.output<uint8_t>(first_output, result);
  if (coding.ranges == Ranges::kStatic) return coding;
  if (coding.ranges == Ranges::kImage && rows % coding.image_rows)
    context.fail("images have " + std::to_string(coding.image_rows) + " rows, found " + std::to_string(rows) + " in all");
  const Shape ranges = coding.ranges == Ranges::kImage ? Shape{rows} : Shape{rows, tokens};
  coding.scale = context.output<float>(first_output + 2, ranges);
  coding.zero_point = context.output<uint8_t>(first_output + 3, ranges);
  return coding;
}

}  // namespace nextscale

#include "attention_inputs.h"

namespace nextscale {
namespace {

enum Input { kQuery, kKey, kValue, kPastKey, kPastValue, kQueryScale };

}  // namespace

AttentionArgs attention_inputs(const Context& context, int64_t heads) {
  const Tensor query = context.input(kQuery, {-1, -1, -1});
  const int64_t rows = query.shape[0], tokens = query.shape[1], width = query.shape[2], size = width / heads;
  if (size * heads != width || size % 8 || size == 0)
    context.fail("query has " + std::to_string(width) + " channels, expected " + std::to_string(heads) +
                 " heads of a multiple of 8");
  const Tensor past_key = context.input(kPastKey, {rows, heads, size, -1});
  const int64_t past = past_key.shape[3];
  AttentionArgs a{};
  a.rows = rows, a.heads = heads, a.size = size, a.tokens = tokens, a.past = past;
  a.query = query.as<float>();
  a.key = context.input(kKey, query.shape).as<float>();
  a.value = context.input(kValue, query.shape).as<float>();
  a.past_key = past_key.as<float>();
  a.past_value = context.input(kPastValue, {rows, heads, past, size}).as<float>();
  a.query_scale = context.input(kQueryScale, {heads}).as<float>();
  return a;
}

void add_caches(const Context& context, size_t last, size_t first, AttentionArgs& a) {
  const int64_t total = a.past + a.tokens, numbers = a.rows * a.heads * a.size * total;
  const Tensor is_last = context.input(last);
  if (is_last.given() && is_last.size() != 1) context.fail("the input last must have one element");
  const bool dropped = is_last.given() && *is_last.as<bool>();
  const int64_t kept = dropped ? 0 : total;
  a.present_key = context.output<float>(first, {a.rows, a.heads, a.size, kept});
  a.present_value = context.output<float>(first + 1, {a.rows, a.heads, kept, a.size});
  if (!dropped) return;
  a.present_key = context.workspace().take<float>(numbers);
  a.present_value = context.workspace().take<float>(numbers);
}

}  // namespace nextscale

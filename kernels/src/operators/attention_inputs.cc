#include "attention_inputs.h"

namespace nextscale {
namespace {

enum Input { kQuery, kKey, kValue, kPastKey, kPastValue, kQueryScale, kPastKeyScale, kPastValueScale };

bool is_last(const Context& context, size_t last) {
  const Tensor given = context.input(last);
  if (given.given() && given.size() != 1) context.fail("the input last must have one element");
  return given.given() && *given.as<bool>();
}

// A cache's output of this shape, with no tokens and in memory of the call instead where nothing reads it any more.
template <class T>
T* present(const Context& context, size_t output, Shape shape, size_t token_axis, bool dropped) {
  int64_t numbers = 1;
  for (const int64_t size : shape) numbers *= size;
  if (dropped) shape[token_axis] = 0;
  T* to = context.output<T>(output, shape);
  return dropped ? context.workspace().take<T>(numbers) : to;
}

}  // namespace

AttentionArgs attention_inputs(const Context& context, int64_t heads) {
  const Tensor query = context.input(kQuery, {-1, -1, -1});
  const int64_t rows = query.shape[0], tokens = query.shape[1], width = query.shape[2], size = width / heads;
  if (size * heads != width || size % 8 || size == 0)
    context.fail("query has " + std::to_string(width) + " channels, expected " + std::to_string(heads) +
                 " heads of a multiple of 8");
  AttentionArgs a{};
  a.rows = rows, a.heads = heads, a.size = size, a.tokens = tokens;
  a.past = context.input(kPastKey, {rows, heads, size, -1}).shape[3];
  context.input(kPastValue, {rows, heads, a.past, size});
  a.query = query.as<float>();
  a.key = context.input(kKey, query.shape).as<float>();
  a.value = context.input(kValue, query.shape).as<float>();
  a.query_scale = context.input(kQueryScale, {heads}).as<float>();
  return a;
}

void add_caches(const Context& context, size_t last, size_t first, AttentionArgs& a) {
  const int64_t total = a.past + a.tokens;
  const bool dropped = is_last(context, last);
  a.past_key = context.input(kPastKey).as<float>();
  a.past_value = context.input(kPastValue).as<float>();
  a.present_key = present<float>(context, first, {a.rows, a.heads, a.size, total}, 3, dropped);
  a.present_value = present<float>(context, first + 1, {a.rows, a.heads, total, a.size}, 2, dropped);
}

void add_coded_caches(const Context& context, size_t last, size_t first, AttentionArgs& a) {
  const int64_t total = a.past + a.tokens;
  const bool dropped = is_last(context, last);
  CodedCaches& c = a.coded;
  c.past_key = context.input(kPastKey).as<uint8_t>();
  c.past_value = context.input(kPastValue).as<uint8_t>();
  c.past_key_scale = context.input(kPastKeyScale, {a.rows, a.heads, 1, a.past}).as<float>();
  c.past_value_scale = context.input(kPastValueScale, {a.rows, a.heads, a.past, 1}).as<float>();
  c.present_key = present<uint8_t>(context, first, {a.rows, a.heads, a.size, total}, 3, dropped);
  c.present_value = present<uint8_t>(context, first + 1, {a.rows, a.heads, total, a.size}, 2, dropped);
  c.present_key_scale = present<float>(context, first + 2, {a.rows, a.heads, 1, total}, 3, dropped);
  c.present_value_scale = present<float>(context, first + 3, {a.rows, a.heads, total, 1}, 2, dropped);
}

}  // namespace nextscale

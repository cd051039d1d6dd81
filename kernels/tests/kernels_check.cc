// Compares the kernels of all instruction sets that this processor has, on random shapes.
//
//     kernels_check [--kernel NAME] [--seed N] [--cases N | --seconds N]
//
// Case i of a kernel is that of seed N + i. Needs no ONNX Runtime: it has threads of its own, which sanitizers see
// through, and also runs in an emulator.
#include <chrono>
#include <string_view>

#include "check.h"
#include "packed_weights.h"

namespace nextscale::check {
namespace {

void quantize(Case& c) {
  QuantizeArgs a{};
  a.rows = c.count("rows", 6), a.tokens = c.count("tokens", 80), a.k = c.size("k", 300);
  a.x = c.floats(a.rows * a.tokens * a.k, 3);
  a.coding = c.coding(c.any_ranges(false, a.rows), a.rows, a.tokens, a.k);
  if (a.coding.ranges == Ranges::kStatic && a.coding.qmax == 255 && c.told("fine", c.from(0, 1)))
    a.fine = c.output<uint8_t>(a.rows * a.tokens * a.k);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.quantize(a, parallel, workspace);
  });
}

void norm(Case& c) {
  NormArgs a{};
  a.rows = c.count("rows", 6), a.tokens = c.count("tokens", 80), a.k = c.size("k", 300);
  a.x = c.floats(a.rows * a.tokens * a.k, 3);
  a.gain = c.floats(a.rows * a.k), a.shift = c.floats(a.rows * a.k);
  a.epsilon = 1e-6f;
  a.coding = c.coding(c.any_ranges(false, a.rows), a.rows, a.tokens, a.k);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.norm(a, parallel, workspace);
  });
}

void linear(Case& c) {
  LinearArgs a{};
  a.pair = c.told("pair", c.from(0, 1)) == 1;
  a.rows = c.count("rows", 5), a.tokens = c.count("tokens", 70);
  if (a.pair) a.rows *= 2;
  const int64_t k = c.size("k", 300), n = c.size("n", 200), numbers = a.rows * a.tokens * n;
  for (int i = 0; i < (a.pair ? 2 : 1); ++i) {
    a.codes[i] = c.codes(a.rows / (a.pair ? 2 : 1) * a.tokens * k);
    a.known[i] = c.qparams();
  }
  if (!a.pair) {
    const int64_t scales[] = {1, a.rows, a.rows * a.tokens};
    a.scales = c.told("scales", scales[c.from(0, 2)]);
    a.scale = c.scales(a.scales);
    a.zero_point = c.codes(a.scales);
  }
  const PackedWeights weight(c.integers<int8_t>(k * n, -128, 127), k, n);
  a.weight = weight.panels();
  a.weight_scale = c.scales(a.weight.count() * 32);
  if (c.maybe()) a.bias = c.floats(a.weight.count() * 32);
  const int64_t epilogue = c.told("epilogue", c.from(0, 2));
  a.gelu = epilogue == 1;
  if (epilogue == 2) {
    a.residual = c.floats(numbers);
    a.gain = c.floats(a.rows * n);
  }
  a.coding = c.coding(c.any_ranges(true, a.rows), a.rows, a.tokens, n);
  if (a.coding.ranges == Ranges::kNone) a.y = c.output<float>(numbers);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.linear(a, parallel, workspace);
  });
}

// All but the caches and what becomes of the result.
AttentionArgs attention_without_caches(Case& c, int64_t most_tokens, bool outliers) {
  AttentionArgs a{};
  a.rows = c.count("rows", 4), a.heads = c.size("heads", 4), a.size = 8 * c.size("eighths", 16);
  a.tokens = c.count("tokens", most_tokens), a.past = c.count("past", 200);
  const int64_t fresh = a.rows * a.tokens * a.heads * a.size;
  const auto floats = [&] { return c.floats(fresh, 1, outliers); };
  a.query = floats(), a.key = floats(), a.value = floats();
  a.query_scale = c.scales(a.heads);
  return a;
}

AttentionArgs attention_args(Case& c, int64_t most_tokens, bool outliers) {
  AttentionArgs a = attention_without_caches(c, most_tokens, outliers);
  const int64_t width = a.heads * a.size, kept = a.rows * a.past * width, all = kept + a.rows * a.tokens * width;
  a.past_key = c.floats(kept, 0.1f, outliers), a.past_value = c.floats(kept, 1, outliers);
  a.present_key = c.output<float>(all), a.present_value = c.output<float>(all);
  return a;
}

void attention(Case& c) {
  constexpr double kOfTiles = 1e-3;  // of values up to 5, and logits up to about 1
  AttentionArgs a = attention_args(c, 70, false);
  const Ranges ranges = a.rows % 2 == 0 && c.maybe() ? Ranges::kPair : Ranges::kNone;
  const int64_t width = a.heads * a.size, fresh = a.rows * a.tokens * width;
  a.coding = c.coding(ranges, a.rows, a.tokens, width, 1);
  if (ranges == Ranges::kNone) a.y = c.output<float>(fresh, kOfTiles);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.attention(a, parallel, workspace);
  });
}

void codes_attention(Case& c) {
  constexpr double kOfTiles = 1e-3;  // as above
  AttentionArgs a = attention_without_caches(c, 70, false);
  const int64_t width = a.heads * a.size, fresh = a.rows * a.tokens * width, kept = a.rows * a.past * width;
  const int64_t past_tokens = a.rows * a.heads * a.past, all_tokens = past_tokens + a.rows * a.heads * a.tokens;
  a.coded.past_key = c.codes(kept), a.coded.past_value = c.codes(kept);
  const auto small = [&] { return c.floats(past_tokens, 1e-3f, false); };  // of keys and values up to 1
  a.coded.past_key_scale = small(), a.coded.past_value_scale = small();
  a.coded.present_key = c.output<uint8_t>(fresh + kept), a.coded.present_value = c.output<uint8_t>(fresh + kept);
  a.coded.present_key_scale = c.output<float>(all_tokens), a.coded.present_value_scale = c.output<float>(all_tokens);
  a.y = c.output<float>(fresh, kOfTiles);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.attention(a, parallel, workspace);
  });
}

void integer_attention(Case& c) {
  IntegerAttentionArgs a{};
  a.base = attention_args(c, 150, true);  // more than 64 tokens are several tasks
  a.weights = static_cast<Weights>(c.told("weights", c.from(0, 3)));
  a.qmax = (1 << c.told("bits", c.from(2, 8))) - 1;
  a.image_rows = a.base.rows % 2 == 0 ? c.told("image_rows", c.from(1, 2)) : 1;
  if (c.told("known", c.from(0, 1))) a.known_scales = c.scales(3);
  a.places = c.told("places", c.from(-1, 8));
  a.theta = static_cast<float>(c.from(0, 100)) * 1e-3f;
  a.overflow = c.output<int64_t>(1);
  a.base.y = c.output<float>(a.base.rows * a.base.tokens * a.base.heads * a.base.size);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.integer_attention(a, parallel, workspace);
  });
}

// The weights 4 G g G' of kernels/winograd.h, of weights [3][3][channels][out].
std::vector<int16_t> transformed(const int8_t* weight, int64_t out, int64_t channels) {
  constexpr int kTransform[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  const int64_t filled = (channels + 15) / 16 * 16;
  std::vector<int16_t> to(static_cast<size_t>((out + 15) / 16 * 16 * 16 * filled));
  for (int64_t o = 0; o < out; ++o)
    for (int64_t ch = 0; ch < channels; ++ch)
      for (int64_t plane = 0; plane < 16; ++plane) {
        int total = 0;
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 3; ++j)
            total += kTransform[plane / 4][i] * kTransform[plane % 4][j] * weight[((3 * i + j) * channels + ch) * out + o];
        const int64_t at = ((o / 16 * 16 + plane) * filled + ch / 2 * 2) * 16 + o % 16 * 2 + ch % 2;
        to[static_cast<size_t>(at)] = static_cast<int16_t>(total);
      }
  return to;
}

void convolution(Case& c) {
  ConvolutionArgs a{};
  a.kernels = c.told("kernels", c.maybe() ? 4 : 1), a.size = a.kernels == 4 ? 2 : 3;
  a.stride = a.kernels == 4 ? 1 : c.told("stride", c.from(1, 2));
  a.batch = c.count("batch", 3);
  a.height = a.stride * c.count("height", 20), a.width = a.stride * c.count("width", 40);
  a.channels = c.size("channels", 70), a.out = c.size("out", 70);
  a.x = c.codes(a.batch * a.height * a.width * a.channels);
  a.zero_point = static_cast<int32_t>(c.from(0, 255));
  const int64_t line = a.size * a.channels, filled = (line + 63) / 64 * 64;
  std::vector<std::unique_ptr<PackedWeights>> packed;
  std::vector<int16_t> of_winograd;
  for (int64_t i = 0; i < a.kernels; ++i) {
    const int8_t* drawn = c.integers<int8_t>(a.size * line * a.out, -128, 127);
    std::vector<int8_t> weight(static_cast<size_t>(a.size * filled * a.out));  // nothing where a line is filled up
    for (int64_t j = 0; j < a.size; ++j)
      std::memcpy(weight.data() + j * filled * a.out, drawn + j * line * a.out, static_cast<size_t>(line * a.out));
    if (a.kernels == 1 && a.stride == 1) of_winograd = transformed(drawn, a.out, a.channels);
    packed.push_back(std::make_unique<PackedWeights>(weight.data(), a.size * filled, a.out));
    a.weight[i] = packed.back()->panels();
    a.scale[i] = c.scales(a.weight[i].count() * 32);
    a.bias[i] = c.integers<int32_t>(a.weight[i].count() * 32, -100000, 100000);
  }
  const int64_t results = a.batch * (a.height / a.stride) * (a.width / a.stride) * a.kernels * a.out;
  if (c.told("to_codes", c.from(0, 1))) {
    a.y_codes = c.output<uint8_t>(results);
  } else {
    if (c.told("fine", c.from(0, 1))) a.fine = c.codes(a.batch * a.height * a.width * a.channels);
    if (c.told("residual", c.from(0, 1))) a.residual = c.floats(results);
    a.y = c.output<float>(results);
  }
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace&) {
    ConvolutionArgs of_set = a;
    if (kernels.winograd && !of_winograd.empty()) of_set.transformed = of_winograd.data();
    kernels.convolution(of_set, parallel);
  });
}

void group_norm(Case& c) {
  GroupNormArgs a{};
  a.batch = c.count("batch", 3), a.pixels = c.count("pixels", c.from(0, 3) ? 300 : 1300), a.groups = c.size("groups", 20);
  a.channels = a.groups * c.size("of_group", 20);
  const int64_t numbers = a.batch * a.pixels * a.channels;
  if (c.told("codes", c.from(0, 1))) {
    a.codes = c.codes(numbers);
    a.input_scale = c.scales(a.channels);
  } else {
    a.x = c.floats(numbers);
  }
  if (c.maybe()) a.input_offset = c.floats(a.channels);
  a.weight = c.floats(a.channels), a.bias = c.floats(a.channels);
  a.epsilon = 1e-6f;
  a.silu = c.told("silu", c.from(0, 1)) == 1;
  if (c.told("to_codes", c.from(0, 1))) {
    a.range = c.qparams();
    a.y_codes = c.output<uint8_t>(numbers);
    if (c.told("channel scales", c.from(0, 1)))
      a.y_scale = c.scales(a.channels), a.range.scale = 1;
    else if (c.told("fine", c.from(0, 1)))
      a.y_fine = c.output<uint8_t>(numbers);
  } else {
    a.y = c.output<float>(numbers);
  }
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.group_norm(a, parallel, workspace);
  });
}

void add_codes(Case& c) {
  AddCodesArgs a{};
  a.pixels = c.count("pixels", 500), a.channels = c.size("channels", 300);
  const int64_t numbers = a.pixels * a.channels, first = c.told("first", c.from(0, 2));
  a.codes[0] = c.codes(numbers), a.scale[0] = c.scales(a.channels);
  if (first == 1) a.x = c.floats(numbers);
  if (first == 2) a.codes[1] = c.codes(numbers), a.scale[1] = c.scales(a.channels);
  if (c.maybe()) a.offset = c.floats(a.channels);
  a.y = c.output<float>(numbers);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace& workspace) {
    kernels.add_codes(a, parallel, workspace);
  });
}

void sample(Case& c) {
  SampleArgs a{};
  a.rows = c.count("rows", 40), a.entries = c.size("entries", 5000);
  a.logits = c.floats(a.rows * a.entries, 3);
  a.uniforms = c.scales(a.rows);
  a.forced = c.integers<int64_t>(a.rows, -2, 1);
  a.top_k = c.told("top_k", c.from(0, c.maybe() ? a.entries : 2));
  a.top_p = static_cast<float>(c.told("top_p percent", c.from(0, 100))) / 100;
  a.tokens = c.output<int64_t>(a.rows);
  c.same_everywhere([&](const Kernels& kernels, const Parallel& parallel, const Workspace&) {
    kernels.sample(a, parallel);
  });
}

struct Check {
  const char* name;
  void (*run)(Case& c);
};
constexpr Check kChecks[] = {
    {"quantize", quantize},
    {"norm", norm},
    {"linear", linear},
    {"attention", attention},
    {"codes_attention", codes_attention},
    {"integer_attention", integer_attention},
    {"convolution", convolution},
    {"group_norm", group_norm},
    {"add_codes", add_codes},
    {"sample", sample},
};

int main(int count, char** arguments) {
  std::string_view kernel;
  uint64_t seed = 1;
  long long cases = 20;
  double seconds = 0;
  for (int i = 1; i < count; i += 2) {
    const std::string_view name = arguments[i];
    const char* value = i + 1 < count ? arguments[i + 1] : nullptr;
    if (value && name == "--kernel") {
      kernel = value;
    } else if (value && name == "--seed") {
      seed = std::strtoull(value, nullptr, 10);
    } else if (value && name == "--cases") {
      cases = std::strtoll(value, nullptr, 10);
    } else if (value && name == "--seconds") {
      seconds = std::strtod(value, nullptr);
    } else {
      std::fprintf(stderr, "kernels_check [--kernel NAME] [--seed N] [--cases N | --seconds N]\n");
      return 2;
    }
  }
  std::printf("seed %llu on", static_cast<unsigned long long>(seed));
  for (const Kernels* kernels : all_kernels()) std::printf(" %s", kernels->isa);
  std::printf("\n");
  const auto start = std::chrono::steady_clock::now();
  const auto past = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  long long done[std::size(kChecks)] = {};
  bool any = false;
  // In turns, so that a limit of time gives each kernel as many.
  for (long long i = 0; seconds > 0 ? past() < seconds : i < cases; ++i)
    for (size_t j = 0; j < std::size(kChecks); ++j) {
      if (!kernel.empty() && kernel != kChecks[j].name) continue;
      any = true;
      Case c(kChecks[j].name, seed + static_cast<uint64_t>(i));
      kChecks[j].run(c);
      ++done[j];
    }
  for (size_t j = 0; j < std::size(kChecks); ++j)
    if (done[j]) std::printf("%s: %lld cases\n", kChecks[j].name, done[j]);
  return any ? 0 : 2;
}

}  // namespace
}  // namespace nextscale::check

int main(int count, char** arguments) { return nextscale::check::main(count, arguments); }

// Holds nextscale.hpp to a conformance suite: `conformance SUITE`, the folder that tests/conformance/make_suite.py
// made. tests/conformance/README.md says what each part demands. Prints what does not hold; the exit code is 0 if all
// does.

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <iterator>
#include <thread>
#include <tuple>
#include <typeinfo>

#include "nextscale.hpp"

namespace {

namespace fs = std::filesystem;
using nextscale::Bundle;
using nextscale::Generator;
using nextscale::Request;
using nextscale::detail::Json;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return text;
}

const Json& get(const Json& object, const char* key) {
  const Json* value = object.find(key);
  if (value == nullptr) throw std::runtime_error(std::string("the suite has no key \"") + key + "\"");
  return *value;
}

std::string text(const Json& object, const char* key) { return get(object, key).text; }
bool is_null(const Json& value) { return value.is(Json::Type::null); }

/// A number; the texts "nan" and "inf" stand for what JSON lacks.
double number(const Json& value) {
  if (!value.is(Json::Type::string)) return value.as_double();
  return value.text == "nan" ? std::nan("") : std::numeric_limits<double>::infinity();
}

std::uint32_t word(const Json& value) { return static_cast<std::uint32_t>(std::stoul(value.text, nullptr, 16)); }

/// All values within lists of lists.
template <typename T, typename Convert>
void append_values(std::vector<T>& values, const Json& list, Convert convert) {
  for (const Json& item : list.items) {
    if (item.is(Json::Type::array)) {
      append_values(values, item, convert);
    } else {
      values.push_back(convert(item));
    }
  }
}

template <typename T, typename Convert>
std::vector<T> flattened(const Json& list, Convert convert) {
  std::vector<T> values;
  append_values(values, list, convert);
  return values;
}

std::vector<std::int64_t> integers(const Json& rows) {
  return flattened<std::int64_t>(rows, [](const Json& item) { return item.as_int64().value(); });
}

std::vector<std::string> texts(const Json& list) {
  return flattened<std::string>(list, [](const Json& item) { return item.text; });
}

/// A scalar of a request: null, a number or a list.
std::optional<nextscale::Scalar> scalar(const Json& value) {
  if (is_null(value)) return std::nullopt;
  if (!value.is(Json::Type::array)) return nextscale::Scalar(number(value));
  return nextscale::Scalar(flattened<double>(value, number));
}

/// A tensor of the suite, whose values are nested lists.
nextscale::Tensor tensor(const std::string& dtype, const Json& values) {
  std::vector<std::int64_t> shape;
  for (const Json* part = &values; part->is(Json::Type::array); part = &part->items.front()) {
    shape.push_back(static_cast<std::int64_t>(part->items.size()));
    if (part->items.empty()) break;
  }
  const auto numbers = flattened<double>(values, number);
  if (dtype == "float32") {
    return nextscale::Tensor::of(shape, std::vector<float>(numbers.begin(), numbers.end()));
  }
  return nextscale::Tensor::of(shape, std::vector<std::int64_t>(numbers.begin(), numbers.end()));
}

/// Null, or a text.
std::optional<std::string> optional_text(const Json* value) {
  return value == nullptr || is_null(*value) ? std::nullopt : std::optional<std::string>(value->text);
}

/// What a request of the family of text says further.
void read_text_settings(Request& request, const Json& value) {
  const Json *prompts = value.find("prompts"), *negative = value.find("negative"), *tau = value.find("tau");
  if (prompts != nullptr && !is_null(*prompts)) request.prompts = texts(*prompts);
  if (negative != nullptr && !is_null(*negative)) {
    request.negative = negative->is(Json::Type::string) ? nextscale::Negative(negative->text) : texts(*negative);
  }
  request.area = optional_text(value.find("area"));
  request.ratio = optional_text(value.find("ratio"));
  if (tau != nullptr) request.tau = scalar(*tau);
}

/// A request of the suite: a tensor is an object, texts of several lengths are one with a list of tensors, any other
/// input is a scalar.
Request read_request(const Json& value) {
  Request request;
  read_text_settings(request, value);
  const Json& inputs = get(value, "inputs");
  for (std::size_t i = 0; i < inputs.keys.size(); ++i) {
    if (const Json* several = inputs.items[i].find("texts")) {
      for (const Json& rows : several->items) request.texts[inputs.keys[i]].push_back(tensor("float32", rows));
    } else if (inputs.items[i].is(Json::Type::object)) {
      request.inputs.emplace(inputs.keys[i], tensor(text(inputs.items[i], "dtype"), get(inputs.items[i], "values")));
    } else {
      request.scalars.emplace(inputs.keys[i], scalar(inputs.items[i]).value());
    }
  }
  request.class_labels = integers(get(value, "class_labels"));
  request.seed = std::stoull(text(value, "seed"));
  request.first_image = std::stoull(text(value, "first_image"));
  request.cfg_scale = scalar(get(value, "cfg_scale"));
  request.top_p = scalar(get(value, "top_p"));
  request.top_k = scalar(get(value, "top_k"));
  request.batch_size = is_null(get(value, "batch_size")) ? std::nullopt : get(value, "batch_size").as_int64();
  request.forced_tokens = integers(get(value, "forced_tokens"));
  request.more_smooth = get(value, "more_smooth").boolean;
  request.uniforms =
      flattened<float>(get(value, "uniforms"), [](const Json& item) { return static_cast<float>(number(item)); });
  return request;
}

/// The rows of 0 and 1 of a case's mask.
nextscale::Mask mask_of(const Json& value) {
  nextscale::Mask mask;
  for (const Json& row : value.items) {
    ++mask.height;
    mask.width = row.text.size();
    for (const char letter : row.text) mask.pixels.push_back(letter == '1');
  }
  return mask;
}

nextscale::Size size_of(const Json& value) {
  return {value.items.at(0).as_int64().value(), value.items.at(1).as_int64().value()};
}

/// Pictures of a seed: byte t of picture i is 256 times uniform t of image i, rounded down.
nextscale::Images pictures(const std::string& seed, std::size_t count, const nextscale::Size& size) {
  nextscale::Images images{count, static_cast<std::size_t>(size.height), static_cast<std::size_t>(size.width), {}};
  for (std::size_t i = 0; i < count; ++i) {
    for (const float number : nextscale::uniforms(std::stoull(seed), i, images.bytes_per_image())) {
      images.pixels.push_back(static_cast<std::uint8_t>(number * 256.0f));
    }
  }
  return images;
}

nextscale::Images pictures(const Json& item) {
  return pictures(text(item, "seed"), static_cast<std::size_t>(get(item, "count").as_int64().value()),
                  size_of(get(item, "size")));
}

/// What an edit of the suite takes further than a request.
nextscale::Edit read_edit(const Json& item) {
  nextscale::Edit edit;
  edit.image = pictures(text(item, "picture"), 1, size_of(get(item, "size")));
  if (!is_null(get(item, "mask"))) edit.mask = mask_of(get(item, "mask"));
  edit.keep_stages = get(item, "keep_stages").as_int64().value();
  if (!is_null(get(item, "feather"))) edit.feather = get(item, "feather").as_int64();
  return edit;
}

std::string sha256(const void* data, std::size_t size) {
  nextscale::detail::Sha256 hash;
  hash.update(data, size);
  return hash.hexadecimal();
}

std::vector<std::string> hashes(const nextscale::Images& images) {
  std::vector<std::string> found;
  for (std::size_t i = 0; i < images.count; ++i) found.push_back(sha256(images.image(i), images.bytes_per_image()));
  return found;
}

/// The Python name of an exception's type.
std::string error_name(const std::exception& error) {
  const std::type_info& type = typeid(error);
  if (type == typeid(nextscale::BundleError)) return "BundleError";
  if (type == typeid(nextscale::ClassLabelError)) return "ClassLabelError";
  if (type == typeid(nextscale::RequestError)) return "RequestError";
  if (type == typeid(nextscale::Cancelled)) return "Cancelled";
  if (type == typeid(nextscale::Error)) return "NextscaleError";
  return type.name();
}

class Conformance {
 public:
  explicit Conformance(const fs::path& folder)
      : folder_(folder), suite_(nextscale::detail::JsonReader::read(read_file(folder / "suite.json"))) {}

  /// Run every case. Returns whether all hold.
  bool run() {
    defaults();
    random_numbers();
    tokenizers();
    probe_features();
    requests();
    request_errors();
    cancellations();
    encodes();
    edits();
    boxes();
    masks();
    class_names();
    threads_errors();
    default_threads();
    broken_bundles();
    damaged_manifests();
    variants();
    std::cout << passed_ << " passed, " << failed_ << " failed\n";
    return failed_ == 0 && passed_ > 0;
  }

 private:
  void check(bool holds, const std::string& what) {
    const std::lock_guard<std::mutex> lock(counting_);
    ++(holds ? passed_ : failed_);
    if (!holds) std::cout << "FAILED " << what << '\n';
  }

  /// `action` must throw the case's error, with its texts in one line.
  template <typename Action>
  void check_refused(const Json& item, const std::string& what, Action action) {
    try {
      action();
    } catch (const std::exception& error) {
      const std::string message = error.what();
      bool holds =
          error_name(error) == text(item, "error") && !message.empty() && message.find('\n') == std::string::npos;
      const Json* contains = item.find("contains");
      for (const std::string& part : contains != nullptr ? texts(*contains) : std::vector<std::string>()) {
        holds = holds && message.find(part) != std::string::npos;
      }
      check(holds, what + ": " + error_name(error) + ": " + message);
      return;
    }
    check(false, what + ": nothing was refused");
  }

  /// The cases of a group; none where the suite has another family's.
  const std::vector<Json>& cases(const char* group) const {
    static const std::vector<Json> none;
    const Json* found = suite_.find(group);
    return found == nullptr ? none : found->items;
  }
  fs::path bundle_path(const Json& item) const { return folder_ / fs::u8path(text(item, "bundle")); }

  /// The choice of a case's graphs, and the library that it names.
  nextscale::SessionOptions graph_options(const Json& item) const {
    nextscale::SessionOptions options;
    const std::string ops = text(item, "ops");
    options.ops = ops == "fused"   ? nextscale::Ops::fused
                  : ops == "stock" ? nextscale::Ops::stock
                                   : nextscale::Ops::automatic;
    const Json& library = get(item, "ops_library");
    if (!is_null(library)) options.ops_library = folder_ / fs::u8path(library.text);
    return options;
  }

  /// The generator of a case's bundle, made at its first use.
  const Generator& generator(const Json& item, int threads) {
    nextscale::SessionOptions options;
    if (item.find("ops") != nullptr) options = graph_options(item);
    options.threads = threads;
    const auto key = std::make_tuple(text(item, "bundle"), threads, options.ops);
    const auto place = generators_.find(key);
    if (place != generators_.end()) return place->second;
    return generators_.emplace(key, Generator(bundle_path(item), options)).first->second;
  }

  void defaults() {
    const Request expected = read_request(get(suite_, "defaults")), found;
    check(found.class_labels == expected.class_labels && found.seed == expected.seed &&
              found.first_image == expected.first_image && found.cfg_scale == expected.cfg_scale &&
              found.top_k == expected.top_k && found.top_p == expected.top_p &&
              found.forced_tokens == expected.forced_tokens && found.uniforms == expected.uniforms &&
              found.more_smooth == expected.more_smooth && found.batch_size == expected.batch_size &&
              found.prompts == expected.prompts && found.negative == expected.negative &&
              found.area == expected.area && found.ratio == expected.ratio && found.tau == expected.tau &&
              expected.scalars.empty() && expected.inputs.empty() && expected.texts.empty(),
          "defaults of a request");
  }

  void random_numbers() {
    for (const Json& item : cases("philox")) {
      std::array<std::uint32_t, 4> counter{}, words{};
      std::array<std::uint32_t, 2> key{};
      for (std::size_t i = 0; i < 4; ++i) counter[i] = word(get(item, "counter").items.at(i));
      for (std::size_t i = 0; i < 4; ++i) words[i] = word(get(item, "words").items.at(i));
      for (std::size_t i = 0; i < 2; ++i) key[i] = word(get(item, "key").items.at(i));
      check(nextscale::philox4x32(counter, key) == words, "philox");
    }
    for (const Json& item : cases("uniforms")) {
      const auto expected = integers(get(item, "values"));
      const auto use = static_cast<nextscale::Use>(get(item, "use").as_int64().value());
      const auto found =
          nextscale::uniforms(std::stoull(text(item, "seed")), std::stoull(text(item, "image")), expected.size(), use);
      bool holds = true;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        holds = holds && static_cast<double>(found[i]) * 16777216.0 == static_cast<double>(expected[i]);
      }
      check(holds, "uniforms of seed " + text(item, "seed"));
    }
  }

  /// Whether this program can tokenize by a kind.
  static bool knows_tokenizer([[maybe_unused]] const std::string& kind) {
#ifdef NEXTSCALE_SENTENCEPIECE
    return true;
#else
    return kind != "sentencepiece";
#endif
  }

  bool knows_tokenizer(const Generator& generator) const {
    const auto& tokenizer = generator.bundle().manifest().tokenizer;
    return !tokenizer || knows_tokenizer(tokenizer->kind);
  }

  void tokenizers() {
    for (const Json& item : cases("tokenizers")) {
      const std::int64_t most = get(item, "max_tokens").as_int64().value();
      const bool pieces = text(item, "kind") == "sentencepiece";
      if (!knows_tokenizer(text(item, "kind"))) continue;
      const auto tokens = [&] {
        const std::string prompt = text(item, "text");
        if (!pieces) return nextscale::detail::byte_tokens(prompt, most);
        return nextscale::detail::SentencePieces(folder_ / fs::u8path(text(item, "file"))).tokens(prompt, most);
      };
      const std::string what = "tokenizers: " + text(item, "kind") + ": " + text(item, "name");
      if (item.find("error") != nullptr) {
        check_refused(item, what, tokens);
        continue;
      }
      try {
        check(tokens() == integers(get(item, "ids")), what);
      } catch (const std::exception& error) {
        check(false, what + ": " + error.what());
      }
    }
#ifdef NEXTSCALE_SENTENCEPIECE
    for (const Json& item : cases("requests")) {
      const auto& tokenizer = generator(item, 1).bundle().manifest().tokenizer;
      if (!tokenizer || tokenizer->kind != "sentencepiece") continue;
      try {
        nextscale::detail::SentencePieces(bundle_path(item) / "weights.data");
        check(false, "a tokenizer's file that is none: nothing was refused");
      } catch (const nextscale::BundleError& error) {
        check(std::string(error.what()).find(" is no sentencepiece model") != std::string::npos, error.what());
      }
    }
#endif
    // What JSON cannot say: texts that are no UTF-8, with their place.
    static constexpr std::tuple<const char*, const char*, int> damaged[] = {
        {"a\xC3(", "a\\xc3(", 1},
        {"\xED\xA0\x80", "\\xed\\xa0\\x80", 0},
        {"\n\xF0\x9F\xA6", "\\n\\xf0\\x9f\\xa6", 1}};
    for (const auto& [prompt, shown, place] : damaged) {
      try {
        nextscale::detail::byte_tokens(prompt, 512);
        check(false, std::string(shown) + ": nothing was refused");
      } catch (const nextscale::RequestError& error) {
        const std::string expected = std::string("prompt \"") + shown + "\": byte " + std::to_string(place) +
                                     " is no UTF-8; expected valid Unicode";
        check(error.what() == expected, error.what());
      }
    }
  }

  /// 2 u - 1 of the first numbers u of an image of seed 0.
  void probe_features() {
    for (const Json& item : cases("probe_features")) {
      const std::vector<Json>& values = get(item, "values").items;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto expected = integers(values[i]);
        const auto found = nextscale::uniforms(0, i, expected.size());
        bool holds = true;
        for (std::size_t k = 0; k < expected.size(); ++k) {
          holds = holds && (2 * found[k] - 1) * 8388608.0f == static_cast<float>(expected[k]);
        }
        check(holds, "probe_features: " + text(item, "name"));
      }
    }
  }

  /// One run of a request, or of an edit, against what is expected.
  void check_request(const Generator& generator, const Json& item, bool streaming, const std::string& what) {
    const Json& expected = get(item, "expected");
    std::vector<std::string> previews;
    nextscale::OnStage on_stage;
    if (streaming) {
      on_stage = [&previews](const nextscale::StageResult& stage) {
        const nextscale::Images preview = stage.preview();
        previews.push_back(sha256(preview.pixels.data(), preview.pixels.size()));
        return true;
      };
    }
    try {
      const nextscale::Generation result = item.find("picture") != nullptr
                                               ? generator.edit(read_edit(item), read_request(item), on_stage)
                                               : generator.generate(read_request(item), on_stage);
      check(result.token_maps == integers(get(expected, "token_maps")), what + ": tokens");
      check(hashes(result.images) == texts(get(expected, "images_sha256")), what + ": images");
      if (streaming) check(previews == texts(get(expected, "previews_sha256")), what + ": previews");
    } catch (const std::exception& error) {
      check(false, what + ": " + error.what());
    }
  }

  /// Whether a case must come out with so many threads.
  static bool holds_with(const Json& item, int threads) {
    const auto all = integers(get(item, "threads"));
    return std::find(all.begin(), all.end(), threads) != all.end();
  }

  /// All cases of a group with their numbers of threads, in one call and streaming.
  void check_all(const char* group) {
    for (const int threads : {1, 2}) {
      for (const Json& item : cases(group)) {
        if (!holds_with(item, threads) || !knows_tokenizer(generator(item, threads))) continue;
        for (const bool streaming : {false, true}) {
          check_request(generator(item, threads), item, streaming,
                        title(item) + ": " + std::to_string(threads) + " threads, " +
                            (streaming ? "streaming" : "one call"));
        }
      }
    }
  }

  static std::string title(const Json& item) {
    return text(item, "bundle") + ": " + text(item, "ops") + ": " + text(item, "name");
  }

  void requests() {
    check_all("requests");
    // One generator, several threads, which all load it first.
    const Json& item = cases("requests").front();
    const Generator shared(bundle_path(item));
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] {
        for (const Json& other : cases("requests")) {
          if (text(other, "bundle") == text(item, "bundle")) {
            check_request(shared, other, i % 2 == 0, "shared by threads: " + text(other, "name"));
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    check_stream(item);
    nextscale::SessionOptions options;
    options.return_memory = true;
    const Generator returning(bundle_path(item), options);
    for (const bool streaming : {false, true}) check_request(returning, item, streaming, "memory returned");
    check_text_encoder_closed();
  }

  /// Prompts of one bundle from several threads, each of which may close the text encoder that another one runs.
  void check_text_encoder_closed() {
    std::vector<const Json*> of_prompts;
    for (const Json& item : cases("requests")) {
      const Json* prompts = item.find("prompts");
      if (prompts == nullptr || is_null(*prompts)) continue;
      if (of_prompts.empty() || text(*of_prompts[0], "bundle") == text(item, "bundle")) of_prompts.push_back(&item);
    }
    if (of_prompts.empty()) return;
    nextscale::SessionOptions options;
    options.keep_text_encoder = false;
    const Generator shared(bundle_path(*of_prompts[0]), options);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        for (const Json* item : of_prompts) {
          check_request(shared, *item, i % 2 == 0, "text encoder closed: " + text(*item, "name"));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  /// The pull form gives the tokens of the other two, and its results outlive it.
  void check_stream(const Json& item) {
    std::optional<nextscale::StageResult> last;
    std::vector<std::int64_t> tokens;
    {
      const Generator passing(bundle_path(item));
      Request request = read_request(item);
      nextscale::Stream stream = passing.stream(request);
      request.class_labels.assign(request.class_labels.size(), 4);  // too late to change anything
      while (auto stage = stream.next()) {
        tokens.insert(tokens.end(), stage->tokens.begin(), stage->tokens.end());
        last = std::move(stage);
      }
      check(!stream.next(), "a stream that ended goes on");
    }
    const Json& expected = get(item, "expected");
    check(tokens == integers(get(expected, "token_maps")), "stream: tokens");
    const nextscale::Images images = last->preview();
    check(sha256(images.image(0), images.bytes_per_image()) == texts(get(expected, "images_sha256")).at(0),
          "stream: image");
  }

  void request_errors() {
    for (const Json& item : cases("request_errors")) {
      const Generator& tested = generator(item, 1);
      check_refused(item, text(item, "name"), [&] { tested.generate(read_request(item)); });
      check_refused(item, text(item, "name") + ", streaming",
                    [&] { tested.generate(read_request(item), [](const nextscale::StageResult&) { return true; }); });
    }
  }

  void cancellations() {
    for (const Json& item : cases("cancellations")) {
      const std::int64_t wanted = get(item, "callbacks").as_int64().value();
      std::int64_t calls = 0;
      const std::atomic<bool> cancel = wanted == 0;
      check_refused(item, text(item, "name"), [&] {
        generator(item, 1).generate(
            read_request(item), [&](const nextscale::StageResult&) { return ++calls != wanted; }, &cancel);
      });
      check(calls == wanted, text(item, "name") + ": " + std::to_string(calls) + " callbacks");
    }
  }

  void encodes() {
    for (const int threads : {1, 2}) {
      for (const Json& item : cases("encodes")) {
        if (!holds_with(item, threads)) continue;
        try {
          check(generator(item, threads).encode(pictures(item)) == integers(get(item, "token_maps")),
                "encodes: " + title(item));
        } catch (const std::exception& error) {
          check(false, "encodes: " + title(item) + ": " + error.what());
        }
      }
    }
    for (const Json& item : cases("encode_errors")) {
      check_refused(item, text(item, "name"), [&] { generator(item, 1).encode(pictures(item)); });
    }
  }

  void edits() {
    check_all("edits");
    for (const Json& item : cases("edit_errors")) {
      const std::atomic<bool> cancel = get(item, "cancelled").boolean;
      check_refused(item, text(item, "name"), [&] {
        generator(item, 1).edit(read_edit(item), read_request(item), nullptr, cancel ? &cancel : nullptr);
      });
    }
    const Json& item = cases("edit_errors").front();
    nextscale::Edit two;
    two.image = pictures("0", 2, {12, 12});
    try {
      generator(item, 1).edit(two);
      check(false, "two pictures: nothing was refused");
    } catch (const nextscale::RequestError& error) {
      check(std::string(error.what()) == "image: expected uint8 [H, W, 3], found uint8 [2, 12, 12, 3]", error.what());
    }
  }

  void boxes() {
    for (const Json& item : cases("boxes")) {
      const std::string what = "boxes: " + text(item, "name");
      const auto box = [&] {
        const auto ends = flattened<double>(get(item, "ends"), number);
        return nextscale::Mask::box(Bundle::open(bundle_path(item)).model(),
                                    {ends.at(0), ends.at(1), ends.at(2), ends.at(3)}, get(item, "outside").boolean);
      };
      if (item.find("error") != nullptr) {
        check_refused(item, what, box);
      } else {
        check(box().pixels == mask_of(get(item, "mask")).pixels, what);
      }
    }
  }

  /// From masks to kept tokens and mixed pictures.
  void masks() {
    for (const Json& item : cases("kept_tokens")) {
      const nextscale::Mask mask = mask_of(get(item, "mask"));
      const nextscale::Size latent = size_of(get(item, "latent"));
      if (item.find("error") != nullptr) {
        check_refused(item, "kept_tokens", [&] { nextscale::detail::latent_mask(mask, latent); });
        continue;
      }
      std::vector<nextscale::Size> stages;
      for (const Json& stage : get(item, "stages").items) stages.push_back(size_of(stage));
      const nextscale::Mask positions = nextscale::detail::latent_mask(mask, latent);
      check(positions.pixels == mask_of(get(item, "positions")).pixels, "kept_tokens: positions");
      std::string kept;
      for (const bool token : nextscale::detail::kept_tokens(positions, stages)) kept += token ? '1' : '0';
      check(kept == text(item, "kept"), "kept_tokens");
    }
    for (const Json& item : cases("blends")) {
      const nextscale::Mask mask = mask_of(get(item, "mask"));
      const nextscale::Size size = {static_cast<std::int64_t>(mask.height), static_cast<std::int64_t>(mask.width)};
      const nextscale::Images old = pictures(text(item, "seed"), 1, size);
      nextscale::Images made = pictures(text(item, "seed"), 3, size);
      made.pixels.erase(made.pixels.begin(), made.pixels.begin() + static_cast<std::ptrdiff_t>(old.pixels.size()));
      --made.count;
      nextscale::detail::blend(old, made, mask, get(item, "feather").as_int64().value());
      check(hashes(made) == texts(get(item, "images_sha256")), "blends: seed " + text(item, "seed"));
    }
  }

  void class_names() {
    for (const Json& item : cases("class_names")) {
      const Bundle& bundle = generator(item, 1).bundle();
      const std::string what = "class \"" + text(item, "text") + "\"";
      if (const Json* label = item.find("label")) {
        try {
          check(bundle.class_label(text(item, "text")) == label->as_int64().value(), what);
        } catch (const nextscale::Error& error) {
          check(false, what + ": " + error.what());
        }
      } else {
        check_refused(item, what, [&] { bundle.class_label(text(item, "text")); });
      }
    }
  }

  void threads_errors() {
    for (const Json& item : cases("threads_errors")) {
      nextscale::SessionOptions options;
      options.threads = static_cast<int>(get(item, "threads").as_int64().value());
      check_refused(item, text(get(suite_, "threads_errors").items.front(), "bundle"),
                    [&] { Generator(bundle_path(item), options); });
    }
  }

  void default_threads() {
    for (const Json& item : cases("default_threads")) {
      const fs::path root = folder_ / fs::u8path(text(item, "root"));
      const int found = nextscale::detail::default_threads(root);
      check(found == get(item, "threads").as_int64().value(),
            "threads: " + text(item, "name") + ": " + std::to_string(found));
      if (item.find("cpus") == nullptr) continue;
      const std::uint64_t cpus = nextscale::detail::logical_cpus(root);
      check(static_cast<std::int64_t>(cpus) == get(item, "cpus").as_int64().value(),
            "CPUs: " + text(item, "name") + ": " + std::to_string(cpus));
    }
  }

  void broken_bundles() {
    for (const Json& item : cases("broken_bundles")) {
      const std::string step = text(item, "step"), what = "broken bundle: " + text(item, "name");
      if (step == "open") {
        check_refused(item, what, [&] { Bundle::open(bundle_path(item)); });
        continue;
      }
      const Bundle bundle = Bundle::open(bundle_path(item));
      if (step == "verify_hashes") {
        check_refused(item, what, [&] { bundle.verify_hashes(); });
        continue;
      }
      bundle.verify_hashes();
      check_refused(item, what, [&] {
        const Generator made(bundle);
        for (const std::string& name : texts(get(item, "graphs"))) {
          for (const nextscale::Graph graph : nextscale::detail::kGraphs) {
            if (nextscale::detail::graph_name(graph) == name) made.load({graph});
          }
        }
      });
    }
  }

  void damaged_manifests() {
    for (const Json& item : cases("damaged_manifests")) {
      const std::string manifest = read_file(folder_ / text(item, "file"));
      if (!is_null(get(item, "error"))) {
        check_refused(item, text(item, "file"), [&] { nextscale::Manifest::parse(manifest); });
        continue;
      }
      try {
        nextscale::Manifest::parse(manifest);
        check(true, "");
      } catch (const std::exception& error) {
        check(false, text(item, "file") + ": " + error.what());
      }
    }
  }

  void variants() {
    for (const Json& item : cases("variants")) {
      const std::string what = "variants: " + text(item, "name");
      if (item.find("error") != nullptr) {
        check_refused(item, what, [&] { Generator(bundle_path(item), graph_options(item)); });
        continue;
      }
      try {
        const Generator made(bundle_path(item), graph_options(item));
        const bool fused = made.ops().variant == nextscale::Variant::fused;
        check((fused ? "fused" : "stock") == text(item, "variant"), what);
        check(made.ops().reason.find(text(item, "reason")) != std::string::npos, what + ": " + made.ops().reason);
      } catch (const std::exception& error) {
        check(false, what + ": " + error.what());
      }
    }
  }

  fs::path folder_;
  Json suite_;
  std::map<std::tuple<std::string, int, nextscale::Ops>, Generator> generators_;
  std::mutex counting_;
  int passed_ = 0;
  int failed_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: conformance SUITE\nSUITE is a folder made by tests/conformance/make_suite.py\n";
    return 2;
  }
  try {
    return Conformance(fs::u8path(argv[1])).run() ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::cerr << "conformance: " << error.what() << '\n';
    return 2;
  }
}

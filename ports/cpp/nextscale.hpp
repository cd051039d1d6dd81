// nextscale.hpp: pictures from a nextscale bundle, in C++17 on ONNX Runtime. Copy this one file.
//
//     nextscale::Generator generator("d16-int8");
//     nextscale::Request request;
//     request.class_labels = {207, 88};
//     request.seed = 0;
//     nextscale::Generation result = generator.generate(request);
//     result.images.image(0);  // height x width x 3 bytes, RGB
//
// The same bundle, request and seed give the same tokens and the same bytes as the Python package, on one machine and
// release of ONNX Runtime, whatever the number of threads. docs/bundle.md describes a bundle.
//
// Needs ONNX Runtime's C++ header and library, 1.23 or later but not 1.29.0, and nothing else; where the macro
// NEXTSCALE_SENTENCEPIECE is defined also the sentencepiece library, which some bundles' prompts need. Whoever includes
// this header turns ONNX Runtime's telemetry off before main, unless ORT_DISABLE_TELEMETRY is set already. Symbols
// below: B images, L tokens of an image, d values of a token where it is a vector such as bits, V entries of the
// codebook, H x W pixels. All but namespace `detail` is for you.

#ifndef NEXTSCALE_HPP
#define NEXTSCALE_HPP

#include <onnxruntime_cxx_api.h>
#ifdef NEXTSCALE_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <limits>
#include <locale>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>  // malloc_trim
#endif
#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>  // LoadLibraryW
#else
#include <dlfcn.h>  // with glibc before 2.34 also link with -ldl
#endif

namespace nextscale {

// ---------------------------------------------------------------------------------------------------------- errors

/// An expected failure. `what()` is one line of UTF-8: what is wrong, where, what was expected, what to do.
/// Thrown itself for what the types below do not cover, such as a failure inside ONNX Runtime.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A bundle that is missing, damaged, newer than this header, or not what its manifest says.
class BundleError : public Error {
 public:
  using Error::Error;
};

/// A class that the bundle's model does not have.
class ClassLabelError : public Error {
 public:
  using Error::Error;
};

/// A parameter of a request outside its range, or of another size.
class RequestError : public Error {
 public:
  using Error::Error;
};

/// The caller cancelled a generation; nothing is wrong and nothing was produced.
class Cancelled : public Error {
 public:
  using Error::Error;
};

// --------------------------------------------------------------------------------------------------------- options

/// The graphs that run: the bundle's own, of operators that every ONNX Runtime has, or the faster ones with fused
/// operators, which need the library of nextscale-ops. A seed's tokens may differ between them.
enum class Variant { stock, fused };

/// Which of them to take. `automatic`: the fused ones where the bundle has them, the library is given and fits, and it
/// has more than plain C++ for this processor.
enum class Ops { automatic, stock, fused };

/// Which of them run, and why, in words for people.
struct Choice {
  Variant variant = Variant::stock;
  std::string reason;
};

/// How a generator uses the machine. The values here are those of the Python package.
struct SessionOptions {
  /// Threads of one operator, 1 to 1024; 0 takes one for each physical core that the process may run on, and no more
  /// than its control groups' quota of CPU time, rounded up.
  int threads = 0;
  /// Idle threads spin for a moment before they sleep: faster alone, slower on a busy machine. More threads than the
  /// CPUs that the process may use never spin.
  bool spinning = true;
  /// Keep freed memory for the next operator; without it a picture takes about a quarter longer.
  bool memory_arena = true;
  /// Give memory back to the operating system after each call, for a process that lives long: without the arena, and
  /// with glibc also what the C library would keep.
  bool return_memory = false;
  /// Plan one block of memory for each set of shapes; costs memory, gains no time for these graphs.
  bool memory_pattern = false;
  /// Keep the text encoder loaded for the next prompts; without it, it is closed once the texts of a request are
  /// encoded, and its memory is free while the pictures are made.
  bool keep_text_encoder = true;
  Ops ops = Ops::automatic;
  /// The file of the library of nextscale-ops, such as libnextscale_ops.so; it is never looked for.
  std::filesystem::path ops_library;
};

// -------------------------------------------------------------------------------------------------- random numbers

/// Ten rounds of Philox4x32 (Salmon et al., SC 2011).
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// What numbers are for; no two uses share any.
enum class Use : std::uint32_t { sampling = 0, smoothing = 1 };

/// The numbers that decide image `image` of a seed, in [0, 1), the same in any batch and language: one for each token
/// to sample, V for each to smooth.
///
/// Number t is word t % 4 of Philox4x32-10 with key (low, high half of seed) and counter
/// (t / 4, low, high half of image, use), as (word >> 8) * 2^-24.
std::vector<float> uniforms(std::uint64_t seed, std::uint64_t image, std::size_t length, Use use = Use::sampling);

// -------------------------------------------------------------------------------------------------------- manifest

/// The graphs of a bundle.
enum class Graph { generate, stage, decoder, encoder, text_encoder };

struct Size {
  std::int64_t height = 0;
  std::int64_t width = 0;

  bool operator==(const Size& other) const { return height == other.height && width == other.width; }
  bool operator!=(const Size& other) const { return !(*this == other); }
};

/// One size that a bundle is built for.
struct SizeInfo {
  std::string area;               ///< About how many pixels, such as "0.25M".
  Size ratio;                     ///< Of height to width, in lowest terms.
  Size image_size;                ///< H and W.
  Size latent_size;               ///< Of f_hat.
  std::vector<Size> stage_sizes;  ///< Tokens of each stage's token map.

  /// Width to height, as people say it: "3:4" is a portrait.
  std::string ratio_in_words() const { return std::to_string(ratio.width) + ":" + std::to_string(ratio.height); }
};

/// The sizes of a model.
struct ModelInfo {
  std::int64_t num_classes = 0;   ///< Labels are 0 to num_classes - 1, num_classes is the null class; 0: no classes.
  std::vector<Size> stage_sizes;  ///< Tokens of each stage's token map.
  Size image_size;                ///< H and W.
  std::int64_t vocab_size = 0;    ///< V, the values that an entry of a token map may have; 2 where tokens are bits.
  std::int64_t depth = 0;
  std::int64_t embed_dim = 0;
  std::int64_t num_heads = 0;
  std::int64_t latent_channels = 0;
  Size latent_size;

  std::size_t num_stages() const { return stage_sizes.size(); }
  /// L, the tokens of all stages.
  std::int64_t num_tokens() const;
  /// The same model where it makes pictures of another size.
  ModelInfo of_size(const SizeInfo& size) const;
};

/// One dimension of a tensor: a size, or a symbol such as "B", or neither where nothing is known.
struct Dimension {
  std::optional<std::int64_t> size;
  std::string symbol;

  bool operator==(const Dimension& other) const { return size == other.size && symbol == other.symbol; }
};

/// What an input of a request is. Labels, texts and a size are the caller's, the library can make uniforms, forced
/// tokens and scalars, and the caller gives tensors of the other kinds.
enum class Kind {
  label,
  uniform,
  smooth_uniform,
  forced_tokens,
  scalar,
  text_features,
  text_mask,
  image,
  mask,
  negative_features,
  negative_mask,
  size
};

/// One input of a request. "B" comes first in its shape where each image has a row; all images share the others. In a
/// bundle of several sizes "L", "S", "h", "w", "H" and "W" are what the size of a request decides.
struct RequestInput {
  std::string name;
  Kind kind = Kind::scalar;
  std::string dtype;
  std::vector<Dimension> shape;
  std::vector<double> defaults;   ///< Of a scalar: one value, or one for each stage where its shape is [S].
  std::optional<double> minimum;  ///< Of a scalar; unset where any finite number will do.
  std::optional<double> maximum;
  std::optional<std::int64_t> max_tokens = std::nullopt;  ///< Of a text, of features; unset: any number.

  bool per_image() const { return !shape.empty() && !shape[0].size && shape[0].symbol == "B"; }
  /// The product of the sizes in numbers: of uniforms [B, L], L.
  std::int64_t row_values() const;
};

/// A graph's input or output; `dtype` is "float32", "float16", "int64", "int32", "int8" or "uint8".
struct TensorInfo {
  std::string name;
  std::string dtype;
  std::vector<Dimension> shape;
};

/// A tensor that is carried from one stage to the next; it starts as zeros, with "B", "2B" and the symbols of the size
/// replaced.
struct StateInfo {
  std::string input;
  std::string output;
  std::string dtype;
  std::vector<Dimension> initial_shape;
};

/// The fused variant of a graph: its ONNX file, and the version of each domain of operators that it needs.
struct FusedInfo {
  std::string file;
  std::vector<std::pair<std::string, std::int64_t>> operators;
};

/// The contract of a graph and the ONNX file of its stock variant; only `stage` has a state.
struct GraphInfo {
  std::string file;
  std::optional<FusedInfo> fused;
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;
  std::vector<StateInfo> state;
};

/// What a file must be: its size in bytes and the sha256 of its content in lower-case hexadecimal.
struct FileInfo {
  std::uint64_t size = 0;
  std::string sha256;
};

/// How prompts become the token ids of the text encoder.
struct TokenizerInfo {
  std::string kind;             ///< "bytes" or "sentencepiece", or one that this header does not know.
  std::int64_t max_tokens = 0;  ///< Of a prompt, its end included; 0 where the kind is not known.
  std::string file;             ///< Of a "sentencepiece" model.
};

/// manifest.json, schema 2 or 1: what a host needs of it. Keys, graphs and variants that are not known are ignored.
struct Manifest {
  std::string name;
  std::string family;   ///< Of the model, such as "var"; for people.
  std::string recipe;   ///< The name of the quantization recipe.
  std::string licence;  ///< Of the weights.
  ModelInfo model;      ///< Where there are several sizes, that of the first.
  std::vector<SizeInfo> sizes;           ///< Those that the bundle is built for; none where it has one, the model's.
  std::vector<std::string> class_names;  ///< One per class, or none at all.
  std::vector<RequestInput> request;
  std::map<Graph, GraphInfo> graphs;       ///< `stage` and `decoder`, and the others where the bundle has them.
  std::optional<TokenizerInfo> tokenizer;  ///< Of prompts, if the bundle has one.
  std::map<std::string, FileInfo> files;

  /// The model at each size.
  std::vector<ModelInfo> models() const;
  /// The request's input of a kind; null where it has none. Of scalars, images and masks there may be several.
  const RequestInput* input_of_kind(Kind kind) const;

  /// Parse and check a manifest; `where` is how errors name it.
  /// Throws BundleError: no JSON, a newer schema, or a key that is missing, of another type or at odds with another.
  static Manifest parse(std::string_view text, const std::string& where = "manifest.json");
};

// ---------------------------------------------------------------------------------------------------------- bundle

/// A folder whose manifest was read and whose files all have the size the manifest gives, but for its card. A file that
/// is a link out of the folder, as in a download cache, also has the sha256 that the manifest gives.
class Bundle {
 public:
  /// Read a bundle's manifest and check its files; with `verify_hashes` also read every file and compare its sha256.
  /// Throws BundleError: no bundle there, or one that is damaged, newer, or has a link to a file that is not
  /// the manifest's.
  static Bundle open(const std::filesystem::path& folder, bool verify_hashes = false);

  const std::filesystem::path& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  const ModelInfo& model() const { return manifest_.model; }
  /// The ONNX file of a graph's variant: of the stock one where it has no other.
  std::filesystem::path graph_path(Graph graph, Variant variant = Variant::stock) const;

  /// The files beside the graphs that are links out of the folder, as in a download cache, by name.
  std::vector<std::string> linked_data() const;

  /// Read every file and compare its sha256. Throws BundleError: a file's content is not what the manifest says.
  void verify_hashes() const;

  /// The id of a class, from its digits or its name in any case of ASCII letters. Where names list synonyms separated
  /// by commas, each synonym is a name. "null", where no class is named so, is the null class.
  /// Throws ClassLabelError: an id out of range, an unknown name, or a name that several classes share.
  std::int64_t class_label(std::string_view name) const;

  /// A class's name, or its id as text where it has none.
  std::string class_name(std::int64_t label) const;

 private:
  Bundle(std::filesystem::path path, Manifest manifest) : path_(std::move(path)), manifest_(std::move(manifest)) {}
  void check_file(const std::string& name, const FileInfo& info) const;
  bool is_link_out(const std::string& name) const;
  bool is_changed(const std::string& name, const FileInfo& info) const;

  std::filesystem::path path_;
  Manifest manifest_;
};

// --------------------------------------------------------------------------------------------- requests and results

/// A scalar of a request: one value, or a list of one for each stage where the bundle takes that.
struct Scalar {
  std::vector<double> values;

  Scalar(double value) : values{value} {}
  Scalar(std::initializer_list<double> list) : values(list) {}
  Scalar(std::vector<double> list) : values(std::move(list)) {}
  bool operator==(const Scalar& other) const { return values == other.values; }
};

/// A tensor of the caller's, row-major, such as text features.
struct Tensor {
  std::string dtype;  ///< As in TensorInfo.
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> bytes;

  /// From float, std::int64_t, std::int32_t, std::int8_t or std::uint8_t.
  template <typename T>
  static Tensor of(std::vector<std::int64_t> shape, const std::vector<T>& values);
};

/// What images are to be guided away from: one text for all of them, or a list of one for each.
struct Negative {
  std::vector<std::string> texts;
  bool for_all = false;

  Negative(const char* text) : texts{text}, for_all(true) {}
  Negative(std::string text) : texts{std::move(text)}, for_all(true) {}
  Negative(std::initializer_list<std::string> list) : texts(list) {}
  Negative(std::vector<std::string> list) : texts(std::move(list)) {}
  bool operator==(const Negative& other) const { return texts == other.texts && for_all == other.for_all; }
};

/// B images to generate. What is left unset has the bundle's default.
struct Request {
  /// [B], each 0 to num_classes; empty where the bundle takes no classes.
  std::vector<std::int64_t> class_labels;
  /// [B], UTF-8, where the bundle has a text encoder. Their features may be given instead, in `inputs` or `texts`.
  std::optional<std::vector<std::string>> prompts;
  /// "" is as unset: what the model learned for no text.
  std::optional<Negative> negative;
  /// Of the pictures, such as "0.25M", where the bundle is built for several sizes; unset: the first's.
  std::optional<std::string> area;
  /// Width to height, such as "3:4", in the same way.
  std::optional<std::string> ratio;
  /// The same seed gives the same pictures.
  std::uint64_t seed = 0;
  /// Image i of the result is image first_image + i of the seed, whatever the batch.
  std::uint64_t first_image = 0;
  /// Guidance strength, at least 0; 0 is none.
  std::optional<Scalar> cfg_scale;
  /// Keep the k likeliest tokens, 0 (off) to V. 1 is greedy.
  std::optional<Scalar> top_k;
  /// Keep the likeliest tokens of this probability mass, 0 (off) to 1.
  std::optional<Scalar> top_p;
  /// Temperature: logits are divided by it before sampling.
  std::optional<Scalar> tau;
  /// Further scalars of the bundle, by name, and the index of a size.
  std::map<std::string, Scalar> scalars;
  /// The bundle's inputs of other kinds, such as text features, by name.
  std::map<std::string, Tensor> inputs;
  /// Features of texts that may differ in length, by name: for each image [N, Ct], which are padded and masked.
  std::map<std::string, std::vector<Tensor>> texts;
  /// Empty, or [B, L], or [B, L, d]: values to take instead of sampling, -1 to sample.
  std::vector<std::int64_t> forced_tokens;
  /// Empty, or [B, L], or [B, L, d], in [0, 1): instead of those of seed and first_image.
  std::vector<float> uniforms;
  /// Take mixtures of codebook entries instead of single ones: for looks, not for metrics. Tokens are still sampled,
  /// and forced ones keep their entry.
  bool more_smooth = false;
  /// Images at a time, at least 1; unset is all at once.
  std::optional<std::int64_t> batch_size;
};

/// Pictures, [count, height, width, 3] bytes, RGB, row by row.
struct Images {
  std::size_t count = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> pixels;

  std::size_t bytes_per_image() const { return height * width * 3; }
  /// Picture `index`: bytes_per_image() bytes.
  const std::uint8_t* image(std::size_t index) const { return pixels.data() + index * bytes_per_image(); }
};

/// Which pixels of a picture are made anew, [height, width], row by row: those that are not 0.
struct Mask {
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> pixels;

  /// What is within y0, x0, y1, x1, shares of the picture's height and width, or with `outside` all but that. Ends are
  /// rounded to positions of the model's latent, halves to even.
  /// Throws RequestError: the box is not within the picture, or has no position.
  static Mask box(const ModelInfo& model, const std::array<double, 4>& ends, bool outside = false);
};

/// What of a picture is made anew.
struct Edit {
  Images image;              ///< One picture, of a size that the bundle is built for.
  std::optional<Mask> mask;  ///< Of the picture's size; unset: everywhere.
  /// Tokens of so many first stages are kept within the mask too: what remains of the picture's layout and colours.
  std::int64_t keep_stages = 0;
  /// Width in pixels of the seam within the mask, where the picture becomes the new one; unset: a quarter of what one
  /// position of the latent covers; -1: no blending, the decoder's picture as it is.
  std::optional<std::int64_t> feather;
};

/// Generated images.
struct Generation {
  Images images;
  /// [B, L], or [B, L, d], stages in order, row-major; of the form of Request::forced_tokens.
  std::vector<std::int64_t> token_maps;
};

namespace detail {
class Engine;
class ReturnMemory;
struct Feeds;
struct Inputs;
}  // namespace detail

/// One finished stage of a batch; it may outlive the stream and the generator it came from.
class StageResult {
 public:
  std::size_t stage = 0;             ///< In [0, num_stages).
  std::size_t num_stages = 0;        ///< Stages of an image.
  std::size_t first = 0;             ///< Position of the batch's first image in the request.
  std::size_t count = 0;             ///< Images of the batch.
  std::vector<std::int64_t> tokens;  ///< [count, l], or [count, l, d], the tokens taken.

  /// Decode the picture as it is after this stage, [count, H, W, 3]; after the last stage, the picture.
  Images preview() const;

 private:
  friend class Stream;
  std::shared_ptr<detail::Engine> engine_;
  std::shared_ptr<Ort::Value> f_hat_;
  Size image_size_;
};

/// Called after each stage; returning false cancels.
using OnStage = std::function<bool(const StageResult&)>;

/// A generation that goes on by one stage a call; letting go of it stops the work. For one thread at a time.
class Stream {
 public:
  /// Run the next stage; nothing once all are done. Throws Error: ONNX Runtime failed.
  std::optional<StageResult> next();

 private:
  friend class Generator;
  Stream(std::shared_ptr<detail::Engine> engine, std::shared_ptr<const detail::Inputs> inputs, std::size_t first,
         std::size_t count);

  std::shared_ptr<const detail::ReturnMemory> at_end_;  // first, to be destroyed last
  std::shared_ptr<detail::Engine> engine_;
  std::shared_ptr<const detail::Inputs> inputs_;
  std::size_t first_;
  std::size_t count_;
  std::size_t stage_ = 0;
  std::unique_ptr<detail::Feeds> feeds_;
  std::vector<std::shared_ptr<Ort::Value>> state_;
};

// ------------------------------------------------------------------------------------------------------- generator

/// Generates pictures from a bundle.
///
/// Graphs are loaded when first needed. One generator serves several threads at the same time: a call keeps its state
/// to itself. Copies share the loaded graphs.
class Generator {
 public:
  /// Throws BundleError: the folder holds no usable bundle; Error: an option out of range, ONNX Runtime too old,
  /// ops_library no library of operators, or fused graphs asked for that cannot run.
  explicit Generator(const std::filesystem::path& bundle, const SessionOptions& options = {});
  explicit Generator(Bundle bundle, const SessionOptions& options = {});

  const Bundle& bundle() const;

  /// Which graphs run, as options, bundle and library have decided.
  const Choice& ops() const;

  /// Load graphs now instead of at the first use: `generate`, or `stage` and `decoder` for streaming, with
  /// `text_encoder` for prompts, and `encoder`.
  /// Throws BundleError: ONNX Runtime cannot load a graph, or its inputs and outputs are not the manifest's.
  void load(std::initializer_list<Graph> graphs) const;

  /// Generate B images: one call of generate.onnx for each batch. With `on_stage` or `cancel`, or where the bundle has
  /// no generate.onnx, one call of stage.onnx for each stage, which gives the same tokens and pictures.
  ///
  /// on_stage: called after each stage, in this thread.
  /// cancel: looked at before each stage; another thread may set it.
  ///
  /// Throws ClassLabelError, RequestError: a parameter is out of range, and nothing was run; Cancelled: `on_stage`
  /// returned false or `cancel` is set; BundleError: a graph cannot be loaded; Error: ONNX Runtime failed.
  Generation generate(const Request& request, const OnStage& on_stage = nullptr,
                      const std::atomic<bool>* cancel = nullptr) const;

  /// Generate B images stage by stage, all in one batch:
  ///
  ///     auto stream = generator.stream(request);
  ///     while (auto stage = stream.next()) show(stage->preview());
  ///
  /// Throws ClassLabelError, RequestError: a parameter is out of range, and nothing was run.
  Stream stream(const Request& request) const;

  /// The token maps of pictures of a size that the bundle is built for, as Generation has them.
  /// Throws RequestError: pictures of another size, or none; BundleError: the bundle has no encoder.
  std::vector<std::int64_t> encode(const Images& images) const;

  /// Make parts of a picture anew, B times: `request` says the rest, but for forced_tokens and the size, which is the
  /// picture's; no class label makes one picture of no class. The picture is encoded; tokens outside the mask are kept
  /// at each stage, the others are sampled. Of the result the pixels outside the mask are the picture's own, exactly.
  ///
  /// Throws what `generate` throws; RequestError: an image or a mask of another size, an empty mask, keep_stages or
  /// feather out of range; BundleError: the bundle has no encoder.
  Generation edit(const Edit& edit, const Request& request = {}, const OnStage& on_stage = nullptr,
                  const std::atomic<bool>* cancel = nullptr) const;

 private:
  Generation run(const std::shared_ptr<const detail::Inputs>& inputs, const OnStage& on_stage,
                 const std::atomic<bool>* cancel) const;

  std::shared_ptr<detail::Engine> engine_;
};

// ==================================================================================================================
// From here on: how it is done.
// ==================================================================================================================

namespace detail {

#ifndef _WIN32
/// ONNX Runtime 1.29 and later looks at this when the first Ort::Env is made; before main no other thread reads it.
inline const int telemetry_is_off = [] {
  const char* said = std::getenv("ORT_DISABLE_TELEMETRY");
  return said != nullptr && *said != '\0' ? 0 : ::setenv("ORT_DISABLE_TELEMETRY", "1", 1);
}();
#endif

// ------------------------------------------------------------------------------------------------------------ text

/// A number as printf's %.15g has it, or %.17g where it takes that to tell it from its neighbours, in any locale.
inline std::string general(double value) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(15);
  out << value;
  std::istringstream in(out.str());
  in.imbue(std::locale::classic());
  double same = 0;
  if (std::isfinite(value) && (!(in >> same) || same != value)) {
    out.str("");
    out.precision(17);
    out << value;
  }
  return out.str();
}

inline std::string utf8(const std::filesystem::path& path) {
  const auto text = path.u8string();  // std::u8string from C++20 on
  return std::string(text.begin(), text.end());
}

inline std::filesystem::path path_of_utf8(const std::string& text) {
#ifdef __cpp_lib_char8_t
  return std::filesystem::path(std::u8string(text.begin(), text.end()));
#else
  return std::filesystem::u8path(text);
#endif
}

/// A message on one line of no more than 300 bytes.
inline std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool space = static_cast<unsigned char>(c) <= ' ';
    if (!space) {
      line += c;
    } else if (!line.empty() && line.back() != ' ') {
      line += ' ';
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.substr(0, 300);
}

/// What to say where ONNX Runtime, or this header, failed for want of memory or threads; empty: for another reason.
inline std::string shortage(std::string_view text) {
  const auto says = [&](const char* words) { return text.find(words) != std::string_view::npos; };
  if (says("std::bad_alloc") || says("Failed to allocate memory")) {
    return "out of memory: fewer images at a time, fewer threads or no memory arena need less";
  }
  return says("pthread_create failed") ? "the system starts no more threads: ask for fewer" : "";
}

/// An exception's message on one line.
inline std::string reason(const std::exception& error) {
  const std::string found = shortage(error.what());
  return found.empty() ? one_line(error.what()) : found;
}

template <typename Items, typename Text>
std::string join(const Items& items, Text text_of) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + text_of(item);
  return out;
}

/// The code point of valid UTF-8 at `position`, which moves past it.
inline std::uint32_t next_code_point(std::string_view text, std::size_t& position) {
  const auto first = static_cast<unsigned char>(text[position++]);
  if (first < 0x80) return first;
  const int further = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  std::uint32_t point = first & (0x3Fu >> further);
  for (int i = 0; i < further; ++i) point = (point << 6) | (static_cast<unsigned char>(text[position++]) & 0x3Fu);
  return point;
}

/// Bytes of the character of UTF-8 at `position`; 0 where there is none: no overlong form, no surrogate, nothing beyond
/// U+10FFFF.
inline std::size_t utf8_length(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t offset) {
    return position + offset < text.size() ? static_cast<unsigned char>(text[position + offset]) : 0u;
  };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  bool valid = first >= 0xC2 && first <= 0xF4 && second >= low && second <= high;
  for (std::size_t i = 2; i < length; ++i) valid = valid && (byte(i) & 0xC0u) == 0x80;
  return valid ? length : 0;
}

/// Whether valid UTF-8 holds neither controls, nor separators but the space, nor what changes a line's direction, nor
/// code points without a character: what may be shown on one line of a terminal.
inline bool is_printable(std::string_view text) {
  static constexpr std::uint32_t refused[][2] = {
      {0x00, 0x1F},       {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},   {0x61C, 0x61C},   {0x6DD, 0x6DD},
      {0x70F, 0x70F},     {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F}, {0x2028, 0x202F}, {0x205F, 0x206F},
      {0x3000, 0x3000},   {0xD800, 0xF8FF},   {0xFDD0, 0xFDEF},   {0xFEFF, 0xFEFF}, {0xFFF0, 0xFFFB}, {0xFFFE, 0xFFFF},
      {0x1FFFE, 0x1FFFF}, {0xE0000, 0xE0FFF}, {0xF0000, 0x10FFFF}};
  for (std::size_t position = 0; position < text.size();) {
    const std::uint32_t point = next_code_point(text, position);
    for (const auto& range : refused) {
      if (range[0] <= point && point <= range[1]) return false;
    }
  }
  return true;
}

/// Text with escapes for what is no printable character, cut after `limit` of them.
inline std::string shown_text(std::string_view text, int limit = 80) {
  std::string out;
  for (std::size_t position = 0; position < text.size(); --limit) {
    if (limit == 0) return out + "\u2026";
    const std::size_t length = utf8_length(text, position);
    const std::string_view character = text.substr(position, (std::max)(length, std::size_t{1}));
    std::size_t end = position;
    const std::uint32_t point = length != 0 ? next_code_point(text, end) : static_cast<unsigned char>(character[0]);
    position += character.size();
    if (length != 0 && is_printable(character)) {
      out += character;
      continue;
    }
    static constexpr std::string_view whitespace = "\t\n\r", names = "tnr";
    const std::size_t known = point < 0x80 ? whitespace.find(static_cast<char>(point)) : std::string_view::npos;
    char escaped[12];
    if (known != std::string_view::npos) {
      std::snprintf(escaped, sizeof escaped, "\\%c", names[known]);
    } else {
      const char* const form = point < 0x100 ? "\\x%02x" : point < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escaped, sizeof escaped, form, point);
    }
    out += escaped;
  }
  return out;
}

// ---------------------------------------------------------------------------------------------------------- sha256

/// SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  void update(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    length_ += size;
    while (size > 0) {
      const std::size_t taken = (std::min)(size, block_.size() - filled_);
      std::memcpy(block_.data() + filled_, bytes, taken);
      filled_ += taken;
      bytes += taken;
      size -= taken;
      if (filled_ == block_.size()) compress();
    }
  }

  /// The digest in lower-case hexadecimal; the object is spent after it.
  std::string hexadecimal() {
    const std::uint64_t bits = length_ * 8;
    const std::uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (filled_ != 56) update(&zero, 1);
    std::array<std::uint8_t, 8> end{};
    for (std::size_t i = 0; i < 8; ++i) end[i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
    update(end.data(), end.size());
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15u];
    }
    return text;
  }

 private:
  static std::uint32_t rotate(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

  void compress() {
    static constexpr std::uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = (std::uint32_t{block_[4 * i]} << 24) | (std::uint32_t{block_[4 * i + 1]} << 16) |
             (std::uint32_t{block_[4 * i + 2]} << 8) | std::uint32_t{block_[4 * i + 3]};
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + constants[i] + w[i];
      const std::uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += added[i];
    filled_ = 0;
  }

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t length_ = 0;
};

// ------------------------------------------------------------------------------------------------------------ JSON

/// A value of a JSON document (RFC 8259). Numbers keep their text, so that integers stay exact.
struct Json {
  enum class Type { null, boolean, integer, real, string, array, object };

  Type type = Type::null;
  bool boolean = false;
  std::string text;               ///< Of a string, UTF-8; of a number, as written.
  std::vector<Json> items;        ///< Of an array; of an object, the values in the order of `keys`.
  std::vector<std::string> keys;  ///< Of an object, ascending; of equal keys the last one counts.

  bool is(Type wanted) const { return type == wanted; }

  /// The value of a key of an object; null where there is none.
  const Json* find(std::string_view key) const {
    const auto place = std::lower_bound(keys.begin(), keys.end(), key);
    if (place == keys.end() || *place != key) return nullptr;
    return &items[static_cast<std::size_t>(place - keys.begin())];
  }

  /// The integer, if it is one of 64 bits.
  std::optional<std::int64_t> as_int64() const {
    const bool negative = text.front() == '-';
    const auto magnitude = as_magnitude(negative ? 1 : 0);
    const std::uint64_t limit = std::uint64_t{1} << 63;
    if (!magnitude || *magnitude > limit || (*magnitude == limit && !negative)) return std::nullopt;
    return static_cast<std::int64_t>(negative ? std::uint64_t{0} - *magnitude : *magnitude);
  }

  std::optional<std::uint64_t> as_uint64() const { return text.front() == '-' ? std::nullopt : as_magnitude(0); }

  /// The number as a double; infinite beyond its range.
  double as_double() const {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    double value = 0;
    in >> value;
    return in.fail() ? std::numeric_limits<double>::infinity() : value;
  }

 private:
  std::optional<std::uint64_t> as_magnitude(std::size_t begin) const {
    constexpr std::uint64_t most = (std::numeric_limits<std::uint64_t>::max)();
    std::uint64_t value = 0;
    for (std::size_t i = begin; i < text.size(); ++i) {
      const auto digit = static_cast<std::uint64_t>(text[i] - '0');
      if (value > (most - digit) / 10) return std::nullopt;
      value = value * 10 + digit;
    }
    return value;
  }
};

/// What a document breaks of JSON's rules, or of the reader's limits.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Reads a document that nobody vouches for: depth and the number of values are bounded, text is valid UTF-8.
class JsonReader {
 public:
  static constexpr int kMaxDepth = 64;
  static constexpr std::size_t kMaxValues = std::size_t{1} << 20;
  static constexpr std::size_t kMaxDigits = 4300;

  /// Throws JsonError.
  static Json read(std::string_view text) {
    JsonReader reader(text);
    if (text.substr(0, 3) == "\xEF\xBB\xBF") reader.position_ = 3;
    Json value = reader.value(0);
    reader.skip_space();
    if (reader.position_ != text.size()) reader.fail("expected the end");
    return value;
  }

 private:
  explicit JsonReader(std::string_view text) : text_(text) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw JsonError(what + " at byte " + std::to_string(position_));
  }

  /// The next character; 0 at the end, which no rule expects.
  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  bool take(char expected) {
    if (peek() != expected) return false;
    ++position_;
    return true;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++position_;
  }

  Json value(int depth) {
    if (depth > kMaxDepth) fail("more than " + std::to_string(kMaxDepth) + " levels");
    if (++values_ > kMaxValues) fail("more than " + std::to_string(kMaxValues) + " values");
    skip_space();
    Json result;
    switch (peek()) {
      case '{':
        read_object(result, depth);
        break;
      case '[':
        read_array(result, depth);
        break;
      case '"':
        result.type = Json::Type::string;
        result.text = string();
        break;
      case 't':
        word("true");
        result.type = Json::Type::boolean;
        result.boolean = true;
        break;
      case 'f':
        word("false");
        result.type = Json::Type::boolean;
        break;
      case 'n':
        word("null");
        break;
      default:
        read_number(result);
    }
    return result;
  }

  void word(std::string_view expected) {
    if (text_.substr(position_, expected.size()) != expected) fail("expected a value");
    position_ += expected.size();
  }

  void read_object(Json& result, int depth) {
    result.type = Json::Type::object;
    std::vector<std::pair<std::string, Json>> members;
    ++position_;
    skip_space();
    if (!take('}')) {
      do {
        skip_space();
        if (peek() != '"') fail("expected a key");
        std::string key = string();
        skip_space();
        if (!take(':')) fail("expected a colon");
        members.emplace_back(std::move(key), value(depth + 1));
        skip_space();
      } while (take(','));
      if (!take('}')) fail("expected a comma or the object's end");
    }
    std::stable_sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& [key, item] : members) {
      if (!result.keys.empty() && result.keys.back() == key) {
        result.items.back() = std::move(item);
      } else {
        result.keys.push_back(std::move(key));
        result.items.push_back(std::move(item));
      }
    }
  }

  void read_array(Json& result, int depth) {
    result.type = Json::Type::array;
    ++position_;
    skip_space();
    if (take(']')) return;
    do {
      result.items.push_back(value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected a comma or the array's end");
  }

  std::size_t digits() {
    const std::size_t begin = position_;
    while (peek() >= '0' && peek() <= '9') ++position_;
    return position_ - begin;
  }

  void read_number(Json& result) {
    const std::size_t begin = position_;
    result.type = Json::Type::integer;
    take('-');
    const bool zero = peek() == '0';
    if (zero ? !take('0') : digits() == 0) fail("expected a value");
    if (take('.')) {
      result.type = Json::Type::real;
      if (digits() == 0) fail("expected a digit");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++position_;
      result.type = Json::Type::real;
      if (!take('+')) take('-');
      if (digits() == 0) fail("expected a digit");
    }
    if (position_ - begin > kMaxDigits) fail("a number of more than " + std::to_string(kMaxDigits) + " digits");
    result.text = text_.substr(begin, position_ - begin);
  }

  std::string string() {
    std::string out;
    ++position_;
    while (!take('"')) {
      const auto c = static_cast<unsigned char>(peek());
      if (c < 0x20) fail(position_ < text_.size() ? "a control character" : "a text without end");
      if (c == '\\') {
        ++position_;
        escape(out);
      } else {
        copy_character(out);
      }
    }
    return out;
  }

  void escape(std::string& out) {
    static constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    const char name = peek();
    const std::size_t known = names.find(name);
    if (name != '\0' && known != std::string_view::npos) {
      ++position_;
      out += values[known];
      return;
    }
    if (!take('u')) fail("an unknown escape");
    std::uint32_t point = four_digits();
    if (point >= 0xD800 && point < 0xDC00 && text_.substr(position_, 2) == "\\u") {
      position_ += 2;
      const std::uint32_t low = four_digits();
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xD800 && point <= 0xDFFF) {
      fail("half of a surrogate pair");
    }
    append_utf8(out, point);
  }

  std::uint32_t four_digits() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("expected four hexadecimal digits");
      value = value * 16 + static_cast<std::uint32_t>(digit);
    }
    return value;
  }

  static void append_utf8(std::string& out, std::uint32_t point) {
    if (point < 0x80) {
      out += static_cast<char>(point);
      return;
    }
    const int further = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static constexpr std::uint32_t leads[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(leads[further] | (point >> (6 * further)));
    for (int i = further - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((point >> (6 * i)) & 0x3F));
  }

  /// Copy one character of UTF-8.
  void copy_character(std::string& out) {
    const std::size_t length = utf8_length(text_, position_);
    if (length == 0) fail("no UTF-8");
    out.append(text_.substr(position_, length));
    position_ += length;
  }

  std::string_view text_;
  std::size_t position_ = 0;
  std::size_t values_ = 0;
};

/// Append a value as JSON until `out` has more than `limit` bytes.
inline void append_json(std::string& out, const Json& value, std::size_t limit) {
  const auto quoted = [&out](const std::string& text) {
    out += '"';
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') out += '\\';
      if (byte >= 0x20 && byte < 0x7F) {
        out += c;
      } else {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
        out += escaped;
      }
    }
    out += '"';
  };
  switch (value.type) {
    case Json::Type::null:
      out += "null";
      break;
    case Json::Type::boolean:
      out += value.boolean ? "true" : "false";
      break;
    case Json::Type::string:
      quoted(value.text.substr(0, limit));
      break;
    case Json::Type::integer:
    case Json::Type::real:
      out += value.text.substr(0, limit);
      break;
    case Json::Type::array:
    case Json::Type::object: {
      const bool object = value.is(Json::Type::object);
      out += object ? '{' : '[';
      for (std::size_t i = 0; i < value.items.size() && out.size() <= limit; ++i) {
        if (i > 0) out += ", ";
        if (object) {
          quoted(value.keys[i].substr(0, limit));
          out += ": ";
        }
        append_json(out, value.items[i], limit);
      }
      out += object ? '}' : ']';
    }
  }
}

/// A value as JSON, short enough for one line.
inline std::string shown(const Json& value) {
  std::string text;
  append_json(text, value, 80);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

inline std::string shown(std::string_view text) {
  Json value;
  value.type = Json::Type::string;
  value.text = text;
  return shown(value);
}

// -------------------------------------------------------------------------------------------------------- manifest

constexpr std::int64_t kSchema = 2;
constexpr char kCard[] = "card.md";  // for people: whether a bundle runs does not depend on it
constexpr char kWords[] = "words.txt";  // those that the model saw; no graph reads it
constexpr char kNullClass[] = "null";
constexpr char kMissing[] = ": the file is missing; copy or build the bundle again";
constexpr std::size_t kManifestLimit = std::size_t{32} << 20;  // bytes; a real one is below 1 MB
constexpr std::size_t kMaxClassNames = 100000;
constexpr std::size_t kMaxClassName = 1000;  // bytes
constexpr std::size_t kMaxDimensions = 8;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 28;  // of what one image needs; a real f_hat has 32,768
constexpr std::int64_t kMaxDimension = std::int64_t{1} << 31;
constexpr std::int64_t kExact = std::int64_t{1} << 53;  // integers up to here are exact in a double
constexpr double kMaxNumber = 1e100;
constexpr double kMaxFloat = (std::numeric_limits<float>::max)();
/// Of guidance, where a manifest gives no maximum: logits of a sound model times this stay finite in float32.
constexpr double kMaxCfgScale = 1000.0;
constexpr std::int64_t kMaxInt64 = (std::numeric_limits<std::int64_t>::max)();
constexpr std::size_t kMaxSizes = 1000;
constexpr std::int64_t kMaxRatio = 1000;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 16;      // of a text
constexpr std::int64_t kMaxTextLength = std::int64_t{1} << 20;  // of verify's texts
constexpr std::size_t kMaxPrompt = 10000;                       // characters of one of verify's

using Contract = std::vector<std::pair<std::string, std::string>>;  // names and dtypes, in the order errors list them

constexpr std::array<const char*, 12> kKinds = {
    "label",     "uniform", "smooth_uniform", "forced_tokens",     "scalar",        "text_features",
    "text_mask", "image",   "mask",           "negative_features", "negative_mask", "size"};
constexpr std::array<Graph, 5> kGraphs = {Graph::generate, Graph::stage, Graph::decoder, Graph::encoder,
                                          Graph::text_encoder};
/// What a size decides in shapes: tokens and stages, and height and width of the latent and of the pictures.
constexpr std::array<const char*, 6> kSizeSymbols = {"L", "S", "h", "w", "H", "W"};
constexpr std::array<const char*, 6> kDtypes = {"float32", "float16", "int64", "int32", "int8", "uint8"};

inline const char* graph_name(Graph graph) {
  static constexpr const char* names[] = {"generate", "stage", "decoder", "encoder", "text_encoder"};
  return names[static_cast<std::size_t>(graph)];
}

inline const char* kind_name(Kind kind) { return kKinds[static_cast<std::size_t>(kind)]; }

/// Those of which a request may have several.
inline bool is_plural(Kind kind) { return kind == Kind::scalar || kind == Kind::image || kind == Kind::mask; }

/// Those of which the caller gives tensors.
inline bool is_tensor(Kind kind) { return kind > Kind::scalar && kind != Kind::size; }

/// The numbers of the symbols that a size decides.
using Symbols = std::map<std::string, std::int64_t>;

/// The model at a size, and its symbols: none where the bundle has one size.
struct SizedModel {
  ModelInfo model;
  Symbols symbols;
};

inline SizedModel at_size(const ModelInfo& model, const SizeInfo& size) {
  const ModelInfo at = model.of_size(size);
  return {at,
          {{"L", at.num_tokens()},
           {"S", static_cast<std::int64_t>(at.num_stages())},
           {"h", at.latent_size.height},
           {"w", at.latent_size.width},
           {"H", at.image_size.height},
           {"W", at.image_size.width}}};
}

inline std::vector<SizedModel> at_sizes(const ModelInfo& model, const std::vector<SizeInfo>& sizes) {
  std::vector<SizedModel> found;
  for (const SizeInfo& size : sizes) found.push_back(at_size(model, size));
  if (found.empty()) found.push_back({model, {}});
  return found;
}

/// A shape with numbers for the symbols that are given.
inline std::vector<Dimension> resolved(std::vector<Dimension> shape, const Symbols& symbols) {
  for (Dimension& dimension : shape) {
    const auto known = dimension.size ? symbols.end() : symbols.find(dimension.symbol);
    if (known != symbols.end()) dimension = {known->second, ""};
  }
  return shape;
}

inline RequestInput resolved(RequestInput item, const Symbols& symbols) {
  item.shape = resolved(item.shape, symbols);
  return item;
}

inline std::string dimension_text(const Dimension& dimension) {
  return dimension.size             ? std::to_string(*dimension.size)
         : dimension.symbol.empty() ? std::string("?")
                                    : dimension.symbol;
}

/// A JSON object whose reads are checked; errors name the key by its full path.
class Fields {
 public:
  Fields(const Json& value, const std::string& where, std::string path)
      : value_(value), where_(where), path_(std::move(path)) {
    if (!value.is(Json::Type::object)) {
      throw BundleError(where_ + ": " + (path_.empty() ? "document" : path_) + ": expected a JSON object, found " +
                        shown(value));
    }
  }

  const Json& value() const { return value_; }

  /// Throw the error every refusal of a value ends in.
  [[noreturn]] void refuse(const std::string& key, const std::string& expected, const std::string& found) const {
    throw BundleError(where_ + ": " + full(key) + ": expected " + expected + ", found " + found);
  }

  const Json& get(const std::string& key) const {
    const Json* found = value_.find(key);
    if (found == nullptr) {
      throw BundleError(where_ + ": key \"" + one_line(full(key)) + "\" is missing; build the bundle again");
    }
    return *found;
  }

  Fields fields(const std::string& key) const { return Fields(get(key), where_, full(key)); }
  Fields fields(const std::string& key, const Json& value) const { return Fields(value, where_, full(key)); }

  std::int64_t as_integer(const std::string& key, const Json& value, std::int64_t minimum = 0,
                          std::int64_t maximum = kMaxInt64) const {
    const auto number = value.is(Json::Type::integer) ? value.as_int64() : std::nullopt;
    if (!number || *number < minimum || *number > maximum) {
      const std::string limit = maximum == kMaxInt64
                                    ? "of at least " + std::to_string(minimum)
                                    : "from " + std::to_string(minimum) + " to " + std::to_string(maximum);
      refuse(key, "an integer " + limit, shown(value));
    }
    return *number;
  }

  std::int64_t integer(const std::string& key, std::int64_t minimum = 0, std::int64_t maximum = kMaxInt64) const {
    return as_integer(key, get(key), minimum, maximum);
  }

  std::string as_text(const std::string& key, const Json& value) const {
    if (!value.is(Json::Type::string) || !is_printable(value.text)) {
      refuse(key, "a line of printable text", shown(value));
    }
    return value.text;
  }

  std::string text(const std::string& key) const { return as_text(key, get(key)); }

  /// The value of a key that may be missing or null; then it is null.
  const Json* optional(const std::string& key) const {
    const Json* found = value_.find(key);
    return found == nullptr || found->is(Json::Type::null) ? nullptr : found;
  }

  /// Read a list with `read(key of the item, item)`.
  template <typename Read>
  auto items(const std::string& key, Read read) const {
    const Json& list = get(key);
    if (!list.is(Json::Type::array)) refuse(key, "a list", shown(list));
    std::vector<decltype(read(key, list))> result;
    result.reserve(list.items.size());
    for (std::size_t i = 0; i < list.items.size(); ++i) {
      result.push_back(read(key + "[" + std::to_string(i) + "]", list.items[i]));
    }
    return result;
  }

  /// A finite number, below 1e100 in size.
  double as_number(const std::string& key, const Json& value) const {
    const bool number = value.is(Json::Type::integer) || value.is(Json::Type::real);
    if (!number || !(std::abs(value.as_double()) < kMaxNumber)) refuse(key, "a finite number", shown(value));
    return value.as_double();
  }

  template <typename Words>
  std::string one_of(const std::string& key, const Words& words) const {
    const std::string value = text(key);
    if (std::find(words.begin(), words.end(), value) == words.end()) {
      refuse(key, "one of " + join(words, [](const std::string& word) { return word; }), shown(get(key)));
    }
    return value;
  }

  std::string dtype() const { return one_of("dtype", kDtypes); }

 private:
  /// The path of a key; of no key, that of the object itself.
  std::string full(const std::string& key) const {
    return path_.empty() ? key : key.empty() ? path_ : path_ + "." + key;
  }

  const Json& value_;
  const std::string& where_;
  std::string path_;
};

/// Whether text is a file name without any way out of its folder, on Linux and on Windows.
inline bool is_plain_name(const std::string& name) {
  return !name.empty() && is_printable(name) && name != "." && name != ".." &&
         name.find_first_of("/\\:*?\"<>|") == std::string::npos;
}

/// Refuse a shape beyond what any model needs: sizes come from a file that nobody vouches for.
inline void check_elements(const Fields& fields, const std::string& key, const std::vector<Dimension>& shape) {
  std::int64_t elements = 1;  // sizes of 0 count as 1, so that no product of the others overflows
  for (const Dimension& dimension : shape) {
    const std::int64_t size = (std::max)(dimension.size.value_or(1), std::int64_t{1});
    if (elements <= kMaxElements) elements *= (std::min)(size, kMaxElements + 1);
  }
  if (shape.size() > kMaxDimensions || elements > kMaxElements) {
    fields.refuse(key,
                  "at most " + std::to_string(kMaxDimensions) + " dimensions of " + std::to_string(kMaxElements) +
                      " elements in all",
                  shown(fields.get(key)));
  }
}

inline FileInfo read_file_info(const Fields& fields) {
  FileInfo info;
  info.sha256 = fields.text("sha256");
  for (char& c : info.sha256) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (info.sha256.size() != 64 || info.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fields.refuse("sha256", "64 hexadecimal digits", shown(info.sha256));
  }
  info.size = static_cast<std::uint64_t>(fields.integer("size"));
  return info;
}

inline TensorInfo read_tensor(const Fields& fields) {
  TensorInfo tensor;
  tensor.name = fields.text("name");
  tensor.dtype = fields.dtype();
  tensor.shape = fields.items("shape", [&](const std::string& key, const Json& item) {
    if (item.is(Json::Type::null)) return Dimension{};
    if (item.is(Json::Type::string)) return Dimension{std::nullopt, item.text};
    return Dimension{fields.as_integer(key, item), ""};
  });
  return tensor;
}

inline StateInfo read_state(const Fields& fields, const std::vector<SizedModel>& sizes) {
  StateInfo state;
  state.initial_shape = fields.items("initial_shape", [&](const std::string& key, const Json& item) {
    const bool known = item.text == "B" || item.text == "2B" || sizes[0].symbols.count(item.text) > 0;
    if (item.is(Json::Type::string) && known) return Dimension{std::nullopt, item.text};
    return Dimension{fields.as_integer(key, item, 0, kMaxDimension), ""};
  });
  for (const SizedModel& size : sizes) {
    check_elements(fields, "initial_shape", resolved(state.initial_shape, size.symbols));
  }
  state.input = fields.text("input");
  state.output = fields.text("output");
  state.dtype = fields.dtype();
  return state;
}

inline std::string listed(const Contract& contract) {
  Contract first = contract;
  first.resize((std::min)(contract.size(), std::size_t{8}));
  std::string text = join(first, [](const auto& item) { return item.first + " (" + item.second + ")"; });
  return contract.size() > first.size() ? text + ", ..." : text;
}

inline FusedInfo read_fused(const Fields& fields, const std::map<std::string, FileInfo>& files) {
  FusedInfo fused{fields.text("file"), {}};
  if (files.count(fused.file) == 0) {
    fields.refuse("file", "a plain file name that \"files\" lists", shown(fused.file));
  }
  const Fields operators = fields.fields("operators");
  for (const std::string& domain : operators.value().keys) {
    fused.operators.emplace_back(domain, operators.integer(domain, 1));
  }
  return fused;
}

/// Refuse a text encoder whose features the request does not take.
inline void check_text_encoder(const Fields& fields, const GraphInfo& graph, const std::vector<RequestInput>& request) {
  const auto made = std::find_if(graph.outputs.begin(), graph.outputs.end(),
                                 [](const TensorInfo& tensor) { return tensor.name == "text_features"; });
  const auto taken = std::find_if(request.begin(), request.end(),
                                  [](const RequestInput& item) { return item.kind == Kind::text_features; });
  if (taken == request.end()) {
    fields.refuse("outputs", "no text_encoder, since the request has no text_features", shown(fields.get("outputs")));
  }
  const std::int64_t width = *taken->shape.back().size;
  if (made->shape.size() != taken->shape.size() || made->shape.back().size != width) {
    fields.refuse("outputs", "text_features of width " + std::to_string(width) + ", as the request has",
                  "[" + join(made->shape, dimension_text) + "]");
  }
}

/// Read one graph; it must have the contract's inputs and outputs, or a host could not run it. More outputs do no
/// harm: a bundle made for debugging has them. `variant` is where its file is named; its states must be of a size that
/// can be at each of `sizes`.
inline GraphInfo read_graph(const Fields& fields, const Fields& variant, Graph kind,
                            const std::vector<RequestInput>& request, const std::map<std::string, FileInfo>& files,
                            const std::vector<SizedModel>& sizes) {
  GraphInfo graph;
  graph.file = variant.text("file");
  if (files.count(graph.file) == 0) {
    variant.refuse("file", "a plain file name that \"files\" lists", shown(graph.file));
  }
  const auto tensor = [&](const std::string& key, const Json& item) { return read_tensor(fields.fields(key, item)); };
  if (kind == Graph::stage) {
    graph.state = fields.items(
        "state", [&](const std::string& key, const Json& item) { return read_state(fields.fields(key, item), sizes); });
  }
  graph.inputs = fields.items("inputs", tensor);
  graph.outputs = fields.items("outputs", tensor);

  Contract inputs, outputs;
  if (kind == Graph::decoder) {
    inputs = {{"f_hat", "float32"}};
    outputs = {{"images", "uint8"}};
  } else if (kind == Graph::encoder) {
    inputs = {{"images", "uint8"}};
    for (const RequestInput& item : request) {
      if (item.kind == Kind::size) inputs.emplace_back(item.name, item.dtype);
    }
    outputs = {{"token_maps", "int64"}};
  } else if (kind == Graph::text_encoder) {
    inputs = {{"token_ids", "int64"}};
    outputs = {{"text_features", "float32"}};
  } else {
    for (const RequestInput& item : request) {
      // An input of these kinds may be for the encoder alone.
      const bool optional = item.kind == Kind::image || item.kind == Kind::mask;
      const auto listed_here = [&](const TensorInfo& input) { return input.name == item.name; };
      if (!optional || std::any_of(graph.inputs.begin(), graph.inputs.end(), listed_here)) {
        inputs.emplace_back(item.name, item.dtype);
      }
    }
    outputs = kind == Graph::generate ? Contract{{"images", "uint8"}, {"token_maps", "int64"}}
                                      : Contract{{"tokens", "int64"}, {"logits", "float32"}};
  }
  if (kind == Graph::stage) {
    inputs.emplace_back("stage", "int64");
    for (const StateInfo& item : graph.state) {
      inputs.emplace_back(item.input, item.dtype);
      outputs.emplace_back(item.output, item.dtype);
    }
  }
  const auto by_name = [](const std::vector<TensorInfo>& tensors) {
    std::map<std::string, std::string> result;
    for (const TensorInfo& item : tensors) result[item.name] = item.dtype;
    return result;
  };
  // Of equal names the last one counts, in what is expected as in what is found.
  const auto expected_of = [](const Contract& contract) {
    std::map<std::string, std::string> result;
    for (const auto& [name, dtype] : contract) result[name] = dtype;
    return result;
  };
  const auto shown_map = [](const std::map<std::string, std::string>& found) {
    return one_line(listed(Contract(found.begin(), found.end())));
  };
  const auto found_inputs = by_name(graph.inputs), found_outputs = by_name(graph.outputs);
  if (found_inputs != expected_of(inputs)) {
    fields.refuse("inputs", "the contract's, " + listed(inputs), shown_map(found_inputs));
  }
  for (const auto& [name, dtype] : expected_of(outputs)) {
    const auto found = found_outputs.find(name);
    if (found == found_outputs.end() || found->second != dtype) {
      fields.refuse("outputs", "the contract's, " + listed(outputs), shown_map(found_outputs));
    }
  }
  const auto is_f_hat = [](const StateInfo& item) { return item.input == "f_hat"; };
  if (kind == Graph::stage && std::none_of(graph.state.begin(), graph.state.end(), is_f_hat)) {
    fields.refuse("state", "an entry for \"f_hat\"", shown(fields.get("state")));
  }
  if (kind == Graph::text_encoder) check_text_encoder(fields, graph, request);
  return graph;
}

/// What a scalar's values may be, in words.
inline std::string limits(const RequestInput& item) {
  if (item.minimum && item.maximum) return general(*item.minimum) + " to " + general(*item.maximum);
  if (item.minimum) return "a finite number of at least " + general(*item.minimum);
  return item.maximum ? "a finite number of at most " + general(*item.maximum) : std::string("a finite number");
}

/// Whether a scalar may have a value; NaN is refused.
inline bool allows(const RequestInput& item, double value) {
  return value >= item.minimum.value_or(-kMaxFloat) && value <= item.maximum.value_or(kMaxFloat);
}

inline Size read_size(const Fields& fields, const std::string& key, const Json& value, std::int64_t maximum) {
  if (!value.is(Json::Type::array) || value.items.size() != 2) fields.refuse(key, "[height, width]", shown(value));
  return {fields.as_integer(key + "[0]", value.items[0], 1, maximum),
          fields.as_integer(key + "[1]", value.items[1], 1, maximum)};
}

inline std::vector<Size> read_stage_sizes(const Fields& fields) {
  const auto sizes = fields.items(
      "stage_sizes", [&](const std::string& key, const Json& item) { return read_size(fields, key, item, 4096); });
  const auto fewer = [](const Size& a, const Size& b) { return a.height * a.width < b.height * b.width; };
  if (sizes.empty() || !std::is_sorted(sizes.begin(), sizes.end(), fewer)) {
    fields.refuse("stage_sizes", "[height, width] of each stage, by ascending number of tokens",
                  shown(fields.get("stage_sizes")));
  }
  return sizes;
}

inline ModelInfo read_model(const Fields& fields) {
  ModelInfo model;
  model.stage_sizes = read_stage_sizes(fields);
  model.num_classes = fields.integer("num_classes");
  model.image_size = read_size(fields, "image_size", fields.get("image_size"), kMaxDimension - 1);
  model.vocab_size = fields.integer("vocab_size", 1);
  model.depth = fields.integer("depth", 1);
  model.embed_dim = fields.integer("embed_dim", 1);
  model.num_heads = fields.integer("num_heads", 1);
  model.latent_channels = fields.integer("latent_channels", 1);
  model.latent_size = read_size(fields, "latent_size", fields.get("latent_size"), kMaxDimension - 1);
  return model;
}

/// Digits, perhaps a point and digits, and "M": the number before the "M".
inline std::optional<double> megapixels(const std::string& area) {
  const std::size_t point = area.find('.');
  if (area.empty() || area.back() != 'M') return std::nullopt;
  const std::string number = area.substr(0, area.size() - 1);
  const auto is_digits = [](const std::string& text) {
    return !text.empty() && text.size() <= 6 && text.find_first_not_of("0123456789") == std::string::npos;
  };
  const bool whole = is_digits(number.substr(0, point));
  if (!whole || (point != std::string::npos && !is_digits(number.substr(point + 1)))) return std::nullopt;
  Json value;
  value.text = number;
  return value.as_double();
}

inline SizeInfo read_size_info(const Fields& fields) {
  SizeInfo size;
  size.area = fields.text("area");
  size.ratio = read_size(fields, "ratio", fields.get("ratio"), kMaxRatio);
  if (!megapixels(size.area)) fields.refuse("area", "megapixels such as \"0.25M\"", shown(size.area));
  if (std::gcd(size.ratio.height, size.ratio.width) != 1) {
    fields.refuse("ratio", "[height, width] in lowest terms", shown(fields.get("ratio")));
  }
  size.image_size = read_size(fields, "image_size", fields.get("image_size"), kMaxDimension - 1);
  size.latent_size = read_size(fields, "latent_size", fields.get("latent_size"), kMaxDimension - 1);
  size.stage_sizes = read_stage_sizes(fields);
  return size;
}

/// The sizes, each of its own for people and for pictures and latents that come without a name, the first of which is
/// the model's; none where there is no list.
inline std::vector<SizeInfo> read_sizes(const Fields& root, const ModelInfo& model) {
  const Json* list = root.optional("sizes");
  std::vector<SizeInfo> sizes;
  if (list == nullptr) return sizes;
  if (list->is(Json::Type::array) && (list->items.empty() || list->items.size() > kMaxSizes)) {
    root.refuse("sizes", "1 to " + std::to_string(kMaxSizes) + " sizes", std::to_string(list->items.size()));
  }
  root.items("sizes", [&](const std::string& key, const Json& value) {
    const Fields fields = root.fields(key, value);
    const SizeInfo size = read_size_info(fields);
    const auto refuse = [&](const char* part, const std::string& expected) {
      fields.refuse(part, expected, shown(fields.get(part)));
    };
    for (const SizeInfo& other : sizes) {
      const char* shared = megapixels(other.area) == megapixels(size.area) && other.ratio == size.ratio ? "ratio"
                           : other.image_size == size.image_size                                        ? "image_size"
                           : other.latent_size == size.latent_size                                      ? "latent_size"
                                                                                                        : nullptr;
      if (shared != nullptr) refuse(shared, "another than those of the sizes before");
    }
    if (sizes.empty()) {
      const char* other = size.stage_sizes != model.stage_sizes   ? "stage_sizes"
                          : size.image_size != model.image_size   ? "image_size"
                          : size.latent_size != model.latent_size ? "latent_size"
                                                                  : nullptr;
      if (other != nullptr) refuse(other, std::string("model.") + other + ", which is the first size's");
    }
    sizes.push_back(size);
    return true;
  });
  return sizes;
}

inline double read_scalar(const Fields& fields, const std::string& key, const Json& value, const std::string& dtype) {
  if (dtype == "int64") return static_cast<double>(fields.as_integer(key, value, -kExact, kExact));
  const double number = fields.as_number(key, value);
  if (std::abs(number) > kMaxFloat) fields.refuse(key, "a number of float32", shown(value));
  return number;
}

/// One value, or one for each stage where the input's shape says so in numbers; all within the input's limits.
inline std::vector<double> read_scalars(const Fields& fields, const std::string& key, const RequestInput& item) {
  const Json& value = fields.get(key);
  std::vector<double> values;
  if (item.shape.empty() || !value.is(Json::Type::array)) {
    values = {read_scalar(fields, key, value, item.dtype)};
  } else {
    if (!item.shape[0].size) fields.refuse(key, "one number, since sizes differ in their stages", shown(value));
    values = fields.items(key, [&](const std::string& place, const Json& number) {
      return read_scalar(fields, place, number, item.dtype);
    });
    if (static_cast<std::int64_t>(values.size()) != item.row_values()) {
      const std::string stages = std::to_string(item.row_values());
      fields.refuse(key, "one number, or " + stages + ", one for each stage", shown(value));
    }
  }
  for (const double number : values) {
    if (!allows(item, number)) fields.refuse(key, limits(item), shown(value));
  }
  return values;
}

/// A shape that is right at each of the sizes.
inline std::vector<Dimension> read_shape(const Fields& fields, Kind kind, const std::vector<SizedModel>& sizes) {
  const auto declared = fields.items("shape", [&](const std::string& key, const Json& item) {
    if (item.is(Json::Type::string)) return Dimension{std::nullopt, fields.as_text(key, item)};
    return Dimension{fields.as_integer(key, item, 1, kMaxDimension), ""};
  });
  const auto is_batch = [](const Dimension& size) { return !size.size && size.symbol == "B"; };
  const auto is_number = [](const Dimension& size) { return size.size.has_value(); };
  // A symbol that means something else than the length of a text.
  const auto is_length = [](const Dimension& size) {
    const bool reserved = std::find(kSizeSymbols.begin(), kSizeSymbols.end(), size.symbol) != kSizeSymbols.end();
    return !size.size && size.symbol != "B" && size.symbol != "2B" && !reserved;
  };
  for (const auto& [model, symbols] : sizes) {
    const auto shape = resolved(declared, symbols);
    check_elements(fields, "shape", shape);
    const bool batch = !shape.empty() && is_batch(shape[0]);
    const bool rows = batch && shape.size() > 1 && std::all_of(shape.begin() + 1, shape.end(), is_number);
    const bool text = batch && shape.size() > 1 && is_length(shape[1]);
    const std::string tokens = symbols.empty() ? std::to_string(model.num_tokens()) : "\"L\"";
    const std::string stages = symbols.empty() ? std::to_string(model.num_stages()) : "\"S\"";
    std::string expected;
    bool fits = true;
    switch (kind) {
      case Kind::label:
        expected = "[\"B\"]";
        fits = batch && shape.size() == 1;
        break;
      case Kind::uniform:
        expected = "\"B\" and sizes";
        fits = rows;
        break;
      case Kind::smooth_uniform:
        expected = "\"B\", " + tokens + " and " + std::to_string(model.vocab_size);
        fits = rows && shape.size() == 3 && *shape[1].size == model.num_tokens() && *shape[2].size == model.vocab_size;
        break;
      case Kind::forced_tokens:
        expected = "\"B\", " + tokens + " and further sizes";
        fits = rows && *shape[1].size == model.num_tokens();
        break;
      case Kind::scalar:
        expected = "[] or [" + stages + "]";
        fits = shape.empty() || (shape.size() == 1 && shape[0].size == static_cast<std::int64_t>(model.num_stages()));
        break;
      case Kind::text_features:
      case Kind::negative_features:
        expected = "\"B\", a symbol and a size";
        fits = text && shape.size() == 3 && is_number(shape[2]);
        break;
      case Kind::text_mask:
      case Kind::negative_mask:
        expected = "\"B\" and a symbol";
        fits = text && shape.size() == 2;
        break;
      case Kind::size:
        expected = "[]";
        fits = shape.empty();
        break;
      case Kind::image:
      case Kind::mask:
        expected = "\"B\" first or nowhere";
        fits = shape.empty() || std::none_of(shape.begin() + 1, shape.end(), is_batch);
    }
    if (!fits) fields.refuse("shape", expected, shown(fields.get("shape")));
  }
  return declared;
}

inline std::string read_dtype(const Fields& fields, Kind kind) {
  switch (kind) {
    case Kind::uniform:
    case Kind::smooth_uniform:
    case Kind::text_features:
    case Kind::negative_features:
      return fields.one_of("dtype", std::array<const char*, 1>{"float32"});
    case Kind::scalar:
      return fields.one_of("dtype", std::array<const char*, 2>{"float32", "int64"});
    case Kind::image:
    case Kind::mask:
      return fields.dtype();
    default:
      return fields.one_of("dtype", std::array<const char*, 1>{"int64"});
  }
}

inline RequestInput read_input(const Fields& fields, const std::vector<SizedModel>& sizes) {
  RequestInput item;
  item.name = fields.text("name");
  const std::string kind = fields.one_of("kind", kKinds);
  item.kind = static_cast<Kind>(std::find(kKinds.begin(), kKinds.end(), kind) - kKinds.begin());
  item.dtype = read_dtype(fields, item.kind);
  item.shape = read_shape(fields, item.kind, sizes);
  const bool of_text = item.kind == Kind::text_features || item.kind == Kind::negative_features;
  if (of_text && fields.optional("max_tokens") != nullptr) {
    item.max_tokens = fields.integer("max_tokens", 1, kMaxTokens);
  }
  if (item.kind != Kind::scalar) return item;
  const auto bound = [&](const char* key) -> std::optional<double> {
    const Json* value = fields.optional(key);
    return value == nullptr ? std::nullopt : std::optional<double>(read_scalar(fields, key, *value, item.dtype));
  };
  item.minimum = bound("minimum");
  item.maximum = bound("maximum");
  // As bundles say that were built before there was a largest one.
  if (item.name == "cfg_scale" && !item.maximum) item.maximum = kMaxCfgScale;
  item.defaults = read_scalars(fields, "default", item);
  return item;
}

/// Refuse masks without features, negative features without any, and shapes that differ between them; `places` are
/// where the inputs are.
inline void check_texts(const Fields& root, const std::vector<RequestInput>& request,
                        const std::map<Kind, std::string>& places) {
  const auto input = [&](Kind kind) {
    return &*std::find_if(request.begin(), request.end(), [&](const auto& item) { return item.kind == kind; });
  };
  const auto refuse = [&](Kind kind, const char* key, const std::string& expected) {
    const std::string place = places.at(kind);
    const std::size_t number = static_cast<std::size_t>(input(kind) - request.data());
    root.refuse(place + "." + key, expected, shown(*root.get("request").items[number].find(key)));
  };
  static constexpr std::pair<Kind, Kind> masks[] = {{Kind::text_mask, Kind::text_features},
                                                    {Kind::negative_mask, Kind::negative_features}};
  for (const auto& [mask, features] : masks) {
    if (places.count(mask) == 0) continue;
    if (places.count(features) == 0) {
      refuse(mask, "kind", std::string("no ") + kind_name(mask) + " without " + kind_name(features));
    }
    const auto &shape = input(mask)->shape, &text = input(features)->shape;
    if (!std::equal(shape.begin(), shape.end(), text.begin())) {
      refuse(mask, "shape", "the first two dimensions of " + input(features)->name);
    }
  }
  if (places.count(Kind::negative_features) == 0) return;
  if (places.count(Kind::text_features) == 0) {
    refuse(Kind::negative_features, "kind", "no negative_features without text_features");
  }
  const RequestInput* text = input(Kind::text_features);
  const auto& negative = input(Kind::negative_features)->shape;
  if (!(text->shape[2] == negative[2]) || text->shape[1] == negative[1]) {
    refuse(Kind::negative_features, "shape", "\"B\", another symbol than " + text->name + " has, and its width");
  }
}

inline std::vector<RequestInput> read_request(const Fields& root, const std::vector<SizedModel>& sizes) {
  std::vector<RequestInput> request;
  std::map<Kind, std::string> places;
  root.items("request", [&](const std::string& key, const Json& value) {
    const Fields fields = root.fields(key, value);
    const RequestInput item = read_input(fields, sizes);
    for (const RequestInput& other : request) {
      if (other.name == item.name) fields.refuse("name", "a name of its own", shown(item.name));
    }
    if (!is_plural(item.kind) && places.count(item.kind) > 0) {
      fields.refuse("kind", "no second input of its kind", shown(fields.get("kind")));
    }
    if (item.kind == Kind::label && sizes[0].model.num_classes == 0) {
      fields.refuse("kind", "no label, since model.num_classes is 0", shown(fields.get("kind")));
    }
    request.push_back(item);
    places[item.kind] = key;
    return true;
  });
  if (places.count(Kind::forced_tokens) == 0) {
    root.refuse("request", "an input of kind forced_tokens", shown(root.get("request")));
  }
  const bool several = !sizes[0].symbols.empty();
  if (several != (places.count(Kind::size) > 0)) {
    root.refuse("request",
                several ? "an input of kind size" : "no input of kind size, since there is no list of sizes",
                shown(root.get("request")));
  }
  check_texts(root, request, places);
  return request;
}

inline std::map<Graph, GraphInfo> read_graphs(const Fields& fields, const std::vector<RequestInput>& request,
                                              const std::vector<SizedModel>& sizes,
                                              const std::map<std::string, FileInfo>& files) {
  std::map<Graph, GraphInfo> graphs;
  for (const Graph graph : kGraphs) {
    const bool optional = graph != Graph::stage && graph != Graph::decoder;
    if (optional && fields.value().find(graph_name(graph)) == nullptr) continue;
    const Fields role = fields.fields(graph_name(graph));
    const Fields variants = role.fields("variants");
    graphs[graph] = read_graph(role, variants.fields("stock"), graph, request, files, sizes);
    if (variants.optional("fused") != nullptr) graphs[graph].fused = read_fused(variants.fields("fused"), files);
  }
  return graphs;
}

inline std::optional<TokenizerInfo> read_tokenizer(const Fields& root, const std::vector<RequestInput>& request,
                                                   const std::map<std::string, FileInfo>& files) {
  if (root.optional("tokenizer") == nullptr) return std::nullopt;
  const Fields fields = root.fields("tokenizer");
  TokenizerInfo tokenizer;
  tokenizer.kind = fields.text("kind");
  if (tokenizer.kind != "bytes" && tokenizer.kind != "sentencepiece") return tokenizer;
  tokenizer.max_tokens = fields.integer("max_tokens", 1, kMaxTokens);
  for (const RequestInput& item : request) {
    if (item.max_tokens && *item.max_tokens < tokenizer.max_tokens) {
      fields.refuse("max_tokens", "at most " + std::to_string(*item.max_tokens) + ", as " + item.name + " has",
                    shown(fields.get("max_tokens")));
    }
  }
  if (tokenizer.kind == "bytes") return tokenizer;
  tokenizer.file = fields.text("file");
  if (files.count(tokenizer.file) == 0) {
    fields.refuse("file", "a plain file name that \"files\" lists", shown(tokenizer.file));
  }
  return tokenizer;
}

/// The labels of the record of a generation made at build time: how many.
inline std::size_t check_labels(const Fields& fields, const std::string& key, const ModelInfo& model) {
  const auto labels = fields.items(key, [&](const std::string& place, const Json& item) {
    return fields.as_integer(place, item, 0, model.num_classes);
  });
  if (labels.empty()) fields.refuse(key, "at least one label", shown(fields.get(key)));
  return labels.size();
}

/// Token maps of that record; `images` is how many there must be, if that is known, and `of` what tells it. Returns
/// how many there are.
inline std::size_t check_token_maps(const Fields& fields, const std::string& name, std::int64_t values,
                                    const ModelInfo& model, std::optional<std::size_t> images,
                                    const std::string& of = "labels") {
  const auto rows = fields.items(name, [&](const std::string& key, const Json& row) {
    if (!row.is(Json::Type::array) || static_cast<std::int64_t>(row.items.size()) != values) {
      fields.refuse(key, "a list of " + std::to_string(values) + " tokens", shown(row));
    }
    for (std::size_t i = 0; i < row.items.size(); ++i) {
      fields.as_integer(key + "[" + std::to_string(i) + "]", row.items[i], 0, model.vocab_size - 1);
    }
    return true;
  });
  if (images ? rows.size() != *images : rows.empty()) {
    fields.refuse(name, images ? "one row for each of " + std::to_string(*images) + " " + of : "at least one row",
                  std::to_string(rows.size()));
  }
  return rows.size();
}

inline void check_seed(const Fields& fields) {
  const Json& seed = fields.get("seed");
  if (!seed.is(Json::Type::integer) || !(seed.as_uint64() || seed.as_int64() == 0)) {
    fields.refuse("seed", "an integer from 0 to 18446744073709551615", shown(seed));
  }
}

/// The texts of that record, if inputs tell none: prompts, or lengths of texts whose features follow from a formula.
/// Returns how many there are, if that is known.
inline std::optional<std::size_t> check_verify_texts(const Fields& fields, const RequestInput* features,
                                                     const Fields& inputs, bool has_text_encoder) {
  std::vector<std::string> told;
  for (const char* key : {"prompts", "text_lengths"}) {
    if (fields.optional(key) != nullptr) told.push_back(key);
  }
  if (features == nullptr) {
    if (!told.empty()) fields.refuse(told[0], "no text, since the request has none", shown(fields.get(told[0])));
    return std::nullopt;
  }
  if (told.size() + (inputs.value().find(features->name) != nullptr) != 1) {
    fields.refuse("", "one of inputs." + features->name + ", prompts and text_lengths",
                  one_line(join(fields.value().keys, [](const std::string& key) { return key; })));
  }
  if (told.empty()) return std::nullopt;
  const std::string& key = told[0];
  const Json& value = fields.get(key);
  if (key == "prompts" && !has_text_encoder) {
    fields.refuse(key, "no prompts, since the bundle has no text encoder", shown(value));
  }
  const auto lengths = fields.items(key, [&](const std::string& place, const Json& item) {
    if (key == "text_lengths") return fields.as_integer(place, item, 1, kMaxTextLength);
    const std::string prompt = fields.as_text(place, item);
    const auto begins_character = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
    const auto characters = std::count_if(prompt.begin(), prompt.end(), begins_character);
    if (characters < 1 || characters > static_cast<std::ptrdiff_t>(kMaxPrompt)) {
      fields.refuse(place, "1 to " + std::to_string(kMaxPrompt) + " characters", shown(item));
    }
    return static_cast<std::int64_t>(characters);
  });
  if (lengths.empty()) {
    fields.refuse(key, key == "prompts" ? "at least one prompt" : "at least one length", shown(value));
  }
  if (key == "text_lengths") {
    const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    check_elements(fields, key,
                   {{static_cast<std::int64_t>(lengths.size()), ""}, {longest, ""}, {*features->shape[2].size, ""}});
  }
  return lengths.size();
}

/// The record of a generation made at build time: checked as a part of the manifest, then let go.
inline void check_verify(const Fields& fields, const std::vector<RequestInput>& request,
                         const std::vector<SizedModel>& sizes, bool has_text_encoder) {
  const Fields inputs = fields.fields("inputs");
  const auto of_kind = [](const std::vector<RequestInput>& items, Kind kind) {
    const auto found = std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.kind == kind; });
    return found == items.end() ? nullptr : &*found;
  };
  const RequestInput* const size = of_kind(request, Kind::size);
  const bool told = size != nullptr && inputs.optional(size->name) != nullptr;
  const auto last = static_cast<std::int64_t>(sizes.size()) - 1;
  const auto& [model, symbols] = sizes[told ? static_cast<std::size_t>(inputs.integer(size->name, 0, last)) : 0];
  std::vector<RequestInput> known;
  for (const RequestInput& item : request) known.push_back(resolved(item, symbols));

  std::vector<std::size_t> images;  // that each of the inputs tells
  for (const std::string& name : inputs.value().keys) {
    const auto item = std::find_if(known.begin(), known.end(), [&](const auto& other) { return other.name == name; });
    if (item == known.end()) {
      inputs.refuse(one_line(name),
                    "an input of the request as its key: " + join(known, [](const auto& other) { return other.name; }),
                    shown(inputs.get(name)));
    }
    if (item->kind == Kind::scalar) {
      read_scalars(inputs, name, *item);
    } else if (item->kind == Kind::label) {
      images.push_back(check_labels(inputs, name, model));
    } else if (item->kind != Kind::size) {
      const std::size_t rows = inputs.items(name, [](const std::string&, const Json&) { return true; }).size();
      const bool texts = is_tensor(item->kind) && !is_plural(item->kind);
      if (texts) images.push_back(rows);
    }
  }
  const RequestInput* const label = of_kind(known, Kind::label);
  if (label != nullptr) inputs.get(label->name);
  const auto texts = check_verify_texts(fields, of_kind(known, Kind::text_features), inputs, has_text_encoder);
  if (texts) images.push_back(*texts);
  std::sort(images.begin(), images.end());
  if (!images.empty() && images.front() != images.back()) {
    images.erase(std::unique(images.begin(), images.end()), images.end());
    fields.refuse("", "as many labels and texts as images",
                  "[" + join(images, [](std::size_t count) { return std::to_string(count); }) + "]");
  }
  const std::int64_t values = of_kind(known, Kind::forced_tokens)->row_values();
  std::optional<std::size_t> count;
  if (!images.empty()) count = images[0];
  const std::size_t rows =
      check_token_maps(fields, "token_maps", values, model, count, label != nullptr ? "labels" : "texts");
  // What the encoder makes of the pictures.
  if (fields.optional("encoded") != nullptr) check_token_maps(fields, "encoded", values, model, rows);
  check_seed(fields);
}

/// Schema 1, which knew VAR alone: square stages, six fixed inputs, one file for each graph.
namespace schema_1 {

inline ModelInfo read_model(const Fields& fields) {
  ModelInfo model;
  const auto sides = fields.items(
      "patch_nums", [&](const std::string& key, const Json& item) { return fields.as_integer(key, item, 1, 4096); });
  if (sides.empty() || !std::is_sorted(sides.begin(), sides.end())) {
    fields.refuse("patch_nums", "side lengths in ascending order", shown(fields.get("patch_nums")));
  }
  for (const std::int64_t side : sides) model.stage_sizes.push_back({side, side});
  model.num_classes = fields.integer("num_classes", 1);
  const std::int64_t image_size = fields.integer("image_size", 1), latent_size = fields.integer("latent_size", 1);
  model.image_size = {image_size, image_size};
  model.vocab_size = fields.integer("vocab_size", 1);
  model.depth = fields.integer("depth", 1);
  model.embed_dim = fields.integer("embed_dim", 1);
  model.num_heads = fields.integer("num_heads", 1);
  model.latent_channels = fields.integer("latent_channels", 1);
  model.latent_size = {latent_size, latent_size};
  if (latent_size != sides.back()) {
    fields.refuse("latent_size", std::to_string(sides.back()) + ", the last of patch_nums",
                  std::to_string(latent_size));
  }
  return model;
}

inline std::vector<RequestInput> request(const ModelInfo& model) {
  const std::vector<Dimension> batch = {{std::nullopt, "B"}};
  const std::vector<Dimension> tokens = {{std::nullopt, "B"}, {model.num_tokens(), ""}};
  const auto entries = static_cast<double>(model.vocab_size);
  return {{"class_labels", Kind::label, "int64", batch, {}, {}, {}},
          {"uniforms", Kind::uniform, "float32", tokens, {}, {}, {}},
          {"forced_tokens", Kind::forced_tokens, "int64", tokens, {}, {}, {}},
          {"cfg_scale", Kind::scalar, "float32", {}, {4.0}, 0.0, kMaxCfgScale},
          {"top_k", Kind::scalar, "int64", {}, {(std::min)(900.0, entries)}, 0.0, entries},
          {"top_p", Kind::scalar, "float32", {}, {0.96}, 0.0, 1.0}};
}

inline std::map<Graph, GraphInfo> read_graphs(const Fields& fields, const std::vector<RequestInput>& request,
                                              const std::map<std::string, FileInfo>& files) {
  std::map<Graph, GraphInfo> graphs;
  for (const Graph graph : {Graph::generate, Graph::stage, Graph::decoder}) {
    const Fields role = fields.fields(graph_name(graph));
    graphs[graph] = read_graph(role, role, graph, request, files, std::vector<SizedModel>(1));
  }
  return graphs;
}

inline void check_verify(const Fields& fields, const ModelInfo& model) {
  const std::size_t images = check_labels(fields, "class_labels", model);
  check_token_maps(fields, "token_maps", model.num_tokens(), model, images);
  check_seed(fields);
  const Json& cfg_scale = fields.get("cfg_scale");
  const bool number = cfg_scale.is(Json::Type::integer) || cfg_scale.is(Json::Type::real);
  if (!number || !(cfg_scale.as_double() >= 0 && cfg_scale.as_double() < kMaxNumber)) {
    fields.refuse("cfg_scale", "a number of at least 0", shown(cfg_scale));
  }
}

}  // namespace schema_1

inline std::string newer_schema(const std::string& where, std::int64_t schema, const Json& document) {
  const Json* versions = document.find("versions");
  const Json* maker = versions != nullptr && versions->is(Json::Type::object) ? versions->find("nextscale") : nullptr;
  const bool known =
      maker != nullptr && maker->is(Json::Type::string) && maker->text.size() < 40 && is_printable(maker->text);
  return where + ": schema " + std::to_string(schema) + " is newer than schema " + std::to_string(kSchema) +
         ", which this nextscale.hpp reads: take " +
         (known ? "that of nextscale " + maker->text + " or later" : std::string("a newer one"));
}

// ------------------------------------------------------------------------------------------------------------ CPUs

/// The words of a text, which any of the separators part; what is between two separators may be empty.
inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

/// The lines of a file without white space at their ends; none where there is no file to read.
inline std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.pop_back();
    lines.push_back(line);
  }
  return lines;
}

/// A number of digits alone, as the kernel writes it.
inline std::optional<std::uint64_t> digits(const std::string& text) {
  const bool number = !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == std::string::npos;
  return number ? std::optional<std::uint64_t>(std::stoull(text)) : std::nullopt;
}

/// The logical CPUs that the calling thread may run on; none where no file tells.
inline std::vector<std::uint64_t> allowed_cpus(const std::filesystem::path& root) {
  static const std::string key = "Cpus_allowed_list:";
  std::vector<std::uint64_t> cpus;
  for (const std::string& line : lines_of(root / "proc/thread-self/status")) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::string list = line.substr(key.size());
    list.erase(0, list.find_first_not_of(" \t"));
    for (const std::string& range : split(list, ',')) {
      const auto first = digits(range.substr(0, range.find('-')));
      const auto last = digits(range.substr(range.find('-') + 1));
      for (std::uint64_t cpu = first.value_or(1); cpu <= last.value_or(0); ++cpu) cpus.push_back(cpu);
    }
  }
  return cpus;
}

/// The quota of one control group in whole CPUs, rounded up (cgroup v2, v1); unset where there is none.
inline std::optional<std::uint64_t> group_quota(const std::filesystem::path& group) {
  std::vector<std::string> words;
  for (const char* name : {"cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"}) {
    const auto lines = lines_of(group / name);
    if (!lines.empty() && words.size() < 2) {
      for (const std::string& word : split(lines[0], ' ')) words.push_back(word);
    }
  }
  const auto quota = words.size() == 2 ? digits(words[0]) : std::nullopt;
  const auto period = words.size() == 2 ? digits(words[1]) : std::nullopt;
  if (!quota || period.value_or(0) == 0) return std::nullopt;  // no such file, "max", or -1
  return (std::max)((*quota + *period - 1) / *period, std::uint64_t{1});
}

/// A group's place below the group that a mount shows, both absolute; unset where the mount does not show it.
inline std::optional<std::filesystem::path> group_below(const std::string& group, const std::string& top) {
  const std::string prefix = top == "/" ? "" : top;
  const std::string rest = group == "/" ? "" : group;
  if (rest.compare(0, prefix.size(), prefix) != 0) return std::nullopt;
  const std::string below = rest.substr(prefix.size());
  if (!below.empty() && below[0] != '/') return std::nullopt;
  const std::filesystem::path path = std::filesystem::path(below).relative_path();
  if (std::find(path.begin(), path.end(), "..") != path.end()) return std::nullopt;
  return path;
}

/// CPUs' worth of time that the control groups of this process allow it, rounded up; unset where nothing limits it. A
/// mount shows a hierarchy from one of its groups on: in a container mostly from the container's own.
inline std::optional<std::uint64_t> cpu_quota(const std::filesystem::path& root) {
  std::map<std::string, std::string> groups;
  const auto holds_cpu = [](const std::string& list) {
    const auto names = split(list, ',');
    return std::find(names.begin(), names.end(), "cpu") != names.end();
  };
  for (const std::string& line : lines_of(root / "proc/thread-self/cgroup")) {  // hierarchy:controllers:group
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const bool unified = line.substr(0, first) == "0";
    if (unified || holds_cpu(line.substr(first + 1, second - first - 1))) {
      groups[unified ? "cgroup2" : "cgroup"] = line.substr(second + 1);
    }
  }
  std::optional<std::uint64_t> least;
  for (const std::string& line : lines_of(root / "proc/thread-self/mountinfo")) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const auto mount = split(line.substr(0, dash), ' '), system = split(line.substr(dash + 3), ' ');
    const auto group = system.empty() ? groups.end() : groups.find(system[0]);
    if (group == groups.end() || mount.size() < 5 || (system[0] == "cgroup" && !holds_cpu(system.back()))) continue;
    const auto below = group_below(group->second, mount[3]);
    if (!below) continue;
    for (std::filesystem::path folder = *below;; folder = folder.parent_path()) {
      const auto quota = group_quota(root / std::filesystem::path(mount[4]).relative_path() / folder);
      if (quota && (!least || *quota < *least)) least = quota;
      if (folder.empty()) break;
    }
  }
  return least;
}

/// Threads of one operator where the user names no number: one for each physical core that this process may run on, and
/// no more than its quota of CPU time; 0, ONNX Runtime's own choice, where no file tells. `root` holds Linux's proc and
/// sys; the Python package and NextScale.cs read the same files.
inline int default_threads(const std::filesystem::path& root = "/") {
  std::vector<std::string> cores;
  for (const std::uint64_t cpu : allowed_cpus(root)) {
    const std::string name = std::to_string(cpu);
    const auto lines = lines_of(root / ("sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list"));
    const std::string siblings = lines.empty() || lines[0].empty() ? name : lines[0];
    if (std::find(cores.begin(), cores.end(), siblings) == cores.end()) cores.push_back(siblings);
  }
  return static_cast<int>((std::min)(static_cast<std::uint64_t>(cores.size()), cpu_quota(root).value_or(1024)));
}

/// CPUs whose time this process may use: those that it may run on, and no more than its quota of CPU time.
inline std::uint64_t logical_cpus(const std::filesystem::path& root = "/") {
  const std::uint64_t found = allowed_cpus(root).size();
  const std::uint64_t cpus = found != 0 ? found : (std::max)(std::thread::hardware_concurrency(), 1u);
  return (std::min)(cpus, cpu_quota(root).value_or(cpus));
}

// ----------------------------------------------------------------------------------------------------------- sizes

/// Such as "0.06M 1:1 3:4; 0.25M 1:1".
inline std::string sizes_in_words(const std::vector<SizeInfo>& sizes) {
  std::vector<std::pair<std::string, std::string>> by_area;
  for (const SizeInfo& size : sizes) {
    const auto same = [&](const auto& item) { return item.first == size.area; };
    auto place = std::find_if(by_area.begin(), by_area.end(), same);
    if (place == by_area.end()) place = by_area.insert(by_area.end(), {size.area, ""});
    place->second += " " + size.ratio_in_words();
  }
  std::string words;
  for (const auto& [area, ratios] : by_area) words += (words.empty() ? "" : "; ") + area + ratios;
  return words;
}

inline double read_area(const std::string& area) {
  const auto number = megapixels(area);
  if (!number) throw RequestError("area \"" + shown_text(area) + "\": expected megapixels such as \"0.25M\"");
  return *number;
}

/// Width to height, such as "3:4", as [height, width] in lowest terms.
inline Size read_ratio(const std::string& ratio) {
  const std::size_t colon = (std::min)(ratio.find(':'), ratio.size());
  const auto side = [](const std::string& text) {
    const bool number = !text.empty() && text.size() <= 9 && text.find_first_not_of("0123456789") == std::string::npos;
    return number ? static_cast<std::int64_t>(std::stol(text)) : 0;
  };
  const std::int64_t width = side(ratio.substr(0, colon));
  const std::int64_t height = side(ratio.substr((std::min)(colon + 1, ratio.size())));
  if (width == 0 || height == 0) {
    throw RequestError("ratio \"" + shown_text(ratio) + "\": expected width to height such as \"3:4\"");
  }
  const std::int64_t common = std::gcd(height, width);
  return {height / common, width / common};
}

/// The index of the size of that area and ratio; what is unset is that of the first size. Throws RequestError: another
/// form, or a size that was not built.
inline std::size_t choose_size(const std::vector<SizeInfo>& sizes, const std::optional<std::string>& area,
                               const std::optional<std::string>& ratio) {
  const double wanted = area ? read_area(*area) : *megapixels(sizes[0].area);
  const Size sides = ratio ? read_ratio(*ratio) : sizes[0].ratio;
  for (std::size_t index = 0; index < sizes.size(); ++index) {
    if (*megapixels(sizes[index].area) == wanted && sizes[index].ratio == sides) return index;
  }
  std::ostringstream words;
  words.imbue(std::locale::classic());
  words << "area " << wanted << "M with ratio " << sides.width << ':' << sides.height;
  throw RequestError(words.str() + " is not built; this bundle has " + sizes_in_words(sizes));
}

/// What the manifest says of one size, with numbers for the symbols that it decides.
struct SizedContract {
  ModelInfo model;
  std::vector<RequestInput> request;
  std::vector<StateInfo> state;

  /// `size` is the index of one; 0 where the bundle has one.
  SizedContract(const Manifest& manifest, std::size_t size) {
    const SizedModel at =
        manifest.sizes.empty() ? SizedModel{manifest.model, {}} : at_size(manifest.model, manifest.sizes[size]);
    model = at.model;
    for (const RequestInput& item : manifest.request) request.push_back(resolved(item, at.symbols));
    state = manifest.graphs.at(Graph::stage).state;
    for (StateInfo& item : state) item.initial_shape = resolved(item.initial_shape, at.symbols);
  }

  /// Token maps are of its shape.
  const RequestInput& forced_tokens() const {
    const auto forces = [](const RequestInput& item) { return item.kind == Kind::forced_tokens; };
    return *std::find_if(request.begin(), request.end(), forces);
  }
};

// ----------------------------------------------------------------------------------------------------------- texts

constexpr std::int64_t kEnd = 1;        // of a prompt
constexpr std::int64_t kFirstByte = 3;  // after the padding, the end and what is unknown
constexpr int kShownPrompt = 40;        // characters

/// Refuse a prompt that is no text.
inline void require_text(std::string_view prompt) {
  for (std::size_t position = 0, length = 0; position < prompt.size(); position += length) {
    length = utf8_length(prompt, position);
    if (length == 0) {
      throw RequestError("prompt \"" + shown_text(prompt, kShownPrompt) + "\": byte " + std::to_string(position) +
                         " is no UTF-8; expected valid Unicode");
    }
  }
}

/// The ids of a prompt and its end. Throws RequestError: none, or too many.
inline std::vector<std::int64_t> ended(std::string_view prompt, std::vector<std::int64_t> ids,
                                       std::int64_t max_tokens) {
  const std::string shown = shown_text(prompt, kShownPrompt);
  if (ids.empty()) throw RequestError("prompt \"" + shown + "\" is empty: expected a description in words");
  ids.push_back(kEnd);
  if (static_cast<std::int64_t>(ids.size()) > max_tokens) {
    throw RequestError("prompt \"" + shown + "\" has " + std::to_string(ids.size()) +
                       " tokens, its end among them; expected at most " + std::to_string(max_tokens) + ": shorten it");
  }
  return ids;
}

/// ByT5's token ids: each byte of UTF-8 plus 3, and the end.
inline std::vector<std::int64_t> byte_tokens(std::string_view prompt, std::int64_t max_tokens) {
  require_text(prompt);
  std::vector<std::int64_t> ids;
  for (const char byte : prompt) ids.push_back(static_cast<unsigned char>(byte) + kFirstByte);
  return ended(prompt, std::move(ids), max_tokens);
}

/// Flan-T5's token ids: pieces of a sentencepiece model, and the end.
class SentencePieces {
 public:
#ifdef NEXTSCALE_SENTENCEPIECE
  /// Throws BundleError: the file is no sentencepiece model, or its end of text is not T5's.
  explicit SentencePieces(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    std::ostringstream content;
    content << in.rdbuf();
    const std::string where = utf8(file);
    if (!in) throw BundleError(where + ": cannot be read");
    if (!processor_.LoadFromSerializedProto(content.str()).ok() || processor_.GetPieceSize() == 0) {
      throw BundleError(where + " is no sentencepiece model, or a damaged one; copy the bundle again");
    }
    if (processor_.eos_id() != kEnd) {
      throw BundleError(where + ": expected the end of text to be piece " + std::to_string(kEnd) +
                        ", as T5 has it, found " + std::to_string(processor_.eos_id()));
    }
  }

  std::vector<std::int64_t> tokens(const std::string& prompt, std::int64_t max_tokens) const {
    require_text(prompt);
    std::vector<int> pieces;
    if (!processor_.Encode(prompt, &pieces).ok()) throw Error("sentencepiece failed on a prompt");
    return ended(prompt, std::vector<std::int64_t>(pieces.begin(), pieces.end()), max_tokens);
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
#else
  explicit SentencePieces(const std::filesystem::path&) {
    throw Error(
        "this bundle's prompts need the sentencepiece library: compile with NEXTSCALE_SENTENCEPIECE and link it; or "
        "give features of the texts in inputs");
  }

  std::vector<std::int64_t> tokens(const std::string&, std::int64_t) const { return {}; }
#endif
};

// ---------------------------------------------------------------------------------------------------------- engine

/// Gives freed memory back to the operating system when it ends, where that is asked for and the C library can.
class ReturnMemory {
 public:
  explicit ReturnMemory(const SessionOptions& options) : wanted_(options.return_memory) {}
  ReturnMemory(const ReturnMemory&) = delete;
  ReturnMemory& operator=(const ReturnMemory&) = delete;
  ~ReturnMemory() {
#ifdef __GLIBC__
    if (wanted_) malloc_trim(0);
#endif
  }

 private:
  [[maybe_unused]] bool wanted_;
};

inline std::size_t size_of_dtype(const std::string& dtype) {
  return dtype == "int64" ? 8 : dtype == "float32" || dtype == "int32" ? 4 : dtype == "float16" ? 2 : 1;
}

inline ONNXTensorElementDataType element_type(const std::string& dtype) {
  return dtype == "float32"   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
         : dtype == "float16" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
         : dtype == "int64"   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
         : dtype == "int32"   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
         : dtype == "int8"    ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
                              : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

inline std::string line(const TensorInfo& tensor) {
  return tensor.dtype + " [" + join(tensor.shape, dimension_text) + "]";
}

/// A loaded graph's input or output in the manifest's words.
inline TensorInfo describe(const std::string& name, const Ort::TypeInfo& info) {
  TensorInfo tensor;
  tensor.name = name;
  if (info.GetONNXType() != ONNX_TYPE_TENSOR) {
    tensor.dtype = "no tensor";
    return tensor;
  }
  const auto shape_info = info.GetTensorTypeAndShapeInfo();
  tensor.dtype = "another type";
  for (const char* dtype : {"float32", "float16", "int64", "int32", "int8", "uint8"}) {
    if (element_type(dtype) == shape_info.GetElementType()) tensor.dtype = dtype;
  }
  const std::vector<std::int64_t> sizes = shape_info.GetShape();
  const std::vector<const char*> symbols = shape_info.GetSymbolicDimensions();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    tensor.shape.push_back(sizes[i] >= 0 ? Dimension{sizes[i], ""} : Dimension{std::nullopt, symbols[i]});
  }
  return tensor;
}

/// Types are equal, and ranks and sizes wherever both sides tell (an unknown rank reads as no dimensions).
inline bool agree(const TensorInfo& expected, const TensorInfo& found) {
  if (expected.dtype != found.dtype) return false;
  if (found.shape.empty()) return true;
  return std::equal(expected.shape.begin(), expected.shape.end(), found.shape.begin(), found.shape.end(),
                    [](const Dimension& a, const Dimension& b) { return !a.size || !b.size || *a.size == *b.size; });
}

/// The first input or output that is not as the manifest says; empty if all are.
inline std::string contract_difference(const std::vector<TensorInfo>& declared, const std::vector<TensorInfo>& actual,
                                       const std::string& kind) {
  std::map<std::string, const TensorInfo*> expected, found;
  for (const TensorInfo& tensor : declared) expected[tensor.name] = &tensor;
  for (const TensorInfo& tensor : actual) found[tensor.name] = &tensor;
  for (const auto& [name, tensor] : expected) {
    const auto place = found.find(name);
    if (place == found.end()) return kind + " \"" + name + "\" is only in the manifest";
    if (!agree(*tensor, *place->second)) {
      return kind + " \"" + name + "\": the manifest says " + line(*tensor) + ", the file " + line(*place->second);
    }
  }
  for (const auto& item : found) {
    if (expected.count(item.first) == 0) return kind + " \"" + one_line(item.first) + "\" is only in the file";
  }
  return "";
}

/// One input of a checked request, for all images of it.
struct Input {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<std::int64_t> shape;  // the first size is B where each image has a row
  bool per_image;
  std::vector<std::uint8_t> bytes;
};

/// Where the numbers of more_smooth come from; V a token are too many to keep for all images.
struct Noise {
  std::string name;  // of the input
  std::uint64_t seed;
  std::uint64_t first_image;
  std::vector<std::int64_t> row;  // [L, V]
};

/// One text of each image. Each is encoded once, however many images have it, alone and never padded; what the images
/// of one batch have is padded with zeros to the longest of them, and masked.
struct Texts {
  std::string features;                              // the inputs that the texts become
  std::string mask;                                  // empty where the bundle takes none
  std::size_t width;                                 // Ct
  std::vector<std::vector<std::int64_t>> token_ids;  // each text once
  std::vector<std::vector<float>> encoded;           // their features [N, Ct], once the text encoder has run
  std::vector<std::size_t> index;                    // which of them each image has
};

/// A checked request.
struct Inputs {
  SizedContract contract;  // of the request's size
  std::size_t size;
  std::vector<Input> items;
  std::size_t count;
  std::size_t batch_size;
  std::optional<Noise> noise;  // unset where nothing is smoothed: its input then has no row
  std::vector<Texts> texts;    // of prompts and negative ones

  /// Let every image have these tokens, [L, ...], -1 to sample.
  void force(const std::vector<std::int64_t>& tokens) {
    const std::string& name = contract.forced_tokens().name;
    const auto forced = std::find_if(items.begin(), items.end(), [&](const Input& item) { return item.name == name; });
    const std::size_t row = tokens.size() * sizeof(std::int64_t);
    for (std::size_t image = 0; image < count; ++image) {
      std::memcpy(forced->bytes.data() + image * row, tokens.data(), row);
    }
  }
};

/// What a call of a graph takes; shares the memory of the inputs, which must outlive it.
struct Feeds {
  std::vector<const char*> names;
  std::vector<Ort::Value> values;
  // What is made for the images of the call alone.
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<std::int64_t>> integers;
};

/// [count, length], of images first to first + count - 1 of a seed.
inline std::vector<float> uniforms_of_images(std::uint64_t seed, std::uint64_t first, std::size_t count,
                                             std::size_t length, Use use) {
  std::vector<float> values;
  values.reserve(count * length);
  for (std::size_t i = 0; i < count; ++i) {
    const auto row = nextscale::uniforms(seed, first + i, length, use);
    values.insert(values.end(), row.begin(), row.end());
  }
  return values;
}

/// A tensor that shares (const) memory, which must outlive it.
inline Ort::Value shared_tensor(const void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                                ONNXTensorElementDataType type) {
  static const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, const_cast<void*>(data), bytes, shape.data(), shape.size(), type);
}

inline Ort::Value tensor_of(const std::vector<float>& values, const std::vector<std::int64_t>& shape) {
  return shared_tensor(values.data(), values.size() * sizeof(float), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}

inline Ort::Value tensor_of(const std::vector<std::int64_t>& values, const std::vector<std::int64_t>& shape) {
  return shared_tensor(values.data(), values.size() * sizeof(std::int64_t), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
}

/// Texts [N, Ct] in one row each of [B, Lt, Ct], zeros behind each, and their masks [B, Lt].
struct Padded {
  std::int64_t longest = 0;  // Lt
  std::vector<float> features;
  std::vector<std::int64_t> mask;

  Padded(const std::vector<const std::vector<float>*>& texts, std::size_t width) {
    for (const auto* text : texts) longest = (std::max)(longest, static_cast<std::int64_t>(text->size() / width));
    const auto length = static_cast<std::size_t>(longest);
    features.reserve(texts.size() * length * width);
    for (const auto* text : texts) {
      features.insert(features.end(), text->begin(), text->end());
      mask.insert(mask.end(), text->size() / width, 1);
      mask.resize(features.size() / width + length - text->size() / width);
      features.resize(mask.size() * width);
    }
  }
};

/// The features and masks of the texts of images first to first + count - 1.
inline void add_texts(Feeds& feeds, const Texts& texts, std::size_t first, std::size_t count) {
  std::vector<const std::vector<float>*> rows;
  for (std::size_t i = first; i < first + count; ++i) rows.push_back(&texts.encoded[texts.index[i]]);
  Padded padded(rows, texts.width);
  const auto images = static_cast<std::int64_t>(count), width = static_cast<std::int64_t>(texts.width);
  feeds.floats.push_back(std::move(padded.features));
  feeds.names.push_back(texts.features.c_str());
  feeds.values.push_back(tensor_of(feeds.floats.back(), {images, padded.longest, width}));
  if (texts.mask.empty()) return;
  feeds.integers.push_back(std::move(padded.mask));
  feeds.names.push_back(texts.mask.c_str());
  feeds.values.push_back(tensor_of(feeds.integers.back(), {images, padded.longest}));
}

/// Those inputs of images first to first + count - 1 that a graph takes.
inline Feeds make_feeds(const Inputs& inputs, const GraphInfo& graph, std::size_t first, std::size_t count) {
  Feeds feeds;
  for (const Input& item : inputs.items) {
    const auto same = [&](const TensorInfo& tensor) { return tensor.name == item.name; };
    if (std::none_of(graph.inputs.begin(), graph.inputs.end(), same)) continue;
    std::vector<std::int64_t> shape = item.shape;
    const std::size_t row = item.per_image ? item.bytes.size() / inputs.count : 0;
    if (item.per_image) shape[0] = static_cast<std::int64_t>(count);
    feeds.names.push_back(item.name.c_str());
    if (inputs.noise && inputs.noise->name == item.name) {
      const Noise& noise = *inputs.noise;
      const auto length = static_cast<std::size_t>(noise.row[0] * noise.row[1]);
      shape = {shape[0], noise.row[0], noise.row[1]};
      feeds.floats.push_back(uniforms_of_images(noise.seed, noise.first_image + first, count, length, Use::smoothing));
      feeds.values.push_back(tensor_of(feeds.floats.back(), shape));
      continue;
    }
    feeds.values.push_back(shared_tensor(item.bytes.data() + row * first,
                                         item.per_image ? row * count : item.bytes.size(), shape, item.type));
  }
  for (const Texts& texts : inputs.texts) add_texts(feeds, texts, first, count);
  return feeds;
}

/// The contents of weights behind links out of a bundle's folder, which most releases of ONNX Runtime do not follow;
/// to be kept until a session is made.
class LinkedData {
 public:
  explicit LinkedData(const Bundle& bundle) {
    for (const std::string& name : bundle.linked_data()) {
      const std::filesystem::path path = bundle.path() / path_of_utf8(name);
      std::vector<char> content(static_cast<std::size_t>(bundle.manifest().files.at(name).size));
      std::ifstream file(path, std::ios::binary);
      if (!file.read(content.data(), static_cast<std::streamsize>(content.size()))) {
        throw BundleError(utf8(path) + ": cannot be read");
      }
      names_.push_back(path_of_utf8(name).native());
      contents_.push_back(std::move(content));
    }
  }

  void give_to(Ort::SessionOptions& settings) const {
    std::vector<char*> starts;
    std::vector<std::size_t> sizes;
    for (const std::vector<char>& content : contents_) {
      starts.push_back(const_cast<char*>(content.data()));  // ONNX Runtime only reads
      sizes.push_back(content.size());
    }
    if (!names_.empty()) settings.AddExternalInitializersFromFilesInMemory(names_, starts, sizes);
  }

 private:
  std::vector<std::filesystem::path::string_type> names_;
  std::vector<std::vector<char>> contents_;
};

/// Refuse a release of ONNX Runtime on which bundles do not run. Throws Error.
inline void require_release(const std::string& version) {
  int major = 0, minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &major, &minor);
  if (major < 1 || (major == 1 && minor < 23)) {
    throw Error("onnxruntime " + version + " is too old: bundles need 1.23 or later; update the library");
  }
  if (version == "1.29.0") {
    throw Error("onnxruntime " + version + " crashes in containers without a shell: take another release's library");
  }
}

/// What a library of operators says of itself; it stays loaded.
struct OperatorLibrary {
  std::string path;
  std::int64_t version = 0;
  std::string isa;  ///< That its kernels use here; empty where the environment asks for one that is not there.

  /// Throws Error: the file is no such library.
  explicit OperatorLibrary(const std::filesystem::path& file) : path(utf8(file)) {
    const auto whole = std::filesystem::absolute(file);
#ifdef _WIN32
    const HMODULE library = ::LoadLibraryW(whole.c_str());
    const auto find = [&](const char* name) { return ::GetProcAddress(library, name); };
    const std::string reason = library == nullptr ? "Windows error " + std::to_string(::GetLastError()) : "";
#else
    void* const library = ::dlopen(whole.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto find = [&](const char* name) { return ::dlsym(library, name); };
    const std::string reason = library == nullptr ? one_line(::dlerror()) : "";
#endif
    if (library == nullptr) throw Error(path + ": cannot be loaded as a library of operators: " + reason);
    const auto version_of = reinterpret_cast<int (*)()>(find("nextscale_ops_version"));
    const auto isa_of = reinterpret_cast<const char* (*)()>(find("nextscale_ops_isa"));
    if (version_of == nullptr || isa_of == nullptr) {
      throw Error(path + ": a library without nextscale's operators; expected that of nextscale-ops");
    }
    version = version_of();
    if (const char* name = isa_of()) isa = name;
  }
};

/// What keeps a bundle's fused graphs from running; empty: nothing does.
inline std::string lack_of(const Bundle& bundle, const std::optional<OperatorLibrary>& library) {
  const auto& graphs = bundle.manifest().graphs;
  if (std::none_of(graphs.begin(), graphs.end(), [](const auto& graph) { return graph.second.fused.has_value(); })) {
    return "the bundle has no fused graphs; build it again without --no-fused";
  }
  if (!library) return "no library of nextscale-ops was given; give its file as ops_library";
  if (library->isa.empty()) return "NEXTSCALE_OPS_ISA names no instruction set that this processor has";
  for (const auto& [role, graph] : graphs) {
    if (!graph.fused) continue;
    for (const auto& [domain, version] : graph.fused->operators) {
      if (domain != "nextscale") {
        return "they need operators of " + one_line(domain) + ", which nextscale-ops does not have";
      }
    }
    for (const auto& [domain, version] : graph.fused->operators) {
      if (version != library->version) {
        return "they need version " + std::to_string(version) + " of nextscale-ops' operators, and " + library->path +
               " has version " + std::to_string(library->version) +
               ": install the nextscale-ops that fits, or build the bundle again";
      }
    }
  }
  return "";
}

/// Which graphs run. Throws Error: the fused ones are asked for and cannot, or the library is none.
inline Choice choose_variant(const Bundle& bundle, const SessionOptions& options) {
  if (options.ops == Ops::stock) return {Variant::stock, "stock operators were asked for"};
  std::optional<OperatorLibrary> library;
  if (!options.ops_library.empty()) library.emplace(options.ops_library);
  const std::string lack = lack_of(bundle, library);
  if (lack.empty()) {
    // Of plain C++, stock operators are faster.
    if (options.ops == Ops::automatic && library->isa == "portable") {
      return {Variant::stock, "stock operators are faster on this processor"};
    }
    return {Variant::fused, "nextscale-ops on " + library->isa};
  }
  if (options.ops == Ops::fused) throw Error(utf8(bundle.path()) + ": fused operators cannot run: " + lack);
  return {Variant::stock, lack};
}

/// The sessions of a bundle. Everything ONNX Runtime throws leaves here as an Error.
class Engine {
 public:
  Engine(Bundle bundle, const SessionOptions& options)
      : bundle_(std::move(bundle)),
        options_(options),
        environment_(make_environment(options)),
        choice_(choose_variant(bundle_, options_)) {}

  const Bundle& bundle() const { return bundle_; }
  const SessionOptions& options() const { return options_; }
  const Choice& ops() const { return choice_; }
  bool has(Graph graph) const { return bundle_.manifest().graphs.count(graph) > 0; }

  /// Throws BundleError: the bundle has no such graph.
  const GraphInfo& info(Graph graph) const {
    if (!has(graph)) {
      throw BundleError(utf8(bundle_.path()) + ": the bundle has no graph \"" + graph_name(graph) +
                        "\"; it has " + roles());
    }
    return bundle_.manifest().graphs.at(graph);
  }

  /// The graphs that the bundle has, in words.
  std::string roles() const {
    std::vector<Graph> graphs;
    for (const auto& [graph, info] : bundle_.manifest().graphs) graphs.push_back(graph);
    return join(graphs, [](Graph graph) { return std::string(graph_name(graph)); });
  }

  std::shared_ptr<Ort::Session> session(Graph graph) {
    const std::lock_guard<std::mutex> lock(loading_);
    auto& session = sessions_[static_cast<std::size_t>(graph)];
    if (session == nullptr) session = open_session(graph);
    return session;
  }

  /// Forget a graph's session, which is destroyed when the calls end that run it; the next use opens another.
  void close(Graph graph) {
    const std::lock_guard<std::mutex> lock(loading_);
    sessions_[static_cast<std::size_t>(graph)].reset();
  }

  /// Throws RequestError, ClassLabelError.
  std::shared_ptr<Inputs> check(const Request& request);

  /// The ids of a prompt and its end. Throws RequestError: the bundle has no tokenizer that this header knows, or the
  /// prompt is none of its; BundleError: the tokenizer's file is damaged.
  std::vector<std::int64_t> token_ids(const std::string& prompt) {
    const auto& info = bundle_.manifest().tokenizer;
    if (!info) throw RequestError("this bundle has no tokenizer; give features of the texts in inputs");
    if (info->kind == "bytes") return byte_tokens(prompt, info->max_tokens);
    if (info->file.empty()) {
      throw RequestError("this bundle has a tokenizer of kind \"" + info->kind +
                         "\", which this nextscale.hpp does not know; give features of the texts in inputs");
    }
    const std::lock_guard<std::mutex> lock(loading_);
    if (pieces_ == nullptr) pieces_ = std::make_unique<SentencePieces>(bundle_.path() / path_of_utf8(info->file));
    return pieces_->tokens(prompt, info->max_tokens);
  }

  /// Run the text encoder on each text of a request.
  void encode_texts(Inputs& inputs) {
    const TextEncoderClosed at_end(inputs.texts.empty() || options_.keep_text_encoder ? nullptr : this);
    for (Texts& texts : inputs.texts) {
      for (const auto& token_ids : texts.token_ids) {
        const auto length = static_cast<std::int64_t>(token_ids.size());
        session(Graph::text_encoder);
        const Ort::Value ids = tensor_of(token_ids, {1, length});
        const auto outputs = run(Graph::text_encoder, {"token_ids"}, {ids}, {"text_features"});
        texts.encoded.push_back(values<float>(Graph::text_encoder, "text_features", outputs[0],
                                              {1, length, static_cast<std::int64_t>(texts.width)}));
      }
    }
  }

  std::vector<Ort::Value> run(Graph graph, const std::vector<const char*>& input_names,
                              const std::vector<const OrtValue*>& inputs,
                              const std::vector<const char*>& output_names) {
    const std::shared_ptr<Ort::Session> loaded = session(graph);
    std::vector<Ort::Value> outputs;
    outputs.reserve(output_names.size());
    std::vector<OrtValue*> raw(output_names.size(), nullptr);
    try {
      Ort::ThrowOnError(Ort::GetApi().Run(*loaded, nullptr, input_names.data(), inputs.data(), inputs.size(),
                                          output_names.data(), output_names.size(), raw.data()));
    } catch (const std::exception& error) {
      throw Error(utf8(path_of(graph)) + ": onnxruntime failed: " + reason(error));
    }
    for (OrtValue* value : raw) outputs.emplace_back(value);
    return outputs;
  }

  /// Zeros of a state's initial shape.
  static std::shared_ptr<Ort::Value> initial_state(const StateInfo& state, std::size_t batch) {
    std::vector<std::int64_t> shape;
    std::size_t bytes = size_of_dtype(state.dtype);
    for (const Dimension& dimension : state.initial_shape) {
      const auto size =
          dimension.size ? static_cast<std::size_t>(*dimension.size) : batch * (dimension.symbol == "2B" ? 2 : 1);
      if (size != 0 && bytes > (std::numeric_limits<std::size_t>::max)() / 2 / size) {
        throw RequestError("batch of " + std::to_string(batch) + ": the state \"" + state.input +
                           "\" would be larger than any memory");
      }
      bytes *= size;
      shape.push_back(static_cast<std::int64_t>(size));
    }
    const Ort::AllocatorWithDefaultOptions allocator;
    try {
      auto value = std::make_shared<Ort::Value>(
          Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), element_type(state.dtype)));
      if (bytes > 0) std::memset(value->GetTensorMutableRawData(), 0, bytes);
      return value;
    } catch (const std::exception& error) {
      throw Error("state \"" + state.input + "\": onnxruntime failed: " + reason(error));
    }
  }

  /// Pictures of that size.
  Images decode(const Ort::Value& f_hat, std::size_t count, const Size& size) {
    const ReturnMemory at_end(options_);
    const auto outputs = run(Graph::decoder, {"f_hat"}, {f_hat}, {"images"});
    Images images{count, static_cast<std::size_t>(size.height), static_cast<std::size_t>(size.width), {}};
    images.pixels = values<std::uint8_t>(Graph::decoder, "images", outputs[0],
                                         {static_cast<std::int64_t>(count), size.height, size.width, 3});
    return images;
  }

  /// A copy of an output's values; its type was checked when the graph was loaded, its shape is checked here.
  template <typename T>
  std::vector<T> values(Graph graph, const char* name, const Ort::Value& value,
                        const std::vector<std::int64_t>& expected) const {
    if (value.GetTensorTypeAndShapeInfo().GetShape() != expected) {
      throw BundleError(utf8(path_of(graph)) + ": output \"" + name + "\" has another shape than the " +
                        "manifest's model; build the bundle again");
    }
    std::size_t count = 1;
    for (const std::int64_t size : expected) count *= static_cast<std::size_t>(size);
    const T* data = value.GetTensorData<T>();
    return std::vector<T>(data, data + count);
  }

 private:
  /// Closes the text encoder at the end of a block, even one that throws; null: nothing.
  class TextEncoderClosed {
   public:
    explicit TextEncoderClosed(Engine* engine) : engine_(engine) {}
    TextEncoderClosed(const TextEncoderClosed&) = delete;
    TextEncoderClosed& operator=(const TextEncoderClosed&) = delete;
    ~TextEncoderClosed() {
      if (engine_ != nullptr) engine_->close(Graph::text_encoder);
    }

   private:
    Engine* engine_;
  };

  static std::string version() { return OrtGetApiBase()->GetVersionString(); }

  std::filesystem::path path_of(Graph graph) const { return bundle_.graph_path(graph, choice_.variant); }

  static Ort::Env make_environment(const SessionOptions& options) {
    if (options.threads < 0 || options.threads > 1024) {
      throw Error("threads " + std::to_string(options.threads) +
                  " is out of range: expected 1 to 1024, or 0 for all cores");
    }
    require_release(version());
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
      throw Error("onnxruntime " + version() + " is older than the headers that this program was compiled with (API " +
                  std::to_string(ORT_API_VERSION) + "): update the library or compile with its headers");
    }
    try {
      return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "nextscale");  // what is wrong comes back as an exception
    } catch (const std::exception& error) {
      throw Error("onnxruntime " + version() + " cannot start: " + reason(error));
    }
  }

  std::unique_ptr<Ort::Session> open_session(Graph graph) const {
    const GraphInfo& described = info(graph);
    const std::filesystem::path path = path_of(graph);
    std::unique_ptr<Ort::Session> session;
    std::string difference;
    try {
      Ort::SessionOptions settings;
      const int threads = options_.threads != 0 ? options_.threads : default_threads();
      const bool spinning = options_.spinning && static_cast<std::uint64_t>(threads) <= logical_cpus();
      settings.SetIntraOpNumThreads(threads);
      settings.SetInterOpNumThreads(1);
      options_.memory_arena && !options_.return_memory ? settings.EnableCpuMemArena() : settings.DisableCpuMemArena();
      options_.memory_pattern ? settings.EnableMemPattern() : settings.DisableMemPattern();
      settings.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
      settings.AddConfigEntry("session.intra_op.allow_spinning", spinning ? "1" : "0");
      // Threads of a run that has ended would take cores from the next session's for a while.
      settings.AddConfigEntry("session.force_spinning_stop", "1");
      if (choice_.variant == Variant::fused && described.fused) {
        settings.RegisterCustomOpsLibrary(std::filesystem::absolute(options_.ops_library).c_str());
      }
      const LinkedData linked(bundle_);
      linked.give_to(settings);
      session = std::make_unique<Ort::Session>(environment_, path.c_str(), settings);
      difference = difference_of(*session, described);
    } catch (const std::exception& error) {
      const std::string message = utf8(path) + ": onnxruntime " + version() + " cannot load it: " + reason(error);
      if (!shortage(error.what()).empty()) throw Error(message);
      throw BundleError(message);
    }
    if (!difference.empty()) {
      throw BundleError(utf8(path) + ": not the graph that the manifest describes: " + difference);
    }
    return session;
  }

  static std::string difference_of(const Ort::Session& session, const GraphInfo& graph) {
    const Ort::AllocatorWithDefaultOptions allocator;
    std::vector<TensorInfo> inputs, outputs;
    for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
      inputs.push_back(describe(session.GetInputNameAllocated(i, allocator).get(), session.GetInputTypeInfo(i)));
    }
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
      outputs.push_back(describe(session.GetOutputNameAllocated(i, allocator).get(), session.GetOutputTypeInfo(i)));
    }
    const std::string difference = contract_difference(graph.inputs, inputs, "input");
    return difference.empty() ? contract_difference(graph.outputs, outputs, "output") : difference;
  }

  Bundle bundle_;
  SessionOptions options_;
  Ort::Env environment_;
  Choice choice_;
  std::mutex loading_;
  std::array<std::shared_ptr<Ort::Session>, kGraphs.size()> sessions_;
  std::unique_ptr<SentencePieces> pieces_;
};

inline std::string label_range(const ModelInfo& model) {
  return "0 to " + std::to_string(model.num_classes - 1) + " (" + std::to_string(model.num_classes) +
         " is the null class)";
}

inline void require_labels(const std::vector<std::int64_t>& labels, const ModelInfo& model) {
  for (const std::int64_t label : labels) {
    if (label < 0 || label > model.num_classes) {
      throw ClassLabelError("class " + std::to_string(label) + " is out of range: expected " + label_range(model));
    }
  }
}

template <typename T>
std::vector<std::uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<std::uint8_t> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::string listed(const std::vector<std::int64_t>& shape) {
  return "[" + join(shape, [](std::int64_t size) { return std::to_string(size); }) + "]";
}

/// The shape of all rows of an input whose other sizes are numbers.
inline std::vector<std::int64_t> rows_of(const RequestInput& item, std::size_t count) {
  std::vector<std::int64_t> shape = {static_cast<std::int64_t>(count)};
  for (std::size_t i = 1; i < item.shape.size(); ++i) shape.push_back(item.shape[i].size.value_or(0));
  return shape;
}

/// The features and the mask of a setting that is texts.
struct TextKinds {
  const char* setting;
  Kind features;
  Kind mask;
};
constexpr TextKinds kPrompts = {"prompts", Kind::text_features, Kind::text_mask};
constexpr TextKinds kNegative = {"negative", Kind::negative_features, Kind::negative_mask};

/// A request on its way to become Inputs; every member throws RequestError or ClassLabelError.
class Checker {
 public:
  using Tokenize = std::function<std::vector<std::int64_t>(const std::string&)>;

  Checker(const Manifest& manifest, Request request, Tokenize tokenize)
      : manifest_(manifest), request_(std::move(request)), tokenize_(std::move(tokenize)) {}

  std::shared_ptr<Inputs> inputs() {
    check_names();
    const std::size_t size = size_index();
    auto inputs = std::make_shared<Inputs>(Inputs{SizedContract(manifest_, size), size, {}, 0, 0, {}, {}});
    contract_ = &inputs->contract;
    for (const TextKinds& kinds : {kPrompts, kNegative}) pad_texts(kinds);
    inputs->texts = texts();
    inputs->count = count_;
    symbols_["B"] = static_cast<std::int64_t>(count_);
    const std::vector<TensorInfo>& generating = manifest_.graphs.at(Graph::stage).inputs;
    for (const RequestInput& item : contract_->request) {
      const bool given = request_.inputs.count(item.name) > 0;
      // Images and masks that the stage graph does not list are other roles' inputs.
      const auto same = [&](const TensorInfo& listed) { return listed.name == item.name; };
      const bool wanted = given || std::any_of(generating.begin(), generating.end(), same);
      if (is_tensor(item.kind) && (!wanted || (!given && is_made_later(item, *inputs)))) continue;
      inputs->items.push_back(make(item, size));
    }
    for (const TextKinds& kinds : {kPrompts, kNegative}) add_mask_of_ones(*inputs, kinds);
    if (request_.more_smooth) inputs->noise = noise();
    const auto batch = static_cast<std::int64_t>(count_);
    const std::int64_t batch_size = request_.batch_size.value_or(batch);
    if (batch_size < 1) {
      throw RequestError("batch_size " + std::to_string(batch_size) + " is out of range: expected at least 1");
    }
    inputs->batch_size = static_cast<std::size_t>((std::min)(batch_size, batch));
    return inputs;
  }

 private:
  const RequestInput* find(const std::string& name) const {
    for (const RequestInput& item : manifest_.request) {
      if (item.name == name) return &item;
    }
    return nullptr;
  }

  const RequestInput* find(Kind kind) const { return manifest_.input_of_kind(kind); }

  std::string takes() const {
    return "; it takes " + join(manifest_.request, [](const RequestInput& item) { return item.name; });
  }

  [[noreturn]] void refuse_setting(const std::string& name) const {
    throw RequestError(name + ": this bundle has no such input" + takes());
  }

  /// Everything that is given must be an input of the bundle, and be given once.
  void check_names() const {
    if (!request_.class_labels.empty() && find(Kind::label) == nullptr) refuse_setting("class_labels");
    if (!request_.uniforms.empty() && find(Kind::uniform) == nullptr) refuse_setting("uniforms");
    if (request_.more_smooth && find(Kind::smooth_uniform) == nullptr) {
      throw RequestError("more_smooth: this bundle was built without it; build the bundle again");
    }
    for (const auto& [name, value] : settings()) {
      const RequestInput* item = find(name);
      if (item == nullptr || item->kind != Kind::scalar) refuse_setting(name);
      if (request_.scalars.count(name) > 0) {
        throw RequestError(std::string(name) + " is given twice: by itself and in scalars");
      }
    }
    for (const auto& entry : request_.scalars) {
      const RequestInput* item = find(entry.first);
      if (item == nullptr || (item->kind != Kind::scalar && item->kind != Kind::size)) {
        throw RequestError("scalars: this bundle has no input \"" + one_line(entry.first) + "\"" + takes());
      }
    }
    for (const auto& entry : request_.inputs) {
      const RequestInput* item = find(entry.first);
      if (item == nullptr || !is_tensor(item->kind)) {
        throw RequestError("inputs: this bundle has no input \"" + one_line(entry.first) + "\"" + takes());
      }
    }
    for (const auto& entry : request_.texts) {
      const RequestInput* item = find(entry.first);
      if (item == nullptr || (item->kind != Kind::text_features && item->kind != Kind::negative_features)) {
        throw RequestError("texts: this bundle has no features \"" + one_line(entry.first) + "\"" + takes());
      }
      if (request_.inputs.count(entry.first) > 0) {
        throw RequestError(entry.first + " is given twice: in inputs and in texts");
      }
    }
  }

  /// The scalars that are fields of the request, where they are set.
  std::map<std::string, Scalar> settings() const {
    std::map<std::string, Scalar> found;
    if (request_.cfg_scale) found.emplace("cfg_scale", *request_.cfg_scale);
    if (request_.top_k) found.emplace("top_k", *request_.top_k);
    if (request_.top_p) found.emplace("top_p", *request_.top_p);
    if (request_.tau) found.emplace("tau", *request_.tau);
    return found;
  }

  /// The size that is asked for, by area and ratio or by its index.
  std::size_t size_index() const {
    const char* told = request_.area ? "area" : request_.ratio ? "ratio" : nullptr;
    const RequestInput* item = find(Kind::size);
    if (item == nullptr) {
      if (told == nullptr) return 0;
      const Size& size = manifest_.model.image_size;
      throw RequestError(std::string(told) + ": this bundle has one size, " + std::to_string(size.height) + " x " +
                         std::to_string(size.width) + "; leave it out");
    }
    const auto named = request_.scalars.find(item->name);
    if (named == request_.scalars.end()) return choose_size(manifest_.sizes, request_.area, request_.ratio);
    if (told != nullptr) {
      throw RequestError(std::string(told) + ": the size is given twice: by " + told + " and in scalars");
    }
    const auto& values = named->second.values;
    if (values.size() != 1 || values[0] != std::floor(values[0])) {
      throw RequestError(item->name + ": expected an integer");
    }
    const double last = static_cast<double>(manifest_.sizes.size() - 1);
    if (!(values[0] >= 0 && values[0] <= last)) {
      throw RequestError(item->name + " " + general(values[0]) + " is out of range: expected 0 to " + general(last));
    }
    return static_cast<std::size_t>(values[0]);
  }

  /// Put texts of several lengths among the inputs, padded, with their mask.
  void pad_texts(const TextKinds& kinds) {
    const RequestInput *features = find(kinds.features), *mask = find(kinds.mask);
    if (features == nullptr) return;
    const auto given = request_.texts.find(features->name);
    const bool masked = mask != nullptr && request_.inputs.count(mask->name) > 0;
    if (given == request_.texts.end()) {
      if (masked && request_.inputs.count(features->name) == 0) {
        throw RequestError(mask->name + " is given without " + features->name);
      }
      return;
    }
    const std::int64_t width = *features->shape[2].size;
    std::vector<std::vector<float>> texts;
    for (const Tensor& text : given->second) {
      const std::size_t row = static_cast<std::size_t>(width) * sizeof(float), rows = text.bytes.size() / row;
      const std::vector<std::int64_t> expected = {static_cast<std::int64_t>(rows), width};
      if (text.dtype != features->dtype || text.shape != expected || rows == 0 || text.bytes.size() != rows * row) {
        throw RequestError(features->name + "[" + std::to_string(texts.size()) + "]: expected float32 [N, " +
                           std::to_string(width) + "], found " + described(text));
      }
      texts.emplace_back(rows * static_cast<std::size_t>(width));
      std::memcpy(texts.back().data(), text.bytes.data(), text.bytes.size());
    }
    if (texts.empty()) throw RequestError(features->name + ": expected a text for each image, found none");
    std::vector<const std::vector<float>*> rows;
    for (const auto& text : texts) rows.push_back(&text);
    const Padded padded(rows, static_cast<std::size_t>(width));
    const auto images = static_cast<std::int64_t>(rows.size());
    request_.inputs.emplace(features->name, Tensor::of({images, padded.longest, width}, padded.features));
    const auto other = [&](const auto& text) { return text.size() != texts[0].size(); };
    if (std::none_of(texts.begin(), texts.end(), other)) return;
    if (mask == nullptr) {
      throw RequestError(features->name + ": texts differ in length, and this bundle takes no mask");
    }
    if (masked) throw RequestError(mask->name + ": texts of different lengths get a mask of their own; leave it out");
    request_.inputs.emplace(mask->name, Tensor::of({images, padded.longest}, padded.mask));
  }

  /// The prompts and negative texts that are given; finds B.
  std::vector<Texts> texts() {
    const bool guided = request_.negative && !(*request_.negative == Negative(""));  // "" is as unset
    std::optional<std::size_t> images;
    if (const RequestInput* item = find(Kind::label)) {
      if (request_.class_labels.empty()) throw RequestError(item->name + " is empty: expected at least one class");
      require_labels(request_.class_labels, manifest_.model);
      images = request_.class_labels.size();
    }
    if (request_.prompts) require_no_tensors(kPrompts);
    if (guided) require_no_tensors(kNegative);
    const RequestInput* features = find(Kind::text_features);
    if (features != nullptr && request_.inputs.count(features->name) == 0 && !request_.prompts &&
        manifest_.graphs.count(Graph::text_encoder) > 0) {
      throw RequestError("prompts are missing: expected a text for each image");
    }
    std::vector<Texts> found;
    if (request_.prompts) {
      found.push_back(texts_of(kPrompts, *request_.prompts, images));
      images = found.back().index.size();
    }
    count_ = images ? *images : count();
    if (guided) {
      const Negative& negative = *request_.negative;
      const std::vector<std::string> same(count_, negative.texts.empty() ? "" : negative.texts[0]);
      found.push_back(texts_of(kNegative, negative.for_all ? same : negative.texts, count_));
    }
    return found;
  }

  void require_no_tensors(const TextKinds& kinds) const {
    for (const Kind kind : {kinds.features, kinds.mask}) {
      const RequestInput* item = find(kind);
      if (item != nullptr && request_.inputs.count(item->name) > 0) {
        throw RequestError(std::string(kinds.setting) + " and " + item->name + " are both given: leave one out");
      }
    }
  }

  /// Tokenize the texts of a setting; `images` is B, unset where the texts tell it.
  Texts texts_of(const TextKinds& kinds, const std::vector<std::string>& given,
                 std::optional<std::size_t> images) const {
    const std::string setting = kinds.setting;
    const RequestInput *features = find(kinds.features), *mask = find(kinds.mask);
    if (features == nullptr) refuse_setting(setting);
    if (manifest_.graphs.count(Graph::text_encoder) == 0) {
      throw RequestError(setting + ": this bundle has no text encoder; give " + features->name + " in inputs");
    }
    if (!manifest_.tokenizer) {
      throw RequestError(setting + ": this bundle has no tokenizer; give " + features->name + " in inputs");
    }
    if (given.empty() || given.size() != images.value_or(given.size())) {
      throw RequestError(setting + ": expected " +
                         (images ? "a text for each of " + std::to_string(*images) + " images" : "at least one text") +
                         ", found " + std::to_string(given.size()));
    }
    Texts texts{features->name, mask == nullptr ? "" : mask->name, static_cast<std::size_t>(*features->shape[2].size),
                {}, {}, {}};
    std::map<std::string, std::size_t> distinct;
    for (std::size_t number = 0; number < given.size(); ++number) {
      const auto [place, is_new] = distinct.emplace(given[number], distinct.size());
      texts.index.push_back(place->second);
      if (!is_new) continue;
      try {
        texts.token_ids.push_back(tokenize_(given[number]));
      } catch (const RequestError& error) {
        throw RequestError(setting + "[" + std::to_string(number) + "]: " + error.what());
      }
    }
    return texts;
  }

  /// Features and masks of prompts, which the text encoder makes, and masks of features that have none.
  static bool is_made_later(const RequestInput& item, const Inputs& inputs) {
    const auto makes = [&](const Texts& texts) { return texts.features == item.name || texts.mask == item.name; };
    return item.kind == Kind::text_mask || item.kind == Kind::negative_mask ||
           std::any_of(inputs.texts.begin(), inputs.texts.end(), makes);
  }

  Input make(const RequestInput& item, std::size_t size) {
    switch (item.kind) {
      case Kind::label:
        return made(item, rows_of(item, count_), request_.class_labels);
      case Kind::uniform:
        return numbers(item);
      case Kind::smooth_uniform:
        return nothing_smoothed(item);
      case Kind::forced_tokens:
        return tokens(item);
      case Kind::scalar:
        return scalar(item);
      case Kind::size:
        return made(item, {}, std::vector<std::int64_t>{static_cast<std::int64_t>(size)});
      case Kind::negative_features:
        // No negative text.
        if (request_.inputs.count(item.name) == 0) {
          return made(item, {static_cast<std::int64_t>(count_), 0, *item.shape[2].size}, std::vector<float>());
        }
        return features(item);
      case Kind::text_features:
        return features(item);
      case Kind::text_mask:
      case Kind::negative_mask:
        return mask(item);
      default:
        return tensor(item);
    }
  }

  /// Features of the caller's: of no more tokens than the model takes, and numbers that a mask can hide.
  Input features(const RequestInput& item) {
    const Input found = tensor(item);
    if (found.shape[1] > item.max_tokens.value_or(found.shape[1])) {
      throw RequestError(item.name + ": expected texts of at most " + std::to_string(*item.max_tokens) +
                         " tokens, found " + std::to_string(found.shape[1]) + ": shorten them");
    }
    for (std::size_t at = 0; at < found.bytes.size(); at += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, found.bytes.data() + at, sizeof value);
      if (!std::isfinite(value)) {
        throw RequestError(item.name + ": expected finite numbers, found " + general(value));
      }
    }
    return found;
  }

  /// A mask of the caller's: graphs may multiply by it, or compare. Each image has a text.
  Input mask(const RequestInput& item) {
    const Input found = tensor(item);
    for (std::size_t at = 0; at < found.bytes.size(); at += sizeof(std::int64_t)) {
      std::int64_t value = 0;
      std::memcpy(&value, found.bytes.data() + at, sizeof value);
      if (value != 0 && value != 1) {
        throw RequestError(item.name + ": expected 1 (text) or 0 (behind its end), found " + std::to_string(value));
      }
    }
    if (item.kind != Kind::text_mask) return found;
    const std::size_t row = found.bytes.size() / count_;
    for (std::size_t image = 0; image < count_; ++image) {
      const auto begin = found.bytes.begin() + static_cast<std::ptrdiff_t>(image * row);
      if (std::all_of(begin, begin + static_cast<std::ptrdiff_t>(row), [](std::uint8_t byte) { return byte == 0; })) {
        throw RequestError(item.name + "[" + std::to_string(image) + "]: expected at least one 1 (text), found none");
      }
    }
    return found;
  }

  /// The mask that nobody gave, of features that are there.
  void add_mask_of_ones(Inputs& inputs, const TextKinds& kinds) const {
    const RequestInput *features = find(kinds.features), *mask = find(kinds.mask);
    if (features == nullptr || mask == nullptr) return;
    const auto named = [&](const std::string& name) {
      const auto same = [&](const Input& item) { return item.name == name; };
      return std::find_if(inputs.items.begin(), inputs.items.end(), same);
    };
    const auto given = named(features->name);
    if (given == inputs.items.end() || named(mask->name) != inputs.items.end()) return;
    const std::vector<std::int64_t> shape(given->shape.begin(), given->shape.begin() + 2);
    inputs.items.push_back(
        made(*mask, shape, std::vector<std::int64_t>(static_cast<std::size_t>(shape[0] * shape[1]), 1)));
  }

  /// B, where neither labels nor prompts tell it: that of the first input that is given with a row for each image; or
  /// else 1.
  std::size_t count() const {
    for (const RequestInput& item : contract_->request) {
      const auto row = static_cast<std::size_t>(item.row_values());
      const auto given = request_.inputs.find(item.name);
      if (item.kind == Kind::uniform && !request_.uniforms.empty()) return rows(request_.uniforms.size(), row);
      if (item.kind == Kind::forced_tokens && !request_.forced_tokens.empty()) {
        return rows(request_.forced_tokens.size(), row);
      }
      if (item.per_image() && given != request_.inputs.end()) {
        const auto& shape = given->second.shape;
        if (shape.empty() || shape[0] < 1) {
          throw RequestError(item.name + ": expected a row for each image, found " + given->second.dtype + " " +
                             listed(shape));
        }
        return static_cast<std::size_t>(shape[0]);
      }
    }
    return 1;
  }

  /// How many rows so many values are; at least 1, so that a wrong number is refused with the input's own words.
  static std::size_t rows(std::size_t values, std::size_t row) { return (std::max)(values / row, std::size_t{1}); }

  Input numbers(const RequestInput& item) const {
    const std::vector<std::int64_t> shape = rows_of(item, count_);
    const auto length = static_cast<std::size_t>(item.row_values());
    std::vector<float> values = request_.uniforms;
    if (values.empty()) {
      check_first_image();
      values = uniforms_of_images(request_.seed, request_.first_image, count_, length, Use::sampling);
    } else if (values.size() != count_ * length) {
      throw RequestError(item.name + ": expected floats " + listed(shape) + ", found " + std::to_string(values.size()));
    }
    for (const float u : values) {
      if (!(u >= 0 && u < 1)) {
        throw RequestError(item.name + ": expected numbers of at least 0 and below 1, found " + general(u));
      }
    }
    return made(item, shape, values);
  }

  void check_first_image() const {
    if (request_.first_image > (std::numeric_limits<std::uint64_t>::max)() - (count_ - 1)) {
      throw RequestError("first_image " + std::to_string(request_.first_image) +
                         " is out of range: expected 0 to 2^64 - " + std::to_string(count_));
    }
  }

  /// [B, 0, V].
  Input nothing_smoothed(const RequestInput& item) const {
    return made(item, {static_cast<std::int64_t>(count_), 0, *item.shape[2].size}, std::vector<float>());
  }

  Noise noise() const {
    check_first_image();
    const auto smooths = [](const RequestInput& item) { return item.kind == Kind::smooth_uniform; };
    const RequestInput& item = *std::find_if(contract_->request.begin(), contract_->request.end(), smooths);
    return {item.name, request_.seed, request_.first_image, {*item.shape[1].size, *item.shape[2].size}};
  }

  Input tokens(const RequestInput& item) const {
    const std::vector<std::int64_t> shape = rows_of(item, count_);
    const std::size_t wanted = count_ * static_cast<std::size_t>(item.row_values());
    std::vector<std::int64_t> values = request_.forced_tokens;
    if (values.empty()) {
      values.assign(wanted, -1);
    } else if (values.size() != wanted) {
      throw RequestError(item.name + ": expected integers " + listed(shape) + ", found " +
                         std::to_string(values.size()));
    }
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    if (*least < -1 || *most >= manifest_.model.vocab_size) {
      throw RequestError(item.name + ": expected -1 (sample) to " + std::to_string(manifest_.model.vocab_size - 1) +
                         ", found " + std::to_string(*least) + " to " + std::to_string(*most));
    }
    return made(item, shape, values);
  }

  /// One value, or one for each stage; a single one stands for all stages.
  Input scalar(const RequestInput& item) const {
    const auto fields = settings();
    const auto field = fields.find(item.name), named = request_.scalars.find(item.name);
    std::vector<double> values = field != fields.end()             ? field->second.values
                                 : named != request_.scalars.end() ? named->second.values
                                                                   : item.defaults;
    const auto stages = static_cast<std::size_t>(item.row_values());
    if (values.size() != 1 && values.size() != stages) {
      throw RequestError(item.name + ": expected one value" +
                         (item.shape.empty() ? "" : ", or " + std::to_string(stages) + ": one for each stage") +
                         ", found " + std::to_string(values.size()));
    }
    for (const double value : values) {
      if (!allows(item, value)) {
        throw RequestError(item.name + " " + general(value) + " is out of range: expected " + limits(item));
      }
      if (item.dtype == "int64" && value != std::floor(value)) {
        throw RequestError(item.name + " " + general(value) + ": expected an integer");
      }
    }
    values.resize(stages, values[0]);
    std::vector<std::int64_t> shape;
    if (!item.shape.empty()) shape.push_back(static_cast<std::int64_t>(stages));
    if (item.dtype == "int64") return made(item, shape, std::vector<std::int64_t>(values.begin(), values.end()));
    std::vector<float> floats;
    for (const double value : values) floats.push_back(static_cast<float>(value));
    return made(item, shape, floats);
  }

  /// A tensor of the caller's; symbols_ learns the sizes that no input before it decided.
  Input tensor(const RequestInput& item) {
    const std::string wanted = item.dtype + " [" +
                               join(item.shape,
                                    [&](const Dimension& dimension) {
                                      const auto known = symbols_.find(dimension.symbol);
                                      return dimension.size            ? std::to_string(*dimension.size)
                                             : known == symbols_.end() ? dimension.symbol
                                                                       : std::to_string(known->second);
                                    }) +
                               "]";
    const auto given = request_.inputs.find(item.name);
    if (given == request_.inputs.end()) {
      throw RequestError(item.name + " is missing: expected " + wanted + "; give it in inputs");
    }
    const Tensor& value = given->second;
    bool fits = value.dtype == item.dtype && value.shape.size() == item.shape.size();
    std::size_t bytes = size_of_dtype(item.dtype);
    for (std::size_t i = 0; fits && i < value.shape.size(); ++i) {
      const std::int64_t found = value.shape[i];
      const Dimension& dimension = item.shape[i];
      fits = found > 0 &&
             found == (dimension.size ? *dimension.size : symbols_.emplace(dimension.symbol, found).first->second) &&
             bytes <= value.bytes.size() / static_cast<std::size_t>(found);
      if (fits) bytes *= static_cast<std::size_t>(found);
    }
    if (!fits || bytes != value.bytes.size()) {
      throw RequestError(item.name + ": expected " + wanted + ", found " + described(value));
    }
    return {item.name, element_type(item.dtype), value.shape, item.per_image(), value.bytes};
  }

  static std::string described(const Tensor& value) {
    return one_line(value.dtype) + " " + listed(value.shape) + " of " + std::to_string(value.bytes.size()) + " bytes";
  }

  template <typename T>
  static Input made(const RequestInput& item, const std::vector<std::int64_t>& shape, const std::vector<T>& values) {
    return {item.name, element_type(item.dtype), shape, item.per_image(), bytes_of(values)};
  }

  const Manifest& manifest_;
  Request request_;
  Tokenize tokenize_;
  const SizedContract* contract_ = nullptr;
  std::size_t count_ = 0;  // B
  Symbols symbols_;
};

inline std::shared_ptr<Inputs> Engine::check(const Request& request) {
  const auto tokenize = [this](const std::string& prompt) { return token_ids(prompt); };
  return Checker(bundle_.manifest(), request, tokenize).inputs();
}

inline std::vector<const OrtValue*> pointers(const std::vector<Ort::Value>& values) {
  return std::vector<const OrtValue*>(values.begin(), values.end());
}

// --------------------------------------------------------------------------------------------------------- editing
// In whole numbers, or in floats in a stated order, so that other languages find the same tokens and bytes.

/// Where a stage has no more tokens than this, all are kept (VAR's notebook of zero-shot editing).
constexpr std::int64_t kFewTokens = 3;

inline std::string listed_uint8(const Images& images) {
  return "uint8 [" + std::to_string(images.count) + ", " + std::to_string(images.height) + ", " +
         std::to_string(images.width) + ", 3]";
}

/// The model that makes pictures of that size; the end where there is none.
inline std::vector<ModelInfo>::const_iterator find_size(const std::vector<ModelInfo>& models, const Images& images) {
  const Size size = {static_cast<std::int64_t>(images.height), static_cast<std::int64_t>(images.width)};
  return std::find_if(models.begin(), models.end(), [&](const ModelInfo& model) { return model.image_size == size; });
}

/// The shapes that pictures may have: one, or one of each size.
inline std::string listed_sizes(const std::vector<ModelInfo>& models, const std::string& batch) {
  constexpr std::size_t most = 8;
  std::string text;
  for (std::size_t i = 0; i < (std::min)(models.size(), most); ++i) {
    const Size& size = models[i].image_size;
    text += (i == 0 ? "[" : " or [") + batch + std::to_string(size.height) + ", " + std::to_string(size.width) + ", 3]";
  }
  return models.size() <= most ? text : text + " or " + std::to_string(models.size() - most) + " others";
}

/// The index of a picture's size, which is put into the request, too; 0 where the bundle has one. Throws RequestError:
/// the request says one, or the picture is of none.
inline std::size_t size_of_edit(const Images& image, const Manifest& manifest, const std::vector<ModelInfo>& models,
                                Request& request) {
  const RequestInput* item = manifest.input_of_kind(Kind::size);
  if (item == nullptr) return 0;
  const std::string told = request.area                              ? "area"
                           : request.ratio                           ? "ratio"
                           : request.scalars.count(item->name) > 0 ? item->name
                                                                     : "";
  if (!told.empty()) throw RequestError(told + ": an edit has the size of its picture; leave it out");
  const auto place = find_size(models, image);
  if (place == models.end()) {
    throw RequestError("image: expected uint8 " + listed_sizes(models, "") + ", found uint8 [" +
                       std::to_string(image.height) + ", " + std::to_string(image.width) + ", 3]");
  }
  const auto index = place - models.begin();
  request.scalars.emplace(item->name, static_cast<double>(index));
  return static_cast<std::size_t>(index);
}

/// The pixels of one position of the latent. Throws RequestError: the picture is no multiple of the latent.
inline Size pixels_of_position(const Size& image, const Size& latent) {
  if (image.height % latent.height != 0 || image.width % latent.width != 0) {
    throw RequestError("pictures of " + std::to_string(image.height) + " x " + std::to_string(image.width) +
                       " can't be edited: they are no multiple of " + std::to_string(latent.height) + " x " +
                       std::to_string(latent.width));
  }
  return {image.height / latent.height, image.width / latent.width};
}

inline Mask empty_mask(std::size_t height, std::size_t width) {
  return {height, width, std::vector<std::uint8_t>(height * width)};
}

/// Positions of the latent that are made anew: those of which any pixel is.
inline Mask latent_mask(const Mask& mask, const Size& latent) {
  const Size cell =
      pixels_of_position({static_cast<std::int64_t>(mask.height), static_cast<std::int64_t>(mask.width)}, latent);
  const auto lines = static_cast<std::size_t>(cell.height), columns = static_cast<std::size_t>(cell.width);
  Mask found = empty_mask(static_cast<std::size_t>(latent.height), static_cast<std::size_t>(latent.width));
  for (std::size_t i = 0; i < mask.pixels.size(); ++i) {
    const std::size_t y = i / mask.width / lines, x = i % mask.width / columns;
    if (mask.pixels[i] != 0) found.pixels[y * found.width + x] = 1;
  }
  return found;
}

/// Where a value of a resized row comes from: two of the old ones, and the share of the second.
struct Place {
  std::size_t first;
  std::size_t second;
  double share;
};

/// Bilinear between the centres of pixels. Places and their step are rounded to float32, as the official code's are: a
/// place that is meant to be a half decides by that what is kept.
inline std::vector<Place> places(std::size_t from, std::size_t to) {
  const double step = static_cast<float>(from) / static_cast<float>(to);
  std::vector<Place> found;
  for (std::size_t i = 0; i < to; ++i) {
    const double exact = step * (static_cast<double>(i) + 0.5) - 0.5;
    const float at = (std::max)(static_cast<float>(exact), 0.0f);
    const std::size_t first = (std::min)(static_cast<std::size_t>(at), from - 1);
    found.push_back({first, (std::min)(first + 1, from - 1), at - static_cast<float>(first)});
  }
  return found;
}

/// (1 - share) * a + share * b, rounded after each operation: no compiler may make two of them one.
inline double between(double a, double b, double share) {
  volatile double of_a = (1 - share) * a, of_b = share * b;
  return of_a + of_b;
}

/// Which tokens of all stages are kept, [L], where positions of the latent are made anew: those that are kept by more
/// than a half once the positions are resized to their stage.
inline std::vector<bool> kept_tokens(const Mask& latent, const std::vector<Size>& stages) {
  std::vector<bool> kept;
  for (const Size& stage : stages) {
    if (stage.height * stage.width <= kFewTokens) {
      kept.resize(kept.size() + static_cast<std::size_t>(stage.height * stage.width), true);
      continue;
    }
    const auto rows = places(latent.height, static_cast<std::size_t>(stage.height));
    const auto columns = places(latent.width, static_cast<std::size_t>(stage.width));
    const auto share_of = [&](std::size_t y, const Place& x) {
      const std::uint8_t* row = latent.pixels.data() + y * latent.width;
      return between(row[x.first] == 0, row[x.second] == 0, x.share);
    };
    for (const Place& y : rows) {
      for (const Place& x : columns) {
        kept.push_back(between(share_of(y.first, x), share_of(y.second, x), y.share) > 0.5);
      }
    }
  }
  return kept;
}

/// The king's steps from each pixel of a mask to the nearest outside of it, 0 there, and at most `limit`; beyond the
/// picture's border there is no outside.
inline std::vector<std::int64_t> depths(const Mask& mask, std::int64_t limit) {
  const auto height = static_cast<std::int64_t>(mask.height), width = static_cast<std::int64_t>(mask.width);
  const std::int64_t count = height * width;
  std::vector<std::int64_t> depth;
  for (const std::uint8_t pixel : mask.pixels) depth.push_back(pixel != 0 ? limit : 0);
  // Neighbours of which a pass already knows the steps that come from there: first from the top, then from the bottom.
  for (const std::int64_t back : {-1, 1}) {
    const std::int64_t neighbours[4][2] = {{back, -1}, {back, 0}, {back, 1}, {0, back}};
    for (std::int64_t k = 0; k < count; ++k) {
      const std::int64_t i = back < 0 ? k : count - 1 - k, y = i / width, x = i % width;
      std::int64_t& own = depth[static_cast<std::size_t>(i)];
      for (const auto& [dy, dx] : neighbours) {
        const bool inside = y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width;
        if (inside) own = (std::min)(own, depth[static_cast<std::size_t>(i + dy * width + dx)] + 1);
      }
    }
  }
  return depth;
}

/// The new pictures within the mask, the old one elsewhere, and a seam of `feather` pixels within the mask: a pixel d
/// steps inside has the share min(d, feather + 1) / (feather + 1) of the new picture, rounded half up.
inline void blend(const Images& old, Images& made, const Mask& mask, std::int64_t feather) {
  const std::int64_t steps = feather + 1;
  const auto depth = depths(mask, steps);
  const std::size_t bytes = made.bytes_per_image();
  for (std::size_t i = 0; i < made.pixels.size(); ++i) {
    const std::int64_t share = depth[i % bytes / 3];
    const std::int64_t sum = old.pixels[i % bytes] * (steps - share) * 2 + made.pixels[i] * share * 2 + steps;
    made.pixels[i] = static_cast<std::uint8_t>(sum / (2 * steps));
  }
}

inline void require_mask(const Mask& mask, const Size& size) {
  const auto height = static_cast<std::size_t>(size.height), width = static_cast<std::size_t>(size.width);
  if (mask.height != height || mask.width != width || mask.pixels.size() != height * width) {
    throw RequestError("mask: expected bool [" + std::to_string(height) + ", " + std::to_string(width) +
                       "], found bool [" + std::to_string(mask.height) + ", " + std::to_string(mask.width) + "] of " +
                       std::to_string(mask.pixels.size()) + " bytes");
  }
  if (std::all_of(mask.pixels.begin(), mask.pixels.end(), [](std::uint8_t pixel) { return pixel == 0; })) {
    throw RequestError("mask: nothing is marked, so that there is nothing to make anew");
  }
}

[[noreturn]] inline void throw_cancelled(std::size_t done, std::size_t num_stages) {
  throw Cancelled("cancelled after " + std::to_string(done) + " of " + std::to_string(num_stages) + " stages");
}

/// A class's name as it is compared: ASCII letters in lower case, "_" as a space, one space between words.
inline std::string folded(std::string_view name) {
  std::string out;
  for (char c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '_' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f') c = ' ';
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

/// The synonyms that a class's name lists, folded.
inline std::vector<std::string> synonyms(const std::string& name) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = (std::min)(name.find(',', begin), name.size());
    parts.push_back(folded(std::string_view(name).substr(begin, end - begin)));
    begin = end + 1;
  }
  return parts;
}

}  // namespace detail

// -------------------------------------------------------------------------------------------------- random numbers

inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

inline std::vector<float> uniforms(std::uint64_t seed, std::uint64_t image, std::size_t length, Use use) {
  const std::array<std::uint32_t, 2> key = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  std::vector<float> numbers(length);
  for (std::size_t t = 0; t < length; t += 4) {
    const auto words = philox4x32({static_cast<std::uint32_t>(t / 4), static_cast<std::uint32_t>(image),
                                   static_cast<std::uint32_t>(image >> 32), static_cast<std::uint32_t>(use)},
                                  key);
    for (std::size_t i = t; i < (std::min)(t + 4, length); ++i) {
      numbers[i] = static_cast<float>(words[i - t] >> 8) * (1.0f / 16777216.0f);
    }
  }
  return numbers;
}

// -------------------------------------------------------------------------------------------- manifest and bundle

inline std::int64_t ModelInfo::num_tokens() const {
  std::int64_t total = 0;
  for (const Size& size : stage_sizes) total += size.height * size.width;
  return total;
}

inline ModelInfo ModelInfo::of_size(const SizeInfo& size) const {
  ModelInfo model = *this;
  model.stage_sizes = size.stage_sizes;
  model.image_size = size.image_size;
  model.latent_size = size.latent_size;
  return model;
}

inline std::int64_t RequestInput::row_values() const {
  std::int64_t product = 1;
  for (const Dimension& dimension : shape) product *= dimension.size.value_or(1);
  return product;
}

inline std::vector<ModelInfo> Manifest::models() const {
  std::vector<ModelInfo> found;
  for (const SizeInfo& size : sizes) found.push_back(model.of_size(size));
  return found.empty() ? std::vector<ModelInfo>{model} : found;
}

inline const RequestInput* Manifest::input_of_kind(Kind kind) const {
  const auto place = std::find_if(request.begin(), request.end(), [&](const auto& item) { return item.kind == kind; });
  return place == request.end() ? nullptr : &*place;
}

template <typename T>
Tensor Tensor::of(std::vector<std::int64_t> shape, const std::vector<T>& values) {
  constexpr const char* dtype = std::is_same_v<T, float>          ? "float32"
                                : std::is_same_v<T, std::int64_t> ? "int64"
                                : std::is_same_v<T, std::int32_t> ? "int32"
                                : std::is_same_v<T, std::int8_t>  ? "int8"
                                                                  : "uint8";
  static_assert(std::is_same_v<T, float> || std::is_integral_v<T>, "float or an integer of 8, 32 or 64 bits");
  static_assert(dtype[0] != 'u' || std::is_same_v<T, std::uint8_t>, "float or an integer of 8, 32 or 64 bits");
  return {dtype, std::move(shape), detail::bytes_of(values)};
}

inline Manifest Manifest::parse(std::string_view text, const std::string& where) {
  detail::Json document;
  try {
    document = detail::JsonReader::read(text);
  } catch (const detail::JsonError& error) {
    throw BundleError(where + ": not a JSON document (" + error.what() + "); the file is damaged or not a manifest");
  }
  const detail::Fields root(document, where, "");
  const std::int64_t schema = root.integer("schema", 1);
  if (schema > detail::kSchema) throw BundleError(detail::newer_schema(where, schema, document));

  Manifest manifest;
  const detail::Fields files = root.fields("files");
  for (const std::string& name : files.value().keys) {
    if (!detail::is_plain_name(name)) {
      root.refuse("files", "plain file names inside the bundle's folder", detail::shown(name));
    }
    manifest.files[name] = detail::read_file_info(files.fields(name));
  }
  const detail::Fields model = root.fields("model"), graphs = root.fields("graphs"), verify = root.fields("verify");
  if (schema == 1) {
    manifest.family = "var";
    manifest.model = detail::schema_1::read_model(model);
    manifest.request = detail::schema_1::request(manifest.model);
    manifest.graphs = detail::schema_1::read_graphs(graphs, manifest.request, manifest.files);
    detail::schema_1::check_verify(verify, manifest.model);
  } else {
    manifest.family = root.text("family");
    manifest.model = detail::read_model(model);
    manifest.sizes = detail::read_sizes(root, manifest.model);
    const auto each = detail::at_sizes(manifest.model, manifest.sizes);
    manifest.request = detail::read_request(root, each);
    manifest.graphs = detail::read_graphs(graphs, manifest.request, each, manifest.files);
    manifest.tokenizer = detail::read_tokenizer(root, manifest.request, manifest.files);
    detail::check_verify(verify, manifest.request, each, manifest.graphs.count(Graph::text_encoder) > 0);
  }
  const detail::Json* names = document.find("class_names");
  if (names != nullptr && !names->is(detail::Json::Type::null)) {
    if (names->is(detail::Json::Type::array) && names->items.size() > detail::kMaxClassNames) {
      root.refuse("class_names", "at most " + std::to_string(detail::kMaxClassNames) + " names",
                  std::to_string(names->items.size()));
    }
    manifest.class_names = root.items("class_names", [&](const std::string& key, const detail::Json& item) {
      std::string name = root.as_text(key, item);
      if (name.size() > detail::kMaxClassName) {
        root.refuse(key, "a name of at most " + std::to_string(detail::kMaxClassName) + " bytes", detail::shown(name));
      }
      return name;
    });
    if (static_cast<std::int64_t>(manifest.class_names.size()) != manifest.model.num_classes) {
      root.refuse("class_names", std::to_string(manifest.model.num_classes) + " names, as model.num_classes says",
                  std::to_string(manifest.class_names.size()));
    }
  }
  manifest.name = root.text("name");
  manifest.recipe = root.fields("recipe").text("name");
  root.fields("versions");
  manifest.licence = root.text("licence");
  return manifest;
}

inline Bundle Bundle::open(const std::filesystem::path& folder, bool verify_hashes) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw BundleError(detail::utf8(folder) + ": no such folder; expected a bundle made by `nextscale build`");
  }
  const std::filesystem::path path = folder / "manifest.json";
  const std::string where = detail::utf8(path);
  if (!std::filesystem::exists(path, ignored)) {
    throw BundleError(where + ": the file is missing; expected a bundle made by `nextscale build`");
  }
  if (!std::filesystem::is_regular_file(path, ignored)) {  // a named pipe would be waited for
    throw BundleError(where + ": not a regular file; give the path of one");
  }
  const auto size = std::filesystem::file_size(path, ignored);
  if (!ignored && size > detail::kManifestLimit) {
    throw BundleError(where + ": larger than " + std::to_string(detail::kManifestLimit) +
                      " bytes, which no manifest is");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(ignored ? 0 : static_cast<std::size_t>(size), '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (ignored || !file) throw BundleError(where + ": cannot be read");

  Bundle bundle(folder, Manifest::parse(text, where));
  for (const auto& [name, info] : bundle.manifest_.files) bundle.check_file(name, info);
  if (verify_hashes) bundle.verify_hashes();
  return bundle;
}

inline void Bundle::check_file(const std::string& name, const FileInfo& info) const {
  const std::filesystem::path file = path_ / detail::path_of_utf8(name);
  const std::string where = detail::utf8(file);
  std::error_code unreadable;
  const bool linked = is_link_out(name), there = std::filesystem::is_regular_file(file, unreadable);
  if (name == detail::kCard && !(linked && there)) return;  // for people, unless a link brings something in
  if (!there) throw BundleError(where + detail::kMissing);
  const auto size = std::filesystem::file_size(file, unreadable);
  if (unreadable || size != info.size) {
    throw BundleError(where + ": " + (unreadable ? std::string("unknown") : std::to_string(size)) +
                      " bytes, but the manifest says " + std::to_string(info.size) +
                      ": the file was truncated or changed; copy or build the bundle again");
  }
  if (linked && is_changed(name, info)) {
    throw BundleError(where +
                      ": a link out of the bundle's folder, to another content than the manifest's (sha256 differs); "
                      "download or copy the bundle again");
  }
}

inline bool Bundle::is_link_out(const std::string& name) const {
  std::error_code unresolved;
  const auto target = std::filesystem::weakly_canonical(path_ / detail::path_of_utf8(name), unresolved);
  return unresolved || target.parent_path() != std::filesystem::canonical(path_, unresolved) || unresolved;
}

inline std::vector<std::string> Bundle::linked_data() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : manifest_.files) {
    const auto is_graph = [&name = name](const auto& graph) {
      return graph.second.file == name || (graph.second.fused && graph.second.fused->file == name);
    };
    const bool graph = std::any_of(manifest_.graphs.begin(), manifest_.graphs.end(), is_graph);
    const bool tokenizer = manifest_.tokenizer && manifest_.tokenizer->file == name;
    const bool text = name == detail::kCard || name == detail::kWords;
    if (!text && !graph && !tokenizer && is_link_out(name)) names.push_back(name);
  }
  return names;
}

inline std::filesystem::path Bundle::graph_path(Graph graph, Variant variant) const {
  const GraphInfo& info = manifest_.graphs.at(graph);
  return path_ / detail::path_of_utf8(variant == Variant::fused && info.fused ? info.fused->file : info.file);
}

inline void Bundle::verify_hashes() const {
  for (const auto& [name, info] : manifest_.files) {
    const std::filesystem::path path = path_ / detail::path_of_utf8(name);
    std::error_code unreadable;
    if (!std::filesystem::is_regular_file(path, unreadable)) throw BundleError(detail::utf8(path) + detail::kMissing);
    if (is_changed(name, info)) {
      throw BundleError(
          detail::utf8(path) +
          ": the content was changed (sha256 differs from the manifest's); copy or build the bundle again");
    }
  }
}

inline bool Bundle::is_changed(const std::string& name, const FileInfo& info) const {
  const std::filesystem::path path = path_ / detail::path_of_utf8(name);
  std::vector<char> chunk(std::size_t{1} << 20);
  std::ifstream file(path, std::ios::binary);
  detail::Sha256 hash;
  while (file) {
    file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    hash.update(chunk.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) throw BundleError(detail::utf8(path) + ": cannot be read");
  return hash.hexadecimal() != info.sha256;
}

inline std::int64_t Bundle::class_label(std::string_view name) const {
  const std::string wanted = detail::folded(name);
  const std::string quoted = "\"" + detail::one_line(name) + "\"";
  const ModelInfo& model = manifest_.model;
  if (!wanted.empty() && wanted.find_first_not_of("0123456789") == std::string::npos) {
    detail::Json number;
    number.text = wanted;
    const auto label = number.as_int64();
    if (!label || *label > model.num_classes) {
      throw ClassLabelError("class " + (wanted.size() <= 20 ? wanted : wanted.substr(0, 20) + "...") +
                            " is out of range: expected " + detail::label_range(model));
    }
    return *label;
  }
  const auto& names = manifest_.class_names;
  if (names.empty() && wanted != detail::kNullClass) {
    throw ClassLabelError("class " + quoted + ": this bundle has no class names; give an id from 0 to " +
                          std::to_string(model.num_classes - 1));
  }
  std::vector<std::size_t> whole, parts, near;
  for (std::size_t label = 0; label < names.size(); ++label) {
    const std::string known = detail::folded(names[label]);
    if (known == wanted) whole.push_back(label);
    if (known.find(wanted) == std::string::npos) continue;
    const auto alternatives = detail::synonyms(names[label]);
    if (std::count(alternatives.begin(), alternatives.end(), wanted) > 0) parts.push_back(label);
    if (!wanted.empty()) near.push_back(label);
  }
  const auto& found = whole.empty() ? parts : whole;
  if (found.size() == 1) return static_cast<std::int64_t>(found[0]);
  const auto listed = [&](std::vector<std::size_t> labels) {
    labels.resize((std::min)(labels.size(), std::size_t{8}));
    return detail::join(labels, [&](std::size_t label) { return std::to_string(label) + " (" + names[label] + ")"; });
  };
  if (!found.empty()) {
    throw ClassLabelError("class " + quoted + " is the name of " + std::to_string(found.size()) +
                          " classes: give an id of " + listed(found));
  }
  if (wanted == detail::kNullClass) return model.num_classes;
  near.resize((std::min)(near.size(), std::size_t{8}));
  const std::string nearest =
      detail::join(near, [&](std::size_t label) { return names[label] + " (" + std::to_string(label) + ")"; });
  throw ClassLabelError("no class is named " + quoted + "; " +
                        (nearest.empty() ? "the manifest's class_names lists the names" : "nearest: " + nearest));
}

inline std::string Bundle::class_name(std::int64_t label) const {
  const auto& names = manifest_.class_names;
  const bool known = label >= 0 && label < static_cast<std::int64_t>(names.size());
  return known ? names[static_cast<std::size_t>(label)] : std::to_string(label);
}

// ------------------------------------------------------------------------------------------------------ generation

inline Images StageResult::preview() const { return engine_->decode(*f_hat_, count, image_size_); }

inline Stream::Stream(std::shared_ptr<detail::Engine> engine, std::shared_ptr<const detail::Inputs> inputs,
                      std::size_t first, std::size_t count)
    : at_end_(std::make_shared<detail::ReturnMemory>(engine->options())),
      engine_(std::move(engine)),
      inputs_(std::move(inputs)),
      first_(first),
      count_(count),
      feeds_(std::make_unique<detail::Feeds>(detail::make_feeds(*inputs_, engine_->info(Graph::stage), first, count))) {
  for (const StateInfo& item : inputs_->contract.state) {
    state_.push_back(detail::Engine::initial_state(item, count));
  }
}

inline std::optional<StageResult> Stream::next() {
  const auto& [model, request, state] = inputs_->contract;
  if (stage_ == model.num_stages()) return std::nullopt;
  const auto index = static_cast<std::int64_t>(stage_);
  const Ort::Value stage = detail::shared_tensor(&index, sizeof index, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);

  auto input_names = feeds_->names;
  auto inputs = detail::pointers(feeds_->values);
  std::vector<const char*> output_names = {"tokens"};
  input_names.push_back("stage");
  inputs.push_back(stage);
  for (std::size_t i = 0; i < state.size(); ++i) {
    input_names.push_back(state[i].input.c_str());
    inputs.push_back(*state_[i]);
    output_names.push_back(state[i].output.c_str());
  }
  auto outputs = engine_->run(Graph::stage, input_names, inputs, output_names);

  StageResult result;
  result.stage = stage_;
  result.num_stages = model.num_stages();
  result.first = first_;
  result.count = count_;
  auto shape = detail::rows_of(inputs_->contract.forced_tokens(), count_);
  shape[1] = model.stage_sizes[stage_].height * model.stage_sizes[stage_].width;
  result.tokens = engine_->values<std::int64_t>(Graph::stage, "tokens", outputs[0], shape);
  result.engine_ = engine_;
  result.image_size_ = model.image_size;
  for (std::size_t i = 0; i < state.size(); ++i) {
    state_[i] = std::make_shared<Ort::Value>(std::move(outputs[i + 1]));
    if (state[i].input == "f_hat") result.f_hat_ = state_[i];
  }
  ++stage_;
  return result;
}

inline Generator::Generator(const std::filesystem::path& bundle, const SessionOptions& options)
    : Generator(Bundle::open(bundle), options) {}

inline Generator::Generator(Bundle bundle, const SessionOptions& options)
    : engine_(std::make_shared<detail::Engine>(std::move(bundle), options)) {}

inline const Bundle& Generator::bundle() const { return engine_->bundle(); }

inline const Choice& Generator::ops() const { return engine_->ops(); }

inline void Generator::load(std::initializer_list<Graph> graphs) const {
  for (const Graph graph : graphs) engine_->session(graph);
}

inline Generation Generator::generate(const Request& request, const OnStage& on_stage,
                                      const std::atomic<bool>* cancel) const {
  const detail::ReturnMemory at_end(engine_->options());
  const auto inputs = engine_->check(request);
  engine_->encode_texts(*inputs);
  return run(inputs, on_stage, cancel);
}

inline Generation Generator::run(const std::shared_ptr<const detail::Inputs>& inputs, const OnStage& on_stage,
                                 const std::atomic<bool>* cancel) const {
  const ModelInfo& model = inputs->contract.model;
  const std::size_t total = inputs->count;
  const RequestInput& tokens_input = inputs->contract.forced_tokens();
  const auto length = static_cast<std::size_t>(tokens_input.row_values());
  const bool at_once = !on_stage && cancel == nullptr && engine_->has(Graph::generate);

  Generation result;
  result.images = {
      total, static_cast<std::size_t>(model.image_size.height), static_cast<std::size_t>(model.image_size.width), {}};
  result.token_maps.resize(total * length);
  // Memory is taken once a picture has shown that the model's image_size is no lie.
  const auto append_images = [&result](const std::vector<std::uint8_t>& pixels) {
    result.images.pixels.reserve(result.images.count * result.images.bytes_per_image());
    result.images.pixels.insert(result.images.pixels.end(), pixels.begin(), pixels.end());
  };
  for (std::size_t first = 0; first < total; first += inputs->batch_size) {
    const std::size_t count = (std::min)(inputs->batch_size, total - first);
    if (at_once) {
      const auto feeds = detail::make_feeds(*inputs, engine_->info(Graph::generate), first, count);
      const auto outputs =
          engine_->run(Graph::generate, feeds.names, detail::pointers(feeds.values), {"images", "token_maps"});
      append_images(engine_->values<std::uint8_t>(
          Graph::generate, "images", outputs[0],
          {static_cast<std::int64_t>(count), model.image_size.height, model.image_size.width, 3}));
      const auto tokens = engine_->values<std::int64_t>(Graph::generate, "token_maps", outputs[1],
                                                        detail::rows_of(tokens_input, count));
      std::copy(tokens.begin(), tokens.end(), result.token_maps.begin() + static_cast<std::ptrdiff_t>(first * length));
      continue;
    }
    Stream stream(engine_, inputs, first, count);
    std::optional<StageResult> last;
    std::size_t done = 0;  // values of an image's token map
    for (std::size_t stage = 0; stage < model.num_stages(); ++stage) {
      if (cancel != nullptr && cancel->load()) detail::throw_cancelled(stage, model.num_stages());
      last = stream.next();
      const std::size_t taken = last->tokens.size() / count;
      for (std::size_t i = 0; i < count; ++i) {
        std::copy_n(last->tokens.begin() + static_cast<std::ptrdiff_t>(i * taken), taken,
                    result.token_maps.begin() + static_cast<std::ptrdiff_t>((first + i) * length + done));
      }
      done += taken;
      if (on_stage && !on_stage(*last)) detail::throw_cancelled(stage + 1, model.num_stages());
    }
    append_images(last->preview().pixels);
  }
  return result;
}

inline Stream Generator::stream(const Request& request) const {
  const auto inputs = engine_->check(request);
  engine_->encode_texts(*inputs);
  return Stream(engine_, inputs, 0, inputs->count);
}

// --------------------------------------------------------------------------------------------------------- editing

inline Mask Mask::box(const ModelInfo& model, const std::array<double, 4>& ends, bool outside) {
  const auto [y0, x0, y1, x1] = ends;
  const Size latent = model.latent_size;
  std::ostringstream words;
  words.imbue(std::locale::classic());
  words << "box " << y0 << ',' << x0 << ',' << y1 << ',' << x1;
  if (!(0 <= y0 && y0 < y1 && y1 <= 1 && 0 <= x0 && x0 < x1 && x1 <= 1)) {
    throw RequestError(words.str() +
                       ": expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1, shares of the picture's "
                       "height and width");
  }
  const auto end = [](double share, std::int64_t size) {
    return static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(size)));
  };
  const std::int64_t top = end(y0, latent.height), bottom = end(y1, latent.height);
  const std::int64_t left = end(x0, latent.width), right = end(x1, latent.width);
  if (top == bottom || left == right) throw RequestError(words.str() + ": less than a token; give a larger one");
  const Size cell = detail::pixels_of_position(model.image_size, latent);
  Mask mask = detail::empty_mask(static_cast<std::size_t>(model.image_size.height),
                                 static_cast<std::size_t>(model.image_size.width));
  for (std::size_t i = 0; i < mask.pixels.size(); ++i) {
    const std::int64_t y = static_cast<std::int64_t>(i / mask.width) / cell.height;
    const std::int64_t x = static_cast<std::int64_t>(i % mask.width) / cell.width;
    mask.pixels[i] = (top <= y && y < bottom && left <= x && x < right) != outside;
  }
  return mask;
}

inline std::vector<std::int64_t> Generator::encode(const Images& images) const {
  const detail::ReturnMemory at_end(engine_->options());
  if (!engine_->has(Graph::encoder)) {
    throw BundleError(detail::utf8(bundle().path()) +
                      ": the bundle has no encoder; build it again, without --no-encoder");
  }
  const Manifest& manifest = bundle().manifest();
  const auto models = manifest.models();
  const auto place = detail::find_size(models, images);
  if (place == models.end() || images.pixels.size() != images.count * images.bytes_per_image()) {
    throw RequestError("images: expected uint8 " + detail::listed_sizes(models, "B, ") + ", found " +
                       detail::listed_uint8(images) + " of " + std::to_string(images.pixels.size()) + " bytes");
  }
  if (images.count == 0) throw RequestError("images is empty: expected at least one picture");
  const detail::SizedContract contract(manifest, static_cast<std::size_t>(place - models.begin()));
  engine_->session(Graph::encoder);
  const Size& size = contract.model.image_size;
  const std::int64_t index = place - models.begin();
  std::vector<const char*> names = {"images"};
  std::vector<Ort::Value> inputs;
  inputs.push_back(detail::shared_tensor(images.pixels.data(), images.pixels.size(),
                                         {static_cast<std::int64_t>(images.count), size.height, size.width, 3},
                                         ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8));
  if (const RequestInput* item = manifest.input_of_kind(Kind::size)) {
    names.push_back(item->name.c_str());
    inputs.push_back(detail::shared_tensor(&index, sizeof index, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
  }
  const auto outputs = engine_->run(Graph::encoder, names, detail::pointers(inputs), {"token_maps"});
  return engine_->values<std::int64_t>(Graph::encoder, "token_maps", outputs[0],
                                       detail::rows_of(contract.forced_tokens(), images.count));
}

inline Generation Generator::edit(const Edit& edit, const Request& request, const OnStage& on_stage,
                                  const std::atomic<bool>* cancel) const {
  const detail::ReturnMemory at_end(engine_->options());
  const Manifest& manifest = bundle().manifest();
  if (edit.image.count != 1) {
    throw RequestError("image: expected uint8 [H, W, 3], found " + detail::listed_uint8(edit.image));
  }
  if (!request.forced_tokens.empty()) {
    throw RequestError("forced_tokens: an edit forces those that the picture and the mask say");
  }
  Request sized = request;
  const auto models = manifest.models();
  const ModelInfo& model = models[detail::size_of_edit(edit.image, manifest, models, sized)];
  if (edit.mask) detail::require_mask(*edit.mask, model.image_size);
  const auto last = static_cast<std::int64_t>(model.num_stages()) - 1;
  if (edit.keep_stages < 0 || edit.keep_stages > last) {
    throw RequestError("keep_stages " + std::to_string(edit.keep_stages) + " is out of range: expected 0 to " +
                       std::to_string(last));
  }
  const std::int64_t seam = edit.feather.value_or(model.image_size.height / model.latent_size.height / 4);
  const std::int64_t widest = (std::max)(model.image_size.height, model.image_size.width);
  if (seam < -1 || seam > widest) {
    throw RequestError("feather " + std::to_string(seam) + " is out of range: expected -1 to " +
                       std::to_string(widest));
  }
  std::vector<bool> kept(static_cast<std::size_t>(model.num_tokens()));
  if (edit.mask) kept = detail::kept_tokens(detail::latent_mask(*edit.mask, model.latent_size), model.stage_sizes);
  std::int64_t begin = 0;
  for (std::int64_t stage = 0; stage < edit.keep_stages; ++stage) {
    const Size& size = model.stage_sizes[static_cast<std::size_t>(stage)];
    begin += size.height * size.width;
  }
  std::fill_n(kept.begin(), begin, true);
  if (sized.class_labels.empty() && manifest.input_of_kind(Kind::label) != nullptr) {
    sized.class_labels = {model.num_classes};
  }
  const auto inputs = engine_->check(sized);  // refuses before anything runs
  auto tokens = encode(edit.image);
  const std::size_t values = tokens.size() / kept.size();  // of one token
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!kept[i / values]) tokens[i] = -1;
  }
  inputs->force(tokens);
  engine_->encode_texts(*inputs);
  Generation result = run(inputs, on_stage, cancel);
  if (edit.mask && seam >= 0) detail::blend(edit.image, result.images, *edit.mask, seam);
  return result;
}

}  // namespace nextscale

#endif  // NEXTSCALE_HPP

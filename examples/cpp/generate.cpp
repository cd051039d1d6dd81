// Pictures from a bundle: `generate BUNDLE --class 207 --seed 0 --out a.png`, or `--prompt "a red fox"`.

#include <png.h>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <random>

#include "arguments.hpp"
#include "nextscale.hpp"
#include "ops.hpp"

namespace {

constexpr char kUsage[] =
    "usage: generate BUNDLE --class ID|NAME|null [--class ...] [--count N] [--seed S|random] [--first-image I]\n"
    "                [--cfg-scale T] [--top-k K] [--top-p P] [--tau T] [--batch N] [--threads N] [--out FILE.png]\n"
    "                [--ops auto|stock|fused] [--ops-library FILE]\n"
    "       generate BUNDLE --prompt TEXT [--prompt ...] [--negative TEXT] [--area 0.25M] [--ratio 3:4] [...]\n";

std::atomic<bool> interrupted = false;

/// All images on one nearly square sheet, row by row; cells left over are white.
nextscale::Images make_sheet(const nextscale::Images& images) {
  std::size_t rows = 1;
  while ((rows + 1) * (rows + 1) <= images.count) ++rows;
  const std::size_t columns = (images.count + rows - 1) / rows;
  rows = (images.count + columns - 1) / columns;
  nextscale::Images sheet{1, rows * images.height, columns * images.width, {}};
  sheet.pixels.assign(sheet.bytes_per_image(), 255);
  const std::size_t line = images.width * 3;
  for (std::size_t i = 0; i < images.count; ++i) {
    for (std::size_t y = 0; y < images.height; ++y) {
      const std::size_t place = ((i / columns * images.height + y) * columns + i % columns) * line;
      std::memcpy(sheet.pixels.data() + place, images.image(i) + y * line, line);
    }
  }
  return sheet;
}

bool stderr_is_terminal() {
#ifdef _WIN32
  return _isatty(_fileno(stderr)) != 0;
#else
  return isatty(STDERR_FILENO) != 0;
#endif
}

/// The seed that the command line names, or one that is drawn and told on stderr.
std::uint64_t seed_of(const Arguments& arguments) {
  if (arguments.text("--seed").value_or("") != "random") return arguments.number<std::uint64_t>("--seed").value_or(0);
  std::random_device device;
  const std::uint64_t seed = (std::uint64_t{device()} << 32 | device()) >> 11;  // exact in every language's JSON
  std::cerr << "seed " << seed << '\n';
  return seed;
}

/// Whether a path is a device or a pipe, such as /dev/stdout: it is written as it is.
bool is_special(const std::string& path) {
  const std::filesystem::file_status status = std::filesystem::status(path);
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
}

/// Where a file is written, and where first: beside its place, so that there is never half a file.
struct Place {
  std::filesystem::path whole, part;

  explicit Place(std::filesystem::path path) : whole(std::move(path)) {
    for (int links = 0; links < 40 && std::filesystem::is_symlink(whole); ++links) {
      whole = whole.parent_path() / std::filesystem::read_symlink(whole);  // the link itself stays
    }
    part = whole.parent_path() / ("." + whole.filename().string() + ".part");
  }
};

/// Find out before a long computation whether a file can be written.
void require_writable(const std::string& path) {
  std::string suffix = std::filesystem::path(path).extension().string();
  for (char& c : suffix) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (suffix != ".png") {
    throw nextscale::Error("cannot write " + path + ": pictures are written as .png; give such a name");
  }
  bool writable = is_special(path) && !std::filesystem::is_directory(path);
  if (!is_special(path)) {
    const Place place(path);
    writable = static_cast<bool>(std::ofstream(place.part));
    std::filesystem::remove(place.part);
  }
  if (!writable) throw nextscale::Error("cannot write " + path + ": no such folder, or it may not be written");
}

void write_png(const std::string& path, const nextscale::Images& images) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(images.width);
  header.height = static_cast<png_uint_32>(images.height);
  header.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  std::vector<char> content;
  for (const bool measured : {false, true}) {
    content.resize(size);
    if (png_image_write_to_memory(&header, measured ? content.data() : nullptr, &size, 0, images.pixels.data(), 0,
                                  nullptr) == 0) {
      throw nextscale::Error("cannot write " + path + ": " + header.message);
    }
  }
  const bool special = is_special(path);
  const Place place(path);
  std::ofstream file(special ? std::filesystem::path(path) : place.part, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(size));
  file.close();
  std::error_code error;
  if (!file) error = std::make_error_code(std::errc::io_error);
  if (!error && !special) std::filesystem::rename(place.part, place.whole, error);
  if (error) {
    if (!special) std::filesystem::remove(place.part);
    throw nextscale::Error("cannot write " + path + ": " + error.message());
  }
}

/// What each picture is of: classes or prompts, as the bundle takes them, `count` times each. Returns how many there
/// are.
std::size_t read_subjects(const Arguments& arguments, const nextscale::Bundle& bundle, std::size_t count,
                          nextscale::Request& request) {
  const auto classes = arguments.all("--class"), prompts = arguments.all("--prompt");
  const bool takes_classes = bundle.manifest().input_of_kind(nextscale::Kind::label) != nullptr;
  if (takes_classes && !prompts.empty()) {
    throw UsageError("--prompt: this bundle makes pictures of classes: give --class");
  }
  if (!takes_classes && !classes.empty()) {
    throw UsageError("--class: this bundle makes pictures of prompts: give --prompt");
  }
  if (classes.empty() && prompts.empty()) {
    throw UsageError(std::string("expected at least one ") + (takes_classes ? "--class" : "--prompt"));
  }
  for (const std::string& name : classes) {
    request.class_labels.insert(request.class_labels.end(), count, bundle.class_label(name));
  }
  if (takes_classes) return request.class_labels.size();
  request.prompts.emplace();
  for (const std::string& prompt : prompts) request.prompts->insert(request.prompts->end(), count, prompt);
  return request.prompts->size();
}

void run(const Arguments& arguments) {
  if (arguments.plain.size() != 1) throw UsageError("expected one BUNDLE");
  const auto count = arguments.number<std::int64_t>("--count").value_or(1);
  if (count < 1 || count > 100000) throw UsageError("--count: expected 1 to 100000");

  nextscale::SessionOptions options;
  options.threads = arguments.number<int>("--threads").value_or(options.threads);
  read_ops(arguments, options);
  const nextscale::Generator generator(arguments.plain[0], options);

  nextscale::Request request;
  const std::size_t images = read_subjects(arguments, generator.bundle(), static_cast<std::size_t>(count), request);
  if (const auto negative = arguments.text("--negative")) request.negative = *negative;
  request.area = arguments.text("--area");
  request.ratio = arguments.text("--ratio");
  request.first_image = arguments.number<std::uint64_t>("--first-image").value_or(request.first_image);
  request.cfg_scale = arguments.number<double>("--cfg-scale");
  request.top_k = arguments.number<std::int64_t>("--top-k");
  request.top_p = arguments.number<double>("--top-p");
  request.tau = arguments.number<double>("--tau");
  request.batch_size = arguments.number<std::int64_t>("--batch").value_or(4);

  const std::string out = arguments.text("--out").value_or("sheet.png");
  require_writable(out);
  request.seed = seed_of(arguments);

  for (const int number : {SIGINT, SIGTERM}) std::signal(number, [](int) { interrupted = true; });
  const bool terminal = stderr_is_terminal();
  const auto show_progress = [&](const nextscale::StageResult& stage) {
    if (terminal) {
      std::cerr << "\rimages " << stage.first + 1 << " to " << stage.first + stage.count << " of "
                << images << ", stage " << stage.stage + 1 << " of " << stage.num_stages
                << std::flush;
    }
    return true;
  };
  const nextscale::Generation result = generator.generate(request, show_progress, &interrupted);
  if (terminal) std::cerr << '\n';
  write_png(out, make_sheet(result.images));
  if (!is_special(out)) std::cout << out << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(Arguments(argc, argv,
                  {"--class", "--prompt", "--negative", "--area", "--ratio", "--count", "--seed", "--first-image",
                   "--cfg-scale", "--top-k", "--top-p", "--tau", "--batch", "--threads", "--out", "--ops",
                   "--ops-library"},
                  {}));
    return EXIT_SUCCESS;
  } catch (const UsageError& error) {
    std::cerr << kUsage << "error: " << error.what() << '\n';
    return 2;
  } catch (const nextscale::Cancelled& error) {
    std::cerr << "\n" << error.what() << '\n';
    return 130;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: out of memory: fewer images at a time need less\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}

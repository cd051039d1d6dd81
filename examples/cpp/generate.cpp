// Pictures from a bundle: `generate BUNDLE --class 207 --seed 0 --out a.png`.

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
    "                [--cfg-scale T] [--top-k K] [--top-p P] [--batch N] [--threads N] [--out FILE.png]\n"
    "                [--ops auto|stock|fused] [--ops-library FILE]\n";

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

void run(const Arguments& arguments) {
  if (arguments.plain.size() != 1) throw UsageError("expected one BUNDLE");
  const auto classes = arguments.all("--class");
  if (classes.empty()) throw UsageError("expected at least one --class");
  const auto count = arguments.number<std::int64_t>("--count").value_or(1);
  if (count < 1 || count > 100000) throw UsageError("--count: expected 1 to 100000");

  nextscale::SessionOptions options;
  options.threads = arguments.number<int>("--threads").value_or(options.threads);
  read_ops(arguments, options);
  const nextscale::Generator generator(arguments.plain[0], options);

  nextscale::Request request;
  for (const std::string& name : classes) {
    request.class_labels.insert(request.class_labels.end(), static_cast<std::size_t>(count),
                                generator.bundle().class_label(name));
  }
  request.first_image = arguments.number<std::uint64_t>("--first-image").value_or(request.first_image);
  request.cfg_scale = arguments.number<double>("--cfg-scale");
  request.top_k = arguments.number<std::int64_t>("--top-k");
  request.top_p = arguments.number<double>("--top-p");
  request.batch_size = arguments.number<std::int64_t>("--batch").value_or(4);

  const std::string out = arguments.text("--out").value_or("sheet.png");
  require_writable(out);
  request.seed = seed_of(arguments);

  for (const int number : {SIGINT, SIGTERM}) std::signal(number, [](int) { interrupted = true; });
  const bool terminal = stderr_is_terminal();
  const auto show_progress = [&](const nextscale::StageResult& stage) {
    if (terminal) {
      std::cerr << "\rimages " << stage.first + 1 << " to " << stage.first + stage.count << " of "
                << request.class_labels.size() << ", stage " << stage.stage + 1 << " of " << stage.num_stages
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
                  {"--class", "--count", "--seed", "--first-image", "--cfg-scale", "--top-k", "--top-p", "--batch",
                   "--threads", "--out", "--ops", "--ops-library"},
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

// How fast a bundle is: `bench BUNDLE` prints images per second with 95% confidence intervals, as `nextscale bench` does.
//
// With --worker it generates what it is asked for on stdin, so that the Python package can measure it in turns with
// other programs; nextscale/runtime/contender.py has the protocol.

#include <chrono>
#include <cstdlib>
#include <iomanip>
#include <iostream>

#include "arguments.hpp"
#include "nextscale.hpp"
#include "ops.hpp"

namespace {

constexpr char kUsage[] =
    "usage: bench BUNDLE [--form generate|streaming] [--batch N] [--threads N] [--repetitions N] [--warmup N]\n"
    "             [--json FILE] [--worker] [--ops auto|stock|fused] [--ops-library FILE]\n";

using Clock = std::chrono::steady_clock;
using nextscale::Graph;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// A mean and its 95% confidence interval (Student's t).
struct Interval {
  double mean = 0, low = 0, high = 0;

  Interval scaled(double factor) const { return {mean * factor, low * factor, high * factor}; }
  Interval inverted() const {
    return {1 / mean, 1 / high, low > 0 ? 1 / low : std::numeric_limits<double>::infinity()};
  }
};

Interval mean_interval(const std::vector<double>& samples) {
  // 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; that of 30 serves more, a little too wide.
  static constexpr double t[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                 2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                 2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
  const auto n = static_cast<double>(samples.size());
  double mean = 0, squares = 0;
  for (const double sample : samples) mean += sample / n;
  for (const double sample : samples) squares += (sample - mean) * (sample - mean);
  const double half = t[std::min<std::size_t>(samples.size() - 1, 30) - 1] * std::sqrt(squares / (n - 1) / n);
  return {mean, mean - half, mean + half};
}

/// Seconds of one batch; stages and decoder are those of the streaming form.
struct Run {
  double total = 0;
  std::vector<double> stages;
  double decoder = 0;
};

class Bench {
 public:
  Bench(const std::string& bundle, const nextscale::SessionOptions& options) : generator_(bundle, options) {}

  const nextscale::Bundle& bundle() const { return generator_.bundle(); }
  const char* variant() const { return generator_.ops().variant == nextscale::Variant::fused ? "fused" : "stock"; }

  double load(const std::string& form) const {
    const auto begin = Clock::now();
    form == "generate" ? generator_.load({Graph::generate}) : generator_.load({Graph::stage, Graph::decoder});
    return seconds_since(begin);
  }

  /// Generate one batch of random classes with the default sampling.
  Run time_batch(const std::string& form, std::size_t batch, std::uint64_t seed) const {
    const auto num_classes = static_cast<double>(bundle().model().num_classes);
    nextscale::Request request;
    request.seed = seed;
    for (const float u : nextscale::uniforms(seed, 0, batch)) {
      request.class_labels.push_back(static_cast<std::int64_t>(u * num_classes));
    }
    Run run;
    const auto begin = Clock::now();
    if (form == "generate") {
      generator_.generate(request);
      run.total = seconds_since(begin);
      return run;
    }
    auto mark = begin;
    nextscale::Stream stream = generator_.stream(request);
    std::optional<nextscale::StageResult> last;
    while (auto stage = stream.next()) {
      run.stages.push_back(seconds_since(mark));
      mark = Clock::now();
      last = std::move(stage);
    }
    last->preview();
    run.decoder = seconds_since(mark);
    run.total = seconds_since(begin);
    return run;
  }

 private:
  nextscale::Generator generator_;
};

/// This process's peak resident memory; 0 where the system does not tell.
std::size_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

std::string onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

/// One form at one batch size, in seconds for one image; the field names are those of `nextscale bench --json`.
struct Measurement {
  std::string form;
  double load_seconds = 0, first_seconds = 0;
  Interval image_seconds, decoder_seconds;
  std::vector<Interval> stage_seconds;
  std::vector<double> samples;
};

Measurement measure(const std::string& form, double load_seconds, double first_seconds, const std::vector<Run>& runs,
                    std::size_t batch) {
  const double an_image = 1.0 / static_cast<double>(batch);
  Measurement result{form, load_seconds, first_seconds, {}, {}, {}, {}};
  const auto interval_of = [&](auto seconds_of) {
    std::vector<double> samples;
    for (const Run& run : runs) samples.push_back(seconds_of(run));
    return mean_interval(samples).scaled(an_image);
  };
  for (const Run& run : runs) result.samples.push_back(run.total);
  result.image_seconds = interval_of([](const Run& run) { return run.total; });
  if (form == "streaming") {
    result.decoder_seconds = interval_of([](const Run& run) { return run.decoder; });
    for (std::size_t i = 0; i < runs[0].stages.size(); ++i) {
      result.stage_seconds.push_back(interval_of([i](const Run& run) { return run.stages[i]; }));
    }
  }
  return result;
}

std::string json(double value) {
  std::ostringstream out;
  out << std::setprecision(9) << value;
  return std::isfinite(value) ? out.str() : "null";
}

std::string json(const Interval& interval) {
  return "{\"mean\": " + json(interval.mean) + ", \"low\": " + json(interval.low) +
         ", \"high\": " + json(interval.high) + "}";
}

std::string json(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + "\"";
}

template <typename T>
std::string json(const std::vector<T>& items) {
  return "[" + nextscale::detail::join(items, [](const T& item) { return json(item); }) + "]";
}

std::string json(const Bench& bench, const Arguments& arguments, int threads, std::size_t batch,
                 const std::vector<Measurement>& measurements) {
  const auto& manifest = bench.bundle().manifest();
  std::uint64_t size = 0;
  for (const auto& file : manifest.files) size += file.second.size;
  std::string text = "{\"versions\": {\"onnxruntime\": " + json(onnxruntime_version()) +
                     "},\n \"settings\": {\"threads\": " + std::to_string(threads) +
                     ", \"ops\": " + json(std::string(bench.variant())) + "},\n \"peak_bytes\": " + std::to_string(peak_bytes()) + ",\n \"measurements\": [";
  for (const Measurement& item : measurements) {
    text += &item == measurements.data() ? "\n  {" : ",\n  {";
    text += "\"bundle\": " + json(arguments.plain[0]) + ", \"name\": " + json(manifest.name) +
            ", \"recipe\": " + json(manifest.recipe) + ", \"size_bytes\": " + std::to_string(size) +
            ", \"batch\": " + std::to_string(batch) + ", \"form\": " + json(item.form) +
            ", \"image_seconds\": " + json(item.image_seconds) +
            ", \"images_per_second\": " + json(item.image_seconds.inverted()) +
            ", \"stage_seconds\": " + json(item.stage_seconds) +
            ", \"decoder_seconds\": " + (item.stage_seconds.empty() ? "null" : json(item.decoder_seconds)) +
            ", \"load_seconds\": " + json(item.load_seconds) + ", \"first_seconds\": " + json(item.first_seconds) +
            ", \"samples\": " + json(item.samples) + "}";
  }
  return text + "\n ]}\n";
}

void print(const Measurement& item, std::size_t batch) {
  const Interval& seconds = item.image_seconds;
  std::cout << std::left << std::setw(10) << item.form << " batch " << batch << ": " << std::setprecision(3)
            << 1 / seconds.mean << " images/s, " << seconds.mean << " s per image ±" << std::fixed
            << std::setprecision(1) << (seconds.high - seconds.low) / 2 / seconds.mean * 100 << "%, load "
            << std::setprecision(2) << item.load_seconds << " s, first batch " << item.first_seconds << " s\n"
            << std::defaultfloat;
  if (item.stage_seconds.empty()) return;
  std::cout << "           stages" << std::fixed << std::setprecision(1);
  for (const Interval& stage : item.stage_seconds) std::cout << ' ' << stage.mean * 1e3;
  std::cout << ", decoder " << item.decoder_seconds.mean * 1e3 << " ms per image\n" << std::defaultfloat;
}

/// Serve requests, one JSON object per line, until stdin ends.
void work(const Bench& bench, const std::string& form) {
  std::cout << "{\"ready\": true, \"load_seconds\": " << json(bench.load(form))
            << ", \"versions\": {\"onnxruntime\": " << json(onnxruntime_version()) << "}}" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = nextscale::detail::JsonReader::read(line);
    const auto *batch = request.find("batch"), *seed = request.find("seed");
    if (batch == nullptr || seed == nullptr) throw nextscale::Error("a request needs \"batch\" and \"seed\"");
    const Run run = bench.time_batch(form, batch->as_uint64().value(), seed->as_uint64().value());
    std::cout << "{\"seconds\": " << json(run.total) << ", \"peak_memory_bytes\": " << peak_bytes() << "}" << std::endl;
  }
}

void run(const Arguments& arguments) {
  if (arguments.plain.size() != 1) throw UsageError("expected one BUNDLE");
  std::vector<std::string> forms = arguments.all("--form");
  if (forms.empty()) forms = {"generate", "streaming"};
  for (const std::string& form : forms) {
    if (form != "generate" && form != "streaming") throw UsageError("--form: expected generate or streaming");
  }
  const auto batch = arguments.number<std::size_t>("--batch").value_or(1);
  const auto repetitions = arguments.number<std::size_t>("--repetitions").value_or(10);
  const auto warmup = arguments.number<std::size_t>("--warmup").value_or(1);
  if (batch < 1 || repetitions < 2) throw UsageError("expected --batch of at least 1 and --repetitions of at least 2");
  nextscale::SessionOptions options;
  options.threads = arguments.number<int>("--threads").value_or(options.threads);
  read_ops(arguments, options);
  const Bench bench(arguments.plain[0], options);
  if (arguments.has("--worker")) return work(bench, forms[0]);

  std::vector<double> load_seconds, first_seconds;
  for (const std::string& form : forms) {
    load_seconds.push_back(bench.load(form));
    first_seconds.push_back(bench.time_batch(form, batch, 0).total);
  }
  std::vector<std::vector<Run>> runs(forms.size());
  for (std::size_t round = 0; round < warmup + repetitions; ++round) {
    for (std::size_t i = 0; i < forms.size(); ++i) {
      const Run one = bench.time_batch(forms[i], batch, 0);
      if (round >= warmup) runs[i].push_back(one);
    }
  }
  std::cout << arguments.plain[0] << " (" << bench.bundle().manifest().recipe << ", " << bench.variant()
            << " graphs), threads "
            << (options.threads == 0 ? "all" : std::to_string(options.threads)) << ", " << repetitions
            << " interleaved repetitions, onnxruntime " << onnxruntime_version() << '\n';
  std::vector<Measurement> measurements;
  for (std::size_t i = 0; i < forms.size(); ++i) {
    measurements.push_back(measure(forms[i], load_seconds[i], first_seconds[i], runs[i], batch));
    print(measurements.back(), batch);
  }
  std::cout << "peak memory " << peak_bytes() / 1000000 << " MB\n";
  if (const auto path = arguments.text("--json")) {
    std::ofstream file(*path);
    file << json(bench, arguments, options.threads, batch, measurements);
    if (!file.flush()) throw nextscale::Error("cannot write " + *path);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(Arguments(argc, argv,
                  {"--form", "--batch", "--threads", "--repetitions", "--warmup", "--json", "--ops", "--ops-library"},
                  {"--worker"}));
    return EXIT_SUCCESS;
  } catch (const UsageError& error) {
    std::cerr << kUsage << "error: " << error.what() << '\n';
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: out of memory: fewer images at a time need less\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}

// Command lines of the example programs: `--name VALUE` options and plain arguments.

#ifndef NEXTSCALE_EXAMPLES_ARGUMENTS_HPP
#define NEXTSCALE_EXAMPLES_ARGUMENTS_HPP

#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

/// A command line that the program does not understand.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Arguments {
 public:
  std::vector<std::string> plain;

  /// Throws UsageError: an option that is in neither set, or one without its value.
  Arguments(int argc, char** argv, const std::set<std::string>& with_value, const std::set<std::string>& flags) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      if (argument.rfind("--", 0) != 0) {
        plain.push_back(argument);
      } else if (flags.count(argument) > 0) {
        values_[argument].emplace_back();
      } else if (with_value.count(argument) == 0) {
        throw UsageError("unknown option " + argument);
      } else if (++i == argc) {
        throw UsageError(argument + " needs a value");
      } else {
        values_[argument].push_back(argv[i]);
      }
    }
  }

  bool has(const std::string& option) const { return values_.count(option) > 0; }

  std::vector<std::string> all(const std::string& option) const {
    const auto found = values_.find(option);
    return found == values_.end() ? std::vector<std::string>() : found->second;
  }

  std::optional<std::string> text(const std::string& option) const {
    const auto values = all(option);
    return values.empty() ? std::nullopt : std::optional<std::string>(values.back());
  }

  /// An integer or a floating-point number. Throws UsageError: it is none of type T.
  template <typename T>
  std::optional<T> number(const std::string& option) const {
    const auto value = text(option);
    if (!value) return std::nullopt;
    T result{};
    bool valid = false;
    if constexpr (std::is_integral_v<T>) {
      const char* end = value->data() + value->size();
      const auto [rest, error] = std::from_chars(value->data(), end, result);
      valid = error == std::errc() && rest == end;
    } else {
      std::istringstream in(*value);
      valid = static_cast<bool>(in >> result) && in.peek() == std::istringstream::traits_type::eof();
    }
    if (!valid) throw UsageError(option + " " + *value + ": expected a number in its range");
    return result;
  }

 private:
  std::map<std::string, std::vector<std::string>> values_;
};

#endif  // NEXTSCALE_EXAMPLES_ARGUMENTS_HPP

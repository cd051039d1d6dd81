// The options --ops and --ops-library of the example programs.

#ifndef NEXTSCALE_EXAMPLES_OPS_HPP
#define NEXTSCALE_EXAMPLES_OPS_HPP

#include "arguments.hpp"
#include "nextscale.hpp"

/// Throws UsageError: --ops is none of auto, stock and fused.
inline void read_ops(const Arguments& arguments, nextscale::SessionOptions& options) {
  const std::string ops = arguments.text("--ops").value_or("auto");
  if (ops != "auto" && ops != "stock" && ops != "fused") throw UsageError("--ops: expected auto, stock or fused");
  options.ops = ops == "auto"    ? nextscale::Ops::automatic
                : ops == "stock" ? nextscale::Ops::stock
                                 : nextscale::Ops::fused;
  options.ops_library = arguments.text("--ops-library").value_or("");
}

#endif  // NEXTSCALE_EXAMPLES_OPS_HPP

// Reads float32 numbers, writes what a function of vector/mathematics.h makes of them: mathematics NAME <numbers >results
#define NEXTSCALE_ISA isa_tested
#include "compiler.h"
#ifdef __AVX2__
#include "vector/avx2.h"
#else
#include "vector/portable.h"
#endif
#include "vector/mathematics.h"

#include <cstdio>
#include <cstdlib>

using namespace nextscale::isa_tested;

namespace {

F apply(const char* name, F x) {
  F y[1] = {x};
  if (!std::strcmp(name, "exp")) return exp(x);
  if (!std::strcmp(name, "reciprocal")) return reciprocal(x);
  if (!std::strcmp(name, "silu")) return silu_of(x, exp_of_minus(x));
  if (std::strcmp(name, "gelu_tanh")) std::exit(2);
  gelu_tanh(y);
  return y[0];
}

}  // namespace

int main(int, char** arguments) {
  float x[kLanes];
  while (std::fread(x, sizeof x, 1, stdin) == 1) {
    store(x, apply(arguments[1], load(x)));
    std::fwrite(x, sizeof x, 1, stdout);
  }
}

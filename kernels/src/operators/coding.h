// The attributes, inputs and outputs by which an operator makes codes (README.md, "Ranges").
#ifndef NEXTSCALE_OPERATORS_CODING_H_
#define NEXTSCALE_OPERATORS_CODING_H_

#include "../ort.h"

namespace nextscale {

class CodingAttributes {
 public:
  // `otherwise` is the ranges of a node that has no such attribute.
  CodingAttributes(const Info& info, const char* otherwise);
  Ranges ranges() const { return coding_.ranges; }

  // The coding of a result [rows, tokens, k], with the qparams in the inputs from `first_input` on, and its memory in
  // the outputs from `first_output` on: codes, difference, scale, zero point.
  Coding with(const Context& context, size_t first_input, size_t first_output, const Shape& result) const;

 private:
  Coding coding_;
};

}  // namespace nextscale

#endif  // NEXTSCALE_OPERATORS_CODING_H_

// The operators of the domain "nextscale"; README.md says what each computes.
#ifndef NEXTSCALE_OPERATORS_H_
#define NEXTSCALE_OPERATORS_H_

#include "../ort.h"

namespace nextscale {

const Operator& quantize_operator();
const Operator& norm_quantize_operator();
const Operator& linear_operator();
const Operator& pair_linear_operator();
const Operator& attention_operator();
const Operator& codes_attention_operator();
const Operator& integer_attention_operator();
const Operator& convolution_operator();
const Operator& group_norm_operator();
const Operator& codes_group_norm_operator();
const Operator& add_codes_operator();
const Operator& sample_operator();

}  // namespace nextscale

#endif  // NEXTSCALE_OPERATORS_H_

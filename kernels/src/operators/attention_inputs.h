// What all attentions take: query, key, value, the caches and the heads' scales, inputs 0 to 5.
#ifndef NEXTSCALE_OPERATORS_ATTENTION_INPUTS_H_
#define NEXTSCALE_OPERATORS_ATTENTION_INPUTS_H_

#include "../ort.h"

namespace nextscale {

// The inputs but for the caches' content, checked against each other.
AttentionArgs attention_inputs(const Context& context, int64_t heads);

// The caches and the grown ones: outputs `first` and the next, or memory of the call where the input `last` says that
// nothing reads them any more; then the outputs have no tokens.
void add_caches(const Context& context, size_t last, size_t first, AttentionArgs& a);

// The same of codes, whose scales are inputs 6 and 7, and outputs behind the codes.
void add_coded_caches(const Context& context, size_t last, size_t first, AttentionArgs& a);

}  // namespace nextscale

#endif  // NEXTSCALE_OPERATORS_ATTENTION_INPUTS_H_

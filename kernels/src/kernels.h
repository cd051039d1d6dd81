// What the operators ask of an instruction set: one table of functions for each set.
//
// This header is seen by translation units of all instruction sets. So that none of their code is ever taken for
// another's, it has no inline functions with external linkage that do any work: what is here is data and templates over
// a caller's own lambdas.
#ifndef NEXTSCALE_KERNELS_H_
#define NEXTSCALE_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace nextscale {

// Runs tasks on the threads of the session, of which there are at most `threads`.
class Parallel {
 public:
  using Task = void (*)(void* data, size_t index);
  using Run = void (*)(void* pool, size_t tasks, Task task, void* data);
  Parallel(Run run, void* pool, int64_t threads) : run_(run), pool_(pool), threads_(threads) {}
  int64_t threads() const { return threads_; }

  // f(i) for i in [0, tasks), in any order and on any thread.
  template <class F>
  void operator()(int64_t tasks, F f) const {
    if (tasks == 1) return f(int64_t{0});
    if (tasks > 0) run_(pool_, static_cast<size_t>(tasks), call<F>, &f);
  }

 private:
  template <class F>
  static void call(void* data, size_t index) {
    (*static_cast<F*>(data))(static_cast<int64_t>(index));
  }
  Run run_;
  void* pool_;
  int64_t threads_;
};

// Memory for the time of one call, aligned to 64 bytes and not initialized, from the session's allocator.
class Workspace {
 public:
  using Take = void* (*)(void* owner, size_t bytes);
  Workspace(Take from, void* owner) : take_(from), owner_(owner) {}
  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(take_(owner_, static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  Take take_;
  void* owner_;
};

// Memory of this thread, aligned to 64 bytes, kept until it ends; a slot's content is lost when it grows.
void* thread_memory(int slot, size_t bytes);

// Weights s8 [K, N] as the kernels read them: panels [N / 32][K / 64][2][16][64], where a group of 64 bytes holds 4
// consecutive k of 16 columns. K and N are filled up with zeros.
struct Panels {
  int64_t k = 0, n = 0;              // of the weights
  const int8_t* codes = nullptr;     // the panels
  const int32_t* sums = nullptr;     // [N filled up to 32]: of each column's codes
  int64_t steps() const { return (k + 63) / 64; }
  int64_t count() const { return (n + 31) / 32; }
  int64_t panel_bytes() const { return steps() * 2048; }
};

// scale (code - zero_point) is the number.
struct QParams {
  float scale = 1;
  int32_t zero_point = 0;
};

// How codes are made of numbers [rows, tokens, k].
enum class Ranges {
  kNone,    // they stay float
  kStatic,  // one known range
  kPair,    // two known ranges: of the row without the class, and of the difference that the class makes
  kImage,   // min-max of each image: rows r, r + rows / image_rows, ...
  kToken,   // of each token, with a fixed zero point
};

struct Coding {
  Ranges ranges = Ranges::kNone;
  int32_t qmax = 255;             // 2^bits - 1
  int64_t image_rows = 1;         // kImage
  int32_t token_zero_point = 0;   // kToken
  QParams known[2];               // kStatic: one; kPair: without the class, difference
  uint8_t* codes[2] = {};         // kPair: two of [rows / 2, tokens, k]; else one of [rows, tokens, k]
  float* scale = nullptr;         // kImage: [rows], kToken: [rows, tokens]
  uint8_t* zero_point = nullptr;  // the same
};

struct QuantizeArgs {
  const float* x;  // [rows, tokens, k]
  int64_t rows, tokens, k;
  Coding coding;
  uint8_t* fine = nullptr;  // kStatic of 8 bits: what the codes leave over; or null
};

// LayerNorm(x) gain + shift.
struct NormArgs {
  const float *x, *gain, *shift;  // [rows, tokens, k], [rows, k] twice
  int64_t rows, tokens, k;
  float epsilon;
  Coding coding;
};

// y = scale (code - zero_point) weight weight_scale + bias, then GELU, or residual + gain y.
struct LinearArgs {
  bool pair;                  // of codes of the row without the class, and of the difference that the class makes
  const uint8_t* codes[2];    // [rows, tokens, k], or two of [rows / 2, tokens, k]
  int64_t rows, tokens;       // of y
  const float* scale;         // not of a pair: [scales]
  const uint8_t* zero_point;  // the same
  int64_t scales;             // 1, rows or rows * tokens
  QParams known[2];           // of a pair
  Panels weight;
  const float *weight_scale, *bias;  // of all columns of all panels
  const float *residual, *gain;      // [rows, tokens, n], [rows, n], or null
  bool gelu;
  float* y;                          // [rows, tokens, n], without coding
  Coding coding;
};

// Keys and values in codes of 8 bits around 128, with a scale for each token of a head.
struct CodedCaches {
  const uint8_t *past_key, *past_value;            // [rows, heads, size, past], [rows, heads, past, size]
  const float *past_key_scale, *past_value_scale;  // [rows, heads, past]
  uint8_t *present_key, *present_value;            // the same with past + tokens; null where keys and values are float
  float *present_key_scale, *present_value_scale;
};

// softmax(query key) value of each row and head, with query and key divided by their length and the query multiplied by
// its head's scale; the caches grow by the new keys and values.
struct AttentionArgs {
  int64_t rows, heads, size, tokens, past;          // size: of a head, a multiple of 8
  const float *query, *key, *value;                 // [rows, tokens, heads * size]
  const float *past_key, *past_value;               // [rows, heads, size, past], [rows, heads, past, size]
  const float* query_scale;                         // [heads]
  float *present_key, *present_value;               // the same with past + tokens
  CodedCaches coded;                                // in place of the four above
  float* y;                                         // [rows, tokens, heads * size], without coding
  Coding coding;                                    // kNone or kPair
};

// How attention weights become codes.
enum class Weights { kUniform, kRow, kLog2, kLog2Row };

// Attention with both products in integers (docs/quantization.md, "Attention").
struct IntegerAttentionArgs {
  AttentionArgs base;         // without coding
  Weights weights;
  int32_t qmax;               // 2^bits - 1, of all four operands
  int64_t image_rows;         // rows of an image, which share a range
  const float* known_scales;  // [3], of query, key and value; null: of each image's own numbers
  float theta;                // shift-and-sum: a token is attentive if its mean weight is larger
  int64_t places;             // of attentive tokens; negative: no shift-and-sum
  int64_t* overflow;          // attentive tokens without a place, or null
};

// A 3x3 kernel, or four of 2x2 that make the pixels (0, 0), (0, 1), (1, 0) and (1, 1) of a picture twice as large. A
// line of a kernel is one stretch of size * channels numbers of the picture, which Panels fill up to steps of 64.
struct ConvolutionArgs {
  const uint8_t* x;     // [batch, height, width, channels]
  const uint8_t* fine;  // the same, what x leaves over in 128ths around 64; or null, as always of codes
  int64_t batch, height, width, channels, out;
  int32_t zero_point;  // of x, and what lies around it
  int64_t kernels, size;
  int64_t stride;  // 1, or 2 of one kernel, which begins at pixels of the picture: padded right and below
  Panels weight[4];        // K: size lines
  const float* scale[4];   // [out filled up to 32]
  const int32_t* bias[4];  // the same
  const int16_t* transformed;  // of one kernel, if winograd: [out / 16][16][channels / 2][16][2], filled up; or null
  uint8_t* y_codes;        // [batch, height, width, out], twice or half as high and wide; or null, and
  float* y;                // the same, with
  const float* residual;   // the same or null
};

struct GroupNormArgs {
  int64_t batch, pixels, channels, groups;
  const float* x;             // [batch, pixels, channels], or null, and
  const uint8_t* codes;       // the same, with
  const float* input_scale;   // [channels]
  const float* input_offset;  // [channels] or null
  const float *weight, *bias;  // [channels]
  float epsilon;
  bool silu;
  QParams range;
  const float* y_scale;  // [channels], in place of the range's, or null; not with y_fine
  uint8_t* y_codes;  // in that range, or null, and
  float* y;
  uint8_t* y_fine;   // what the codes leave over, or null
};

struct AddCodesArgs {
  int64_t pixels, channels;  // pixels of all pictures
  const float* x;            // or null
  const uint8_t* codes[2];   // the second: in place of x, or null
  const float* scale[2];     // [channels]
  const float* offset;       // [channels] or null
  float* y;
};

// A token of each row: docs/bundle.md, "Sampling".
struct SampleArgs {
  int64_t rows, entries;
  const float *logits, *uniforms;  // [rows, entries], [rows]
  const int64_t* forced;           // [rows]; a negative one is sampled
  int64_t top_k;                   // 0: off
  float top_p;                     // the same
  int64_t* tokens;                 // [rows]
};

struct Kernels {
  const char* isa;
  void (*quantize)(const QuantizeArgs&, const Parallel&, const Workspace&);
  void (*norm)(const NormArgs&, const Parallel&, const Workspace&);
  void (*linear)(const LinearArgs&, const Parallel&, const Workspace&);
  void (*attention)(const AttentionArgs&, const Parallel&, const Workspace&);
  void (*integer_attention)(const IntegerAttentionArgs&, const Parallel&, const Workspace&);
  bool winograd;  // its convolution wants transformed weights
  void (*convolution)(const ConvolutionArgs&, const Parallel&);
  void (*group_norm)(const GroupNormArgs&, const Parallel&, const Workspace&);
  void (*add_codes)(const AddCodesArgs&, const Parallel&, const Workspace&);
  void (*sample)(const SampleArgs&, const Parallel&);
};

extern const Kernels kPortable;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kAvx2, kAvxVnni, kAvx512Vnni, kAmx;
#endif
#ifdef NEXTSCALE_OPS_EMULATED
extern const Kernels kEmulated;  // the arithmetic of tiles in portable code, for tests
#endif

}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_H_

// ONNX Runtime's C API as the operators see it: tensors, attributes, threads and memory; errors become statuses.
#ifndef NEXTSCALE_ORT_H_
#define NEXTSCALE_ORT_H_

#include <onnxruntime_c_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nextscale {

// The lowest version that has all that is used here; every later release gives it.
constexpr uint32_t kApiVersion = 18;

using Shape = std::vector<int64_t>;
using Type = ONNXTensorElementDataType;
constexpr Type kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
               kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
               kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;

// What is wrong with a model's use of an operator; the message reaches the caller as the status of its call.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::string in_words(const Shape& shape);  // [2, 3]
int64_t elements(const Shape& shape);

// A tensor that is read; without data where an optional one was not given.
struct Tensor {
  const void* data = nullptr;
  Shape shape;
  bool given() const { return data != nullptr; }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  int64_t size() const { return elements(shape); }
};

// Input names and types in order; optional ones may be left out.
struct Port {
  const char* name;
  Type type;
  bool optional = false;
};

struct Schema {
  const char* name;
  std::vector<Port> inputs, outputs;
};

// What is known when a kernel is made. The attributes' values must be of the type that is asked for.
class Info {
 public:
  Info(const OrtApi* api, const OrtKernelInfo* info, const Schema& schema) : api_(api), info_(info), schema_(schema) {}
  int64_t integer(const char* name) const;
  int64_t integer(const char* name, int64_t otherwise) const;
  bool flag(const char* name) const;  // 0, which it is by default, or 1
  float number(const char* name) const;
  float number(const char* name, float otherwise) const;
  std::string text(const char* name, const char* otherwise) const;
  std::vector<int64_t> integers(const char* name) const;  // empty if it is not there
  std::vector<float> numbers(const char* name) const;     // the same
  // An input that is constant in the graph, such as weights; else an error.
  Tensor constant(size_t input) const;
  bool is_constant(size_t input) const;
  bool has_input(size_t input) const;
  [[noreturn]] void fail(const std::string& what) const;

 private:
  const OrtValue* constant_value(size_t input) const;  // or null
  const OrtApi* api_;
  const OrtKernelInfo* info_;
  const Schema& schema_;
};

// One call of a kernel.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context, const Schema& schema);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  size_t inputs() const { return inputs_; }
  Tensor input(size_t i) const;
  // An input of this shape; -1 stands for any size.
  Tensor input(size_t i, const Shape& expected) const;
  template <class T>
  T* output(size_t i, const Shape& shape) const {
    return static_cast<T*>(output_data(i, shape));
  }
  bool wants_output(size_t i) const { return i < outputs_; }
  QParams qparams(size_t scale, size_t zero_point) const;  // of two inputs of one element
  // The scales of channels, if the input is not one scale for all; else null.
  const float* channel_scales(size_t scale, int64_t channels) const;
  int32_t zero_point(size_t i) const;  // of an input of one element
  Parallel parallel() const;
  Workspace workspace() const;
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void* output_data(size_t i, const Shape& shape) const;
  Tensor one_element(size_t i) const;
  void require_scales(size_t i, const float* scales, int64_t count) const;
  const OrtApi* api_;
  OrtKernelContext* context_;
  const Schema& schema_;
  size_t inputs_ = 0, outputs_ = 0;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Context& context) const = 0;  // may run on several threads at once
};

using MakeKernel = std::unique_ptr<Kernel> (*)(const Info& info, const Kernels& kernels);

struct Operator {
  Schema schema;
  MakeKernel make;
};

template <class K>
std::unique_ptr<Kernel> make_kernel(const Info& info, const Kernels& kernels) {
  return std::make_unique<K>(info, kernels);
}

}  // namespace nextscale

#endif  // NEXTSCALE_ORT_H_

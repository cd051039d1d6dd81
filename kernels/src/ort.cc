#include "ort.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace nextscale {
namespace {

// Turns a failed call of the API into an Error.
void check(const OrtApi* api, OrtStatus* status) {
  if (!status) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Error(message);
}

bool succeeds(const OrtApi* api, OrtStatus* status) {
  if (!status) return true;
  api->ReleaseStatus(status);
  return false;
}

Tensor read(const OrtApi* api, const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  check(api, api->GetDimensionsCount(info, &rank));
  tensor.shape.resize(rank);
  check(api, api->GetDimensions(info, tensor.shape.data(), rank));
  api->ReleaseTensorTypeAndShapeInfo(info);
  void* data = nullptr;
  check(api, api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  static const char nothing = 0;  // of a tensor without elements
  tensor.data = data ? data : &nothing;
  return tensor;
}

}  // namespace

std::string in_words(const Shape& shape) {
  std::string words = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    words += (i ? ", " : "") + (shape[i] < 0 ? std::string("?") : std::to_string(shape[i]));
  return words + "]";
}

int64_t elements(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

int64_t Info::integer(const char* name) const {
  int64_t value = 0;
  if (!succeeds(api_, api_->KernelInfoGetAttribute_int64(info_, name, &value)))
    fail(std::string("the attribute ") + name + " is missing or no integer");
  return value;
}

int64_t Info::integer(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  return succeeds(api_, api_->KernelInfoGetAttribute_int64(info_, name, &value)) ? value : otherwise;
}

bool Info::flag(const char* name) const {
  const int64_t value = integer(name, 0);
  if (value != 0 && value != 1) fail(std::string(name) + " must be 0 or 1");
  return value == 1;
}

float Info::number(const char* name) const {
  float value = 0;
  if (!succeeds(api_, api_->KernelInfoGetAttribute_float(info_, name, &value)))
    fail(std::string("the attribute ") + name + " is missing or no number");
  return value;
}

float Info::number(const char* name, float otherwise) const {
  float value = 0;
  return succeeds(api_, api_->KernelInfoGetAttribute_float(info_, name, &value)) ? value : otherwise;
}

std::string Info::text(const char* name, const char* otherwise) const {
  size_t size = 0;
  if (!succeeds(api_, api_->KernelInfoGetAttribute_string(info_, name, nullptr, &size))) return otherwise;
  std::string value(size, '\0');
  check(api_, api_->KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size ? size - 1 : 0);
  return value;
}

std::vector<int64_t> Info::integers(const char* name) const {
  size_t size = 0;
  if (!succeeds(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size))) return {};
  std::vector<int64_t> values(size);
  if (size) check(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

std::vector<float> Info::numbers(const char* name) const {
  size_t size = 0;
  if (!succeeds(api_, api_->KernelInfoGetAttributeArray_float(info_, name, nullptr, &size))) return {};
  std::vector<float> values(size);
  if (size) check(api_, api_->KernelInfoGetAttributeArray_float(info_, name, values.data(), &size));
  return values;
}

bool Info::has_input(size_t input) const {
  size_t count = 0;
  check(api_, api_->KernelInfo_GetInputCount(info_, &count));
  if (input >= count) return false;
  size_t size = 0;
  if (!succeeds(api_, api_->KernelInfo_GetInputName(info_, input, nullptr, &size))) return true;
  return size > 1;  // an input that is left out has an empty name
}

const OrtValue* Info::constant_value(size_t input) const {
  int found = 0;
  const OrtValue* value = nullptr;
  check(api_, api_->KernelInfoGetConstantInput_tensor(info_, input, &found, &value));
  return found ? value : nullptr;
}

bool Info::is_constant(size_t input) const { return constant_value(input) != nullptr; }

Tensor Info::constant(size_t input) const {
  const OrtValue* value = constant_value(input);
  if (!value)
    fail(std::string("the input ") + schema_.inputs[input].name + " must be an initializer of the operator's own graph");
  return read(api_, value);
}

void Info::fail(const std::string& what) const { throw Error("nextscale." + std::string(schema_.name) + ": " + what); }

struct Context::Memory {
  const OrtApi* api;
  OrtAllocator* allocator = nullptr;
  std::vector<void*> blocks;
  ~Memory() {
    for (void* block : blocks) allocator->Free(allocator, block);
    if (allocator) api->ReleaseAllocator(allocator);
  }
};

Context::Context(const OrtApi* api, OrtKernelContext* context, const Schema& schema)
    : api_(api), context_(context), schema_(schema), memory_(new Memory{api, nullptr, {}}) {
  check(api_, api_->KernelContext_GetInputCount(context_, &inputs_));
  check(api_, api_->KernelContext_GetOutputCount(context_, &outputs_));
}

Context::~Context() = default;

Tensor Context::input(size_t i) const {
  if (i >= inputs_) return {};
  const OrtValue* value = nullptr;
  check(api_, api_->KernelContext_GetInput(context_, i, &value));
  return value ? read(api_, value) : Tensor{};
}

Tensor Context::input(size_t i, const Shape& expected) const {
  Tensor tensor = input(i);
  if (!tensor.given()) fail(std::string("the input ") + schema_.inputs[i].name + " is missing");
  bool fits = tensor.shape.size() == expected.size();
  for (size_t d = 0; fits && d < expected.size(); ++d) fits = expected[d] < 0 || expected[d] == tensor.shape[d];
  if (!fits)
    fail(std::string("the input ") + schema_.inputs[i].name + " has the shape " + in_words(tensor.shape) +
         ", expected " + in_words(expected));
  return tensor;
}

QParams Context::qparams(size_t scale, size_t zero_point) const {
  const float value = *one_element(scale).as<float>();
  require_scales(scale, &value, 1);
  return {value, this->zero_point(zero_point)};
}

const float* Context::channel_scales(size_t scale, int64_t channels) const {
  const Tensor s = input(scale);
  if (s.given() && s.size() == 1) return nullptr;
  const float* values = input(scale, {channels}).as<float>();
  require_scales(scale, values, channels);
  return values;
}

int32_t Context::zero_point(size_t i) const { return static_cast<int32_t>(*one_element(i).as<uint8_t>()); }

Tensor Context::one_element(size_t i) const {
  const Tensor found = input(i);
  if (!found.given() || found.size() != 1)
    fail(std::string("the input ") + schema_.inputs[i].name + " must have one element");
  return found;
}

void Context::require_scales(size_t i, const float* scales, int64_t count) const {
  for (int64_t c = 0; c < count; ++c)
    if (!(scales[c] > 0) || scales[c] > 3e38f)
      fail(std::string("the scale ") + schema_.inputs[i].name + " must be positive");
}

Parallel Context::parallel() const {
  // ONNX Runtime does not tell how many threads a session has.
  static const int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  return Parallel(
      [](void* pool, size_t tasks, Parallel::Task task, void* data) {
        const auto* self = static_cast<const Context*>(pool);
        // An exception must not leave a thread of the pool: the first one is thrown again when all have ended.
        struct Guarded {
          Parallel::Task task;
          void* data;
          std::mutex mutex;
          std::exception_ptr failure;
        } guarded{task, data, {}, nullptr};
        const auto run = [](void* state, size_t index) {
          auto& call = *static_cast<Guarded*>(state);
          try {
            call.task(call.data, index);
          } catch (...) {
            const std::lock_guard<std::mutex> lock(call.mutex);
            if (!call.failure) call.failure = std::current_exception();
          }
        };
        check(self->api_, self->api_->KernelContext_ParallelFor(self->context_, run, tasks, 0, &guarded));
        if (guarded.failure) std::rethrow_exception(guarded.failure);
      },
      const_cast<Context*>(this), processors);
}

Workspace Context::workspace() const {
  return Workspace(
      [](void* owner, size_t bytes) -> void* {
        constexpr size_t kAlignment = 64;
        const auto* self = static_cast<const Context*>(owner);
        Memory& memory = *self->memory_;
        if (!memory.allocator) {
          OrtMemoryInfo* where = nullptr;
          check(self->api_, self->api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
          OrtStatus* status = self->api_->KernelContext_GetAllocator(self->context_, where, &memory.allocator);
          self->api_->ReleaseMemoryInfo(where);
          check(self->api_, status);
        }
        memory.blocks.reserve(memory.blocks.size() + 1);
        void* block = memory.allocator->Alloc(memory.allocator, bytes + kAlignment);
        if (!block) throw std::bad_alloc();
        memory.blocks.push_back(block);
        return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block) + kAlignment - 1) &
                                       ~uintptr_t{kAlignment - 1});
      },
      const_cast<Context*>(this));
}

void* Context::output_data(size_t i, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api_, api_->KernelContext_GetOutput(context_, i, shape.data(), shape.size(), &value));
  if (!value) fail(std::string("the output ") + schema_.outputs[i].name + " is missing");
  void* data = nullptr;
  check(api_, api_->GetTensorMutableData(value, &data));
  return data;
}

void Context::fail(const std::string& what) const {
  throw Error("nextscale." + std::string(schema_.name) + ": " + what);
}

}  // namespace nextscale

#include <list>
#include <memory>
#include <mutex>
#include <new>

#include "cpu.h"
#include "nextscale_ops.h"
#include "operators/operators.h"
#include "ort.h"

namespace nextscale {
namespace {

constexpr int kOperatorsVersion = 1;

// An operator as ONNX Runtime sees it; it hands the address of its base back to each function.
struct CustomOp : OrtCustomOp {
  const Operator& op;
  const OrtApi* api;
  CustomOp(const Operator& is, const OrtApi* runtime);
};

struct Made {  // a kernel, with what its calls need
  std::unique_ptr<Kernel> kernel;
  const Schema& schema;
  const OrtApi* api;
};

const CustomOp& self(const OrtCustomOp* it) { return *static_cast<const CustomOp*>(it); }

template <class F>
OrtStatus* guarded(const OrtApi* api, F f) {
  try {
    f();
    return nullptr;
  } catch (const Error& error) {
    return api->CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "std::bad_alloc");  // what ONNX Runtime itself says
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

CustomOp::CustomOp(const Operator& is, const OrtApi* runtime) : OrtCustomOp{}, op(is), api(runtime) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* it) { return self(it).op.schema.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetInputType = [](const OrtCustomOp* it, size_t i) { return self(it).op.schema.inputs[i].type; };
  GetInputTypeCount = [](const OrtCustomOp* it) { return self(it).op.schema.inputs.size(); };
  GetOutputType = [](const OrtCustomOp* it, size_t i) { return self(it).op.schema.outputs[i].type; };
  GetOutputTypeCount = [](const OrtCustomOp* it) { return self(it).op.schema.outputs.size(); };
  GetInputCharacteristic = [](const OrtCustomOp* it, size_t i) {
    return self(it).op.schema.inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetOutputCharacteristic = [](const OrtCustomOp* it, size_t i) {
    return self(it).op.schema.outputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetStartVersion = [](const OrtCustomOp*) { return kOperatorsVersion; };
  GetEndVersion = [](const OrtCustomOp*) { return kOperatorsVersion; };
  CreateKernelV2 = [](const OrtCustomOp* it, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    const CustomOp& custom = self(it);
    return guarded(custom.api, [&] {
      const Info known(custom.api, info, custom.op.schema);
      const Kernels* kernels = choose_kernels();
      if (!kernels) known.fail("NEXTSCALE_OPS_ISA names no instruction set that this processor has");
      *kernel = new Made{custom.op.make(known, *kernels), custom.op.schema, custom.api};
    });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Made& made = *static_cast<const Made*>(kernel);
    return guarded(made.api, [&] { made.kernel->compute(Context(made.api, context, made.schema)); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Made*>(kernel); };
}

// The domain lives as long as the library: sessions refer to it. ONNX Runtime may be loaded more than once in a
// process, and each has a domain of its own.
OrtCustomOpDomain* domain_of(const OrtApi* api) {
  struct Domain {
    const OrtApi* api;
    OrtCustomOpDomain* domain;
    std::list<CustomOp> operators;
  };
  static std::mutex mutex;
  static std::list<Domain>& domains = *new std::list<Domain>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Domain& known : domains)
    if (known.api == api) return known.domain;
  Domain made{api, nullptr, {}};
  if (OrtStatus* status = api->CreateCustomOpDomain("nextscale", &made.domain)) {
    api->ReleaseStatus(status);
    return nullptr;
  }
  domains.push_back(std::move(made));
  Domain& domain = domains.back();
  for (const Operator* op : {
           &quantize_operator(),
           &norm_quantize_operator(),
           &linear_operator(),
           &pair_linear_operator(),
           &attention_operator(),
           &codes_attention_operator(),
           &integer_attention_operator(),
           &convolution_operator(),
           &group_norm_operator(),
           &codes_group_norm_operator(),
           &add_codes_operator(),
           &sample_operator(),
       }) {
    domain.operators.emplace_back(*op, api);
    if (OrtStatus* status = api->CustomOpDomain_Add(domain.domain, &domain.operators.back())) {
      api->ReleaseStatus(status);
      return nullptr;
    }
  }
  return domain.domain;
}

}  // namespace
}  // namespace nextscale

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(nextscale::kApiVersion);
  if (!api) return nullptr;  // older than any release that has custom operators like these: its graphs will not load
  return nextscale::guarded(api, [&] {
    OrtCustomOpDomain* domain = nextscale::domain_of(api);
    if (!domain) throw nextscale::Error("nextscale: the operators cannot be added");
    if (OrtStatus* status = api->AddCustomOpDomain(options, domain)) {
      const std::string message = api->GetErrorMessage(status);
      api->ReleaseStatus(status);
      throw nextscale::Error(message);
    }
  });
}

int nextscale_ops_version(void) { return nextscale::kOperatorsVersion; }

const char* nextscale_ops_isa(void) {
  const nextscale::Kernels* kernels = nextscale::choose_kernels();
  return kernels ? kernels->isa : nullptr;
}

// The fused operators of nextscale as a library of custom operators for ONNX Runtime.
//
// Give the library's path to SessionOptions (RegisterCustomOpsLibrary), or link it and call RegisterCustomOps.
#ifndef NEXTSCALE_OPS_H_
#define NEXTSCALE_OPS_H_

#include <onnxruntime_c_api.h>

#if defined(_WIN32)
#define NEXTSCALE_OPS_EXPORT __declspec(dllexport)
#else
#define NEXTSCALE_OPS_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Adds the domain "nextscale" to a session's options; the entry point that ONNX Runtime looks up by this name.
NEXTSCALE_OPS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* api);

// The version of the domain's operators: a bundle whose manifest asks for another one does not fit.
NEXTSCALE_OPS_EXPORT int nextscale_ops_version(void);

// The instruction set that kernels made from now on use, such as "avx512_vnni"; null if NEXTSCALE_OPS_ISA names none
// that this processor has.
NEXTSCALE_OPS_EXPORT const char* nextscale_ops_isa(void);

#ifdef __cplusplus
}
#endif

#endif  // NEXTSCALE_OPS_H_

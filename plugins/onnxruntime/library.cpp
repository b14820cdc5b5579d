// The function that ONNX Runtime looks up in a library of custom ops, and nothing else.
#include "onnxruntime/op.h"

// What `export/engine/op_library.py` finds in the file: where this library comes from, and which GPUs it has code for.
[[gnu::used]] static char const build_line[] = "madtp-onnxruntime {\"version\": \"" MADTP_VERSION
                                               "\", \"source\": \"" MADTP_SOURCE_SHA256 "\", \"sm\": \"" MADTP_SM "\"}";

namespace madtp::onnxruntime {
namespace {

constexpr ONNXTensorElementDataType kEngine = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr ONNXTensorElementDataType kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

void add_ops(OrtApi const& api, OrtSessionOptions* options) {
    OrtCustomOpDomain* domain = nullptr;
    check(api, api.CreateCustomOpDomain("madtp", &domain));
    // Never released: sessions keep the pointer, and nothing says when the last one is gone.
#ifndef MADTP_SIMT  // there the kernels of CUDA run for the CPU's provider
    for (OrtCustomOp const* op : cpu_ops()) { check(api, api.CustomOpDomain_Add(domain, op)); }
#endif
#ifdef MADTP_CUDA
    for (OrtCustomOp const* op : cuda_ops()) { check(api, api.CustomOpDomain_Add(domain, op)); }
#endif
    check(api, api.AddCustomOpDomain(options, domain));
}

}  // namespace

Signature aligned_attention_signature() {
    return {"AlignedAttention", {kEngine, kFloat}, {kEngine, kFloat, kFloat}};
}

Signature token_compact_signature() {
    return {"TokenCompact", {kEngine, kFloat, kInt32, kFloat, kFloat, kFloat, kFloat, kInt64},
        {kEngine, kFloat, kInt32, kInt64}};
}

Signature packed_aligned_attention_signature() {
    return {"PackedAlignedAttention", {kEngine, kFloat, kInt32}, {kEngine, kFloat, kFloat}};
}

Signature packed_token_compact_signature() {
    return {"PackedTokenCompact", {kEngine, kFloat, kInt32, kFloat, kFloat, kFloat, kInt32, kFloat, kInt64},
        {kEngine, kFloat, kInt32, kInt32, kInt64}};
}

Signature varlen_attention_signature() { return {"VarlenAttention", {kEngine, kEngine, kInt32, kInt32}, {kEngine}}; }

Signature quantized_linear_signature() { return {"QuantizedLinear", {kFloat, kInt8, kFloat, kFloat}, {kFloat}}; }

Signature quantized_linear_gelu_signature() {
    Signature signature = quantized_linear_signature();
    signature.name = "QuantizedLinearGelu";
    return signature;
}

}  // namespace madtp::onnxruntime

extern "C" [[gnu::visibility("default")]] OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, OrtApiBase const* base) noexcept {
    using namespace madtp::onnxruntime;
    OrtApi const* api = base->GetApi(kApiVersion);
    if (api == nullptr) {
        OrtApi const* oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, "libmadtp_onnxruntime.so needs ONNX Runtime 1.17 or later");
    }
    return guarded(*api, [&] { add_ops(*api, options); });
}

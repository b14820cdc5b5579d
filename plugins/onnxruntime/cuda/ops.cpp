#include "onnxruntime/cuda/ops.h"

namespace madtp::onnxruntime {
namespace {

// Compiled for the host, kernels take host memory, and the CPU's sessions drive them.
#ifdef MADTP_SIMT
constexpr char const* kProvider = nullptr;
#else
constexpr char const* kProvider = "CUDAExecutionProvider";
#endif

// Ops of one type; they live as long as the process.
template <ONNXTensorElementDataType type>
void add(std::vector<OrtCustomOp const*>& ops) {
    static Op<CudaAlignedAttention> const aligned_attention{aligned_attention_signature(), kProvider, type};
    static Op<CudaTokenCompact> const token_compact{token_compact_signature(), kProvider, type};
    static Op<CudaPackedAlignedAttention> const packed_attention{
        packed_aligned_attention_signature(), kProvider, type};
    static Op<CudaPackedTokenCompact> const packed_compact{packed_token_compact_signature(), kProvider, type};
    static Op<CudaVarlenAttention> const varlen_attention{varlen_attention_signature(), kProvider, type};
    ops.insert(ops.end(), {&aligned_attention, &token_compact, &packed_attention, &packed_compact, &varlen_attention});
}

}  // namespace

std::vector<OrtCustomOp const*> cuda_ops() {
    std::vector<OrtCustomOp const*> ops;
    add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>(ops);
    add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(ops);
    add<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(ops);
    return ops;
}

}  // namespace madtp::onnxruntime

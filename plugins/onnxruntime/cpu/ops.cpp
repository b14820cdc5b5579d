#include "onnxruntime/cpu/ops.h"

namespace madtp::onnxruntime {

std::vector<OrtCustomOp const*> cpu_ops() {
    constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    static Op<AlignedAttention> const aligned_attention{aligned_attention_signature(), nullptr, kFloat};
    static Op<TokenCompact> const token_compact{token_compact_signature(), nullptr, kFloat};
    return {&aligned_attention, &token_compact};
}

}  // namespace madtp::onnxruntime

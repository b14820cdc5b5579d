#include "onnxruntime/cpu/ops.h"

#include "onnxruntime/cpu/instruction_set.h"
#ifdef MADTP_AMX
#include "onnxruntime/cpu/quantized_kernels.h"
#include "onnxruntime/cpu/quantized_linear.h"
#endif

namespace madtp::onnxruntime {

std::vector<OrtCustomOp const*> cpu_ops() {
    constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    static Op<AlignedAttention> const aligned_attention{aligned_attention_signature(), nullptr, kFloat};
    static Op<TokenCompact> const token_compact{token_compact_signature(), nullptr, kFloat};
    static Op<PackedAlignedAttention> const packed_attention{packed_aligned_attention_signature(), nullptr, kFloat};
    static Op<PackedTokenCompact> const packed_compact{packed_token_compact_signature(), nullptr, kFloat};
    static Op<VarlenAttention> const varlen_attention{varlen_attention_signature(), nullptr, kFloat};
    std::vector<OrtCustomOp const*> ops{
        &aligned_attention, &token_compact, &packed_attention, &packed_compact, &varlen_attention};
#ifdef MADTP_AMX
    // elsewhere the function bodies run, whose products ONNX Runtime computes as fast
    static bool const amx = &cpu::kernels() == &cpu::avx512_kernels && cpu::has_amx();
    if (amx) {
        static Op<PlainQuantizedLinear> const plain{quantized_linear_signature(), nullptr, kFloat};
        static Op<GeluQuantizedLinear> const gelu{quantized_linear_gelu_signature(), nullptr, kFloat};
        ops.insert(ops.end(), {&plain, &gelu});
    }
#endif
    return ops;
}

}  // namespace madtp::onnxruntime

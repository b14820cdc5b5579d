// QuantizedLinear and QuantizedLinearGelu, the linear layers of INT8 files, where the processor has AMX.
#pragma once
#include <memory>
#include <vector>

#include "onnxruntime/op.h"

namespace madtp::onnxruntime {

class QuantizedLinear {
public:
    // Packs the weight, which has to be an initializer.
    QuantizedLinear(Attributes const& attributes, bool gelu);
    void run(Call const& context) const;

private:
    int64_t mDepth = 0, mColumns = 0;
    size_t mSteps = 0, mPanels = 0;
    std::shared_ptr<int8_t[]> mWeight;
    std::vector<int32_t> mColumnSum;
    bool mGelu;
};

struct PlainQuantizedLinear : QuantizedLinear {
    explicit PlainQuantizedLinear(Attributes const& attributes) : QuantizedLinear{attributes, false} {}
};

struct GeluQuantizedLinear : QuantizedLinear {
    explicit GeluQuantizedLinear(Attributes const& attributes) : QuantizedLinear{attributes, true} {}
};

}  // namespace madtp::onnxruntime

#include "onnxruntime/cpu/sequences.h"

namespace madtp::onnxruntime {

std::vector<size_t> starts_of(std::string const& name, Input const& cu_seqlens, int64_t rows) {
    auto const* given = cu_seqlens.as<int32_t>();
    std::vector<size_t> starts(static_cast<size_t>(cu_seqlens.shape[0]));
    for (size_t s = 0; s < starts.size(); ++s) {
        int32_t const least = s == 0 ? 0 : given[s - 1];
        if (given[s] < least || (s == 0 && given[s] != 0) || given[s] > rows) {
            refuse(name + " has " + std::to_string(given[s]) + " at " + std::to_string(s) +
                "; it has to start at 0, never fall, and end within the " + std::to_string(rows) + " rows that there are");
        }
        starts[s] = static_cast<size_t>(given[s]);
    }
    return starts;
}

}  // namespace madtp::onnxruntime

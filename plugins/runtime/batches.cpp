#include "batches.h"

#include <algorithm>
#include <cstring>

#include "part_checks.h"
#include "tensor.h"
#include "text.h"

namespace madtp::detail {
namespace {

void refuse_gpu(bool on_gpu) {
    if (on_gpu) {
        throw Error(Code::input, "a batch on a GPU cannot be filled up, or put together from several",
            "It would have to be copied.", "Use a batch that the artifact takes at once, or memory of the host.");
    }
}

TensorInfo const& info_of(std::vector<TensorInfo> const& tensors, std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](TensorInfo const& info) { return info.name == name; });
}

// A tensor as [groups, count, rows, inner elements]: rows of a batch lie in the middle dimension, `count` times.
struct BatchAxis {
    std::size_t axis = 0;
    int64_t count = 0;  // 0: no dimension counts batches

    explicit BatchAxis(TensorInfo const& info) {
        for (std::size_t i = 0; i < info.shape.size() && count == 0; ++i) {
            axis = i;
            count = batches_in(info.shape[i]);
        }
    }
};

std::size_t product(Shape const& shape, std::size_t begin, std::size_t end) {
    std::size_t size = 1;
    for (std::size_t i = begin; i < end; ++i) { size *= static_cast<std::size_t>(shape[i]); }
    return size;
}

// Copies `from` into `to`, whose dimensions are at least as large, behind `offset` rows of its batch axis.
void place(Tensor const& from, Tensor const& to, std::size_t axis, std::size_t offset, std::size_t dimension = 0,
    std::size_t source = 0, std::size_t target = 0) {
    Shape const& small = from.shape();
    Shape const& large = to.shape();
    // From here on both are laid out alike: one copy.
    bool const alike = dimension > axis && std::equal(small.begin() + static_cast<std::ptrdiff_t>(dimension) + 1,
                                               small.end(), large.begin() + static_cast<std::ptrdiff_t>(dimension) + 1);
    std::size_t const unit = size_of(from.type());
    if (dimension == small.size() || (dimension < small.size() && alike)) {
        std::size_t const bytes = product(small, dimension, small.size()) * unit;
        std::memcpy(static_cast<char*>(to.memory().get()) + target * unit,
            static_cast<char const*>(from.data()) + source * unit, bytes);
        return;
    }
    std::size_t const small_step = product(small, dimension + 1, small.size());
    std::size_t const large_step = product(large, dimension + 1, large.size());
    std::size_t const begin = dimension == axis ? offset : 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(small[dimension]); ++i) {
        place(from, to, axis, offset, dimension + 1, source + i * small_step, target + (begin + i) * large_step);
    }
}

// The tensor with its batch axis as [count, rows]: rows of several batches do not mix.
Tensor split_axis(Tensor const& tensor, BatchAxis const& batch, int64_t rows) {
    Shape shape = tensor.shape();
    shape[batch.axis] = rows;
    shape.insert(shape.begin() + static_cast<std::ptrdiff_t>(batch.axis), batch.count);
    return {tensor.memory(), tensor.type(), std::move(shape)};
}

Tensor merge_axis(Tensor const& tensor, BatchAxis const& batch) {
    Shape shape = tensor.shape();
    shape.erase(shape.begin() + static_cast<std::ptrdiff_t>(batch.axis));
    shape[batch.axis] *= batch.count;
    return {tensor.memory(), tensor.type(), std::move(shape)};
}

Tensor join_one(
    TensorInfo const& info, std::vector<Tensor> const& pieces, std::vector<int64_t> const& rows, bool packed) {
    BatchAxis const batch(info);
    if (batch.count == 0) { return pieces.front(); }
    std::vector<Tensor> split;
    for (std::size_t i = 0; i < pieces.size(); ++i) { split.push_back(split_axis(pieces[i], batch, rows[i])); }
    Shape shape = split.front().shape();
    bool uneven = false;
    int64_t all = 0;
    for (std::size_t i = 0; i < split.size(); ++i) {
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            if (axis == batch.axis + 1) { continue; }
            uneven = uneven || split[i].shape()[axis] != shape[axis];
            shape[axis] = std::max(shape[axis], split[i].shape()[axis]);
        }
        all += rows[i];
    }
    if (uneven && !packed) {
        throw Error(Code::input, "output " + in_quotes(info.name) + " has another length for each of the requests",
            "They keep different numbers of tokens, and this artifact says nothing of lengths.",
            "Ask one request at a time, or run them together: RunOptions::batch.");
    }
    shape[batch.axis + 1] = all;
    Tensor const joined = host_tensor(info.type, shape);
    if (uneven) { std::memset(joined.memory().get(), 0, joined.bytes()); }
    std::size_t offset = 0;
    for (std::size_t i = 0; i < split.size(); ++i) {
        place(split[i], joined, batch.axis + 1, offset);
        offset += static_cast<std::size_t>(rows[i]);
    }
    return merge_axis(joined, batch);
}

}  // namespace

bool can_be_cut(PartInfo const& part) noexcept {
    return std::all_of(part.inputs.begin(), part.inputs.end(), [](TensorInfo const& info) {
        return info.name == kTemperature || (!info.shape.empty() && batches_in(info.shape[0]) == 1);
    });
}

Inputs cut(Inputs const& inputs, int64_t begin, int64_t end, int64_t least, std::vector<Tensor>& copies) {
    Inputs result;
    for (auto const& [name, view] : inputs) {
        Shape shape = view.shape;
        shape[0] = 1;
        DataType const type = view.type;
        std::size_t const row = elements_of(shape).value_or(0) * size_of(type);
        auto const* const first = static_cast<char const*>(view.data) + static_cast<std::size_t>(begin) * row;
        shape[0] = end - begin;
        if (shape[0] >= least) {
            result.emplace(name, TensorView(first, type, shape, view.device));
            continue;
        }
        refuse_gpu(view.device != Device::host);
        shape[0] = least;
        Tensor const filled = host_tensor(type, shape);
        auto* const memory = static_cast<char*>(filled.memory().get());
        for (int64_t i = 0; i < least && row > 0; ++i) {
            std::size_t const from = static_cast<std::size_t>(std::min(i, end - begin - 1));
            std::memcpy(memory + static_cast<std::size_t>(i) * row, first + from * row, row);
        }
        copies.push_back(filled);
        result.emplace(name, filled.view());
    }
    return result;
}

Inputs narrow(PartInfo const& part, Inputs const& inputs, std::vector<Tensor>& copies) {
    Inputs result = inputs;
    for (auto& [name, view] : result) {
        if (view.type != DataType::float32 || info_of(part.inputs, name).type != DataType::float16) { continue; }
        Tensor const half = host_tensor(DataType::float16, view.shape);
        auto const* const from = static_cast<float const*>(view.data);
        std::transform(from, from + half.size(), static_cast<uint16_t*>(half.memory().get()), float_to_half);
        copies.push_back(half);
        view = half.view();
    }
    return result;
}

Outputs::Map widen(Outputs::Map outputs) {
    for (auto& [name, tensor] : outputs) {
        if (tensor.type() != DataType::float16 || tensor.device() != Device::host) { continue; }
        Tensor const wide = host_tensor(DataType::float32, tensor.shape());
        auto const* const from = static_cast<uint16_t const*>(tensor.data());
        std::transform(from, from + wide.size(), static_cast<float*>(wide.memory().get()), half_to_float);
        tensor = wide;
    }
    return outputs;
}

Outputs::Map without_copies(PartInfo const& part, Outputs::Map outputs, int64_t rows, int64_t kept) {
    if (rows == kept) { return outputs; }
    for (auto& [name, tensor] : outputs) {
        refuse_gpu(tensor.device() != Device::host);
        BatchAxis const batch(info_of(part.outputs, name));
        if (batch.count == 0) { continue; }
        Tensor const split = split_axis(tensor, batch, rows);
        Shape shape = split.shape();
        shape[batch.axis + 1] = kept;
        Tensor const rest = host_tensor(tensor.type(), shape);
        std::size_t const unit = size_of(tensor.type());
        std::size_t const groups = product(shape, 0, batch.axis + 1);
        std::size_t const inner = product(shape, batch.axis + 2, shape.size()) * unit;
        for (std::size_t group = 0; group < groups; ++group) {
            std::memcpy(static_cast<char*>(rest.memory().get()) + group * static_cast<std::size_t>(kept) * inner,
                static_cast<char const*>(split.data()) + group * static_cast<std::size_t>(rows) * inner,
                static_cast<std::size_t>(kept) * inner);
        }
        tensor = merge_axis(rest, batch);
    }
    return outputs;
}

Outputs::Map join(
    PartInfo const& part, std::vector<Outputs::Map> const& batches, std::vector<int64_t> const& rows, bool packed) {
    if (batches.size() == 1) { return batches.front(); }
    Outputs::Map joined;
    for (TensorInfo info : part.outputs) {
        if (info.name == kOverflow) { continue; }  // has been looked at
        std::vector<Tensor> pieces;
        for (Outputs::Map const& batch : batches) {
            pieces.push_back(batch.find(info.name)->second);
            refuse_gpu(pieces.back().device() != Device::host);
        }
        info.type = pieces.front().type();  // float16 has become float32
        joined.emplace(info.name, join_one(info, pieces, rows, packed));
    }
    return joined;
}

}  // namespace madtp::detail

#include "onnx_file.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "files.h"

namespace madtp::detail {
namespace {

// Messages of onnx.proto through which a tensor can be reached, and by which fields.
enum class Kind { model, graph, node, attribute, tensor, sparse, function, training, entry, other };

Kind kind_of(Kind parent, uint64_t field) {
    switch (parent) {
    case Kind::model:
        return field == 7 ? Kind::graph : field == 20 ? Kind::training : field == 25 ? Kind::function : Kind::other;
    case Kind::graph:
        return field == 1 ? Kind::node : field == 5 ? Kind::tensor : field == 15 ? Kind::sparse : Kind::other;
    case Kind::node: return field == 5 ? Kind::attribute : Kind::other;
    case Kind::attribute:
        if (field == 5 || field == 10) { return Kind::tensor; }
        if (field == 6 || field == 11) { return Kind::graph; }
        return field == 22 || field == 23 ? Kind::sparse : Kind::other;
    case Kind::sparse: return field == 1 || field == 2 ? Kind::tensor : Kind::other;
    case Kind::function: return field == 7 ? Kind::node : field == 11 ? Kind::attribute : Kind::other;
    case Kind::training: return field == 1 || field == 2 ? Kind::graph : Kind::other;
    case Kind::tensor: return field == 13 ? Kind::entry : Kind::other;
    default: return Kind::other;
    }
}

constexpr int kDeepest = 100;  // as protobuf itself
constexpr uint64_t kLongestName = 4096;

// Reads a file front to back through a small buffer; what is skipped is never read.
class Reader {
public:
    explicit Reader(std::string const& path) : file_(path), buffer_(1 << 16) {}

    uint64_t size() const { return file_.size(); }
    uint64_t position = 0;

    uint8_t byte() {
        if (position < begin_ || position >= begin_ + filled_) {
            begin_ = position;
            filled_ = file_.read(position, buffer_.data(), buffer_.size());
            if (filled_ == 0) { malformed(); }
        }
        return static_cast<uint8_t>(buffer_[position++ - begin_]);
    }

    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            uint8_t const part = byte();
            value |= uint64_t{part & 0x7fu} << shift;
            if (part < 0x80) { return value; }
        }
        malformed();
    }

    [[noreturn]] static void malformed() { throw std::runtime_error("It is truncated, or no ONNX model."); }

private:
    File file_;
    std::vector<char> buffer_;
    uint64_t begin_ = 0;
    std::size_t filled_ = 0;
};

std::string text(Reader& reader, uint64_t length) {
    if (length > kLongestName) { Reader::malformed(); }
    std::string value;
    for (uint64_t i = 0; i < length; ++i) { value += static_cast<char>(reader.byte()); }
    return value;
}

void walk(Reader& reader, Kind kind, uint64_t end, int depth, std::set<std::string>& found) {
    if (depth > kDeepest) { Reader::malformed(); }
    std::string key, value;  // of an entry
    while (reader.position < end) {
        uint64_t const tag = reader.varint(), field = tag >> 3;
        if (tag > UINT32_MAX) { Reader::malformed(); }  // protobuf would drop what is above
        uint64_t length = 0;
        switch (tag & 7) {
        case 0: reader.varint(); continue;
        case 1: length = 8; break;
        case 2: length = reader.varint(); break;
        case 5: length = 4; break;
        default: Reader::malformed();
        }
        if (reader.position > end || length > end - reader.position) { Reader::malformed(); }
        uint64_t const next = reader.position + length;
        if ((tag & 7) == 2 && kind == Kind::entry && field <= 2) {
            (field == 1 ? key : value) = text(reader, length);
        } else if (Kind const inner = kind_of(kind, field); (tag & 7) == 2 && inner != Kind::other) {
            walk(reader, inner, next, depth + 1, found);
        }
        reader.position = next;
    }
    if (reader.position != end) { Reader::malformed(); }
    if (kind == Kind::entry && key == "location") { found.insert(value); }
}

}  // namespace

std::set<std::string> external_locations(std::string const& path) {
    Reader reader(path);
    std::set<std::string> found;
    walk(reader, Kind::model, reader.size(), 0, found);
    return found;
}

}  // namespace madtp::detail

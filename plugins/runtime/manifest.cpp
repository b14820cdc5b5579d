#include "manifest.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "files.h"
#include "json.h"
#include "part_checks.h"
#include "text.h"

namespace madtp {

PartInfo const& Manifest::part(std::string_view name) const {
    auto const found =
        std::find_if(parts.begin(), parts.end(), [&](PartInfo const& part) { return part.name == name; });
    if (found == parts.end()) {
        std::string known;
        for (PartInfo const& part : parts) { known += (known.empty() ? "" : ", ") + part.name; }
        throw Error(Code::input, "there is no part " + detail::in_quotes(name), "The artifact has " + known + ".");
    }
    return *found;
}

namespace detail {
namespace {

constexpr uint64_t kLongest = 1 << 20;  // bytes; real ones have some 10 kB
constexpr int64_t kUnsealed = 3, kSchema = 4;
constexpr double kHuge = std::numeric_limits<double>::max();
constexpr int64_t kMostTokens = 1 << 20;
constexpr std::size_t kMostParts = 8, kMostBuckets = 64, kMostTensors = 64, kMostDimensions = 16;

std::vector<std::string> part_names(std::string const& task) {
    if (task == "nlvr") { return {"model"}; }
    if (task == "retrieval") { return {"image", "text", "match"}; }
    if (task == "clip") { return {"image", "text"}; }
    return {"encoder", "decoder"};
}

DataType read_type(Field const& field) {
    std::string const name = field.text_of({"float32", "float16", "int32", "int64"});
    return name == "float32"   ? DataType::float32
           : name == "float16" ? DataType::float16
           : name == "int32"   ? DataType::int32
                               : DataType::int64;
}

Shape read_shape(Field const& field) {
    Shape shape;
    for (Field const& size : field.entries(kMostDimensions)) { shape.push_back(size.whole(0, INT32_MAX)); }
    return shape;
}

std::vector<TensorInfo> read_tensors(Field const& field) {
    std::vector<TensorInfo> tensors;
    for (Field const& entry : field.entries(kMostTensors)) {
        TensorInfo info{entry["name"].text(), read_type(entry["dtype"]), {}};
        for (Field const& size : entry["shape"].entries(kMostDimensions)) {
            info.shape.push_back(size.is_text() ? Dimension{-1, size.text()} : Dimension{size.whole(0, INT32_MAX), {}});
        }
        for (TensorInfo const& other : tensors) {
            if (other.name == info.name) { entry.fail("the name " + in_quotes(info.name) + " stands twice"); }
        }
        tensors.push_back(std::move(info));
    }
    return tensors;
}

Profile read_profile(Field const& field) {
    std::vector<Field> const shapes = field.entries(3);
    if (shapes.size() != 3) { field.fail("it has to be the shapes min, opt and max"); }
    return {read_shape(shapes[0]), read_shape(shapes[1]), read_shape(shapes[2])};
}

// Every input with a dimension that varies has shapes of its rank, which agree with its fixed dimensions.
void check_profile(PartInfo const& part, Field const& field) {
    std::size_t varying = 0;
    bool batched = false;
    for (TensorInfo const& info : part.inputs) {
        bool const varies =
            std::any_of(info.shape.begin(), info.shape.end(), [](auto const& size) { return size.size < 0; });
        if (!varies) { continue; }
        ++varying;
        auto const found = part.profile.find(info.name);
        if (found == part.profile.end()) { field.fail("profile and inputs differ"); }
        auto const& [min, opt, max] = found->second;
        if (min.size() != info.shape.size() || opt.size() != min.size() || max.size() != min.size()) {
            field.fail("profile and inputs differ");
        }
        for (std::size_t axis = 0; axis < min.size(); ++axis) {
            bool const fixed = info.shape[axis].size >= 0;
            bool const ordered = min[axis] >= 0 && min[axis] <= opt[axis] && opt[axis] <= max[axis];
            bool const batch = info.shape[axis].symbol == "batch";
            batched = batched || batch;
            bool const agrees = !fixed || (min[axis] == info.shape[axis].size && max[axis] == min[axis]);
            if (!ordered || !agrees || (batch && min[axis] < 1)) {
                field.fail("the shapes of " + in_quotes(info.name) + " in the profile are none of it");
            }
        }
    }
    if (varying == 0 || varying != part.profile.size()) { field.fail("profile and inputs differ"); }
    if (!batched) { field.fail("none of its inputs has a batch"); }
}

// What says that tokens had no room is one int32.
void check_overflow(PartInfo const& part, Field const& field) {
    for (TensorInfo const& info : part.outputs) {
        if (info.name == kOverflow && (info.type != DataType::int32 || !info.shape.empty())) {
            field.fail("its output 'overflow' has to be one int32");
        }
    }
}

EngineFiles read_engine(Field const& field, Document const& document) {
    EngineFiles files;
    files.artifact = {field["artifact"].file_name(), field["sha256"].sha256()};
    std::string const suffix = suffix_of(files.artifact.name);
    if (suffix != suffix_of(document.manifest.artifact) || (suffix != ".onnx" && suffix != ".plan")) {
        field.fail(in_quotes(files.artifact.name) + " is neither an .onnx file nor a plan of this artifact");
    }
    if (auto const data = field.find("external_data")) {
        files.external_data = NamedFile{(*data)["file"].file_name(), (*data)["sha256"].sha256()};
    }
    return files;
}

void read_part(Field const& field, std::string const& checkpoint, Document& document) {
    PartInfo part;
    part.name = field["name"].text();
    part.inputs = read_tensors(field["inputs"]);
    part.outputs = read_tensors(field["outputs"]);
    check_overflow(part, field);
    for (auto const& [name, shapes] : field["profile"].members(kMostTensors)) {
        part.profile.emplace(name, read_profile(shapes));
    }
    check_profile(part, field);
    if (field["checkpoint_sha256"].sha256() != checkpoint) {
        field.fail("the part was made from another checkpoint than the manifest's");
    }
    PartFiles files;
    if (auto const buckets = field.find("buckets")) {
        for (Field const& bucket : buckets->entries(kMostBuckets)) {
            files.engines.push_back(read_engine(bucket, document));
            files.engines.back().batch = bucket["batch"].whole(1, INT32_MAX);
            files.engines.back().least = bucket["least"].whole(1, files.engines.back().batch);
        }
        bool const tells = std::any_of(
            part.outputs.begin(), part.outputs.end(), [](TensorInfo const& info) { return info.name == kOverflow; });
        if (!tells) { field.fail("it has buckets, and no output that says whether they had room"); }
    }
    files.engines.push_back(read_engine(field, document));
    files.engines.back().batch = INT32_MAX;
    part.file = files.engines.back().artifact.name;
    files.has_custom_nodes = !field["custom_nodes"].members(kMostTensors).empty();
    files.has_plugin_layers = !field["plugin_layers"].members(kMostTensors).empty();
    document.manifest.parts.push_back(std::move(part));
    document.parts.push_back(std::move(files));
}

std::optional<LibraryEntry> read_library(Field const& plugins) {
    std::optional<Field> const field = plugins.find("library");
    if ((plugins["mode"].text_of({"none", "library"}) == "library") != field.has_value()) {
        plugins.fail("mode and library differ");
    }
    if (!field) { return std::nullopt; }
    LibraryEntry entry;
    if (auto const file = field->find("file")) { entry.file = file->file_name(); }
    entry.embedded = (*field)["embedded"].flag();
    if (entry.embedded == entry.file.has_value()) { field->fail("it has to lie either in the plan or beside it"); }
    entry.version = (*field)["version"].text();
    entry.sha256 = (*field)["sha256"].sha256();
    entry.source = (*field)["source_sha256"].text();
    for (Field const& number : (*field)["sm"].entries(64)) {
        entry.sm.push_back(static_cast<int>(number.whole(0, 10000)));
    }
    return entry;
}

ImageSettings read_image(Field const& field) {
    ImageSettings image;
    image.size = field["size"].whole(1, 16384);
    image.mode = field["mode"].text();
    image.resize = field["resize"].text();
    image.scale = field["scale"].number(0, 1);
    std::vector<Field> const mean = field["mean"].entries(3), deviation = field["std"].entries(3);
    if (mean.size() != 3 || deviation.size() != 3) { field.fail("mean and std have to have three numbers"); }
    for (std::size_t channel = 0; channel < 3; ++channel) {
        image.mean[channel] = mean[channel].number(-1000, 1000);
        image.std[channel] = deviation[channel].number(0.001, 1000);
    }
    return image;
}

TextSettings read_text(Field const& field, Document& document) {
    TextSettings text;
    text.tokenizer = field["tokenizer"].text_of({"bert-wordpiece", "clip-bpe"});
    text.lowercase = field["lowercase"].flag();
    text.padded = field["padded"].flag();
    text.dropped = field["dropped"].text();
    text.dropped_as = field["dropped_as"].text();
    if (auto const words = field.find("max_words")) { text.max_words = words->whole(0, kMostTokens); }
    if (auto const last = field.find("last_id")) { text.last_id = last->whole(0, INT32_MAX); }
    text.first_id = field["first_id"].whole(0, INT32_MAX);
    text.pad_id = field["pad_id"].whole(0, INT32_MAX);
    text.max_tokens = field["max_tokens"].whole(1, kMostTokens);
    if (auto const prompt = field.find("prompt")) { text.prompt = prompt->text(); }
    if (auto const vocabulary = field.find("vocabulary")) {
        text.vocabulary_sha256 = (*vocabulary)["sha256"].sha256();
        if (auto const file = vocabulary->find("file")) {
            document.vocabulary = NamedFile{file->file_name(), text.vocabulary_sha256};
            text.vocabulary_path = document.folder + "/" + document.vocabulary->name;
        }
    }
    return text;
}

void check_part_names(Document const& document, Field const& parts) {
    std::vector<std::string> wanted = part_names(document.manifest.task), found;
    for (PartInfo const& part : document.manifest.parts) { found.push_back(part.name); }
    std::sort(wanted.begin(), wanted.end());
    std::sort(found.begin(), found.end());
    if (wanted != found) { parts.fail("these are not the parts of a " + document.manifest.task + " model"); }
}

// Everything but the hash of itself. Fields that nothing here depends on are vouched for by the hash alone.
Document read_fields(Field const& field, std::string const& path) {
    Document document;
    Manifest& manifest = document.manifest;
    document.folder = folder_of(path);
    manifest.path = path;
    manifest.task = field["task"].text_of({"nlvr", "vqa", "caption", "retrieval", "clip"});
    manifest.artifact = field["artifact"].file_name();
    manifest.layout = field["layout"].text_of({"dynamic", "packed"});
    manifest.batching = field["batching"].text_of({"reference", "per-request"});
    manifest.precision = field["precision"].text_of({"fp32", "fp16", "bf16", "int8", "fp8"});
    manifest.backend = field["backend"]["name"].text_of({"onnxruntime", "tensorrt", "tensorrt-rtx"});
    manifest.backend_version = field["backend"]["version"].text();
    if (auto const oldest = field["backend"].find("oldest")) { document.oldest = oldest->text(); }
    manifest.temperature = static_cast<float>(field["temperature"].number(0, std::numeric_limits<float>::max()));
    for (auto const& [name, entry] : field["config"].members(1000)) {
        if (entry.is_number()) { manifest.config[name] = entry.number(-kHuge, kHuge); }
    }
    if ((manifest.backend == "onnxruntime") == document.is_plan()) { field.fail("artifact and backend differ"); }
    std::string const checkpoint = field["checkpoint"]["sha256"].sha256();
    Field const parts = field["parts"];
    for (Field const& part : parts.entries(kMostParts)) { read_part(part, checkpoint, document); }
    check_part_names(document, parts);
    document.library = read_library(field["plugins"]);
    manifest.image = read_image(field["preprocessing"]["image"]);
    manifest.text = read_text(field["preprocessing"]["text"], document);
    std::optional<Field> const quantization = field.find("quantization");
    // Activations that are quantized while the model runs share one scale.
    bool const shares_scale = quantization && (*quantization)["mode"].text_of({"dynamic", "static"}) == "dynamic";
    manifest.batch_invariant = manifest.layout == "packed" && !shares_scale;
    return document;
}

bool exists(std::string const& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string manifest_of(std::string const& path) {
    std::string const suffix = suffix_of(path);
    bool const is_artifact = suffix == ".onnx" || suffix == ".plan";
    return is_artifact ? path.substr(0, path.size() - suffix.size()) + ".json" : path;
}

Document load(std::string const& path) {
    std::string text;
    try {
        text = read_file(path, kLongest);
    } catch (std::exception const& error) {
        throw Error(Code::manifest, "cannot read the manifest " + in_quotes(path), error.what(),
            "Keep artifact and manifest together under the names that the export gave them.");
    }
    return read_manifest(text, path);
}

// Whether a manifest and its artifact lie where `path` names one of them.
bool is_complete(std::string const& path) {
    try {
        std::string const found = manifest_of(path);
        Document const document = load(found);
        if (found != path) { return name_of_file(path) == document.manifest.artifact; }
        return exists(document.folder + "/" + document.manifest.parts[0].file);
    } catch (Error const&) { return false; }
}

}  // namespace

bool Document::is_plan() const { return suffix_of(manifest.artifact) == ".plan"; }

Document read_manifest(std::string const& text, std::string const& path) {
    std::optional<Field> field;
    try {
        field = Field::parse(text);
    } catch (std::runtime_error const& error) {
        throw Error(Code::manifest, "the manifest " + in_quotes(path) + " is no JSON", error.what(), "Export again.");
    }
    Document document;
    std::string own;
    try {
        int64_t const schema = (*field)["schema"].whole(0, INT32_MAX);
        if (schema != kUnsealed && schema != kSchema) {
            throw Error(Code::manifest, "the manifest " + in_quotes(path) + " is of schema " + std::to_string(schema),
                "Known are " + std::to_string(kUnsealed) + " and " + std::to_string(kSchema) + ".",
                "Export again, or use the version that wrote it.");
        }
        document = read_fields(*field, path);
        if (schema == kSchema) { own = (*field)["manifest_sha256"].sha256(); }
    } catch (Error const&) { throw; } catch (std::runtime_error const& error) {
        throw Error(Code::manifest, "the manifest " + in_quotes(path) + " is malformed", error.what(), "Export again.");
    }
    if (!own.empty() && sha256_of(field->canonical("manifest_sha256")) != own) {
        throw Error(Code::manifest, "the manifest " + in_quotes(path) + " was changed after it was written",
            "It is not what the hash in it was made of, so that answers may be others than those that were validated.",
            "Use the file that the export wrote, or export again.");
    }
    document.manifest.sha256 = own;
    return document;
}

Document open_manifest(std::string const& given) {
    std::string path = given;
    // A symbolic link is what it leads to, unless the artifact's files lie, or are linked, beside it.
    char target[PATH_MAX];
    if (::readlink(path.c_str(), target, sizeof target) >= 0 && !is_complete(path)) {
        if (::realpath(path.c_str(), target) != nullptr) { path = target; }
    }
    std::string const found = manifest_of(path);
    Document document = load(found);
    if (found != path && name_of_file(path) != document.manifest.artifact) {
        throw Error(Code::manifest,
            in_quotes(found) + " is the manifest of " + in_quotes(document.manifest.artifact) + ", not of " +
                in_quotes(name_of_file(path)),
            "The artifact was renamed, or is another.",
            "Keep artifact and manifest together under the names that the export gave them.");
    }
    return document;
}

}  // namespace detail
}  // namespace madtp

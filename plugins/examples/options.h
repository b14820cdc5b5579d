// What nlvr_app and caption_app have in common: their options, and how tokens are shown.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <madtp/tasks.hpp>
#include <string>
#include <vector>

#include "numbers.h"

struct Options {
    std::vector<std::string> names;  // what is no option: the artifact first
    madtp::EngineOptions engine;
    std::optional<float> temperature;
    std::string vocabulary;
    std::optional<std::string> prompt;
    int64_t beams = 3;
    bool rotate = false;
};

inline Options parse(int count, char** given) {
    Options options;
    for (int i = 1; i < count; ++i) {
        std::string const name = given[i];
        if (name.rfind("--", 0) != 0) {
            options.names.push_back(name);
            continue;
        }
        if (name == "--rotate") {
            options.rotate = true;
            continue;
        }
        if (++i == count) { throw madtp::Error(madtp::Code::input, name + " has no value"); }
        if (name == "--temperature") {
            options.temperature = number_of<float>(name, given[i]);
        } else if (name == "--vocab") {
            options.vocabulary = given[i];
        } else if (name == "--beams") {
            options.beams = number_of<int64_t>(name, given[i]);
        } else if (name == "--prompt") {
            options.prompt = given[i];
        } else if (name == "--device" && std::string(given[i]) == "cuda") {
            options.engine.device = madtp::Device::cuda;
        } else if (name == "--onnxruntime") {
            options.engine.runtime_library = given[i];
        } else {
            throw madtp::Error(madtp::Code::input, "there is no option " + name + " " + given[i]);
        }
    }
    return options;
}

inline madtp::Image open_image(std::string const& path, Options const& options) {
    madtp::Image image = madtp::read_image(path, options.rotate);
    if (image.orientation != 1) {
        std::fprintf(stderr,
            "note: the orientation in the EXIF data of '%s' is ignored, as published; --rotate follows it\n",
            path.c_str());
    }
    return image;
}

inline std::string shown(madtp::Tokens const& tokens) {
    std::string text;
    for (char const* encoder : {"vision", "text"}) {
        auto const found = tokens.find(encoder);
        if (found == tokens.end()) { continue; }
        text += (text.empty() ? "" : ", ") + found->first;
        for (int32_t count : found->second) { text += " " + std::to_string(count); }
    }
    return text;
}

// Runs `program`; an error is printed, and the exit status is 2.
template <typename Program>
int run(int count, char** given, Program program) {
    try {
        program(parse(count, given));
        return 0;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}

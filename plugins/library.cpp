// The two functions that TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary), and nothing else.
#include "aligned_attention/plugin.h"
#include "packed_aligned_attention/plugin.h"
#include "packed_token_compact/plugin.h"
#include "token_compact/plugin.h"
#include "varlen_attention/plugin.h"

// What `export/engine/plugin_library.py` finds in the file: where this library comes from, and which GPUs it has code for.
[[gnu::used]] static char const build_line[] =
    "madtp-plugins {\"version\": \"" MADTP_VERSION "\", \"source\": \"" MADTP_SOURCE_SHA256 "\", \"sm\": \"" MADTP_SM "\"}";

extern "C" {

[[gnu::visibility("default")]] void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
    madtp::set_logger_finder(finder);
}

[[gnu::visibility("default")]] nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    static madtp::Creator<madtp::AlignedAttentionPlugin> aligned_attention;
    static madtp::Creator<madtp::TokenCompactPlugin> token_compact;
    static madtp::Creator<madtp::PackedAlignedAttentionPlugin> packed_aligned_attention;
    static madtp::Creator<madtp::PackedTokenCompactPlugin> packed_token_compact;
    static madtp::Creator<madtp::VarlenAttentionPlugin> varlen_attention;
    static madtp::Creator<madtp::TokenCompactPlugin> with_margin{
        madtp::TokenCompactPlugin::kMarginVersion, madtp::TokenCompactPlugin::kMarginNamespace};
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&aligned_attention, &token_compact,
        &packed_aligned_attention, &packed_token_compact, &varlen_attention, &with_margin};
    count = static_cast<int32_t>(sizeof creators / sizeof creators[0]);
    return creators;
}
}

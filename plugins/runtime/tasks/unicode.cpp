#include "tasks/unicode.h"

#include "tasks/fail.h"

#ifdef MADTP_ICU
#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

namespace madtp {
namespace {

// The package tokenizers knows categories as of Unicode 8.0; what came later has none there, whatever ICU knows.
constexpr std::uint8_t kNewest = 8;
constexpr std::size_t kLongest = 1 << 28;  // bytes of a text or vocabulary; ICU counts in 32 bits

std::uint32_t category(char32_t c) noexcept {
    // Their category was another one then.
    switch (c) {
        case 0x166d: return U_GC_PO_MASK;
        case 0x1734: return U_GC_MN_MASK;
        case 0xa9bd: return U_GC_MC_MASK;
        case 0x1885:
        case 0x1886: return U_GC_LO_MASK;
        case 0x111c9: return U_GC_PO_MASK;
        default: break;
    }
    UVersionInfo age;
    u_charAge(static_cast<UChar32>(c), age);
    return age[0] > kNewest ? 0 : U_GET_GC_MASK(static_cast<UChar32>(c));
}

bool is_dropped(char32_t c) noexcept {
    if (c == '\t' || c == '\n' || c == '\r') { return false; }
    return c == 0 || c == 0xfffd || (category(c) & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK)) != 0;
}

bool is_chinese(char32_t c) noexcept {
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) ||
           (c >= 0x2b920 && c <= 0x2ceaf) ||  // 2b820 was meant, but this is what the models' texts were read with
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

icu::UnicodeString utf16(std::u32string const& text) {
    return icu::UnicodeString::fromUTF32(
        reinterpret_cast<UChar32 const*>(text.data()), static_cast<std::int32_t>(text.size()));
}

std::u32string utf32(icu::UnicodeString const& text) {
    std::u32string result;
    result.reserve(static_cast<std::size_t>(text.length()));
    for (std::int32_t at = 0; at < text.length(); at = text.moveIndex32(at, 1)) {
        result += static_cast<char32_t>(text.char32At(at));
    }
    return result;
}

// NFD, as the package tokenizers knows it: what came after Unicode 9.0 is left as it is.
std::u32string decomposed(std::u32string const& text) {
    static icu::UnicodeSet const known = [] {
        UErrorCode status = U_ZERO_ERROR;
        icu::UnicodeSet set(u"[:age=9.0:]", status);
        set.freeze();
        return set;
    }();
    UErrorCode status = known.isEmpty() ? U_INTERNAL_PROGRAM_ERROR : U_ZERO_ERROR;
    icu::UnicodeString result;
    icu::Normalizer2 const* nfd = icu::Normalizer2::getNFDInstance(status);
    if (U_SUCCESS(status)) { icu::FilteredNormalizer2(*nfd, known).normalize(utf16(text), result, status); }
    if (U_FAILURE(status)) { throw Error(Code::internal, "ICU cannot normalise a text", u_errorName(status)); }
    return utf32(result);
}

}  // namespace

std::u32string code_points(std::string_view utf8, char const* name) {
    if (utf8.size() > kLongest) {
        fail(std::string(name) + " has " + std::to_string(utf8.size()) + " bytes",
            "At most " + std::to_string(kLongest) + " are read.", "Shorten it.");
    }
    std::u32string result;
    auto const* bytes = reinterpret_cast<std::uint8_t const*>(utf8.data());
    for (std::size_t at = 0; at < utf8.size();) {
        UChar32 c;
        std::size_t const begin = at;
        U8_NEXT(bytes, at, utf8.size(), c);
        if (c < 0) {
            fail(std::string(name) + " is not Unicode",
                "Byte " + std::to_string(begin) + " begins no character of UTF-8.", "Hand over UTF-8.");
        }
        result += static_cast<char32_t>(c);
    }
    return result;
}

std::string utf8(std::u32string_view text) {
    std::string result;
    for (char32_t c : text) {
        std::uint8_t bytes[U8_MAX_LENGTH];
        int size = 0;
        U8_APPEND_UNSAFE(bytes, size, static_cast<UChar32>(c));
        result.append(reinterpret_cast<char const*>(bytes), static_cast<std::size_t>(size));
    }
    return result;
}

std::u32string lower(std::u32string const& text) { return utf32(utf16(text).toLower(icu::Locale::getRoot())); }

bool is_space(char32_t c) noexcept { return (c >= 0x1c && c <= 0x1f) || is_bert_space(c); }

bool is_bert_space(char32_t c) noexcept { return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_WHITE_SPACE) != 0; }

bool is_bert_punctuation(char32_t c) noexcept {
    if (c < 0x80) {
        return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') || (c > 'z' && c < 0x7f);
    }
    return (category(c) & U_GC_P_MASK) != 0;
}

std::u32string bert_normalized(std::u32string const& text) {
    std::u32string clean;
    for (char32_t c : text) {
        if (is_dropped(c)) { continue; }
        if (is_chinese(c)) {
            clean += U' ';
            clean += c;
            clean += U' ';
        } else {
            clean += is_bert_space(c) ? U' ' : c;
        }
    }
    std::u32string result;
    for (char32_t c : decomposed(clean)) {
        if ((category(c) & U_GC_MN_MASK) == 0) { result += static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))); }
    }
    return result;
}

}  // namespace madtp
#else
namespace madtp {
namespace {

[[noreturn]] void fail_without_icu() {
    fail("this build cannot read texts", "It was compiled without ICU, which knows accents and cases.",
        "Install ICU (Debian: libicu-dev) and build again; or hand over ids.");
}

}  // namespace

std::u32string code_points(std::string_view, char const*) { fail_without_icu(); }
std::string utf8(std::u32string_view) { fail_without_icu(); }
std::u32string lower(std::u32string const&) { fail_without_icu(); }
bool is_space(char32_t) noexcept { return false; }
std::u32string bert_normalized(std::u32string const&) { fail_without_icu(); }
bool is_bert_punctuation(char32_t) noexcept { return false; }
bool is_bert_space(char32_t) noexcept { return false; }

}  // namespace madtp
#endif

#include "onnxruntime/cpu/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

#include "onnxruntime/cpu/kernels.h"

namespace madtp::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kChunk = size_t{32} << 20, kLine = 64;

// Where the next weights go: behind the last ones, while any that share the chunk are in use.
class Chunks {
public:
    std::shared_ptr<int8_t[]> take(size_t bytes) {
        std::lock_guard<std::mutex> const lock{mMutex};
        std::shared_ptr<int8_t[]> chunk = mLast.lock();
        if (chunk == nullptr || mSize - mUsed < bytes) {
            size_t const size = round_up(std::max(bytes, kChunk), kHugePage);
            void* memory = std::aligned_alloc(kHugePage, size);
            if (memory == nullptr) { throw std::bad_alloc{}; }
            madvise(memory, size, MADV_HUGEPAGE);  // where the system has none, small ones do
            chunk.reset(static_cast<int8_t*>(memory), [](int8_t* owned) { std::free(owned); });
            mLast = chunk;
            mSize = size;
            mUsed = 0;
        }
        int8_t* place = chunk.get() + mUsed;
        mUsed += round_up(bytes, kLine);
        mUsed = std::min(mUsed, mSize);
        return {std::move(chunk), place};
    }

private:
    std::mutex mMutex;
    std::weak_ptr<int8_t[]> mLast;
    size_t mSize = 0, mUsed = 0;
};

}  // namespace

std::shared_ptr<int8_t[]> weight_memory(size_t bytes) {
    static Chunks chunks;
    return chunks.take(bytes);
}

}  // namespace madtp::cpu

#include "simt.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

char const* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
        case cudaErrorNotSupported: return "operation not supported";
    }
    return "unknown error";
}

static thread_local cudaError_t last_error = cudaSuccess;

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

[[noreturn]] void fail(std::string const& what) {
    std::fprintf(stderr, "simt: %s (block %u,%u,%u thread %u)\n", what.c_str(), blockIdx.x, blockIdx.y, blockIdx.z,
        threadIdx.x);
    std::fflush(stderr);
    std::abort();
}

// A saved stack pointer (the callee-saved registers lie on its stack), or a ucontext where there is no assembly.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context{};
#endif
};

void switch_context(Context& from, Context& to) {
#if defined(__x86_64__)
    simt_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {
    void* shared;
    void const* global;
    size_t bytes;
    bool inside;
};

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    State state = State::kDone;
    dim3 index;
    std::vector<std::vector<Copy>> groups;  // asynchronous copies; the last group is not yet committed
    void* fake_stack = nullptr;
};

struct Warp {
    std::vector<int> ready;  // threads that can go on
    int arrived = 0;
    char const* name = nullptr;
    void const* ins[kWarp];
    void* outs[kWarp];
};

// Everything of the running grid. One grid runs at a time.
struct Machine {
    std::mutex mutex;
    Context scheduler;
    void const* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    void* scheduler_fake_stack = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<int> warp_order;  // the first warp that can goes on, where `hurried`; else any
    bool hurried = false;
    int threads = 0;
    int at_barrier = 0;
    int done = 0;
    int current = 0;
    unsigned char* shared = nullptr;
    std::function<void()> const* kernel = nullptr;
    std::mt19937 random{0};
    std::map<std::pair<std::string, int>, long> barrier_calls;
    std::pair<std::string, int> skipped_barrier;
    int most_shared = 99 * 1024;  // bytes that a kernel may be allowed, as on compute capability 8.6
    std::map<void const*, int> allowed_shared;
};

Machine machine;

Fiber& running() { return *machine.fibers[machine.current]; }

void to_scheduler() {
    Fiber& fiber = running();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &fiber.fake_stack, machine.scheduler_stack,
        machine.scheduler_stack_bytes);
#endif
    switch_context(fiber.context, machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void to_fiber(int index) {
    Fiber& fiber = *machine.fibers[index];
    machine.current = index;
    threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
    switch_context(machine.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
    (*machine.kernel)();
    running().state = State::kDone;
    ++machine.done;
    to_scheduler();
    fail("a finished thread was resumed");
}

void start(Fiber& fiber) {
    fiber.groups.assign(1, {});
    fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    // A thread never returns from fiber_main, whose frame is still marked from the last time.
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
#if defined(__x86_64__)
    auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t{15};
    auto** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;  // where fiber_main would return to; keeps the stack as the ABI wants it at a function's entry
    *--slot = reinterpret_cast<void*>(&fiber_main);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--slot = nullptr;
    fiber.context.stack_pointer = slot;
#else
    getcontext(&fiber.context.context);
    fiber.context.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context.context, fiber_main, 0);
#endif
}

void make_ready(int index) {
    machine.fibers[index]->state = State::kReady;
    machine.warps[index / kWarp].ready.push_back(index);
}

void release(int first, int last, State from) {
    for (int index = first; index < last; ++index) {
        Fiber& fiber = *machine.fibers[index];
        if (fiber.state != from) continue;
        make_ready(index);
    }
}

// A thread that may go on, -1 if there is none. In every other block some warps run ahead of the others as far as
// barriers let them; that, threads drawn evenly would hardly ever do.
int next_thread() {
    auto const& order = machine.warp_order;
    size_t const start = machine.hurried ? 0 : machine.random() % order.size();
    for (size_t step = 0; step < order.size(); ++step) {
        auto& ready = machine.warps[order[(start + step) % order.size()]].ready;
        if (ready.empty()) continue;
        std::swap(ready[machine.random() % ready.size()], ready.back());
        int const index = ready.back();
        ready.pop_back();
        return index;
    }
    return -1;
}

void run_block() {
    for (Warp& warp : machine.warps) {
        warp.ready.clear();
        warp.arrived = 0;
    }
    machine.warp_order.resize(machine.warps.size());
    std::iota(machine.warp_order.begin(), machine.warp_order.end(), 0);
    std::shuffle(machine.warp_order.begin(), machine.warp_order.end(), machine.random);
    machine.hurried = machine.random() % 2 != 0;
    machine.at_barrier = machine.done = 0;
    for (int index = 0; index < machine.threads; ++index) {
        Fiber& fiber = *machine.fibers[index];
        start(fiber);
        fiber.index = dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y));
        make_ready(index);
    }
    for (int index = next_thread(); index >= 0; index = next_thread()) {
        to_fiber(index);
        if (machine.at_barrier == machine.threads) {
            machine.at_barrier = 0;
            release(0, machine.threads, State::kBarrier);
        }
    }
    if (machine.done != machine.threads)
        fail("deadlock: some threads wait at a barrier or in a warp operation that others never reach");
}

}  // namespace

cudaError_t allow_shared(void const* kernel, int bytes) {
    std::lock_guard<std::mutex> const lock(machine.mutex);
    if (bytes < 0 || bytes > machine.most_shared) return last_error = cudaErrorInvalidValue;
    machine.allowed_shared[kernel] = bytes;
    return cudaSuccess;
}

cudaError_t launch(
    void const* kernel, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> const& body) {
    std::lock_guard<std::mutex> const lock(machine.mutex);
    if (shared_bytes > 48 * 1024 && shared_bytes > size_t(machine.allowed_shared[kernel]))
        return last_error = cudaErrorInvalidValue;
    machine.threads = static_cast<int>(block.x * block.y * block.z);
    if (machine.threads % kWarp != 0 || machine.threads > 1024) fail("a block of a size that is not supported");
    while (machine.fibers.size() < size_t(machine.threads)) machine.fibers.push_back(std::make_unique<Fiber>());
    machine.warps.assign(machine.threads / kWarp, {});
    machine.kernel = &body;
    gridDim = grid;
    blockDim = block;
    std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), machine.random);
    for (unsigned const number : blocks) {
        blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y));
        // Of exactly the size asked for, so that AddressSanitizer sees an access behind it.
        void* shared = nullptr;
        if (shared_bytes != 0 && posix_memalign(&shared, 128, shared_bytes) != 0) fail("out of memory");
        machine.shared = static_cast<unsigned char*>(shared);
        if (shared != nullptr) std::memset(shared, 0xff, shared_bytes);
        run_block();
        std::free(shared);
    }
    return cudaSuccess;
}

void* shared_memory() { return machine.shared; }

void block_barrier(char const* file, int line) {
    char const* const slash = std::strrchr(file, '/');
    auto const site = std::make_pair(std::string(slash ? slash + 1 : file), line);
    ++machine.barrier_calls[site];
    if (site == machine.skipped_barrier) return;
    running().state = State::kBarrier;
    ++machine.at_barrier;
    to_scheduler();
}

void warp_collective(char const* name, void const* in, size_t, void* out, size_t,
    std::function<void(void const* const*, void* const*)> const& combine) {
    int const first = machine.current / kWarp * kWarp;
    Warp& warp = machine.warps[machine.current / kWarp];
    if (warp.arrived == 0) warp.name = name;
    if (std::strcmp(warp.name, name) != 0) fail(std::string("a warp is in ") + warp.name + " and in " + name);
    int const lane = machine.current - first;
    warp.ins[lane] = in;
    warp.outs[lane] = out;
    running().state = State::kWarp;
    if (++warp.arrived == kWarp) {
        combine(warp.ins, warp.outs);
        warp.arrived = 0;
        release(first, first + kWarp, State::kWarp);
    }
    to_scheduler();
}

static void perform(Copy const& copy) {
    if (copy.inside)
        std::memcpy(copy.shared, copy.global, copy.bytes);
    else
        std::memset(copy.shared, 0, copy.bytes);
}

void async_copy(void* shared, void const* global, size_t bytes, bool inside) {
    if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || (inside && reinterpret_cast<uintptr_t>(global) % bytes != 0))
        fail("an asynchronous copy from or to an address that is not aligned to its size");
    Copy const copy{shared, global, bytes, inside};
    if (machine.random() % 2 != 0)
        perform(copy);
    else
        running().groups.back().push_back(copy);
}

void async_commit() { running().groups.emplace_back(); }

void async_wait(int pending_groups) {
    auto& groups = running().groups;
    while (groups.size() > size_t(pending_groups) + 1) {
        for (Copy const& copy : groups.front()) perform(copy);
        groups.erase(groups.begin());
    }
}

float half_to_float(uint16_t bits) {
    static std::vector<float> const table = [] {
        std::vector<float> values(1 << 16);
        for (size_t number = 0; number < values.size(); ++number) {
            auto const narrow = static_cast<uint16_t>(number);
            _Float16 half;
            std::memcpy(&half, &narrow, sizeof half);
            values[number] = static_cast<float>(half);
        }
        return values;
    }();
    return table[bits];
}

uint16_t float_to_half(float value) {
    auto const half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

}  // namespace simt

// For tests: the seed of all interleaving, barriers that can be taken out to see whether the tests notice, the most shared
// memory that a kernel is allowed, and the thread's last error.
extern "C" {

__attribute__((visibility("default"))) void simt_seed(unsigned seed) { simt::machine.random.seed(seed); }

__attribute__((visibility("default"))) void simt_skip_barrier(char const* file, int line) {
    simt::machine.skipped_barrier = {file, line};
}

__attribute__((visibility("default"))) void simt_forget_barriers() { simt::machine.barrier_calls.clear(); }

__attribute__((visibility("default"))) void simt_allow_at_most(int bytes) { simt::machine.most_shared = bytes; }

__attribute__((visibility("default"))) void simt_leave_error(int error) {
    last_error = static_cast<cudaError_t>(error);
}

__attribute__((visibility("default"))) int simt_last_error() { return cudaPeekAtLastError(); }

// "file:line calls\n" of every barrier passed since they were forgotten. Valid until the next call.
__attribute__((visibility("default"))) char const* simt_barriers() {
    static std::string text;
    text.clear();
    for (auto const& [site, calls] : simt::machine.barrier_calls)
        text += site.first + ":" + std::to_string(site.second) + " " + std::to_string(calls) + "\n";
    return text.c_str();
}
}

// A block of a GPU on the processor: each thread is a coroutine, and runs until it waits for others.
//
// 1. `launch(grid, block, shared bytes, kernel)` runs the blocks one after another, in an order that a seed shuffles.
// 2. Threads of a block take turns; one that comes to a barrier or to an instruction of its whole warp waits there until
//    all others of the block, or warp, have come to the same one. Warps run to the next barrier one after another, in a
//    shuffled order too, so a missing barrier shows as a wrong number.
// 3. Asynchronous copies happen as late as they may: when their group is waited for. Shared memory begins as NaN.
//
// Aborts, with the thread's index, on what a device would hang at or leave undefined: lanes of a warp at different
// instructions, a barrier that some threads never reach, addresses that are not aligned or out of shared memory.
#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
#define __constant__ static const

// GCC's own jumps between stacks cost no system call; elsewhere `swapcontext` does the same, several times slower.
#if defined(__GNUC__) && !defined(__clang__)
#define OWN_JUMPS
#endif

using std::max;
using std::min;

struct bf16 {
    uint16_t bits;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
// To the nearest, ties to even.
inline bf16 to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (f != f) return bf16{0x7fff};
    bits += 0x7fff + ((bits >> 16) & 1);
    return bf16{uint16_t(bits >> 16)};
}

struct Dim {
    unsigned x = 1, y = 1, z = 1;
    Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    unsigned count() const { return x * y * z; }
};

namespace machine {

enum class At { Running, Block, Warp, Done };

struct Copy {
    void *to;
    const void *from;
    bool take;
};

// Where a coroutine goes on.
struct Place {
    ucontext_t context;
#ifdef OWN_JUMPS
    void *at[5];
#endif
};

// Made once: when it has run to its end it waits for the next block that has a place for it.
struct Thread {
    Place place;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    Dim index;
    At at = At::Running;
    int what = 0;                    // which instruction of the warp it waits at
    unsigned long value[2][3] = {};  // what it brings there, of this instruction and of the one before
    int turn = 0;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

struct Block {
    Dim grid, size, index;
    std::vector<Thread> threads = std::vector<Thread>(1024);
    std::vector<char> shared;
    unsigned now = 0;
    Place scheduler;
    std::function<void()> body;
    std::mt19937 order;
};

static Block the_block;
static inline Block &block() { return the_block; }
static inline Thread &self() { return block().threads[block().now]; }

[[noreturn]] inline void fail(const char *what) {
    Block &b = block();
    fprintf(stderr, "block (%u,%u,%u), thread %u: %s\n", b.index.x, b.index.y, b.index.z, b.now, what);
    abort();
}

// Goes on at `to`, and here again when somebody comes back to `from`. A place that has not `begun` is entered by its context.
#ifdef OWN_JUMPS
[[noreturn, gnu::noinline]] inline void jump(Place &to) { __builtin_longjmp(to.at, 1); }
[[gnu::noinline]] inline void change(Place &from, Place &to, bool begun) {
    if (__builtin_setjmp(from.at)) return;
    if (!begun) setcontext(&to.context);
    jump(to);
}
#else
inline void change(Place &from, Place &to, bool) { swapcontext(&from.context, &to.context); }
#endif

inline void yield(At at) {
    self().at = at;
    change(self().place, block().scheduler, true);
}

// All lanes of the warp come here with up to three values; returns how to read those of lane `i` once they all have come.
struct Lanes {
    Thread *first;
    int turn;
    // Stays until the lanes have come to the instruction after the next.
    unsigned long get(int i, int which = 0) const {
        return first + i < block().threads.data() + block().size.count() ? first[i].value[turn][which] : 0;
    }
};
inline Lanes together(int what, unsigned long a = 0, unsigned long b = 0, unsigned long c = 0) {
    Thread &t = self();
    t.what = what;
    t.turn ^= 1;
    t.value[t.turn][0] = a;
    t.value[t.turn][1] = b;
    t.value[t.turn][2] = c;
    yield(At::Warp);
    return {&block().threads[block().now / 32 * 32], t.turn};
}

inline void enter() {
    for (;;) {
        block().body();
        if (!self().open.empty()) fail("ended with copies that were never committed");
        yield(At::Done);
    }
}

inline void run_block() {
    Block &b = block();
    unsigned n = b.size.count(), warps = (n + 31) / 32;
    constexpr size_t STACK = 256 << 10;
    for (unsigned i = 0; i < n; i++) {
        Thread &t = b.threads[i];
        t.index = Dim(i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y));
        t.at = At::Running;
        t.groups.clear();
        if (t.stack) continue;
        t.stack.reset(new char[STACK]);
        getcontext(&t.place.context);
        t.place.context.uc_stack.ss_sp = t.stack.get();
        t.place.context.uc_stack.ss_size = STACK;
        t.place.context.uc_link = nullptr;
        makecontext(&t.place.context, enter, 0);
    }
    std::vector<unsigned> turn(warps);
    for (unsigned w = 0; w < warps; w++) turn[w] = w;
    for (;;) {
        std::shuffle(turn.begin(), turn.end(), b.order);
        for (unsigned w : turn) {
            unsigned first = w * 32, last = std::min(first + 32, n);
            for (;;) {
                // 1. all that can run
                for (unsigned i = first; i < last; i++) {
                    if (b.threads[i].at == At::Running) {
                        b.now = i;
                        bool begun = std::exchange(b.threads[i].begun, true);
                        change(b.scheduler, b.threads[i].place, begun);
                    }
                }
                // 2. a warp that is whole goes on
                unsigned waiting = 0;
                for (unsigned i = first; i < last; i++) waiting += b.threads[i].at == At::Warp;
                if (waiting == 0) break;
                for (unsigned i = first; i < last; i++) {
                    b.now = i;
                    if (b.threads[i].at != At::Warp) fail("does not take part in an instruction of its whole warp");
                    if (b.threads[i].what != b.threads[first].what) fail("is at another instruction than its warp");
                }
                for (unsigned i = first; i < last; i++) b.threads[i].at = At::Running;
            }
        }
        unsigned done = 0, waiting = 0;
        for (unsigned i = 0; i < n; i++) {
            At at = b.threads[i].at;
            done += at == At::Done, waiting += at == At::Block;
        }
        if (done == n) return;
        if (waiting != n) fail("some threads wait at a barrier that others never reach");
        for (unsigned i = 0; i < n; i++) b.threads[i].at = At::Running;
    }
}

inline void finish(const Copy &copy) {
    if (copy.take)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
}

inline const char *in_shared(const void *p, size_t bytes, const char *what) {
    Block &b = block();
    const char *c = static_cast<const char *>(p);
    if (reinterpret_cast<uintptr_t>(p) % 16) fail(what);
    if (c < b.shared.data() || c + bytes > b.shared.data() + b.shared.size()) fail(what);
    return c;
}

}  // namespace machine

#define threadIdx (machine::self().index)
#define blockIdx (machine::block().index)
#define blockDim (machine::block().size)
#define gridDim (machine::block().grid)
#define DYNAMIC_SHARED(type, name)                                                                                    \
    type *name = reinterpret_cast<type *>((reinterpret_cast<uintptr_t>(machine::block().shared.data()) + 127) / 128 * 128)

inline void sync_block() { machine::yield(machine::At::Block); }
inline void sync_warp() { machine::together(1); }

namespace machine {
template <class T>
T exchange(int what, T x, int from) {
    unsigned long bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = together(what, bits).get(from);
    T y;
    memcpy(&y, &bits, sizeof y);
    return y;
}
inline int lane() { return block().now % 32; }
}  // namespace machine

inline float power_of_two(float x) { return exp2f(x); }
inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
inline unsigned count_up(unsigned *at) { return (*at)++; }
inline float load_past_l1(const float *from) { return *from; }
inline float4 load_past_l1(const float4 *from) { return *from; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline unsigned claim(unsigned *at, unsigned by) {
    unsigned was = *at;
    *at += by;
    return was;
}
inline void check_aligned(const void *p) {
    if (reinterpret_cast<uintptr_t>(p) % 16) machine::fail("16 bytes at an address that is not aligned");
}
inline float multiply(float a, float b) {
    volatile float product = a * b;  // a compiler may otherwise fuse it with an addition
    return product;
}

inline float shuffle_xor(float x, int lanes) { return machine::exchange(2, x, machine::lane() ^ lanes); }
inline int shuffle_xor(int x, int lanes) { return machine::exchange(3, x, machine::lane() ^ lanes); }
inline float shuffle(float x, int lane) { return machine::exchange(4, x, lane & 31); }
inline int shuffle(int x, int lane) { return machine::exchange(5, x, lane & 31); }
inline float shuffle_up(float x, int lanes) {
    int lane = machine::lane();
    return machine::exchange(6, x, lane < lanes ? lane : lane - lanes);
}
inline int shuffle_up(int x, int lanes) {
    int lane = machine::lane();
    return machine::exchange(20, x, lane < lanes ? lane : lane - lanes);
}
inline uint64_t shuffle_up(uint64_t x, int lanes) {
    int lane = machine::lane();
    return machine::exchange(21, x, lane < lanes ? lane : lane - lanes);
}
inline uint64_t shuffle_xor(uint64_t x, int lanes) { return machine::exchange(22, x, machine::lane() ^ lanes); }
inline double shuffle_xor(double x, int lanes) { return machine::exchange(23, x, machine::lane() ^ lanes); }
inline unsigned vote(bool x) {
    machine::Lanes lanes = machine::together(7, x);
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= unsigned(lanes.get(i) & 1) << i;
    return r;
}

inline void copy_async(void *to, const void *from, bool take) {
    machine::in_shared(to, 16, "copy_async to no place of shared memory");
    if (take && reinterpret_cast<uintptr_t>(from) % 16) machine::fail("copy_async from an address that is not aligned");
    memset(to, 0xff, 16);  // undefined until it is waited for
    machine::self().open.push_back({to, from, take});
}
inline void copy_commit() {
    auto &t = machine::self();
    t.groups.push_back(std::move(t.open));
    t.open.clear();
}
template <int N>
void copy_wait() {
    auto &groups = machine::self().groups;
    while (groups.size() > size_t(N)) {
        for (auto &copy : groups.front()) machine::finish(copy);
        groups.erase(groups.begin());
    }
}

namespace machine {
inline void matrices(unsigned (&r)[4], const void *row, bool transposed) {
    in_shared(row, 16, "load_matrices from no place of shared memory");
    Lanes lanes = together(transposed ? 9 : 8, reinterpret_cast<unsigned long>(row));
    int l = lane();
    for (int i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (int e = 0; e < 2; e++) {
            int outer = l / 4, inner = 2 * (l % 4) + e;
            int from = transposed ? inner : outer, at = transposed ? outer : inner;
            pair[e] = reinterpret_cast<const uint16_t *>(lanes.get(8 * i + from))[at];
        }
        memcpy(&r[i], pair, 4);
    }
    // the rows stay as they are until all lanes have read them
    together(10);
}
inline float half(unsigned pair, int which) { return to_float(bf16{uint16_t(which ? pair >> 16 : pair)}); }
}  // namespace machine

inline void load_matrices(unsigned (&r)[4], const void *row) { machine::matrices(r, row, false); }
inline void load_matrices_transposed(unsigned (&r)[4], const void *row) { machine::matrices(r, row, true); }

inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto both = [](unsigned low, unsigned high) { return low | (unsigned long)(high) << 32; };
    machine::Lanes lanes = machine::together(11, both(a[0], a[1]), both(a[2], a[3]), both(b0, b1));
    int l = machine::lane();
    // two rows of a: lane 4 (row % 8) + k % 8 / 2, register row / 8 + 2 (k / 8); two columns of b: lane 4 column + k % 8 / 2,
    // register k / 8
    float rows[2][16], columns[2][16];
    for (int k = 0; k < 16; k++) {
        unsigned long pair = lanes.get(l / 4 * 4 + k % 8 / 2, k / 8);
        for (int i = 0; i < 2; i++) {
            rows[i][k] = machine::half(unsigned(pair >> 32 * i), k % 2);
            unsigned long other = lanes.get(4 * (2 * (l % 4) + i) + k % 8 / 2, 2);
            columns[i][k] = machine::half(unsigned(other >> 32 * (k / 8)), k % 2);
        }
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) d[i] += rows[i / 2][k] * columns[i % 2][k];
}

// Runs `body` as every thread of every block.
inline void launch(Dim grid, Dim size, size_t shared_bytes, unsigned seed, std::function<void()> body) {
    machine::Block &b = machine::block();
    b.grid = grid;
    b.size = size;
    b.body = std::move(body);
    b.order.seed(seed);
    if (size.count() > 1024) machine::fail("more than 1,024 threads in a block");
    if (shared_bytes > 227 * 1024) machine::fail("more than 227 KiB of shared memory in a block");
    std::vector<unsigned> blocks(grid.count());
    for (unsigned i = 0; i < blocks.size(); i++) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), b.order);
    for (unsigned i : blocks) {
        b.index = Dim(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
        b.shared.assign(shared_bytes + 128, char(0xff));
        machine::run_block();
    }
}

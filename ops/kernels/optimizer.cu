// AdamW over flat buffers that hold all trained parameters, with clipping by global norm. The host waits for nothing.
//
// 1. `squares` adds up the squares of the gradient, chunk by chunk.
// 2. `clip` adds up the chunks in a fixed order, and says what the gradient is multiplied by, or where it is not finite.
// 3. `adamw_*` makes the step, the bf16 copies of the parameters, and a gradient of zeros; nothing where it was not finite.
//
// Invariants: the bits of `adamw` and `adamw_bf16` of nn/cpu/rows.rs, given the same factor of clipping: every product is rounded
// before it is added, where the processor does so (and the compiler must be left its exact division and square root). A
// parameter is a segment of the buffers, in chunks of 16,384 elements that never span two.
#include "philox.cuh"

// Elements of a chunk.
constexpr int CHUNK = 16384;

// A parameter. Sorted by `first`; `begin` is a multiple of 8.
struct Segment {
    // Where its elements are in the buffers.
    long begin, length;
    // The learning rate is multiplied by this.
    double rate;
    float decay;
    // Chunks of the segments before: sum of ceil(length / 16,384).
    unsigned first;
    // Gets the parameter as bf16, at a multiple of 16 bytes; may be null.
    bf16 *weight;
    // Of the numbers that moments in bf16 are rounded by.
    uint64_t seed;
};

// What differs from step to step.
struct Step {
    // From the host: learning rate, number of the step (from 1), 1 - beta1^number and 1 - beta2^number.
    double rate;
    uint64_t number;
    float correction[2];
    // From `clip`: what gradients are multiplied by; the first segment whose gradient is not finite, 0xffffffff where all are;
    // the global norm before clipping.
    float scale;
    unsigned bad;
    double norm;
};

static_assert(sizeof(Segment) == 48 && sizeof(Step) == 40, "the host has the same layout");

constexpr unsigned NONE = 0xffffffffu;

// The segment of a chunk.
__device__ __forceinline__ int segment_of(const Segment *segments, int count, unsigned chunk) {
    int low = 0, high = count;  // segments[low].first <= chunk < segments[high].first
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (segments[middle].first <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// The elements of this block's chunk.
struct Chunk {
    const Segment *segment;
    long begin, end;

    __device__ Chunk(const Segment *segments, int count) {
        segment = segments + segment_of(segments, count, blockIdx.x);
        begin = segment->begin + long(blockIdx.x - segment->first) * CHUNK;
        end = min(begin + CHUNK, segment->begin + segment->length);
    }
};

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(bf16 x) { return to_float(x); }
__device__ __forceinline__ void put(float *to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16 *to, float x) { *to = to_bf16(x); }

// Up to eight elements; those that are not there are 0.
template <class T>
__device__ __forceinline__ void load_some(float (&to)[8], const T *from, int have) {
    if (have == 8) {
        load(to, from);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) to[e] = e < have ? number(from[e]) : 0.0f;
    }
}
template <class T>
__device__ __forceinline__ void store_some(T *to, const float (&from)[8], int have) {
    if (have == 8) {
        store(to, from);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < have) put(to + e, from[e]);
        }
    }
}

// partial[chunk] = sum of squares of the chunk's gradient, in float64: finite exactly where all of them are. Grid chunks, block
// 256. `count` segments.
extern "C" __global__ void __launch_bounds__(1024)
    squares(double *partial, const float *g, const Segment *segments, int count) {
    __shared__ double scratch[WARP];
    Chunk chunk(segments, count);
    double sum = 0;
    for (long at = chunk.begin + threadIdx.x * 8; at < chunk.end; at += blockDim.x * 8) {
        float x[8];
        load_some(x, g + at, int(min(8l, chunk.end - at)));
#pragma unroll
        for (int e = 0; e < 8; e++) sum += double(x[e]) * double(x[e]);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Fills in the step: norm, min(1, limit / (norm + 1e-6)) or 1 where limit is 0, and the first segment that is not finite.
// One block of 1,024.
extern "C" __global__ void __launch_bounds__(1024)
    clip(Step *step, const double *partial, const Segment *segments, int count, unsigned chunks, double limit) {
    __shared__ double scratch[WARP];
    __shared__ int bads[WARP];
    double sum = 0;
    int bad = 0x7fffffff;
#pragma unroll 4
    for (unsigned chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
        double x = partial[chunk];
        sum += x;
        // what is not finite is not equal to itself when it is taken from itself
        if (x - x != 0.0) bad = min(bad, int(chunk));
    }
    sum = block_sum(sum, scratch);
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) bad = min(bad, shuffle_xor(bad, lanes));
    if (threadIdx.x % WARP == 0) bads[threadIdx.x / WARP] = bad;
    sync_block();
    if (threadIdx.x > 0) return;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) bad = min(bad, bads[warp]);
    double norm = sqrt(sum);
    step->norm = norm;
    step->scale = limit > 0 ? float(min(limit / (norm + 1e-6), 1.0)) : 1.0f;
    step->bad = bad == 0x7fffffff ? NONE : segment_of(segments, count, bad);
}

// bf16 below or above x, at random, so that the expected value is x. `random` has 16 bits.
__device__ __forceinline__ bf16 to_bf16_at_random(float x, unsigned random) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    uint16_t high = uint16_t((bits + random) >> 16);
    bf16 y;
    memcpy(&y, &high, 2);
    return y;
}

// Stores moments in bf16, each rounded at random by 16 bits of the block of four words at `counter`: two a word, the lower first.
__device__ __forceinline__ void store_at_random(bf16 *to, const float (&from)[8], int have, uint64_t seed, uint64_t stream,
                                                uint64_t counter) {
    unsigned words[4];
    philox(words, seed, stream, counter);
    Eight rounded;
#pragma unroll
    for (int e = 0; e < 8; e++) rounded.x[e] = to_bf16_at_random(from[e], words[e / 2] >> 16 * (e % 2) & 0xffff);
    if (have == 8) {
        check_aligned(to);
        *reinterpret_cast<Eight *>(to) = rounded;
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < have) to[e] = rounded.x[e];
        }
    }
}

// Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. M: type of the moments.
template <class M>
__device__ __forceinline__ void adamw(float *p, float *g, M *m, M *v, const Segment *segments, int count, const Step *step,
                                      float beta1, float beta2, float eps) {
    Step s = *step;
    if (s.bad != NONE) return;
    Chunk chunk(segments, count);
    bf16 *weight = chunk.segment->weight;
    long first = chunk.segment->begin;
    uint64_t seed = chunk.segment->seed;
    float rate = float(s.rate * chunk.segment->rate);
    float keep = 1.0f - multiply(rate, chunk.segment->decay);
    for (long at = chunk.begin + threadIdx.x * 8; at < chunk.end; at += blockDim.x * 8) {
        int have = int(min(8l, chunk.end - at));
        float of_p[8], of_g[8], of_m[8], of_v[8];
        load_some(of_p, p + at, have);
        load_some(of_g, g + at, have);
        load_some(of_m, m + at, have);
        load_some(of_v, v + at, have);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float x = multiply(of_g[e], s.scale);
            of_m[e] = fmaf(beta1, of_m[e], multiply(1.0f - beta1, x));
            of_v[e] = fmaf(beta2, of_v[e], multiply(multiply(1.0f - beta2, x), x));
            float update = of_m[e] / s.correction[0] / (sqrtf(of_v[e] / s.correction[1]) + eps);
            of_p[e] = multiply(of_p[e], keep) - multiply(rate, update);
            of_g[e] = 0;
        }
        store_some(p + at, of_p, have);
        store_some(g + at, of_g, have);
        if (weight) store_some(weight + (at - first), of_p, have);
        if constexpr (sizeof(M) == 4) {
            store_some(m + at, of_m, have);
            store_some(v + at, of_v, have);
        } else {
            uint64_t eighth = uint64_t(at - first) / 8;
            store_at_random(m + at, of_m, have, seed, s.number, 2 * eighth);
            store_at_random(v + at, of_v, have, seed, s.number, 2 * eighth + 1);
        }
    }
}

// Grid chunks, block 256. p, g, m and v lie alike, as `segments` says; p and g: float32; g becomes 0 for the next step.
//
// Moments are float32 (18 bytes a parameter, with its bf16 copy) or bf16 (14). In bf16 they are rounded at random, by the stream
// `number` of the parameter's own seed, two blocks of words for eight elements: to the nearest, a moment would stand still as soon
// as what a gradient adds to it is below half a unit of its last place. The step itself is made with moments before they are
// rounded.
#define ADAMW(name, M)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                    \
        name(float *p, float *g, M *m, M *v, const Segment *segments, int count, const Step *step, float beta1,          \
             float beta2, float eps) {                                                                                   \
        adamw(p, g, m, v, segments, count, step, beta1, beta2, eps);                                                     \
    }
ADAMW(adamw_f32, float)
ADAMW(adamw_bf16, bf16)

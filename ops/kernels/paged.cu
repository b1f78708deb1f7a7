// Keys and values in pages, and attention of one token of each sequence over them.
//
// A cache is two arrays (pages, 64, hk, d): token i of sequence b lies in page pages[b * max_pages + i / 64], at i % 64. A
// sequence's last token, whose keys and values are in the cache already, attends to its `lengths[b]` tokens, or with a window to
// the last `window` of them. A length of 0 is a place of the batch that nobody has, and its output 0.
//
// The grid is fixed: `splits` blocks to each key head of a sequence share its pages evenly, as runs of whole pages, and those
// that are left without any exit at once. Lengths and pages are read on the device, so a captured launch serves sequences as
// they grow. Where more than one block has pages, each leaves its part, relative to its own highest score, and the one that
// ends last adds up all parts in order: no result depends on which one it is. Dao et al., "Flash-Decoding", 2023.
#include "anysize.cuh"
#include "tiles.cuh"

constexpr int PAGE = 64;
// Query heads of a key head in `attention_decode_32`, `_64` and `_128`: the columns of a tensor core's product.
constexpr int GROUP = 8;
constexpr int MOST_SPLITS = 64;
constexpr float LOG2_E = 1.4426950408889634f;

struct Decode {
    const bf16 *q;  // (batch, h d), `q_stride` elements from row to row; even, address a multiple of 4 bytes
    long q_stride;
    const bf16 *k, *v;       // (pages, 64, hk, d), addresses multiples of 16 bytes; `any`: all alike
    const unsigned *pages;   // (batch, max_pages)
    const unsigned *lengths; // (batch)
    bf16 *out;               // (batch, h d)
    float *parts;            // (batch, h, splits, d); with one split none, nor the next two
    float *stats;            // (batch, h, splits, 2): highest score times log2 e, and the sum of weights relative to it
    unsigned *done;          // (batch, hk): 0 before the first launch, and left so
    int max_pages, h, hk, d;
    int splits;              // 64 at most
    int window;              // 0: none
    float scale;             // of scores, above 0
};
static_assert(sizeof(Decode) == 112, "the host has the same");

// A block's keys begin..end, of which it sees those from `from` on, and how many splits have any.
struct Span {
    int from, begin, end, active;
    __device__ __forceinline__ Span(const Decode &a, int batch, int split) {
        int length = a.lengths[batch];
        from = a.window > 0 && length > a.window ? length - a.window : 0;
        int page = from / PAGE, pages = (length + PAGE - 1) / PAGE - page;
        int each = (pages + a.splits - 1) / a.splits;
        active = each > 0 ? (pages + each - 1) / each : 0;
        begin = (page + split * each) * PAGE;
        end = begin + each * PAGE < length ? begin + each * PAGE : length;
    }
};

// For a block that has nothing to do: whether it has not. Writes the output of a sequence without tokens.
__device__ __forceinline__ bool idle(const Decode &a, const Span &span, int kv, int split, int batch) {
    if (split < span.active) return false;
    int width = a.h / a.hk * a.d;
    if (split == 0)
        for (int i = threadIdx.x; i < width; i += blockDim.x) a.out[long(batch) * a.h * a.d + kv * width + i] = to_bf16(0);
    return true;
}

// After a block has written its part: the last one of the key head adds up all. VECTOR (1 or 4) divides d.
template <int VECTOR>
__device__ __forceinline__ void combine(const Decode &a, int kv, int batch, int active) {
    __shared__ float weights[GROUP * MOST_SPLITS];
    __shared__ bool last;
    int group = a.h / a.hk, lane = threadIdx.x % WARP;
    sync_block();
    if (threadIdx.x == 0) last = count_up(a.done + batch * a.hk + kv) == unsigned(active - 1);
    sync_block();
    if (!last) return;
    for (int first = 0; first < group; first += GROUP) {
        int heads = group - first < GROUP ? group - first : GROUP;
        long row = long(batch) * a.h + kv * group + first;
        // 1. what each part weighs
        sync_block();
        for (int head = threadIdx.x / WARP; head < heads; head += blockDim.x / WARP) {
            const float *stats = a.stats + (row + head) * a.splits * 2;
            float top = -INFINITY, sum = 0;
            for (int i = lane; i < active; i += WARP) top = fmaxf(top, load_past_l1(stats + 2 * i));
            top = warp_max(top);
            for (int i = lane; i < active; i += WARP) {
                float weight = power_of_two(load_past_l1(stats + 2 * i) - top);
                weights[head * MOST_SPLITS + i] = weight;
                sum += weight * load_past_l1(stats + 2 * i + 1);
            }
            float inverse = 1.0f / warp_sum(sum);
            for (int i = lane; i < active; i += WARP) weights[head * MOST_SPLITS + i] *= inverse;
        }
        sync_block();
        // 2. their sum, in order
        for (int i = threadIdx.x * VECTOR; i < heads * a.d; i += blockDim.x * VECTOR) {
            int head = i / a.d, column = i % a.d;
            const float *part = a.parts + (row + head) * a.splits * a.d + column;
            float sum[VECTOR] = {};
#pragma unroll 8
            for (int split = 0; split < active; split++) {
                float weight = weights[head * MOST_SPLITS + split];
                if constexpr (VECTOR == 4) {
                    float4 x = load_past_l1(reinterpret_cast<const float4 *>(part + long(split) * a.d));
                    sum[0] += weight * x.x;
                    sum[1] += weight * x.y;
                    sum[2] += weight * x.z;
                    sum[3] += weight * x.w;
                } else {
                    sum[0] += weight * load_past_l1(part + long(split) * a.d);
                }
            }
#pragma unroll
            for (int e = 0; e < VECTOR; e++) a.out[(row + head) * a.d + column + e] = to_bf16(sum[e]);
        }
    }
    if (threadIdx.x == 0) a.done[batch * a.hk + kv] = 0;
}

// Group sizes up to 8. Grid (hk, splits, batch), 128 threads, 98304 bytes of shared memory.
//
// Each warp streams steps of 8 KiB by itself, two on their way while it works on a third, and reads each key and value once for
// all heads of the group: scores are q k^T with the heads as rows, of 16 that a tensor core has, and the output is v^T p^T with
// the heads as columns.
template <int D>
__device__ __forceinline__ void decode(const Decode &a) {
    constexpr int STEP = 2048 / D, STAGES = 3, WARPS = 4, LANES = D / 8, TILE = STEP * D;
    static_assert(PAGE % STEP == 0, "a step lies in one page");
    DYNAMIC_SHARED(bf16, shared);
    int kv = blockIdx.x, split = blockIdx.y, batch = blockIdx.z, group = a.h / a.hk;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    Span span(a, batch, split);
    if (idle(a, span, kv, split, batch)) return;

    // 1. queries as fragments of A, whose rows 8..15 nobody has
    unsigned qa[D / 16][2];
    const bf16 *q = a.q + batch * a.q_stride + (kv * group + g) * D + 2 * t;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int i = 0; i < 2; i++) qa[k][i] = g < group ? *reinterpret_cast<const unsigned *>(q + 16 * k + 8 * i) : 0;

    // 2. steps warp, warp + 4, ... of the block's; the page of the next one to fetch is known before it is wanted
    const unsigned *pages = a.pages + long(batch) * a.max_pages;
    bf16 *tiles = shared + warp * STAGES * 2 * TILE;
    long stride = long(a.hk) * D;
    int ahead = span.begin + warp * STEP;
    unsigned page = ahead < span.end ? pages[ahead / PAGE] : 0;
    auto fetch = [&](int stage) {
        if (ahead < span.end) {
            long from = (long(page) * PAGE + ahead % PAGE) * stride + kv * D;
            bf16 *to = tiles + stage * 2 * TILE;
#pragma unroll
            for (int i = 0; i < STEP; i += WARP / LANES) {
                int row = i + lane / LANES, chunk = lane % LANES;
                bool take = ahead + row < span.end;
                long at = from + (take ? row : 0) * stride + chunk * 8;
                copy_async(to + place<D>(row, chunk), a.k + at, take);
                copy_async(to + TILE + place<D>(row, chunk), a.v + at, take);
            }
            ahead += WARPS * STEP;
            if (ahead < span.end) page = pages[ahead / PAGE];
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) fetch(i);

    float o[D / 16][4] = {}, top = -1e30f, sum = 0, factor = a.scale * LOG2_E;
    int across = lane_across<D>(), stage = 0;
    for (int key = span.begin + warp * STEP; key < span.end; key += WARPS * STEP) {
        copy_wait<STAGES - 2>();
        sync_warp();
        fetch(stage == 0 ? STAGES - 1 : stage - 1);
        const bf16 *k = tiles + stage * 2 * TILE, *v = k + TILE;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        // scores: row g, columns 8 n + 2 t and one more; the other two of a fragment are of rows nobody has
        float s[STEP / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            unsigned rows[4] = {qa[i][0], 0, qa[i][1], 0};
#pragma unroll
            for (int n = 0; n < STEP / 16; n++) {
                unsigned b[4];
                load_matrices(b, part<D>(k, across, 16 * n, 2 * i));
                multiply_add(s[2 * n], rows, b[0], b[1]);
                multiply_add(s[2 * n + 1], rows, b[2], b[3]);
            }
        }
        if (key < span.from || key + STEP > span.end) {
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int at = key + 8 * n + 2 * t + e;
                    if (at < span.from || at >= span.end) s[n][e] = -INFINITY;
                }
        }
        // weights
        float high = -INFINITY, add = 0;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) high = fmaxf(high, fmaxf(s[n][0], s[n][1]));
        high = fmaxf(high, shuffle_xor(high, 1));
        high = fmaxf(high, shuffle_xor(high, 2));
        float base = fmaxf(high * factor, top);
        float shrink = power_of_two(top - base);
        top = base;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[n][e] = power_of_two(fmaf(s[n][e], factor, -base));
                add += s[n][e];
            }
        sum = sum * shrink + add;
        // outputs: rows are columns of v, columns are heads
        float shrink_even = shuffle(shrink, 8 * t), shrink_odd = shuffle(shrink, 8 * t + 4);
#pragma unroll
        for (int m = 0; m < D / 16; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[m][e] *= e % 2 ? shrink_odd : shrink_even;
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            unsigned even = pack(s[2 * n][0], s[2 * n][1]), odd = pack(s[2 * n + 1][0], s[2 * n + 1][1]);
#pragma unroll
            for (int m = 0; m < D / 16; m++) {
                unsigned rows[4];
                load_matrices_transposed(rows, part<D>(v, across, 16 * n, 2 * m));
                multiply_add(o[m], rows, even, odd);
            }
        }
    }
    copy_wait<0>();
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);

    // 3. the warps' parts, in order
    sync_block();
    float *outs = reinterpret_cast<float *>(shared), *tops = outs + WARPS * GROUP * D, *sums = tops + WARPS * GROUP;
#pragma unroll
    for (int m = 0; m < D / 16; m++)
#pragma unroll
        for (int e = 0; e < 4; e++) outs[(warp * GROUP + 2 * t + e % 2) * D + 16 * m + 8 * (e / 2) + g] = o[m][e];
    if (t == 0) {
        tops[warp * GROUP + g] = top;
        sums[warp * GROUP + g] = sum;
    }
    sync_block();
    for (int i = threadIdx.x; i < group * D; i += blockDim.x) {
        int head = i / D, column = i % D;
        float most = tops[head], total = 0, x = 0;
#pragma unroll
        for (int w = 1; w < WARPS; w++) most = fmaxf(most, tops[w * GROUP + head]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float weight = power_of_two(tops[w * GROUP + head] - most);
            total += weight * sums[w * GROUP + head];
            x += weight * outs[(w * GROUP + head) * D + column];
        }
        long row = long(batch) * a.h + kv * group + head;
        if (span.active == 1) {
            a.out[row * D + column] = to_bf16(x / total);
        } else {
            a.parts[(row * a.splits + split) * D + column] = x;
            if (column == 0) {
                a.stats[(row * a.splits + split) * 2] = most;
                a.stats[(row * a.splits + split) * 2 + 1] = total;
            }
        }
    }
    if (span.active > 1) combine<4>(a, kv, batch, span.active);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_decode_32(Decode a) { decode<32>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_decode_64(Decode a) { decode<64>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_decode_128(Decode a) { decode<128>(a); }

// Any d up to 256, any group, any alignment. Grid (hk, splits, batch), 128 threads, a warp a head; more than four heads of a
// group take turns, and read keys and values again.
extern "C" __global__ void attention_decode_any(Decode a) {
    constexpr int WARPS = 4;
    __shared__ bf16 keys[WARP * ANY_PITCH], values[WARP * ANY_PITCH], rows[WARPS * ANY_PITCH];
    __shared__ float weights[WARPS * WARP];
    int kv = blockIdx.x, split = blockIdx.y, batch = blockIdx.z, group = a.h / a.hk, d = a.d;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Span span(a, batch, split);
    if (idle(a, span, kv, split, batch)) return;
    for (int first = 0; first < group; first += WARPS) {
        int head = first + warp;
        sync_block();
        any_fetch(rows, a.q + batch * a.q_stride + kv * group * d, d, WARPS, first, group, d);
        float o[ANY_COLUMNS] = {}, top = -1e30f, sum = 0;
        for (int key = span.begin; key < span.end; key += WARP) {
            long from = (long(a.pages[long(batch) * a.max_pages + key / PAGE]) * PAGE + key % PAGE) * a.hk * d + kv * d;
            sync_block();
            any_fetch(keys, a.k + from, long(a.hk) * d, WARP, 0, span.end - key, d);
            any_fetch(values, a.v + from, long(a.hk) * d, WARP, 0, span.end - key, d);
            sync_block();
            bool seen = key + lane >= span.from && key + lane < span.end;
            float s = any_dot(rows + warp * ANY_PITCH, keys + lane * ANY_PITCH, d) * a.scale * LOG2_E;
            float base = fmaxf(top, warp_max(seen ? s : -INFINITY)), shrink = power_of_two(top - base);
            float p = seen ? power_of_two(s - base) : 0.0f;
            top = base;
            sum = sum * shrink + p;
#pragma unroll
            for (int i = 0; i < ANY_COLUMNS; i++) o[i] *= shrink;
            any_accumulate(o, p, weights + warp * WARP, values, d);
        }
        sum = warp_sum(sum);
        if (head >= group) continue;
        long row = long(batch) * a.h + kv * group + head;
        if (span.active == 1) {
            any_store(a.out + row * d, o, 1.0f / sum, d);
            continue;
        }
#pragma unroll
        for (int i = 0; i < ANY_COLUMNS; i++)
            if (i * WARP + lane < d) a.parts[(row * a.splits + split) * d + i * WARP + lane] = o[i];
        if (lane == 0) {
            a.stats[(row * a.splits + split) * 2] = top;
            a.stats[(row * a.splits + split) * 2 + 1] = sum;
        }
    }
    if (span.active > 1) combine<1>(a, kv, batch, span.active);
}

// A row of `width` elements, by all threads of the block.
__device__ __forceinline__ void copy_row(bf16 *to, const bf16 *from, int width) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | uintptr_t(width * 2)) % 16 == 0) {
        for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8)
            *reinterpret_cast<Eight *>(to + i) = *reinterpret_cast<const Eight *>(from + i);
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
    }
}

// Writes rows of new keys and values (n, width = hk d) into pages: row i at slots[i] = page * 64 + place in the page, or nowhere
// where that is 2^32 - 1. Grid n, any block.
extern "C" __global__ void cache_write(bf16 *k_cache, bf16 *v_cache, const bf16 *k, const bf16 *v, long k_stride, long v_stride,
                                       const unsigned *slots, int width) {
    unsigned slot = slots[blockIdx.x];
    if (slot == 0xffffffffu) return;
    copy_row(k_cache + long(slot) * width, k + blockIdx.x * k_stride, width);
    copy_row(v_cache + long(slot) * width, v + blockIdx.x * v_stride, width);
}

// Rows of tokens first.. of one sequence with pages `pages`, one after another. Grid: rows, any block.
extern "C" __global__ void cache_gather(bf16 *k, bf16 *v, long k_stride, long v_stride, const bf16 *k_cache, const bf16 *v_cache,
                                        const unsigned *pages, int first, int width) {
    int token = first + blockIdx.x;
    long slot = long(pages[token / PAGE]) * PAGE + token % PAGE;
    copy_row(k + blockIdx.x * k_stride, k_cache + slot * width, width);
    copy_row(v + blockIdx.x * v_stride, v_cache + slot * width, width);
}

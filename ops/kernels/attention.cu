// Causal attention over packed rows, forward and backward: softmax(scale q k^T) v.
//
// A query head reads the key head of its group, h / hk query heads to a key head. Query row q stands at key row at[q], or at
// q itself where there is no `at`, and sees key row k where
//
//     k <= at[q] && at[q] < vis_end[k], and with a window also position[at[q]] - position[k] < window.
//
// In a row of trees laid out depth first that is a token's ancestors and itself (`nn::packing`). Every query sees a key.
//
// What is not seen is left out by tiles of QUERIES x KEYS rows. The host lists, for each tile of queries, the tiles of keys
// that may be seen, ascending, as `tile * 2 + mask`: entries first[i]..first[i + 1] of `tiles` are those of query tile i. Key
// tile j, rows k with 64 j <= k < min(64 (j + 1), n_k), is listed for query tile i, rows 128 i <= q < min(128 (i + 1), n_q),
// where
//
//     min k <= max at && max vis_end > min at && (no window || min position[at] < max position[k] + window)
//
// over the rows of the two, and its mask is 0 where each query sees each of 64 keys:
//
//     64 (j + 1) <= n_k && max k <= min at && min vis_end > max at && (no window || max position[at] < min position[k] + window).
//
// Gradients of keys and values want the transpose: for each key tile the query tiles, ascending, with the same masks.
//
// The kernels: Dao, "FlashAttention-2", 2023, with two passes in the backward, one by keys and one by queries, so that nothing
// is added up atomically: a block owns its rows, and goes through its list in order.
#include "anysize.cuh"
#include "tiles.cuh"

constexpr int QUERIES = 128, KEYS = 64;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// What attends to what. Addresses of q, k and v are multiples of 16 bytes and strides of 8 elements, but for `attention_any_*`.
struct Attention {
    const bf16 *q, *k, *v;             // rows of h d, hk d and hk d elements
    long q_stride, k_stride, v_stride; // elements from row to row
    const unsigned *at;                // (n_q), or null
    const unsigned *vis_end;           // (n_k)
    const unsigned *position;          // (n_k); not read without a window
    const int *first, *tiles;          // lists of tiles
    int n_q, n_k, h, hk, d;
    int window;                        // 0: none
    float scale;                       // of scores, above 0
};
static_assert(sizeof(Attention) == 120, "the host has the same");

// What a mask asks of a key: seen from row `a` at position `p` where key <= a < end and p < low.
__device__ __forceinline__ void bounds_of_key(const Attention &a, int key, unsigned &end, unsigned &low) {
    end = key < a.n_k ? a.vis_end[key] : 0;
    low = a.window > 0 && key < a.n_k ? a.position[key] + unsigned(a.window) : 0xffffffffu;
}
// Where a query stands, and its position; past the end, those of the last one.
__device__ __forceinline__ void place_of_query(const Attention &a, int query, unsigned &at, unsigned &position) {
    query = query < a.n_q ? query : a.n_q - 1;
    at = a.at ? a.at[query] : unsigned(query);
    position = a.window > 0 ? a.position[at] : 0;
}

// Steps through the parts of STAGE keys of a list's tiles, and knows the next tile's entry before it is wanted.
template <int STAGE>
struct KeyWalk {
    const int *tiles;
    int at, last, part = 0, entry, upcoming;

    __device__ __forceinline__ KeyWalk(const Attention &a, int query_tile) {
        tiles = a.tiles;
        at = a.first[query_tile];
        last = a.first[query_tile + 1] - 1;
        entry = at <= last ? tiles[at] : 0;
        upcoming = at < last ? tiles[at + 1] : 0;
    }
    __device__ __forceinline__ bool more() const { return at <= last; }
    __device__ __forceinline__ bool masked() const { return entry & 1; }
    __device__ __forceinline__ int key() const { return (entry >> 1) * KEYS + part * STAGE; }
    __device__ __forceinline__ void advance() {
        if (++part < KEYS / STAGE) return;
        part = 0;
        entry = upcoming;
        if (++at < last) upcoming = tiles[at + 1];
    }
};

// Sets scores that are not seen to minus infinity: a warp's 16 TILES queries, of which `at` and `position` tell, by STEP keys
// from `key`, of which `end` and `low` tell.
template <int TILES, int STEP>
__device__ __forceinline__ void hide(float (&s)[TILES][STEP / 8][4], const unsigned *at, const unsigned *position, int key,
                                     const unsigned *end, const unsigned *low) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned a = at[16 * tile + 8 * i + g], p = position[16 * tile + 8 * i + g];
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int column = 8 * n + 2 * t + e;
                    bool seen = bool((unsigned(key + column) <= a) & (a < end[column]) & (p < low[column]));
                    if (!seen) s[tile][n][2 * i + e] = -INFINITY;
                }
        }
}

// Output (n_q, h d) and lse (h, n_q), the natural logarithm of the sum of exp(scaled score). Grid (h, query tiles), 128
// threads, 768 d + 2048 bytes of shared memory. A warp has 32 queries and takes STEP keys at a time.
template <int D, int STEP>
__device__ __forceinline__ void forward(const Attention &a, bf16 *out, float *lse) {
    constexpr int THREADS = 128, TILES = 2;
    DYNAMIC_SHARED(bf16, q);
    bf16 *k = q + QUERIES * D, *v = k + 2 * KEYS * D;
    unsigned *at = reinterpret_cast<unsigned *>(v + 2 * KEYS * D), *position = at + QUERIES;
    unsigned *end = position + QUERIES, *low = end + 2 * KEYS;

    // long lists come last in a row of tokens, so the last tile begins first
    int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y, kv = head / (a.h / a.hk), q0 = tile * QUERIES;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = threadIdx.x / WARP * 16 * TILES;
    float factor = a.scale * LOG2_E;

    KeyWalk<KEYS> walk(a, tile);
    fetch_rows<D, QUERIES, THREADS>(q, a.q + head * D, a.q_stride, q0, a.n_q);
    if (walk.more()) {
        fetch_rows<D, KEYS, THREADS>(k, a.k + kv * D, a.k_stride, walk.key(), a.n_k);
        fetch_rows<D, KEYS, THREADS>(v, a.v + kv * D, a.v_stride, walk.key(), a.n_k);
    }
    copy_commit();
    place_of_query(a, q0 + threadIdx.x, at[threadIdx.x], position[threadIdx.x]);

    float o[TILES][D / 8][4] = {}, top[TILES][2], sum[TILES][2] = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) top[i][0] = top[i][1] = -1e30f;
    for (int buffer = 0; walk.more(); buffer ^= 1) {
        // 1. this tile is here; the next one is on its way
        int key = walk.key();
        bool masked = walk.masked();
        const bf16 *k_now = k + buffer * KEYS * D, *v_now = v + buffer * KEYS * D;
        unsigned *end_now = end + buffer * KEYS, *low_now = low + buffer * KEYS;
        if (masked && threadIdx.x < KEYS) bounds_of_key(a, key + threadIdx.x, end_now[threadIdx.x], low_now[threadIdx.x]);
        copy_wait<0>();
        sync_block();
        walk.advance();
        if (walk.more()) {
            fetch_rows<D, KEYS, THREADS>(k + (buffer ^ 1) * KEYS * D, a.k + kv * D, a.k_stride, walk.key(), a.n_k);
            fetch_rows<D, KEYS, THREADS>(v + (buffer ^ 1) * KEYS * D, a.v + kv * D, a.v_stride, walk.key(), a.n_k);
            copy_commit();
        }
#pragma unroll
        for (int step = 0; step < KEYS; step += STEP) {
            // 2. scores, unless all queries of this warp come before these keys
            if (masked && !a.at && key + step >= q0 + row + 16 * TILES) continue;
            float s[TILES][STEP / 8][4];
            products<D, TILES, STEP>(s, q, row, k_now, step);
            if (masked) hide<TILES, STEP>(s, at + row, position + row, key + step, end_now + step, low_now + step);
            // 3. weights, relative to the highest score so far
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float high = -INFINITY;
#pragma unroll
                    for (int n = 0; n < STEP / 8; n++) high = fmaxf(high, fmaxf(s[tile][n][2 * i], s[tile][n][2 * i + 1]));
                    high = fmaxf(high, shuffle_xor(high, 1));
                    high = fmaxf(high, shuffle_xor(high, 2));
                    // starts low, not at minus infinity: a row may have seen no key yet
                    float base = fmaxf(high * factor, top[tile][i]);
                    float shrink = power_of_two(top[tile][i] - base);
                    top[tile][i] = base;
                    float add = 0;
#pragma unroll
                    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                        for (int e = 2 * i; e < 2 * i + 2; e++) {
                            s[tile][n][e] = power_of_two(fmaf(s[tile][n][e], factor, -base));
                            add += s[tile][n][e];
                        }
                    sum[tile][i] = sum[tile][i] * shrink + add;
#pragma unroll
                    for (int n = 0; n < D / 8; n++) {
                        o[tile][n][2 * i] *= shrink;
                        o[tile][n][2 * i + 1] *= shrink;
                    }
                }
            // 4. weighted values
            accumulate<D, TILES, STEP>(o, s, v_now, step);
        }
    }
    copy_wait<0>();
    sync_block();

    float inverse[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float x = sum[tile][i];
            x += shuffle_xor(x, 1);
            x += shuffle_xor(x, 2);
            inverse[tile][i] = 1.0f / x;
            int query = q0 + row + 16 * tile + 8 * i + g;
            if (t == 0 && query < a.n_q) lse[long(head) * a.n_q + query] = (top[tile][i] + log2f(x)) * LN_2;
        }
    store_rows<D, TILES>(out + head * D, long(a.h) * D, q0 + row, a.n_q, o, inverse, q, row);
}

// Gradient of queries, rows of `stride` elements, from that of the output (n_q, h d), lse and delta (h, n_q); `at` is null. Grid
// (h, query tiles), 128 threads, 512 d + 8 STAGE d + 1024 + 16 STAGE bytes of shared memory. A warp has 32 queries and takes STEP
// keys at a time, of which STAGE are fetched together.
template <int D, int STAGE, int STEP>
__device__ __forceinline__ void backward_queries(const Attention &a, bf16 *dq, long stride, const bf16 *dout, const float *lse,
                                                 const float *delta) {
    constexpr int THREADS = 128, TILES = 2;
    DYNAMIC_SHARED(bf16, q);
    bf16 *go = q + QUERIES * D, *k = go + QUERIES * D, *v = k + 2 * STAGE * D;
    unsigned *at = reinterpret_cast<unsigned *>(v + 2 * STAGE * D), *position = at + QUERIES;
    unsigned *end = position + QUERIES, *low = end + 2 * STAGE;

    int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y, kv = head / (a.h / a.hk), q0 = tile * QUERIES;
    int lane = threadIdx.x % WARP, g = lane / 4, row = threadIdx.x / WARP * 16 * TILES;
    float factor = a.scale * LOG2_E;

    KeyWalk<STAGE> walk(a, tile);
    fetch_rows<D, QUERIES, THREADS>(q, a.q + head * D, a.q_stride, q0, a.n_q);
    fetch_rows<D, QUERIES, THREADS>(go, dout + head * D, long(a.h) * D, q0, a.n_q);
    if (walk.more()) {
        fetch_rows<D, STAGE, THREADS>(k, a.k + kv * D, a.k_stride, walk.key(), a.n_k);
        fetch_rows<D, STAGE, THREADS>(v, a.v + kv * D, a.v_stride, walk.key(), a.n_k);
    }
    copy_commit();
    place_of_query(a, q0 + threadIdx.x, at[threadIdx.x], position[threadIdx.x]);

    float base[TILES][2], mean[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int query = q0 + row + 16 * tile + 8 * i + g;
            bool here = query < a.n_q;
            base[tile][i] = here ? lse[long(head) * a.n_q + query] * LOG2_E : INFINITY;
            mean[tile][i] = here ? delta[long(head) * a.n_q + query] : 0.0f;
        }
    float o[TILES][D / 8][4] = {};
    for (int buffer = 0; walk.more(); buffer ^= 1) {
        int key = walk.key();
        bool masked = walk.masked();
        const bf16 *k_now = k + buffer * STAGE * D, *v_now = v + buffer * STAGE * D;
        unsigned *end_now = end + buffer * STAGE, *low_now = low + buffer * STAGE;
        if (masked && threadIdx.x < STAGE) bounds_of_key(a, key + threadIdx.x, end_now[threadIdx.x], low_now[threadIdx.x]);
        copy_wait<0>();
        sync_block();
        walk.advance();
        if (walk.more()) {
            fetch_rows<D, STAGE, THREADS>(k + (buffer ^ 1) * STAGE * D, a.k + kv * D, a.k_stride, walk.key(), a.n_k);
            fetch_rows<D, STAGE, THREADS>(v + (buffer ^ 1) * STAGE * D, a.v + kv * D, a.v_stride, walk.key(), a.n_k);
            copy_commit();
        }
#pragma unroll
        for (int step = 0; step < STAGE; step += STEP) {
            // scores, gradients of weights, and so those of scores: p (dp - delta)
            if (masked && key + step >= q0 + row + 16 * TILES) continue;
            float s[TILES][STEP / 8][4], dp[TILES][STEP / 8][4];
            products<D, TILES, STEP>(s, q, row, k_now, step);
            if (masked) hide<TILES, STEP>(s, at + row, position + row, key + step, end_now + step, low_now + step);
            products<D, TILES, STEP>(dp, go, row, v_now, step);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float p = power_of_two(fmaf(s[tile][n][e], factor, -base[tile][e / 2]));
                        s[tile][n][e] = p * (dp[tile][n][e] - mean[tile][e / 2]);
                    }
            accumulate<D, TILES, STEP>(o, s, k_now, step);
        }
    }
    copy_wait<0>();
    sync_block();
    float by[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) by[tile][0] = by[tile][1] = a.scale;
    store_rows<D, TILES>(dq + head * D, stride, q0 + row, a.n_q, o, by, q, row);
}

// Gradients of keys and values; the lists are those by key tile, and `at` is null. Grid (hk, key tiles), 128 / TILES threads,
// 256 d + 8 STAGE d + 24 STAGE + 512 bytes of shared memory. A warp has 16 TILES keys and takes STAGE queries at a time, head
// by head of its group.
template <int D, int TILES, int STAGE>
__device__ __forceinline__ void backward_keys(const Attention &a, bf16 *dk, bf16 *dv, long dk_stride, long dv_stride,
                                              const bf16 *dout, const float *lse, const float *delta) {
    constexpr int THREADS = 128 / TILES, PARTS = QUERIES / STAGE;
    static_assert(THREADS >= 2 * STAGE && THREADS >= KEYS, "too few threads for a stage");
    DYNAMIC_SHARED(bf16, k);
    bf16 *v = k + KEYS * D, *q = v + KEYS * D, *go = q + 2 * STAGE * D;
    float *base = reinterpret_cast<float *>(go + 2 * STAGE * D), *mean = base + 2 * STAGE;
    unsigned *position = reinterpret_cast<unsigned *>(mean + 2 * STAGE), *end = position + 2 * STAGE, *low = end + KEYS;

    int kv = blockIdx.x, group = a.h / a.hk, k0 = blockIdx.y * KEYS;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = threadIdx.x / WARP * 16 * TILES;
    int thread = threadIdx.x;
    float factor = a.scale * LOG2_E;

    // where the walk through heads, tiles and stages stands
    const int *tiles = a.tiles + a.first[blockIdx.y];
    int count = a.first[blockIdx.y + 1] - a.first[blockIdx.y];
    int head = count > 0 ? kv * group : (kv + 1) * group, index = 0, part = 0, query = 0;
    int entry = count > 0 ? tiles[0] : 0, upcoming = count > 1 ? tiles[1] : entry;
    // to the next stage, from this one or from before the first, that has a query at or after the first key
    auto find = [&] {
        while (head < (kv + 1) * group) {
            if (part == PARTS) {
                part = 0;
                entry = upcoming;
                if (++index == count) {
                    index = 0;
                    head++;
                }
                upcoming = tiles[index + 1 < count ? index + 1 : 0];
                continue;
            }
            query = (entry >> 1) * QUERIES + part++ * STAGE;
            if (query < a.n_q && query + STAGE > k0) return;
        }
    };
    // a stage's queries are fetched to shared memory at once, their numbers into registers first
    float number = 0;
    unsigned where = 0;
    auto fetch = [&](int buffer) {
        fetch_rows<D, STAGE, THREADS>(q + buffer * STAGE * D, a.q + head * D, a.q_stride, query, a.n_q);
        fetch_rows<D, STAGE, THREADS>(go + buffer * STAGE * D, dout + head * D, long(a.h) * D, query, a.n_q);
        copy_commit();
        int column = thread % STAGE;
        bool here = query + column < a.n_q;
        if (thread < STAGE) {
            // no weight for queries past the end
            number = here ? lse[long(head) * a.n_q + query + column] * LOG2_E : INFINITY;
            where = here && a.window > 0 ? a.position[query + column] : 0;
        } else if (thread < 2 * STAGE) {
            number = here ? delta[long(head) * a.n_q + query + column] : 0.0f;
        }
    };

    fetch_rows<D, KEYS, THREADS>(k, a.k + kv * D, a.k_stride, k0, a.n_k);
    fetch_rows<D, KEYS, THREADS>(v, a.v + kv * D, a.v_stride, k0, a.n_k);
    if (thread < KEYS) bounds_of_key(a, k0 + thread, end[thread], low[thread]);
    find();
    if (head < (kv + 1) * group) fetch(0);
    copy_commit();

    float ok[TILES][D / 8][4] = {}, ov[TILES][D / 8][4] = {};
    for (int buffer = 0; head < (kv + 1) * group; buffer ^= 1) {
        // 1. this stage is here; the next one is on its way
        int first = query;
        bool masked = entry & 1;
        const bf16 *q_now = q + buffer * STAGE * D, *go_now = go + buffer * STAGE * D;
        float *base_now = base + buffer * STAGE, *mean_now = mean + buffer * STAGE;
        unsigned *position_now = position + buffer * STAGE;
        if (thread < STAGE) {
            base_now[thread] = number;
            position_now[thread] = where;
        } else if (thread < 2 * STAGE) {
            mean_now[thread - STAGE] = number;
        }
        copy_wait<0>();
        sync_block();
        find();
        if (head < (kv + 1) * group) fetch(buffer ^ 1);
        // 2. transposed: a row is a key, a column a query; unless all queries come before this warp's keys
        if (masked && first + STAGE <= k0 + row) continue;
        float s[TILES][STAGE / 8][4], dp[TILES][STAGE / 8][4];
        products<D, TILES, STAGE>(s, k, row, q_now, 0);
        if (masked) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int key = row + 16 * tile + 8 * i + g;
                    unsigned key_end = end[key], key_low = low[key];
#pragma unroll
                    for (int n = 0; n < STAGE / 8; n++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            int column = 8 * n + 2 * t + e, at = first + column;
                            bool seen = bool((k0 + key <= at) & (unsigned(at) < key_end) & (position_now[column] < key_low));
                            if (!seen) s[tile][n][2 * i + e] = -INFINITY;
                        }
                }
        }
        products<D, TILES, STAGE>(dp, v, row, go_now, 0);
#pragma unroll
        for (int n = 0; n < STAGE / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float x = base_now[8 * n + 2 * t + e], y = mean_now[8 * n + 2 * t + e];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (int i = e; i < 4; i += 2) {
                        float p = power_of_two(fmaf(s[tile][n][i], factor, -x));
                        s[tile][n][i] = p;
                        dp[tile][n][i] = p * (dp[tile][n][i] - y);
                    }
            }
        // 3. dv += p^T do, dk += ds^T q
        accumulate<D, TILES, STAGE>(ov, s, go_now, 0);
        accumulate<D, TILES, STAGE>(ok, dp, q_now, 0);
    }
    copy_wait<0>();
    float by[TILES][2], one[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        by[tile][0] = by[tile][1] = a.scale;
        one[tile][0] = one[tile][1] = 1.0f;
    }
    store_rows<D, TILES>(dk + kv * D, dk_stride, k0 + row, a.n_k, ok, by, k, row);
    store_rows<D, TILES>(dv + kv * D, dv_stride, k0 + row, a.n_k, ov, one, v, row);
}

// delta (h, n) = rowsum(dout * out), both (n, h d): what the gradient of a softmax subtracts. Grid ceil(n h d / 2048), 256
// threads, a thread eight elements.
template <int D>
__device__ __forceinline__ void row_sums(float *delta, const bf16 *dout, const bf16 *out, int n, int h) {
    constexpr int LANES = D / 8;
    long i = long(blockIdx.x) * blockDim.x + threadIdx.x, unit = i / LANES;
    float sum = 0;
    if (unit < long(n) * h) {
        Eight x = reinterpret_cast<const Eight *>(dout)[i], y = reinterpret_cast<const Eight *>(out)[i];
#pragma unroll
        for (int e = 0; e < 8; e++) sum += to_float(x.x[e]) * to_float(y.x[e]);
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (i % LANES == 0 && unit < long(n) * h) delta[unit % h * n + unit / h] = sum;
}

// A block's shared memory in bytes, for d of 32, 64 and 128: forward 26624, 51200 and 100352; dq 34816, 67584 and 99840 (STAGE 64,
// 64 and 32); dkv 17664, 34048 and 66816 (TILES 2, 2 and 1: 64, 64 and 128 threads). The device's default limit is 49152.
#define ATTENTION(D, FORWARD_STEP, QUERY_STAGE, QUERY_STEP, KEY_TILES, KEY_STAGE)                                                \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_##D(Attention a, bf16 *out, float *lse) {             \
        forward<D, FORWARD_STEP>(a, out, lse);                                                                                   \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                         \
        attention_dq_##D(Attention a, bf16 *dq, long stride, const bf16 *dout, const float *lse, const float *delta) {           \
        backward_queries<D, QUERY_STAGE, QUERY_STEP>(a, dq, stride, dout, lse, delta);                                           \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(128 / KEY_TILES, 2 * KEY_TILES)                                                 \
        attention_dkv_##D(Attention a, bf16 *dk, bf16 *dv, long dk_stride, long dv_stride, const bf16 *dout, const float *lse,   \
                          const float *delta) {                                                                                  \
        backward_keys<D, KEY_TILES, KEY_STAGE>(a, dk, dv, dk_stride, dv_stride, dout, lse, delta);                               \
    }                                                                                                                            \
    extern "C" __global__ void attention_delta_##D(float *delta, const bf16 *dout, const bf16 *out, int n, int h) {              \
        row_sums<D>(delta, dout, out, n, h);                                                                                     \
    }

ATTENTION(32, 64, 64, 64, 2, 32)
ATTENTION(64, 64, 64, 32, 2, 32)
ATTENTION(128, 64, 32, 32, 1, 32)

// The same for any d up to 256 and any alignment, with tiles or, where `first` is null, without: then a row looks at all others.
// Grid (heads, rows / 8 rounded up), 256 threads, a warp a row.
constexpr int ANY_WARPS = 8;

// Of the tile list that holds row `row`, the parts of 32 rows: how many, and where part i begins.
struct AnyWalk {
    const int *tiles;
    int size, parts;

    __device__ __forceinline__ AnyWalk(const Attention &a, int list, int tile_size, int rows) {
        int begin = a.first ? a.first[list] : 0;
        tiles = a.first ? a.tiles + begin : nullptr;
        size = tile_size;
        parts = a.first ? (a.first[list + 1] - begin) * (size / WARP) : (rows + WARP - 1) / WARP;
    }
    __device__ __forceinline__ int begin(int i) const {
        return tiles ? (tiles[i / (size / WARP)] >> 1) * size + i % (size / WARP) * WARP : i * WARP;
    }
};

__device__ __forceinline__ bool any_sees(const Attention &a, unsigned at, unsigned position, int key) {
    unsigned end, low;
    bounds_of_key(a, key, end, low);
    return unsigned(key) <= at && at < end && position < low;
}

extern "C" __global__ void attention_any_forward(Attention a, bf16 *out, float *lse) {
    __shared__ bf16 keys[WARP * ANY_PITCH], values[WARP * ANY_PITCH], rows[ANY_WARPS * ANY_PITCH];
    __shared__ float weights[ANY_WARPS * WARP];
    int head = blockIdx.x, kv = head / (a.h / a.hk), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, d = a.d;
    int q0 = blockIdx.y * ANY_WARPS, query = q0 + warp;
    const bf16 *row = rows + warp * ANY_PITCH;
    unsigned at, position;
    place_of_query(a, query, at, position);
    any_fetch(rows, a.q + head * d, a.q_stride, ANY_WARPS, q0, a.n_q, d);
    float o[ANY_COLUMNS] = {}, top = -INFINITY, sum = 0;
    AnyWalk walk(a, q0 / QUERIES, KEYS, a.n_k);
    for (int part = 0; part < walk.parts; part++) {
        int k0 = walk.begin(part), key = k0 + lane;
        sync_block();
        any_fetch(keys, a.k + kv * d, a.k_stride, WARP, k0, a.n_k, d);
        any_fetch(values, a.v + kv * d, a.v_stride, WARP, k0, a.n_k, d);
        sync_block();
        bool seen = query < a.n_q && any_sees(a, at, position, key);
        if (!vote(seen)) continue;
        float s = seen ? any_dot(row, keys + lane * ANY_PITCH, d) * a.scale : -INFINITY;
        float high = fmaxf(top, warp_max(s));
        float p = expf(s - high), shrink = expf(top - high);
        top = high;
        sum = sum * shrink + p;
#pragma unroll
        for (int i = 0; i < ANY_COLUMNS; i++) o[i] *= shrink;
        any_accumulate(o, p, weights + warp * WARP, values, d);
    }
    sum = warp_sum(sum);
    if (query >= a.n_q) return;
    if (lane == 0) lse[long(head) * a.n_q + query] = top + logf(sum);
    any_store(out + (long(query) * a.h + head) * d, o, 1.0f / sum, d);
}

extern "C" __global__ void attention_any_dq(Attention a, bf16 *dq, long stride, const bf16 *dout, const float *lse,
                                            const float *delta) {
    __shared__ bf16 keys[WARP * ANY_PITCH], values[WARP * ANY_PITCH], rows[ANY_WARPS * ANY_PITCH], grads[ANY_WARPS * ANY_PITCH];
    __shared__ float weights[ANY_WARPS * WARP];
    int head = blockIdx.x, kv = head / (a.h / a.hk), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, d = a.d;
    int q0 = blockIdx.y * ANY_WARPS, query = q0 + warp;
    unsigned at, position;
    place_of_query(a, query, at, position);
    any_fetch(rows, a.q + head * d, a.q_stride, ANY_WARPS, q0, a.n_q, d);
    any_fetch(grads, dout + head * d, long(a.h) * d, ANY_WARPS, q0, a.n_q, d);
    float base = query < a.n_q ? lse[long(head) * a.n_q + query] : 0, mean = query < a.n_q ? delta[long(head) * a.n_q + query] : 0;
    float o[ANY_COLUMNS] = {};
    AnyWalk walk(a, q0 / QUERIES, KEYS, a.n_k);
    for (int part = 0; part < walk.parts; part++) {
        int k0 = walk.begin(part), key = k0 + lane;
        sync_block();
        any_fetch(keys, a.k + kv * d, a.k_stride, WARP, k0, a.n_k, d);
        any_fetch(values, a.v + kv * d, a.v_stride, WARP, k0, a.n_k, d);
        sync_block();
        bool seen = query < a.n_q && any_sees(a, at, position, key);
        if (!vote(seen)) continue;
        float ds = 0;
        if (seen) {
            float s = any_dot(rows + warp * ANY_PITCH, keys + lane * ANY_PITCH, d) * a.scale;
            ds = expf(s - base) * (any_dot(grads + warp * ANY_PITCH, values + lane * ANY_PITCH, d) - mean);
        }
        any_accumulate(o, ds, weights + warp * WARP, keys, d);
    }
    if (query < a.n_q) any_store(dq + query * stride + head * d, o, a.scale, d);
}

extern "C" __global__ void attention_any_dkv(Attention a, bf16 *dk, bf16 *dv, long dk_stride, long dv_stride, const bf16 *dout,
                                             const float *lse, const float *delta) {
    __shared__ bf16 queries[WARP * ANY_PITCH], grads[WARP * ANY_PITCH], rows[ANY_WARPS * ANY_PITCH], values[ANY_WARPS * ANY_PITCH];
    __shared__ float weights[ANY_WARPS * WARP];
    int kv = blockIdx.x, group = a.h / a.hk, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, d = a.d;
    int k0 = blockIdx.y * ANY_WARPS, key = k0 + warp;
    any_fetch(rows, a.k + kv * d, a.k_stride, ANY_WARPS, k0, a.n_k, d);
    any_fetch(values, a.v + kv * d, a.v_stride, ANY_WARPS, k0, a.n_k, d);
    float ok[ANY_COLUMNS] = {}, ov[ANY_COLUMNS] = {};
    AnyWalk walk(a, k0 / KEYS, QUERIES, a.n_q);
    for (int head = kv * group; head < (kv + 1) * group; head++)
        for (int part = 0; part < walk.parts; part++) {
            int q0 = walk.begin(part), query = q0 + lane;
            sync_block();
            any_fetch(queries, a.q + head * d, a.q_stride, WARP, q0, a.n_q, d);
            any_fetch(grads, dout + head * d, long(a.h) * d, WARP, q0, a.n_q, d);
            sync_block();
            unsigned at, position;
            place_of_query(a, query, at, position);
            bool seen = query < a.n_q && any_sees(a, at, position, key);
            if (!vote(seen)) continue;
            float p = 0, ds = 0;
            if (seen) {
                p = expf(any_dot(rows + warp * ANY_PITCH, queries + lane * ANY_PITCH, d) * a.scale - lse[long(head) * a.n_q + query]);
                ds = p * (any_dot(values + warp * ANY_PITCH, grads + lane * ANY_PITCH, d) - delta[long(head) * a.n_q + query]);
            }
            any_accumulate(ov, p, weights + warp * WARP, grads, d);
            any_accumulate(ok, ds, weights + warp * WARP, queries, d);
        }
    if (key >= a.n_k) return;
    any_store(dk + key * dk_stride + kv * d, ok, a.scale, d);
    any_store(dv + key * dv_stride + kv * d, ov, 1.0f, d);
}

// As `attention_delta_*`. Grid ceil(n h / 8), 256 threads, a warp a head of a row.
extern "C" __global__ void attention_any_delta(float *delta, const bf16 *dout, const bf16 *out, int n, int h, int d) {
    long unit = long(blockIdx.x) * ANY_WARPS + threadIdx.x / WARP;
    float sum = 0;
    if (unit < long(n) * h)
        for (int i = threadIdx.x % WARP; i < d; i += WARP) sum += to_float(dout[unit * d + i]) * to_float(out[unit * d + i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0 && unit < long(n) * h) delta[unit % h * n + unit / h] = sum;
}

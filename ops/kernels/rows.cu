// Kernels over rows: norms, rotation, activations, tables of rows, and what goes over single elements. A row is a token's.
//
// 1. RMSNorm and its gradient.
// 2. Norms and rotation of queries and keys, cache writes, and the gradient.
// 3. Biases and sums over rows.
// 4. SwiGLU and its gradient.
// 5. Rows by index: embedding, selection, and their gradients.
// 6. Element by element: sums, casts, fill, merged adapters, dropout.
//
// Invariants: matrices are bf16 and contiguous, addresses and rows multiples of 16 bytes; vectors (norm weights, biases),
// statistics and gradients of parameters are float32; arithmetic is float32. A gradient of a vector is made in two stages:
// a block adds up its rows in order into a row of `partial`, and `add_partials` adds these up in a fixed tree.
#include "common.cuh"
#include "philox.cuh"

// Tokens of a block in the gradients of norms: `partial` has a row for each.
constexpr int NORM_ROWS = 8;
// Tokens of a block in `column_sums`.
constexpr int SUM_ROWS = 64;

// --- 1. RMSNorm ---------------------------------------------------------------------------------------------------------

// y = (residual +) norm(x (+ delta)) w. Where there is a delta, `sum` gets x + delta; `root` (n), where given, 1 / sqrt(mean
// square + eps); x, y, sum: (n, width); w: (width). y may be x, delta or residual; sum may be x or delta.
// Grid n, block width / 8 rounded up to whole warps: width at most 8,192 and a multiple of 8. Zhang and Sennrich, 2019.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(bf16 *y, float *root, bf16 *sum, const bf16 *x, const bf16 *delta, const bf16 *residual, const float *w, int width,
             float eps) {
    __shared__ float scratch[WARP];
    int i = threadIdx.x * 8;
    bool mine = i < width;
    long at = long(blockIdx.x) * width + i;
    float v[8] = {};
    float squares = 0;
    if (mine) {
        load(v, x + at);
        if (delta) {
            float d[8];
            load(d, delta + at);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] = to_float(to_bf16(v[e] + d[e]));
            store(sum + at, v);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) squares += v[e] * v[e];
    }
    float r = rsqrtf(block_sum(squares, scratch) / width + eps);
    if (threadIdx.x == 0 && root) root[blockIdx.x] = r;
    if (mine) {
        float scale[8];
        load(scale, w + i);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] *= r * scale[e];
        if (residual) {
            float other[8];
            load(other, residual + at);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] += other[e];
        }
        store(y + at, v);
    }
}

// Gradient of y = norm(x) w, given x and the root: dx = (residual +) root (dy w - x c) with c = root^2 mean(dy w x); `residual`
// is a gradient that reaches x beside the norm. A row of `partial` (ceil(n / 8), width) gets the sum of dy x root over 8
// tokens; null where w is frozen. dx may be dy, x or residual. Grid ceil(n / 8), block as `rms_norm`.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_backward(bf16 *dx, float *partial, const bf16 *dy, const bf16 *x, const float *w, const float *root,
                      const bf16 *residual, int n, int width) {
    __shared__ float scratch[WARP];
    int i = threadIdx.x * 8;
    bool mine = i < width;
    float scale[8] = {}, dw[8] = {};
    if (mine) load(scale, w + i);
    int first = blockIdx.x * NORM_ROWS, last = min(first + NORM_ROWS, n);
    for (int row = first; row < last; row++) {
        long at = long(row) * width + i;
        float g[8] = {}, v[8] = {}, other[8] = {};
        float product = 0, r = root[row];
        if (mine) {
            load(g, dy + at);
            load(v, x + at);
            if (residual) load(other, residual + at);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                dw[e] += g[e] * r * v[e];
                g[e] *= scale[e];
                product += g[e] * v[e];
            }
        }
        float c = block_sum(product, scratch) * r * r / width;
        if (mine) {
#pragma unroll
            for (int e = 0; e < 8; e++) g[e] = other[e] + r * (g[e] - v[e] * c);
            store(dx + at, g);
        }
    }
    if (mine && partial) store(partial + long(blockIdx.x) * width + i, dw);
}

// out (width) += sum of the rows of partial (parts, width), for any width. 32 chains a column, each in the order of rows, then a
// tree. Grid ceil(width / 32), block 1,024.
extern "C" __global__ void __launch_bounds__(1024) add_partials(float *out, const float *partial, int parts, int width) {
    __shared__ float sums[WARP][WARP + 1];
    int lane = threadIdx.x % WARP, chain = threadIdx.x / WARP;
    int column = blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < width) {
#pragma unroll 4
        for (int part = chain; part < parts; part += WARP) sum += partial[long(part) * width + column];
    }
    sums[chain][lane] = sum;
    sync_block();
    // now a warp has a column, and a lane a chain
    sum = warp_sum(sums[lane][chain]);
    column = blockIdx.x * WARP + chain;
    if (lane == 0 && column < width) out[column] += sum;
}

// --- 2. Queries and keys ------------------------------------------------------------------------------------------------

// A thread has 8 pairs (i, i + d/2) of one head of queries or keys, and `group` threads, a power of two, have a head. Any even d
// up to 256; 16-byte accesses where d is a multiple of 16, single ones otherwise.
struct Place {
    int head, i, pairs, group;

    __device__ Place(int heads, int d) {
        group = 1;
        while (group * 16 < d) group *= 2;
        head = threadIdx.x / group;
        i = threadIdx.x % group * 8;
        pairs = head < heads ? max(0, min(8, d / 2 - i)) : 0;
    }
};

template <class T>
__device__ __forceinline__ void load_pairs(float (&low)[8], float (&high)[8], const T *head, Place p, int d) {
    if (d % 16 == 0 && p.pairs) {
        load(low, head + p.i);
        load(high, head + d / 2 + p.i);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            bool has = e < p.pairs;
            if constexpr (sizeof(T) == 2) {
                low[e] = has ? to_float(head[p.i + e]) : 0.0f;
                high[e] = has ? to_float(head[d / 2 + p.i + e]) : 0.0f;
            } else {
                low[e] = has ? head[p.i + e] : 0.0f;
                high[e] = has ? head[d / 2 + p.i + e] : 0.0f;
            }
        }
    }
}

__device__ __forceinline__ void store_pairs(bf16 *head, const float (&low)[8], const float (&high)[8], Place p, int d) {
    if (d % 16 == 0) {
        if (p.pairs) {
            store(head + p.i, low);
            store(head + d / 2 + p.i, high);
        }
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < p.pairs) {
                head[p.i + e] = to_bf16(low[e]);
                head[d / 2 + p.i + e] = to_bf16(high[e]);
            }
        }
    }
}

__device__ __forceinline__ float group_sum(float x, int group) {
    for (int lanes = group / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// Sum over the elements that share a norm with this thread's: those of its head, or of all queries or all keys.
__device__ __forceinline__ float norm_sum(float x, Place p, int h, int whole, float *scratch) {
    if (!whole) return group_sum(x, p.group);
    float q = block_sum(p.head < h ? x : 0.0f, scratch), k = block_sum(p.head < h ? 0.0f : x, scratch);
    return p.head < h ? q : k;
}

// Rotates pairs by the angles of a row of the tables; `sign` -1 turns back. Su et al., "RoFormer", 2021.
__device__ __forceinline__ void rotate(float (&low)[8], float (&high)[8], const float *cos, const float *sin, float sign, Place p,
                                       int d) {
    float c[8] = {}, s[8] = {};
    if (d % 16 == 0 && p.pairs) {
        load(c, cos + p.i);
        load(s, sin + p.i);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < p.pairs) {
                c[e] = cos[p.i + e];
                s[e] = sin[p.i + e];
            }
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float a = low[e], b = high[e], turn = sign * s[e];
        low[e] = fmaf(a, c[e], -(b * turn));
        high[e] = fmaf(b, c[e], a * turn);
    }
}

// Values (hk d) of a token from one place to another, by all threads of the block.
__device__ __forceinline__ void copy_values(bf16 *to, const bf16 *from, int kv, int d) {
    if (d % 16 == 0) {
        for (int i = threadIdx.x * 8; i < kv; i += blockDim.x * 8) {
            check_aligned(from + i);
            check_aligned(to + i);
            *reinterpret_cast<Eight *>(to + i) = *reinterpret_cast<const Eight *>(from + i);
        }
    } else {
        for (int i = threadIdx.x; i < kv; i += blockDim.x) to[i] = from[i];
    }
}

// Norm and rotation of the queries and keys of qkv (n, (h + 2 hk) d) into `out` of the same shape, whose values are copied
// where `with_v` and left alone otherwise. The norms' weights, both or neither: of a head (d), or where `whole`, of all queries
// (h d) and all keys (hk d). cos, sin: (positions, d/2); positions: (n). Where there is a cache, k and v also go into k_cache
// and v_cache (pages, 64, hk, d), to the token slots[row] = page * 64 + place in the page; 0xffffffff is no place. out may be
// qkv. Grid n, block (h + hk) g rounded up to whole warps, at most 1,024; g is the least power of two not below d / 16.
extern "C" __global__ void __launch_bounds__(1024)
    norm_rotate(bf16 *out, bf16 *k_cache, bf16 *v_cache, const bf16 *qkv, const float *q_norm, const float *k_norm,
                const float *cos, const float *sin, const unsigned *positions, const unsigned *slots, int h, int hk, int d,
                int whole, int with_v, float eps) {
    __shared__ float scratch[WARP];
    Place p(h + hk, d);
    bool query = p.head < h;
    long row = long(blockIdx.x) * (h + 2 * hk) * d;
    float low[8] = {}, high[8] = {};
    load_pairs(low, high, qkv + row + long(p.head) * d, p, d);
    if (q_norm) {
        float squares = 0;
#pragma unroll
        for (int e = 0; e < 8; e++) squares += low[e] * low[e] + high[e] * high[e];
        int width = whole ? (query ? h : hk) * d : d;
        float r = rsqrtf(norm_sum(squares, p, h, whole, scratch) / width + eps);
        const float *w = query ? q_norm : k_norm;
        float a[8] = {}, b[8] = {};
        load_pairs(a, b, w + (whole ? (query ? p.head : p.head - h) * d : 0), p, d);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            low[e] *= r * a[e];
            high[e] *= r * b[e];
        }
    }
    long angle = long(positions[blockIdx.x]) * (d / 2);
    rotate(low, high, cos + angle, sin + angle, 1.0f, p, d);
    store_pairs(out + row + long(p.head) * d, low, high, p, d);
    const bf16 *v = qkv + row + long(h + hk) * d;
    unsigned slot = slots ? slots[blockIdx.x] : 0xffffffffu;
    if (slot != 0xffffffffu) {
        long to = long(slot) * hk * d;
        if (!query) store_pairs(k_cache + to + long(p.head - h) * d, low, high, p, d);
        copy_values(v_cache + to, v, hk * d, d);
    }
    if (with_v) copy_values(out + row + long(h + hk) * d, v, hk * d, d);
}

// Gradient of `norm_rotate`: from dout to dqkv, which may be dout; qkv is the forward's input, null without norms. The values'
// gradient is copied where `with_v`. Rows of q_partial (ceil(n / 8), d, or h d where `whole`) and k_partial (.., d, or hk d) get
// the sums of the weights' gradients over 8 tokens; null where they are frozen or there are none.
// Grid ceil(n / 8), block as `norm_rotate` but at most 640, 32 bytes of shared memory a thread where there are sums over heads.
extern "C" __global__ void __launch_bounds__(640)
    norm_rotate_backward(bf16 *dqkv, float *q_partial, float *k_partial, const bf16 *dout, const bf16 *qkv, const float *q_norm,
                         const float *k_norm, const float *cos, const float *sin, const unsigned *positions, int n, int h, int hk,
                         int d, int whole, int with_v, float eps) {
    __shared__ float scratch[WARP];
    DYNAMIC_SHARED(float, sums);
    Place p(h + hk, d);
    bool query = p.head < h;
    int width = whole ? (query ? h : hk) * d : d;
    // where the weights of this thread's elements begin
    int of_head = whole ? (query ? p.head : p.head - h) * d : 0;
    const float *w = query ? q_norm : k_norm;
    float dw_low[8] = {}, dw_high[8] = {};
    int first = blockIdx.x * NORM_ROWS, last = min(first + NORM_ROWS, n);
    for (int token = first; token < last; token++) {
        long row = long(token) * (h + 2 * hk) * d, at = row + long(p.head) * d;
        float low[8] = {}, high[8] = {};
        load_pairs(low, high, dout + at, p, d);
        long angle = long(positions[token]) * (d / 2);
        rotate(low, high, cos + angle, sin + angle, -1.0f, p, d);
        if (q_norm) {
            float x_low[8] = {}, x_high[8] = {}, w_low[8] = {}, w_high[8] = {};
            load_pairs(x_low, x_high, qkv + at, p, d);
            load_pairs(w_low, w_high, w + of_head, p, d);
            float squares = 0, product = 0;
#pragma unroll
            for (int e = 0; e < 8; e++) {
                squares += x_low[e] * x_low[e] + x_high[e] * x_high[e];
                product += low[e] * w_low[e] * x_low[e] + high[e] * w_high[e] * x_high[e];
            }
            float r = rsqrtf(norm_sum(squares, p, h, whole, scratch) / width + eps);
            float c = norm_sum(product, p, h, whole, scratch) * r * r / width;
#pragma unroll
            for (int e = 0; e < 8; e++) {
                dw_low[e] += low[e] * r * x_low[e];
                dw_high[e] += high[e] * r * x_high[e];
                low[e] = r * (low[e] * w_low[e] - x_low[e] * c);
                high[e] = r * (high[e] * w_high[e] - x_high[e] * c);
            }
        }
        store_pairs(dqkv + at, low, high, p, d);
        long v = row + long(h + hk) * d;
        if (with_v) copy_values(dqkv + v, dout + v, hk * d, d);
    }
    if (!q_partial) return;
    float *to = (query ? q_partial : k_partial) + long(blockIdx.x) * width + of_head;
    if (whole) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < p.pairs) {
                to[p.i + e] = dw_low[e];
                to[d / 2 + p.i + e] = dw_high[e];
            }
        }
        return;
    }
    // sums over the heads, in their order: the lower halves of all heads, then the upper ones
    for (int half = 0; half < 2; half++) {
        sync_block();
#pragma unroll
        for (int e = 0; e < 8; e++) sums[threadIdx.x * 8 + e] = half ? dw_high[e] : dw_low[e];
        sync_block();
        for (int i = threadIdx.x; i < d; i += blockDim.x) {
            bool of_query = i < d / 2;
            int column = of_query ? i : i - d / 2;
            float sum = 0;
            for (int head = of_query ? 0 : h; head < (of_query ? h : h + hk); head++) sum += sums[head * p.group * 8 + column];
            (of_query ? q_partial : k_partial)[long(blockIdx.x) * d + half * (d / 2) + column] = sum;
        }
    }
}

// --- 3. Biases ----------------------------------------------------------------------------------------------------------

// y (n, width) += b (width). Width a multiple of 8; grid (ceil(width / 8 / block), min(n, 65,535)).
extern "C" __global__ void __launch_bounds__(1024) add_bias(bf16 *y, const float *b, int n, int width) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    float bias[8];
    load(bias, b + i);
    for (int row = blockIdx.y; row < n; row += gridDim.y) {
        long at = long(row) * width + i;
        float v[8];
        load(v, y + at);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] += bias[e];
        store(y + at, v);
    }
}

// A row of partial (ceil(n / 64), width) = the sum of 64 rows of dy (n, width), in order: with `add_partials` the gradient of a
// bias. Width a multiple of 8; grid (ceil(width / 8 / block), ceil(n / 64)), so n at most 4,194,240.
extern "C" __global__ void __launch_bounds__(1024) column_sums(float *partial, const bf16 *dy, int n, int width) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    int first = blockIdx.y * SUM_ROWS, last = min(first + SUM_ROWS, n);
    float sum[8] = {};
#pragma unroll 4
    for (int row = first; row < last; row++) {
        float g[8];
        load(g, dy + long(row) * width + i);
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += g[e];
    }
    store(partial + long(blockIdx.y) * width + i, sum);
}

// --- 4. SwiGLU ----------------------------------------------------------------------------------------------------------

// y (n, width) = silu(gate) up; x (n, 2 width) has gate in the first half of each row and up in the second. Width a multiple of
// 8; grid (ceil(width / 8 / block), min(n, 65,535)). Shazeer, "GLU variants improve Transformer", 2020.
extern "C" __global__ void __launch_bounds__(1024) swiglu(bf16 *y, const bf16 *x, int n, int width) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    for (int row = blockIdx.y; row < n; row += gridDim.y) {
        const bf16 *gate = x + long(row) * 2 * width + i;
        float g[8], u[8];
        load(g, gate);
        load(u, gate + width);
#pragma unroll
        for (int e = 0; e < 8; e++) g[e] = g[e] * sigmoid(g[e]) * u[e];
        store(y + long(row) * width + i, g);
    }
}

// Gradient of `swiglu`: dx (n, 2 width), laid out as x, given dy (n, width) and x; where `y` is given, it gets the forward's
// output again, to the same bits. dx may be x, and y may be dy. Grid as `swiglu`.
extern "C" __global__ void __launch_bounds__(1024)
    swiglu_backward(bf16 *dx, bf16 *y, const bf16 *dy, const bf16 *x, int n, int width) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    for (int row = blockIdx.y; row < n; row += gridDim.y) {
        long at = long(row) * width + i, gate = long(row) * 2 * width + i;
        float g[8], u[8], d[8];
        load(g, x + gate);
        load(u, x + gate + width);
        load(d, dy + at);
        float out[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float s = sigmoid(g[e]);
            out[e] = g[e] * s * u[e];
            u[e] = d[e] * u[e] * s * (1.0f + g[e] * (1.0f - s));
            g[e] = d[e] * g[e] * s;
        }
        store(dx + gate, u);
        store(dx + gate + width, g);
        if (y) store(y + at, out);
    }
}

// --- 5. Rows by index ---------------------------------------------------------------------------------------------------

// out (n, width) = the rows `ids` (n) of table (.., width): an embedding, or a selection. Where the highest bit of an id is set, the
// rest is a place of `drawn` that has the id; null where no id is such a place. Width a multiple of 8; grid (n, ceil(width / 8 /
// block)).
extern "C" __global__ void __launch_bounds__(1024)
    gather_rows(bf16 *out, const bf16 *table, const unsigned *ids, const unsigned *drawn, int width) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    unsigned id = ids[blockIdx.x];
    if (drawn && id >> 31) id = drawn[id & 0x7fffffffu];
    const bf16 *from = table + long(id) * width + i;
    bf16 *to = out + long(blockIdx.x) * width + i;
    check_aligned(from);
    check_aligned(to);
    *reinterpret_cast<Eight *>(to) = *reinterpret_cast<const Eight *>(from);
}

// acc += the rows order[first..last) of dy, one after the other.
__device__ __forceinline__ void add_rows(float (&acc)[8], const bf16 *dy, const unsigned *order, unsigned first, unsigned last,
                                         int width, int i) {
#pragma unroll 4
    for (unsigned at = first; at < last; at++) {
        float g[8];
        load(g, dy + long(order[at]) * width + i);
#pragma unroll
        for (int e = 0; e < 8; e++) acc[e] += g[e];
    }
}

// Gradient of an embedding, dtable (v, width) float32 += dy (n, width). Rows are sorted by token on the host, those of a token in
// ascending order: the rows of tokens[j] are order[starts[j]] .. order[starts[j + 1]] without the last, for each of the distinct
// tokens. The sums are in the order of rows, as on the processor. Grid (distinct tokens, ceil(width / 8 / block)).
extern "C" __global__ void __launch_bounds__(1024)
    embedding_backward(float *dtable, const bf16 *dy, const unsigned *order, const unsigned *starts, const unsigned *tokens,
                       int width) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    float *to = dtable + long(tokens[blockIdx.x]) * width + i;
    float sum[8];
    load(sum, to);
    add_rows(sum, dy, order, starts[blockIdx.x], starts[blockIdx.x + 1], width, i);
    store(to, sum);
}

// Gradient of a selection: dx (n, width) = for each row j the sum of the rows order[starts[j]] .. order[starts[j + 1]] without
// the last of dy, zero where there is none; starts: (n + 1). Grid (n, ceil(width / 8 / block)).
extern "C" __global__ void __launch_bounds__(1024)
    scatter_rows(bf16 *dx, const bf16 *dy, const unsigned *order, const unsigned *starts, int width) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    float sum[8] = {};
    add_rows(sum, dy, order, starts[blockIdx.x], starts[blockIdx.x + 1], width, i);
    store(dx + long(blockIdx.x) * width + i, sum);
}

// --- 6. Element by element ----------------------------------------------------------------------------------------------
// Any count; any grid and block.

// Calls `eight(at)` for runs of eight elements, and `one(at)` for those that are left.
template <class F, class G>
__device__ __forceinline__ void each(long count, F eight, G one) {
    long stride = long(gridDim.x) * blockDim.x * 8;
    for (long at = (long(blockIdx.x) * blockDim.x + threadIdx.x) * 8; at < count; at += stride) {
        if (at + 8 <= count) {
            eight(at);
        } else {
            for (long i = at; i < count; i++) one(i);
        }
    }
}

// y = a + b; y may be a or b.
extern "C" __global__ void __launch_bounds__(1024) add(bf16 *y, const bf16 *a, const bf16 *b, long count) {
    each(
        count,
        [=](long at) {
            float v[8], other[8];
            load(v, a + at);
            load(other, b + at);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] += other[e];
            store(y + at, v);
        },
        [=](long at) { y[at] = to_bf16(to_float(a[at]) + to_float(b[at])); });
}

// y = (a +) m x, with m = `dropped` where an entry's uniform number is below `rate`, else `kept`. The numbers are those that the stream
// gives to one entry after the other. y may be a or x. Srivastava et al., "Dropout", 2014.
extern "C" __global__ void __launch_bounds__(1024)
    drop(bf16 *y, const bf16 *a, const bf16 *x, long count, uint64_t seed, uint64_t stream, double rate, float kept, float dropped) {
    auto factor = [=](uint64_t number) { return ldexp(double(number), -64) < rate ? dropped : kept; };
    each(
        count,
        [=](long at) {
            float v[8], other[8] = {};
            load(v, x + at);
            if (a) load(other, a + at);
#pragma unroll
            for (int e = 0; e < 8; e += 2) {
                unsigned words[4];
                philox(words, seed, stream, uint64_t(at + e) / 2);
                v[e] = multiply(v[e], factor(uniform(words[0], words[1]))) + other[e];
                v[e + 1] = multiply(v[e + 1], factor(uniform(words[2], words[3]))) + other[e + 1];
            }
            store(y + at, v);
        },
        [=](long at) {
            float v = multiply(to_float(x[at]), factor(uniform(seed, stream, uint64_t(at))));
            y[at] = to_bf16(v + (a ? to_float(a[at]) : 0.0f));
        });
}

// merged = w + scale * product, rounded once: an adapter's weight, given product = B A in float32. Hu et al., "LoRA", 2021.
// merged may be w.
extern "C" __global__ void __launch_bounds__(1024)
    merge(bf16 *merged, const bf16 *w, const float *product, float scale, long count) {
    each(
        count,
        [=](long at) {
            float v[8], low[8];
            load(v, w + at);
            load(low, product + at);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] += multiply(low[e], scale);
            store(merged + at, v);
        },
        [=](long at) { merged[at] = to_bf16(to_float(w[at]) + multiply(product[at], scale)); });
}

// Tiles in shared memory that tensor cores read: rows of D bf16 elements, D = 32, 64 or 128.
//
// Invariant: a row's chunks of 8 elements are shuffled by the row's number, so that eight rows of one chunk lie in eight
// different groups of banks, and neither ldmatrix nor a copy waits for a bank.
//
// Throughout, `g` is lane / 4 and `t` lane % 4, as in the fragments of mma.m16n8k16 (`multiply_add`).
#pragma once

#include "common.cuh"

template <int D>
__device__ __forceinline__ int shuffled(int row) { return D >= 64 ? row & 7 : (row >> 1) & 3; }

// Where chunk `chunk` of row `row` begins, in elements.
template <int D>
__device__ __forceinline__ int place(int row, int chunk) { return row * D + ((chunk ^ shuffled<D>(row)) * 8); }

// Starts to fetch rows first.. of x, ROWS of them, into a tile; rows from `end` on become zeros. For all THREADS of the block.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void fetch_rows(bf16 *tile, const bf16 *x, long stride, int first, int end) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "threads do not divide a tile's rows");
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    bf16 *to = tile + place<D>(row, chunk);
    const bf16 *from = x + (first + row) * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
        bool take = first + row + i < end;
        copy_async(to + i * D, take ? from : x, take);
        from += STEP * stride;
    }
}

// A lane's share in an address of `load_matrices`: the matrices are rows 0..7 and 8..15 of one chunk, then those of the next.
// So a tile gives A (rows, columns), and transposed it gives B of a product over its rows.
template <int D>
__device__ __forceinline__ int lane_down() {
    int lane = threadIdx.x % WARP;
    return place<D>(lane % 16, lane / 16);
}
// The same with the matrices in the other order, two chunks of rows 0..7 and then those of rows 8..15: a tile's rows as the
// columns of B.
template <int D>
__device__ __forceinline__ int lane_across() {
    int lane = threadIdx.x % WARP;
    return place<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
// The lane's address for the 16 rows from `row`, a multiple of 8, and the two chunks from `chunk`, an even one.
template <int D>
__device__ __forceinline__ const bf16 *part(const bf16 *tile, int lane_offset, int row, int chunk) {
    return tile + row * D + (lane_offset ^ (chunk * 8));
}

// s (16 TILES x STEP) = x y^T: rows of x from `x_row`, STEP rows of y from `y_row`.
template <int D, int TILES, int STEP>
__device__ __forceinline__ void products(float (&s)[TILES][STEP / 8][4], const bf16 *x, int x_row, const bf16 *y, int y_row) {
    int down = lane_down<D>(), across = lane_across<D>();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[tile][n][e] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned a[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) load_matrices(a[tile], part<D>(x, down, x_row + 16 * tile, 2 * k));
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            unsigned b[4];
            load_matrices(b, part<D>(y, across, y_row + 16 * n, 2 * k));
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply_add(s[tile][2 * n], a[tile], b[0], b[1]);
                multiply_add(s[tile][2 * n + 1], a[tile], b[2], b[3]);
            }
        }
    }
}

// o (16 TILES x D) += w x: weights (16 TILES x STEP) as `products` leaves them, STEP rows of x from `row`.
template <int D, int TILES, int STEP>
__device__ __forceinline__ void accumulate(float (&o)[TILES][D / 8][4], const float (&w)[TILES][STEP / 8][4], const bf16 *x,
                                           int row) {
    int down = lane_down<D>();
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        unsigned a[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const float(&low)[4] = w[tile][2 * k], (&high)[4] = w[tile][2 * k + 1];
            a[tile][0] = pack(low[0], low[1]);
            a[tile][1] = pack(low[2], low[3]);
            a[tile][2] = pack(high[0], high[1]);
            a[tile][3] = pack(high[2], high[3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            unsigned b[4];
            load_matrices_transposed(b, part<D>(x, down, row + 16 * k, 2 * n));
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply_add(o[tile][2 * n], a[tile], b[0], b[1]);
                multiply_add(o[tile][2 * n + 1], a[tile], b[2], b[3]);
            }
        }
    }
}

// Writes a warp's 16 TILES rows of o, times `by` (one factor for rows g and g + 8 of each tile), as rows first.. of x by way of
// the tile's own rows from `row`, which nobody else may use any more; rows from `end` on are left out.
template <int D, int TILES>
__device__ __forceinline__ void store_rows(bf16 *x, long stride, int first, int end, const float (&o)[TILES][D / 8][4],
                                           const float (&by)[TILES][2], bf16 *tile_rows, int row) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    sync_warp();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned pair = pack(o[tile][n][2 * i] * by[tile][i], o[tile][n][2 * i + 1] * by[tile][i]);
                *reinterpret_cast<unsigned *>(tile_rows + place<D>(row + 16 * tile + 8 * i + g, n) + 2 * t) = pair;
            }
    sync_warp();
#pragma unroll
    for (int i = lane; i < 16 * TILES * (D / 8); i += WARP) {
        int r = i / (D / 8), chunk = i % (D / 8);
        if (first + r < end) {
            Eight v = *reinterpret_cast<const Eight *>(tile_rows + place<D>(row + r, chunk));
            *reinterpret_cast<Eight *>(x + (first + r) * stride + chunk * 8) = v;
        }
    }
}

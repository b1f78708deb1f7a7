// Attention pieces without tensor cores, for any head dimension up to 256: a warp has one row and goes through tiles of 32 others,
// a lane to each, or a lane to every 32nd column.
#pragma once

#include "common.cuh"

constexpr int ANY_MOST = 256, ANY_COLUMNS = ANY_MOST / WARP;
// From row to row of a tile, in elements: an odd number of words, so that 32 rows lie in 32 banks.
constexpr int ANY_PITCH = ANY_MOST + 2;

// Rows first.. of x, `rows` of them, into a tile, zeros from `end` on. For all threads of a block of whole warps.
__device__ __forceinline__ void any_fetch(bf16 *tile, const bf16 *x, long stride, int rows, int first, int end, int d) {
    for (int row = threadIdx.x / WARP; row < rows; row += blockDim.x / WARP)
        for (int i = threadIdx.x % WARP; i < d; i += WARP)
            tile[row * ANY_PITCH + i] = first + row < end ? x[(first + row) * stride + i] : to_bf16(0);
}

__device__ __forceinline__ float any_dot(const bf16 *x, const bf16 *y, int d) {
    float sum = 0;
    for (int i = 0; i < d; i++) sum = fmaf(to_float(x[i]), to_float(y[i]), sum);
    return sum;
}

// o += sum over 32 rows of a tile, weighed by the lanes' w; lane l has columns l, l + 32, ... `weights` has room for a warp's 32.
__device__ __forceinline__ void any_accumulate(float (&o)[ANY_COLUMNS], float w, float *weights, const bf16 *tile, int d) {
    int lane = threadIdx.x % WARP;
    sync_warp();
    weights[lane] = w;
    sync_warp();
    for (int row = 0; row < WARP; row++) {
        float weight = weights[row];
#pragma unroll
        for (int i = 0; i < ANY_COLUMNS; i++) {
            int column = i * WARP + lane;
            if (column < d) o[i] = fmaf(weight, to_float(tile[row * ANY_PITCH + column]), o[i]);
        }
    }
}

// A row of d elements from a warp's columns, times `by`.
__device__ __forceinline__ void any_store(bf16 *x, const float (&o)[ANY_COLUMNS], float by, int d) {
#pragma unroll
    for (int i = 0; i < ANY_COLUMNS; i++) {
        int column = i * WARP + threadIdx.x % WARP;
        if (column < d) x[column] = to_bf16(o[i] * by);
    }
}

// What every kernel stands on: types, reductions in a fixed order, and the few instructions that C++ has no words for.
//
// Every kernel is written once and compiled twice: by nvcc for the device, and by a C++ compiler with `-DEMULATED`, where each
// thread of a block is a coroutine (`emulated/machine.hpp`). So a test on any machine runs the very source that a GPU runs,
// down to who reads which element of shared memory. What differs between the two stands in this file and nowhere else.
//
// Invariants: no float atomics, and every reduction is a fixed tree, so equal inputs give equal bits; rows are tokens, and
// matrices are row-major; sizes that may pass 2^31 elements are `long`.
#pragma once

#include <stdint.h>

#ifdef EMULATED

#include "emulated/machine.hpp"

#else

#include <cuda_bf16.h>
#include <string.h>

typedef __nv_bfloat16 bf16;

// Dynamic shared memory as an array of `type`, aligned as cp.async and ldmatrix want it.
#define DYNAMIC_SHARED(type, name)                     \
    extern __shared__ __align__(128) char name##_raw[]; \
    type *name = reinterpret_cast<type *>(name##_raw)

__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ bf16 to_bf16(float x) { return __float2bfloat16_rn(x); }

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ int shuffle_xor(int x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
__device__ __forceinline__ int shuffle(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
__device__ __forceinline__ float shuffle_up(float x, int lanes) { return __shfl_up_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ int shuffle_up(int x, int lanes) { return __shfl_up_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ uint64_t shuffle_up(uint64_t x, int lanes) { return __shfl_up_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ uint64_t shuffle_xor(uint64_t x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ double shuffle_xor(double x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ __forceinline__ unsigned vote(bool x) { return __ballot_sync(0xffffffffu, x); }

// 2^x to about two units of the last place; 0 at minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / (1 + e^-x) to about three units of the last place.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// Adds one, as no two threads at once; returns what was there. What this thread and, before a barrier, its block have written is
// seen by whoever counts after it.
__device__ __forceinline__ unsigned count_up(unsigned *at) {
    unsigned was;
    asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], 1;" : "=r"(was) : "l"(at) : "memory");
    return was;
}
// What other blocks of the same launch wrote.
__device__ __forceinline__ float load_past_l1(const float *from) { return __ldcg(from); }
__device__ __forceinline__ float4 load_past_l1(const float4 *from) { return __ldcg(from); }

__device__ __forceinline__ int count_bits(unsigned x) { return __popc(x); }

// Adds `by`, as no two threads at once; returns what was there.
__device__ __forceinline__ unsigned claim(unsigned *at, unsigned by) { return atomicAdd(at, by); }

// On the processor, stops where an address is no multiple of 16.
__device__ __forceinline__ void check_aligned(const void *) {}

// A product that is rounded before anything is added to it.
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }

// 16 bytes from global to shared memory, without registers; zeros where `take` is false. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool take) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    int bytes = take ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(bytes));
}
// Ends a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;\n" ::); }
// Waits until at most `N` of this thread's groups are on their way. Others' copies want a barrier after it.
template <int N>
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N)); }

// Four 8x8 matrices of 16-bit elements: lanes 8i..8i+7 point at the rows (16 bytes each) of matrix i, and lane l gets the
// elements 2(l%4) and 2(l%4)+1 of row l/4 of each matrix.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *row) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared));
}
// The same, each matrix transposed on the way.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void *row) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared));
}
// d (16x8, float32) += a (16x16) b (16x8), both bf16. With g = lane / 4 and t = lane % 4: a[0] holds row g, columns 2t and
// 2t+1; a[1] row g+8; a[2], a[3] the same rows, columns 2t+8, 2t+9. b[0] holds rows 2t, 2t+1 of column g; b[1] rows 2t+8,
// 2t+9. d[0], d[1] are row g, columns 2t, 2t+1; d[2], d[3] row g+8. PTX ISA, mma.m16n8k16.
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

// Two bf16 in a register, the first in the low half.
__device__ __forceinline__ unsigned pack(float low, float high) {
    bf16 pair[2] = {to_bf16(low), to_bf16(high)};
    unsigned r;
    memcpy(&r, pair, 4);
    return r;
}

constexpr int WARP = 32;

// Sum and maximum over a warp; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}

// Sum over a block of whole warps, 32 at most; every thread gets it. `scratch` has 32 numbers of shared memory, and is free
// again at once.
template <class T>
__device__ __forceinline__ T block_sum(T x, T *scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    sync_block();
    if (lane == 0) scratch[warp] = x;
    sync_block();
    return warp_sum(lane < warps ? scratch[lane] : T(0));
}
__device__ __forceinline__ float block_max(float x, float *scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    sync_block();
    if (lane == 0) scratch[warp] = x;
    sync_block();
    return warp_max(lane < warps ? scratch[lane] : -INFINITY);
}

// Eight bf16 at a 16-byte address.
struct alignas(16) Eight {
    bf16 x[8];
};
struct alignas(16) Four {
    float x[4];
};

// Eight numbers as float32, from and to an address that is a multiple of 16.
__device__ __forceinline__ void load(float (&to)[8], const bf16 *from) {
    check_aligned(from);
    Eight v = *reinterpret_cast<const Eight *>(from);
#pragma unroll
    for (int e = 0; e < 8; e++) to[e] = to_float(v.x[e]);
}
__device__ __forceinline__ void load(float (&to)[8], const float *from) {
    check_aligned(from);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Four v = reinterpret_cast<const Four *>(from)[half];
#pragma unroll
        for (int e = 0; e < 4; e++) to[4 * half + e] = v.x[e];
    }
}
__device__ __forceinline__ void store(bf16 *to, const float (&from)[8]) {
    check_aligned(to);
    Eight v;
#pragma unroll
    for (int e = 0; e < 8; e++) v.x[e] = to_bf16(from[e]);
    *reinterpret_cast<Eight *>(to) = v;
}
__device__ __forceinline__ void store(float *to, const float (&from)[8]) {
    check_aligned(to);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Four v;
#pragma unroll
        for (int e = 0; e < 4; e++) v.x[e] = from[4 * half + e];
        reinterpret_cast<Four *>(to)[half] = v;
    }
}

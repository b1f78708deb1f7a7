// Softmax of a row of logits in one pass over memory, by a block. Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018.
//
// Invariant: the largest logit and the sum have the same bits wherever they are made by as many threads, so sampler and trainer
// say the same of equal logits.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// With d = (z - max) scale log2(e): `sum` of 2^d and, where asked for, `weighted` of 2^d d. A logit that is no number makes
// the sums no number; minus infinity adds nothing.
struct Softmax {
    float max, sum, weighted;
};

// z: v logits at a 16-byte address, readable up to the next multiple of 4. `factor` is scale log2(e), `scratch` as in
// `block_sum`. Every thread gets the result.
template <bool ENTROPY>
__device__ __forceinline__ Softmax softmax(const float *z, int v, float factor, float *scratch) {
    constexpr int DEEP = 2;  // vectors of four that are on their way together
    float top = -INFINITY, sum = 0, weighted = 0;
    for (long first = threadIdx.x * 4; first < v; first += long(blockDim.x) * 4 * DEEP) {
        float x[DEEP][4];
        float most = -INFINITY;
#pragma unroll
        for (int u = 0; u < DEEP; u++) {
            long i = first + long(u) * blockDim.x * 4;
            Four four = {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}};
            if (i < v) {
                check_aligned(z + i);
                four = *reinterpret_cast<const Four *>(z + i);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[u][e] = i + e < v ? four.x[e] : -INFINITY;
                most = fmaxf(most, x[u][e]);
            }
        }
        if (most > top) {
            float down = top == -INFINITY ? 0.0f : (top - most) * factor, shrink = power_of_two(down);
            if (ENTROPY) weighted = shrink * (weighted + down * sum);
            sum = multiply(sum, shrink);
            top = most;
        }
        float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int u = 0; u < DEEP; u++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float d = (x[u][e] - base) * factor, p = power_of_two(d);
                sum += p;
                // 0 x (-infinity) is 0 here
                if (ENTROPY) weighted = fmaf(p, fmaxf(d, -1e4f), weighted);
            }
        }
    }
    Softmax all;
    all.max = block_max(top, scratch);
    float down = top == -INFINITY ? 0.0f : (top - all.max) * factor, shrink = power_of_two(down);
    all.weighted = ENTROPY ? block_sum(shrink * (weighted + down * sum), scratch) : 0.0f;
    all.sum = block_sum(multiply(shrink, sum), scratch);
    return all;
}

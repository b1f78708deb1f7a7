// Softmax of a row of logits in one pass over memory, by a block. Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// With d = (z - max) scale log2(e): `sum` of 2^d and, where asked for, `weighted` of 2^d d; `other` is the sum at a second scale.
// A logit that is no number makes the sums no number; minus infinity adds nothing.
struct Softmax {
    float max, sum, weighted, other;
};

// z: v logits at a 16-byte address, readable up to the next multiple of 4. The factors are scale log2(e). `scratch` as in
// `block_sum`. Every thread gets the result.
template <bool ENTROPY, bool TWO>
__device__ __forceinline__ Softmax softmax(const float *z, int v, float factor, float second, float *scratch) {
    constexpr int DEEP = 4;  // vectors of four that are on their way together
    float top = -INFINITY, sum = 0, weighted = 0, other = 0;
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
            if (TWO) other *= top == -INFINITY ? 1.0f : power_of_two((top - most) * second);
            sum *= shrink;
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
                if (TWO) other += power_of_two((x[u][e] - base) * second);
            }
        }
    }
    Softmax all;
    all.max = block_max(top, scratch);
    float down = top == -INFINITY ? 0.0f : (top - all.max) * factor, shrink = power_of_two(down);
    all.weighted = ENTROPY ? block_sum(shrink * (weighted + down * sum), scratch) : 0.0f;
    all.sum = block_sum(shrink * sum, scratch);
    shrink = TWO && top != -INFINITY ? power_of_two((top - all.max) * second) : 1.0f;
    all.other = TWO ? block_sum(shrink * other, scratch) : 0.0f;
    return all;
}

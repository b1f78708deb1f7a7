// Kernels of the head: what rows of logits say about their targets, and the gradient of that.
//
// 1. `head_stats` reads float32 logits once and gives each row's statistics.
// 2. The host, which knows the objective, makes a coefficient for each row.
// 3. `head_gradient` turns logits into bf16 gradients. Where coefficients are known beforehand, `head_sft` does all at once.
//
// Logits (rows, v) and gradients lie at the same `stride` between rows, a multiple of 8 not below v, at addresses that are
// multiples of 16; what stands between v and the next multiple of 8 is read but counts for nothing, and becomes 0 in gradients.
// Rows times stride may pass 2^31. All kernels: grid rows, block 1,024 (or any whole
// warps; as many as `sample` has give the sampler's log-probabilities at temperature 1, bit for bit, of equal logits).
#include "softmax.cuh"

// Of softmax(logits / temperature), all in nats: `row_stats` of nn/cpu/rows.rs, and the largest tempered logit.
struct alignas(16) Stats {
    float logp, entropy, lse, max;
};

__device__ __forceinline__ Stats statistics(const float *z, int v, unsigned target, float scale, float *scratch) {
    Softmax s = softmax<true>(z, v, scale * LOG2_E, scratch);
    float log_total = logf(s.sum);
    return {(z[target] - s.max) * scale - log_total, log_total - LN_2 * s.weighted / s.sum, s.max * scale + log_total,
            s.max * scale};
}

// Row of d (coefficient logp) / d logits = coefficient / temperature (onehot - softmax).
__device__ __forceinline__ void gradient(bf16 *dz, const float *z, int v, unsigned target, float scale, float lse,
                                         float coefficient) {
    float c = coefficient * scale;
    for (long i = threadIdx.x * 8; i < v; i += long(blockDim.x) * 8) {
        float x[8] = {};
        // a row without a part in the objective is not read
        if (coefficient != 0.0f) {
            load(x, z + i);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float p = power_of_two(fmaf(x[e], scale, -lse) * LOG2_E);
                x[e] = i + e < v ? (i + e == target ? c : 0.0f) - c * p : 0.0f;
            }
        }
        store(dz + i, x);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
    head_stats(Stats *stats, const float *logits, const unsigned *targets, int v, long stride, float temperature) {
    __shared__ float scratch[WARP];
    Stats s = statistics(logits + blockIdx.x * stride, v, targets[blockIdx.x], 1.0f / temperature, scratch);
    if (threadIdx.x == 0) stats[blockIdx.x] = s;
}

// dlogits = coefficients[row] d logp(target) / d logits, with the statistics of `head_stats` at the same temperature.
extern "C" __global__ void __launch_bounds__(1024)
    head_gradient(bf16 *dlogits, const Stats *stats, const float *logits, const unsigned *targets, const float *coefficients,
                  int v, long stride, float temperature) {
    long row = blockIdx.x * stride;
    gradient(dlogits + row, logits + row, v, targets[blockIdx.x], 1.0f / temperature, stats[blockIdx.x].lse,
             coefficients[blockIdx.x]);
}

// Both, where a row's coefficient is float32(factor counts[row]): supervised training, with factor = -weight / targets of the
// update and counts[row] the examples that have this target.
extern "C" __global__ void __launch_bounds__(1024)
    head_sft(bf16 *dlogits, Stats *stats, const float *logits, const unsigned *targets, const unsigned *counts, double factor,
             int v, long stride, float temperature) {
    __shared__ float scratch[WARP];
    long row = blockIdx.x * stride;
    unsigned target = targets[blockIdx.x];
    float scale = 1.0f / temperature;
    Stats s = statistics(logits + row, v, target, scale, scratch);
    if (threadIdx.x == 0) stats[blockIdx.x] = s;
    gradient(dlogits + row, logits + row, v, target, scale, s.lse, float(factor * counts[blockIdx.x]));
}

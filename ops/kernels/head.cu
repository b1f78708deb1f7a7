// Kernels of the head: what rows of logits say about their targets, and the gradient of that.
//
// 1. `head_stats` reads float32 logits once and gives each row's statistics.
// 2. The host, which knows the objective, makes a coefficient for each row.
// 3. `head_gradient` turns logits into bf16 gradients.
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

extern "C" __global__ void __launch_bounds__(1024, 2)
    head_stats(Stats *stats, const float *logits, const unsigned *targets, int v, long stride, float temperature) {
    __shared__ float scratch[WARP];
    const float *z = logits + blockIdx.x * stride;
    float scale = 1.0f / temperature;
    Softmax s = softmax<true>(z, v, scale * LOG2_E, scratch);
    if (threadIdx.x > 0) return;
    float log_total = logf(s.sum);
    stats[blockIdx.x] = {(z[targets[blockIdx.x]] - s.max) * scale - log_total, log_total - LN_2 * s.weighted / s.sum,
                         s.max * scale + log_total, s.max * scale};
}

// dlogits = coefficients[row] d logp(target) / d logits = coefficients[row] / temperature (onehot - softmax), with the statistics
// of `head_stats` at the same temperature.
extern "C" __global__ void __launch_bounds__(1024)
    head_gradient(bf16 *dlogits, const Stats *stats, const float *logits, const unsigned *targets, const float *coefficients,
                  int v, long stride, float temperature) {
    const float *z = logits + blockIdx.x * stride;
    bf16 *dz = dlogits + blockIdx.x * stride;
    unsigned target = targets[blockIdx.x];
    float coefficient = coefficients[blockIdx.x], lse = stats[blockIdx.x].lse, scale = 1.0f / temperature;
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

// Kernels over rows: norms, rotation, activations, embedding. A row is a token's.
#include "common.cuh"

// RMSNorm of x + delta: `sum` gets x + delta where there is a delta, y the norm times w, `root` 1 / sqrt(mean square + eps).
// A block a row, width a multiple of 8. Zhang and Sennrich, 2019.
extern "C" __global__ void rms_norm(bf16 *y, float *root, bf16 *sum, const bf16 *x, const bf16 *delta, const float *w, int width,
                                    float eps) {
    __shared__ float scratch[WARP];
    long row = long(blockIdx.x) * width;
    float squares = 0;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        Eight v = *reinterpret_cast<const Eight *>(x + row + i);
        if (delta) {
            Eight d = *reinterpret_cast<const Eight *>(delta + row + i);
#pragma unroll
            for (int e = 0; e < 8; e++) v.x[e] = to_bf16(to_float(v.x[e]) + to_float(d.x[e]));
            *reinterpret_cast<Eight *>(sum + row + i) = v;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) squares += to_float(v.x[e]) * to_float(v.x[e]);
    }
    float r = rsqrtf(block_sum(squares, scratch) / width + eps);
    if (threadIdx.x == 0 && root) root[blockIdx.x] = r;
    const bf16 *from = delta ? sum : x;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        Eight v = *reinterpret_cast<const Eight *>(from + row + i);
#pragma unroll
        for (int e = 0; e < 8; e++) v.x[e] = to_bf16(to_float(v.x[e]) * r * w[i + e]);
        *reinterpret_cast<Eight *>(y + row + i) = v;
    }
}

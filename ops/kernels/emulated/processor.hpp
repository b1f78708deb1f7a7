// What the processor computes, word for word: the loops of `ops/src/nn/cpu/{simd,rows}.rs`, `ops/src/rng.rs` and
// `ops/src/infer/sampling.rs` in C++. A second thing to hold kernels against, where the meaning lies in details.
#pragma once

#include <utility>

#include "check.hpp"

namespace processor {

constexpr int LANES = 16;

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// --- simd.rs ------------------------------------------------------------------------------------------------------------

inline float exp(float x) {
    float clamped = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    float rounded = fmaf(clamped, 1.44269504088896341f, 12582912.0f);
    float n = rounded - 12582912.0f;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, clamped));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float y = fmaf(p, multiply(r, r), r) + 1.0f;
    float scaled = multiply(y, of_bits((bits_of(rounded) << 23) + (127u << 23)));
    return x < -87.3f ? 0.0f : x > 88.7f ? INFINITY : scaled;
}

inline float tree16(float (&acc)[LANES]) {
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) acc[i] += acc[i + width];
    return acc[0];
}

inline float max16(const float *x, int n) {
    float max = -INFINITY;
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

// --- rows.rs ------------------------------------------------------------------------------------------------------------

struct RowStats {
    float logp, entropy, lse;
};

inline RowStats row_stats(const float *logits, int n, unsigned target, float temperature) {
    float scale = 1.0f / temperature;
    float max = multiply(max16(logits, n), scale);
    float sum[LANES] = {}, weighted[LANES] = {};
    for (int i = 0; i < n; i++) {
        float d = multiply(logits[i], scale) - max;
        float p = exp(d);
        sum[i % LANES] += p;
        weighted[i % LANES] += p > 0 ? multiply(p, d) : 0;
    }
    float total = tree16(sum);
    float log_total = float(log(double(total)));
    return {multiply(logits[target], scale) - max - log_total, log_total - tree16(weighted) / total, max + log_total};
}

inline void row_backward(float *logits, int n, unsigned target, float temperature, RowStats stats, float coefficient) {
    float scale = 1.0f / temperature;
    float c = multiply(coefficient, scale);
    for (int i = 0; i < n; i++) logits[i] = multiply(-c, exp(multiply(logits[i], scale) - stats.lse));
    logits[target] += c;
}

struct AdamStep {
    float lr, beta1, beta2, eps, weight_decay, scale, correction[2];
};

inline void adamw(float *p, const float *g, float *m, float *v, long n, AdamStep s) {
    for (long i = 0; i < n; i++) {
        float of_g = multiply(g[i], s.scale);
        m[i] = fmaf(s.beta1, m[i], multiply(1.0f - s.beta1, of_g));
        v[i] = fmaf(s.beta2, v[i], multiply(multiply(1.0f - s.beta2, of_g), of_g));
        float update = (m[i] / s.correction[0]) / (sqrtf(v[i] / s.correction[1]) + s.eps);
        p[i] = multiply(p[i], 1.0f - multiply(s.lr, s.weight_decay)) - multiply(s.lr, update);
    }
}

inline double sum_squares(const float *x, long n) {
    double total = 0;
    for (long begin = 0; begin < n; begin += 4096) {
        double lanes[LANES] = {}, sum = 0;
        for (long i = begin; i < std::min(n, begin + 4096); i++) lanes[(i - begin) % LANES] += double(x[i]) * double(x[i]);
        for (double lane : lanes) sum += lane;
        total += sum;
    }
    return total;
}

// --- rng.rs -------------------------------------------------------------------------------------------------------------

class Rng {
    uint32_t key[2], block[4];
    uint64_t stream, counter = 0;
    int used = 4;

   public:
    Rng(uint64_t seed, uint64_t stream) : key{uint32_t(seed), uint32_t(seed >> 32)}, stream(stream) {}

    static void philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
        for (int i = 0; i < 10; i++) {
            if (i > 0) k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
            uint64_t p0 = uint64_t(c[0]) * 0xD2511F53u, p1 = uint64_t(c[2]) * 0xCD9E8D57u;
            uint32_t next[4] = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)};
            memcpy(c, next, sizeof next);
        }
    }
    uint32_t next_u32() {
        if (used == 4) {
            uint32_t c[4] = {uint32_t(counter), uint32_t(counter >> 32), uint32_t(stream), uint32_t(stream >> 32)};
            philox(c, key[0], key[1]);
            memcpy(block, c, sizeof c);
            counter += 1;
            used = 0;
        }
        return block[used++];
    }
    uint64_t next_u64() {
        uint64_t low = next_u32();
        return low | uint64_t(next_u32()) << 32;
    }
    double uniform() { return double(next_u64() >> 11) / double(1ull << 53); }
};

// Moments in bf16, rounded at random: a block of four words for eight first moments, the next for eight second ones.
inline void adamw_bf16(float *p, const float *g, bf16 *m, bf16 *v, long n, AdamStep s, uint64_t seed, uint64_t number) {
    for (long i = 0; i < n; i++) {
        float of_m = to_float(m[i]), of_v = to_float(v[i]);
        adamw(p + i, g + i, &of_m, &of_v, 1, s);
        for (int k = 0; k < 2; k++) {
            uint64_t block = uint64_t(i) / 8 * 2 + k;
            uint32_t c[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(number), uint32_t(number >> 32)};
            Rng::philox(c, uint32_t(seed), uint32_t(seed >> 32));
            uint16_t random = uint16_t(c[i % 8 / 2] >> 16 * (i % 2));
            (k == 0 ? m : v)[i].bits = uint16_t((bits_of(k == 0 ? of_m : of_v) + random) >> 16);
        }
    }
}

// --- sampling.rs --------------------------------------------------------------------------------------------------------

struct Sampling {
    double temperature = 1;
    unsigned top_k = 0;
    double top_p = 1, min_p = 0;

    bool is_whole() const { return temperature == 0 || (top_k == 0 && top_p >= 1 && min_p <= 0); }
};

struct Drawn {
    unsigned id;
    float logp, full;
};

inline unsigned likeliest(const std::vector<float> &z) {
    unsigned best = 0;
    for (unsigned i = 0; i < z.size(); i++)
        if (z[i] > z[best]) best = i;
    return best;
}

// `f32::total_cmp`, as integers.
inline int32_t total(float x) {
    int32_t bits = int32_t(bits_of(x));
    return bits ^ int32_t(uint32_t(bits >> 31) >> 1);
}

// What is cut off becomes -infinity. The order is sorted as a whole, which gives what the processor's sorting in part does.
inline void cut(std::vector<float> &z, const Sampling &s) {
    float top = z[likeliest(z)];
    std::vector<unsigned> order(z.size());
    for (unsigned i = 0; i < z.size(); i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](unsigned a, unsigned b) {
        return total(z[a]) != total(z[b]) ? total(z[a]) > total(z[b]) : a < b;
    });
    if (s.top_k > 0 && s.top_k < z.size()) {
        float limit = z[order[s.top_k - 1]];
        for (float &x : z)
            if (x < limit) x = -INFINITY;
    }
    if (s.top_p >= 1 && s.min_p <= 0) return;
    float scale = 1.0f / float(s.temperature), shift = multiply(top, scale);
    std::vector<float> weights;
    for (float x : z) weights.push_back(exp(multiply(x, scale) - shift));
    if (s.top_p < 1) {
        double total = 0;
        for (float p : weights) total += p;
        double want = s.top_p * total, sum = 0;
        bool first = true;
        for (unsigned id : order) {
            if (!(weights[id] > 0)) continue;
            if (sum < want || first)
                sum += weights[id];
            else
                z[id] = -INFINITY;
            first = false;
        }
    }
    if (s.min_p > 0) {
        for (size_t i = 0; i < z.size(); i++)
            if (double(weights[i]) < s.min_p) z[i] = -INFINITY;
    }
}

inline unsigned pick(const std::vector<float> &z, float temperature, Rng &rng) {
    float scale = 1.0f / temperature, lse = row_stats(z.data(), int(z.size()), 0, temperature).lse;
    double left = rng.uniform();
    unsigned chosen = 0;
    for (unsigned i = 0; i < z.size(); i++) {
        float p = exp(multiply(z[i], scale) - lse);
        if (p > 0) {
            chosen = i;
            left -= p;
            if (left < 0) break;
        }
    }
    return chosen;
}

// The logits that are left, of those of `open` where there is one.
inline std::vector<float> masked(const std::vector<float> &logits, const Sampling &s, const std::vector<unsigned> *open) {
    auto z = logits;
    if (open) {
        z.assign(logits.size(), -INFINITY);
        for (unsigned id : *open) z[id] = logits[id];
    }
    if (!s.is_whole()) cut(z, s);
    return z;
}

inline Drawn draw(const std::vector<float> &logits, const Sampling &s, const std::vector<unsigned> *open, Rng &rng) {
    auto z = masked(logits, s, open);
    bool held = open || !s.is_whole(), greedy = s.temperature == 0;
    float temperature = greedy ? 1.0f : float(s.temperature);
    unsigned id = greedy ? likeliest(z) : pick(z, temperature, rng);
    float logp = row_stats(z.data(), int(z.size()), id, temperature).logp;
    float full = held || temperature != 1.0f ? row_stats(logits.data(), int(z.size()), id, 1.0f).logp : logp;
    return {id, logp, full};
}

}  // namespace processor

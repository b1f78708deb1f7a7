// Tests of optimizer.cu on the processor: the very bits of the processor's AdamW, with moments in float32 and in bf16.
//
// That they find errors was tried by making them, one by one: beta1 for beta2, a product that is fused, decay after the step, eps
// under the root, a group's rate left out, chunks that go on into the next segment, a weight written from the start of its chunk,
// a step made although a gradient was not finite, a sum of squares in float32, the halves of a random word exchanged.
#include "processor.hpp"
#include "../optimizer.cu"

using namespace check;

template <class T>
static bool same(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Layout {
    std::vector<Segment> segments;
    std::vector<std::vector<bf16>> weights;
    long size = 0;
    unsigned chunks = 0;

    explicit Layout(const std::vector<long> &lengths) {
        weights.resize(lengths.size());
        for (size_t i = 0; i < lengths.size(); i++) {
            weights[i] = poisoned<bf16>(lengths[i] + 1);
            double rate = i == 2 ? 0.1 : 1.0;
            float decay = i == 1 ? 0.0f : 0.01f;
            // one without a copy
            bf16 *weight = i == 3 ? nullptr : weights[i].data();
            segments.push_back({size, lengths[i], rate, decay, chunks, weight, 0x123456789abcdefull + i});
            size += (lengths[i] + 7) / 8 * 8 + (i % 2) * 8;
            chunks += unsigned((lengths[i] + CHUNK - 1) / CHUNK);
        }
    }
    // Marks what is between segments, which nothing may touch.
    template <class T>
    void mark(std::vector<T> &x) const {
        std::vector<T> marked = poisoned<T>(x.size());
        for (auto &s : segments) std::copy(&x[s.begin], &x[s.begin] + s.length, &marked[s.begin]);
        x = marked;
    }
};

template <class T>
static std::vector<T> as(const std::vector<float> &x) {
    std::vector<T> y(x.size());
    for (size_t i = 0; i < x.size(); i++) put(&y[i], x[i]);
    return y;
}

// A few steps; `scale` is that of gradients.
template <class M>
using Kernel = void (*)(float *, float *, M *, M *, const Segment *, int, const Step *, float, float, float);
template <class M>
static void steps(const std::string &name, Kernel<M> kernel, const std::vector<long> &lengths, double limit, double scale,
                  unsigned threads) {
    Layout layout(lengths);
    int count = int(lengths.size());
    Random random(lengths.size() + threads);
    auto p = random.floats(layout.size), squared = random.floats(layout.size);
    for (float &x : squared) x = x * x;
    auto m = as<M>(random.floats(layout.size)), v = as<M>(squared);
    layout.mark(p), layout.mark(m), layout.mark(v);
    auto want_p = p;
    auto want_m = m, want_v = v;
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    std::string of = name + ", " + std::to_string(count) + " segments, clip " + std::to_string(limit).substr(0, 4);
    for (int t = 1; t <= 3; t++) {
        auto g = random.floats(layout.size, scale);
        layout.mark(g);
        double lr = 1e-3 / t;
        Step step = {lr, uint64_t(t), {float(1.0 - pow(beta1, t)), float(1.0 - pow(beta2, t))}, -1, 77, -1};
        // 1. norm and clipping, as `Optimizer::step` does
        double total = 0;
        for (auto &s : layout.segments) {
            total += processor::sum_squares(&g[s.begin], s.length);
        }
        double norm = sqrt(total), by = limit > 0 ? std::min(limit / (norm + 1e-6), 1.0) : 1.0;
        auto partial = poisoned<double>(layout.chunks);
        launch(layout.chunks, threads, 0, t, [&] { squares(partial.data(), g.data(), layout.segments.data(), count); });
        launch(1, 1024, 0, t, [&] { clip(&step, partial.data(), layout.segments.data(), count, layout.chunks, limit); });
        equal("norm " + of, std::vector<double>{step.norm}, {norm}, 1e-14);
        equal("factor " + of, std::vector<double>{step.scale}, {by}, 6e-8);
        holds("finite " + of, step.bad == NONE);
        // 2. the processor's step, with the same factor
        for (auto &s : layout.segments) {
            processor::AdamStep a = {float(lr * s.rate), float(beta1), float(beta2), float(eps), s.decay, step.scale,
                                     {step.correction[0], step.correction[1]}};
            if constexpr (sizeof(M) == 4)
                processor::adamw(&want_p[s.begin], &g[s.begin], &want_m[s.begin], &want_v[s.begin], s.length, a);
            else
                processor::adamw_bf16(&want_p[s.begin], &g[s.begin], &want_m[s.begin], &want_v[s.begin], s.length, a, s.seed, t);
        }
        // 3. the kernel
        launch(layout.chunks, threads, 0, t, [&] {
            kernel(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), count, &step, float(beta1), float(beta2),
                   float(eps));
        });
        holds("parameters, step " + std::to_string(t) + " " + of, same(p, want_p));
        holds("first moments, step " + std::to_string(t) + " " + of, same(m, want_m));
        holds("second moments, step " + std::to_string(t) + " " + of, same(v, want_v));
        auto zero = std::vector<float>(layout.size, 0);
        layout.mark(zero);
        holds("gradients are cleared, step " + std::to_string(t) + " " + of, same(g, zero));
        bool copies = true;
        for (int i = 0; i < count; i++) {
            auto &s = layout.segments[i];
            copies &= layout.weights[i][s.length].bits == 0xffff;
            for (long e = 0; e < s.length; e++)
                copies &= layout.weights[i][e].bits == (s.weight ? to_bf16(p[s.begin + e]).bits : 0xffff);
        }
        holds("bf16 copies, step " + std::to_string(t) + " " + of, copies);
    }
}

// What is not finite is named, and nothing is changed.
static void not_finite() {
    Layout layout({10, 40000, 5, 8, 17000});
    int count = int(layout.segments.size());
    auto nan = float(NAN), infinity = float(INFINITY);
    for (auto [segment, at, bad] : {std::tuple(0, 3l, nan), std::tuple(1, 39999l, -infinity), std::tuple(4, 16384l, nan)}) {
        Random random(segment);
        auto p = random.floats(layout.size), m = p, v = p, g = random.floats(layout.size, 1e25);
        g[layout.segments[segment].begin + at] = bad;
        if (segment < 4) g[layout.segments[4].begin] = NAN;
        auto was_p = p, was_g = g;
        auto weights = layout.weights;
        Step step = {1e-3, 1, {0.1f, 0.05f}, -1, 77, -1};
        std::vector<double> partial(layout.chunks);
        launch(layout.chunks, 64, 0, 1, [&] { squares(partial.data(), g.data(), layout.segments.data(), count); });
        launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), count, layout.chunks, 1); });
        holds("the first segment that is not finite is named", step.bad == unsigned(segment));
        launch(layout.chunks, 64, 0, 1, [&] {
            adamw_f32(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), count, &step, 0.9f, 0.95f, 1e-8f);
        });
        bool copies = true;
        for (int i = 0; i < count; i++) copies &= same(weights[i], layout.weights[i]);
        holds("nothing is changed", same(p, was_p) && same(m, was_p) && same(v, was_p) && same(g, was_g) && copies);
    }
    // finite, although float32 has no place for the squares
    auto g = std::vector<float>(layout.size, 1e25f);
    Step step = {};
    std::vector<double> partial(layout.chunks);
    launch(layout.chunks, 64, 0, 1, [&] { squares(partial.data(), g.data(), layout.segments.data(), count); });
    launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), count, layout.chunks, 1); });
    holds("large gradients are finite", step.bad == NONE && fabs(step.norm / (1e25 * sqrt(57023.0)) - 1) < 1e-6);
}

// The sum over chunks, when there are more than threads.
static void many_chunks() {
    Layout layout({1000l * CHUNK, 4000l * CHUNK, 3});
    Random random(1);
    std::vector<double> partial;
    double sum = 0;
    for (unsigned i = 0; i < layout.chunks; i++) {
        partial.push_back(pow(random.normal() * random.normal(), 2));
        sum += partial[i];
    }
    Step step = {}, again = {};
    launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), 3, layout.chunks, 1); });
    launch(1, 1024, 0, 2, [&] { clip(&again, partial.data(), layout.segments.data(), 3, layout.chunks, 1); });
    equal("norm over 5,001 chunks", std::vector<double>{step.norm}, {sqrt(sum)}, 1e-14);
    holds("norm over 5,001 chunks, same bits", memcmp(&step, &again, sizeof step) == 0);
    partial[5000] = NAN;
    launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), 3, layout.chunks, 1); });
    holds("the last of 5,001 chunks is named", step.bad == 2);
    // two that one thread adds up
    partial[10] = partial[1034] = INFINITY;
    launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), 3, layout.chunks, 1); });
    holds("the first of several is named", step.bad == 0);
}

// Rounding at random keeps the mean, where rounding to the nearest stands still: the first moment, and the second with the slowest
// decay that is usual.
static void moments_move() {
    Layout layout({16384});
    layout.segments[0].weight = nullptr;
    std::vector<float> p(16384, 0);
    std::vector<bf16> m(16384, to_bf16(1)), v = m;
    double exact[2] = {1, 1}, nearest[2] = {1, 1}, mean[2];
    const double beta[2] = {0.9, 0.999};
    for (int t = 1; t <= 20; t++) {
        // a gradient that moves the first moment by a fifth of half a unit of its last place, and the second by a tenth
        float of_g = float(exact[0] + 10 * 0.1 / 256);
        std::vector<float> g(16384, of_g);
        Step step = {0, uint64_t(t), {1, 1}, 1, NONE, 0};
        launch(1, 256, 0, t, [&] {
            adamw_bf16(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), 1, &step, 0.9f, 0.999f, 1e-8f);
        });
        for (int k = 0; k < 2; k++) {
            double with = k == 0 ? of_g : double(of_g) * of_g;
            exact[k] = beta[k] * exact[k] + (1 - beta[k]) * with;
            nearest[k] = to_float(to_bf16(float(beta[k] * nearest[k] + (1 - beta[k]) * with)));
            mean[k] = 0;
            for (bf16 x : k == 0 ? m : v) mean[k] += to_float(x) / 16384;
        }
    }
    for (int k = 0; k < 2; k++) {
        printf("     exact %.5f, rounded at random %.5f, rounded to the nearest %.5f\n", exact[k], mean[k], nearest[k]);
        double gap = fabs(exact[k] - 1);
        holds("moments rounded at random move as they should",
              fabs(mean[k] - exact[k]) < gap / 5 && fabs(nearest[k] - exact[k]) > gap / 2);
    }
}

int main() {
    std::vector<long> mixed = {1, 7, 16385, 8, 40001, 16384, 100};
    steps("float32", adamw_f32, mixed, 1.0, 1, 256);
    steps("float32", adamw_f32, mixed, 0.0, 1, 32);
    steps("float32", adamw_f32, {9, 300}, 1.0, 1e-3, 64);
    steps("float32", adamw_f32, {9, 300}, 1e-6, 1e-7, 64);
    steps("bfloat16", adamw_bf16, mixed, 1.0, 1, 256);
    steps("bfloat16", adamw_bf16, mixed, 0.0, 1, 32);
    steps("bfloat16", adamw_bf16, {9, 300}, 1e-6, 1e-7, 64);
    not_finite();
    many_chunks();
    moments_move();
    return failures;
}

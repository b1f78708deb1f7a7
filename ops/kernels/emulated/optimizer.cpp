// Tests of optimizer.cu on the processor: with moments in float32 the very bits of the processor's AdamW, and with a first moment
// in bf16 those that its random numbers give.
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
            segments.push_back({size, lengths[i], rate, decay, chunks, weight});
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
template <class G, class M>
using Kernel = void (*)(float *, G *, M *, float *, const Segment *, int, const Step *, float, float, float, uint64_t);
template <class G, class M>
static void steps(const std::string &name, Kernel<G, M> kernel, const std::vector<long> &lengths, double limit, double scale,
                  unsigned threads) {
    constexpr uint64_t SEED = 0x123456789abcdefull;
    Layout layout(lengths);
    int count = int(lengths.size());
    Random random(lengths.size() + threads);
    auto p = random.floats(layout.size), v = random.floats(layout.size);
    for (float &x : v) x = x * x;
    auto m = as<M>(random.floats(layout.size));
    layout.mark(p), layout.mark(m), layout.mark(v);
    auto want_p = p, want_v = v;
    auto want_m = m;
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    std::string of = name + ", " + std::to_string(count) + " segments, clip " + std::to_string(limit).substr(0, 4);
    for (int t = 1; t <= 3; t++) {
        auto g = as<G>(random.floats(layout.size, scale));
        layout.mark(g);
        double lr = 1e-3 / t;
        Step step = {lr, uint64_t(t), {float(1.0 - pow(beta1, t)), float(1.0 - pow(beta2, t))}, -1, 77, -1};
        // 1. norm and clipping, as `Optimizer::step` does
        double total = 0;
        for (auto &s : layout.segments) {
            std::vector<float> x;
            for (long i = 0; i < s.length; i++) x.push_back(number(g[s.begin + i]));
            total += processor::sum_squares(x.data(), s.length);
        }
        double norm = sqrt(total), by = limit > 0 ? std::min(limit / (norm + 1e-6), 1.0) : 1.0;
        auto partial = poisoned<double>(layout.chunks);
        launch(layout.chunks, threads, 0, t, [&] {
            if constexpr (sizeof(G) == 4)
                squares_f32(partial.data(), g.data(), layout.segments.data(), count);
            else
                squares_bf16(partial.data(), g.data(), layout.segments.data(), count);
        });
        launch(1, 1024, 0, t, [&] { clip(&step, partial.data(), layout.segments.data(), count, layout.chunks, limit); });
        equal("norm " + of, std::vector<double>{step.norm}, {norm}, 1e-14);
        equal("factor " + of, std::vector<double>{step.scale}, {by}, 6e-8);
        holds("finite " + of, step.bad == NONE);
        // 2. the processor's step, with the same factor
        for (auto &s : layout.segments) {
            std::vector<float> x, moment;
            for (long i = 0; i < s.length; i++) {
                x.push_back(number(g[s.begin + i]));
                moment.push_back(number(want_m[s.begin + i]));
            }
            processor::AdamStep a = {float(lr * s.rate), float(beta1), float(beta2), float(eps), s.decay, step.scale,
                                     {step.correction[0], step.correction[1]}};
            processor::adamw(&want_p[s.begin], x.data(), moment.data(), &want_v[s.begin], s.length, a);
            for (long i = 0; i < s.length; i++) {
                if constexpr (sizeof(M) == 4) {
                    want_m[s.begin + i] = moment[i];
                } else {
                    // the 16-bit numbers of the stream, eight elements a block
                    uint64_t at = s.begin + i, block = at / 8;
                    uint32_t c[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(t), 0};
                    processor::Rng::philox(c, uint32_t(SEED), uint32_t(SEED >> 32));
                    uint16_t numbers[8];
                    for (int w = 0; w < 4; w++) numbers[2 * w] = uint16_t(c[w]), numbers[2 * w + 1] = uint16_t(c[w] >> 16);
                    want_m[s.begin + i].bits = uint16_t((processor::bits_of(moment[i]) + numbers[at % 8]) >> 16);
                }
            }
        }
        // 3. the kernel
        launch(layout.chunks, threads, 0, t, [&] {
            kernel(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), count, &step, float(beta1), float(beta2),
                   float(eps), SEED);
        });
        holds("parameters, step " + std::to_string(t) + " " + of, same(p, want_p));
        holds("first moments, step " + std::to_string(t) + " " + of, same(m, want_m));
        holds("second moments, step " + std::to_string(t) + " " + of, same(v, want_v));
        auto zero = as<G>(std::vector<float>(layout.size, 0));
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
        launch(layout.chunks, 64, 0, 1, [&] { squares_f32(partial.data(), g.data(), layout.segments.data(), count); });
        launch(1, 1024, 0, 1, [&] { clip(&step, partial.data(), layout.segments.data(), count, layout.chunks, 1); });
        holds("the first segment that is not finite is named", step.bad == unsigned(segment));
        launch(layout.chunks, 64, 0, 1, [&] {
            adamw_f32_f32(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), count, &step, 0.9f, 0.95f, 1e-8f, 0);
        });
        bool copies = true;
        for (int i = 0; i < count; i++) copies &= same(weights[i], layout.weights[i]);
        holds("nothing is changed", same(p, was_p) && same(m, was_p) && same(v, was_p) && same(g, was_g) && copies);
    }
    // finite, although float32 has no place for the squares
    auto g = std::vector<float>(layout.size, 1e25f);
    Step step = {};
    std::vector<double> partial(layout.chunks);
    launch(layout.chunks, 64, 0, 1, [&] { squares_f32(partial.data(), g.data(), layout.segments.data(), count); });
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

// Rounding at random keeps the mean, where rounding to the nearest stands still.
static void moments_move() {
    Layout layout({16384});
    layout.segments[0].weight = nullptr;
    std::vector<float> p(16384, 0), v(16384, 1);
    std::vector<bf16> m(16384, to_bf16(1));
    double exact = 1, nearest = 1, mean = 0;
    for (int t = 1; t <= 20; t++) {
        // a new gradient that moves the moment by a tenth of half a unit of its last place
        double of_g = exact + 10 * 0.1 / 256;
        std::vector<float> g(16384, float(of_g));
        Step step = {0, uint64_t(t), {1, 1}, 1, NONE, 0};
        launch(1, 256, 0, t, [&] {
            adamw_f32_bf16(p.data(), g.data(), m.data(), v.data(), layout.segments.data(), 1, &step, 0.9f, 0.95f, 1e-8f, 5);
        });
        exact = 0.9 * exact + 0.1 * of_g;
        nearest = to_float(to_bf16(float(0.9 * nearest + 0.1 * of_g)));
        mean = 0;
        for (bf16 x : m) mean += to_float(x) / 16384;
    }
    printf("     exact %.5f, rounded at random %.5f, rounded to the nearest %.5f\n", exact, mean, nearest);
    holds("moments rounded at random move as they should", fabs(mean - exact) < 2e-4 && fabs(nearest - exact) > 1e-3);
}

int main() {
    std::vector<long> mixed = {1, 7, 16385, 8, 40001, 16384, 100};
    steps("f32, f32", adamw_f32_f32, mixed, 1.0, 1, 256);
    steps("f32, f32", adamw_f32_f32, mixed, 0.0, 1, 32);
    steps("f32, f32", adamw_f32_f32, {9, 300}, 1.0, 1e-3, 64);
    steps("f32, f32", adamw_f32_f32, {9, 300}, 1e-6, 1e-7, 64);
    steps("f32, bf16", adamw_f32_bf16, mixed, 1.0, 1, 256);
    steps("bf16, f32", adamw_bf16_f32, mixed, 1.0, 1, 256);
    steps("bf16, bf16", adamw_bf16_bf16, mixed, 1.0, 1, 256);
    not_finite();
    many_chunks();
    moments_move();
    return failures;
}

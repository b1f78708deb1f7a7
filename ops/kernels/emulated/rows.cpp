// Tests of rows.cu on the processor.
//
// Gradients are held against central differences of the forward in float64, so no formula is written twice. That these tests
// find errors was tried by making some thirty, one by one: `hk` for `h` in the sums over heads, `d` for `d / 2` in the place of
// a row of the tables, each barrier left out, lanes and chains exchanged in `add_partials`, a residual's gradient left out,
// gate and up exchanged, a row of an order left out, a cut in `each` that is one off, root for its square.
#include "check.hpp"
#include "processor.hpp"
#include "../rows.cu"

using namespace check;

static std::vector<double> doubles(const std::vector<bf16> &x) {
    std::vector<double> y;
    for (bf16 v : x) y.push_back(to_float(v));
    return y;
}
static std::vector<double> doubles(const std::vector<float> &x) { return std::vector<double>(x.begin(), x.end()); }

template <class T>
static bool same(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

static unsigned whole_warps(int threads) { return (threads + 31) / 32 * 32; }
static unsigned parts(int n, int rows) { return (n + rows - 1) / rows; }

// d sum(dy f(x)) / dx by central differences.
static std::vector<double> slope(const std::vector<double> &x, const std::vector<double> &dy,
                                 const std::function<std::vector<double>(const std::vector<double> &)> &f) {
    std::vector<double> out;
    auto moved = x;
    for (size_t i = 0; i < x.size(); i++) {
        double step = 1e-4, sum = 0;
        moved[i] = x[i] + step;
        auto up = f(moved);
        moved[i] = x[i] - step;
        auto down = f(moved);
        moved[i] = x[i];
        for (size_t o = 0; o < dy.size(); o++) sum += dy[o] * (up[o] - down[o]);
        out.push_back(sum / (2 * step));
    }
    return out;
}

// --- norms --------------------------------------------------------------------------------------------------------------

static std::vector<double> norm_row(const std::vector<double> &x, const std::vector<double> &w, double eps) {
    double squares = 0;
    for (double v : x) squares += v * v;
    double root = 1 / sqrt(squares / x.size() + eps);
    std::vector<double> y;
    for (size_t i = 0; i < x.size(); i++) y.push_back(x[i] * root * w[i]);
    return y;
}

static void norm(int rows, int width, bool with_delta, bool with_residual) {
    Random random(rows * 1000 + width);
    auto x = random.halves(rows * width), delta = random.halves(rows * width), residual = random.halves(rows * width);
    auto w = random.floats(width);
    std::vector<double> want_y, want_root, want_sum;
    for (int r = 0; r < rows; r++) {
        double squares = 0;
        std::vector<double> v(width);
        for (int i = 0; i < width; i++) {
            float d = with_delta ? to_float(delta[r * width + i]) : 0;
            v[i] = to_float(to_bf16(to_float(x[r * width + i]) + d));
            squares += v[i] * v[i];
        }
        want_root.push_back(1 / sqrt(squares / width + 1e-6));
        auto y = norm_row(v, doubles(w), 1e-6);
        for (int i = 0; i < width; i++) {
            want_y.push_back(y[i] + (with_residual ? to_float(residual[r * width + i]) : 0));
            want_sum.push_back(v[i]);
        }
    }
    std::vector<bf16> before;
    std::string of = std::to_string(rows) + " x " + std::to_string(width) + (with_delta ? ", added" : "") +
                     (with_residual ? ", residual" : "");
    for (unsigned seed = 1; seed <= 3; seed++) {
        auto y = poisoned<bf16>(rows * width), sum = poisoned<bf16>(rows * width);
        auto root = poisoned<float>(rows);
        launch(rows, whole_warps(width / 8), 0, seed, [&] {
            rms_norm(y.data(), root.data(), sum.data(), x.data(), with_delta ? delta.data() : nullptr,
                     with_residual ? residual.data() : nullptr, w.data(), width, 1e-6f);
        });
        if (seed == 1) {
            rounded("rms_norm " + of, y, want_y);
            equal("rms_norm, root " + of, root, want_root, 1e-6);
            if (with_delta) equal("rms_norm, sum " + of, sum, want_sum, 0);
            before = y;
        } else {
            holds("rms_norm, same bits " + of, same(before, y));
        }
    }
    // in place
    auto y = x;
    launch(rows, whole_warps(width / 8), 0, 4, [&] {
        rms_norm(y.data(), nullptr, y.data(), y.data(), with_delta ? delta.data() : nullptr,
                 with_residual ? residual.data() : nullptr, w.data(), width, 1e-6f);
    });
    holds("rms_norm, in place " + of, same(before, y));
}

static void norm_backward(int rows, int width, bool with_residual, bool frozen) {
    Random random(rows * 77 + width);
    auto x = random.halves(rows * width, 2), dy = random.halves(rows * width), residual = random.halves(rows * width);
    auto w = random.floats(width), had = random.floats(width);
    std::vector<float> root;
    std::vector<double> want_dx, want_dw = doubles(had);
    for (int r = 0; r < rows; r++) {
        std::vector<bf16> xr(&x[r * width], &x[r * width] + width), gr(&dy[r * width], &dy[r * width] + width);
        auto of_x = doubles(xr), of_dy = doubles(gr), of_w = doubles(w);
        double squares = 0;
        for (double v : of_x) squares += v * v;
        root.push_back(float(1 / sqrt(squares / width + 1e-5)));
        auto dx = slope(of_x, of_dy, [&](auto &x) { return norm_row(x, of_w, 1e-5); });
        for (int i = 0; i < width; i++) want_dx.push_back(dx[i] + (with_residual ? to_float(residual[r * width + i]) : 0));
        auto one = norm_row(of_x, std::vector<double>(width, 1.0), 1e-5);
        for (int i = 0; i < width; i++) want_dw[i] += of_dy[i] * one[i];
    }
    std::string of = std::to_string(rows) + " x " + std::to_string(width) + (with_residual ? ", residual" : "");
    std::vector<float> before;
    for (unsigned seed = 1; seed <= 2; seed++) {
        auto dx = poisoned<bf16>(rows * width);
        unsigned blocks = parts(rows, NORM_ROWS);
        auto partial = poisoned<float>(blocks * width);
        auto dw = had;
        // where `residual` is given, in place of it
        auto *to = with_residual ? &residual : &dx;
        auto kept = residual;
        launch(blocks, whole_warps(width / 8), 0, seed, [&] {
            rms_norm_backward(to->data(), frozen ? nullptr : partial.data(), dy.data(), x.data(), w.data(), root.data(),
                              with_residual ? residual.data() : nullptr, rows, width);
        });
        rounded("rms_norm_backward, dx " + of, *to, want_dx);
        residual = kept;
        if (frozen) continue;
        launch(parts(width, 32), 1024, 0, seed, [&] { add_partials(dw.data(), partial.data(), blocks, width); });
        equal("rms_norm_backward, dw " + of, dw, want_dw, 1e-6);
        holds("rms_norm_backward, same bits " + of, seed == 1 || same(before, dw));
        before = dw;
    }
}

// --- queries and keys ---------------------------------------------------------------------------------------------------

struct Shape {
    int h, hk, d;
    bool norms, whole;
    std::string name() const {
        return std::to_string(h) + "/" + std::to_string(hk) + " x " + std::to_string(d) +
               (norms ? whole ? ", whole norm" : ", norm" : "");
    }
    int width() const { return (h + 2 * hk) * d; }
    int group() const {
        int g = 1;
        while (g * 16 < d) g *= 2;
        return g;
    }
    unsigned threads() const { return whole_warps((h + hk) * group()); }
};

// `rope_rows` of nn/cpu/rows.rs, word for word.
static void rope_rows(float *x, int n, int heads, int d, const float *cos, const float *sin, const unsigned *positions,
                      float sign) {
    int half = d / 2;
    for (int row = 0; row < n; row++) {
        const float *c = cos + positions[row] * half, *s = sin + positions[row] * half;
        for (int head = 0; head < heads; head++) {
            float *a = x + (row * heads + head) * d, *b = a + half;
            for (int i = 0; i < half; i++) {
                float turn = sign * s[i];
                float x = a[i], y = b[i];
                a[i] = fmaf(x, c[i], -(y * turn));
                b[i] = fmaf(y, c[i], x * turn);
            }
        }
    }
}

// Queries and keys of one token after norm and rotation, float64.
static std::vector<double> placed(const Shape &s, const std::vector<double> &qk, const std::vector<double> &q_norm,
                                  const std::vector<double> &k_norm, const float *cos, const float *sin) {
    std::vector<double> y = qk;
    auto part = [&](int begin, int width, const std::vector<double> &w) {
        auto normed = norm_row(std::vector<double>(qk.begin() + begin, qk.begin() + begin + width), w, 1e-6);
        std::copy(normed.begin(), normed.end(), y.begin() + begin);
    };
    if (s.norms && s.whole) {
        part(0, s.h * s.d, q_norm);
        part(s.h * s.d, s.hk * s.d, k_norm);
    } else if (s.norms) {
        for (int head = 0; head < s.h + s.hk; head++) part(head * s.d, s.d, head < s.h ? q_norm : k_norm);
    }
    for (int head = 0; head < s.h + s.hk; head++) {
        for (int i = 0; i < s.d / 2; i++) {
            double &a = y[head * s.d + i], &b = y[head * s.d + s.d / 2 + i];
            double x = a, z = b;
            a = x * cos[i] - z * sin[i];
            b = z * cos[i] + x * sin[i];
        }
    }
    return y;
}

static void places(Shape s, int n) {
    Random random(s.h * 100 + s.d + n);
    const int P = 90;
    int width = s.width(), qk = (s.h + s.hk) * s.d, kv = s.hk * s.d, half = s.d / 2;
    auto qkv = random.halves(n * width, 1.5), dout = random.halves(n * width);
    auto wq = random.floats(s.whole ? s.h * s.d : s.d), wk = random.floats(s.whole ? kv : s.d);
    std::vector<float> cos, sin;
    for (int p = 0; p < P; p++) {
        for (int i = 0; i < half; i++) {
            double angle = p * pow(10000, -double(i) / half);
            cos.push_back(float(::cos(angle)));
            sin.push_back(float(::sin(angle)));
        }
    }
    std::vector<unsigned> positions, slots, free;
    const int PAGES = 3;
    for (unsigned i = 0; i < PAGES * 64; i++) free.push_back(i);
    std::shuffle(free.begin(), free.end(), random.state);
    for (int i = 0; i < n; i++) {
        positions.push_back(random.below(P));
        slots.push_back(i % 3 == 1 ? 0xffffffffu : free[i]);
    }
    // what is wanted
    std::vector<double> want, want_k(PAGES * 64 * kv, -7), want_v(PAGES * 64 * kv, -7), want_back;
    auto of_q = doubles(wq), of_k = doubles(wk);
    std::vector<double> want_dq(wq.size()), want_dk(wk.size());
    for (int t = 0; t < n; t++) {
        std::vector<bf16> row(&qkv[t * width], &qkv[t * width] + width), grad(&dout[t * width], &dout[t * width] + width);
        auto x = doubles(row), g = doubles(grad);
        std::vector<double> in(x.begin(), x.begin() + qk), dy(g.begin(), g.begin() + qk);
        const float *c = &cos[positions[t] * half], *sn = &sin[positions[t] * half];
        auto y = placed(s, in, of_q, of_k, c, sn);
        want.insert(want.end(), y.begin(), y.end());
        want.insert(want.end(), x.begin() + qk, x.end());
        if (slots[t] != 0xffffffffu) {
            for (int i = 0; i < kv; i++) {
                want_k[slots[t] * kv + i] = y[s.h * s.d + i];
                want_v[slots[t] * kv + i] = x[qk + i];
            }
        }
        auto dx = slope(in, dy, [&](auto &in) { return placed(s, in, of_q, of_k, c, sn); });
        want_back.insert(want_back.end(), dx.begin(), dx.end());
        want_back.insert(want_back.end(), g.begin() + qk, g.end());
        if (s.norms) {
            auto by_q = slope(of_q, dy, [&](auto &w) { return placed(s, in, w, of_k, c, sn); });
            auto by_k = slope(of_k, dy, [&](auto &w) { return placed(s, in, of_q, w, c, sn); });
            for (size_t i = 0; i < by_q.size(); i++) want_dq[i] += by_q[i];
            for (size_t i = 0; i < by_k.size(); i++) want_dk[i] += by_k[i];
        }
    }
    std::string of = s.name() + ", " + std::to_string(n) + " tokens";
    const float *q_norm = s.norms ? wq.data() : nullptr, *k_norm = s.norms ? wk.data() : nullptr;
    std::vector<bf16> before;
    std::vector<float> before_dq;
    for (unsigned seed = 1; seed <= 2; seed++) {
        // 1. forward, with values and cache
        auto out = poisoned<bf16>(n * width);
        std::vector<bf16> k_cache(PAGES * 64 * kv, to_bf16(-7)), v_cache = k_cache;
        launch(n, s.threads(), 0, seed, [&] {
            norm_rotate(out.data(), k_cache.data(), v_cache.data(), qkv.data(), q_norm, k_norm, cos.data(), sin.data(),
                        positions.data(), slots.data(), s.h, s.hk, s.d, s.whole, 1, 1e-6f);
        });
        rounded("norm_rotate " + of, out, want);
        rounded("norm_rotate, keys in pages " + of, k_cache, want_k);
        equal("norm_rotate, values in pages " + of, v_cache, want_v, 0);
        if (!s.norms) {
            // the processor's rotation, rounded
            std::vector<float> x;
            for (int t = 0; t < n; t++)
                for (int i = 0; i < qk; i++) x.push_back(to_float(qkv[t * width + i]));
            rope_rows(x.data(), n, s.h + s.hk, s.d, cos.data(), sin.data(), positions.data(), 1);
            bool equals = true;
            for (int t = 0; t < n; t++)
                for (int i = 0; i < qk; i++) equals &= to_bf16(x[t * qk + i]).bits == out[t * width + i].bits;
            holds("norm_rotate, bits of the processor's rope " + of, equals);
        }
        // 2. in place, without values and cache
        auto again = qkv;
        launch(n, s.threads(), 0, seed, [&] {
            norm_rotate(again.data(), nullptr, nullptr, again.data(), q_norm, k_norm, cos.data(), sin.data(), positions.data(),
                        nullptr, s.h, s.hk, s.d, s.whole, 0, 1e-6f);
        });
        holds("norm_rotate, in place " + of, same(again, out));
        // 3. backward
        unsigned blocks = parts(n, NORM_ROWS);
        auto dqkv = poisoned<bf16>(n * width);
        auto q_partial = poisoned<float>(blocks * wq.size()), k_partial = poisoned<float>(blocks * wk.size());
        launch(blocks, s.threads(), s.threads() * 32, seed, [&] {
            norm_rotate_backward(dqkv.data(), s.norms ? q_partial.data() : nullptr, k_partial.data(), dout.data(), qkv.data(),
                                 q_norm, k_norm, cos.data(), sin.data(), positions.data(), n, s.h, s.hk, s.d, s.whole, 1, 1e-6f);
        });
        rounded("norm_rotate_backward " + of, dqkv, want_back);
        holds("norm_rotate_backward, same bits " + of, seed == 1 || same(before, dqkv));
        before = dqkv;
        auto in_place = dout;
        launch(blocks, s.threads(), 0, seed, [&] {
            norm_rotate_backward(in_place.data(), nullptr, nullptr, in_place.data(), s.norms ? qkv.data() : nullptr, q_norm,
                                 k_norm, cos.data(), sin.data(), positions.data(), n, s.h, s.hk, s.d, s.whole, 0, 1e-6f);
        });
        holds("norm_rotate_backward, in place " + of, same(in_place, dqkv));
        if (!s.norms) continue;
        std::vector<float> dq(wq.size(), 0), dk(wk.size(), 0);
        launch(parts(wq.size(), 32), 1024, 0, seed, [&] { add_partials(dq.data(), q_partial.data(), blocks, wq.size()); });
        launch(parts(wk.size(), 32), 1024, 0, seed, [&] { add_partials(dk.data(), k_partial.data(), blocks, wk.size()); });
        equal("norm_rotate_backward, dw of queries " + of, dq, want_dq, 1e-6);
        equal("norm_rotate_backward, dw of keys " + of, dk, want_dk, 1e-6);
        holds("norm_rotate_backward, dw, same bits " + of, seed == 1 || same(before_dq, dq));
        before_dq = dq;
    }
}

// --- biases -------------------------------------------------------------------------------------------------------------

static void partial_sums(int rows, int width) {
    Random random(rows + width);
    auto partial = random.floats(rows * width), out = random.floats(width);
    auto want = doubles(out);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < width; i++) want[i] += partial[r * width + i];
    launch(parts(width, 32), 1024, 0, 5, [&] { add_partials(out.data(), partial.data(), rows, width); });
    equal("add_partials " + std::to_string(rows) + " x " + std::to_string(width), out, want, 1e-6);
}

static void bias(int n, int width, unsigned threads, unsigned grid_rows) {
    Random random(n + width);
    auto y = random.halves(n * width);
    auto b = random.floats(width), db = random.floats(width);
    std::vector<double> want, want_db = doubles(db);
    for (int r = 0; r < n; r++) {
        for (int i = 0; i < width; i++) {
            want.push_back(double(to_float(y[r * width + i])) + b[i]);
            want_db[i] += to_float(y[r * width + i]);
        }
    }
    std::string of = std::to_string(n) + " x " + std::to_string(width);
    unsigned columns = parts(width / 8, threads), blocks = parts(n, SUM_ROWS);
    auto partial = poisoned<float>(blocks * width);
    launch(Dim(columns, blocks), threads, 0, 1, [&] { column_sums(partial.data(), y.data(), n, width); });
    launch(parts(width, 32), 1024, 0, 1, [&] { add_partials(db.data(), partial.data(), blocks, width); });
    equal("column_sums " + of, db, want_db, 1e-6);
    launch(Dim(columns, grid_rows), threads, 0, 1, [&] { add_bias(y.data(), b.data(), n, width); });
    rounded("add_bias " + of, y, want);
}

// --- swiglu -------------------------------------------------------------------------------------------------------------

static void activation(int n, int width, unsigned threads, unsigned grid_rows) {
    Random random(n * 3 + width);
    auto x = random.halves(n * 2 * width, 3), dy = random.halves(n * width);
    // far out the exponentials overflow and vanish
    x[0] = to_bf16(-120), x[1] = to_bf16(120), x[2] = to_bf16(-30), x[3] = to_bf16(0);
    auto f = [](const std::vector<double> &x) { return std::vector<double>{x[0] / (1 + exp(-x[0])) * x[1]}; };
    std::vector<double> want, want_dx(n * 2 * width);
    for (int r = 0; r < n; r++) {
        for (int i = 0; i < width; i++) {
            int gate = r * 2 * width + i;
            std::vector<double> in = {to_float(x[gate]), to_float(x[gate + width])};
            want.push_back(f(in)[0]);
            auto d = slope(in, {to_float(dy[r * width + i])}, f);
            want_dx[gate] = d[0], want_dx[gate + width] = d[1];
        }
    }
    std::string of = std::to_string(n) + " x " + std::to_string(width);
    Dim grid(parts(width / 8, threads), grid_rows);
    auto y = poisoned<bf16>(n * width), dx = poisoned<bf16>(n * 2 * width), again = poisoned<bf16>(n * width);
    launch(grid, threads, 0, 1, [&] { swiglu(y.data(), x.data(), n, width); });
    rounded("swiglu " + of, y, want);
    launch(grid, threads, 0, 1, [&] { swiglu_backward(dx.data(), again.data(), dy.data(), x.data(), n, width); });
    rounded("swiglu_backward " + of, dx, want_dx);
    holds("swiglu_backward, the forward's bits " + of, same(y, again));
    auto in_place = x;
    launch(grid, threads, 0, 1, [&] { swiglu_backward(in_place.data(), dy.data(), dy.data(), in_place.data(), n, width); });
    holds("swiglu_backward, in place " + of, same(in_place, dx) && same(dy, y));
}

// --- rows by index ------------------------------------------------------------------------------------------------------

static void tables(int n, int vocabulary, int width, unsigned threads) {
    Random random(n + vocabulary + width);
    auto table = random.halves(vocabulary * width), dy = random.halves(n * width);
    auto dtable = random.floats(vocabulary * width);
    std::vector<unsigned> ids;
    for (int i = 0; i < n; i++) ids.push_back(random.below(vocabulary));
    std::vector<bf16> want;
    auto want_table = dtable;
    for (int r = 0; r < n; r++) {
        for (int i = 0; i < width; i++) {
            want.push_back(table[ids[r] * width + i]);
            want_table[ids[r] * width + i] += to_float(dy[r * width + i]);  // the processor's loop
        }
    }
    // by token, as the host sorts them
    std::vector<unsigned> order, starts, tokens, all_starts;
    for (int token = 0; token < vocabulary; token++) {
        all_starts.push_back(order.size());
        bool first = true;
        for (int r = 0; r < n; r++) {
            if (ids[r] != unsigned(token)) continue;
            if (first) tokens.push_back(token), starts.push_back(order.size());
            first = false;
            order.push_back(r);
        }
    }
    starts.push_back(order.size());
    all_starts.push_back(order.size());
    std::string of = std::to_string(n) + " of " + std::to_string(vocabulary) + " x " + std::to_string(width);
    unsigned columns = parts(width / 8, threads);
    auto out = poisoned<bf16>(n * width);
    launch(Dim(n, columns), threads, 0, 1, [&] { gather_rows(out.data(), table.data(), ids.data(), nullptr, width); });
    holds("gather_rows " + of, same(out, want));
    // every second id was drawn, and stands elsewhere in another order
    auto mixed = ids, drawn = ids;
    for (int r = 0; r < n; r++) {
        drawn[n - 1 - r] = ids[r];
        if (r % 2) mixed[r] = 0x80000000u | unsigned(n - 1 - r);
    }
    out = poisoned<bf16>(n * width);
    launch(Dim(n, columns), threads, 0, 1, [&] { gather_rows(out.data(), table.data(), mixed.data(), drawn.data(), width); });
    holds("gather_rows of drawn ids " + of, same(out, want));
    launch(Dim(tokens.size(), columns), threads, 0, 1, [&] {
        embedding_backward(dtable.data(), dy.data(), order.data(), starts.data(), tokens.data(), width);
    });
    holds("embedding_backward, bits of the processor " + of, same(dtable, want_table));
    auto dx = poisoned<bf16>(vocabulary * width);
    launch(Dim(vocabulary, columns), threads, 0, 1, [&] {
        scatter_rows(dx.data(), dy.data(), order.data(), all_starts.data(), width);
    });
    std::vector<double> want_dx(vocabulary * width);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < width; i++) want_dx[ids[r] * width + i] += to_float(dy[r * width + i]);
    rounded("scatter_rows " + of, dx, want_dx);
}

// --- elements -----------------------------------------------------------------------------------------------------------

static void elements(long count, unsigned grid, unsigned threads) {
    Random random(count);
    std::string of = std::to_string(count);
    auto a = random.halves(count), b = random.halves(count);
    auto product = random.floats(count);
    std::vector<double> sum, merged;
    for (long i = 0; i < count; i++) {
        sum.push_back(to_float(to_bf16(to_float(a[i]) + to_float(b[i]))));
        merged.push_back(to_float(to_bf16(to_float(a[i]) + multiply(0.3f, product[i]))));
    }
    // one more than is written: it must stay as it is
    auto half = poisoned<bf16>(count + 1);
    auto check = [&](const std::string &what, auto &got, const std::vector<double> &want) {
        unsigned char end[4];
        memcpy(end, &got[count], sizeof got[count]);
        bool kept = end[0] == 0xff && end[1] == 0xff;
        got.resize(count);
        equal(what + " " + of, got, want, 0);
        holds(what + ", no more " + of, kept);
        got = poisoned<typename std::decay_t<decltype(got)>::value_type>(count + 1);
    };
    launch(grid, threads, 0, 1, [&] { add(half.data(), a.data(), b.data(), count); });
    check("add", half, sum);
    processor::Rng rng(77, 5);
    std::vector<double> dropped, added;
    for (int i = 0; i < count; i++) {
        float v = multiply(to_float(b[i]), rng.uniform() < 0.3 ? -1.0f : 0.25f);
        dropped.push_back(to_float(to_bf16(v)));
        added.push_back(to_float(to_bf16(to_float(a[i]) + v)));
    }
    launch(grid, threads, 0, 1, [&] { drop(half.data(), nullptr, b.data(), count, 77, 5, 0.3, 0.25f, -1.0f); });
    check("drop", half, dropped);
    launch(grid, threads, 0, 1, [&] { drop(half.data(), a.data(), b.data(), count, 77, 5, 0.3, 0.25f, -1.0f); });
    check("drop and add", half, added);
    launch(grid, threads, 0, 1, [&] { merge(half.data(), a.data(), product.data(), 0.3f, count); });
    check("merge", half, merged);
}

int main() {
    for (bool delta : {false, true}) {
        for (bool residual : {false, true}) {
            norm(3, 64, delta, residual);
            norm(2, 1024, delta, residual);
            norm(2, 1032, delta, residual);
        }
        norm(1, 8, delta, true);
        norm(1, 8192, delta, false);
        norm_backward(1, 8, delta, false);
        norm_backward(16, 64, delta, false);
        norm_backward(37, 264, delta, false);
        norm_backward(17, 72, delta, true);
    }
    places({4, 2, 128, true, false}, 5);     // as Qwen 3
    places({3, 1, 64, true, false}, 35);     // ends within a block and a warp
    places({6, 3, 64, false, false}, 18);    // as Llama
    places({4, 4, 32, true, true}, 17);      // as OLMo
    places({5, 1, 128, true, true}, 3);      // queries and keys of one warp
    places({2, 1, 80, true, false}, 4);      // 5 of 8 threads of a head at work
    places({2, 2, 96, false, false}, 4);
    places({2, 1, 256, true, false}, 3);
    places({3, 1, 2, true, false}, 3);       // heads that no vector fits
    places({2, 2, 20, true, true}, 3);
    places({1, 1, 6, false, false}, 3);
    partial_sums(1, 1);
    partial_sums(31, 33);
    partial_sums(200, 70);
    bias(1, 8, 32, 1);
    bias(130, 264, 32, 7);
    activation(1, 8, 32, 1);
    activation(5, 264, 32, 2);
    activation(3, 512, 64, 3);
    tables(1, 3, 8, 32);
    tables(40, 7, 264, 32);
    tables(9, 50, 16, 32);
    elements(1, 1, 32);
    elements(8, 2, 32);
    elements(1003, 2, 32);
    elements(4096, 3, 64);
    return failures;
}

// Tests of attention.cu on the processor.
//
// 1. Lists of tiles against the rule of who sees whom, row by row.
// 2. Random numbers: output, lse and all gradients against float64. One key too many or too few in a row of 300 moves its lse by
//    1e-3 and more, a thousand times what is tolerated.
// 3. Who is seen, in numbers that show each one: with keys or queries of zeros all weights of a row are 1 / (keys seen), and the
//    gradients are small sums over those who see each other, each with its own column, so that one wrong pair is an error of
//    5e-2 of the largest and mostly far more.
// 4. Equal bits from any order of blocks and warps.
//
// Rows past the end are NaN, so whoever reads one shows, and outputs lie among rows and columns that must stay as they are.
//
// Deliberate errors, one at a time, all found: each comparison of `hide`, of the mask in `backward_keys` and of `any_sees` off by
// one or left out; no mask; keys or queries left out that are not past each other; the wrong buffer of keys; each loop's barrier
// or wait left out, and the barriers of a warp; registers of a fragment exchanged; `shrink` not applied to sums or outputs; delta
// not subtracted; too few heads of a group; the wrong next entry of a list; a row past the end fetched or stored; `at` not
// looked at. Not found, for it only makes them slower: rows of a tile not shuffled.
#include "trees.hpp"
#include "../attention.cu"

using namespace check;
using trees::Lists;
using trees::Packing;

struct Shape {
    int h, hk, d, window;
    bool any;  // the kernels for any size
    bool listed = true;
    std::string name() const {
        std::string s = std::to_string(h) + "/" + std::to_string(hk) + " x " + std::to_string(d);
        if (window) s += ", window " + std::to_string(window);
        if (any) s += listed ? ", any" : ", any, no lists";
        return s;
    }
};

// What goes in and comes out, by its name in the formulas. Rows of q and go (n_q, h, d), k and v (n_k, hk, d).
struct Numbers {
    std::vector<bf16> q, k, v, go;
};
template <class T>
struct Results {
    std::vector<T> out, dq, dk, dv;
};

struct Reference {
    std::vector<double> out, lse, dq, dk, dv;
};

static Reference reference(const Shape &s, const Packing &p, const std::vector<unsigned> &at, const Numbers &x, bool backward) {
    int n_q = int(at.size()), n_k = p.rows(), h = s.h, hk = s.hk, d = s.d;
    double scale = 1 / sqrt(double(d));
    auto wide = [](const std::vector<bf16> &v) {
        std::vector<double> w;
        for (bf16 b : v) w.push_back(to_float(b));
        return w;
    };
    auto q = wide(x.q), k = wide(x.k), v = wide(x.v), go = wide(x.go);
    Reference r;
    r.out.resize(n_q * h * d), r.lse.resize(h * n_q), r.dq.resize(n_q * h * d);
    r.dk.resize(n_k * hk * d), r.dv.resize(n_k * hk * d);
    auto dot = [&](const double *a, const double *b) {
        double sum = 0;
        for (int i = 0; i < d; i++) sum += a[i] * b[i];
        return sum;
    };
    std::vector<double> w(n_k), dp(n_k);
    for (int i = 0; i < n_q; i++)
        for (int head = 0; head < h; head++) {
            int kv = head / (h / hk);
            long mine = (long(i) * h + head) * d;
            auto theirs = [&](int key) { return (long(key) * hk + kv) * d; };
            std::vector<int> seen;
            for (int key = 0; key < n_k; key++)
                if (p.sees(at[i], key, s.window)) seen.push_back(key);
            double top = -INFINITY, sum = 0, delta = 0;
            for (int key : seen) top = std::max(top, w[key] = dot(&q[mine], &k[theirs(key)]) * scale);
            for (int key : seen) sum += exp(w[key] - top);
            r.lse[head * n_q + i] = top + log(sum);
            for (int key : seen) {
                w[key] = exp(w[key] - top) / sum;
                for (int c = 0; c < d; c++) r.out[mine + c] += w[key] * v[theirs(key) + c];
            }
            if (!backward) continue;
            for (int key : seen) delta += w[key] * (dp[key] = dot(&go[mine], &v[theirs(key)]));
            for (int key : seen) {
                double ds = w[key] * (dp[key] - delta) * scale;
                for (int c = 0; c < d; c++) {
                    r.dq[mine + c] += ds * k[theirs(key) + c];
                    r.dk[theirs(key) + c] += ds * q[mine + c];
                    r.dv[theirs(key) + c] += w[key] * go[mine + c];
                }
            }
        }
    return r;
}

// One matrix with columns of heads side by side, NaN but where it is filled, and rows past its end.
struct Matrix {
    int rows, width;
    std::vector<bf16> x;
    static constexpr int PAST = 70;

    Matrix(int rows, int width) : rows(rows), width(width), x(poisoned<bf16>(size_t(rows + PAST) * width)) {}
    void put(int column, int heads_d, const std::vector<bf16> &from) {
        for (int r = 0; r < rows; r++) std::copy_n(&from[size_t(r) * heads_d], heads_d, &x[size_t(r) * width + column]);
    }
    std::vector<bf16> get(int column, int heads_d) const {
        std::vector<bf16> to(size_t(rows) * heads_d);
        for (int r = 0; r < rows; r++) std::copy_n(&x[size_t(r) * width + column], heads_d, &to[size_t(r) * heads_d]);
        return to;
    }
    bool past_untouched() const {
        return std::all_of(x.begin() + size_t(rows) * width, x.end(), [](bf16 b) { return b.bits == 0xffff; });
    }
};

struct Kernels {
    void (*forward)(Attention, bf16 *, float *);
    void (*dq)(Attention, bf16 *, long, const bf16 *, const float *, const float *);
    void (*dkv)(Attention, bf16 *, bf16 *, long, long, const bf16 *, const float *, const float *);
    void (*delta)(float *, const bf16 *, const bf16 *, int, int);
    int key_tiles, key_stage, query_stage;
};
static Kernels kernels(int d) {
    if (d == 32) return {attention_forward_32, attention_dq_32, attention_dkv_32, attention_delta_32, 2, 32, 64};
    if (d == 64) return {attention_forward_64, attention_dq_64, attention_dkv_64, attention_delta_64, 2, 32, 64};
    return {attention_forward_128, attention_dq_128, attention_dkv_128, attention_delta_128, 1, 32, 32};
}

struct Ran {
    std::vector<bf16> out, dq, dk, dv;
    std::vector<float> lse, delta;
    bool clean;
    bool operator==(const Ran &o) const {
        auto same = [](auto &a, auto &b) { return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof a[0]); };
        return same(out, o.out) && same(dq, o.dq) && same(dk, o.dk) && same(dv, o.dv) && same(lse, o.lse) && same(delta, o.delta);
    }
};

static Ran run(const Shape &s, const Packing &p, const std::vector<unsigned> &at, bool with_at, const Numbers &x, bool backward,
               unsigned seed) {
    int n_q = int(at.size()), n_k = p.rows(), h = s.h, hk = s.hk, d = s.d;
    auto [by_query, by_key] = trees::lists(p, at, s.window, QUERIES, KEYS);
    // one matrix of [q k v] where each key has a query
    int merged = (h + 2 * hk) * d;
    Matrix all(n_k, merged), queries(n_q, (h + 1) * d);
    all.put(h * d, hk * d, x.k), all.put((h + hk) * d, hk * d, x.v);
    with_at ? queries.put(d, h * d, x.q) : all.put(0, h * d, x.q);
    Attention a{};
    a.q = with_at ? &queries.x[d] : all.x.data();
    a.q_stride = with_at ? queries.width : merged;
    a.k = &all.x[h * d], a.v = &all.x[(h + hk) * d];
    a.k_stride = a.v_stride = merged;
    a.at = with_at ? at.data() : nullptr;
    a.vis_end = p.vis_end.data();
    a.position = s.window ? p.position.data() : nullptr;
    a.first = s.listed ? by_query.first.data() : nullptr, a.tiles = by_query.tiles.data();
    a.n_q = n_q, a.n_k = n_k, a.h = h, a.hk = hk, a.d = d, a.window = s.window;
    a.scale = float(1 / sqrt(double(d)));

    Matrix out(n_q, h * d), grads(n_k, merged), go(n_q, h * d);
    if (backward) go.put(0, h * d, x.go);
    auto lse = poisoned<float>(h * n_q), delta = poisoned<float>(h * n_q);
    unsigned query_tiles = (n_q + QUERIES - 1) / QUERIES, key_tiles = (n_k + KEYS - 1) / KEYS;
    Attention back = a;
    back.first = s.listed ? by_key.first.data() : nullptr, back.tiles = by_key.tiles.data();
    bf16 *dq = grads.x.data(), *dk = &grads.x[h * d], *dv = &grads.x[(h + hk) * d];
    if (s.any) {
        unsigned q8 = (n_q + 7) / 8, k8 = (n_k + 7) / 8;
        launch(Dim(h, q8), 256, 0, seed, [&] { attention_any_forward(a, out.x.data(), lse.data()); });
        if (backward) {
            launch((n_q * h + 7) / 8, 256, 0, seed,
                   [&] { attention_any_delta(delta.data(), go.x.data(), out.x.data(), n_q, h, d); });
            launch(Dim(h, q8), 256, 0, seed, [&] { attention_any_dq(a, dq, merged, go.x.data(), lse.data(), delta.data()); });
            launch(Dim(hk, k8), 256, 0, seed,
                   [&] { attention_any_dkv(back, dk, dv, merged, merged, go.x.data(), lse.data(), delta.data()); });
        }
    } else {
        Kernels kernel = kernels(d);
        launch(Dim(h, query_tiles), 128, 768 * d + 2048, seed, [&] { kernel.forward(a, out.x.data(), lse.data()); });
        if (backward) {
            launch((long(n_q) * h * d + 2047) / 2048, 256, 0, seed,
                   [&] { kernel.delta(delta.data(), go.x.data(), out.x.data(), n_q, h); });
            int stage = kernel.query_stage;
            launch(Dim(h, query_tiles), 128, 512 * d + 8 * stage * d + 1024 + 16 * stage, seed,
                   [&] { kernel.dq(a, dq, merged, go.x.data(), lse.data(), delta.data()); });
            stage = kernel.key_stage;
            launch(Dim(hk, key_tiles), 128 / kernel.key_tiles, 256 * d + 8 * stage * d + 24 * stage + 512, seed,
                   [&] { kernel.dkv(back, dk, dv, merged, merged, go.x.data(), lse.data(), delta.data()); });
        }
    }
    Ran ran;
    ran.out = out.get(0, h * d);
    ran.lse = lse, ran.delta = delta;
    if (backward) ran.dq = grads.get(0, h * d), ran.dk = grads.get(h * d, hk * d), ran.dv = grads.get((h + hk) * d, hk * d);
    ran.clean = out.past_untouched() && grads.past_untouched();
    return ran;
}

static void compare(const std::string &what, const Ran &ran, const Reference &want, bool backward, double most) {
    equal(what + ": out", ran.out, want.out, most);
    equal(what + ": lse", ran.lse, want.lse, 2e-6);
    if (backward) {
        equal(what + ": dq", ran.dq, want.dq, most);
        equal(what + ": dk", ran.dk, want.dk, most);
        equal(what + ": dv", ran.dv, want.dv, most);
    }
    holds(what + ": rows past the end untouched", ran.clean);
}

static std::vector<unsigned> everyone(const Packing &p) {
    std::vector<unsigned> at(p.rows());
    for (size_t i = 0; i < at.size(); i++) at[i] = unsigned(i);
    return at;
}

// 1.
static void listed(const std::string &what, const Packing &p, const std::vector<unsigned> &at, int window, bool skips) {
    auto [by_query, by_key] = trees::lists(p, at, window, QUERIES, KEYS);
    int n_q = int(at.size()), n_k = p.rows(), tiles_q = int(by_query.first.size()) - 1, tiles_k = int(by_key.first.size()) - 1;
    std::vector<int> entry(tiles_q * tiles_k, -1), transposed = entry;
    for (int q = 0; q < tiles_q; q++)
        for (int i = by_query.first[q]; i < by_query.first[q + 1]; i++)
            entry[q * tiles_k + by_query.tiles[i] / 2] = by_query.tiles[i] & 1;
    for (int k = 0; k < tiles_k; k++)
        for (int i = by_key.first[k]; i < by_key.first[k + 1]; i++) transposed[by_key.tiles[i] / 2 * tiles_k + k] = by_key.tiles[i] & 1;
    bool fine = entry == transposed, full = true;
    std::vector<bool> some(entry.size()), every(entry.size(), true);
    for (int q = 0; q < n_q; q++)
        for (int k = 0; k < tiles_k * KEYS; k++) {
            bool seen = k < n_k && p.sees(at[q], k, window);
            size_t tile = q / QUERIES * tiles_k + k / KEYS;
            if (seen) some[tile] = true;
            if (!seen) every[tile] = false;
        }
    for (size_t i = 0; i < entry.size(); i++) {
        fine &= !some[i] || entry[i] >= 0;
        full &= entry[i] != 0 || every[i];
    }
    holds("lists, " + what + ": what is seen is listed, both ways", fine);
    holds("lists, " + what + ": what is not masked is seen", full);
    if (skips) {
        holds("lists, " + what + ": some tiles are left out", size_t(std::count(entry.begin(), entry.end(), -1)) > entry.size() / 4);
        holds("lists, " + what + ": some tiles want no mask", std::count(entry.begin(), entry.end(), 0) > 0 || window > 0);
    }
}

// 2.
static void random_numbers(const std::string &name, const Shape &s, const Packing &p, std::vector<unsigned> at = {}, double size = 1) {
    bool with_at = !at.empty(), backward = !with_at;
    if (!with_at) at = everyone(p);
    Random random(p.rows() * 100 + s.h * 10 + s.d + s.window);
    size_t nq = at.size() * s.h * s.d, nk = size_t(p.rows()) * s.hk * s.d;
    Numbers x{random.halves(nq, size), random.halves(nk, size), random.halves(nk), random.halves(nq)};
    Ran ran = run(s, p, at, with_at, x, backward, 1);
    compare(name + ", " + s.name(), ran, reference(s, p, at, x, backward), backward, 8e-3);
}

// 3.
static void who_sees_whom(const std::string &name, const Shape &s, const Packing &p) {
    auto at = everyone(p);
    int n = p.rows();
    for (bool by_keys : {true, false}) {
        auto zeros = [](size_t n) { return std::vector<bf16>(n, to_bf16(0)); };
        size_t nq = size_t(n) * s.h * s.d, nk = size_t(n) * s.hk * s.d;
        Numbers x{zeros(nq), zeros(nk), zeros(nk), zeros(nq)};
        for (int i = 0; i < n; i++) {
            int count = 0;
            for (int k = 0; k < n; k++) count += p.sees(i, k, s.window);
            for (int head = 0; head < s.h; head++) {
                if (!by_keys) x.q[(size_t(i) * s.h + head) * s.d + i % s.d] = to_bf16(1);
                x.go[(size_t(i) * s.h + head) * s.d + (i + head) % s.d] = to_bf16(float(count));
            }
            for (int head = 0; head < s.hk; head++) {
                if (by_keys) x.k[(size_t(i) * s.hk + head) * s.d + i % s.d] = to_bf16(1);
                for (int c = 0; c < s.d; c++) x.v[(size_t(i) * s.hk + head) * s.d + c] = to_bf16(i * 7 % 3 ? 1.0f : -1.0f);
            }
        }
        Ran ran = run(s, p, at, false, x, true, 2);
        Reference want = reference(s, p, at, x, true);
        std::string what = name + ", " + s.name() + (by_keys ? ", keys told apart" : ", queries told apart");
        equal(what + ": lse", ran.lse, want.lse, 1e-6);
        equal(what + ": dv", ran.dv, want.dv, 2e-2);
        by_keys ? equal(what + ": dq", ran.dq, want.dq, 5e-2) : equal(what + ": dk", ran.dk, want.dk, 5e-2);
    }
}

// 4.
static void any_order(const std::string &name, const Shape &s, const Packing &p) {
    auto at = everyone(p);
    Random random(5);
    size_t nq = at.size() * s.h * s.d, nk = size_t(p.rows()) * s.hk * s.d;
    Numbers x{random.halves(nq), random.halves(nk), random.halves(nk), random.halves(nq)};
    Ran one = run(s, p, at, false, x, true, 1);
    bool same = true;
    for (unsigned seed : {2, 3}) same &= run(s, p, at, false, x, true, seed) == one;
    holds(name + ", " + s.name() + ": equal bits from any order of blocks and warps", same);
}

int main() {
    setvbuf(stdout, 0, _IOLBF, 0);
    Packing single1{{1, -1}}, single17{{17, -1}}, single64{{64, -1}}, single200{{200, -1}}, single333{{333, -1}};
    Packing packed{{37, -1}, {1, -1}, {133, -1}, {64, -1}, {98, -1}};
    // a prompt with branches, one of which branches again, an empty segment among them; then a shorter one
    Packing nested{{70, -1}, {50, 0}, {20, 1}, {33, 1}, {0, 0}, {61, 4}, {40, 0}, {9, -1}, {30, 7}, {17, 7}};
    // wide enough that tiles are skipped
    Packing wide{{150, -1}, {200, 0}, {180, 0}, {90, -1}, {300, -1}, {130, 4}, {100, 4}};

    for (int window : {0, 1, 40, 100}) {
        std::string w = window ? ", window " + std::to_string(window) : "";
        for (auto &[name, p] : {std::pair{"single 333", single333}, {"packed", packed}, {"nested", nested}})
            listed(name + w, p, everyone(p), window, false);
        listed("wide" + w, wide, everyone(wide), window, true);
        std::vector<unsigned> tail, some;
        for (int i = 0; i < wide.rows(); i++) {
            if (i >= 900) tail.push_back(i);
            if (i % 7 == 3 || i % 64 == 0) some.push_back(i);
        }
        listed("tail of wide" + w, wide, tail, window, false);
        listed("some of wide" + w, wide, some, window, false);
    }

    for (auto &[name, p] : {std::pair{"single 1", single1}, {"single 17", single17}, {"single 64", single64}})
        for (int d : {32, 64, 128}) random_numbers(name, {2, 1, d, 0, false}, p);
    random_numbers("single 200", {4, 1, 32, 0, false}, single200);
    random_numbers("single 200", {2, 1, 128, 70, false}, single200);
    random_numbers("single 333", {8, 1, 32, 0, false}, single333);
    random_numbers("single 333", {2, 2, 64, 100, false}, single333);
    random_numbers("packed", {2, 1, 64, 0, false}, packed);
    random_numbers("packed", {2, 2, 128, 0, false}, packed);
    random_numbers("packed, large scores", {2, 1, 32, 0, false}, packed, {}, 3);
    random_numbers("nested", {4, 2, 32, 33, false}, nested);
    random_numbers("nested", {4, 1, 64, 0, false}, nested);
    random_numbers("nested", {1, 1, 128, 0, false}, nested);

    for (int window : {0, 1, 64, 90})
        for (auto &[name, p] : {std::pair{"packed", packed}, {"nested", nested}}) who_sees_whom(name, {2, 1, 32, window, false}, p);
    who_sees_whom("wide", {1, 1, 32, 0, false}, wide);
    who_sees_whom("nested", {1, 1, 64, 75, false}, nested);
    who_sees_whom("nested", {1, 1, 128, 75, false}, nested);

    // queries that are some of the rows: each third one, the last few, one
    for (int window : {0, 45}) {
        std::vector<unsigned> third, last, one{unsigned(nested.rows() - 1)};
        for (int i = 0; i < nested.rows(); i += 3) third.push_back(i);
        for (int i = 291; i < nested.rows(); i++) last.push_back(i);
        random_numbers("third of nested", {2, 1, 64, window, false}, nested, third);
        random_numbers("last of nested", {4, 2, 32, window, false}, nested, last);
        random_numbers("one of nested", {2, 1, 128, window, false}, nested, one);
        random_numbers("third of nested", {2, 1, 20, window, true}, nested, third);
        random_numbers("last of nested", {2, 1, 20, window, true, false}, nested, last);
    }

    for (bool with_lists : {true, false}) {
        random_numbers("single 17", {2, 1, 256, 0, true, with_lists}, single17);
        random_numbers("single 64", {3, 1, 80, 9, true, with_lists}, single64);
        random_numbers("packed", {2, 1, 6, 0, true, with_lists}, packed);
        random_numbers("nested", {2, 2, 64, 40, true, with_lists}, nested);
        who_sees_whom("nested", {1, 1, 40, 33, true, with_lists}, nested);
        who_sees_whom("packed", {1, 1, 24, 0, true, with_lists}, packed);
    }

    any_order("packed", {2, 1, 32, 0, false}, packed);
    any_order("nested", {2, 1, 64, 50, false}, nested);
    any_order("single 200", {1, 1, 128, 0, false}, single200);
    any_order("single 64", {2, 1, 48, 0, true}, single64);
    return failures;
}

// Tests of paged.cu on the processor.
//
// Pages lie anywhere in the cache, places that no token has are NaN, and so are those past a sequence's end: whoever reads one
// shows. Random numbers catch a wrong key only where it weighs enough, so there is also a test in which all weights are equal
// and each key has its own column: there a key too many, too few or twice is an error of 3e-2 and more.
//
// Deliberate errors, one at a time, all found: each comparison with `from` or `end` off by one or left out; a step of another warp,
// page, head or stage; a wait for one group less; the barriers around the warps' parts left out; `shrink` of another head;
// registers of a fragment exchanged; one active split too many; `done` not set back; parts or warps added up without their
// weights; a row past the end fetched; a slot, a slot for nobody or a gathered token taken wrongly. Not found, for the processor's
// copies are seen by all: the barrier of a warp after its wait.
#include "check.hpp"
#include "../paged.cu"

using namespace check;

struct Shape {
    int h, hk, d, window, splits;
    bool any = false;
    std::string name() const {
        return std::to_string(h) + "/" + std::to_string(hk) + " x " + std::to_string(d) +
               (window ? ", window " + std::to_string(window) : "") + ", splits " + std::to_string(splits) + (any ? ", any" : "");
    }
};

// Sequences of these lengths, whose pages are dealt at random, written by `cache_write` from rows that have all tokens of all
// sequences one after another.
struct Cache {
    std::vector<int> lengths, begin;
    std::vector<unsigned> length_u, pages, slots;
    int hk, d, max_pages = 1, rows = 0, width;
    std::vector<bf16> k, v, rows_k, rows_v;

    Cache(std::vector<int> lengths, int hk, int d, Random &random, bool columns)
        : lengths(lengths), length_u(lengths.begin(), lengths.end()), hk(hk), d(d), width(hk * d) {
        int all = 3;
        for (int n : lengths) max_pages = std::max(max_pages, (n + PAGE - 1) / PAGE + 1), all += (n + PAGE - 1) / PAGE;
        std::vector<unsigned> deal(all);
        for (int i = 0; i < all; i++) deal[i] = i;
        std::shuffle(deal.begin(), deal.end(), random.state);
        // what no sequence has is a page far outside, and a token of each row is for nobody
        pages.assign(lengths.size() * max_pages, 1u << 30);
        for (size_t b = 0; b < lengths.size(); b++) {
            begin.push_back(rows);
            for (int i = 0; i < lengths[b]; i++, rows++) {
                unsigned &page = pages[b * max_pages + i / PAGE];
                if (i % PAGE == 0) page = deal.back(), deal.pop_back();
                slots.push_back(page * PAGE + i % PAGE);
            }
        }
        slots.push_back(0xffffffffu);
        rows_k = random.halves(size_t(rows + 1) * width);
        rows_v = random.halves(size_t(rows + 1) * width);
        if (columns)
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < width; c++) rows_v[size_t(r) * width + c] = to_bf16(r % d == c % d ? 1.0f + r % 5 : 0.0f);
        k = poisoned<bf16>(size_t(all) * PAGE * width), v = k;
        // rows as columns of something wider
        int stride = 2 * width + 8;
        std::vector<bf16> wide(size_t(rows + 1) * stride);
        for (int r = 0; r <= rows; r++) {
            std::copy_n(&rows_k[size_t(r) * width], width, &wide[size_t(r) * stride]);
            std::copy_n(&rows_v[size_t(r) * width], width, &wide[size_t(r) * stride + width + 8]);
        }
        launch(rows + 1, 64, 0, 1,
               [&] { cache_write(k.data(), v.data(), &wide[0], &wide[width + 8], stride, stride, slots.data(), width); });
    }
};

static void written_and_gathered(int hk, int d) {
    Random random(d);
    Cache cache({70, 1, 128, 64}, hk, d, random, false);
    std::string what = "cache of rows of " + std::to_string(hk) + " x " + std::to_string(d);
    std::vector<bool> used(cache.k.size());
    bool same = true, rest = true;
    for (int r = 0; r < cache.rows; r++) {
        size_t at = size_t(cache.slots[r]) * cache.width, from = size_t(r) * cache.width;
        same &= !memcmp(&cache.k[at], &cache.rows_k[from], cache.width * 2) && !memcmp(&cache.v[at], &cache.rows_v[from], cache.width * 2);
        for (int i = 0; i < cache.width; i++) used[at + i] = true;
    }
    for (size_t i = 0; i < used.size(); i++) rest &= used[i] || (cache.k[i].bits == 0xffff && cache.v[i].bits == 0xffff);
    holds(what + ": each row in its place", same);
    holds(what + ": nothing beside", rest);
    for (int b : {0, 2, 3}) {
        int first = b == 2 ? 60 : 0, n = cache.lengths[b] - first, stride = cache.width + 6;
        auto k = poisoned<bf16>(size_t(n) * stride), v = k;
        launch(n, 32, 0, 1, [&] {
            cache_gather(k.data(), v.data(), stride, stride, cache.k.data(), cache.v.data(), &cache.pages[b * cache.max_pages], first,
                         cache.width);
        });
        bool right = true;
        for (int r = 0; r < n; r++) {
            size_t from = size_t(cache.begin[b] + first + r) * cache.width, to = size_t(r) * stride;
            right &= !memcmp(&k[to], &cache.rows_k[from], cache.width * 2) && !memcmp(&v[to], &cache.rows_v[from], cache.width * 2);
            right &= k[to + cache.width].bits == 0xffff;
        }
        holds(what + ": gathered sequence " + std::to_string(b), right);
    }
}

static std::vector<bf16> decoded(const Shape &s, const Cache &cache, const std::vector<bf16> &q, unsigned seed, bool &clean) {
    int batch = int(cache.lengths.size());
    auto out = poisoned<bf16>(size_t(batch) * s.h * s.d);
    auto parts = poisoned<float>(size_t(batch) * s.h * s.splits * s.d), stats = poisoned<float>(size_t(batch) * s.h * s.splits * 2);
    std::vector<unsigned> done(batch * s.hk, 0);
    // queries as columns of something wider, which ends where they do
    int stride = s.h * s.d + 10;
    auto wide = poisoned<bf16>(size_t(batch) * stride);
    for (int b = 0; b < batch; b++) std::copy_n(&q[size_t(b) * s.h * s.d], s.h * s.d, &wide[size_t(b) * stride + 10]);
    Decode a{};
    a.q = &wide[10], a.q_stride = stride;
    a.k = cache.k.data(), a.v = cache.v.data(), a.pages = cache.pages.data(), a.lengths = cache.length_u.data();
    a.out = out.data(), a.parts = parts.data(), a.stats = stats.data(), a.done = done.data();
    if (s.splits == 1) a.parts = a.stats = nullptr, a.done = nullptr;
    a.max_pages = cache.max_pages, a.h = s.h, a.hk = s.hk, a.d = s.d, a.splits = s.splits, a.window = s.window;
    a.scale = float(1 / sqrt(double(s.d)));
    auto kernel = s.any ? attention_decode_any : s.d == 32 ? attention_decode_32 : s.d == 64 ? attention_decode_64 : attention_decode_128;
    launch(Dim(s.hk, s.splits, batch), 128, s.any ? 0 : 98304, seed, [&] { kernel(a); });
    clean = std::count(done.begin(), done.end(), 0u) == long(done.size());
    return out;
}

static void decoding(const Shape &s, const std::vector<int> &lengths, bool columns = false) {
    Random random(s.d + s.h);
    Cache cache(lengths, s.hk, s.d, random, columns);
    int batch = int(lengths.size()), group = s.h / s.hk;
    auto q = columns ? std::vector<bf16>(size_t(batch) * s.h * s.d, to_bf16(0)) : random.halves(size_t(batch) * s.h * s.d);
    std::vector<double> want(size_t(batch) * s.h * s.d);
    std::string what = "decode " + s.name() + (columns ? ", keys told apart" : "") + ", lengths";
    for (int b = 0; b < batch; b++) {
        what += " " + std::to_string(lengths[b]);
        for (int head = 0; head < s.h && lengths[b] > 0; head++) {
            size_t mine = (size_t(b) * s.h + head) * s.d;
            std::vector<double> w(lengths[b]);
            int from = s.window ? std::max(0, lengths[b] - s.window) : 0;
            double top = -INFINITY, sum = 0;
            auto theirs = [&](int i) { return (size_t(cache.begin[b] + i) * s.hk + head / group) * s.d; };
            for (int i = from; i < lengths[b]; i++) {
                for (int c = 0; c < s.d; c++) w[i] += double(to_float(q[mine + c])) * to_float(cache.rows_k[theirs(i) + c]);
                top = std::max(top, w[i] /= sqrt(double(s.d)));
            }
            for (int i = from; i < lengths[b]; i++) sum += w[i] = exp(w[i] - top);
            for (int i = from; i < lengths[b]; i++)
                for (int c = 0; c < s.d; c++) want[mine + c] += w[i] / sum * to_float(cache.rows_v[theirs(i) + c]);
        }
    }
    bool clean = false;
    auto out = decoded(s, cache, q, 1, clean);
    // relative to each row's largest, for long sequences have small outputs
    double worst = 0;
    for (size_t row = 0; row < want.size(); row += s.d) {
        std::vector<double> part(want.begin() + row, want.begin() + row + s.d);
        worst = std::max(worst, error(std::vector<bf16>(out.begin() + row, out.begin() + row + s.d), part));
    }
    bool fine = worst <= 1e-2;
    printf("%s %-60s %.1e (at most 1e-02)\n", fine ? "ok  " : "FAIL", what.c_str(), worst);
    failures += !fine;
    holds(what + ": counts of blocks set back", clean);
    if (s.splits > 1 && !columns) {
        bool same = true;
        for (unsigned seed : {2, 3, 4}) {
            auto again = decoded(s, cache, q, seed, clean);
            same &= clean && !memcmp(again.data(), out.data(), out.size() * sizeof(bf16));
        }
        holds(what + ": equal bits from any order of blocks and warps", same);
    }
}

int main() {
    written_and_gathered(2, 64);
    written_and_gathered(1, 6);
    written_and_gathered(3, 20);

    for (int d : {32, 64, 128}) {
        decoding({2, 2, d, 0, 1}, {1, 63, 64, 65, 0, 200});
        decoding({8, 1, d, 0, 3}, {333, 17});
        decoding({12, 2, d, 0, 5}, {130, 0, 700});
        decoding({6, 2, d, 70, 2}, {333, 5, 70, 71, 134});
        for (int window : {0, 1, 33, 64, 100}) decoding({2, 1, d, window, 3}, {1, 40, 64, 65, 97, 257}, true);
    }
    // as many splits as there may be
    decoding({2, 1, 64, 0, 64}, {1300, 64 * 64 - 1});

    decoding({2, 2, 6, 0, 1, true}, {1, 63, 64, 65, 0, 200});
    decoding({20, 2, 48, 0, 3, true}, {333, 17, 0});
    decoding({3, 1, 256, 70, 2, true}, {140, 5});
    for (bool columns : {false, true}) {
        decoding({12, 1, 80, 40, 3, true}, {1, 40, 64, 65, 97, 257}, columns);
        decoding({2, 1, 64, 0, 4, true}, {1, 40, 64, 65, 97, 257}, columns);
    }
    return failures;
}

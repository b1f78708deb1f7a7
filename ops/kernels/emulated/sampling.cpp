// Tests of sampling.cu on the processor: the tokens that the processor draws, with its random numbers, and what stays after cuts
// by the sum of its probabilities.
//
// That they find errors was tried by making some forty, one by one: `>` for `>=` at each limit, one tie more or less, a share
// that is rounded down, the halves of a random number exchanged, a position that is not halved, a part that is one off, a
// barrier left out, a search that forgets what is above, a cut that does not know of the one before, an order of keys without
// the sign.
#include "processor.hpp"
#include "../head.cu"
#include "../sampling.cu"

using namespace check;
using processor::Sampling;

// Where the uniform number may be so near to a boundary that the processor's rounding decides.
constexpr double NEAR = 4e-6;

enum Kind { Normal, Peaked, Flat, Stepped, Equal, Forbidden, Zeros };

static std::vector<float> make(Random &random, int v, Kind kind) {
    std::vector<float> z;
    for (int i = 0; i < v; i++) {
        float x = float(random.normal() * (kind == Peaked ? 8 : kind == Flat ? 0.5 : 3));
        if (kind == Stepped) x = roundf(x * 2) / 2;  // many ties
        if (kind == Equal) x = 7;
        if (kind == Forbidden && random.below(4) > 0) x = -INFINITY;
        if (kind == Zeros) x = i % 3 == 0 ? 0.0f : i % 3 == 1 ? -0.0f : -1.0f;
        z.push_back(x);
    }
    return z;
}

static std::string name_of(int v, const Sampling &s, Kind kind, size_t open, unsigned threads) {
    char text[200];
    snprintf(text, sizeof text, "v %d, T %.2g, k %u, p %.3g, min %.2g, kind %d, open %zu, %u threads", v, s.temperature, s.top_k,
             s.top_p, s.min_p, kind, open, threads);
    return text;
}

static int draws_seen = 0, draws_other = 0;

// `steps` draws of two sequences, the second of which begins at another place of its stream, with a third that is not active.
static void draws(int v, const Sampling &s, Kind kind, int open_count, unsigned threads, int steps) {
    Random random(v + kind * 100 + s.top_k);
    const unsigned B = 3, LENGTH = 4;
    long stride = (v + 3) / 4 * 4 + 4;
    std::vector<unsigned> open = {0, 0};  // the lists of sequences begin elsewhere than at 0
    if (open_count > 0) {
        std::vector<unsigned> all(v);
        for (int i = 0; i < v; i++) all[i] = i;
        std::shuffle(all.begin(), all.end(), random.state);
        std::sort(all.begin(), all.begin() + open_count);
        open.insert(open.end(), all.begin(), all.begin() + open_count);
    }
    std::vector<unsigned> list(open.begin() + 2, open.end());
    std::vector<Draw> state(B);
    for (unsigned b = 0; b < B; b++) {
        uint64_t stream = 0xfedcba9876543210ull * (b + 1);
        state[b] = {0x123456789abull + b, stream, 5 * b, s.top_p, s.min_p, float(s.temperature), s.top_k, 2, unsigned(open_count),
                    b != 2, 0};
    }
    std::vector<processor::Rng> rngs;
    for (unsigned b = 0; b < B; b++) {
        rngs.emplace_back(state[b].seed, state[b].stream);
        for (uint64_t i = 0; i < state[b].position; i++) rngs[b].uniform();
    }
    auto ring = poisoned<Drawn>(LENGTH * B);
    auto tokens = poisoned<unsigned>(B);
    bool ids = true, places = true;
    std::vector<float> logps, fulls;
    std::vector<double> want_logps = {1}, want_fulls = {1};
    for (int step = 0; step < steps; step++) {
        std::vector<float> logits(B * stride, 1e30f);
        std::vector<std::vector<float>> rows;
        for (unsigned b = 0; b < B; b++) {
            rows.push_back(make(random, v, kind));
            std::copy(rows[b].begin(), rows[b].end(), &logits[b * stride]);
        }
        auto before = state;
        auto once = [&](unsigned seed) {
            launch(B, threads, 0, seed, [&] {
                sample(tokens.data(), ring.data(), LENGTH, state.data(), open.data(), logits.data(), v, stride);
            });
        };
        once(step);
        if (step == 0) {
            auto first = ring;
            auto after = state;
            state = before;
            once(100);
            places &= memcmp(first.data(), ring.data(), ring.size() * sizeof(Drawn)) == 0;
            places &= memcmp(state.data(), after.data(), B * sizeof(Draw)) == 0;
        }
        for (unsigned b = 0; b < B; b++) {
            if (b == 2) {
                places &= tokens[b] == 0xffffffffu && state[b].position == before[b].position;
                for (unsigned row = 0; row < LENGTH; row++) places &= ring[row * B + b].id == 0xffffffffu;
                continue;
            }
            Drawn got = ring[before[b].position % LENGTH * B + b];
            places &= tokens[b] == got.id && got.position == before[b].position && state[b].position == before[b].position + 1;
            auto again = rngs[b];
            auto *only = open_count > 0 ? &list : nullptr;
            auto want = processor::draw(rows[b], s, only, rngs[b]);
            draws_seen++;
            auto z = processor::masked(rows[b], s, only);
            float temperature = s.temperature == 0 ? 1.0f : float(s.temperature);
            if (got.id != want.id) {
                // both must be at the uniform number, by the exact sums
                draws_other++;
                double u = again.uniform(), sum = 0, total = 0;
                for (float x : z) total += exp(double(x) / temperature - double(z[processor::likeliest(z)]) / temperature);
                bool near = got.id < unsigned(v) && s.temperature > 0;
                for (unsigned i = 0; i < std::max(got.id, want.id) && near; i++) {
                    sum += exp(double(z[i]) / temperature - double(z[processor::likeliest(z)]) / temperature) / total;
                    if (i >= std::min(got.id, want.id)) near &= fabs(sum - u) < NEAR;
                }
                ids &= near;
                if (!near) printf("     %u instead of %u at step %d\n", got.id, want.id, step);
            }
            logps.push_back(got.logp), fulls.push_back(got.full);
            // greedy steps take no random number on the processor
            if (s.temperature == 0) rngs[b] = again;
            want_logps.push_back(processor::row_stats(z.data(), v, got.id, temperature).logp);
            want_fulls.push_back(processor::row_stats(rows[b].data(), v, got.id, 1).logp);
        }
    }
    logps.insert(logps.begin(), 1), fulls.insert(fulls.begin(), 1);
    std::string of = name_of(v, s, kind, open_count, threads);
    holds("tokens, " + of, ids);
    holds("places and bits, " + of, places);
    equal("logp, " + of, logps, want_logps, 2e-6);
    equal("full, " + of, fulls, want_fulls, 2e-6);
}

static void numbers() {
    bool fine = true;
    auto same = [](float x) { return processor::bits_of(exponential(x)) == processor::bits_of(processor::exp(x)); };
    for (float x = -100; x <= 0; x += 0.000731f) fine &= same(x);
    for (float x : {0.0f, -0.0f, -87.3f, -87.30001f, -1e-8f, -INFINITY}) fine &= same(x);
    holds("the processor's exp, bit for bit", fine);
    fine = true;
    for (uint64_t seed : {0ull, 7ull, 0xffffffff00000001ull}) {
        for (uint64_t stream : {0ull, 0x123456789abcdefull}) {
            processor::Rng rng(seed, stream);
            for (uint64_t i = 0; i < 20; i++) fine &= ldexp(double(uniform(seed, stream, i)), -64) == rng.uniform();
        }
    }
    holds("the processor's uniform numbers", fine);
    // known answers of Random123
    unsigned words[4];
    philox(words, 0, 0, 0);
    fine = words[0] == 0x6627e8d5 && words[1] == 0xe169c58d && words[2] == 0xbc57ac4c && words[3] == 0x9b00dbd8;
    philox(words, ~0ull, ~0ull, ~0ull);
    fine &= words[0] == 0x408f276d && words[1] == 0x41c83b0e && words[2] == 0xa20bc7c6 && words[3] == 0x6d5451fd;
    holds("Philox's published numbers", fine);
    fine = true;
    std::vector<float> order = {-INFINITY, -3, -1e-40f, -0.0f, 0.0f, 1e-40f, 2, INFINITY};
    for (size_t i = 0; i < order.size(); i++) {
        fine &= processor::bits_of(of_key(key_of(order[i]))) == processor::bits_of(order[i]);
        if (i > 0) fine &= key_of(order[i - 1]) < key_of(order[i]);
    }
    holds("keys are in the order of numbers", fine);
}

// Logits that are no numbers end in a token, and say so.
static void not_numbers() {
    auto nan = float(NAN), infinity = float(INFINITY);
    for (int v : {200, KEPT + 300}) {
        for (auto [bad, all] : {std::pair(nan, false), {infinity, false}, {nan, true}, {-infinity, true}}) {
            for (Sampling s : {Sampling{1, 0, 1, 0}, {0, 0, 1, 0}, {0.7, 5, 0.9, 0.01}, {0.7, 0, 0.9, 0}}) {
                std::vector<float> z(v, 1.5f);
                z[77] = bad;
                if (all) z.assign(v, bad);
                Draw state = {1, 2, 0, s.top_p, s.min_p, float(s.temperature), s.top_k, 0, 0, 1, 0};
                Drawn drawn;
                unsigned token = 12345;
                launch(1, 128, 0, 1, [&] { sample(&token, &drawn, 1, &state, nullptr, z.data(), v, v); });
                holds("logits that are no numbers", token < unsigned(v) && drawn.full != drawn.full);
            }
        }
    }
}

// Sampler and trainer have one softmax.
static void as_the_head() {
    for (unsigned threads : {64, 256}) {
        Random random(threads);
        auto z = random.floats(5003, 4);
        z.resize(5008);
        Draw state = {1, 2, 0, 1, 0, 1, 0, 0, 0, 1, 0};
        Drawn drawn;
        unsigned token;
        Stats stats;
        launch(1, threads, 0, 1, [&] { sample(&token, &drawn, 1, &state, nullptr, z.data(), 5003, 5008); });
        launch(1, threads, 0, 2, [&] { head_stats(&stats, z.data(), &token, 5003, 5008, 1); });
        holds("log-probabilities of the head, bit for bit", drawn.logp == stats.logp && drawn.full == stats.logp);
    }
}

int main() {
    as_the_head();
    numbers();
    not_numbers();
    const Sampling plain{1, 0, 1, 0}, warm{1.7, 0, 1, 0}, greedy{0, 0, 1, 0}, k5{1, 5, 1, 0}, p9{1, 0, 0.9, 0}, m{1, 0, 1, 0.05},
        usual{0.6, 20, 0.95, 0}, all{0.7, 50, 0.8, 0.03}, tiny{1, 0, 1e-9, 0}, most{1.3, 0, 0.999, 0.001}, one{1, 1, 1, 0},
        greedy_cut{0, 3, 0.5, 0.1}, pm{0.9, 0, 0.7, 0.2};
    for (Kind kind : {Normal, Peaked, Flat, Stepped, Equal, Forbidden, Zeros}) {
        for (const Sampling &s : {plain, warm, greedy, k5, p9, m, usual, all, tiny, most, one, greedy_cut, pm}) {
            draws(1000, s, kind, 0, 64, 3);
            draws(301, s, kind, 0, 96, 1);
            draws(1000, s, kind, 40, 64, 2);
        }
        // limits that a weight has, and that it misses by less than float32 shows
        double third = processor::exp(-1);
        for (double share : {1.0, third, third + 1e-12, third - 1e-12}) draws(300, Sampling{1, 0, 1, share}, kind, 0, 64, 1);
        if (kind == Forbidden) continue;  // perhaps nothing is left
        draws(1, plain, kind, 0, 64, 2);
        draws(2, p9, kind, 0, 64, 2);
        draws(50, usual, kind, 1, 64, 2);
    }
    // more than shared memory has room for: several rounds of a search, and ties that never fit
    for (Kind kind : {Flat, Normal, Stepped, Equal}) {
        for (const Sampling &s : {p9, usual, Sampling{1, 12000, 1, 0}, Sampling{1, 15000, 0.6, 0}, Sampling{2, 0, 0.5, 0}})
            draws(20011, s, kind, 0, 128, 1);
        draws(20011, all, kind, 15000, 128, 1);
    }
    // real sizes
    draws(151936, plain, Normal, 0, 1024, 1);
    draws(151936, usual, Normal, 0, 1024, 1);
    draws(262144, p9, Flat, 0, 1024, 1);
    // many draws
    draws(40, warm, Normal, 0, 64, 300);
    draws(40, all, Normal, 0, 64, 200);
    printf("     %d draws, %d of them beside the processor's\n", draws_seen, draws_other);
    holds("another token than the processor's is rare", draws_other <= draws_seen / 500);
    return failures > 255 ? 255 : failures;
}

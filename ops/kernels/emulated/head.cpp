// Tests of head.cu on the processor: against float64, and against the processor's own loops.
//
// That they find errors was tried by making them, one by one: the sum not shrunk at a new maximum, the weighted sum not moved
// with it, a tail that is read beyond v, a stride computed in 32 bits, the target's place in a vector, a temperature left out
// of the gradient, each barrier left out.
#include <sys/mman.h>

#include "processor.hpp"
#include "../head.cu"

using namespace check;

static int round_up(int x) { return (x + 7) / 8 * 8; }

// Logits of some shape, by row.
enum Kind { Normal, Wide, Equal, Forbidden, Rising };

static std::vector<float> make(Random &random, int rows, int v, long stride, Kind kind) {
    std::vector<float> z(rows * stride, 1e30f);  // what is not a logit must not count
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < v; i++) {
            float x = float(random.normal() * (kind == Wide ? 40 : 3));
            if (kind == Equal) x = -2.5f;
            if (kind == Forbidden && random.below(3) > 0) x = -INFINITY;
            if (kind == Rising) x = float(i) * 0.01f + 1000;
            z[r * stride + i] = x;
        }
    }
    return z;
}

static void rows_of(int rows, int v, unsigned threads, float temperature, Kind kind) {
    Random random(v * 7 + rows + kind);
    long stride = round_up(v) + (v % 3) * 8;
    auto z = make(random, rows, v, stride, kind);
    std::vector<unsigned> targets;
    std::vector<float> coefficients;
    for (int r = 0; r < rows; r++) {
        unsigned target = r == 0 ? v - 1 : random.below(v);
        if (kind == Forbidden) z[r * stride + target] = 1;
        targets.push_back(target);
        coefficients.push_back(r == 1 ? 0 : float(random.normal()));
    }
    // 1. float64, and the processor
    std::vector<double> logp, entropy, lse, max, of_logp, of_entropy, of_lse, dz, of_dz;
    for (int r = 0; r < rows; r++) {
        const float *row = &z[r * stride];
        double most = -INFINITY, sum = 0, weighted = 0;
        for (int i = 0; i < v; i++) most = std::max(most, double(row[i]) / temperature);
        for (int i = 0; i < v; i++) {
            double d = row[i] / double(temperature) - most, p = exp(d);
            sum += p;
            weighted += p > 0 ? p * d : 0;
        }
        max.push_back(most);
        lse.push_back(most + log(sum));
        logp.push_back(row[targets[r]] / double(temperature) - lse[r]);
        entropy.push_back(log(sum) - weighted / sum);
        auto twin = processor::row_stats(row, v, targets[r], temperature);
        of_logp.push_back(twin.logp), of_entropy.push_back(twin.entropy), of_lse.push_back(twin.lse);
        std::vector<float> back(row, row + v);
        processor::row_backward(back.data(), v, targets[r], temperature, twin, coefficients[r]);
        for (int i = 0; i < v; i++) {
            double slope = ((unsigned(i) == targets[r]) - exp(row[i] / double(temperature) - lse[r])) / temperature;
            dz.push_back(coefficients[r] * slope);
            of_dz.push_back(back[i]);
        }
    }
    // 2. the kernels
    std::string of = std::to_string(rows) + " x " + std::to_string(v) + " at " + std::to_string(temperature).substr(0, 4) +
                     ", kind " + std::to_string(kind) + ", " + std::to_string(threads) + " threads";
    std::vector<Stats> before;
    for (unsigned seed = 1; seed <= 2; seed++) {
        auto stats = poisoned<Stats>(rows);
        auto d = poisoned<bf16>(rows * stride);
        launch(rows, threads, 0, seed, [&] { head_stats(stats.data(), z.data(), targets.data(), v, stride, temperature); });
        launch(rows, threads, 0, seed, [&] {
            head_gradient(d.data(), stats.data(), z.data(), targets.data(), coefficients.data(), v, stride, temperature);
        });
        if (seed > 1) {
            holds("same bits " + of, memcmp(stats.data(), before.data(), rows * sizeof(Stats)) == 0);
            continue;
        }
        before = stats;
        std::vector<float> got_logp, got_entropy, got_lse, got_max;
        std::vector<bf16> got_dz;
        bool padded = true;
        for (int r = 0; r < rows; r++) {
            got_logp.push_back(stats[r].logp), got_entropy.push_back(stats[r].entropy);
            got_lse.push_back(stats[r].lse), got_max.push_back(stats[r].max);
            for (long i = 0; i < stride; i++) {
                bf16 x = d[r * stride + i];
                uint16_t want = i < round_up(v) ? 0 : 0xffff;  // zeros up to the next multiple of 8, nothing beyond
                if (i < v)
                    got_dz.push_back(x);
                else
                    padded &= (x.bits & 0x7fff) == (want & 0x7fff);
            }
        }
        // errors are in units of the largest number, or of 1 where all are small
        for (auto *list : {&logp, &entropy, &lse, &of_logp, &of_entropy, &of_lse, &dz, &of_dz}) list->push_back(1);
        for (auto *list : {&got_logp, &got_entropy, &got_lse}) list->push_back(1);
        got_dz.push_back(to_bf16(1));
        // the processor rounds a logit times 1 / temperature, here it is the difference to the largest
        double twin = kind == Rising ? 1e-4 : 4e-6;
        equal("logp " + of, got_logp, logp, 1e-6);
        equal("entropy " + of, got_entropy, entropy, 1e-6);
        equal("lse " + of, got_lse, lse, 1e-6);
        equal("max " + of, got_max, max, 1e-7);
        equal("logp as the processor " + of, got_logp, of_logp, twin);
        equal("entropy as the processor " + of, got_entropy, of_entropy, twin);
        equal("lse as the processor " + of, got_lse, of_lse, 1e-6);
        rounded("gradient " + of, got_dz, dz);
        equal("gradient as the processor " + of, got_dz, of_dz, 4.1e-3);
        holds("what is beyond v " + of, padded);
    }
}

// Rows that begin beyond 2^31 elements. Only what is touched takes memory.
static void far() {
    const long stride = 1l << 30;
    const int rows = 4, v = 21;
    auto map = [](long bytes) {
        void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) perror("mmap"), exit(1);
        return p;
    };
    auto *z = static_cast<float *>(map(rows * stride * 4));
    auto *d = static_cast<bf16 *>(map(rows * stride * 2));
    Random random(3);
    std::vector<unsigned> targets = {0, 20, 7, 11};
    std::vector<float> coefficients = {1, -1, 2, 3}, got;
    std::vector<bf16> got_d;
    std::vector<double> want, want_d;
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < v; i++) z[r * stride + i] = float(random.normal());
        double sum = 0;
        for (int i = 0; i < v; i++) sum += exp(double(z[r * stride + i]));
        want.push_back(z[r * stride + targets[r]] - log(sum));
        for (int i = 0; i < v; i++)
            want_d.push_back(coefficients[r] * ((unsigned(i) == targets[r]) - exp(double(z[r * stride + i])) / sum));
    }
    std::vector<Stats> stats(rows);
    launch(rows, 32, 0, 1, [&] { head_stats(stats.data(), z, targets.data(), v, stride, 1); });
    launch(rows, 32, 0, 1, [&] { head_gradient(d, stats.data(), z, targets.data(), coefficients.data(), v, stride, 1); });
    for (int r = 0; r < rows; r++) {
        got.push_back(stats[r].logp);
        got_d.insert(got_d.end(), d + r * stride, d + r * stride + v);
    }
    equal("logp beyond 2^31 elements", got, want, 1e-6);
    rounded("gradient beyond 2^31 elements", got_d, want_d);
    munmap(z, rows * stride * 4), munmap(d, rows * stride * 2);
}

// What is no number shows in every statistic.
static void not_numbers() {
    for (float bad : {float(NAN), float(INFINITY)}) {
        for (int at : {0, 500, 999}) {
            Random random(at);
            auto z = random.floats(1000);
            z[at] = bad;
            unsigned target = 3;
            Stats s;
            launch(1, 64, 0, 1, [&] { head_stats(&s, z.data(), &target, 1000, 1000, 1); });
            auto twin = processor::row_stats(z.data(), 1000, target, 1);
            holds("a logit that is not finite is seen", s.logp != s.logp && twin.logp != twin.logp && s.entropy != s.entropy);
        }
    }
    std::vector<float> z(100, -INFINITY);
    unsigned target = 3;
    Stats s;
    launch(1, 64, 0, 1, [&] { head_stats(&s, z.data(), &target, 100, 104, 1); });
    holds("a row without possible tokens is no distribution", s.logp != s.logp);
}

int main() {
    for (Kind kind : {Normal, Wide, Equal, Forbidden, Rising}) {
        rows_of(3, 1, 32, 1, kind);
        rows_of(3, 13, 32, 0.7f, kind);
        rows_of(3, 1000, 64, 1, kind);
        rows_of(2, 4099, 128, 2, kind);
    }
    rows_of(2, 20001, 512, 1, Normal);
    rows_of(1, 151936, 512, 0.6f, Normal);
    rows_of(1, 262144, 1024, 1, Wide);
    far();
    not_numbers();
    return failures;
}

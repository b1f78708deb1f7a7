// Helps the tests of kernels: numbers to put in, float64 to hold the results against.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "../common.cuh"

namespace check {

inline int failures = 0;

// Largest error of `got` against `want`, in units of the largest `want`; what is not finite is an infinite error.
template <class T>
double error(const std::vector<T> &got, const std::vector<double> &want) {
    double worst = 0, scale = 1e-30;
    for (double w : want) scale = std::max(scale, fabs(w));
    for (size_t i = 0; i < want.size(); i++) {
        double g;
        if constexpr (sizeof(T) == 2)
            g = to_float(got[i]);
        else
            g = double(got[i]);
        double e = fabs(g - want[i]) / scale;
        worst = e <= worst ? worst : (e == e ? e : INFINITY);
    }
    return got.size() == want.size() ? worst : INFINITY;
}

// One line a check; the process's exit status counts those that fail.
template <class T>
void equal(const std::string &what, const std::vector<T> &got, const std::vector<double> &want, double most) {
    double e = error(got, want);
    bool fine = e <= most;
    printf("%s %-60s %.1e (at most %.0e)\n", fine ? "ok  " : "FAIL", what.c_str(), e, most);
    failures += !fine;
}

// Each number is `want` rounded to bf16, but for float32's errors in a sum as large as the largest.
inline void rounded(const std::string &what, const std::vector<bf16> &got, const std::vector<double> &want) {
    double worst = 0, scale = 0;
    for (double w : want) scale = std::max(scale, fabs(w));
    for (size_t i = 0; i < want.size(); i++) {
        double e = fabs(to_float(got[i]) - want[i]) / (fabs(want[i]) / 256 + scale * 1e-5);
        worst = e <= worst ? worst : (e == e ? e : INFINITY);
    }
    bool fine = worst <= 1 && got.size() == want.size();
    printf("%s %-60s %.3f of a rounding\n", fine ? "ok  " : "FAIL", what.c_str(), worst);
    failures += !fine;
}

inline void holds(const std::string &what, bool fine) {
    printf("%s %s\n", fine ? "ok  " : "FAIL", what.c_str());
    failures += !fine;
}

struct Random {
    std::mt19937_64 state;
    explicit Random(uint64_t seed) : state(seed) {}
    double normal() { return std::normal_distribution<double>()(state); }
    unsigned below(unsigned n) { return unsigned(state() % n); }
    std::vector<float> floats(size_t n, double scale = 1) {
        std::vector<float> x(n);
        for (float &v : x) v = float(normal() * scale);
        return x;
    }
    std::vector<bf16> halves(size_t n, double scale = 1) {
        std::vector<bf16> x(n);
        for (bf16 &v : x) v = to_bf16(float(normal() * scale));
        return x;
    }
};

// What a kernel must overwrite.
template <class T>
std::vector<T> poisoned(size_t n) {
    std::vector<T> x(n);
    memset(static_cast<void *>(x.data()), 0xff, n * sizeof(T));
    return x;
}

}  // namespace check

// Tests of rows.cu on the processor.
#include "check.hpp"
#include "../rows.cu"

using namespace check;

static void norm(int rows, int width, int threads, bool with_delta) {
    Random random(rows * 1000 + width);
    auto x = random.halves(rows * width), delta = random.halves(rows * width);
    auto w = random.floats(width);
    auto y = poisoned<bf16>(rows * width), sum = poisoned<bf16>(rows * width);
    auto root = poisoned<float>(rows);
    launch(rows, threads, 0, 1, [&] {
        rms_norm(y.data(), root.data(), sum.data(), x.data(), with_delta ? delta.data() : nullptr, w.data(), width, 1e-6f);
    });
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
        for (int i = 0; i < width; i++) want_y.push_back(v[i] * want_root.back() * w[i]), want_sum.push_back(v[i]);
    }
    std::string of = std::to_string(rows) + " x " + std::to_string(width) + (with_delta ? ", added" : "");
    equal("rms_norm " + of, y, want_y, 4e-3);
    equal("rms_norm, root " + of, root, want_root, 1e-6);
    if (with_delta) equal("rms_norm, sum " + of, sum, want_sum, 0);
}

int main() {
    for (bool delta : {false, true}) {
        norm(3, 64, 32, delta);
        norm(2, 1024, 128, delta);
        norm(2, 1032, 256, delta);
    }
    return failures;
}

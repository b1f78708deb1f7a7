// How a token is drawn on the device: one launch a step, a block a sequence, nothing that waits for the host.
//
// 1. The full distribution: one pass for the largest logit and the sum.
// 2. Top-k, top-p and min-p, in this order, become a rule of what stays: a smallest logit, a place in the order of cutting, a
//    smallest weight. The first two are found by narrowing an interval of logits, to a sixth a pass, until what is in it fits in
//    shared memory, where it is sorted.
// 3. A pass adds up the weights of what stays by parts of the vocabulary. The uniform number says which part has the token, and
//    the part is divided in turn.
//
// The meaning is that of `infer/sampling.rs`, and weights exp(z / T - top / T) have its bits. They are added up in units of 2^-45
// of the largest weight as integers, so sums do not depend on any order, no tie on a sort, and cuts are those of the processor
// unless its own rounding of sums in float64 decides. The token is the first id whose cumulative sum passes the uniform number,
// which is the processor's own: the words of Philox that its `Rng` would have given. The processor compares it to sums of
// float32 probabilities, so another token can come out where the uniform number is within those sums' errors of a boundary: the
// rounding of lse, of the logit minus lse and of exp, in all about 2^-24 (2 |lse| + 4), and of a float32 sum over the
// vocabulary, at worst 2^-28 v and in practice some 2^-24.
#include "philox.cuh"
#include "softmax.cuh"

// What a sequence draws with.
struct Draw {
    // The stream of `Rng::new(seed, stream)`; `Rng::at` says which it is.
    uint64_t seed, stream;
    // Tokens drawn so far; each takes one uniform number.
    uint64_t position;
    double top_p, min_p;
    // 0: the likeliest.
    float temperature;
    // 0: all.
    unsigned top_k;
    // Only the ids open[first_open .. first_open + open_count), in ascending order; all where the count is 0.
    unsigned first_open, open_count;
    // 0: no sequence is here.
    unsigned active, unused;
};
static_assert(sizeof(Draw) == 64, "the host has the same layout");

// A drawn token, with its log-probability under the distribution it was drawn from, and under softmax(logits).
struct alignas(16) Drawn {
    unsigned id;
    float logp, full;
    // The low half of the position it was drawn at.
    unsigned position;
};

static_assert(sizeof(Drawn) == 16, "the host has the same layout");

// Logits that may be drawn, by ascending id.
struct Source {
    const float *z;
    const unsigned *ids;
    int n;

    __device__ unsigned id(int i) const { return ids ? ids[i] : unsigned(i); }
    __device__ float at(int i) const { return z[id(i)]; }
};

// Logits that fit in shared memory while a cut is searched.
constexpr int KEPT = 8192;
// Parts of the interval that a pass of the search tells apart.
constexpr int CUTS = 6;
// A weight of 1.
constexpr float UNIT = 35184372088832.0f;  // 2^45

// --- numbers ------------------------------------------------------------------------------------------------------------

// Integers in the order of float32's `total_cmp`.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(unsigned key) {
    unsigned bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// e^x for x not above 0: the bits of `exp` in nn/cpu/simd.rs.
__device__ __forceinline__ float exponential(float x) {
    float clamped = x < -87.3f ? -87.3f : x;
    float rounded = fmaf(clamped, LOG2_E, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    float n = rounded - 12582912.0f;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, clamped));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float y = fmaf(p, multiply(r, r), r) + 1.0f;
    unsigned bits;
    memcpy(&bits, &rounded, 4);
    bits = (bits << 23) + (127u << 23);
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.3f ? 0.0f : multiply(y, power);
}

// Probability up to a factor: the likeliest has 1. What is no number has none.
struct Weight {
    float scale, top;  // 1 / temperature, and the largest logit times it

    __device__ float of(float z) const {
        float d = multiply(z, scale) - top;
        return d <= 0.0f ? exponential(d) : 0.0f;
    }
};
__device__ __forceinline__ uint64_t units(float weight) { return uint64_t(weight * UNIT); }

// --- places of cumulative sums ------------------------------------------------------------------------------------------

// Length of the parts of `n` elements, one for each warp.
__device__ __forceinline__ int part_of(int n) {
    int warps = blockDim.x / WARP;
    return (n + warps * WARP - 1) / (warps * WARP) * WARP;
}

// sums[warp] = the sum of measure(i) over the warp's part of begin .. end; returns that of all. `sums` has 32 numbers of shared
// memory.
template <class F>
__device__ __forceinline__ uint64_t part_sums(int begin, int end, F measure, uint64_t *sums) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int part = part_of(end - begin);
    int first = begin + warp * part, last = min(first + part, end);
    uint64_t sum = 0;
#pragma unroll 4
    for (int i = first + lane; i < last; i += WARP) sum += measure(i);
    sum = warp_sum(sum);
    sync_block();
    if (lane == 0) sums[warp] = sum;
    sync_block();
    return warp_sum(lane < warps ? sums[lane] : uint64_t(0));
}

// Of 32 numbers, one a lane: how many of the first ones together do not pass `target`, which becomes what is left of it.
__device__ __forceinline__ int passed(uint64_t x, uint64_t &target) {
    int lane = threadIdx.x % WARP;
    uint64_t sum = x;
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        uint64_t before = shuffle_up(sum, lanes);
        if (lane >= lanes) sum += before;
    }
    int which = warp_sum(sum <= target ? 1 : 0);
    target -= warp_sum(lane < which ? x : uint64_t(0));
    return which;
}

// The first i of 0 .. n at which the sum of measure(0) .. measure(i) is above `target`, which is below the sum of all. `sums` is
// as `part_sums` of 0 .. n left it. Every thread gets it.
template <class F>
__device__ __forceinline__ int locate(int n, F measure, uint64_t target, uint64_t *sums) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    int begin = 0, end = n;
    for (;;) {
        int part = part_of(end - begin);
        // (never beyond the end: a target that is too large must not keep the device busy for ever)
        begin = min(begin + part * passed(lane < warps ? sums[lane] : 0, target), end - 1);
        end = min(begin + part, end);
        if (part == WARP) break;
        part_sums(begin, end, measure, sums);
    }
    return min(begin + passed(begin + lane < end ? measure(begin + lane) : 0, target), end - 1);
}

// --- cuts ---------------------------------------------------------------------------------------------------------------

// Shared memory of a search.
struct Room {
    unsigned keys[KEPT];
    unsigned filled;
    uint64_t sums[CUTS * WARP];
    int counts[CUTS * WARP];
    float scratch[WARP];
};

// x[j] = the sum of all threads' x[j]; `scratch` has 32 numbers of shared memory for each j.
template <class T>
__device__ __forceinline__ void block_sums(T (&x)[CUTS], T *scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    sync_block();
#pragma unroll
    for (int j = 0; j < CUTS; j++) {
        x[j] = warp_sum(x[j]);
        if (lane == 0) scratch[j * WARP + warp] = x[j];
    }
    sync_block();
    for (int j = warp; j < CUTS; j += warps) {
        T sum = warp_sum(lane < warps ? scratch[j * WARP + lane] : T(0));
        if (lane == 0) scratch[j * WARP] = sum;
    }
    sync_block();
#pragma unroll
    for (int j = 0; j < CUTS; j++) x[j] = scratch[j * WARP];
}

// Sorts keys[0 .. n), the largest first; what is beyond, to the next power of two, is overwritten. Batcher, 1968.
__device__ __forceinline__ void sort(unsigned *keys, int n) {
    int size = 1;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;
    for (int run = 2; run <= size; run *= 2) {
        for (int gap = run / 2; gap > 0; gap /= 2) {
            sync_block();
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                int a = 2 * i - (i & (gap - 1)), b = a + gap;
                unsigned x = keys[a], y = keys[b];
                if ((x < y) == ((a & run) == 0)) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
        }
    }
    sync_block();
}

// The measure of what is at or above `high` is `above`, below the goal, and that of what is at or above `low` reaches it.
struct Interval {
    unsigned low, high;
    uint64_t above;
};

// Narrows the interval to the part between two of CUTS keys in which `wanted` is reached, and returns how many logits are in it.
// The keys are at multiples of `step` below the largest logit where `guess`, evenly placed otherwise. A guess is the first pass,
// and goal(sum of all) says what is wanted.
template <class F, class G>
__device__ __forceinline__ int narrow(Interval &in, const Source &source, float top, float step, bool guess, F measure, G goal,
                                      uint64_t &wanted, Room &room) {
    // 1. where to look, from above; the last is `low`
    unsigned at[CUTS];
    unsigned width = max(1u, (in.high - in.low) / CUTS);
#pragma unroll
    for (int j = 0; j < CUTS; j++) {
        constexpr float BELOW[CUTS] = {1, 2.5f, 5, 8, 13, 0};
        unsigned even = in.high - in.low > width * (j + 1) ? in.high - width * (j + 1) : in.low;
        unsigned below = min(max(key_of(top - BELOW[j] * step), in.low), in.high);
        at[j] = j == CUTS - 1 ? in.low : guess ? below : even;
    }
    // 2. sums and counts from there up
    uint64_t sums[CUTS] = {};
    unsigned pairs[CUTS / 2] = {};  // two counts in a register: a thread sees fewer than 2^16
#pragma unroll 1
    for (int i = threadIdx.x; i < source.n; i += blockDim.x) {
        float z = source.at(i);
        unsigned k = key_of(z);
        if (k < in.low || k >= in.high) continue;
        uint64_t x = measure(z);
        // the keys descend, and the last is `low`
        sums[CUTS - 1] += x;
        pairs[(CUTS - 1) / 2] += 1u << 16 * ((CUTS - 1) % 2);
        if (k < at[CUTS - 2]) continue;
#pragma unroll
        for (int j = 0; j < CUTS - 1; j++) {
            if (k >= at[j]) {
                sums[j] += x;
                pairs[j / 2] += 1u << 16 * (j % 2);
            }
        }
    }
    int counts[CUTS];
#pragma unroll
    for (int j = 0; j < CUTS; j++) counts[j] = int(pairs[j / 2] >> 16 * (j % 2) & 0xffff);
    block_sums(sums, room.sums);
    block_sums(counts, room.counts);
    if (guess) wanted = goal(sums[CUTS - 1]);
    // 3. the part in which the goal is reached
    Interval next = in;
    int left = 0;
#pragma unroll
    for (int j = CUTS - 1; j >= 0; j--) {
        if (j == CUTS - 1 || in.above + sums[j] >= wanted) {
            next = {at[j], j > 0 ? at[max(j - 1, 0)] : in.high, in.above + (j > 0 ? sums[max(j - 1, 0)] : 0)};
            left = counts[j] - (j > 0 ? counts[max(j - 1, 0)] : 0);
        }
    }
    in = next;
    return left;
}

// The largest key such that what is at or above it has a measure that reaches the goal: `low` of the result, whose `above` is the
// measure of what is strictly above. measure(z) is that of one logit, goal(sum of all) what is to be reached; `step` a guess of
// how far logits are apart.
template <class F, class G>
__device__ __forceinline__ Interval search(const Source &source, float top, float step, F measure, G goal, Room &room) {
    Interval in = {0, key_of(top) + 1, 0};
    uint64_t wanted = 0;
    // 1. narrow, until what is left fits or ties
    bool begun = false;
    int left = source.n;
    while (left > KEPT && in.high - in.low > 1) {
        left = narrow(in, source, top, step, !begun, measure, goal, wanted, room);
        begun = true;
    }
    if (in.high - in.low <= 1) return in;
    // 2. take it into shared memory, in any order
    sync_block();
    if (threadIdx.x == 0) room.filled = 0;
    sync_block();
    for (int first = 0; first < source.n; first += blockDim.x) {
        int i = first + threadIdx.x, lane = threadIdx.x % WARP;
        unsigned k = i < source.n ? key_of(source.at(i)) : 0;
        bool here = i < source.n && k >= in.low && k < in.high;
        unsigned lanes = vote(here);
        if (lanes == 0) continue;
        unsigned place = lane == 0 ? claim(&room.filled, count_bits(lanes)) : 0;
        place = unsigned(shuffle(int(place), 0)) + count_bits(lanes & ((1u << lane) - 1));
        if (here) room.keys[place] = k;
    }
    sync_block();
    left = room.filled;
    // 3. sort it, and look for the goal in its order
    sort(room.keys, left);
    auto sorted = [&](int i) { return measure(of_key(room.keys[i])); };
    uint64_t sum = part_sums(0, left, sorted, room.sums);
    if (!begun) wanted = goal(sum);
    // where nothing reaches it, there are no numbers
    if (in.above + sum < wanted) return {0, 1, 0};
    unsigned key = room.keys[locate(left, sorted, wanted - in.above - 1, room.sums)];
    uint64_t more = 0;
    for (int i = threadIdx.x; i < left; i += blockDim.x) more += room.keys[i] > key ? sorted(i) : 0;
    return {key, key + 1, in.above + block_sum(more, room.sums)};
}

// What stays: z at least `least`, in the order of cutting (larger first, then the lower id) not behind the one with `key` at
// `last`, with a weight of at least `share`.
struct Rule {
    float least;
    unsigned key;
    int last;
    float share;
};

// --- drawing ------------------------------------------------------------------------------------------------------------

// Draws from logits (sequences, v) float32, whose rows are `stride` apart, a multiple of 4, at an address that is a multiple of
// 16. The token goes to tokens[sequence], the input of the next step, and with its log-probabilities to ring[position %
// length][sequence] of `ring` (length, sequences); the position goes on by one. Sequences that are not active are left alone.
// Logits that are no numbers make `full` no number. Grid sequences, block 1,024 (or any two to 32 warps).
extern "C" __global__ void __launch_bounds__(1024)
    sample(unsigned *tokens, Drawn *ring, unsigned length, Draw *draws, const unsigned *open, const float *logits, int v,
           long stride) {
    __shared__ Room room;
    Draw &draw = draws[blockIdx.x];
    if (!draw.active) return;
    const float *z = logits + blockIdx.x * stride;
    bool greedy = draw.temperature == 0.0f, held = draw.open_count > 0;
    float temperature = greedy ? 1.0f : draw.temperature, scale = 1.0f / temperature;
    // 1. the full distribution, and what may be drawn of it
    Softmax full = softmax<false>(z, v, LOG2_E, room.scratch);
    Source source = {z, held ? open + draw.first_open : nullptr, held ? int(draw.open_count) : v};
    float top = full.max;
    if (held) {
        top = -INFINITY;
        for (int i = threadIdx.x; i < source.n; i += blockDim.x) top = fmaxf(top, source.at(i));
        top = block_max(top, room.scratch);
    }
    top += 0.0f;  // of zeros of both signs, every thread takes the same
    Weight weight = {scale, multiply(top, scale)};
    // 2. the cuts
    Rule rule = {-INFINITY, 0, 0x7fffffff, 0};
    bool by_k = !greedy && draw.top_k > 0 && draw.top_k < unsigned(source.n), by_p = !greedy && draw.top_p < 1.0;
    if (by_k) {
        unsigned k = draw.top_k;
        auto one = [](float) { return uint64_t(1); };
        rule.least = of_key(search(source, top, 1, one, [=](uint64_t) { return uint64_t(k); }, room).low);
    }
    if (by_p) {
        float least = rule.least;
        double top_p = draw.top_p;
        auto measure = [=](float z) { return z >= least ? units(weight.of(z)) : 0; };
        // a sum reaches top_p of all when it is not below
        auto goal = [=](uint64_t all) { return max(uint64_t(1), uint64_t(ceil(top_p * double(all)))); };
        uint64_t wanted = 0;
        Interval in = search(source, top, temperature, measure, [&](uint64_t all) { return wanted = goal(all); }, room);
        rule.key = in.low;
        // of those that tie, the lower ids, as many as it takes
        uint64_t each = measure(of_key(in.low));
        auto tie = [=](int i) { return uint64_t(key_of(source.at(i)) == in.low); };
        uint64_t ties = part_sums(0, source.n, tie, room.sums);
        uint64_t wants = each > 0 ? (wanted - in.above + each - 1) / each : ties;
        if (wants < ties) rule.last = locate(source.n, tie, wants - 1, room.sums);
    }
    if (!greedy && draw.min_p > 0.0) {
        // the smallest float32 that is not below min_p
        rule.share = float(draw.min_p);
        if (double(rule.share) < draw.min_p) {
            unsigned bits;
            memcpy(&bits, &rule.share, 4);
            bits++;
            memcpy(&rule.share, &bits, 4);
        }
    }
    bool cut = by_k || by_p || rule.share > 0;
    // 3. the token
    uint64_t all = 0;
    int index = 0;
    if (greedy) {
        auto likeliest = [=](int i) { return uint64_t(source.at(i) == top); };
        if (part_sums(0, source.n, likeliest, room.sums) > 0) index = locate(source.n, likeliest, 0, room.sums);
    }
    if (!greedy || held) {
        auto measure = [=](int i) {
            float z = source.at(i);
            unsigned key = key_of(z);
            if (!(z >= rule.least && (key > rule.key || (key == rule.key && i <= rule.last)))) return uint64_t(0);
            float w = weight.of(z);
            return w >= rule.share ? units(w) : uint64_t(0);
        };
        all = part_sums(0, source.n, measure, room.sums);
        if (!greedy && all > 0) {
            unsigned __int128 share = uniform(draw.seed, draw.stream, draw.position);
            index = locate(source.n, measure, uint64_t(share * all >> 64), room.sums);
        }
    }
    if (threadIdx.x > 0) return;
    unsigned id = source.id(index);
    float whole = z[id] - full.max - logf(full.sum);
    bool same = !held && !cut && scale == 1.0f;
    float logp = same ? whole : multiply(z[id], scale) - weight.top - logf(float(all) / UNIT);
    tokens[blockIdx.x] = id;
    ring[draw.position % length * gridDim.x + blockIdx.x] = {id, logp, whole, unsigned(draw.position)};
    draw.position++;
}

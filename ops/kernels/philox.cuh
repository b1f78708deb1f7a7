// Philox 4x32-10, the generator of `ops/src/rng.rs`: the block of four words at `counter` of the stream `stream` of `seed`,
// without any state. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
#pragma once

#include "common.cuh"

__device__ __forceinline__ void philox(unsigned (&words)[4], uint64_t seed, uint64_t stream, uint64_t counter) {
    unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
    unsigned c0 = unsigned(counter), c1 = unsigned(counter >> 32), c2 = unsigned(stream), c3 = unsigned(stream >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
        c0 = unsigned(p1 >> 32) ^ c1 ^ k0;
        c1 = unsigned(p1);
        c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

// A uniform number in units of 2^-64, of two words; its 53 bits are those of `Rng::uniform`.
__device__ __forceinline__ uint64_t uniform(unsigned low, unsigned high) { return (low | uint64_t(high) << 32) & ~uint64_t(0x7ff); }

// The uniform number of a position.
__device__ __forceinline__ uint64_t uniform(uint64_t seed, uint64_t stream, uint64_t position) {
    unsigned words[4];
    philox(words, seed, stream, position / 2);
    return position % 2 ? uniform(words[2], words[3]) : uniform(words[0], words[1]);
}

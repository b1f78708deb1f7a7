// Rows of trees as `nn::packing` lays them out, and the lists of tiles that attention's kernels go through.
#pragma once

#include "check.hpp"

namespace trees {

// Segments in depth-first order; a parent is an earlier segment, or -1 for a new tree.
struct Packing {
    std::vector<unsigned> position, vis_end;

    Packing(std::initializer_list<std::pair<int, int>> segments) {
        std::vector<int> begin, end, parent, at;
        int rows = 0;
        for (auto [length, above] : segments) {
            at.push_back(above < 0 ? 0 : at[above] + end[above] - begin[above]);
            begin.push_back(rows);
            end.push_back(rows += length);
            parent.push_back(above);
            for (int i = 0; i < length; i++) position.push_back(at.back() + i);
        }
        std::vector<int> last = end;
        for (int s = int(end.size()) - 1; s >= 0; s--)
            if (parent[s] >= 0) last[parent[s]] = std::max(last[parent[s]], last[s]);
        for (size_t s = 0; s < end.size(); s++) vis_end.insert(vis_end.end(), end[s] - begin[s], last[s]);
    }
    int rows() const { return int(position.size()); }
    bool sees(unsigned at, unsigned key, int window) const {
        return key <= at && at < vis_end[key] && (window == 0 || position[at] - position[key] < unsigned(window));
    }
};

// For each tile the entries first[i]..first[i + 1].
struct Lists {
    std::vector<int> first{0}, tiles;
    void end_tile() { first.push_back(int(tiles.size())); }
};

// What the head of attention.cu asks for: by query tile, and by key tile.
inline std::pair<Lists, Lists> lists(const Packing &packing, const std::vector<unsigned> &at, int window, int queries, int keys) {
    struct Extent {
        long least = 1l << 40, most = -1;
        void add(long x) { least = std::min(least, x), most = std::max(most, x); }
    };
    struct Tile {
        Extent row, position, end;
        bool full = false;
    };
    int n_k = packing.rows(), n_q = int(at.size());
    std::vector<Tile> of_queries((n_q + queries - 1) / queries), of_keys((n_k + keys - 1) / keys);
    for (int q = 0; q < n_q; q++) {
        of_queries[q / queries].row.add(at[q]);
        of_queries[q / queries].position.add(packing.position[at[q]]);
    }
    for (int k = 0; k < n_k; k++) {
        Tile &tile = of_keys[k / keys];
        tile.row.add(k);
        tile.position.add(packing.position[k]);
        tile.end.add(packing.vis_end[k]);
        tile.full = k % keys == keys - 1;
    }
    Lists by_query, by_key;
    auto entry = [&](const Tile &q, const Tile &k) -> int {
        if (k.row.least > q.row.most || k.end.most <= q.row.least) return -1;
        if (window > 0 && q.position.least >= k.position.most + window) return -1;
        bool all = k.full && k.row.most <= q.row.least && k.end.least > q.row.most;
        return all && (window == 0 || q.position.most < k.position.least + window) ? 0 : 1;
    };
    for (auto &q : of_queries) {
        for (size_t k = 0; k < of_keys.size(); k++)
            if (int mask = entry(q, of_keys[k]); mask >= 0) by_query.tiles.push_back(int(k) * 2 + mask);
        by_query.end_tile();
    }
    for (auto &k : of_keys) {
        for (size_t q = 0; q < of_queries.size(); q++)
            if (int mask = entry(of_queries[q], k); mask >= 0) by_key.tiles.push_back(int(q) * 2 + mask);
        by_key.end_tile();
    }
    return {by_query, by_key};
}

}  // namespace trees

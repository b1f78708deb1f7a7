//! Which tiles of an attention's scores are seen at all, and which wholly: what its kernels go through.
//!
//! Invariant: a pair of rows that is seen is in a listed tile, and every pair of a tile without a mask is seen. The rules are
//! those of `kernels/attention.cu`.

use crate::nn::Packing;

/// Rows of a tile.
pub const QUERIES: usize = 128;
pub const KEYS: usize = 64;

/// Entries `first[i]..first[i + 1]` of `tiles` are those of tile i, ascending: `2 tile + mask`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lists {
    pub first: Vec<u32>,
    pub tiles: Vec<u32>,
}

/// By tile of queries the tiles of keys, and the transpose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tiles {
    pub by_query: Lists,
    pub by_key: Lists,
}

/// Smallest and largest of what was added.
#[derive(Clone, Copy)]
struct Extent {
    least: u64,
    most: u64,
}

impl Extent {
    fn of(values: impl Iterator<Item = u32>) -> Extent {
        values
            .map(u64::from)
            .fold(Extent { least: u64::MAX, most: 0 }, |e, x| Extent { least: e.least.min(x), most: e.most.max(x) })
    }
}

/// Rows of keys: positions, and where their visibility ends.
#[derive(Clone, Debug)]
pub struct Keys {
    pub positions: Vec<u32>,
    pub vis_end: Vec<u32>,
}

impl Keys {
    pub fn of(packing: &Packing) -> Keys {
        Keys { positions: packing.positions().to_vec(), vis_end: packing.vis_end() }
    }

    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

impl Tiles {
    /// Of queries that stand at the rows `at` of the keys, each row where `None`.
    pub fn new(keys: &Keys, at: Option<&[u32]>, window: Option<usize>) -> Tiles {
        let n_q = at.map_or(keys.len(), <[u32]>::len);
        let stands = |q: usize| at.map_or(q as u32, |at| at[q]);
        let window = window.map(|w| w as u64);
        let parts = |n: usize, size: usize| (0..n).step_by(size).map(move |start| start..(start + size).min(n));
        // (rows, positions) of each tile of queries
        let queries: Vec<(Extent, Extent)> = parts(n_q, QUERIES)
            .map(|rows| {
                let positions = Extent::of(rows.clone().map(|q| keys.positions[stands(q) as usize]));
                (Extent::of(rows.map(stands)), positions)
            })
            .collect();
        // rows, positions and ends of each tile of keys
        let columns: Vec<(std::ops::Range<usize>, Extent, Extent)> = parts(keys.len(), KEYS)
            .map(|rows| {
                let positions = Extent::of(keys.positions[rows.clone()].iter().copied());
                let ends = Extent::of(keys.vis_end[rows.clone()].iter().copied());
                (rows, positions, ends)
            })
            .collect();
        let entry = |(at, from): &(Extent, Extent), (rows, to, ends): &(std::ops::Range<usize>, Extent, Extent)| {
            let (first, last) = (rows.start as u64, rows.end as u64 - 1);
            let seen = first <= at.most && ends.most > at.least && window.is_none_or(|w| from.least < to.most + w);
            let all = rows.len() == KEYS
                && last <= at.least
                && ends.least > at.most
                && window.is_none_or(|w| from.most < to.least + w);
            seen.then_some(u32::from(!all))
        };
        let mut tiles = Tiles::default();
        tiles.by_query.first.push(0);
        tiles.by_key.first.push(0);
        for query in &queries {
            let listed = columns.iter().enumerate().filter_map(|(k, key)| Some(2 * k as u32 + entry(query, key)?));
            tiles.by_query.tiles.extend(listed);
            tiles.by_query.first.push(tiles.by_query.tiles.len() as u32);
        }
        for key in &columns {
            let listed = queries.iter().enumerate().filter_map(|(q, query)| Some(2 * q as u32 + entry(query, key)?));
            tiles.by_key.tiles.extend(listed);
            tiles.by_key.first.push(tiles.by_key.tiles.len() as u32);
        }
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packing(lengths: &[(usize, usize)]) -> Packing {
        let mut packing = Packing::new();
        let mut last: Vec<usize> = Vec::new();
        for (i, (length, depth)) in lengths.iter().enumerate() {
            let depth = (*depth).min(last.len());
            let id = if i == 0 || depth == 0 { packing.root(*length) } else { packing.child(last[depth - 1], *length) };
            last.truncate(if i == 0 { 0 } else { depth });
            last.push(id);
        }
        packing
    }

    proptest! {
        #[test]
        fn every_pair_that_is_seen_is_listed_and_no_mask_is_left_out(
            lengths in prop::collection::vec((1usize..90, 0usize..4), 1..9),
            window in prop::option::of(1usize..150),
            some in any::<bool>(),
        ) {
            let keys = Keys::of(&packing(&lengths));
            let at: Vec<u32> = (0..keys.len() as u32).filter(|q| !some || q % 3 == 1).collect();
            prop_assume!(!at.is_empty());
            let tiles = Tiles::new(&keys, some.then_some(&at), window);
            let sees = |q: usize, k: usize| {
                let q = at[q];
                let near = window.is_none_or(|w| {
                    i64::from(keys.positions[q as usize]) - i64::from(keys.positions[k]) < w as i64
                });
                k as u32 <= q && q < keys.vis_end[k] && near
            };
            let mut by_key: Vec<Vec<u32>> = vec![Vec::new(); keys.len().div_ceil(KEYS)];
            for (t, queries) in (0..at.len()).collect::<Vec<_>>().chunks(QUERIES).enumerate() {
                let list = &tiles.by_query;
                let listed = &list.tiles[list.first[t] as usize..list.first[t + 1] as usize];
                prop_assert!(listed.windows(2).all(|w| w[0] / 2 < w[1] / 2));
                for (k, of_key) in by_key.iter_mut().enumerate() {
                    let columns = k * KEYS..((k + 1) * KEYS).min(keys.len());
                    let pairs = queries.iter().flat_map(|q| columns.clone().map(|k| sees(*q, k)));
                    let (mut any, mut all) = (false, columns.len() == KEYS);
                    pairs.for_each(|seen| (any, all) = (any | seen, all & seen));
                    match listed.iter().find(|e| **e / 2 == k as u32) {
                        None => prop_assert!(!any, "tile {t}, {k} is not listed"),
                        Some(entry) => {
                            prop_assert!(entry % 2 == 1 || all, "tile {t}, {k} has no mask");
                            of_key.push(2 * t as u32 + entry % 2);
                        }
                    }
                }
            }
            for (k, want) in by_key.iter().enumerate() {
                let list = &tiles.by_key;
                prop_assert_eq!(&list.tiles[list.first[k] as usize..list.first[k + 1] as usize], want.as_slice());
            }
        }
    }
}

//! A layered drawing of a graph (after Sugiyama, Tagawa and Toda 1981), as coordinates.
//!
//! 1. Layers by longest path, sources pulled down to what reads them.
//! 2. Edges over several layers get a waypoint in each; edges of one source share theirs: one trunk with branches.
//! 3. Orders by barycentre sweeps, the one with the fewest crossings kept.
//! 4. Places by least squares around the neighbours under the order (pool adjacent violators).
//!
//! Invariants: deterministic; edges go down; boxes of a layer do not touch.

use std::collections::{BTreeMap, BTreeSet};

/// Between boxes of one layer.
const GAP: f64 = 22.0;
/// Sweeps of phase 3 and of phase 4; graphs of recipes settle after a few.
const ORDERS: usize = 16;
const SETTLES: usize = 80;

/// A box, or (`node` is `None`) the waypoint of an edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub node: Option<usize>,
    pub layer: usize,
    /// Of the middle.
    pub x: f64,
    pub width: f64,
}

/// Where everything lies; x grows from 0 to `width`.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// Nodes first, by number.
    pub places: Vec<Place>,
    /// Places an edge passes, from its source to its target; one for each edge given.
    pub routes: Vec<Vec<usize>>,
    pub layers: usize,
    pub width: f64,
}

/// Lays out nodes of these widths; `edges` go from producer to consumer, and nodes stand in topological order.
pub fn lay_out(widths: &[f64], edges: &[(usize, usize)]) -> Drawing {
    let layer = layers(widths.len(), edges);
    let mut places: Vec<Place> = widths
        .iter()
        .enumerate()
        .map(|(node, &width)| Place { node: Some(node), layer: layer[node], x: 0.0, width })
        .collect();
    let mut routes = Vec::new();
    let mut trunks: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for &(from, to) in edges {
        let mut route = vec![from];
        for layer in places[from].layer + 1..places[to].layer {
            let waypoint = *trunks.entry((from, layer)).or_insert(places.len());
            if waypoint == places.len() {
                places.push(Place { node: None, layer, x: 0.0, width: 6.0 });
            }
            route.push(waypoint);
        }
        route.push(to);
        routes.push(route);
    }
    let links: BTreeSet<(usize, usize)> = routes.iter().flat_map(|r| r.windows(2).map(|w| (w[0], w[1]))).collect();
    let links: Vec<(usize, usize)> = links.into_iter().collect();
    let count = places.iter().map(|p| p.layer + 1).max().unwrap_or(0);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (at, place) in places.iter().enumerate() {
        rows[place.layer].push(at);
    }
    order(&mut rows, &links, places.len());
    settle(&mut places, &rows, &links);
    let left = places.iter().map(|p| p.x - p.width / 2.0).fold(f64::INFINITY, f64::min);
    places.iter_mut().for_each(|p| p.x -= left);
    let width = places.iter().map(|p| p.x + p.width / 2.0).fold(0.0, f64::max);
    Drawing { places, routes, layers: count, width }
}

fn layers(n: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut layer = vec![0; n];
    // Nodes are in topological order, so one pass over the targets is enough.
    for to in 0..n {
        let above = edges.iter().filter(|e| e.1 == to).map(|e| layer[e.0] + 1).max();
        layer[to] = above.unwrap_or(0);
    }
    for from in 0..n {
        if edges.iter().all(|e| e.1 != from)
            && let Some(below) = edges.iter().filter(|e| e.0 == from).map(|e| layer[e.1]).min()
        {
            layer[from] = below - 1;
        }
    }
    layer
}

/// Mean of the positions of what each place is linked with on one side.
fn neighbours(links: &[(usize, usize)], n: usize, above: bool) -> Vec<Vec<usize>> {
    let mut of = vec![Vec::new(); n];
    for &(from, to) in links {
        if above {
            of[to].push(from);
        } else {
            of[from].push(to);
        }
    }
    of
}

fn order(rows: &mut [Vec<usize>], links: &[(usize, usize)], n: usize) {
    let (above, below) = (neighbours(links, n, true), neighbours(links, n, false));
    let mut best = rows.to_vec();
    let mut fewest = crossings(rows, links, n);
    for sweep in 0..ORDERS {
        let down = sweep % 2 == 0;
        let of = if down { &above } else { &below };
        let turns: Vec<usize> = if down { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for turn in turns {
            let position = positions(rows, n);
            let key = |place: usize| {
                let of = &of[place];
                let sum: f64 = of.iter().map(|&p| position[p]).sum();
                if of.is_empty() { position[place] } else { sum / of.len() as f64 }
            };
            rows[turn].sort_by(|&a, &b| key(a).total_cmp(&key(b)));
        }
        let now = crossings(rows, links, n);
        if now < fewest {
            (fewest, best) = (now, rows.to_vec());
        }
    }
    rows.clone_from_slice(&best);
}

/// Each place's position in its row, as a share of the row, so that rows of different length compare.
fn positions(rows: &[Vec<usize>], n: usize) -> Vec<f64> {
    let mut position = vec![0.0; n];
    for row in rows {
        for (at, &place) in row.iter().enumerate() {
            position[place] = (at as f64 + 0.5) / row.len() as f64;
        }
    }
    position
}

fn crossings(rows: &[Vec<usize>], links: &[(usize, usize)], n: usize) -> usize {
    let position = positions(rows, n);
    let mut layer = vec![0; n];
    for (at, row) in rows.iter().enumerate() {
        row.iter().for_each(|&place| layer[place] = at);
    }
    let mut found = 0;
    for (i, a) in links.iter().enumerate() {
        for b in &links[i + 1..] {
            let cross = (position[a.0] - position[b.0]) * (position[a.1] - position[b.1]) < 0.0;
            found += usize::from(layer[a.0] == layer[b.0] && cross);
        }
    }
    found
}

fn settle(places: &mut [Place], rows: &[Vec<usize>], links: &[(usize, usize)]) {
    let n = places.len();
    let (above, below) = (neighbours(links, n, true), neighbours(links, n, false));
    for row in rows {
        let wanted = vec![0.0; row.len()];
        put(places, row, &wanted);
    }
    for sweep in 0..SETTLES {
        let turns: Vec<usize> =
            if sweep % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for turn in turns {
            let wanted: Vec<f64> = rows[turn]
                .iter()
                .map(|&place| {
                    let of: Vec<f64> = above[place].iter().chain(&below[place]).map(|&p| places[p].x).collect();
                    if of.is_empty() { places[place].x } else { of.iter().sum::<f64>() / of.len() as f64 }
                })
                .collect();
            put(places, &rows[turn], &wanted);
        }
    }
    // Averaging leaves chains a little askew: where one place leads to one other, it stands right above it.
    for row in rows {
        let wanted: Vec<f64> = row
            .iter()
            .map(|&place| match above[place].as_slice() {
                [only] if below[*only].len() == 1 => places[*only].x,
                _ => places[place].x,
            })
            .collect();
        put(places, row, &wanted);
    }
}

/// Puts a row's places as near to where they want to be as their order and widths allow.
fn put(places: &mut [Place], row: &[usize], wanted: &[f64]) {
    // In coordinates less the room that everything to the left needs, "does not touch" is "does not decrease".
    let mut room = vec![0.0; row.len()];
    for i in 1..row.len() {
        room[i] = room[i - 1] + (places[row[i - 1]].width + places[row[i]].width) / 2.0 + GAP;
    }
    // Blocks of (weight, mean, count); a waypoint weighs more, so that long edges run straight.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for (i, &place) in row.iter().enumerate() {
        let weight = if places[place].node.is_none() { 4.0 } else { 1.0 };
        let mut block = (weight, wanted[i] - room[i], 1);
        while let Some(&last) = blocks.last() {
            if last.1 <= block.1 {
                break;
            }
            let weight = last.0 + block.0;
            block = (weight, (last.0 * last.1 + block.0 * block.1) / weight, last.2 + block.2);
            blocks.pop();
        }
        blocks.push(block);
    }
    let means = blocks.iter().flat_map(|&(_, mean, count)| std::iter::repeat_n(mean, count));
    for ((i, &place), mean) in row.iter().enumerate().zip(means) {
        places[place].x = mean + room[i];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_diamond_has_its_ends_in_the_middle() {
        let drawing = lay_out(&[100.0; 4], &[(0, 1), (0, 2), (1, 3), (2, 3)]);
        let x: Vec<f64> = drawing.places.iter().map(|p| p.x).collect();
        assert_eq!((drawing.layers, drawing.width), (3, 222.0));
        assert!((x[0] - 111.0).abs() < 1e-6 && (x[3] - 111.0).abs() < 1e-6, "{x:?}");
    }

    #[test]
    fn a_late_source_stands_right_above_its_reader() {
        let drawing = lay_out(&[80.0; 4], &[(0, 1), (1, 2), (3, 2)]);
        assert_eq!(drawing.places[3].layer, 1);
    }

    #[test]
    fn crossings_that_an_order_avoids_are_avoided() {
        // 0 and 1 feed 3 and 2: as written the edges cross.
        let edges = [(0, 3), (1, 2)];
        let drawing = lay_out(&[80.0; 4], &edges);
        let x = |n: usize| drawing.places[n].x;
        assert!((x(0) - x(1)) * (x(3) - x(2)) > 0.0);
    }

    #[test]
    fn long_edges_of_one_source_share_their_waypoints() {
        // 0 feeds 1, 2 and 3 of the chain 1 -> 2 -> 3: the edges over one and two layers pass one place in layer 1.
        let drawing = lay_out(&[80.0; 4], &[(0, 1), (1, 2), (2, 3), (0, 2), (0, 3)]);
        assert_eq!(drawing.routes[3][1], drawing.routes[4][1]);
        assert_eq!(drawing.places.len(), 6);
    }

    #[test]
    fn nothing_lays_out_as_nothing() {
        assert_eq!(lay_out(&[], &[]).layers, 0);
    }

    proptest! {
        #[test]
        fn edges_go_down_and_boxes_do_not_touch(
            widths in proptest::collection::vec(60.0f64..200.0, 1..14),
            picks in proptest::collection::vec((0usize..14, 0usize..14), 0..24),
        ) {
            let mut edges: Vec<(usize, usize)> = picks
                .into_iter()
                .map(|(a, b)| (a % widths.len(), b % widths.len()))
                .filter(|(a, b)| a < b)
                .collect();
            edges.sort_unstable();
            edges.dedup();
            let drawing = lay_out(&widths, &edges);
            for route in &drawing.routes {
                for step in route.windows(2) {
                    prop_assert_eq!(drawing.places[step[0]].layer + 1, drawing.places[step[1]].layer);
                }
            }
            for (i, a) in drawing.places.iter().enumerate() {
                for b in drawing.places[..i].iter().filter(|b| b.layer == a.layer) {
                    prop_assert!((a.x - b.x).abs() >= (a.width + b.width) / 2.0 + GAP - 1e-6);
                }
                prop_assert!(a.x - a.width / 2.0 >= -1e-6 && a.x + a.width / 2.0 <= drawing.width + 1e-6);
            }
        }
    }
}

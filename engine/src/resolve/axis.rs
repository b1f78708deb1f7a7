//! Axes, the points they span, and how the points of a step's inputs join.
//!
//! Invariants: a point is sorted by axis; axes are numbered in the recipe's order (the matrix first, then every step's
//! own) and labels in the order written, so sorting points gives the recipe's order. The points of one step are
//! pairwise incompatible: any two differ on an axis that both have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::recipe::Value;

/// Number of an axis name.
pub(super) type AxisId = u32;
/// Number of a label within its axis.
pub(super) type LabelId = u32;
/// Which label on which axis; axes ascend.
pub(super) type Point = Vec<(AxisId, LabelId)>;

/// Names of axes and labels.
#[derive(Default)]
pub(super) struct Axes {
    names: Vec<String>,
    ids: HashMap<String, AxisId>,
    labels: Vec<Vec<String>>,
    label_ids: Vec<HashMap<String, LabelId>>,
}

impl Axes {
    pub(super) fn intern(&mut self, name: &str) -> AxisId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.names.len() as AxisId;
        self.names.push(name.to_owned());
        self.ids.insert(name.to_owned(), id);
        self.labels.push(Vec::new());
        self.label_ids.push(HashMap::new());
        id
    }

    pub(super) fn intern_label(&mut self, axis: AxisId, label: &str) -> LabelId {
        let a = axis as usize;
        if let Some(&id) = self.label_ids[a].get(label) {
            return id;
        }
        let id = self.labels[a].len() as LabelId;
        self.labels[a].push(label.to_owned());
        self.label_ids[a].insert(label.to_owned(), id);
        id
    }

    pub(super) fn find(&self, name: &str) -> Option<AxisId> {
        self.ids.get(name).copied()
    }

    pub(super) fn find_label(&self, axis: AxisId, label: &str) -> Option<LabelId> {
        self.label_ids[axis as usize].get(label).copied()
    }

    pub(super) fn name(&self, axis: AxisId) -> &str {
        &self.names[axis as usize]
    }

    pub(super) fn label(&self, axis: AxisId, label: LabelId) -> &str {
        &self.labels[axis as usize][label as usize]
    }

    /// As [`crate::graph::Node::labels`] has it.
    pub(super) fn labels(&self, point: &Point) -> BTreeMap<String, String> {
        point.iter().map(|&(a, l)| (self.name(a).to_owned(), self.label(a, l).to_owned())).collect()
    }

    /// `start=act, seed=0`.
    pub(super) fn show(&self, point: &Point) -> String {
        let parts: Vec<String> = point.iter().map(|&(a, l)| format!("{}={}", self.name(a), self.label(a, l))).collect();
        parts.join(", ")
    }
}

/// One axis as the matrix or a step defines it: its labels and what they stand for.
pub(super) struct AxisDef {
    pub axis: AxisId,
    pub name: String,
    pub values: Vec<(LabelId, Value)>,
    pub by_label: HashMap<LabelId, usize>,
}

impl AxisDef {
    pub(super) fn value(&self, label: LabelId) -> Option<&Value> {
        self.by_label.get(&label).map(|&i| &self.values[i].1)
    }
}

pub(super) fn label_at(point: &Point, axis: AxisId) -> Option<LabelId> {
    point.binary_search_by_key(&axis, |&(a, _)| a).ok().map(|i| point[i].1)
}

/// The point with one more label.
pub(super) fn with(point: &Point, axis: AxisId, label: LabelId) -> Point {
    let mut out = point.clone();
    match out.binary_search_by_key(&axis, |&(a, _)| a) {
        Ok(i) => out[i].1 = label,
        Err(i) => out.insert(i, (axis, label)),
    }
    out
}

/// Both points' labels; they must agree where both have an axis.
fn merged(a: &Point, b: &Point) -> Point {
    let mut out = Point::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x.0 == y.0 => {
                out.push(*x);
                i += 1;
                j += 1;
            }
            (Some(x), Some(y)) if x.0 < y.0 => {
                out.push(*x);
                i += 1;
            }
            (Some(x), None) => {
                out.push(*x);
                i += 1;
            }
            (_, Some(y)) => {
                out.push(*y);
                j += 1;
            }
            (None, None) => {}
        }
    }
    out
}

fn signature(point: &Point) -> Vec<AxisId> {
    point.iter().map(|&(a, _)| a).collect()
}

/// Positions in `points`, by which axes they have.
fn by_signature(points: &[&Point]) -> BTreeMap<Vec<AxisId>, Vec<usize>> {
    let mut groups: BTreeMap<Vec<AxisId>, Vec<usize>> = BTreeMap::new();
    for (i, point) in points.iter().enumerate() {
        groups.entry(signature(point)).or_default().push(i);
    }
    groups
}

/// Every pair of compatible points: (left, right, both merged), lefts ascending. `None` past `limit` pairs.
///
/// Right points are indexed by the axes they share with the left, so the cost is that of reading both and writing the
/// answer.
pub(super) fn join(left: &[&Point], right: &[&Point], limit: usize) -> Option<Vec<(usize, usize, Point)>> {
    let mut out = Vec::new();
    let rights = by_signature(right);
    for (left_axes, lefts) in by_signature(left) {
        let have: BTreeSet<AxisId> = left_axes.iter().copied().collect();
        for (right_axes, rights) in &rights {
            let shared: Vec<AxisId> = right_axes.iter().copied().filter(|a| have.contains(a)).collect();
            let key = |point: &Point| -> Vec<LabelId> {
                point.iter().filter(|(a, _)| shared.binary_search(a).is_ok()).map(|&(_, l)| l).collect()
            };
            let mut index: HashMap<Vec<LabelId>, Vec<usize>> = HashMap::new();
            for &r in rights {
                index.entry(key(right[r])).or_default().push(r);
            }
            for &l in &lefts {
                for &r in index.get(&key(left[l])).map_or(&[][..], Vec::as_slice) {
                    if out.len() >= limit {
                        return None;
                    }
                    out.push((l, r, merged(left[l], right[r])));
                }
            }
        }
    }
    out.sort_by_key(|(l, r, _)| (*l, *r));
    Some(out)
}

/// `left`, split until each point knows its label on every axis that a compatible right point has: (left, point).
/// A left point that no right point of some kind fits stays as it is.
pub(super) fn refine(left: &[&Point], right: &[&Point], limit: usize) -> Option<Vec<(usize, Point)>> {
    let mut rows: Vec<(usize, Point)> = left.iter().enumerate().map(|(i, p)| (i, (*p).clone())).collect();
    for group in by_signature(right).into_values() {
        let mut distinct: Vec<&Point> = group.iter().map(|&i| right[i]).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let points: Vec<&Point> = rows.iter().map(|(_, p)| p).collect();
        let pairs = join(&points, &distinct, limit)?;
        let mut fits = vec![false; rows.len()];
        let mut next = Vec::with_capacity(pairs.len());
        for (l, _, point) in pairs {
            fits[l] = true;
            next.push((rows[l].0, point));
        }
        next.extend(rows.iter().zip(&fits).filter(|(_, fits)| !**fits).map(|(row, _)| row.clone()));
        next.sort();
        next.dedup();
        rows = next;
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compatible(a: &Point, b: &Point) -> bool {
        a.iter().all(|&(axis, label)| label_at(b, axis).is_none_or(|other| other == label))
    }

    fn points() -> impl Strategy<Value = Vec<Point>> {
        let point = prop::collection::btree_map(0u32..4, 0u32..3, 0..4).prop_map(|m| m.into_iter().collect());
        prop::collection::vec(point, 0..12)
    }

    proptest! {
        #[test]
        fn the_join_is_every_compatible_pair(left in points(), right in points()) {
            let mut naive = Vec::new();
            for (i, a) in left.iter().enumerate() {
                for (j, b) in right.iter().enumerate() {
                    if compatible(a, b) {
                        let mut point: BTreeMap<_, _> = a.iter().copied().collect();
                        point.extend(b.iter().copied());
                        naive.push((i, j, point.into_iter().collect::<Point>()));
                    }
                }
            }
            let l: Vec<&Point> = left.iter().collect();
            let r: Vec<&Point> = right.iter().collect();
            prop_assert_eq!(join(&l, &r, usize::MAX).unwrap(), naive);
        }

        #[test]
        fn refined_points_contain_what_they_came_from(left in points(), right in points()) {
            let l: Vec<&Point> = left.iter().collect();
            let r: Vec<&Point> = right.iter().collect();
            let rows = refine(&l, &r, usize::MAX).unwrap();
            for i in 0..left.len() {
                prop_assert!(rows.iter().any(|(from, _)| *from == i), "a point was lost");
            }
            for (from, point) in rows {
                prop_assert!(compatible(&left[from], &point) && point.len() >= left[from].len());
            }
        }
    }
}

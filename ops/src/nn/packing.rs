//! How several sequences share one row of tokens: segments that form trees.
//!
//! Invariants: segments are laid out in depth-first order, so a tree is contiguous; a token sees all of its segment's
//! ancestors and its own segment up to itself; its position is its parent's last position + 1. Packing without padding
//! is a forest of roots; a group of responses with one prompt is a root with children.

use std::ops::Range;

/// A run of tokens with one parent.
#[derive(Clone, Debug, PartialEq)]
struct Segment {
    rows: Range<usize>,
    parent: Option<usize>,
    /// Position of the first token.
    position: usize,
}

/// The layout of one packed row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packing {
    segments: Vec<Segment>,
    /// Segment of each token.
    owner: Vec<u32>,
    positions: Vec<u32>,
    trees: Vec<Range<usize>>,
}

impl Packing {
    pub fn new() -> Self {
        Self::default()
    }

    /// One sequence.
    pub fn single(len: usize) -> Self {
        let mut packing = Packing::new();
        packing.root(len);
        packing
    }

    /// Starts a new tree; returns its root segment.
    pub fn root(&mut self, len: usize) -> usize {
        self.trees.push(self.len()..self.len());
        self.push(len, None, 0)
    }

    /// Adds a segment that continues `parent`, which must be in the tree started last.
    ///
    /// # Panics
    /// When the parent is of an earlier tree: a bug in the caller.
    pub fn child(&mut self, parent: usize, len: usize) -> usize {
        let above = &self.segments[parent];
        let tree = self.trees.last().map_or(0, |t| t.start);
        assert!(above.rows.start >= tree, "BUG: a child was added to a tree that is closed");
        let position = above.position + above.rows.len();
        self.push(len, Some(parent), position)
    }

    fn push(&mut self, len: usize, parent: Option<usize>, position: usize) -> usize {
        let rows = self.len()..self.len() + len;
        let id = self.segments.len();
        self.owner.resize(rows.end, id as u32);
        self.positions.extend(position as u32..(position + len) as u32);
        if let Some(tree) = self.trees.last_mut() {
            tree.end = rows.end;
        }
        self.segments.push(Segment { rows, parent, position });
        id
    }

    /// Tokens in the row.
    pub fn len(&self) -> usize {
        self.owner.len()
    }

    pub fn is_empty(&self) -> bool {
        self.owner.is_empty()
    }

    /// Rotary position of each token.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Rows of each tree.
    pub fn trees(&self) -> &[Range<usize>] {
        &self.trees
    }

    /// Rows of a segment.
    pub fn rows(&self, segment: usize) -> Range<usize> {
        self.segments[segment].rows.clone()
    }

    /// Where the segment of `row` ends.
    pub fn segment_end(&self, row: usize) -> usize {
        self.segments[self.owner[row] as usize].rows.end
    }

    /// The row of the token just before `row`'s, in its own sequence: where `row`'s token is predicted.
    pub fn before(&self, row: usize) -> Option<usize> {
        let segment = &self.segments[self.owner[row] as usize];
        if row > segment.rows.start {
            return Some(row - 1);
        }
        let mut parent = segment.parent;
        while let Some(id) = parent {
            let above = &self.segments[id];
            if !above.rows.is_empty() {
                return Some(above.rows.end - 1);
            }
            parent = above.parent;
        }
        None
    }

    /// The rows that `row` sees, in sequence order.
    pub fn visible(&self, row: usize, out: &mut Vec<Range<usize>>) {
        out.clear();
        let segment = &self.segments[self.owner[row] as usize];
        out.push(segment.rows.start..row + 1);
        let mut parent = segment.parent;
        while let Some(id) = parent {
            let above = &self.segments[id];
            if !above.rows.is_empty() {
                out.push(above.rows.clone());
            }
            parent = above.parent;
        }
        out.reverse();
    }

    /// `vis_end[k]`: row k is seen by rows q with `k <= q < vis_end[k]`.
    pub fn vis_end(&self) -> Vec<u32> {
        let mut end: Vec<usize> = self.segments.iter().map(|s| s.rows.end).collect();
        for id in (0..self.segments.len()).rev() {
            if let Some(parent) = self.segments[id].parent {
                end[parent] = end[parent].max(end[id]);
            }
        }
        self.owner.iter().map(|id| end[*id as usize] as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_rows_are_those_of_the_mask_rule() {
        let mut p = Packing::new();
        let a = p.root(3);
        p.child(a, 2);
        let c = p.child(a, 2);
        p.child(c, 1);
        p.root(2);
        assert_eq!(p.positions(), [0, 1, 2, 3, 4, 3, 4, 5, 0, 1]);
        assert_eq!(p.trees(), [0..8, 8..10]);
        let end = p.vis_end();
        let mut ranges = Vec::new();
        for q in 0..p.len() {
            p.visible(q, &mut ranges);
            let seen: Vec<usize> = ranges.iter().cloned().flatten().collect();
            let rule: Vec<usize> = (0..p.len()).filter(|k| *k <= q && q < end[*k] as usize).collect();
            assert_eq!(seen, rule, "row {q}");
            assert_eq!(p.positions()[q] as usize, seen.len() - 1);
        }
        assert_eq!(p.before(5), Some(2));
        assert_eq!(p.before(0), None);
        assert_eq!(p.before(8), None);
    }
}

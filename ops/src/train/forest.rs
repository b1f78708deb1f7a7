//! Tree packing: the sequences of one update as rows in which every common beginning is computed once.
//!
//! 1. A sequence is cut behind its last target's row: later tokens move nothing. One that is a beginning of another needs
//!    no tokens of its own. What is left are *paths*, in ascending order of their ids.
//! 2. Paths are cut into rows of at most `limit` tokens where the fewest tokens are repeated.
//! 3. A row is laid out path by path: a path adds what it does not share with the one before, in segments that end where
//!    later paths part from it.
//!
//! Invariants: a token sees exactly the tokens before it in its sequence, at the same positions as alone; rows are a function
//! of the set of sequences, not of their order; all targets of a sequence are in one row; a row is longer than `limit` only
//! where one sequence is.

use std::collections::BTreeMap;

use super::batch::{Owner, Row};
use crate::model::Target;

/// A sequence up to its last target.
struct Member {
    number: usize,
    ids: Vec<u32>,
    /// Which tokens are targets, in ascending order; the first of a sequence is never one.
    learn: Vec<usize>,
}

impl Member {
    /// The tokens that predict: all but the last.
    fn path(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }
}

/// Members whose tokens are all on one path, that of the last.
struct Path<'a> {
    members: &'a [Member],
    ids: &'a [u32],
    /// Tokens shared with the path before.
    shared: usize,
}

/// Sequences that are to be packed.
pub struct Forest {
    limit: usize,
    members: Vec<Member>,
}

/// Length of the common beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Forest {
    /// Rows are to hold at most `limit` tokens.
    pub fn new(limit: usize) -> Self {
        Forest { limit, members: Vec::new() }
    }

    /// Adds a sequence whose tokens count where `learn` says so; `member` is what [`Owner`]s call it. A sequence of which
    /// nothing counts is left out.
    pub fn add(&mut self, member: usize, ids: &[u32], learn: impl Fn(usize) -> bool) {
        let learn: Vec<usize> = (1..ids.len()).filter(|i| learn(*i)).collect();
        if let Some(last) = learn.last() {
            self.members.push(Member { number: member, ids: ids[..=*last].to_vec(), learn });
        }
    }

    /// The rows.
    pub fn rows(mut self) -> Vec<Row> {
        self.members.sort_by(|a, b| (a.path(), a.number).cmp(&(b.path(), b.number)));
        let paths = paths(&self.members);
        let starts = starts(&paths, self.limit);
        let ends = starts.iter().skip(1).copied().chain([paths.len()]);
        starts.iter().zip(ends).map(|(start, end)| lay_out(&paths[*start..end])).collect()
    }
}

/// Step 1, from members in order. A beginning of some path stands right before the paths that begin with it.
fn paths(members: &[Member]) -> Vec<Path<'_>> {
    let mut paths: Vec<Path<'_>> = Vec::new();
    for part in members.chunk_by(|a, b| b.path().starts_with(a.path())) {
        let Some(ids) = part.last().map(Member::path) else { continue };
        let shared = paths.last().map_or(0, |before| common(before.ids, ids));
        paths.push(Path { members: part, ids, shared });
    }
    paths
}

/// Step 2: the first path of each row. Of all ways to cut, one that repeats the fewest tokens, and of these one with the
/// fewest rows.
fn starts(paths: &[Path<'_>], limit: usize) -> Vec<usize> {
    // of the paths before each place: tokens repeated and rows, and where the last row starts
    let mut best = vec![((0, 0), 0)];
    for end in 1..=paths.len() {
        let mut tokens = 0;
        let mut choice: Option<((usize, usize), usize)> = None;
        for start in (0..end).rev() {
            tokens += paths[start].ids.len();
            if choice.is_some() && tokens > limit {
                break;
            }
            let ((repeated, rows), _) = best[start];
            let cost = ((repeated + paths[start].shared, rows + 1), start);
            choice = Some(choice.map_or(cost, |other| other.min(cost)));
            tokens -= paths[start].shared; // which a row that starts earlier has already
        }
        best.extend(choice);
    }
    let mut starts = Vec::new();
    let mut end = paths.len();
    while end > 0 {
        end = best[end].1;
        starts.push(end);
    }
    starts.reverse();
    starts
}

/// Step 3.
fn lay_out(paths: &[Path<'_>]) -> Row {
    let mut row = Row::default();
    let mut targets: BTreeMap<(u32, u32), Vec<Owner>> = BTreeMap::new();
    let mut open: Vec<(usize, usize)> = Vec::new(); // segments of the path, and their depths at the end
    let mut at: Vec<u32> = Vec::new(); // rows of its tokens
    for (i, path) in paths.iter().enumerate() {
        let shared = if i == 0 { 0 } else { path.shared };
        while open.last().is_some_and(|(_, depth)| *depth > shared) {
            open.pop();
        }
        at.truncate(shared);
        // deepest first: where later paths part from this one
        let mut ends = vec![path.ids.len()];
        for later in &paths[i + 1..] {
            if later.shared <= shared {
                break;
            }
            if ends.last().is_some_and(|end| later.shared < *end) {
                ends.push(later.shared);
            }
        }
        for end in ends.into_iter().rev() {
            let ids = &path.ids[at.len()..end];
            let segment = row.segment(open.last().map(|(segment, _)| *segment), ids);
            at.extend(row.packing.rows(segment).map(|row| row as u32));
            open.push((segment, end));
        }
        for member in path.members {
            for token in &member.learn {
                let owner = Owner { member: member.number, token: *token };
                targets.entry((at[token - 1], member.ids[*token])).or_default().push(owner);
            }
        }
    }
    for ((at, id), mut owners) in targets {
        owners.sort_unstable();
        row.targets.push(Target { row: at, id });
        row.owners.push(owners);
    }
    row
}

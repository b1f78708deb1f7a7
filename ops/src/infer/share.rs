//! Which beginnings of prompts are computed once.
//!
//! Invariants: a prefix is the beginning of at least two prompts and never a whole one, so that each request still feeds
//! its last token; jobs come depth first, a prefix before everything that goes on from it.

use std::ops::Range;

/// A beginning that several prompts have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The shorter prefix it goes on from.
    pub parent: Option<usize>,
    /// It is the first `len` tokens of this request's prompt.
    pub of: usize,
    pub len: usize,
}

/// Something to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Prefix(usize),
    /// A request and the prefix it goes on from.
    Request(usize, Option<usize>),
}

/// What is computed in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub prefixes: Vec<Prefix>,
    pub jobs: Vec<Job>,
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Plans the work for `prompts`; a prefix that adds fewer than `shortest` tokens is not
/// shared. `None` shares nothing.
pub fn plan(prompts: &[Option<&[u32]>], shortest: usize) -> Plan {
    enum Open {
        /// Prompts of this range of the sorted list agree in their first tokens, so many, and go on from a prefix.
        Group(Range<usize>, usize, Option<usize>),
        Job(Job),
    }
    let mut plan = Plan::default();
    let mut sorted: Vec<(&[u32], usize)> = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        match prompt {
            Some(ids) => sorted.push((ids, i)),
            None => plan.jobs.push(Job::Request(i, None)),
        }
    }
    sorted.sort_unstable();
    let mut open = vec![Open::Group(0..sorted.len(), 0, None)];
    while let Some(next) = open.pop() {
        let (range, split, parent) = match next {
            Open::Job(job) => {
                plan.jobs.push(job);
                continue;
            }
            Open::Group(range, split, parent) => (range, split, parent),
        };
        // gathered in order, pushed the other way round: what comes first is popped first
        let mut later = Vec::new();
        let mut from = range.start;
        while from < range.end {
            let token = sorted[from].0.get(split);
            let to = from + sorted[from..range.end].partition_point(|(ids, _)| ids.get(split) == token);
            // prompts that end here have nothing left to share: their last token is their own
            let ended = from + sorted[from..to].partition_point(|(ids, _)| ids.len() <= split + 1);
            let alone = if to - ended < 2 { to } else { ended };
            later.extend(sorted[from..alone].iter().map(|(_, i)| Open::Job(Job::Request(*i, parent))));
            if alone < to {
                let (first, last) = (sorted[alone].0, sorted[to - 1].0);
                let agreed = common(first, last).min(first.len() - 1);
                let have = parent.map_or(0, |p| plan.prefixes[p].len);
                let mut parent = parent;
                if agreed - have >= shortest {
                    plan.prefixes.push(Prefix { parent, of: sorted[alone].1, len: agreed });
                    parent = Some(plan.prefixes.len() - 1);
                    later.push(Open::Job(Job::Prefix(plan.prefixes.len() - 1)));
                }
                later.push(Open::Group(alone..to, agreed, parent));
            }
            from = to;
        }
        open.extend(later.into_iter().rev());
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_group_shares_its_prompt_and_prompts_share_their_beginning() {
        let a: Vec<u32> = (0..10).collect();
        let mut b = a[..6].to_vec();
        b.extend([50, 51, 52, 53]);
        let prompts = [Some(&a[..]), Some(&b[..]), Some(&a[..]), None, Some(&b[..]), Some(&[7, 7][..])];
        let plan = plan(&prompts, 3);
        assert_eq!(
            plan.prefixes,
            [
                Prefix { parent: None, of: 0, len: 6 },
                Prefix { parent: Some(0), of: 0, len: 9 },
                Prefix { parent: Some(0), of: 1, len: 9 }
            ]
        );
        let want = [
            Job::Request(3, None),
            Job::Prefix(0),
            Job::Prefix(1),
            Job::Request(0, Some(1)),
            Job::Request(2, Some(1)),
            Job::Prefix(2),
            Job::Request(1, Some(2)),
            Job::Request(4, Some(2)),
            Job::Request(5, None),
        ];
        assert_eq!(plan.jobs, want);
    }

    proptest! {
        #[test]
        fn every_request_comes_once_behind_prefixes_that_are_its_own(
            prompts in prop::collection::vec(prop::collection::vec(0u32..3, 1..12), 1..24),
            shortest in 1usize..4,
        ) {
            let all: Vec<Option<&[u32]>> = prompts.iter().map(|p| Some(&p[..])).collect();
            let plan = plan(&all, shortest);
            let (mut made, mut seen) = (vec![false; plan.prefixes.len()], vec![0; prompts.len()]);
            let mut users = vec![0; plan.prefixes.len()];
            for job in &plan.jobs {
                let (parent, ids) = match *job {
                    Job::Prefix(p) => {
                        let prefix = &plan.prefixes[p];
                        let have = prefix.parent.map_or(0, |p| plan.prefixes[p].len);
                        prop_assert!(!made[p] && prefix.len >= have + shortest);
                        made[p] = true;
                        (prefix.parent, &prompts[prefix.of][..prefix.len])
                    }
                    Job::Request(i, parent) => {
                        seen[i] += 1;
                        (parent, &prompts[i][..prompts[i].len() - 1])
                    }
                };
                if let Some(p) = parent {
                    users[p] += 1;
                    prop_assert!(made[p]);
                    let above = &plan.prefixes[p];
                    prop_assert!(ids.starts_with(&prompts[above.of][..above.len]));
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
            prop_assert!(users.iter().all(|n| *n >= 2), "{:?}", plan);
        }
    }
}

//! Answers that a request is held to.
//!
//! Invariants: every answer is closed by the end token, so one that begins another can still be chosen; the order and
//! number of times an answer is given change nothing.

use std::ops::Range;

use actloom_engine::op::OpError;

/// A sorted list of allowed answers; those that share a beginning are neighbours, so a step looks at its ways on alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    answers: Vec<Vec<u32>>,
}

/// How far a request has gone: the answers that are still open, and the tokens said.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    open: Range<usize>,
    said: usize,
}

impl Choice {
    /// Answers as token ids, with or without the end token `end`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn new(answers: impl IntoIterator<Item = Vec<u32>>, end: u32) -> Result<Choice, OpError> {
        let mut answers: Vec<Vec<u32>> = answers.into_iter().collect();
        if answers.is_empty() {
            return Err(OpError::failed("a request is held to a list of answers that is empty"));
        }
        for answer in &mut answers {
            if answer.last() != Some(&end) {
                answer.push(end);
            }
        }
        answers.sort_unstable();
        answers.dedup();
        Ok(Choice { answers })
    }

    /// The largest token id in any answer.
    pub fn largest(&self) -> u32 {
        self.answers.iter().flatten().max().copied().unwrap_or(0)
    }

    /// Before the first token.
    pub fn start(&self) -> Held {
        Held { open: 0..self.answers.len(), said: 0 }
    }

    /// The tokens that may come now, ascending.
    pub fn next(&self, held: &Held, out: &mut Vec<u32>) {
        out.clear();
        let mut at = held.open.start;
        while at < held.open.end {
            // answers with nothing more to say were closed by the end token
            let Some(id) = self.answers[at].get(held.said) else {
                at += 1;
                continue;
            };
            out.push(*id);
            at += self.answers[at..held.open.end].partition_point(|a| a.get(held.said) == Some(id));
        }
    }

    /// Goes on with one of them.
    pub fn say(&self, held: &mut Held, id: u32) {
        let open = &self.answers[held.open.clone()];
        let from = open.partition_point(|a| a.get(held.said).is_none_or(|x| *x < id));
        let len = open[from..].partition_point(|a| a.get(held.said) == Some(&id));
        held.open = held.open.start + from..held.open.start + from + len;
        held.said += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_ways_on_are_those_of_a_scan_over_all_answers(
            answers in prop::collection::vec(prop::collection::vec(0u32..4, 0..5), 1..20),
            picks in prop::collection::vec(0usize..100, 6),
        ) {
            let choice = Choice::new(answers.clone(), 9).unwrap();
            let closed: Vec<Vec<u32>> = answers.into_iter().map(|mut a| { a.push(9); a }).collect();
            let (mut held, mut said, mut next) = (choice.start(), Vec::new(), Vec::new());
            for pick in picks {
                choice.next(&held, &mut next);
                let mut want: Vec<u32> =
                    closed.iter().filter(|a| a.len() > said.len() && a.starts_with(&said)).map(|a| a[said.len()]).collect();
                want.sort_unstable();
                want.dedup();
                prop_assert_eq!(&next, &want);
                if next.is_empty() {
                    prop_assert!(closed.contains(&said));
                    break;
                }
                let id = next[pick % next.len()];
                choice.say(&mut held, id);
                said.push(id);
            }
        }
    }

    #[test]
    fn an_answer_that_begins_another_can_be_chosen() {
        let choice = Choice::new([vec![1, 2], vec![1], vec![1, 2], vec![1, 2, 3, 9]], 9).unwrap();
        let (mut held, mut next) = (choice.start(), Vec::new());
        for (ways, id) in [(vec![1], 1), (vec![2, 9], 2), (vec![3, 9], 9)] {
            choice.next(&held, &mut next);
            assert_eq!(next, ways);
            choice.say(&mut held, id);
        }
        choice.next(&held, &mut next);
        assert!(next.is_empty());
        assert!(Choice::new([], 9).is_err());
    }
}

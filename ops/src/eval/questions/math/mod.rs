//! Whether two answers are the same mathematics.
//!
//! 1. [`token`]: text to tokens. 2. [`parse`]: tokens to a tree. 3. [`same`]: two trees are compared, values by
//!    [`exact`] where both have an exact value and by [`numeric`] where they have not.
//!
//! The table of cases in `docs/src/questions.md` says what is covered; it is the test's data.
//!
//! Invariants: an empty answer equals nothing; texts that are not understood equal only themselves; length, nesting, size
//! of numbers and work are bounded, and whatever passes a bound is equal only to the same text.

mod exact;
mod node;
mod numeric;
mod parse;
mod same;
mod token;
mod unit;

use exact::Budget;

/// Longest answer that is read as mathematics, in bytes.
pub const LONGEST: usize = 10_000;
/// What one comparison may spend.
const OPERATIONS: u64 = 60_000;

/// Whether `answer` says what `reference` says.
pub fn equal(reference: &str, answer: &str) -> bool {
    let (reference, answer) = (reference.trim(), answer.trim());
    if reference.is_empty() || answer.is_empty() {
        return false;
    }
    if reference == answer {
        return true;
    }
    if reference.len().max(answer.len()) > LONGEST {
        return false;
    }
    let bare = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let mut understood = None;
    // 1,234 is one number or two
    for thousands in [true, false] {
        let (Some(r), Some(a)) = (token::tokens(reference, thousands), token::tokens(answer, thousands)) else {
            continue;
        };
        // where no comma is in doubt there is one reading
        if understood.as_ref() == Some(&(r.clone(), a.clone())) {
            return false;
        }
        understood = Some((r.clone(), a.clone()));
        if r.is_empty() || a.is_empty() {
            return false;
        }
        if r == a {
            return true;
        }
        if let (Some(r), Some(a)) = (parse::parse(&r), parse::parse(&a))
            && same::same(&r, &a, &mut Budget::new(OPERATIONS))
        {
            return true;
        }
    }
    understood.is_none() && bare(reference) == bare(answer)
}

//! Evaluations on questions with known answers: files of questions, answers out of replies, equality, statistics.
//!
//! 1. [`table`] reads rows out of a user's file. 2. [`reply`] and [`choice`] find the answer in a reply.
//! 3. [`math`] says whether two answers are the same. 4. [`pass`] counts several replies to one question.
//!
//! Invariants: everything here is a function of its arguments; whatever cannot be decided counts as wrong.

pub mod choice;
pub mod math;
pub mod pass;
pub mod reply;
pub mod table;

//! End-to-end tests: the program itself, from the outside.
//!
//! Invariants: every run has a folder and a store of its own, never the user's; one smoke run of the quickstart is shared
//! by all tests and no test changes it; whatever waits, waits for a bounded time.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::print_stderr, reason = "times and what was passed over are for the reader of a test's output")]

mod architecture;
mod chromium;
mod crash;
mod cuda;
mod lora;
mod quickstart;
mod recipes;
mod support;
mod verbs;

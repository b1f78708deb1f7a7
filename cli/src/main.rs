//! The binary `actloom`: arguments in, text out, an exit code that means something.
//!
//! 1. Read the command line ([`args`]).
//! 2. Set up colour and logging ([`terminal`], [`logging`]).
//! 3. Do the verb ([`verb`]); what went wrong is a [`exit::Failure`], drawn in one place.
//!
//! Invariants: stdout is data, stderr is talk; every verb that prints can print JSON; nothing here knows how a step is
//! planned, run or stored.

mod args;
mod device;
mod exit;
mod load;
mod logging;
mod outputs;
mod progress;
mod render;
mod signal;
mod terminal;
mod text;
mod verb;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::exit::{Exit, Failure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Part of mimalloc.
    fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// Freed pages stay with the program: a training step needs the pages of the one before it, and mapping them anew took
/// up to a third of its time.
fn keep_pages() {
    const PURGE_DELAY: std::ffi::c_int = 15;
    // SAFETY: a plain setter of the allocator that is linked in; -1 means never.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}

fn main() -> ExitCode {
    keep_pages();
    let args = Args::parse();
    args.global.color.write_global();
    // The guard writes the end of the trace file when it goes.
    let result = logging::start(&args.global).and_then(|_guard| verb::run(&args));
    let exit = match result {
        Ok(exit) => exit,
        Err(failure) => {
            failure.tell(args.global.json);
            failure.exit()
        }
    };
    match terminal::lost() {
        Some(error) => {
            let failure = Failure::world(format!("cannot write to stdout: {error}"));
            failure.tell(false);
            // Whatever failed before this says more.
            if exit == Exit::Done { failure.exit() } else { exit }.into()
        }
        None => exit.into(),
    }
}

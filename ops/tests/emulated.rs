//! The kernels of `ops/kernels` on the processor: their own source, each thread of a block a coroutine, held against float64.
//!
//! Needs a C++ compiler, which nothing else does: without one the tests say that they are skipped, unless
//! `ACTLOOM_EXTERNAL=1` says that it has to be there.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::print_stderr, reason = "what was passed over is for the reader of a test's output")]

mod machine;

use std::process::Command;

fn emulated(name: &str) {
    let Some(compiler) = machine::compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(name);
    machine::compile(&compiler, &format!("{name}.cpp"), &[], &program);
    let run = Command::new(&program).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(
        run.status.success(),
        "{}{err}",
        out.lines().filter(|l| !l.starts_with("ok")).collect::<Vec<_>>().join("\n")
    );
    assert!(out.lines().any(|l| l.starts_with("ok")), "nothing was checked");
}

#[test]
fn kernels_over_rows_are_those_of_float64() {
    emulated("rows");
}

#[test]
fn attention_over_trees_and_its_gradients_are_those_of_float64() {
    emulated("attention");
}

#[test]
fn attention_over_pages_is_that_of_float64() {
    emulated("paged");
}

#[test]
fn kernels_of_the_head_are_those_of_float64() {
    emulated("head");
}

#[test]
fn kernels_of_the_optimizer_are_the_processors() {
    emulated("optimizer");
}

#[test]
fn kernels_of_sampling_draw_what_the_processor_draws() {
    emulated("sampling");
}

//! The kernels of `ops/kernels` on the processor: their own source, each thread of a block a coroutine, held against float64.
//!
//! Needs a C++ compiler, which nothing else does: without one the tests say that they are skipped, unless
//! `ACTLOOM_EXTERNAL=1` says that it has to be there.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::print_stderr, reason = "what was passed over is for the reader of a test's output")]

use std::path::Path;
use std::process::Command;

fn emulated(name: &str) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(std::env::var("ACTLOOM_EXTERNAL").is_err(), "there is no C++ compiler `{compiler}`");
        eprintln!("skipped: there is no C++ compiler `{compiler}`");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulated").join(format!("{name}.cpp"));
    let options = ["-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-DEMULATED", "-o"];
    let made = Command::new(&compiler).args(options).arg(&program).arg(source).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
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

//! The program as it is built for CUDA, on a driver that runs its kernels on the processor and counts what it is asked
//! (`ops/kernels/emulated/cuda.cpp`).
//!
//! External: `ACTLOOM_CUDA_PROGRAM` names a program built with `--features cuda`, and `c++` (or `CXX`) compiles the driver. Without
//! them all is passed over with a line, unless `ACTLOOM_CUDA=1` says that they are there.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Place, Ran, Running, root, text};

/// What products may use to work in; the plan of a step's memory does not have it.
const WORKSPACE: u64 = 32 << 20;

/// The program, and a folder with the driver.
struct Cuda {
    program: PathBuf,
    driver: TempDir,
}

/// `None` where there is none, which was said.
fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Option<Cuda>> = OnceLock::new();
    CUDA.get_or_init(|| {
        let must = std::env::var("ACTLOOM_CUDA").is_ok_and(|value| value == "1");
        let Some(program) = std::env::var_os("ACTLOOM_CUDA_PROGRAM").map(PathBuf::from) else {
            assert!(!must, "ACTLOOM_CUDA=1 and ACTLOOM_CUDA_PROGRAM names no program");
            eprintln!("skipped: ACTLOOM_CUDA_PROGRAM names no program that was built with `--features cuda`");
            return None;
        };
        let driver = tempfile::tempdir().unwrap();
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let mut command = Command::new(&compiler);
        command
            .args("-std=c++17 -O2 -Wall -Werror -Wno-unknown-pragmas -DEMULATED -shared -fPIC -pthread -o".split(' '));
        command.arg(driver.path().join("libcuda.so.1")).arg(root().join("ops/kernels/emulated/cuda.cpp"));
        match command.output() {
            Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
            Err(error) => {
                assert!(!must, "ACTLOOM_CUDA=1 and `{}` cannot be started: {error}", compiler.display());
                eprintln!("skipped: there is no C++ compiler");
                return None;
            }
        }
        for name in ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"] {
            symlink("libcuda.so.1", driver.path().join(name)).unwrap();
        }
        Some(Cuda { program, driver })
    })
    .as_ref()
}

impl Cuda {
    /// The program over the driver, which is told so.
    fn run(&self, place: &Place, args: &[&str], told: &[(&str, &str)]) -> Ran {
        self.start(place, args, told).finish()
    }

    fn start(&self, place: &Place, args: &[&str], told: &[(&str, &str)]) -> Running {
        let mut command = place.command_of(&self.program, args);
        for name in ["CUDA_LAZY_PATH", "LD_LIBRARY_PATH"] {
            command.env(name, self.driver.path());
        }
        // Memory is filled before it is lent, which takes its time.
        command.env("EMULATED_CUDA_MEMORY", (192 << 20).to_string());
        command.envs(told.iter().copied());
        Running::start(command)
    }

    /// As [`Cuda::run`], to the end.
    fn ok(&self, place: &Place, args: &[&str], told: &[(&str, &str)]) -> Ran {
        let ran = self.run(place, args, told);
        assert_eq!(ran.code, Some(0), "`actloom {}` failed:\n{}", args.join(" "), ran.stderr);
        ran
    }

    /// What the driver counts in a run in which nothing is computed.
    fn counts(&self, place: &Place, args: &[&str]) -> Counts {
        let report = place.path("report.json");
        let told = [("EMULATED_CUDA", "count"), ("EMULATED_CUDA_REPORT", report.to_str().unwrap())];
        let args = [&["run", "counted.toml", "--device", "cuda", "--no-out"], args].concat();
        let ran = self.ok(place, &args, &[&told[..], &[("EMULATED_CUDA_MEMORY", "1073741824")]].concat());
        let counts: Value = serde_json::from_str(&place.read("report.json")).unwrap();
        assert_eq!(counts["complaint"], "", "the driver complained");
        Counts { counts, said: ran.stderr }
    }
}

/// What the driver counted, and what the program said.
struct Counts {
    counts: Value,
    said: String,
}

impl Counts {
    fn of(&self, what: &str) -> u64 {
        self.counts[what].as_u64().unwrap_or_else(|| panic!("nobody counts {what}: {}", self.counts))
    }

    /// The beginnings of `57.6 MiB of device memory: ...`, one for each model.
    fn planned(&self) -> Vec<f64> {
        let told = self.said.split(" MiB of device memory: ");
        let mut planned: Vec<f64> = told.filter_map(|before| before.rsplit(": ").next()?.parse().ok()).collect();
        planned.truncate(self.said.matches(" MiB of device memory: ").count());
        assert!(!planned.is_empty(), "no plan was told:\n{}", self.said);
        planned
    }

    /// That all was given back but what products work in, and that no more was in use than was planned.
    fn is_clean(&self) {
        assert_eq!(self.of("used"), WORKSPACE, "memory was not given back");
        assert_eq!(self.of("reserved"), self.of("released") + 1, "memory was not given back");
        assert!(self.of("events") <= self.of("pinned"), "events were not given back");
        let peak = (self.of("peak") - WORKSPACE) as f64 / f64::from(1 << 20);
        let planned = self.planned();
        let off = (peak - planned.iter().sum::<f64>()).abs();
        assert!(off <= 0.051 * planned.len() as f64, "{peak} MiB were in use, and {planned:?} planned");
    }
}

fn every_op() -> Place {
    let place = Place::new();
    for (name, from) in [
        ("every_op.toml", "tests/cuda/every_op.toml"),
        ("counted.toml", "tests/cuda/counted.toml"),
        ("arithmetic.jsonl", "recipes/data/arithmetic.jsonl"),
        ("options.csv", "recipes/data/options.csv"),
    ] {
        std::fs::copy(root().join(from), place.path(name)).unwrap();
    }
    place
}

/// A place with another's store.
fn like(other: &Place) -> Place {
    let place = Place::copy_of(other);
    for name in ["every_op.toml", "counted.toml", "arithmetic.jsonl", "options.csv"] {
        std::fs::copy(other.path(name), place.path(name)).unwrap();
    }
    place
}

#[test]
fn every_check_of_the_device_is_fine() {
    let Some(cuda) = cuda() else { return };
    let place = Place::new();
    let ran = cuda.ok(&place, &["device", "check", "--device", "cuda"], &[("EMULATED_CUDA_MEMORY", "1073741824")]);
    let said = ran.stdout + &ran.stderr;
    assert!(said.contains(" checks fine, 0 wrong"), "{said}");
}

// --- every op --------------------------------------------------------------------------------------------------------

/// Steps that sample nothing: their numbers are the processor's, but for the rounding.
const TRAINED: [&str; 6] = ["again", "full", "lora", "dropped", "foreseen", "dpo"];
/// Steps that learn from what they sample, which may be another token here and there.
const LEARNED: [&str; 3] = ["act", "rl", "played"];
/// Steps that take the likeliest token.
const ASKED: [&str; 3] = ["play", "judge", "agree"];

type Numbers = BTreeMap<(String, u64), f64>;

/// A step's metrics, by name and update.
fn metrics(place: &Place, step: &str) -> Numbers {
    let shown = place.json(&["show", "every_op.toml", step]);
    let outputs = shown[0]["outputs"].as_array().unwrap();
    let metrics = outputs.iter().find(|output| output["name"] == "metrics").unwrap();
    let path = text(&metrics["files"][0]["path"]);
    let lines = crate::support::lines(&std::fs::read_to_string(path).unwrap());
    let one = |l: &Value| ((text(&l["name"]), l["step"].as_u64().unwrap()), l["value"].as_f64().unwrap());
    lines.iter().map(one).collect()
}

fn close(step: &str, got: &Numbers, want: &Numbers, names: &[&str], relative: f64, absolute: f64) {
    assert!(got.keys().eq(want.keys()), "`{step}` measured something else");
    let mut seen = 0;
    for ((name, update), want) in want.iter().filter(|((name, _), _)| names.contains(&name.as_str())) {
        let got = got[&(name.clone(), *update)];
        let off = (got - want).abs();
        assert!(off <= relative * want.abs() + absolute, "{name} of `{step}` at {update} is {got}, expected {want}");
        seen += 1;
    }
    assert!(seen > 0, "`{step}` has none of {names:?}");
}

#[test]
fn every_op_runs_on_a_device_with_the_processors_numbers_and_twice_with_the_same_bytes() {
    let Some(cuda) = cuda() else { return };
    let cpu = every_op();
    let recipe = |device| ["run", "every_op.toml", "--device", device, "--no-out"];
    cuda.ok(&cpu, &[&recipe("cpu")[..], &["base", "tried", "pairs"]].concat(), &[]);
    let places = [like(&cpu), like(&cpu)];
    cuda.ok(&cpu, &recipe("cpu"), &[]);
    for (place, jobs) in places.iter().zip(["1", "4"]) {
        let report = place.path("report.json");
        let told = [("EMULATED_CUDA_REPORT", report.to_str().unwrap())];
        let ran = cuda.ok(place, &[&recipe("cuda")[..], &["--jobs", jobs]].concat(), &told);
        assert!(ran.stderr.contains("device: emulated device (cuda:0"), "{}", ran.stderr);
        let counts: Value = serde_json::from_str(&place.read("report.json")).unwrap();
        assert_eq!((&counts["complaint"], &counts["used"]), (&"".into(), &WORKSPACE.into()));
        place.verify_is_clean();
    }
    let [first, second] = places;
    assert_eq!(first.ids(), second.ids(), "a second run made something else");
    // One records decoding steps while others train on the same stream.
    let beside = ["drawn", "full", "lora", "--gpus", "3", "--jobs", "3"];
    let again = ["--force", "drawn", "--force", "full", "--force", "lora"];
    cuda.ok(&second, &[&recipe("cuda")[..], &beside, &again].concat(), &[]);
    assert_eq!(first.ids(), second.ids(), "steps side by side made something else");

    for step in TRAINED {
        let (got, want) = (metrics(&first, step), metrics(&cpu, step));
        close(step, &got, &want, &["loss", "entropy", "logp_chosen", "logp_rejected"], 0.03, 0.002);
        close(step, &got, &want, &["grad_norm"], 0.06, 0.01);
        close(step, &got, &want, &["lr", "tokens", "examples", "pairs"], 0.0, 0.0);
        assert_ne!(first.ids()[step]["model"], cpu.ids()[step]["model"], "`{step}` did not run on the device");
    }
    for step in LEARNED {
        let (got, want) = (metrics(&first, step), metrics(&cpu, step));
        let gaps = |name: &str| got.iter().filter(|((n, _), _)| n == name).map(|(_, v)| *v).collect::<Vec<f64>>();
        let (most, mean) = (gaps("logp_gap"), gaps("logp_gap_mean"));
        assert!(!most.is_empty() && most.iter().all(|gap| *gap > 0.0 && *gap < 0.1), "`{step}`: {most:?}");
        assert!(mean.iter().all(|gap| *gap < 0.01), "`{step}`: {mean:?}");
        assert!(gaps("grad_norm").iter().any(|norm| *norm > 0.0), "`{step}` learned nothing");
        close(step, &got, &want, &["entropy"], 0.25, 0.05);
    }
    for step in ASKED {
        assert_eq!(metrics(&first, step), metrics(&cpu, step), "`{step}`");
    }
}

#[test]
fn algorithms_of_products_are_tried_once_and_kept_in_a_file_for_every_other_run() {
    let Some(cuda) = cuda() else { return };
    let cpu = every_op();
    cuda.ok(&cpu, &["run", "every_op.toml", "base", "--device", "cpu", "--no-out"], &[]);
    let (first, second, third) = (like(&cpu), like(&cpu), like(&cpu));
    let file = first.path("products.json");
    let run = |place: &Place, told: &[(&str, &str)]| -> u64 {
        let report = place.path("report.json");
        let report = [("EMULATED_CUDA_REPORT", report.to_str().unwrap())];
        let args = ["run", "every_op.toml", "full", "--device", "cuda", "--no-out"];
        cuda.ok(place, &args, &[&report[..], told].concat());
        let counts: Value = serde_json::from_str(&place.read("report.json")).unwrap();
        counts["products"].as_u64().unwrap()
    };
    let kept = [("ACTLOOM_PRODUCTS", file.to_str().unwrap())];
    let tried = run(&first, &kept);
    let choices: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let products = choices["products"].as_object().unwrap();
    assert!(products.len() > 8 && choices["device"] == "emulated device", "{choices:#}");
    // The driver says that its second advice is the fastest.
    assert!(products.values().all(|algorithm| algorithm[7] == 1), "{choices:#}");
    let known = run(&second, &kept);
    let advised = run(&third, &[]);
    assert!(tried > known + 8 && known == advised, "{tried}, {known} and {advised} products");
    assert_eq!(first.ids()["full"], second.ids()["full"]);
    assert_eq!(first.ids()["full"], third.ids()["full"], "trying left something behind");
    // What was chosen for another device is not taken here.
    let other = std::fs::read_to_string(&file).unwrap().replace("emulated device", "another");
    std::fs::write(&file, other).unwrap();
    let ran = cuda.run(&third, &["device", "show", "--device", "cuda"], &kept);
    assert!(
        ran.code != Some(0) && ran.stderr.contains("has choices for another and cuBLASLt 130001"),
        "{}",
        ran.stderr
    );
}

// --- what is asked of a device ---------------------------------------------------------------------------------------

/// (of 20 updates, of 200) with a model of so many layers.
fn updates(cuda: &Cuda, place: &Place, step: &str, layers: u64) -> [Counts; 2] {
    let layers = format!("layers={layers}");
    ["updates=20", "updates=200"].map(|updates| cuda.counts(place, &[step, "--set", &layers, "--set", updates]))
}

#[test]
fn updates_launch_so_many_kernels_and_lend_nothing_once_they_are_under_way() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    for (step, kernels, products) in [("full", 20.0, 12.0), ("lora", 23.0, 43.0)] {
        let per_update = |layers| {
            let [short, long] = updates(cuda, &place, step, layers);
            for what in ["reserved", "released", "pinned", "plans", "peak"] {
                assert_eq!(short.of(what), long.of(what), "{what} of 20 and of 200 updates of `{step}`");
            }
            [&short, &long].into_iter().for_each(Counts::is_clean);
            ["launches", "products", "to_host", "waits"].map(|what| {
                let more = long.of(what) - short.of(what);
                assert_eq!(more % 180, 0, "{what} of 180 updates of `{step}`");
                more / 180
            })
        };
        let (two, six) = (per_update(2), per_update(6));
        let per_layer = |at: usize| (six[at] - two[at]) as f64 / 4.0;
        let once = |at: usize| two[at] as f64 - 2.0 * per_layer(at);
        eprintln!(
            "`{step}`: {} launches and {} products a layer and update, {} and {} an update; {} reads, {} waits",
            per_layer(0),
            per_layer(1),
            once(0),
            once(1),
            two[2],
            two[3]
        );
        assert!(per_layer(0) <= kernels && per_layer(1) <= products, "`{step}` asks for more than it did");
        assert!(once(0) <= 14.0 && once(1) <= 4.0, "`{step}` asks for more than it did");
        assert_eq!((two[2], two[3]), (six[2], six[3]), "layers read nothing to the host");
    }
}

#[test]
fn what_is_in_use_is_what_was_planned_for_every_model_of_a_step() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    for (step, models) in [("dpo", 1), ("act", 2), ("play", 1)] {
        let counts = cuda.counts(&place, &[step]);
        assert_eq!(counts.planned().len(), models, "`{step}`:\n{}", counts.said);
        counts.is_clean();
    }
    // Who is only asked has no gradients and no moments: twelve times its weights would not fit.
    cuda.ok(&place, &["export", "counted.toml", "model", "model", "--device", "cpu"], &[]);
    std::fs::write(place.path("ids.json"), "[[1, 2, 3]]").unwrap();
    let memory = ((60 << 20) + WORKSPACE).to_string();
    let told = [("EMULATED_CUDA", "count"), ("EMULATED_CUDA_MEMORY", memory.as_str())];
    let args = ["model", "logits", "model/model", "--tokens", "ids.json", "--out", "logits", "--device", "cuda"];
    cuda.ok(&place, &args, &told);
}

#[test]
fn a_step_goes_on_only_on_the_kind_of_device_that_it_began_on() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    let set = ["--set", "updates=100", "--set", "step.full.checkpoint_every=1"];
    let args = |device| [&["run", "counted.toml", "full", "--device", device, "--no-out"][..], &set].concat();
    let told = [("EMULATED_CUDA", "count"), ("EMULATED_CUDA_MEMORY", "1073741824")];
    let mut running = cuda.start(&place, &[&args("cuda")[..], &["--json"]].concat(), &told);
    let under_way = |event: &Value| event["report"]["done"].as_u64() > Some(5) && event["node"] == "full";
    assert!(running.wait_for(under_way), "`full` never got under way");
    running.signal("INT");
    let stopped = running.finish();
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    let left = "was computed on `cuda`, and this run is on `cpu`";
    for (device, told) in [("cpu", &told[..]), ("auto", &[("EMULATED_CUDA", "none")])] {
        let ran = cuda.run(&place, &args(device), told);
        assert!(ran.code != Some(0) && ran.stderr.contains(left), "{}", ran.stderr);
        assert!(ran.stderr.contains("go on with `--device cuda`, or begin anew with `--force STEP`"), "{}", ran.stderr);
    }
    // Nothing is lost by that.
    let ran = cuda.ok(&place, &args("cuda"), &told);
    assert!(ran.stderr.contains("full"), "{}", ran.stderr);
    place.verify_is_clean();
}

#[test]
fn a_decoding_step_is_one_request_and_lends_nothing() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    let per_step = |layers: u64| {
        let layers = format!("layers={layers}");
        let [short, long] =
            ["reply=32", "reply=64"].map(|reply| cuda.counts(&place, &["play", "--set", &layers, "--set", reply]));
        for what in ["reserved", "released", "pinned"] {
            assert_eq!(short.of(what), long.of(what), "{what} of short and of long replies");
        }
        [&short, &long].into_iter().for_each(Counts::is_clean);
        let nodes = long.of("nodes") as f64 / long.of("recorded") as f64;
        let more = |what| (long.of(what) - short.of(what)) as f64;
        (nodes, more("to_device") / more("replayed"), more("to_host") / more("replayed"))
    };
    let (two, six) = (per_step(2), per_step(6));
    let per_layer = (six.0 - two.0) / 4.0;
    eprintln!(
        "a decoding step: {per_layer} launches and products a layer, {} beside; {two:?} {six:?}",
        two.0 - 2.0 * per_layer
    );
    assert!(per_layer <= 9.0, "{per_layer} launches and products a layer");
    assert!(two.1 <= 1.5 && two.2 <= 1.5, "{two:?}: writes and reads of a step");
}

// --- what is refused -------------------------------------------------------------------------------------------------

#[test]
fn a_device_that_is_not_there_is_refused_and_auto_says_what_it_took() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    let run = |device, told: &[(&str, &str)]| {
        cuda.run(&place, &["run", "every_op.toml", "demos", "--force", "demos", "--device", device, "--no-out"], told)
    };
    let none = [("EMULATED_CUDA", "none")];
    for (device, told, says) in [
        ("cuda:1", &[][..], "cannot open CUDA device 1: there is one device here, `cuda:0`"),
        ("cuda", &none[..], "cannot open CUDA device 0: there is no driver or no GPU (CUDA_ERROR_NO_DEVICE)"),
    ] {
        let ran = run(device, told);
        assert_eq!(ran.code, Some(4), "{}", ran.stderr);
        assert!(ran.stderr.contains(says) && ran.stderr.contains("help: use `--device cpu`"), "{}", ran.stderr);
        assert!(!place.path("store/v1/runs").exists(), "a run began");
    }
    for (told, says) in [
        (
            &none[..],
            "device: cpu: no CUDA device could be opened (there is no driver or no GPU (CUDA_ERROR_NO_DEVICE))",
        ),
        (&[][..], "device: emulated device (cuda:0, compute capability 9.0), found"),
    ] {
        let ran = run("auto", told);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    // One that is there and cannot be used is no reason to do without it.
    let ran = run("auto", &[("EMULATED_CUDA_MEMORY", "1000000")]);
    let says = ["cannot open CUDA device 0: memory for products", "help: use `--device cpu` to do without it"];
    assert!(ran.code != Some(0) && says.iter().all(|says| ran.stderr.contains(says)), "{}", ran.stderr);
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_what_would_and_nothing_is_lost() {
    let Some(cuda) = cuda() else { return };
    let place = every_op();
    let args = ["run", "counted.toml", "full", "lora", "--device", "cuda", "--no-out", "--set", "updates=2"];
    let run = |memory: u64, more: &[&str]| {
        let memory = ((memory << 20) + WORKSPACE).to_string();
        let told = [("EMULATED_CUDA", "count"), ("EMULATED_CUDA_MEMORY", memory.as_str())];
        cuda.run(&place, &[&args[..], more].concat(), &told)
    };
    // Enough for an adapter, and not for gradients and moments of all weights.
    let ran = run(38, &[]);
    assert_ne!(ran.code, Some(0));
    let says = [
        "failed full: ",
        "there is no room for 50.7 MiB of device memory: ",
        "emulated device (cuda:0, compute capability 9.0) has 38.0 MiB of 70.0 MiB free",
        "what would fit: rows of 512 tokens (`row_tokens`, `max_length`), or `lora`",
    ];
    for says in says {
        assert!(ran.stderr.contains(says), "`{says}`:\n{}", ran.stderr);
    }
    place.verify_is_clean();
    let before = place.ids();
    assert_eq!(before.keys().map(String::as_str).collect::<Vec<_>>(), ["demos", "lora", "model"]);
    // What would fit does, and what was made is taken as it is.
    let ran = run(38, &["--set", "step.full.row_tokens=512"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let after = place.ids();
    assert!(before.iter().all(|(step, ids)| after[step] == *ids) && after.contains_key("full"));
    // With a little more, moments of half the size would do.
    let ran = run(47, &[]);
    let says = "what would fit: rows of 512 tokens (`row_tokens`, `max_length`), or `optimizer.moments = \"bfloat16\"`, or `lora`";
    assert!(ran.code != Some(0) && ran.stderr.contains(says), "{}", ran.stderr);
    let ran = run(47, &["--set", "step.full.optimizer.moments=bfloat16"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // No advice that would not help.
    let ran = run(24, &["--force", "lora"]);
    assert!(ran.code != Some(0) && !ran.stderr.contains("or `lora`"), "{}", ran.stderr);
}

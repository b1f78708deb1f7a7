//! Runs among stops, other processes, scarce resources and the journal.
#![expect(clippy::unwrap_used, reason = "tests")]

mod run_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actloom_cache::Store;
use actloom_engine::event::{Event, Reporter};
use actloom_engine::graph::Graph;
use actloom_engine::journal::{Ending, Journal};
use actloom_engine::op::{DeviceRequest, DynOp, OpError, Resources};
use actloom_engine::plan::{Goal, Verdict, nearest_action, plan};
use actloom_engine::reason::Reason;
use actloom_engine::run::{RunError, RunOptions, run};
use actloom_engine::schedule::State;
use actloom_engine::stop::Stop;
use run_support::{Memory, concat, fail, graph, home, on, op, options, run_all, run_goal, text};
use serde_json::json;

/// A training loop: state is a running sum, a checkpoint follows every third step, a metric every step.
fn train(stop_at: Option<(u64, Stop)>) -> Arc<dyn DynOp> {
    op("train", move |params, ctx| {
        let checkpoint = ctx.scratch().join("checkpoint.json");
        let (mut done, mut sum) = (0u64, 0.0f64);
        if checkpoint.exists() {
            (done, sum) = serde_json::from_slice(&fs_err::read(&checkpoint)?).unwrap();
            ctx.resume_metrics(done)?;
        }
        for step in done + 1..=params["steps"].as_u64().unwrap() {
            sum += 1.0 / step as f64;
            ctx.metric(step, "sum", sum);
            if step % 3 == 0 {
                ctx.sync_metrics()?;
                fs_err::write(&checkpoint, serde_json::to_vec(&(step, sum)).unwrap())?;
            }
            if let Some((at, stop)) = &stop_at
                && step == *at
            {
                stop.set();
            }
            if ctx.stopping() {
                return Err(OpError::Interrupted);
            }
        }
        Ok(fs_err::write(ctx.output("out"), format!("{sum:?}"))?)
    })
}

#[test]
fn interrupted_and_resumed_equals_uninterrupted() {
    let build = |stop| {
        graph()
            .step("train", &train(stop), json!({"steps": 20}), &[])
            .step("after", &concat(), json!({}), &["train"])
            .done()
    };
    let whole = run_all(&build(None), &home().store);
    let home = home();
    for at in [5, 13] {
        let stop = Stop::new();
        let stopped = run_goal(&build(Some((at, stop.clone()))), &home.store, &Goal::default(), &stop, &options());
        assert_eq!((stopped.summary.interrupted, stopped.summary.skipped), (1, 1));
        assert!(stopped.summary.stopped);
        assert!(home.store.actions().unwrap().is_empty());
    }
    let resumed = run_all(&build(None), &home.store);
    assert_eq!(resumed.contents(), whole.contents());
    let provenance = &resumed.summary.steps[0].action.as_ref().unwrap().provenance;
    assert_eq!(provenance["resumed_from"], 12, "it did continue");
    assert_eq!(text(&resumed, &home.store, "train", "metrics").lines().count(), 20);
    assert_eq!(home.store.usage().unwrap().scratch.count, 0, "the scratch goes when the result is published");
}

#[test]
fn an_op_that_stops_unasked_fails() {
    let lazy = op("lazy", |_, _| Err(OpError::Interrupted));
    let ran = run_all(&graph().step("a", &lazy, json!({}), &[]).done(), &home().store);
    assert_eq!(ran.summary.steps[0].state, State::Failed);
    assert_eq!(ran.summary.steps[0].cause.as_deref(), Some("op `lazy` stopped although nobody asked it to"));
}

#[test]
fn a_run_that_is_stopped_before_it_begins_skips_everything() {
    let stop = Stop::new();
    stop.set();
    let graph = graph().step("a", &concat(), json!({}), &[]).step("b", &concat(), json!({}), &["a"]).done();
    let ran = run_goal(&graph, &home().store, &Goal::default(), &stop, &options());
    assert_eq!((ran.names().len(), ran.summary.skipped), (0, 2));
    assert_eq!(ran.summary.steps[1].cause.as_deref(), Some("the run was stopped"));
}

#[test]
fn without_keep_going_nothing_starts_after_a_failure() {
    let one = RunOptions { slots: Resources { cpu: 1, gpu: 0 }, keep_going: false };
    let graph = graph().step("bad", &fail(), json!({}), &[]).step("fine", &concat(), json!({}), &[]).done();
    let ran = run_goal(&graph, &home().store, &Goal::default(), &Stop::new(), &one);
    assert_eq!(ran.names(), ["bad"]);
    assert_eq!(ran.summary.steps[1].cause.as_deref(), Some("another step failed"));
    assert!(!ran.summary.stopped);
}

/// A step that says how many are at work, and works until `together` are (or a while has passed).
fn crowd(now: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>, together: usize) -> Arc<dyn DynOp> {
    let (now, most) = (Arc::clone(now), Arc::clone(most));
    op("crowd", move |_, ctx| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let clock = Instant::now();
        while most.load(Ordering::SeqCst) < together && clock.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(10));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(fs_err::write(ctx.output("out"), "")?)
    })
}

fn most_at_once(cpu: u32, each: u32, together: usize) -> usize {
    let (now, most) = (Arc::default(), Arc::default());
    let op = crowd(&now, &most, together);
    let mut build = graph();
    for n in 0..6 {
        build = build.step(&format!("s{n}"), &op, json!({"n": n}), &[]).with(|node| node.resources.cpu = each);
    }
    let options = RunOptions { slots: Resources { cpu, gpu: 0 }, keep_going: true };
    let ran = run_goal(&build.done(), &home().store, &Goal::default(), &Stop::new(), &options);
    assert!(ran.summary.is_complete());
    most.load(Ordering::SeqCst)
}

#[test]
fn steps_run_in_parallel_and_never_beyond_the_slots() {
    assert_eq!(most_at_once(3, 1, 3), 3);
    assert_eq!(most_at_once(5, 2, 2), 2);
    assert_eq!(most_at_once(2, 64, 1), 1, "a step that wants more than there is gets the whole machine");
}

#[test]
fn a_step_that_wants_a_gpu_which_the_run_has_not_is_refused_before_anything_starts() {
    let home = home();
    let graph =
        graph().step("a", &concat(), json!({}), &[]).with(|node| node.resources = Resources { cpu: 1, gpu: 2 }).done();
    let plan_on = |device| plan(&graph, &on(device), &home.store).unwrap();
    let mut memory = Memory::default();
    let slots = Resources { cpu: 1, gpu: 1 };
    let mut go = |device| {
        let options = RunOptions { slots, keep_going: true };
        run(&graph, &plan_on(device), &home.store, &mut memory, &Stop::new(), &options)
    };
    let error = go(DeviceRequest::Cuda(0)).unwrap_err();
    assert!(matches!(&error, RunError::NoGpu { step, wants: 2, has: 1 } if step == "a"));
    assert_eq!(error.to_string(), "step `a` wants 2 GPUs and the run has 1");
    assert!(go(DeviceRequest::Cpu).unwrap().is_complete(), "a run that is held to the CPU needs no GPU");
    assert!(go(DeviceRequest::Cuda(0)).unwrap().is_complete(), "a result that is there needs no GPU either");
}

#[test]
fn where_no_gpu_was_found_no_step_occupies_one() {
    let home = home();
    let graph =
        graph().step("a", &concat(), json!({}), &[]).with(|node| node.resources = Resources { cpu: 1, gpu: 1 }).done();
    let plan = plan(&graph, &on(DeviceRequest::Auto), &home.store).unwrap();
    let options = RunOptions { slots: Resources { cpu: 1, gpu: 0 }, keep_going: true };
    let ran = run(&graph, &plan, &home.store, &mut Memory::default(), &Stop::new(), &options);
    assert!(ran.unwrap().is_complete());
}

#[test]
fn two_runs_over_one_store_run_each_step_once() {
    let home = home();
    let count = Arc::new(AtomicUsize::new(0));
    let slow = {
        let count = Arc::clone(&count);
        op("slow", move |params, ctx| {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(30));
            Ok(fs_err::write(ctx.output("out"), params.to_string())?)
        })
    };
    let mut build = graph().step("root", &slow, json!({}), &[]);
    for n in 0..5 {
        build = build.step(&format!("s{n}"), &slow, json!({"n": n}), &["root"]);
    }
    let graph = build.done();
    let results: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| {
                let store = Store::open(home.store.root()).unwrap();
                let graph = &graph;
                scope.spawn(move || run_all(graph, &store))
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(count.load(Ordering::SeqCst), 6);
    assert!(results.iter().all(|ran| ran.summary.is_complete() && ran.contents() == results[0].contents()));
    let published: usize = results.iter().map(|ran| ran.summary.published).sum();
    assert_eq!(published, 6);
}

#[test]
fn a_run_that_waits_for_a_lock_stops_when_asked() {
    let home = home();
    let graph = graph().step("a", &concat(), json!({}), &[]).done();
    let planned = plan(&graph, &Goal::default(), &home.store).unwrap();
    let Verdict::Run { key, .. } = &planned.steps[0].verdict else { panic!() };
    let _held = Store::open(home.store.root()).unwrap().lock(key).unwrap().unwrap();
    struct StopWhenQueued(Stop, Memory);
    impl Reporter for StopWhenQueued {
        fn event(&mut self, event: &Event) {
            self.1.event(event);
            if matches!(event, Event::Queued { .. }) {
                self.0.set();
            }
        }
    }
    let stop = Stop::new();
    let mut reporter = StopWhenQueued(stop.clone(), Memory::default());
    let summary = run(&graph, &planned, &home.store, &mut reporter, &stop, &options()).unwrap();
    assert_eq!((summary.skipped, summary.stopped), (1, true));
    let queued = Event::Queued { node: "a".into(), why: "another process works on it".into() };
    assert!(reporter.1.0.contains(&queued));
}

fn reasons(graph: &Graph, store: &Store, node: &str) -> Vec<Reason> {
    match &plan(graph, &Goal::default(), store).unwrap().step(node).unwrap().verdict {
        Verdict::Reuse { .. } => Vec::new(),
        Verdict::Run { reasons, .. } | Verdict::Pending { reasons, .. } => reasons.clone(),
    }
}

fn chain(change: impl Fn(&mut actloom_engine::graph::Node)) -> Graph {
    graph()
        .step("a", &concat(), json!({"reward": {"correct": 1.0}, "mode": "x"}), &[])
        .with(change)
        .step("b", &concat(), json!({}), &["a"])
        .done()
}

#[test]
fn reasons_carry_old_and_new() {
    let home = home();
    assert_eq!(reasons(&chain(|_| {}), &home.store, "a"), [Reason::NeverRan]);
    assert_eq!(reasons(&chain(|_| {}), &home.store, "b"), [Reason::NeverRan]);
    let first = run_all(&chain(|_| {}), &home.store);
    assert_eq!(reasons(&chain(|_| {}), &home.store, "a"), []);

    let param = chain(|node| node.params["reward"]["correct"] = json!(2.0));
    let changed = Reason::ParamChanged { path: "reward.correct".into(), old: Some(json!(1.0)), new: Some(json!(2.0)) };
    assert_eq!(reasons(&param, &home.store, "a"), std::slice::from_ref(&changed));
    assert_eq!(changed.to_string(), "`reward.correct` 1.0 -> 2.0");
    let pending = plan(&param, &Goal::default(), &home.store).unwrap();
    let Verdict::Pending { because, reasons: known } = &pending.step("b").unwrap().verdict else { panic!() };
    assert_eq!((because.as_slice(), known.as_slice()), (["a".to_owned()].as_slice(), [].as_slice()));

    let gone = chain(|node| drop(node.params.as_object_mut().unwrap().remove("mode")));
    assert_eq!(
        reasons(&gone, &home.store, "a"),
        [Reason::ParamChanged { path: "mode".into(), old: Some(json!("x")), new: None }]
    );
    let seed = chain(|node| node.seed = 7);
    assert_eq!(reasons(&seed, &home.store, "a"), [Reason::SeedChanged { old: json!(0), new: json!(7) }]);
    let version = chain(|node| {
        node.op = Arc::new(run_support::TestOp { name: "concat", version: 2, body: Box::new(|_, _| Ok(())) });
    });
    assert_eq!(reasons(&version, &home.store, "a"), [Reason::OpVersion { old: json!(1), new: json!(2) }]);

    // When the input is known and differs, it is named with both contents and the step that makes it.
    let goal = Goal { steps: vec!["a".into()], ..Goal::default() };
    let second = run_goal(&param, &home.store, &goal, &Stop::new(), &options());
    let id = |ran: &run_support::Ran| json!({"id": ran.contents()[&("a".to_owned(), "out".to_owned())]});
    let input = Reason::InputChanged {
        input: "in".into(),
        from: Some("a".into()),
        old: Some(id(&first)),
        new: Some(id(&second)),
    };
    assert_eq!(reasons(&param, &home.store, "b"), [input]);

    let forced = Goal { force: vec!["a".into()], ..Goal::default() };
    let plan = plan(&chain(|_| {}), &forced, &home.store).unwrap();
    assert!(
        matches!(&plan.steps[0].verdict, Verdict::Run { reasons, .. } if matches!(reasons.as_slice(), [Reason::Forced]))
    );
}

#[test]
fn a_lost_output_and_a_collected_record_are_told_apart() {
    let home = home();
    let ran = run_all(&chain(|_| {}), &home.store);
    let action = ran.summary.steps[0].action.clone().unwrap();
    fs_err::remove_file(home.store.path_of(&action.outputs["out"]).unwrap()).unwrap();
    assert_eq!(reasons(&chain(|_| {}), &home.store, "a"), [Reason::OutputLost { outputs: vec!["out".into()] }]);
    let key = action.key.to_string();
    fs_err::remove_file(home.store.root().join(format!("v1/actions/{}/{key}.json", &key[..2]))).unwrap();
    assert_eq!(reasons(&chain(|_| {}), &home.store, "a"), [Reason::Collected { key: action.key }]);
}

#[test]
fn a_step_that_never_ran_is_compared_with_the_nearest_of_its_op() {
    let home = home();
    run_all(&chain(|_| {}), &home.store);
    let renamed = graph()
        .step("fresh", &concat(), json!({"reward": {"correct": 3.0}, "mode": "x"}), &[])
        .step("other", &fail(), json!({}), &[])
        .done();
    let planned = plan(&renamed, &Goal::default(), &home.store).unwrap();
    let nearest = nearest_action(&renamed, &planned, planned.steps[0].node, &home.store).unwrap().unwrap();
    assert_eq!((nearest.recipe.as_deref(), nearest.step.as_deref()), (Some("test"), Some("a")));
    assert_eq!(nearest.differs.len(), 1);
    assert_eq!(nearest.differs[0].to_string(), "`reward.correct` 1.0 -> 3.0");
    assert_eq!(nearest_action(&renamed, &planned, planned.steps[1].node, &home.store).unwrap(), None);
}

#[test]
fn a_plan_prints_as_json() {
    let home = home();
    let goal = Goal { steps: vec!["a".into()], ..Goal::default() };
    run_goal(&chain(|_| {}), &home.store, &goal, &Stop::new(), &options());
    let plan = plan(&chain(|node| node.seed = 1), &Goal::default(), &home.store).unwrap();
    let mut json = serde_json::to_value(&plan).unwrap();
    json["steps"][0]["key"].take();
    assert_eq!(
        json,
        json!({
            "recipe": "test", "device": "auto",
            "counts": {"steps": 2, "reuse": 0, "run": 1, "pending": 1},
            "steps": [
                {"name": "a", "step": "a", "op": "concat", "verdict": "run", "key": null,
                 "reasons": [{"reason": "seed_changed", "old": 0, "new": 1}], "forced": false},
                {"name": "b", "step": "b", "op": "concat", "verdict": "pending", "because": ["a"],
                 "reasons": [{"reason": "never_ran"}], "forced": false},
            ],
        })
    );
}

#[test]
fn the_journal_lists_runs_with_their_endings() {
    let home = home();
    let journal = Journal::of(&home.store);
    assert!(journal.runs().unwrap().is_empty());
    run_all(&chain(|_| {}), &home.store);
    run_all(&graph().step("bad", &fail(), json!({}), &[]).done(), &home.store);
    let stop = Stop::new();
    stop.set();
    run_goal(&chain(|node| node.seed = 3), &home.store, &Goal::default(), &stop, &options());
    let runs = journal.runs().unwrap();
    let endings: Vec<Ending> = runs.iter().map(|run| run.ending).collect();
    assert_eq!(endings, [Ending::Finished, Ending::Failed, Ending::Interrupted]);
    assert_eq!(runs[0].summary.as_ref().unwrap()["published"], 2);
    assert_eq!(runs[0].record.to_run.len(), 2);
    // A run whose process died leaves no summary behind.
    let dir = home.store.runs_dir().join(&runs[1].record.id);
    fs_err::remove_file(dir.join("summary.json")).unwrap();
    assert_eq!(journal.runs().unwrap()[1].ending, Ending::Killed);
    let events = fs_err::File::open(dir.join("events.jsonl")).unwrap();
    events.file().lock().unwrap();
    assert_eq!(journal.runs().unwrap()[1].ending, Ending::Running);
    let lines = fs_err::read_to_string(dir.join("events.jsonl")).unwrap();
    let kinds: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["run_started", "started", "failed", "run_finished"]);
}

#[test]
fn recipes_with_odd_names_keep_their_own_last_keys() {
    let home = home();
    for name in ["a/b", "a%2fb", "..", "ü"] {
        let mut graph = chain(|_| {});
        graph.name = name.into();
        assert_eq!(Journal::of(&home.store).last(name).unwrap().len(), 0, "{name}");
        run_all(&graph, &home.store);
        assert_eq!(Journal::of(&home.store).last(name).unwrap().len(), 2, "{name}");
    }
}

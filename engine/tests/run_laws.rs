//! The laws of running: what is reused, what runs again, and that the result is the same either way.
#![expect(clippy::unwrap_used, reason = "tests")]

mod run_support;

use actloom_cache::Store;
use actloom_engine::graph::Graph;
use actloom_engine::plan::{Goal, Verdict, plan};
use actloom_engine::schedule::State;
use actloom_engine::stop::Stop;
use proptest::prelude::*;
use run_support::{concat, fail, graph, home, op, options, run_all, run_goal, text};
use serde_json::json;

/// a -> b -> d, a -> c -> d, and e alone.
fn diamond(rate: f64) -> Graph {
    let op = concat();
    graph()
        .step("a", &op, json!({"n": 1}), &[])
        .step("b", &op, json!({"rate": rate}), &["a"])
        .step("c", &op, json!({}), &["a"])
        .step("d", &op, json!({}), &["b", "c"])
        .step("e", &op, json!({"alone": true}), &[])
        .done()
}

#[test]
fn a_cached_run_equals_an_uncached_one() {
    let (home, other) = (home(), home());
    let first = run_all(&diamond(0.1), &home.store);
    assert_eq!(first.names(), ["a", "b", "c", "d", "e"]);
    let second = run_all(&diamond(0.1), &home.store);
    assert_eq!(second.names(), [""; 0]);
    assert_eq!((second.summary.reused, second.summary.published), (5, 0));
    assert_eq!(second.plan.counts.reuse, 5);
    let elsewhere = run_all(&diamond(0.1), &other.store);
    assert_eq!(elsewhere.names().len(), 5);
    assert_eq!(first.contents(), second.contents());
    assert_eq!(first.contents(), elsewhere.contents());
    assert_eq!(first.contents().len(), 10, "each step has `out` and `metrics`");
}

#[test]
fn one_changed_parameter_reruns_exactly_its_descendants() {
    let home = home();
    run_all(&diamond(0.1), &home.store);
    let changed = run_all(&diamond(0.2), &home.store);
    assert_eq!(changed.names(), ["b", "d"]);
    let fresh = run_all(&diamond(0.2), &run_support::home().store);
    assert_eq!(changed.contents(), fresh.contents());
    assert_eq!(run_all(&diamond(0.1), &home.store).names(), [""; 0], "the old results are still there");
}

#[test]
fn a_renamed_step_is_reused() {
    let home = home();
    run_all(&diamond(0.1), &home.store);
    let mut renamed = diamond(0.1);
    for node in renamed.nodes.node_weights_mut() {
        node.step = format!("new_{}", node.step);
    }
    renamed.name = "another recipe".into();
    assert_eq!(run_all(&renamed, &home.store).names(), [""; 0]);
}

#[test]
fn the_same_bytes_stop_the_ripple() {
    let home = home();
    let parity = op("parity", |params, ctx| {
        Ok(fs_err::write(ctx.output("out"), format!("{}", params["n"].as_u64().unwrap() % 2))?)
    });
    let build = |n: u64| {
        graph()
            .step("a", &parity, json!({"n": n}), &[])
            .step("b", &concat(), json!({}), &["a"])
            .step("c", &concat(), json!({}), &["b"])
            .done()
    };
    run_all(&build(2), &home.store);
    let even = run_all(&build(4), &home.store);
    assert_eq!(even.names(), ["a"]);
    assert!(matches!(even.plan.step("b").unwrap().verdict, Verdict::Pending { .. }));
    assert_eq!(run_all(&build(5), &home.store).names(), ["a", "b", "c"]);
}

#[test]
fn a_failed_step_takes_only_its_descendants_with_it() {
    let home = home();
    let build = |broken: bool| {
        let op = if broken { fail() } else { concat() };
        graph()
            .step("a", &concat(), json!({}), &[])
            .step("bad", &op, json!({}), &["a"])
            .step("child", &concat(), json!({}), &["bad"])
            .step("grandchild", &concat(), json!({}), &["child", "a"])
            .step("fine", &concat(), json!({"x": 1}), &["a"])
            .done()
    };
    let ran = run_all(&build(true), &home.store);
    let states: Vec<(&str, State)> = ran.summary.steps.iter().map(|s| (s.name.as_str(), s.state)).collect();
    assert_eq!(
        states,
        [
            ("a", State::Published),
            ("bad", State::Failed),
            ("child", State::Skipped),
            ("grandchild", State::Skipped),
            ("fine", State::Published)
        ]
    );
    assert_eq!(ran.summary.steps[1].cause.as_deref(), Some("the disk is square"));
    assert_eq!(ran.summary.steps[3].cause.as_deref(), Some("bad"));
    assert!(!ran.summary.is_complete());
    assert_eq!(run_all(&build(false), &home.store).names(), ["bad", "child", "grandchild"]);
}

#[test]
fn a_panic_fails_its_step_with_the_message_and_place() {
    let home = home();
    let panics = op("panics", |_, _| panic!("index 7 is out of {}", "bounds"));
    let ran = run_all(
        &graph().step("bad", &panics, json!({}), &[]).step("fine", &concat(), json!({}), &[]).done(),
        &home.store,
    );
    let cause = ran.summary.steps[0].cause.clone().unwrap();
    assert!(cause.starts_with("op `panics` panicked: index 7 is out of bounds (at "), "{cause}");
    assert!(cause.contains("run_laws.rs"), "{cause}");
    assert_eq!(ran.summary.steps[1].state, State::Published);
}

#[test]
fn an_output_that_an_op_forgot_fails_it_by_name() {
    let home = home();
    let lazy = op("lazy", |_, _| Ok(()));
    let ran = run_all(&graph().step("a", &lazy, json!({}), &[]).done(), &home.store);
    assert_eq!(ran.summary.steps[0].cause.as_deref(), Some("op `lazy` made no output `out`, which it declares"));
    assert!(home.store.actions().unwrap().is_empty());
    assert!(home.store.verify().unwrap().is_clean());
}

#[test]
fn an_input_is_read_only_and_an_output_may_be_a_folder() {
    let home = home();
    let folder = op("folder", |_, ctx| {
        fs_err::create_dir_all(ctx.output("out").join("deep"))?;
        Ok(fs_err::write(ctx.output("out").join("deep/file"), "text")?)
    });
    let meddler = op("meddler", |_, ctx| {
        let file = ctx.inputs("in")[0].path.join("deep/file");
        assert!(fs_err::metadata(&file)?.permissions().readonly());
        Ok(fs_err::write(ctx.output("out"), fs_err::read(file)?)?)
    });
    let graph = graph().step("a", &folder, json!({}), &[]).step("b", &meddler, json!({}), &["a"]).done();
    let ran = run_all(&graph, &home.store);
    assert_eq!(text(&ran, &home.store, "b", "out"), "text");
}

#[test]
fn only_the_goal_and_its_ancestors_run() {
    let home = home();
    let goal = |steps: &[&str]| Goal { steps: steps.iter().map(|s| (*s).to_owned()).collect(), ..Goal::default() };
    let ran = run_goal(&diamond(0.1), &home.store, &goal(&["b"]), &Stop::new(), &options());
    assert_eq!(ran.names(), ["a", "b"]);
    assert_eq!(ran.summary.steps.len(), 2);
    let error = plan(&diamond(0.1), &goal(&["bb"]), &home.store).unwrap_err();
    assert_eq!(error.to_string(), "recipe `test` has no step `bb`");
    let actloom_engine::plan::PlanError::UnknownStep { nearest, .. } = error else { panic!() };
    assert_eq!(nearest.as_deref(), Some("b"));
}

#[test]
fn variants_are_chosen_by_labels() {
    let home = home();
    let op = concat();
    let build = || {
        let mut build = graph();
        for (seed, size) in [("0", "s"), ("0", "l"), ("1", "s"), ("1", "l")] {
            build = build.step(&format!("t[seed={seed},size={size}]"), &op, json!({"seed": seed, "size": size}), &[]);
        }
        build.done()
    };
    let count = |name: &str| {
        let goal = Goal { steps: vec![name.to_owned()], ..Goal::default() };
        plan(&build(), &goal, &home.store).map(|plan| plan.counts.steps).unwrap_or(0)
    };
    let names = ["t", "t[*]", "@t[seed=0]", "t[size=l,seed=1]", "t[seed=2]", "t[seed", "t[seed]"];
    assert_eq!(names.map(count), [4, 4, 2, 1, 0, 0, 0]);
}

#[test]
fn a_forced_step_runs_again_and_equal_bytes_stop_there() {
    let home = home();
    run_all(&diamond(0.1), &home.store);
    let goal = Goal { force: vec!["a".into()], ..Goal::default() };
    let ran = run_goal(&diamond(0.1), &home.store, &goal, &Stop::new(), &options());
    assert_eq!(ran.names(), ["a"]);
    assert_eq!(ran.summary.reused, 4);
}

#[test]
fn a_forced_step_that_makes_other_bytes_is_told_on() {
    let home = home();
    let count = std::sync::atomic::AtomicU32::new(0);
    let dice = op("dice", move |_, ctx| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(fs_err::write(ctx.output("out"), n.to_string())?)
    });
    let graph = graph().step("a", &dice, json!({}), &[]).done();
    run_all(&graph, &home.store);
    let goal = Goal { force: vec!["a".into()], ..Goal::default() };
    let ran = run_goal(&graph, &home.store, &goal, &Stop::new(), &options());
    let action = ran.summary.steps[0].action.as_ref().unwrap();
    let message = action.provenance["messages"][0]["text"].as_str().unwrap();
    assert!(message.starts_with("output `out` has other bytes than last time, under the same key: "), "{message}");
    assert_eq!(text(&ran, &home.store, "a", "out"), "1");
}

#[test]
fn a_lost_object_is_made_again() {
    let home = home();
    let ran = run_all(&diamond(0.1), &home.store);
    let artifact = ran.summary.steps[1].action.as_ref().unwrap().outputs["out"].clone();
    fs_err::remove_file(home.store.path_of(&artifact).unwrap()).unwrap();
    let again = run_all(&diamond(0.1), &home.store);
    assert_eq!(again.names(), ["b"], "b comes out as it was, so d is reused");
    assert_eq!(again.contents(), ran.contents());
}

#[test]
fn steps_with_one_key_run_once_in_a_run() {
    let home = home();
    let op = concat();
    let build = |op| {
        graph()
            .step("a", op, json!({}), &[])
            .step("same", op, json!({}), &[])
            .step("again", op, json!({}), &[])
            .step("end", &concat(), json!({}), &["a", "same", "again"])
            .done()
    };
    let ran = run_all(&build(&op), &home.store);
    assert_eq!((ran.summary.published, ran.summary.reused), (2, 2));
    let broken = run_all(&build(&fail()), &home.store);
    assert_eq!((broken.names().len(), broken.summary.failed, broken.summary.skipped), (1, 3, 1));
}

#[test]
fn labels_that_an_op_reads_reach_it_and_others_do_not() {
    let home = home();
    let build = |label: &str, labelled: bool| {
        graph()
            .step(&format!("a[seed={label}]"), &concat(), json!({}), &[])
            .step("b", &concat(), json!({}), &[&format!("a[seed={label}]")])
            .with(|node| node.inputs[0].port.labelled = labelled)
            .done()
    };
    let blind = run_all(&build("0", false), &home.store);
    assert!(text(&blind, &home.store, "b", "out").contains(" {}\n"));
    assert_eq!(run_all(&build("1", false), &home.store).names(), [""; 0]);
    let seeing = run_all(&build("0", true), &home.store);
    assert_eq!(seeing.names(), ["b"]);
    assert!(text(&seeing, &home.store, "b", "out").contains(" {\"seed\": \"0\"}\n"));
    assert_eq!(run_all(&build("1", true), &home.store).names(), ["b"]);
}

#[test]
fn provenance_says_where_and_when_and_what_the_op_noted() {
    let home = home();
    let talker = op("talker", |_, ctx| {
        ctx.note("tokens_per_second", 12.5);
        ctx.say(actloom_engine::event::Level::Warning, "odd");
        ctx.metric(3, "kl", f64::INFINITY);
        Ok(fs_err::write(ctx.output("out"), "")?)
    });
    let ran = run_all(&graph().step("a[seed=1]", &talker, json!({}), &[]).done(), &home.store);
    let provenance = &ran.summary.steps[0].action.as_ref().unwrap().provenance;
    assert_eq!(provenance["recipe"], "test");
    assert_eq!(provenance["node"], "a[seed=1]");
    assert_eq!(provenance["labels"]["seed"], "1");
    assert_eq!(provenance["run"], json!(ran.summary.run));
    assert_eq!(provenance["notes"]["tokens_per_second"], 12.5);
    assert_eq!(provenance["messages"][0], json!({"level": "warning", "text": "odd"}));
    let second = provenance["messages"][1]["text"].as_str().unwrap();
    assert_eq!(second, "metric `kl` at step 3 is inf, recorded as null");
    assert!(provenance["finished"].as_str().unwrap() >= provenance["started"].as_str().unwrap());
    assert_eq!(text(&ran, &home.store, "a[seed=1]", "metrics"), "{\"step\":3,\"name\":\"kl\",\"value\":null}\n");
}

/// A random graph of concatenating steps; node `i` reads from nodes before it.
fn random_graph() -> impl Strategy<Value = (Vec<Vec<usize>>, usize)> {
    let sources = proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 0..3), 1..9);
    (sources, any::<prop::sample::Index>()).prop_map(|(picks, change)| {
        let count = picks.len();
        let sources = picks.into_iter().enumerate().map(|(node, picks)| match node {
            0 => Vec::new(),
            _ => picks.into_iter().map(|pick| pick.index(node)).collect(),
        });
        (sources.collect(), change.index(count))
    })
}

fn build(sources: &[Vec<usize>], changed: Option<usize>) -> Graph {
    let op = concat();
    let mut build = graph();
    for (node, from) in sources.iter().enumerate() {
        let from: Vec<String> = from.iter().map(|source| format!("s{source}")).collect();
        let from: Vec<&str> = from.iter().map(String::as_str).collect();
        build =
            build.step(&format!("s{node}"), &op, json!({"node": node, "v": u8::from(changed == Some(node))}), &from);
    }
    build.done()
}

/// Nodes that read from `node`, however indirectly, and itself.
fn descendants(sources: &[Vec<usize>], node: usize) -> Vec<String> {
    let mut marked = vec![false; sources.len()];
    marked[node] = true;
    for next in node + 1..sources.len() {
        marked[next] = sources[next].iter().any(|&source| marked[source]);
    }
    let mut names: Vec<String> = (0..sources.len()).filter(|&n| marked[n]).map(|n| format!("s{n}")).collect();
    names.sort();
    names
}

fn reopened(store: &Store) -> Store {
    Store::open(store.root()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]
    #[test]
    fn after_a_run_everything_is_reused_and_a_change_reruns_exactly_its_descendants((sources, changed) in random_graph()) {
        let home = home();
        run_all(&build(&sources, None), &home.store);
        let again = plan(&build(&sources, None), &Goal::default(), &reopened(&home.store)).unwrap();
        prop_assert_eq!(again.counts.reuse, sources.len());
        let ran = run_all(&build(&sources, Some(changed)), &home.store);
        prop_assert_eq!(ran.names(), descendants(&sources, changed));
        let fresh = run_all(&build(&sources, Some(changed)), &run_support::home().store);
        prop_assert_eq!(ran.contents(), fresh.contents());
        prop_assert!(home.store.verify().unwrap().is_clean());
    }
}

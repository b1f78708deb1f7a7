//! Keys: what enters them, what does not, and that they never change by accident.
#![expect(clippy::unwrap_used, reason = "tests")]

mod run_support;

use actloom_cache::{ActionKey, ContentId};
use actloom_engine::graph::Graph;
use actloom_engine::key::{self, KeyError, canonical};
use actloom_engine::op::{DeviceRequest, Resources};
use petgraph::graph::NodeIndex;
use run_support::{concat, graph};
use serde_json::{Value, json};

fn of(graph: &Graph, node: usize) -> ActionKey {
    key_on(graph, node, DeviceRequest::Auto).unwrap().key
}

fn key_on(graph: &Graph, node: usize, device: DeviceRequest) -> Result<key::Key, KeyError> {
    // The content of an input is a function of its node's index here.
    key::key(graph, NodeIndex::new(node), device, |source| ContentId::of_file(&[source.node().unwrap().index() as u8]))
}

fn two(change: impl FnOnce(&mut actloom_engine::graph::Node)) -> Graph {
    let op = concat();
    let params = json!({"rate": 1e-5, "steps": 100, "name": "a \"b\"\n", "mix": {"z": [1, 2.5, true, null], "a": 0.0}});
    graph().step("a", &op, json!({}), &[]).step("b", &op, params, &["a"]).with(change).done()
}

#[test]
fn a_key_is_what_it_was_when_the_format_was_fixed() {
    let key = key_on(&two(|_| {}), 1, DeviceRequest::Auto).unwrap();
    let bytes = canonical(&key.manifest).unwrap();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        concat!(
            r#"{"inputs":{"in":[{"id":"2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"}]},"#,
            r#""op":"concat","params":{"mix":{"a":0e0,"z":[1,2.5e0,true,null]},"name":"a \"b\"\u000a","#,
            r#""rate":1e-5,"steps":100},"seed":0,"v":1,"version":1}"#
        )
    );
    assert_eq!(key.key.to_string(), "f3807bd1e094330c62e91d05a3b610079703c8a4eb96fafe277305ba4b97764c");
}

#[test]
fn everything_that_changes_results_changes_the_key() {
    let base = of(&two(|_| {}), 1);
    type Change = Box<dyn Fn(&mut actloom_engine::graph::Node)>;
    let changes: Vec<(&str, Change)> = vec![
        ("parameter", Box::new(|n| n.params["steps"] = json!(101))),
        ("integer became float", Box::new(|n| n.params["steps"] = json!(100.0))),
        ("new parameter", Box::new(|n| n.params["more"] = Value::Null)),
        ("seed", Box::new(|n| n.seed = 1)),
        ("input gone", Box::new(|n| n.inputs[0].sources.clear())),
        ("input twice", Box::new(|n| n.inputs[0].sources = vec![n.inputs[0].sources[0].clone(); 2])),
        ("port", Box::new(|n| n.inputs[0].port.name = "other")),
        ("labels read", Box::new(|n| n.inputs[0].port.labelled = true)),
        ("names read", Box::new(|n| n.inputs[0].port.named = true)),
    ];
    let mut keys = vec![base];
    for (what, change) in &changes {
        let key = of(&two(change), 1);
        assert!(!keys.contains(&key), "{what} does not change the key");
        keys.push(key);
    }
}

#[test]
fn names_resources_and_labels_that_nobody_reads_leave_the_key_alone() {
    let base = of(&two(|_| {}), 1);
    assert_eq!(of(&two(|n| n.step = "other".into()), 1), base);
    assert_eq!(of(&two(|n| n.labels = [("seed".to_owned(), "3".to_owned())].into()), 1), base);
    assert_eq!(of(&two(|n| n.resources = Resources { cpu: 7, gpu: 1 }), 1), base);
    let mut renamed = two(|_| {});
    renamed.nodes[NodeIndex::new(0)].step = "other".into();
    assert_eq!(of(&renamed, 1), base);
    let mut reordered = two(|n| {
        let Value::Object(params) = n.params.take() else { panic!() };
        n.params = Value::Object(params.into_iter().rev().collect());
    });
    reordered.about = "something else".into();
    assert_eq!(of(&reordered, 1), base);
}

#[test]
fn labels_and_names_enter_the_key_where_the_op_reads_them() {
    let with = |labelled: bool, named: bool, rename: bool| {
        let mut graph = two(|n| {
            n.inputs[0].port.labelled = labelled;
            n.inputs[0].port.named = named;
        });
        let source = &mut graph.nodes[NodeIndex::new(0)];
        if rename {
            source.step = "other".into();
        } else {
            source.labels = [("seed".to_owned(), "3".to_owned())].into();
        }
        of(&graph, 1)
    };
    assert_ne!(with(true, false, false), with(true, false, true), "labels are read");
    assert_ne!(with(true, true, false), with(true, true, true), "names are read");
}

#[test]
fn the_device_enters_the_key_of_pinned_steps_only() {
    let free = two(|_| {});
    let keys = |graph: &Graph| {
        [DeviceRequest::Cpu, DeviceRequest::Cuda(0), DeviceRequest::Cuda(1)]
            .map(|device| key_on(graph, 1, device).unwrap().key)
    };
    let [cpu, cuda, other] = keys(&free);
    assert!(cpu == cuda && cuda == other);
    let pinned = two(|n| n.pin_device = true);
    let [cpu, cuda, other] = keys(&pinned);
    assert!(cpu != cuda && cuda == other);
    assert_eq!(key_on(&pinned, 1, DeviceRequest::Auto).unwrap_err(), KeyError::UnsettledDevice);
}

#[test]
fn a_negative_zero_is_refused_by_path() {
    let graph = two(|n| n.params["mix"]["z"][1] = json!(-0.0));
    let error = key_on(&graph, 1, DeviceRequest::Auto).unwrap_err();
    assert_eq!(error, KeyError::NegativeZero { path: "params.mix.z.1".into() });
}

#[test]
fn a_key_can_be_made_again_from_a_stored_manifest() {
    let key = key_on(&two(|_| {}), 1, DeviceRequest::Auto).unwrap();
    let stored: Value = serde_json::from_str(&serde_json::to_string(&key.manifest).unwrap()).unwrap();
    assert_eq!(key::of_manifest(&stored).unwrap(), key.key);
}

#[test]
fn lineage_counts_variants_and_lists_steps_in_topological_order() {
    let op = concat();
    let graph = graph()
        .step("late", &op, json!({}), &[])
        .step("a", &op, json!({}), &[])
        .step("b[seed=0]", &op, json!({}), &["a"])
        .step("b[seed=1]", &op, json!({}), &["a", "late"])
        .step("unrelated", &op, json!({}), &["a"])
        .step("r", &op, json!({}), &["b[seed=0]", "b[seed=1]"])
        .done();
    let lineage = key::lineage(&graph, NodeIndex::new(5));
    let short: Vec<_> = lineage.iter().map(|l| (l.step.as_str(), l.variants, l.inputs.join(" "))).collect();
    assert_eq!(short, [("late", 1, String::new()), ("a", 1, String::new()), ("b", 2, "a late".to_owned())]);
}

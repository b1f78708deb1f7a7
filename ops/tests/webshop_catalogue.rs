//! The op `catalogue`, through the registry: made-up products, the user's files, stops.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::env::WorldSettings;
use actloom_ops::registry::registry;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

/// Keeps metrics, and asks to stop after some reports.
struct Sink {
    metrics: Mutex<BTreeMap<String, f64>>,
    left: Mutex<u64>,
    stop: Stop,
}

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        match event {
            OpEvent::Metric { name, value, .. } => drop(self.metrics.lock().unwrap().insert(name, value)),
            OpEvent::Progress(_) => {
                let mut left = self.left.lock().unwrap();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.stop.set();
                }
            }
            _ => {}
        }
    }
}

fn run(
    folder: &Utf8Path,
    params: Value,
    inputs: &[(&str, &Utf8Path)],
    stop_after: u64,
) -> Result<BTreeMap<String, f64>, OpError> {
    let registry = registry();
    let op = registry.get("catalogue").unwrap();
    let params = op.canonical(&params).unwrap();
    assert_eq!(op.check(&params), []);
    let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), folder.join(o.name))).collect();
    let artifact =
        |path: &Utf8Path| InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() };
    let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let stop = Stop::new();
    let sink = Sink { metrics: Mutex::default(), left: Mutex::new(stop_after), stop: stop.clone() };
    let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
    op.run(&params, &mut ctx)?;
    Ok(sink.metrics.into_inner().unwrap())
}

fn bytes(folder: &Utf8Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap())).collect()
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

#[test]
fn made_up_products_and_the_files_that_they_were_written_to_give_one_catalogue() {
    let (_keep, first) = folder();
    let synthetic = json!({ "synthetic": { "products": 1500, "goals": 60, "keep": true } });
    let metrics = run(&first, synthetic, &[], u64::MAX).unwrap();
    assert_eq!((metrics["products"], metrics["goals"]), (1500.0, 60.0));
    let (_keep_too, second) = folder();
    run(&second, json!({}), &[("files", &first.join("files"))], u64::MAX).unwrap();
    assert_eq!(bytes(&first.join("catalogue")), bytes(&second.join("catalogue")));
    for folder in [&first, &second] {
        assert_eq!(std::fs::read_dir(folder.join("scratch")).unwrap().count(), 0, "something was left in scratch");
    }
    let other = json!({ "price_seed": 1 });
    let (_keep_three, third) = folder();
    run(&third, other, &[("files", &first.join("files"))], u64::MAX).unwrap();
    assert_ne!(bytes(&first.join("catalogue"))["goals.jsonl"], bytes(&third.join("catalogue"))["goals.jsonl"]);
}

#[test]
fn a_stop_is_an_interruption_and_the_next_run_ends_with_the_same_bytes() {
    let synthetic = json!({ "synthetic": { "products": 3000, "goals": 30 } });
    let (_keep, whole) = folder();
    run(&whole, synthetic.clone(), &[], u64::MAX).unwrap();
    let (_keep_too, parts) = folder();
    for after in [2, 5] {
        assert!(matches!(run(&parts, synthetic.clone(), &[], after), Err(OpError::Interrupted)));
    }
    run(&parts, synthetic, &[], u64::MAX).unwrap();
    assert_eq!(bytes(&whole.join("catalogue")), bytes(&parts.join("catalogue")));
}

#[test]
fn sessions_are_played_in_a_catalogue() {
    let (_keep, at) = folder();
    run(&at, json!({ "synthetic": { "products": 400, "goals": 50 } }), &[], u64::MAX).unwrap();
    let world: WorldSettings = serde_json::from_value(json!({ "env": "webshop" })).unwrap();
    let suite = world.open(Some(&at.join("catalogue"))).unwrap();
    let mut env = suite.open("test", 0, 0).unwrap();
    assert!(env.reset().unwrap().text.contains("Instruction: [SEP]"));
    let goal = env.task().goal.clone();
    let page = env.step(&format!("search[{goal}]")).unwrap();
    assert!(page.text.contains("Page 1 (Total results: 50)"), "{}", page.text);
    assert!(world.open(None).is_err());
}

#[test]
fn files_without_what_is_asked_for_are_named() {
    let (_keep, at) = folder();
    let raw = at.join("raw");
    std::fs::create_dir_all(&raw).unwrap();
    let says = |params: Value, want: &str| {
        let why = run(&at, params, &[("files", &raw)], u64::MAX).unwrap_err().to_string();
        assert!(why.contains(want), "{why}");
    };
    says(json!({}), "has no `items_shuffle*.json`");
    std::fs::write(raw.join("items_shuffle.json"), "[]").unwrap();
    std::fs::write(raw.join("items_ins_v2.json"), "{}").unwrap();
    says(json!({}), "has no `items_human_ins*.json`");
    says(json!({ "goals": "synthetic" }), "none of 0 products has a goal");
}

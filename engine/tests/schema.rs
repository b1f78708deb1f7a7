//! What is said about ops to people and editors.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use actloom_engine::draw::{to_dot, to_mermaid};
use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Registry};
use actloom_engine::recipe::{Overrides, parse_text};
use actloom_engine::resolve::resolve;
use actloom_engine::schema::{op_reference, recipe_schema};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

fn validator() -> jsonschema::Validator {
    let schema = recipe_schema(&common::registry());
    assert!(jsonschema::meta::is_valid(&schema));
    jsonschema::draft202012::new(&schema).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    let recipe: toml::Value = toml::from_str(text).unwrap();
    let recipe = serde_json::to_value(recipe).unwrap();
    validator().iter_errors(&recipe).map(|e| format!("{} at {}", e, e.instance_path())).collect()
}

#[test]
fn the_schema_takes_the_papers_table() {
    assert_eq!(errors(include_str!("fixtures/table1.toml")), Vec::<String>::new());
}

#[test]
fn the_schema_refuses_unknown_keys_wrong_types_and_missing_ones() {
    let step = "[step.demos]\nop = \"demos\"\n";
    assert_eq!(errors(&format!("{step}count = \"$n\"")), Vec::<String>::new());
    for (wrong, what) in [
        ("count = 1\ncuont = 2", "an unknown key"),
        ("count = \"many\"", "a wrong type"),
        ("count = 0", "a value out of range"),
        ("split = \"id\"", "a missing parameter"),
        ("count = 1\nsplit = \"odd\"", "an unknown choice"),
        ("count = 1\nseed = \"x\"", "a wrong seed"),
    ] {
        assert!(!errors(&format!("{step}{wrong}")).is_empty(), "{what} was let through");
    }
    assert!(!errors("[step.a]\nop = \"sft\"\nmodel = \"base\"\ndata = \"@demos\"").is_empty(), "an input without `@`");
    assert!(!errors("[step.a]\nop = \"sft\"\nmodel = \"@base\"").is_empty(), "a missing input");
    assert!(!errors("nmae = \"x\"").is_empty(), "an unknown key at the top");
}

#[test]
fn a_file_that_extends_may_leave_things_out() {
    assert_eq!(errors("extends = \"base.toml\"\n[step.demos]\ncount = 1\n"), Vec::<String>::new());
    assert!(!errors("[step.demos]\ncount = 1\n").is_empty());
}

#[test]
fn the_reference_of_an_op_says_everything() {
    let registry = common::registry();
    let sft = op_reference(registry.get("sft").unwrap().as_ref());
    let sft = serde_json::to_value(sft).unwrap();
    assert_eq!(
        sft["params"][1],
        json!({
            "name": "epochs", "type": "an integer", "required": false, "default": 3,
            "range": "at least 1, at most 1000", "about": "Passes over the data.",
        })
    );
    let schedule = &sft["params"][3];
    assert_eq!(schedule["name"], "schedule");
    assert_eq!(schedule["choices"][1]["name"], "kind = \"cosine\"");
    assert_eq!(schedule["choices"][1]["about"], "Down to a share of the peak along a cosine.");
    assert_eq!(schedule["choices"][1]["params"][0]["name"], "floor");
    assert_eq!(sft["inputs"][1]["name"], "data");
    assert_eq!(sft["inputs"][1]["arity"], "many");
    assert_eq!(sft["outputs"][0]["kind"], "model");
    let pretrain = op_reference(registry.get("pretrain").unwrap().as_ref());
    assert!(pretrain.params[0].required && !pretrain.params[1].required);
    assert_eq!(pretrain.params[0].params.len(), 4, "keys of a table");
    let demos = op_reference(registry.get("demos").unwrap().as_ref());
    let split = demos.params.iter().find(|p| p.name == "split").unwrap();
    assert_eq!(split.choices[0].about, "Training tasks.");
}

/// An op with a port that comes with a parameter.
struct Judge;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JudgeParams {
    #[serde(default)]
    against: bool,
}

impl Op for Judge {
    type Params = JudgeParams;
    const NAME: &'static str = "judge";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "judges";
    fn ports(&self, params: &JudgeParams) -> Ports {
        let ports = Ports::new().input("model", Kind::MODEL, "who").output("scores", Kind::SCORES, "how well");
        if params.against { ports.input("other", Kind::MODEL, "against whom") } else { ports }
    }
    fn run(&self, _: &JudgeParams, _: &mut OpContext<'_>) -> Result<(), OpError> {
        Ok(())
    }
}

#[test]
fn ports_that_come_with_a_parameter_say_so() {
    let registry = Registry::new().with(Judge);
    let judge = op_reference(registry.get("judge").unwrap().as_ref());
    let when: Vec<Option<&str>> = judge.inputs.iter().map(|p| p.when.as_deref()).collect();
    assert_eq!(when, [None, Some("against = true")]);
    let schema = recipe_schema(&registry);
    let required = schema["$defs"]["complete_step"]["allOf"][0]["then"]["required"].clone();
    assert_eq!(required, json!(["model"]), "and are not required always");
    let known = schema["$defs"]["op.judge"]["properties"].as_object().map(|p| p.contains_key("other"));
    assert_eq!(known, Some(true));
}

const SMALL: &str = r#"
name = "a \"small\" one"
[matrix]
seed = [0, 1]
[step.base]
op = "pretrain"
from = { architecture = "qwen3", hidden_size = 64, layers = 2, heads = 2 }
tokens = 1000
[step.demos]
op = "demos"
count = 20
seed = "$seed"
[step.il]
op = "sft"
model = "@base"
data = ["@demos"]
[step.play]
op = "rollout"
policy = "$who"
each.who = { "a<b" = "@il" }
"#;

#[test]
fn graphs_are_drawn_by_step_and_by_variant() {
    let recipe = parse_text(Utf8Path::new("r.toml"), SMALL, &Overrides::default()).unwrap();
    let graph = resolve(&recipe, &common::registry()).map_err(|d| d.located()).unwrap();
    insta::assert_snapshot!(to_dot(&graph, false), @r#"
    digraph "a \"small\" one" {
      rankdir = LR
      node [shape = box, fontname = "sans-serif"]
      n0 [label = "base\npretrain"]
      n1 [label = "demos ×2\ndemos"]
      n2 [label = "il ×2\nsft"]
      n3 [label = "play ×2\nrollout"]
      n0 -> n2 [label = "model"]
      n1 -> n2 [label = "data"]
      n2 -> n3 [label = "policy"]
    }
    "#);
    insta::assert_snapshot!(to_mermaid(&graph, true), @r#"
    flowchart LR
      n0["base<br/>pretrain"]
      n1["demos[seed=0]<br/>demos"]
      n2["demos[seed=1]<br/>demos"]
      n3["il[seed=0]<br/>sft"]
      n4["il[seed=1]<br/>sft"]
      n5["play[seed=0,who=a#lt;b]<br/>rollout"]
      n6["play[seed=1,who=a#lt;b]<br/>rollout"]
      n0 -- "model" --> n3
      n0 -- "model" --> n4
      n1 -- "data" --> n3
      n2 -- "data" --> n4
      n3 -- "policy" --> n5
      n4 -- "policy" --> n6
    "#);
    let all: Value =
        json!([to_dot(&graph, true).matches("->").count(), to_mermaid(&graph, false).matches("-->").count()]);
    assert_eq!(all, json!([6, 3]));
}

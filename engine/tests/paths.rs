//! Inputs that are files and folders of the user's own: where they are looked for, what they do to keys, and that a run
//! never mixes two states of one.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
mod run_support;

use std::fs;
use std::sync::Arc;

use actloom_engine::draw::to_dot;
use actloom_engine::graph::{Graph, Outside, Source};
use actloom_engine::op::DynOp;
use actloom_engine::plan::plan;
use actloom_engine::reason::Reason;
use actloom_engine::recipe::{Overrides, parse};
use actloom_engine::resolve::resolve;
use actloom_engine::run::run;
use actloom_engine::schema::recipe_schema;
use actloom_engine::stop::Stop;
use camino::{Utf8Path, Utf8PathBuf};
use run_support::{Home, Memory, Ran, concat, graph, home, on, op, options, run_all};
use serde_json::json;

fn below(home: &Home, name: &str) -> Utf8PathBuf {
    let path = Utf8PathBuf::from_path_buf(home.dir.path().join(name)).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

fn outside(path: &Utf8Path) -> Source {
    Source::Outside(Outside { path: path.to_owned(), written: path.file_name().unwrap().to_owned() })
}

/// `read` reads the path, `after` reads `read`, `other` reads neither.
fn three(path: &Utf8Path, read: &Arc<dyn DynOp>) -> Graph {
    let concat = concat();
    graph()
        .step("read", read, json!({}), &[])
        .with(|node| node.inputs[0].sources = vec![outside(path)])
        .step("after", &concat, json!({}), &["read"])
        .step("other", &concat, json!({}), &[])
        .done()
}

fn ran(path: &Utf8Path, home: &Home) -> Ran {
    run_all(&three(path, &concat()), &home.store)
}

#[test]
fn a_path_counts_by_what_it_holds_and_not_by_where_it_is() {
    let home = home();
    let (path, moved) = (below(&home, "a/data"), below(&home, "b/renamed"));
    fs::write(&path, "one").unwrap();
    assert_eq!(ran(&path, &home).names(), ["after", "other", "read"]);
    assert!(ran(&path, &home).names().is_empty());
    fs::rename(&path, &moved).unwrap();
    assert!(ran(&moved, &home).names().is_empty(), "moved");
    fs::File::open(&moved).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert!(ran(&moved, &home).names().is_empty(), "touched");
    fs::write(&moved, "two").unwrap();
    let plan = plan(&three(&moved, &concat()), &on(Default::default()), &home.store).unwrap();
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["steps"][0]["reasons"][0]["reason"], "input_changed");
    assert_eq!(json["steps"][0]["reasons"][0]["from"], "renamed");
    assert_eq!(json["paths"][moved.as_str()]["bytes"], 3);
    assert_eq!(ran(&moved, &home).names(), ["after", "read"], "edited: it and what follows it");
    fs::write(&moved, "one").unwrap();
    assert!(ran(&moved, &home).names().is_empty(), "edited back");
}

#[test]
fn an_op_reads_a_path_where_it_is_and_the_store_keeps_no_copy() {
    let home = home();
    let path = below(&home, "data");
    let text = "what the user wrote\n".repeat(100);
    fs::write(&path, &text).unwrap();
    let told = op("told", |_, ctx| Ok(fs_err::write(ctx.output("out"), ctx.input("in").as_str())?));
    let ran = run_all(&three(&path, &told), &home.store);
    assert_eq!(run_support::text(&ran, &home.store, "read", "out"), path.as_str());
    let action = ran.summary.steps[0].action.clone().unwrap();
    assert_eq!(action.provenance["paths"]["in"][0], path.as_str());
    assert!(home.store.usage().unwrap().objects.bytes < text.len() as u64);
}

#[test]
fn a_path_that_changes_between_plan_and_run_fails_the_step() {
    let home = home();
    let path = below(&home, "data");
    fs::write(&path, "one").unwrap();
    let graph = three(&path, &concat());
    let plan = plan(&graph, &on(Default::default()), &home.store).unwrap();
    fs::write(&path, "two").unwrap();
    let summary = run(&graph, &plan, &home.store, &mut Memory::default(), &Stop::new(), &options()).unwrap();
    assert_eq!((summary.failed, summary.skipped, summary.published), (1, 1, 1));
    let cause = summary.steps[0].cause.clone().unwrap();
    assert!(cause.contains("`data` changed since the run was planned"), "{cause}");
}

#[test]
fn a_path_that_changes_while_it_is_read_leaves_no_result() {
    let home = home();
    let path = below(&home, "data");
    fs::write(&path, "one").unwrap();
    let edits = op("edits", |_, ctx| {
        fs_err::write(ctx.input("in"), "two")?;
        Ok(fs_err::write(ctx.output("out"), "")?)
    });
    let ran = run_all(&three(&path, &edits), &home.store);
    assert!(ran.summary.steps[0].cause.as_ref().unwrap().contains("changed since"));
    assert!(ran.summary.steps[0].action.is_none());
    let again = plan(&three(&path, &edits), &on(Default::default()), &home.store).unwrap();
    assert!(
        matches!(&again.steps[0].verdict, actloom_engine::plan::Verdict::Run { reasons, .. } if reasons.contains(&Reason::NeverRan))
    );
}

/// Resolves the file, and gives what feeds each step: absolute paths for what lies outside.
fn resolved(file: &Utf8Path, set: &[&str]) -> Result<Vec<String>, Vec<String>> {
    let overrides = Overrides { profile: None, set: set.iter().map(|s| (*s).to_owned()).collect() };
    let recipe = parse(file, &overrides).unwrap();
    let graph = resolve(&recipe, &common::registry())
        .map_err(|found| found.found.iter().map(|d| format!("{}: {}", d.code, d.message)).collect::<Vec<_>>())?;
    let fed = graph.nodes.node_weights().flat_map(|node| {
        let sources = node.inputs.iter().flat_map(|input| input.sources.iter().map(move |s| (input.port.name, s)));
        sources.map(|(port, source)| match source {
            Source::Step { node: from, .. } => format!("{}.{port} <- {}", node.display(), graph.nodes[*from].display()),
            Source::Outside(outside) => format!("{}.{port} <- {}", node.display(), outside.path),
        })
    });
    Ok(fed.collect())
}

const SFT: &str =
    "[step.demos]\nop = \"demos\"\ncount = 1\n[step.sft]\nop = \"sft\"\ndata = \"@demos\"\nlearning_rate = 0.1\n";

#[test]
fn a_path_is_looked_for_beside_the_file_that_writes_it() {
    let home = home();
    let (recipe, base) = (below(&home, "r/recipe.toml"), below(&home, "b/base.toml"));
    for model in ["r/m/one", "b/m/two"] {
        fs::create_dir_all(below(&home, model)).unwrap();
    }
    fs::write(&base, format!("[vars]\ntheirs = \"m/two\"\n{SFT}model = {{ path = \"m/two\" }}\n")).unwrap();
    let at = |path: &str| below(&home, path);
    let model = |text: &str, set: &[&str]| {
        fs::write(&recipe, format!("extends = \"../b/base.toml\"\n{text}")).unwrap();
        resolved(&recipe, set).unwrap().into_iter().find(|fed| fed.contains("sft.model")).unwrap()
    };
    assert_eq!(model("", &[]), format!("sft.model <- {}", at("r/../b/m/two")), "in the file that is extended");
    let own = format!("sft.model <- {}", at("r/m/one"));
    assert_eq!(model("[step.sft]\nmodel = { path = \"m/one\" }\n", &[]), own);
    assert_eq!(model("[vars]\nmine = \"m/one\"\n[step.sft]\nmodel = { path = \"$mine\" }\n", &[]), own);
    assert_eq!(model("[vars]\nm = { path = \"m/one\" }\n[step.sft]\nmodel = \"$m\"\n", &[]), own, "a whole input");
    assert_eq!(model("[vars]\nn = \"one\"\n[step.sft]\nmodel = { path = \"m/${n}\" }\n", &["n=one"]), own);
    let theirs = format!("sft.model <- {}", at("r/../b/m/two"));
    assert_eq!(model("[step.sft]\nmodel = { path = \"$theirs\" }\n", &[]), theirs, "where the variable is defined");
    let absolute = format!("m={}", at("b/m/two"));
    let given = model("[vars]\nm = \"m/one\"\n[step.sft]\nmodel = { path = \"$m\" }\n", &[&absolute]);
    assert_eq!(given, format!("sft.model <- {}", at("b/m/two")));
    // The tests run in the package's folder.
    let here = std::env::current_dir().unwrap().join("tests");
    let given = model("[vars]\nm = \"m/one\"\n[step.sft]\nmodel = { path = \"$m\" }\n", &["m=tests"]);
    assert_eq!(given, format!("sft.model <- {}", here.display()), "on the command line, the working folder");
}

#[test]
fn an_axis_may_hold_paths_and_a_list_may_mix_them_with_steps() {
    let home = home();
    let recipe = below(&home, "recipe.toml");
    fs::create_dir_all(below(&home, "m/small")).unwrap();
    fs::create_dir_all(below(&home, "m/big")).unwrap();
    fs::write(below(&home, "x.jsonl"), "").unwrap();
    let text = "[step.demos]\nop = \"demos\"\ncount = 1\n[step.sft]\nop = \"sft\"\n\
                each = { from = [{ path = \"m/small\" }, { path = \"m/big\" }] }\n\
                model = \"$from\"\ndata = [\"@demos\", { path = \"x.jsonl\" }]\nlearning_rate = 0.1\n";
    fs::write(&recipe, text).unwrap();
    let fed = resolved(&recipe, &[]).unwrap();
    for (name, path) in [("small", "m/small"), ("big", "m/big")] {
        let model = format!("sft[from={name}].model <- {}", below(&home, path));
        assert!(fed.contains(&model), "{fed:#?}");
        assert!(fed.contains(&format!("sft[from={name}].data <- {}", below(&home, "x.jsonl"))), "{fed:#?}");
        assert!(fed.contains(&format!("sft[from={name}].data <- demos")), "{fed:#?}");
    }
    let graph = resolve(&parse(&recipe, &Overrides::default()).unwrap(), &common::registry()).unwrap();
    let drawn = to_dot(&graph, false);
    assert!(drawn.contains("m/small\\npath") && drawn.contains("x.jsonl\\npath"), "{drawn}");
    let schema = jsonschema::draft202012::new(&recipe_schema(&common::registry())).unwrap();
    let value = serde_json::to_value(toml::from_str::<toml::Value>(text).unwrap()).unwrap();
    assert!(schema.is_valid(&value), "the schema takes what resolves");
}

#[test]
fn what_is_no_path_is_said_at_its_place() {
    let home = home();
    let recipe = below(&home, "recipe.toml");
    for (model, code, says) in [
        ("{ path = \"nowhere\" }", "missing-file", "there is no file or folder `nowhere`"),
        ("{ path = \"\" }", "wrong-type", "`path` is empty"),
        ("{ path = \"nowhere\", get = 3 }", "wrong-type", "`get` is an integer"),
        ("{ path = 3 }", "wrong-type", "`path` is an integer"),
        ("{ path = \".\", kind = \"model\" }", "unknown-key", "`kind` beside `path`"),
        ("{ file = \".\" }", "wrong-type", "is a table, expected the output of a step"),
        ("[{ path = \".\" }]", "wrong-arity", "takes one artifact"),
    ] {
        fs::write(&recipe, format!("{SFT}model = {model}\n")).unwrap();
        let found = resolved(&recipe, &[]).unwrap_err();
        assert_eq!(found.len(), 1, "{model}: {found:#?}");
        assert!(found[0].starts_with(code) && found[0].contains(says), "{model}: {found:#?}");
    }
}

#[test]
fn a_path_that_is_missing_says_where_to_get_it() {
    let home = home();
    let recipe = below(&home, "recipe.toml");
    let text = format!(
        "[vars]\nbase = {{ path = \"m/base\", get = \"huggingface.co/x\" }}\n{SFT}model = \"$base\"\n\
                        [step.more]\nop = \"sft\"\nmodel = \"$base\"\ndata = \"@demos\"\nlearning_rate = 0.1\n"
    );
    fs::write(&recipe, text).unwrap();
    let found = match resolve(&parse(&recipe, &Overrides::default()).unwrap(), &common::registry()) {
        Ok(_) => panic!("nothing is there"),
        Err(found) => found.found,
    };
    assert_eq!(found.len(), 1, "two steps read it");
    assert!(found[0].help.contains(&"get it: huggingface.co/x".to_owned()), "{:?}", found[0].help);
    fs::create_dir_all(below(&home, "m/base")).unwrap();
    let fed = resolved(&recipe, &[]).unwrap();
    assert!(fed.contains(&format!("sft.model <- {}", below(&home, "m/base"))), "{fed:?}");
}

//! Every recipe in `recipes/` and `recipes/study/` plans as it is and with each of its profiles; those of the paper say what
//! they are missing, and have every row of the paper's tables.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::{Place, root};

/// The recipes of a folder of `recipes/`, sorted.
fn recipes(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("recipes").join(folder)).unwrap();
    let mut recipes: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    recipes.sort();
    assert!(!recipes.is_empty());
    recipes
}

fn parsed(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn every_recipe_plans_with_each_of_its_profiles() {
    plan_with_each_profile(recipes(""));
}

#[test]
fn every_recipe_of_the_study_plans_with_each_of_its_profiles() {
    // What others extend is no recipe by itself.
    plan_with_each_profile(recipes("study").into_iter().filter(|path| path.file_name().unwrap() != "base.toml"));
}

fn plan_with_each_profile(recipes: impl IntoIterator<Item = PathBuf>) {
    let place = Place::new();
    for path in recipes {
        let parsed = parsed(&path);
        let profiles = parsed.get("profile").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let file = path.to_str().unwrap();
        // Recipes that begin with a model of the reader's own get the smallest one there is.
        let base = format!("base={}", root().join("ops/tests/fixtures/parity/model").display());
        let own = parsed.get("vars").and_then(|vars| vars.get("base")).is_some();
        let given: &[&str] = if own { &["--set", &base] } else { &[] };
        let plan = |args: &[&str]| place.json(&[&["plan", file], given, args].concat());
        let mut plans = vec![plan(&[])];
        plans.extend(profiles.keys().map(|name| plan(&["--profile", name])));
        for plan in plans {
            let steps = plan["steps"].as_array().unwrap();
            // In an empty store nothing can be reused, and what has no inputs can start.
            assert_eq!(plan["counts"]["reuse"], 0, "{file}");
            assert!(steps.len() >= parsed["step"].as_table().unwrap().len(), "{file} lost steps");
            assert!(steps.iter().any(|step| step["verdict"] == "run"), "nothing of {file} can start");
        }
    }
}

/// The variables of a recipe that name what its reader must bring.
const BROUGHT: [&str; 7] = ["base", "base4b", "games", "shop", "jar", "math", "gpqa"];

/// Rows of the paper's tables; it has one for both ways of Early Experience.
const V1: [&str; 9] = [
    "prompt",
    "CoT",
    "ACT",
    "IL",
    "Early Experience, world model",
    "Early Experience, self-reflection",
    "IL w/ ACT",
    "RL",
    "RL w/ ACT",
];
const SMALLER: [&str; 4] = ["Qwen3-4B: IL", "Qwen3-4B: IL w/ ACT", "Qwen3-4B: RL", "Qwen3-4B: RL w/ ACT"];
const V2: [&str; 11] = [
    "IL",
    "Early Experience, world model",
    "Early Experience, self-reflection",
    "IL -> IL",
    "ACT -> IL",
    "IL -> RL",
    "IL -> RL -> RL",
    "choice SFT -> IL -> RL",
    "DPO -> IL -> RL",
    "ACT, no reasoning -> IL -> RL",
    "ACT -> IL -> RL",
];

#[test]
fn the_papers_recipes_say_which_files_are_missing_and_where_to_get_them() {
    let place = Place::new();
    for path in ["paper/v1", "paper/v2"].into_iter().flat_map(recipes) {
        if path.file_name().unwrap() == "stages.toml" {
            continue;
        }
        let vars = parsed(&path)["vars"].as_table().unwrap().clone();
        let names: Vec<&str> = BROUGHT.into_iter().filter(|n| *n == "base" || vars.contains_key(*n)).collect();
        let file = path.to_str().unwrap();
        let ran = place.run(&["plan", file]);
        assert_eq!(ran.code, Some(3), "{file}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("error[missing-file]").count(), names.len(), "{file}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("help: get it: ").count(), names.len(), "{file}: {}", ran.stderr);
        assert!(names.iter().all(|name| ran.stderr.contains(&format!("--set {name}="))), "{file}: {}", ran.stderr);
        // With something at every path, all of it plans.
        let given: Vec<String> = names
            .iter()
            .map(|name| {
                place.write(name, name);
                format!("{name}={}", place.path(name).display())
            })
            .collect();
        let mut args = vec!["plan", file];
        given.iter().for_each(|given| args.extend(["--set", given]));
        let plan = place.json(&args);
        let steps = plan["steps"].as_array().unwrap();
        for step in ["act", "il", "rl", "play", "table"] {
            assert!(
                steps.iter().any(|s| s["step"].as_str().is_some_and(|s| s == step)),
                "{file} has no `{step}`: {plan}"
            );
        }
        // Every row of the paper's table is played, and nothing else is.
        let played: BTreeSet<&str> = steps
            .iter()
            .filter_map(|s| s["name"].as_str()?.strip_prefix("play")?.split_once("[method=")?.1.split_once(",seed="))
            .map(|(method, _)| method)
            .collect();
        let mut rows: BTreeSet<&str> = if path.parent().unwrap().ends_with("v1") { V1.into() } else { V2.into() };
        if file.ends_with("v1/alfworld.toml") {
            rows.extend(SMALLER);
        }
        assert_eq!(played, rows, "{file}");
    }
}

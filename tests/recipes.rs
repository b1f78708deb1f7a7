//! Every recipe in `recipes/` plans as it is and with each of its profiles; those of the paper say what they are missing.

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
    let place = Place::new();
    for path in recipes("") {
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
const BROUGHT: [&str; 6] = ["base", "games", "shop", "jar", "math", "gpqa"];

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
    }
}

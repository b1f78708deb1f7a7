//! Every recipe in `recipes/` plans as it is and with each of its profiles.

use crate::support::{Place, root};

#[test]
fn every_recipe_plans_with_each_of_its_profiles() {
    let place = Place::new();
    let mut recipes: Vec<_> = std::fs::read_dir(root().join("recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    recipes.sort();
    assert!(!recipes.is_empty());
    for path in recipes {
        let parsed: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
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

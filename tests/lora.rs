//! A model folder from elsewhere through `recipes/lora.toml`: imitated, played, compared, killed and taken up again.

use crate::support::{Place, Running, root, text};

/// The recipe in small: the smallest model there is with a template that forgets reasoning, as Qwen3's does; a few
/// episodes, a checkpoint after each update.
fn small(place: &Place) -> Vec<String> {
    let fixtures = root().join("ops/tests/fixtures");
    let base = place.path("base");
    std::fs::create_dir_all(&base).unwrap();
    for entry in std::fs::read_dir(fixtures.join("parity/model")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    std::fs::copy(fixtures.join("templates/reasoning.jinja"), base.join("chat_template.jinja")).unwrap();
    let recipe = root().join("recipes/lora.toml").display().to_string();
    let mut args = vec![recipe, "--profile".to_owned(), "look".to_owned()];
    for set in [
        format!("base={}", base.display()).as_str(),
        "step.demos.count=8",
        // Its tokenizer knows hardly more than bytes, and long episodes do not fit its positions.
        "step.tuned.on_long=truncate",
        "step.tuned.max_length=600",
        "step.tuned.checkpoint_every=1",
        "step.tuned.lora.rank=4",
    ] {
        args.extend(["--set".to_owned(), set.to_owned()]);
    }
    args
}

fn run<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run"];
    all.extend(args.iter().map(String::as_str));
    all.extend(more);
    all
}

#[test]
fn a_folder_from_elsewhere_goes_through_the_lora_recipe_and_a_killed_run_ends_with_the_same_bytes() {
    let (whole, killed) = (Place::new(), Place::new());
    let args = small(&whole);
    whole.ok(&run(&args, &[]));
    let table = whole.ok(&[&["show"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..], &["table"]].concat());
    assert!(table.stdout.contains("table.md"), "{}", table.stdout);
    // Everything is known now, and a plan says what the folder held.
    let plan = whole.json(&[&["plan"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    assert_eq!(plan["counts"]["reuse"], plan["counts"]["steps"], "{plan:#}");
    let (path, held) = plan["paths"].as_object().unwrap().iter().next().unwrap();
    assert!(path.ends_with("/base") && held["form"] == "tree", "{path}: {held}");

    // The folder stands elsewhere here, and is the same model.
    let args = small(&killed);
    let mut going = Running::start(killed.command(&run(&args, &["tuned", "--json"])));
    let reached = going.wait_for(|event| {
        text_of(&event["node"]) == "tuned"
            && event["report"]["event"] == "progress"
            && event["report"]["done"].as_u64() >= Some(2)
    });
    if !reached {
        panic!("`tuned` never got so far:\n{}", going.finish().stderr);
    }
    going.signal("KILL");
    assert_eq!(going.finish().code, None, "the kill came too late");
    killed.verify_is_clean();
    let mut first = None;
    let mut again = Running::start(killed.command(&run(&args, &["tuned", "--json"])));
    while let Some(event) = again.event() {
        if text_of(&event["node"]) == "tuned" && event["report"]["event"] == "progress" {
            first = first.or(event["report"]["done"].as_u64());
        }
    }
    let ran = again.finish();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(first >= Some(2), "`tuned` began anew at {first:?}");
    let (ours, theirs) = (killed.ids(), whole.ids());
    assert_eq!(ours["tuned"].keys().map(String::as_str).collect::<Vec<_>>(), ["adapter", "metrics", "model"]);
    assert_eq!(ours["tuned"], theirs["tuned"], "adapter, merged weights and metrics");
    killed.verify_is_clean();
}

fn text_of(value: &serde_json::Value) -> String {
    if value.is_null() { String::new() } else { text(value) }
}

#[test]
fn a_base_that_is_not_there_is_an_error_at_its_line() {
    let place = Place::new();
    let recipe = root().join("recipes/lora.toml").display().to_string();
    let ran = place.run(&["plan", &recipe]);
    assert_ne!(ran.code, Some(0));
    for says in ["error[missing-file]: there is no file or folder `base-model`", "looked at `", "lora.toml:"] {
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}

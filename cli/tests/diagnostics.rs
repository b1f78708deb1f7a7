//! What a wrong recipe looks like: the exact text of every kind of diagnostic.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../engine/tests/common/mod.rs"]
mod common;
#[path = "../src/render.rs"]
mod render;

use actloom_engine::recipe::{Overrides, parse, parse_text};
use actloom_engine::resolve::resolve;
use camino::Utf8Path;

/// The drawing of everything that is wrong with a recipe.
fn drawn(text: &str, overrides: &Overrides) -> String {
    let recipe = parse_text(Utf8Path::new("recipe.toml"), text, overrides);
    let found = recipe.and_then(|recipe| resolve(&recipe, &common::registry()).map(|_| ()));
    render::render(&found.unwrap_err(), false)
}

/// The same with the real ops.
fn really(text: &str) -> String {
    let recipe = parse_text(Utf8Path::new("recipe.toml"), text, &Overrides::default()).unwrap();
    let found = resolve(&recipe, &actloom_ops::registry::registry()).map(|_| ());
    render::render(&found.unwrap_err(), false)
}

/// Scores on the axes `policy` and `seed`, and tables of them.
fn tables(tables: &str) -> String {
    really(&format!(
        "[matrix]\nseed = [0, 1]\n[step.play]\nop = \"demos\"\neach = {{ policy = {{ il = 3, act = 4 }} }}\n\
         count = \"$policy\"\nseed = \"$seed\"\n[step.score]\nop = \"eval\"\nepisodes = \"@play\"\n{tables}"
    ))
}

fn wrong(text: &str) -> String {
    drawn(text, &Overrides::default())
}

fn set(text: &str, set: &[&str]) -> String {
    drawn(text, &Overrides { profile: None, set: set.iter().map(|s| (*s).to_owned()).collect() })
}

/// Steps that are right, for others to stand on.
const SOUND: &str = r#"[step.base]
op = "pretrain"
from = { architecture = "qwen3", hidden_size = 64, layers = 2, heads = 2 }
tokens = 1000

[step.demos]
op = "demos"
count = 20

[step.initial]
op = "sft"
model = "@base"
data = "@demos"

"#;

/// The drawing for a recipe that goes on after [`SOUND`].
fn after(text: &str) -> String {
    wrong(&format!("{SOUND}{text}"))
}

/// A step `rl` with the real ops, which goes on like this.
fn reinforced(text: &str) -> String {
    really(&format!(
        "[step.demos]\nop = \"demos\"\n\n[step.model]\nop = \"model\"\nworld = {{ env = \"household\" }}\n\n\
         [step.rl]\nop = \"rl\"\nmodel = \"@model\"\n{text}"
    ))
}

macro_rules! golden {
    ($($name:ident: $drawn:expr;)*) => {
        $(#[test]
        fn $name() {
            insta::assert_snapshot!($drawn);
        })*
    };
}

golden! {
    // --- the text ---
    text_that_is_no_toml_is_shown_where_it_breaks: wrong("name = \"a\nabout = \"b\"\n[step.base\nop = 1\n");
    a_key_written_twice_shows_both_places: wrong("[step.demos]\nop = \"demos\"\ncount = 1\ncount = 2\n");
    a_step_written_twice_shows_both_places: wrong("[step.demos]\nop = \"demos\"\ncount = 1\n\n[step.demos]\nop = \"demos\"\ncount = 2\n");
    a_key_written_twice_in_an_inline_table_shows_both_places: wrong("[step.a]\nop = \"pretrain\"\nfrom = { layers = 1, heads = 2, layers = 3 }\n");
    an_input_that_another_parameter_would_bring_names_it: reinforced("states = \"@demos\"\nvalidation = \"@demos\"\n");
    an_input_that_a_parameter_takes_away_is_said_to_be: reinforced("states = \"@demos\"\nepisodes = { split = \"train\", tasks = 4 }\n");
    a_dotted_key_written_twice_shows_both_places: wrong("[step.a]\nop = \"act\"\nreward.correct = 1.0\nreward.correct = 2.0\n");
    numbers_that_are_none_are_out_of_range: wrong("[vars]\na = nan\nb = 99999999999999999999\n");

    // --- the top ---
    an_unknown_top_level_key_is_named: wrong("nmae = \"x\"\nabout = 3\n[step.demos]\nop = \"demos\"\ncount = 1\n");
    a_recipe_without_steps_says_how_to_write_one: wrong("name = \"empty\"\n");
    numbers_that_are_none_do_not_hide_other_mistakes: set("[vars]\nrate = inf\n[step.demos]\nop = \"demos\"\ncount = 99999999999999999999\n[step.base]\nop = \"pretrane\"\n[step.a]\nop = \"sft\"\nmodel = \"@demos\"\ndata = \"@demos\"\nlearning_rate = \"$rate\"\nepoch = 1\n", &["step.a.limit=88888888888888888888"]);
    sections_that_are_no_tables_are_named: wrong("vars = 3\nstep = [\"a\"]\n");

    // --- ops and keys ---
    an_unknown_op_gets_the_nearest_name: wrong("[step.demos]\nop = \"demo\"\ncount = 1\n");
    a_step_without_op_lists_the_ops: wrong("[step.demos]\ncount = 1\n");
    an_unknown_key_gets_the_nearest_parameter: after("[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nlerning_rate = 1e-4\n");
    an_unknown_key_gets_the_nearest_input: after("[step.il]\nop = \"sft\"\nmodle = \"@base\"\ndata = \"@demos\"\n");
    an_unknown_key_that_is_like_nothing_lists_the_keys: after("[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\ntemperature = 0.7\n");
    an_unknown_nested_key_is_pointed_at: wrong("[step.base]\nop = \"pretrain\"\ntokens = 10\n[step.base.from]\narchitecture = \"qwen3\"\nhiden_size = 64\nlayers = 2\nheads = 2\n");
    a_missing_parameter_says_what_it_takes: wrong("[step.demos]\nop = \"demos\"\n");
    a_missing_input_says_who_makes_it: after("[step.il]\nop = \"sft\"\nmodel = \"@initial\"\n");

    // --- values ---
    a_wrong_type_is_pointed_at: wrong("[step.demos]\nop = \"demos\"\ncount = \"20\"\nsplit = true\n");
    a_float_for_an_integer_says_what_to_write: wrong("[step.demos]\nop = \"demos\"\ncount = 20.0\n");
    a_wrong_type_in_a_list_is_pointed_at: after("[step.alt]\nop = \"alternatives\"\npolicy = \"@initial\"\nstates = \"@demos\"\nper_state = 1\nkeep = [\"admissible\", 3, \"differs_from_exprt\"]\n");
    values_out_of_range_say_the_range: after("[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nepochs = 0\nlearning_rate = 1.0\nlimit = -1\n");
    an_unknown_choice_lists_the_choices: wrong("[step.demos]\nop = \"demos\"\ncount = 1\nsplit = \"odd\"\n");
    a_tagged_table_is_judged_by_its_tag: after("[step.a]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nschedule = { kind = \"cosine\", floor = 2.0 }\n[step.b]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nschedule = { kind = \"cosin\" }\n[step.c]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nschedule = { floor = 0.1 }\n[step.d]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nschedule = { kind = \"constant\", floor = 0.1 }\n");
    an_untagged_value_says_what_it_could_be: after("[step.a]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nwarmup = \"epochs\"\n[step.b]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nwarmup = [1]\n");
    what_the_op_itself_refuses_is_pointed_at: after("[step.pairs]\nop = \"pairs\"\nstates = \"@demos\"\nalternatives = \"@alt\"\n[step.alt]\nop = \"alternatives\"\npolicy = \"@initial\"\nstates = \"@demos\"\nper_state = 1\n[step.act]\nop = \"act\"\nmodel = \"@initial\"\npairs = \"@pairs\"\ngroup = 4\nreward = { correct = -1.0, admissible = 0.0, malformed = 0.0 }\n");
    settings_of_a_step_are_typed_too: wrong("[step.demos]\nop = \"demos\"\ncount = 1\nseed = -1\npin_device = \"yes\"\nresources = { cpu = 0, gpus = 1 }\n");
    text_for_a_parameter_that_is_a_reference_is_explained: after("[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nepochs = \"@demos\"\n");

    // --- references ---
    an_unknown_step_gets_the_nearest_name: after("[step.il]\nop = \"sft\"\nmodel = \"@intial\"\ndata = [\"@demos\", \"@demso\"]\n");
    an_unknown_output_gets_the_nearest_name: after("[step.il]\nop = \"sft\"\nmodel = \"@initial.modle\"\ndata = \"@demos\"\n");
    a_wrong_kind_says_what_is_made_and_what_is_taken: after("[step.il]\nop = \"sft\"\nmodel = \"@demos\"\ndata = [\"@demos\", \"@base\"]\n");
    metrics_are_no_model: after("[step.il]\nop = \"sft\"\nmodel = \"@base.metrics\"\ndata = \"@demos\"\n");
    text_without_the_at_sign_is_no_input: after("[step.il]\nop = \"sft\"\nmodel = \"initial\"\ndata = [3]\n");
    a_reference_that_is_none_says_how_they_look: after("[step.il]\nop = \"sft\"\nmodel = \"@initial[seed\"\ndata = \"@demos\"\n");
    a_list_on_a_port_for_one_is_refused: after("[step.il]\nop = \"sft\"\nmodel = \"@initial[*]\"\ndata = []\n");
    an_unknown_axis_is_named: after("[step.il]\nop = \"sft\"\nmodel = \"@initial[seed=0]\"\ndata = \"@demos\"\n");
    an_unknown_label_lists_the_labels: after("[step.il]\nop = \"sft\"\neach = { start = [\"@base\", \"@initial\"] }\nmodel = \"$start\"\ndata = \"@demos\"\n[step.play]\nop = \"rollout\"\npolicy = \"@il[start=inital]\"\n[step.play2]\nop = \"rollout\"\npolicy = \"@il[strat=base]\"\n");
    axes_with_nothing_in_common_are_an_error: after("[step.il]\nop = \"sft\"\neach = { start = [\"@base\", \"@initial\"] }\nmodel = \"$start\"\ndata = \"@demos\"\n[step.again]\nop = \"sft\"\neach = { start = [\"@il\"] }\nmodel = \"$start\"\ndata = \"@demos\"\n");

    // --- cycles ---
    a_cycle_is_named_step_by_step: after("[step.a]\nop = \"sft\"\nmodel = \"@c\"\ndata = \"@demos\"\n[step.b]\nop = \"sft\"\nmodel = \"@a\"\ndata = \"@demos\"\n[step.c]\nop = \"sft\"\nmodel = \"@b\"\ndata = \"@demos\"\n");
    a_step_that_needs_itself_is_a_cycle: after("[step.a]\nop = \"sft\"\nmodel = \"@a\"\ndata = \"@demos\"\n");
    a_cycle_of_variables_is_named: wrong("[vars]\na = \"$b\"\nb = \"x${a}\"\n[step.demos]\nop = \"demos\"\ncount = 1\nenv = \"$a\"\n");

    // --- variables and axes ---
    an_undefined_variable_gets_the_nearest_name: wrong("[vars]\ncount = 3\n[step.demos]\nop = \"demos\"\ncount = \"$cuont\"\nenv = \"a-${nothing}\"\n");
    an_axis_of_another_step_is_explained: after("[step.il]\nop = \"sft\"\neach = { start = [\"@base\", \"@initial\"] }\nmodel = \"$start\"\ndata = \"@demos\"\n[step.play]\nop = \"rollout\"\npolicy = \"@initial\"\nenv = \"$start\"\n");
    a_wrong_value_from_a_variable_shows_the_definition: wrong("[vars]\nhow_many = \"many\"\n[step.demos]\nop = \"demos\"\ncount = \"$how_many\"\n");
    a_wrong_key_from_a_variable_shows_the_definition: wrong("[vars]\nshape = { architecture = \"qwen3\", hidden = 64, layers = 2, heads = 2 }\n[step.base]\nop = \"pretrain\"\nfrom = \"$shape\"\ntokens = 1\n");
    half_a_variable_is_pointed_at: wrong("[step.demos]\nop = \"demos\"\ncount = 1\nenv = \"$world/small\"\nsize = \"${\"\n");
    a_table_cannot_be_part_of_a_text: wrong("[vars]\nt = { a = 1 }\n[step.demos]\nop = \"demos\"\ncount = 1\nenv = \"x-${t}\"\n");
    a_variable_with_the_name_of_an_axis_is_a_duplicate: wrong("[vars]\nseed = 1\n[matrix]\nseed = [1, 2]\n[step.demos]\nop = \"demos\"\ncount = \"$seed\"\n");
    equal_labels_are_duplicates: wrong("[matrix]\ncount = [1, 2, 1]\nshape = [{ a = 1 }]\nseed = 3\nnone = []\n[step.demos]\nop = \"demos\"\ncount = \"$count\"\n");
    an_inherited_axis_that_means_two_things_is_refused: after("[step.a]\nop = \"rollout\"\neach = { k = { x = 1, y = 2 } }\npolicy = \"@base\"\ntasks = \"$k\"\n[step.b]\nop = \"rollout\"\neach = { k = { x = 1, y = 3 } }\npolicy = \"@base\"\ntasks = \"$k\"\n[step.c]\nop = \"sft\"\nmodel = \"@base\"\ndata = [\"@a\", \"@b\"]\nepochs = \"$k\"\n");
    names_that_cannot_be_written_elsewhere_are_refused: wrong("[vars]\n\"a b\" = 1\n[step.\"x.y\"]\nop = \"demos\"\ncount = 1\n");
    too_many_variants_are_refused: {
        let axis: Vec<String> = (1..=400).map(|i| i.to_string()).collect();
        let axis = axis.join(",");
        // The axes are long lines; the drawing shows the step.
        wrong(&format!("[matrix]\na = [{axis}]\nb = [{axis}]\n[step.demos]\nop = \"demos\"\ncount = \"$a\"\nenv = \"x${{b}}\"\n"))
    };

    // --- axes and labels that a parameter names ---
    a_table_names_axes_and_rows_that_its_results_have: tables("[step.a]\nop = \"table\"\nresults = \"@score[*]\"\nrows = \"polcy\"\ncolumns = \"split\"\nover = \"sed\"\n[step.b]\nop = \"table\"\nresults = \"@score[*]\"\nrows = \"policy\"\nover = \"seed\"\ncompare = [[\"act\", \"ill\"], [\"rl-with-history\", \"il\"]]\n");
    a_table_whose_results_have_no_axes_says_so: really("[step.play]\nop = \"demos\"\ncount = 3\n[step.score]\nop = \"eval\"\nepisodes = \"@play\"\n[vars]\naxis = \"policy\"\n[step.t]\nop = \"table\"\nresults = \"@score\"\nrows = \"$axis\"\n");
    results_that_fall_into_one_place_are_refused: tables("[step.a]\nop = \"table\"\nresults = \"@score[*]\"\nrows = \"policy\"\n");
    a_result_without_a_label_for_its_row_is_refused: tables("[step.once]\nop = \"demos\"\ncount = 1\n[step.base]\nop = \"eval\"\nepisodes = \"@once\"\n[step.a]\nop = \"table\"\nresults = [\"@score[*]\", \"@base\"]\nrows = \"policy\"\nover = \"seed\"\n");
    a_wrong_reference_does_not_make_the_names_of_a_table_wrong: tables("[step.a]\nop = \"table\"\nresults = \"@scor[*]\"\nrows = \"polcy\"\n");

    // --- profiles, --set, extends ---
    a_profile_that_sets_nothing_real_is_wrong_even_unused: wrong(&format!("{SOUND}[profile.smoke]\nset = {{ \"step.dmos.count\" = 1, \"vars.x\" = 2, \"step.demos\" = 3 }}\nsteps = 3\n"));
    a_profile_that_is_not_chosen_is_held_against_the_ops: wrong(&format!("{SOUND}[profile.smoke]\nset = {{ \"step.demos.coun\" = 1, \"step.initial.dta\" = \"@demos\", \"step.initial.epochs\" = 0 }}\n[profile.good]\nset = {{ \"step.demos.count\" = 1, \"step.initial.seed\" = 3 }}\n"));
    an_unknown_profile_gets_the_nearest_name: drawn(&format!("{SOUND}[profile.smoke]\nset = {{ \"step.demos.count\" = 1 }}\n"), &Overrides { profile: Some("smok".into()), set: vec![] });
    a_set_that_names_nothing_gets_the_nearest_name: set(&format!("[vars]\nenv = \"h\"\n{SOUND}"), &["enf=x", "step.dmos.count=1", "step.demos.count.x=1", "count", "nope.a.b=1"]);
    a_wrong_value_from_set_is_shown_on_the_command_line: set(SOUND, &["step.demos.count=0", "step.initial.learning_rat=1e-3"]);
}

#[test]
fn everything_wrong_is_reported_in_one_go() {
    insta::assert_snapshot!(wrong(include_str!("recipes/broken.toml")));
}

#[test]
fn files_that_extend_each_other_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    std::fs::write(dir.join("a.toml"), "extends = \"b.toml\"\n").unwrap();
    std::fs::write(dir.join("b.toml"), "extends = \"c.toml\"\n").unwrap();
    std::fs::write(dir.join("c.toml"), "extends = \"a.toml\"\n").unwrap();
    let found = parse(&dir.join("a.toml"), &Overrides::default()).unwrap_err();
    insta::assert_snapshot!(render::render(&found, false).replace(dir.as_str(), "DIR"));
}

#[test]
fn a_missing_file_is_named_with_the_reason() {
    let found = parse(Utf8Path::new("no/such.toml"), &Overrides::default()).unwrap_err();
    let alone = render::render(&found, false);
    let extended = wrong("extends = \"no/base.toml\"\n");
    insta::assert_snapshot!(format!("{alone}\n{extended}"));
}

#[test]
fn a_mistake_in_the_base_is_shown_in_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    std::fs::write(dir.join("base.toml"), "[vars]\ncount = \"many\"\n").unwrap();
    std::fs::write(dir.join("a.toml"), "extends = \"base.toml\"\n[step.demos]\nop = \"demos\"\ncount = \"$count\"\n")
        .unwrap();
    let recipe = parse(&dir.join("a.toml"), &Overrides::default()).unwrap();
    let found = resolve(&recipe, &common::registry()).map(|_| ()).unwrap_err();
    insta::assert_snapshot!(render::render(&found, false).replace(dir.as_str(), "DIR"));
}

#[test]
fn a_path_where_nothing_is_says_where_it_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    let text = format!(
        "[vars]\nmodel = \"models/none\"\n{SOUND}[step.more]\nop = \"sft\"\nmodel = {{ path = \"$model\" }}\n\
         data = [\"@demos\", {{ path = \"chat.jsonl\", lines = 3 }}]\n"
    );
    std::fs::write(dir.join("a.toml"), text).unwrap();
    let recipe = parse(&dir.join("a.toml"), &Overrides::default()).unwrap();
    let found = resolve(&recipe, &common::registry()).map(|_| ()).unwrap_err();
    insta::assert_snapshot!(render::render(&found, false).replace(dir.as_str(), "DIR"));
}

#[test]
fn colour_only_adds_escape_sequences() {
    let recipe = parse_text(Utf8Path::new("r.toml"), "[step.a]\nop = \"demo\"\n", &Overrides::default()).unwrap();
    let found = resolve(&recipe, &common::registry()).map(|_| ()).unwrap_err();
    let (plain, coloured) = (render::render(&found, false), render::render(&found, true));
    assert!(!plain.contains('\u{1b}') && coloured.contains('\u{1b}'));
    let mut stripped = String::new();
    let mut escape = false;
    for c in coloured.chars() {
        match c {
            '\u{1b}' => escape = true,
            'm' if escape => escape = false,
            c if !escape => stripped.push(c),
            _ => {}
        }
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&stripped), words(&plain));
}

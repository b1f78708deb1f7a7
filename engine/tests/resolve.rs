//! Recipes to graphs: which variants there are and what feeds them.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use actloom_engine::graph::{Graph, Source};
use actloom_engine::plan::select;
use actloom_engine::recipe::{Overrides, parse, parse_text};
use actloom_engine::resolve::resolve;
use camino::Utf8Path;

fn graph(text: &str, overrides: &Overrides) -> Graph {
    let recipe = parse_text(Utf8Path::new("recipe.toml"), text, overrides).unwrap_or_else(|d| panic!("{:#?}", d.found));
    resolve(&recipe, &common::registry()).unwrap_or_else(|d| panic!("{:#?}", d.located()))
}

/// Step -> number of variants.
fn counts(graph: &Graph) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for node in graph.nodes.node_weights() {
        *counts.entry(node.step.as_str()).or_default() += 1;
    }
    counts
}

/// `port <- node.output`, for the node of this display name.
fn fed_by(graph: &Graph, name: &str) -> Vec<String> {
    let node = graph.nodes.node_weights().find(|n| n.display() == name);
    let node = node.unwrap_or_else(|| {
        let names: Vec<String> = graph.nodes.node_weights().map(|n| n.display()).collect();
        panic!("no node {name} in {names:#?}")
    });
    let sources = node.inputs.iter().flat_map(|input| {
        input.sources.iter().map(|source| match source {
            Source::Step { node, output } => {
                format!("{} <- {}.{output}", input.port.name, graph.nodes[*node].display())
            }
            Source::Outside(outside) => format!("{} <- {}", input.port.name, outside.written),
        })
    });
    sources.collect()
}

const TABLE1: &str = include_str!("fixtures/table1.toml");

#[test]
fn the_papers_table_has_the_right_variants() {
    let graph = graph(TABLE1, &Overrides::default());
    let expected = [
        ("act", 5),
        ("alternatives", 5),
        ("base", 1),
        ("demos", 5),
        ("early_experience", 5),
        ("il", 10),
        ("initial", 5),
        ("pairs", 5),
        ("play", 70),
        ("reflections", 5),
        ("report", 1),
        ("rl", 10),
        ("score", 70),
        ("table", 1),
    ];
    assert_eq!(counts(&graph), expected.into_iter().collect());
}

#[test]
fn the_papers_table_has_the_right_edges() {
    let graph = graph(TABLE1, &Overrides::default());
    assert_eq!(fed_by(&graph, "initial[seed=3]"), ["model <- base.model", "data <- demos[seed=3].episodes"]);
    assert_eq!(
        fed_by(&graph, "il[seed=2,start=act]"),
        ["model <- act[seed=2].model", "data <- demos[seed=2].episodes"]
    );
    assert_eq!(fed_by(&graph, "play[row=IL w/ ACT,seed=1,split=ood]"), ["policy <- il[seed=1,start=act].model"]);
    assert_eq!(fed_by(&graph, "table").len(), 70);
    assert_eq!(fed_by(&graph, "report").len(), 1 + 70 + 5);
    let node = graph.nodes.node_weights().find(|n| n.display() == "play[row=RL,seed=4,split=id]").unwrap();
    assert_eq!(node.params["split"], "id");
    assert_eq!(node.params["tasks"], 500);
    assert_eq!(node.seed, 4);
}

/// Steps that stand alone, for others to stand on.
const SOUND: &str = r#"
[step.base]
op = "pretrain"
from = { architecture = "qwen3", hidden_size = 64, layers = 2, heads = 2 }
tokens = 1000
[step.demos]
op = "demos"
count = 20
[step.other]
op = "demos"
count = 30
"#;

fn after(text: &str) -> Graph {
    graph(&format!("{SOUND}{text}"), &Overrides::default())
}

fn names(graph: &Graph, step: &str) -> Vec<String> {
    graph.nodes.node_weights().filter(|n| n.step == step).map(|n| n.display()).collect()
}

fn node<'g>(graph: &'g Graph, name: &str) -> &'g actloom_engine::graph::Node {
    graph.nodes.node_weights().find(|n| n.display() == name).unwrap_or_else(|| panic!("no node {name}"))
}

#[test]
fn a_step_is_multiplied_only_by_axes_it_uses() {
    let graph = after(
        "[matrix]\nseed = [0, 1]\nsize = [\"s\", \"l\"]\n[vars]\nworld = \"house-${size}\"\n\
         [step.a]\nop = \"demos\"\ncount = 1\n\
         [step.b]\nop = \"demos\"\ncount = 1\nseed = \"$seed\"\n\
         [step.c]\nop = \"demos\"\ncount = 1\nenv = \"$world\"\n\
         [step.d]\nop = \"sft\"\nmodel = \"@base\"\ndata = [\"@a\", \"@b\", \"@c\"]\n",
    );
    assert_eq!(names(&graph, "a"), ["a"]);
    assert_eq!(names(&graph, "b"), ["b[seed=0]", "b[seed=1]"]);
    assert_eq!(names(&graph, "c"), ["c[size=s]", "c[size=l]"], "through a variable");
    assert_eq!(node(&graph, "c[size=l]").params["env"], "house-l");
    assert_eq!(names(&graph, "d").len(), 4, "through inputs");
    assert_eq!(
        fed_by(&graph, "d[seed=1,size=s]"),
        ["model <- base.model", "data <- a.episodes", "data <- b[seed=1].episodes", "data <- c[size=s].episodes"]
    );
}

#[test]
fn inputs_that_share_an_axis_are_matched_label_by_label() {
    let graph = after(
        "[matrix]\nseed = [0, 1, 2]\n\
         [step.a]\nop = \"demos\"\ncount = 1\nseed = \"$seed\"\n\
         [step.b]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@a\"\n\
         [step.c]\nop = \"sft\"\nmodel = \"@b\"\ndata = \"@a\"\n",
    );
    assert_eq!(names(&graph, "c").len(), 3);
    assert_eq!(fed_by(&graph, "c[seed=2]"), ["model <- b[seed=2].model", "data <- a[seed=2].episodes"]);
}

#[test]
fn values_of_an_axis_may_bring_in_other_axes_or_not() {
    let graph = after(
        "[matrix]\nseed = [0, 1]\n\
         [step.b]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nseed = \"$seed\"\n\
         [step.play]\nop = \"rollout\"\neach = { who = [\"@base\", \"@b\"] }\npolicy = \"$who\"\n\
         [step.score]\nop = \"eval\"\nepisodes = \"@play\"\n",
    );
    let expected = ["play[seed=0,who=b]", "play[seed=1,who=b]", "play[who=base]"];
    assert_eq!(names(&graph, "play"), expected);
    assert_eq!(names(&graph, "score"), expected.map(|n| n.replace("play", "score")));
    assert_eq!(fed_by(&graph, "score[who=base]"), ["episodes <- play[who=base].episodes"]);
}

#[test]
fn selections_fix_collect_and_keep_axes() {
    let play = "[matrix]\nseed = [0, 1]\n\
         [step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nseed = \"$seed\"\n\
         [step.play]\nop = \"rollout\"\neach = { split = [\"id\", \"ood\"] }\npolicy = \"@il\"\nsplit = \"$split\"\n\
         [step.score]\nop = \"eval\"\nepisodes = \"@play\"\n";
    let table = |results: &str| {
        after(&format!("{play}[step.t]\nop = \"table\"\nrows = \"a\"\ncolumns = \"b\"\nresults = {results}\n"))
    };
    let all = table("\"@score[*]\"");
    assert_eq!(names(&all, "t"), ["t"]);
    let expected = ["seed=0,split=id", "seed=0,split=ood", "seed=1,split=id", "seed=1,split=ood"];
    assert_eq!(fed_by(&all, "t"), expected.map(|l| format!("results <- score[{l}].scores")));

    let fixed = table("\"@score[seed=1]\"");
    assert_eq!(names(&fixed, "t"), ["t[split=id]", "t[split=ood]"]);
    assert_eq!(fed_by(&fixed, "t[split=ood]"), ["results <- score[seed=1,split=ood].scores"]);

    let collected = table("\"@score[seed=*]\"");
    assert_eq!(names(&collected, "t"), ["t[split=id]", "t[split=ood]"]);
    assert_eq!(
        fed_by(&collected, "t[split=id]"),
        ["results <- score[seed=0,split=id].scores", "results <- score[seed=1,split=id].scores"]
    );

    let both = table("[\"@score[split=id,*]\", \"@score[split=ood,seed=0]\"]");
    assert_eq!(
        fed_by(&both, "t"),
        ["seed=0,split=id", "seed=1,split=id", "seed=0,split=ood"].map(|l| format!("results <- score[{l}].scores"))
    );
}

#[test]
fn axes_of_a_step_restrict_an_axis_of_its_inputs() {
    let graph = after(
        "[matrix]\nseed = [0, 1, 2]\n\
         [step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\nseed = \"$seed\"\n\
         [step.play]\nop = \"rollout\"\neach = { seed = [1, 2] }\npolicy = \"@il\"\n",
    );
    assert_eq!(names(&graph, "play"), ["play[seed=1]", "play[seed=2]"]);
    assert_eq!(fed_by(&graph, "play[seed=2]"), ["policy <- il[seed=2].model"]);
}

#[test]
fn inherited_axes_are_variables_too() {
    let graph = after(
        "[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\n\
         [step.play]\nop = \"rollout\"\neach = { who = { a = \"@base\", b = \"@il\" }, split = [\"id\", \"ood\"] }\n\
         policy = \"$who\"\nsplit = \"$split\"\n\
         [step.again]\nop = \"alternatives\"\nper_state = 1\nstates = \"@play\"\npolicy = \"$who\"\n",
    );
    assert_eq!(names(&graph, "again").len(), 4);
    assert_eq!(
        fed_by(&graph, "again[split=id,who=b]"),
        ["policy <- il.model", "states <- play[split=id,who=b].episodes"]
    );
}

#[test]
fn the_seed_is_the_key_else_the_axis_else_zero() {
    let graph = after(
        "[matrix]\nseed = [3, 4]\n\
         [step.a]\nop = \"demos\"\ncount = \"$seed\"\n\
         [step.b]\nop = \"demos\"\ncount = \"$seed\"\nseed = 9\n\
         [step.c]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@a\"\n\
         [step.d]\nop = \"demos\"\ncount = 1\neach = { seed = { first = 7, second = \"x\" } }\n",
    );
    assert_eq!(node(&graph, "a[seed=4]").seed, 4);
    assert_eq!(node(&graph, "b[seed=4]").seed, 9);
    assert_eq!(node(&graph, "c[seed=3]").seed, 3, "inherited");
    assert_eq!(node(&graph, "d[seed=first]").seed, 7, "the value, not the label");
    assert_eq!(node(&graph, "d[seed=second]").seed, 0, "no integer");
    assert_eq!(node(&graph, "base").seed, 0);
}

#[test]
fn parameters_are_canonical() {
    let sft = |rate: &str| {
        let graph = after(&format!("[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\n{rate}"));
        node(&graph, "il").params.to_string()
    };
    assert_eq!(sft("learning_rate = 0.1"), sft("learning_rate = 1e-1"));
    assert_eq!(sft("learning_rate = 0.001"), sft(""), "a default written out");
    let tokens = |graph: Graph| node(&graph, "act").params["reward"]["correct"].to_string();
    let act = |reward: &str| {
        after(&format!(
            "[step.alt]\nop = \"alternatives\"\npolicy = \"@base\"\nstates = \"@demos\"\nper_state = 1\n\
             [step.pairs]\nop = \"pairs\"\nstates = \"@demos\"\nalternatives = \"@alt\"\n\
             [step.act]\nop = \"act\"\nmodel = \"@base\"\npairs = \"@pairs\"\ngroup = 2\n\
             reward = {{ correct = {reward}, admissible = 0.0, malformed = 0 }}\n"
        ))
    };
    assert_eq!(tokens(act("1")), tokens(act("1.0")), "an integer for a number");
}

#[test]
fn variables_hold_values_tables_lists_and_references() {
    let graph = graph(
        &format!(
            "[vars]\nshape = {{ architecture = \"qwen3\", hidden_size = \"$width\", layers = 2, heads = 2 }}\n\
             width = 64\nstart = \"@base\"\ndata = [\"@demos\", \"@other\"]\ncost = \"$$5 for ${{width}}\"\n\
             {}[step.il]\nop = \"sft\"\nmodel = \"$start\"\ndata = [\"$data\", \"@demos.episodes\"]\n\
             [step.play]\nop = \"rollout\"\npolicy = \"${{start}}\"\nsize = \"$cost\"\n",
            SOUND.replace("{ architecture = \"qwen3\", hidden_size = 64, layers = 2, heads = 2 }", "\"$shape\"")
        ),
        &Overrides::default(),
    );
    assert_eq!(node(&graph, "base").params["from"]["hidden_size"], 64);
    assert_eq!(fed_by(&graph, "il").len(), 4);
    assert_eq!(fed_by(&graph, "play"), ["policy <- base.model"]);
    assert_eq!(node(&graph, "play").params["size"], "$5 for 64");
}

#[test]
fn profiles_and_set_change_values_and_set_wins() {
    let text = format!(
        "[vars]\nn = 5\n[matrix]\nseed = [0, 1, 2]\n{SOUND}[step.x]\nop = \"demos\"\ncount = \"$n\"\nseed = \"$seed\"\n\
         [profile.smoke]\nset = {{ \"vars.n\" = 1, matrix.seed = [7], \"step.demos.count\" = 2 }}\n"
    );
    let with = |profile: Option<&str>, set: &[&str]| {
        let set = set.iter().map(|s| (*s).to_owned()).collect();
        graph(&text, &Overrides { profile: profile.map(str::to_owned), set })
    };
    assert_eq!(names(&with(None, &[]), "x").len(), 3);
    let smoke = with(Some("smoke"), &[]);
    assert_eq!(names(&smoke, "x"), ["x[seed=7]"]);
    assert_eq!(node(&smoke, "x[seed=7]").params["count"], 1);
    assert_eq!(node(&smoke, "demos").params["count"], 2);
    let set =
        with(Some("smoke"), &["n=4", "step.demos.env=shop", "step.base.from.layers = 6", "step.demos.split=\"id\""]);
    assert_eq!(node(&set, "x[seed=7]").params["count"], 4);
    assert_eq!(node(&set, "demos").params["env"], "shop", "text without quotes");
    assert_eq!(node(&set, "demos").params["split"], "id");
    assert_eq!(node(&set, "base").params["from"]["layers"], 6);
    assert_eq!(node(&set, "base").params["from"]["heads"], 2, "the rest of the table stays");
}

#[test]
fn an_extending_recipe_is_put_over_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::write(dir.join("base.toml"), format!("name = \"base\"\nabout = \"b\"\n[vars]\nn = 1\n{SOUND}")).unwrap();
    std::fs::write(
        dir.join("sub/mid.toml"),
        "extends = \"../base.toml\"\n[step.base.from]\nlayers = 4\n[step.more]\nop = \"demos\"\ncount = \"$n\"\n",
    )
    .unwrap();
    std::fs::write(dir.join("top.toml"), "extends = \"sub/mid.toml\"\nname = \"top\"\n[vars]\nn = 3\n").unwrap();
    let recipe = parse(&dir.join("top.toml"), &Overrides::default()).unwrap();
    let graph = resolve(&recipe, &common::registry()).map_err(|d| d.located()).unwrap();
    assert_eq!((graph.name.as_str(), graph.about.as_str()), ("top", "b"));
    assert_eq!(graph.steps(), ["base", "demos", "other", "more"], "the base's order first");
    assert_eq!(node(&graph, "base").params["from"]["layers"], 4);
    assert_eq!(node(&graph, "base").params["from"]["heads"], 2);
    assert_eq!(node(&graph, "more").params["count"], 3);
}

#[test]
fn the_order_of_nodes_is_that_of_the_recipe() {
    let graph = after(
        "[matrix]\nb = [\"y\", \"x\"]\na = [2, 1]\n\
         [step.late]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@early\"\n\
         [step.early]\nop = \"demos\"\ncount = \"$a\"\nenv = \"$b\"\n",
    );
    assert_eq!(graph.steps(), ["base", "demos", "other", "late", "early"]);
    let labels = ["a=2,b=y", "a=1,b=y", "a=2,b=x", "a=1,b=x"];
    assert_eq!(names(&graph, "early"), labels.map(|l| format!("early[{l}]")));
    let order: Vec<&str> = graph.topological().iter().map(|n| graph.nodes[*n].step.as_str()).collect();
    let at = |step| order.iter().position(|s| *s == step).unwrap();
    assert!(at("early") < at("late") && at("base") < at("late"));
    assert_eq!(order.len(), graph.nodes.node_count());
}

#[test]
fn settings_reach_the_node() {
    let graph = after(
        "[vars]\ngpus = 2\n[step.il]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\npin_device = true\n\
         resources = { cpu = 4, gpu = \"$gpus\" }\nabout = \"a note\"\n",
    );
    let il = node(&graph, "il");
    assert!(il.pin_device && !node(&graph, "base").pin_device);
    assert_eq!((il.resources.cpu, il.resources.gpu), (4, 2));
    assert_eq!(node(&graph, "base").resources.cpu, 1);
}

#[test]
fn what_a_recipe_does_not_say_of_resources_is_what_the_op_says() {
    let of = |step: &str, resources: &str| {
        let text = format!("name = \"r\"\n[step.s]\nop = \"{step}\"\ncount = 3\n{resources}\n");
        let graph = graph(&text, &Overrides::default());
        let resources = node(&graph, "s").resources;
        (resources.cpu, resources.gpu)
    };
    let own = of("demos", "");
    assert_eq!(of("demos", "resources = { cpu = 3 }"), (3, own.1));
    assert_eq!(of("demos", "resources = { gpu = 2 }"), (own.0, 2));
}

#[test]
fn ancestors_descendants_and_selections_are_found() {
    let graph = graph(TABLE1, &Overrides::default());
    let chosen = |name: &str| select(&graph, &[name.to_owned()]);
    let one = chosen("act[seed=3]").unwrap();
    assert_eq!(one.len(), 1);
    let up: BTreeSet<&str> = graph.ancestors(one.clone()).iter().map(|n| graph.nodes[*n].step.as_str()).collect();
    assert_eq!(up, BTreeSet::from(["act", "alternatives", "base", "demos", "initial", "pairs"]));
    let down = graph.descendants(one);
    assert!(down.iter().all(|n| graph.nodes[*n].labels.get("seed").is_none_or(|s| s == "3")));
    // act; il and rl from it; play and score of three rows on two splits; table; report.
    assert_eq!(down.len(), 1 + 2 + 2 * 3 * 2 + 2);
    assert_eq!(chosen("play[row=IL w/ ACT,split=id]").unwrap().len(), 5);
    assert_eq!(chosen("play[split=id, row=\"IL w/ ACT\"]").unwrap().len(), 5);
    assert!(format!("{:?}", chosen("ply").unwrap_err()).contains("play"));
    let error = |name: &str| format!("{:?}", chosen(name).unwrap_err());
    assert!(error("play[row=IL w/ CAT]").contains("`IL w/ ACT`"));
    assert!(error("act[start=x]").contains("no axis `start`"));
    assert!(error("act[start=*]").contains("no axis `start`"));
    assert_eq!(chosen("act[seed=*]").unwrap(), chosen("act").unwrap());
    assert_eq!(chosen("act[*]").unwrap(), chosen("act").unwrap());
}

#[test]
fn a_label_may_hold_commas_and_an_axis_that_nothing_depends_on_is_an_error() {
    let text = |value: &str| {
        format!(
            "name = \"r\"\n[step.demos]\nop = \"demos\"\ncount = {value}\n[step.demos.each.n]\n\"a, few\" = 3\n\"many = 5, b\" = 5\n"
        )
    };
    let graph = graph(&text("\"$n\""), &Overrides::default());
    for name in ["demos[n=a, few]", "demos[n=\"a, few\"]", "demos[n=\"many = 5, b\"]"] {
        assert_eq!(select(&graph, &[name.to_owned()]).unwrap().len(), 1, "{name}");
    }
    let recipe = parse_text(Utf8Path::new("r.toml"), &text("7"), &Overrides::default()).unwrap();
    let found = resolve(&recipe, &common::registry()).map(|_| ()).unwrap_err().located();
    assert_eq!((found.len(), found[0].line), (1, Some(6)), "{found:?}");
    assert!(found[0].message.contains("nothing of step `demos` depends on its axis `n`"), "{found:?}");
}

#[test]
fn labels_make_diagnostics_point_at_the_command_line() {
    let overrides = Overrides { profile: None, set: vec!["step.demos.count=0".to_owned()] };
    let recipe = parse_text(Utf8Path::new("r.toml"), SOUND, &overrides).unwrap();
    let found = resolve(&recipe, &common::registry()).map(|_| ()).unwrap_err().located();
    let place = (found[0].file.as_deref(), found[0].line, found[0].column);
    assert_eq!(place, (Some("--set"), Some(1), Some(18)));
}

#[test]
fn five_thousand_steps_resolve_in_linear_time() {
    // Each step follows the two before it, so there are more paths than could ever be walked.
    let recipe = |steps: usize| {
        let mut text = SOUND.to_owned();
        text.push_str("[step.s0]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@demos\"\n");
        text.push_str("[step.d0]\nop = \"rollout\"\npolicy = \"@s0\"\n");
        for i in 1..steps / 2 {
            let before = i - 1;
            text.push_str(&format!(
                "[step.s{i}]\nop = \"sft\"\nmodel = \"@s{before}\"\ndata = [\"@d{before}\", \"@demos\"]\n\
                 [step.d{i}]\nop = \"rollout\"\npolicy = \"@s{i}\"\ntasks = {i}\n"
            ));
        }
        text
    };
    let time = |steps: usize| {
        let text = recipe(steps);
        let start = std::time::Instant::now();
        let graph = graph(&text, &Overrides::default());
        assert_eq!(graph.nodes.node_count(), steps + 3);
        assert_eq!(graph.topological().len(), steps + 3);
        start.elapsed()
    };
    let took = time(5000);
    assert!(took.as_secs_f64() < 10.0, "{took:?} even without optimisation");
}

#[test]
fn a_matrix_of_many_points_resolves() {
    let axis: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    let graph = after(&format!(
        "[matrix]\nseed = [{}]\n\
         [step.a]\nop = \"demos\"\ncount = 1\nseed = \"$seed\"\n\
         [step.b]\nop = \"sft\"\nmodel = \"@base\"\ndata = \"@a\"\n\
         [step.c]\nop = \"rollout\"\npolicy = \"@b\"\neach = {{ split = [\"id\", \"ood\"] }}\nsplit = \"$split\"\n\
         [step.d]\nop = \"eval\"\nepisodes = \"@c\"\n\
         [step.t]\nop = \"table\"\nrows = \"a\"\ncolumns = \"b\"\nresults = \"@d[seed=*]\"\n",
        axis.join(",")
    ));
    assert_eq!(graph.nodes.node_count(), 3 + 2000 * 6 + 2);
    assert_eq!(fed_by(&graph, "t[split=ood]").len(), 2000);
}

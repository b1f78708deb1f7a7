//! Recipes that somebody or something has damaged: whatever they are, the answer is a graph or findings.

mod common;

use std::sync::LazyLock;

use actloom_engine::diagnostic::Diagnostics;
use actloom_engine::graph::{Graph, Source, Span};
use actloom_engine::recipe::{Data, Overrides, Value, parse_text};
use actloom_engine::resolve::resolve;
use actloom_engine::schema::recipe_schema;
use actloom_engine::source::SourceId;
use camino::Utf8Path;
use proptest::prelude::*;

const TABLE1: &str = include_str!("fixtures/table1.toml");

/// Pieces of the language, to be put where they do not belong.
const PIECES: [&str; 34] = [
    "\"@act\"",
    "\"@il[start=act]\"",
    "\"@score[*]\"",
    "\"@play[seed=*]\"",
    "\"@play.metrics\"",
    "\"@\"",
    "\"@x[\"",
    "\"$seed\"",
    "\"$row\"",
    "\"$start\"",
    "\"${seed}\"",
    "\"@${env}\"",
    "\"$$\"",
    "\"${\"",
    "[0, 1]",
    "{ a = 1 }",
    "[]",
    "{}",
    "-1",
    "1e400",
    "nan",
    "true",
    "seed",
    "each",
    "op",
    "model",
    "data",
    "[step.act]",
    "[matrix]",
    "[vars]",
    "1979-05-27",
    "\n",
    "=",
    "\u{e9}\u{4e2d}",
];

fn resolved(text: &str, overrides: &Overrides) -> Result<Graph, Diagnostics> {
    let recipe = parse_text(Utf8Path::new("recipe.toml"), text, overrides)?;
    let graph = resolve(&recipe, &common::registry())?;
    // Editors must not complain about what runs.
    let table = Value { span: span(), via: None, data: Data::Table(recipe.root) }.to_json();
    if let Err(error) = EDITORS.validate(&table) {
        panic!("the schema refuses a recipe that resolves: {error} at {}", error.instance_path());
    }
    Ok(graph)
}

static EDITORS: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
    jsonschema::draft202012::new(&recipe_schema(&common::registry())).unwrap_or_else(|e| panic!("{e}"))
});

fn span() -> Span {
    Span { source: SourceId(0), bytes: 0..0 }
}

/// What must hold of any answer.
fn sound(answer: Result<Graph, Diagnostics>) -> Result<(), TestCaseError> {
    match answer {
        Ok(graph) => {
            prop_assert_eq!(graph.topological().len(), graph.nodes.node_count(), "acyclic");
            for node in graph.nodes.node_weights() {
                for source in node.inputs.iter().flat_map(|input| &input.sources) {
                    let Source::Step { node, output } = source else { continue };
                    let maker = &graph.nodes[*node];
                    let known = maker.outputs.iter().any(|o| o.name == *output);
                    prop_assert!(known || output == "metrics", "{} has no {output}", maker.display());
                }
            }
        }
        Err(found) => {
            prop_assert!(!found.found.is_empty());
            for (d, located) in found.found.iter().zip(found.located()) {
                prop_assert!(!d.message.is_empty());
                prop_assert!(!d.message.ends_with('.'), "{}", d.message);
                for (span, _) in d.primary.iter().chain(&d.related) {
                    let text = &found.sources.get(span.source).text;
                    prop_assert!(
                        text.get(span.bytes.clone()).is_some(),
                        "{}: {span:?} is no part of the text",
                        d.message
                    );
                }
                prop_assert_eq!(located.line.is_some(), d.primary.is_some());
            }
        }
    }
    Ok(())
}

/// Places at which a recipe's text can be cut: between words, mostly.
fn cuts() -> Vec<usize> {
    let mut cuts: Vec<usize> =
        TABLE1.char_indices().filter(|(_, c)| " \n=[]{}\",.@$".contains(*c)).map(|(i, _)| i).collect();
    cuts.push(TABLE1.len());
    cuts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_recipe_with_a_piece_replaced_is_answered(
        from in any::<prop::sample::Index>(), length in 0usize..4, piece in prop::sample::select(&PIECES[..]),
    ) {
        let cuts = cuts();
        let from = from.index(cuts.len());
        let to = (from + length).min(cuts.len() - 1);
        let text = format!("{}{piece}{}", &TABLE1[..cuts[from]], &TABLE1[cuts[to]..]);
        sound(resolved(&text, &Overrides::default()))?;
    }

    #[test]
    fn a_recipe_with_values_swapped_is_answered(
        lines in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::sample::select(&PIECES[..])), 1..6),
    ) {
        let mut text: Vec<String> = TABLE1.lines().map(str::to_owned).collect();
        for (line, other, piece) in lines {
            let (line, other) = (line.index(text.len()), other.index(text.len()));
            let value = text[other].split_once('=').map_or(piece.to_owned(), |(_, value)| value.to_owned());
            let value = if other % 2 == 0 { value } else { piece.to_owned() };
            if let Some((key, _)) = text[line].clone().split_once('=') {
                text[line] = format!("{key}= {value}");
            } else {
                text.swap(line, other);
            }
        }
        sound(resolved(&text.join("\n"), &Overrides::default()))?;
    }

    #[test]
    fn any_set_is_answered(
        path in "(step|vars|matrix|profile)?\\.?(act|il|play|seed|env|x)?\\.?(model|each|op|epochs|row|\"a b\")?",
        value in prop::sample::select(&PIECES[..]),
        equals in any::<bool>(),
    ) {
        let set = if equals { format!("{path}={value}") } else { format!("{path}{value}") };
        sound(resolved(TABLE1, &Overrides { profile: None, set: vec![set] }))?;
    }

    #[test]
    fn any_text_is_answered(text in "[\\[\\]{}=\"'$@.a-c0-9\n ]{0,80}") {
        sound(resolved(&text, &Overrides::default()))?;
    }
}

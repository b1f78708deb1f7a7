//! Draws diagnostics the way rustc and cargo do: file, line, the text itself, a caret under what is meant.
//!
//! Invariants: pure, and the same on every terminal width; related places in the same file share one drawing, others
//! get their own; without colour there is no escape sequence in the text.

use actloom_engine::diagnostic::{Diagnostic, Diagnostics};
use actloom_engine::graph::Span;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

/// Wide enough that no line of a recipe is cut.
const WIDTH: usize = 10_000;

/// Every finding, drawn, with a blank line between them and a count at the end.
pub fn render(diagnostics: &Diagnostics, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.term_width(WIDTH).decor_style(DecorStyle::Ascii);
    let mut out = String::new();
    for found in &diagnostics.found {
        out.push_str(&renderer.render(&[group(diagnostics, found)]));
        out.push_str("\n\n");
    }
    let count = diagnostics.found.len();
    let summary = if count == 1 { "1 error in the recipe".to_owned() } else { format!("{count} errors in the recipe") };
    out.push_str(&renderer.render(&[Group::with_title(Level::ERROR.primary_title(summary))]));
    out.push('\n');
    out
}

fn group<'d>(diagnostics: &'d Diagnostics, found: &'d Diagnostic) -> Group<'d> {
    let title = Level::ERROR.primary_title(normalize_untrusted_str(&found.message)).id(found.code);
    let mut group = Group::with_title(title);
    let mut places: Vec<(&Span, &str, AnnotationKind)> = Vec::new();
    if let Some((span, label)) = &found.primary {
        places.push((span, label, AnnotationKind::Primary));
    }
    places.extend(found.related.iter().map(|(span, label)| (span, label.as_str(), AnnotationKind::Context)));
    // One drawing a file, in the order in which the files come up.
    let mut files = Vec::new();
    for (span, _, _) in &places {
        if !files.contains(&span.source) {
            files.push(span.source);
        }
    }
    for file in files {
        let source = diagnostics.sources.get(file);
        let mut snippet = Snippet::source(source.text.as_str()).path(source.name.as_str()).fold(true);
        for (span, label, kind) in places.iter().filter(|(span, _, _)| span.source == file) {
            let end = span.bytes.end.min(source.text.len());
            snippet =
                snippet.annotation(kind.span(span.bytes.start.min(end)..end).label(normalize_untrusted_str(label)));
        }
        group = group.element(snippet);
    }
    for help in &found.help {
        group = group.element(Level::HELP.message(normalize_untrusted_str(help)));
    }
    group
}

//! The report: one HTML file that needs nothing but itself.
//!
//! Invariants: no link leads out and the page's own policy forbids any; every text from outside goes through
//! [`Text`]; equal contents give equal bytes (no time, no path, no order of a hash map).

use std::fmt::Write as _;

use actloom_engine::op::LineageNode;

use super::block::{Align, Block, Blocks, Body, blocks, mark};
use super::curves::{self, Metrics};
use super::html::Text;
use super::play::{self, Shown};
use super::{dots, graph, number, tally};
use crate::eval::scores::Scores;
use crate::eval::table::Table;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Everything a report shows, by the display names of the steps it comes from.
#[derive(Default)]
pub struct Contents {
    pub title: String,
    pub about: String,
    pub lineage: Vec<LineageNode>,
    pub tables: Vec<(String, Table)>,
    pub scores: Vec<(String, Scores)>,
    pub metrics: Vec<Metrics>,
    pub episodes: Vec<(&'static str, Shown)>,
}

/// Writes the page.
pub fn html(contents: &Contents) -> String {
    let mut sections: Vec<(&str, &str, String)> = vec![
        ("results", "Results", contents.tables.iter().map(|(name, table)| table_html(name, table, contents)).collect()),
        ("graph", "Graph", graph_html(&contents.lineage)),
        ("curves", "Curves", curves_html(&contents.metrics)),
        ("scores", "Scores", tally::html(&contents.scores)),
        ("episodes", "Episodes", contents.episodes.iter().map(|(why, shown)| play::html(why, shown)).collect()),
    ];
    sections.retain(|(_, _, body)| !body.is_empty());
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{}</h1>\n",
        Text(&contents.title),
        Text(&contents.title),
    );
    if !contents.about.is_empty() {
        let _ = writeln!(out, "<p class=\"about\">{}</p>", Text(&contents.about));
    }
    out.push_str("</header>\n");
    if sections.len() > 1 {
        out.push_str("<nav aria-label=\"Sections\">");
        for (id, title, _) in &sections {
            let _ = write!(out, "<a href=\"#{id}\">{title}</a>");
        }
        out.push_str("</nav>\n");
    }
    out.push_str("<main>\n");
    for (id, title, body) in &sections {
        let _ = write!(out, "<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n");
    }
    if sections.is_empty() {
        out.push_str("<p>There is nothing to show: every input was empty.</p>\n");
    }
    let _ = write!(
        out,
        "</main>\n<footer>Written by actloom. This page is a function of the recipe's results: the same results give \
         the same page.</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    out
}

fn table_html(name: &str, table: &Table, contents: &Contents) -> String {
    let mut out = String::new();
    if contents.tables.len() > 1 {
        let _ = writeln!(out, "<h3>{}</h3>", Text(name));
    }
    let Blocks { caption, blocks } = blocks(table);
    let _ = writeln!(out, "<p class=\"quiet\">{}</p>", Text(&caption.join(" ")));
    // The first blocks are the table's own, one a metric (or one for all): each stands beside its picture.
    let own = if table.columns.is_some() { table.metrics.len() } else { 1 };
    for (at, block) in blocks.iter().enumerate() {
        let drawn = match at {
            at if at >= own || table.cells.len() < 2 => String::new(),
            _ if table.columns.is_none() => table.metrics.iter().map(|metric| dots::html(table, metric)).collect(),
            at => dots::html(table, &table.metrics[at]),
        };
        out.push_str("<div class=\"beside\">\n<div>\n");
        block_html(&mut out, block);
        let _ =
            write!(out, "</div>\n{}</div>\n", if drawn.is_empty() { drawn } else { format!("<div>{drawn}</div>\n") });
    }
    out
}

fn sup(marks: &[usize]) -> String {
    marks.iter().map(|&at| format!("<sup>{}</sup>", mark(at))).collect()
}

/// A hyphen in front of a number becomes a minus sign.
pub(super) fn signed(text: &str) -> String {
    Text(text).to_string().replace('-', "\u{2212}")
}

fn block_html(out: &mut String, block: &Block) {
    let class = |align: Align| if align == Align::Left { " class=\"l\"" } else { "" };
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><table><caption>{}</caption>\n<thead><tr><th scope=\"col\" class=\"l\">{}</th>",
        Text(&block.title),
        Text(&block.corner)
    );
    for (header, align) in &block.columns {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(*align), Text(header));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &block.rows {
        let _ =
            write!(out, "<tr><th scope=\"row\" class=\"l\">{}{}</th>", Text(&row.label.body), sup(&row.label.marks));
        for (cell, (_, align)) in row.cells.iter().zip(&block.columns) {
            let marks = sup(&cell.marks);
            let class = class(*align);
            let _ = match &cell.body {
                Body::Missing => write!(out, "<td class=\"missing\">missing{marks}</td>"),
                Body::Text(text) if *align == Align::Left => write!(out, "<td{class}>{}{marks}</td>", Text(text)),
                Body::Text(text) => write!(out, "<td>{}{marks}</td>", signed(text)),
                Body::PlusMinus(mean, Some(spread)) => {
                    write!(out, "<td>{} <span class=\"spread\">± {spread}</span>{marks}</td>", signed(mean))
                }
                Body::Range(mean, Some([low, high])) => {
                    let (low, high) = (signed(low), signed(high));
                    write!(out, "<td>{} <span class=\"spread\">[{low}, {high}]</span>{marks}</td>", signed(mean))
                }
                Body::PlusMinus(mean, None) | Body::Range(mean, None) => {
                    write!(out, "<td>{}{marks}</td>", signed(mean))
                }
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    if !block.notes.is_empty() {
        out.push_str("<ul class=\"notes\">\n");
        for (at, note) in block.notes.iter().enumerate() {
            let _ = writeln!(out, "<li><sup>{}</sup> {}</li>", mark(at), Text(note));
        }
        out.push_str("</ul>\n");
    }
}

fn graph_html(lineage: &[LineageNode]) -> String {
    if lineage.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<p class=\"quiet\">One box a step, with its op; × counts the step's variants.</p>\n<div class=\"scroll\">",
    );
    out.push_str(&graph::svg(lineage));
    out.push_str("</div>\n");
    out
}

fn curves_html(metrics: &[Metrics]) -> String {
    let charts = curves::charts(metrics);
    if charts.is_empty() {
        return String::new();
    }
    let mut out = String::from("<p class=\"quiet\">Bold numbers are last values.</p>\n");
    for (step, charts) in charts {
        let _ = writeln!(out, "<h3>{}</h3>\n<div class=\"charts\">", Text(&step));
        charts.iter().for_each(|chart| out.push_str(&chart.html()));
        out.push_str("</div>\n");
    }
    out
}

/// A table of finished cells; the heads and row names are still text.
pub(super) fn plain_table(out: &mut String, title: &str, heads: Vec<String>, rows: Vec<(&str, Vec<String>)>) {
    let open = if rows.len() <= 16 { " open" } else { "" };
    let _ = write!(
        out,
        "<details{open}><summary>{title}, {}</summary>\n<div class=\"scroll\"><table class=\"small\">\n<thead><tr>\
         <th scope=\"col\" class=\"l\">step</th>",
        number::counted(rows.len(), "row")
    );
    for head in heads {
        let _ = write!(out, "<th scope=\"col\">{}</th>", Text(&head));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (name, cells) in rows {
        let _ = write!(out, "<tr><th scope=\"row\" class=\"l\">{}</th>", Text(name));
        for cell in cells {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

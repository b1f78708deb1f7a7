//! A table as files for people and programs: Markdown, CSV and LaTeX.
//!
//! Invariants: the Markdown is plain enough to be printed on a terminal of 100 columns (wider tables are cut between
//! columns, never inside one; each part begins with all that tells its rows apart, and nothing is left out); the CSV carries every number in full; all three are functions
//! of the table.

use std::fmt::Write as _;

use actloom_engine::op::OpError;

use super::block::{Align, Block, Blocks, Body, Marked, blocks, mark};
use crate::eval::table::{Interval, Table};

/// Columns of a terminal that a table is made for.
const WIDTH: usize = 100;

/// `table.md`.
pub fn markdown(table: &Table) -> String {
    let Blocks { caption, blocks } = blocks(table);
    let mut out = String::new();
    for block in &blocks {
        let _ = writeln!(out, "### {}\n", one_line(&block.title));
        out.push_str(&grid(block));
        for (at, note) in block.notes.iter().enumerate() {
            // Two spaces at the end are Markdown's line break; the last line needs none.
            let end = if at + 1 < block.notes.len() { "  " } else { "" };
            let _ = writeln!(out, "{}{end}", wrap(&format!("({}) {}", mark(at), one_line(note))));
        }
        if !block.notes.is_empty() {
            out.push('\n');
        }
    }
    if !caption.is_empty() {
        let _ = writeln!(out, "{}", wrap(&one_line(&caption.join(" "))));
    }
    out
}

/// Text that cannot leave its line.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).collect::<Vec<_>>().join(" ")
}

/// Text that cannot leave its cell.
fn cell_text(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

fn marks(marks: &[usize]) -> String {
    marks.iter().map(|&at| format!(" ({})", mark(at))).collect()
}

fn body(body: &Body) -> String {
    match body {
        Body::Missing => "missing".to_owned(),
        Body::Text(text) => cell_text(text),
        Body::PlusMinus(mean, Some(spread)) => format!("{mean} ± {spread}"),
        Body::Range(mean, Some([low, high])) => format!("{mean} [{low}, {high}]"),
        Body::PlusMinus(mean, None) | Body::Range(mean, None) => mean.clone(),
    }
}

/// A column as text, all entries of one width. Marks stand behind the numbers and do not push them out of line.
fn column(header: &str, align: Align, cells: &[&Marked<Body>]) -> Vec<String> {
    let ends: Vec<String> = cells.iter().map(|cell| marks(&cell.marks)).collect();
    let end = ends.iter().map(|m| m.chars().count()).max().unwrap_or(0);
    let bodies: Vec<String> = cells
        .iter()
        .zip(&ends)
        .map(|(cell, m)| format!("{}{m}{}", body(&cell.body), " ".repeat(end - m.chars().count())))
        .collect();
    padded(std::iter::once(cell_text(header)).chain(bodies).collect(), align)
}

fn padded(texts: Vec<String>, align: Align) -> Vec<String> {
    // A rule of Markdown's needs three dashes.
    let width = texts.iter().map(|t| t.chars().count()).max().unwrap_or(0).max(3);
    let mut lines: Vec<String> = texts
        .into_iter()
        .map(|text| match align {
            Align::Left => format!("{text:<width$}"),
            Align::Right => format!("{text:>width$}"),
        })
        .collect();
    lines.insert(
        1,
        match align {
            Align::Left => "-".repeat(width),
            Align::Right => format!("{}:", "-".repeat(width - 1)),
        },
    );
    lines
}

/// The block's rows in aligned Markdown, cut into several tables where it is too wide.
fn grid(block: &Block) -> String {
    let labels = block.rows.iter().map(|row| format!("{}{}", cell_text(&row.label.body), marks(&row.label.marks)));
    let labels = padded(std::iter::once(cell_text(&block.corner)).chain(labels).collect(), Align::Left);
    let columns: Vec<Vec<String>> = block
        .columns
        .iter()
        .enumerate()
        .map(|(c, (header, align))| {
            column(header, *align, &block.rows.iter().map(|row| &row.cells[c]).collect::<Vec<_>>())
        })
        .collect();
    let wide = |column: &[String]| column[0].chars().count() + 3;
    // Columns of words behind the label say what a row is of, such as the split of a difference: each part has them.
    let words = block.columns.iter().take_while(|(_, align)| *align == Align::Left).count();
    let keys: Vec<&Vec<String>> = std::iter::once(&labels).chain(&columns[..words]).collect();
    let mut out = String::new();
    let mut from = words.min(columns.len().saturating_sub(1));
    let keys = &keys[..=from];
    while from < columns.len() {
        let mut width = keys.iter().map(|column| wide(column)).sum::<usize>() + 1 + wide(&columns[from]);
        let mut to = from + 1;
        while to < columns.len() && width + wide(&columns[to]) <= WIDTH {
            width += wide(&columns[to]);
            to += 1;
        }
        for line in 0..labels.len() {
            out.push('|');
            for column in keys.iter().copied().chain(&columns[from..to]) {
                let _ = write!(out, " {} |", column[line]);
            }
            out.push('\n');
        }
        out.push('\n');
        from = to;
    }
    out
}

/// Breaks a paragraph between words.
fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let long = word.chars().count();
        if width > 0 && width + 1 + long > WIDTH {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += long;
    }
    out
}

/// `table.csv`: one line a cell and metric, one line a difference; empty where there is no number.
///
/// # Errors
/// Never in practice: it writes into memory.
pub fn csv(table: &Table) -> Result<String, OpError> {
    let failed = |e: String| OpError::failed(format!("cannot write a table as CSV: {e}"));
    let mut out = csv::Writer::from_writer(Vec::new());
    let column_axis = table.columns.as_ref().map_or("column", |c| c.axis.as_str());
    let header = [
        "what",
        &table.rows.axis,
        "against",
        column_axis,
        "metric",
        "mean",
        "std",
        "population",
        "low",
        "high",
        "interval",
        "n",
        "missing",
        "episodes",
        "decoding",
        "se",
    ];
    out.write_record(header).map_err(|e| failed(e.to_string()))?;
    let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    let bounds = |i: &Option<Interval>| match i {
        Some(i) => [i.low.to_string(), i.high.to_string(), format!("{:?}", i.method).to_lowercase()],
        None => [const { String::new() }; 3],
    };
    for cell in &table.cells {
        let mut decoded: Vec<String> = cell.parts.iter().filter_map(|p| p.decoding).map(word).collect();
        decoded.dedup();
        for metric in &table.metrics {
            let stat = &cell.metrics[metric];
            let [low, high, method] = bounds(&stat.interval);
            let missing = if stat.n == 0 { "all".to_owned() } else { cell.lacking.join(" ") };
            let record = [
                "cell".to_owned(),
                cell.row.clone(),
                String::new(),
                cell.column.clone().unwrap_or_default(),
                metric.clone(),
                number(stat.mean),
                number(stat.std),
                number(stat.population),
                low,
                high,
                method,
                stat.n.to_string(),
                missing,
                cell.parts.iter().map(|p| p.episodes).sum::<usize>().to_string(),
                decoded.join(" "),
                String::new(),
            ];
            out.write_record(record).map_err(|e| failed(e.to_string()))?;
        }
    }
    for c in &table.comparisons {
        let [low, high, method] = bounds(&c.interval);
        let record = [
            "difference".to_owned(),
            c.a.clone(),
            c.b.clone(),
            c.column.clone().unwrap_or_default(),
            c.metric.clone(),
            number(c.difference),
            String::new(),
            String::new(),
            low,
            high,
            method,
            c.pairs.to_string(),
            if c.pairs == 0 { "all".to_owned() } else { String::new() },
            String::new(),
            String::new(),
            number(c.se_over),
        ];
        out.write_record(record).map_err(|e| failed(e.to_string()))?;
    }
    let bytes = out.into_inner().map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| failed(e.to_string()))
}

fn word(decoded: crate::eval::scores::Decoded) -> String {
    format!("{decoded:?}").to_lowercase()
}

/// `table.tex`: one `tabular` a block, for `\input` into a table environment; needs the package booktabs.
pub fn latex(table: &Table) -> String {
    let Blocks { caption, blocks } = blocks(table);
    let mut out = String::from("% needs \\usepackage{booktabs}\n");
    for block in &blocks {
        let _ = writeln!(out, "\n% {}", one_line(&block.title));
        let align: String = block.columns.iter().map(|(_, a)| if *a == Align::Left { 'l' } else { 'r' }).collect();
        let _ = writeln!(out, "\\begin{{tabular}}{{l{align}}}\n\\toprule");
        let header: Vec<String> = block.columns.iter().map(|(name, _)| tex(name)).collect();
        let _ = writeln!(out, "{} & {} \\\\\n\\midrule", tex(&block.corner), header.join(" & "));
        for row in &block.rows {
            let label = format!("{}{}", tex(&row.label.body), tex_marks(&row.label.marks));
            let cells: Vec<String> =
                row.cells.iter().map(|c| format!("{}{}", tex_body(&c.body), tex_marks(&c.marks))).collect();
            let _ = writeln!(out, "{label} & {} \\\\", cells.join(" & "));
        }
        out.push_str("\\bottomrule\n\\end{tabular}\n");
        for (at, note) in block.notes.iter().enumerate() {
            let _ = writeln!(out, "\\par{{\\footnotesize \\textsuperscript{{{}}} {}}}", mark(at), tex(note));
        }
    }
    if !caption.is_empty() {
        let _ = writeln!(out, "\\par{{\\footnotesize {}}}", tex(&caption.join(" ")));
    }
    out
}

fn tex_marks(marks: &[usize]) -> String {
    marks.iter().map(|&at| format!("\\textsuperscript{{{}}}", mark(at))).collect()
}

fn tex_body(body: &Body) -> String {
    match body {
        Body::Missing => "missing".to_owned(),
        Body::Text(text) => tex(text),
        Body::PlusMinus(mean, Some(spread)) => format!("${mean} \\pm {spread}$"),
        Body::Range(mean, Some([low, high])) => format!("${mean}$ $[{low}, {high}]$"),
        Body::PlusMinus(mean, None) | Body::Range(mean, None) => format!("${mean}$"),
    }
}

/// Text in which nothing is LaTeX.
fn tex(text: &str) -> String {
    let mut out = String::new();
    for c in one_line(text).chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '\\' => out.push_str("\\textbackslash{}"),
            '±' => out.push_str("$\\pm$"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::Spread;
    use crate::eval::table::tests::{labelled, layout, results, scores};

    fn table() -> Table {
        let mut layout = layout();
        layout.metrics = vec!["success".to_owned(), "steps_won".to_owned()];
        layout.compare = vec![["act".to_owned(), "il".to_owned()]];
        Table::build(&results(), &layout).unwrap()
    }

    #[test]
    fn the_markdown_is_this_text() {
        assert_eq!(markdown(&table()), include_str!("golden/table.md"));
    }

    #[test]
    fn the_csv_is_this_text() {
        assert_eq!(csv(&table()).unwrap(), include_str!("golden/table.csv"));
    }

    #[test]
    fn the_latex_is_this_text() {
        assert_eq!(latex(&table()), include_str!("golden/table.tex"));
    }

    #[test]
    fn intervals_are_shown_in_brackets() {
        let mut layout = layout();
        layout.spread = Spread::Interval;
        let text = markdown(&Table::build(&results(), &layout).unwrap());
        assert!(text.contains("| il     | 30.0 [0.0, 100.0]     |"), "{text}");
        assert!(text.contains("Cells: mean [95 % interval, Student's t] over 2 results (axis seed)"), "{text}");
    }

    #[test]
    fn a_wide_table_is_cut_between_columns_and_loses_none() {
        let splits: Vec<String> = (0..12).map(|i| format!("split number {i}")).collect();
        let results: Vec<_> = splits
            .iter()
            .map(|s| labelled(&[("policy", "il"), ("split", s.as_str()), ("seed", "0")], scores(&[0])))
            .collect();
        let text = markdown(&Table::build(&results, &layout()).unwrap());
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(splits.iter().all(|s| text.contains(s)));
        assert_eq!(text.matches("| policy |").count(), 3);
    }

    #[test]
    fn every_part_of_a_cut_table_of_differences_names_the_split_of_its_rows() {
        let names = ["a policy with such a long name", "and another one, which is longer"];
        let results: Vec<_> = ["0", "1", "2"]
            .iter()
            .flat_map(|seed| names.iter().flat_map(move |name| ["id", "ood"].map(|split| (*seed, *name, split))))
            .map(|(seed, name, split)| labelled(&[("policy", name), ("split", split), ("seed", seed)], scores(&[0, 1])))
            .collect();
        let mut layout = layout();
        layout.compare = vec![names.map(str::to_owned)];
        let text = markdown(&Table::build(&results, &layout).unwrap());
        let rows: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| a policy") && line.contains("minus")).collect();
        assert!(rows.len() >= 4, "the table was to be cut:\n{text}");
        for (at, row) in rows.iter().enumerate() {
            let split = if at % 2 == 0 { "id" } else { "ood" };
            assert_eq!(row.split('|').nth(2).map(str::trim), Some(split), "{text}");
        }
        assert_eq!(text.matches("higher in").count(), 1, "{text}");
    }

    #[test]
    fn labels_cannot_break_out_of_a_cell() {
        let at = |policy| labelled(&[("policy", policy), ("split", "id"), ("seed", "0")], scores(&[0]));
        let table = Table::build(&[at("a|b\nc"), at("50 % & {x}_\\")], &layout()).unwrap();
        assert!(markdown(&table).contains("| a\\|b c "));
        assert!(latex(&table).contains("50 \\% \\& \\{x\\}\\_\\textbackslash{} & $10.0$ \\\\"));
        let csv = csv(&table).unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        assert_eq!(&reader.records().next().unwrap().unwrap()[1], "a|b\nc");
    }
}

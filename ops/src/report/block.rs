//! A table's text, settled once for Markdown, LaTeX and HTML: which blocks there are and what each cell says.
//!
//! Invariants: every cell of the table is in exactly one block; a missing cell says so; whatever differs from what most
//! cells share (results, episodes, decoding) is a note that the cell or the row points at.

use crate::eval::compare::Comparison;
use crate::eval::table::{Cell, Missing, Spread, Table};

use super::number;

/// Which side a column's text leans on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// What a cell says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Missing,
    Text(String),
    /// A mean with its spread, where it has one.
    PlusMinus(String, Option<String>),
    /// A mean with its interval, where it has one.
    Range(String, Option<[String; 2]>),
}

/// Text with the notes it points at (numbers into `Block::notes`).
#[derive(Clone, Debug, PartialEq)]
pub struct Marked<T> {
    pub body: T,
    pub marks: Vec<usize>,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub label: Marked<String>,
    pub cells: Vec<Marked<Body>>,
}

/// One rectangle of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub title: String,
    /// What the row labels are.
    pub corner: String,
    pub columns: Vec<(String, Align)>,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

/// What most cells of a table share, and the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Sentences about all cells that have no note saying otherwise.
    pub caption: Vec<String>,
    pub blocks: Vec<Block>,
}

/// Letters for notes: a, b, ... z, a1, b1...
pub fn mark(at: usize) -> String {
    let letter = char::from(b'a' + (at % 26) as u8);
    if at < 26 { letter.to_string() } else { format!("{letter}{}", at / 26) }
}

/// What stands behind the cells, in words; empty where nothing is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    results: usize,
    /// One result stands for every label of the axis `over`, which does not multiply its step.
    for_all: bool,
    lacking: Vec<String>,
    episodes: String,
    decoding: String,
}

impl Standing {
    fn of(cell: &Cell) -> Standing {
        let episodes: Vec<usize> = cell.parts.iter().map(|p| p.episodes).filter(|&n| n > 0).collect();
        let episodes = match (episodes.iter().min(), episodes.iter().max()) {
            (Some(least), Some(most)) if least == most => number::counted(*least, "episode"),
            (Some(least), Some(most)) => format!("{least} to {most} episodes"),
            _ => String::new(),
        };
        let mut phrases: Vec<&str> = Vec::new();
        for phrase in cell.parts.iter().filter_map(|p| p.decoding).map(|d| d.phrase()) {
            if !phrases.contains(&phrase) {
                phrases.push(phrase);
            }
        }
        Standing {
            results: cell.parts.len(),
            for_all: cell.parts.iter().any(|part| part.over.is_none()),
            lacking: cell.lacking.clone(),
            episodes,
            decoding: phrases.join(" or "),
        }
    }

    /// The standing that most cells have, the first one among equals.
    fn common(table: &Table) -> Option<Standing> {
        let all: Vec<Standing> = table.cells.iter().filter(|c| !c.parts.is_empty()).map(Standing::of).collect();
        let count = |s: &Standing| all.iter().filter(|other| *other == s).count();
        let most = all.iter().map(count).max()?;
        all.iter().find(|s| count(s) == most).cloned()
    }

    /// What differs from the common standing.
    fn note(&self, common: &Standing, over: &str) -> Option<String> {
        let mut parts = Vec::new();
        if (self.results, self.for_all, &self.lacking) != (common.results, common.for_all, &common.lacking) {
            let mut text = number::counted(self.results, "result");
            if self.for_all {
                text.push_str(&format!(" for every {over}"));
            }
            if !self.lacking.is_empty() {
                text.push_str(&format!(", none for {over} {}", self.lacking.join(", ")));
            }
            parts.push(text);
        }
        if self.episodes != common.episodes {
            parts.push(if self.episodes.is_empty() { "no episodes".to_owned() } else { self.episodes.clone() });
        }
        if self.decoding != common.decoding {
            parts.push(match self.decoding.as_str() {
                "" => "no decoding: nothing was played".to_owned(),
                decoding => format!("decoding {decoding}"),
            });
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Notes of one block, each text once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn mark(&mut self, text: String) -> usize {
        match self.0.iter().position(|t| *t == text) {
            Some(at) => at,
            None => {
                self.0.push(text);
                self.0.len() - 1
            }
        }
    }
}

/// Lays a table out.
pub fn blocks(table: &Table) -> Blocks {
    let common = Standing::common(table);
    let mut blocks = Vec::new();
    match &table.columns {
        // Metrics beside each other: the only way to use the width.
        None => blocks.push(metric_columns(table, common.as_ref())),
        Some(_) => {
            blocks.extend(table.metrics.iter().map(|metric| one_metric(table, metric, common.as_ref())));
        }
    }
    for metric in &table.metrics {
        let mut of: Vec<&Comparison> = table.comparisons.iter().filter(|c| c.metric == *metric).collect();
        // differences of a few results that bear no interval stay in `table.json`
        if of.iter().all(|c| c.interval.is_none() && !c.by_task) && table.over.is_some() {
            of.clear();
        }
        if !of.is_empty() {
            blocks.push(differences(table, metric, &of));
        }
    }
    Blocks { caption: caption(table, common.as_ref()), blocks }
}

fn caption(table: &Table, common: Option<&Standing>) -> Vec<String> {
    let Some(common) = common else { return Vec::new() };
    let mut first = match (&table.over, common.results, table.spread) {
        (Some(over), n, Spread::Std) if n > 1 => {
            format!("Cells: mean ± sample standard deviation over {n} results (axis {})", over.axis)
        }
        (Some(over), n, Spread::Population) if n > 1 => {
            format!("Cells: mean ± population standard deviation over {n} results (axis {})", over.axis)
        }
        (Some(over), n, Spread::Interval) if n > 1 => {
            format!("Cells: mean [95 % interval, Student's t] over {n} results (axis {})", over.axis)
        }
        (_, _, Spread::Interval) => {
            "Cells: one result [95 % interval over its tasks, Wilson's for success and the bootstrap's for the others]"
                .to_owned()
        }
        _ => "Cells: one result, so no spread".to_owned(),
    };
    if !common.lacking.is_empty() {
        first.push_str(&format!(", none for {}", common.lacking.join(", ")));
    }
    if !common.episodes.is_empty() {
        first.push_str(&format!(", {}{}", common.episodes, if common.results > 1 { " each" } else { "" }));
    }
    let mut sentences = vec![format!("{first}.")];
    if !common.decoding.is_empty() {
        sentences.push(format!("Decoding: {}.", common.decoding));
    }
    let whole: Vec<String> =
        table.missing.iter().filter(|m| m.over.is_none() && m.metric.is_none()).map(place_of).collect();
    if !whole.is_empty() {
        sentences.push(format!("Missing, because no result fills it: {}.", whole.join(", ")));
    }
    sentences
}

/// `IL x ood`, for the list of missing cells.
fn place_of(missing: &Missing) -> String {
    match &missing.column {
        Some(column) => format!("{} x {column}", missing.row),
        None => missing.row.clone(),
    }
}

fn body(table: &Table, cell: &Cell, metric: &str) -> Body {
    let stat = &cell.metrics[metric];
    let show = |value: f64| number::metric(metric, value, table.percent);
    let Some(mean) = stat.mean else { return Body::Missing };
    match table.spread {
        Spread::Std => Body::PlusMinus(show(mean), stat.std.map(show)),
        Spread::Population => Body::PlusMinus(show(mean), stat.population.map(show)),
        Spread::Interval => Body::Range(show(mean), stat.interval.as_ref().map(|i| [show(i.low), show(i.high)])),
    }
}

/// Why a metric has fewer values than its cell has results.
fn gap_note(table: &Table, cell: &Cell, metric: &str) -> Option<String> {
    let stat = &cell.metrics[metric];
    if stat.n == stat.values.len() {
        return None;
    }
    if stat.n == 0 {
        return Some(format!("no result here defines {metric}"));
    }
    let without: Vec<&str> = cell
        .parts
        .iter()
        .zip(&stat.values)
        .filter(|(_, value)| value.is_none())
        .map(|(part, _)| part.over.as_deref().unwrap_or("the one without a label"))
        .collect();
    Some(format!("{metric} not defined for {} {}", over_name(table), without.join(", ")))
}

fn over_name(table: &Table) -> &str {
    table.over.as_ref().map_or("result", |over| over.axis.as_str())
}

/// A row of cells, each with a metric; notes that all its cells share move to the row's label.
fn row(table: &Table, label: &str, cells: &[(&Cell, &str)], common: Option<&Standing>, notes: &mut Notes) -> Row {
    let standing = |cell: &Cell| {
        let common = common?;
        (!cell.parts.is_empty()).then(|| Standing::of(cell).note(common, over_name(table))).flatten()
    };
    let filled: Vec<Option<String>> =
        cells.iter().filter(|(cell, _)| !cell.parts.is_empty()).map(|(cell, _)| standing(cell)).collect();
    let shared = match filled.split_first() {
        Some((Some(first), rest)) if !rest.is_empty() && rest.iter().all(|note| note.as_ref() == Some(first)) => {
            Some(first.clone())
        }
        _ => None,
    };
    let row_marks: Vec<usize> = shared.iter().map(|text| notes.mark(text.clone())).collect();
    let cells = cells.iter().map(|(cell, metric)| {
        let own = if shared.is_none() { standing(cell) } else { None };
        let marks = own.into_iter().chain(gap_note(table, cell, metric)).map(|text| notes.mark(text)).collect();
        Marked { body: body(table, cell, metric), marks }
    });
    let cells = cells.collect();
    Row { label: Marked { body: label.to_owned(), marks: row_marks }, cells }
}

fn one_metric(table: &Table, metric: &str, common: Option<&Standing>) -> Block {
    let mut notes = Notes::default();
    let rows = table.rows.labels.iter().enumerate().map(|(r, label)| {
        let cells: Vec<(&Cell, &str)> = (0..table.width()).map(|c| (table.cell(r, c), metric)).collect();
        row(table, label, &cells, common, &mut notes)
    });
    let rows = rows.collect();
    let columns = table.columns.iter().flat_map(|c| &c.labels).map(|l| (l.clone(), Align::Right)).collect();
    Block {
        title: number::titled(metric, table.percent),
        corner: table.rows.axis.clone(),
        columns,
        rows,
        notes: notes.0,
    }
}

fn metric_columns(table: &Table, common: Option<&Standing>) -> Block {
    let mut notes = Notes::default();
    let rows = table.rows.labels.iter().enumerate().map(|(r, label)| {
        let cells: Vec<(&Cell, &str)> = table.metrics.iter().map(|m| (table.cell(r, 0), m.as_str())).collect();
        row(table, label, &cells, common, &mut notes)
    });
    let rows = rows.collect();
    let columns = table.metrics.iter().map(|m| (number::titled(m, table.percent), Align::Right)).collect();
    let title = format!("scores by {}", table.rows.axis);
    Block { title, corner: table.rows.axis.clone(), columns, rows, notes: notes.0 }
}

fn differences(table: &Table, metric: &str, comparisons: &[&Comparison]) -> Block {
    let mut notes = Notes::default();
    let mut columns: Vec<(String, Align)> = Vec::new();
    if let Some(axis) = &table.columns {
        columns.push((axis.axis.clone(), Align::Left));
    }
    columns.extend(["difference", "95 % interval", "pairs"].map(|name| (name.to_owned(), Align::Right)));
    let errors = table.over.as_ref().filter(|_| comparisons.iter().any(|c| c.se_over.is_some()));
    if let Some(over) = errors {
        columns.push((format!("s.e. over {}", over.axis), Align::Right));
    }
    if table.over.is_some() {
        columns.push(("higher in".to_owned(), Align::Right));
    }
    let by_task = comparisons.iter().any(|c| c.by_task);
    let show = |value: f64| number::signed(metric, value, table.percent);
    let rows = comparisons.iter().map(|c| {
        let plain = |body| Marked { body, marks: Vec::new() };
        let mut cells: Vec<Marked<Body>> = c.column.iter().map(|l| plain(Body::Text(l.clone()))).collect();
        cells.push(plain(c.difference.map_or(Body::Missing, |d| Body::Text(show(d)))));
        cells.push(plain(match &c.interval {
            Some(i) => Body::Text(format!("[{}, {}]", show(i.low), show(i.high))),
            None => Body::Missing,
        }));
        let left_out = (c.unpaired > 0).then(|| {
            let what = if c.by_task { "task" } else { "result" };
            notes.mark(format!("left out, because one side alone has them: {}", number::counted(c.unpaired, what)))
        });
        cells.push(Marked { body: Body::Text(c.pairs.to_string()), marks: left_out.into_iter().collect() });
        if errors.is_some() {
            let error = c.se_over.map(|error| number::metric(metric, error, table.percent));
            cells.push(plain(error.map_or(Body::Missing, Body::Text)));
        }
        if table.over.is_some() {
            cells.push(plain(Body::Text(format!("{} of {}", c.higher(), c.per_over.len()))));
        }
        Row { label: Marked { body: format!("{} minus {}", c.a, c.b), marks: Vec::new() }, cells }
    });
    let rows = rows.collect();
    let several = comparisons.iter().any(|c| c.per_over.len() > 1);
    let pairing = match (by_task, &table.over) {
        (true, Some(over)) if several => format!("paired by {} and task, bootstrap over both", over.axis),
        (true, Some(over)) => format!("paired by {} and task, bootstrap", over.axis),
        (true, None) => "paired by task, bootstrap".to_owned(),
        (false, Some(over)) => format!("paired by {}, Student's t", over.axis),
        (false, None) => "of single results".to_owned(),
    };
    Block {
        title: format!("{}: differences, {pairing}", number::titled_difference(metric, table.percent)),
        corner: "comparison".to_owned(),
        columns,
        rows,
        notes: notes.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::Decoded;
    use crate::eval::table::Labelled;
    use crate::eval::table::tests::{labelled, layout, results, scores};

    #[test]
    fn what_a_cell_does_not_share_with_most_is_a_note() {
        let mut results = results();
        results[4].scores.decoding = Some(Decoded::Free);
        let table = Table::build(&results, &layout()).unwrap();
        let blocks = blocks(&table);
        assert_eq!(
            blocks.caption,
            [
                "Cells: mean ± sample standard deviation over 2 results (axis seed), 10 episodes each.",
                "Decoding: held to admissible actions.",
                "Missing, because no result fills it: act x ood, base x id.",
            ]
        );
        let block = &blocks.blocks[0];
        assert_eq!(
            block.notes,
            ["1 result, none for seed 1; decoding free (any text could be said)", "1 result for every seed"]
        );
        assert_eq!(block.rows[1].cells[0].marks, [0]);
        assert_eq!(block.rows[1].cells[1].body, Body::Missing);
        assert_eq!(block.rows[0].cells[0].body, Body::PlusMinus("30.0".to_owned(), Some("14.1".to_owned())));
    }

    #[test]
    fn a_note_that_a_whole_row_shares_stands_at_its_label() {
        let mut results = results();
        results.iter_mut().take(4).for_each(|r| r.scores.decoding = Some(Decoded::Free));
        // Without `act` and with `base` on both splits, `il` and `base` are equally common: the first sets the tone.
        results.remove(4);
        let mut other = results[4].clone();
        other.labels.insert("split".to_owned(), "id".to_owned());
        results.push(other);
        let blocks = blocks(&Table::build(&results, &layout()).unwrap());
        let base = &blocks.blocks[0].rows[1];
        assert_eq!((base.label.marks.as_slice(), base.cells[0].marks.len()), (&[0][..], 0));
        assert_eq!(blocks.blocks[0].notes, ["1 result for every seed; decoding held to admissible actions"]);
    }

    #[test]
    fn a_standard_error_over_seeds_is_a_column_where_there_is_one() {
        let at = |policy: &str, seed: &str, won: &[usize]| {
            labelled(&[("policy", policy), ("split", "id"), ("seed", seed)], scores(won))
        };
        let mut results = Vec::new();
        for (seed, won) in [("0", &[0, 1][..]), ("1", &[2]), ("2", &[])] {
            results.extend([at("a", seed, won), at("b", seed, &[])]);
        }
        let mut layout = layout();
        layout.compare = vec![["a".to_owned(), "b".to_owned()]];
        let shown = |results: &[Labelled]| {
            let block = blocks(&Table::build(results, &layout).unwrap()).blocks.remove(1);
            let names: Vec<String> = block.columns.into_iter().map(|(name, _)| name).collect();
            let at = names.iter().position(|name| name == "s.e. over seed");
            (block.title, at.map(|at| block.rows[0].cells[at].body.clone()))
        };
        // differences of 20, 10 and 0 points: deviation 10
        let (title, error) = shown(&results);
        assert_eq!(error, Some(Body::Text("5.8".to_owned())));
        assert!(title.ends_with("differences, paired by seed and task, bootstrap over both"), "{title}");
        assert_eq!(shown(&results[..4]).1, None);
        assert!(shown(&results[..2]).0.ends_with("paired by seed and task, bootstrap"));
    }

    #[test]
    fn marks_are_letters_and_go_on_past_z() {
        assert_eq!([mark(0), mark(25), mark(26)], ["a", "z", "a1"]);
    }
}

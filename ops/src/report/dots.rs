//! The main table as a picture: a dot for each mean, a bar for its spread.

use std::fmt::Write as _;

use crate::eval::table::{Spread, Stat, Table};

use super::html::{Text, clipped};
use super::number;
use super::scale::Scale;

/// Width of a picture, where labels leave enough for the dots.
const W: f64 = 480.0;
/// Least width of the dots' part.
const DOTS: f64 = 300.0;
/// Characters of a label, at most.
const LABEL: usize = 40;
const ROW: f64 = 15.0;
const RIGHT: f64 = 16.0;

/// The ends of the bar beside a mean; a share's are within 0 and 1.
fn ends(stat: &Stat, spread: Spread, share: bool) -> Option<(f64, f64)> {
    let mean = stat.mean?;
    let (low, high) = match spread {
        Spread::Std => stat.std.map(|s| (mean - s, mean + s)),
        Spread::Population => stat.population.map(|s| (mean - s, mean + s)),
        Spread::Interval => stat.interval.as_ref().map(|i| (i.low, i.high)),
    }?;
    Some(if share { (low.max(0.0), high.min(1.0)) } else { (low, high) })
}

/// One metric as a figure of a page; empty where no cell has it.
pub fn html(table: &Table, metric: &str) -> String {
    let Some(Picture { title, width, height, mut shapes }) = picture(table, metric) else { return String::new() };
    let said = Text(&title);
    let mut out = format!(
        "<figure class=\"chart\"><figcaption>{said}</figcaption>\n<svg class=\"dots\" role=\"img\" aria-label=\"Means and \
         spreads of {said} by {}; the numbers are in the table\" viewBox=\"0 0 {width} {height}\">\n",
        Text(&table.rows.axis),
    );
    shapes.push_str("</svg>\n");
    out.push_str(&shapes);
    if let Some(columns) = &table.columns {
        out.push_str("<ul class=\"legend\">\n");
        for (c, label) in columns.labels.iter().enumerate() {
            let _ = writeln!(
                out,
                "<li><svg class=\"key dot c{}\" viewBox=\"0 0 12 8\" aria-hidden=\"true\"><circle cx=\"6\" cy=\"4\" \
                 r=\"4\"/></svg>{}</li>",
                c % 8,
                Text(label)
            );
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</figure>\n");
    out
}

/// Looks of a picture that stands for itself, light or dark as its reader has it.
const STYLE: &str = "svg{font-family:system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif;color-scheme:light dark}\
text{fill:light-dark(#5b6570,#98a2ad);font-size:11px}.tx{text-anchor:middle}.ty{text-anchor:end}\
.row{fill:light-dark(#1b1f24,#e4e8ec);font-size:12px}.gone{font-style:italic;font-size:10px}\
.grid{stroke:light-dark(#d9dee4,#333a42);fill:none}circle{fill:currentColor}\
.dot path{stroke:currentColor;stroke-width:2;stroke-linecap:round;fill:none;opacity:.55}\
.c0{color:#2f6fde}.c1{color:#d1602d}.c2{color:#1a8f6a}.c3{color:#a445b2}\
.c4{color:#a17700}.c5{color:#c2335b}.c6{color:#3b7f96}.c7{color:#6b6b6b}";

/// One metric as an SVG file; `None` where no cell has it.
pub fn svg(table: &Table, metric: &str) -> Option<String> {
    const KEY: f64 = 16.0;
    let Picture { title, width, height, shapes } = picture(table, metric)?;
    let keys = table.columns.as_ref().map_or(&[][..], |columns| &columns.labels);
    let whole = height + KEY * keys.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{whole}\" viewBox=\"0 0 {width} {whole}\" \
         role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n{shapes}",
        Text(&title),
    );
    for (c, label) in keys.iter().enumerate() {
        let y = height + KEY * (c as f64 + 0.5);
        let _ = writeln!(
            out,
            "<g class=\"dot c{}\"><circle cx=\"12\" cy=\"{y}\" r=\"4\"/></g><text x=\"22\" y=\"{}\">{}</text>",
            c % 8,
            y + 4.0,
            Text(label)
        );
    }
    out.push_str("</svg>\n");
    Some(out)
}

/// What is drawn of a metric.
struct Picture {
    title: String,
    width: f64,
    height: f64,
    shapes: String,
}

fn picture(table: &Table, metric: &str) -> Option<Picture> {
    let share = number::titled(metric, table.percent).ends_with("(%)");
    let factor = if share { 100.0 } else { 1.0 };
    let stats: Vec<Vec<&Stat>> = (0..table.rows.labels.len())
        .map(|r| (0..table.width()).map(|c| &table.cell(r, c).metrics[metric]).collect())
        .collect();
    let values = stats.iter().flatten().flat_map(|s| {
        let (low, high) = ends(s, table.spread, share).unzip();
        [s.mean, low, high].into_iter().flatten().map(|v| v * factor)
    });
    let x = Scale::around(values, 5)?;
    let left = table.rows.labels.iter().map(|l| l.chars().count().min(LABEL)).max().unwrap_or(0) as f64 * 6.6 + 18.0;
    let width = W.max((left + DOTS + RIGHT).round());
    let group = table.width() as f64 * ROW + 10.0;
    let bottom = 8.0 + group * stats.len() as f64;
    let height = bottom + 38.0;
    let at = |v: f64| left + x.at(v * factor) * (width - left - RIGHT);
    let title = number::titled(metric, table.percent);
    let mut out = String::new();
    for tick in &x.ticks {
        let place = at(*tick / factor);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{place:.1} 4V{bottom:.1}\"/>\
             <text class=\"tx\" x=\"{place:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 15.0,
            x.label(*tick)
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"tx\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        (left + width - RIGHT) / 2.0,
        height - 4.0,
        Text(&title)
    );
    for (r, (label, row)) in table.rows.labels.iter().zip(&stats).enumerate() {
        let top = 8.0 + r as f64 * group;
        let _ = writeln!(
            out,
            "<text class=\"ty row\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 10.0,
            top + group / 2.0 - 1.0,
            Text(&clipped(label, LABEL))
        );
        for (c, stat) in row.iter().enumerate() {
            let y = top + (c as f64 + 0.5) * ROW;
            dot(&mut out, (stat, ends(stat, table.spread, share)), c, y, at, left);
        }
    }
    Some(Picture { title, width, height, shapes: out })
}

type Bar = Option<(f64, f64)>;

fn dot(out: &mut String, (stat, bar): (&Stat, Bar), column: usize, y: f64, at: impl Fn(f64) -> f64, left: f64) {
    let Some(mean) = stat.mean else {
        let _ = writeln!(out, "<text class=\"gone\" x=\"{:.1}\" y=\"{:.1}\">missing</text>", left + 4.0, y + 3.0);
        return;
    };
    let _ = write!(out, "<g class=\"dot c{}\">", column % 8);
    if let Some((low, high)) = bar {
        let _ = write!(out, "<path d=\"M{:.1} {y:.1}H{:.1}\"/>", at(low), at(high));
    }
    let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/></g>", at(mean));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::tests::{layout, results};

    #[test]
    fn every_cell_is_a_dot_or_says_missing() {
        let table = Table::build(&results(), &layout()).unwrap();
        let html = html(&table, "success");
        assert_eq!(html.matches("<g class=\"dot").count(), 4);
        assert_eq!(html.matches(">missing<").count(), 2);
        assert!(html.contains(">ood</li>") && html.contains("success (%)"));
    }

    #[test]
    fn a_picture_of_its_own_says_everything_that_the_page_says() {
        let table = Table::build(&results(), &layout()).unwrap();
        let svg = svg(&table, "success").unwrap();
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<g class=\"dot").count(), 4 + 2, "a dot a cell, and a key a column");
        assert!(svg.contains(">ood</text>") && svg.contains("<title>success (%)</title>"));
        assert!(svg.contains("width=\"480\""));
    }

    #[test]
    fn labels_that_are_long_make_the_picture_wider_and_the_longest_are_cut() {
        let mut table = Table::build(&results(), &layout()).unwrap();
        table.rows.labels[0] = "ACT, four alternatives, then imitation".to_owned();
        table.rows.labels[1] = "x".repeat(60);
        let svg = svg(&table, "success").unwrap();
        assert!(svg.contains(">ACT, four alternatives, then imitation<"));
        assert!(svg.contains(&format!(">{}…<", "x".repeat(39))));
        assert!(svg.contains("viewBox=\"0 0 598 "), "{}", &svg[..200]);
    }
}

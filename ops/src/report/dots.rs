//! The main table as a picture: a dot for each mean, a bar for its spread.

use std::fmt::Write as _;

use crate::eval::table::{Spread, Stat, Table};

use super::html::{Text, clipped};
use super::number;
use super::scale::Scale;

const W: f64 = 480.0;
const ROW: f64 = 15.0;
const RIGHT: f64 = 16.0;

/// The ends of the bar beside a mean.
fn ends(stat: &Stat, spread: Spread) -> Option<(f64, f64)> {
    let mean = stat.mean?;
    match spread {
        Spread::Std => stat.std.map(|s| (mean - s, mean + s)),
        Spread::Population => stat.population.map(|s| (mean - s, mean + s)),
        Spread::Interval => stat.interval.as_ref().map(|i| (i.low, i.high)),
    }
}

/// One metric as a figure; empty where no cell has it.
pub fn html(table: &Table, metric: &str) -> String {
    let factor = if number::titled(metric, table.percent).ends_with("(%)") { 100.0 } else { 1.0 };
    let stats: Vec<Vec<&Stat>> = (0..table.rows.labels.len())
        .map(|r| (0..table.width()).map(|c| &table.cell(r, c).metrics[metric]).collect())
        .collect();
    let values = stats.iter().flatten().flat_map(|s| {
        let (low, high) = ends(s, table.spread).unzip();
        [s.mean, low, high].into_iter().flatten().map(|v| v * factor)
    });
    let Some(x) = Scale::around(values, 5) else { return String::new() };
    let left = table.rows.labels.iter().map(|l| l.chars().count().min(24)).max().unwrap_or(0) as f64 * 6.6 + 18.0;
    let group = table.width() as f64 * ROW + 10.0;
    let bottom = 8.0 + group * stats.len() as f64;
    let height = bottom + 38.0;
    let at = |v: f64| left + x.at(v * factor) * (W - left - RIGHT);
    let title = number::titled(metric, table.percent);
    let mut out = format!(
        "<figure class=\"chart\"><figcaption>{}</figcaption>\n<svg class=\"dots\" role=\"img\" aria-label=\"Means and \
         spreads of {} by {}; the numbers are in the table\" viewBox=\"0 0 {W} {height}\">\n",
        Text(&title),
        Text(&title),
        Text(&table.rows.axis),
    );
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
        (left + W - RIGHT) / 2.0,
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
            Text(&clipped(label, 24))
        );
        for (c, stat) in row.iter().enumerate() {
            let y = top + (c as f64 + 0.5) * ROW;
            dot(&mut out, stat, table.spread, c, y, at, left);
        }
    }
    out.push_str("</svg>\n");
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

fn dot(out: &mut String, stat: &Stat, spread: Spread, column: usize, y: f64, at: impl Fn(f64) -> f64, left: f64) {
    let Some(mean) = stat.mean else {
        let _ = writeln!(out, "<text class=\"gone\" x=\"{:.1}\" y=\"{:.1}\">missing</text>", left + 4.0, y + 3.0);
        return;
    };
    let _ = write!(out, "<g class=\"dot c{}\">", column % 8);
    if let Some((low, high)) = ends(stat, spread) {
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
}

//! Line charts of metrics as inline SVG, with a legend that also gives each line's last value.
//!
//! Invariants: at most [`MOST`] points a line, each the mean of the records it stands for; a record without a value is
//! a gap and never a zero; a chart without any value says so.

use std::fmt::Write as _;

use super::html::Text;
use super::number;
use super::scale::Scale;

/// Most points of a line; more would only be ink at this size.
pub const MOST: usize = 180;
/// Colours the page defines, then they start over with another dash.
const COLOURS: usize = 8;

const W: f64 = 480.0;
const H: f64 = 240.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 38.0;

/// One line: (step, value) by ascending step.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub name: String,
    pub points: Vec<(u64, Option<f64>)>,
    /// Which variant: the colour.
    pub variant: usize,
    /// Which metric of the family: the dash.
    pub metric: usize,
}

/// One chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The step it is of; said where the picture stands alone.
    pub step: String,
    pub title: String,
    /// What the vertical axis counts.
    pub unit: String,
    pub lines: Vec<Line>,
}

/// A line as it is drawn.
#[derive(Debug, PartialEq)]
struct Thinned {
    points: Vec<(f64, Option<f64>)>,
    /// How many records a point stands for, at most.
    each: usize,
}

/// Means of equal runs of records, at most `most` of them.
fn thin(points: &[(u64, Option<f64>)], most: usize) -> Thinned {
    let each = points.len().div_ceil(most).max(1);
    let mean = |chunk: &[(u64, Option<f64>)]| {
        let step = chunk.iter().map(|p| p.0 as f64).sum::<f64>() / chunk.len() as f64;
        let there: Vec<f64> = chunk.iter().filter_map(|p| p.1).filter(|v| v.is_finite()).collect();
        let value = (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64);
        (step, value)
    };
    Thinned { points: points.chunks(each).map(mean).collect(), each }
}

/// Colour and dash, as classes the page defines.
fn style(line: &Line) -> String {
    format!("c{} d{}", line.variant % COLOURS, (line.metric + line.variant / COLOURS) % 4)
}

impl Chart {
    /// The chart as a `figure`.
    pub fn html(&self) -> String {
        let thinned: Vec<_> = self.lines.iter().map(|line| thin(&line.points, MOST)).collect();
        let each = thinned.iter().map(|t| t.each).max().unwrap_or(1);
        let values = || thinned.iter().flat_map(|t| &t.points).filter_map(|p| Some((p.0, p.1?)));
        let mut out = format!("<figure class=\"chart\"><figcaption>{}", Text(&self.title));
        if !self.unit.is_empty() {
            let _ = write!(out, " <span class=\"unit\">{}</span>", Text(&self.unit));
        }
        out.push_str("</figcaption>\n");
        let (Some(x), Some(y)) = (Scale::within(values().map(|p| p.0), 5), Scale::around(values().map(|p| p.1), 4))
        else {
            out.push_str("<p class=\"quiet\">No value was recorded.</p></figure>\n");
            return out;
        };
        self.plot(&mut out, &x, &y, &thinned);
        self.legend(&mut out);
        if each > 1 {
            let _ = writeln!(out, "<p class=\"quiet\">Each point is the mean of up to {each} records.</p>");
        }
        out.push_str("</figure>\n");
        out
    }

    fn plot(&self, out: &mut String, x: &Scale, y: &Scale, lines: &[Thinned]) {
        let right = |v: f64| LEFT + x.at(v) * (W - LEFT - RIGHT);
        let down = |v: f64| H - BOTTOM - y.at(v) * (H - TOP - BOTTOM);
        // The script of the page reads the ends of both axes from here.
        let _ = writeln!(
            out,
            "<svg class=\"plot\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {W} {H}\" data-x=\"{} {} {LEFT} {}\" \
             data-y=\"{} {} {} {TOP}\">",
            Text(&self.said()),
            x.low,
            x.high,
            W - RIGHT,
            y.low,
            y.high,
            H - BOTTOM,
        );
        for tick in &y.ticks {
            let at = down(*tick);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/><text class=\"ty\" x=\"{}\" y=\"{:.1}\">{}</text>",
                W - RIGHT,
                LEFT - 7.0,
                at + 3.5,
                y.label(*tick)
            );
        }
        for tick in &x.ticks {
            let at = right(*tick);
            let _ = writeln!(
                out,
                "<path class=\"tick\" d=\"M{at:.1} {:.1}v4\"/><text class=\"tx\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
                H - BOTTOM,
                H - BOTTOM + 16.0,
                x.label(*tick)
            );
        }
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {:.1}H{}\"/><text class=\"tx\" x=\"{:.1}\" y=\"{:.1}\">step</text>",
            H - BOTTOM,
            W - RIGHT,
            (LEFT + W - RIGHT) / 2.0,
            H - 5.0
        );
        for (line, Thinned { points, .. }) in self.lines.iter().zip(lines) {
            let _ = write!(out, "<g class=\"line {}\" data-name=\"{}\">", style(line), Text(&line.name));
            for run in points.split(|p| p.1.is_none()).filter(|run| !run.is_empty()) {
                let places: Vec<String> =
                    run.iter().filter_map(|p| Some(format!("{:.2},{:.2}", right(p.0), down(p.1?)))).collect();
                match places.as_slice() {
                    [only] => {
                        let (cx, cy) = only.split_once(',').unwrap_or((only, "0"));
                        let _ = write!(out, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\"/>");
                    }
                    many => {
                        let _ = write!(out, "<polyline points=\"{}\"/>", many.join(" "));
                    }
                }
            }
            out.push_str("</g>\n");
        }
        out.push_str("</svg>\n");
    }

    /// The chart in words.
    fn said(&self) -> String {
        let mut said = format!("Line chart of {}: {}", self.step, self.title);
        for line in &self.lines {
            let there = || line.points.iter().filter_map(|p| Some((p.0, p.1?)));
            if let (Some(first), Some(last)) = (there().next(), there().next_back()) {
                let short = |v| number::short(v, 3);
                let _ = write!(
                    said,
                    "; {}: {} at step {} to {} at step {}",
                    line.name,
                    short(first.1),
                    first.0,
                    short(last.1),
                    last.0
                );
            }
        }
        said
    }

    fn legend(&self, out: &mut String) {
        out.push_str("<ul class=\"legend\">\n");
        for line in &self.lines {
            let last =
                line.points.iter().rev().find_map(|p| p.1).map_or("no value".to_owned(), |v| number::short(v, 3));
            let _ = writeln!(
                out,
                "<li><svg class=\"key line {}\" viewBox=\"0 0 22 8\" aria-hidden=\"true\"><polyline points=\"0,4 \
                 22,4\"/></svg>{} <b>{last}</b></li>",
                style(line),
                Text(&line.name)
            );
        }
        out.push_str("</ul>\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chart(points: Vec<(u64, Option<f64>)>) -> String {
        let line = Line { name: "seed=0".to_owned(), points, variant: 0, metric: 0 };
        Chart { step: "act".to_owned(), title: "loss".to_owned(), unit: "nats".to_owned(), lines: vec![line] }.html()
    }

    #[test]
    fn a_gap_breaks_the_line_and_a_lone_point_is_a_dot() {
        let html = chart(vec![(1, Some(2.0)), (2, Some(1.5)), (3, None), (4, Some(1.0))]);
        assert_eq!(html.matches("<polyline points").count(), 2, "one run and the legend's");
        assert_eq!(html.matches("<circle").count(), 1);
        assert!(html.contains("<b>1</b>"));
    }

    #[test]
    fn the_chart_is_told_in_words() {
        let html = chart(vec![(1, Some(2.0)), (9, Some(0.51234))]);
        assert!(html.contains("aria-label=\"Line chart of act: loss; seed=0: 2 at step 1 to 0.512 at step 9\""));
    }

    #[test]
    fn a_chart_without_values_says_so() {
        assert!(chart(vec![(1, None)]).contains("No value was recorded"));
        assert!(chart(Vec::new()).contains("No value was recorded"));
    }

    #[test]
    fn a_long_line_is_thinned_to_means_and_says_how() {
        let html = chart((0..1000).map(|i| (i, Some((i % 2) as f64))).collect());
        assert!(html.contains("Each point is the mean of up to 6 records."));
        let thinned = thin(&[(0, Some(1.0)), (2, Some(3.0)), (4, None)], 2);
        assert_eq!(thinned, Thinned { points: vec![(1.0, Some(2.0)), (4.0, None)], each: 2 });
    }

    proptest! {
        #[test]
        fn thinning_is_bounded_and_keeps_the_mean(
            values in proptest::collection::vec(-10.0f64..10.0, 1..900), most in 1usize..200,
        ) {
            let points: Vec<_> = values.iter().enumerate().map(|(i, v)| (i as u64, Some(*v))).collect();
            let Thinned { points: thinned, each } = thin(&points, most);
            prop_assert!(thinned.len() <= most);
            let sum: f64 = thinned
                .iter()
                .enumerate()
                .map(|(i, p)| p.1.unwrap() * each.min(points.len() - i * each) as f64)
                .sum();
            prop_assert!((sum - values.iter().sum::<f64>()).abs() < 1e-6);
        }
    }
}

//! Scores as tables of the page: every number, how episodes ended, success by task type, the baseline.
//!
//! Invariants: a number that is not defined is an empty cell; a cause that no row has is no column.

use super::html::Text;
use super::number;
use super::page::{plain_table, signed};
use crate::eval::scores::{Decoded, Scores};
use crate::eval::stats::Interval;
use crate::eval::taxonomy::Cause;

/// What most readers look for first, then the rest by name.
const FIRST: [&str; 5] = ["success", "score", "return", "steps", "steps_won"];

fn decoding(scores: &Scores) -> &'static str {
    match scores.decoding {
        Some(Decoded::Admissible) => "admissible",
        Some(Decoded::Free) => "free",
        Some(Decoded::Expert) => "expert",
        Some(Decoded::Random) => "random",
        Some(Decoded::Mixed) => "mixed",
        None => "",
    }
}

fn shown(name: &str, value: Option<f64>) -> String {
    value.map_or(String::new(), |v| signed(&number::metric(name, v, true)))
}

/// A number with its interval.
fn ranged(name: &str, value: Option<f64>, interval: Option<&Interval>) -> String {
    match interval {
        Some(i) if value.is_some() => {
            let (low, high) = (shown(name, Some(i.low)), shown(name, Some(i.high)));
            format!("{} <span class=\"spread\">[{low}, {high}]</span>", shown(name, value))
        }
        _ => shown(name, value),
    }
}

/// Names that some row has, each once; what most readers look for comes first.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = all.map(String::as_str).collect();
    let rank = |name: &str| FIRST.iter().position(|f| *f == name).unwrap_or(FIRST.len());
    names.sort_by_key(|name| (rank(name), name.to_owned()));
    names.dedup();
    names
}

/// All tables.
pub(super) fn html(all: &[(String, Scores)]) -> String {
    let mut out = String::new();
    if all.is_empty() {
        return out;
    }
    every_score(&mut out, all);
    endings(&mut out, all);
    by_kind(&mut out, all);
    baselines(&mut out, all);
    out
}

fn every_score(out: &mut String, all: &[(String, Scores)]) {
    let plain = all.iter().flat_map(|(_, scores)| scores.metrics.keys()).filter(|name| !name.starts_with("failure_"));
    let names = names(plain);
    let rows = all.iter().map(|(step, scores)| {
        let mut cells = vec![scores.episodes.to_string(), decoding(scores).to_owned()];
        let value = |name: &&str| scores.metrics.get(*name).copied().flatten();
        cells.extend(names.iter().map(|name| ranged(name, value(name), scores.intervals.get(*name))));
        (step.as_str(), cells)
    });
    let titles = names.iter().map(|name| number::titled(name, true));
    let heads = ["episodes", "decoding"].into_iter().map(str::to_owned).chain(titles).collect();
    plain_table(out, "Every score, with its 95 % interval", heads, rows.collect());
}

/// Success and the causes of failure; a row adds up to 100 %.
fn endings(out: &mut String, all: &[(String, Scores)]) {
    let share = |scores: &Scores, name: &str| scores.metrics.get(name).copied().flatten();
    let played: Vec<&(String, Scores)> = all.iter().filter(|(_, s)| share(s, "failure_stuck").is_some()).collect();
    let named = |cause: &Cause| format!("failure_{}", cause.name());
    let some = |cause: &Cause| played.iter().any(|(_, s)| share(s, &named(cause)).is_some_and(|part| part > 0.0));
    let causes: Vec<Cause> = Cause::ALL.into_iter().filter(some).collect();
    if played.is_empty() {
        return;
    }
    let rows = played.iter().map(|(step, scores)| {
        let cell = |name: &str| shown(name, share(scores, name));
        let cells = std::iter::once(cell("success")).chain(causes.iter().map(|cause| cell(&named(cause))));
        (step.as_str(), cells.collect())
    });
    let heads = std::iter::once("success").chain(causes.iter().map(|cause| cause.name())).map(str::to_owned);
    plain_table(out, "How episodes ended (% of episodes)", heads.collect(), rows.collect());
    if !causes.is_empty() {
        let about = causes.iter().map(|cause| format!("{}: {}", cause.name(), cause.about()));
        let about = about.collect::<Vec<_>>().join("; ");
        out.push_str(&format!("<p class=\"quiet\">{}.</p>\n", Text(&about)));
    }
}

fn by_kind(out: &mut String, all: &[(String, Scores)]) {
    let kinds = names(all.iter().flat_map(|(_, scores)| scores.by_kind.keys()));
    if kinds.is_empty() {
        return;
    }
    let rows = all.iter().filter(|(_, scores)| !scores.by_kind.is_empty()).map(|(step, scores)| {
        let cell = |kind: &&str| {
            scores.by_kind.get(*kind).map_or(String::new(), |k| {
                format!("{} <span class=\"spread\">of {}</span>", shown("success", Some(k.success)), k.episodes)
            })
        };
        (step.as_str(), kinds.iter().map(cell).collect())
    });
    let heads = kinds.iter().map(|k| (*k).to_owned()).collect();
    plain_table(out, "Success by task type (%)", heads, rows.collect());
}

fn baselines(out: &mut String, all: &[(String, Scores)]) {
    let compared: Vec<_> = all.iter().filter_map(|(step, s)| Some((step.as_str(), s.baseline.as_ref()?))).collect();
    if compared.is_empty() {
        return;
    }
    let metrics = names(compared.iter().flat_map(|(_, paired)| paired.metrics.keys()));
    let rows = compared.iter().map(|(step, paired)| {
        let signed = |name: &str, value: f64| signed(&number::signed(name, value, true));
        let mut cells = vec![paired.tasks.to_string(), (paired.only_policy + paired.only_baseline).to_string()];
        cells.extend(metrics.iter().map(|name| {
            paired.metrics.get(*name).map_or(String::new(), |found| {
                let interval = found.interval.as_ref().map(|i| {
                    let (low, high) = (signed(name, i.low), signed(name, i.high));
                    format!(" <span class=\"spread\">[{low}, {high}]</span>")
                });
                format!("{}{}", signed(name, found.difference), interval.unwrap_or_default())
            })
        }));
        let mcnemar = paired.mcnemar.as_ref();
        cells.push(mcnemar.map_or(String::new(), |m| format!("{} : {}", m.b, m.c)));
        cells.push(mcnemar.map_or(String::new(), |m| number::short(m.p, 3)));
        (*step, cells)
    });
    let titles = metrics.iter().map(|name| number::titled_difference(name, true));
    let heads = ["tasks of both", "left out"].into_iter().map(str::to_owned).chain(titles);
    let heads = heads.chain(["won by one alone", "McNemar's p"].map(str::to_owned)).collect();
    plain_table(
        out,
        "Minus the baseline, on the same tasks, with 95 % intervals (bootstrap over tasks)",
        heads,
        rows.collect(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::{counting, episode};

    fn scores(won: &[bool]) -> Scores {
        let turns = [("look", true, "a mug"); 4];
        let episodes: Vec<_> =
            won.iter().enumerate().map(|(i, won)| episode(&format!("id/{i}"), "<b>", *won, &turns)).collect();
        Scores::of_episodes(&episodes, &counting())
    }

    #[test]
    fn causes_stand_in_one_row_with_success_and_those_that_never_occur_are_left_out() {
        let html = html(&[("play".to_owned(), scores(&[true, false, false, false]))]);
        let at = html.find("How episodes ended").unwrap();
        let table = &html[at..at + html[at..].find("</table>").unwrap()];
        assert!(table.contains("<th scope=\"col\">success</th><th scope=\"col\">loop</th></tr>"), "{table}");
        assert!(table.contains("<td>25.0</td><td>75.0</td>"), "{table}");
        assert!(html.contains("loop: one action again and again upon one observation."));
        assert!(!html.contains("failure_"), "causes are not told twice");
    }

    #[test]
    fn every_number_stands_with_its_interval() {
        let html = html(&[("play".to_owned(), scores(&[true, false, false, false]))]);
        assert!(html.contains("25.0 <span class=\"spread\">[4.6, 69.9]</span>"), "Wilson's of 1 in 4");
        assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"));
    }

    #[test]
    fn a_baseline_has_a_table_of_its_own() {
        let mut ours = scores(&[true, true, true, false]);
        assert!(!html(&[("play".to_owned(), ours.clone())]).contains("baseline"));
        ours.compare(&scores(&[false, false, true]), &counting()).unwrap();
        let html = html(&[("play".to_owned(), ours)]);
        assert!(html.contains("<td>3</td><td>1</td><td>+66.7 <span"), "{html}");
        assert!(html.contains("<td>2 : 0</td><td>0.5</td>"), "{html}");
    }

    #[test]
    fn a_critics_numbers_alone_have_no_endings() {
        let critic = Scores::of_metrics([("accuracy".to_owned(), Some(0.5))].into());
        let html = html(&[("judge".to_owned(), critic)]);
        assert!(html.contains("accuracy (%)") && !html.contains("How episodes ended"));
    }
}

//! Which charts the metrics of a recipe make: one a step and family of metrics, seeds and variants as lines.

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::Deserialize;

use super::chart::{Chart, Line};
use super::number;

/// One line of a metrics file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Record {
    step: u64,
    name: String,
    value: Option<f64>,
}

/// One metric over steps, ascending; `None` where the number was not finite or not defined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<(u64, Option<f64>)>,
}

/// The metrics of one variant of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    pub step: String,
    pub labels: BTreeMap<String, String>,
    /// In order of first appearance.
    pub series: Vec<Series>,
}

/// Families, in the order a page shows them: title and members.
const FAMILIES: [(&str, &[&str]); 10] = [
    ("loss", &["loss"]),
    ("reward", &["reward", "reward_correct"]),
    ("accuracy", &["accuracy"]),
    ("distance from the reference", &["kl"]),
    ("entropy", &["entropy", "entropy_sampled"]),
    ("clipped tokens", &["clip_low", "clip_high", "clip_region"]),
    ("groups without variance, truncated responses", &["zero_variance", "truncated"]),
    ("response length", &["length"]),
    ("gradient norm", &["grad_norm"]),
    ("learning rate", &["lr"]),
];

impl Metrics {
    /// Reads a metrics file's text.
    ///
    /// # Errors
    /// Names the file and line of what cannot be read.
    pub fn parse(
        path: &Utf8Path,
        text: &str,
        step: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Metrics, OpError> {
        let mut metrics = Metrics { step: step.to_owned(), labels: labels.clone(), series: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let record: Record = serde_json::from_str(line)
                .map_err(|e| OpError::failed(format!("cannot read line {} of `{path}`: {e}", index + 1)))?;
            let at = match metrics.series.iter().position(|series| series.name == record.name) {
                Some(at) => at,
                None => {
                    metrics.series.push(Series { name: record.name, points: Vec::new() });
                    metrics.series.len() - 1
                }
            };
            metrics.series[at].points.push((record.step, record.value));
        }
        metrics.series.iter_mut().for_each(|series| series.points.sort_by_key(|p| p.0));
        Ok(metrics)
    }

    fn series(&self, name: &str) -> Option<&[(u64, Option<f64>)]> {
        self.series.iter().find(|series| series.name == name).map(|series| series.points.as_slice())
    }
}

/// Charts by step, steps in order of first appearance.
pub fn charts(metrics: &[Metrics]) -> Vec<(String, Vec<Chart>)> {
    let mut steps: Vec<&str> = Vec::new();
    for of in metrics {
        if !steps.contains(&of.step.as_str()) {
            steps.push(&of.step);
        }
    }
    let of_step = |step: &str| {
        let variants: Vec<&Metrics> = metrics.iter().filter(|m| m.step == step).collect();
        let charts = families(&variants).iter().map(|(title, names)| chart(step, title, names, &variants)).collect();
        (step.to_owned(), charts)
    };
    steps.into_iter().map(of_step).filter(|(_, charts): &(String, Vec<Chart>)| !charts.is_empty()).collect()
}

/// The families that these variants have, known ones first; a metric of no family is one by itself.
fn families(variants: &[&Metrics]) -> Vec<(String, Vec<String>)> {
    let mut names: Vec<&str> = Vec::new();
    for Series { name, .. } in variants.iter().flat_map(|m| &m.series) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut families = Vec::new();
    for (title, members) in FAMILIES {
        let there: Vec<String> = members.iter().filter(|m| names.contains(*m)).map(|m| (*m).to_owned()).collect();
        if !there.is_empty() {
            families.push((title.to_owned(), there));
        }
    }
    let known = |name: &str| FAMILIES.iter().any(|(_, members)| members.contains(&name));
    families.extend(names.into_iter().filter(|n| !known(n)).map(|n| (n.to_owned(), vec![n.to_owned()])));
    families
}

/// What a family's axis counts. The loss of a step that has rewards is a surrogate without a unit.
fn unit(name: &str, rewarded: bool) -> &'static str {
    match name {
        "loss" if rewarded => "",
        "accuracy" | "clip_low" | "clip_high" | "clip_region" | "weight_cut" | "zero_variance" | "truncated" => "share",
        name => number::unit(name),
    }
}

fn chart(step: &str, title: &str, names: &[String], variants: &[&Metrics]) -> Chart {
    let mut lines = Vec::new();
    for (variant, metrics) in variants.iter().enumerate() {
        for (metric, name) in names.iter().enumerate() {
            let Some(points) = metrics.series(name) else { continue };
            lines.push(Line { name: line_name(metrics, name, names.len()), points: points.to_vec(), variant, metric });
        }
    }
    let rewarded = variants.iter().any(|metrics| metrics.series("reward").is_some());
    let unit = names.first().map_or("", |name| unit(name, rewarded));
    Chart { step: step.to_owned(), title: title.to_owned(), unit: unit.to_owned(), lines }
}

fn line_name(metrics: &Metrics, name: &str, names: usize) -> String {
    let labels: Vec<String> = metrics.labels.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
    match (labels.is_empty(), names) {
        (true, _) => name.to_owned(),
        (false, 1) => labels.join(", "),
        (false, _) => format!("{name}, {}", labels.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: &str, seed: &str, text: &str) -> Metrics {
        let labels = BTreeMap::from([("seed".to_owned(), seed.to_owned())]);
        Metrics::parse(Utf8Path::new("metrics.jsonl"), text, step, &labels).unwrap()
    }

    const TEXT: &str = "{\"step\":2,\"name\":\"loss\",\"value\":1.0}\n{\"step\":1,\"name\":\"loss\",\"value\":null}\n\
                        {\"step\":1,\"name\":\"odd\",\"value\":3}\n{\"step\":1,\"name\":\"clip_low\",\"value\":0.1}\n\
                        {\"step\":1,\"name\":\"clip_high\",\"value\":0.2}\n";

    #[test]
    fn one_chart_a_step_and_family_with_variants_as_lines() {
        let charts = charts(&[metrics("act", "0", TEXT), metrics("sft", "0", ""), metrics("act", "1", TEXT)]);
        assert_eq!(charts.len(), 1, "a step without metrics has no charts");
        let titles: Vec<&str> = charts[0].1.iter().map(|c| c.title.as_str()).collect();
        assert_eq!(titles, ["loss", "clipped tokens", "odd"]);
        let names: Vec<&str> = charts[0].1[1].lines.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["clip_low, seed=0", "clip_high, seed=0", "clip_low, seed=1", "clip_high, seed=1"]);
        assert_eq!(charts[0].1[0].lines[0].points, [(1, None), (2, Some(1.0))]);
    }

    #[test]
    fn a_loss_is_in_nats_unless_the_step_has_rewards() {
        let rewards = "{\"step\":1,\"name\":\"reward\",\"value\":0.5}\n";
        assert_eq!(charts(&[metrics("sft", "0", TEXT)])[0].1[0].unit, "nats");
        assert_eq!(charts(&[metrics("act", "0", &format!("{TEXT}{rewards}"))])[0].1[0].unit, "");
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let text = "{\"step\":1,\"name\":\"loss\",\"value\":1}\n{\"step\":-1}\n";
        let error = Metrics::parse(Utf8Path::new("m.jsonl"), text, "act", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read line 2 of `m.jsonl`: "), "{error}");
    }
}

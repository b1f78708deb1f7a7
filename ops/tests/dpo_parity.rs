//! DPO and GiGPO against numbers computed in float64 elsewhere; see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use actloom_ops::train::objective::dpo::{Judged, Objective, Pair, Preference};
use actloom_ops::train::objective::gigpo::{Deviation, Settings, advantages};
use camino::Utf8PathBuf;
use serde_json::Value;

fn json(name: &str) -> Value {
    let path = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(got: &[f64], want: &Value, what: &str) {
    let want = numbers(want);
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(&want) {
        assert!((g - w).abs() < 1e-9, "{what}: {got:?}, expected {want:?}");
    }
}

fn pairs(json: &Value) -> Vec<Pair> {
    let of = |key: &str| numbers(&json[key]);
    let (chosen, rejected) = (of("policy_chosen"), of("policy_rejected"));
    let (reference_chosen, reference_rejected) = (of("ref_chosen"), of("ref_rejected"));
    (0..chosen.len())
        .map(|i| Pair {
            chosen: chosen[i],
            rejected: rejected[i],
            reference_chosen: reference_chosen[i],
            reference_rejected: reference_rejected[i],
        })
        .collect()
}

#[test]
fn preference_losses_and_gradients_are_those_of_the_reference_also_where_they_are_extreme() {
    let json = json("dpo.json");
    let pairs = pairs(&json);
    let beta = json["beta"].as_f64().unwrap();
    let objective = Objective { preference: Preference::Sigmoid, beta, smoothing: 0.0 };
    let judged: Vec<Judged> = pairs.iter().map(|pair| objective.judge(pair, pairs.len())).collect();
    let each = |f: fn(&Judged) -> f64| judged.iter().map(f).collect::<Vec<f64>>();
    close(&each(|j| j.loss), &json["losses"], "losses");
    close(&each(|j| j.logit), &json["logit"], "logit");
    close(&each(|j| j.gradient), &json["grad_policy_chosen"], "gradient of the chosen");
    close(&each(|j| -j.gradient), &json["grad_policy_rejected"], "gradient of the rejected");
    close(&each(|j| j.reward_chosen), &json["reward_chosen"], "reward of the chosen");
    close(&each(|j| j.reward_rejected), &json["reward_rejected"], "reward of the rejected");
    let n = judged.len() as f64;
    let loss = each(|j| j.loss).iter().sum::<f64>() / n;
    assert!((loss - json["loss"].as_f64().unwrap()).abs() < 1e-9);
    let right = judged.iter().filter(|j| j.reward_chosen > j.reward_rejected).count() as f64;
    assert_eq!(right / n, json["accuracy_strict"].as_f64().unwrap());
}

#[test]
fn preference_gradients_of_every_kind_are_those_of_finite_differences() {
    let pairs: Vec<Pair> =
        pairs(&json("dpo.json")).into_iter().filter(|p| (p.chosen - p.rejected).abs() < 100.0).collect();
    assert_eq!(pairs.len(), 6);
    let (beta, h) = (0.3, 1e-5);
    let kinds = [Preference::Sigmoid, Preference::Hinge, Preference::Ipo, Preference::Sigmoid];
    for (kind, smoothing) in kinds.into_iter().zip([0.0, 0.0, 0.0, 0.2]) {
        let objective = Objective { preference: kind, beta, smoothing };
        let of = pairs.len();
        let loss = |pairs: &[Pair]| pairs.iter().map(|pair| objective.judge(pair, of).loss).sum::<f64>() / of as f64;
        for i in 0..of {
            let judged = objective.judge(&pairs[i], of);
            let moved = |by: [f64; 2]| {
                let mut pairs = pairs.clone();
                pairs[i].chosen += by[0];
                pairs[i].rejected += by[1];
                loss(&pairs)
            };
            let chosen = (moved([h, 0.0]) - moved([-h, 0.0])) / (2.0 * h);
            let rejected = (moved([0.0, h]) - moved([0.0, -h])) / (2.0 * h);
            assert!((chosen - judged.gradient).abs() < 1e-7, "{kind:?}, pair {i}: {chosen}, {judged:?}");
            assert!((rejected + judged.gradient).abs() < 1e-7, "{kind:?}, pair {i}: {rejected}, {judged:?}");
        }
    }
}

#[test]
fn advantages_of_episodes_and_steps_are_those_of_the_reference() {
    let json = json("gigpo.json");
    let episodes: Vec<Vec<(String, f64)>> = json["trajectories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            let steps = e.as_array().unwrap().iter();
            steps.map(|s| (s[0].as_str().unwrap().to_owned(), s[1].as_f64().unwrap())).collect()
        })
        .collect();
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for (at, case) in cases.iter().enumerate() {
        let deviation = (case["norm"] == "std")
            .then(|| Deviation { sample: case["ddof"] == 1, eps: case["eps"].as_f64().unwrap() });
        let settings =
            Settings { discount: case["gamma"].as_f64().unwrap(), step_weight: case["w"].as_f64().unwrap(), deviation };
        let got = advantages(&episodes, settings);
        close(&got.episode, &case["episode"], &format!("case {at}, episodes"));
        for (e, episode) in episodes.iter().enumerate() {
            let what = format!("case {at}, episode {e}");
            close(&got.returns[e], &case["returns"][e], &format!("{what}, returns"));
            close(&got.step[e], &case["step"][e], &format!("{what}, steps"));
            close(&got.advantage[e], &case["advantage"][e], &format!("{what}, together"));
            assert_eq!(got.advantage[e].len(), episode.len());
        }
    }
}

#[test]
fn episodes_that_end_equally_teach_by_their_steps_alone() {
    let of = |rewards: [f64; 2]| vec![("door", rewards[0]), ("shelf", rewards[1])];
    let got = advantages(&[of([1.0, 0.0]), of([0.0, 1.0])], Settings::default());
    assert_eq!(got.episode, [0.0, 0.0]);
    assert!(got.step[0][0] > 0.0 && got.step[1][0] < 0.0, "{got:?}");
    assert!(got.step[0][1] < 0.0 && got.step[1][1] > 0.0, "{got:?}");
    assert_eq!(advantages::<&str>(&[], Settings::default()).advantage.len(), 0);
    let lone = advantages(&[of([1.0, 0.0])], Settings::default());
    assert_eq!(lone.advantage, [[0.0, 0.0]]);
}

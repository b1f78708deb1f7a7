//! `actloom device`: what a GPU is, whether it computes what it should, and how fast.

use std::time::Duration;

use actloom_ops::tool::device;
use owo_colors::OwoColorize;
use serde_json::json;

use crate::args::{DeviceBench, DeviceCheck, DeviceOf, DeviceVerb, Global};
use crate::exit::{Exit, Failure};
use crate::terminal::{out, out_either, out_json, say};

pub fn run(verb: &DeviceVerb, global: &Global) -> Result<Exit, Failure> {
    match verb {
        DeviceVerb::Show(of) => show(of, global),
        DeviceVerb::Check(args) => check(args, global),
        DeviceVerb::Bench(bench) => measure(bench, global),
    }
}

fn show(of: &DeviceOf, global: &Global) -> Result<Exit, Failure> {
    let about = device::about(of.device)?;
    out_either(global.json, &about, || match (about.free, about.memory) {
        (Some(free), Some(memory)) => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            format!("{}: {:.1} of {:.1} GiB free", about.device, gib(free), gib(memory))
        }
        _ => about.device.clone(),
    });
    Ok(Exit::Done)
}

/// A line for each finding that is wrong, and how many were right: also where the device ended it, and after which finding.
fn check(args: &DeviceCheck, global: &Global) -> Result<Exit, Failure> {
    let (mut right, mut wrong) = (0u32, 0u32);
    let mut last = None;
    let done = device::check(args.of.device, args.reference.as_deref(), &mut |finding| {
        if finding.fine() {
            right += 1
        } else {
            wrong += 1
        }
        let (what, error, limit) = (&finding.what, finding.error, finding.limit);
        last = Some(what.clone());
        if global.json {
            // what is not a number has no JSON
            let error = error.is_finite().then_some(error);
            out_json(&json!({ "what": what, "error": error, "limit": limit, "fine": finding.fine() }));
        } else if !finding.fine() {
            out(&format!("{} {what}: error {error:.1e}, expected {limit:.0e} at most", "wrong:".red().bold()));
        }
    });
    if !global.json && last.is_some() {
        out(&format!("{right} checks fine, {wrong} wrong"));
    }
    match (done, last) {
        (Ok(true), _) => Ok(Exit::Done),
        (Ok(false), _) => Ok(Exit::StepFailed),
        (Err(error), last) => {
            if let Some(last) = last {
                say(&format!("ended after: {last}"));
            }
            Err(error.into())
        }
    }
}

fn measure(args: &DeviceBench, global: &Global) -> Result<Exit, Failure> {
    let limit = Duration::from_secs(args.limit);
    let fine = device::measure(
        args.of.device,
        &args.model,
        args.layers.map(|n| n as usize),
        limit,
        &mut |figure| {
            if global.json {
                out_json(&figure);
                return;
            }
            let share = figure.share.map(|share| format!("{:.0} % of the ceiling", share * 100.0)).unwrap_or_default();
            let value =
                if figure.value < 100.0 { format!("{:.2}", figure.value) } else { format!("{:.0}", figure.value) };
            out(&format!("{:<78} {value:>10} {:<14} {share}", figure.what, figure.unit));
        },
        &mut |line| say(&line),
    )?;
    Ok(if fine { Exit::Done } else { Exit::StepFailed })
}

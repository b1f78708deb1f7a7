//! What a person sees of a run: one line for each running step on a terminal, a few plain lines otherwise.
//!
//! Invariants: everything goes to stderr; what is reused is counted, not listed; off a terminal a step says something
//! at most every ten seconds; speed is that of the last half minute, so a slow start does not spoil the estimate.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use actloom_engine::event::{Event, Level, OpEvent, Progress, Reporter};
use actloom_engine::stop::Stop;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::OwoColorize;

use crate::terminal::{is_watched, out_json, painted, say};
use crate::text;

/// How often a step may speak where nobody can see a line move.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// How far back speed looks, and how far apart its samples are.
const WINDOW: Duration = Duration::from_secs(30);
const SAMPLE: Duration = Duration::from_millis(500);

/// Where lines go. Cloned into the signal thread.
#[derive(Clone)]
pub struct Board {
    bars: Option<MultiProgress>,
}

impl Board {
    pub fn new() -> Board {
        Board { bars: is_watched().then(MultiProgress::new) }
    }

    /// A line above the moving ones.
    pub fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| say(line)),
            None => say(line),
        }
    }
}

/// Shows a run.
pub struct Watcher {
    board: Board,
    steps: HashMap<String, Running>,
    /// Print every event as a line of JSON, too.
    as_json: bool,
    /// Once it is set, what does not start any more is counted, not listed.
    stop: Stop,
    not_started: usize,
}

struct Running {
    op: String,
    bar: Option<ProgressBar>,
    speed: Speed,
    last_said: Instant,
}

impl Watcher {
    pub fn new(board: Board, as_json: bool, stop: Stop) -> Watcher {
        Watcher { board, steps: HashMap::new(), as_json, stop, not_started: 0 }
    }

    fn started(&mut self, node: &str, op: &str) {
        let bar = self.board.bars.as_ref().map(|bars| {
            let style =
                ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = bars.add(ProgressBar::new_spinner().with_style(style));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_message(painted(&line(node, op, "starting")));
            bar
        });
        if bar.is_none() {
            say(&line(node, op, "started"));
        }
        let running = Running { op: op.to_owned(), bar, speed: Speed::default(), last_said: Instant::now() };
        self.steps.insert(node.to_owned(), running);
    }

    fn progress(&mut self, node: &str, progress: &Progress) {
        let Some(running) = self.steps.get_mut(node) else { return };
        let now = Instant::now();
        running.speed.note(now, progress.done);
        let due = running.bar.is_some() || now - running.last_said >= PLAIN_EVERY;
        if due {
            running.last_said = now;
            let text = line(node, &running.op, &describe(progress, running.speed.per_second()));
            match &running.bar {
                Some(bar) => bar.set_message(painted(&text)),
                None => say(&text),
            }
        }
    }

    fn ended(&mut self, node: &str, line: &str) {
        if let Some(Running { bar: Some(bar), .. }) = self.steps.remove(node) {
            bar.finish_and_clear();
            if let Some(bars) = &self.board.bars {
                bars.remove(&bar);
            }
        }
        self.board.say(line);
    }
}

impl Reporter for Watcher {
    fn event(&mut self, event: &Event) {
        if self.as_json {
            out_json(event);
        }
        match event {
            Event::Started { node, op } => self.started(node, op),
            Event::Op { node, report: OpEvent::Progress(progress) } => self.progress(node, progress),
            Event::Op { node, report: OpEvent::Message { level, text } } => {
                let level = match level {
                    Level::Info => String::new(),
                    Level::Warning => format!("{}: ", "warning".yellow().bold()),
                };
                self.board.say(&format!("{}: {level}{text}", node.bold()));
            }
            Event::Op { .. } | Event::Reused { .. } | Event::RunStarted { .. } => {}
            Event::RunFinished { .. } if self.not_started > 0 => {
                self.board.say(&format!("{} not started", text::counted(self.not_started, "step")));
            }
            Event::RunFinished { .. } => {}
            Event::Queued { node, why } => self.board.say(&format!("{}: {why}", node.bold())),
            Event::Published { node, took, bytes } => {
                let text = format!("{} {} {}", "done".green(), node.bold(), ended_in(*took, *bytes).dimmed());
                self.ended(node, &text);
            }
            Event::Failed { node, message, help } => {
                let mut text = format!("{} {}: {message}", "failed".red().bold(), node.bold());
                if let Some(help) = help {
                    text += &format!("\n  {}: {help}", "help".cyan().bold());
                }
                self.ended(node, &text);
            }
            Event::Interrupted { node } => {
                self.ended(node, &format!("{} {}", "stopped".yellow().bold(), node.bold()));
            }
            Event::Skipped { .. } if self.stop.is_set() => self.not_started += 1,
            Event::Skipped { node, cause } => {
                self.board.say(&format!("{} {} {}", "skipped".yellow(), node.bold(), format!("({cause})").dimmed()));
            }
        }
    }
}

fn ended_in(took: Duration, bytes: u64) -> String {
    format!("in {}, {}", text::duration(took), text::bytes(bytes))
}

fn line(node: &str, op: &str, what: &str) -> String {
    // The op is worth saying where the step is called otherwise.
    let op = if node.split('[').next() == Some(op) { String::new() } else { format!(" ({op})") };
    format!("{}{}  {what}", node.bold(), op.dimmed())
}

/// `120/400 updates, 3.2/s, 1m 27s left, loss 1.23`.
fn describe(progress: &Progress, speed: Option<f64>) -> String {
    let Progress { done, total, unit, note } = progress;
    let unit = match if *total == 0 { *done } else { *total } {
        1 => unit.strip_suffix('s').unwrap_or(unit),
        _ => unit,
    };
    let mut parts = vec![match total {
        0 => format!("{done} {unit}"),
        _ => format!("{done}/{total} {unit}"),
    }];
    if let Some(speed) = speed {
        parts.push(format!("{}/s", text::count(speed)));
        if *total > *done {
            parts.push(format!("{} left", text::duration(Duration::from_secs_f64((*total - *done) as f64 / speed))));
        }
    }
    if !note.is_empty() {
        parts.push(note.clone());
    }
    parts.join(", ")
}

/// How fast something counts up.
#[derive(Default)]
struct Speed {
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn note(&mut self, now: Instant, done: u64) {
        // Some ops begin to count anew in a second phase.
        if self.samples.back().is_some_and(|&(_, last)| done < last) {
            self.samples.clear();
        }
        match self.samples.len() {
            // The newest sample moves along until it is a good way from the one before it.
            n if n >= 2 && now - self.samples[n - 2].0 < SAMPLE => self.samples[n - 1] = (now, done),
            _ => self.samples.push_back((now, done)),
        }
        while self.samples.len() > 2 && now - self.samples[0].0 > WINDOW {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> Option<f64> {
        let (&(start, from), &(end, to)) = (self.samples.front()?, self.samples.back()?);
        let seconds = (end - start).as_secs_f64();
        (to > from && seconds > 0.2).then(|| (to - from) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, total: u64, note: &str) -> Progress {
        Progress { done, total, unit: "updates".into(), note: note.into() }
    }

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        assert_eq!(
            describe(&progress(120, 400, "loss 1.2"), Some(3.2)),
            "120/400 updates, 3.2/s, 1m 27s left, loss 1.2"
        );
        assert_eq!(describe(&progress(7, 0, ""), None), "7 updates");
        assert_eq!(describe(&progress(1, 0, ""), None), "1 update");
        assert_eq!(describe(&progress(0, 1, ""), None), "0/1 update");
        assert_eq!(describe(&progress(400, 400, ""), Some(3.2)), "400/400 updates, 3.2/s");
    }

    #[test]
    fn speed_forgets_a_slow_start_and_an_earlier_phase() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut speed = Speed::default();
        for second in 0..100 {
            speed.note(at(second), if second < 50 { second } else { 50 + (second - 50) * 10 });
        }
        assert_eq!(speed.per_second(), Some(10.0));
        speed.note(at(100), 3);
        assert_eq!(speed.per_second(), None);
        speed.note(at(102), 7);
        assert_eq!(speed.per_second(), Some(2.0));
    }
}

//! `rl` on whole episodes: what is trained on is what was sampled, what is rewarded is what the environment said, and a
//! model that plays at random learns to win.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its model should stop")]

mod rooms;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::{Actor, End, Episode, SCHEMA_VERSION, Turn, write};
use actloom_ops::env::{Observation, Suite};
use actloom_ops::model::{self, Model};
use actloom_ops::op::episodes::{Episodes, Settings};
use actloom_ops::op::worlds::Tasks;
use actloom_ops::policy::{Answer, Ask, Cost, Finish, Identity, Policy, Session, lend};
use actloom_ops::registry::registry;
use actloom_ops::rng::Rng;
use actloom_ops::text::{Prompt, Text};
use actloom_ops::train::batch::Row;
use actloom_ops::train::draw::{Drawn, How, Source};
use actloom_ops::train::grpo;
use actloom_ops::train::objective::gigpo;
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::Device;
use serde_json::{Value, json};

use rooms::{FORK, LEFT, NOTHING, Rooms, Rule, task};

// --- a bench ---------------------------------------------------------------------------------------------------------

/// Keeps metrics, and asks for a stop after so many progress reports.
struct Sink {
    metrics: Mutex<Vec<(u64, String, f64)>>,
    left: AtomicU64,
    stop: Stop,
}

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        match event {
            OpEvent::Metric { step, name, value } => self.metrics.lock().unwrap().push((step, name, value)),
            OpEvent::Progress(_) if self.left.fetch_sub(1, Ordering::SeqCst) == 1 => self.stop.set(),
            _ => {}
        }
    }

    fn resume_metrics(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

type Metrics = Vec<(u64, String, f64)>;

fn of(metrics: &Metrics, name: &str) -> Vec<f64> {
    metrics.iter().filter(|m| m.1 == name).map(|m| m.2).collect()
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    /// Lets `f` run as a step that is asked to stop after so many progress reports.
    fn step(
        &self,
        name: &str,
        inputs: &[(&str, &Utf8Path)],
        outputs: &[&str],
        stop_after: u64,
        f: impl FnOnce(&mut OpContext<'_>) -> Result<(), OpError>,
    ) -> Result<Metrics, OpError> {
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &Utf8Path| InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let outputs = outputs.iter().map(|port| ((*port).to_owned(), out.join(port))).collect();
        let stop = Stop::new();
        let sink = Sink { metrics: Mutex::default(), left: AtomicU64::new(stop_after), stop: stop.clone() };
        let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
        f(&mut ctx)?;
        Ok(sink.metrics.into_inner().unwrap())
    }

    fn once(
        &self,
        op: &str,
        params: Value,
        inputs: &[(&str, &Utf8Path)],
        name: &str,
        stop_after: u64,
    ) -> Result<Metrics, OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        assert!(op.check(&params).is_empty(), "{:?}", op.check(&params));
        let outputs: Vec<&str> = op.ports(&params).outputs.iter().map(|o| o.name).collect();
        self.step(name, inputs, &outputs, stop_after, |ctx| op.run(&params, ctx))
    }

    fn run(&self, op: &str, params: Value, inputs: &[(&str, &Utf8Path)], name: &str) -> Metrics {
        self.once(op, params, inputs, name, u64::MAX).unwrap()
    }

    /// A tiny model that says the actions of the two rooms at random.
    fn player(&self) -> Utf8PathBuf {
        let mut rng = Rng::at(5, &[]);
        let suite = Rooms::default();
        let episode = |i: usize| {
            let mut env = suite.open("train", i, 0).unwrap();
            let start = env.reset().unwrap().text;
            let mut turns = Vec::new();
            let mut seen =
                Observation { text: String::new(), reward: 0.0, score: 0.0, done: false, won: false, valid: None };
            for _ in 0..4 {
                let action = ["go left", "go right", "open door", "wait"][rng.below(4)].to_owned();
                seen = env.step(&action).unwrap();
                let (admissible, observation, reward) = (seen.valid, seen.text.clone(), seen.reward);
                turns.push(Turn { action, admissible, observation, actions: Vec::new(), reply: None, reward });
                if seen.done {
                    break;
                }
            }
            let (actor, end) = (Actor::Random, if seen.done { End::Done } else { End::Limit });
            let (v, success, score) = (SCHEMA_VERSION, seen.won, seen.score);
            Episode { v, task: task(i), actor, decoding: None, start, turns, success, score, end }
        };
        let episodes: Vec<Episode> = (0..40).map(episode).collect();
        let play = self.path("random");
        write(&play, &episodes).unwrap();
        let sizes = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "vocab_size": 300, "max_positions": 320 });
        self.run("model", sizes, &[("text", &play)], "model");
        let sft = json!({ "epochs": 15, "batch": 4, "learning_rate": 0.005 });
        self.run("sft", sft, &[("model", &self.path("model/model")), ("data", &play)], "player");
        self.path("player/model")
    }
}

/// A model with its text, and tasks of the two rooms.
struct Setting {
    model: Model,
    text: Arc<Text>,
}

impl Setting {
    fn load(folder: &Utf8Path) -> Setting {
        let model = model::load(folder, &Device::Cpu).unwrap();
        let text = Arc::new(Text::load(folder, &model.config.eos).unwrap());
        Setting { model, text }
    }

    fn episodes(&self, rooms: Rooms, settings: Value, prompt: &Prompt) -> Episodes {
        let mut of = json!({ "split": "train", "tasks": 4, "max_steps": 4 });
        of.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let settings: Settings = serde_json::from_value(of).unwrap();
        let tasks = Tasks::of(Arc::new(rooms), "train", settings.first, settings.tasks, 0).unwrap();
        Episodes::new(tasks, &settings, prompt, self.text.clone())
    }

    fn play(&self, episodes: &Episodes, indices: &[usize], how: &How<'_>) -> Vec<Drawn> {
        episodes.play(&mut lend(&self.model, self.text.clone()), indices, how).unwrap()
    }
}

const HOW: How<'static> = How { group: 4, temperature: 1.0, max_tokens: 8, seed: 3, stream: &[1, 0] };

/// Prompt ids, sampled ids and the bits of their log-probabilities; what the episode was worth.
type Bits = (Vec<u32>, Vec<u32>, Vec<u32>, f64);

/// Everything that is trained on, to be compared.
fn bits(drawn: &Drawn) -> Vec<Bits> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    let of = |attempt: &actloom_ops::train::draw::Attempt| {
        let reward = attempt.outcome.reward;
        attempt
            .samples
            .iter()
            .map(|s| (s.prompt.to_vec(), s.ids.clone(), bits(&s.sampling), reward))
            .collect::<Vec<_>>()
    };
    drawn.attempts.iter().flat_map(of).collect()
}

fn forms() -> [Prompt; 2] {
    let single = json!({ "form": "single", "history": 2, "actions": "all" });
    [Prompt::default(), serde_json::from_value(single).unwrap()]
}

// --- what is trained on ----------------------------------------------------------------------------------------------

#[test]
fn the_trainer_gives_every_turn_the_log_probabilities_that_it_was_sampled_with() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    for (prompt, temperature) in forms().into_iter().zip([1.0, 0.7]) {
        let episodes = setting.episodes(Rooms::default(), json!({}), &prompt);
        let drawn = setting.play(&episodes, &[0, 1], &How { temperature, ..HOW });
        let mut turns = 0;
        for attempt in drawn.iter().flat_map(|d| &d.attempts) {
            assert_eq!(attempt.samples.len(), attempt.steps.len());
            for (t, sample) in attempt.samples.iter().enumerate() {
                let mut row = Row::default();
                let root = row.add(0, None, &sample.prompt, |_| false);
                row.add(1, Some(root), &sample.ids, |_| true);
                let stats = setting.model.score(&row.ids, &row.packing, &row.targets, temperature).unwrap();
                let trainer: Vec<f32> = stats.iter().map(|s| s.logp).collect();
                assert_eq!(trainer, sample.sampling, "turn {t}");
                turns += 1;
            }
            for pair in attempt.samples.windows(2).filter(|_| prompt.grows()) {
                let begun = [&pair[0].prompt[..], &pair[0].ids].concat();
                assert!(pair[1].prompt.starts_with(&begun), "a conversation goes on from what was said in it");
            }
        }
        assert!(turns > 16, "{turns} turns");
    }
}

#[test]
fn who_plays_beside_an_episode_changes_nothing_in_it() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    let episodes = |together| setting.episodes(Rooms { together, ..Rooms::default() }, json!({}), &Prompt::default());
    let all = setting.play(&episodes(0), &[2, 0, 1, 3], &HOW);
    assert_eq!(all.iter().map(|d| d.index).collect::<Vec<_>>(), [2, 0, 1, 3]);
    let alone = setting.play(&episodes(0), &[2], &HOW);
    assert_eq!(bits(&alone[0]), bits(&all[0]));
    for together in [1, 3] {
        let some = setting.play(&episodes(together), &[2, 0, 1, 3], &HOW);
        for (a, b) in some.iter().zip(&all) {
            assert_eq!(bits(a), bits(b), "{together} at once");
        }
    }
    let fewer = setting.play(&episodes(0), &[2], &How { group: 2, ..HOW });
    assert!(bits(&all[0]).starts_with(&bits(&fewer[0])), "an attempt does not depend on how many there are");
    let others = setting.play(&episodes(0), &[2], &How { stream: &[1, 1], ..HOW });
    assert_ne!(bits(&others[0]), bits(&all[0]), "another batch draws from other streams");
}

// --- what it is worth ------------------------------------------------------------------------------------------------

/// A policy that says what it is told to say.
struct Scripted<'a> {
    inner: Box<dyn Policy + 'a>,
    said: Vec<(&'static str, Finish)>,
    turn: usize,
}

impl Policy for Scripted<'_> {
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn cost(&self) -> Cost {
        self.inner.cost()
    }
    fn width(&self) -> usize {
        self.inner.width()
    }
    fn open(&mut self) -> Session {
        self.inner.open()
    }
    fn close(&mut self, session: Session) {
        self.inner.close(session);
    }
    fn system(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        self.inner.system(session, content)
    }
    fn user(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        self.inner.user(session, content)
    }
    fn assistant(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        self.inner.assistant(session, content)
    }
    fn tokens(&self, session: Session) -> Option<usize> {
        self.inner.tokens(session)
    }
    fn ids(&self, session: Session) -> Option<&[u32]> {
        self.inner.ids(session)
    }
    fn positions(&self) -> Option<usize> {
        self.inner.positions()
    }

    fn answer(&mut self, asks: &[Ask<'_>], _: &dyn Fn() -> bool) -> Result<Vec<Answer>, OpError> {
        let (text, finish) = self.said[self.turn];
        self.turn += 1;
        let mut answers = Vec::new();
        for ask in asks {
            if ask.keep {
                self.inner.assistant(ask.session, text)?;
            }
            let (ids, logps) = (Some(vec![1]), Some(vec![0.0]));
            answers.push(Answer { text: text.to_owned(), ids, logps, finish });
        }
        Ok(answers)
    }
}

#[test]
fn only_what_the_environment_says_of_an_action_is_rewarded() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    let tagged: Prompt =
        serde_json::from_value(json!({ "thinking": "optional", "answer": "tag", "form": "single" })).unwrap();
    let reward = json!({ "success": 1.0, "score": 0.25, "earned": 0.0625, "invalid": -0.125, "malformed": -0.5, "turn": -0.03125 });
    let turn = -0.03125;
    use Finish::{End, Length};
    type Case = (&'static str, Vec<(&'static str, Finish)>, f64, bool, usize, usize);
    let tag = |s| match s {
        "left" => "<action>go left</action>",
        "open" => "<action>open door</action>",
        _ => "<action>wait</action>",
    };
    let cases: Vec<Case> = vec![
        ("straight", vec![(tag("left"), End), (tag("open"), End)], 1.0 + 0.25 + 0.0625 + 2.0 * turn, true, 0, 0),
        (
            "by accident, after what is not possible",
            vec![(tag("open"), End), ("<action>fly</action>", End), (tag("left"), End), (tag("open"), End)],
            1.0 + 0.25 + 0.0625 - 0.25 + 4.0 * turn,
            true,
            0,
            0,
        ),
        (
            "an action quoted in the reasoning is not taken",
            vec![
                (tag("left"), End),
                ("<think>I could <action>open door</action></think><action>wait</action>", End),
                ("<think>open door</think>", End),
                ("open door", End),
            ],
            0.125 + 0.03125 - 1.5 + 4.0 * turn,
            false,
            3,
            0,
        ),
        (
            "nothing, and two actions at once",
            vec![
                ("", End),
                ("   ", End),
                ("<action></action>", End),
                ("<action>go left</action><action>open door</action>", End),
            ],
            -2.0 + 4.0 * turn,
            false,
            4,
            0,
        ),
        (
            "a right reply that was cut off does nothing",
            vec![(tag("left"), Length), (tag("open"), End), ("<think>left ", Length), (tag("left"), End)],
            -0.5 - 0.125 - 0.5 + 0.125 + 0.03125 + 4.0 * turn,
            false,
            2,
            2,
        ),
    ];
    for (name, said, want, won, malformed, truncated) in cases {
        let episodes = setting.episodes(Rooms::default(), json!({ "reward": reward }), &tagged);
        let turns = said.len();
        let mut policy = Scripted { inner: Box::new(lend(&setting.model, setting.text.clone())), said, turn: 0 };
        let how = How { group: 1, max_tokens: 2, ..HOW };
        let drawn = episodes.play(&mut policy, &[0], &how).unwrap();
        let attempt = &drawn[0].attempts[0];
        assert!((attempt.outcome.reward - want).abs() < 1e-12, "{name}: {} is not {want}", attempt.outcome.reward);
        let steps: f64 = attempt.steps.iter().map(|s| s.reward).sum();
        assert_eq!(steps, attempt.outcome.reward, "{name}");
        assert!((attempt.parts.values().sum::<f64>() - want).abs() < 1e-12, "{name}");
        assert_eq!((attempt.outcome.correct, attempt.malformed), (won, malformed), "{name}: turns are counted");
        assert_eq!(
            (attempt.truncated, attempt.samples.len(), attempt.facts["turns"]),
            (truncated, turns, turns as f64)
        );
    }
}

#[test]
fn a_text_that_fills_the_context_ends_the_episode_and_one_that_never_fits_is_refused() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    let rooms = || Rooms { rule: Rule::Long, ..Rooms::default() };
    let whole: Prompt = serde_json::from_value(json!({ "form": "single", "history": "all" })).unwrap();
    for prompt in [Prompt::default(), whole] {
        let episodes = setting.episodes(rooms(), json!({ "max_steps": 50 }), &prompt);
        let drawn = setting.play(&episodes, &[0], &How { group: 2, ..HOW });
        for attempt in &drawn[0].attempts {
            assert_eq!(attempt.facts["context"], 1.0);
            assert!(!attempt.samples.is_empty() && attempt.samples.len() < 20);
            assert_eq!(attempt.samples.len(), attempt.steps.len());
            let longest = attempt.samples.iter().map(|s| s.prompt.len() + s.ids.len()).max().unwrap();
            assert!(longest <= setting.model.config.max_positions, "{longest}");
        }
    }
    let episodes = setting.episodes(rooms(), json!({}), &Prompt::default());
    let how = How { max_tokens: 310, ..HOW };
    let error = episodes.play(&mut lend(&setting.model, setting.text.clone()), &[0], &how).unwrap_err();
    assert!(error.to_string().contains("leaves no room for a reply"), "{error}");
}

#[test]
fn states_are_what_was_seen_before_each_action() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    let said =
        vec![("open door", Finish::End), ("go left", Finish::End), ("go right", Finish::End), ("fly", Finish::End)];
    let states = |equal: &str| -> Vec<String> {
        let settings = json!({ "equal": equal, "gigpo": {} });
        let episodes = setting.episodes(Rooms::default(), settings, &Prompt::default());
        let inner = Box::new(lend(&setting.model, setting.text.clone()));
        let mut policy = Scripted { inner, said: said.clone(), turn: 0 };
        let drawn = episodes.play(&mut policy, &[0], &How { group: 1, max_tokens: 2, ..HOW }).unwrap();
        drawn[0].attempts[0].steps.iter().map(|s| s.state.clone()).collect()
    };
    assert_eq!(states("observation"), [FORK, NOTHING, LEFT, LEFT]);
    let fork = "go left\ngo right\nwait";
    assert_eq!(states("actions")[..2], [format!("{FORK}\n{fork}"), format!("{NOTHING}\n{fork}")]);
}

// --- learning --------------------------------------------------------------------------------------------------------

fn settings(more: &dyn Fn(&mut grpo::Settings)) -> grpo::Settings {
    let mut settings = grpo::Settings {
        group: 8,
        epochs: 1,
        batch: 4,
        updates: 1,
        passes: 1,
        lr: 0.003,
        checkpoint_every: 1000,
        temperature: 1.0,
        max_tokens: 8,
        row_tokens: 1024,
        seed: 11,
        ..grpo::Settings::default()
    };
    more(&mut settings);
    settings
}

impl Bench {
    /// Trains a player; its weights, and what was told.
    fn learn(
        &self,
        name: &str,
        from: &Utf8Path,
        rooms: Rooms,
        of: Value,
        settings: &grpo::Settings,
    ) -> (Setting, Metrics) {
        let mut setting = Setting::load(from);
        let mut source = setting.episodes(rooms, of, &Prompt::default());
        let text = setting.text.clone();
        let metrics = self.step(name, &[], &[], u64::MAX, |ctx| {
            grpo::run(ctx, &mut setting.model, None, &text, &mut source, None, settings)
        });
        (setting, metrics.unwrap())
    }
}

fn weights(model: &Model) -> Vec<Vec<f32>> {
    let values = |p: &actloom_ops::nn::layer::Param| p.value.flatten_all().unwrap().to_vec1().unwrap();
    model.params().into_iter().map(values).collect()
}

#[test]
fn a_model_that_acts_at_random_learns_to_win_by_episode_returns_and_by_gigpo() {
    let bench = Bench::new();
    let player = bench.player();
    for (name, gigpo) in [("returns", None), ("gigpo", Some(gigpo::Settings::default()))] {
        let settings = settings(&|s| (s.epochs, s.lr, s.compare.gigpo) = (40, 0.005, gigpo));
        let (_, metrics) = bench.learn(name, &player, Rooms::default(), json!({}), &settings);
        let success = of(&metrics, "success");
        assert_eq!(success.len(), 40);
        assert!(success[0] < 0.4, "{name}: it knew it before: {success:?}");
        let last = success[35..].iter().sum::<f64>() / 5.0;
        assert!(last > 0.8, "{name}: {success:?}");
        assert!(of(&metrics, "turns").last() < of(&metrics, "turns").first(), "{name}");
        assert!(of(&metrics, "logp_gap").iter().all(|gap| *gap == 0.0), "{name}");
    }
}

#[test]
fn episodes_are_compared_with_those_of_their_task_alone() {
    let bench = Bench::new();
    let player = bench.player();
    let before = weights(&Setting::load(&player).model);
    // in each task all episodes earn the same, and tasks look alike: nothing may be learned
    let silent = json!({ "reward": { "invalid": 0.0, "malformed": 0.0 } });
    for gigpo in [None, Some(gigpo::Settings::default())] {
        let name = if gigpo.is_some() { "steps" } else { "whole" };
        let settings = settings(&|s| s.compare.gigpo = gigpo);
        let rooms = Rooms { rule: Rule::Parity, ..Rooms::default() };
        let (after, metrics) = bench.learn(name, &player, rooms, silent.clone(), &settings);
        assert_eq!(of(&metrics, "zero_variance"), [1.0]);
        assert_eq!(of(&metrics, "success"), [0.5]);
        assert!(weights(&after.model) == before, "{name}: an episode was compared with one of another task");
    }
    let (after, _) = bench.learn("two", &player, Rooms::default(), silent, &settings(&|_| ()));
    assert!(weights(&after.model) != before, "where returns differ within a task there is something to learn");
}

#[test]
fn validation_plays_other_tasks_and_may_be_held_to_what_is_possible() {
    let bench = Bench::new();
    let setting = Setting::load(&bench.player());
    let of = json!({ "split": "train", "tasks": 4, "max_steps": 4,
        "validation": { "split": "id", "tasks": 2, "first": 1, "decoding": "admissible" } });
    let of: Settings = serde_json::from_value(of).unwrap();
    let tasks = Tasks::of(Arc::new(Rooms::default()), "train", 0, 4, 0).unwrap();
    let source = Episodes::new(tasks, &of, &Prompt::default(), setting.text.clone());
    let validation = source.validation(&of).unwrap().unwrap();
    assert_eq!((source.len(), validation.len()), (4, 2));
    let drawn = setting.play(&validation, &[0, 1], &How { temperature: 3.0, ..HOW });
    assert!(drawn.iter().flat_map(|d| &d.attempts).all(|a| a.facts["invalid"] == 0.0 && !a.outcome.malformed));
    let free = setting.play(&source, &[0, 1], &How { temperature: 3.0, ..HOW });
    assert!(free.iter().flat_map(|d| &d.attempts).any(|a| a.outcome.malformed || a.facts["invalid"] > 0.0));
}

// --- the op ----------------------------------------------------------------------------------------------------------

#[test]
fn the_op_learns_in_the_household_and_a_resumed_step_ends_with_the_bytes_of_a_whole_one() {
    let bench = Bench::new();
    let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "texts": 40, "vocab_size": 400 });
    bench.run("model", small, &[], "model");
    bench.run("demos", json!({ "count": 6 }), &[], "demos");
    let (model, demos) = (bench.path("model/model"), bench.path("demos/episodes"));
    bench.run(
        "sft",
        json!({ "epochs": 20, "batch": 3, "learning_rate": 0.01 }),
        &[("model", &model), ("data", &demos)],
        "base",
    );
    let params = json!({
        "group": 3, "epochs": 2, "batch": 2, "learning_rate": 1e-3, "max_tokens": 16,
        "episodes": { "split": "train", "tasks": 4, "max_steps": 5, "gigpo": { "discount": 0.9 }, "equal": "actions" },
    });
    let base = bench.path("base/model");
    let whole = bench.run("rl", params.clone(), &[("model", &base)], "whole");
    for name in ["reward", "success", "score", "turns", "invalid", "context", "malformed", "truncated", "zero_variance"]
    {
        assert_eq!(of(&whole, name).len(), 4, "`{name}`");
    }
    assert!(of(&whole, "logp_gap").iter().all(|gap| *gap == 0.0));
    let read = |name: &str| std::fs::read(bench.path(&format!("{name}/model/model.safetensors"))).unwrap();
    bench.run("rl", params.clone(), &[("model", &base)], "again");
    assert!(read("again") == read("whole"), "equal steps gave other weights");
    let stopped = bench.once("rl", params.clone(), &[("model", &base)], "parts", 2);
    assert!(matches!(stopped, Err(OpError::Interrupted)));
    bench.run("rl", params, &[("model", &base)], "parts");
    assert!(read("parts") == read("whole"), "the resumed step gave other weights");
}

#[test]
fn settings_that_mean_nothing_are_refused_by_their_path() {
    let registry = registry();
    let op = registry.get("rl").unwrap();
    let of = |more: Value| {
        let mut episodes = json!({ "split": "train", "tasks": 4 });
        episodes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        match episodes["validation"] {
            Value::Null => json!({ "episodes": episodes }),
            _ => json!({ "episodes": episodes, "validate": {} }),
        }
    };
    let cases = [
        (of(json!({ "decoding": "admissible" })), "episodes.decoding"),
        (of(json!({ "split": "test" })), "episodes.split"),
        (of(json!({ "equal": "actions" })), "episodes.equal"),
        (of(json!({ "equal": "actions", "gigpo": {}, "actions": "needed" })), "episodes.equal"),
        (of(json!({ "validation": { "split": "test", "tasks": 2 } })), "episodes.validation.split"),
        (of(json!({ "validation": { "split": "train", "tasks": 2, "first": 3 } })), "episodes.validation.first"),
    ];
    for (params, path) in cases {
        let params = op.canonical(&params).unwrap();
        let problems = op.check(&params);
        let paths: Vec<String> = problems.iter().map(|p| p.path.join(".")).collect();
        assert_eq!(paths, [path], "{params}");
    }
    let beside = |name: &str, value: Value| {
        let mut params = of(json!({ "gigpo": {} }));
        params[name] = value;
        let params = op.canonical(&params).unwrap();
        op.check(&params).iter().map(|p| p.path.join(".")).collect::<Vec<_>>()
    };
    assert_eq!(beside("limit", json!(3)), ["limit"]);
    assert_eq!(beside("advantage", json!("rloo")), ["advantage"]);
    assert_eq!(beside("reward", json!({ "correct": 2.0 })), ["reward"]);
    assert_eq!(beside("validate", json!({})), ["validate"]);
    assert!(beside("group", json!(4)).is_empty());
    let good = of(json!({ "validation": { "split": "train", "tasks": 2, "first": 4 } }));
    assert!(op.check(&op.canonical(&good).unwrap()).is_empty());
    for unknown in [json!({ "episode": {} }), of(json!({ "task": 1 })), of(json!({ "filters": { "top_p": 0.9 } }))] {
        assert!(op.canonical(&unknown).is_err(), "{unknown}");
    }
    let ports = |params: Value| -> Vec<&'static str> {
        op.ports(&op.canonical(&params).unwrap()).inputs.iter().map(|port| port.name).collect()
    };
    assert_eq!(ports(json!({})), ["model", "states"]);
    assert_eq!(ports(json!({ "validate": {} })), ["model", "states", "validation"]);
    assert_eq!(ports(of(json!({}))), ["model", "data"]);
}

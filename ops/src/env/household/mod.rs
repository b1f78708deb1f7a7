//! The household: ALFWorld's text world, natively, with generated rooms, experts and a reader for original problems.
//!
//! Invariants: the same task and the same commands give the same texts, byte for byte; the captured transcripts of the
//! original engine are replayed exactly; what an agent could not have observed reaches no expert, deduction or text
//! but the exact planner's and the list of admissible actions.
//!
//! 1. `world`: entities, state, rules. `text`: replies. `goal`: six kinds of task.
//! 2. `pddl`: original problems. `grammar`: how a game file words them. `games`: folders of them.
//! 3. `lexicon`, `generate`: rooms and tasks.
//! 4. `memory`, `search`, `plan`: what was seen, and two experts.
//! 5. `play`: deductions, random play and goals in hindsight. `suite`: tasks by split.

mod games;
mod generate;
mod goal;
mod grammar;
mod lexicon;
mod memory;
mod pddl;
mod plan;
mod play;
mod search;
mod suite;
mod text;
mod world;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Env, EnvError, Observation, Snapshot};
use crate::artifact::Task;
pub(crate) use games::text_of;
pub use games::{Game, read_game};
pub use goal::{Goal, TaskKind};
use grammar::{Help, Voice};
use memory::Memory;
pub use pddl::ProblemError;
pub use suite::{SPLITS, open};
pub(crate) use text::TASK;
use world::{Action, State, World};

/// Which world to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How large rooms are, and how many words it takes to talk of them.
    pub size: Size,
    /// Kinds of task; all six if empty. Splits hold equally many of each.
    pub tasks: Vec<TaskKind>,
    /// Layouts per kind of room that train and id tasks share.
    #[schemars(range(min = 1, max = 1000))]
    pub layouts: u32,
    /// Layouts per kind of room that only ood tasks have.
    #[schemars(range(min = 1, max = 1000))]
    pub unseen_layouts: u32,
    /// Number of the house: another number gives other layouts. The seed of a step changes tasks, never layouts.
    pub rooms: u64,
    /// How commands and replies are worded.
    pub wording: Wording,
    /// Who `Env::expert` is.
    pub expert: Expert,
    /// Of original games: whose description is the line of the task, from 0, of those in `traj_data.json`. Left out, it
    /// is the line of the game file.
    pub annotation: Option<u32>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            size: Size::Tiny,
            tasks: Vec::new(),
            layouts: 8,
            unseen_layouts: 8,
            rooms: 0,
            wording: Wording::Move,
            expert: Expert::Search,
            annotation: None,
        }
    }
}

impl Settings {
    /// The kinds of task, each once.
    fn kinds(&self) -> Vec<TaskKind> {
        let mut kinds = self.tasks.clone();
        kinds.sort();
        kinds.dedup();
        if kinds.is_empty() { TaskKind::ALL.to_vec() } else { kinds }
    }
}

/// How large rooms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// 4 to 7 receptacles, one of each class, 3 to 7 objects; few words, for models trained from scratch.
    Tiny,
    /// 6 to 10 receptacles, numbered, 6 to 12 objects; the words of `tiny`.
    Small,
    /// 10 to 16 receptacles, 12 to 28 objects, all classes, some receptacles side by side.
    Medium,
    /// As large as ALFWorld's: up to 26 receptacles and 52 objects.
    Alfred,
}

/// Which tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For demonstrations and training.
    Train,
    /// Other problems in the rooms of `train`.
    Id,
    /// Rooms that training never sees, with receptacle classes and object-receptacle pairs that it never sees.
    Ood,
    /// Rooms that training never sees; the goal is about nothing else that is new.
    OodLayout,
    /// Rooms that training never sees; the goal's object lies or belongs where it never does in training, but in a class
    /// of receptacle that training has.
    OodPair,
    /// Rooms that training never sees; the goal is about a class of receptacle that training does not have.
    OodReceptacle,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 6] =
        [Split::Train, Split::Id, Split::Ood, Split::OodLayout, Split::OodPair, Split::OodReceptacle];

    /// `train`, `id`, `ood`, `ood_layout`, `ood_pair`, `ood_receptacle`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Id => "id",
            Split::Ood => "ood",
            Split::OodLayout => "ood_layout",
            Split::OodPair => "ood_pair",
            Split::OodReceptacle => "ood_receptacle",
        }
    }

    /// In rooms that training never sees.
    pub fn is_unseen(self) -> bool {
        !matches!(self, Split::Train | Split::Id)
    }
}

/// The wording of ALFWorld's releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wording {
    /// `move mug 1 to desk 1`, as in game files since 2.1.2.
    Move,
    /// `put mug 1 in/on desk 1` and `You arrive at loc 3.`, as in game files of 2.1.1.
    Put,
}

impl Wording {
    fn verb(self) -> &'static str {
        match self {
            Wording::Move => "move",
            Wording::Put => "put",
        }
    }

    fn separator(self) -> &'static str {
        match self {
            Wording::Move => " to ",
            Wording::Put => " in/on ",
        }
    }
}

/// Who shows how it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expert {
    /// Looks where things usually are and uses only what it has seen.
    Search,
    /// Knows everything and takes the shortest way.
    Plan,
}

/// What about an ood task no training task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Novelty {
    /// The goal's object starts in, or goes to, a receptacle of a class seen with other objects only.
    Pair,
    /// The goal's object starts in, or goes to, a receptacle of a class never seen.
    Receptacle,
}

/// The kinds of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoomKind {
    Kitchen,
    LivingRoom,
    Bedroom,
    Bathroom,
}

impl RoomKind {
    const ALL: [RoomKind; 4] = [RoomKind::Kitchen, RoomKind::LivingRoom, RoomKind::Bedroom, RoomKind::Bathroom];

    fn name(self) -> &'static str {
        match self {
            RoomKind::Kitchen => "kitchen",
            RoomKind::LivingRoom => "living room",
            RoomKind::Bedroom => "bedroom",
            RoomKind::Bathroom => "bathroom",
        }
    }

    /// As the lexicon abbreviates it.
    fn letter(self) -> char {
        match self {
            RoomKind::Kitchen => 'k',
            RoomKind::LivingRoom => 'l',
            RoomKind::Bedroom => 'b',
            RoomKind::Bathroom => 'w',
        }
    }
}

/// A problem: a room, a start and a goal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HouseholdTask {
    task: Task,
    goal: Goal,
    world: Arc<World>,
    start: Arc<State>,
    novelty: Vec<Novelty>,
    voice: Voice,
    expert: Expert,
}

/// The first `count` tasks of a split. A longer list starts with the shorter one.
pub fn tasks(settings: &Settings, split: Split, count: usize, seed: u64) -> Vec<HouseholdTask> {
    let rooms = generate::Rooms::of(settings, split);
    (0..count).map(|index| generate::task(settings, &rooms, split, index, seed)).collect()
}

/// The first `count` tasks of a split in another house: no room has the same receptacles, as a start tells them, as a
/// room of any split of `settings`. `Split::Ood` has all that ood tasks have but their rooms: every class of receptacle
/// and every pair of object and receptacle.
///
/// # Errors
/// Where the splits take all layouts of a kind of room that the tasks need.
pub fn tasks_elsewhere(
    settings: &Settings,
    split: Split,
    count: usize,
    seed: u64,
) -> Result<Vec<HouseholdTask>, EnvError> {
    let other =
        Settings { rooms: settings.rooms.wrapping_add(1_000_003), layouts: 60, unseen_layouts: 60, ..settings.clone() };
    let rooms = generate::Rooms::elsewhere(settings, &other, split)?;
    Ok((0..count).map(|index| generate::task(&other, &rooms, split, index, seed)).collect())
}

/// Reads a problem in the form of ALFWorld's `initial_state.pddl`; `split` is what the task will say of itself.
///
/// # Errors
/// Names the line of what is not such a problem.
pub fn read_problem(text: &str, split: &str) -> Result<HouseholdTask, ProblemError> {
    let problem = pddl::read(text)?;
    let line = problem.goal.text();
    Ok(HouseholdTask::of(problem, split, line, Wording::Move.into(), Expert::Search))
}

/// The line of the task in an episode's first observation.
pub(crate) fn task_line(observation: &str) -> Option<&str> {
    observation.rsplit_once(TASK).map(|(_, line)| line)
}

impl HouseholdTask {
    /// A problem that was read, worded as its file has it.
    fn of(problem: pddl::Problem, split: &str, line: String, voice: Voice, expert: Expert) -> HouseholdTask {
        let pddl::Problem { name, world, start, goal } = problem;
        let task = Task {
            env: "household".to_owned(),
            id: name,
            split: split.to_owned(),
            kind: goal.kind.name().to_owned(),
            goal: line,
            seed: None,
        };
        let (world, start) = (Arc::new(world), Arc::new(start));
        HouseholdTask { task, goal, world, start, novelty: Vec::new(), voice, expert }
    }

    /// What episodes say of the task.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// What is to become true.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// What no training task has; empty but in ood tasks.
    pub fn novelty(&self) -> &[Novelty] {
        &self.novelty
    }

    /// The same problem in another wording.
    pub fn worded(mut self, wording: Wording) -> HouseholdTask {
        self.voice = wording.into();
        self
    }

    /// The same problem with another line for its task, a full stop at the end.
    pub fn with_line(mut self, line: &str) -> HouseholdTask {
        line.clone_into(&mut self.task.goal);
        self
    }

    /// The same room and start under another goal: for episodes whose goal is found in hindsight.
    pub fn with_goal(&self, goal: Goal) -> HouseholdTask {
        let task = Task { kind: goal.kind.name().to_owned(), goal: goal.text(), ..self.task.clone() };
        HouseholdTask { task, goal, ..self.clone() }
    }

    /// The world at the task's start.
    pub fn play(&self) -> Household {
        let state = State::clone(&self.start);
        let aim = self.goal.aim(&self.world);
        Household { task: self.clone(), aim, memory: Memory::default(), state }
    }
}

/// One episode of one task. A clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Household {
    task: HouseholdTask,
    aim: goal::Aim,
    state: State,
    memory: Memory,
}

impl Household {
    /// The problem being played.
    pub fn problem(&self) -> &HouseholdTask {
        &self.task
    }

    /// Whether the goal holds now.
    pub fn won(&self) -> bool {
        self.aim.holds(&self.task.world, &self.state)
    }

    /// A shortest list of commands to the goal from here, by one who knows everything; `None` where there is none.
    pub fn plan(&self) -> Option<Vec<String>> {
        let world = &self.task.world;
        let plan = plan::shortest(world, &self.state, &self.aim)?;
        Some(plan.into_iter().map(|action| world.phrase(action, self.task.voice.wording)).collect())
    }

    fn observation(&self, text: String, before: bool, valid: Option<bool>) -> Observation {
        let won = self.won();
        let score = f64::from(u8::from(won));
        Observation { text, reward: score - f64::from(u8::from(before)), score, done: won, won, valid }
    }

    /// Whether the game has such a command.
    fn knows(&self, action: Action) -> bool {
        action != Action::Help || self.task.voice.help != Help::Missing
    }

    /// What episodes say of the task.
    pub fn task(&self) -> &Task {
        &self.task.task
    }

    /// Puts the task's first state back.
    pub fn reset(&mut self) -> Observation {
        self.state.clone_from(&self.task.start);
        self.memory = Memory::default();
        let won = self.won();
        self.observation(self.task.world.introduce(&self.state, &self.task.task.goal), won, None)
    }

    /// Acts. Anything that is not admissible changes nothing and says so.
    pub fn step(&mut self, action: &str) -> Observation {
        let before = self.won();
        let world = &self.task.world;
        let (text, valid) = match world.parse(action.trim(), self.task.voice.wording) {
            Some(action) if world.allowed(&self.state, action) && self.knows(action) => {
                world.apply(&mut self.state, action);
                self.memory.note(world, &self.state, action);
                (world.report(&self.state, action, &self.task.voice), true)
            }
            _ => (text::NOTHING.to_owned(), false),
        };
        self.observation(text, before, Some(valid))
    }

    /// Actions that would change or show something now, sorted.
    pub fn admissible(&self) -> Vec<String> {
        let world = &self.task.world;
        let phrase = |action| world.phrase(action, self.task.voice.wording);
        let possible = world.actions(&self.state).into_iter().filter(|&action| self.knows(action));
        let mut actions: Vec<String> = possible.map(phrase).collect();
        actions.sort_unstable();
        actions
    }

    /// What the expert would do now; `None` when the goal holds.
    pub fn expert(&mut self) -> Option<String> {
        if self.won() {
            return None;
        }
        let (world, state) = (&self.task.world, &self.state);
        let action = match self.task.expert {
            Expert::Search => search::next(world, state, &self.memory, &self.aim).map(|step| step.action),
            Expert::Plan => None,
        };
        let action = action.or_else(|| plan::shortest(world, state, &self.aim)?.into_iter().next())?;
        Some(world.phrase(action, self.task.voice.wording))
    }
}

/// What a snapshot holds.
struct Kept {
    task: String,
    state: State,
    memory: Memory,
}

impl Env for Household {
    fn task(&self) -> &Task {
        Household::task(self)
    }

    fn reset(&mut self) -> Result<Observation, EnvError> {
        Ok(Household::reset(self))
    }

    fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
        Ok(Household::step(self, action))
    }

    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
        Ok(Some(Household::admissible(self)))
    }

    fn expert(&mut self) -> Result<Option<String>, EnvError> {
        Ok(Household::expert(self))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(Kept { task: self.task.task.id.clone(), state: self.state.clone(), memory: self.memory.clone() })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
        match snapshot.get::<Kept>() {
            Some(kept) if kept.task == self.task.task.id => {
                self.state.clone_from(&kept.state);
                self.memory.clone_from(&kept.memory);
                Ok(())
            }
            _ => Err(EnvError::unusable(format!("the snapshot is not of the task `{}`", self.task.task.id))),
        }
    }
}

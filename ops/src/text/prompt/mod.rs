//! How a state is put to a model, and how its reply is read as an action.
//!
//! 1. [`Prompt`]: the table `prompt` of a recipe: a style, and what is changed of it.
//! 2. [`Scene`]: a state of an episode; [`Prompt::messages`] makes messages of it.
//! 3. [`Prompt::parse`]: the action that a reply says, or why it says none.
//! 4. [`Prompt::question`] asks which of two actions is better; [`Prompt::choice`] and [`Prompt::which`] read the answer.
//!
//! Invariants: one value of [`Prompt`] says how states are written in training and in play alike; a reply is an action
//! only as a whole, and nothing quoted inside it counts; the default writes what the environment says and takes the whole
//! reply for the action.

mod choice;
pub(crate) mod fill;
mod parse;
mod preset;

use std::borrow::Cow;
use std::collections::BTreeMap;

use actloom_engine::op::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::choice::{Choosing, Reason};
pub(crate) use self::fill::{fill, names as placeholders};
pub(crate) use self::parse::says_something;
pub use self::parse::{ACTION_CLOSE, ACTION_LINE, ACTION_OPEN, Malformed, Reply, THOUGHT_LINE};
use self::preset::Slot;
use super::dialogue::said;
use super::tokenizer::{Message, Role};
use crate::artifact::Task;

/// How states are put and actions are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    /// A convention by name; what is set beside it replaces that part of it.
    pub style: Style,
    /// What the model is told first; nothing where it is left out. It may hold `{instructions}` and `{task}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How a state's past is told: `conversation` in the styles `bare` and `react`, `single` in `tagged`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// With `form = "single"`: how many of the last steps are told, or `"all"`; `tagged` tells 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<HowMany>,
    /// Whether the admissible actions are told: `"none"`, `"all"`, or the longest list that is. Of a longer one only the
    /// words that its actions begin with are told, and how many there are. `tagged` tells all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<HowMany>,
    /// Whether there is a reasoning before the action: `none` in `bare`, `required` in `tagged` and `react`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// What of the reply is the action: `bare`, `tag` and `line` in the styles `bare`, `tagged` and `react`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// In questions which of two actions is better: whether the answer is the text of one or its number, 1 or 2; `text`
    /// where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choosing>,
    /// In the same questions: whether there is a reasoning before the choice. Left out, it is as `thinking` says, but
    /// that `none` allows one. With `none` an answer that holds one is malformed; a chat template that thinks of its own
    /// accord needs `enable_thinking = false` then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The variable `enable_thinking` of the model's chat template; left out, the template decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
    /// Texts of your own in place of the style's.
    #[serde(skip_serializing_if = "Texts::is_empty")]
    pub texts: Texts,
}

/// Conventions by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// A conversation of observations and actions, and not a word more.
    #[default]
    Bare,
    /// One message a state: task, last steps, observation, admissible actions; `<think>..</think><action>..</action>`.
    Tagged,
    /// A conversation whose answers are `Thought: ..` and `Action: ..`.
    React,
}

/// How a state's past is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Observations are the user's turns and replies the model's.
    #[default]
    Conversation,
    /// One user's turn tells task, past and present.
    Single,
}

/// A number, or one of two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HowMany {
    /// At most so many.
    AtMost(u32),
    Word(Word),
}

/// Words for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    None,
    All,
}

impl HowMany {
    fn limit(self) -> usize {
        match self {
            HowMany::AtMost(n) => n as usize,
            HowMany::Word(Word::None) => 0,
            HowMany::Word(Word::All) => usize::MAX,
        }
    }
}

/// Whether a reasoning stands before the action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// None: the whole reply is the answer.
    #[default]
    None,
    /// `<think>..</think>` may stand first (`Thought: ..` where the answer is a line).
    Optional,
    /// It must, and must say something: a letter or a digit.
    Required,
    /// The chat template itself writes `<think>`, so that a reply begins inside the reasoning.
    Opened,
}

/// What of a reply is the action, once the reasoning is taken off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// All of it.
    #[default]
    Bare,
    /// What stands in `<action>..</action>`, around which nothing is said.
    Tag,
    /// What stands behind `Action:` on the last line.
    Line,
}

/// Texts with placeholders; `{{` and `}}` are braces. A line whose placeholders are all empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    /// How to answer: what `{instructions}` stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The user's first turn in a conversation: `{instructions}`, `{task}`, `{observation}`, `{actions}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The user's later turns: `{observation}`, `{actions}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<String>,
    /// The message of a state with `form = "single"`: `{instructions}`, `{task}`, `{start}` (the first observation),
    /// `{history}`, `{observation}`, `{actions}`, `{step}` (of the action that is asked for, from 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What `{history}` stands for, where there is any: `{entries}`, `{shown}` of them, `{taken}` steps in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
    /// One earlier step: `{step}`, `{observation}` (before it), `{action}`, `{reply}` (all that was said).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub past: Option<String>,
    /// What `{actions}` stands for: `{list}`, one a line, and `{count}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<String>,
    /// The same where there are more than `actions` allows: `{kinds}`, the words that they begin with, and `{count}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded: Option<String>,
    /// What a critic is asked behind the state: `{first}`, `{second}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
}

impl Texts {
    fn is_empty(&self) -> bool {
        *self == Texts::default()
    }
}

/// A state of an episode.
pub struct Scene<'a> {
    pub task: &'a Task,
    /// The first observation.
    pub start: &'a str,
    /// Admissible actions at the start, sorted; empty where they are not known.
    pub first: &'a [String],
    /// What was done and seen so far.
    pub turns: &'a [Said<'a>],
}

/// One earlier turn.
pub struct Said<'a> {
    /// All that was said, if more than the action.
    pub reply: Option<&'a str>,
    pub action: &'a str,
    pub observation: &'a str,
    /// Admissible actions after it; empty where they are not known.
    pub actions: &'a [String],
}

/// What a placeholder stands for; `None` where the text has no such placeholder, which `check` refuses.
type Filled<'a> = Option<Cow<'a, str>>;

impl Prompt {
    /// How a state's past is told.
    pub fn form(&self) -> Form {
        let of_style = if self.style == Style::Tagged { Form::Single } else { Form::Conversation };
        self.form.unwrap_or(of_style)
    }

    /// Whether a reasoning stands before the action.
    pub fn thinking(&self) -> Thinking {
        let of_style = if self.style == Style::Bare { Thinking::None } else { Thinking::Required };
        self.thinking.unwrap_or(of_style)
    }

    /// What of a reply is the action.
    pub fn answer(&self) -> Answer {
        self.answer.unwrap_or(match self.style {
            Style::Bare => Answer::Bare,
            Style::Tagged => Answer::Tag,
            Style::React => Answer::Line,
        })
    }

    fn history(&self) -> usize {
        let of_style = if self.style == Style::Tagged { 5 } else { usize::MAX };
        self.history.map_or(of_style, HowMany::limit)
    }

    fn most_actions(&self) -> usize {
        let of_style = if self.style == Style::Tagged { usize::MAX } else { 0 };
        self.actions.map_or(of_style, HowMany::limit)
    }

    /// A state as messages; the last is the user's.
    pub fn messages(&self, scene: &Scene<'_>) -> Vec<Message> {
        let mut messages = Vec::new();
        let system = self.system(scene);
        if !system.is_empty() {
            messages.push(Message::system(system));
        }
        match self.form() {
            Form::Single => messages.push(Message::user(self.state(scene))),
            Form::Conversation => {
                messages.push(Message::user(fill(self.text(Slot::First), |name| self.of_start(name, scene))));
                for turn in scene.turns {
                    messages.push(Message::assistant(self.repeated(turn)));
                    messages.push(Message::user(self.turn(turn.observation, turn.actions)));
                }
            }
        }
        messages
    }

    /// A state as messages, the last of which asks which of two actions is better.
    pub fn question(&self, scene: &Scene<'_>, shown: &[String; 2]) -> Vec<Message> {
        let mut messages = self.asking().messages(scene);
        if let Some(last) = messages.last_mut().filter(|last| last.role == Role::User) {
            last.content.push('\n');
            last.content.push_str(&fill(self.text(Slot::Question), |name| match name {
                "first" => Some(shown[0].as_str().into()),
                "second" => Some(shown[1].as_str().into()),
                _ => None,
            }));
        }
        messages
    }

    /// The user's turn after an action, in a conversation that grows.
    pub fn turn(&self, observation: &str, actions: &[String]) -> String {
        fill(self.text(Slot::Turn), |name| match name {
            "observation" => Some(said(observation).into()),
            "actions" => Some(self.listed(actions).into()),
            _ => None,
        })
    }

    /// Whether the messages of a state begin those of the next one, so that a conversation can grow.
    pub fn grows(&self) -> bool {
        self.form() == Form::Conversation
    }

    /// Whether states tell the admissible actions.
    pub fn lists_actions(&self) -> bool {
        self.most_actions() > 0
    }

    /// Whether the past of a conversation tells what was said and not only what was done: where there is a reasoning.
    pub fn tells_replies(&self) -> bool {
        self.thinking() != Thinking::None
    }

    /// Whether the whole reply is the action.
    pub fn is_plain(&self) -> bool {
        self.answer() == Answer::Bare && self.thinking() == Thinking::None
    }

    /// Whether a reply without a reasoning is an action, so that replies can be held to a list.
    pub fn can_be_held(&self) -> bool {
        matches!(self.thinking(), Thinking::None | Thinking::Optional)
    }

    /// Whether an answer without a reasoning is a choice.
    pub fn can_choose_at_once(&self) -> bool {
        matches!(self.reasoning(), Thinking::None | Thinking::Optional)
    }

    /// What the prompt tells and the scene does not hold.
    pub fn lacks(&self, scene: &Scene<'_>) -> Option<&'static str> {
        let last = scene.turns.last().map_or(scene.first, |turn| turn.actions);
        let mut earlier = scene.turns.iter().map(|turn| turn.actions);
        let grows = self.grows() && (scene.first.is_empty() || earlier.any(<[String]>::is_empty));
        let lacks = self.lists_actions() && (last.is_empty() || grows);
        lacks.then_some("the admissible actions")
    }

    /// The reply that says an action.
    pub fn reply(&self, reasoning: Option<&str>, action: &str) -> String {
        parse::write(self.answer(), self.thinking(), reasoning, action)
    }

    /// The action that a reply says.
    ///
    /// # Errors
    /// Why it says none.
    pub fn parse<'a>(&self, reply: &'a str) -> Result<Reply<'a>, Malformed> {
        parse::parse(self.answer(), self.thinking(), reply)
    }

    /// What the model's chat template is told.
    pub fn variables(&self) -> Map<String, Value> {
        self.enable_thinking.map(|on| ("enable_thinking".to_owned(), Value::Bool(on))).into_iter().collect()
    }

    /// What cannot be; paths begin at `prompt`.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for slot in Slot::ALL {
            let Some(text) = self.own(slot) else { continue };
            let names = match fill::names(text) {
                Ok(names) => names,
                Err(what) => {
                    problems.push(Problem::new(slot.path(), what).help("write `{{` for a brace"));
                    continue;
                }
            };
            let mut has = slot.names().iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
            if has.is_empty() {
                "none".clone_into(&mut has);
            }
            for name in names.iter().filter(|name| !slot.names().contains(name)) {
                let what = format!("this text has no placeholder `{{{name}}}`");
                problems.push(Problem::new(slot.path(), what).help(format!("it has {has}; write `{{{{` for a brace")));
            }
            for name in slot.needed().iter().filter(|name| !names.contains(name)) {
                problems.push(Problem::new(slot.path(), format!("`{{{name}}}` is missing from this text")));
            }
            let tells = names.contains(&"actions");
            if self.lists_actions() && slot.names().contains(&"actions") && !tells {
                let what = "`{actions}` is missing from this text, and `actions` asks for it";
                problems.push(Problem::new(slot.path(), what));
            }
            if slot.form().is_some_and(|form| form != self.form()) {
                let form = if self.grows() { "conversation" } else { "single" };
                problems.push(Problem::new(slot.path(), format!("this text is not used where `form` is `{form}`")));
            }
        }
        if self.grows() && self.history.is_some_and(|history| history.limit() < usize::MAX) {
            let what = "a conversation tells everything, expected `all`";
            problems.push(Problem::new(&["prompt", "history"], what).help("write `form = \"single\"`"));
        }
        problems.extend(self.check_choice());
        if self.enable_thinking == Some(true) && self.thinking() == Thinking::None {
            let what = "the model is told to think, and its reasoning would be taken for the action";
            let help = "write `thinking = \"optional\"`, or `\"opened\"` where the template writes `<think>`";
            problems.push(Problem::new(&["prompt", "enable_thinking"], what).help(help));
        }
        problems
    }

    /// Whether a text of the prompt tells the task, so that the first observation need not.
    fn tells_task(&self) -> bool {
        let state = if self.grows() { Slot::First } else { Slot::State };
        [Slot::System, state].iter().any(|slot| fill::names(self.text(*slot)).is_ok_and(|n| n.contains(&"task")))
    }

    fn system(&self, scene: &Scene<'_>) -> String {
        fill(self.text(Slot::System), |name| match name {
            "instructions" => Some(self.text(Slot::Instructions).into()),
            "task" => Some(self.task(scene).into()),
            _ => None,
        })
    }

    /// What `{task}` stands for: the goal, or where there is none the start, unless the state tells that anyway.
    fn task<'a>(&self, scene: &Scene<'a>) -> &'a str {
        let goal = scene.task.goal.as_str();
        if goal.trim().is_empty() && !self.tells_start(scene) { said(scene.start).trim() } else { goal }
    }

    /// Whether the first observation is told beside the task: in a conversation always.
    fn tells_start(&self, scene: &Scene<'_>) -> bool {
        let has = |slot: Slot, name: &str| fill::names(self.text(slot)).is_ok_and(|names| names.contains(&name));
        let reaches = scene.turns.len() <= self.history();
        let past = || reaches && has(Slot::State, "history") && has(Slot::Past, "observation");
        self.grows() || scene.turns.is_empty() || has(Slot::State, "start") || past()
    }

    /// The first observation: the task is not told twice.
    fn start<'a>(&self, scene: &Scene<'a>) -> Cow<'a, str> {
        let start = said(scene.start);
        if self.tells_task() { without_goal(start, &scene.task.goal) } else { start.into() }
    }

    fn of_start<'a>(&'a self, name: &str, scene: &Scene<'a>) -> Filled<'a> {
        Some(match name {
            "instructions" => self.text(Slot::Instructions).into(),
            "task" => self.task(scene).into(),
            "observation" => self.start(scene),
            "actions" => self.listed(scene.first).into(),
            _ => return None,
        })
    }

    /// The message of a state that stands for itself. A text that would lose the task is told behind the start.
    fn state(&self, scene: &Scene<'_>) -> String {
        let last = scene.turns.last();
        let message = fill(self.text(Slot::State), |name| {
            Some(match name {
                "start" => self.start(scene),
                "history" => self.told(scene).into(),
                "observation" => last.map_or_else(|| self.start(scene), |turn| said(turn.observation).into()),
                "actions" => self.listed(last.map_or(scene.first, |turn| turn.actions)).into(),
                "step" => (scene.turns.len() + 1).to_string().into(),
                _ => return self.of_start(name, scene),
            })
        });
        let (goal, start) = (scene.task.goal.trim(), said(scene.start).trim());
        let told = self.tells_task() || self.tells_start(scene) || (!goal.is_empty() && message.contains(goal));
        if told || start.is_empty() { message } else { format!("{start}\n\n{message}") }
    }

    /// The last steps: what was seen, and what was done then.
    fn told(&self, scene: &Scene<'_>) -> String {
        let taken = scene.turns.len();
        let shown = taken.min(self.history());
        if shown == 0 {
            return String::new();
        }
        let mut entries = Vec::with_capacity(shown);
        for (index, turn) in scene.turns.iter().enumerate().skip(taken - shown) {
            let before = index.checked_sub(1).map(|before| &scene.turns[before]);
            entries.push(fill(self.text(Slot::Past), |name| {
                Some(match name {
                    "step" => (index + 1).to_string().into(),
                    "observation" => before.map_or_else(|| self.start(scene), |turn| said(turn.observation).into()),
                    "action" => turn.action.into(),
                    "reply" => self.repeated(turn).into(),
                    _ => return None,
                })
            }));
        }
        fill(self.text(Slot::History), |name| match name {
            "entries" => Some(entries.join("\n").into()),
            "shown" => Some(shown.to_string().into()),
            "taken" => Some(taken.to_string().into()),
            _ => None,
        })
    }

    /// An earlier reply, as the model is shown it.
    fn repeated(&self, turn: &Said<'_>) -> String {
        turn.reply.map_or_else(|| self.reply(None, turn.action), str::to_owned)
    }

    /// Admissible actions as they are told: all, or where they are too many what they begin with.
    fn listed(&self, actions: &[String]) -> String {
        let most = self.most_actions();
        if most == 0 || actions.is_empty() {
            return String::new();
        }
        let count = actions.len().to_string();
        if actions.len() <= most {
            return fill(self.text(Slot::Actions), |name| match name {
                "list" => Some(actions.join("\n").into()),
                "count" => Some(count.as_str().into()),
                _ => None,
            });
        }
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for action in actions {
            let end = action.find(|c: char| !c.is_alphanumeric()).unwrap_or(action.len());
            *kinds.entry(&action[..end]).or_default() += 1;
        }
        kinds.remove("");
        let kinds = if kinds.len() > most {
            String::new()
        } else {
            kinds.iter().map(|(word, n)| format!("{word} ({n})")).collect::<Vec<_>>().join(", ")
        };
        fill(self.text(Slot::Folded), |name| match name {
            "kinds" => Some(kinds.as_str().into()),
            "count" => Some(count.as_str().into()),
            _ => None,
        })
    }
}

/// An observation without the paragraphs that only tell the goal, behind a few words and a colon or behind nothing.
fn without_goal<'a>(text: &'a str, goal: &str) -> Cow<'a, str> {
    let goal = goal.trim();
    let only_tells = |paragraph: &str| match paragraph.trim().strip_suffix(goal) {
        Some(lead) => !lead.contains('\n') && (lead.is_empty() || lead.trim_end().ends_with(':')),
        None => false,
    };
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let kept: Vec<&str> = paragraphs.iter().copied().filter(|p| !only_tells(p)).collect();
    if goal.is_empty() || kept.is_empty() || kept.len() == paragraphs.len() {
        text.into()
    } else {
        kept.join("\n\n").into()
    }
}

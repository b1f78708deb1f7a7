//! Reads the grammar inside a game file: how commands are worded, what is said, and the line of the task.
//!
//! 1. Text to definitions: `grammar :: """ json """;` and `action NAME { template :: "..."; ... }`.
//! 2. What differs between ALFWorld's releases is taken from the file: the command and reply of putting, what an arrival
//!    is called, the help, the task.
//! 3. The other commands and one-line replies have to be what this engine says; else the file is refused.
//!
//! Invariant: what a game file says of commands is either followed or refused, never replaced.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::Wording;
use super::text::TASK;

/// How a game words commands and replies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Voice {
    pub wording: Wording,
    /// `You arrive at loc 3.`, not `You arrive at desk 1.`
    pub arrives_at_location: bool,
    pub help: Help,
}

/// What the command `help` does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Help {
    /// It lists the commands.
    Usual,
    /// It says what the game file has it say.
    Said(Arc<str>),
    /// The game has no such command.
    Missing,
}

impl From<Wording> for Voice {
    fn from(wording: Wording) -> Voice {
        Voice { wording, arrives_at_location: wording == Wording::Put, help: Help::Usual }
    }
}

/// What a game's grammar has of its own.
#[derive(Debug)]
pub(super) struct Grammar {
    pub voice: Voice,
    /// The task, with a full stop: `put a mug in desk.`
    pub task: String,
}

/// An action, its command, and its reply where that is one line. `{o}` and `{r}` as the file writes them.
const ACTIONS: [(&str, &str, Option<&str>); 14] = [
    ("look", "look", None),
    ("inventory", "inventory", None),
    ("examinereceptacle", "examine {r}", None),
    ("examineobject", "examine {o}", None),
    ("gotolocation", "go to [{r.name | receptacleatlocation(r:receptacle, lend:location)}]", None),
    ("openobject", "open {r}", Some("You open the {r.name}. #examineReceptacle.feedback#")),
    ("closeobject", "close {r}", Some("You close the {r.name}.")),
    ("pickupobject", "take {o} from {r}", Some("You pick up the {o.name} from the {r.name}.")),
    ("toggleobject", "use {o}", Some("You turn on the {o.name}.")),
    ("heatobject", "heat {o} with {r}", Some("You heat the {o.name} using the {r.name}.")),
    ("cleanobject", "clean {o} with {r}", Some("You clean the {o.name} using the {r.name}.")),
    ("coolobject", "cool {o} with {r}", Some("You cool the {o.name} using the {r.name}.")),
    ("sliceobject", "slice {co} with {ko}", Some("You sliced the {co.name} with the {ko.name}.")),
    PUT,
];

/// Worded as the file has it.
const PUT: (&str, &str, Option<&str>) = ("putobject", "", None);

/// Checks that a domain has the actions that this engine knows, all of them and no others; `help` may be missing, and
/// whether it is there is told.
///
/// # Errors
/// Names the action.
pub(super) fn has_help(actions: &[String]) -> Result<bool, String> {
    let known = |name: &str| name == "help" || ACTIONS.iter().any(|(action, ..)| *action == name);
    if let Some(other) = actions.iter().find(|name| !known(name)) {
        return Err(format!("the domain has an action `{other}` that ALFWorld's does not have"));
    }
    if let Some((missing, ..)) = ACTIONS.iter().find(|(action, ..)| !actions.iter().any(|name| name == action)) {
        return Err(format!("the domain has no action `{missing}`, expected ALFWorld's"));
    }
    Ok(actions.iter().any(|name| name == "help"))
}

/// Reads a grammar; `help` says whether the domain has that action.
///
/// # Errors
/// Names the line of what is no grammar, or the command or rule that this engine does not speak.
pub(super) fn read(text: &str, help: bool) -> Result<Grammar, String> {
    let file = Definitions::read(text)?;
    for (action, template, reply) in ACTIONS.into_iter().filter(|action| *action != PUT) {
        let (found, feedback) = file.action(action)?;
        if found != template {
            return Err(format!("the command of `{action}` is `{found}`, expected `{template}`"));
        }
        if let Some(reply) = reply {
            let said = file.says(feedback)?;
            if said != reply {
                return Err(format!("the reply to `{action}` is `{said}`, expected `{reply}`"));
            }
        }
    }
    let (template, feedback) = file.action("putobject")?;
    let wording = [Wording::Move, Wording::Put].into_iter().find(|wording| {
        let (verb, separator) = (wording.verb(), wording.separator());
        template == format!("{verb} {{o}}{separator}{{r}}")
    });
    let Some(wording) = wording else {
        return Err(format!(
            "the command of `putobject` is `{template}`, expected `move {{o}} to {{r}}` or `put {{o}} in/on {{r}}`"
        ));
    };
    let reply = format!("You {} the {{o.name}}{}the {{r.name}}.", wording.verb(), wording.separator());
    let said = file.says(feedback)?;
    if said != reply {
        return Err(format!("the reply to `putobject` is `{said}`, expected `{reply}`"));
    }
    let arrival = file.says(file.action("gotolocation")?.1)?;
    let arrives_at_location = match arrival {
        "You arrive at {r.name}. #examineReceptacle.feedback#" => false,
        "You arrive at {lend.name}. #examineReceptacle.feedback#" => true,
        other => {
            return Err(format!("the reply to `gotolocation` is `{other}`, expected `You arrive at {{r.name}}. ...`"));
        }
    };
    let help = if help {
        let (template, feedback) = file.action("help")?;
        if template != "help" {
            return Err(format!("the command of `help` is `{template}`, expected `help`"));
        }
        let said = file.says(feedback)?;
        // The original's parser passes over space at the beginning of a rule.
        Help::Said(plain("help", said)?.trim_start().into())
    } else {
        Help::Missing
    };
    let task = plain("task", file.says("#task#")?)?.trim_start();
    let Some(task) = task.strip_prefix(TASK) else {
        return Err(format!("the rule `task` says `{task}`, expected `{TASK}...`"));
    };
    Ok(Grammar { voice: Voice { wording, arrives_at_location, help }, task: task.to_owned() })
}

/// A text without symbols of the grammar, which the original would replace.
fn plain<'a>(rule: &str, text: &'a str) -> Result<&'a str, String> {
    match text.find(['#', '{', '}', '[', ']', '<', '>', '|', '"']) {
        None => Ok(text),
        Some(at) => {
            let symbol: String = text[at..].chars().take(20).collect();
            Err(format!("the rule `{rule}` has `{symbol}` in its text, expected plain words"))
        }
    }
}

#[derive(Deserialize)]
struct Rule {
    rhs: String,
}

/// The definitions of a grammar.
#[derive(Default)]
struct Definitions {
    /// Command and name of the reply, by lower-cased action.
    actions: HashMap<String, (String, String)>,
    rules: HashMap<String, Vec<Rule>>,
}

impl Definitions {
    fn read(text: &str) -> Result<Definitions, String> {
        let mut file = Definitions::default();
        let mut words = Words { text, at: 0 };
        loop {
            let name = match words.next()? {
                Some(Word::Name("grammar")) => {
                    let block = words.value(true)?;
                    file.add_rules(&words, block)?;
                    continue;
                }
                Some(Word::Name("action")) => match words.next()? {
                    Some(Word::Name(name)) => name.to_lowercase(),
                    _ => return Err(words.expected("the name of an action")),
                },
                None => return Ok(file),
                _ => return Err(words.expected("`grammar` or `action`")),
            };
            words.take("{")?;
            let (mut template, mut feedback) = (None, None);
            loop {
                match words.next()? {
                    Some(Word::Mark("}")) => break,
                    Some(Word::Name("template")) => template = Some(words.value(false)?.to_owned()),
                    Some(Word::Name("feedback")) => feedback = Some(words.value(false)?.to_owned()),
                    Some(Word::Name("pddl")) => drop(words.value(true)?),
                    Some(Word::Name("grammar")) => {
                        let block = words.value(true)?;
                        let code: Vec<&str> =
                            block.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
                        file.add_rules(&words, &code.join("\n"))?;
                    }
                    _ => return Err(words.expected("`template`, `feedback`, `grammar` or `}`")),
                }
            }
            match (template, feedback) {
                (Some(template), Some(feedback)) => file.actions.insert(name, (template, feedback)),
                _ => return Err(words.expected("a `template` and a `feedback` in every action")),
            };
        }
    }

    /// Later rules take the place of earlier ones, as in the original.
    fn add_rules(&mut self, words: &Words<'_>, json: &str) -> Result<(), String> {
        let rules: HashMap<String, Vec<Rule>> =
            serde_json::from_str(json).map_err(|e| format!("the rules before line {}: {e}", words.line()))?;
        self.rules.extend(rules);
        Ok(())
    }

    fn action(&self, name: &str) -> Result<(&str, &str), String> {
        match self.actions.get(name) {
            Some((template, feedback)) => Ok((template, feedback)),
            None => Err(format!("the grammar has no action `{name}`")),
        }
    }

    /// The first text of a rule, `#name#`.
    fn says(&self, symbol: &str) -> Result<&str, String> {
        let rule = symbol.strip_prefix('#').and_then(|rest| rest.strip_suffix('#'));
        match rule.and_then(|name| self.rules.get(name)).and_then(|texts| texts.first()) {
            Some(rule) => Ok(&rule.rhs),
            None => Err(format!("the grammar has no rule `{symbol}`")),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Word<'a> {
    Name(&'a str),
    /// `::`, `;`, `{`, `}`
    Mark(&'a str),
    /// `"..."`
    Text(&'a str),
    /// `"""..."""`
    Block(&'a str),
}

/// The words of a grammar, one after the other.
struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    fn line(&self) -> usize {
        self.text[..self.at].matches('\n').count() + 1
    }

    fn expected(&self, what: &str) -> String {
        format!("line {}: expected {what}", self.line())
    }

    fn next(&mut self) -> Result<Option<Word<'a>>, String> {
        let text = self.text;
        loop {
            let rest = &text[self.at..];
            let space = rest.len() - rest.trim_start().len();
            self.at += space;
            if !text[self.at..].starts_with('#') {
                break;
            }
            self.at += text[self.at..].find('\n').unwrap_or(text.len() - self.at);
        }
        let rest = &text[self.at..];
        let (word, length) = if let Some(inner) = rest.strip_prefix("\"\"\"") {
            let end = inner.find("\"\"\"").ok_or_else(|| self.expected("the end of this block"))?;
            (Word::Block(&inner[..end]), end + 6)
        } else if let Some(inner) = rest.strip_prefix('"') {
            let end = inner.find('"').ok_or_else(|| self.expected("the end of this text"))?;
            (Word::Text(&inner[..end]), end + 2)
        } else if let Some(mark) = ["::", ";", "{", "}"].into_iter().find(|mark| rest.starts_with(mark)) {
            (Word::Mark(mark), mark.len())
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "_/-".contains(c))).unwrap_or(rest.len());
            match end {
                0 if rest.is_empty() => return Ok(None),
                0 => return Err(self.expected("a name, a text or a mark")),
                _ => (Word::Name(&rest[..end]), end),
            }
        };
        self.at += length;
        Ok(Some(word))
    }

    fn take(&mut self, mark: &str) -> Result<(), String> {
        match self.next()? {
            Some(Word::Mark(found)) if found == mark => Ok(()),
            _ => Err(self.expected(&format!("`{mark}`"))),
        }
    }

    /// `:: "..." ;`, or with a block.
    fn value(&mut self, block: bool) -> Result<&'a str, String> {
        self.take("::")?;
        let value = match self.next()? {
            Some(Word::Text(text)) if !block => text,
            Some(Word::Block(text)) if block => text,
            _ => return Err(self.expected(if block { "a block in `\"\"\"`" } else { "a text in `\"`" })),
        };
        self.take(";")?;
        Ok(value)
    }
}

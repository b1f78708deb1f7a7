//! What the world says: every reply, word for word as ALFWorld's grammar has it.
//!
//! Invariant: a reply is a function of the state after the action, and of the action.

use super::Wording;
use super::grammar::{Help, Voice};
use super::world::{Action, Set, State, World, has, members};

/// What anything inadmissible gets.
pub(super) const NOTHING: &str = "Nothing happens.";

/// What stands before the goal in an episode's first observation.
pub(crate) const TASK: &str = "Your task is to: ";

/// `a apple 2, and a knife 1`; `nothing` where there is nothing. The article is always `a`.
fn list(out: &mut String, mut names: impl ExactSizeIterator<Item: AsRef<str>>, article: &str) {
    let count = names.len();
    if count == 0 {
        out.push_str("nothing");
    }
    for (index, name) in names.by_ref().enumerate() {
        if index > 0 {
            out.push_str(if index + 1 == count { ", and " } else { ", " });
        }
        out.push_str(article);
        out.push_str(name.as_ref());
    }
}

impl World {
    fn list_objects(&self, out: &mut String, set: Set) {
        let names: Vec<&str> = members(set).map(|o| self.objects[o].name.as_str()).collect();
        list(out, names.into_iter(), "a ");
    }

    /// What a look at a receptacle shows.
    fn contents(&self, state: &State, r: usize, out: &mut String) {
        let receptacle = &self.receptacles[r];
        match (receptacle.openable, has(state.opened, r)) {
            (true, false) => {
                out.extend(["The ", &receptacle.name, " is closed."]);
                return;
            }
            (true, true) => out.extend(["The ", &receptacle.name, " is open. In it, you see "]),
            (false, _) => out.extend(["On the ", &receptacle.name, ", you see "]),
        }
        self.list_objects(out, state.inside[r]);
        out.push('.');
    }

    /// What a look at the object in hand shows.
    fn condition(&self, state: &State, o: usize, out: &mut String) {
        let object = &self.objects[o];
        if let Some(contents) = object.contents {
            out.extend(["This is a normal ", &object.name, ". In it, you see "]);
            self.list_objects(out, contents);
            out.push('.');
            return;
        }
        let (clean, hot, cool) = (has(state.clean, o), has(state.hot, o), has(state.cool, o));
        let sliced = has(state.sliced, o);
        let looks = match (clean, hot, cool) {
            (true, true, _) => "hot and clean",
            (true, _, true) => "cool and clean",
            (true, _, _) => "clean",
            (_, true, _) => "hot",
            (_, _, true) if sliced => "cool",
            (_, _, true) => "cold",
            _ => "",
        };
        match (looks, sliced) {
            ("", _) if has(self.abilities.toggleable & state.toggled, o) => {
                out.extend(["This ", &object.name, " is on."])
            }
            ("", true) => out.extend(["This is a sliced ", &object.name, "."]),
            ("", false) => out.extend(["There's nothing special about ", &object.name, "."]),
            (looks, true) => out.extend(["This is a ", looks, " sliced ", &object.name, "."]),
            (looks, false) => out.extend(["This is a ", looks, " ", &object.name, "."]),
        }
    }

    /// A look around. Where no receptacle is, only the first look of an episode lists the room (`whole`): later ones
    /// are bound to the place.
    fn surroundings(&self, state: &State, whole: bool, out: &mut String) {
        let here = self.here[state.at];
        if here == 0 {
            out.push_str("You are in the middle of a room. Looking quickly around you, you see ");
            let all = if whole { self.receptacles.as_slice() } else { &[] };
            list(out, all.iter().map(|receptacle| &receptacle.name), "a ");
            out.push('.');
            return;
        }
        out.push_str("You are facing the ");
        let names: Vec<&str> = members(here).map(|r| self.receptacles[r].name.as_str()).collect();
        list(out, names.into_iter(), "");
        out.push_str(". Next to it, you see ");
        let mut beside = Vec::new();
        for o in members(state.lying[state.at]) {
            let times = members(here).filter(|&r| has(state.left[r] & !state.inside[r], o)).count();
            beside.extend(std::iter::repeat_n(self.objects[o].name.as_str(), times));
        }
        list(out, beside.into_iter(), "a ");
        out.push('.');
    }

    /// The first observation of an episode. `goal` ends in a full stop.
    pub fn introduce(&self, state: &State, goal: &str) -> String {
        let mut out = String::from("-= Welcome to TextWorld, ALFRED! =-\n\n");
        self.surroundings(state, true, &mut out);
        out.extend(["\n\n", TASK, goal]);
        out
    }

    /// What is said after an action that has just been applied.
    pub fn report(&self, state: &State, action: Action, voice: &Voice) -> String {
        let mut out = String::with_capacity(96);
        let receptacle = |r: usize| self.receptacles[r].name.as_str();
        let object = |o: usize| self.objects[o].name.as_str();
        match action {
            Action::Look => self.surroundings(state, false, &mut out),
            Action::Inventory => match state.held {
                Some(o) => out.extend(["You are carrying: a ", object(o), "."]),
                None => out.push_str("You are not carrying anything."),
            },
            Action::Help => match &voice.help {
                Help::Said(text) => out.push_str(text),
                Help::Usual => out.push_str(&help(voice.wording)),
                Help::Missing => out.push_str(NOTHING),
            },
            Action::Go(r) => {
                if voice.arrives_at_location {
                    out.extend(["You arrive at ", &self.places[self.receptacles[r].location], ". "]);
                } else {
                    out.extend(["You arrive at ", receptacle(r), ". "]);
                }
                self.contents(state, r, &mut out);
            }
            Action::Open(r) => {
                out.extend(["You open the ", receptacle(r), ". "]);
                self.contents(state, r, &mut out);
            }
            Action::Close(r) => out.extend(["You close the ", receptacle(r), "."]),
            Action::Take { object: o, from } => {
                out.extend(["You pick up the ", object(o), " from the ", receptacle(from), "."]);
            }
            Action::Move { object: o, to } => {
                let (verb, separator) = (voice.wording.verb(), voice.wording.separator());
                out.extend(["You ", verb, " the ", object(o), separator, "the ", receptacle(to), "."]);
            }
            Action::ExamineReceptacle(r) => self.contents(state, r, &mut out),
            Action::ExamineObject(o) => self.condition(state, o, &mut out),
            Action::Treat { how, object: o, with } => {
                out.extend(["You ", how.verb(), " the ", object(o), " using the ", receptacle(with), "."]);
            }
            Action::Use(o) => out.extend(["You turn on the ", object(o), "."]),
            Action::Slice { object: o, with } => {
                out.extend(["You sliced the ", object(o), " with the ", object(with), "."]);
            }
        }
        out
    }
}

/// The commands, one a line, the last with its line end.
fn help(wording: Wording) -> String {
    let put = format!("{} (object){}(receptacle):", wording.verb(), wording.separator());
    let commands = [
        ("look:                           ", "look around your current location"),
        ("inventory:                      ", "check your current inventory"),
        ("go to (receptacle):             ", "move to a receptacle"),
        ("open (receptacle):              ", "open a receptacle"),
        ("close (receptacle):             ", "close a receptacle"),
        ("take (object) from (receptacle):", "take an object from a receptacle"),
        (put.as_str(), "place an object in or on a receptacle"),
        ("examine (something):            ", "examine a receptacle or an object"),
        ("use (object):                   ", "use an object"),
        ("heat (object) with (receptacle):", "heat an object using a receptacle"),
        ("clean (object) with (receptacle):", "clean an object using a receptacle"),
        ("cool (object) with (receptacle):", "cool an object using a receptacle"),
        ("slice (object) with (object):   ", "slice an object using a sharp object"),
    ];
    let mut out = String::from("Available commands:\n");
    for (command, about) in commands {
        let gap = if command.len() > 32 { " " } else { "  " };
        out.extend(["  ", command, gap, about, "\n"]);
    }
    out
}

//! Three episodes to look at: the first success, the first failure, and the longest of the others.
//!
//! Invariants: which episodes are shown depends on their order alone; no more than a handful are ever held in memory;
//! an episode's middle is left out only where it is very long, and the page says how much.

use std::fmt::Write as _;

use crate::artifact::{Actor, Decoding, Episode};
use crate::eval::taxonomy::{Cause, Conduct, LOOP_AT};

use super::html::Text;
use super::number;

/// Turns shown of one episode: more than most step limits.
const TURNS: usize = 80;

/// An episode and the step it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub from: String,
    /// Number of its file among the inputs, line in the file.
    place: (usize, usize),
    pub episode: Episode,
}

/// Sees every episode and keeps those to show.
#[derive(Default)]
pub struct Picker {
    files: usize,
    success: Option<Shown>,
    failure: Option<Shown>,
    /// Three suffice: two of them may be shown for another reason.
    longest: Vec<Shown>,
}

impl Picker {
    /// Looks at one file's episodes.
    pub fn see(&mut self, from: &str, episodes: &[Episode]) {
        let file = self.files;
        self.files += 1;
        let shown = |line: usize, episode: &Episode| Shown {
            from: from.to_owned(),
            place: (file, line),
            episode: episode.clone(),
        };
        for (line, episode) in episodes.iter().enumerate() {
            let slot = if episode.success { &mut self.success } else { &mut self.failure };
            if slot.is_none() {
                *slot = Some(shown(line, episode));
            }
            let turns = episode.turns.len();
            let at = self.longest.iter().position(|s| s.episode.turns.len() < turns).unwrap_or(self.longest.len());
            if at < 3 {
                self.longest.insert(at, shown(line, episode));
                self.longest.truncate(3);
            }
        }
    }

    /// What to show, each with why.
    pub fn picked(self) -> Vec<(&'static str, Shown)> {
        let mut picked: Vec<(&'static str, Shown)> = Vec::new();
        picked.extend(self.success.map(|s| ("The first success", s)));
        picked.extend(self.failure.map(|s| ("The first failure", s)));
        for shown in self.longest {
            if picked.len() < 3 && picked.iter().all(|(_, other)| other.place != shown.place) {
                let why = if picked.len() == 2 { "The longest of the others" } else { "Another one" };
                picked.push((why, shown));
            }
        }
        picked
    }
}

/// One episode as HTML.
pub fn html(why: &str, shown: &Shown) -> String {
    let episode = &shown.episode;
    let task = &episode.task;
    let outcome = match Cause::of(episode, &Conduct::of(episode, LOOP_AT)) {
        None => "success".to_owned(),
        Some(cause) => format!("failure ({})", cause.name()),
    };
    let who = match (episode.actor, episode.decoding) {
        (Actor::Expert, _) => "the expert acted",
        (Actor::Random, _) => "random actions",
        (Actor::Policy, Some(Decoding::Admissible)) => "policy, held to admissible actions",
        (Actor::Policy, _) => "policy, free to say anything",
    };
    let invalid = episode.turns.iter().filter(|turn| turn.admissible == Some(false)).count();
    let mut out = format!(
        "<details class=\"episode\" open><summary><span class=\"why\">{why}</span> <span class=\"outcome {}\">{outcome}\
         </span> <span class=\"goal\">{}</span></summary>\n",
        if episode.success { "won" } else { "lost" },
        Text(&task.goal),
    );
    let _ = writeln!(
        out,
        "<p class=\"quiet\">{} · task {} · {} · {} · {who} · {} not admissible</p>",
        Text(&shown.from),
        Text(&task.id),
        Text(&task.kind),
        number::counted(episode.turns.len(), "action"),
        invalid,
    );
    let _ = writeln!(out, "<p class=\"observation\">{}</p>\n<ol class=\"turns\">", Text(&episode.start));
    let hidden = episode.turns.len().saturating_sub(TURNS);
    for (at, turn) in episode.turns.iter().enumerate() {
        if hidden > 0 && at == TURNS / 2 {
            let _ = writeln!(out, "<li class=\"cut\">{} not shown</li>", number::counted(hidden, "action"));
        }
        if (TURNS / 2..TURNS / 2 + hidden).contains(&at) {
            continue;
        }
        let (class, mark) = if turn.admissible != Some(false) {
            ("", "")
        } else {
            (" refused", " <span class=\"flag\">not admissible</span>")
        };
        let _ = writeln!(
            out,
            "<li value=\"{}\"><span class=\"action{class}\">{}</span>{mark}<span class=\"observation\">{}</span></li>",
            at + 1,
            Text(if turn.action.is_empty() { "(no action)" } else { &turn.action }),
            Text(&turn.observation),
        );
    }
    out.push_str("</ol></details>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::episode;

    fn of(id: &str, success: bool, turns: usize) -> Episode {
        episode(id, "look", success, &vec![("look", true, "a mug"); turns])
    }

    fn ids(files: &[&[Episode]]) -> Vec<(&'static str, String)> {
        let mut picker = Picker::default();
        files.iter().for_each(|file| picker.see("play", file));
        picker.picked().into_iter().map(|(why, s)| (why, s.episode.task.id)).collect()
    }

    #[test]
    fn the_first_success_the_first_failure_and_the_longest_other_are_shown() {
        let first = [of("a", false, 9), of("b", false, 8)];
        let second = [of("c", true, 7), of("d", true, 8), of("e", true, 2)];
        assert_eq!(
            ids(&[&first, &second]),
            [
                ("The first success", "c".to_owned()),
                ("The first failure", "a".to_owned()),
                ("The longest of the others", "b".to_owned()),
            ]
        );
    }

    #[test]
    fn without_failures_there_are_as_many_as_there_are() {
        assert_eq!(ids(&[&[of("a", true, 1), of("b", true, 2)]]).len(), 2);
        assert_eq!(ids(&[&[of("a", true, 1), of("b", true, 2), of("c", true, 3), of("d", true, 4)]]).len(), 3);
        assert!(ids(&[&[]]).is_empty());
    }

    #[test]
    fn refused_actions_are_marked_and_episode_text_is_inert() {
        let episode =
            episode("<i>", "look", false, &[("fly <script>alert(1)</script>", false, "</li><img src=x onerror=y>")]);
        let shown = Shown { from: "play".to_owned(), place: (0, 0), episode };
        let html = html("The first failure", &shown);
        assert!(html.contains("class=\"action refused\"") && html.contains("not admissible</span>"));
        assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("<i>"));
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    }

    #[test]
    fn a_very_long_episode_says_how_much_is_left_out() {
        let shown = Shown { from: "play".to_owned(), place: (0, 0), episode: of("a", false, TURNS + 7) };
        let html = html("x", &shown);
        assert!(html.contains("7 actions not shown"));
        assert_eq!(html.matches("<li value=").count(), TURNS);
        assert!(html.contains(&format!("<li value=\"{}\">", TURNS + 7)));
    }
}

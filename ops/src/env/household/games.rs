//! ALFWorld's games: the folders of its release, or fewer of them.
//!
//! 1. [`Games`]: which games there are, by split; found when a split is first asked for, without reading problems.
//! 2. [`read_game`]: one game, of a `game.tw-pddl` or an `initial_state.pddl`.
//!
//! Invariants: games are listed in the order of their names, whatever order the file system has; a task is named by its
//! path below the data, so its name is the same wherever the data lie; what is passed over is counted.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::OnceLock;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::{HouseholdTask, Settings, TaskKind, Wording, grammar, pddl};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Suite, no_split};

/// The file that the original plays.
const GAME: &str = "game.tw-pddl";
const PROBLEM: &str = "initial_state.pddl";
const TRAJECTORY: &str = "traj_data.json";

/// By index: train, id, ood. Names of recipes, and of folders.
const NAMES: [(&str, &str); 3] = [("train", "train"), ("id", "valid_seen"), ("ood", "valid_unseen")];

/// Bytes of a file that are read at most; real ones have a tenth of a megabyte, trajectories up to one.
const LONGEST: u64 = 32 << 20;

/// Folders between the data and a game at most: the split, the task, the trial, and one more.
const DEEPEST: usize = 4;

/// One game as its file has it.
pub struct Game {
    pub task: HouseholdTask,
    /// Whether its maker found it solvable; `None` where the file does not say.
    pub solvable: Option<bool>,
    /// Whether the file has words for commands, replies and task; an `initial_state.pddl` has none.
    pub worded: bool,
}

#[derive(Deserialize)]
struct GameFile {
    pddl_domain: String,
    grammar: String,
    pddl_problem: String,
    solvable: Option<bool>,
}

/// Reads a game from the text of a `game.tw-pddl`, or of an `initial_state.pddl`: told apart by what it begins with.
///
/// # Errors
/// Says what of it is no such game.
pub fn read_game(text: &str, split: &str) -> Result<Game, String> {
    if !text.trim_start().starts_with('{') {
        let problem = pddl::read(text).map_err(|e| e.to_string())?;
        let line = problem.goal.text();
        let task = HouseholdTask::of(problem, split, line, Wording::Move.into(), super::Expert::Search);
        return Ok(Game { task, solvable: None, worded: false });
    }
    let file: GameFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let actions = pddl::actions(&file.pddl_domain).map_err(|e| format!("`pddl_domain`, {e}"))?;
    let help = grammar::has_help(&actions).map_err(|e| format!("`pddl_domain`: {e}"))?;
    let grammar = grammar::read(&file.grammar, help).map_err(|e| format!("`grammar`: {e}"))?;
    let problem = pddl::read(&file.pddl_problem).map_err(|e| format!("`pddl_problem`, {e}"))?;
    let task = HouseholdTask::of(problem, split, grammar.task, grammar.voice, super::Expert::Search);
    Ok(Game { task, solvable: file.solvable, worded: true })
}

/// Reads a file that cannot be larger than [`LONGEST`].
pub(crate) fn text_of(path: &Utf8Path) -> Result<String, EnvError> {
    let unreadable = |e: std::io::Error| EnvError::unusable(format!("cannot read `{path}`: {e}"));
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(EnvError::unusable(format!("`{path}` has more than {} MiB, expected a game", LONGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| EnvError::unusable(format!("`{path}` is not UTF-8, expected text")))
}

/// What of `traj_data.json` matters here.
#[derive(Deserialize)]
struct Trajectory {
    task_type: String,
    #[serde(default)]
    turk_annotations: Annotations,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(default)]
    anns: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    task_desc: String,
}

fn trajectory(folder: &Utf8Path) -> Result<Trajectory, EnvError> {
    let path = folder.join(TRAJECTORY);
    serde_json::from_str(&text_of(&path)?).map_err(|e| EnvError::unusable(format!("cannot read `{path}`: {e}")))
}

/// Games that are not listed, as in the original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Skipped {
    movable: usize,
    sliced: usize,
    other_kind: usize,
    no_game: usize,
    unsolvable: usize,
}

impl Skipped {
    fn notes(&self) -> Vec<String> {
        let why = [
            (self.movable, "of movable receptacles"),
            (self.sliced, "of sliced objects"),
            (self.other_kind, "of other kinds of task"),
            (self.no_game, "without `game.tw-pddl`"),
            (self.unsolvable, "not marked as solvable"),
        ];
        let told = why.into_iter().filter(|(count, _)| *count > 0);
        told.map(|(count, what)| format!("passed over {count} {what}")).collect()
    }
}

/// A game in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The game's folder below the data.
    id: String,
}

/// What a split has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listing {
    games: Vec<Entry>,
    skipped: Skipped,
}

enum Layout {
    /// A folder with a folder for each split.
    Splits([bool; 3]),
    /// A folder of games: every split has them all.
    Folder,
    /// One game: this file.
    File(Utf8PathBuf),
}

/// Games of the original.
pub(super) struct Games {
    settings: Settings,
    /// What ids begin below.
    root: Utf8PathBuf,
    layout: Layout,
    listings: [OnceLock<Listing>; 3],
}

impl fmt::Debug for Games {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Games({})", self.root)
    }
}

impl Games {
    /// Finds out what `data` is: the release (or the folder that holds it), a split, a game's folder, a file.
    ///
    /// # Errors
    /// There is no such file, or no game in it.
    pub fn find(settings: Settings, data: &Utf8Path) -> Result<Games, EnvError> {
        let games = |root: &Utf8Path, layout| {
            Ok(Games { settings: settings.clone(), root: root.to_owned(), layout, listings: Default::default() })
        };
        if data.is_file() {
            return games(data.parent().unwrap_or(Utf8Path::new("")), Layout::File(data.to_owned()));
        }
        let (folders, files) = entries(data)?;
        if let Some(file) = [GAME, PROBLEM].into_iter().find(|name| files.iter().any(|file| file == name)) {
            return games(data, Layout::File(data.join(file)));
        }
        let splits = |folder: &Utf8Path| NAMES.map(|(_, name)| folder.join(name).is_dir());
        if splits(data).contains(&true) {
            return games(data, Layout::Splits(splits(data)));
        }
        let release = |name: &&String| name.starts_with("json_") && splits(&data.join(name)).contains(&true);
        let releases: Vec<&String> = folders.iter().filter(release).collect();
        match releases[..] {
            [] => games(data, Layout::Folder),
            [one] => games(&data.join(one), Layout::Splits(splits(&data.join(one)))),
            [first, second, ..] => Err(EnvError::with_help(
                format!("`{data}` holds several releases: `{first}` and `{second}`"),
                "name one of them as the data",
            )),
        }
    }

    fn split(&self, name: &str) -> Result<usize, EnvError> {
        let index = NAMES.iter().position(|(split, folder)| [*split, *folder].contains(&name));
        match (index, &self.layout) {
            (Some(index), Layout::Splits(there)) if !there[index] => Err(EnvError::with_help(
                format!("the split `{name}` has no folder `{}` in `{}`", NAMES[index].1, self.root),
                format!("there are `{}`", self.splits().join("`, `")),
            )),
            (Some(index), _) => Ok(index),
            (None, _) => Err(no_split(self, name)),
        }
    }

    fn listing(&self, split: usize) -> Result<&Listing, EnvError> {
        if let Some(known) = self.listings[split].get() {
            return Ok(known);
        }
        let mut listing = Listing::default();
        match &self.layout {
            Layout::Splits(_) => self.walk(NAMES[split].1, DEEPEST - 1, &mut listing)?,
            Layout::Folder => self.walk("", DEEPEST, &mut listing)?,
            Layout::File(_) => listing.games.push(Entry { id: String::new() }),
        }
        if listing.games.is_empty() && listing.skipped == Skipped::default() {
            return Err(EnvError::with_help(
                format!("there are no games in `{}`", self.root.join(self.folder(split))),
                "expected ALFWorld's `json_2.1.1`, one of its splits, one game's folder, a `game.tw-pddl` or an `initial_state.pddl`",
            ));
        }
        Ok(self.listings[split].get_or_init(|| listing))
    }

    fn folder(&self, split: usize) -> &'static str {
        if matches!(self.layout, Layout::Splits(_)) { NAMES[split].1 } else { "" }
    }

    /// Lists the games below a folder, by name.
    fn walk(&self, below: &str, depth: usize, listing: &mut Listing) -> Result<(), EnvError> {
        let (folders, files) = entries(&self.root.join(below))?;
        let has = |name: &str| files.iter().any(|file| file == name);
        if has(GAME) || has(TRAJECTORY) {
            return self.judge(below, has(GAME), has(TRAJECTORY), listing);
        }
        if depth > 0 {
            for name in folders {
                let below = if below.is_empty() { name } else { format!("{below}/{name}") };
                self.walk(&below, depth - 1, listing)?;
            }
        }
        Ok(())
    }

    /// Lists a game, or passes over it as the original does.
    fn judge(&self, id: &str, game: bool, trajectory: bool, listing: &mut Listing) -> Result<(), EnvError> {
        let skipped = &mut listing.skipped;
        if id.contains("movable") {
            skipped.movable += 1;
        } else if id.contains("Sliced") {
            skipped.sliced += 1;
        } else if !self.of_a_kind(id, trajectory)? {
            skipped.other_kind += 1;
        } else if !game {
            skipped.no_game += 1;
        } else if !solvable(&self.root.join(id).join(GAME))? {
            skipped.unsolvable += 1;
        } else {
            listing.games.push(Entry { id: id.to_owned() });
        }
        Ok(())
    }

    /// Whether a game is of a kind that is asked for: by the name of its folder, else by its trajectory, else by its goal.
    fn of_a_kind(&self, id: &str, has_trajectory: bool) -> Result<bool, EnvError> {
        let wanted = self.settings.kinds();
        let kind_of = |name: &str| TaskKind::ALL.into_iter().find(|kind| kind.name() == name);
        let named = id.split('/').filter_map(|part| kind_of(part.split('-').next().unwrap_or_default())).next();
        if let Some(kind) = named {
            return Ok(wanted.contains(&kind));
        }
        let folder = self.root.join(id);
        if has_trajectory {
            return Ok(kind_of(&trajectory(&folder)?.task_type).is_some_and(|kind| wanted.contains(&kind)));
        }
        Ok(wanted.len() == TaskKind::ALL.len() || wanted.contains(&read(&folder.join(GAME), "train")?.task.goal().kind))
    }

    /// Reads a game by its id.
    fn task(&self, split: usize, id: &str) -> Result<HouseholdTask, EnvError> {
        let path = match &self.layout {
            Layout::File(path) => path.clone(),
            _ => self.root.join(id).join(GAME),
        };
        let mut task = read(&path, NAMES[split].0)?.task;
        if !id.is_empty() {
            id.clone_into(&mut task.task.id);
        }
        if let Some(n) = self.settings.annotation {
            let folder = path.parent().unwrap_or(Utf8Path::new(""));
            let annotations = trajectory(folder)?.turk_annotations.anns;
            let Some(annotation) = annotations.get(n as usize) else {
                let (path, count) = (folder.join(TRAJECTORY), annotations.len());
                return Err(EnvError::with_help(
                    format!("`{path}` has {count} descriptions, `annotation` {n} is not there"),
                    "they are counted from 0; without `annotation` the game's own line is taken",
                ));
            };
            // The original puts a full stop after whatever people wrote.
            task.task.goal = format!("{}.", annotation.task_desc);
        }
        task.expert = self.settings.expert;
        Ok(task)
    }
}

impl Suite for Games {
    fn name(&self) -> &'static str {
        "household"
    }

    fn splits(&self) -> Vec<String> {
        let there = |index: usize| !matches!(&self.layout, Layout::Splits(there) if !there[index]);
        (0..3).filter(|&index| there(index)).map(|index| NAMES[index].0.to_owned()).collect()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, EnvError> {
        Ok(Some(self.listing(self.split(split)?)?.games.len()))
    }

    fn passed_over(&self, split: &str) -> Result<Vec<String>, EnvError> {
        Ok(self.listing(self.split(split)?)?.skipped.notes())
    }

    fn open(&self, split: &str, index: usize, _seed: u64) -> Result<Box<dyn Env>, EnvError> {
        let split_index = self.split(split)?;
        let games = &self.listing(split_index)?.games;
        let Some(entry) = games.get(index) else {
            return Err(EnvError::unusable(format!(
                "the split `{split}` has {} games, no number {index}",
                games.len()
            )));
        };
        Ok(Box::new(self.task(split_index, &entry.id)?.play()))
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
        let split = self.split(&task.split)?;
        let one = matches!(self.layout, Layout::File(_));
        // A name out of an episode file is not trusted to stay inside the data.
        let inside = !task.id.is_empty() && task.id.split('/').all(|part| !["", ".", ".."].contains(&part));
        let below = self.folder(split);
        let here = below.is_empty() || task.id.split('/').next() == Some(below);
        let listed = inside && here && self.root.join(&task.id).join(GAME).is_file();
        if !(one || listed) {
            return Err(EnvError::unusable(format!("there is no game `{}` in `{}`", task.id, self.root)));
        }
        let opened = self.task(split, if one { "" } else { &task.id })?;
        if opened.task() == task {
            return Ok(Box::new(opened.play()));
        }
        let (what, found) =
            if opened.task().id == task.id { ("goal", &opened.task().goal) } else { ("id", &opened.task().id) };
        Err(EnvError::with_help(
            format!("the task `{}` is another one in `{}`: its {what} is `{found}`", task.id, self.root),
            "take the data and the `world` that the episodes were played in",
        ))
    }
}

fn read(path: &Utf8Path, split: &str) -> Result<Game, EnvError> {
    read_game(&text_of(path)?, split).map_err(|e| EnvError::unusable(format!("cannot read the game `{path}`: {e}")))
}

/// Names of folders and of files in a folder, each sorted.
fn entries(folder: &Utf8Path) -> Result<(Vec<String>, Vec<String>), EnvError> {
    let unreadable = |e: std::io::Error| EnvError::unusable(format!("cannot read games from `{folder}`: {e}"));
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in folder.read_dir_utf8().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let mut kind = entry.file_type().map_err(unreadable)?;
        if kind.is_symlink() {
            kind = entry.path().metadata().map_err(unreadable)?.file_type();
        }
        let names = if kind.is_dir() { &mut folders } else { &mut files };
        names.push(entry.file_name().to_owned());
    }
    folders.sort_unstable();
    files.sort_unstable();
    Ok((folders, files))
}

/// Bytes from the end of a game file in which `solvable` is looked for before all of it is read: the maker writes it
/// after the problem, before a walkthrough of some dozen commands.
const TAIL: u64 = 8 << 10;

/// Whether a game file says that it can be solved.
fn solvable(path: &Utf8Path) -> Result<bool, EnvError> {
    #[derive(Deserialize)]
    struct Mark {
        solvable: Option<bool>,
    }
    let unreadable = |e: std::io::Error| EnvError::unusable(format!("cannot read `{path}`: {e}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let length = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).map_err(unreadable)?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).map_err(unreadable)?;
    if let Some(value) = value_in(&tail) {
        return Ok(value);
    }
    let mark: Mark = serde_json::from_str(&text_of(path)?)
        .map_err(|e| EnvError::unusable(format!("cannot read the game `{path}`: {e}")))?;
    Ok(mark.solvable.unwrap_or(false))
}

/// The value after the key `solvable`, where both stand in the tail. Inside a text the quotes would have backslashes.
fn value_in(tail: &[u8]) -> Option<bool> {
    const KEY: &[u8] = b"\"solvable\"";
    let at = tail.windows(KEY.len()).rposition(|window| window == KEY)?;
    let before = tail[..at].trim_ascii_end().last()?;
    let rest = tail[at + KEY.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    match before {
        b',' | b'{' if rest.starts_with(b"true") => Some(true),
        b',' | b'{' if rest.starts_with(b"false") || rest.starts_with(b"null") => Some(false),
        _ => None,
    }
}

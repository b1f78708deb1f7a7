//! Reads problems in the form of ALFWorld's `initial_state.pddl`.
//!
//! 1. Text to nested lists, with lines.
//! 2. Declarations and facts.
//! 3. Entities, numbered as the original does.
//! 4. The goal, one of six.
//!
//! Invariants: names are lower-cased first, as the original engine does; what the reader does not understand it
//! refuses, naming the line.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::goal::{Goal, TaskKind};
use super::world::{Abilities, LIMIT, Object, Receptacle, Set, State, World, only};

/// Why a problem could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {what}")]
pub struct ProblemError {
    /// From 1.
    pub line: usize,
    pub what: String,
}

type Result<T> = std::result::Result<T, ProblemError>;

fn err<T>(line: usize, what: impl Into<String>) -> Result<T> {
    Err(ProblemError { line, what: what.into() })
}

/// A problem as read.
#[derive(Debug)]
pub(super) struct Problem {
    /// `plan_trial_...`
    pub name: String,
    pub world: World,
    pub start: State,
    pub goal: Goal,
}

/// An atom or a list of expressions.
#[derive(Clone, Debug)]
enum Expr {
    Atom(usize, String),
    List(usize, Vec<Expr>),
}

impl Expr {
    fn line(&self) -> usize {
        match self {
            Expr::Atom(line, _) | Expr::List(line, _) => *line,
        }
    }

    fn atom(&self) -> Result<&str> {
        match self {
            Expr::Atom(_, text) => Ok(text),
            Expr::List(line, _) => err(*line, "found a list, expected a name"),
        }
    }

    fn list(&self) -> Result<&[Expr]> {
        match self {
            Expr::List(_, items) => Ok(items),
            Expr::Atom(line, text) => err(*line, format!("found `{text}`, expected a list in parentheses")),
        }
    }

    /// `(head rest ...)`
    fn call(&self) -> Result<(&str, &[Expr])> {
        match self.list()?.split_first() {
            Some((head, rest)) => Ok((head.atom()?, rest)),
            None => err(self.line(), "found `()`, expected a list that starts with a name"),
        }
    }
}

fn parse(text: &str) -> Result<Expr> {
    let mut open: Vec<(usize, Vec<Expr>)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let code = line.split(';').next().unwrap_or_default().to_lowercase();
        for word in code.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
            let done = match word {
                "(" => {
                    open.push((number, Vec::new()));
                    continue;
                }
                ")" => match open.pop() {
                    Some((line, items)) => Expr::List(line, items),
                    None => return err(number, "found `)` without its `(`"),
                },
                atom => Expr::Atom(number, atom.to_owned()),
            };
            match open.last_mut() {
                Some((_, items)) => items.push(done),
                None if matches!(done, Expr::List(..)) => return Ok(done),
                None => return err(number, format!("found `{word}`, expected `(define (problem ...) ...)`")),
            }
        }
    }
    match open.last() {
        Some((line, _)) => err(*line, "found `(` without its `)`"),
        None => err(1, "found nothing, expected `(define (problem ...) ...)`"),
    }
}

/// Predicates that may stand in `:init`, with their numbers of arguments. Those without effect on play are read too.
const PREDICATES: [(&str, usize); 33] = [
    ("atlocation", 2),
    ("receptacleatlocation", 2),
    ("objectatlocation", 2),
    ("openable", 1),
    ("opened", 1),
    ("inreceptacle", 2),
    ("isreceptacleobject", 1),
    ("inreceptacleobject", 2),
    ("isreceptacleobjectfull", 1),
    ("wasinreceptacle", 2),
    ("checked", 1),
    ("examined", 1),
    ("receptacletype", 2),
    ("cancontain", 2),
    ("objecttype", 2),
    ("holds", 2),
    ("holdsany", 1),
    ("holdsanyreceptacleobject", 1),
    ("full", 1),
    ("isclean", 1),
    ("cleanable", 1),
    ("ishot", 1),
    ("heatable", 1),
    ("iscool", 1),
    ("coolable", 1),
    ("pickupable", 1),
    ("moveable", 1),
    ("toggleable", 1),
    ("ison", 1),
    ("istoggled", 1),
    ("sliceable", 1),
    ("issliced", 1),
    ("=", 2),
];

/// Declared types by name, and facts by predicate.
struct Sections<'a> {
    name: String,
    types: BTreeMap<&'a str, &'a str>,
    facts: BTreeMap<&'a str, Vec<(usize, Vec<&'a str>)>>,
    goal: &'a Expr,
    /// Line of `:init`.
    init: usize,
}

impl<'a> Sections<'a> {
    fn of(problem: &'a Expr) -> Result<Sections<'a>> {
        let (head, sections) = problem.call()?;
        if head != "define" {
            return err(problem.line(), format!("found `({head} ...)`, expected `(define (problem ...) ...)`"));
        }
        let mut name = String::new();
        let mut types = BTreeMap::new();
        let mut facts: BTreeMap<&str, Vec<(usize, Vec<&str>)>> = BTreeMap::new();
        let (mut goal, mut init) = (None, problem.line());
        for section in sections {
            match section.call()? {
                ("problem", rest) => name = rest.first().map_or(Ok(""), Expr::atom)?.to_owned(),
                (":domain", rest) => {
                    let domain = rest.first().map_or(Ok(""), Expr::atom)?;
                    if domain != "alfred" {
                        return err(section.line(), format!("the problem is of domain `{domain}`, expected `alfred`"));
                    }
                }
                (":objects", rest) => types = declarations(rest)?,
                (":init", rest) => {
                    init = section.line();
                    for fact in rest {
                        let (predicate, arguments) = fact.call()?;
                        let Some(&(_, arity)) = PREDICATES.iter().find(|(known, _)| *known == predicate) else {
                            return err(fact.line(), format!("`{predicate}` is no predicate of domain `alfred`"));
                        };
                        if predicate == "=" {
                            continue; // distances: the planner's, not the game's
                        }
                        if arguments.len() != arity {
                            let found = arguments.len();
                            return err(
                                fact.line(),
                                format!("`{predicate}` has {found} arguments here, expected {arity}"),
                            );
                        }
                        let arguments = arguments.iter().map(Expr::atom).collect::<Result<Vec<_>>>()?;
                        facts.entry(predicate).or_default().push((fact.line(), arguments));
                    }
                }
                (":goal", rest) => match rest {
                    [one] => goal = Some(one),
                    _ => return err(section.line(), "`:goal` has no condition or several, expected one"),
                },
                (":metric" | ":requirements", _) => {}
                (other, _) => return err(section.line(), format!("`{other}` is no section of a problem")),
            }
        }
        match goal {
            Some(goal) => Ok(Sections { name, types, facts, goal, init }),
            None => err(problem.line(), "the problem has no `:goal`"),
        }
    }

    fn all(&self, predicate: &str) -> impl Iterator<Item = (usize, &[&'a str])> {
        let facts = self.facts.get(predicate).map_or(&[][..], Vec::as_slice);
        facts.iter().map(|(line, arguments)| (*line, arguments.as_slice()))
    }
}

/// `a b - type c - type`
fn declarations(items: &[Expr]) -> Result<BTreeMap<&str, &str>> {
    let mut types = BTreeMap::new();
    let mut untyped = Vec::new();
    let mut items = items.iter();
    while let Some(item) = items.next() {
        let name = item.atom()?;
        if name != "-" {
            untyped.push(name);
            continue;
        }
        let Some(of) = items.next() else {
            return err(item.line(), "found `-` at the end of `:objects`, expected a type after it");
        };
        let of = of.atom()?;
        types.extend(untyped.drain(..).map(|name| (name, of)));
    }
    Ok(types)
}

/// Indices of the entities that occur in facts, by id, each kind in the order of ids; and their names.
struct Entities<'a> {
    index: BTreeMap<&'a str, usize>,
    ids: BTreeMap<&'static str, Vec<&'a str>>,
    names: BTreeMap<&'a str, (String, usize)>,
    /// The first line that uses an id.
    used: BTreeMap<&'a str, usize>,
}

impl<'a> Entities<'a> {
    fn of(sections: &Sections<'a>) -> Result<Entities<'a>> {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        for (line, arguments) in sections.facts.values().flatten() {
            for argument in arguments {
                if !sections.types.contains_key(argument) {
                    return err(*line, format!("`{argument}` is not declared in `:objects`"));
                }
            }
            for argument in arguments {
                let first = used.entry(argument).or_insert(*line);
                *first = (*line).min(*first);
            }
        }
        let mut found =
            Entities { index: BTreeMap::new(), ids: BTreeMap::new(), names: BTreeMap::new(), used: BTreeMap::new() };
        let mut classes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (&id, &line) in &used {
            let kind = match sections.types[id] {
                "object" => "object",
                "receptacle" => "receptacle",
                "location" => "location",
                _ => continue,
            };
            let Some((class, _)) = id.split_once("_bar_") else {
                return err(line, format!("`{id}` has no `_bar_` after its class"));
            };
            let class = if id.contains("basin") { format!("{class}basin") } else { class.to_owned() };
            classes.entry(class).or_default().push(id);
            let ids = found.ids.entry(kind).or_default();
            found.index.insert(id, ids.len());
            ids.push(id);
            if ids.len() > LIMIT {
                return err(
                    line,
                    format!("the problem has more than {LIMIT} of kind `{kind}`, expected at most as many"),
                );
            }
        }
        // The original gives numbers out from the highest, in the order of ids.
        for (class, ids) in classes {
            for (index, id) in ids.iter().enumerate() {
                found.names.insert(id, (class.clone(), ids.len() - index));
            }
        }
        found.used = used;
        Ok(found)
    }

    fn ids(&self, kind: &str) -> &[&'a str] {
        self.ids.get(kind).map_or(&[], Vec::as_slice)
    }

    fn name(&self, id: &str) -> String {
        let (class, number) = &self.names[id];
        format!("{class} {number}")
    }
}

/// `mugtype` -> `mug`
fn class_of(line: usize, of: &str) -> Result<String> {
    match of.strip_suffix("type") {
        Some(class) => Ok(class.to_owned()),
        None => err(line, format!("type `{of}` does not end in `Type`")),
    }
}

/// Reads a problem.
pub(super) fn read(text: &str) -> Result<Problem> {
    let expr = parse(text)?;
    let sections = Sections::of(&expr)?;
    let entities = Entities::of(&sections)?;
    // An argument of the wrong kind has no index of the kind asked for.
    let find = |kind: &str, line: usize, id: &str| match entities.index.get(id) {
        Some(&index) if sections.types[id] == kind => Ok(index),
        _ => err(line, format!("`{id}` is not declared as `{kind}`")),
    };
    let set_of = |predicate: &str, kind: &str| -> Result<Set> {
        sections.all(predicate).try_fold(0, |set, (line, args)| Ok(set | only(find(kind, line, args[0])?)))
    };
    let receptacle_ids = entities.ids("receptacle");
    let object_ids = entities.ids("object");
    let location_ids = entities.ids("location");

    let mut receptacle_class = vec![None; receptacle_ids.len()];
    for (line, args) in sections.all("receptacletype") {
        receptacle_class[find("receptacle", line, args[0])?] = Some(class_of(line, args[1])?);
    }
    let mut object_class = vec![None; object_ids.len()];
    for (line, args) in sections.all("objecttype") {
        object_class[find("object", line, args[0])?] = Some(class_of(line, args[1])?);
    }
    let mut location = vec![None; receptacle_ids.len()];
    for (line, args) in sections.all("receptacleatlocation") {
        location[find("receptacle", line, args[0])?] = Some(find("location", line, args[1])?);
    }
    let openable = set_of("openable", "receptacle")?;
    let mut receptacles = Vec::new();
    for (r, id) in receptacle_ids.iter().enumerate() {
        let (Some(class), Some(location)) = (receptacle_class[r].take(), location[r]) else {
            return err(
                entities.used[id],
                format!("receptacle `{id}` has no `receptacleType` or no `receptacleAtLocation`"),
            );
        };
        let openable = openable >> r & 1 == 1;
        receptacles.push(Receptacle { name: entities.name(id), class, location, openable });
    }

    let holders = set_of("isreceptacleobject", "object")?;
    let mut contents = vec![0; object_ids.len()];
    for (line, args) in sections.all("inreceptacleobject") {
        contents[find("object", line, args[1])?] |= only(find("object", line, args[0])?);
    }
    let mut objects = Vec::new();
    for (o, id) in object_ids.iter().enumerate() {
        let Some(class) = object_class[o].take() else {
            return err(entities.used[id], format!("object `{id}` has no `objectType`"));
        };
        let contents = (holders >> o & 1 == 1).then_some(contents[o]);
        objects.push(Object { name: entities.name(id), class, contents });
    }

    let knives = ["knife", "butterknife"];
    let abilities = Abilities {
        pickupable: set_of("pickupable", "object")?,
        cleanable: set_of("cleanable", "object")?,
        heatable: set_of("heatable", "object")?,
        coolable: set_of("coolable", "object")?,
        toggleable: set_of("toggleable", "object")?,
        sliceable: set_of("sliceable", "object")?,
        sharp: (0..objects.len()).filter(|&o| knives.contains(&objects[o].class.as_str())).fold(0, |s, o| s | only(o)),
    };
    let mut allowed: BTreeSet<(String, String)> = BTreeSet::new();
    for (line, args) in sections.all("cancontain") {
        allowed.insert((class_of(line, args[0])?, class_of(line, args[1])?));
    }
    let accepts = receptacles.iter().map(|receptacle| {
        let fits = |o: &usize| allowed.contains(&(receptacle.class.clone(), objects[*o].class.clone()));
        (0..objects.len()).filter(fits).fold(0, |set, o| set | only(o))
    });
    let accepts = accepts.collect();
    let numbers = location_ids.iter().map(|id| entities.names[id].1).collect();

    let mut at = None;
    for (line, args) in sections.all("atlocation") {
        at = Some(find("location", line, args[1])?);
    }
    let Some(at) = at else { return err(sections.init, "no `atLocation` says where the agent is") };
    let mut held = None;
    for (line, args) in sections.all("holds") {
        held = Some(find("object", line, args[1])?);
    }
    let mut start = State {
        at,
        held,
        opened: set_of("opened", "receptacle")?,
        inside: vec![0; receptacles.len()],
        left: vec![0; receptacles.len()],
        lying: vec![0; location_ids.len()],
        clean: set_of("isclean", "object")?,
        hot: set_of("ishot", "object")?,
        cool: set_of("iscool", "object")?,
        sliced: set_of("issliced", "object")?,
        toggled: set_of("istoggled", "object")?,
    };
    for (line, args) in sections.all("inreceptacle") {
        start.inside[find("receptacle", line, args[1])?] |= only(find("object", line, args[0])?);
    }
    for (line, args) in sections.all("objectatlocation") {
        start.lying[find("location", line, args[1])?] |= only(find("object", line, args[0])?);
    }
    let goal = goal(sections.goal)?;
    let world = World::new(receptacles, objects, abilities, accepts, numbers);
    Ok(Problem { name: sections.name, world, start, goal })
}

/// The atoms of a goal, whatever their nesting: every condition of the six goals is a conjunction under `exists`.
fn atoms<'a>(expr: &'a Expr, found: &mut Vec<(usize, &'a str, Vec<&'a str>)>) -> Result<()> {
    match expr.call()? {
        ("and", rest) => rest.iter().try_for_each(|part| atoms(part, found)),
        ("exists", [_, condition]) => atoms(condition, found),
        ("not", [inner]) if matches!(inner.call()?, ("=", _)) => Ok(()),
        (predicate @ ("exists" | "not" | "or" | "forall" | "when"), _) => {
            err(expr.line(), format!("the goal has a `{predicate}` that none of the six tasks has"))
        }
        (predicate, rest) => {
            let arguments = rest.iter().map(Expr::atom).collect::<Result<Vec<_>>>()?;
            found.push((expr.line(), predicate, arguments));
            Ok(())
        }
    }
}

fn goal(expr: &Expr) -> Result<Goal> {
    let mut found = Vec::new();
    atoms(expr, &mut found)?;
    let mut kind = TaskKind::PickAndPlaceSimple;
    let mut class_by_variable: BTreeMap<&str, String> = BTreeMap::new();
    let (mut held, mut lit, mut placed, mut place) = (None, None, BTreeSet::new(), None);
    for (line, predicate, args) in &found {
        match (*predicate, args.as_slice()) {
            ("objecttype", [variable, class]) => {
                class_by_variable.insert(*variable, class_of(*line, class)?);
            }
            ("receptacletype", [_, class]) => place = Some(class_of(*line, class)?),
            ("inreceptacle", [variable, _]) => {
                placed.insert(*variable);
            }
            ("holds", [_, variable]) => held = Some(*variable),
            ("istoggled", [variable]) => lit = Some(*variable),
            ("isclean", [_]) => kind = TaskKind::PickCleanThenPlaceInRecep,
            ("ishot", [_]) => kind = TaskKind::PickHeatThenPlaceInRecep,
            ("iscool", [_]) => kind = TaskKind::PickCoolThenPlaceInRecep,
            ("cleanable" | "heatable" | "coolable" | "toggleable" | "pickupable", [_]) => {}
            ("atlocation" | "receptacleatlocation" | "objectatlocation", [_, _]) => {}
            _ => return err(*line, format!("the goal uses `{predicate}` in a way that none of the six tasks does")),
        }
    }
    let class = |variable: Option<&str>| variable.and_then(|v| class_by_variable.get(v).cloned());
    let (object, place) = match (held, lit) {
        (Some(held), Some(lit)) => {
            kind = TaskKind::LookAtObjInLight;
            (class(Some(held)), class(Some(lit)))
        }
        _ => {
            if placed.len() > 1 {
                kind = TaskKind::PickTwoObjAndPlace;
            }
            (class(placed.first().copied()), place)
        }
    };
    match (object, place) {
        (Some(object), Some(place)) => Ok(Goal { kind, object, place }),
        _ => err(expr.line(), "the goal names no object class or no receptacle class"),
    }
}

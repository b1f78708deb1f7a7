//! Reads problems in the form of ALFWorld's `initial_state.pddl`.
//!
//! 1. Text to nested lists, with lines.
//! 2. Declarations and facts.
//! 3. Entities, numbered as the original does.
//! 4. The goal, one of six.
//!
//! Invariants: names are lower-cased first, as the original engine does; what the reader does not understand it
//! refuses, naming the line; nesting is bounded, so no text overflows the stack.

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

/// How deep parentheses may nest: four times what ALFWorld's domain and goals need.
const DEEPEST: usize = 64;

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
                "(" if open.len() == DEEPEST => {
                    return err(number, format!("parentheses nest deeper than {DEEPEST}, expected at most as deep"));
                }
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

/// The names of a domain's actions, lower-cased.
pub(super) fn actions(domain: &str) -> Result<Vec<String>> {
    let expr = parse(domain)?;
    let (head, sections) = expr.call()?;
    if head != "define" {
        return err(expr.line(), format!("found `({head} ...)`, expected `(define (domain ...) ...)`"));
    }
    let mut names = Vec::new();
    for section in sections {
        if let (":action", rest) = section.call()? {
            match rest.first() {
                Some(name) => names.push(name.atom()?.to_owned()),
                None => return err(section.line(), "an `:action` has no name"),
            }
        }
    }
    Ok(names)
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
    // PDDL's default
    types.extend(untyped.into_iter().map(|name| (name, "object")));
    Ok(types)
}

/// Indices of the entities that occur in facts, by id, each kind in the order of ids; and their names.
struct Entities<'a> {
    index: BTreeMap<&'a str, usize>,
    ids: BTreeMap<&'static str, Vec<&'a str>>,
    /// Class and number; no number for an id without coordinates, whose class alone is its name.
    names: BTreeMap<&'a str, (String, usize)>,
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
        let mut found = Entities { index: BTreeMap::new(), ids: BTreeMap::new(), names: BTreeMap::new() };
        let mut classes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (&id, &line) in &used {
            let kind = match sections.types[id] {
                "object" => "object",
                "receptacle" => "receptacle",
                "location" => "location",
                _ => continue,
            };
            match id.split_once("_bar_") {
                Some((class, _)) if id.contains("basin") => {
                    classes.entry(format!("{class}basin")).or_default().push(id)
                }
                Some((class, _)) => classes.entry(class.to_owned()).or_default().push(id),
                None => drop(found.names.insert(id, (id.to_owned(), 0))),
            }
            let ids = found.ids.entry(kind).or_default();
            found.index.insert(id, ids.len());
            ids.push(id);
            if ids.len() > LIMIT && kind != "location" {
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
        Ok(found)
    }

    fn ids(&self, kind: &str) -> &[&'a str] {
        self.ids.get(kind).map_or(&[], Vec::as_slice)
    }

    /// `mug 1`; `mug ` where the original finds no number.
    fn name(&self, id: &str) -> String {
        match &self.names[id] {
            (class, 0) => format!("{class} "),
            (class, number) => format!("{class} {number}"),
        }
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
    let set_of = |predicate: &str| -> Result<Set> {
        sections.all(predicate).try_fold(0, |set, (line, args)| Ok(set | only(find("object", line, args[0])?)))
    };
    // What a predicate says of each entity of a kind; saying two things is refused.
    let told = |predicate: &str, kind: &str| -> Result<Vec<Option<(usize, &str)>>> {
        let mut told = vec![None; entities.ids(kind).len()];
        for (line, args) in sections.all(predicate) {
            let entry = &mut told[find(kind, line, args[0])?];
            if entry.is_some_and(|(_, before)| before != args[1]) {
                return err(line, format!("`{}` has a second `{predicate}`, expected one", args[0]));
            }
            *entry = Some((line, args[1]));
        }
        Ok(told)
    };
    let object_ids = entities.ids("object");
    let location_ids = entities.ids("location");

    // A receptacle that is nowhere cannot be reached nor seen: as in the original, it has a number and that is all.
    let classes = told("receptacletype", "receptacle")?;
    let mut receptacles = Vec::new();
    let mut kept: Vec<Option<usize>> = Vec::new();
    for (r, location) in told("receptacleatlocation", "receptacle")?.into_iter().enumerate() {
        let Some((line, location)) = location else {
            kept.push(None);
            continue;
        };
        kept.push(Some(receptacles.len()));
        let class = classes[r].map_or(Ok(String::new()), |(line, class)| class_of(line, class))?;
        let location = find("location", line, location)?;
        let name = entities.name(entities.ids("receptacle")[r]);
        receptacles.push(Receptacle { name, class, location, openable: false });
    }
    let place = |line: usize, id: &str| find("receptacle", line, id).map(|r| kept[r]);
    for (line, args) in sections.all("openable") {
        if let Some(r) = place(line, args[0])? {
            receptacles[r].openable = true;
        }
    }
    let mut opened = 0;
    for (line, args) in sections.all("opened") {
        opened |= place(line, args[0])?.map_or(0, only);
    }

    let holders = set_of("isreceptacleobject")?;
    let mut contents = vec![0; object_ids.len()];
    for (line, args) in sections.all("inreceptacleobject") {
        contents[find("object", line, args[1])?] |= only(find("object", line, args[0])?);
    }
    let mut objects = Vec::new();
    for (o, class) in told("objecttype", "object")?.into_iter().enumerate() {
        // Without a type it fits nowhere, and no goal asks for it.
        let class = class.map_or(Ok(String::new()), |(line, class)| class_of(line, class))?;
        let contents = (holders >> o & 1 == 1).then_some(contents[o]);
        objects.push(Object { name: entities.name(object_ids[o]), class, contents });
    }

    let knives = ["knife", "butterknife"];
    let abilities = Abilities {
        pickupable: set_of("pickupable")?,
        cleanable: set_of("cleanable")?,
        heatable: set_of("heatable")?,
        coolable: set_of("coolable")?,
        toggleable: set_of("toggleable")?,
        sliceable: set_of("sliceable")?,
        sharp: (0..objects.len()).filter(|&o| knives.contains(&objects[o].class.as_str())).fold(0, |s, o| s | only(o)),
    };
    let mut allowed: BTreeSet<(String, String)> = BTreeSet::new();
    for (line, args) in sections.all("cancontain") {
        allowed.insert((class_of(line, args[0])?, class_of(line, args[1])?));
    }
    let accepts = receptacles.iter().map(|receptacle| {
        let fitting: BTreeSet<&str> =
            allowed.iter().filter(|(into, _)| *into == receptacle.class).map(|(_, class)| class.as_str()).collect();
        let fits = |o: &usize| fitting.contains(objects[*o].class.as_str());
        (0..objects.len()).filter(fits).fold(0, |set, o| set | only(o))
    });
    let accepts = accepts.collect();
    let places = location_ids.iter().map(|id| entities.name(id)).collect();

    let mut at = None;
    for (line, args) in sections.all("atlocation") {
        if at.is_some() {
            return err(line, "a second `atLocation`, expected one agent in one place");
        }
        at = Some(find("location", line, args[1])?);
    }
    let Some(at) = at else { return err(sections.init, "no `atLocation` says where the agent is") };
    let mut held = None;
    for (line, args) in sections.all("holds") {
        if held.is_some() {
            return err(line, "a second `holds`, expected one object in hand at most");
        }
        if sections.all("holdsany").next().is_none() {
            return err(line, "`holds` without `holdsAny`, expected both or neither");
        }
        held = Some(find("object", line, args[1])?);
    }
    if let (None, Some((line, _))) = (held, sections.all("holdsany").next()) {
        return err(line, "`holdsAny` without `holds`, expected both or neither");
    }
    let mut start = State {
        at,
        held,
        opened,
        inside: vec![0; receptacles.len()],
        left: vec![0; receptacles.len()],
        lying: vec![0; location_ids.len()],
        clean: set_of("isclean")?,
        hot: set_of("ishot")?,
        cool: set_of("iscool")?,
        sliced: set_of("issliced")?,
        toggled: set_of("istoggled")?,
    };
    for (line, args) in sections.all("inreceptacle") {
        let object = find("object", line, args[0])?;
        if let Some(r) = place(line, args[1])? {
            start.inside[r] |= only(object);
        }
    }
    for (line, args) in sections.all("objectatlocation") {
        start.lying[find("location", line, args[1])?] |= only(find("object", line, args[0])?);
    }
    let goal = goal(sections.goal)?;
    let world = World::new(receptacles, objects, abilities, accepts, places);
    Ok(Problem { name: sections.name, world, start, goal })
}

/// The atoms of a goal, whatever their nesting: every condition of the six goals is a conjunction under `exists`.
/// `(not (= ?a ?b))` is found as `distinct`.
fn atoms<'a>(expr: &'a Expr, found: &mut Vec<(usize, &'a str, Vec<&'a str>)>) -> Result<()> {
    match expr.call()? {
        ("and", rest) => rest.iter().try_for_each(|part| atoms(part, found)),
        ("exists", [_, condition]) => atoms(condition, found),
        ("not", [inner]) if matches!(inner.call()?, ("=", _)) => {
            found.push((expr.line(), "distinct", Vec::new()));
            Ok(())
        }
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

/// Sets what may be said once, or twice alike.
fn once<T: PartialEq>(line: usize, place: &mut Option<T>, value: T, what: &str) -> Result<()> {
    match place {
        Some(before) if *before != value => err(line, format!("the goal has a second {what}, expected one")),
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

fn goal(expr: &Expr) -> Result<Goal> {
    let mut found = Vec::new();
    atoms(expr, &mut found)?;
    let mut class_by_variable: BTreeMap<&str, String> = BTreeMap::new();
    let (mut treatment, mut place, mut held, mut lit) = (None, None, None, None);
    let (mut placed, mut distinct) = (BTreeSet::new(), false);
    for (line, predicate, args) in &found {
        let line = *line;
        match (*predicate, args.as_slice()) {
            ("distinct", _) => distinct = true,
            ("objecttype", [variable, class]) => {
                class_by_variable.insert(*variable, class_of(line, class)?);
            }
            ("receptacletype", [_, class]) => once(line, &mut place, class_of(line, class)?, "class of receptacles")?,
            ("inreceptacle", [variable, _]) => {
                placed.insert(*variable);
            }
            ("holds", [_, variable]) => once(line, &mut held, *variable, "object to hold")?,
            ("istoggled", [variable]) => once(line, &mut lit, *variable, "lamp")?,
            ("isclean", [_]) => once(line, &mut treatment, TaskKind::PickCleanThenPlaceInRecep, "treatment")?,
            ("ishot", [_]) => once(line, &mut treatment, TaskKind::PickHeatThenPlaceInRecep, "treatment")?,
            ("iscool", [_]) => once(line, &mut treatment, TaskKind::PickCoolThenPlaceInRecep, "treatment")?,
            ("cleanable" | "heatable" | "coolable" | "toggleable" | "pickupable", [_]) => {}
            ("atlocation" | "receptacleatlocation" | "objectatlocation", [_, _]) => {}
            _ => return err(line, format!("the goal uses `{predicate}` in a way that none of the six tasks does")),
        }
    }
    let class = |variable: &str| class_by_variable.get(variable).cloned();
    let (kind, object, place) = match (held, lit, treatment, placed.len()) {
        (Some(held), Some(lit), None, _) => (TaskKind::LookAtObjInLight, class(held), class(lit)),
        (None, None, treatment, 1) => {
            (treatment.unwrap_or(TaskKind::PickAndPlaceSimple), placed.first().and_then(|o| class(o)), place)
        }
        (None, None, None, 2) if distinct => {
            let mut classes = placed.iter().map(|o| class(o));
            let first = classes.next().flatten();
            if classes.any(|other| other != first) {
                return err(expr.line(), "the goal asks for two objects of different classes, expected one class");
            }
            (TaskKind::PickTwoObjAndPlace, first, place)
        }
        _ => return err(expr.line(), "the goal is none of the six tasks"),
    };
    match (object, place) {
        (Some(object), Some(place)) => Ok(Goal { kind, object, place }),
        _ => err(expr.line(), "the goal names no object class or no receptacle class"),
    }
}

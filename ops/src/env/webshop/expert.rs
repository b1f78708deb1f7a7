//! An expert that knows the goal's product: searches words that bring it up, opens it, chooses its options, buys it.
//!
//! Invariants: words come from the instruction where those bring the product up on the first page, so that what the
//! expert does can be learnt; from wherever a session is, following the expert ends in buying the product.

use std::collections::HashSet;

use super::goals::{BOUND, Goal};
use super::nouns::is_filler;
use super::pages::{BACK, BUY, Element, NEXT, PREVIOUS, Page, WINDOW};
use super::product::Product;
use super::reward::{fits, wanted};
use super::session::{HITS, Place, Session, parse};
use super::{EnvError, Store, Wanted};

/// How a goal is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The product's place.
    index: usize,
    /// What is searched; `None` where nothing that the expert tries brings the product up.
    words: Option<String>,
    /// Values that are chosen, in the page's order.
    values: Vec<String>,
}

/// What of an instruction is worth searching for: no filler words, no limit, nothing twice.
pub fn instruction_words(instruction: &str) -> String {
    let text = instruction.rfind(BOUND).map_or(instruction, |at| &instruction[..at]).to_lowercase();
    let mut seen = HashSet::new();
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '!' | '?' | '|' | '(' | ')' | '[' | ']'))
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|word| !word.is_empty() && !is_filler(word) && seen.insert(*word))
        .collect();
    words.join(" ")
}

/// Words as an action can hold them.
fn writable(words: &str) -> String {
    let plain: String = words.to_lowercase().chars().map(|c| if matches!(c, '[' | ']') { ' ' } else { c }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Plan {
    /// Finds out how to reach a goal; `None` where its product is not there.
    pub fn of(store: &dyn Store, goal: &Goal) -> Result<Option<Plan>, EnvError> {
        let Some(index) = store.find(&goal.asin) else { return Ok(None) };
        let product = store.product(index)?;
        let mut best: Option<(usize, String)> = None;
        let attributes = goal.attributes.join(" ");
        let tries = [
            instruction_words(&goal.instruction_text),
            format!("{} {attributes}", goal.query),
            goal.name.clone(),
            format!("{} {} {attributes}", goal.name, goal.query),
        ];
        for words in tries {
            let words = writable(&words);
            if parse(&format!("search[{words}]")).is_none() {
                continue;
            }
            let found = store.search(&words, HITS)?;
            let Some(rank) = found.iter().position(|place| *place == index) else { continue };
            let page = rank / WINDOW;
            if best.as_ref().is_none_or(|(known, _)| page < *known) {
                best = Some((page, words));
            }
            if page == 0 {
                break;
            }
        }
        Ok(Some(Plan { index, words: best.map(|(_, words)| words), values: values(&product, goal) }))
    }

    /// What to do now; `None` when nothing is left to do.
    pub fn next(&self, session: &Session) -> Option<String> {
        let click = |name: &str| Some(format!("click[{name}]"));
        let here = session.product.as_ref().is_some_and(|(index, _)| *index == self.index);
        match session.place() {
            Place::Done => None,
            Place::Start => self.words.as_ref().map(|words| format!("search[{words}]")),
            Place::Results => {
                let Some(rank) = session.results.iter().position(|place| *place == self.index) else {
                    return click(BACK);
                };
                let link = session.page.clickables().iter().find(|name| match session.page.element(name) {
                    Some(Element::Link(asin)) => *asin == session.goal.asin && session.can_click(name),
                    _ => false,
                });
                match link {
                    Some(name) => click(name),
                    None if session.page_number <= (rank / WINDOW) as i64 => click(NEXT),
                    None if session.page.element(PREVIOUS).is_some() => click(PREVIOUS),
                    None => click(BACK),
                }
            }
            Place::Item if here => {
                let missing = self.values.iter().find(|value| {
                    !session.chosen.iter().any(|(_, chosen)| chosen == *value) && session.can_click(value)
                });
                click(missing.map_or(BUY, String::as_str))
            }
            Place::Detail if here => click(PREVIOUS),
            Place::Item | Place::Detail => click(BACK),
        }
    }
}

/// Values that satisfy the goal's options, no two of one option.
fn values(product: &Product, goal: &Goal) -> Vec<String> {
    // what a value chooses is decided by the page: of equal values, the last option has it
    let page = Page::item("", product, false);
    let all: Vec<(&str, &str)> = page
        .clickables()
        .iter()
        .filter_map(|value| match page.element(value) {
            Some(Element::Radio(option)) if !is_button(value) => Some((option.as_str(), value.as_str())),
            _ => None,
        })
        .collect();
    // names are known of synthetic goals only
    let exact: Vec<(Option<&str>, &str)> = match &goal.goal_options {
        Wanted::Values(list) => list.iter().map(|value| (None, value.as_str())).collect(),
        Wanted::Named(named) => named.iter().map(|(name, value)| (Some(name.as_str()), value.as_str())).collect(),
    };
    let wanted = wanted(&goal.goal_options);
    let mut chosen: Vec<(&str, &str)> = Vec::new();
    // the very values first, though the reward may not know them for equal (`stand` holds a `tan`), and so that what is
    // merely alike takes no option from them
    for strict in [true, false] {
        for (wanted, (name, value)) in wanted.iter().zip(&exact) {
            if !strict && chosen.iter().any(|(_, value)| fits(value, wanted)) {
                continue;
            }
            let found = all.iter().find(|(option, here)| {
                let free = chosen.iter().all(|(taken, _)| taken != option);
                let same = name.is_none_or(|name| name == *option) && here == value;
                free && if strict { same } else { fits(here, wanted) }
            });
            chosen.extend(found);
        }
    }
    let order = |value: &str| all.iter().position(|(_, known)| *known == value);
    chosen.sort_by_key(|(_, value)| order(value));
    chosen.into_iter().map(|(_, value)| value.to_owned()).collect()
}

/// Whether clicking a value of this name would do what a button does.
fn is_button(name: &str) -> bool {
    [BACK, BUY, PREVIOUS, "search", "description", "features", "reviews", "attributes"].contains(&name)
}

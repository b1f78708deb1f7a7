//! A session: the page that is shown, what was chosen, and what an action does to it.
//!
//! Invariants: an action that is not possible changes nothing; a session is a value, and copying it is cheap. As in the
//! original, which page an action is seen to come from is read off the page's address, words of the search included.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::goals::Goal;
use super::nouns::Nouns;
use super::pages::{BACK, BUY, Detail, Element, NEXT, PREVIOUS, Page, WINDOW};
use super::product::Product;
use super::python::{json, quoted};
use super::reward::{Reward, reward};
use super::{EnvError, Settings, Store};

/// As many products as a search finds.
pub const HITS: usize = 50;

/// What the addresses of pages begin with.
const SITE: &str = "http://127.0.0.1:3000";

/// What sessions of one suite share.
pub struct Shop {
    pub store: Arc<dyn Store>,
    pub settings: Settings,
}

/// One session's state.
#[derive(Clone)]
pub struct Session {
    pub goal: Arc<Goal>,
    /// Number of the session: the goal's.
    number: usize,
    pub url: String,
    pub page: Arc<Page>,
    /// What was searched for, cut at its spaces.
    words: Option<Arc<[String]>>,
    /// Places of what was found.
    pub results: Arc<[usize]>,
    /// Of the results.
    pub page_number: i64,
    /// The product that is looked at, and its place.
    pub product: Option<(usize, Arc<Product>)>,
    pub chosen: Vec<(String, String)>,
    pub visited: BTreeSet<String>,
    pub reward: Option<Arc<Reward>>,
}

/// An action, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action<'a> {
    pub name: &'a str,
    pub argument: &'a str,
}

/// Takes `name[argument]` apart, as the pattern `(.+)\[(.+)\]` does from the start of a text: the last bracket that
/// opens counts, what follows the last that closes does not, and nothing spans lines.
pub fn parse(action: &str) -> Option<Action<'_>> {
    let line = action.split('\n').next().unwrap_or_default();
    let close = line.rfind(']')?;
    // the argument has at least one character, so the bracket opens at least two before
    let open = line[..close].char_indices().rev().skip(1).find(|(at, c)| *c == '[' && *at > 0)?.0;
    Some(Action { name: &line[..open], argument: &line[open + 1..close] })
}

/// Which page an address is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Start,
    Results,
    Item,
    Detail,
    Done,
}

fn place(url: &str) -> Place {
    [
        ("search_results", Place::Results),
        ("item_page", Place::Item),
        ("item_sub_page", Place::Detail),
        ("done", Place::Done),
    ]
    .into_iter()
    .find_map(|(name, place)| url.contains(name).then_some(place))
    .unwrap_or(Place::Start)
}

/// `list[from:to]` in Python.
fn slice(list: &[usize], from: i64, to: i64) -> &[usize] {
    let len = list.len() as i64;
    let at = |i: i64| (if i < 0 { i + len } else { i }).clamp(0, len) as usize;
    list.get(at(from)..at(to)).unwrap_or_default()
}

impl Session {
    pub fn new(goal: Arc<Goal>, number: usize) -> Session {
        let page = Arc::new(Page::search(&goal.instruction_text));
        Session {
            goal,
            number,
            url: format!("{SITE}/{number}"),
            page,
            words: None,
            results: Arc::new([]),
            page_number: 0,
            product: None,
            chosen: Vec::new(),
            visited: BTreeSet::new(),
            reward: None,
        }
    }

    /// Where the session is.
    pub fn place(&self) -> Place {
        match (&self.reward, &self.words) {
            (Some(_), _) => Place::Done,
            (None, None) => Place::Start,
            (None, Some(_)) => match (&self.product, self.page.element(BUY)) {
                (None, _) => Place::Results,
                (Some(_), Some(_)) => Place::Item,
                (Some(_), None) => Place::Detail,
            },
        }
    }

    /// Acts; `false` where the action is not possible, and nothing has changed.
    pub fn act(&mut self, shop: &Shop, action: &str) -> Result<bool, EnvError> {
        if self.reward.is_some() {
            return Ok(false);
        }
        let Some(action) = parse(action) else { return Ok(false) };
        let argument = action.argument.to_lowercase();
        match action.name {
            "search" => {
                let words: Arc<[String]> = argument.split(' ').map(str::to_owned).collect();
                self.find(shop, words, 1)?;
                Ok(true)
            }
            "click" if argument != "search" => self.click(shop, &argument),
            _ => Ok(false),
        }
    }

    fn click(&mut self, shop: &Shop, name: &str) -> Result<bool, EnvError> {
        let page = self.page.clone();
        let Some(element) = page.element(name) else { return Ok(false) };
        let from = place(&self.url);
        // the name decides before the element does
        match (name, &self.product, &self.words) {
            (BUY, Some(_), _) => self.buy(shop)?,
            (BACK, ..) => *self = Session::new(self.goal.clone(), self.number),
            (NEXT, _, Some(words)) if from == Place::Results => {
                self.find(shop, words.clone(), self.page_number.saturating_add(1))?;
            }
            (PREVIOUS, _, Some(words)) if from == Place::Results => {
                self.find(shop, words.clone(), self.page_number.saturating_sub(1))?;
            }
            (PREVIOUS, _, Some(words)) if from == Place::Item => self.find(shop, words.clone(), self.page_number)?,
            (PREVIOUS, Some(_), _) if from == Place::Detail => self.show(shop),
            _ => {
                let detail = Detail::ALL.into_iter().find(|detail| detail.name().to_lowercase() == name);
                return match (detail, &self.product) {
                    (Some(detail), Some((_, product))) => {
                        let product = product.clone();
                        self.detail(&product, detail);
                        Ok(true)
                    }
                    (Some(_), None) => Ok(false),
                    (None, _) => self.choose(shop, name, element),
                };
            }
        }
        Ok(true)
    }

    /// Opens a product or chooses a value.
    fn choose(&mut self, shop: &Shop, name: &str, element: &Element) -> Result<bool, EnvError> {
        match element {
            Element::Link(asin) => {
                let Some(index) = shop.store.find(asin) else { return Ok(false) };
                self.product = Some((index, Arc::new(shop.store.product(index)?)));
                self.visited.insert(name.to_uppercase());
            }
            Element::Radio(option) => match self.chosen.iter_mut().find(|(name, _)| name == option) {
                Some((_, value)) => name.clone_into(value),
                None => self.chosen.push((option.clone(), name.to_owned())),
            },
            Element::Button => {}
        }
        if self.product.is_none() {
            return Ok(false);
        }
        self.show(shop);
        Ok(true)
    }

    /// What a search looked like in an address.
    fn query(&self) -> String {
        self.words.as_ref().map(|words| words.join("+")).unwrap_or_default()
    }

    /// Shows a page of what is found. Whatever was chosen is forgotten.
    fn find(&mut self, shop: &Shop, words: Arc<[String]>, number: i64) -> Result<(), EnvError> {
        if self.words.as_ref() != Some(&words) {
            self.results = shop.store.search(&words.join(" "), HITS)?.into();
        }
        self.words = Some(words);
        self.page_number = number;
        self.product = None;
        self.chosen.clear();
        let window = WINDOW as i64;
        let end = number.saturating_mul(window);
        let shown = slice(&self.results, end.saturating_sub(window), end);
        let products = shown.iter().map(|index| shop.store.product(*index)).collect::<Result<Vec<_>, _>>()?;
        self.page = Arc::new(Page::results(&self.goal.instruction_text, number, self.results.len(), &products));
        self.url = format!("{SITE}/search_results/{}/{}/{number}", self.number, self.query());
        Ok(())
    }

    /// Shows the product.
    fn show(&mut self, shop: &Shop) {
        let Some((_, product)) = &self.product else { return };
        self.page = Arc::new(Page::item(&self.goal.instruction_text, product, shop.settings.show_attributes));
        let options: Vec<String> =
            self.chosen.iter().map(|(name, value)| format!("{}: {}", json(name, false), json(value, false))).collect();
        self.url = format!(
            "{SITE}/item_page/{}/{}/{}/{}/{{{}}}",
            self.number,
            product.asin,
            self.query(),
            self.page_number,
            options.join(", ")
        );
    }

    /// Chosen options, as Python prints them.
    fn options(&self) -> String {
        let options: Vec<String> =
            self.chosen.iter().map(|(name, value)| format!("{}: {}", quoted(name), quoted(value))).collect();
        format!("{{{}}}", options.join(", "))
    }

    fn detail(&mut self, product: &Product, detail: Detail) {
        self.page = Arc::new(Page::detail(&self.goal.instruction_text, product, detail));
        self.url = format!(
            "{SITE}/item_sub_page/{}/{}/{}/{}/{}/{}",
            self.number,
            product.asin,
            self.query(),
            self.page_number,
            detail.name(),
            self.options()
        );
    }

    fn buy(&mut self, shop: &Shop) -> Result<(), EnvError> {
        let Some((_, product)) = &self.product else { return Ok(()) };
        let chosen: Vec<&str> = self.chosen.iter().map(|(_, value)| value.as_str()).collect();
        let nouns = shop.settings.nouns;
        // the goal's product has its nouns listed, if any has
        let listed = match (nouns, &product.nouns) {
            (Nouns::Listed, _) if product.asin == self.goal.asin => product.nouns.clone(),
            (Nouns::Listed, Some(_)) => match shop.store.find(&self.goal.asin) {
                Some(index) => shop.store.product(index)?.nouns,
                None => None,
            },
            _ => None,
        };
        let bought = nouns.of(&product.title, product.nouns.as_deref());
        let asked = nouns.of(&self.goal.name, listed.as_deref());
        let reward = reward(product, &self.goal, &chosen, &bought, &asked);
        self.page = Arc::new(Page::done(&product.asin, &self.chosen, &reward));
        self.url = format!("{SITE}/done/{}/{}/{}", self.number, product.asin, self.options());
        self.reward = Some(Arc::new(reward));
        Ok(())
    }

    /// Whether clicking this name does something, and can be written as an action.
    pub fn can_click(&self, name: &str) -> bool {
        let action = format!("click[{name}]");
        name != "search"
            && parse(&action).is_some_and(|a| a.name == "click" && a.argument == name && name.to_lowercase() == name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_action_is_taken_apart_at_its_last_bracket() {
        for (text, parts) in [
            ("search[red shoes]", Some(("search", "red shoes"))),
            ("click[a [b] c]", Some(("click[a ", "b] c"))),
            ("click[x] because", Some(("click", "x"))),
            ("click[x]]", Some(("click", "x]"))),
            ("click[[]", Some(("click", "["))),
            ("[x]", None),
            ("[[x]", Some(("[", "x"))),
            ("click[]", None),
            ("click[]]", Some(("click", "]"))),
            ("click[a]\nclick[b]", Some(("click", "a"))),
            ("click[a\n]", None),
            ("fly", None),
            ("", None),
            ("\u{e9}[\u{e9}]", Some(("\u{e9}", "\u{e9}"))),
        ] {
            let parts = parts.map(|(name, argument)| Action { name, argument });
            assert_eq!(parse(text), parts, "{text}");
        }
    }

    #[test]
    fn a_slice_is_as_in_python() {
        let list: Vec<usize> = (0..25).collect();
        assert_eq!(slice(&list, 20, 30), &list[20..]);
        assert_eq!(slice(&list, 50, 60), &[] as &[usize]);
        assert_eq!(slice(&list, -10, 0), &[] as &[usize]);
        assert_eq!(slice(&list, -20, -10), &list[5..15]);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_not_an_action(text in "[a\\[\\]\n\u{e9}]{0,12}") {
            if let Some(Action { name, argument }) = parse(&text) {
                let whole = format!("{name}[{argument}]");
                prop_assert!(!name.is_empty() && !argument.is_empty() && text.starts_with(&whole));
            }
        }
    }
}

//! Pages as agents see them, and what can be clicked on them.
//!
//! A page is a list of texts, each in the element that shows it. Plain texts are joined by ` [SEP] `; rich ones stand
//! on lines of their own, with marks around what can be clicked.
//!
//! Invariants: texts and their order are those of the original's pages, as its parser of HTML leaves them; what can be
//! clicked is named as there, buttons before products before options, and of equal names the last one counts.

use std::collections::{BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::product::Product;
use super::python::{float, json, strip};
use super::reward::Reward;

/// Products of one page of results.
pub const WINDOW: usize = 10;

/// Buttons, as they are clicked.
pub const BACK: &str = "back to search";
pub const NEXT: &str = "next >";
pub const PREVIOUS: &str = "< prev";
pub const BUY: &str = "buy now";

/// How pages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// Texts, joined by ` [SEP] `. Chosen options do not show.
    #[default]
    Text,
    /// One text a line, `[button] .. [button_]` around what can be clicked; chosen options are marked.
    TextRich,
}

/// Pages about a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Description,
    Features,
    Reviews,
    Attributes,
}

impl Detail {
    pub const ALL: [Detail; 4] = [Detail::Description, Detail::Features, Detail::Reviews, Detail::Attributes];

    /// As the button says it.
    pub fn name(self) -> &'static str {
        match self {
            Detail::Description => "Description",
            Detail::Features => "Features",
            Detail::Reviews => "Reviews",
            Detail::Attributes => "Attributes",
        }
    }
}

/// What a name that can be clicked stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    Button,
    /// A product: its asin.
    Link(String),
    /// A value of the option of this name.
    Radio(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Button,
    Label,
    Link,
}

/// One page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    texts: Vec<(Kind, String)>,
    names: Vec<String>,
    elements: HashMap<String, Element>,
    /// Whether there is a field for words.
    pub searchable: bool,
}

impl Page {
    /// Where sessions begin.
    pub fn search(goal: &str) -> Page {
        let mut page = Page { searchable: true, ..Page::default() };
        page.plain("WebShop");
        page.plain("Instruction: ");
        page.plain(goal);
        page.button("Search");
        page
    }

    /// Products that were found; `number` counts from 1, and may be any in odd sessions.
    pub fn results(goal: &str, number: i64, total: usize, products: &[Product]) -> Page {
        let mut page = Page::about(goal);
        page.plain(&format!("Page {number} (Total results: {total})"));
        if number > 1 {
            page.button("< Prev");
        }
        page.button("Next >");
        for product in products {
            page.show(Kind::Link, &product.asin);
            page.plain(&product.title);
            page.plain(&product.price_text);
        }
        for product in products {
            page.clickable(product.asin.to_lowercase(), Element::Link(product.asin.clone()));
        }
        page
    }

    /// A product with its options.
    pub fn item(goal: &str, product: &Product, attributes: bool) -> Page {
        let mut page = Page::about(goal);
        page.button("< Prev");
        for (name, values) in &product.options {
            page.plain(name);
            for value in values {
                page.show(Kind::Label, value);
            }
        }
        page.plain(&product.title);
        page.plain(&format!("Price: {}", product.price_text));
        page.plain("Rating: N.A.");
        for detail in Detail::ALL {
            if attributes || detail != Detail::Attributes {
                page.button(detail.name());
            }
        }
        page.button("Buy Now");
        for (name, values) in &product.options {
            for value in values {
                page.clickable(value.clone(), Element::Radio(name.clone()));
            }
        }
        page
    }

    /// One page about a product.
    pub fn detail(goal: &str, product: &Product, detail: Detail) -> Page {
        let mut page = Page::about(goal);
        page.button("< Prev");
        match detail {
            Detail::Description => page.plain(&product.description),
            Detail::Features => product.bullets.iter().for_each(|bullet| page.plain(&format!(" {bullet}"))),
            // the files of products hold none
            Detail::Reviews => {}
            Detail::Attributes => {
                product.attributes.iter().for_each(|attribute| page.plain(&format!(" {attribute}")));
                page.plain(&product.category);
                page.plain(&product.query);
                page.plain(&product.product_category);
            }
        }
        page
    }

    /// Where sessions end.
    pub fn done(asin: &str, options: &[(String, String)], reward: &Reward) -> Page {
        let mut sorted: Vec<&(String, String)> = options.iter().collect();
        sorted.sort();
        let options: Vec<String> =
            sorted.iter().map(|(name, value)| format!("{}: {}", json(name, true), json(value, true))).collect();
        let mut page = Page::default();
        page.plain("Thank you for shopping with us!");
        page.plain("Your code: ");
        page.plain("None");
        page.plain(" (Paste it in your MTurk interface.)");
        for text in ["Purchased", "asin", asin, "options", &format!("{{{}}}", options.join(", "))] {
            page.plain(text);
        }
        for text in ["attrs", "category", "query", "product category"] {
            page.plain(text);
            page.plain("None");
        }
        let target = "Target|asin|options|attrs|price upper|instuction text|category|product category|query|Goal |None";
        target.split('|').for_each(|text| page.plain(text));
        for text in ["Reward", "Your score (min 0.0, max 1.0)", &float(reward.total), "Reward Details ", "None"] {
            page.plain(text);
        }
        page
    }

    fn about(goal: &str) -> Page {
        let mut page = Page::default();
        page.plain("Instruction:");
        page.plain(goal);
        page.button("Back to Search");
        page
    }

    /// Adds a text as the parser of HTML keeps it: none where it is empty or a line break, one space where it is blank.
    fn show(&mut self, kind: Kind, text: &str) {
        let blank = text.chars().all(|c| matches!(c, ' ' | '\n' | '\t' | '\x0c' | '\r'));
        if !blank {
            self.texts.push((kind, text.to_owned()));
        } else if !text.is_empty() && !text.contains('\n') {
            self.texts.push((kind, " ".to_owned()));
        }
    }

    fn plain(&mut self, text: &str) {
        self.show(Kind::Plain, text);
    }

    fn button(&mut self, text: &str) {
        self.show(Kind::Button, text);
        self.clickable(text.to_lowercase(), Element::Button);
    }

    fn clickable(&mut self, name: String, element: Element) {
        if self.elements.insert(name.clone(), element).is_none() {
            self.names.push(name);
        }
    }

    /// What can be clicked, in the page's order.
    pub fn clickables(&self) -> &[String] {
        &self.names
    }

    /// What a name stands for here.
    pub fn element(&self, name: &str) -> Option<&Element> {
        self.elements.get(name)
    }

    /// The page in words. `url` says which options are chosen, `visited` which products were opened.
    pub fn write(&self, view: View, url: &str, visited: &BTreeSet<String>) -> String {
        match view {
            View::Text => {
                let texts: Vec<&str> = self.texts.iter().map(|(_, text)| strip(text)).collect();
                texts.join(" [SEP] ")
            }
            View::TextRich => self.rich(url, visited),
        }
    }

    fn rich(&self, url: &str, visited: &BTreeSet<String>) -> String {
        let (mut clicked, mut out) = (Vec::new(), String::new());
        for (kind, text) in &self.texts {
            let (indent, mark) = match kind {
                Kind::Plain => {
                    out.push_str(text);
                    out.push('\n');
                    continue;
                }
                Kind::Button => ("", "button"),
                Kind::Link if visited.contains(text) => ("\n", "clicked button"),
                Kind::Link => ("\n", "button"),
                Kind::Label if url.contains(&format!("\"{text}\"")) => {
                    clicked.push(text);
                    ("  ", "clicked button")
                }
                Kind::Label => ("  ", "button"),
            };
            out.push_str(&format!("{indent}[{mark}] {text} [{mark}_]\n"));
        }
        // what was chosen last by the page's order stands first
        let head: String = clicked.iter().rev().map(|text| format!("You have clicked {text}.\n")).collect();
        head + &out
    }
}

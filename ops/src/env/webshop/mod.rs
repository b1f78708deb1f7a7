//! WebShop: an online store, natively.
//!
//! Invariants: pages, clickable elements, goals and rewards are the original's, byte for byte; a session holds nothing
//! but its own state, so that thousands share one store.
//!
//! 1. `python`: what results owe to Python itself. `elements`: arrays too large to be held.
//! 2. `product`: products and the reader of the original's files. `goals`: what sessions are asked to buy.
//! 3. `nouns`, `fuzzy`, `reward`: what a purchase is worth.
//! 4. `pages`, `session`: what an agent sees and does. `suite`: tasks by split.
//! 5. `search`: words and BM25. `shelf`: a catalogue on disk. `synthesize`: made-up ones.

mod elements;
mod expert;
pub mod fuzzy;
pub mod goals;
mod nouns;
mod pages;
pub mod product;
pub mod python;
pub mod reward;
pub mod search;
mod session;
pub mod shelf;
mod suite;
pub mod synthesize;

use actloom_engine::op::Problem;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnvError, Suite};
pub use goals::{Goal, GoalSource, Goals, Wanted};
pub use nouns::Nouns;
pub use pages::View;
pub use product::{Files, Product};
pub use session::{Session, Shop};
pub use suite::Webshop;

/// Splits that there are.
pub const SPLITS: [&str; 3] = ["train", "eval", "test"];

/// A catalogue that sessions share.
pub trait Store: Send + Sync {
    /// How many products there are.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A product by its place in the file.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn product(&self, index: usize) -> Result<Product, EnvError>;

    /// The place of the product with this asin.
    fn find(&self, asin: &str) -> Option<usize>;

    /// Places of the best products for the words, best first, no more than `hits`.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn search(&self, words: &str, hits: usize) -> Result<Vec<usize>, EnvError>;

    /// Every goal, in order: what [`Goals::finish`] gave.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn goals(&self) -> Result<Vec<Goal>, EnvError>;
}

/// What the list of actions says where words can be searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SearchHint {
    /// `search[<your query>]`, to be filled in.
    #[default]
    Blank,
    /// The words of the instruction, without those that only ask: an action to be taken as it is.
    Words,
}

/// How the environment is set. Where goals and drawn prices come from, the catalogue says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How pages are written.
    pub observation: View,
    /// What admissible actions say of searching. Search is listed on the first page, and possible on every page.
    pub search: SearchHint,
    /// Products have a page with their attributes and categories.
    pub show_attributes: bool,
    /// What counts as a noun of a product's name, when a purchase is compared with the goal.
    pub nouns: Nouns,
}

impl Settings {
    /// What cannot be.
    pub fn check(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// Opens the environment.
///
/// # Errors
/// Names what is missing.
pub fn open(settings: &Settings, data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
    let folder = data.ok_or_else(|| {
        EnvError::with_help(
            "the environment `webshop` has no catalogue",
            "give the input `data` a catalogue of `catalogue`",
        )
    })?;
    Ok(Box::new(Webshop::new(settings.clone(), shelf::open(folder)?.into())?))
}

//! What a purchase is worth.
//!
//! Invariants: 0 to 1; parts and their weights are the original's; 1 says that type, attributes, options and price are
//! all as asked for. Yao et al., "WebShop: towards scalable real-world web interaction with grounded language agents",
//! 2022.

use std::collections::HashSet;

use serde::Serialize;

use super::fuzzy::token_set_ratio;
use super::goals::{Goal, Wanted};
use super::product::Product;
use super::python::{quoted, strip};

/// Colours, in the order in which they are looked for: `navy blue` is `blue`.
const COLOURS: &str = "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown \
    burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral \
    cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green \
    grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight \
    mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red \
    rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger \
    turquoise violet walnut wheat white wine yellow";

/// What a match needs more than.
const ALIKE: u32 = 85;

/// The parts of a reward; `r` is reached, `w` is its weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reward {
    pub total: f64,
    pub r_type: f64,
    pub r_att: f64,
    pub w_att: f64,
    pub query_match: bool,
    pub category_match: bool,
    pub title_score: f64,
    /// `None` where the goal wants no option.
    pub r_option: Option<f64>,
    pub w_option: Option<f64>,
    pub r_price: bool,
    pub w_price: f64,
}

/// The first colour that a text holds, else the text.
fn colour(text: &str) -> &str {
    COLOURS.split_ascii_whitespace().find(|colour| text.contains(colour)).unwrap_or(text)
}

/// Goal options in the form in which they are compared.
pub fn wanted(options: &Wanted) -> Vec<String> {
    match options {
        Wanted::Values(list) => list.iter().map(|value| colour(value).to_owned()).collect(),
        // of a pair, a colour must be all of the name or the value; it is compared as Python prints it
        Wanted::Named(named) => named
            .iter()
            .map(|(name, value)| {
                COLOURS
                    .split_ascii_whitespace()
                    .find(|colour| colour == name || colour == value)
                    .map_or_else(|| format!("({}, {})", quoted(name), quoted(value)), str::to_owned)
            })
            .collect(),
    }
}

/// Whether a chosen value is what a goal wants; `wanted` is one of [`wanted`]'s.
pub fn fits(value: &str, wanted: &str) -> bool {
    token_set_ratio(colour(value), wanted) > ALIKE
}

/// How many of the goal's attributes a product has.
fn attributes(product: &Product, goal: &Goal) -> usize {
    let texts =
        [product.title.to_lowercase(), product.bullets.join(" ").to_lowercase(), product.description.to_lowercase()];
    let has = |wanted: &&String| {
        product.attributes.iter().any(|has| token_set_ratio(has, wanted) > ALIKE)
            || texts.iter().any(|text| text.contains(wanted.as_str()))
    };
    goal.attributes.iter().filter(has).count()
}

/// Names of a category's path.
fn path(category: &str) -> HashSet<&str> {
    category.split('›').map(strip).collect()
}

/// What buying `product` with the chosen values is worth. `bought` and `asked` are the nouns of its title and of the
/// goal's.
pub fn reward(product: &Product, goal: &Goal, chosen: &[&str], bought: &[String], asked: &[String]) -> Reward {
    let query_match = product.query == goal.query;
    let category_match = path(&product.product_category).intersection(&path(&goal.product_category)).count() >= 2;
    let bought: HashSet<&String> = bought.iter().collect();
    let shared = asked.iter().collect::<HashSet<_>>().intersection(&bought).count();
    let title_score = if asked.is_empty() { 0.2 } else { shared as f64 / asked.len() as f64 };
    let r_type = if title_score == 0.0 {
        0.0
    } else if title_score < 0.1 {
        0.1
    } else if query_match || category_match || title_score > 0.2 {
        1.0
    } else {
        0.5
    };

    let options = wanted(&goal.goal_options);
    let found = options.iter().filter(|wanted| chosen.iter().any(|value| fits(value, wanted))).count();
    let attributes = attributes(product, goal);
    let r_price = product.price <= goal.price_upper;
    let parts = (goal.attributes.len() + options.len() + 1) as f64;
    let part = |found: usize, of: usize| found as f64 / of as f64;
    let some = !options.is_empty();
    Reward {
        total: (attributes + found + usize::from(r_price)) as f64 / parts * r_type,
        r_type,
        r_att: if goal.attributes.is_empty() { 1.0 } else { part(attributes, goal.attributes.len()) },
        w_att: goal.attributes.len() as f64 / parts,
        query_match,
        category_match,
        title_score,
        r_option: some.then(|| part(found, options.len())),
        w_option: some.then(|| options.len() as f64 / parts),
        r_price,
        w_price: 1.0 / parts,
    }
}

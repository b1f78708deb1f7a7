//! Goals: what a session is asked to buy, in the original's order.
//!
//! 1. [`Goals::push`]: what a product asks for, product after product.
//! 2. [`Goals::finish`]: price limits, weights, the order.
//!
//! Invariants: limits are drawn behind all prices, from the same generator, in the order of products; goals are then
//! shuffled with a seed of their own, so that their order depends on the products alone.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EnvError;
use super::product::Product;
use super::python::Random;

/// The seed that the original shuffles goals with.
pub const ORDER: u64 = 233;

/// As many goals as one catalogue may have.
pub const MOST: usize = 2_000_000;

/// The limit of goals that are too expensive for one.
const NO_LIMIT: f64 = 1_000_000.0;

/// One goal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    pub asin: String,
    pub category: String,
    pub query: String,
    /// The product's title.
    pub name: String,
    pub product_category: String,
    /// What the session is asked for.
    pub instruction_text: String,
    pub attributes: Vec<String>,
    /// What the product may cost.
    pub price_upper: f64,
    pub goal_options: Wanted,
    /// How often the original draws it, where it draws goals.
    pub weight: f64,
}

/// Options that a goal wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Wanted {
    /// Values: of people's goals.
    Values(Vec<String>),
    /// Values by name: of synthetic goals.
    Named(BTreeMap<String, String>),
}

impl Wanted {
    pub fn len(&self) -> usize {
        match self {
            Wanted::Values(list) => list.len(),
            Wanted::Named(named) => named.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where goals come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GoalSource {
    /// What people asked for: `items_human_ins.json`.
    #[default]
    Human,
    /// Made of the attribute file, one for each combination of a product's options.
    Synthetic,
}

/// Goals that are being collected.
pub struct Goals {
    source: GoalSource,
    random: Random,
    /// What shares one limit: the price, and the goals.
    groups: Vec<(f64, Vec<Goal>)>,
    count: usize,
}

impl Goals {
    /// `prices` is what the prices of the products were drawn with: [`super::product::Files::prices`].
    pub fn new(source: GoalSource, prices: u64) -> Goals {
        Goals { source, random: Random::seeded(prices), groups: Vec::new(), count: 0 }
    }

    /// Takes what the next product asks for. Every product must pass here, in the order of the file, also those that
    /// ask for nothing.
    ///
    /// # Errors
    /// More goals than a catalogue may have; a synthetic goal without attributes.
    pub fn push(&mut self, product: &Product) -> Result<(), EnvError> {
        if let [low, high] = product.pricing.as_slice() {
            // the limits are drawn from where the prices leave the generator
            self.random.uniform(*low, *high);
        }
        match self.source {
            GoalSource::Human => {
                for asked in product.instructions.iter().filter(|asked| !asked.attributes.is_empty()) {
                    let text = asked.text.trim_matches('.').to_owned();
                    let goal = goal(product, text, &asked.attributes, Wanted::Values(asked.options.clone()));
                    self.count += 1;
                    self.groups.push((product.price, vec![goal]));
                }
            }
            GoalSource::Synthetic => {
                if let Some(text) = &product.instruction {
                    self.combine(product, text)?;
                }
            }
        }
        if self.count > MOST {
            return Err(too_many());
        }
        Ok(())
    }

    /// One goal for each combination of options.
    fn combine(&mut self, product: &Product, text: &str) -> Result<(), EnvError> {
        if product.instruction_attributes.is_empty() {
            return Err(EnvError::unusable(format!(
                "the product `{}` has an instruction without attributes, expected one or more",
                product.asin
            )));
        }
        let mut options: Vec<&(String, Vec<String>)> = product.options.iter().collect();
        options.sort_by(|a, b| a.0.cmp(&b.0));
        let count = options
            .iter()
            .try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()).filter(|count| *count <= MOST));
        let count = count.filter(|count| self.count + count <= MOST).ok_or_else(too_many)?;
        self.count += count;
        let goals = (0..count).map(|combination| {
            // the last option turns fastest
            let mut rest = combination;
            let mut chosen: Vec<(&str, &str)> = Vec::with_capacity(options.len());
            for (name, values) in options.iter().rev() {
                chosen.push((name, &values[rest % values.len()]));
                rest /= values.len();
            }
            chosen.reverse();
            let words: Vec<String> = chosen.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let with = if words.is_empty() { "" } else { " with " };
            let named = chosen.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let text = format!("{text}{with}{}", words.join(", and "));
            goal(product, text, &product.instruction_attributes, Wanted::Named(named))
        });
        let goals = goals.collect();
        self.groups.push((product.price, goals));
        Ok(())
    }

    /// Draws the limits and puts the goals in order.
    pub fn finish(mut self) -> Vec<Goal> {
        let mut goals = Vec::with_capacity(self.count);
        for (price, group) in self.groups {
            let range: Vec<f64> = (1..100).map(|i| 10.0 * f64::from(i)).filter(|p| *p > price).take(4).collect();
            let limit = (range.len() >= 2).then(|| {
                let (a, b) = self.random.pair(&range);
                a.max(b)
            });
            for mut goal in group {
                if let Some(limit) = limit {
                    goal.price_upper = limit;
                    goal.instruction_text.push_str(&format!("{BOUND}{limit:.2} dollars"));
                }
                goals.push(goal);
            }
        }
        if self.source == GoalSource::Synthetic {
            weigh(&mut goals);
        }
        Random::seeded(ORDER).shuffle(&mut goals);
        goals
    }
}

/// How an instruction says the limit.
pub const BOUND: &str = ", and price lower than ";

fn too_many() -> EnvError {
    EnvError::with_help(
        format!("the catalogue has more than {MOST} goals"),
        "take the goals of people, or fewer products: synthetic goals are one for each combination of options",
    )
}

fn goal(product: &Product, text: String, attributes: &[String], goal_options: Wanted) -> Goal {
    Goal {
        asin: product.asin.clone(),
        category: product.category.clone(),
        query: product.query.clone(),
        name: product.title.clone(),
        product_category: product.product_category.clone(),
        instruction_text: text,
        attributes: attributes.to_vec(),
        price_upper: NO_LIMIT,
        goal_options,
        weight: 1.0,
    }
}

/// Rare attributes weigh more.
fn weigh(goals: &mut [Goal]) {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for attribute in goals.iter().flat_map(|goal| &goal.attributes) {
        match counts.get_mut(attribute) {
            Some(count) => *count += 1,
            None => {
                counts.insert(attribute.clone(), 1);
            }
        }
    }
    for goal in goals {
        let sum: f64 = goal.attributes.iter().map(|a| 1.0 / counts[a] as f64).sum();
        goal.weight = sum / goal.attributes.len() as f64;
    }
}

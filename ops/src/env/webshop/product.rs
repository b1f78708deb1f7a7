//! Products as the store has them, and the reader of the original's files.
//!
//! 1. [`Product`]: what is derived of one row, the way WebShop does it.
//! 2. [`Files`]: which files a folder has.
//! 3. [`read`]: one product at a time, in the order of the file.
//!
//! Invariants: prices are drawn in the order of the file, from one generator; no more than one product of `items` is
//! held at a time, and none that is larger than [`LARGEST`]; whatever a file holds, what comes back is an error that
//! names it and the number of the product (from 1), or a product.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::{DeserializeOwned, Deserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::EnvError;
use super::elements::Elements;
use super::python::{Random, float, strip};

/// Bytes that one product may take in the file.
pub const LARGEST: usize = 64 << 20;

/// The seed of prices that are drawn, where nothing else is said. The original draws them without a seed.
pub const PRICES: u64 = 233;

/// One product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub asin: String,
    /// The file's `name`.
    pub title: String,
    /// Lowercase.
    pub query: String,
    pub category: String,
    /// `Home › lamp › gluten free`
    pub product_category: String,
    pub description: String,
    /// The file's `small_description`: what the page calls features.
    pub bullets: Vec<String>,
    pub attributes: Vec<String>,
    /// Names and values, lowercase, in the file's order.
    pub options: Vec<(String, Vec<String>)>,
    /// One price, or the two that it is drawn between.
    pub pricing: Vec<f64>,
    /// `$5.99`, `$10.0 to $25.5`
    pub price_text: String,
    /// What it costs.
    pub price: f64,
    /// What people were asked to buy it with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<Instruction>,
    /// What the attribute file makes of it: the text and the attributes of synthetic goals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instruction_attributes: Vec<String>,
    /// Nouns of the title, lowercase, with repeats, where a file says them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nouns: Option<Vec<String>>,
}

/// How a person asked for a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instruction {
    #[serde(rename = "instruction")]
    pub text: String,
    #[serde(rename = "instruction_attributes")]
    pub attributes: Vec<String>,
    #[serde(rename = "instruction_options")]
    pub options: Vec<String>,
}

impl Product {
    /// The text that is searched.
    pub fn contents(&self) -> String {
        let options: Vec<String> =
            self.options.iter().map(|(name, values)| format!("{name}: {}", values.join(", "))).collect();
        let first = self.bullets.first().map_or("", String::as_str);
        [&self.title, &self.description, first, &options.join(", and ")].join(" ").to_lowercase()
    }
}

/// Where the original's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `items_shuffle.json`
    pub items: Utf8PathBuf,
    /// `items_ins_v2.json`
    pub attributes: Utf8PathBuf,
    /// `items_human_ins.json`
    pub human: Option<Utf8PathBuf>,
    /// `items_nouns.json`: the nouns of each product's name, by asin.
    pub nouns: Option<Utf8PathBuf>,
    /// What the prices are drawn with.
    pub prices: u64,
}

impl Files {
    /// Finds the files of a folder by their names. Of several (`items_shuffle.json` beside `items_shuffle_1000.json`)
    /// there must be only one.
    ///
    /// # Errors
    /// A file that is missing, or there twice.
    pub fn of(folder: &Utf8Path) -> Result<Files, EnvError> {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(folder.as_std_path())? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        let find = |stem: &str| {
            let found: Vec<&String> =
                names.iter().filter(|name| name.starts_with(stem) && name.ends_with(".json")).collect();
            match found.as_slice() {
                [] => Ok(None),
                [name] => Ok(Some(folder.join(name))),
                [one, two, ..] => Err(EnvError::with_help(
                    format!("`{folder}` has `{one}` and `{two}`, expected one `{stem}*.json`"),
                    "keep each catalogue in a folder of its own",
                )),
            }
        };
        let missing = |stem: &str| {
            EnvError::with_help(
                format!("`{folder}` has no `{stem}*.json`"),
                "WebShop's `setup.sh` downloads `items_shuffle`, `items_ins_v2` and `items_human_ins`",
            )
        };
        Ok(Files {
            items: find("items_shuffle")?.ok_or_else(|| missing("items_shuffle"))?,
            attributes: find("items_ins_v2")?.ok_or_else(|| missing("items_ins_v2"))?,
            human: find("items_human_ins")?,
            nouns: find("items_nouns")?,
            prices: PRICES,
        })
    }
}

/// A product as the file has it.
#[derive(Deserialize)]
struct Row {
    asin: String,
    name: String,
    full_description: String,
    small_description: Bullets,
    #[serde(default)]
    pricing: Option<String>,
    category: String,
    query: String,
    product_category: String,
    customization_options: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Bullets {
    Many(Vec<String>),
    One(String),
}

/// Reads products, in the order of the file, and calls `each`.
///
/// # Errors
/// A file that cannot be read or holds something else, named with the number of the product; what `each` says.
pub fn read(files: &Files, each: &mut dyn FnMut(Product) -> Result<(), EnvError>) -> Result<(), EnvError> {
    let mut words = Words::default();
    let mut attributes = HashMap::new();
    table(&files.attributes, &mut |asin, noted: Noted| {
        attributes.insert(asin, words.pack(noted));
    })?;
    let mut human: HashMap<String, Vec<Instruction>> = HashMap::new();
    if let Some(path) = &files.human {
        table(path, &mut |asin, list| {
            human.insert(asin, list);
        })?;
    }
    let mut nouns: HashMap<String, Vec<Arc<str>>> = HashMap::new();
    if let Some(path) = &files.nouns {
        table(path, &mut |asin, list: Vec<String>| {
            nouns.insert(asin, list.iter().map(|noun| words.one(&noun.to_lowercase())).collect());
        })?;
    }
    let mut random = Random::seeded(files.prices);
    let mut seen = HashSet::new();
    let path = &files.items;
    let mut elements = Elements::new(fs_err::File::open(path.as_std_path())?, LARGEST);
    let mut number = 0usize;
    loop {
        let wrong = |number: usize, why: &dyn std::fmt::Display| {
            EnvError::unusable(format!("`{path}`: product {number}: {why}, expected a list of WebShop's products"))
        };
        let row: Row = match elements.next() {
            Ok(Some(bytes)) => {
                number += 1;
                serde_json::from_slice(bytes).map_err(|why| wrong(number, &why))?
            }
            Ok(None) => return Ok(()),
            Err(why) => return Err(wrong(number + 1, &why)),
        };
        if row.asin == "nan" || row.asin.chars().count() > 10 || !seen.insert(row.asin.clone()) {
            continue;
        }
        let mut product = derive(row).map_err(|why| wrong(number, &why))?;
        product.price = match product.pricing.as_slice() {
            [low, high] => random.uniform(*low, *high),
            other => other.first().copied().unwrap_or(100.0),
        };
        match attributes.remove(&product.asin) {
            Some(noted) => noted.tell(&mut product),
            None => product.attributes = vec![UNKNOWN.to_owned()],
        }
        product.instructions = human.remove(&product.asin).unwrap_or_default();
        product.nouns = nouns.remove(&product.asin).map(|list| texts(&list));
        each(product)?;
    }
}

/// What the original gives a product that the attribute file does not have.
const UNKNOWN: &str = "DUMMY_ATTR";

/// The derivations of one row, but the price drawn and what other files say.
fn derive(row: Row) -> Result<Product, String> {
    let (pricing, price_text) = prices(row.pricing.as_deref().unwrap_or_default())?;
    Ok(Product {
        options: options(&row.customization_options)?,
        bullets: match row.small_description {
            Bullets::Many(list) => list,
            Bullets::One(text) => vec![text],
        },
        asin: row.asin,
        title: row.name,
        query: strip(&row.query.to_lowercase()).to_owned(),
        category: row.category,
        product_category: row.product_category,
        description: row.full_description,
        pricing,
        price_text,
        ..Product::default()
    })
}

/// `$10.00$25.50` is two prices, `""` is 100.
fn prices(text: &str) -> Result<(Vec<f64>, String), String> {
    if text.is_empty() {
        return Ok((vec![100.0], "$100.0".to_owned()));
    }
    let mut pricing = Vec::new();
    for part in text.split('$').skip(1) {
        let digits: String = part.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        let price = digits.parse::<f64>().ok().filter(|price| price.is_finite());
        pricing.push(price.ok_or_else(|| format!("the price `{text}` is no price"))?);
    }
    pricing.truncate(2);
    match pricing.as_slice() {
        [] => Err(format!("the price `{text}` has no `$`")),
        [price] => Ok((pricing.clone(), format!("${}", float(*price)))),
        [low, high, ..] => Ok((pricing.clone(), format!("${} to ${}", float(*low), float(*high)))),
    }
}

/// Lowercase names and values; of names that become equal, the last one's values at the first one's place.
fn options(found: &serde_json::Value) -> Result<Vec<(String, Vec<String>)>, String> {
    use serde_json::Value;
    let named = match found {
        Value::Object(named) => named,
        Value::Null | Value::Bool(false) => return Ok(Vec::new()),
        Value::String(text) if text.is_empty() => return Ok(Vec::new()),
        Value::Array(list) if list.is_empty() => return Ok(Vec::new()),
        _ => return Err("`customization_options` is no table of lists".to_owned()),
    };
    let mut options: Vec<(String, Vec<String>)> = Vec::new();
    // a row with very many names is looked up, not searched
    let mut places: HashMap<String, usize> = HashMap::new();
    for (name, list) in named {
        let list = match list {
            Value::Null => continue,
            Value::Array(list) => list,
            _ => return Err(format!("the option `{name}` is no list")),
        };
        let values = list
            .iter()
            .map(|row| match row.get("value") {
                Some(Value::String(value)) => Ok(strip(value).replace('/', " | ").to_lowercase()),
                _ => Err(format!("the option `{name}` has a value that is no text")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let name = name.to_lowercase();
        match places.get(&name) {
            Some(place) => options[*place].1 = values,
            None => {
                places.insert(name.clone(), options.len());
                options.push((name, values));
            }
        }
    }
    Ok(options)
}

/// What the attribute file says of a product.
#[derive(Deserialize)]
struct Noted {
    #[serde(default)]
    attributes: Option<Vec<String>>,
    #[serde(default)]
    instruction: Option<String>,
    #[serde(default)]
    instruction_attributes: Option<Vec<String>>,
}

/// The same, with each word held once: a million products share a few thousand attributes.
struct Packed {
    attributes: Option<Vec<Arc<str>>>,
    instruction: Option<String>,
    instruction_attributes: Vec<Arc<str>>,
}

#[derive(Default)]
struct Words(HashSet<Arc<str>>);

impl Words {
    fn one(&mut self, word: &str) -> Arc<str> {
        match self.0.get(word) {
            Some(known) => known.clone(),
            None => {
                let word: Arc<str> = word.into();
                self.0.insert(word.clone());
                word
            }
        }
    }

    fn pack(&mut self, noted: Noted) -> Packed {
        let mut all = |list: Vec<String>| list.iter().map(|word| self.one(word)).collect::<Vec<_>>();
        Packed {
            attributes: noted.attributes.map(&mut all),
            instruction: noted.instruction,
            instruction_attributes: all(noted.instruction_attributes.unwrap_or_default()),
        }
    }
}

impl Packed {
    fn tell(self, product: &mut Product) {
        product.attributes = self.attributes.map_or_else(|| vec![UNKNOWN.to_owned()], |list| texts(&list));
        product.instruction = self.instruction;
        product.instruction_attributes = texts(&self.instruction_attributes);
    }
}

fn texts(words: &[Arc<str>]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// Reads a file that is one table by asin, entry by entry.
fn table<V: DeserializeOwned>(path: &Utf8Path, each: &mut dyn FnMut(String, V)) -> Result<(), EnvError> {
    struct Entries<'a, V>(&'a mut dyn FnMut(String, V));
    impl<'de, V: DeserializeOwned> Visitor<'de> for Entries<'_, V> {
        type Value = ();

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("a table by asin")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some((asin, value)) = map.next_entry()? {
                (self.0)(asin, value);
            }
            Ok(())
        }
    }
    let file = std::io::BufReader::with_capacity(1 << 20, fs_err::File::open(path.as_std_path())?);
    let mut json = serde_json::Deserializer::from_reader(file);
    json.deserialize_map(Entries(each))
        .and_then(|()| json.end())
        .map_err(|why| EnvError::unusable(format!("`{path}`: {why}, expected a table of products by asin")))
}

//! Made-up catalogues in the original's file formats, of any size, from a seed.
//!
//! 1. Products come in families of up to eight near-duplicates: one brand, one thing, the same praise; colours, sizes,
//!    prices, an attribute and the model differ. A search must therefore look at more than one word.
//! 2. People's instructions ask for attributes and option values that the product has, in words like theirs.
//!
//! Invariants: product `i` is a function of the seed and `i`, so nothing is held but one product; asins never repeat;
//! every goal can be met with reward 1.

mod lexicon;

use std::io::{BufWriter, Write};

use camino::Utf8Path;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::lexicon::{ADJECTIVES, DEPARTMENTS, Department, EXTRAS, OPENINGS, SYLLABLES, THINGS, Thing, option};
use super::EnvError;
use crate::rng::Rng;

/// Most products: asins have eight free characters, and an index numbers products in 32 bits.
pub const MOST: u64 = 1 << 31;

/// Brands that there are.
const BRANDS: usize = 6000;
/// Products that a family may have.
const FAMILY: u64 = 8;
/// Streams of random numbers.
const FAMILIES: u64 = 0;
const BASES: u64 = 1;
const VARIANTS: u64 = 2;
const PEOPLE: u64 = 3;

/// A product before it is written.
struct Made {
    asin: String,
    title: String,
    description: String,
    bullets: Vec<String>,
    pricing: String,
    thing: &'static Thing,
    attributes: Vec<&'static str>,
    brand: String,
    options: Vec<(&'static str, Vec<&'static str>)>,
}

/// Writes `products` products and people's instructions for `goals` goals into `folder`. `going` is asked now and then,
/// and a `false` ends the work.
///
/// # Errors
/// The file system's; [`std::io::ErrorKind::Interrupted`] when `going` says so.
pub fn write(
    folder: &Utf8Path,
    products: u64,
    goals: u64,
    seed: u64,
    mut going: impl FnMut(u64) -> bool,
) -> Result<(), EnvError> {
    let create =
        |name: &str| fs_err::File::create(folder.join(name)).map(|file| BufWriter::with_capacity(1 << 18, file));
    let mut items = create("items_shuffle.json")?;
    let mut attributes = create("items_ins_v2.json")?;
    let mut human = create("items_human_ins.json")?;
    items.write_all(b"[")?;
    attributes.write_all(b"{")?;
    human.write_all(b"{")?;
    let mut asked = 0u64;
    for index in 0..products {
        if index.is_multiple_of(1024) && !going(index) {
            return Err(EnvError::Io(std::io::ErrorKind::Interrupted.into()));
        }
        let made = make(seed, index);
        let comma: &[u8] = if index == 0 { b"" } else { b",\n" };
        items.write_all(comma)?;
        to(&mut items, &item(&made))?;
        attributes.write_all(comma)?;
        entry(&mut attributes, &made.asin, &noted(&made))?;
        // goals are spread evenly
        let until = (u128::from(index + 1) * u128::from(goals) / u128::from(products)) as u64;
        if until > asked {
            human.write_all(if asked == 0 { b"" } else { b",\n" })?;
            let rows: Vec<Value> = (asked..until).map(|goal| instruction(seed, goal, &made)).collect();
            entry(&mut human, &made.asin, &rows)?;
            asked = until;
        }
    }
    items.write_all(b"]\n")?;
    attributes.write_all(b"}\n")?;
    human.write_all(b"}\n")?;
    for file in [items, attributes, human] {
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    }
    Ok(())
}

fn to(out: &mut impl Write, value: &impl Serialize) -> Result<(), EnvError> {
    Ok(serde_json::to_writer(out, value).map_err(std::io::Error::from)?)
}

fn entry(out: &mut impl Write, asin: &str, value: &impl Serialize) -> Result<(), EnvError> {
    to(out, &asin)?;
    out.write_all(b":")?;
    to(out, value)
}

fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.below(list.len())]
}

/// Some of a list, in a new order.
fn some<T: Copy>(rng: &mut Rng, list: &[T], count: usize) -> Vec<T> {
    let mut all = list.to_vec();
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}

/// A number that no other index has, of eight digits to the base of 36: steps of one size around a ring.
fn asin(seed: u64, index: u64) -> String {
    const RING: u64 = 36u64.pow(8);
    // no factor in common with the ring, whose factors are 2 and 3
    const STEP: u64 = 1_745_036_827_591;
    let at = (u128::from(index) * u128::from(STEP) + u128::from(Rng::at(seed, &[4]).next_u64())) % u128::from(RING);
    let mut rest = at as u64;
    let mut digits = [0u8; 8];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[(rest % 36) as usize];
        rest /= 36;
    }
    format!("B0{}", digits.map(char::from).iter().collect::<String>())
}

/// The first product of the family that a product is of.
fn family(seed: u64, index: u64) -> u64 {
    let (begin, within) = (index - index % FAMILY, index % FAMILY);
    let mut rng = Rng::at(seed, &[FAMILIES, begin]);
    let mut first = 0;
    loop {
        // half of all families are one product
        let size = if rng.percent(50) { 1 } else { rng.between(2, FAMILY as usize) as u64 };
        if first + size > within {
            return begin + first;
        }
        first += size;
    }
}

/// A name that people might give a brand: few are common, most are rare.
fn brand(rng: &mut Rng) -> String {
    let widest = rng.below(BRANDS) + 1;
    let mut number = rng.below(widest);
    let mut name = String::new();
    for _ in 0..2 {
        name.push_str(SYLLABLES[number % SYLLABLES.len()]);
        number /= SYLLABLES.len();
    }
    // 6000 names of three syllables
    if number > 0 {
        name.push_str(SYLLABLES[number % SYLLABLES.len()]);
    }
    let (first, rest) = name.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

fn capitals(text: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn make(seed: u64, index: u64) -> Made {
    let mut base = Rng::at(seed, &[BASES, family(seed, index)]);
    let mut rng = Rng::at(seed, &[VARIANTS, index]);
    let thing = &THINGS[base.below(THINGS.len())];
    let department: &Department = &DEPARTMENTS[thing.department];
    let brand = brand(&mut base);
    let material = pick(&mut base, department.materials);
    let purpose = pick(&mut base, department.uses);
    let adjective = pick(&mut base, &ADJECTIVES);
    let count = base.between(3, 6);
    let mut attributes = some(&mut base, department.attributes, count);
    // a near-duplicate that is better or worse in one thing
    if rng.percent(40) {
        let other = pick(&mut rng, department.attributes);
        if !attributes.contains(&other) {
            let at = rng.below(attributes.len());
            attributes[at] = other;
        }
    }
    let options = thing.options.chars().filter(|_| !rng.percent(12)).collect::<Vec<_>>();
    let options: Vec<(&str, Vec<&str>)> = options
        .into_iter()
        .map(|letter| {
            let (name, values) = option(letter);
            let count = rng.between(1, values.len().min(9));
            // sizes stay in their order
            let mut chosen = some(&mut rng, &(0..values.len()).collect::<Vec<_>>(), count);
            chosen.sort_unstable();
            (name, chosen.into_iter().map(|at| values[at]).collect())
        })
        .collect();
    let model = format!(
        "{}{}{}",
        char::from(b'A' + rng.below(26) as u8),
        char::from(b'A' + rng.below(26) as u8),
        rng.between(10, 9999)
    );

    let noun = thing.noun;
    let shown: Vec<String> = attributes.iter().take(2).map(|a| capitals(a)).collect();
    let title = match base.below(4) {
        0 => format!("{brand} {adjective} {noun} for {purpose}, {}, {}", shown.join(", "), capitals(material)),
        1 => format!("{brand} {noun} {}, {} {adjective} {model}", shown.join(" "), capitals(material)),
        2 => format!("{adjective} {} {noun} by {brand} - {} - for {purpose}", capitals(material), shown.join(" & ")),
        _ => format!("{brand} {} {adjective} {noun} ({model}) for {purpose}", shown.join(" ")),
    };
    let title = if rng.percent(45) { format!("{title}, {}", pick(&mut rng, &EXTRAS)) } else { title };
    let fill = |text: &str| text.replace("{noun}", &noun.to_lowercase()).replace("{brand}", &brand);
    let sentences = base.below(4) + usize::from(rng.percent(50));
    let mut description: Vec<String> = some(&mut base, department.praise, sentences).into_iter().map(fill).collect();
    if !description.is_empty() {
        description.insert(
            0,
            format!(
                "{brand} makes {} {} of {material}, {}.",
                attributes[0],
                noun.to_lowercase(),
                attributes.join(", ")
            ),
        );
    }
    let mut bullets: Vec<String> = attributes
        .iter()
        .map(|attribute| {
            format!(
                "{}: the {} of {brand} are {attribute}, made for {}.",
                capitals(attribute),
                noun.to_lowercase(),
                purpose.to_lowercase()
            )
        })
        .collect();
    bullets.push(format!("Model {model}, {material}, checked twice before it is shipped."));

    // prices are as likely to double as to halve
    let (low, high) = (f64::from(thing.low), f64::from(thing.high));
    let usual = low * (high / low).powf(base.uniform());
    let price = (usual * (0.8 + 0.4 * rng.uniform())).floor().max(1.0) + [0.99, 0.95, 0.5, 0.0][rng.below(4)];
    let pricing = match rng.below(20) {
        0..=11 => format!("${}", dollars(price)),
        12..=16 => format!("${}${}", dollars(price), dollars(price * (1.2 + rng.uniform()))),
        _ => String::new(),
    };
    let made_description = description.join(" ");
    Made {
        asin: asin(seed, index),
        title,
        description: made_description,
        bullets,
        pricing,
        thing,
        attributes,
        brand,
        options,
    }
}

/// `1,299.00`
fn dollars(price: f64) -> String {
    let cents = (price * 100.0).round() as u64;
    let (whole, cents) = (cents / 100, cents % 100);
    if whole >= 1000 {
        format!("{},{:03}.{cents:02}", whole / 1000, whole % 1000)
    } else {
        format!("{whole}.{cents:02}")
    }
}

fn item(made: &Made) -> Value {
    let mut options = Map::new();
    for (name, values) in &made.options {
        let row = |value: &&str| json!({"is_selected": false, "is_available": true, "value": value, "image": null, "asin": made.asin});
        options.insert((*name).to_owned(), values.iter().map(row).collect());
    }
    let department = &DEPARTMENTS[made.thing.department];
    json!({
        "asin": made.asin,
        "name": made.title,
        "full_description": made.description,
        "small_description": made.bullets,
        "pricing": made.pricing,
        "images": [format!("https://example.org/{}.jpg", made.asin)],
        "category": department.name,
        "query": made.thing.query,
        "product_category": format!("{} › {} › {}", department.root, made.thing.shelf, made.thing.noun),
        "customization_options": options,
        "brand": made.brand,
        "list_price": "",
        "availability_status": "In Stock.",
        "product_information": {},
        "total_reviews": 0,
    })
}

/// `easy clean, long lasting and non slip`
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn noted(made: &Made) -> Value {
    let wanted = &made.attributes[..made.attributes.len().min(2)];
    json!({
        "attributes": made.attributes,
        "instruction": format!("Find me {} {}", wanted.join(", "), made.thing.query),
        "instruction_attributes": wanted,
    })
}

/// How a person asks for a product.
fn instruction(seed: u64, goal: u64, made: &Made) -> Value {
    let mut rng = Rng::at(seed, &[PEOPLE, goal]);
    let most = made.attributes.len().min(3);
    let count = rng.between(1, most);
    let wanted = some(&mut rng, &made.attributes, count);
    let mut chosen: Vec<(&str, String)> = Vec::new();
    for (name, values) in &made.options {
        if rng.percent(75) {
            chosen.push((name, pick(&mut rng, values).trim().replace('/', " | ").to_lowercase()));
        }
    }
    let noun = made.thing.noun.to_lowercase();
    let opening = pick(&mut rng, &OPENINGS);
    let values: Vec<String> = chosen
        .iter()
        .map(|(name, value)| match (*name, rng.below(3)) {
            ("Color", 0) => format!("in {value}"),
            ("Color", 1) => format!("that is {value} in color"),
            ("Size", 0 | 1) => format!("in size {value}"),
            ("Flavor Name", _) => format!("with {value} flavor"),
            ("Scent", _) => format!("that smells of {value}"),
            _ => format!("with the {} {value}", name.to_lowercase()),
        })
        .collect();
    let values = if values.is_empty() { String::new() } else { format!(" {}", values.join(", and ")) };
    let text = match rng.below(3) {
        0 => format!("{opening} {noun} that are {}{values}.", listed(&wanted)),
        1 => format!("{opening} some {} {noun}{values}.", wanted.join(", ")),
        _ => format!("{opening} {noun}{values}. they should be {}.", listed(&wanted)),
    };
    json!({
        "asin": made.asin,
        "instruction": text,
        "attributes": made.attributes,
        "options": chosen.iter().map(|(name, value)| format!("{}: {value}", name.to_lowercase())).collect::<Vec<_>>(),
        "instruction_attributes": wanted,
        "instruction_options": chosen.iter().map(|(_, value)| value).collect::<Vec<_>>(),
        "assignment_id": format!("made-up-{goal}"),
        "worker_id": "made-up",
    })
}

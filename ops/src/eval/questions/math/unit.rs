//! Names of units and of bases in one spelling.

/// Spellings of a unit; the first stands for all.
const UNITS: [&[&str]; 34] = [
    &["cm", "centimeter", "centimetre"],
    &["mm", "millimeter", "millimetre"],
    &["km", "kilometer", "kilometre"],
    &["m", "meter", "metre"],
    &["in", "inch", "inches"],
    &["ft", "foot", "feet"],
    &["mi", "mile"],
    &["yd", "yard"],
    &["kg", "kilogram"],
    &["mg", "milligram"],
    &["g", "gram"],
    &["lb", "pound", "lbs"],
    &["oz", "ounce"],
    &["s", "sec", "second"],
    &["min", "minute"],
    &["h", "hr", "hour", "hrs"],
    &["day"],
    &["week"],
    &["month"],
    &["year", "yr"],
    &["dollar", "usd"],
    &["cent"],
    &["°", "degree", "deg"],
    &["rad", "radian"],
    &["l", "liter", "litre"],
    &["ml", "milliliter", "millilitre"],
    &["unit"],
    &["mph", "miles per hour"],
    &["km/h", "kph"],
    &["hz", "hertz"],
    &["n", "newton"],
    &["j", "joule"],
    &["w", "watt"],
    &["k", "kelvin"],
];

fn one(word: &str) -> String {
    let known = |word: &str| UNITS.iter().find(|names| names.contains(&word)).map(|names| names[0].to_owned());
    let singular = word.strip_suffix('s').filter(|s| s.len() > 1);
    known(word).or_else(|| known(singular?)).or_else(|| singular.map(str::to_owned)).unwrap_or_else(|| word.to_owned())
}

/// A unit's name out of its words: `square centimeters` is `cm^2`, `miles per hour` is `mi/h`.
pub fn named(words: &[&str]) -> String {
    let power = match words.first() {
        Some(&"square" | &"sq") => "^2",
        Some(&"cubic" | &"cu") => "^3",
        _ => "",
    };
    let words = if power.is_empty() { words } else { &words[1..] };
    let mut name = String::new();
    for word in words {
        if *word == "per" {
            name.push('/');
        } else {
            if !name.is_empty() && !name.ends_with('/') {
                name.push(' ');
            }
            name.push_str(&one(word));
        }
    }
    match (&*name, power) {
        ("mi/h", "") => "mph".to_owned(),
        // `12 units squared` and `12 square units` are 12 of whatever unit there is
        _ => name + power,
    }
}

/// The base that a word names.
pub fn base(word: &str) -> Option<u32> {
    Some(match word {
        "two" | "binary" => 2,
        "three" => 3,
        "four" => 4,
        "five" => 5,
        "six" => 6,
        "seven" => 7,
        "eight" | "octal" => 8,
        "nine" => 9,
        "ten" | "decimal" => 10,
        "eleven" => 11,
        "twelve" => 12,
        "sixteen" | "hex" => 16,
        _ => return None,
    })
}

//! Names of units and of bases in one spelling.
//!
//! Invariants: the lists are closed, for a word that is not known may change the value (`squared`, `halves`, `dozens`) or
//! deny it (`wrong`); symbols keep their case, for mW is not MW. The book's page on equal answers has the same words.

/// Symbols, in their own case. The words of [`MEASURES`] stand for some of them.
const SYMBOLS: &str = "m dm cm mm km nm µm g kg mg µg s ms µs ns h L mL cL dL kL N kN J kJ MJ W mW kW MW GW V mV kV A mA K \
                       Pa hPa kPa MPa Hz kHz MHz GHz mol mmol eV keV MeV cal kcal Wh kWh ha dB kB MB GB TB";

/// Words and abbreviations of measures, in lower case; the first of each row stands for all.
const MEASURES: &[&[&str]] = &[
    &["m", "meter", "metre"],
    &["dm", "decimeter", "decimetre"],
    &["cm", "centimeter", "centimetre", "cms"],
    &["mm", "millimeter", "millimetre"],
    &["km", "kilometer", "kilometre", "kms"],
    &["nm", "nanometer", "nanometre"],
    &["µm", "micrometer", "micrometre", "micron"],
    &["in", "inch"],
    &["ft", "foot"],
    &["yd", "yard"],
    &["mi", "mile"],
    &["g", "gram", "gm"],
    &["kg", "kilogram", "kilo"],
    &["mg", "milligram"],
    &["ton", "tonne"],
    &["lb", "pound"],
    &["oz", "ounce"],
    &["s", "sec", "second"],
    &["ms", "millisecond"],
    &["µs", "microsecond"],
    &["ns", "nanosecond"],
    &["min", "minute"],
    &["h", "hr", "hour"],
    &["day"],
    &["week"],
    &["month"],
    &["year", "yr"],
    &["decade"],
    &["century"],
    &["L", "liter", "litre"],
    &["mL", "ml", "milliliter", "millilitre"],
    &["cL", "cl", "centiliter", "centilitre"],
    &["dL", "dl", "deciliter", "decilitre"],
    &["gallon", "gal"],
    &["quart", "qt"],
    &["pint", "pt"],
    &["cup"],
    &["tablespoon", "tbsp"],
    &["teaspoon", "tsp"],
    &["acre"],
    &["ha", "hectare"],
    &["°", "degree", "deg"],
    &["rad", "radian"],
    &["revolution", "rev"],
    &["rpm"],
    &["mph"],
    &["km/h", "kph", "kmph", "kmh"],
    &["knot"],
    &["Hz", "hz", "hertz"],
    &["N", "newton"],
    &["J", "joule"],
    &["kJ", "kilojoule"],
    &["W", "watt"],
    &["kW", "kilowatt"],
    &["MW", "megawatt"],
    &["V", "volt"],
    &["A", "amp", "ampere"],
    &["ohm"],
    &["K", "kelvin"],
    &["Pa", "pascal"],
    &["kPa", "kilopascal"],
    &["atm", "atmosphere"],
    &["mol", "mole"],
    &["eV", "electronvolt"],
    &["cal", "calorie"],
    &["kcal", "kilocalorie"],
    &["dB", "decibel"],
    &["bit"],
    &["byte"],
    &["kB", "kilobyte"],
    &["MB", "megabyte"],
    &["GB", "gigabyte"],
    &["unit"],
];

/// Currencies and their coins: none has a power.
const MONEY: &str = "dollar=usd cent euro=eur penny=pence yen yuan rupee peso franc ruble nickel dime";

/// What is counted, in the singular; `=` stands before an irregular plural.
const COUNTED: &str = "\
    animal answer apple arrangement ball banana bag bird boat book bottle box boy brick bus cake can candy car card \
    carton cat chair chicken child=children choice circle city class code coin color colour combination committee \
    cookie cow cubes customer diagonal digit dog door dot edge egg element employee envelope event face family flavor \
    flower friend function game girl goal goat graph group guest horse house integer intersection item jar key kid \
    leg letter line list man=men marble match member message mouse=mice muffin name number orange outcome outfit \
    page painting path peach pear pen pencil people person permutation piece pig pizza place plant plate player \
    point polygon polynomial possibility problem question rabbit rectangle region row sandwich school seat section \
    segment selection sequence shape sheep shirt shoe side slice sock solution song squares stamp star step sticker \
    stick stone student subset table team term test ticket tile toy train tree triangle trip truck value \
    vertex=vertices vote way wheel window woman=women word worker";

/// What may stand before a counted thing and says nothing of how many there are.
const ADJECTIVES: [&str; 3] = ["different", "distinct", "possible"];

/// Whether a word is one of these in the singular, or a regular plural of it.
fn singular<'a>(word: &str, of: &[&'a str]) -> Option<&'a str> {
    of.iter().copied().find(|one| {
        let ending = word.strip_prefix(*one);
        let hissed = one.ends_with(['s', 'x', 'z']) || one.ends_with("ch") || one.ends_with("sh");
        match ending {
            Some("") => true,
            Some("s") => !hissed && one.chars().count() > 1,
            Some("es") => hissed,
            _ => one.strip_suffix('y').is_some_and(|stem| word.strip_suffix("ies") == Some(stem)),
        }
    })
}

/// Whether a word is the symbol of a unit in this very case.
pub fn symbol(word: &str) -> bool {
    SYMBOLS.split_whitespace().any(|symbol| symbol == word) || word == "l"
}

/// Whether a word would be a symbol or a part of a word if its case did not matter: its case has to be kept.
pub fn cased(word: &str) -> bool {
    word.chars().count() <= 3 && SYMBOLS.split_whitespace().any(|symbol| symbol.eq_ignore_ascii_case(word))
}

fn measure(word: &str) -> Option<&'static str> {
    // two signs for micro, and a letter in its place
    let word = word.replace('μ', "µ");
    let symbols = || SYMBOLS.split_whitespace();
    let spelled = match &*word {
        "l" => Some("L"),
        "feet" => Some("ft"),
        "um" => Some("µm"),
        word => symbols().find(|symbol| *symbol == word),
    };
    let lower = word.to_lowercase();
    let named = || MEASURES.iter().find(|names| singular(&lower, names).is_some()).map(|names| names[0]);
    // one letter, and one behind the sign of a million, are nothing in another case
    let strict = word.len() == 1 || (word.len() == 2 && word.starts_with('M'));
    spelled.or_else(|| if strict { None } else { named() })
}

fn money(word: &str) -> Option<&'static str> {
    let row = MONEY.split_whitespace().find(|row| singular(word, &row.split('=').collect::<Vec<_>>()).is_some());
    row?.split('=').next()
}

fn counted(word: &str) -> Option<&'static str> {
    let row = COUNTED.split_whitespace().find(|row| match row.split_once('=') {
        Some((one, many)) => word == one || word == many,
        None => singular(word, &[row]).is_some(),
    });
    row?.split('=').next()
}

/// A unit: its name, and whether it has powers.
pub struct Unit {
    pub name: String,
    pub powers: bool,
}

/// A unit out of its words: `square centimeters` is `cm^2`, `miles per hour` is `mph`. `None` where a word is not known.
pub fn named(words: &[&str]) -> Option<Unit> {
    let mut parts = Vec::new();
    let mut powers = false;
    for part in words.split(|word| *word == "per") {
        let (name, measures) = one(part)?;
        powers = measures;
        parts.push(name);
    }
    let name = match &*parts.join("/") {
        "mi/h" => "mph".to_owned(),
        name => name.to_owned(),
    };
    Some(Unit { name, powers })
}

/// What stands before, between or after `per`.
fn one(words: &[&str]) -> Option<(String, bool)> {
    let (power, words) = match words {
        ["square" | "sq", rest @ ..] if !rest.is_empty() => ("^2", rest),
        ["cubic" | "cu", rest @ ..] if !rest.is_empty() => ("^3", rest),
        [rest @ .., "squared"] => ("^2", rest),
        [rest @ .., "cubed"] => ("^3", rest),
        words => ("", words),
    };
    let found = match words {
        [degree, scale @ ("celsius" | "fahrenheit")] if measure(degree) == Some("°") => {
            Some((format!("° {scale}"), false))
        }
        ["year" | "years", "old"] => Some(("year".to_owned(), false)),
        [word] if measure(word).is_some() => measure(word).map(|name| (name.to_owned(), true)),
        [first, second] if measure(first).is_some() => {
            let (first, second) = (measure(first)?, measure(second)?);
            Some((format!("{first} {second}"), true))
        }
        [word] => money(word).or_else(|| counted(word)).map(|name| (name.to_owned(), false)),
        [adjective, word] if ADJECTIVES.contains(adjective) => counted(word).map(|name| (name.to_owned(), false)),
        _ => None,
    };
    let (name, measures) = found?;
    (power.is_empty() || measures).then(|| (name + power, measures && power.is_empty()))
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

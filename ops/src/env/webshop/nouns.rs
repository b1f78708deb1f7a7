//! Nouns of a product's name.
//!
//! The original asks spaCy's `en_core_web_sm` for nouns and proper nouns, a trained tagger that has no equal here. A
//! catalogue may list what it said of each name. Where it does not, a lexicon answers: a word is a noun unless it is of
//! a closed class, a number, a common adjective or adverb, or has an ending that nouns of product names do not have.
//! That takes names as lists of words and never looks at what stands beside a word, so it calls verbs and rare
//! adjectives nouns more often than spaCy does.
//!
//! Invariants: nouns are lowercase, in the name's order, with repeats.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What counts as a noun of a product's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Nouns {
    /// What the catalogue lists (`items_nouns.json`), and a lexicon's guess for products that it does not list.
    #[default]
    Listed,
    /// Every run of three or more letters.
    Words,
}

impl Nouns {
    /// Nouns of a name, of which the catalogue may list its own.
    pub fn of(self, name: &str, listed: Option<&[String]>) -> Vec<String> {
        match (self, listed) {
            (Nouns::Words, _) => name
                .split(|c: char| !c.is_alphabetic())
                .filter(|word| word.chars().count() >= 3)
                .map(str::to_lowercase)
                .collect(),
            (Nouns::Listed, Some(listed)) => listed.to_vec(),
            (Nouns::Listed, None) => guess(name),
        }
    }
}

/// Determiners, pronouns, prepositions, conjunctions, auxiliaries, particles.
const CLOSED: &str = "a about above across after again against all along also although among an and another any are \
    around as at be because been before behind being below beneath beside besides between beyond both but by can could \
    did do does down during each either enough every few for from had has have he her here hers him his how i if in \
    inside into is it its just less like many may me might mine more most much must my near neither no none nor not of \
    off on once one only onto or other our ours out outside over own per please same shall she should since so some \
    such than that the their theirs them then there these they this those though through throughout till to too toward \
    towards under until up upon us versus very via vs was we were what when where whether which while who whom whose \
    why will with within without would yet you your yours";

/// Words that say what is asked rather than what for.
const ASKING: &str = "am buy buying find finding get getting give help interested looking need needing needs order \
    purchase purchasing recommend search searching seeking shopping show something want wanted wanting wants";

/// Number words.
const NUMBERS: &str = "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred \
    thousand million dozen first second third double triple";

/// Adjectives and adverbs that product names are full of, and that no ending shows.
const ADJECTIVES: &str = "adult aged ample antique apt automatic bare best better big bigger black blank bold brief \
    bright broad brown bulk calm casual cheap chic chunky clean clear close cold compact cool crisp crude cruelty-free \
    crunchy curly cute damp dark deep dense different dim dry dual dull durable easy elegant empty even ever evergreen \
    extra faint fair fake fancy far fast fat fine firm flat fluffy formal free fresh full fuzzy gentle giant glossy \
    good gourmet grand gray great green grey hairy half handy happy hard harsh healthy heavy hidden high higher hollow \
    hot huge hypoallergenic ideal indoor instant invisible jumbo keen large larger last late latest lazy lean left \
    little long longer loose loud low lower lush main major male female matte mature maximum mean medium mega messy mid \
    mild mini minor modern moist multiple narrow natural navy neat new next nice nude odd old oily organic original \
    outdoor oversized pale perfect petite plain plump plus polite poor premium pretty proof pure purple quick quiet rapid \
    rare raw ready real red refillable regular retro rich right ripe robust rough round royal rude sad safe salty sane \
    seamless secure semi senior sensitive separate several shaggy sharp sheer shiny short shy sick silent silky simple \
    single skinny sleek slender slick slim slow small smaller smart smooth soft solid solo soothing sour spare special \
    spicy square stable standard steep sticky stiff still straight strict strong stubborn super sure sweet swift tall \
    tart tender thick thin tidy tight tiny top total tough trendy true twin ultra unique upper urban usual various vast \
    vegan vibrant vintage violet warm weak wet white whole wide wild wise wrong yellow young";

/// Words whose ending speaks against them, and who are nouns all the same.
const NOUNS: &str = "animal arrival assembly awning bag basic bed bedding belly bracelet building cable calf camping \
    cardigan ceiling cereal charging chemical china classic clothing coating collective comic counter cotton crystal \
    cushioning decking deed detergent diffuser dining dressing drawing drive earring electric engraving fabric family \
    feed filling finding fishing flavoring flooring fly footing frosting garlic gaming gift glove grooming hearing \
    heating herbal hiking housing hunting icing jelly jewelry king knitting lighting lining living lotion material \
    medal metal mineral monthly moulding music nail networking oil olive opening outing packaging padding painting \
    pedal petal piercing piping plastic plumbing portable powder pudding rainbow railing recording relief ring rocking \
    rubric running sable sanding schooling sealing seasoning seed serving setting sewing shaving shed shelving shipping \
    sibling signal silicone sled sleeve sling speed spring staircase steering sterling stocking storage string styling \
    supply swimming table thing tonic topic topping towel toy training travel trial trimming tubing tuning twelve \
    vegetable vehicle walking wall washing wedding weed weekly wing wiring wool yearling yoga";

/// Endings of adjectives, adverbs and forms of verbs.
const ENDINGS: [&str; 17] = [
    "able", "ible", "ful", "less", "ous", "ive", "ical", "ional", "ish", "ary", "ant", "ent", "ly", "ed", "ing", "ic",
    "est",
];

/// Nouns that end as adjectives do, by their own endings.
const NOUN_ENDINGS: [&str; 8] = ["ment", "plant", "parent", "scent", "pendant", "tent", "agent", "nest"];

fn among(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|known| known == word)
}

/// Whether a lowercase word only asks, or is of a closed class.
pub fn is_filler(word: &str) -> bool {
    among(CLOSED, word) || among(ASKING, word)
}

fn is_noun(word: &str) -> bool {
    if word.chars().count() < 2 || word.starts_with(|c: char| c.is_numeric()) || !word.contains(char::is_alphabetic) {
        return false;
    }
    if among(NOUNS, word) {
        return true;
    }
    if among(CLOSED, word) || among(NUMBERS, word) || among(ADJECTIVES, word) {
        return false;
    }
    let ends = |ending: &str| word.len() > ending.len() + 2 && word.ends_with(ending);
    NOUN_ENDINGS.iter().any(|ending| word.ends_with(ending)) || !ENDINGS.iter().any(|ending| ends(ending))
}

/// Nouns of a name by the lexicon.
fn guess(name: &str) -> Vec<String> {
    name.split(|c: char| !c.is_alphanumeric() && !matches!(c, '\'' | '\u{2019}'))
        .map(|word| {
            let word = word.trim_matches(|c| matches!(c, '\'' | '\u{2019}')).to_lowercase();
            // what belongs to a person is a word of its own
            word.strip_suffix("'s").or(word.strip_suffix("\u{2019}s")).map_or(word.clone(), str::to_owned)
        })
        .filter(|word| is_noun(word))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lexicon_finds_what_a_product_is() {
        for (name, nouns) in [
            ("Long Lasting Shoes model 27", "shoes model"),
            ("Women's Casual Running Shoes, Lightweight & Breathable (Size 9)", "women running shoes lightweight size"),
            ("Stainless Steel Water Bottle with Leakproof Lid 32oz", "steel water bottle leakproof lid"),
            ("The Easy to Clean, Gluten-Free Snack for Two", "gluten snack"),
            ("Wedding Ring and Plastic Plant Hanging Basket", "wedding ring plastic plant basket"),
        ] {
            assert_eq!(Nouns::Listed.of(name, None).join(" "), nouns, "{name}");
        }
    }

    #[test]
    fn a_catalogue_that_lists_nouns_is_believed() {
        let listed = ["model".to_owned()];
        assert_eq!(Nouns::Listed.of("Long Lasting Shoes model 27", Some(&listed)), listed);
        assert_eq!(Nouns::Words.of("TV Set 27b of-Wool", Some(&listed)), ["set", "wool"]);
    }

    proptest! {
        #[test]
        fn any_name_has_lowercase_nouns_of_its_own(name in ".{0,60}") {
            for noun in Nouns::Listed.of(&name, None) {
                prop_assert!(name.to_lowercase().contains(&noun) && !noun.is_empty());
            }
        }
    }
}

//! What a reflection may not know: that it was asked to explain somebody's action, and what comes next.
//!
//! 1. Texts become words: lower case, full-width letters plain, marks of emphasis and letters of no width left out, letters
//!    and digits apart.
//! 2. A *word leak* is a pattern of words in the reflection that the state does not hold.
//! 3. An *outcome leak* is a run of an outcome's words in the reflection that the state does not hold.
//!
//! Invariant: what the state itself says is no leak, so a shop that sells an `expert mode` may be thought about.

/// Words of a text.
pub type Words = Vec<String>;

/// Letters that nothing shows of.
fn is_blank(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// Letters of full width as plain ones.
fn plain(c: char) -> char {
    let narrow = u32::from(c).wrapping_sub(0xfee0);
    if (0x21..=0x7e).contains(&narrow) { char::from_u32(narrow).unwrap_or(c) } else { c }
}

/// The words of a text.
pub fn words(text: &str) -> Words {
    let mut words: Words = Vec::new();
    // whether the word that is open is a number; `None` where none is open
    let mut open: Option<bool> = None;
    for c in text.chars().map(plain).filter(|c| !is_blank(*c) && !matches!(c, '*' | '`' | '~')) {
        if !c.is_alphanumeric() {
            open = None;
            continue;
        }
        let number = c.is_numeric();
        if open != Some(number) {
            words.push(String::new());
            open = Some(number);
        }
        if let Some(word) = words.last_mut() {
            word.extend(c.to_lowercase());
        }
    }
    words
}

const NUMBERS: [&str; 10] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// A word of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Word(String),
    /// `expert*`: whatever begins so.
    Begins(String),
    /// `#`: a number in digits, or from one to ten.
    Number,
}

/// Words in a row that give a reflection away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

impl Pattern {
    /// Reads a pattern: words, of which `#` stands for a number and one that ends in `*` for every word that begins so.
    ///
    /// # Errors
    /// Says what is no word.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let part = |piece: &str| {
            if piece == "#" {
                return Ok(Part::Number);
            }
            let (stem, begins) = piece.strip_suffix('*').map_or((piece, false), |stem| (stem, true));
            match words(stem).as_slice() {
                [word] if word.chars().eq(stem.chars().flat_map(char::to_lowercase)) => {
                    Ok(if begins { Part::Begins(word.clone()) } else { Part::Word(word.clone()) })
                }
                _ => Err(format!("`{piece}` is no word, expected letters or digits, `#`, or a beginning and `*`")),
            }
        };
        let parts: Vec<Part> = text.split_whitespace().map(part).collect::<Result<_, String>>()?;
        if parts.is_empty() { Err("a pattern is empty, expected words".to_owned()) } else { Ok(Pattern(parts)) }
    }

    fn is_in(&self, words: &[String]) -> bool {
        let fits = |(part, word): (&Part, &String)| match part {
            Part::Word(want) => word == want,
            Part::Begins(stem) => word.starts_with(stem.as_str()),
            Part::Number => word.chars().all(char::is_numeric) || NUMBERS.contains(&word.as_str()),
        };
        words.windows(self.0.len()).any(|window| self.0.iter().zip(window).all(fits))
    }
}

/// Which kinds of leak a reflection has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaks {
    pub words: bool,
    pub outcome: bool,
}

impl Leaks {
    pub fn any(self) -> bool {
        self.words || self.outcome
    }
}

/// Shortest outcome, in words, that is looked for as a whole where it is shorter than a run.
const SHORTEST: usize = 3;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Filter {
    pub patterns: Vec<Pattern>,
    /// Words of an outcome in a row that are a leak; 0: outcomes are not looked for.
    pub run: usize,
}

impl Filter {
    /// What a reflection gives away. `known` are the texts of its state, each by itself.
    pub fn look(&self, reflection: &str, outcomes: &[&str], known: &[Words]) -> Leaks {
        let said = words(reflection);
        let leaks = |pattern: &Pattern| pattern.is_in(&said) && !known.iter().any(|text| pattern.is_in(text));
        Leaks {
            words: self.patterns.iter().any(leaks),
            outcome: outcomes.iter().any(|outcome| self.tells(&said, &words(outcome), known)),
        }
    }

    fn tells(&self, said: &[String], outcome: &[String], known: &[Words]) -> bool {
        let run = self.run.min(outcome.len());
        if run == 0 || run < self.run.min(SHORTEST) {
            return false;
        }
        let holds = |text: &[String], piece: &[String]| text.windows(run).any(|window| window == piece);
        outcome.windows(run).any(|piece| holds(said, piece) && !known.iter().any(|text| holds(text, piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(run: usize) -> Filter {
        let patterns =
            ["expert", "experts", "alternative", "alternatives", "demonstration*", "action #", "ground truth"];
        Filter { patterns: patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect(), run }
    }

    #[test]
    fn words_that_give_a_reflection_away_are_found_however_they_are_written() {
        let found = |text: &str| filter(6).look(text, &[], &[words("find a mug")]).words;
        for bad in [
            "The expert goes to the fridge.",
            "the EXPERT's choice",
            "an expert-level move",
            "**Ex**pert says so",
            "e\u{200b}xpert",
            "\u{ff25}\u{ff58}\u{ff50}\u{ff45}\u{ff52}\u{ff54}",
            "(expert)",
            "Action 1 is worse",
            "action-1",
            "Action #2",
            "action1",
            "**Action** `3`",
            "action two is worse",
            "Action\n1",
            "none of the alternatives helps",
            "as the demonstrations show",
            "the ground-truth action",
        ] {
            assert!(found(bad), "{bad:?}");
        }
        for good in [
            "",
            "The mug may be in the fridge, so I go there.",
            "alternatively, the sink could hold it",
            "my expertise",
            "this demonstrates that the mug was moved",
            "the next action is to look",
            "one action is enough",
            "mug 1 is not on the ground. truth be told, i saw nothing",
            "interaction 1",
        ] {
            let ground = good.contains("ground");
            assert_eq!(found(good), ground, "{good:?}");
        }
    }

    #[test]
    fn what_the_state_says_is_no_leak() {
        let shop = [words("find an Expert Grill, price lower than 50.00 dollars")];
        assert!(!filter(6).look("the expert grill is cheap", &[], &shop).words);
        assert!(filter(6).look("the expert grill is action 1", &[], &shop).words, "one known word excuses no other");
        assert!(filter(6).look("the experts chose", &[], &shop).words);
    }

    #[test]
    fn an_outcome_told_before_it_happens_is_found_and_one_that_was_seen_is_not() {
        let outcome = "You open the fridge 1. In it, you see a mug 1, and an egg 2.";
        let state = [words("You are in a kitchen. You see a fridge 1."), words("open fridge 1")];
        let tells = |text: &str| filter(6).look(text, &[outcome], &state).outcome;
        for bad in [
            "if I open it, in it, I will find: in it you see a mug 1",
            "IN IT, YOU SEE A MUG 1!",
            "so \"In it,\n you see a **mug 1**\" would come",
            "you open the fridge 1. in that way",
        ] {
            assert!(tells(bad), "{bad:?}");
        }
        for good in
            ["", "the mug 1 may be in the fridge 1", "I open the fridge 1 in the hope of a mug", "In it, you see a"]
        {
            assert!(!tells(good), "{good:?}");
        }
        let seen = [words("On the desk. In it, you see a mug 1, and an egg 2."), words("You open the fridge 1. In it")];
        assert!(!filter(6).look("in it, you see a mug 1", &[outcome], &seen).outcome, "it was seen before");
        assert!(!filter(0).look(outcome, &[outcome], &state).outcome, "0 turns it off");
    }

    #[test]
    fn a_short_outcome_counts_as_a_whole_and_one_of_two_words_not_at_all() {
        let tells = |run: usize, text: &str, outcome: &str| filter(run).look(text, &[outcome], &[]).outcome;
        assert!(tells(6, "then the door is shut, i guess", "The door is shut."));
        assert!(!tells(6, "then the door shut, i guess", "The door is shut."));
        assert!(!tells(6, "there nothing happens", "Nothing happens."));
        assert!(tells(2, "there nothing happens", "Nothing happens."));
        assert!(tells(1, "a mug", "mug"));
        assert!(!tells(6, "anything", ""));
    }

    #[test]
    fn a_pattern_that_no_text_could_fit_is_refused() {
        for bad in ["", "  ", "a-b", "*", "ex*pert", "##", "(a)", "a1"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Pattern::parse(" Action  # ").unwrap(), Pattern(vec![Part::Word("action".into()), Part::Number]));
    }
}

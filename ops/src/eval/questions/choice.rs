//! Questions with four options: their order, and the letter of an answer.
//!
//! Invariants: the order of a question's options depends on the seed and the question's id alone; an answer is the last
//! line of a reply, and a reply that names two letters names none.

use super::reply::Malformed;
use crate::rng::Rng;

/// The order in which options are shown: place -> option.
pub fn order(seed: u64, id: &str, options: usize) -> Vec<usize> {
    // FNV-1a, 64 bits: a published hash that never changes
    let hash = id.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let mut order: Vec<usize> = (0..options).collect();
    Rng::at(seed, &[hash]).shuffle(&mut order);
    order
}

/// The letter of a place.
pub fn letter(place: usize) -> char {
    char::from(b'A' + place as u8)
}

/// The place that the last line of a text names as `Answer: B`.
///
/// The letter is a capital; `(B)`, `**B**`, `$B$`, `\boxed{B}` and a full stop are the same, and so is `**Answer:** B`.
/// Other lines may say `Answer:` with the same letter.
///
/// # Errors
/// Where the last line is none such, or another line names another letter.
pub fn chosen(text: &str, options: usize) -> Result<usize, Malformed> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines().next_back().and_then(named).ok_or(Malformed::Missing)?;
    if lines().filter_map(named).any(|other| other != last) {
        return Err(Malformed::Several);
    }
    let place = (last as usize).checked_sub('A' as usize).ok_or(Malformed::Missing)?;
    if place < options { Ok(place) } else { Err(Malformed::Missing) }
}

/// The letter that a line names, if it is nothing but `Answer: B` and its markings.
fn named(line: &str) -> Option<char> {
    let marks = |c: char| c == '*' || c == '_';
    let line = line.trim_start_matches('#').trim().trim_matches(marks);
    let rest = line.get(..6).filter(|word| word.eq_ignore_ascii_case("answer")).map(|word| &line[word.len()..])?;
    let rest = rest.trim_start_matches(marks).trim_start().strip_prefix(':')?;
    let mut rest = rest.trim_start_matches(marks).trim();
    // markings around the letter, from the outside in
    for _ in 0..6 {
        rest = rest.trim_end_matches('.').trim().trim_matches(marks).trim();
        let inner = [("(", ")"), ("$", "$"), ("\\(", "\\)"), ("\\boxed{", "}"), ("\\text{", "}"), ("\\mathrm{", "}")]
            .iter()
            .find_map(|(open, close)| rest.strip_prefix(open)?.strip_suffix(close));
        match inner {
            Some(inner) => rest = inner.trim(),
            None => break,
        }
    }
    let mut letters = rest.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) if letter.is_ascii_uppercase() => Some(letter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_letter_of_the_last_line_is_chosen_in_every_usual_marking() {
        for text in [
            "Answer: B",
            "because of that\n\nAnswer: B\n",
            "**Answer: B**",
            "**Answer:** B",
            "**Answer**: B",
            "Answer: **B**",
            "Answer: (B)",
            "Answer: (B).",
            "Answer: B.",
            "answer: B",
            "ANSWER:B",
            "## Answer: B",
            "__Answer: B__",
            "Answer : B",
            "Answer: $B$",
            "Answer: $\\boxed{B}$",
            "Answer: \\boxed{\\text{B}}",
            "Answer: B\nto say it again\nAnswer: (B)",
            "Not A. Answer: A is what one may think.\nAnswer: B",
        ] {
            assert_eq!(chosen(text, 4), Ok(1), "{text}");
        }
    }

    #[test]
    fn a_reply_that_names_two_letters_another_one_or_none_is_malformed() {
        for (text, why) in [
            ("", Malformed::Missing),
            ("B", Malformed::Missing),
            ("Answer: b", Malformed::Missing),
            ("Answer: E", Malformed::Missing),
            ("Answer:", Malformed::Missing),
            ("Answer: [B]", Malformed::Missing),
            ("Answer: A or B", Malformed::Missing),
            ("Answer: A, B", Malformed::Missing),
            ("Answer: A/B", Malformed::Missing),
            ("Answer: AB", Malformed::Missing),
            ("Answer: (A) (B)", Malformed::Missing),
            ("Answer: Б", Malformed::Missing),
            ("Answer: В", Malformed::Missing),
            ("Réponse : B", Malformed::Missing),
            ("\"Answer: B\"", Malformed::Missing),
            ("> Answer: B", Malformed::Missing),
            ("`Answer: B`", Malformed::Missing),
            ("The form is `Answer: B`", Malformed::Missing),
            ("My answer: B", Malformed::Missing),
            ("Answer: B\nI hope this helps", Malformed::Missing),
            ("Answer: B Answer: C", Malformed::Missing),
            ("Answer: A\nAnswer: B", Malformed::Several),
            ("Answer: B\nAnswer: A\nAnswer: B", Malformed::Several),
            ("**Answer: C**\nor rather\nAnswer: B", Malformed::Several),
            ("Answer: \u{41}\u{301}", Malformed::Missing),
        ] {
            assert_eq!(chosen(text, 4), Err(why), "{text}");
        }
    }

    #[test]
    fn an_order_depends_on_seed_and_id_and_on_nothing_else() {
        // frozen: published scores depend on it
        assert_eq!(order(0, "rec001", 4), order(0, "rec001", 4));
        let orders: Vec<Vec<usize>> = (0..600).map(|i| order(0, &format!("rec{i}"), 4)).collect();
        for place in 0..4 {
            let right = orders.iter().filter(|o| o[place] == 0).count();
            assert!((110..190).contains(&right), "the right option stands {right} of 600 times at {place}");
        }
        let moved = (0..600).filter(|i| order(1, &format!("rec{i}"), 4) != orders[*i]).count();
        assert!(moved > 500, "another seed moved {moved} of 600");
    }

    proptest! {
        #[test]
        fn any_text_names_a_place_or_none(text in "(Answer: |answer|:|\\*|\\(|B|C|\\)|\n|é|\\\\boxed|\\{|\\}|\\$|\\PC){0,30}") {
            if let Ok(place) = chosen(&text, 4) {
                prop_assert!(place < 4);
                let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap();
                prop_assert!(last.contains(letter(place)));
            }
        }

        #[test]
        fn an_order_is_a_permutation(seed: u64, id: String, n in 1usize..10) {
            let mut order = order(seed, &id, n);
            order.sort_unstable();
            prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }
}

//! Words as the original's search engine sees them: the analyzer that Anserini 0.14 builds of Lucene 8's parts.
//!
//! 1. Word boundaries of UAX #29; a piece is a word if it has a letter or a digit, or is an emoji. Words of more than 255
//!    UTF-16 units are cut.
//! 2. `'s` at the end goes; letters become small; 33 stop words go; what is left is stemmed.
//!
//! Invariants: texts of any kind are taken; equal texts give equal words. Word boundaries follow the Unicode version of
//! the crate `unicode-segmentation`, Lucene 8 has that of Unicode 9: characters younger than that may differ.

use unicode_segmentation::UnicodeSegmentation;

use super::porter::stem;

/// Lucene's English stop words.
const STOP: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
];

/// Longest word, in UTF-16 units.
const LONGEST: usize = 255;

/// The words of a text that are searched by, in order and with repeats.
pub fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut letters = Vec::new();
    tokens(text, &mut |token| {
        if let Some(word) = word(token, &mut letters) {
            found.push(word);
        }
    });
    found
}

/// Cuts a text into tokens, as they are written.
pub fn tokens<'t>(text: &'t str, each: &mut dyn FnMut(&'t str)) {
    // no word reaches over a space
    for part in text.split([' ', '\n', '\r', '\t']) {
        if part.is_ascii() { plain_tokens(part, each) } else { any_tokens(part, each) }
    }
}

/// What follows the rules of ASCII alone: the same as [`any_tokens`], many times faster.
fn plain_tokens<'t>(text: &'t str, each: &mut dyn FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let mut start = None;
    for (at, byte) in bytes.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(at + 1);
        // a mark holds letters, or digits, together
        let between = |inside: fn(&u8) -> bool| before.is_some_and(|b| inside(&b)) && after.is_some_and(inside);
        let inside = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => true,
            b'.' | b'\'' => between(u8::is_ascii_alphabetic) || between(u8::is_ascii_digit),
            b':' => between(u8::is_ascii_alphabetic),
            b',' | b';' => between(u8::is_ascii_digit),
            _ => false,
        };
        match start {
            None if inside => start = Some(at),
            Some(first) if !inside => {
                plain_token(&text[first..at], each);
                start = None;
            }
            _ => {}
        }
    }
    if let Some(first) = start {
        plain_token(&text[first..], each);
    }
}

fn plain_token<'t>(token: &'t str, each: &mut dyn FnMut(&'t str)) {
    if token.bytes().any(|b| b != b'_') {
        cut(token, each);
    }
}

/// What follows the rules of all of Unicode.
fn any_tokens<'t>(text: &'t str, each: &mut dyn FnMut(&'t str)) {
    // scripts without spaces, which one may not cut without a dictionary, stay in one piece
    let mut run: Option<(usize, usize)> = None;
    for (start, piece) in text.split_word_bound_indices() {
        if piece.chars().next().is_some_and(unspaced) {
            run = match run {
                Some((first, end)) if end == start => Some((first, start + piece.len())),
                other => {
                    flush(text, other, each);
                    Some((start, start + piece.len()))
                }
            };
            continue;
        }
        flush(text, run.take(), each);
        if counts(piece) {
            cut(piece, each);
        }
    }
    flush(text, run, each);
}

fn flush<'t>(text: &'t str, run: Option<(usize, usize)>, each: &mut dyn FnMut(&'t str)) {
    if let Some((start, end)) = run {
        cut(&text[start..end], each);
    }
}

/// Gives a token in parts that are not too long.
fn cut<'t>(token: &'t str, each: &mut dyn FnMut(&'t str)) {
    // one byte at least for each unit
    if token.len() <= LONGEST {
        return each(token);
    }
    let (mut first, mut units) = (0, 0);
    for (at, letter) in token.char_indices() {
        if units + letter.len_utf16() > LONGEST {
            each(&token[first..at]);
            (first, units) = (at, 0);
        }
        units += letter.len_utf16();
    }
    each(&token[first..]);
}

/// What a token is searched by; `None` for stop words.
pub fn word(token: &str, letters: &mut Vec<char>) -> Option<String> {
    letters.clear();
    letters.extend(token.chars());
    if let [.., '\'' | '\u{2019}' | '\u{ff07}', 's' | 'S'] = letters[..] {
        letters.truncate(letters.len() - 2);
    }
    for letter in letters.iter_mut() {
        // one letter for one letter, as Java's `Character.toLowerCase`
        *letter = letter.to_lowercase().next().unwrap_or(*letter);
    }
    let is_stop = |stop: &&str| letters.iter().copied().eq(stop.chars());
    if letters.is_empty() || letters.len() <= 5 && STOP.iter().any(is_stop) {
        return None;
    }
    stem(letters);
    Some(letters.iter().collect())
}

/// Whether a piece between two boundaries is a word.
fn counts(piece: &str) -> bool {
    piece.chars().any(|c| match c {
        '0'..='9' => true,
        c if c.is_ascii() => c.is_ascii_alphabetic(),
        c => c.is_alphabetic() || digit(c),
    }) || piece.chars().next().is_some_and(emoji)
}

/// Thai, Lao, Myanmar, Khmer and their kin: line break class SA.
fn unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x0E01..=0x0E3A | 0x0E40..=0x0E4E | 0x0E81..=0x0EBD | 0x0EC0..=0x0ECD | 0x0EDC..=0x0EDF
        | 0x1000..=0x103F | 0x1050..=0x108F | 0x109A..=0x109F | 0x1780..=0x17D3 | 0x17D7 | 0x17DC..=0x17DD
        | 0x1950..=0x1974 | 0x1980..=0x19C9 | 0x19DA | 0x19DE..=0x19DF | 0x1A20..=0x1AAD | 0xA9E0..=0xA9EF
        | 0xA9FA..=0xA9FE | 0xAA60..=0xAAC2 | 0xAADB..=0xAADF)
}

/// A decimal digit of another script: one that sticks to `1`.
fn digit(c: char) -> bool {
    c.is_numeric() && {
        let mut pair = String::from("1");
        pair.push(c);
        pair.split_word_bounds().count() == 1
    }
}

/// Pictures that Lucene takes for words: the blocks of emoji, flags included, without ©, ® and ™.
fn emoji(c: char) -> bool {
    matches!(u32::from(c), 0x231A..=0x231B | 0x2328 | 0x23CF | 0x23E9..=0x23F3 | 0x23F8..=0x23FA | 0x25FB..=0x25FE
        | 0x2600..=0x27BF | 0x2934..=0x2935 | 0x2B05..=0x2B07 | 0x2B1B..=0x2B1C | 0x2B50 | 0x2B55 | 0x3297 | 0x3299
        | 0x1F000..=0x1FAFF)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn captured_words_of_the_original_come_out() {
        for (text, want) in [
            ("running women's", "run women"),
            ("x-large", "x larg"),
            ("wi-fi", "wi fi"),
            ("3.5mm", "3.5mm"),
            ("washable generously dying", "washabl gener dy"),
            ("U.S.A.", "u.s.a"),
            ("Café", "café"),
            ("the high quality curtain for me", "high qualiti curtain me"),
            ("black | white, and size: small, medium", "black white size small medium"),
        ] {
            assert_eq!(words(text).join(" "), want, "{text}");
        }
    }

    #[test]
    fn what_counts_as_a_word_follows_lucene() {
        for (text, want) in [
            ("_ __ -- ... 1/2 $5.99", "1 2 5.99"),
            ("foo_bar snake_", "foo_bar snake_"),
            ("1,000.50 10x20 color:red a@b.com", "1,000.50 10x20 color:r b.com"),
            ("kids’ kid’s KID'S don't", "kid kid kid don't"),
            ("日本語 ひら カタカナ", "日 本 語 ひ ら カタカナ"),
            ("한국어 ภาษาไทย", "한국어 ภาษาไทย"),
            ("½ x² ™ © ①", "x"),
            ("٣٤ １２", "٣٤ １２"),
            ("😀 ❤ 🇩🇪", "😀 ❤ 🇩🇪"),
            ("", ""),
        ] {
            assert_eq!(words(text).join(" "), want, "{text}");
        }
    }

    #[test]
    fn words_that_are_too_long_are_cut() {
        let long = "x".repeat(600);
        let lengths: Vec<usize> = words(&long).iter().map(String::len).collect();
        assert_eq!(lengths, [255, 255, 90]);
        let pairs = "𝒳".repeat(200);
        assert_eq!(words(&pairs).iter().map(|w| w.chars().count()).collect::<Vec<_>>(), [127, 73]);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_no_word_is_empty_or_has_a_space(text in "\\PC*") {
            for word in words(&text) {
                prop_assert!(!word.is_empty() && !word.contains(' '), "{word:?}");
            }
        }

        #[test]
        fn the_rules_of_ascii_are_those_of_unicode(text in "[a-cA-C0-2 .,;:'_@/-]{0,40}") {
            let (mut plain, mut any) = (Vec::new(), Vec::new());
            plain_tokens(&text, &mut |token| plain.push(token));
            any_tokens(&text, &mut |token| any.push(token));
            prop_assert_eq!(plain, any);
        }

        #[test]
        fn large_letters_are_searched_as_small_ones(text in "[a-zA-Z0-9 .,'-]*") {
            prop_assert_eq!(words(&text), words(&text.to_lowercase()));
        }
    }
}

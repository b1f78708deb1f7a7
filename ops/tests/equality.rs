//! Equal answers, by the table of the book.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::time::{Duration, Instant};

use actloom_ops::eval::questions::math::equal;
use camino::Utf8PathBuf;
use proptest::prelude::*;

/// The lines of the book's page: reference, answer, whether they are equal.
fn cases() -> Vec<(String, String, bool)> {
    let page = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/src/equality.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut cases = Vec::new();
    for block in text.split("```text\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            let same = line.split_once(" == ").map(|(r, a)| (r, a, true));
            let (r, a, same) = same.or_else(|| line.split_once(" != ").map(|(r, a)| (r, a, false))).unwrap();
            cases.push((r.to_owned(), a.to_owned(), same));
        }
    }
    cases
}

#[test]
fn the_program_agrees_with_every_line_of_the_books_page_on_equal_answers() {
    let cases = cases();
    assert!(cases.len() >= 400, "only {} cases were found", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter(|(r, a, same)| equal(r, a) != *same)
        .map(|(r, a, same)| format!("{r}   {}   {a}", if *same { "==" } else { "!=" }))
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn every_unit_of_the_books_page_may_follow_a_value_and_none_is_missing_there() {
    let page = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/src/equality.md");
    let text = std::fs::read_to_string(page).unwrap();
    let blocks = text.split("```units\n").skip(1).map(|block| block.split("```").next().unwrap());
    let words: Vec<&str> = blocks.flat_map(str::split_whitespace).collect();
    assert!(words.len() > 200, "only {} words were found", words.len());
    for word in &words {
        assert!(equal("5", &format!("5 \\text{{ {word}}}")), "{word}");
        assert!(!equal("6", &format!("5 \\text{{ {word}}}")), "{word}");
    }
    // the lists of the program, as its source has them
    let source = include_str!("../src/eval/questions/math/unit.rs");
    let lists = source.split("const ADJECTIVES").next().unwrap();
    for list in lists.split('"').skip(1).step_by(2) {
        for word in list.split(|c: char| c.is_whitespace() || c == '=' || c == '\\').filter(|w| !w.is_empty()) {
            assert!(words.contains(&word) || ["°", "km/h"].contains(&word), "the page has no `{word}`");
        }
    }
}

#[test]
fn every_answer_equals_itself_and_nothing_equals_an_empty_one() {
    for (r, a, _) in cases() {
        for text in [r, a] {
            assert!(equal(&text, &text), "{text}");
            assert!(!equal(&text, "") && !equal("", &text) && !equal(&text, "$$"), "{text}");
        }
    }
    assert!(!equal("", "") && !equal(" ", " "));
}

#[test]
fn an_answer_around_or_beside_the_right_one_is_wrong() {
    // what a reply might try where it does not know: several values, the question, nothing, everything
    for reference in
        ["7", "\\frac{1}{2}", "x^2+1", "(1,2)", "[0,1)", "\\{1,2\\}", "\\text{Evelyn}", "\\sqrt{2}", "50\\%"]
    {
        for answer in [
            "7 \\text{ or } 8",
            "1,2,3,4,5,6,7",
            "\\{7\\}",
            "7 \\cup 8",
            "x",
            "?",
            "\\text{unknown}",
            "\\infty",
            "\\mathbb{R}",
            "()",
            "7 = 8",
            "\\frac{1}{0}",
            "0/0",
            "0^0",
            "7 \\text{ or not } 7",
            "\\text{Evelyn or Evan}",
            "[0,1],(0,1)",
            "7,\\frac{1}{2},x^2+1",
        ] {
            assert!(!equal(reference, answer), "{reference} is not {answer}");
        }
    }
}

/// Runs with a limit, on the small stack that threads have.
fn soon(what: &str, f: impl FnOnce() + Send + 'static) {
    let clock = Instant::now();
    std::thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
    assert!(clock.elapsed() < Duration::from_secs(20), "{what} took {:?}", clock.elapsed());
}

#[test]
fn hostile_answers_end_soon_and_are_equal_only_to_themselves() {
    let many = |s: &str, n: usize| s.repeat(n);
    let hostile = [
        "9^{9^{9}}".to_owned(),
        "9^{9^{9^{9^{9}}}}".to_owned(),
        "2^{3^{4^{5^{6}}}} + 1".to_owned(),
        "(((10^{400})^{400})^{400})^{400}".to_owned(),
        "1e400 \\cdot 1e400 \\cdot 1e400 \\cdot 1e400".to_owned(),
        "99999!".to_owned(),
        "1000!!!!!!!!!".to_owned(),
        "\\binom{1000}{500}^{1000}".to_owned(),
        "(a+b+c+d+f+g+h+j)^{64}".to_owned(),
        "((a+b+c)^{20}+(d+f+g)^{20})^{20}".to_owned(),
        "\\frac{1}{a+b}".to_owned() + &many("+\\frac{1}{a+b+c}", 300),
        many("(x+1)", 900),
        many("(", 9_000),
        many("{", 9_000),
        many("\\{", 4_000),
        many("(", 4_000) + "1" + &many(")", 4_000),
        many("\\frac{1}{", 1_000) + "2" + &many("}", 1_000),
        many("2\\frac{2", 1_000),
        many("\\{\\pm ", 1_000) + "1" + &many("\\}", 1_000),
        many("\\{\\pm ", 40) + "1" + &many("\\}", 40),
        many("\\sqrt{", 1_200) + "2" + &many("}", 1_200),
        many("\\sqrt{99991", 300) + &many("}", 300),
        many("\\text{", 1_500) + "x" + &many("}", 1_500),
        many("-", 9_000) + "1",
        many("x^", 3_000) + "x",
        many("|", 5_001),
        many("1,", 4_900) + "1",
        many("\\sqrt{2},", 900) + "1",
        many("\\begin{pmatrix}", 600),
        "7".repeat(9_999),
        "0.".to_owned() + &"3".repeat(9_000),
        many("5", 1_000_000),
        many("(x+1)^2", 150_000),
        "\\sqrt{".to_owned() + &"7".repeat(1_900) + "}",
        "\\sqrt[3]{".to_owned() + &"7".repeat(1_900) + "}",
        "\\frac{".to_owned() + &"7".repeat(1_900) + "}{" + &"3".repeat(1_900) + "}" + &many("+\\frac{1}{7777}", 300),
    ];
    for text in hostile {
        let name: String = text.chars().take(40).collect();
        soon(&name, move || {
            assert!(equal(&text, &text));
            assert!(!equal("5", &text) && !equal(&text, "5") && !equal(&text, "x+\\sqrt{y}"));
            let other = text.clone() + " + x";
            assert!(!equal(&text, &other), "{}", text.len());
            // the same work on both sides, and a difference at the end
            assert!(!equal(&(text.clone() + "+2"), &(text + "+3")));
        });
    }
}

/// Pieces of which answers are made, rightly and wrongly.
fn piece() -> impl Strategy<Value = String> {
    let (left, _): (Vec<String>, Vec<String>) = cases().into_iter().map(|(r, a, _)| (r, a)).unzip();
    let bits = [
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "\\{",
        "\\}",
        "1",
        "2",
        "0",
        "x",
        "y",
        "i",
        "e",
        "\\pi",
        "^",
        "_",
        "+",
        "-",
        "\\pm",
        "/",
        "*",
        ",",
        ";",
        "=",
        "<",
        "\\le",
        "|",
        "!",
        "%",
        "^\\circ",
        "\\cup",
        "\\infty",
        "\\text{ cm}",
        "\\text{or}",
        "\\sin",
        "\\log_",
        ".",
        " ",
        "\\\\",
        "&",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\",
        "$",
        "é",
        ":",
        "\\binom",
        "1e9",
        "999999999",
        "\\in",
    ];
    prop_oneof![
        4 => prop::sample::select(bits.map(str::to_owned).to_vec()),
        1 => prop::sample::select(left),
        1 => "\\PC{0,3}",
    ]
}

fn answer() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_two_texts_are_compared_without_a_panic_and_the_same_both_ways(a in answer(), b in answer()) {
        prop_assert_eq!(equal(&a, &b), equal(&b, &a), "{} and {}", a, b);
        prop_assert_eq!(equal(&a, &a), !a.trim().is_empty());
    }

    #[test]
    fn arithmetic_on_fractions_agrees_with_integers(a in -50i64..50, b in 1i64..50, c in -50i64..50, d in 1i64..50) {
        let sum = format!("\\frac{{{a}}}{{{b}}}+\\frac{{{c}}}{{{d}}}");
        let (above, below) = (a * d + c * b, b * d);
        let (whole, rest) = (format!("{above}/{below}"), format!("{}/{below}", above + 1));
        prop_assert!(equal(&sum, &whole) && equal(&whole, &sum));
        prop_assert!(!equal(&sum, &rest));
    }

    #[test]
    fn a_polynomial_equals_its_expansion_and_no_neighbour(a in -9i64..10, b in -9i64..10, c in -9i64..10) {
        let sign = |n: i64| format!("{n:+}");
        let (p, q) = (a + b, a * b);
        let factors = format!("(x{})(x{}){}", sign(a), sign(b), sign(c));
        let expanded = format!("x^2{}x{}", sign(p), sign(q + c));
        let other = format!("x^2{}x{}", sign(p), sign(q + c + 1));
        prop_assert!(equal(&factors, &expanded), "{} {}", factors, expanded);
        prop_assert!(!equal(&factors, &other));
    }
}

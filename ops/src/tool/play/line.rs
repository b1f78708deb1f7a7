//! What a person types: an action, its number, or a command; and lists of actions, filtered and paged.
//!
//! Invariants: a command begins with `/` and nothing else does; an action keeps its number whatever part of the list is
//! shown.

/// Actions on a page.
pub const PAGE: usize = 40;

/// What can be typed.
pub const HELP: &str = "\
an action, or its number in the list
/actions [WORDS] [PAGE]  what is possible now; only what holds WORDS
/hint                    what the expert would do
/undo                    take the last action back
/restart                 begin again
/do TEXT                 say TEXT as it is, be it a number or begin it with a slash
/help                    this
/quit                    end; so does the end of the input";

/// A line, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Nothing,
    Action(&'a str),
    /// An action by its number in the list, from 1.
    Number(usize),
    /// A page, from 1, of the actions that hold all these words.
    Actions {
        filter: &'a str,
        number: usize,
    },
    Hint,
    Undo,
    Restart,
    Help,
    Quit,
    Unknown(&'a str),
    /// A command with too much or too little after it, and what belongs there.
    Unfit(&'a str, &'static str),
}

impl Line<'_> {
    /// Reads a line.
    pub fn read(line: &str) -> Line<'_> {
        let line = line.trim();
        if line.is_empty() {
            return Line::Nothing;
        }
        if !line.starts_with('/') {
            let digits = line.bytes().all(|byte| byte.is_ascii_digit());
            return line.parse().ok().filter(|_| digits).map_or(Line::Action(line), Line::Number);
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("/actions" | "/a", rest) => {
                let (filter, last) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
                match last.parse() {
                    Ok(number) => Line::Actions { filter: filter.trim(), number },
                    Err(_) => Line::Actions { filter: rest, number: 1 },
                }
            }
            ("/hint", "") => Line::Hint,
            ("/undo", "") => Line::Undo,
            ("/restart", "") => Line::Restart,
            ("/help", "") => Line::Help,
            ("/quit" | "/exit", "") => Line::Quit,
            ("/do", "") => Line::Unfit(line, "a text"),
            ("/do", text) => Line::Action(text),
            ("/hint" | "/undo" | "/restart" | "/help" | "/quit" | "/exit", _) => Line::Unfit(line, "nothing"),
            _ => Line::Unknown(line),
        }
    }
}

/// A page of a list, with the numbers of the whole list; also how many the filter lets through, and how many pages they
/// are.
pub type Page = (Vec<(usize, String)>, usize, usize);

/// A page of the actions that hold every word of `filter`, in any case of its letters; all of them unless `paged`.
///
/// # Errors
/// A page that there is not.
pub fn page(actions: &[String], filter: &str, number: usize, paged: bool) -> Result<Page, String> {
    let words: Vec<String> = filter.split_whitespace().map(str::to_lowercase).collect();
    let fits = |action: &String| {
        let action = action.to_lowercase();
        words.iter().all(|word| action.contains(word.as_str()))
    };
    let numbered = actions.iter().enumerate().filter(|(_, action)| fits(action));
    let found: Vec<(usize, String)> = numbered.map(|(at, action)| (at + 1, action.clone())).collect();
    let of = found.len();
    let size = if paged { PAGE } else { of.max(1) };
    // a filter that lets nothing through has one page, with nothing on it
    let pages = of.div_ceil(size).max(1);
    if !(1..=pages).contains(&number) {
        return Err(format!("there is no page {number}, expected 1 to {pages}"));
    }
    Ok((found.into_iter().skip((number - 1) * size).take(size).collect(), of, pages))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_actions_numbers_or_commands() {
        assert_eq!(Line::read("  go to desk 1 "), Line::Action("go to desk 1"));
        assert_eq!((Line::read("12"), Line::read("0")), (Line::Number(12), Line::Number(0)));
        assert_eq!(Line::read("-1"), Line::Action("-1"));
        assert_eq!(Line::read("+1"), Line::Action("+1"));
        assert_eq!(Line::read("99999999999999999999999"), Line::Action("99999999999999999999999"));
        assert_eq!((Line::read(""), Line::read(" \t")), (Line::Nothing, Line::Nothing));
        assert_eq!((Line::read("/undo"), Line::read("/quit")), (Line::Undo, Line::Quit));
        assert_eq!(Line::read("/undo 2"), Line::Unfit("/undo 2", "nothing"));
        assert_eq!((Line::read("/do 3"), Line::read("/do /x")), (Line::Action("3"), Line::Action("/x")));
        assert_eq!((Line::read("/do"), Line::read("/fly")), (Line::Unfit("/do", "a text"), Line::Unknown("/fly")));
    }

    #[test]
    fn lists_are_asked_for_by_words_and_page() {
        let list = |filter, number| Line::Actions { filter, number };
        assert_eq!(Line::read("/actions"), list("", 1));
        assert_eq!(Line::read("/actions 2"), list("", 2));
        assert_eq!(Line::read("/actions take mug"), list("take mug", 1));
        assert_eq!(Line::read("/a take 3"), list("take", 3));
    }

    #[test]
    fn a_filtered_list_keeps_the_numbers_of_the_whole() {
        let actions = ["close box 1", "open box 1", "take Mug 1", "take pen 2"].map(str::to_owned);
        let (shown, of, pages) = page(&actions, "TAKE", 1, true).unwrap();
        assert_eq!(shown, [(3, "take Mug 1".to_owned()), (4, "take pen 2".to_owned())]);
        assert_eq!((of, pages), (2, 1));
        assert_eq!(page(&actions, "mug take", 1, true).unwrap().0, [(3, "take Mug 1".to_owned())]);
        assert_eq!(page(&actions, "fly", 1, true).unwrap(), (Vec::new(), 0, 1));
        assert_eq!(page(&actions, "fly", 2, true).unwrap_err(), "there is no page 2, expected 1 to 1");
        assert_eq!(page(&actions, "", 2, true).unwrap_err(), "there is no page 2, expected 1 to 1");
    }

    #[test]
    fn long_lists_have_pages_only_where_they_are_asked_for() {
        let actions: Vec<String> = (0..100).map(|i| format!("go {i}")).collect();
        let (last, of, pages) = page(&actions, "", 3, true).unwrap();
        assert_eq!((last.len(), last[0].0, of, pages), (20, 81, 100, 3));
        assert_eq!(page(&actions, "", 1, false).unwrap().0.len(), 100);
    }

    proptest! {
        #[test]
        fn every_action_is_on_exactly_one_page_under_its_own_number(n in 1..200usize, filter in "[0-9]?") {
            let actions: Vec<String> = (0..n).map(|i| format!("go {i}")).collect();
            let mut seen = Vec::new();
            let mut number = 1;
            while let Ok((shown, ..)) = page(&actions, &filter, number, true) {
                prop_assert!(shown.len() <= PAGE);
                seen.extend(shown);
                number += 1;
            }
            let want = (0..n).filter(|i| i.to_string().contains(&filter)).map(|i| (i + 1, format!("go {i}")));
            prop_assert_eq!(seen, want.collect::<Vec<_>>());
        }

        #[test]
        fn any_line_is_read(line in "\\PC{0,40}") {
            let slash = line.trim().starts_with('/');
            prop_assert!(!matches!(Line::read(&line), Line::Unknown(_) | Line::Unfit(..)) || slash);
        }
    }
}

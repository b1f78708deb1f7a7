//! What `"@step.port[axis=label]"` says, as text.
//!
//! Invariant: nothing is looked up here; a reference that parses may still name nothing.

/// `@step`, `@step.port`, each with a selection behind it or not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reference {
    pub step: String,
    pub port: Option<String>,
    /// `[a=x]`: this label of the axis.
    pub fixed: Vec<(String, String)>,
    /// `[a=*]`: every label of the axis.
    pub collected: Vec<String>,
    /// `[*]`: every label of every axis that is not fixed.
    pub all: bool,
}

impl Reference {
    /// Whether it stands for a list.
    pub(crate) fn collects(&self) -> bool {
        self.all || !self.collected.is_empty()
    }
}

/// A step's, port's or axis's name.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// Parses a text that begins with `@`. The error says what was expected.
pub(crate) fn parse(text: &str) -> Result<Reference, String> {
    let body = text.strip_prefix('@').ok_or("expected `@` and the name of a step")?;
    let (head, selection) = match body.split_once('[') {
        Some((head, rest)) => (head, Some(rest.strip_suffix(']').ok_or("expected `]` at the end")?)),
        None => (body, None),
    };
    let (step, port) = match head.split_once('.') {
        Some((step, port)) => (step, Some(port)),
        None => (head, None),
    };
    if !is_name(step) {
        return Err("expected the name of a step after `@`".to_owned());
    }
    if port.is_some_and(|port| !is_name(port)) {
        return Err("expected the name of an output after `.`".to_owned());
    }
    let mut reference = Reference {
        step: step.to_owned(),
        port: port.map(str::to_owned),
        fixed: Vec::new(),
        collected: Vec::new(),
        all: false,
    };
    let Some(selection) = selection else { return Ok(reference) };
    for item in items(selection)? {
        match item.split_once('=') {
            None if item == "*" => reference.all = true,
            None => return Err(format!("expected `*` or `axis=label` instead of `{item}`")),
            Some((axis, label)) => {
                let (axis, label) = (axis.trim(), label.trim());
                if reference.fixed.iter().any(|(a, _)| a == axis) || reference.collected.iter().any(|a| a == axis) {
                    return Err(format!("axis `{axis}` stands here twice"));
                }
                if label == "*" {
                    reference.collected.push(axis.to_owned());
                } else {
                    reference.fixed.push((axis.to_owned(), unquote(label)));
                }
            }
        }
    }
    Ok(reference)
}

/// Whether an item stands here, and not the rest of a label with a comma in it.
fn begins_item(rest: &str) -> bool {
    let rest = rest.trim_start();
    let name = rest.split_once('=').map(|(name, _)| name.trim_end());
    name.is_some_and(is_name) || rest.trim_end() == "*" || rest.is_empty()
}

/// Splits at commas behind which another item begins, and that are not inside quotes.
fn items(selection: &str) -> Result<Vec<&str>, String> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut quote = None;
    for (i, c) in selection.char_indices() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => {}
            // An apostrophe inside a bare label is only an apostrophe.
            None if (c == '"' || c == '\'') && selection[start..i].trim_end().ends_with('=') => quote = Some(c),
            None if c == ',' && begins_item(&selection[i + 1..]) => {
                out.push(selection[start..i].trim());
                start = i + 1;
            }
            None => {}
        }
    }
    if let Some(q) = quote {
        return Err(format!("expected a second `{q}`"));
    }
    out.push(selection[start..].trim());
    Ok(out)
}

fn unquote(label: &str) -> String {
    for q in ['"', '\''] {
        if let Some(inner) = label.strip_prefix(q).and_then(|rest| rest.strip_suffix(q)) {
            return inner.to_owned();
        }
    }
    label.to_owned()
}

/// The label of an axis value that is a reference: `@il[start=act]` -> `il-start=act`.
pub(crate) fn label(reference: &str) -> String {
    let mut out = String::new();
    for c in reference.trim_start_matches('@').chars() {
        match c {
            '[' | ',' => out.push('-'),
            ']' | ' ' | '"' | '\'' => {}
            '*' => out.push_str("all"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(axis: &str, label: &str) -> (String, String) {
        (axis.to_owned(), label.to_owned())
    }

    #[test]
    fn a_reference_names_step_port_and_selection() {
        let r = parse("@il.best[start=act, row=\"a, b\", seed=*]").unwrap();
        assert_eq!((r.step.as_str(), r.port.as_deref()), ("il", Some("best")));
        assert_eq!(r.fixed, [fixed("start", "act"), fixed("row", "a, b")]);
        assert_eq!(r.collected, ["seed"]);
        assert!(!r.all && r.collects());
        assert!(parse("@score[*]").unwrap().all);
        assert_eq!(parse("@play[row=IL w/ ACT]").unwrap().fixed, [fixed("row", "IL w/ ACT")]);
    }

    #[test]
    fn what_is_no_reference_says_what_was_expected() {
        for (text, expected) in [
            ("@", "the name of a step"),
            ("@a b", "the name of a step"),
            ("@a.", "the name of an output"),
            ("@a[seed=0", "`]`"),
            ("@a[seed]", "`axis=label`"),
            ("@a[s=1,s=2]", "twice"),
            ("@a[s='1]", "second"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn labels_of_references_are_short() {
        assert_eq!(label("@act"), "act");
        assert_eq!(label("@il[start=act]"), "il-start=act");
        assert_eq!(label("@score.best[*]"), "score.best-all");
    }
}

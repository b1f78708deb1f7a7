//! Variables in text: `"$name"` is a whole value, `"${name}"` a part of a text, `$$` a dollar sign.

use std::ops::Range;

/// A text, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Template {
    /// No variable; `$$` already undone.
    Plain(String),
    /// Nothing but `$name`.
    Whole(String),
    /// Text with `${name}` in it.
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Name(String),
}

impl Template {
    /// Every name mentioned.
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Template::Plain(_) => Vec::new(),
            Template::Whole(name) => vec![name],
            Template::Parts(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    Part::Name(name) => Some(name.as_str()),
                    Part::Text(_) => None,
                })
                .collect(),
        }
    }
}

/// The variable that a text begins with.
pub(super) fn first(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('$')?;
    let name = match rest.strip_prefix('{') {
        Some(inner) => inner.split('}').next()?.trim(),
        None => rest.split(|c| !is_letter(c)).next()?,
    };
    is_variable(name).then_some(name)
}

/// What is wrong with a text, and where within it.
#[derive(Debug, PartialEq)]
pub(super) struct Bad {
    pub bytes: Range<usize>,
    pub expected: String,
}

pub(super) fn parse(text: &str) -> Result<Template, Bad> {
    if !text.contains('$') {
        return Ok(Template::Plain(text.to_owned()));
    }
    if let Some(name) = text.strip_prefix('$')
        && is_variable(name)
    {
        return Ok(Template::Whole(name.to_owned()));
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(i) = rest.find('$') {
        plain.push_str(&rest[..i]);
        let at = text.len() - rest.len() + i;
        let after = &rest[i + 1..];
        if let Some(next) = after.strip_prefix('$') {
            plain.push('$');
            rest = next;
        } else if let Some(inner) = after.strip_prefix('{') {
            let Some(end) = inner.find('}') else {
                return Err(Bad { bytes: at..text.len(), expected: "expected `}`".to_owned() });
            };
            let name = inner[..end].trim();
            if !is_variable(name) {
                let bytes = at..at + end + 3;
                return Err(Bad { bytes, expected: "expected the name of a variable between `${` and `}`".to_owned() });
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Name(name.to_owned()));
            rest = &inner[end + 1..];
        } else {
            let name: String = after.chars().take_while(|c| is_letter(*c)).collect();
            if is_variable(&name) {
                return Err(Bad {
                    bytes: at..at + 1 + name.len(),
                    expected: format!("write `${{{name}}}` inside text, or `$$` for a dollar sign"),
                });
            }
            // `$5` is no variable.
            plain.push('$');
            rest = after;
        }
    }
    plain.push_str(rest);
    if parts.is_empty() {
        return Ok(Template::Plain(plain));
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(Template::Parts(parts))
}

/// Whether `$name` can be written for it.
pub(super) fn is_variable(name: &str) -> bool {
    name.chars().all(is_letter) && name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_parts_and_dollars_are_told_apart() {
        assert_eq!(parse("$env").unwrap(), Template::Whole("env".into()));
        assert_eq!(parse("$$env").unwrap(), Template::Plain("$env".into()));
        assert_eq!(parse("costs $5").unwrap(), Template::Plain("costs $5".into()));
        assert_eq!(
            parse("a/${env}-${ n }").unwrap(),
            Template::Parts(vec![
                Part::Text("a/".into()),
                Part::Name("env".into()),
                Part::Text("-".into()),
                Part::Name("n".into())
            ])
        );
    }

    #[test]
    fn half_written_variables_are_pointed_at() {
        assert_eq!(parse("a/$env/b").unwrap_err().bytes, 2..6);
        assert_eq!(parse("a ${env").unwrap_err().bytes, 2..7);
        assert_eq!(parse("${}").unwrap_err().bytes, 0..3);
    }
}

//! The elements of a JSON array that is too large to be held, one after another.
//!
//! Invariants: no more than one element is held, and none that is larger than is allowed; an element is cut out by its
//! brackets and texts alone, and whoever parses it finds what is wrong within. What Python writes where JSON has no
//! word, `NaN` and `Infinity`, is read as `null`.

use std::io::{BufRead, BufReader, Read};

/// Cuts an array into its elements.
pub struct Elements<R> {
    input: BufReader<R>,
    largest: usize,
    element: Vec<u8>,
    begun: bool,
    ended: bool,
    count: usize,
}

/// Why there is no next element.
#[derive(Debug, thiserror::Error)]
pub enum ElementError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Form(String),
}

fn form(text: impl Into<String>) -> ElementError {
    ElementError::Form(text.into())
}

/// What follows the first letter of a word that Python writes.
fn rest(first: u8) -> Option<&'static [u8]> {
    match first {
        b'N' => Some(b"aN"),
        b'I' => Some(b"nfinity"),
        _ => None,
    }
}

impl<R: Read> Elements<R> {
    pub fn new(input: R, largest: usize) -> Elements<R> {
        Elements {
            input: BufReader::with_capacity(1 << 20, input),
            largest,
            element: Vec::new(),
            begun: false,
            ended: false,
            count: 0,
        }
    }

    /// The next byte that is no white space.
    fn solid(&mut self) -> Result<Option<u8>, ElementError> {
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let blank = chunk.iter().take_while(|byte| matches!(**byte, b' ' | b'\t' | b'\n' | b'\r')).count();
            let found = chunk.get(blank).copied();
            self.input.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// The bytes of the next element; `None` behind the last.
    ///
    /// # Errors
    /// A file that ends early, holds no array, or something behind it; an element that is too large.
    pub fn next(&mut self) -> Result<Option<&[u8]>, ElementError> {
        if self.ended {
            return Ok(None);
        }
        if !self.begun {
            if self.solid()? != Some(b'[') {
                return Err(form("there is no `[`"));
            }
            self.input.consume(1);
            self.begun = true;
        }
        self.element.clear();
        if self.solid()? == Some(b']') && self.count == 0 {
            self.input.consume(1);
            return self.end();
        }
        let last = self.cut()?;
        if self.element.is_empty() {
            return Err(form("there is nothing between two commas"));
        }
        self.count += 1;
        if last {
            self.end()?;
        }
        Ok(Some(&self.element))
    }

    /// Behind the closing bracket there is nothing.
    fn end(&mut self) -> Result<Option<&[u8]>, ElementError> {
        self.ended = true;
        match self.solid()? {
            None => Ok(None),
            Some(byte) => Err(form(format!("`{}` follows the end of the list", byte.escape_ascii()))),
        }
    }

    /// Fills the element, and takes the comma behind it, or the bracket: then it is the last.
    fn cut(&mut self) -> Result<bool, ElementError> {
        let (mut depth, mut text, mut escaped) = (0usize, false, false);
        // what is still to come of a word that is read as `null`
        let mut word: &[u8] = &[];
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Err(form("the file ends within the list"));
            }
            let (size, mut over) = (chunk.len(), None);
            for (at, &byte) in chunk.iter().enumerate() {
                if text {
                    self.element.push(byte);
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => text = false,
                        _ => {}
                    }
                    continue;
                }
                if let [expected, more @ ..] = word {
                    if byte != *expected {
                        return Err(form("there is a word that JSON does not have"));
                    }
                    word = more;
                    continue;
                }
                match byte {
                    b'"' => text = true,
                    b'{' | b'[' => depth += 1,
                    b',' | b']' if depth == 0 => {
                        over = Some((at + 1, byte == b']'));
                        break;
                    }
                    b'}' if depth == 0 => return Err(form("there is a `}` too many")),
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                match rest(byte) {
                    Some(more) => {
                        word = more;
                        if self.element.last() == Some(&b'-') {
                            self.element.pop();
                        }
                        self.element.extend_from_slice(b"null");
                    }
                    None => self.element.push(byte),
                }
            }
            if self.element.len() > self.largest {
                return Err(form(format!("it is larger than {} bytes", self.largest)));
            }
            match over {
                Some((used, last)) => {
                    self.input.consume(used);
                    return Ok(last);
                }
                None => self.input.consume(size),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8]) -> Result<Vec<serde_json::Value>, String> {
        let mut elements = Elements::new(text, 1 << 16);
        let mut found = Vec::new();
        while let Some(bytes) = elements.next().map_err(|why| why.to_string())? {
            found.push(serde_json::from_slice(bytes).map_err(|why| why.to_string())?);
        }
        Ok(found)
    }

    #[test]
    fn an_array_is_cut_at_its_own_commas_only() {
        let text = br#" [ {"a": [1, "x],\"{", -2]} , "]" ,[ ],3 ] "#;
        let whole: Vec<serde_json::Value> = serde_json::from_slice(text).unwrap();
        assert_eq!(all(text).unwrap(), whole);
        assert_eq!(all(b"[]").unwrap(), Vec::<serde_json::Value>::new());
    }

    #[test]
    fn what_python_writes_for_no_number_is_null() {
        let there = all(br#"[{"a": NaN, "b": -Infinity, "c": "NaN"}, Infinity]"#).unwrap();
        assert_eq!(there, [serde_json::json!({"a": null, "b": null, "c": "NaN"}), serde_json::Value::Null]);
    }

    #[test]
    fn what_is_no_array_is_refused() {
        for (text, why) in [
            ("", "there is no `[`"),
            ("{}", "there is no `[`"),
            ("[1", "the file ends within the list"),
            ("[1,]", "there is nothing between two commas"),
            ("[,1]", "there is nothing between two commas"),
            ("[1]]", "`]` follows the end of the list"),
            ("[1}", "there is a `}` too many"),
            ("[Nan]", "there is a word that JSON does not have"),
        ] {
            assert_eq!(all(text.as_bytes()).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn an_element_that_is_too_large_is_refused_before_it_is_held() {
        let text = [b"[\"".as_slice(), &vec![b'x'; 8 << 20], b"\"]"].concat();
        let mut elements = Elements::new(text.as_slice(), 1 << 16);
        assert!(elements.next().unwrap_err().to_string().contains("larger than"));
        assert!(elements.element.capacity() < 4 << 20);
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<i64>().prop_map(Into::into),
            "[\\[\\]{},\\\\\"a-z\u{e9}]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec(("[{}\"a-z]{0,4}", inner), 0..4)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_array_is_cut_into_its_elements(list in prop::collection::vec(value(), 0..6), pretty: bool) {
            let text = if pretty { serde_json::to_vec_pretty(&list) } else { serde_json::to_vec(&list) }.unwrap();
            prop_assert_eq!(all(&text).unwrap(), list);
        }

        #[test]
        fn any_bytes_end_in_elements_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
            let _ = all(&[b"[".as_slice(), &bytes].concat());
        }
    }
}

//! Stop strings, looked for in the text as it grows.
//!
//! Invariant: what is found is the earliest stop string of the whole text, however tokens cut it; a character whose bytes
//! are not all there yet is waited for, the text before it is not.

use actloom_engine::op::OpError;

/// The text of one request so far.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Text that no later token changes.
    text: String,
    /// Tokens `from..read` show how the tail of `text` is spelled; tokens from `read` on are not in it yet.
    from: usize,
    read: usize,
}

/// What stands for bytes that are no character.
const BROKEN: char = char::REPLACEMENT_CHARACTER;

impl Watch {
    /// Takes the ids so far, one or more new ones at their end; the text before the first stop string, if there is one.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn look(
        &mut self,
        ids: &[u32],
        stops: &[String],
        decode: &dyn Fn(&[u32]) -> Result<String, OpError>,
    ) -> Result<Option<String>, OpError> {
        // tokens are read together with those before them, for some decoders treat a text's first token apart
        let before = decode(&ids[self.from..self.read])?;
        let with = decode(&ids[self.from..])?;
        let Some(new) = with.strip_prefix(before.as_str()) else {
            // a decoder that spells earlier tokens anew: look at all of it
            let all = decode(ids)?;
            return Ok(stops.iter().filter_map(|s| all.find(s.as_str())).min().map(|at| all[..at].to_owned()));
        };
        let whole = new.trim_end_matches(BROKEN);
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let mut start = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let kept = self.text.len();
        self.text.push_str(whole);
        if let Some(at) = stops.iter().filter_map(|s| self.text[start..].find(s.as_str())).min() {
            self.text.truncate(start + at);
            return Ok(Some(std::mem::take(&mut self.text)));
        }
        if whole.len() == new.len() {
            (self.from, self.read) = (self.read, ids.len());
        } else {
            self.text.truncate(kept);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens are bytes.
    fn decode(ids: &[u32]) -> Result<String, OpError> {
        let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn run(text: &[u8], stops: &[&str]) -> Option<(String, usize)> {
        let ids: Vec<u32> = text.iter().map(|b| u32::from(*b)).collect();
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut watch = Watch::default();
        (1..=ids.len()).find_map(|n| watch.look(&ids[..n], &stops, &decode).unwrap().map(|text| (text, n)))
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_characters_of_several_bytes() {
        assert_eq!(run("geh zum Tür-Öffner".as_bytes(), &["r-Ö", "zzz"]), Some(("geh zum Tü".into(), 15)));
        assert_eq!(run("one\n\ntwo".as_bytes(), &["\n\n"]), Some(("one".into(), 5)));
        assert_eq!(run("abab".as_bytes(), &["bb", "ba"]), Some(("a".into(), 3)));
        assert_eq!(run("abab".as_bytes(), &["x"]), None);
        // a stop string is seen before a broken character that follows in the same token is whole
        assert_eq!(run(b"a\xffSTOP", &["STOP"]), Some(("a\u{fffd}".into(), 6)));
    }

    proptest! {
        #[test]
        fn the_earliest_stop_string_of_the_text_is_found_at_its_last_byte(
            text in "[abé]{0,30}",
            stops in prop::collection::vec("[abé]{1,3}", 1..4),
        ) {
            let refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let ends = |s: &&str| text.find(*s).map(|at| at + s.len());
            let want = refs.iter().filter_map(ends).min().map(|end| {
                let at = refs.iter().filter_map(|s| text[..end].find(s)).min().unwrap();
                (text[..at].to_owned(), end)
            });
            prop_assert_eq!(run(text.as_bytes(), &refs), want);
        }
    }
}

//! Tokens as they come: text that is safe to show, and stop strings.
//!
//! Invariants: the pieces put together are the text of the ids, whole characters only, up to the first stop string,
//! which is left out; a piece that could be the beginning of a stop string is held back until it is clear.

use actloom_engine::op::OpError;

use crate::text::Text;

/// Ids that may wait for the rest of a character: four bytes are the longest.
const WAITING: usize = 4;

/// The text of one answer in the making.
pub struct Stream<'a> {
    text: &'a Text,
    stops: &'a [String],
    ids: Vec<u32>,
    /// Decoding starts here: far enough back that a token's text no longer depends on what came before.
    from: usize,
    /// Ids whose text was taken.
    taken: usize,
    /// Text that may still turn out to be a stop string.
    held: String,
    stopped: bool,
}

impl<'a> Stream<'a> {
    pub fn new(text: &'a Text, stops: &'a [String]) -> Self {
        Stream { text, stops, ids: Vec::new(), from: 0, taken: 0, held: String::new(), stopped: false }
    }

    /// A stop string came.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the next id; returns the text that is certain now.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn push(&mut self, id: u32) -> Result<String, OpError> {
        self.ids.push(id);
        let whole = self.text.decode(&self.ids[self.from..])?;
        if whole.ends_with('\u{FFFD}') && self.ids.len() - self.taken < WAITING {
            return Ok(String::new());
        }
        let known = self.text.decode(&self.ids[self.from..self.taken])?;
        self.held += whole.strip_prefix(&known).unwrap_or_default();
        self.from = self.taken;
        self.taken = self.ids.len();
        Ok(self.release())
    }

    /// What was held back, at the end of the ids.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn finish(&mut self) -> Result<String, OpError> {
        if self.stopped {
            return Ok(String::new());
        }
        let whole = self.text.decode(&self.ids[self.from..])?;
        let known = self.text.decode(&self.ids[self.from..self.taken])?;
        self.held += whole.strip_prefix(&known).unwrap_or_default();
        self.taken = self.ids.len();
        let mut out = self.release();
        out += &std::mem::take(&mut self.held);
        Ok(out)
    }

    fn release(&mut self) -> String {
        let (out, held, stopped) = cut(std::mem::take(&mut self.held), self.stops);
        self.held = held;
        self.stopped |= stopped;
        out
    }
}

/// Splits text into what is certain, what could begin a stop string, and whether one is in it.
fn cut(mut text: String, stops: &[String]) -> (String, String, bool) {
    let stops = stops.iter().filter(|stop| !stop.is_empty());
    if let Some(at) = stops.clone().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(at);
        return (text, String::new(), true);
    }
    let begins = |at: &usize| stops.clone().any(|stop| stop.starts_with(&text[*at..]));
    match text.char_indices().map(|(at, _)| at).find(begins) {
        Some(at) => {
            let held = text.split_off(at);
            (text, held, false)
        }
        None => (text, String::new(), false),
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    fn text() -> Text {
        let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
        Text::load(&folder, &[317]).unwrap()
    }

    fn pieces(text: &Text, source: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = Stream::new(text, &stops);
        let mut out = Vec::new();
        for id in text.encode(source).unwrap() {
            out.push(stream.push(id).unwrap());
            if stream.stopped() {
                break;
            }
        }
        out.push(stream.finish().unwrap());
        (out, stream.stopped())
    }

    #[test]
    fn pieces_are_whole_characters_and_add_up_to_the_text() {
        let text = text();
        for source in ["plain words, twice", "größe 漢字 🦀🦀 end", "🦀", "a\n\n  b"] {
            let (pieces, stopped) = pieces(&text, source, &[]);
            assert_eq!(pieces.concat(), source);
            assert!(!stopped && !pieces.iter().any(|piece| piece.contains('\u{FFFD}')), "{pieces:?}");
        }
        // bytes that never become a character are shown as what they are
        let crab = text.encode("🦀").unwrap();
        assert!(crab.len() > 1, "the test needs a character of several tokens");
        let mut stream = Stream::new(&text, &[]);
        assert_eq!(stream.push(crab[0]).unwrap(), "");
        assert!(stream.finish().unwrap().contains('\u{FFFD}'));
    }

    #[test]
    fn text_ends_before_the_first_stop_string_and_false_starts_are_shown() {
        let text = text();
        let (out, stopped) = pieces(&text, "one two STOP three", &["three", " STOP"]);
        assert_eq!((out.concat().as_str(), stopped), ("one two", true));
        let (out, stopped) = pieces(&text, "one STO", &["STOP"]);
        assert_eq!((out.concat().as_str(), stopped), ("one STO", false));
        assert_eq!(cut("aab".to_owned(), &["ab!".to_owned()]), ("a".to_owned(), "ab".to_owned(), false));
        assert_eq!(cut("xyz".to_owned(), &["z".to_owned(), "yz".to_owned()]), ("x".to_owned(), String::new(), true));
    }
}

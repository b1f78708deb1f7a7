//! py4j's text protocol: requests of several lines, replies of one.
//!
//! A request is a command, its parts and `e`, a line each; a reply is `!y` or `!x` (an error) and a value. A value is a
//! letter for its type and its text; in texts only backslash, carriage return and line feed are escaped.
//!
//! Invariants: what is decoded is bounded by the caller; no bytes make a decoder panic; what is encoded is one line for
//! each part, whatever is in it.

/// A name of something on the other side: `t`, `o17`, `z:java.lang.System`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(String);

impl Handle {
    /// A name, if it is one: it goes into requests as it is.
    pub fn new(name: &str) -> Option<Handle> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:$".contains(c);
        ((1..=100).contains(&name.len()) && name.chars().all(fits)).then(|| Handle(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A value as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Void,
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(String),
    /// An object that stays on the other side until it is released.
    Object(Handle),
    /// A list that stays there likewise.
    List(Handle),
}

/// What was said is not of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}, expected {expected}")]
pub struct Malformed {
    pub found: String,
    pub expected: &'static str,
}

fn malformed(found: impl Into<String>, expected: &'static str) -> Malformed {
    Malformed { found: found.into(), expected }
}

/// Bytes for an error's text: short, and on one line.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&bytes[..bytes.len().min(240)]).chars().take(60).collect();
    let more = if bytes.len() > text.len() { " .." } else { "" };
    format!("`{}{more}`", text.escape_default())
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
}

fn unescape(text: &str) -> Result<String, Malformed> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                other => {
                    let after = other.map_or("the end".to_owned(), |c| format!("`{}`", c.escape_default()));
                    return Err(malformed(
                        format!("a backslash before {after}"),
                        "a backslash, `n` or `r` after a backslash",
                    ));
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

impl Value {
    pub fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    /// Appends the letter and the text, without a line's end.
    pub fn encode(&self, out: &mut String) {
        match self {
            Value::Void => out.push('v'),
            Value::Null => out.push('n'),
            Value::Bool(yes) => out.push_str(if *yes { "btrue" } else { "bfalse" }),
            Value::Int(n) => out.push_str(&format!("i{n}")),
            Value::Long(n) => out.push_str(&format!("L{n}")),
            Value::Double(x) => out.push_str(&format!("d{x}")),
            Value::Text(text) => {
                out.push('s');
                escape(text, out);
            }
            Value::Object(handle) => {
                out.push('r');
                out.push_str(&handle.0);
            }
            Value::List(handle) => {
                out.push('l');
                out.push_str(&handle.0);
            }
        }
    }

    /// Reads a value that fills a line.
    ///
    /// # Errors
    /// What is not a value of a known type.
    pub fn decode(text: &str) -> Result<Value, Malformed> {
        let Some(kind) = text.chars().next() else {
            return Err(malformed("nothing", "a value"));
        };
        let rest = &text[kind.len_utf8()..];
        let wrong = |expected| malformed(shown(text.as_bytes()), expected);
        let handle = || Handle::new(rest).ok_or_else(|| wrong("the name of an object"));
        Ok(match kind {
            'v' if rest.is_empty() => Value::Void,
            'n' if rest.is_empty() => Value::Null,
            // requests write `True`, replies `true`
            'b' if rest.eq_ignore_ascii_case("true") => Value::Bool(true),
            'b' if rest.eq_ignore_ascii_case("false") => Value::Bool(false),
            'i' => Value::Int(rest.parse().map_err(|_| wrong("a whole number of 32 bits"))?),
            'L' => Value::Long(rest.parse().map_err(|_| wrong("a whole number of 64 bits"))?),
            'd' => Value::Double(rest.parse().map_err(|_| wrong("a number"))?),
            's' => Value::Text(unescape(rest)?),
            'r' => Value::Object(handle()?),
            'l' => Value::List(handle()?),
            _ => return Err(wrong("a value of a known type")),
        })
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Call { target: Handle, method: String, args: Vec<Value> },
    New { class: String },
    Release(Handle),
}

impl Request {
    /// All lines of it.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        match self {
            Request::Call { target, method, args } => {
                out.push_str("c\n");
                out.push_str(&target.0);
                out.push('\n');
                out.push_str(method);
                out.push('\n');
                for arg in args {
                    match arg {
                        // the other side reads `True` where it writes `true`
                        Value::Bool(yes) => out.push_str(if *yes { "bTrue" } else { "bFalse" }),
                        arg => arg.encode(&mut out),
                    }
                    out.push('\n');
                }
            }
            Request::New { class } => {
                out.push_str("i\n");
                out.push_str(class);
                out.push('\n');
            }
            Request::Release(handle) => {
                out.push_str("m\nd\n");
                out.push_str(&handle.0);
                out.push('\n');
            }
        }
        out.push_str("e\n");
        out
    }

    /// Reads a request from its lines, `e` left out.
    ///
    /// # Errors
    /// What is none.
    pub fn decode(lines: &[&str]) -> Result<Request, Malformed> {
        let handle =
            |name: &str| Handle::new(name).ok_or_else(|| malformed(shown(name.as_bytes()), "the name of an object"));
        match lines {
            ["c", target, method, args @ ..] => Ok(Request::Call {
                target: handle(target)?,
                method: (*method).to_owned(),
                args: args.iter().map(|arg| Value::decode(arg)).collect::<Result<_, _>>()?,
            }),
            ["i", class] => Ok(Request::New { class: (*class).to_owned() }),
            ["m", "d", name] => Ok(Request::Release(handle(name)?)),
            other => Err(malformed(shown(other.join(" ").as_bytes()), "a call, a constructor or a release")),
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Value(Value),
    /// What was thrown: its stack trace, or the object.
    Error(Value),
}

impl Reply {
    /// The line, with its end.
    pub fn encode(&self) -> String {
        let (mark, value) = match self {
            Reply::Value(value) => ("!y", value),
            Reply::Error(value) => ("!x", value),
        };
        let mut out = mark.to_owned();
        value.encode(&mut out);
        out.push('\n');
        out
    }

    /// Reads a line without its end.
    ///
    /// # Errors
    /// What is no reply.
    pub fn decode(line: &[u8]) -> Result<Reply, Malformed> {
        let text = std::str::from_utf8(line).map_err(|_| malformed(shown(line), "UTF-8"))?;
        match (text.strip_prefix("!y"), text.strip_prefix("!x")) {
            (Some(value), _) => Ok(Reply::Value(Value::decode(value)?)),
            // an error without a value is one, too
            (_, Some("")) => Ok(Reply::Error(Value::Null)),
            (_, Some(value)) => Ok(Reply::Error(Value::decode(value)?)),
            (None, None) => Err(malformed(shown(line), "a reply, which begins with `!y` or `!x`")),
        }
    }
}

/// Bytes as they arrive, taken apart at line feeds.
#[derive(Debug)]
pub struct Lines {
    held: Vec<u8>,
    /// So much of it is known to hold no line feed.
    searched: usize,
    most: usize,
}

impl Lines {
    /// Lines of at most `most` bytes.
    pub fn new(most: usize) -> Lines {
        Lines { held: Vec::new(), searched: 0, most }
    }

    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// A line that is longer than lines may be, whole or not.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        let end = self.held[self.searched..].iter().position(|b| *b == b'\n').map(|at| self.searched + at);
        if end.unwrap_or(self.held.len()) > self.most {
            return Err(malformed(
                format!("more than {} bytes, {} ..,", self.most, shown(&self.held)),
                "a reply that ends before",
            ));
        }
        let Some(end) = end else {
            self.searched = self.held.len();
            return Ok(None);
        };
        let rest = self.held.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.held, rest);
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handle() -> impl Strategy<Value = Handle> {
        "[a-zA-Z0-9._:$]{1,20}".prop_map(|name| Handle::new(&name).unwrap())
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Void),
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i32>().prop_map(Value::Int),
            any::<i64>().prop_map(Value::Long),
            (-1e300f64..1e300).prop_map(Value::Double),
            any::<String>().prop_map(Value::Text),
            "[\\\\nr\n\r\t !yxs]{0,12}".prop_map(Value::Text),
            handle().prop_map(Value::Object),
            handle().prop_map(Value::List),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            (handle(), "[a-zA-Z]{1,12}", proptest::collection::vec(value(), 0..5))
                .prop_map(|(target, method, args)| Request::Call { target, method, args }),
            "[a-zA-Z.]{1,20}".prop_map(|class| Request::New { class }),
            handle().prop_map(Request::Release),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![value().prop_map(Reply::Value), value().prop_map(Reply::Error)]
    }

    proptest! {
        #[test]
        fn requests_come_back_from_their_lines(request in request()) {
            let text = request.encode();
            let lines: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(lines.last(), Some(&"e"));
            prop_assert_eq!(Request::decode(&lines[..lines.len() - 1]).unwrap(), request);
        }

        #[test]
        fn replies_come_back_however_their_bytes_arrive(
            replies in proptest::collection::vec(reply(), 1..4), cuts in proptest::collection::vec(0usize..400, 0..8),
        ) {
            let bytes = replies.iter().map(Reply::encode).collect::<String>().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut lines = Lines::new(1 << 16);
            let mut seen = Vec::new();
            for piece in cuts.windows(2) {
                lines.push(&bytes[piece[0]..piece[1]]);
                while let Some(line) = lines.take().unwrap() {
                    seen.push(Reply::decode(&line).unwrap());
                }
            }
            prop_assert!(lines.is_empty());
            prop_assert_eq!(seen, replies);
        }

        #[test]
        fn any_bytes_are_a_reply_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Reply::decode(&bytes);
            let mut marked = b"!y".to_vec();
            marked.extend(&bytes);
            let _ = Reply::decode(&marked);
            let text = String::from_utf8_lossy(&bytes);
            let _ = Request::decode(&text.split('\n').collect::<Vec<_>>());
        }

        #[test]
        fn a_changed_or_cut_reply_is_a_reply_or_an_error(
            reply in reply(), at in any::<prop::sample::Index>(), byte in any::<u8>(), keep in any::<prop::sample::Index>(),
        ) {
            let mut bytes = reply.encode().into_bytes();
            bytes.pop();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Reply::decode(&bytes);
            bytes.truncate(keep.index(bytes.len()));
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn a_line_without_end_is_refused_at_the_limit(pieces in proptest::collection::vec(1usize..40, 1..20)) {
            let mut lines = Lines::new(100);
            let mut sent = 0;
            for n in pieces {
                lines.push(&vec![b'x'; n]);
                sent += n;
                prop_assert_eq!(lines.take().is_err(), sent > 100);
            }
        }
    }

    #[test]
    fn replies_of_the_simulator_are_read() {
        let read = |line: &str| Reply::decode(line.as_bytes());
        assert_eq!(read("!yv"), Ok(Reply::Value(Value::Void)));
        assert_eq!(read("!yn"), Ok(Reply::Value(Value::Null)));
        assert_eq!(read("!yd0.7166666666666667"), Ok(Reply::Value(Value::Double(0.7166666666666667))));
        assert_eq!(read("!yd1.0E-5"), Ok(Reply::Value(Value::Double(1e-5))));
        assert_eq!(read("!ybfalse"), Ok(Reply::Value(Value::Bool(false))));
        assert_eq!(read("!ylo0"), Ok(Reply::Value(Value::List(Handle::new("o0").unwrap()))));
        assert_eq!(read("!ysa\\n\tb\\\\n"), Ok(Reply::Value(Value::text("a\n\tb\\n"))));
        assert!(matches!(read("!xspy4j.Py4JException: no\\n\tat py4j.Gateway\\n"), Ok(Reply::Error(Value::Text(_)))));
        for hostile in
            ["", "!", "!y", "!yq1", "!yi99999999999", "!ydx", "!ysa\\", "!ysa\\t", "!yro 1", "!yr", "yv", "!yvv"]
        {
            assert!(read(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn no_text_breaks_out_of_its_line() {
        let target = Handle::new("t").unwrap();
        let args = vec![Value::text("look\ne\nc\nt\nreset\r\ne\n")];
        let text = Request::Call { target, method: "step".to_owned(), args }.encode();
        assert_eq!(text, "c\nt\nstep\nslook\\ne\\nc\\nt\\nreset\\r\\ne\\n\ne\n");
        assert!(Handle::new("o1\ne").is_none());
    }
}

//! An answer's text as tokens: LaTeX, plain text and a few Unicode signs give the same ones.
//!
//! Invariants: spacing, sizes and delimiters of mathematics leave no token; the number of tokens, the digits of a number
//! and the nesting of texts are bounded; what is not known is an error, never dropped.

use super::unit;

/// Longest list of tokens.
const TOKENS: usize = 4000;
/// Most digits of a number.
const DIGITS: usize = 2000;
/// Texts within texts.
const NESTED: usize = 8;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Decimal digits as written, separators left out: `12.5`, `1e3`, `0.1(6)` for a repeating decimal.
    Number(String),
    /// A variable: one letter, or a Greek letter by name.
    Letter(String),
    /// A named function: `sin`.
    Function(&'static str),
    /// Words in lower case; `and` and `or` stand alone.
    Text(String),
    /// `frac`, `sqrt`, `binom`, and commands that nothing is known of.
    Command(String),
    Begin(String),
    End(String),
    /// Everything else by one sign: `«` and `»` are the braces of a set, a line feed is the end of a matrix row.
    Mark(char),
}

/// Functions by name.
const FUNCTIONS: [&str; 17] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "lg",
    "exp", "sqrt",
];

const SPACING: [&str; 27] = [
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "biggl",
    "biggr",
    "Biggl",
    "Biggr",
    "middle",
    "displaystyle",
    "textstyle",
    "scriptstyle",
    "limits",
    "nolimits",
    "quad",
    "qquad",
    "thinspace",
    "enspace",
    "space",
    "allowbreak",
    "nonumber",
];

const TEXTS: [&str; 18] = [
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "textnormal",
    "mbox",
    "hbox",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathtt",
    "operatorname",
    "boldsymbol",
    "bm",
    "emph",
];

const GREEK: [&str; 30] = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Omega",
    "Phi",
    "ell",
];

/// Units that are written right after a number without a text around them.
const UNITS: [&str; 22] = [
    "cm", "mm", "km", "dm", "nm", "kg", "mg", "lb", "lbs", "oz", "ft", "yd", "mL", "ml", "mph", "kph", "min", "sec",
    "hr", "hrs", "deg", "units",
];

/// Short words that are no product of letters.
const WORDS: [&str; 17] =
    ["yes", "no", "odd", "all", "one", "two", "six", "ten", "red", "not", "or", "and", "any", "day", "to", "is", "per"];

/// The sign that a command stands for.
fn sign(name: &str) -> Option<char> {
    Some(match name {
        "pi" => 'π',
        "infty" => '∞',
        "pm" => '±',
        "mp" => '∓',
        "cup" => '∪',
        "in" => '∈',
        "cdot" | "times" | "ast" => '*',
        "div" => '/',
        "le" | "leq" | "leqslant" => '≤',
        "ge" | "geq" | "geqslant" => '≥',
        "lt" => '<',
        "gt" => '>',
        "ne" | "neq" => '≠',
        "circ" | "degree" => '°',
        "lfloor" => '⌊',
        "rfloor" => '⌋',
        "lceil" => '⌈',
        "rceil" => '⌉',
        "lvert" | "rvert" | "vert" | "mid" => '|',
        "langle" => '⟨',
        "rangle" => '⟩',
        "lbrace" => '«',
        "rbrace" => '»',
        "lbrack" => '[',
        "rbrack" => ']',
        "colon" => ':',
        "prime" => '\'',
        _ => return None,
    })
}

/// Takes an answer apart; `None` where a sign is not known or a limit is passed. With `thousands`, `1,234` is one number.
pub fn tokens(text: &str, thousands: bool) -> Option<Vec<Token>> {
    let mut lexer =
        Lexer { text: text.chars().collect(), at: 0, thousands, prose: prose(text), brackets: 0, out: Vec::new() };
    lexer.all(0)?;
    Some(lexer.out)
}

/// Whether an answer holds words and no mathematics.
fn prose(text: &str) -> bool {
    let mut rest = text.to_owned();
    for name in TEXTS {
        rest = rest.replace(&format!("\\{name}{{"), "");
    }
    rest.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || ",.;'-{}$()".contains(c))
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    thousands: bool,
    prose: bool,
    /// Open brackets: inside, a comma separates items and never thousands.
    brackets: usize,
    out: Vec<Token>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn starts(&self, at: usize, with: &str) -> bool {
        with.chars().enumerate().all(|(i, c)| self.text.get(at + i) == Some(&c))
    }

    fn mark(&mut self, c: char) {
        match c {
            '(' | '[' | '«' => self.brackets += 1,
            ')' | ']' | '»' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.out.push(Token::Mark(c));
    }

    fn all(&mut self, depth: usize) -> Option<()> {
        while let Some(c) = self.peek(0) {
            if self.out.len() > TOKENS || depth > NESTED {
                return None;
            }
            self.one(c, depth)?;
        }
        Some(())
    }

    fn one(&mut self, c: char, depth: usize) -> Option<()> {
        if c == '\\' {
            return self.command(depth);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) {
            return self.number();
        }
        if c.is_alphabetic() && c != 'π' {
            self.word();
            return Some(());
        }
        self.at += 1;
        match c {
            // a bare dollar begins or ends mathematics
            '$' | '~' | '\u{200b}' | '\u{feff}' => {}
            c if c.is_whitespace() => {}
            '.' | '。' if self.text[self.at..].iter().all(|c| c.is_whitespace() || "$})".contains(*c)) => {}
            '*' if self.peek(0) == Some('*') => {
                self.at += 1;
                self.mark('^');
            }
            '<' | '>' | '!' if self.peek(0) == Some('=') => {
                self.at += 1;
                self.mark(match c {
                    '<' => '≤',
                    '>' => '≥',
                    _ => '≠',
                });
            }
            '−' | '–' | '—' => self.mark('-'),
            '×' | '·' | '⋅' | '∗' => self.mark('*'),
            '÷' => self.mark('/'),
            '⩽' => self.mark('≤'),
            '⩾' => self.mark('≥'),
            '’' | '′' => self.mark('\''),
            '√' => self.out.push(Token::Command("sqrt".to_owned())),
            '∅' => self.out.push(Token::Command("emptyset".to_owned())),
            '²' | '³' => {
                self.mark('^');
                self.out.push(Token::Number(if c == '²' { "2" } else { "3" }.to_owned()));
            }
            c if "{}()[]+-*/^_,;=<>|!:&%'π∞±∓∪∈≤≥≠°⌊⌋⌈⌉⟨⟩".contains(c) => self.mark(c),
            _ => return None,
        }
        Some(())
    }

    /// What begins with a backslash.
    fn command(&mut self, depth: usize) -> Option<()> {
        self.at += 1;
        let c = self.peek(0)?;
        if !c.is_ascii_alphabetic() {
            self.at += 1;
            match c {
                ',' | '!' | ';' | ':' | '>' | ' ' | '\n' | '(' | ')' | '[' | ']' | '/' => {}
                '%' | '$' | '&' | '_' => self.mark(c),
                '{' => self.mark('«'),
                '}' => self.mark('»'),
                '|' => self.mark('|'),
                '\\' => self.mark('\n'),
                _ => return None,
            }
            return Some(());
        }
        let from = self.at;
        while self.peek(0).is_some_and(|c| c.is_ascii_alphabetic()) {
            self.at += 1;
        }
        let name: String = self.text[from..self.at].iter().collect();
        match &*name {
            "left" | "right" if self.peek(0) == Some('.') => self.at += 1,
            name if SPACING.contains(&name) => {}
            name if TEXTS.contains(&name) => self.text_command(depth)?,
            "frac" | "dfrac" | "tfrac" | "cfrac" => self.short("frac", 2),
            "binom" | "dbinom" | "tbinom" => self.short("binom", 2),
            "sqrt" => self.short("sqrt", 1),
            "emptyset" | "varnothing" => self.out.push(Token::Command("emptyset".to_owned())),
            "mathbb" => {
                let set = self.braced()?;
                self.out.push(Token::Letter(format!("bb:{set}")));
            }
            "begin" => {
                let name = self.braced()?;
                self.out.push(Token::Begin(name));
            }
            "end" => {
                let name = self.braced()?;
                self.out.push(Token::End(name));
            }
            name => match (sign(name), FUNCTIONS.iter().find(|f| **f == name)) {
                (Some(sign), _) => self.mark(sign),
                (_, Some(function)) => self.out.push(Token::Function(function)),
                _ if GREEK.contains(&name) => self.out.push(Token::Letter(name.to_owned())),
                _ => self.out.push(Token::Command(name.to_owned())),
            },
        }
        Some(())
    }

    /// A command whose arguments may be single digits: `\frac12`.
    fn short(&mut self, name: &str, arguments: usize) {
        self.out.push(Token::Command(name.to_owned()));
        for _ in 0..arguments {
            while self.peek(0) == Some(' ') {
                self.at += 1;
            }
            let Some(digit) = self.peek(0).filter(char::is_ascii_digit) else { return };
            self.at += 1;
            self.out.push(Token::Number(digit.to_string()));
        }
    }

    /// The text between balanced braces that come next.
    fn braced(&mut self) -> Option<String> {
        while self.peek(0) == Some(' ') {
            self.at += 1;
        }
        if self.peek(0) != Some('{') {
            return None;
        }
        let (from, mut open) = (self.at + 1, 0usize);
        while let Some(c) = self.peek(0) {
            match c {
                '\\' => self.at += 1,
                '{' => open += 1,
                '}' => open -= 1,
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                let to = (self.at - 1).min(self.text.len());
                return Some(self.text[from..to].iter().collect());
            }
        }
        None
    }

    /// `\text{..}`: words, or mathematics in another face.
    fn text_command(&mut self, depth: usize) -> Option<()> {
        if self.peek(0) != Some('{') && self.peek(0) != Some(' ') {
            return None;
        }
        let inside = self.braced()?;
        let letters: Vec<char> = inside.chars().filter(|c| c.is_alphabetic()).collect();
        let words = inside.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || ",.;'-/".contains(c));
        // one letter is a variable in another face (an upright i), but for the symbols of units
        let after_value = self.after_value() && !matches!(self.out.last(), Some(Token::Letter(_)));
        let letter = |c: &char| if after_value { unit::symbol(&c.to_string()) } else { inside.starts_with(' ') };
        if words && (letters.len() > 1 || letters.first().is_some_and(letter)) {
            // a unit such as m/s keeps its bar
            for part in inside.split_inclusive(['/', ',', ';']) {
                let (word, end) = match part.chars().last() {
                    Some(end @ ('/' | ',' | ';')) => (&part[..part.len() - 1], Some(end)),
                    _ => (part, None),
                };
                word.split_whitespace().for_each(|word| self.push_word(word));
                end.into_iter().for_each(|end| self.mark(end));
            }
            return Some(());
        }
        let mut inner = Lexer {
            text: inside.chars().collect(),
            at: 0,
            thousands: self.thousands,
            prose: prose(&inside),
            brackets: self.brackets,
            out: std::mem::take(&mut self.out),
        };
        let done = inner.all(depth + 1);
        self.out = inner.out;
        done
    }

    /// Whether a value, or a value and words, stand before: what follows may be a unit.
    fn after_value(&self) -> bool {
        let mut before = self.out.iter().rev().skip_while(|token| matches!(token, Token::Text(_)));
        matches!(before.next(), Some(Token::Number(_) | Token::Letter(_) | Token::Mark(')' | '}' | ']' | 'π' | '/')))
    }

    /// Appends a word; words that follow one another are one text, but `and` and `or` stand alone.
    fn push_word(&mut self, word: &str) {
        let word = word.trim_end_matches('.');
        let word = if unit::cased(word) && self.after_value() { word.to_owned() } else { word.to_lowercase() };
        if word.is_empty() {
            return;
        }
        let alone = |w: &str| w == "and" || w == "or";
        match self.out.last_mut() {
            Some(Token::Text(before)) if !alone(before) && !alone(&word) => {
                before.push(' ');
                before.push_str(&word);
            }
            _ => self.out.push(Token::Text(word)),
        }
    }

    /// A run of letters without a command.
    fn word(&mut self) {
        let from = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphabetic() && c != 'π') {
            self.at += 1;
        }
        let run: String = self.text[from..self.at].iter().collect();
        let n = self.at - from;
        let after_value = matches!(self.out.last(), Some(Token::Number(_) | Token::Mark(')' | '}')));
        let text = match n {
            1 => !run.is_ascii() && self.prose,
            _ if WORDS.contains(&&*run.to_lowercase()) => true,
            2 | 3 if self.prose => {
                run.chars().any(|c| !c.is_ascii_lowercase()) || matches!(self.out.last(), Some(Token::Text(_)))
            }
            2 | 3 => after_value && UNITS.contains(&&*run),
            _ => true,
        };
        let function = FUNCTIONS.iter().find(|f| **f == run);
        match (&*run, function) {
            ("sqrt", _) => self.out.push(Token::Command(run)),
            (_, Some(function)) => self.out.push(Token::Function(function)),
            ("pi", _) => self.mark('π'),
            ("inf" | "infty" | "infinity" | "Infinity", _) => self.mark('∞'),
            ("theta" | "alpha" | "beta" | "gamma" | "lambda", _) => self.out.push(Token::Letter(run)),
            _ if text => self.push_word(&run),
            _ => {
                for c in run.chars() {
                    self.out.push(Token::Letter(c.to_string()));
                }
            }
        }
    }

    fn digits(&self, at: usize) -> usize {
        self.text[at.min(self.text.len())..].iter().take_while(|c| c.is_ascii_digit()).count()
    }

    /// The length of a separator of thousands that stands before exactly three digits.
    fn separator(&self, first: usize) -> Option<usize> {
        let always = ["{,}", ",\\!", "\\,", "\\ ", "\u{2009}", "\u{202f}", "\u{a0}", ",\\,"];
        let sometimes: &[&str] = if self.thousands && self.brackets == 0 { &[",", " "] } else { &[] };
        let found = always.iter().chain(sometimes).find(|s| self.starts(self.at, s))?.chars().count();
        // 12 1/2 and 3,125/4 in a list are other things, which the second reading without separators sees
        (first <= 3 && self.digits(self.at + found) == 3).then_some(found)
    }

    fn number(&mut self) -> Option<()> {
        let mut number = String::new();
        let first = self.digits(self.at);
        let leading_zero = first == 1 && self.peek(0) == Some('0');
        loop {
            let n = self.digits(self.at);
            if number.len() + n > DIGITS {
                return None;
            }
            number.extend(&self.text[self.at..self.at + n]);
            self.at += n;
            match self.separator(first) {
                Some(length) if !leading_zero && n > 0 => self.at += length,
                _ => break,
            }
        }
        if self.peek(0) == Some('.') {
            let n = self.digits(self.at + 1);
            let over = ["\\overline{", "\\bar{"].into_iter().find(|o| self.starts(self.at + 1 + n, o));
            if n > 0 || over.is_some() {
                if n > DIGITS {
                    return None;
                }
                number.push('.');
                number.extend(&self.text[self.at + 1..self.at + 1 + n]);
                self.at += 1 + n;
            }
            if let Some(over) = over {
                self.at += over.chars().count();
                let n = self.digits(self.at);
                if n == 0 || n > 50 || self.text.get(self.at + n) != Some(&'}') {
                    return None;
                }
                number.push('(');
                number.extend(&self.text[self.at..self.at + n]);
                number.push(')');
                self.at += n + 1;
            }
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        let exponent = self.digits(self.at + 1 + sign);
        if matches!(self.peek(0), Some('e' | 'E')) && (1..=4).contains(&exponent) && !number.ends_with(')') {
            number.push('e');
            number.extend(self.text[self.at + 1..self.at + 1 + sign + exponent].iter().filter(|c| **c != '+'));
            self.at += 1 + sign + exponent;
        }
        self.out.push(Token::Number(number));
        Some(())
    }
}

//! Tokens to a tree: lists, relations, unions, expressions.
//!
//! 1. A list is items between commas, semicolons, `and`, `or`; an item with a plus-minus is two items.
//! 2. An item is a relation: operands between `=`, `<` and their like.
//! 3. An operand is an expression with its unit, or a union of such.
//! 4. An expression is a sum of products of factors; two factors side by side are multiplied.
//!
//! Invariants: either all tokens are understood or there is no tree; the depth of the recursion is bounded.

use num_traits::{One, Signed, Zero};

use super::node::{Node, Rational, rational};
use super::token::Token;
use super::unit::{self, Unit};

/// Deepest nesting.
const DEPTH: usize = 200;
/// Most steps: an item with a plus-minus is read twice, and such items can be nested.
const STEPS: usize = 50_000;

/// Scale words that stand where a unit stands.
const SCALES: [(&str, i64); 6] = [
    ("dozen", 12),
    ("hundred", 100),
    ("thousand", 1000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// The tree of an answer; `None` where it is not understood.
pub fn parse(tokens: &[Token]) -> Option<Node> {
    let mut parser = Parser { tokens, at: 0, depth: 0, steps: 0, bars: 0, upper: true, two: false };
    let node = parser.list()?;
    (parser.at == tokens.len()).then_some(node)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    steps: usize,
    /// Open bars of absolute values: inside, a bar closes.
    bars: usize,
    /// Which sign of a plus-minus is read.
    upper: bool,
    /// A plus-minus was read.
    two: bool,
}

fn boxed(node: Node) -> Box<Node> {
    Box::new(node)
}

/// A literal integer, not negative.
fn is_whole(node: &Node) -> bool {
    matches!(node, Node::Number(n) if n.is_integer() && !n.is_negative())
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn sees(&self, c: char) -> bool {
        self.peek() == Some(&Token::Mark(c))
    }

    fn take(&mut self, c: char) -> bool {
        let seen = self.sees(c);
        self.at += usize::from(seen);
        seen
    }

    fn must(&mut self, c: char) -> Option<()> {
        self.take(c).then_some(())
    }

    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.steps += 1;
        if self.depth >= DEPTH || self.steps > STEPS {
            return None;
        }
        self.depth += 1;
        let found = f(self);
        self.depth -= 1;
        found
    }

    /// What stands between two items; `Some(true)` for an `or`.
    fn connector(&mut self) -> Option<bool> {
        let comma = self.take(',') || self.take(';');
        let word = match self.peek() {
            Some(Token::Text(word)) if word == "and" => Some(false),
            Some(Token::Text(word)) if word == "or" => Some(true),
            _ => None,
        };
        self.at += usize::from(word.is_some());
        match (comma, word) {
            (_, Some(or)) => Some(or),
            (true, None) => Some(false),
            (false, None) => None,
        }
    }

    fn list(&mut self) -> Option<Node> {
        let (items, or) = self.items()?;
        let mut items = items;
        Some(if items.len() == 1 { items.pop()? } else { Node::List(items, or) })
    }

    fn items(&mut self) -> Option<(Vec<Node>, bool)> {
        let (mut items, mut or) = (Vec::new(), false);
        loop {
            let (from, before) = (self.at, std::mem::take(&mut self.two));
            items.push(self.relation()?);
            if self.two {
                self.at = from;
                self.upper = false;
                let lower = self.relation();
                self.upper = true;
                items.push(lower?);
            }
            self.two = before;
            match self.connector() {
                Some(word) => or |= word,
                None => return Some((items, or)),
            }
        }
    }

    fn relation(&mut self) -> Option<Node> {
        self.nested(|p| {
            let (mut operands, mut signs) = (vec![p.operand()?], Vec::new());
            while let Some(Token::Mark(sign @ ('=' | '<' | '>' | '≤' | '≥' | '≠' | '∈'))) = p.peek() {
                p.at += 1;
                signs.push(*sign);
                operands.push(p.operand()?);
            }
            match (&*signs, operands.len()) {
                ([], _) => operands.pop(),
                // what a name is said to lie in
                (['∈'], 2) if matches!(operands[0], Node::Symbol(_)) => operands.pop(),
                _ if signs.contains(&'∈') => None,
                _ => Some(Node::Relation(operands, signs)),
            }
        })
    }

    fn operand(&mut self) -> Option<Node> {
        if let Some(name) = self.name() {
            return Some(name);
        }
        let first = self.measured()?;
        if self.sees(':') {
            let mut parts = vec![first];
            while self.take(':') {
                parts.push(self.sum()?);
            }
            return Some(Node::Ratio(parts));
        }
        let joins = |p: &Self, left: &Node| {
            p.sees('∪') || (matches!(left, Node::Group(..)) && p.peek() == Some(&Token::Letter("U".to_owned())))
        };
        if !joins(self, &first) {
            return Some(first);
        }
        let mut parts = vec![first];
        while parts.last().is_some_and(|last| joins(self, last)) {
            self.at += 1;
            parts.push(self.measured()?);
        }
        Some(Node::Union(parts))
    }

    /// A name that only `=` can follow: `f(x)`, `f^{-1}(x)`, `\angle ABC`.
    fn name(&mut self) -> Option<Node> {
        let rest = &self.tokens[self.at..];
        let end = rest.iter().take(16).position(|t| *t == Token::Mark('='))?;
        let mut name = String::new();
        for token in &rest[..end] {
            match token {
                Token::Letter(l) => name.push_str(l),
                Token::Command(c) if c == "angle" || c == "triangle" => name.push_str(c),
                Token::Number(n) if n == "1" => name.push_str(n),
                Token::Mark(c @ ('(' | ')' | '^' | '{' | '}' | '-' | ',' | '\'')) => name.push(*c),
                _ => return None,
            }
        }
        let plain = name.replace("^{-1}", "⁻¹");
        let call = plain.split_once('(').is_some_and(|(f, rest)| {
            let arguments = rest.strip_suffix(')').unwrap_or_default();
            f.trim_end_matches(['⁻', '¹', '\'']).chars().count() == 1
                && arguments.split(',').all(|a| a.chars().count() == 1 && a.chars().all(char::is_alphabetic))
        });
        let upper = plain.trim_start_matches("angle").trim_start_matches("triangle");
        let figure = upper.chars().count() > 1 && upper.chars().all(|c| c.is_ascii_uppercase());
        if !call && !figure {
            return None;
        }
        self.at += end;
        Some(Node::Symbol(plain))
    }

    /// An expression and its unit.
    fn measured(&mut self) -> Option<Node> {
        if let Some(Token::Text(text)) = self.peek() {
            self.at += 1;
            let alone = match self.peek() {
                None | Some(Token::Text(_)) => true,
                Some(Token::Mark(c)) => ",;=)»]".contains(*c),
                _ => false,
            };
            return (alone && text != "and" && text != "or").then(|| Node::Text(text.clone()));
        }
        let from = self.at;
        let negative = self.take('-');
        if self.take('$') {
            let value = self.product()?;
            let value = self.scaled(value)?;
            let value = if negative { Node::Negative(boxed(value)) } else { value };
            return Some(Node::Unit(boxed(value), "dollar".to_owned()));
        }
        self.at = from;
        let value = self.sum()?;
        self.scaled(value)
    }

    /// What follows a value: a scale (`million`), `percent`, a unit.
    fn scaled(&mut self, value: Node) -> Option<Node> {
        let Some(Token::Text(text)) = self.peek() else { return Some(value) };
        if text == "and" || text == "or" {
            return Some(value);
        }
        let mut value = value;
        let mut words: Vec<&str> = text.split(' ').collect();
        if let Some((_, scale)) = SCALES.iter().find(|(name, _)| *name == words[0]) {
            value = Node::Product(vec![value, Node::integer(*scale)]);
            words.remove(0);
        }
        if words.len() == 1 && words[0] == "percent" {
            self.at += 1;
            return Some(Node::Percent(boxed(value)));
        }
        self.at += 1;
        if words.is_empty() {
            return Some(value);
        }
        // a word that is not known may change the value or deny it
        let Unit { name: mut unit, mut powers } = unit::named(&words)?;
        loop {
            if self.take('^') {
                let power = self.exponent()?;
                let (Node::Number(n), true) = (&power, powers) else { return None };
                unit.push_str(&format!("^{n}"));
                powers = false;
            } else if let (Some(Token::Mark('/')), Some(Token::Text(below))) =
                (self.peek(), self.tokens.get(self.at + 1))
            {
                self.at += 2;
                let below = unit::named(&below.split(' ').collect::<Vec<_>>())?;
                unit = if (&*unit, &*below.name) == ("mi", "h") { "mph".to_owned() } else { unit + "/" + &below.name };
                powers = below.powers;
            } else {
                break;
            }
        }
        Some(Node::Unit(boxed(value), unit))
    }

    fn sum(&mut self) -> Option<Node> {
        self.nested(|p| {
            let mut terms = Vec::new();
            let mut negative = p.sign();
            loop {
                let term = p.product()?;
                terms.push(if negative { Node::Negative(boxed(term)) } else { term });
                if !matches!(p.peek(), Some(Token::Mark('+' | '-' | '±' | '∓'))) {
                    break;
                }
                negative = p.sign();
            }
            Some(if terms.len() == 1 { terms.pop()? } else { Node::Sum(terms) })
        })
    }

    /// Reads signs; true for a minus.
    fn sign(&mut self) -> bool {
        let mut negative = false;
        while let Some(Token::Mark(c @ ('+' | '-' | '±' | '∓'))) = self.peek() {
            self.at += 1;
            self.two |= matches!(c, '±' | '∓');
            negative ^= match c {
                '-' => true,
                '±' => !self.upper,
                '∓' => self.upper,
                _ => false,
            };
        }
        negative
    }

    fn product(&mut self) -> Option<Node> {
        let from = self.at;
        let mut value = self.factor()?;
        // a whole number right before a fraction of whole numbers is a mixed number
        if self.at == from + 1
            && is_whole(&value)
            && let Some((fraction, length)) = self.mixed()
        {
            self.at += length;
            value = Node::Sum(vec![value, fraction]);
        }
        loop {
            if self.take('*') {
                let negative = self.sign();
                let factor = self.factor()?;
                value = join(value, if negative { Node::Negative(boxed(factor)) } else { factor });
            } else if self.sees('/') {
                // a unit below the line belongs to the unit
                if matches!(self.tokens.get(self.at + 1), Some(Token::Text(_))) {
                    return None;
                }
                self.at += 1;
                let negative = self.sign();
                let below = self.factor()?;
                let below = if negative { Node::Negative(boxed(below)) } else { below };
                value = Node::Quotient(boxed(value), boxed(below));
            } else if self.begins_factor(&value) {
                let factor = self.factor()?;
                value = join(value, factor);
            } else {
                return Some(value);
            }
        }
    }

    /// A fraction of literal whole numbers here, and how many tokens it takes. It is looked for and not tried, for trying
    /// doubles the work at every level of nesting.
    fn mixed(&self) -> Option<(Node, usize)> {
        use Token::{Command, Mark, Number};
        let (above, below, length) = match &self.tokens[self.at..] {
            [Command(c), Mark('{'), Number(a), Mark('}'), Mark('{'), Number(b), Mark('}'), ..] if c == "frac" => {
                (a, b, 7)
            }
            [Command(c), Number(a), Number(b), ..] if c == "frac" => (a, b, 3),
            [Number(a), Mark('/'), Number(b), ..] => (a, b, 3),
            _ => return None,
        };
        let whole = |digits: &str| rational(digits).map(Node::Number).filter(is_whole);
        Some((Node::Quotient(boxed(whole(above)?), boxed(whole(below)?)), length))
    }

    fn begins_factor(&self, before: &Node) -> bool {
        match self.peek() {
            Some(Token::Letter(l)) => !(l == "U" && matches!(before, Node::Group(..))),
            Some(Token::Function(_)) => true,
            Some(Token::Command(c)) => c == "frac" || c == "sqrt" || c == "binom",
            Some(Token::Mark('|')) => self.bars == 0,
            Some(Token::Mark(c)) => "({[π⌊⌈".contains(*c),
            _ => false,
        }
    }

    fn factor(&mut self) -> Option<Node> {
        self.nested(|p| {
            let mut value = p.base()?;
            loop {
                if p.take('^') {
                    if p.degree_mark() {
                        value = Node::Degree(boxed(value));
                        continue;
                    }
                    let exponent = p.exponent()?;
                    value = Node::Power(boxed(value), boxed(exponent));
                } else if p.take('!') {
                    value = Node::Factorial(boxed(value));
                } else if p.take('%') {
                    value = Node::Percent(boxed(value));
                } else if p.take('°') {
                    value = Node::Degree(boxed(value));
                } else {
                    return Some(value);
                }
            }
        })
    }

    /// `°` or `{°}` after a caret.
    fn degree_mark(&mut self) -> bool {
        if self.take('°') {
            return true;
        }
        let braces = [Token::Mark('{'), Token::Mark('°'), Token::Mark('}')];
        let found = self.tokens[self.at..].starts_with(&braces);
        self.at += if found { 3 } else { 0 };
        found
    }

    fn exponent(&mut self) -> Option<Node> {
        self.nested(|p| {
            if p.take('{') {
                let inner = p.sum()?;
                p.must('}')?;
                return Some(inner);
            }
            let negative = p.sign();
            let base = p.base()?;
            let base = if p.take('^') { Node::Power(boxed(base), boxed(p.exponent()?)) } else { base };
            Some(if negative { Node::Negative(boxed(base)) } else { base })
        })
    }

    /// The argument of a command: braces, or one token.
    fn argument(&mut self) -> Option<Node> {
        if self.take('{') {
            let inner = self.sum()?;
            self.must('}')?;
            return Some(inner);
        }
        self.base()
    }

    fn base(&mut self) -> Option<Node> {
        self.nested(|p| {
            let token = p.peek()?;
            p.at += 1;
            match token {
                Token::Number(digits) => {
                    if p.sees('_') && digits.chars().all(|c| c.is_ascii_digit()) {
                        return p.based(digits.clone());
                    }
                    rational(digits).map(Node::Number)
                }
                Token::Letter(name) => p.letter(name),
                Token::Function(name) => p.call(name),
                Token::Command(name) => p.command(name),
                Token::Begin(name) => p.matrix(name),
                Token::Mark('π') => Some(Node::Pi),
                Token::Mark('∞') => Some(Node::Infinity),
                Token::Mark('|') => {
                    p.bars += 1;
                    let inner = p.sum();
                    p.bars -= 1;
                    p.must('|')?;
                    Some(Node::Absolute(boxed(inner?)))
                }
                Token::Mark('⌊') => {
                    let inner = p.sum()?;
                    p.must('⌋').map(|()| Node::Floor(boxed(inner)))
                }
                Token::Mark('⌈') => {
                    let inner = p.sum()?;
                    p.must('⌉').map(|()| Node::Ceiling(boxed(inner)))
                }
                Token::Mark(open @ ('(' | '[' | '{' | '«' | '⟨')) => p.brackets(*open),
                Token::Mark(_) | Token::Text(_) | Token::End(_) => None,
            }
        })
    }

    /// Everything from an opening bracket on: an expression, a point, an interval, a set.
    fn brackets(&mut self, open: char) -> Option<Node> {
        let bars = std::mem::take(&mut self.bars);
        if open == '«' && self.take('»') {
            self.bars = bars;
            return Some(Node::Set(Vec::new()));
        }
        if open == '«' {
            let (items, _) = self.items()?;
            self.must('»')?;
            self.bars = bars;
            return Some(Node::Set(items));
        }
        let mut items = vec![self.relation()?];
        while self.take(',') || self.take(';') {
            items.push(self.relation()?);
        }
        self.bars = bars;
        let Some(Token::Mark(close)) = self.peek() else { return None };
        self.at += 1;
        match (open, close, items.len()) {
            ('(', ')', 1) | ('[', ']', 1) | ('{', '}', 1) => items.pop(),
            ('{', '}', _) => Some(Node::Set(items)),
            ('(', ')' | ']', n) | ('[', ')' | ']', n) if n > 1 => Some(Node::Group(open, *close, items)),
            ('⟨', '⟩', _) => Some(Node::Group('⟨', '⟩', items)),
            _ => None,
        }
    }

    fn letter(&mut self, name: &str) -> Option<Node> {
        let mut name = name.to_owned();
        if name == "bb:R" {
            let all = vec![Node::Negative(boxed(Node::Infinity)), Node::Infinity];
            return Some(Node::Group('(', ')', all));
        }
        if self.take('_') {
            let braces = self.take('{');
            name.push('_');
            while let Some(Token::Letter(s) | Token::Number(s) | Token::Text(s)) = self.peek() {
                name.push_str(s);
                self.at += 1;
                if !braces {
                    break;
                }
            }
            if braces {
                self.must('}')?;
            }
        }
        while self.take('\'') {
            name.push('\'');
        }
        Some(match &*name {
            "e" => Node::E,
            "i" => Node::I,
            _ => Node::Symbol(name),
        })
    }

    /// The base that is written below digits.
    fn based(&mut self, digits: String) -> Option<Node> {
        self.must('_')?;
        let braces = self.take('{');
        let base = match self.peek()? {
            Token::Number(base) => base.parse().ok()?,
            Token::Text(word) => unit::base(word)?,
            _ => return None,
        };
        self.at += 1;
        if braces {
            self.must('}')?;
        }
        let fits = (2..=36).contains(&base) && digits.chars().all(|c| c.is_digit(base));
        fits.then_some(Node::Based(digits, base))
    }

    fn command(&mut self, name: &str) -> Option<Node> {
        match name {
            "frac" => Some(Node::Quotient(boxed(self.argument()?), boxed(self.argument()?))),
            "binom" => Some(Node::Binomial(boxed(self.argument()?), boxed(self.argument()?))),
            "sqrt" => {
                let degree = if self.take('[') {
                    let degree = self.sum()?;
                    self.must(']')?;
                    degree
                } else {
                    Node::integer(2)
                };
                Some(Node::Root(boxed(self.argument()?), boxed(degree)))
            }
            "emptyset" => Some(Node::Set(Vec::new())),
            _ => None,
        }
    }

    fn call(&mut self, name: &'static str) -> Option<Node> {
        let base = match name {
            "log" if self.take('_') => Some(self.argument()?),
            "log" | "lg" => Some(Node::integer(10)),
            _ => None,
        };
        let power = if self.take('^') { Some(self.exponent()?) } else { None };
        let argument = if matches!(self.peek(), Some(Token::Mark('(' | '{' | '[' | '|'))) {
            self.base()?
        } else {
            // sin 2x is the sine of a product; what another function begins is not of it
            let mut argument = self.factor()?;
            while !matches!(self.peek(), Some(Token::Function(_))) && self.begins_factor(&argument) {
                if self.sees('(') || self.sees('|') {
                    break;
                }
                let factor = self.factor()?;
                argument = join(argument, factor);
            }
            argument
        };
        let minus_one = |n: &Rational| (n + Rational::one()).is_zero();
        let inverse = match (&power, name) {
            (Some(Node::Negative(n)), _) if **n == Node::integer(1) => true,
            (Some(Node::Number(n)), _) => minus_one(n),
            _ => false,
        };
        let (name, power) = match (name, inverse) {
            ("sin", true) => ("arcsin", None),
            ("cos", true) => ("arccos", None),
            ("tan", true) => ("arctan", None),
            (_, true) => return None,
            (name, false) => (name, power),
        };
        let value = match base {
            Some(base) => Node::Log(boxed(base), boxed(argument)),
            None => Node::Call(name, boxed(argument)),
        };
        Some(match power {
            Some(power) => Node::Power(boxed(value), boxed(power)),
            None => value,
        })
    }

    fn matrix(&mut self, name: &str) -> Option<Node> {
        if !["pmatrix", "bmatrix", "matrix", "Bmatrix"].contains(&name) {
            return None;
        }
        let mut rows = vec![Vec::new()];
        loop {
            if let Some(Token::End(end)) = self.peek() {
                self.at += 1;
                if end != name {
                    return None;
                }
                break;
            }
            let cell = self.sum()?;
            rows.last_mut()?.push(cell);
            if self.take('\n') {
                rows.push(Vec::new());
            } else if !self.take('&') && !matches!(self.peek(), Some(Token::End(_))) {
                return None;
            }
        }
        if rows.last().is_some_and(Vec::is_empty) {
            rows.pop();
        }
        let width = rows.first()?.len();
        rows.iter().all(|row| row.len() == width).then_some(Node::Matrix(rows))
    }
}

/// A product that grows.
fn join(left: Node, right: Node) -> Node {
    match left {
        Node::Product(mut factors) => {
            factors.push(right);
            Node::Product(factors)
        }
        left => Node::Product(vec![left, right]),
    }
}

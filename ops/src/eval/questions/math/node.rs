//! What an answer says, as a tree.
//!
//! Invariant: the parser bounds the depth of a tree, so whoever walks it may call itself.

use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// An exact number.
pub type Rational = Ratio<BigInt>;

/// An answer or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Number(Rational),
    Symbol(String),
    Pi,
    /// Euler's number.
    E,
    /// The imaginary unit.
    I,
    Infinity,
    Sum(Vec<Node>),
    Negative(Box<Node>),
    Product(Vec<Node>),
    Quotient(Box<Node>, Box<Node>),
    Power(Box<Node>, Box<Node>),
    /// The root of this degree.
    Root(Box<Node>, Box<Node>),
    Absolute(Box<Node>),
    Floor(Box<Node>),
    Ceiling(Box<Node>),
    Factorial(Box<Node>),
    Binomial(Box<Node>, Box<Node>),
    Call(&'static str, Box<Node>),
    /// (base, argument)
    Log(Box<Node>, Box<Node>),
    Degree(Box<Node>),
    Percent(Box<Node>),
    /// A value and its unit's name.
    Unit(Box<Node>, String),
    /// Digits and the base they are written in.
    Based(String, u32),
    /// Point or interval: opening and closing bracket tell which.
    Group(char, char, Vec<Node>),
    Set(Vec<Node>),
    Union(Vec<Node>),
    Matrix(Vec<Vec<Node>>),
    /// `a:b`
    Ratio(Vec<Node>),
    /// Operands and the signs between them.
    Relation(Vec<Node>, Vec<char>),
    /// Several answers in any order; whether an `or` stands between them.
    List(Vec<Node>, bool),
    Text(String),
}

impl Node {
    pub fn integer(n: i64) -> Node {
        Node::Number(Rational::from_integer(BigInt::from(n)))
    }

    /// Every direct part.
    pub fn parts(&self) -> Vec<&Node> {
        match self {
            Node::Number(_)
            | Node::Symbol(_)
            | Node::Pi
            | Node::E
            | Node::I
            | Node::Infinity
            | Node::Text(_)
            | Node::Based(..) => Vec::new(),
            Node::Negative(a)
            | Node::Absolute(a)
            | Node::Floor(a)
            | Node::Ceiling(a)
            | Node::Factorial(a)
            | Node::Call(_, a)
            | Node::Degree(a)
            | Node::Percent(a)
            | Node::Unit(a, _) => vec![a],
            Node::Quotient(a, b) | Node::Power(a, b) | Node::Root(a, b) | Node::Binomial(a, b) | Node::Log(a, b) => {
                vec![a, b]
            }
            Node::Sum(many)
            | Node::Product(many)
            | Node::Group(_, _, many)
            | Node::Set(many)
            | Node::Union(many)
            | Node::Ratio(many)
            | Node::Relation(many, _)
            | Node::List(many, _) => many.iter().collect(),
            Node::Matrix(rows) => rows.iter().flatten().collect(),
        }
    }

    /// Names of variables, and whether the imaginary unit occurs.
    pub fn names(&self, into: &mut std::collections::BTreeSet<String>) -> bool {
        if let Node::Symbol(name) = self {
            into.insert(name.clone());
        }
        self.parts().into_iter().fold(matches!(self, Node::I), |found, part| part.names(into) | found)
    }
}

/// Decimal digits as a rational; `None` where the exponent is too large.
pub fn rational(digits: &str) -> Option<Rational> {
    let (digits, exponent) = match digits.split_once('e') {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    if exponent.abs() > 400 {
        return None;
    }
    let (digits, repeating) = match digits.split_once('(') {
        Some((digits, rest)) => (digits, rest.trim_end_matches(')')),
        None => (digits, ""),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let ten = |n: usize| BigInt::from(10).pow(n as u32);
    let integer = |s: &str| if s.is_empty() { Some(BigInt::zero()) } else { s.parse::<BigInt>().ok() };
    let mut value = Rational::new(integer(&format!("{whole}{decimals}"))?, ten(decimals.len()));
    if !repeating.is_empty() {
        let nines = ten(repeating.len()) - BigInt::one();
        value += Rational::new(integer(repeating)?, nines * ten(decimals.len()));
    }
    let scale = Rational::from_integer(ten(exponent.unsigned_abs() as usize));
    Some(if exponent < 0 { value / scale } else { value * scale })
}

/// The nearest double but for the last digit or two; `None` where there is none.
pub fn double(q: &Rational) -> Option<f64> {
    // 66 bits of the quotient, and the power of two that is left over
    let shift = q.denom().bits() as i64 - q.numer().bits() as i64 + 66;
    let (above, below) = (q.numer().abs(), q.denom());
    let quotient =
        if shift >= 0 { (above << shift as u64) / below } else { above / (below.clone() << shift.unsigned_abs()) };
    // in two steps, for one power of two alone may be out of range
    let half = i32::try_from(-shift / 2).ok()?;
    let rest = i32::try_from(-shift).ok()? - half;
    let size = quotient.to_f64()? * 2f64.powi(half) * 2f64.powi(rest);
    Some(if q.is_negative() { -size } else { size }).filter(|x| x.is_finite())
}

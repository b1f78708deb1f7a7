//! Values in double precision, for what has no exact one: roots of sums, logarithms, angles, powers.
//!
//! Beside each value goes a bound of its error, to first order: what rounding adds at each step, and what a function makes
//! of the error of its argument.
//!
//! Invariants: a value is finite or there is none, and so is one that is too small for its digits; where the imaginary
//! unit does not occur, roots and logarithms of negative numbers are not defined, as in a course on real numbers.

use std::collections::BTreeMap;

use super::node::{Node, double};

/// What rounding adds, relative to a value.
const ROUNDING: f64 = f64::EPSILON;
/// Errors are bounded to first order and functions are off by more than one rounding: so much is added.
const SAFETY: f64 = 8.0;
/// Largest relative error of an argument whose function has one of first order.
const FIRST_ORDER: f64 = 1e-3;

/// A complex number and how far off it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    pub re: f64,
    pub im: f64,
    error: f64,
}

fn real(re: f64) -> Value {
    Value { re, im: 0.0, error: 0.0 }
}

impl Value {
    pub fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    /// How far off it may be.
    pub fn error(self) -> f64 {
        SAFETY * self.error
    }

    /// Rounded, with the error that came from what it was computed from.
    fn off(self, error: f64) -> Value {
        Value { error: error + ROUNDING * self.size(), ..self }
    }

    fn plus(self, b: Value) -> Value {
        Value { re: self.re + b.re, im: self.im + b.im, error: 0.0 }.off(self.error + b.error)
    }

    pub fn minus(self, b: Value) -> Value {
        Value { re: self.re - b.re, im: self.im - b.im, error: 0.0 }.off(self.error + b.error)
    }

    fn times(self, b: Value) -> Option<Value> {
        let (re, im) = (self.re * b.re - self.im * b.im, self.re * b.im + self.im * b.re);
        let error = self.size() * b.error + b.size() * self.error + ROUNDING * self.size() * b.size();
        Value { re, im, error }.above(self.size() == 0.0 || b.size() == 0.0)
    }

    fn over(self, b: Value) -> Option<Value> {
        // what may be zero divides nothing
        if b.size() <= b.error() {
            return None;
        }
        let (re, im) = if b.im == 0.0 {
            (self.re / b.re, self.im / b.re)
        } else {
            let below = b.re * b.re + b.im * b.im;
            ((self.re * b.re + self.im * b.im) / below, (self.im * b.re - self.re * b.im) / below)
        };
        let quotient = Value { re, im, error: 0.0 };
        quotient
            .off(self.error / b.size() + quotient.size() * (b.error / b.size() + ROUNDING))
            .above(self.size() == 0.0)
    }

    fn finite(self) -> Option<Value> {
        (self.re.is_finite() && self.im.is_finite() && self.error.is_finite()).then_some(self)
    }

    /// None where a value has become too small for its digits, and is not said to be `zero`.
    fn above(self, zero: bool) -> Option<Value> {
        if zero || self.size() >= f64::MIN_POSITIVE || self.error > 0.0 && self.size() <= self.error {
            self.finite()
        } else {
            None
        }
    }

    /// The principal logarithm.
    fn ln(self) -> Option<Value> {
        let relative = self.error / self.size();
        let value = Value { re: self.size().ln(), im: self.im.atan2(self.re), error: 0.0 };
        if relative > FIRST_ORDER { None } else { value.off(relative).finite() }
    }

    fn exp(self) -> Option<Value> {
        let size = self.re.exp();
        if self.error > FIRST_ORDER || size < f64::MIN_POSITIVE {
            return None;
        }
        Value { re: size * self.im.cos(), im: size * self.im.sin(), error: 0.0 }
            .off(size * (self.error + 2.0 * ROUNDING))
            .finite()
    }
}

/// What variables are worth, and which numbers there are.
pub struct Place<'a> {
    pub variables: &'a BTreeMap<String, f64>,
    /// Roots and logarithms of negative numbers exist.
    pub complex: bool,
}

impl Place<'_> {
    /// The value of a tree at this place.
    pub fn value(&self, node: &Node) -> Option<Value> {
        let found = match node {
            Node::Number(q) => {
                let x = double(q)?;
                // whole numbers have no error
                if q.is_integer() && x.abs() < 9e15 { real(x) } else { real(x).off(0.0).above(false)? }
            }
            Node::Symbol(name) => real(*self.variables.get(name)?),
            Node::Pi => real(std::f64::consts::PI).off(0.0),
            Node::E => real(std::f64::consts::E).off(0.0),
            Node::I => Value { re: 0.0, im: 1.0, error: 0.0 },
            Node::Sum(terms) => {
                let mut sum = real(0.0);
                for term in terms {
                    sum = sum.plus(self.value(term)?);
                }
                sum
            }
            Node::Negative(a) => {
                let a = self.value(a)?;
                Value { re: -a.re, im: -a.im, ..a }
            }
            Node::Product(factors) => {
                let mut product = real(1.0);
                for factor in factors {
                    product = product.times(self.value(factor)?)?;
                }
                product
            }
            Node::Quotient(a, b) => self.value(a)?.over(self.value(b)?)?,
            Node::Power(a, n) => self.power(self.value(a)?, self.value(n)?)?,
            Node::Root(a, degree) => self.root(self.value(a)?, self.value(degree)?)?,
            Node::Absolute(a) => {
                let a = self.value(a)?;
                real(a.size()).off(a.error)
            }
            Node::Floor(a) => self.whole(a, f64::floor)?,
            Node::Ceiling(a) => self.whole(a, f64::ceil)?,
            Node::Factorial(a) => {
                let n = self.real(a)?.re;
                if n.fract() != 0.0 || !(0.0..=170.0).contains(&n) {
                    return None;
                }
                let product: f64 = (1..=n as u32).map(f64::from).product();
                real(product).off(product * n * ROUNDING)
            }
            Node::Call(name, a) => self.call(name, self.value(a)?)?,
            Node::Log(base, a) => self.ln(self.value(a)?)?.over(self.ln(self.value(base)?)?)?,
            Node::Degree(a) => self.value(a)?.times(real(std::f64::consts::PI / 180.0).off(0.0))?,
            Node::Percent(a) => self.value(a)?.times(real(0.01).off(0.0))?,
            _ => return None,
        };
        found.finite()
    }

    fn real(&self, node: &Node) -> Option<Value> {
        self.value(node).filter(|value| value.im == 0.0)
    }

    /// Rounded to a whole number, by one's own way unless it is one within its error.
    fn whole(&self, node: &Node, rounded: fn(f64) -> f64) -> Option<Value> {
        let value = self.real(node)?;
        let nearest = value.re.round();
        if value.error() > FIRST_ORDER {
            return None;
        }
        Some(real(if (value.re - nearest).abs() <= value.error() { nearest } else { rounded(value.re) }))
    }

    fn ln(&self, a: Value) -> Option<Value> {
        if !self.complex && (a.im != 0.0 || a.re <= 0.0) {
            return None;
        }
        a.ln()
    }

    fn power(&self, a: Value, n: Value) -> Option<Value> {
        // what may be zero has no logarithm, and no relative error
        if a.size() <= a.error() {
            if n.im != 0.0 || n.re <= 0.0 {
                return None;
            }
            let below = a.re < 0.0 && n.re.fract() != 0.0;
            let power = if a.im == 0.0 && !below { real(a.re.powf(n.re)) } else { real(0.0) };
            return power.off((a.size() + a.error).powf(n.re)).finite();
        }
        if a.im == 0.0 && n.im == 0.0 {
            let power = a.re.powf(n.re);
            if power.is_finite() {
                let relative = n.re.abs() * a.error / a.re.abs() + a.re.abs().ln().abs() * n.error;
                if relative > FIRST_ORDER {
                    return None;
                }
                return real(power).off(power.abs() * relative).above(false);
            }
            if !self.complex || a.re >= 0.0 {
                return None;
            }
        }
        // small whole powers without the noise of the logarithm
        if n.im == 0.0 && n.re.fract() == 0.0 && (0.0..=64.0).contains(&n.re) && n.error == 0.0 {
            return (0..n.re as u32).try_fold(real(1.0), |product, _| product.times(a));
        }
        a.ln()?.times(n)?.exp()
    }

    fn root(&self, a: Value, degree: Value) -> Option<Value> {
        let n = degree.re;
        if degree.im != 0.0 || degree.error != 0.0 || n.fract() != 0.0 || !(1.0..=1000.0).contains(&n) {
            return None;
        }
        let root = |x: f64| if n == 2.0 { x.sqrt() } else { x.powf(1.0 / n) };
        let error = |size: f64| {
            let zero = a.size() <= a.error();
            if zero { root(a.size() + a.error) } else { size * (a.error / a.size() / n + ROUNDING) }
        };
        if a.im == 0.0 && a.re >= 0.0 {
            return real(root(a.re)).off(error(root(a.re))).finite();
        }
        if a.im == 0.0 && n % 2.0 == 1.0 {
            return real(-root(-a.re)).off(error(root(-a.re))).finite();
        }
        if !self.complex {
            return None;
        }
        if n == 2.0 && a.im == 0.0 {
            return Value { re: 0.0, im: root(-a.re), error: 0.0 }.off(error(root(-a.re))).finite();
        }
        a.ln()?.over(real(n))?.exp()
    }

    fn call(&self, name: &str, a: Value) -> Option<Value> {
        if name == "ln" {
            return self.ln(a);
        }
        if name == "exp" {
            return a.exp();
        }
        if a.im != 0.0 {
            return None;
        }
        let (x, error) = (a.re, a.error);
        // far from zero an angle has no digits left
        if x.abs() > 1e9 || error > FIRST_ORDER {
            return None;
        }
        let near_zero = |y: f64| if y.abs() < 1e-12 { None } else { Some(y) };
        // a value, and the size of the derivative there
        let (value, slope) = match name {
            "sin" => (x.sin(), x.cos().abs() + error),
            "cos" => (x.cos(), x.sin().abs() + error),
            "tan" => (x.sin() / near_zero(x.cos())?, x.cos().powi(-2)),
            "cot" => (x.cos() / near_zero(x.sin())?, x.sin().powi(-2)),
            "sec" => (1.0 / near_zero(x.cos())?, x.cos().powi(-2)),
            "csc" => (1.0 / near_zero(x.sin())?, x.sin().powi(-2)),
            "arcsin" | "arccos" => {
                let value = if name == "arcsin" { x.asin() } else { x.acos() };
                // at its ends the slope is infinite, and the error that of a root
                let slope = 1.0 / (1.0 - x * x).max(error).max(f64::MIN_POSITIVE).sqrt();
                (value, 2.0 * slope)
            }
            "arctan" => (x.atan(), 1.0),
            "sinh" => (x.sinh(), x.cosh()),
            "cosh" => (x.cosh(), x.sinh().abs() + error),
            "tanh" => (x.tanh(), 1.0),
            _ => return None,
        };
        real(value).off(slope * error).finite()
    }
}

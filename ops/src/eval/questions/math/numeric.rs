//! Values in double precision, for what has no exact one: roots of sums, logarithms, angles, powers.
//!
//! Invariants: a value is finite or there is none; where the imaginary unit does not occur, roots and logarithms of
//! negative numbers are not defined, as in a course on real numbers.

use std::collections::BTreeMap;

use super::node::{Node, double};

/// A complex number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    pub re: f64,
    pub im: f64,
}

fn real(re: f64) -> Value {
    Value { re, im: 0.0 }
}

impl Value {
    pub fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn plus(self, b: Value) -> Value {
        Value { re: self.re + b.re, im: self.im + b.im }
    }

    pub fn minus(self, b: Value) -> Value {
        Value { re: self.re - b.re, im: self.im - b.im }
    }

    fn times(self, b: Value) -> Value {
        Value { re: self.re * b.re - self.im * b.im, im: self.re * b.im + self.im * b.re }
    }

    fn over(self, b: Value) -> Option<Value> {
        let below = b.re * b.re + b.im * b.im;
        if below == 0.0 {
            return None;
        }
        let product = self.times(Value { re: b.re, im: -b.im });
        Value { re: product.re / below, im: product.im / below }.finite()
    }

    fn finite(self) -> Option<Value> {
        (self.re.is_finite() && self.im.is_finite()).then_some(self)
    }

    /// The principal logarithm.
    fn ln(self) -> Option<Value> {
        Value { re: self.size().ln(), im: self.im.atan2(self.re) }.finite()
    }

    fn exp(self) -> Option<Value> {
        let size = self.re.exp();
        Value { re: size * self.im.cos(), im: size * self.im.sin() }.finite()
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
            Node::Number(q) => real(double(q)?),
            Node::Symbol(name) => real(*self.variables.get(name)?),
            Node::Pi => real(std::f64::consts::PI),
            Node::E => real(std::f64::consts::E),
            Node::I => Value { re: 0.0, im: 1.0 },
            Node::Sum(terms) => {
                let mut sum = real(0.0);
                for term in terms {
                    sum = sum.plus(self.value(term)?);
                }
                sum
            }
            Node::Negative(a) => real(0.0).minus(self.value(a)?),
            Node::Product(factors) => {
                let mut product = real(1.0);
                for factor in factors {
                    product = product.times(self.value(factor)?);
                }
                product
            }
            Node::Quotient(a, b) => self.value(a)?.over(self.value(b)?)?,
            Node::Power(a, n) => self.power(self.value(a)?, self.value(n)?)?,
            Node::Root(a, degree) => self.root(self.value(a)?, self.value(degree)?)?,
            Node::Absolute(a) => real(self.value(a)?.size()),
            Node::Floor(a) => real(self.real(a)?.floor()),
            Node::Ceiling(a) => real(self.real(a)?.ceil()),
            Node::Factorial(a) => {
                let n = self.real(a)?;
                if n.fract() != 0.0 || !(0.0..=170.0).contains(&n) {
                    return None;
                }
                real((1..=n as u32).map(f64::from).product())
            }
            Node::Call(name, a) => self.call(name, self.value(a)?)?,
            Node::Log(base, a) => self.ln(self.value(a)?)?.over(self.ln(self.value(base)?)?)?,
            Node::Degree(a) => self.value(a)?.times(real(std::f64::consts::PI / 180.0)),
            Node::Percent(a) => self.value(a)?.times(real(0.01)),
            _ => return None,
        };
        found.finite()
    }

    fn real(&self, node: &Node) -> Option<f64> {
        let value = self.value(node)?;
        (value.im == 0.0).then_some(value.re)
    }

    fn ln(&self, a: Value) -> Option<Value> {
        if !self.complex && (a.im != 0.0 || a.re <= 0.0) {
            return None;
        }
        a.ln()
    }

    fn power(&self, a: Value, n: Value) -> Option<Value> {
        if a.im == 0.0 && n.im == 0.0 {
            if a.re == 0.0 && n.re == 0.0 {
                return None;
            }
            let power = a.re.powf(n.re);
            if power.is_finite() {
                return Some(real(power));
            }
            if !self.complex || a.re >= 0.0 {
                return None;
            }
        }
        // small whole powers without the noise of the logarithm
        if n.im == 0.0 && n.re.fract() == 0.0 && (0.0..=64.0).contains(&n.re) {
            return (0..n.re as u32).fold(real(1.0), |product, _| product.times(a)).finite();
        }
        if a.size() == 0.0 { None } else { a.ln()?.times(n).exp() }
    }

    fn root(&self, a: Value, degree: Value) -> Option<Value> {
        let n = degree.re;
        if degree.im != 0.0 || n.fract() != 0.0 || !(1.0..=1000.0).contains(&n) {
            return None;
        }
        if a.im == 0.0 && a.re >= 0.0 {
            return Some(real(if n == 2.0 { a.re.sqrt() } else { a.re.powf(1.0 / n) }));
        }
        if a.im == 0.0 && n % 2.0 == 1.0 {
            return Some(real(-(-a.re).powf(1.0 / n)));
        }
        if !self.complex {
            return None;
        }
        if n == 2.0 && a.im == 0.0 {
            return Some(Value { re: 0.0, im: (-a.re).sqrt() });
        }
        a.ln()?.times(real(1.0 / n)).exp()
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
        let x = a.re;
        // far from zero an angle has no digits left
        if x.abs() > 1e9 {
            return None;
        }
        let near_zero = |y: f64| if y.abs() < 1e-12 { None } else { Some(y) };
        let value = match name {
            "sin" => x.sin(),
            "cos" => x.cos(),
            "tan" => x.sin() / near_zero(x.cos())?,
            "cot" => x.cos() / near_zero(x.sin())?,
            "sec" => 1.0 / near_zero(x.cos())?,
            "csc" => 1.0 / near_zero(x.sin())?,
            "arcsin" => x.asin(),
            "arccos" => x.acos(),
            "arctan" => x.atan(),
            "sinh" => x.sinh(),
            "cosh" => x.cosh(),
            "tanh" => x.tanh(),
            _ => return None,
        };
        real(value).finite()
    }
}

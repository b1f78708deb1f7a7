//! Exact values: quotients of polynomials over the rationals in variables, pi, e, i and square roots of primes.
//!
//! Square roots of different square-free products of primes are linearly independent over the rationals, so two values
//! are equal if and only if a d - c b, reduced by i^2 = -1 and r_p^2 = p, has no term left. Pi and e are treated as
//! independent of each other and of everything else. What is left under a root when all divisors up to 10,000 are taken
//! out is treated as a prime: whatever is called equal is, and only what has two larger divisors may be missed.
//!
//! Invariants: work and size are bounded by a [`Budget`] and by the bits of a coefficient; what passes a limit or is no
//! such quotient (roots of sums, logarithms, angles) has no exact value, which is `None` and says nothing.

use std::collections::BTreeMap;
use std::rc::Rc;

use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::node::{Node, Rational};

/// Most bits of a coefficient.
const BITS: u64 = 4096;
/// Largest power that is multiplied out, unless the base is a number.
const POWER: u64 = 64;
/// Divisors that are tried when a number is taken apart under a root.
const DIVISORS: u64 = 10_000;

/// What a comparison may still spend, in operations on small coefficients.
pub struct Budget(u64);

impl Budget {
    pub fn new(operations: u64) -> Budget {
        Budget(operations)
    }

    /// Spends; `None` when all is spent.
    pub fn spend(&mut self, operations: u64) -> Option<()> {
        self.0 = self.0.saturating_sub(operations);
        (self.0 > 0).then_some(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Imaginary,
    /// The square root of a prime, or of what is treated as one.
    Root(BigInt),
    E,
    Pi,
    Variable(Rc<str>),
}

type Monomial = Vec<(Atom, u64)>;

#[derive(Clone, Debug, PartialEq)]
struct Polynomial(BTreeMap<Monomial, Rational>);

/// An exact value; the part below the line is not zero.
#[derive(Clone, Debug)]
pub struct Exact {
    above: Polynomial,
    below: Polynomial,
}

fn bits(q: &Rational) -> u64 {
    q.numer().bits() + q.denom().bits()
}

/// What an operation on numbers of so many bits costs: common divisors take time with their square.
fn cost(bits: u64) -> u64 {
    1 + (bits / 64) * (bits / 64) / 8
}

impl Polynomial {
    fn constant(q: Rational) -> Polynomial {
        Polynomial(if q.is_zero() { BTreeMap::new() } else { BTreeMap::from([(Vec::new(), q)]) })
    }

    fn atom(atom: Atom) -> Polynomial {
        Polynomial(BTreeMap::from([(vec![(atom, 1)], Rational::one())]))
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The number that it is, if it is one.
    fn number(&self) -> Option<Rational> {
        match self.0.len() {
            0 => Some(Rational::zero()),
            1 => self.0.get(&Vec::new()).cloned(),
            _ => None,
        }
    }

    fn add_term(&mut self, monomial: Monomial, q: Rational, budget: &mut Budget) -> Option<()> {
        let size = bits(&q);
        budget.spend(cost(size))?;
        if size > BITS {
            return None;
        }
        let entry = self.0.entry(monomial);
        match entry {
            std::collections::btree_map::Entry::Vacant(place) => {
                if !q.is_zero() {
                    place.insert(q);
                }
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                *place.get_mut() += q;
                if place.get().is_zero() {
                    place.remove();
                }
            }
        }
        Some(())
    }

    fn add(&self, other: &Polynomial, budget: &mut Budget) -> Option<Polynomial> {
        let mut sum = self.clone();
        for (monomial, q) in &other.0 {
            sum.add_term(monomial.clone(), q.clone(), budget)?;
        }
        Some(sum)
    }

    fn multiply(&self, other: &Polynomial, budget: &mut Budget) -> Option<Polynomial> {
        let mut product = Polynomial(BTreeMap::new());
        for (m, p) in &self.0 {
            for (n, q) in &other.0 {
                budget.spend((m.len() + n.len()) as u64 + cost(bits(p) + bits(q)))?;
                let (monomial, factor) = merged(m, n);
                product.add_term(monomial, p * q * factor, budget)?;
            }
        }
        Some(product)
    }

    fn negated(mut self) -> Polynomial {
        self.0.values_mut().for_each(|q| *q = -&*q);
        self
    }

    fn power(&self, n: u64, budget: &mut Budget) -> Option<Polynomial> {
        let mut result = Polynomial::constant(Rational::one());
        for _ in 0..n {
            result = result.multiply(self, budget)?;
        }
        Some(result)
    }
}

/// The product of two monomials, with what i and the roots leave before it.
fn merged(m: &Monomial, n: &Monomial) -> (Monomial, Rational) {
    let mut powers: BTreeMap<&Atom, u64> = BTreeMap::new();
    for (atom, power) in m.iter().chain(n) {
        *powers.entry(atom).or_default() += power;
    }
    let mut factor = Rational::one();
    let mut monomial = Vec::with_capacity(powers.len());
    for (atom, power) in powers {
        // each of both holds i and a root once at most
        let left = match atom {
            Atom::Imaginary if power == 2 => {
                factor = -factor;
                0
            }
            Atom::Root(p) if power == 2 => {
                factor *= p;
                0
            }
            _ => power,
        };
        if left > 0 {
            monomial.push((atom.clone(), left));
        }
    }
    (monomial, factor)
}

/// A number under a root as outside^2 * product of primes; `None` where it is too large.
fn square_free(n: &BigInt) -> Option<(BigInt, Vec<BigInt>)> {
    let (mut rest, mut outside, mut primes) = (n.clone(), BigInt::one(), Vec::new());
    if rest.bits() > 512 {
        return None;
    }
    let whole = rest.sqrt();
    if &whole * &whole == rest {
        return Some((whole, primes));
    }
    let mut divisor = 2u64;
    while divisor <= DIVISORS && rest > BigInt::one() {
        let d = BigInt::from(divisor);
        let mut power = 0;
        while (&rest % &d).is_zero() {
            rest /= &d;
            power += 1;
        }
        outside *= d.pow(power / 2);
        if power % 2 == 1 {
            primes.push(d);
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if rest > BigInt::one() {
        let root = rest.sqrt();
        if &root * &root == rest {
            outside *= root;
        } else {
            primes.push(rest);
        }
    }
    Some((outside, primes))
}

/// The integer root of a degree, if it is exact.
fn whole_root(n: &BigInt, degree: u32) -> Option<BigInt> {
    if n.is_negative() {
        return if degree % 2 == 1 { whole_root(&-n, degree).map(|r| -r) } else { None };
    }
    let root = n.nth_root(degree);
    (root.pow(degree) == *n).then_some(root)
}

impl Exact {
    pub fn number(q: Rational) -> Exact {
        Exact { above: Polynomial::constant(q), below: Polynomial::constant(Rational::one()) }
    }

    fn atom(atom: Atom) -> Exact {
        Exact { above: Polynomial::atom(atom), below: Polynomial::constant(Rational::one()) }
    }

    /// The rational number that it is, if it is one.
    pub fn rational(&self) -> Option<Rational> {
        Some(self.above.number()? / self.below.number()?)
    }

    fn add(&self, other: &Exact, budget: &mut Budget) -> Option<Exact> {
        if self.below == other.below {
            return Some(Exact { above: self.above.add(&other.above, budget)?, below: self.below.clone() });
        }
        let (left, right) = (self.above.multiply(&other.below, budget)?, other.above.multiply(&self.below, budget)?);
        Exact { above: left.add(&right, budget)?, below: self.below.multiply(&other.below, budget)? }.simpler(budget)
    }

    fn multiply(&self, other: &Exact, budget: &mut Budget) -> Option<Exact> {
        Exact { above: self.above.multiply(&other.above, budget)?, below: self.below.multiply(&other.below, budget)? }
            .simpler(budget)
    }

    /// `None` of zero.
    fn inverse(&self) -> Option<Exact> {
        (!self.above.is_zero()).then(|| Exact { above: self.below.clone(), below: self.above.clone() })
    }

    /// A number below the line goes above it.
    fn simpler(self, budget: &mut Budget) -> Option<Exact> {
        if self.below.is_zero() {
            return None;
        }
        match self.below.number() {
            Some(q) if !q.is_one() => {
                let factor = Polynomial::constant(q.recip());
                Some(Exact {
                    above: self.above.multiply(&factor, budget)?,
                    below: Polynomial::constant(Rational::one()),
                })
            }
            _ => Some(self),
        }
    }

    /// self - other.
    pub fn minus(&self, other: &Exact, budget: &mut Budget) -> Option<Exact> {
        self.add(&Exact { above: other.above.clone().negated(), below: other.below.clone() }, budget)
    }

    pub fn is_zero(&self) -> bool {
        self.above.is_zero()
    }

    /// Whether the zeros of two values are the same because one is a number times the other.
    pub fn proportional(&self, other: &Exact) -> bool {
        let (p, q) = (&self.above.0, &other.above.0);
        let Some((first, factor)) = p.iter().next() else { return q.is_empty() };
        let Some(scale) = q.get(first).map(|q| q / factor) else { return false };
        p.len() == q.len() && p.iter().all(|(m, c)| q.get(m).is_some_and(|d| *d == c * &scale))
    }

    /// A power with a whole exponent.
    fn power(&self, n: &BigInt, budget: &mut Budget) -> Option<Exact> {
        let base = if n.is_negative() { self.inverse()? } else { self.clone() };
        let n = n.abs().to_u64()?;
        if let Some(q) = base.rational() {
            if q.is_one() || (q.is_zero() && n > 0) {
                return Some(base);
            }
            if bits(&q).checked_mul(n)? > BITS {
                return None;
            }
            budget.spend(cost(bits(&q) * n))?;
            return Some(Exact::number(q.pow(i32::try_from(n).ok()?)));
        }
        if n > POWER {
            return None;
        }
        Some(Exact { above: base.above.power(n, budget)?, below: base.below.power(n, budget)? })
    }

    /// The root of a rational number.
    fn root(&self, degree: u32, budget: &mut Budget) -> Option<Exact> {
        let q = self.rational()?;
        budget.spend(1 + bits(&q))?;
        if q.is_zero() {
            return Some(self.clone());
        }
        if degree != 2 {
            // the roots of large numbers take long
            if bits(&q) > 2048 || degree == 0 || degree > 64 {
                return None;
            }
            return Some(Exact::number(Rational::new(whole_root(q.numer(), degree)?, whole_root(q.denom(), degree)?)));
        }
        budget.spend(DIVISORS / 20)?;
        let (outside, primes) = square_free(&(q.numer() * q.denom()).abs())?;
        let mut root = Exact::number(Rational::new(outside, q.denom().clone()));
        if q.is_negative() {
            root = root.multiply(&Exact::atom(Atom::Imaginary), budget)?;
        }
        for prime in primes {
            root = root.multiply(&Exact::atom(Atom::Root(prime)), budget)?;
        }
        Some(root)
    }
}

/// The exact value of a tree, where it has one that can be found within the budget.
pub fn exact(node: &Node, budget: &mut Budget) -> Option<Exact> {
    budget.spend(1)?;
    match node {
        Node::Number(q) => (bits(q) <= BITS).then(|| Exact::number(q.clone())),
        Node::Symbol(name) => Some(Exact::atom(Atom::Variable(Rc::from(&**name)))),
        Node::Pi => Some(Exact::atom(Atom::Pi)),
        Node::E => Some(Exact::atom(Atom::E)),
        Node::I => Some(Exact::atom(Atom::Imaginary)),
        Node::Sum(terms) => {
            let mut sum = Exact::number(Rational::zero());
            for term in terms {
                sum = sum.add(&exact(term, budget)?, budget)?;
            }
            Some(sum)
        }
        Node::Negative(a) => {
            let a = exact(a, budget)?;
            Some(Exact { above: a.above.negated(), below: a.below })
        }
        Node::Product(factors) => {
            let mut product = Exact::number(Rational::one());
            for factor in factors {
                product = product.multiply(&exact(factor, budget)?, budget)?;
            }
            Some(product)
        }
        Node::Quotient(a, b) => exact(a, budget)?.multiply(&exact(b, budget)?.inverse()?, budget),
        Node::Power(a, n) => {
            let (base, n) = (exact(a, budget)?, exact(n, budget)?.rational()?);
            if n.is_integer() {
                if n.is_zero() && base.is_zero() {
                    return None;
                }
                return base.power(n.numer(), budget);
            }
            let degree = n.denom().to_u32()?;
            if base.rational()?.is_negative() {
                return None;
            }
            base.root(degree, budget)?.power(n.numer(), budget)
        }
        Node::Root(a, degree) => {
            let degree = exact(degree, budget)?.rational()?;
            if !degree.is_integer() {
                return None;
            }
            exact(a, budget)?.root(degree.to_integer().to_u32()?, budget)
        }
        Node::Absolute(a) => Some(Exact::number(exact(a, budget)?.rational()?.abs())),
        Node::Floor(a) => Some(Exact::number(exact(a, budget)?.rational()?.floor())),
        Node::Ceiling(a) => Some(Exact::number(exact(a, budget)?.rational()?.ceil())),
        Node::Factorial(a) => {
            let n = whole(a, budget)?;
            product_of(1, n, budget)
        }
        Node::Binomial(a, b) => {
            let (n, k) = (whole(a, budget)?, whole(b, budget)?);
            if k > n {
                return Some(Exact::number(Rational::zero()));
            }
            let k = k.min(n - k);
            product_of(n - k + 1, n, budget)?.multiply(&product_of(1, k, budget)?.inverse()?, budget)
        }
        Node::Percent(a) => {
            let hundredth = Exact::number(Rational::new(BigInt::one(), BigInt::from(100)));
            exact(a, budget)?.multiply(&hundredth, budget)
        }
        Node::Degree(a) => {
            let half_turn = Exact::number(Rational::new(BigInt::one(), BigInt::from(180)));
            exact(a, budget)?.multiply(&half_turn, budget)?.multiply(&Exact::atom(Atom::Pi), budget)
        }
        _ => None,
    }
}

/// A small whole number.
fn whole(node: &Node, budget: &mut Budget) -> Option<u64> {
    let n = exact(node, budget)?.rational()?;
    if n.is_integer() { n.to_integer().to_u64().filter(|n| *n <= 1000) } else { None }
}

fn product_of(from: u64, to: u64, budget: &mut Budget) -> Option<Exact> {
    let mut product = BigInt::one();
    for n in from..=to {
        product *= n;
        budget.spend(1 + product.bits() / 64)?;
        if product.bits() > BITS {
            return None;
        }
    }
    Some(Exact::number(Rational::from_integer(product)))
}

//! Whether two trees say the same.
//!
//! Values are compared exactly where both have an exact value, else in double precision at several places within the
//! error of rounding, which is computed beside each value; what can be decided neither way is not the same.
//!
//! Invariants: the order of points, intervals and matrices counts, that of sets, lists and unions does not; brackets
//! count; the work of one comparison is bounded.

use std::collections::{BTreeMap, BTreeSet};

use num_bigint::BigInt;
use num_traits::{One, Signed};

use super::exact::{Budget, Exact, exact};
use super::node::{Node, Rational};
use super::numeric::{Place, Value};
use crate::rng::Rng;

/// Largest relative error of values that can be compared.
const TOLERANCE: f64 = 1e-10;
/// Places at which values with variables are compared, and at how many of them both must be defined.
const PLACES: u64 = 12;
const DEFINED: usize = 4;
/// A fraction with a larger denominator may be a rounded decimal.
const DENOMINATOR: u64 = 10_000;
/// Largest product of what is above and below the lines of all such fractions, powers of ten left out: together they
/// cannot come closer to a value than one part in this, and so are not made to equal it.
const DIGITS: u64 = 1_000_000_000;

/// Two scalars may be measured differently.
enum Decided {
    Yes,
    No,
    /// Neither exactly nor numerically.
    Open,
}

/// Whether an answer says what the reference says.
pub fn same(reference: &Node, answer: &Node, budget: &mut Budget) -> bool {
    if budget.spend(1).is_none() {
        return false;
    }
    if reference == answer {
        return true;
    }
    use Node::{Absolute, Based, Degree, Group, Infinity, List, Matrix, Negative, Percent, Ratio, Relation, Set};
    match (reference, answer) {
        (Relation(..), _) | (_, Relation(..)) | (List(_, true), _) | (_, List(_, true)) => {
            related(reference, answer, budget)
        }
        (List(r, _), List(a, _) | Set(a)) | (Set(r), List(a, _)) | (Node::Union(r), Node::Union(a)) => {
            permuted(r, a, budget)
        }
        (Set(r), Set(a)) => {
            let within = |one: &[Node], other: &[Node], budget: &mut Budget| {
                one.iter().all(|x| other.iter().any(|y| same(x, y, budget)))
            };
            within(r, a, budget) && within(a, r, budget)
        }
        (Group(open, close, r), Group(start, end, a)) => open == start && close == end && each(r, a, budget),
        (Ratio(r), Ratio(a)) => each(r, a, budget),
        (Matrix(r), Matrix(a)) => r.len() == a.len() && r.iter().zip(a).all(|(r, a)| each(r, a, budget)),
        (Node::Unit(r, unit), Node::Unit(a, other)) => unit == other && same(r, a, budget),
        // a measure without its unit, and a unit that the reference leaves out
        (Node::Unit(r, unit), Degree(a)) | (Degree(a), Node::Unit(r, unit)) => unit == "°" && same(r, a, budget),
        (Node::Unit(value, unit), other) | (other, Node::Unit(value, unit)) => {
            // percent and a unit are two units
            !unit.is_empty() && !matches!(other, Percent(_)) && same(value, other, budget)
        }
        (Degree(r), Degree(a)) => same(r, a, budget),
        (Degree(value), other) | (other, Degree(value)) => same(value, other, budget),
        (Percent(r), Percent(a)) => same(r, a, budget),
        (Percent(value), other) | (other, Percent(value)) => {
            (at_least_one(value, budget) && same(value, other, budget)) || scalar(reference, answer, budget)
        }
        (Based(r, base), Based(a, other)) => base == other && r.trim_start_matches('0') == a.trim_start_matches('0'),
        (Based(digits, _), Node::Number(n)) | (Node::Number(n), Based(digits, _)) => n.to_string() == *digits,
        (Negative(r), Negative(a)) => same(r, a, budget),
        (Infinity, _) | (_, Infinity) | (Node::Text(_), _) | (_, Node::Text(_)) => false,
        (Absolute(_), _) | (_, _) => scalar(reference, answer, budget),
    }
}

fn each(r: &[Node], a: &[Node], budget: &mut Budget) -> bool {
    r.len() == a.len() && r.iter().zip(a).all(|(r, a)| same(r, a, budget))
}

/// Whether one list is a permutation of the other.
fn permuted(r: &[Node], a: &[Node], budget: &mut Budget) -> bool {
    if r.len() != a.len() {
        return false;
    }
    let mut left: Vec<&Node> = a.iter().collect();
    r.iter().all(|x| match left.iter().position(|y| same(x, y, budget)) {
        Some(place) => {
            left.swap_remove(place);
            true
        }
        None => false,
    })
}

/// Whether a number's size is 1 or more: `0.5%` without its sign would be another number of the same look.
fn at_least_one(node: &Node, budget: &mut Budget) -> bool {
    exact(node, budget).and_then(|e| e.rational()).is_none_or(|q| q.abs() >= Rational::one())
}

// --- relations

/// A relation's two ways of being read: what a name is said to be, or a statement.
fn assigned<'a>(node: &'a Node, budget: &mut Budget) -> Option<(Option<&'a Node>, &'a Node)> {
    let Node::Relation(operands, signs) = node else { return Some((None, node)) };
    if signs.iter().any(|s| *s != '=') {
        return None;
    }
    let (first, rest) = operands.split_first()?;
    let (last, between) = rest.split_last()?;
    // x = 2 + 3 = 5 says one thing only if its parts agree
    if !between.iter().all(|part| same(part, last, budget)) {
        return None;
    }
    if is_name(first) {
        return Some((Some(first), last));
    }
    same(first, last, budget).then_some((None, last))
}

fn is_name(node: &Node) -> bool {
    match node {
        Node::Symbol(_) | Node::Text(_) => true,
        Node::Group(_, _, items) => items.iter().all(|item| matches!(item, Node::Symbol(_))),
        _ => false,
    }
}

fn related(reference: &Node, answer: &Node, budget: &mut Budget) -> bool {
    if let (Some((name, r)), Some((other, a))) = (assigned(reference, budget), assigned(answer, budget)) {
        let unnamed = name.is_none() || other.is_none();
        let solved = !matches!(r, Node::Relation(..)) && !matches!(a, Node::Relation(..));
        let changed = !std::ptr::eq(r, reference) || !std::ptr::eq(a, answer);
        if solved && changed && (unnamed || name == other) && same(r, a, budget) {
            return true;
        }
    }
    if let (Node::List(r, _), Node::List(a, _)) = (reference, answer)
        && permuted(r, a, budget)
    {
        return true;
    }
    if let (Node::List(r, _), Node::Set(a)) | (Node::Set(r), Node::List(a, _)) = (reference, answer)
        && permuted(r, a, budget)
    {
        return true;
    }
    match (equation(reference, budget), equation(answer, budget)) {
        (Some(r), Some(a)) => return r.proportional(&a),
        (None, None) => {}
        _ => return false,
    }
    if let (Node::Relation(r, signs), Node::Relation(a, others)) = (reference, answer) {
        let ((r, signs), (a, others)) = (rising(r, signs), rising(a, others));
        if signs == others && each(&r, &a, budget) {
            return true;
        }
    }
    match (region(reference), region(answer)) {
        (Some(r), Some(a)) => permuted(&r, &a, budget),
        _ => false,
    }
}

/// Left minus right of an equation in two or more variables. One in a single variable has to be solved, or the question
/// itself would be an answer.
fn equation(node: &Node, budget: &mut Budget) -> Option<Exact> {
    let Node::Relation(operands, signs) = node else { return None };
    let ([left, right], ['=']) = (&**operands, &**signs) else { return None };
    let mut names = BTreeSet::new();
    node.names(&mut names);
    if names.len() < 2 {
        return None;
    }
    exact(left, budget)?.minus(&exact(right, budget)?, budget)
}

/// A chain of comparisons so that it rises.
fn rising(operands: &[Node], signs: &[char]) -> (Vec<Node>, Vec<char>) {
    if !signs.iter().any(|s| ">≥".contains(*s)) {
        return (operands.to_vec(), signs.to_vec());
    }
    let turned = |s: &char| match s {
        '>' => '<',
        '≥' => '≤',
        '<' => '>',
        '≤' => '≥',
        s => *s,
    };
    (operands.iter().rev().cloned().collect(), signs.iter().rev().map(turned).collect())
}

/// The intervals in which a name lies, as a union: of inequalities solved for it, or of intervals.
fn region(node: &Node) -> Option<Vec<Node>> {
    match node {
        Node::Group('(' | '[', ')' | ']', items) if items.len() == 2 => Some(vec![node.clone()]),
        Node::Union(parts) | Node::List(parts, true) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(region(part)?);
            }
            Some(all)
        }
        Node::Relation(operands, signs) => {
            let (operands, signs) = rising(operands, signs);
            let constant = |node: &Node| {
                let mut names = BTreeSet::new();
                node.names(&mut names);
                names.is_empty()
            };
            let bracket = |sign: char, open: char, closed: char| if sign == '≤' { closed } else { open };
            let infinity = || Node::Infinity;
            let (low, from, to, high) = match (&*operands, &*signs) {
                ([Node::Symbol(_), high], [s @ ('<' | '≤')]) if constant(high) => {
                    (Node::Negative(Box::new(infinity())), '(', bracket(*s, ')', ']'), high.clone())
                }
                ([low, Node::Symbol(_)], [s @ ('<' | '≤')]) if constant(low) => {
                    (low.clone(), bracket(*s, '(', '['), ')', infinity())
                }
                ([low, Node::Symbol(_), high], [s @ ('<' | '≤'), t @ ('<' | '≤')])
                    if constant(low) && constant(high) =>
                {
                    (low.clone(), bracket(*s, '(', '['), bracket(*t, ')', ']'), high.clone())
                }
                _ => return None,
            };
            Some(vec![Node::Group(from, to, vec![low, high])])
        }
        _ => None,
    }
}

// --- values

fn scalar(reference: &Node, answer: &Node, budget: &mut Budget) -> bool {
    let (r, a) = (exact(reference, budget), exact(answer, budget));
    if let (Some(r), Some(a)) = (&r, &a) {
        return r.minus(a, budget).is_some_and(|d| d.is_zero());
    }
    // the work was too much for what is left of the budget
    if budget.spend(1).is_none() {
        return false;
    }
    if rounded(&[reference, answer], budget) {
        return false;
    }
    matches!(numerically(reference, answer), Decided::Yes)
}

/// Whether one of the trees holds fractions with so many digits that they may be rounded values of something else, or
/// the work was too much.
fn rounded(trees: &[&Node], budget: &mut Budget) -> bool {
    for tree in trees {
        let mut height = BigInt::one();
        let mut left = vec![*tree];
        while let Some(node) = left.pop() {
            if budget.spend(1).is_none() {
                return true;
            }
            match exact(node, budget).and_then(|e| e.rational()) {
                Some(q) => height *= digits(&q),
                None => left.extend(node.parts()),
            }
            if height > BigInt::from(DIGITS) {
                return true;
            }
        }
    }
    false
}

/// What is above times what is below the line of a fraction, at the power of ten where it is least; 1 of fractions with
/// small denominators.
fn digits(q: &Rational) -> BigInt {
    if *q.denom() <= BigInt::from(DENOMINATOR) {
        return BigInt::one();
    }
    let size = |q: &Rational| q.numer().abs() * q.denom();
    let ten = Rational::from_integer(BigInt::from(10));
    let (mut q, mut least) = (q.clone(), size(q));
    // powers of ten come out of the denominator as long as it has a factor of 2 or 5
    for _ in 0..400 {
        let next = &q * &ten;
        if next.denom() == q.denom() {
            break;
        }
        q = next;
        least = least.min(size(&q));
    }
    least
}

/// Whether two values agree within their errors; `None` where too few digits are left to say so.
fn close(a: Value, b: Value) -> Option<bool> {
    let error = a.error() + b.error();
    if a.minus(b).size() > error {
        return Some(false);
    }
    // terms that cancel leave nothing but their error
    let zero = |v: Value| v.size() <= v.error();
    (error <= TOLERANCE * a.size().max(b.size()) || (zero(a) && zero(b))).then_some(true)
}

/// Compares at seeded places: numbers between 0.2 and 4 in steps of 1/1000, every third place with any sign.
fn numerically(reference: &Node, answer: &Node) -> Decided {
    let mut names = BTreeSet::new();
    let complex = reference.names(&mut names) | answer.names(&mut names);
    let (places, needed) = if names.is_empty() { (1, 1) } else { (PLACES, DEFINED) };
    let mut defined = 0;
    for place in 0..places {
        let variables: BTreeMap<String, f64> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let mut rng = Rng::at(0, &[place, i as u64]);
                let size = rng.between(200, 4000) as f64 / 1000.0;
                (name.clone(), if place % 3 == 2 && rng.percent(50) { -size } else { size })
            })
            .collect();
        let place = Place { variables: &variables, complex };
        if let (Some(r), Some(a)) = (place.value(reference), place.value(answer)) {
            match close(r, a) {
                Some(true) => defined += 1,
                Some(false) => return Decided::No,
                None => {}
            }
        }
    }
    if defined >= needed { Decided::Yes } else { Decided::Open }
}

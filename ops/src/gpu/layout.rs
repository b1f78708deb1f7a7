//! Where every parameter lies on a device: a plan without memory.
//!
//! 1. Matrices that one product reads together stand together: queries over keys over values, gate over up.
//! 2. What is trained has a float32 master, a gradient and moments, each in one flat buffer in the same order; products read
//!    bf16 copies. Vectors (norms, biases) are read as float32, from the master where they are trained.
//! 3. An adapter trains its two factors; products read the merged weight, and the frozen one is kept to merge from.
//!
//! Where some of what stands together is trained and some is not, all of it has masters and gradients, and only the former is
//! changed.
//!
//! Invariants: names are those of checkpoints, each in one place; every part begins at a multiple of [`APART`] elements unless it
//! continues the one before.

use std::collections::BTreeMap;

use candle_core::{Result, bail};

use crate::model::Config;

/// Elements between beginnings of parts: 256 bytes of float32.
pub const APART: usize = 64;
/// Rows are read eight elements at once.
pub const EIGHT: usize = 8;

/// A part of a flat buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at: usize,
    pub len: usize,
}

impl Span {
    #[cfg(test)]
    fn end(self) -> usize {
        self.at + self.len
    }
}

/// What a parameter is to the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// (rows, columns), read as bf16.
    Matrix(usize, usize),
    /// Read as float32.
    Vector(usize),
}

/// A parameter of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: String,
    pub kind: Kind,
    /// In the buffer of bf16 matrices, or of float32 vectors that are not trained.
    pub value: Option<Span>,
    /// In the buffer of bf16 matrices that have an addition: without it.
    pub base: Option<Span>,
    /// In the flat buffers of masters and gradients.
    pub trained: Option<Span>,
    /// Changed by updates.
    pub updated: bool,
}

/// Names that one product reads together, and how they are spelled in a layer.
const TOGETHER: &[&[&str]] = &[
    &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
    &["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    &["mlp.gate_proj.bias", "mlp.up_proj.bias"],
];

/// All parameters and the sizes of their buffers, in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub parts: Vec<Part>,
    places: BTreeMap<String, usize>,
    pub matrices: usize,
    pub bases: usize,
    pub vectors: usize,
    pub trained: usize,
}

impl Layout {
    /// Of a model's parameters, `(name, shape, trained)` each.
    ///
    /// # Errors
    /// Names a parameter whose rows are not a multiple of eight elements wide.
    pub fn new(parameters: &[(String, Vec<usize>, bool)]) -> Result<Layout> {
        let mut layout =
            Layout { parts: Vec::new(), places: BTreeMap::new(), matrices: 0, bases: 0, vectors: 0, trained: 0 };
        let known: BTreeMap<&str, usize> =
            parameters.iter().enumerate().map(|(i, (name, ..))| (name.as_str(), i)).collect();
        for (name, ..) in parameters {
            if layout.places.contains_key(name) {
                continue;
            }
            // all that stands with it, in its place
            let stem = |group: &[&str]| group.iter().find_map(|part| name.strip_suffix(part));
            let group = TOGETHER.iter().find_map(|group| Some((stem(group)?, *group)));
            let names: Vec<String> = match group {
                Some((stem, group)) => group.iter().map(|part| format!("{stem}{part}")).collect(),
                None => vec![name.clone()],
            };
            let mut found = Vec::with_capacity(names.len());
            for name in &names {
                match known.get(name.as_str()) {
                    Some(at) => found.push(&parameters[*at]),
                    None => bail!("there is no parameter `{name}`"),
                }
            }
            let trained = found.iter().any(|(.., trained)| *trained);
            for (i, (name, shape, updated)) in found.into_iter().enumerate() {
                layout.place(name, shape, (trained, *updated), i > 0)?;
                let adapted = name.strip_suffix(".weight").map(|layer| format!("{layer}.lora_A.weight"));
                if adapted.is_some_and(|factor| known.contains_key(factor.as_str())) {
                    layout.keep_base();
                }
            }
        }
        Ok(layout)
    }

    fn place(&mut self, name: &str, shape: &[usize], (trained, updated): (bool, bool), continues: bool) -> Result<()> {
        let kind = match *shape {
            [n] => Kind::Vector(n),
            [rows, columns] if columns.is_multiple_of(EIGHT) || is_factor(name) => Kind::Matrix(rows, columns),
            [_, columns] => {
                bail!(
                    "rows of `{name}` have {columns} elements, expected a multiple of {EIGHT}: kernels of a GPU read so many at once"
                )
            }
            _ => bail!("`{name}` has shape {shape:?}, expected a matrix or a vector"),
        };
        let len: usize = shape.iter().product();
        let take = |buffer: &mut usize| {
            let at = if continues { *buffer } else { buffer.next_multiple_of(APART) };
            *buffer = at + len;
            Span { at, len }
        };
        let trained = trained.then(|| take(&mut self.trained));
        let value = match kind {
            Kind::Matrix(..) => Some(take(&mut self.matrices)),
            Kind::Vector(_) => trained.is_none().then(|| take(&mut self.vectors)),
        };
        self.places.insert(name.to_owned(), self.parts.len());
        self.parts.push(Part { name: name.to_owned(), kind, value, base: None, trained, updated });
        Ok(())
    }

    /// The last part has an addition.
    fn keep_base(&mut self) {
        let Some(part) = self.parts.last_mut() else { return };
        let Some(span) = part.value else { return };
        let at = self.bases.next_multiple_of(APART);
        part.base = Some(Span { at, len: span.len });
        self.bases = at + span.len;
    }

    /// A parameter by name.
    ///
    /// # Panics
    /// On a name that is not there: a bug in the caller.
    pub fn part(&self, name: &str) -> &Part {
        match self.find(name) {
            Some(part) => part,
            None => panic!("BUG: there is no parameter `{name}`"),
        }
    }

    /// A parameter by name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Part> {
        self.places.get(name).map(|at| &self.parts[*at])
    }
}

/// A low-rank factor, which only products read.
fn is_factor(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

/// `(name, shape, trained)` of a model whose parameters are all trained, or none of them.
pub fn parameters(config: &Config, trained: bool) -> Vec<(String, Vec<usize>, bool)> {
    config.shapes().into_iter().map(|(name, shape)| (name, shape, trained)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, shape: &[usize], trained: bool) -> (String, Vec<usize>, bool) {
        (name.to_owned(), shape.to_vec(), trained)
    }

    fn layer(trained: bool) -> Vec<(String, Vec<usize>, bool)> {
        let p = |name: &str, shape: &[usize]| parameter(&format!("model.layers.0.{name}"), shape, trained);
        vec![
            p("self_attn.q_proj.weight", &[16, 24]),
            p("self_attn.q_proj.bias", &[16]),
            p("self_attn.k_proj.weight", &[8, 24]),
            p("self_attn.k_proj.bias", &[8]),
            p("self_attn.v_proj.weight", &[8, 24]),
            p("self_attn.v_proj.bias", &[8]),
            p("mlp.gate_proj.weight", &[32, 24]),
            p("mlp.up_proj.weight", &[32, 24]),
            p("input_layernorm.weight", &[24]),
        ]
    }

    #[test]
    fn what_one_product_reads_stands_together_and_nothing_overlaps() {
        for trained in [false, true] {
            let layout = Layout::new(&layer(trained)).unwrap();
            assert_eq!(layout.parts.len(), 9);
            let of = |name: &str| layout.part(&format!("model.layers.0.{name}"));
            let spans = |pick: fn(&Part) -> Option<Span>, names: &[&str]| {
                names.iter().map(|name| pick(of(name)).unwrap()).collect::<Vec<_>>()
            };
            let picks: &[fn(&Part) -> Option<Span>] = &[|p| p.value, |p| p.trained];
            for pick in &picks[..1 + usize::from(trained)] {
                for group in [
                    &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"][..],
                    &["mlp.gate_proj.weight", "mlp.up_proj.weight"],
                ] {
                    let spans = spans(*pick, group);
                    assert!(spans.windows(2).all(|w| w[0].end() == w[1].at), "{spans:?}");
                    assert!(spans[0].at.is_multiple_of(APART));
                }
            }
            let biases = spans(
                if trained { |p| p.trained } else { |p| p.value },
                &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
            );
            assert!(biases.windows(2).all(|w| w[0].end() == w[1].at));
            for pick in picks {
                let matrix = |p: &&Part| matches!(p.kind, Kind::Matrix(..));
                for matrices in [true, false] {
                    let parts = layout.parts.iter().filter(|p| trained || matrix(p) == matrices);
                    let mut spans: Vec<Span> = parts.filter_map(pick).collect();
                    spans.sort_by_key(|s| s.at);
                    assert!(trained || spans.windows(2).all(|w| w[0].end() <= w[1].at));
                }
            }
            assert_eq!(layout.trained > 0, trained);
            assert_eq!(layout.vectors > 0, !trained);
        }
    }

    #[test]
    fn what_stands_with_something_trained_has_a_gradient_and_is_not_changed() {
        let mut parameters = layer(false);
        parameters[0].2 = true;
        let layout = Layout::new(&parameters).unwrap();
        let of = |name: &str| layout.part(&format!("model.layers.0.self_attn.{name}_proj.weight"));
        assert!(of("q").updated && !of("k").updated && of("k").trained.is_some() && of("k").value.is_some());
        assert_eq!(layout.trained, 32 * 24);
    }

    #[test]
    fn rows_that_kernels_cannot_read_are_refused_by_name() {
        let error = Layout::new(&[parameter("model.embed_tokens.weight", &[10, 20], true)]).unwrap_err().to_string();
        assert!(error.contains("`model.embed_tokens.weight` have 20 elements"), "{error}");
    }
}

//! A model's parameters as an engine knows them: what is trained, what stands together, and where.
//!
//! Invariant: names are those of checkpoints.

use candle_core::{Result, bail};

use super::driver::Address;
use super::kernels::{Kernels, Qkv};
use super::layout::Layout;
use super::memory::Arena;
use super::sample::Room;
use super::tape::{Factors, Keep, Layer, Linear, Sizes};
use super::weights::{Vector, Weight, Weights};
use crate::model::{Config, Model};
use crate::train::optimizer::Precision;

/// What an engine is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Purpose {
    /// Tokens of a packed row that there is room for from the beginning; for a longer one more memory is reserved when it comes.
    pub row_tokens: usize,
    /// `None`: as much as there is memory for. No bit of a result depends on it.
    pub keep: Option<Keep>,
    /// Rows of logits at once.
    pub chunk: usize,
    /// Positions of a sequence, at most.
    pub positions: usize,
    /// Sampling, if it is wanted.
    pub sample: Option<Room>,
    /// What both moments are stored as.
    pub moments: Precision,
}

impl Default for Purpose {
    fn default() -> Self {
        Purpose {
            row_tokens: 2048,
            keep: None,
            chunk: 1024,
            positions: 4096,
            sample: None,
            moments: Precision::Float32,
        }
    }
}

/// A low-rank addition to a linear layer: its name without `.weight`, and what it is multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    pub layer: String,
    pub scale: f32,
    /// Entries of its input are dropped in training.
    pub drops: bool,
}

/// A model's parameters as an engine wants to know them.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Config,
    /// (name, shape, trained), factors of additions among them.
    pub parameters: Vec<(String, Vec<usize>, bool)>,
    pub additions: Vec<Addition>,
}

impl Shape {
    /// Of a model as it is: what is trained in it, and its adapters.
    pub fn of(model: &Model) -> Shape {
        let params = model.params();
        let parameters = params.iter().map(|p| (p.name.clone(), p.value.dims().to_vec(), p.trainable)).collect();
        let addition = |(layer, linear): (String, &crate::nn::layer::Linear)| {
            let adapter = linear.adapter.as_ref()?;
            Some(Addition { layer, scale: adapter.scale as f32, drops: adapter.dropout.is_some() })
        };
        let additions = model.linears().into_iter().filter_map(addition).collect();
        Shape { config: model.config.clone(), parameters, additions }
    }

    /// The same model with adapters of this rank at all linear layers of its blocks, which alone are trained.
    pub fn adapted(&self, rank: usize) -> Shape {
        let mut adapted = Shape { parameters: Vec::new(), ..self.clone() };
        for (name, shape, _) in &self.parameters {
            adapted.parameters.push((name.clone(), shape.clone(), false));
            let layer = name.strip_suffix(".weight").filter(|name| name.starts_with("model.layers."));
            let (Some(layer), [out, inputs]) = (layer, shape.as_slice()) else { continue };
            for (factor, shape) in [("lora_A", vec![rank, *inputs]), ("lora_B", vec![*out, rank])] {
                adapted.parameters.push((format!("{layer}.{factor}.weight"), shape, true));
            }
            adapted.additions.push(Addition { layer: layer.to_owned(), scale: 1.0, drops: false });
        }
        adapted
    }

    /// All parameters trained, or none.
    pub fn plain(config: &Config, trained: bool) -> Shape {
        let parameters = super::layout::parameters(config, trained);
        Shape { config: config.clone(), parameters, additions: Vec::new() }
    }
}

/// What stands below the arena that passes use, and where.
pub(super) struct Parts {
    pub sizes: Sizes,
    pub weights: Weights,
    pub layers: Vec<Layer>,
    pub embed: Weight,
    pub norm: Vector,
    pub head: Weight,
    pub ropes: Vec<(Address, Address)>,
}

impl Parts {
    pub(super) fn new(shape: &Shape, purpose: &Purpose, arena: &mut Arena) -> Result<Parts> {
        let config = &shape.config;
        let weights = Weights::reserve(Layout::new(&shape.parameters)?, purpose.moments, arena)?;
        let heads = Qkv { h: config.heads, hk: config.kv_heads, d: config.head_dim };
        let whole = config.family.qk_norm_is_whole().unwrap_or(false);
        let sizes = Sizes {
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads,
            whole,
            eps: config.rms_norm_eps as f32,
        };
        if !Kernels::norm_fits(sizes.hidden) || !sizes.inner.is_multiple_of(8) || !heads.d.is_multiple_of(8) {
            bail!(
                "hidden size {}, intermediate size {} and head dimension {}: the kernels of a GPU want multiples of 8, and a hidden \
                 size of 8192 at most",
                sizes.hidden,
                sizes.inner,
                heads.d
            );
        }
        let trained = weights.layout.trained > 0;
        if !Kernels::turn_fits(heads, trained) {
            let Qkv { h, hk, d } = heads;
            let how = if trained { "training" } else { "sampling" };
            bail!(
                "{h} heads of queries and {hk} of keys with {d} dimensions are more than {how} on a GPU takes in one block"
            );
        }
        let names = config.family.norm_names();
        let layers = (0..config.layers).map(|i| {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let linear = |stems: &[&str]| -> Linear {
                let w = weights.weight(&stems.iter().map(|s| name(&format!("{s}.weight"))).collect::<Vec<_>>());
                let bias = weights.find_vector(&name(&format!("{}.bias", stems[0])));
                let mut first = 0;
                let mut factors = Vec::new();
                for stem in stems {
                    let rows = weights.weight(&[name(&format!("{stem}.weight"))]).value.rows;
                    if let Some(index) = shape.additions.iter().position(|a| a.layer == name(stem)) {
                        let scale = shape.additions[index].scale;
                        let factor = |part: &str| weights.weight(&[name(&format!("{stem}.{part}.weight"))]);
                        let (a, b) = (factor("lora_A"), factor("lora_B"));
                        let base = weights.base(&name(&format!("{stem}.weight")));
                        factors.push(Factors { rows: (first, rows), a, b, scale, index, base });
                    }
                    first += rows;
                }
                Linear { w, bias, factors }
            };
            let norm = |part: &str| weights.vector(&name(&format!("{part}.weight")));
            let qkv = linear(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
            let (o, gate_up) = (linear(&["self_attn.o_proj"]), linear(&["mlp.gate_proj", "mlp.up_proj"]));
            let down = linear(&["mlp.down_proj"]);
            let slides = config.slides(i);
            let prefix = format!("model.layers.{i}.");
            let trained = weights.layout.parts.iter().any(|p| p.updated && p.name.starts_with(&prefix));
            Layer {
                index: i,
                place: config.family.norm_place(),
                norm: norm(names.0),
                qkv,
                norms: config.family.qk_norm_is_whole().map(|_| (norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
                o,
                mlp_norm: norm(names.1),
                gate_up,
                down,
                rope: usize::from(slides && config.sliding_rope.is_some()),
                window: config.window.filter(|_| slides),
                trained,
            }
        });
        let layers = layers.collect();
        let embed = weights.weight(&["model.embed_tokens.weight".to_owned()]);
        let head = if config.tied { embed } else { weights.weight(&["lm_head.weight".to_owned()]) };
        let norm = weights.vector("model.norm.weight");
        let bytes = 4 * purpose.positions * heads.d / 2;
        let mut table = || Ok((arena.keep(bytes)?, arena.keep(bytes)?));
        let ropes = std::iter::once(&config.rope).chain(&config.sliding_rope).map(|_| table());
        let ropes = ropes.collect::<Result<_>>()?;
        Ok(Parts { sizes, weights, layers, embed, norm, head, ropes })
    }
}

/// Windows that layers have, none among them.
pub(super) fn windows(parts: &Parts) -> Vec<Option<usize>> {
    let mut windows: Vec<Option<usize>> = parts.layers.iter().map(|l| l.window).collect();
    windows.sort_unstable();
    windows.dedup();
    windows
}

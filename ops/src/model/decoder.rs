//! A decoder-only language model: embedding, blocks, final norm, head.
//!
//! 1. `forward` runs a packed row and keeps what the backward needs.
//! 2. `backward` walks the blocks the other way, down to the lowest that has something to learn.
//! 3. `train` is both with the head between them.
//! 4. `extend` is the same forward over caches, for sampling.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use actloom_engine::op::OpError;
use candle_core::{DType, Device, Result, Tensor};

use super::config::Config;
use super::failed;
use super::gpu::Gpu;
use crate::gpu::engine::Engine;
use crate::gpu::pages::Held;
use crate::gpu::sample::{Feed, Flight, row_of};
use crate::infer::sampling::Draw;
use crate::nn::block::{Attention, Block, Mlp, Rows, Saved, Want};
use crate::nn::kernel::{self, Cache, CachedPart, Kernels, Pool, RopeTable};
use crate::nn::layer::{self, Embedding, Linear, Param, Project, RmsNorm, TokenStats};
use crate::nn::{Heads, Packing};
use crate::rng::Rng;

/// A token to be predicted, and the row that predicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub row: u32,
    pub id: u32,
}

/// Keys and values of one sequence, all layers.
///
/// A clone shares them: sequences with a common beginning hold it once, and each goes on alone.
#[derive(Clone)]
pub struct Sequence {
    memory: Memory,
    ids: Vec<u32>,
}

#[derive(Clone)]
enum Memory {
    /// A cache for each layer.
    Host(Vec<Cache>),
    /// Pages of a device, once there is a token.
    Gpu(Option<Held>),
}

impl Sequence {
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The tokens seen so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What the last token is, which was one that a device had just drawn.
    pub fn learn(&mut self, id: u32) {
        if let Some(last) = self.ids.last_mut() {
            *last = id;
        }
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// # Errors
    /// candle's.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.ids.truncate(len);
        match &mut self.memory {
            Memory::Host(layers) => layers.iter_mut().try_for_each(|c| c.truncate(len)),
            Memory::Gpu(held) => {
                held.iter_mut().for_each(|held| held.truncate(len));
                Ok(())
            }
        }
    }
}

/// What one sequence takes part with in [`Model::advance`].
pub struct Step<'a> {
    pub sequence: &'a mut Sequence,
    pub new: &'a [u32],
    /// Logits after the last new token are wanted.
    pub logits: bool,
}

/// What the backward of a block starts from.
enum Kept {
    /// Everything it needs.
    Rows(Box<Saved>),
    /// The block's input: its forward runs again first.
    Input(Tensor),
}

/// A model with its parameters.
pub struct Model {
    pub config: Config,
    pub device: Device,
    pub kernels: Kernels,
    /// Keeps only the input of each block in training, and runs its forward again in the backward: a third more time
    /// for a small part of the memory. The results are the same bits.
    pub recompute: bool,
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None` where the embedding is the head.
    head: Option<Linear>,
    /// Rotary tables: of full layers, of sliding layers where they differ.
    ropes: RwLock<Vec<RopeTable>>,
    /// Memory of keys and values.
    pages: Arc<Pool>,
    /// Where passes run, if not on the host.
    pub(super) gpu: Option<Gpu>,
}

/// Whether two matrices have the same numbers.
fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let a = a.to_dtype(DType::F32)?.to_device(b.device())?;
    Ok(a.ne(b)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? == 0.0)
}

impl Model {
    /// Random weights: normal with standard deviation 0.02 (divided by sqrt(2 layers) where a block writes to the
    /// residual stream, as GPT-2 does), norms one, biases zero.
    ///
    /// # Errors
    /// When the sizes do not fit together.
    pub fn random(config: Config, seed: u64) -> std::result::Result<Model, OpError> {
        config.check()?;
        let mut tensors = BTreeMap::new();
        for (index, (name, shape)) in config.shapes().into_iter().enumerate() {
            let n: usize = shape.iter().product();
            let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let std = if residual { 0.02 / (2.0 * config.layers as f64).sqrt() } else { 0.02 };
            let mut rng = Rng::at(seed, &[index as u64]);
            let data: Vec<f32> = match shape.len() {
                1 if name.ends_with("bias") => vec![0.0; n],
                1 => vec![1.0; n],
                _ => (0..n).map(|_| (rng.normal() * std) as f32).collect(),
            };
            tensors.insert(name, Tensor::from_vec(data, shape, &Device::Cpu).map_err(failed)?);
        }
        Model::new(config, tensors, &Device::Cpu)
    }

    /// A model from named tensors, converted to float32 on `device`.
    ///
    /// # Errors
    /// Names the tensor that is missing, superfluous or of the wrong shape.
    pub fn new(
        config: Config,
        mut tensors: BTreeMap<String, Tensor>,
        device: &Device,
    ) -> std::result::Result<Model, OpError> {
        let mut params = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let Some(tensor) = tensors.remove(&name) else {
                return Err(OpError::failed(format!("the checkpoint has no tensor `{name}`")));
            };
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(OpError::failed(format!("tensor `{name}` has shape {found:?}, expected {shape:?}")));
            }
            let value = tensor.to_dtype(DType::F32).and_then(|t| t.to_device(device)).map_err(failed)?;
            params.insert(name.clone(), Param::new(name, value));
        }
        // some writers store a tied matrix twice
        if config.tied
            && let Some(head) = tensors.remove("lm_head.weight")
            && let Some(embedding) = params.get("model.embed_tokens.weight")
            && !same(&head, &embedding.value).map_err(failed)?
        {
            return Err(OpError::failed(
                "`tie_word_embeddings` is `true` in the model's config, but `lm_head.weight` differs from \
                 `model.embed_tokens.weight`",
            ));
        }
        // frequencies are made from the config; old checkpoints also store them
        tensors.retain(|name, _| !name.ends_with("rotary_emb.inv_freq"));
        if let Some(name) = tensors.keys().next() {
            return Err(OpError::failed(format!("the checkpoint has a tensor `{name}` that the model does not know")));
        }
        let mut take = |name: &str| match params.remove(name) {
            Some(param) => param,
            None => panic!("BUG: `{name}` is not in the list of shapes"),
        };
        let eps = config.rms_norm_eps;
        let heads = Heads { h: config.heads, hk: config.kv_heads, d: config.head_dim, window: None };
        let names = config.family.norm_names();
        let mut ropes = Vec::new();
        for rope in std::iter::once(&config.rope).chain(&config.sliding_rope) {
            let (frequencies, scale) = rope.frequencies(config.head_dim);
            ropes.push(RopeTable::new(frequencies, scale));
        }
        let blocks = (0..config.layers)
            .map(|i| {
                let mut p = |name: &str| take(&format!("model.layers.{i}.{name}"));
                let mut linear = |name: &str, bias: bool| {
                    let w = p(&format!("{name}.weight"));
                    Linear::new(w, bias.then(|| p(&format!("{name}.bias"))))
                };
                let (q, k) = (linear("self_attn.q_proj", config.qkv_bias), linear("self_attn.k_proj", config.qkv_bias));
                let (v, o) = (linear("self_attn.v_proj", config.qkv_bias), linear("self_attn.o_proj", config.o_bias));
                let gate = linear("mlp.gate_proj", config.mlp_bias);
                let (up, down) = (linear("mlp.up_proj", config.mlp_bias), linear("mlp.down_proj", config.mlp_bias));
                let mut norm = |name: &str| RmsNorm { w: p(&format!("{name}.weight")), eps };
                let norms =
                    config.family.qk_norm_is_whole().map(|_| (norm("self_attn.q_norm"), norm("self_attn.k_norm")));
                let slides = config.slides(i);
                let heads = Heads { window: config.window.filter(|_| slides), ..heads };
                let rope = usize::from(slides && config.sliding_rope.is_some());
                Block {
                    place: config.family.norm_place(),
                    attention_norm: norm(names.0),
                    mlp_norm: norm(names.1),
                    attention: Attention { q, k, v, o, norms, heads, rope },
                    mlp: Mlp { gate, up, down },
                }
            })
            .collect();
        Ok(Model {
            embed: Embedding { w: take("model.embed_tokens.weight") },
            blocks,
            norm: RmsNorm { w: take("model.norm.weight"), eps },
            head: if config.tied { None } else { Some(Linear::new(take("lm_head.weight"), None)) },
            kernels: Kernels::of(device),
            device: device.clone(),
            recompute: false,
            ropes: RwLock::new(ropes),
            pages: Arc::default(),
            gpu: None,
            config,
        })
    }

    /// Every parameter, in checkpoint order; an adapter's stand behind the weight they add to.
    pub fn params(&self) -> Vec<&Param> {
        let mut out = vec![&self.embed.w];
        out.extend(self.blocks.iter().flat_map(Block::params));
        out.push(&self.norm.w);
        out.extend(self.head.iter().flat_map(Linear::params));
        out
    }

    /// Trains nothing in it.
    pub fn freeze(&mut self) {
        self.params_mut().into_iter().for_each(|p| p.trainable = false);
    }

    /// As [`Model::params`].
    pub fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut out = vec![&mut self.embed.w];
        out.extend(self.blocks.iter_mut().flat_map(Block::params_mut));
        out.push(&mut self.norm.w);
        out.extend(self.head.iter_mut().flat_map(Linear::params_mut));
        out
    }

    /// A tensor of the checkpoint by its name, with its adapter merged; one at a time, for a merged weight is a copy.
    ///
    /// # Errors
    /// candle's.
    ///
    /// # Panics
    /// On a name that [`Config::shapes`] does not have: a bug in the caller.
    pub fn weight(&self, name: &str) -> Result<Tensor> {
        let adapted = self
            .linears()
            .into_iter()
            .find(|(layer, linear)| linear.adapter.is_some() && name.strip_suffix(".weight") == Some(layer.as_str()));
        if let Some((_, linear)) = adapted {
            return linear.merged(self.kernels);
        }
        match self.params().into_iter().find(|p| p.name == name) {
            Some(param) => Ok(param.value.clone()),
            None => panic!("BUG: the model has no tensor `{name}`"),
        }
    }

    /// Every linear layer by its name in checkpoints, without `.weight`. A tied head is none.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let mut out = Vec::new();
        for (i, b) in self.blocks.iter().enumerate() {
            out.extend(b.linears().into_iter().map(|(name, l)| (format!("model.layers.{i}.{name}"), l)));
        }
        out.extend(self.head.iter().map(|l| ("lm_head".to_owned(), l)));
        out
    }

    /// As [`Model::linears`].
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut out = Vec::new();
        for (i, b) in self.blocks.iter_mut().enumerate() {
            out.extend(b.linears_mut().into_iter().map(|(name, l)| (format!("model.layers.{i}.{name}"), l)));
        }
        out.extend(self.head.iter_mut().map(|l| ("lm_head".to_owned(), l)));
        out
    }

    fn head(&self) -> &dyn Project {
        match &self.head {
            Some(head) => head,
            None => &self.embed.w,
        }
    }

    fn head_mut(&mut self) -> &mut dyn Project {
        match &mut self.head {
            Some(head) => head,
            None => &mut self.embed.w,
        }
    }

    fn check_row(&self, ids: &[u32], positions: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            candle_core::bail!("token id {id} is not below the vocabulary's size {}", self.config.vocab_size);
        }
        if positions > self.config.max_positions {
            candle_core::bail!("a sequence of {positions} tokens, the model takes {}", self.config.max_positions);
        }
        if read(&self.ropes).iter().any(|table| table.positions() < positions) {
            // a good deal more, for threads that sample wait for one another here
            let ahead = positions.next_power_of_two().max(1024).min(self.config.max_positions);
            let mut ropes = self.ropes.write().unwrap_or_else(PoisonError::into_inner);
            ropes.iter_mut().for_each(|table| table.reserve(ahead));
        }
        Ok(())
    }

    /// The lowest block whose backward reaches something to learn: below it nothing is kept and nothing goes back.
    fn lowest(&self) -> usize {
        if self.embed.w.trainable {
            return 0;
        }
        let learns = |b: &Block| b.params().iter().any(|p| p.trainable);
        self.blocks.iter().position(learns).unwrap_or(self.blocks.len())
    }

    /// Hidden states before the final norm, (n, hidden), and where `keep`, what the backward of each block from
    /// `lowest` on needs.
    fn forward(&self, ids: &[u32], packing: &Packing, keep: bool) -> Result<(Tensor, Vec<Kept>)> {
        let positions = packing.positions();
        self.check_row(ids, positions.iter().max().map_or(0, |p| *p as usize + 1))?;
        let ropes = read(&self.ropes);
        let rows = Rows { kernels: self.kernels, positions, ropes: &ropes };
        let lowest = if keep { self.lowest() } else { self.blocks.len() };
        let mut kept = Vec::new();
        let mut x = self.embed.forward(self.kernels, ids)?; // (n, hidden)
        for (i, b) in self.blocks.iter().enumerate() {
            // an adapter that drops entries does so in the forward that is thrown away, too
            let train = i >= lowest;
            let want = if train { Want::Saved } else { Want::Only(None) };
            let (y, saved) = b.forward(rows, &x, want, |q, k, v| {
                let (out, stats) = kernel::attention(self.kernels, q, k, v, packing, b.attention.heads)?;
                Ok((out, Some(stats)))
            })?;
            let input = std::mem::replace(&mut x, y);
            match saved {
                Some(_) if self.recompute => kept.push(Kept::Input(input)),
                Some(saved) => kept.push(Kept::Rows(Box::new(saved))),
                None => {}
            }
        }
        Ok((x, kept))
    }

    /// Gradients of all parameters below the final norm, given d objective / d hidden.
    fn backward(&mut self, mut dx: Tensor, ids: &[u32], packing: &Packing, mut kept: Vec<Kept>) -> Result<()> {
        let (kernels, lowest) = (self.kernels, self.lowest());
        let ropes = read(&self.ropes);
        let rows = Rows { kernels, positions: packing.positions(), ropes: &ropes };
        for b in self.blocks[lowest..].iter_mut().rev() {
            let saved = match kept.pop() {
                Some(Kept::Rows(saved)) => *saved,
                Some(Kept::Input(x)) => {
                    let (_, saved) = b.forward(rows, &x, Want::Saved, |q, k, v| {
                        let (out, stats) = kernel::attention(kernels, q, k, v, packing, b.attention.heads)?;
                        Ok((out, Some(stats)))
                    })?;
                    match saved {
                        Some(saved) => saved,
                        None => panic!("BUG: a block kept nothing"),
                    }
                }
                None => panic!("BUG: a block's rows are missing"),
            };
            dx = b.backward(rows, &dx, saved, packing)?;
        }
        self.embed.backward(kernels, &dx, ids)
    }

    /// Forward and backward of one packed row. `coefficient(i, stats)` is d objective / d logp of `targets[i]`, for an
    /// objective that is minimised; gradients add up until the optimizer takes them.
    ///
    /// # Errors
    /// candle's, and rows that the model cannot take.
    pub fn train(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
        mut coefficient: impl FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        let on_gpu = self.ask_gpu(|engine| {
            engine.set_dropped(self.dropped());
            engine.train(ids, packing, targets, temperature, &mut coefficient)
        });
        if let Some(done) = on_gpu {
            return done;
        }
        let kn = self.kernels;
        let (x, kept) = self.forward(ids, packing, true)?;
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let labels: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let x = layer::select_rows(&x, &rows)?;
        let (h, r) = self.norm.forward(kn, &x)?;
        let (stats, dh) = layer::score_backward(kn, &h, self.head_mut(), &labels, temperature, coefficient)?;
        let dx = self.norm.backward(kn, &dh, &x, &r)?;
        let dx = layer::scatter_rows(kn, &dx, &rows, ids.len(), &self.device)?;
        self.backward(dx, ids, packing, kept)?;
        Ok(stats)
    }

    /// Log-probability and entropy of each target, no gradient.
    ///
    /// # Errors
    /// As [`Model::train`].
    pub fn score(
        &self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
    ) -> Result<Vec<TokenStats>> {
        if let Some(done) = self.ask_gpu(|engine| engine.score(ids, packing, targets, temperature)) {
            return done;
        }
        let (x, _) = self.forward(ids, packing, false)?;
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let labels: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let (h, _) = self.norm.forward(self.kernels, &layer::select_rows(&x, &rows)?)?;
        layer::score(self.kernels, &h, self.head(), &labels, temperature)
    }

    /// Logits (n, v) of every row.
    ///
    /// # Errors
    /// As [`Model::train`].
    pub fn logits(&self, ids: &[u32], packing: &Packing) -> Result<Tensor> {
        if let Some(done) = self.ask_gpu(|engine| engine.logits(ids, packing)) {
            return Tensor::from_vec(done?, (ids.len(), self.config.vocab_size), &Device::Cpu);
        }
        let (x, _) = self.forward(ids, packing, false)?;
        self.head().forward(self.kernels, &self.norm.forward(self.kernels, &x)?.0)
    }

    /// Logits of every row, at most `rows` of them alive at once: `each` gets (up to `rows`, v), in order.
    ///
    /// # Errors
    /// As [`Model::train`], and those of `each`.
    pub fn each_logits<E: From<candle_core::Error>>(
        &self,
        ids: &[u32],
        packing: &Packing,
        rows: usize,
        mut each: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if self.gpu.is_some() {
            let all = self.logits(ids, packing)?;
            for start in (0..ids.len()).step_by(rows) {
                each(all.narrow(0, start, rows.min(ids.len() - start))?.contiguous()?)?;
            }
            return Ok(());
        }
        let (x, _) = self.forward(ids, packing, false)?;
        let (h, _) = self.norm.forward(self.kernels, &x)?;
        for start in (0..ids.len()).step_by(rows) {
            let part = h.narrow(0, start, rows.min(ids.len() - start))?.contiguous()?;
            each(self.head().forward(self.kernels, &part)?)?;
        }
        Ok(())
    }

    /// An empty sequence to extend.
    pub fn sequence(&self) -> Sequence {
        let memory = match &self.gpu {
            Some(_) => Memory::Gpu(None),
            None => Memory::Host(vec![Cache::new(self.kernels, &self.pages); self.config.layers]),
        };
        Sequence { memory, ids: Vec::new() }
    }

    /// Bytes of keys and values of one token.
    pub fn token_bytes(&self) -> usize {
        self.config.layers * self.config.kv_heads * self.config.head_dim * 2 * size_of::<f32>()
    }

    /// Appends tokens to each sequence and returns the logits (sequences, v) after each one's last.
    ///
    /// # Errors
    /// As [`Model::train`].
    ///
    /// # Panics
    /// When a sequence is extended by nothing: a bug in the caller.
    pub fn extend(&self, batch: &mut [(&mut Sequence, &[u32])]) -> Result<Tensor> {
        let steps = batch.iter_mut().map(|(sequence, new)| Step { sequence, new, logits: true }).collect();
        self.advance(steps)
    }

    /// Appends tokens to sequences and returns the logits (m, v) after the last token of each of the m that want them.
    /// What only they need, most of the last block and the head, is computed for them alone.
    ///
    /// # Errors
    /// As [`Model::train`].
    ///
    /// # Panics
    /// When a sequence is extended by nothing: a bug in the caller.
    pub fn advance(&self, mut steps: Vec<Step<'_>>) -> Result<Tensor> {
        if self.gpu.is_some() {
            return self.advance_on_gpu(steps);
        }
        let kn = self.kernels;
        let (mut ids, mut positions): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut last = Vec::new();
        for step in &steps {
            assert!(!step.new.is_empty(), "BUG: a sequence was extended by no token");
            let have = step.sequence.len();
            self.check_row(step.new, have + step.new.len())?;
            positions.extend((have..have + step.new.len()).map(|p| p as u32));
            ids.extend_from_slice(step.new);
            if step.logits {
                last.push(ids.len() as u32 - 1);
            }
        }
        let wanted = last.len();
        if wanted == 0 {
            last.push(ids.len() as u32 - 1); // not every device takes tensors without rows
        }
        let ropes = read(&self.ropes);
        let mut x = self.embed.forward(kn, &ids)?; // (n, hidden)
        for (i, b) in self.blocks.iter().enumerate() {
            let tail = i + 1 == self.blocks.len();
            let mut from = 0;
            let parts = steps.iter_mut().map(|s| {
                let rows = from..from + s.new.len();
                from = rows.end;
                let ends = last.binary_search(&(rows.end as u32 - 1)).is_ok();
                let queries = if tail { usize::from(ends) } else { rows.len() };
                let Memory::Host(layers) = &mut s.sequence.memory else {
                    panic!("BUG: a sequence of a device was extended on the host")
                };
                CachedPart { cache: &mut layers[i], rows, queries }
            });
            let parts: Vec<_> = parts.collect();
            let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
                Ok((kernel::cached_attention(q, k, v, parts, b.attention.heads)?, None))
            };
            // nobody looks at the other rows of the last block
            let only = Want::Only(tail.then_some(last.as_slice()));
            x = b.forward(Rows { kernels: kn, positions: &positions, ropes: &ropes }, &x, only, attend)?.0;
        }
        for step in &mut steps {
            step.sequence.ids.extend_from_slice(step.new);
        }
        let x = x.narrow(0, 0, wanted)?;
        if wanted == 0 {
            return Tensor::zeros((0, self.config.vocab_size), x.dtype(), x.device());
        }
        let (h, _) = self.norm.forward(kn, &x)?;
        self.head().forward(kn, &h)
    }
}

impl Model {
    /// [`Model::advance`] on a device; the logits come to the host.
    fn advance_on_gpu(&self, steps: Vec<Step<'_>>) -> Result<Tensor> {
        let (wanted, v) = (steps.iter().filter(|step| step.logits).count(), self.config.vocab_size);
        let logits = self.step_on_gpu(steps, |engine, feeds| engine.advance(feeds))?;
        match wanted {
            0 => Tensor::zeros((0, v), DType::F32, &Device::Cpu),
            _ => Tensor::from_vec(logits, (wanted, v), &Device::Cpu),
        }
    }

    /// [`Model::advance`], and a token drawn by the device for each sequence that wants logits. Nobody waits for them: the next step
    /// may feed them as [`just_drawn`](crate::gpu::sample::just_drawn) with this flight as its `before`, and [`Sequence::learn`]
    /// says later what they were.
    ///
    /// # Errors
    /// As [`Model::advance`].
    ///
    /// # Panics
    /// Where passes run on the host: a bug in the caller.
    pub fn draw(&self, steps: Vec<Step<'_>>, draws: &[Draw], before: Option<&mut Flight>) -> Result<Flight> {
        self.step_on_gpu(steps, |engine, feeds| engine.draw(feeds, draws, before))
    }

    fn step_on_gpu<T>(
        &self,
        mut steps: Vec<Step<'_>>,
        work: impl FnOnce(&mut Engine, &mut [Feed<'_>]) -> Result<T>,
    ) -> Result<T> {
        let v = self.config.vocab_size;
        for step in &steps {
            assert!(!step.new.is_empty(), "BUG: a sequence was extended by no token");
            if let Some(id) = step.new.iter().find(|id| **id as usize >= v && row_of(**id).is_none()) {
                candle_core::bail!("token id {id} is not below the vocabulary's size {v}");
            }
        }
        let done = self.ask_gpu(|engine| {
            let mut feeds = Vec::with_capacity(steps.len());
            for step in &mut steps {
                let Memory::Gpu(held) = &mut step.sequence.memory else {
                    panic!("BUG: a sequence of the host was extended on a device")
                };
                let held = held.get_or_insert_with(|| engine.sequence());
                feeds.push(Feed { held, new: step.new, logits: step.logits });
            }
            work(engine, &mut feeds)
        });
        let done = match done {
            Some(done) => done?,
            None => panic!("BUG: a model without a device"),
        };
        for step in &mut steps {
            step.sequence.ids.extend_from_slice(step.new);
        }
        Ok(done)
    }
}

/// Tables are there for all positions asked for: see `check_row`.
fn read(ropes: &RwLock<Vec<RopeTable>>) -> RwLockReadGuard<'_, Vec<RopeTable>> {
    ropes.read().unwrap_or_else(PoisonError::into_inner)
}

//! The decoder of a GGUF file: Qwen3, Qwen2 and Llama with quantized matrices, forward only.
//!
//! The products with quantized matrices are candle's, everything between them is the trainer's kernels. The readers of
//! `candle-transformers` are the reference in tests and not used here: they hold one conversation a model, and their
//! Llama leaves out `rope_freqs` (every Llama 3.1 and later), which would be silently wrong.
//!
//! Invariants: one sequence at a time, because candle's kernels for one row and for many differ in their rounding, so an
//! answer depends on its own conversation only; a tensor or setting that is not known is refused by name.

use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor, gguf_file::Content};
use candle_core::{Device, Module, Result, Tensor, bail};

use super::gguf::Metadata;
use crate::nn::kernel::{self, Cache, CachedPart, Kernels, Pool, Weight};
use crate::nn::{Heads, plain};

/// A matrix (out, in).
enum Matrix {
    /// float32, float16 and bfloat16 become float32: bits as in our own models.
    Float(Weight),
    Quantized(QMatMul),
}

impl Matrix {
    fn new(kernels: Kernels, tensor: &Arc<QTensor>) -> Result<Matrix> {
        Ok(match tensor.dtype() {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
                Matrix::Float(Weight::new(kernels, &tensor.dequantize(&tensor.device())?)?)
            }
            _ => Matrix::Quantized(QMatMul::from_arc(tensor.clone())?),
        })
    }

    /// x (n, in) -> (n, out)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Matrix::Float(w) => kernel::linear(x, w),
            Matrix::Quantized(w) => w.forward(x),
        }
    }
}

struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

struct Block {
    norm1: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Of q and of k, by head.
    head_norms: Option<(Tensor, Tensor)>,
    norm2: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What has been read of one conversation.
#[derive(Clone)]
pub struct Sequence {
    layers: Vec<Cache>,
    pub len: usize,
}

/// Weights of a GGUF file.
pub struct Quantized {
    kernels: Kernels,
    device: Device,
    embed: Arc<QTensor>,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Matrix,
    eps: f64,
    heads: Heads,
    /// Inverse frequencies of the rotary embedding, (d / 2).
    frequencies: Vec<f32>,
    /// The halves that are rotated together lie side by side, not half a head apart.
    interleaved: bool,
    pub positions: usize,
    pub vocabulary: usize,
}

struct Reader<'a, R> {
    content: &'a Content,
    file: &'a mut R,
    device: &'a Device,
    kernels: Kernels,
    used: BTreeSet<String>,
}

impl<R: Read + Seek> Reader<'_, R> {
    fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn quantized(&mut self, name: &str) -> Result<Arc<QTensor>> {
        if !self.has(name) {
            bail!("tensor `{name}` is missing");
        }
        self.used.insert(name.to_owned());
        Ok(Arc::new(self.content.tensor(self.file, name, self.device)?))
    }

    fn vector(&mut self, name: &str) -> Result<Tensor> {
        self.quantized(name)?.dequantize(self.device)
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        let weight = Matrix::new(self.kernels, &self.quantized(&format!("{name}.weight"))?)?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias)?) } else { None };
        Ok(Linear { weight, bias })
    }
}

impl Quantized {
    /// Reads the weights.
    pub fn read(m: &Metadata, content: &Content, file: &mut (impl Read + Seek), device: &Device) -> Result<Quantized> {
        let kernels = Kernels::of(device);
        let mut r = Reader { content, file, device, kernels, used: BTreeSet::new() };
        let embed = r.quantized("token_embd.weight")?;
        let (vocabulary, _) = embed.shape().dims2()?;
        let mut blocks = Vec::with_capacity(m.layers);
        for i in 0..m.layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            let (qn, kn) = (name("attn_q_norm.weight"), name("attn_k_norm.weight"));
            blocks.push(Block {
                norm1: r.vector(&name("attn_norm.weight"))?,
                q: r.linear(&name("attn_q"))?,
                k: r.linear(&name("attn_k"))?,
                v: r.linear(&name("attn_v"))?,
                o: r.linear(&name("attn_output"))?,
                head_norms: if m.head_norms { Some((r.vector(&qn)?, r.vector(&kn)?)) } else { None },
                norm2: r.vector(&name("ffn_norm.weight"))?,
                gate: r.linear(&name("ffn_gate"))?,
                up: r.linear(&name("ffn_up"))?,
                down: r.linear(&name("ffn_down"))?,
            });
        }
        let norm = r.vector("output_norm.weight")?;
        let head = if r.has("output.weight") {
            Matrix::new(kernels, &r.quantized("output.weight")?)?
        } else {
            Matrix::new(kernels, &embed)?
        };
        let d = m.head_dim;
        // rounded to float32 first, as transformers does
        let mut frequencies: Vec<f32> =
            (0..d / 2).map(|i| m.rope_theta.powf(-2.0 * i as f64 / d as f64) as f32).collect();
        if r.has("rope_freqs.weight") {
            let factors = r.vector("rope_freqs.weight")?.to_vec1::<f32>()?;
            if factors.len() != frequencies.len() {
                bail!("`rope_freqs.weight` has {} entries, expected {}", factors.len(), frequencies.len());
            }
            frequencies.iter_mut().zip(factors).for_each(|(f, by)| *f /= by);
        }
        if let Some(other) = content.tensor_infos.keys().filter(|name| !r.used.contains(*name)).min() {
            bail!("tensor `{other}` is not known of a `{}` model", m.architecture);
        }
        Ok(Quantized {
            kernels,
            device: device.clone(),
            embed,
            blocks,
            norm,
            head,
            eps: m.eps,
            heads: Heads { h: m.heads, hk: m.kv_heads, d, window: None },
            frequencies,
            interleaved: m.interleaved,
            positions: m.positions,
            vocabulary,
        })
    }

    pub fn sequence(&self) -> Sequence {
        let pool = Arc::new(Pool::default());
        Sequence { layers: vec![Cache::new(self.kernels, &pool); self.blocks.len()], len: 0 }
    }

    /// Rotates the heads of x (n, h d); a Llama file keeps the halves of a head interleaved, so they are sorted first.
    /// (All heads of q and k are sorted alike, which no product between them sees.)
    fn rotate(&self, x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let x = if self.interleaved {
            x.reshape((n, heads, width / heads / 2, 2))?.transpose(2, 3)?.contiguous()?.reshape((n, width))?
        } else {
            x.clone()
        };
        plain::rope(&x, heads, cos, sin)
    }

    /// Reads tokens and returns the logits (v) after the last.
    pub fn extend(&self, sequence: &mut Sequence, ids: &[u32]) -> Result<Vec<f32>> {
        let (kn, n) = (self.kernels, ids.len());
        let end = sequence.len + n;
        if end > self.positions {
            bail!("a sequence of {end} tokens, the model takes {}", self.positions);
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            bail!("token {id} is not in the vocabulary of {}", self.vocabulary);
        }
        let angles: Vec<f64> =
            (sequence.len..end).flat_map(|p| self.frequencies.iter().map(move |f| f64::from(p as f32 * f))).collect();
        let table = |f: fn(f64) -> f64| {
            let values = angles.iter().map(|a| f(*a) as f32).collect::<Vec<_>>();
            Tensor::from_vec(values, (n, 1, self.frequencies.len()), &self.device) // (n, 1, d / 2)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let Heads { h, hk, .. } = self.heads;
        let norm = |x: &Tensor, w: &Tensor| kernel::rms_norm(kn, x, w, self.eps).map(|(y, _)| y);
        let mut x = self.embed.embedding(&Tensor::new(ids, &self.device)?)?; // (n, hidden)
        for (b, cache) in self.blocks.iter().zip(&mut sequence.layers) {
            let a = norm(&x, &b.norm1)?;
            let (mut q, mut k, v) = (b.q.forward(&a)?, b.k.forward(&a)?, b.v.forward(&a)?);
            if let Some((qn, kn)) = &b.head_norms {
                (q, k) = (norm(&q, qn)?, norm(&k, kn)?);
            }
            let (q, k) = (self.rotate(&q, h, &cos, &sin)?, self.rotate(&k, hk, &cos, &sin)?);
            let attn =
                kernel::cached_attention(&q, &k, &v, vec![CachedPart { cache, rows: 0..n, queries: n }], self.heads)?;
            let mid = (x + b.o.forward(&attn)?)?;
            let a = norm(&mid, &b.norm2)?;
            let a = kernel::swiglu(kn, &b.gate.forward(&a)?, &b.up.forward(&a)?)?;
            x = (mid + b.down.forward(&a)?)?;
        }
        sequence.len = end;
        let last = norm(&x.narrow(0, n - 1, 1)?.contiguous()?, &self.norm)?;
        self.head.forward(&last)?.flatten_all()?.to_vec1()
    }
}

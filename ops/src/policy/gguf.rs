//! A GGUF file as a policy: its metadata, its tokenizer and template, and the sampling loop over its weights.
//!
//! 1. The header is read and what it asks for is checked.
//! 2. The tokenizer comes from a `tokenizer.json` beside the file, else from the header; so does the chat template.
//! 3. The weights are read.
//! 4. Tokens are drawn by the sampler's own `draw`, so that log-probabilities mean what they mean for our models.
//!
//! Invariant: an architecture, quantization, tokenizer or setting that is not honoured is refused by name.

use std::collections::HashMap;

use actloom_engine::op::{DeviceRequest, OpError};
use camino::Utf8Path;
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use super::Identity;
use super::local::{Done, Job, Local, Weights, held_to};
use super::quantized::{Quantized, Sequence};
use crate::infer::sampling::{Scratch, draw};
use crate::infer::{Choice, Watch};
use crate::model::{TOKENIZER_FILE, open_device};
use crate::text::{Template, Text};

/// Quantized weights that act.
pub type Gguf = Local<Quantized>;

/// What a file says about itself.
pub struct Metadata {
    pub architecture: String,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f64,
    pub rope_theta: f64,
    pub positions: usize,
    /// q and k are normed by head.
    pub head_norms: bool,
    /// Rotated pairs lie side by side.
    pub interleaved: bool,
}

/// The values of a header, read with the name of the key in errors.
struct Header<'a> {
    path: &'a Utf8Path,
    values: &'a HashMap<String, Value>,
}

impl Header<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, OpError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        Ok(Some(match value {
            Value::F32(x) => f64::from(*x),
            Value::F64(x) => *x,
            Value::I8(x) => f64::from(*x),
            Value::I16(x) => f64::from(*x),
            Value::I32(x) => f64::from(*x),
            Value::I64(x) => *x as f64,
            value => match value.to_u64() {
                Ok(x) => x as f64,
                Err(_) => return Err(self.wrong(key, "a number")),
            },
        }))
    }

    fn whole(&self, key: &str) -> Result<usize, OpError> {
        match self.number(key)? {
            Some(x) if x >= 1.0 && x.fract() == 0.0 => Ok(x as usize),
            Some(_) => Err(self.wrong(key, "a positive whole number")),
            None => Err(OpError::failed(format!("`{}` does not say `{key}`", self.path))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>, OpError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>, OpError> {
        Ok(self.number(key)?.map(|x| x as u32))
    }

    fn list(&self, key: &str) -> Result<&[Value], OpError> {
        match self.values.get(key) {
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(self.wrong(key, "a list")),
            None => Err(OpError::failed(format!("`{}` does not say `{key}`", self.path))),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, OpError> {
        let text = |v: &Value| match v {
            Value::String(text) => Ok(text.clone()),
            _ => Err(self.wrong(key, "a list of texts")),
        };
        self.list(key)?.iter().map(text).collect()
    }

    fn wrong(&self, key: &str, expected: &str) -> OpError {
        OpError::failed(format!("`{key}` of `{}` is not what it should be, expected {expected}", self.path))
    }

    fn metadata(&self) -> Result<Metadata, OpError> {
        let path = self.path;
        let architecture = self.text("general.architecture")?.unwrap_or("").to_owned();
        let (head_norms, interleaved) = match architecture.as_str() {
            "qwen3" => (true, false),
            "qwen2" => (false, false),
            "llama" => (false, true),
            other => {
                return Err(OpError::failed(format!(
                    "the architecture of `{path}` is `{other}`, expected `qwen3`, `qwen2` or `llama`"
                )));
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let plain = [
            ("expert_count", 0.0),
            ("attention.sliding_window", 0.0),
            ("rope.scaling.factor", 1.0),
            ("rope.scale_linear", 1.0),
        ];
        for (name, plain) in plain {
            if let Some(n) = self.number(&key(name))?
                && n != plain
            {
                return Err(OpError::failed(format!("`{}` = {n} of `{path}` is not supported", key(name))));
            }
        }
        if let Some(kind) = self.text(&key("rope.scaling.type"))?
            && kind != "none"
        {
            return Err(OpError::failed(format!(
                "`{}` = `{kind}` of `{path}` is not supported, expected none, or factors in `rope_freqs.weight`",
                key("rope.scaling.type")
            )));
        }
        let heads = self.whole(&key("attention.head_count"))?;
        let kv_heads = match self.number(&key("attention.head_count_kv"))? {
            Some(_) => self.whole(&key("attention.head_count_kv"))?,
            None => heads,
        };
        let head_dim = match self.number(&key("attention.key_length"))? {
            Some(_) => self.whole(&key("attention.key_length"))?,
            None => self.whole(&key("embedding_length"))? / heads,
        };
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) || head_dim > 256 {
            return Err(OpError::failed(format!(
                "`{path}` has {heads} heads of {head_dim} over {kv_heads}, expected even heads of at most 256 that share evenly"
            )));
        }
        for name in ["rope.dimension_count", "attention.value_length"] {
            if let Some(n) = self.number(&key(name))?
                && n as usize != head_dim
            {
                return Err(OpError::failed(format!(
                    "`{}` = {n} of `{path}` is not supported, expected the {head_dim} of a head",
                    key(name)
                )));
            }
        }
        let eps = key("attention.layer_norm_rms_epsilon");
        Ok(Metadata {
            layers: self.whole(&key("block_count"))?,
            heads,
            kv_heads,
            head_dim,
            eps: self.number(&eps)?.ok_or_else(|| OpError::failed(format!("`{path}` does not say `{eps}`")))?,
            // what the format's own reader takes where the key is missing
            rope_theta: self.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            positions: self.whole(&key("context_length"))?,
            head_norms,
            interleaved,
            architecture,
        })
    }

    /// The tokenizer that the header describes.
    fn tokenizer(&self) -> Result<Tokenizer, OpError> {
        let path = self.path;
        let beside = || format!("put the model's `{TOKENIZER_FILE}` beside the file");
        let of = |e: tokenizers::Error| OpError::failed(format!("the tokenizer of `{path}`: {e}"));
        let kind = self.text("tokenizer.ggml.model")?.unwrap_or("");
        if kind != "gpt2" {
            return Err(OpError::with_help(
                format!("the tokenizer of `{path}` is of the kind `{kind}`, expected `gpt2` (byte-level BPE)"),
                beside(),
            ));
        }
        let pre = self.text("tokenizer.ggml.pre")?.unwrap_or("");
        // pieces of the published tokenizers of these names
        let (digits, whole_words, normal) = match pre {
            "qwen2" => (r"\p{N}", false, true),
            "llama-bpe" | "llama3" | "llama-v3" => (r"\p{N}{1,3}", true, false),
            other => {
                return Err(OpError::with_help(
                    format!(
                        "the tokenizer of `{path}` splits text by the rule `{other}`, expected `qwen2` or `llama-bpe`"
                    ),
                    beside(),
                ));
            }
        };
        let pieces = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let merges = self.texts("tokenizer.ggml.merges")?;
        let merges = merges
            .iter()
            .map(|m| m.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.wrong("tokenizer.ggml.merges", "pairs with a space between them"))?;
        let vocabulary: Vocab = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i as u32)).collect();
        let bpe = BPE::builder().vocab_and_merges(vocabulary, merges);
        let mut tokenizer = Tokenizer::new(bpe.ignore_merges(whole_words).build().map_err(of)?);
        if normal {
            tokenizer.with_normalizer(Some(NFC)).map_err(of)?;
        }
        let split = Split::new(SplitPattern::Regex(pieces), SplitDelimiterBehavior::Isolated, false).map_err(of)?;
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
        ])));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, false)));
        // 3 is a control token, 4 one that a user defined: text, but never split
        for (token, kind) in tokens.iter().zip(self.list("tokenizer.ggml.token_type")?) {
            let added = match kind {
                Value::I32(3) | Value::U32(3) => AddedToken::from(token.clone(), true).normalized(false),
                Value::I32(4) | Value::U32(4) => AddedToken::from(token.clone(), false).normalized(false),
                _ => continue,
            };
            if added.special { tokenizer.add_special_tokens([added]) } else { tokenizer.add_tokens([added]) }
                .map_err(of)?;
        }
        Ok(tokenizer)
    }

    /// Ids that end an answer; the one that ends a turn comes first.
    fn ends(&self) -> Result<Vec<u32>, OpError> {
        let mut ids = Vec::new();
        for key in ["eot_token_id", "eos_token_id", "eom_token_id"] {
            ids.extend(self.id(&format!("tokenizer.ggml.{key}"))?);
        }
        let file = self.path.with_file_name("generation_config.json");
        if file.exists() {
            let json: serde_json::Value = serde_json::from_slice(&fs_err::read(&file)?)
                .map_err(|e| OpError::failed(format!("cannot read `{file}`: {e}")))?;
            match &json["eos_token_id"] {
                serde_json::Value::Array(list) => {
                    ids.extend(list.iter().filter_map(|id| id.as_u64()).map(|id| id as u32))
                }
                one => ids.extend(one.as_u64().map(|id| id as u32)),
            }
        }
        let mut seen = Vec::new();
        ids.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        if ids.is_empty() {
            return Err(OpError::failed(format!("`{}` does not say `tokenizer.ggml.eos_token_id`", self.path)));
        }
        Ok(ids)
    }

    /// Tokenizer, template and end tokens.
    fn side(&self) -> Result<Text, OpError> {
        let path = self.path;
        let beside = |name: &str| Some(path.with_file_name(name)).filter(|file| file.exists());
        let tokenizer = match beside(TOKENIZER_FILE) {
            Some(file) => Tokenizer::from_bytes(fs_err::read(&file)?)
                .map_err(|e| OpError::failed(format!("cannot read `{file}`: {e}")))?,
            None => self.tokenizer()?,
        };
        let source = match (beside("chat_template.jinja"), self.text("tokenizer.chat_template")?) {
            (Some(file), _) => fs_err::read_to_string(&file)?,
            (None, Some(source)) => source.to_owned(),
            (None, None) => {
                return Err(OpError::with_help(
                    format!("`{path}` has no chat template (`tokenizer.chat_template`)"),
                    "put the model's `chat_template.jinja` beside the file",
                ));
            }
        };
        let mut tokens = serde_json::Map::new();
        for (name, key) in [("bos_token", "tokenizer.ggml.bos_token_id"), ("eos_token", "tokenizer.ggml.eos_token_id")]
        {
            if let Some(token) = self.id(key)?.and_then(|id| tokenizer.id_to_token(id)) {
                tokens.insert(name.to_owned(), token.into());
            }
        }
        let template = Template::new(source, &format!("`{path}`"), tokens)?;
        Ok(Text::new(tokenizer, Some(template), &self.ends()?))
    }
}

/// Loads a GGUF file.
///
/// # Errors
/// Names what is missing or not supported.
pub(super) fn load(path: &Utf8Path, device: DeviceRequest) -> Result<Gguf, OpError> {
    let (device, why) = open_device(device)?;
    let (weights, text) = read(path, &device)?;
    if text.vocabulary() > weights.vocabulary {
        let (have, want) = (weights.vocabulary, text.vocabulary());
        return Err(OpError::failed(format!("the tokenizer of `{path}` has {want} entries, the model {have}")));
    }
    let served = path.file_name().unwrap_or("model").to_owned();
    let identity = Identity { make: "gguf", served: vec![served], listed: Vec::new(), at: why, reproducible: true };
    Ok(Local::new(weights, std::sync::Arc::new(text), identity))
}

/// Weights and text side of a file.
///
/// # Errors
/// As [`super::open`].
pub fn read(path: &Utf8Path, device: &Device) -> Result<(Quantized, Text), OpError> {
    let mut file = std::io::BufReader::new(fs_err::File::open(path)?);
    let content = Content::read(&mut file).map_err(|e| unreadable(path, &e))?;
    let header = Header { path, values: &content.metadata };
    let metadata = header.metadata()?;
    let text = header.side()?;
    let weights = Quantized::read(&metadata, &content, &mut file, device)
        .map_err(|e| OpError::failed(format!("cannot read the weights of `{path}`: {e}")))?;
    Ok((weights, text))
}

/// Kinds of quantization that candle does not know, by their number in the format.
const UNKNOWN: [(&str, &str); 16] = [
    ("16", "IQ2_XXS"),
    ("17", "IQ2_XS"),
    ("18", "IQ3_XXS"),
    ("19", "IQ1_S"),
    ("20", "IQ4_NL"),
    ("21", "IQ3_S"),
    ("22", "IQ2_S"),
    ("23", "IQ4_XS"),
    ("24", "I8"),
    ("25", "I16"),
    ("26", "I32"),
    ("28", "F64"),
    ("29", "IQ1_M"),
    ("34", "TQ1_0"),
    ("35", "TQ2_0"),
    ("39", "MXFP4"),
];

fn unreadable(path: &Utf8Path, error: &candle_core::Error) -> OpError {
    let said = error.to_string();
    let number = said.lines().next().and_then(|line| line.split("unknown dtype for tensor ").nth(1));
    if let Some(number) = number.map(str::trim) {
        let name = UNKNOWN.iter().find(|(n, _)| *n == number).map_or(number, |(_, name)| name);
        return OpError::with_help(
            format!("`{path}` holds a tensor quantized as `{name}`, expected Q4_0 to Q8_0, Q2_K to Q8_K, or floats"),
            "take a file such as `Q4_K_M` or `Q8_0` of the same model",
        );
    }
    OpError::failed(format!("`{path}` is no GGUF file that can be read: {}", said.lines().next().unwrap_or_default()))
}

fn failed(error: candle_core::Error) -> OpError {
    OpError::failed(format!("quantized weights: {error}"))
}

impl Weights for Quantized {
    type Sequence = Sequence;

    fn sequence(&self) -> Sequence {
        Quantized::sequence(self)
    }

    fn positions(&self) -> usize {
        self.positions
    }

    /// One: nothing is gained by more, and each conversation holds its keys and values.
    fn width(&self) -> usize {
        1
    }

    fn together(&self) -> usize {
        1
    }

    fn shares(&self) -> bool {
        false
    }

    fn read(&self, sequence: &mut Sequence, ids: &[u32]) -> Result<(), OpError> {
        self.extend(sequence, ids).map_err(failed)?;
        Ok(())
    }

    fn complete(
        &self,
        text: &Text,
        jobs: Vec<Job<'_, Sequence>>,
        stopping: &dyn Fn() -> bool,
    ) -> Result<Vec<Done<Sequence>>, OpError> {
        let mut all = Vec::with_capacity(jobs.len());
        let mut scratch = Scratch::default();
        for Job { mut sequence, mut feed, allowed, sampling, mut rng } in jobs {
            sampling.check()?;
            let choice = held_to(allowed, text)?;
            let mut held = choice.as_ref().map(Choice::start);
            let (mut ids, mut logps, mut open) = (Vec::new(), Vec::new(), Vec::new());
            let (mut watch, mut said) = (Watch::default(), None);
            while ids.len() < sampling.max_tokens && (ids.is_empty() || sequence.len + 1 < self.positions) {
                if stopping() {
                    return Err(OpError::Interrupted);
                }
                let logits = self.extend(&mut sequence, &feed).map_err(failed)?;
                if let (Some(choice), Some(held)) = (&choice, &held) {
                    choice.next(held, &mut open);
                }
                let drawn = draw(&logits, sampling, choice.is_some().then_some(&open), &mut rng, &mut scratch);
                ids.push(drawn.id);
                logps.push(drawn.logp);
                if let (Some(choice), Some(held)) = (&choice, &mut held) {
                    choice.say(held, drawn.id);
                }
                if text.eos.contains(&drawn.id) || sampling.stop_ids.contains(&drawn.id) {
                    said = Some(text.decode(&ids[..ids.len() - 1])?);
                } else if !sampling.stop.is_empty() {
                    said = watch.look(&ids, &sampling.stop, &|ids| text.decode(ids))?;
                }
                if said.is_some() {
                    break;
                }
                feed = vec![drawn.id];
            }
            let ended = said.is_some();
            let text = match said {
                Some(said) => said,
                None => text.decode(&ids)?,
            };
            all.push(Done { sequence, ids, logps, text, ended });
        }
        Ok(all)
    }
}

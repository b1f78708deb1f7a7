//! A model's tokenizer and chat template, loaded from its folder; and the training of a small byte-level BPE.
//!
//! Invariant: the ids of a conversation are made once, turn by turn, and a template whose turns are not a prefix of one
//! another is refused.

use std::collections::HashMap;
use std::sync::Mutex;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::Serialize;
use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::template::Template;
use crate::model::TOKENIZER_FILE;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    pub fn system(content: impl Into<String>) -> Self {
        Message { role: Role::System, content: content.into() }
    }

    pub fn user(content: impl Into<String>) -> Self {
        Message { role: Role::User, content: content.into() }
    }

    pub fn assistant(content: impl Into<String>) -> Self {
        Message { role: Role::Assistant, content: content.into() }
    }
}

/// Tokenizer and chat template of one model.
pub struct Text {
    tokenizer: Tokenizer,
    template: Option<Template>,
    /// Each turn renders to the same text wherever it stands, so turns can be rendered alone.
    local: bool,
    /// Any of these ends a turn; the first is the one that the template writes, where it writes one.
    pub eos: Vec<u32>,
    /// Ids of texts seen before: an environment says the same things over and over.
    seen: Mutex<HashMap<String, Vec<u32>>>,
}

fn tokenizer_error(error: tokenizers::Error) -> OpError {
    OpError::failed(format!("tokenizer: {error}"))
}

/// The end ids in `generation_config.json`, if it has any.
fn end_ids(folder: &Utf8Path) -> Result<Option<Vec<u32>>, OpError> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let json: serde_json::Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    let found = &json["eos_token_id"];
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match found {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::Array(several) => several.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    match ids {
        Some(ids) => Ok(Some(ids)),
        None => Err(OpError::failed(format!("`eos_token_id` in `{path}` is `{found}`, expected token ids"))),
    }
}

impl Text {
    /// Loads `tokenizer.json` and the chat template. End ids are those of `generation_config.json`, else `eos`, which
    /// the model's config gave; and the template's own, without which no answer would end.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub fn load(folder: &Utf8Path, eos: &[u32]) -> Result<Text, OpError> {
        let text = Text::load_plain(folder, eos)?;
        if !text.has_template() {
            return Err(OpError::failed(format!("`{folder}` has no chat template")));
        }
        Ok(text)
    }

    /// As [`Text::load`], but a folder without a chat template will do.
    ///
    /// # Errors
    /// As [`Text::load`].
    pub fn load_plain(folder: &Utf8Path, eos: &[u32]) -> Result<Text, OpError> {
        let path = folder.join(TOKENIZER_FILE);
        let bytes = fs_err::read(&path)?;
        let tokenizer =
            Tokenizer::from_bytes(bytes).map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
        let template = Template::load(folder)?;
        Ok(Text::new(tokenizer, template, &end_ids(folder)?.unwrap_or_else(|| eos.to_vec())))
    }

    /// A text side made of its parts. The token that the template writes after an answer ends it, too.
    pub fn new(tokenizer: Tokenizer, template: Option<Template>, eos: &[u32]) -> Text {
        let mut text = Text { tokenizer, template, local: false, eos: Vec::new(), seen: Mutex::new(HashMap::new()) };
        text.try_out(eos);
        text
    }

    /// Shows every rendering these variables of the template, as `enable_thinking`.
    ///
    /// # Errors
    /// A variable that the template does not have.
    pub fn set(&mut self, variables: &Map<String, Value>) -> Result<(), OpError> {
        if variables.is_empty() {
            return Ok(());
        }
        match &mut self.template {
            Some(template) => template.set(variables)?,
            None => return Err(OpError::failed("the model has no chat template")),
        }
        let eos = std::mem::take(&mut self.eos);
        self.try_out(&eos);
        Ok(())
    }

    /// What kind of template it is, and which token it ends an answer with.
    fn try_out(&mut self, eos: &[u32]) {
        // whole conversations are rendered until it is known to be a sum of turns
        self.local = false;
        self.local = self.has_template() && self.is_local();
        self.eos.extend(self.closing());
        for id in eos {
            if !self.eos.contains(id) {
                self.eos.push(*id);
            }
        }
    }

    /// Whether conversations can be rendered.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    fn template(&self) -> Result<&Template, OpError> {
        self.template.as_ref().ok_or_else(|| OpError::failed("the model has no chat template"))
    }

    /// The special token that the template writes after an answer, if it writes one.
    fn closing(&self) -> Option<u32> {
        let turns = [Message::user("a"), Message::assistant("b")];
        let open = self.render(&turns[..1], true).ok()?;
        let whole = self.render(&turns, false).ok()?;
        let rest = whole.strip_prefix(&open).and_then(|rest| rest.strip_prefix('b')).map(str::to_owned);
        let id = *self.encode(&rest.or_else(|| self.after_answer("c").ok())?).ok()?.first()?;
        self.tokenizer.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|_| id)
    }

    /// Tries the template on conversations of a few turns: is a whole the sum of its turns? One of them reasons, for
    /// some templates forget the reasoning of earlier turns.
    fn is_local(&self) -> bool {
        let system = Message { role: Role::System, content: "s".to_owned() };
        let reasoned = format!("{}\nx\n{}\n\nc", super::THINK_OPEN, super::THINK_CLOSE);
        let (first, answer) = (Message::user("a b"), Message::assistant(reasoned));
        let probe = [system, first, answer, Message::user(" d\n"), Message::assistant("e.")];
        let one = |m: &Message| self.render(std::slice::from_ref(m), false).ok();
        (1..=probe.len()).all(|n| {
            let turns: Option<String> = probe[..n].iter().map(one).collect();
            let prompt = self.render(&[], true).ok();
            turns.is_some()
                && turns == self.render(&probe[..n], false).ok()
                && turns.zip(prompt).map(|(t, p)| t + &p) == self.render(&probe[..n], true).ok()
        })
    }

    /// Token ids of a text, nothing added.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, OpError> {
        const REMEMBERED: usize = 1 << 16;
        if let Ok(seen) = self.seen.lock()
            && let Some(ids) = seen.get(text)
        {
            return Ok(ids.clone());
        }
        let ids = self.tokenizer.encode(text, false).map_err(tokenizer_error)?.get_ids().to_vec();
        if let Ok(mut seen) = self.seen.lock() {
            if seen.len() >= REMEMBERED {
                seen.clear();
            }
            seen.insert(text.to_owned(), ids.clone());
        }
        Ok(ids)
    }

    /// The text of token ids. Special tokens stay in it, so that none can hide in an answer.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn decode(&self, ids: &[u32]) -> Result<String, OpError> {
        self.tokenizer.decode(ids, false).map_err(tokenizer_error)
    }

    /// Size of the vocabulary, added tokens counted.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// A conversation as text.
    ///
    /// # Errors
    /// The template's.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, OpError> {
        self.template()?.render(messages, add_generation_prompt)
    }

    /// As [`Template::render_with`].
    ///
    /// # Errors
    /// The template's.
    pub fn render_with(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<String, OpError> {
        self.template()?.render_with(messages, add_generation_prompt, variables)
    }

    /// What stands between an answer and the opening of the next, where a user says `content` between them; the end of
    /// the answer included. It is read off short conversations, so it also serves a template that renders the last answer
    /// otherwise than earlier ones.
    ///
    /// # Errors
    /// When it depends on what was said before.
    pub fn after_answer(&self, content: &str) -> Result<String, OpError> {
        let after = |ask: &str, say: &str| -> Result<Option<String>, OpError> {
            let turns = [Message::user(ask), Message::assistant(say), Message::user(content)];
            let (open, whole) = (self.render(&turns[..1], true)?, self.render(&turns, true)?);
            Ok(whole.strip_prefix(&open).and_then(|rest| rest.strip_prefix(say)).map(str::to_owned))
        };
        // a template that opens an answer otherwise than it repeats it, as with reasoning switched off
        let repeated = |say: &str| -> Result<Option<String>, OpError> {
            let turns = [Message::user("a"), Message::assistant(say), Message::user(content)];
            let (asked, open) = (self.render(&turns[..1], false)?, self.render(&turns[..1], true)?);
            let whole = self.render(&turns, true)?;
            let (Some(opening), Some(rest)) = (open.strip_prefix(&asked), whole.strip_prefix(&asked)) else {
                return Ok(None);
            };
            let split = rest.split_once(say).filter(|(before, _)| opening.starts_with(before));
            Ok(split.map(|(_, after)| after.to_owned()))
        };
        let found = match (after("a", "b")?, after("c d", "e f")?) {
            (None, None) => (repeated("\u{3b1}7\u{3b2}")?, repeated("\u{3b3}8\u{3b4}")?),
            found => found,
        };
        match found {
            (Some(one), Some(other)) if one == other => Ok(one),
            _ => Err(OpError::failed(
                "the chat template rewrites earlier turns, so a conversation cannot be extended token by token",
            )),
        }
    }

    /// What `messages[from..]` add to the text of `messages[..from]`, which must be its beginning.
    ///
    /// # Errors
    /// When the template rewrites earlier turns, so that no mask could be exact.
    pub fn render_from(&self, messages: &[Message], from: usize, prompt: bool) -> Result<String, OpError> {
        if self.local {
            return self.render(&messages[from..], prompt);
        }
        let whole = self.render(messages, prompt)?;
        let before = if from == 0 { String::new() } else { self.render(&messages[..from], false)? };
        match whole.strip_prefix(&before) {
            Some(rest) => Ok(rest.to_owned()),
            None => Err(OpError::failed(
                "the chat template rewrites earlier turns, so a conversation cannot be extended token by token",
            )),
        }
    }
}

/// The template of models made here: one marker a turn, and `<|end|>` after it.
pub const TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}";
/// Special tokens of models made here; the first ends a turn, the second pads.
const SPECIAL: [&str; 5] = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"];
/// Added tokens that are text: they stay when special tokens are left out.
const MARKS: [&str; 2] = [super::THINK_OPEN, super::THINK_CLOSE];
/// What the BPE may merge: things with a number (`mug 1`) stay whole, and so do words of a line's end without numbers
/// (the task); what stands between two things is one piece.
const PIECES: &str = r"\n|[a-z]+ \d+| ?[A-Za-z]+(?=[^0-9\n]*(?:\n|$))";

/// Trains a byte-level BPE of at most `size` entries on `texts` and writes the tokenizer's files into `folder`.
///
/// # Errors
/// The tokenizer's and the file system's.
pub fn train_tokenizer(texts: &[String], size: usize, folder: &Utf8Path) -> Result<(), OpError> {
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(tokenizer_error)
    };
    let pieces = Sequence::new(vec![
        PreTokenizerWrapper::Split(split(PIECES)?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
    ]);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(pieces)))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(ByteLevel::new(false, true, false)))
        .build()
        .map_err(tokenizer_error)?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(size - SPECIAL.len() - MARKS.len())
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts.iter()).map_err(tokenizer_error)?;
    let tokenizer: Tokenizer = tokenizer.into();
    let mut tokenizer = tokenizer;
    let special: Vec<AddedToken> = SPECIAL.iter().map(|t| AddedToken::from(*t, true)).collect();
    let marks: Vec<AddedToken> = MARKS.iter().map(|t| AddedToken::from(*t, false)).collect();
    tokenizer.add_special_tokens(special).map_err(tokenizer_error)?;
    tokenizer.add_tokens(marks).map_err(tokenizer_error)?;
    fs_err::create_dir_all(folder)?;
    let json = tokenizer.to_string(true).map_err(tokenizer_error)?;
    fs_err::write(folder.join(TOKENIZER_FILE), json)?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[1],
        "clean_up_tokenization_spaces": false,
        "chat_template": TEMPLATE,
    });
    fs_err::write(folder.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    fs_err::write(folder.join("chat_template.jinja"), TEMPLATE)?;
    Ok(())
}

impl Text {
    /// Id of one of the tokens above.
    ///
    /// # Errors
    /// When the tokenizer does not have it.
    pub fn id(&self, token: &str) -> Result<u32, OpError> {
        self.tokenizer
            .token_to_id(token)
            .ok_or_else(|| OpError::failed(format!("the tokenizer has no token `{token}`")))
    }
}

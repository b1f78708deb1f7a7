//! Text: tokenizer, chat template, and the prompts that states and questions become.

mod dialogue;
pub mod prompt;
mod template;
mod tokenizer;

pub use dialogue::{Dialogue, THINK_CLOSE, THINK_OPEN, critic_question, said, split_reasoning, which};
pub use prompt::Prompt;
pub use template::Template;
pub use tokenizer::{Message, Role, Text, train_tokenizer};

//! `actloom model generate`: texts for a prompt.
//!
//! Invariants: stdout gets the text and nothing else, a single text as it comes; the prompt is taken as it is, but for
//! the newline that ends a file.

use std::io::{IsTerminal, Read};

use actloom_ops::tool::generate::{Generated, Prompt, Sampling, generate, read_messages};

use super::model::source;
use crate::args::{self, Generate, Global};
use crate::exit::{Exit, Failure};
use crate::terminal::{out_json, out_part, say};

/// The library's view of the flags.
pub fn sampling(args: &args::Sampling, max_tokens: u32) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_k: args.top_k as usize,
        top_p: args.top_p,
        min_p: args.min_p,
        max_tokens: max_tokens as usize,
        stop: args.stop.clone(),
        seed: args.seed,
    }
}

pub fn run(args: &Generate, global: &Global) -> Result<Exit, Failure> {
    let prompt = prompt(args)?;
    let sampling = sampling(&args.sampling, args.max_tokens);
    let samples = args.samples as usize;
    let mut ended = true;
    let mut show = |piece: &str| {
        if !global.json && !piece.is_empty() {
            out_part(piece);
            ended = piece.ends_with('\n');
        }
    };
    let Generated { prompt_ids, templated, samples } =
        generate(&source(&args.source), &prompt, &sampling, samples, &mut show)?;
    if !templated && matches!(prompt, Prompt::Message(_)) {
        say("the model has no chat template: the text was continued as it is");
    }
    if global.json {
        out_json(&Generated { prompt_ids, templated, samples });
    } else if let [_] = samples.as_slice() {
        if !ended {
            out_part("\n");
        }
    } else {
        let texts: Vec<String> = samples.into_iter().map(|sample| sample.text).collect();
        out_part(&(texts.join("\n---\n") + "\n"));
    }
    Ok(Exit::Done)
}

fn prompt(args: &Generate) -> Result<Prompt, Failure> {
    let text = match &args.prompt {
        args::Prompt { chat: Some(path), .. } => return Ok(Prompt::Chat(read_messages(path)?)),
        args::Prompt { prompt: Some(text), .. } => text.clone(),
        args::Prompt { prompt_file: Some(path), .. } => without_newline(fs_err::read_to_string(path)?),
        _ => {
            if std::io::stdin().is_terminal() {
                say("the prompt, then Ctrl-D:");
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            without_newline(text)
        }
    };
    Ok(if args.raw { Prompt::Raw(text) } else { Prompt::Message(text) })
}

fn without_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

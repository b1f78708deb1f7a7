//! How the program ends: the documented exit codes, and failures with what they print.
//!
//! Invariant: the numbers are a promise to scripts; they are listed here and nowhere else.

use std::process::ExitCode;

use actloom_engine::cache::StoreError;
use actloom_engine::diagnostic::Diagnostics;
use actloom_engine::op::OpError;
use actloom_engine::plan::PlanError;
use actloom_engine::run::RunError;
use owo_colors::OwoColorize;
use serde_json::json;

use crate::render;
use crate::terminal::{out_json, say};

/// Shown at the end of `--help`.
pub const TABLE: &str = "\
Exit codes:
  0    done
  1    a step failed; everything that does not depend on it was done
  2    the command line is wrong
  3    the recipe is wrong
  4    the store, the file system or the machine is in the way
  5    `cache verify` found problems
  130  interrupted; the same command continues";

/// See [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    StepFailed = 1,
    Usage = 2,
    Recipe = 3,
    World = 4,
    Unsound = 5,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a verb did not do its work.
pub enum Failure {
    Plain { exit: Exit, message: String, help: Option<String> },
    Recipe(Box<Diagnostics>),
}

impl Failure {
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure::Plain { exit: Exit::Usage, message: message.into(), help: Some(help.into()) }
    }

    pub fn world(message: impl Into<String>) -> Failure {
        Failure::Plain { exit: Exit::World, message: message.into(), help: None }
    }

    pub fn exit(&self) -> Exit {
        match self {
            Failure::Plain { exit, .. } => *exit,
            Failure::Recipe(_) => Exit::Recipe,
        }
    }

    /// On stderr for people; on stdout too, as one JSON object, for programs.
    pub fn tell(&self, as_json: bool) {
        match self {
            Failure::Plain { message, help, .. } => {
                if as_json {
                    let help: Vec<&String> = help.iter().collect();
                    out_json(&json!({"errors": [{"message": message, "help": help}]}));
                }
                say(&format!("{}: {message}", "error".red().bold()));
                if let Some(help) = help {
                    say(&format!("  {}: {help}", "help".cyan().bold()));
                }
            }
            Failure::Recipe(diagnostics) => {
                if as_json {
                    out_json(&json!({"errors": diagnostics.located()}));
                }
                say(render::render(diagnostics, true).trim_end_matches('\n'));
            }
        }
    }
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Self {
        Failure::Recipe(Box::new(diagnostics))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let help = match &error {
            StoreError::Record { .. } | StoreError::Corrupt { .. } | StoreError::Missing { .. } => Some(
                "`actloom cache verify --repair` removes what is damaged; the next run that needs it makes it again"
                    .to_owned(),
            ),
            StoreError::Layout { .. } => Some("choose another folder with `--store` or ACTLOOM_STORE".to_owned()),
            _ => None,
        };
        Failure::Plain { exit: Exit::World, message: error.to_string(), help }
    }
}

impl From<OpError> for Failure {
    fn from(error: OpError) -> Self {
        let exit = if matches!(error, OpError::Interrupted) { Exit::Interrupted } else { Exit::World };
        match error {
            OpError::Failed { message, help } => Failure::Plain { exit, message, help },
            error => Failure::Plain { exit, message: error.to_string(), help: None },
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::world(error.to_string())
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let message = error.to_string();
        match error {
            PlanError::UnknownStep { nearest, .. } => {
                let help = nearest.map(|name| format!("a step has the name `{name}`"));
                Failure::Plain { exit: Exit::Usage, message, help }
            }
            PlanError::UnknownVariant { help, .. } => Failure::Plain { exit: Exit::Usage, message, help: Some(help) },
            PlanError::Key { .. } => Failure::Plain { exit: Exit::Recipe, message, help: None },
            PlanError::Store(error) => error.into(),
            PlanError::Journal(_) => Failure::world(message),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let help = match &error {
            RunError::NoGpu { .. } => {
                Some("`--gpus N` says how many there are; `--device cpu` runs everything without".to_owned())
            }
            RunError::Journal(_) => None,
        };
        Failure::Plain { exit: Exit::World, message: error.to_string(), help }
    }
}

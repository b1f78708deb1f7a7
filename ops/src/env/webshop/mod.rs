//! WebShop: an online store, natively.

use actloom_engine::op::Problem;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnvError, Suite};

/// Splits that there are.
pub const SPLITS: [&str; 3] = ["train", "eval", "test"];

/// How the environment is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

impl Settings {
    /// What cannot be.
    pub fn check(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// Opens the environment.
///
/// # Errors
/// Names what is missing.
pub fn open(_settings: &Settings, _data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
    Err(EnvError::unusable("the environment `webshop` is not built yet"))
}

//! What can go wrong with an environment.

use actloom_engine::op::OpError;

/// An environment that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A call took longer than it may.
    #[error("the environment `{env}` did not answer `{call}` within {seconds} s")]
    Deadline { env: String, call: String, seconds: f64 },
    /// The process behind it is gone.
    #[error("the environment `{env}` ended during `{call}`: {why}")]
    Ended { env: String, call: String, why: String },
    /// It said something that its protocol does not have.
    #[error("the environment `{env}` answered `{call}` with {found}, expected {expected}")]
    Protocol { env: String, call: String, found: String, expected: String },
    /// Data, settings or software that it cannot be made of.
    #[error("{message}")]
    Unusable { message: String, help: Option<String> },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl EnvError {
    pub fn unusable(message: impl Into<String>) -> EnvError {
        EnvError::Unusable { message: message.into(), help: None }
    }

    pub fn with_help(message: impl Into<String>, help: impl Into<String>) -> EnvError {
        EnvError::Unusable { message: message.into(), help: Some(help.into()) }
    }
}

impl From<EnvError> for OpError {
    fn from(error: EnvError) -> OpError {
        match error {
            EnvError::Unusable { message, help } => OpError::Failed { message, help },
            EnvError::Io(error) => OpError::Io(error),
            EnvError::Deadline { .. } => {
                OpError::with_help(error.to_string(), "raise `deadline` of the world, or find out what it waits for")
            }
            other => OpError::failed(other.to_string()),
        }
    }
}

//! Logs on stderr and traces in a file.
//!
//! Invariants: without `--log` only warnings are shown, and without `--trace` nothing is recorded; a trace holds this
//! program's own spans, since some libraries open one for every word they look at.

use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::args::Global;
use crate::exit::Failure;

/// Starts both; the trace is complete when the guard is dropped.
pub fn start(global: &Global) -> Result<Option<FlushGuard>, Failure> {
    let filter = EnvFilter::try_new(global.log.as_deref().unwrap_or("warn")).map_err(|error| {
        Failure::usage(
            format!("`{}` is no log filter: {error}", global.log.as_deref().unwrap_or("")),
            "try `--log debug` or `--log actloom_engine=trace`",
        )
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(anstream::stderr as fn() -> _)
        .with_target(true)
        .without_time()
        .with_filter(filter);
    let (chrome, guard) = match &global.trace {
        None => (None, None),
        Some(path) => {
            let file = fs_err::File::create(path)?;
            let (layer, guard) = ChromeLayerBuilder::new().writer(file).include_args(true).build();
            (Some(layer.with_filter(filter_fn(|of| of.target().starts_with("actloom")))), Some(guard))
        }
    };
    tracing_subscriber::registry().with(chrome).with(lines).init();
    Ok(guard)
}

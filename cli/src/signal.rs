//! Signals become the wish to stop.
//!
//! Invariants: the first SIGINT, SIGTERM or SIGUSR1 lets every op leave a checkpoint; a second SIGINT or SIGTERM ends the
//! process at once, which costs work and never the store.

use actloom_engine::stop::Stop;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::exit::Exit;

/// Listens from now on; `say` tells the person what happens.
pub fn listen(stop: &Stop, say: impl Fn(&str) + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if stop.is_set() && signal != SIGUSR1 {
                signal_hook::low_level::exit(Exit::Interrupted as i32);
            }
            if !stop.is_set() {
                stop.set();
                say("stopping: running steps leave a checkpoint; press Ctrl-C again to end at once");
            }
        }
    })?;
    Ok(())
}

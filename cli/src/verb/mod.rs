//! One file a verb; each turns its arguments into text and an exit code.

mod cache;
mod chat;
mod device;
mod env;
mod export;
mod graph;
mod model;
mod model_generate;
mod model_info;
mod new;
mod ops;
mod ops_page;
mod plan;
mod play;
mod run;
mod runs;
mod schema;
mod show;
mod why;

use crate::args::{Args, Verb};
use crate::exit::{Exit, Failure};

/// Does what the command line says.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let global = &args.global;
    match &args.verb {
        Verb::Run(verb) => run::run(verb, global),
        Verb::Plan(verb) => plan::run(verb, global),
        Verb::Why(verb) => why::run(verb, global),
        Verb::Graph(verb) => graph::run(verb, global),
        Verb::Ops(verb) => ops::run(verb, global),
        Verb::Schema => schema::run(),
        Verb::Show(verb) => show::run(verb, global),
        Verb::Export(verb) => export::run(verb, global),
        Verb::Runs(verb) => runs::run(verb, global),
        Verb::Cache(verb) => cache::run(verb, global),
        Verb::New(verb) => new::run(verb, global),
        Verb::Model(verb) => model::run(verb, global),
        Verb::Chat(verb) => chat::run(verb),
        Verb::Play(verb) => play::run(verb, global),
        Verb::Env(verb) => env::run(verb, global),
        Verb::Device(verb) => device::run(verb, global),
    }
}

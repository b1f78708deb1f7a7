//! Every op, by name.

use actloom_engine::op::Registry;

use crate::op;

/// The ops of this program.
pub fn registry() -> Registry {
    Registry::new()
        .with(op::model::NewModel)
        .with(op::endpoint::NewEndpoint)
        .with(op::catalogue::Catalogue)
        .with(op::demos::Demos)
        .with(op::import::Import)
        .with(op::pretrain::Pretrain)
        .with(op::sft::Sft)
        .with(op::alternatives::Alternatives)
        .with(op::pairs::Pairs)
        .with(op::reflect::Reflect)
        .with(op::worldmodel::WorldModel)
        .with(op::dpo::Dpo)
        .with(op::act::Act)
        .with(op::rl::Rl)
        .with(op::rollout::Rollout)
        .with(op::critic::Critic)
        .with(op::accuracy::Accuracy)
        .with(op::eval::Eval)
        .with(op::math::Math)
        .with(op::gpqa::Gpqa)
        .with(op::table::Tabulate)
        .with(op::report::Report)
}

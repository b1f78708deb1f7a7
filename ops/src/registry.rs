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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_input_has_the_name_of_a_parameter_and_no_step_key_is_taken() {
        let given = [
            json!({}),
            json!({ "split": "train", "tasks": 1 }),
            json!({ "episodes": { "split": "train", "tasks": 1 } }),
            json!({ "rows": "method" }),
            json!({ "count": 1, "split": "train" }),
        ];
        let mut seen = 0;
        for op in registry().iter() {
            let schema = op.schema();
            let Some(known) = schema["properties"].as_object() else { continue };
            for params in given.iter().filter_map(|params| op.canonical(params).ok()) {
                for port in op.ports(&params).inputs {
                    assert!(!known.contains_key(port.name), "`{}` of `{}` is both", port.name, op.name());
                    let taken = ["op", "about", "each", "seed", "pin_device", "resources"];
                    assert!(!taken.contains(&port.name), "`{}` of `{}`", port.name, op.name());
                    seen += 1;
                }
            }
        }
        assert!(seen > 30, "only {seen} inputs were looked at");
    }
}

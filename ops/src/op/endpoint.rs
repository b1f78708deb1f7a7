//! `endpoint`: names a server that acts, for steps that play and sample.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem};

use crate::policy::{POLICY_FILE_VERSION, PolicyFile, Settings};

/// The op.
pub struct NewEndpoint;

impl Op for NewEndpoint {
    type Params = Settings;
    const NAME: &'static str = "endpoint";
    const VERSION: u32 = 1;
    const ABOUT: &'static str =
        "names an OpenAI-compatible server (vLLM, SGLang) that acts; it is asked only when it is used";

    fn ports(&self, _: &Settings) -> Ports {
        Ports::new().output("policy", Kind::POLICY, "who acts: it can be sampled, not trained")
    }

    fn check(&self, p: &Settings) -> Vec<Problem> {
        p.problems().into_iter().map(|(field, what, help)| Problem::new(&[field], what).help(help)).collect()
    }

    fn run(&self, p: &Settings, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let file = PolicyFile { v: POLICY_FILE_VERSION, endpoint: p.clone() };
        let mut json = serde_json::to_string_pretty(&file).map_err(std::io::Error::from)?;
        json.push('\n');
        fs_err::write(ctx.output("policy"), json)?;
        Ok(())
    }
}

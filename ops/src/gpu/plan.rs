//! How much memory an engine needs: found by doing the work of the largest row and the largest step without a device.
//!
//! Invariants: what is planned is what is used, for the same code asks for it. How many tokens pages have room for, on which depends
//! what is sampled side by side and so the last bits, is a function of the device and the model; where other programs leave too
//! little for that, the plan says so.

use candle_core::{Result, bail};

use super::driver::{Driver, Dry};
use super::kernels::Dropped;
use super::memory::Arena;
use super::pages::PAGE;
use super::parts::{Parts, Purpose, Shape, windows};
use super::sample::{Cache, Decoding, Room, bucket, page_bytes};
use super::tape::Keep;
use super::update::Update;
use super::work::Work;
use crate::model::Target;
use crate::nn::Packing;
use crate::train::optimizer::Precision;

/// Bytes that an engine reserves, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is kept of a forward.
    pub keep: Keep,
    /// Something is trained.
    pub trains: bool,
    /// Weights, masters, gradients, moments, tables.
    pub parameters: usize,
    /// Passes over packed rows: what is kept of a forward, what is lent, logits.
    pub passes: usize,
    /// Steps of sampling, without what is in pages.
    pub steps: usize,
    /// Pages of keys and values.
    pub cache: usize,
    /// Tokens that fit into them.
    pub tokens: usize,
    /// As many would fit into them if nothing else used the device, where that is another number.
    pub alone: Option<usize>,
}

/// Share of the memory beside parameters that pages and steps take where they may take all there is.
const SHARE: f64 = 0.6;
/// Tokens of a row that is short.
const SHORT: usize = 512;
/// A device's memory over what its driver needs of it, generously.
const DRIVERS: usize = 16;

impl Plan {
    /// The plan that fits into so much free memory and keeps the most of a forward.
    ///
    /// # Errors
    /// When nothing fits, with what is missing and what would fit; sizes that the kernels do not take.
    pub fn that_fits(device: &dyn Driver, shape: &Shape, purpose: &Purpose, free: usize) -> Result<Plan> {
        let all = device.free()?.1;
        let alone = Plan::best(device, shape, purpose, all - all / DRIVERS)?.ok();
        // libraries load kernels when they are first called, which takes some too
        let usable = free - (free / 64).min(1 << 30);
        if let Some(plan) = alone.filter(|plan| plan.bytes() <= usable) {
            return Ok(plan);
        }
        let plan = match Plan::best(device, shape, purpose, usable)? {
            Ok(plan) => plan,
            Err(plan) => {
                let (name, advice) = (device.name(), Plan::advice(shape, purpose, usable));
                bail!("there is no room for {plan}: {name} has {} of {} free{advice}", gib(free), gib(all))
            }
        };
        Ok(Plan { alone: alone.map(|alone| alone.tokens).filter(|tokens| *tokens != plan.tokens), ..plan })
    }

    /// The plan for so much memory that keeps the most of a forward, or else the one that needs the least.
    fn best(
        device: &dyn Driver,
        shape: &Shape,
        purpose: &Purpose,
        free: usize,
    ) -> Result<std::result::Result<Plan, Plan>> {
        let mut least = None;
        let levels = [Keep::All, Keep::WithoutMlp, Keep::Inputs];
        for keep in levels.into_iter().filter(|keep| purpose.keep.is_none_or(|only| only == *keep)) {
            let plan = Plan::new(shape, purpose, keep, device.processors(), free)?;
            if plan.bytes() <= free {
                return Ok(Ok(plan));
            }
            least = Some(plan);
        }
        let Some(plan) = least else { bail!("BUG: a forward of which nothing is kept has no backward") };
        Ok(Err(plan))
    }

    /// Found by doing, without a device, the work of the largest row and the largest step.
    ///
    /// # Errors
    /// Sizes that the kernels do not take.
    pub fn new(shape: &Shape, purpose: &Purpose, keep: Keep, processors: usize, free: usize) -> Result<Plan> {
        let (mut arena, device) = (Arena::dry(), Dry { processors });
        let parts = Parts::new(shape, purpose, &mut arena)?;
        let trained = parts.weights.layout.trained > 0;
        if trained {
            Update::new(&device, &parts.weights, &mut arena, |_| (1.0, 0.0))?;
        }
        let parameters = arena.peak();
        let windows = windows(&parts);
        let some = Dropped { rate: 0.5, seed: 0, stream: 0 };
        let dropped: Vec<_> = shape.additions.iter().map(|a| a.drops.then_some(some)).collect();
        let dry = |work: &mut dyn FnMut(&mut Work<'_>) -> Result<()>| -> Result<usize> {
            let mut arena = Arena::dry();
            work(&mut Work {
                device: &device,
                parts: &parts,
                arena: &mut arena,
                purpose,
                keep,
                windows: &windows,
                dropped: &dropped,
            })?;
            Ok(arena.peak())
        };
        let n = purpose.row_tokens;
        let ids: Vec<u32> = (0..n).map(|i| (i % shape.config.vocab_size) as u32).collect();
        let targets: Vec<Target> = (0..n as u32).map(|row| Target { row, id: 0 }).collect();
        let passes = dry(&mut |work| {
            let row = work.row(&ids, &Packing::single(n), &targets)?;
            match trained {
                true => work.train(&row, 1.0, &mut |_, _| 0.0).map(|_| ()),
                false => work.score(&row, 1.0).map(|_| ()),
            }
        })?;
        let passes = passes.max(dry(&mut |work| work.merge())?);
        let Some(room) = purpose.sample else {
            return Ok(Plan { keep, trains: trained, parameters, passes, steps: 0, cache: 0, tokens: 0, alone: None });
        };
        let (layers, heads) = (parts.layers.len(), parts.sizes.heads);
        let cache_of = |tokens: usize| -> Result<(usize, Cache)> {
            let mut arena = Arena::dry();
            let cache =
                Cache::reserve(&device, &mut arena, layers, heads, &Room { tokens, ..room }, purpose.positions)?;
            Ok((arena.peak(), cache))
        };
        let enough = cache_of(purpose.positions * 2 + room.chunk)?.1;
        let steps = dry(&mut |work| work.largest(&enough, &room))?;
        let decoding = Decoding::dry(bucket(room.rows, purpose.positions.div_ceil(PAGE)));
        let steps = steps.max(dry(&mut |work| {
            let at = work.place(&decoding)?;
            work.decode(&enough, &decoding, at)
        })?);
        let tokens = match room.tokens {
            0 => {
                // passes take turns with pages and have no say in this: `keep` must not change what is sampled side by side
                let budget = (free.saturating_sub(parameters) as f64 * SHARE) as usize;
                let left = budget.saturating_sub(steps + cache_of(0)?.0);
                // one sequence at least
                (left / page_bytes(layers, heads) * PAGE).max(purpose.positions)
            }
            tokens => tokens,
        };
        Ok(Plan { keep, trains: trained, parameters, passes, steps, cache: cache_of(tokens)?.0, tokens, alone: None })
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.parameters + self.passes.max(self.cache + self.steps)
    }

    /// What would fit into so much, as the end of a sentence.
    fn advice(shape: &Shape, purpose: &Purpose, free: usize) -> String {
        let mut help = Vec::new();
        let fits = |purpose: Purpose, shape: &Shape| {
            Plan::new(shape, &purpose, Keep::Inputs, 132, free).is_ok_and(|plan| plan.bytes() <= free)
        };
        let sample = purpose.sample.map(|room| Room { tokens: 0, ..room });
        let small = Purpose { sample, ..*purpose };
        let short = Purpose { row_tokens: SHORT, ..small };
        let longer = purpose.row_tokens > SHORT;
        if longer && fits(short, shape) {
            help.push(format!("rows of {SHORT} tokens (`row_tokens`, `max_length`)"));
        }
        let trained = shape.parameters.iter().any(|p| p.2);
        let halve = trained && purpose.moments == Precision::Float32;
        let half = |purpose: Purpose| Purpose { moments: Precision::Bfloat16, ..purpose };
        if halve && fits(half(small), shape) {
            help.push("`optimizer.moments = \"bfloat16\"`".to_owned());
        } else if halve && longer && help.is_empty() && fits(half(short), shape) {
            help.push(format!(
                "`optimizer.moments = \"bfloat16\"` with rows of {SHORT} tokens (`row_tokens`, `max_length`)"
            ));
        }
        let whole = shape.additions.is_empty() && trained;
        if whole && fits(small, &shape.adapted(16)) {
            help.push("`lora`".to_owned());
        } else if whole && longer && fits(short, &shape.adapted(16)) {
            help.push(format!("`lora` with rows of {SHORT} tokens"));
        }
        match help.is_empty() {
            true => "; a smaller model, or a device with more memory".to_owned(),
            false => format!("; what would fit: {}", help.join(", or ")),
        }
    }
}

/// Bytes as people read them.
pub(super) fn gib(bytes: usize) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (all, parameters, passes) = (gib(self.bytes()), gib(self.parameters), gib(self.passes));
        let what = if self.trains { " and what trains them" } else { "" };
        write!(f, "{all} of device memory: {parameters} for parameters{what}, {passes} for passes over rows")?;
        match self.keep {
            _ if !self.trains => {}
            Keep::All | Keep::Nothing => {}
            Keep::WithoutMlp => write!(f, " (gate and up are computed again in the backward)")?,
            Keep::Inputs => write!(f, " (blocks are computed again in the backward)")?,
        }
        if self.cache > 0 {
            let (cache, steps, tokens) = (gib(self.cache), gib(self.steps), self.tokens);
            write!(f, ", or in turn {cache} for keys and values of {tokens} tokens and {steps} for steps")?;
        }
        if let Some(alone) = self.alone {
            write!(
                f,
                "; {alone} tokens if nothing else used the device: last bits of what is sampled may be others then"
            )?;
        }
        Ok(())
    }
}

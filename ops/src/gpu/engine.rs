//! A model on a device: parameters, one arena for training and sampling in turn, and the passes over packed rows.
//!
//! 1. `Engine::new` lays parameters out, reserves memory once, and writes what the model holds.
//! 2. `train` is forward, head and backward of one packed row; gradients add up until `update` takes them.
//! 3. `score` and `logits` are forwards that keep nothing.
//!
//! Invariants: after `new` nothing is reserved, but for a row longer than any before, for which all is planned again; a pass leaves
//! the arena as it found it, whatever becomes of it; a model's tensors on the host are as old as the last `read_back`.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::driver::{Address, Driver, Recorded};
use super::kernels::Dropped;
use super::memory::{Arena, Mark};
use super::pages::{Held, Pool};
use super::parts::{Parts, Purpose, Shape, windows};
use super::plan::Plan;
use super::sample::{Bucket, Cache, Decoding, Feed, Flight, Room, bucket, draw_into, row_of};
use super::update::{Rule, Update};
use super::work::Work;
use crate::infer::sampling::Draw;
use crate::model::Target;
use crate::nn::Packing;
use crate::nn::kernel::RopeTable;
use crate::nn::layer::TokenStats;

/// Rows are planned for in multiples of so many tokens.
const ROW_STEP: usize = 256;

/// The engine.
pub struct Engine {
    device: Arc<dyn Driver>,
    shape: Shape,
    /// [`Address::NONE`] where nothing is reserved.
    base: Address,
    arena: Arena,
    plan: Plan,
    purpose: Purpose,
    parts: Parts,
    update: Option<Update>,
    cache: Option<(Cache, Arc<Pool>)>,
    /// What stands below all passes, and below those that sample.
    floor: Mark,
    ceiling: Mark,
    /// Nothing but pages was written where pages stand.
    clean: bool,
    /// Decoding steps by their bucket; `None` where the device would not record.
    recorded: HashMap<Bucket, Option<Arc<dyn Recorded>>>,
    /// The step whose tokens are where the next looks for them; 0: none.
    last: u64,
    /// Windows that layers have.
    windows: Vec<Option<usize>>,
    /// What additions drop in training, in the order of the shape's.
    dropped: Vec<Option<Dropped>>,
}

impl Engine {
    /// An engine on `device` for a model of this shape; parameters are written afterwards.
    ///
    /// # Errors
    /// When it does not fit, with what is missing; sizes that the kernels do not take; the device's.
    pub fn new(device: Arc<dyn Driver>, shape: &Shape, purpose: Purpose) -> Result<Engine> {
        let (free, _) = device.free()?;
        let plan = Plan::that_fits(&*device, shape, &purpose, free)?;
        Engine::planned(device, shape.clone(), purpose, plan)
    }

    /// An engine with this much memory.
    fn planned(device: Arc<dyn Driver>, shape: Shape, purpose: Purpose, plan: Plan) -> Result<Engine> {
        let needed = plan.bytes();
        let base = device.reserve(needed)?;
        let mut arena = Arena::new(base, needed);
        let parts = Parts::new(&shape, &purpose, &mut arena)?;
        let flat = parts.weights.flat;
        let trained = parts.weights.layout.trained;
        // SAFETY: just reserved
        unsafe {
            device.clear(flat.grad, 4 * trained)?;
            device.clear(flat.m, flat.moment_bytes(trained))?;
            device.clear(flat.v, flat.moment_bytes(trained))?;
        }
        let config = &shape.config;
        for (rope, (cos, sin)) in std::iter::once(&config.rope).chain(&config.sliding_rope).zip(&parts.ropes) {
            let (frequencies, scale) = rope.frequencies(config.head_dim);
            let mut table = RopeTable::new(frequencies, scale);
            table.reserve(purpose.positions);
            let (c, s) = table.rows(purpose.positions);
            let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
            // SAFETY: reserved for these positions
            unsafe {
                device.write(*cos, &bytes(c))?;
                device.write(*sin, &bytes(s))?;
            }
        }
        let update = match parts.weights.layout.trained {
            0 => None,
            _ => Some(Update::new(&*device, &parts.weights, &mut arena, |_| (1.0, 0.0))?),
        };
        // passes of training and sampling take turns in the same memory: pages stand where activations stand at other times
        let floor = arena.kept();
        let cache = match &purpose.sample {
            None => None,
            Some(room) => {
                let room = Room { tokens: plan.tokens, ..*room };
                let cache = Cache::reserve(
                    &*device,
                    &mut arena,
                    parts.layers.len(),
                    parts.sizes.heads,
                    &room,
                    purpose.positions,
                )?;
                Some((cache, Pool::new(cache.pages)))
            }
        };
        let ceiling = arena.kept();
        arena.reset(floor);
        let windows = windows(&parts);
        Ok(Engine {
            device,
            shape,
            base,
            arena,
            plan,
            purpose,
            parts,
            update,
            cache,
            floor,
            ceiling,
            clean: true,
            recorded: HashMap::new(),
            last: 0,
            windows,
            dropped: Vec::new(),
        })
    }

    /// What was reserved, and for what.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What runs it.
    pub fn device(&self) -> &dyn Driver {
        &*self.device
    }

    /// Most bytes in use so far, and all that were reserved.
    pub fn memory(&self) -> (usize, usize) {
        (self.arena.peak(), self.arena.capacity())
    }

    /// Writes a parameter.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, name: &str, value: &Tensor) -> Result<()> {
        self.parts.weights.write(&*self.device, name, value)
    }

    /// As [`Engine::write`], with the numbers of a pool over and over: for measuring.
    ///
    /// # Errors
    /// The device's.
    pub fn repeat(&self, name: &str, pool: &[f32]) -> Result<()> {
        self.parts.weights.repeat(&*self.device, name, pool)
    }

    /// Must follow the writing of parameters: makes the merged weights.
    ///
    /// # Errors
    /// The device's.
    pub fn written(&mut self) -> Result<()> {
        self.merge()
    }

    /// Merges additions into what products read: W' = W + scale B A.
    fn merge(&mut self) -> Result<()> {
        self.pass(|work| work.merge())
    }

    /// A parameter as it is now.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.parts.weights.read(&*self.device, name)
    }

    /// A parameter's gradient as it has added up; `None` where it is not trained.
    ///
    /// # Errors
    /// The device's.
    pub fn gradient(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.parts.weights.gradient(&*self.device, name)
    }

    /// Makes room for a row that is longer than what was planned for, or from which more is predicted: all is planned again, and
    /// parameters go over the host to their new places.
    fn make_room(&mut self, tokens: usize, targets: usize) -> Result<()> {
        let row_tokens = tokens.max(targets).next_multiple_of(ROW_STEP);
        if tokens.max(targets) <= self.purpose.row_tokens {
            return Ok(());
        }
        let held = self.cache.as_ref().map_or(0, |(_, pool)| pool.held());
        if held > 0 {
            bail!(
                "a row of {tokens} tokens needs more memory, and {held} pages of sequences are in use: let go of them first"
            );
        }
        let purpose = Purpose { row_tokens, ..self.purpose };
        let free = self.device.free()?.0 + self.arena.capacity();
        let plan = match Plan::that_fits(&*self.device, &self.shape, &purpose, free) {
            Ok(plan) => plan,
            Err(error) => {
                bail!("for a row of {tokens} tokens, where {} were planned for, {error}", self.purpose.row_tokens)
            }
        };
        tracing::warn!("a row of {tokens} tokens, where {} were planned for: {plan}", self.purpose.row_tokens);
        let mut parameters = vec![0; self.plan.parameters];
        // SAFETY: they are at the beginning, and nothing is asked of this place after it was given back
        unsafe {
            self.device.read(self.base, &mut parameters)?;
            self.device.release(std::mem::replace(&mut self.base, Address::NONE))?;
        }
        let mut made = Engine::planned(self.device.clone(), self.shape.clone(), purpose, plan)?;
        // SAFETY: the beginning is the same whatever rows are planned for
        unsafe { made.device.write(made.base, &parameters)? };
        if let (Some(new), Some(old)) = (&mut made.update, &self.update) {
            new.take_over(&*made.device, old)?;
        }
        *self = made;
        Ok(())
    }

    /// One pass over rows, after which the arena is as it was.
    fn pass<T>(&mut self, work: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
        if let Some((_, pool)) = self.cache.as_ref().filter(|(_, pool)| pool.held() > 0) {
            // what was sampled is kept where this pass would work, unless there is room behind it
            let held = pool.held();
            if self.arena.capacity() < self.plan.parameters + self.plan.cache + self.plan.passes {
                bail!(
                    "{held} pages of sequences are in use where a pass over rows works: let go of the sequences first"
                );
            }
            return self.within(self.ceiling, work);
        }
        (self.clean, self.last) = (false, 0);
        self.within(self.floor, work)
    }

    /// Work above a mark.
    fn within<T>(&mut self, mark: Mark, work: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
        let lent = self.arena.lent();
        self.arena.raise(mark);
        let done = work(&mut Work {
            device: &*self.device,
            parts: &self.parts,
            arena: &mut self.arena,
            purpose: &self.purpose,
            keep: self.plan.keep,
            windows: &self.windows,
            dropped: &self.dropped,
        });
        self.arena.reset(self.floor);
        self.arena.forget(lent);
        done
    }

    /// What the next rows drop from the inputs of additions, in the order of the shape's.
    pub fn set_dropped(&mut self, dropped: Vec<Option<Dropped>>) {
        self.dropped = dropped;
    }

    /// As [`crate::model::Model::train`].
    ///
    /// # Errors
    /// When the row does not fit; the device's.
    pub fn train(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
        mut coefficient: impl FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        self.make_room(ids.len(), targets.len())?;
        self.pass(|work| {
            let row = work.row(ids, packing, targets)?;
            work.train(&row, temperature, &mut coefficient)
        })
    }

    /// As [`crate::model::Model::score`].
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn score(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
    ) -> Result<Vec<TokenStats>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        self.make_room(ids.len(), targets.len())?;
        self.pass(|work| {
            let row = work.row(ids, packing, targets)?;
            work.score(&row, temperature)
        })
    }

    /// As [`crate::model::Model::logits`]: rows of v, one after another.
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn logits(&mut self, ids: &[u32], packing: &Packing) -> Result<Vec<f32>> {
        let targets: Vec<Target> = (0..ids.len() as u32).map(|row| Target { row, id: 0 }).collect();
        self.make_room(ids.len(), targets.len())?;
        self.pass(|work| {
            let row = work.row(ids, packing, &targets)?;
            work.logits(&row)
        })
    }

    /// An empty sequence.
    ///
    /// # Panics
    /// When the engine was not made for sampling: a bug in the caller.
    pub fn sequence(&self) -> Held {
        match &self.cache {
            Some((_, pool)) => Held::new(pool),
            None => panic!("BUG: a sequence of an engine that does not sample"),
        }
    }

    /// A step of sampling.
    fn step<T>(&mut self, work: impl FnOnce(&mut Work<'_>, &Cache) -> Result<T>) -> Result<T> {
        let Some((cache, _)) = self.cache.clone() else { panic!("BUG: a step of an engine that does not sample") };
        if !std::mem::replace(&mut self.clean, true) {
            cache.clear(&*self.device)?;
        }
        self.within(self.ceiling, |step| work(step, &cache))
    }

    /// New tokens of sequences, and the logits (m, v), row after row, of those that want them.
    ///
    /// # Errors
    /// When no page is left or a sequence grows too long, and then no sequence has changed; the device's.
    ///
    /// # Panics
    /// As [`Engine::sequence`].
    pub fn advance(&mut self, feeds: &mut [Feed<'_>]) -> Result<Vec<f32>> {
        self.step(|work, cache| {
            let Some(logits) = work.advance(cache, feeds)? else { return Ok(Vec::new()) };
            let mut bytes = vec![0; logits.bytes()];
            // SAFETY: as long as the matrix
            unsafe { work.device.read(logits.at, &mut bytes)? };
            let float = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
            let rows = bytes.chunks(4 * logits.stride);
            Ok(rows.flat_map(|row| row.chunks_exact(4).take(logits.columns).map(float)).collect())
        })
    }

    /// New tokens of sequences, and a token drawn for each of those that want logits. Tokens of the flight `before` may be among
    /// the new ones, by [`super::sample::just_drawn`], before anybody has waited for it.
    ///
    /// # Errors
    /// As [`Engine::advance`]; a list of allowed tokens that is empty.
    ///
    /// # Panics
    /// As [`Engine::advance`].
    pub fn draw(&mut self, feeds: &mut [Feed<'_>], draws: &[Draw], before: Option<&mut Flight>) -> Result<Flight> {
        let unseen = feeds.iter().any(|feed| feed.new.iter().any(|id| row_of(*id).is_some()));
        match before {
            Some(before) if unseen && before.number != self.last => {
                // somebody else has drawn meanwhile: the tokens come over the host
                let drawn = before.wait()?;
                let known: Vec<Vec<u32>> = feeds
                    .iter()
                    .map(|feed| feed.new.iter().map(|id| row_of(*id).map_or(*id, |row| drawn[row].id)).collect())
                    .collect();
                let feeds = feeds.iter_mut().zip(&known);
                let mut feeds: Vec<Feed<'_>> =
                    feeds.map(|(f, new)| Feed { held: &mut *f.held, new, logits: f.logits }).collect();
                self.drawing(&mut feeds, draws)
            }
            None if unseen => panic!("BUG: a token of no step"),
            _ => self.drawing(feeds, draws),
        }
    }

    /// [`Engine::draw`] after the step before.
    fn drawing(&mut self, feeds: &mut [Feed<'_>], draws: &[Draw]) -> Result<Flight> {
        let one = |feed: &Feed<'_>| feed.logits && feed.new.len() == 1;
        let flight = if !feeds.is_empty() && feeds.iter().all(one) && draws.iter().all(|draw| draw.open.is_none()) {
            self.decode(feeds, draws)?
        } else {
            self.step(|work, cache| match work.advance(cache, feeds)? {
                Some(logits) => {
                    let ring = draw_into(work.device, work.arena, logits, draws, cache.tokens)?;
                    Flight::begin(work.device, ring, draws.len())
                }
                None => Ok(Flight::empty()),
            })?
        };
        self.last = flight.number;
        Ok(flight)
    }

    /// A token to each sequence, and the next from each: as one piece of work, recorded when a bucket of its size comes first.
    fn decode(&mut self, feeds: &mut [Feed<'_>], draws: &[Draw]) -> Result<Flight> {
        self.step(|work, cache| work.grow(cache, feeds).map(|_| ()))?;
        let pages = feeds.iter().map(|feed| feed.held.ids().count()).max().unwrap_or(0);
        let rows: Vec<(u32, &Held)> = feeds.iter().map(|feed| (feed.new[0], &*feed.held)).collect();
        let step = Decoding::new(bucket(rows.len(), pages), &rows, draws);
        let recorded = self.recorded.get(&step.bucket).cloned();
        let known = recorded.is_some();
        let flight = self.step(|work, cache| {
            let at = work.place(&step)?;
            match recorded.flatten() {
                // SAFETY: what was recorded works where this step's numbers are: the arena gives the same places again
                Some(recorded) => unsafe { recorded.replay()? },
                None => work.decode(cache, &step, at)?,
            }
            Flight::begin(work.device, at.1, rows.len())
        })?;
        if !known {
            // the first run has loaded the kernels and planned the products, which cannot be done while recording
            let recorded = self.step(|work, cache| {
                let at = work.place(&step)?;
                let device = work.device;
                Ok(device.record(&mut || work.decode(cache, &step, at)))
            })?;
            if let Err(error) = &recorded {
                tracing::warn!("decoding steps are asked for one by one, which is slower: {error}");
            }
            self.recorded.insert(step.bucket, recorded.ok().map(Arc::from));
        }
        Ok(flight)
    }

    /// Sets factors of learning rates and weight decays by name.
    ///
    /// # Errors
    /// The device's.
    pub fn set_groups(&mut self, settings: impl Fn(&str) -> (f64, f32)) -> Result<()> {
        match &mut self.update {
            Some(update) => update.set(&*self.device, settings),
            None => Ok(()),
        }
    }

    /// First and second moments of a trained parameter.
    ///
    /// # Errors
    /// The device's.
    pub fn moments(&self, name: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        self.parts.weights.moments(&*self.device, name)
    }

    /// As [`Engine::moments`], the other way.
    ///
    /// # Errors
    /// The device's.
    pub fn write_moments(&self, name: &str, m: &Tensor, v: &Tensor) -> Result<()> {
        self.parts.weights.write_moments(&*self.device, name, m, v)
    }

    /// One optimizer step; see [`Update::step`].
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// When nothing is trained: a bug in the caller.
    pub fn update(&mut self, rule: &Rule, rate: f64, number: u64) -> Result<std::result::Result<f64, String>> {
        let Some(update) = &self.update else { panic!("BUG: an update of a model of which nothing is trained") };
        let done = update.step(&*self.device, &self.parts.weights, rule, rate, number)?;
        if done.is_ok() {
            self.merge()?;
        }
        Ok(done)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.base != Address::NONE {
            // SAFETY: nothing is asked for after this
            let _ = unsafe { self.device.release(self.base) };
        }
    }
}

//! One worker: decodes its sequences side by side and takes the next job when one ends.
//!
//! 1. Free rows take jobs.
//! 2. Every sequence that decodes gets its token, those that still read get a share of the chunk.
//! 3. The model advances all of them at once.
//! 4. Tokens are drawn; what ended makes room.
//!
//! A device is asked for the next step before anybody has looked at the tokens of the last: it knows them itself. A sequence that
//! turns out to have ended was then part of one step too many, whose token nobody takes.
//!
//! Invariant: what is asked for depends on tokens alone, never on how long anything takes.

use actloom_engine::op::OpError;
use candle_core::Device;

use super::choice::Held;
use super::queue::{Queue, Started};
use super::sampling::{Draw, Drawn, Scratch, draw};
use super::share::Job;
use super::stop::Watch;
use super::{Completion, Finish, Request, Tokens};
use crate::gpu::sample::{Flight, just_drawn};
use crate::model::{Step, failed};
use crate::nn::kernel::view;

/// Tokens that prompts may get in a step however many sequences decode.
const LEAST_READ: usize = 32;

/// A job and how far it has come.
struct Active {
    start: Started,
    /// Tokens of the feed that the sequence has seen.
    fed: usize,
    /// Which token of the flight in the air is its own.
    unseen: Option<usize>,
    /// The same of the flight that has just begun, in which it was fed the token that it has not seen.
    next: Option<usize>,
    answer: Answer,
}

/// What a request has said so far.
#[derive(Default)]
struct Answer {
    held: Option<Held>,
    watch: Watch,
    ids: Vec<u32>,
    logps: Vec<f32>,
    full_logps: Vec<f32>,
}

impl Active {
    fn new(start: Started) -> Self {
        let held = start.request.as_ref().and_then(|r| r.choice.as_ref()).map(|c| c.start());
        Active { start, fed: 0, unseen: None, next: None, answer: Answer { held, ..Answer::default() } }
    }

    /// Tokens that it has still to read before the next is drawn.
    fn left(&self) -> usize {
        self.start.feed.len() - self.fed
    }

    fn feed(&mut self, id: u32) {
        self.start.feed.clear();
        self.start.feed.push(id);
        self.fed = 0;
    }

    /// Whether its unseen token may be followed by another, whatever it is.
    fn goes_on(&self, positions: usize) -> bool {
        let most = self.start.request.as_ref().map_or(0, |request| request.sampling.max_tokens);
        self.answer.ids.len() + 1 < most && self.start.sequence.len() + 1 < positions
    }
}

/// Buffers that are kept between steps.
#[derive(Default)]
struct Buffers {
    draw: Scratch,
    open: Vec<u32>,
    shares: Vec<usize>,
}

/// Works until nothing is left to do, at most `rows` sequences side by side, in steps of about `chunk` tokens.
pub(super) fn work(
    queue: &Queue<'_>,
    tokens: &dyn Tokens,
    rows: usize,
    chunk: usize,
    stopping: Option<&dyn Fn() -> bool>,
) {
    let mut active: Vec<Active> = Vec::new();
    let mut buffers = Buffers::default();
    let mut air = None;
    let outcome = (|| {
        loop {
            while active.len() < rows
                && let Some(start) = queue.take(active.is_empty())?
            {
                active.push(Active::new(start));
            }
            if active.is_empty() || queue.stopped() {
                return Ok(());
            }
            if stopping.is_some_and(|stopping| stopping()) {
                return Err(OpError::Interrupted);
            }
            match queue.model.draws() {
                true => step_on_device(queue, tokens, chunk, &mut active, &mut buffers, &mut air)?,
                false => step(queue, tokens, chunk, &mut active, &mut buffers)?,
            }
        }
    })();
    if let Err(error) = outcome {
        queue.fail(error);
    }
}

/// How many tokens each gets in a step.
fn share_out(active: &[Active], chunk: usize, shares: &mut Vec<usize>) {
    let decoding = active.iter().filter(|a| a.left() == 1).count();
    let mut room = chunk.saturating_sub(decoding).max(LEAST_READ);
    shares.clear();
    for a in active {
        let share = if a.left() == 1 { 1 } else { a.left().min(room) };
        room -= if a.left() == 1 { 0 } else { share };
        shares.push(share);
    }
}

/// One step of every sequence.
fn step(
    queue: &Queue<'_>,
    tokens: &dyn Tokens,
    chunk: usize,
    active: &mut Vec<Active>,
    buffers: &mut Buffers,
) -> Result<(), OpError> {
    share_out(active, chunk, &mut buffers.shares);
    let mut drawn = on_host(queue, active, buffers)?.into_iter();
    let all = std::mem::replace(active, Vec::with_capacity(active.len()));
    for (mut a, share) in all.into_iter().zip(&buffers.shares) {
        a.fed += share;
        match a.start.job {
            _ if a.left() > 0 => active.push(a),
            Job::Prefix(id) => queue.prefix(id, a.start.sequence, a.start.hold),
            Job::Request(index, _) => {
                let Some(drawn) = drawn.next() else { panic!("BUG: a request got no token") };
                active.extend(hear(queue, tokens, index, a, drawn)?);
            }
        }
    }
    Ok(())
}

/// One step of every sequence on a device, and then the tokens of the step before.
fn step_on_device(
    queue: &Queue<'_>,
    tokens: &dyn Tokens,
    chunk: usize,
    active: &mut Vec<Active>,
    buffers: &mut Buffers,
    air: &mut Option<Flight>,
) -> Result<(), OpError> {
    // 1. who is held to a list has to see its token before the next
    if active.iter().any(|a| a.unseen.is_some() && a.answer.held.is_some())
        && let Some(flight) = air.take()
    {
        land(queue, tokens, active, flight)?;
    }
    // 2. the others get the token that the device knows
    for a in active.iter_mut() {
        if let Some(row) = a.unseen
            && a.goes_on(queue.model.config.max_positions)
        {
            a.feed(just_drawn(row));
        }
    }
    share_out(active, chunk, &mut buffers.shares);
    let mut begun = None;
    if buffers.shares.iter().any(|share| *share > 0) {
        begun = Some(on_device(queue, active, buffers, air.as_mut())?);
        let (mut row, all) = (0, std::mem::replace(active, Vec::with_capacity(active.len())));
        for (mut a, share) in all.into_iter().zip(&buffers.shares) {
            let drew = draws(&a, *share);
            a.fed += share;
            if drew {
                a.next = Some(row);
                row += 1;
            }
            match a.start.job {
                Job::Prefix(id) if a.left() == 0 => queue.prefix(id, a.start.sequence, a.start.hold),
                _ => active.push(a),
            }
        }
    }
    // 3. tokens of the step before
    if let Some(flight) = air.take() {
        land(queue, tokens, active, flight)?;
    }
    active.iter_mut().for_each(|a| a.unseen = a.next.take());
    *air = begun;
    Ok(())
}

/// Takes the tokens of a flight.
fn land(queue: &Queue<'_>, tokens: &dyn Tokens, active: &mut Vec<Active>, mut flight: Flight) -> Result<(), OpError> {
    let drawn = flight.wait().map_err(failed)?;
    for mut a in std::mem::replace(active, Vec::with_capacity(active.len())) {
        match (a.start.job, a.unseen.take()) {
            (Job::Request(index, _), Some(row)) => active.extend(hear(queue, tokens, index, a, drawn[row])?),
            _ => active.push(a),
        }
    }
    Ok(())
}

/// A sequence gets its token; `None` where that was the last.
fn hear(
    queue: &Queue<'_>,
    tokens: &dyn Tokens,
    index: usize,
    mut a: Active,
    drawn: Drawn,
) -> Result<Option<Active>, OpError> {
    let Some(request) = a.start.request.as_mut() else { panic!("BUG: a request was started without itself") };
    let id = a.answer.say(drawn, request);
    if drawn.full.is_nan() {
        return Err(OpError::failed("the model's logits are not numbers; its weights may be damaged"));
    }
    // without the token itself, which a step that has begun may have fed already
    let len = a.start.sequence.len() - usize::from(a.next.is_some());
    let context = len + 1 >= queue.model.config.max_positions;
    match a.answer.end(id, request, tokens, context)? {
        Some((finish, text)) => {
            let (Answer { ids, logps, full_logps, .. }, mut sequence) = (a.answer, a.start.sequence);
            sequence.truncate(len).map_err(failed)?;
            queue.complete(index, Completion { sequence, ids, logps, full_logps, text, finish }, a.start.hold);
            Ok(None)
        }
        None => {
            match a.next {
                Some(_) => a.start.sequence.learn(id),
                None => a.feed(id),
            }
            Ok(Some(a))
        }
    }
}

/// Sequences with what they get in this step.
fn steps<'a>(active: &'a mut [Active], shares: &[usize]) -> Vec<Step<'a>> {
    let steps = active.iter_mut().zip(shares).filter(|(_, n)| **n > 0);
    let steps = steps.map(|(a, n)| {
        let Started { sequence, feed, request, .. } = &mut a.start;
        let logits = request.is_some() && a.fed + n == feed.len();
        Step { sequence, new: &feed[a.fed..a.fed + n], logits }
    });
    steps.collect()
}

/// Whether a sequence has read all after this step, and draws.
fn draws(a: &Active, share: usize) -> bool {
    a.start.request.is_some() && a.left() == share && share > 0
}

/// The model's step, and a token for each that draws, on the host.
fn on_host(queue: &Queue<'_>, active: &mut [Active], buffers: &mut Buffers) -> Result<Vec<Drawn>, OpError> {
    let logits = queue.model.advance(steps(active, &buffers.shares)).map_err(failed)?;
    let logits = if logits.device().is_cpu() { logits } else { logits.to_device(&Device::Cpu).map_err(failed)? };
    let z = view(&logits).map_err(failed)?;
    let mut rows = z.chunks_exact(queue.model.config.vocab_size);
    let Buffers { draw: scratch, open, shares } = buffers;
    let drawing = active.iter_mut().zip(shares.iter()).filter(|(a, n)| draws(a, **n));
    let drawn = drawing.map(|(a, _)| {
        let Some(request) = &mut a.start.request else { panic!("BUG: a request was started without itself") };
        let only = a.answer.open(request, open);
        let Some(row) = rows.next() else { panic!("BUG: a request got no logits") };
        draw(row, &request.sampling, only, &mut request.rng, scratch)
    });
    Ok(drawn.collect())
}

/// The same on a device, with the same uniform numbers, and nothing to wait for.
fn on_device(
    queue: &Queue<'_>,
    active: &mut [Active],
    buffers: &mut Buffers,
    before: Option<&mut Flight>,
) -> Result<Flight, OpError> {
    let mut wants = Vec::new();
    for (a, share) in active.iter_mut().zip(&buffers.shares) {
        if !draws(a, *share) {
            continue;
        }
        let Some(request) = &mut a.start.request else { panic!("BUG: a request was started without itself") };
        let open = a.answer.open(request, &mut buffers.open).map(<[u32]>::to_vec);
        let place = request.rng.place();
        if request.sampling.temperature > 0.0 {
            request.rng.uniform(); // the device draws it
        }
        wants.push(Draw { settings: request.sampling.clone(), open, place });
    }
    queue.model.draw(steps(active, &buffers.shares), &wants, before).map_err(failed)
}

impl Answer {
    /// The tokens that may come next, `None` where all may.
    fn open<'o>(&mut self, request: &Request, open: &'o mut Vec<u32>) -> Option<&'o [u32]> {
        let (choice, held) = request.choice.as_ref().zip(self.held.as_mut())?;
        choice.next(held, open);
        Some(open)
    }

    /// Takes the next token.
    fn say(&mut self, drawn: Drawn, request: &Request) -> u32 {
        if let Some((choice, held)) = request.choice.as_ref().zip(self.held.as_mut()) {
            choice.say(held, drawn.id);
        }
        self.ids.push(drawn.id);
        self.logps.push(drawn.logp);
        self.full_logps.push(drawn.full);
        drawn.id
    }

    /// Has the answer ended with the token `id`, and with what text?
    fn end(
        &mut self,
        id: u32,
        request: &Request,
        tokens: &dyn Tokens,
        context: bool,
    ) -> Result<Option<(Finish, String)>, OpError> {
        let sampling = &request.sampling;
        if tokens.eos().contains(&id) || sampling.stop_ids.contains(&id) {
            return Ok(Some((Finish::End, tokens.decode(&self.ids[..self.ids.len() - 1])?)));
        }
        if !sampling.stop.is_empty()
            && let Some(text) = self.watch.look(&self.ids, &sampling.stop, &|ids| tokens.decode(ids))?
        {
            return Ok(Some((Finish::StopString, text)));
        }
        let finish = if self.ids.len() >= sampling.max_tokens {
            Finish::Length
        } else if context {
            Finish::Context
        } else {
            return Ok(None);
        };
        Ok(Some((finish, tokens.decode(&self.ids)?)))
    }
}

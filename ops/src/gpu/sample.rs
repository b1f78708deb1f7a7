//! New tokens of sequences through the model, over pages of keys and values.
//!
//! Invariants: a step either goes through for all its sequences or leaves them as they were; the largest step that was planned for
//! fits.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Result, bail};

use super::attention::Plan;
use super::cached::{Batch, Cached, Caches, Reading, Readings};
use super::driver::{Address, Arg, Driver, Element, Launch, Matrix, Product, Ticket};
use super::kernels::{Kernels, Qkv};
use super::memory::Arena;
use super::pages::{Copied, Held, PAGE, Pool};
use super::tape::{Keep, Pass, Rows, Stream};
use super::tiles::{Keys, Tiles};
use super::work::{Sheet, Work};
use crate::infer::sampling::{Draw, Drawn};
use crate::nn::Packing;

/// How much sampling does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Sequences in a step.
    pub rows: usize,
    /// New tokens in a step, beside one for each sequence.
    pub chunk: usize,
    /// Tokens that are in pages at once; 0: as many as there is memory for.
    pub tokens: usize,
    /// Tokens that sequences with several new ones read from pages in one go; as many as a sequence may have at least.
    pub reading: usize,
}

impl Default for Room {
    fn default() -> Self {
        Room { rows: 256, chunk: 4096, tokens: 0, reading: 0 }
    }
}

/// What a sequence draws with, as `kernels/sampling.cu` knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    seed: u64,
    stream: u64,
    position: u64,
    top_p: f64,
    min_p: f64,
    temperature: f32,
    top_k: u32,
    first_open: u32,
    open_count: u32,
    active: u32,
    unused: u32,
}

impl Setting {
    /// With the first of its allowed ids at `first` of the list of all.
    fn new(draw: &Draw, first: usize) -> Setting {
        let ((seed, stream, position), s) = (draw.place, &draw.settings);
        Setting {
            seed,
            stream,
            position,
            top_p: s.top_p,
            min_p: s.min_p,
            temperature: s.temperature as f32,
            top_k: u32::try_from(s.top_k).unwrap_or(u32::MAX),
            first_open: first as u32,
            open_count: draw.open.as_ref().map_or(0, Vec::len) as u32,
            active: 1,
            unused: 0,
        }
    }

    fn words(&self) -> [u32; 16] {
        let two = |x: u64| [x as u32, (x >> 32) as u32];
        let [a, b] = two(self.seed);
        let [c, d] = two(self.stream);
        let [e, f] = two(self.position);
        let [g, h] = two(self.top_p.to_bits());
        let [i, j] = two(self.min_p.to_bits());
        let (t, rest) = (self.temperature.to_bits(), [self.first_open, self.open_count, self.active, self.unused]);
        [a, b, c, d, e, f, g, h, i, j, t, self.top_k, rest[0], rest[1], rest[2], rest[3]]
    }
}

/// Bytes of a drawn token: id, log-probability as drawn, of the whole distribution, position.
const DRAWN: usize = 16;

/// Among new tokens: the one that the step before has drawn for the `row`-th of those that drew, which the host need not know yet.
///
/// # Panics
/// Beyond 2^31 rows: a bug in the caller.
pub fn just_drawn(row: usize) -> u32 {
    match u32::try_from(row).ok().filter(|row| *row < JUST_DRAWN) {
        Some(row) => JUST_DRAWN | row,
        None => panic!("BUG: a step drew {row} tokens"),
    }
}

/// The row of [`just_drawn`]; `None` for a token.
pub fn row_of(id: u32) -> Option<usize> {
    (id & JUST_DRAWN != 0).then_some((id & !JUST_DRAWN) as usize)
}

const JUST_DRAWN: u32 = 1 << 31;

/// Tokens that a step draws, perhaps still on their way.
pub struct Flight {
    /// No two steps have the same.
    pub(super) number: u64,
    on_its_way: Option<Box<dyn Ticket>>,
    drawn: Vec<Drawn>,
}

impl Flight {
    /// Of a step in which nobody drew.
    pub(super) fn empty() -> Flight {
        Flight { number: 0, on_its_way: None, drawn: Vec::new() }
    }

    /// Asks for tokens of so many rows.
    pub(super) fn begin(device: &dyn Driver, ring: Address, rows: usize) -> Result<Flight> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        // SAFETY: as long as it was lent
        let ticket = unsafe { device.read_later(ring, DRAWN * rows)? };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Flight { number, on_its_way: Some(ticket), drawn: Vec::new() })
    }

    /// The tokens, in the order of the draws.
    ///
    /// # Errors
    /// The device's.
    pub fn wait(&mut self) -> Result<&[Drawn]> {
        if let Some(ticket) = self.on_its_way.take() {
            let out = ticket.wait()?;
            let word = |b: &[u8], i: usize| [b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]];
            let drawn = |b: &[u8]| Drawn {
                id: u32::from_ne_bytes(word(b, 0)),
                logp: f32::from_ne_bytes(word(b, 1)),
                full: f32::from_ne_bytes(word(b, 2)),
            };
            self.drawn = out.chunks_exact(DRAWN).map(drawn).collect();
        }
        Ok(&self.drawn)
    }
}

/// Draws a token from each row of logits.
///
/// # Errors
/// A list of allowed tokens that is empty; the device's.
pub fn draw_from(device: &dyn Driver, arena: &mut Arena, logits: Matrix, draws: &[Draw]) -> Result<Vec<Drawn>> {
    let tokens = arena.lend(4 * logits.rows)?;
    let ring = draw_into(device, arena, logits, draws, tokens)?;
    Flight::begin(device, ring, logits.rows)?.wait().map(<[Drawn]>::to_vec)
}

/// [`draw_from`] without waiting: ids are at `tokens` then, and what a [`Flight`] reads where the result says.
pub(super) fn draw_into(
    device: &dyn Driver,
    arena: &mut Arena,
    logits: Matrix,
    draws: &[Draw],
    tokens: Address,
) -> Result<Address> {
    assert_eq!(draws.len(), logits.rows, "BUG: a draw for each row of logits");
    let mut open: Vec<u32> = Vec::new();
    let mut settings = Vec::with_capacity(draws.len());
    for draw in draws {
        let (first, ids) = (open.len(), draw.open.as_deref().unwrap_or(&[]));
        if let Some(ids) = &draw.open
            && ids.is_empty()
        {
            bail!("nothing may be said next: the list of allowed answers has none that begins like this");
        }
        open.extend_from_slice(ids);
        settings.push(Setting::new(draw, first));
    }
    let rows = logits.rows;
    let settings_at = arena.lend(size_of_val(settings.as_slice()))?;
    let open_at = arena.lend(4 * open.len())?;
    let ring = arena.lend(DRAWN * rows)?;
    let words = |words: &mut dyn Iterator<Item = u32>| words.flat_map(u32::to_ne_bytes).collect::<Vec<u8>>();
    // SAFETY: lent for these rows
    unsafe {
        device.write(settings_at, &words(&mut settings.iter().flat_map(Setting::words)))?;
        device.write(open_at, &words(&mut open.into_iter()))?;
    }
    sample(device, logits, (tokens, ring), settings_at, open_at)?;
    Ok(ring)
}

/// Draws: ids are at `tokens` then, and what a [`Flight`] reads at `ring`.
fn sample(
    device: &dyn Driver,
    logits: Matrix,
    (tokens, ring): (Address, Address),
    settings: Address,
    open: Address,
) -> Result<()> {
    let args = [
        tokens.into(),
        ring.into(),
        Arg::U32(1),
        settings.into(),
        open.into(),
        logits.at.into(),
        Arg::int(logits.columns),
        Arg::long(logits.stride),
    ];
    // SAFETY: arguments of the kernel's source; its places are as large as the logits have rows
    unsafe { device.launch("sample", Launch::new(logits.rows, 1024), &args) }
}
/// One sequence's part in a step.
pub struct Feed<'a> {
    pub held: &'a mut Held,
    /// Tokens; one alone may be [`just_drawn`].
    pub new: &'a [u32],
    /// Logits after the last new token are wanted.
    pub logits: bool,
}

/// Where pages are, and what decoding works in.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    pub caches: Caches,
    pub pages: usize,
    layers: usize,
    parts: Address,
    stats: Address,
    done: Address,
    /// Bytes of `done`.
    counters: usize,
    /// What the last step has drawn.
    pub(super) tokens: Address,
}

/// Bytes of a page in all layers, keys and values.
pub fn page_bytes(layers: usize, heads: Qkv) -> usize {
    layers * 2 * 2 * PAGE * heads.hk * heads.d
}

/// Pages for so many tokens: a sequence's last page is seldom full.
fn pages(room: &Room) -> usize {
    room.tokens.div_ceil(PAGE) + room.rows
}

impl Cache {
    /// Room for pages of all layers, for sequences of so many positions.
    ///
    /// # Errors
    /// When it does not fit; the device's.
    pub fn reserve(
        device: &dyn Driver,
        arena: &mut Arena,
        layers: usize,
        heads: Qkv,
        room: &Room,
        positions: usize,
    ) -> Result<Cache> {
        let pages = pages(room);
        let layer = 2 * pages * PAGE * heads.hk * heads.d;
        let (k, v) = (arena.keep(layers * layer)?, arena.keep(layers * layer)?);
        let longest = bucket(1, positions.div_ceil(PAGE)).1;
        let most = |rows: usize| Batch::bytes(rows, Batch::splits(rows, longest, heads, device.processors()), heads);
        let sizes = (1..=room.rows.next_power_of_two())
            .map(most)
            .fold((0, 0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2)));
        let (parts, stats, done) = (arena.keep(sizes.0)?, arena.keep(sizes.1)?, arena.keep(sizes.2)?);
        let tokens = arena.keep(4 * room.rows.next_power_of_two())?;
        let caches = Caches { k, v, layer };
        let cache = Cache { caches, pages, layers, parts, stats, done, counters: sizes.2, tokens };
        cache.clear(device)?;
        Ok(cache)
    }

    /// Makes it as it was at first.
    ///
    /// # Errors
    /// The device's.
    pub fn clear(&self, device: &dyn Driver) -> Result<()> {
        let bytes = self.layers * self.caches.layer;
        // SAFETY: reserved together; what pages hold before they are written is read by nobody, but must be finite where it is
        // multiplied by 0
        unsafe {
            device.clear(self.done, self.counters)?;
            device.clear(self.caches.k, bytes)?;
            device.clear(self.caches.v, bytes)
        }
    }

    /// Copies a page in all layers.
    fn copy(&self, device: &dyn Driver, layers: usize, (from, to): Copied) -> Result<()> {
        let page = self.caches.layer / self.pages;
        for layer in 0..layers {
            for base in [self.caches.k, self.caches.v] {
                let base = base.plus(layer * self.caches.layer);
                // SAFETY: both pages are of this cache
                unsafe { device.copy(base.plus(to as usize * page), base.plus(from as usize * page), page)? };
            }
        }
        Ok(())
    }
}

/// Sequences that read in one go, before they have places on the device.
#[derive(Default)]
struct Group {
    packing: Packing,
    /// Rows of keys at which queries stand.
    at: Vec<u32>,
    /// The first row.
    from: usize,
    /// Pages on the sheet, first row of keys, tokens.
    sequences: Vec<(usize, usize, usize)>,
    /// On the sheet, by window.
    plans: Vec<(Option<usize>, [usize; 5])>,
}

/// Rows of a step, on the device.
struct StepRows {
    n: usize,
    ids: Address,
    positions: Address,
    /// Rows whose logits are wanted, and how many.
    wanted: (Address, usize),
}

/// No place in a page.
const NOWHERE: u32 = u32::MAX;

/// Sizes of a step that is recorded: sequences, and pages of each.
pub type Bucket = (usize, usize);

/// The bucket of so many sequences with so many pages at most: powers of two.
pub fn bucket(rows: usize, pages: usize) -> Bucket {
    (rows.next_power_of_two(), pages.max(1).next_power_of_two())
}

/// A step in which every sequence gets one token and draws the next, as numbers for the device.
pub(super) struct Decoding {
    pub bucket: Bucket,
    sheet: Sheet,
    ids: usize,
    positions: usize,
    slots: usize,
    lengths: usize,
    table: usize,
    wanted: usize,
    settings: usize,
}

impl Decoding {
    /// Of no sequence: the largest that may come.
    pub fn dry(bucket: Bucket) -> Decoding {
        Decoding::new(bucket, &[], &[])
    }

    /// Of sequences that have grown already, with what they draw.
    pub fn new(bucket: Bucket, rows: &[(u32, &Held)], draws: &[Draw]) -> Decoding {
        let (b, p) = bucket;
        let padded = |mut words: Vec<u32>, with: u32| {
            words.resize(b, with);
            words
        };
        let of = |f: &dyn Fn(&(u32, &Held)) -> u32| rows.iter().map(f).collect::<Vec<u32>>();
        let mut sheet = Sheet::default();
        let ids = sheet.put(&padded(of(&|(id, _)| *id), 0));
        let positions = sheet.put(&padded(of(&|(_, held)| held.len() as u32 - 1), 0));
        let slots = sheet.put(&padded(of(&|(_, held)| held.slot(held.len() - 1)), NOWHERE));
        let lengths = sheet.put(&padded(of(&|(_, held)| held.len() as u32), 0));
        let mut table = Vec::with_capacity(b * p);
        for (i, (_, held)) in rows.iter().enumerate() {
            table.extend(held.ids());
            table.resize((i + 1) * p, 0);
        }
        table.resize(b * p, 0);
        let table = sheet.put(&table);
        let wanted = sheet.put(&(0..b as u32).collect::<Vec<_>>());
        let mut all: Vec<Setting> = draws.iter().map(|draw| Setting::new(draw, 0)).collect();
        all.resize(b, Setting { active: 0, ..Setting::default() });
        let words: Vec<u32> = all.iter().flat_map(Setting::words).collect();
        let settings = sheet.put(&words);
        Decoding { bucket, sheet, ids, positions, slots, lengths, table, wanted, settings }
    }
}

impl Work<'_> {
    /// Brings a decoding step's numbers to where its bucket has them; what it returns is where tokens will be.
    pub(super) fn place(&mut self, step: &Decoding) -> Result<(Address, Address)> {
        let base = self.arena.lend(step.sheet.bytes())?;
        step.sheet.write(self.device, base)?;
        let ring = self.arena.lend(DRAWN * step.bucket.0)?;
        Ok((base, ring))
    }

    /// Asks for a decoding step, all of it on the device: rows, model, draws.
    pub(super) fn decode(&mut self, cache: &Cache, step: &Decoding, (base, ring): (Address, Address)) -> Result<()> {
        let ((b, p), heads) = (step.bucket, self.parts.sizes.heads);
        let batch = Batch {
            rows: b,
            pages: base.plus(step.table),
            max_pages: p,
            lengths: base.plus(step.lengths),
            splits: Batch::splits(b, p, heads, self.device.processors()),
            parts: cache.parts,
            stats: cache.stats,
            done: cache.done,
        };
        let slots = base.plus(step.slots);
        let cached = Cached { caches: cache.caches, slots, batch: Some(batch), readings: Vec::new() };
        let rows = StepRows {
            n: b,
            ids: base.plus(step.ids),
            positions: base.plus(step.positions),
            wanted: (base.plus(step.wanted), b),
        };
        let Some(logits) = self.enqueue(&rows, &cached, cache.tokens)? else { return Ok(()) };
        sample(self.device, logits, (cache.tokens, ring), base.plus(step.settings), Address::NONE)
    }

    /// Tokens of keys and values that are read from pages in one go.
    fn room(&self) -> usize {
        let reading = self.purpose.sample.map_or(0, |room| room.reading);
        reading.max(self.purpose.positions)
    }

    /// The largest step, for finding out how much memory it needs: a sequence that reads all it may, and one after another those
    /// that read what is left of a step.
    pub(super) fn largest(&mut self, cache: &Cache, room: &Room) -> Result<()> {
        let pool = Pool::new(cache.pages);
        let new = vec![0; room.chunk.max(1)];
        let mut held: Vec<Held> = (0..room.rows).map(|_| Held::new(&pool)).collect();
        let positions = self.purpose.positions;
        let share = new.len().div_ceil(positions).max(1);
        let mut feeds = Vec::new();
        for (i, held) in held.iter_mut().enumerate() {
            let part = new.len() / share;
            let new = if i < share { &new[..part] } else { &new[..1] };
            if i == 0 {
                held.grow(positions - new.len())?;
            }
            feeds.push(Feed { held, new, logits: true });
        }
        self.advance(cache, &mut feeds).map(|_| ())
    }

    /// Room for the new tokens of all sequences, or of none; their lengths before.
    pub(super) fn grow(&self, cache: &Cache, feeds: &mut [Feed<'_>]) -> Result<Vec<usize>> {
        let lens: Vec<usize> = feeds.iter().map(|f| f.held.len()).collect();
        for (feed, len) in feeds.iter().zip(&lens) {
            assert!(!feed.new.is_empty(), "BUG: a sequence was extended by no token");
            let (end, most) = (len + feed.new.len(), self.purpose.positions);
            if end > most {
                bail!("a sequence of {end} tokens, expected {most} at most: the device was made ready for no more");
            }
        }
        let needed: usize = feeds.iter().map(|f| f.held.needs(f.new.len())).sum();
        let free = feeds.first().map_or(0, |f| f.held.free());
        if needed > free {
            bail!("{needed} pages of keys and values are needed and {free} are free: sample fewer sequences at once");
        }
        for feed in feeds.iter_mut() {
            if let Some(copied) = feed.held.grow(feed.new.len())? {
                cache.copy(self.device, self.parts.layers.len(), copied)?;
            }
        }
        Ok(lens)
    }

    /// One step. Returns the logits (m, stride), float32, of the m sequences that want them, in order, which live until the
    /// arena is reset.
    pub(super) fn advance(&mut self, cache: &Cache, feeds: &mut [Feed<'_>]) -> Result<Option<Matrix>> {
        let sizes = self.parts.sizes;
        let heads = sizes.heads;
        // 1. room for the new tokens, in all sequences or none
        let lens = self.grow(cache, feeds)?;
        // 2. the rows: first those of sequences with one new token
        let mut order: Vec<usize> = (0..feeds.len()).filter(|i| feeds[*i].new.len() == 1).collect();
        let rows = order.len();
        order.extend((0..feeds.len()).filter(|i| feeds[*i].new.len() > 1));
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = vec![0; feeds.len()];
        for i in &order {
            let feed = &feeds[*i];
            ids.extend_from_slice(feed.new);
            for token in lens[*i]..lens[*i] + feed.new.len() {
                positions.push(token as u32);
                slots.push(feed.held.slot(token));
            }
            last[*i] = ids.len() as u32 - 1;
        }
        let n = ids.len();
        let wanted: Vec<u32> = feeds.iter().zip(&last).filter(|(f, _)| f.logits).map(|(_, row)| *row).collect();
        let mut sheet = Sheet::default();
        let (ids_at, positions_at, slots_at) = (sheet.put(&ids), sheet.put(&positions), sheet.put(&slots));
        let wanted_at = sheet.put(&wanted);
        // 3. pages of those that decode, and of those that read
        let max_pages = order[..rows].iter().map(|i| feeds[*i].held.ids().count()).max().unwrap_or(0);
        let (mut table, mut lengths) = (Vec::with_capacity(rows * max_pages), Vec::with_capacity(rows));
        for i in &order[..rows] {
            table.extend(feeds[*i].held.ids());
            lengths.push(feeds[*i].held.len() as u32);
            table.resize(lengths.len() * max_pages, 0);
        }
        let (table_at, lengths_at) = (sheet.put(&table), sheet.put(&lengths));
        // those that read, in groups whose tokens there is room for; each alone always fits
        let mut groups: Vec<Group> = Vec::new();
        let mut from = rows;
        for i in &order[rows..] {
            let tokens = feeds[*i].held.len();
            if groups.last().is_none_or(|g| g.packing.len() + tokens > self.room()) {
                groups.push(Group { from, ..Group::default() });
            }
            let Some(group) = groups.last_mut() else { panic!("BUG: no group was made") };
            let first = group.packing.len();
            group.packing.root(tokens);
            group.at.extend((first + lens[*i]..first + tokens).map(|row| row as u32));
            let pages: Vec<u32> = feeds[*i].held.ids().collect();
            group.sequences.push((sheet.put(&pages), first, tokens));
            from += feeds[*i].new.len();
        }
        for group in &mut groups {
            let keys = Keys::of(&group.packing);
            let (at, vis, positions) = (sheet.put(&group.at), sheet.put(&keys.vis_end), sheet.put(&keys.positions));
            for window in self.windows {
                let lists = Tiles::new(&keys, Some(&group.at), *window).by_query;
                let lists = (sheet.put(&lists.first), sheet.put(&lists.tiles));
                group.plans.push((*window, [at, vis, positions, lists.0, lists.1]));
            }
        }
        let base = self.arena.lend(sheet.bytes())?;
        sheet.write(self.device, base)?;
        let batch = (rows > 0).then(|| Batch {
            rows,
            pages: base.plus(table_at),
            max_pages,
            lengths: base.plus(lengths_at),
            splits: Batch::splits(rows, max_pages, heads, self.device.processors()),
            parts: cache.parts,
            stats: cache.stats,
            done: cache.done,
        });
        let most = |of: fn(&Group) -> usize| groups.iter().map(of).max().unwrap_or(0);
        let (n_k, n_q) = (most(|g| g.packing.len()), most(|g| g.at.len()));
        let bytes = 2 * n_k * heads.hk * heads.d;
        let (k, v, lse) = (self.arena.lend(bytes)?, self.arena.lend(bytes)?, self.arena.lend(4 * heads.h * n_q)?);
        let readings = |group: &Group| {
            let none = Address::NONE;
            let plan = |(window, [at, vis, positions, first, tiles]): &(Option<usize>, [usize; 5])| {
                let place = |at: &usize| base.plus(*at);
                let (n_q, n_k) = (group.at.len(), group.packing.len());
                let by_query = (place(first), place(tiles));
                let (at, vis_end, positions) = (place(at), place(vis), place(positions));
                (*window, Plan { n_q, n_k, at, vis_end, positions, by_query, by_key: (none, none) })
            };
            let sequence =
                |(pages, first, tokens): &_| Reading { pages: base.plus(*pages), first: *first, tokens: *tokens };
            Readings {
                sequences: group.sequences.iter().map(sequence).collect(),
                from: group.from,
                plans: group.plans.iter().map(plan).collect(),
                k,
                v,
                lse,
            }
        };
        let readings = groups.iter().map(readings).collect();
        let cached = Cached { caches: cache.caches, slots: base.plus(slots_at), batch, readings };
        // 4. the model, and the head for those who want it
        let rows = StepRows {
            n,
            ids: base.plus(ids_at),
            positions: base.plus(positions_at),
            wanted: (base.plus(wanted_at), wanted.len()),
        };
        self.enqueue(&rows, &cached, cache.tokens)
    }

    /// The model over rows that are on the device; nothing here looks at the host.
    fn enqueue(&mut self, rows: &StepRows, cached: &Cached, drawn: Address) -> Result<Option<Matrix>> {
        let (sizes, parts, n) = (self.parts.sizes, self.parts, rows.n);
        let bytes = 2 * n * sizes.hidden;
        let out = Stream { x: self.arena.keep(bytes)?, delta: self.arena.keep(bytes)? };
        let table = parts.embed.value;
        Kernels(self.device).gather_rows(out.x, table.at, (rows.ids, drawn), n, table.columns)?;
        let mut stream = Stream { x: out.x, delta: Address::NONE };
        let mut pass = Pass {
            device: self.device,
            arena: self.arena,
            sizes,
            n,
            ropes: &parts.ropes,
            positions: rows.positions,
            attention: Rows::Cached(cached),
            dropped: &[],
        };
        for layer in &parts.layers {
            stream = pass.forward(layer, stream, out, Keep::Nothing)?.0;
        }
        if rows.wanted.1 == 0 {
            return Ok(None);
        }
        let ends = self.ends(rows.wanted, stream)?;
        let v = parts.head.value.rows;
        let stride = v.next_multiple_of(8);
        let at = self.arena.keep(4 * rows.wanted.1 * stride)?;
        let logits = Matrix { at, element: Element::F32, rows: rows.wanted.1, columns: v, stride };
        // SAFETY: kept for this product
        unsafe { self.device.product(&Product::rows(ends.h, parts.head.value, logits))? };
        Ok(Some(logits))
    }
}

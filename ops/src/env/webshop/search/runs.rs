//! Indexing in bounded memory: texts in chunks become sorted runs on disk, which are merged word by word.
//!
//! 1. [`Runs::add`] collects texts; every [`CHUNK`] of them go to a thread that writes a run: words in order, each with
//!    its products and counts.
//! 2. [`Runs::merge`] reads all runs side by side and gives each word once, with all of its products.
//!
//! Invariants: a run is a function of its chunk and chunks do not depend on threads, so merging gives the same words,
//! products and counts however many threads there are.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{BufReader, BufWriter, Read, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use camino::{Utf8Path, Utf8PathBuf};

use super::analyze::{tokens, word};
use super::postings::put;
use crate::env::EnvError;

/// Texts in a run.
const CHUNK: usize = 32_768;
/// A chunk is also full when its texts have this many bytes.
const CHUNK_BYTES: usize = 64 << 20;
/// No word is longer than 255 UTF-16 units.
const LONGEST: u64 = 1024;

struct Chunk {
    number: usize,
    first: u32,
    texts: Vec<String>,
}

/// How many words each text of a chunk has.
type Lengths = (usize, Vec<u32>);

/// Texts on their way into an index.
pub struct Runs {
    folder: Utf8PathBuf,
    texts: Vec<String>,
    bytes: usize,
    added: u32,
    chunks: usize,
    send: Option<SyncSender<Chunk>>,
    threads: Vec<JoinHandle<Result<Vec<Lengths>, EnvError>>>,
}

/// Runs that are written: what [`Runs::finish`] gives.
pub struct Sorted {
    /// With the number of each one's first text.
    runs: Vec<(Utf8PathBuf, u32)>,
    /// Words of each text, in the order in which they were added.
    pub lengths: Vec<u32>,
}

impl Runs {
    /// Runs are written into `folder`, by `threads` threads.
    ///
    /// # Errors
    /// The system's, where it has no more threads.
    pub fn new(folder: &Utf8Path, threads: usize) -> Result<Runs, EnvError> {
        let (send, receive) = sync_channel::<Chunk>(0);
        let receive = Arc::new(Mutex::new(receive));
        let mut handles = Vec::new();
        for _ in 0..threads.max(1) {
            let (receive, folder) = (Arc::clone(&receive), folder.to_owned());
            handles.push(std::thread::Builder::new().name("words".to_owned()).spawn(move || {
                let mut lengths = Vec::new();
                loop {
                    let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(chunk) = next else { return Ok(lengths) };
                    lengths.push((chunk.number, write_run(&folder, &chunk)?));
                }
            })?);
        }
        Ok(Runs {
            folder: folder.to_owned(),
            texts: Vec::new(),
            bytes: 0,
            added: 0,
            chunks: 0,
            send: Some(send),
            threads: handles,
        })
    }

    /// Adds the next text.
    ///
    /// # Errors
    /// Those of writing runs; more texts than fit 32 bits.
    pub fn add(&mut self, text: String) -> Result<(), EnvError> {
        self.bytes += text.len();
        self.texts.push(text);
        if self.texts.len() == CHUNK || self.bytes >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), EnvError> {
        let texts = std::mem::take(&mut self.texts);
        self.bytes = 0;
        let first = self.added;
        self.added = (u32::try_from(texts.len()).ok())
            .and_then(|more| first.checked_add(more))
            .filter(|all| *all < u32::MAX)
            .ok_or_else(|| EnvError::unusable(format!("expected fewer than {} products", u32::MAX)))?;
        let chunk = Chunk { number: self.chunks, first, texts };
        self.chunks += 1;
        if self.send.as_ref().is_none_or(|send| send.send(chunk).is_err()) {
            // every thread has gone, and says why when it is asked
            self.wait()?;
            return Err(EnvError::unusable("no thread is left to index products"));
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Vec<Lengths>, EnvError> {
        self.send = None;
        let mut lengths = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(some) => lengths.extend(some?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(lengths)
    }

    /// Writes the last run.
    ///
    /// # Errors
    /// As [`Runs::add`].
    pub fn finish(mut self) -> Result<Sorted, EnvError> {
        if !self.texts.is_empty() {
            self.send()?;
        }
        let mut lengths = self.wait()?;
        lengths.sort_unstable_by_key(|(number, _)| *number);
        let mut sorted = Sorted { runs: Vec::with_capacity(lengths.len()), lengths: Vec::new() };
        for (number, lengths) in lengths {
            sorted.runs.push((run_path(&self.folder, number), sorted.lengths.len() as u32));
            sorted.lengths.extend(lengths);
        }
        Ok(sorted)
    }
}

impl Drop for Runs {
    /// After a stop or an error no thread goes on writing: the next attempt may write into the same folder.
    fn drop(&mut self) {
        self.send = None;
        for thread in self.threads.drain(..) {
            // whatever it says, nobody asks any more
            let _ = thread.join();
        }
    }
}

fn run_path(folder: &Utf8Path, number: usize) -> Utf8PathBuf {
    folder.join(format!("run-{number:06}"))
}

/// Counts a chunk's words and writes them in order.
fn write_run(folder: &Utf8Path, chunk: &Chunk) -> Result<Vec<u32>, EnvError> {
    // token as written -> word, or none for a stop word; most tokens were seen before
    let mut seen: HashMap<&str, Option<u32>> = HashMap::new();
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut lists: Vec<Vec<(u32, u32)>> = Vec::new();
    let mut lengths = Vec::with_capacity(chunk.texts.len());
    let (mut letters, mut here) = (Vec::new(), Vec::new());
    for (product, text) in (chunk.first..).zip(&chunk.texts) {
        here.clear();
        tokens(text, &mut |token| {
            let id = *seen.entry(token).or_insert_with(|| {
                let word = word(token, &mut letters)?;
                let next = ids.len() as u32;
                Some(*ids.entry(word).or_insert(next))
            });
            here.extend(id);
        });
        lengths.push(here.len() as u32);
        lists.resize_with(ids.len(), Vec::new);
        here.sort_unstable();
        for same in here.chunk_by(|a, b| a == b) {
            lists[same[0] as usize].push((product, same.len() as u32));
        }
    }
    let mut order: Vec<(String, u32)> = ids.into_iter().collect();
    order.sort_unstable();
    let mut out = BufWriter::with_capacity(1 << 18, fs_err::File::create(run_path(folder, chunk.number))?);
    let mut line = Vec::new();
    for (word, id) in order {
        line.clear();
        put(&mut line, word.len() as u64);
        line.extend_from_slice(word.as_bytes());
        let list = &lists[id as usize];
        put(&mut line, list.len() as u64);
        let mut next = chunk.first;
        for &(product, count) in list {
            put(&mut line, u64::from(product - next));
            put(&mut line, u64::from(count));
            next = product + 1;
        }
        out.write_all(&line)?;
    }
    out.into_inner().map_err(|e| e.into_error())?;
    Ok(lengths)
}

/// A run while it is merged.
struct Reader {
    file: BufReader<fs_err::File>,
    first: u32,
}

fn broken() -> EnvError {
    EnvError::Io(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "a sorted run of the index changed while it was read",
    ))
}

impl Reader {
    fn number(&mut self) -> Result<u64, EnvError> {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
        }
        Err(broken())
    }

    /// The next word, if there is one.
    fn word(&mut self) -> Result<Option<Vec<u8>>, EnvError> {
        if std::io::BufRead::fill_buf(&mut self.file)?.is_empty() {
            return Ok(None);
        }
        let length = self.number()?;
        if length > LONGEST {
            return Err(broken());
        }
        let mut word = vec![0; length as usize];
        self.file.read_exact(&mut word)?;
        Ok(Some(word))
    }

    /// Products and counts of the word that came last.
    fn products(&mut self, into: &mut Vec<(u32, u32)>) -> Result<(), EnvError> {
        let mut next = u64::from(self.first);
        for _ in 0..self.number()? {
            let product = next + self.number()?;
            let count = self.number()?;
            into.push((u32::try_from(product).map_err(|_| broken())?, u32::try_from(count).map_err(|_| broken())?));
            next = product + 1;
        }
        Ok(())
    }
}

impl Sorted {
    /// Gives every word in order of its bytes, with its products and counts; removes the runs.
    ///
    /// # Errors
    /// The file system's, and those of `each`.
    pub fn merge(
        self,
        mut each: impl FnMut(&[u8], &mut Vec<(u32, u32)>) -> Result<(), EnvError>,
    ) -> Result<(), EnvError> {
        let mut readers = Vec::with_capacity(self.runs.len());
        let mut heads = BinaryHeap::new();
        for (number, (path, first)) in self.runs.iter().enumerate() {
            let file = BufReader::with_capacity(1 << 16, fs_err::File::open(path)?);
            let mut reader = Reader { file, first: *first };
            if let Some(word) = reader.word()? {
                heads.push(Reverse((word, number)));
            }
            readers.push(reader);
        }
        let mut products = Vec::new();
        while let Some(Reverse((word, number))) = heads.pop() {
            readers[number].products(&mut products)?;
            if let Some(next) = readers[number].word()? {
                heads.push(Reverse((next, number)));
            }
            // the same word of a later run comes next: runs are in the order of their products
            if heads.peek().is_none_or(|Reverse((next, _))| *next != word) {
                each(&word, &mut products)?;
                products.clear();
            }
        }
        for (path, _) in self.runs {
            fs_err::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::env::webshop::search::analyze::words;

    #[test]
    fn merged_runs_hold_what_the_texts_hold_for_any_number_of_threads() {
        let mut rng = crate::rng::Rng::new(5, 0);
        let texts: Vec<String> = (0..CHUNK + 700)
            .map(|_| (0..rng.below(6)).map(|_| format!("w{} ", rng.below(300))).collect::<String>())
            .collect();
        let mut want: BTreeMap<String, BTreeMap<u32, u32>> = BTreeMap::new();
        for (product, text) in texts.iter().enumerate() {
            for word in words(text) {
                *want.entry(word).or_default().entry(product as u32).or_default() += 1;
            }
        }
        for threads in [1, 3] {
            let folder = tempfile::tempdir().unwrap();
            let folder = Utf8Path::from_path(folder.path()).unwrap();
            let mut runs = Runs::new(folder, threads).unwrap();
            for text in &texts {
                runs.add(text.clone()).unwrap();
            }
            let sorted = runs.finish().unwrap();
            let lengths: Vec<u32> = texts.iter().map(|text| words(text).len() as u32).collect();
            assert_eq!(sorted.lengths, lengths);
            let mut got = Vec::new();
            sorted
                .merge(|word, products| {
                    got.push((String::from_utf8(word.to_vec()).unwrap(), std::mem::take(products)));
                    Ok(())
                })
                .unwrap();
            let want: Vec<(String, Vec<(u32, u32)>)> =
                want.iter().map(|(word, list)| (word.clone(), list.iter().map(|(p, c)| (*p, *c)).collect())).collect();
            assert_eq!(got, want);
            assert_eq!(fs_err::read_dir(folder).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_run_that_cannot_be_written_is_an_error() {
        let mut runs = Runs::new(Utf8Path::new("/nonexistent"), 1).unwrap();
        runs.add("a lamp".to_owned()).unwrap();
        assert!(runs.finish().is_err());
    }
}

//! A file of episodes that what was played is added to.
//!
//! Invariants: nothing is added to what does not hold whole lines of episodes, which is known before the game begins;
//! nothing is created before there is something to write.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};

use actloom_engine::op::OpError;
use camino::Utf8Path;

use super::Wrong;
use crate::artifact::{Episode, SCHEMA_VERSION};

/// Longest first line that is looked at, in bytes.
const LONGEST: u64 = 1 << 28;

/// Whether an episode can be added to this file: it is new, or empty, or holds episodes.
///
/// # Errors
/// The file system's; a file that holds something else, or no file at all.
pub fn fits(path: &Utf8Path) -> Result<(), Wrong> {
    match fs_err::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // can it be made? it is made again when there is something to write
            drop(fs_err::OpenOptions::new().write(true).create_new(true).open(path).map_err(world)?);
            fs_err::remove_file(path).map_err(world)
        }
        Err(error) => Err(world(error)),
        Ok(what) if !what.is_file() => {
            Err(refused(format!("`{path}` is no regular file, expected a file of episodes or a new one")))
        }
        Ok(_) => {
            let file = fs_err::OpenOptions::new().read(true).append(true).open(path).map_err(world)?;
            whole(path, file.into_file())
        }
    }
}

/// Holds a file that is there against what episodes look like: its first line, and its end.
fn whole(path: &Utf8Path, file: File) -> Result<(), Wrong> {
    let mut line = Vec::new();
    let mut file = BufReader::new(file);
    file.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(world)?;
    if line.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Episode>(&line) {
        Ok(first) if first.v == SCHEMA_VERSION => {}
        Ok(first) => {
            let found = first.v;
            return Err(refused(format!("`{path}` has schema version {found}, expected {SCHEMA_VERSION}")));
        }
        // a line that was torn off is told from something else by its beginning
        Err(why) if why.is_eof() && line.starts_with(b"{\"v\"") => return Err(torn(path)),
        Err(why) => {
            return Err(refused(format!(
                "`{path}` holds something else than episodes, expected an episode in line 1 ({why})"
            )));
        }
    }
    let mut last = [0];
    let mut file = file.into_inner();
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(world)?;
    if last == *b"\n" { Ok(()) } else { Err(torn(path)) }
}

fn torn(path: &Utf8Path) -> Wrong {
    refused(format!("`{path}` does not end with a whole line, expected episodes"))
}

fn world(error: std::io::Error) -> Wrong {
    Wrong::World(error.into())
}

fn refused(message: String) -> Wrong {
    Wrong::Asked { message, help: Some("name a new file, or one that an earlier `--out` wrote".to_owned()) }
}

/// Adds an episode to a file of episodes, which may be new.
///
/// # Errors
/// As [`fits`].
pub fn append(path: &Utf8Path, episode: &Episode) -> Result<(), OpError> {
    // it may have changed since the game began
    fits(path).map_err(|wrong| match wrong {
        Wrong::Asked { message, help } => OpError::Failed { message, help },
        Wrong::World(error) => error,
    })?;
    let mut text = serde_json::to_string(episode).map_err(std::io::Error::from)?;
    text.push('\n');
    let mut file = fs_err::OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

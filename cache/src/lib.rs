//! The content-addressed store: every result of every step, kept by what it is and found by what made it.
//!
//! 1. [`Store::put`] hashes a file or a folder and keeps it as objects and a tree ([`object`], [`tree`]).
//! 2. [`Store::publish`] writes the action record that ties a key to those artifacts ([`action`]).
//! 3. [`Store::action`] and [`Store::complete`] answer whether a step has already run.
//! 4. [`Store::identify`] names what a file or folder outside holds, without taking it.
//! 5. [`gc`] plans what to forget and then forgets it; [`verify`] re-hashes everything.
//!
//! Invariants:
//! - **An action record never points at something that is not there.** Objects are staged, synced and renamed, the
//!   folders they lie in are synced, and only then is the record written in the same way. A crash at any disk operation
//!   leaves a store that verifies; what an interrupted writer leaves behind is garbage, and `gc` removes it.
//! - **Objects never change.** They are read-only and carry one fixed modification time, so that a write through a
//!   hard link is seen by the `stat` that every lookup makes anyway (see [`object`]).
//! - **Several processes use one store at once.** What a live process has put, published or declared used is pinned,
//!   and `gc` leaves pinned things alone (see [`lock`]).
//! - **This crate knows bytes**: no recipe, no op, no tensor. Everything it does to the file system passes through
//!   [`disk::Disk`].

pub mod action;
pub mod disk;
pub mod error;
pub mod gc;
pub mod id;
pub mod layout;
pub mod lock;
pub mod object;
mod outside;
mod store;
pub mod tree;
pub mod verify;

pub use action::{ACTION_VERSION, Action};
pub use disk::{Disk, RealDisk};
pub use error::StoreError;
pub use id::{ActionKey, Artifact, ContentId, Form};
pub use lock::KeyLock;
pub use store::{Stage, Store, Tally, Usage};
pub use tree::TreeEntry;
pub use verify::{Problem, VerifyReport};

//! Identities: what a thing is (`ContentId`) and what made it (`ActionKey`).
//!
//! Invariants: both print as 64 lower-case hexadecimal digits and parse from nothing else, so that one identity has one
//! spelling and one file name. A file's id is the plain blake3 hash of its bytes, so `b3sum` agrees; trees and keys are
//! hashed in domains of their own, so that a file holding a tree's manifest is never mistaken for the tree.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Raise the number when the manifest's form changes.
const TREE_CONTEXT: &str = "actloom tree 1";
const ACTION_CONTEXT: &str = "actloom action 1";

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 12 digits, for people.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&blake3::Hash::from(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&blake3::Hash::from(self.0).to_hex())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hash_type! {
    /// What a file or folder holds.
    ContentId
}
hash_type! {
    /// What made something: the hash of an action's manifest.
    ActionKey
}

impl ContentId {
    /// The id of a file with these bytes.
    pub fn of_file(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The id of a tree with this canonical manifest.
    pub fn of_tree(manifest: &[u8]) -> Self {
        Self(blake3::derive_key(TREE_CONTEXT, manifest))
    }
}

impl ActionKey {
    /// The key of an action with this manifest.
    pub fn of(manifest: &[u8]) -> Self {
        Self(blake3::derive_key(ACTION_CONTEXT, manifest))
    }
}

/// A text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no id, expected 64 lower-case hexadecimal digits")]
pub struct IdError(String);

fn parse(text: &str) -> Result<[u8; 32], IdError> {
    let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match blake3::Hash::from_hex(text) {
        Ok(hash) if lower => Ok(hash.into()),
        _ => Err(IdError(text.to_owned())),
    }
}

/// Whether an artifact is one file or a folder of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    File,
    Tree,
}

impl Form {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Form::File => "file",
            Form::Tree => "tree",
        }
    }
}

/// A file or folder in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Artifact {
    pub id: ContentId,
    pub form: Form,
    /// Of the file, or of all files of the tree together.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = ContentId::of_file(b"abc");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<ContentId>().is_err());
        assert!(id.short().parse::<ContentId>().is_err());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<ContentId>(&json).unwrap(), id);
    }

    #[test]
    fn ids_of_known_bytes_never_change() {
        // The first two are blake3's published vectors; `b3sum` prints them.
        assert_eq!(
            ContentId::of_file(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(
            ContentId::of_file(b"abc").to_string(),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
        // As Python's blake3 1.0.11 says: `blake3(b"m", derive_key_context="actloom action 1")`.
        assert_eq!(ActionKey::of(b"m").to_string(), "df95fd132e76d47181efffeb67e05d2f33826f8853a958d7ccd2616e7121784e");
    }

    #[test]
    fn files_trees_and_actions_hash_in_domains_of_their_own() {
        let file = *ContentId::of_file(b"x").as_bytes();
        let tree = *ContentId::of_tree(b"x").as_bytes();
        let action = *ActionKey::of(b"x").as_bytes();
        assert!(file != tree && tree != action && file != action);
    }
}

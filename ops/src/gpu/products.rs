//! Which algorithm each product takes, kept in a file: so that another run, and another program, takes the same.
//!
//! Invariants: a file is of one kind of device and one version of cuBLASLt, for algorithms are numbers that mean something there alone;
//! what was once chosen is never chosen again; a file is written whole or not at all.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// An algorithm, as cuBLASLt lets it be copied.
pub type Algorithm = [u64; 8];

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v: u32,
    device: String,
    cublaslt: u64,
    products: BTreeMap<String, Algorithm>,
}

/// Choices, and the file that they are kept in.
pub struct Choices {
    path: PathBuf,
    kept: Kept,
}

impl Choices {
    /// Of a file, which need not be there yet.
    ///
    /// # Errors
    /// A file that is none of these, or of another device or version.
    pub fn open(path: PathBuf, device: &str, cublaslt: u64) -> Result<Choices> {
        let fresh = Kept { v: 1, device: device.to_owned(), cublaslt, products: BTreeMap::new() };
        let place = path.display();
        let kept = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) if kept.v == fresh.v => kept,
                Ok(kept) => bail!("`{place}` has version {} of choices of algorithms, expected {}", kept.v, fresh.v),
                Err(error) => bail!("`{place}` holds no choices of algorithms: {error}"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh.clone(),
            Err(error) => bail!("cannot read `{place}`: {error}"),
        };
        if (&kept.device, kept.cublaslt) != (&fresh.device, fresh.cublaslt) {
            bail!(
                "`{place}` has choices for {} and cuBLASLt {}, and this is {device} and cuBLASLt {cublaslt}: name another file, \
                 or none, in ACTLOOM_PRODUCTS",
                kept.device,
                kept.cublaslt
            );
        }
        Ok(Choices { path, kept })
    }

    /// What was chosen.
    pub fn get(&self, product: &str) -> Option<Algorithm> {
        self.kept.products.get(product).copied()
    }

    /// Keeps a choice.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&mut self, product: String, algorithm: Algorithm) -> Result<()> {
        self.kept.products.entry(product).or_insert(algorithm);
        let beside = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            std::fs::write(&beside, serde_json::to_vec_pretty(&self.kept)?)?;
            std::fs::rename(&beside, &self.path)
        };
        match write() {
            Ok(()) => Ok(()),
            Err(error) => bail!("cannot write `{}`: {error}", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_is_chosen_again_and_another_devices_choices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("products.json");
        let open = |device: &str, version| Choices::open(path.clone(), device, version);
        let mut choices = open("H100", 130_001).unwrap();
        assert_eq!(choices.get("a"), None);
        choices.keep("a".to_owned(), [1, 2, 3, 4, 5, 6, 7, u64::MAX]).unwrap();
        choices.keep("b".to_owned(), [9; 8]).unwrap();
        choices.keep("a".to_owned(), [0; 8]).unwrap();
        let again = open("H100", 130_001).unwrap();
        assert_eq!(again.get("a"), Some([1, 2, 3, 4, 5, 6, 7, u64::MAX]));
        assert_eq!(again.get("b"), Some([9; 8]));
        for (device, version) in [("H200", 130_001), ("H100", 130_002)] {
            let error = open(device, version).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("has choices for H100 and cuBLASLt 130001"), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        std::fs::write(&path, "{}").unwrap();
        let error = open("H100", 130_001).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("holds no choices of algorithms"), "{error}");
    }
}

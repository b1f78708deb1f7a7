//! Safetensors files by parts: headers without data, one tensor at a time, and writing without holding a whole file.
//!
//! Invariants: a file appears under its name only when every byte of every tensor was written (staged, synced,
//! renamed); what is written equals to the byte what the safetensors library writes for the same tensors; a file whose
//! length does not match its header is refused.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom, Write};

use actloom_engine::op::OpError;
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

/// Longest header that is read, as in the safetensors library.
const LONGEST_HEADER: u64 = 100_000_000;

/// A tensor in a file, not read yet.
#[derive(Clone, Debug)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub file: Utf8PathBuf,
    /// Place of its data in the file.
    start: u64,
    pub bytes: u64,
}

impl Stored {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its data, as it lies in the file.
    ///
    /// # Errors
    /// The file system's.
    pub fn raw(&self) -> Result<Vec<u8>, OpError> {
        let mut file = fs_err::File::open(&self.file)?;
        file.seek(SeekFrom::Start(self.start))?;
        let mut bytes = vec![0; self.bytes as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The tensor on the processor, in the type it is stored in.
    ///
    /// # Errors
    /// The file system's, and types of numbers that no model here uses.
    pub fn read(&self) -> Result<Tensor, OpError> {
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F64 => DType::F64,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => {
                let (name, file) = (&self.name, &self.file);
                return Err(OpError::failed(format!(
                    "tensor `{name}` of `{file}` is stored as {other}, expected F32, BF16 or F16"
                )));
            }
        };
        Tensor::from_raw_buffer(&self.raw()?, dtype, &self.shape, &Device::Cpu).map_err(super::failed)
    }
}

/// The tensors of one file, in the order of their data; no data is read.
///
/// # Errors
/// A file that is no safetensors file, or is not whole.
pub fn list_file(path: &Utf8Path) -> Result<Vec<Stored>, OpError> {
    let broken = |what: String| OpError::failed(format!("cannot read `{path}`: {what}"));
    let mut file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    if length < 8 {
        return Err(broken(format!("{length} bytes are no safetensors file")));
    }
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER || size + 8 > length {
        return Err(broken(format!("its header should have {size} bytes, the file has {length}: not a whole file")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| broken(format!("its header: {e}")))?;
    let (named, data) = (metadata.data_len() as u64, length - 8 - size);
    if named != data {
        return Err(broken(format!("its header names {named} bytes of data, the file has {data}: not a whole file")));
    }
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Stored {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            file: path.to_owned(),
            start: 8 + size + info.data_offsets.0 as u64,
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
        })
        .collect();
    // tensors without values share their place with the next one
    tensors.sort_by(|a, b| (a.start, a.bytes, &a.name).cmp(&(b.start, b.bytes, &b.name)));
    Ok(tensors)
}

/// The tensors of a model's folder, by name: `model.safetensors`, or the shards that the index names.
///
/// # Errors
/// Names the file that is missing or broken, and tensors that the index and the shards do not agree on.
pub fn list_tensors(folder: &Utf8Path) -> Result<BTreeMap<String, Stored>, OpError> {
    let index = folder.join("model.safetensors.index.json");
    let mut shard_of: BTreeMap<String, String> = BTreeMap::new();
    let mut files = vec!["model.safetensors".to_owned()];
    if index.exists() {
        let json: serde_json::Value = serde_json::from_slice(&fs_err::read(&index)?)
            .map_err(|e| OpError::failed(format!("cannot read `{index}`: {e}")))?;
        let Some(map) = json["weight_map"].as_object() else {
            return Err(OpError::failed(format!("`{index}` has no `weight_map`")));
        };
        for (name, file) in map {
            // Only names: an index must not lead out of its folder.
            let file = file.as_str().filter(|file| !file.contains(['/', '\\']));
            let Some(file) = file else {
                return Err(OpError::failed(format!("`{index}` names no file of this folder for `{name}`")));
            };
            shard_of.insert(name.clone(), file.to_owned());
        }
        files = shard_of.values().cloned().collect();
        files.sort();
        files.dedup();
    }
    let mut tensors = BTreeMap::new();
    for file in files {
        let path = folder.join(&file);
        if !path.exists() {
            return Err(OpError::failed(format!("`{folder}` holds no model: `{path}` does not exist")));
        }
        tensors.extend(list_file(&path)?.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
    }
    if let Some((name, file)) = shard_of.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        return Err(OpError::failed(format!("`{index}` names a tensor `{name}` that `{file}` does not have")));
    }
    Ok(tensors)
}

/// A tensor that is going to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Where the data of one tensor goes.
struct Slot {
    next: u64,
    end: u64,
}

/// A safetensors file in the making; the data of each tensor comes in parts, tensors in any order.
pub struct TensorWriter {
    path: Utf8PathBuf,
    staged: Utf8PathBuf,
    file: fs_err::File,
    slots: HashMap<String, Slot>,
}

impl TensorWriter {
    /// Starts `path`, staged as `path.part`.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: &Utf8Path, mut entries: Vec<Entry>) -> Result<TensorWriter, OpError> {
        // the library's order: widest numbers first, so that all are aligned, then names
        entries.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut infos = Vec::with_capacity(entries.len());
        let mut offset = 0;
        for entry in entries {
            let bytes = entry.shape.iter().product::<usize>() * entry.dtype.bitsize() / 8;
            let data_offsets = (offset, offset + bytes);
            infos.push((entry.name, TensorInfo { dtype: entry.dtype, shape: entry.shape, data_offsets }));
            offset += bytes;
        }
        let ranges: Vec<_> = infos.iter().map(|(name, info)| (name.clone(), info.data_offsets)).collect();
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let cannot = |what: String| OpError::failed(format!("cannot write `{path}`: {what}"));
        let metadata = Metadata::new(Some(format), infos).map_err(|e| cannot(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| cannot(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let start = 8 + header.len() as u64;

        let staged = Utf8PathBuf::from(format!("{path}.part"));
        let mut file = fs_err::File::create(&staged)?;
        file.set_len(start + offset as u64)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let slots = ranges
            .into_iter()
            .map(|(name, (from, to))| (name, Slot { next: start + from as u64, end: start + to as u64 }))
            .collect();
        Ok(TensorWriter { path: path.to_owned(), staged, file, slots })
    }

    /// The next part of a tensor's data.
    ///
    /// # Errors
    /// The file system's.
    ///
    /// # Panics
    /// On a tensor that was not announced, or more data than it takes: bugs in the caller.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), OpError> {
        let Some(slot) = self.slots.get_mut(name) else { panic!("BUG: tensor `{name}` was not announced") };
        assert!(slot.next + data.len() as u64 <= slot.end, "BUG: too much data for tensor `{name}`");
        self.file.seek(SeekFrom::Start(slot.next))?;
        self.file.write_all(data)?;
        slot.next += data.len() as u64;
        Ok(())
    }

    /// The whole file, under its name.
    ///
    /// # Errors
    /// The file system's.
    ///
    /// # Panics
    /// When data of some tensor is missing: a bug in the caller.
    pub fn finish(self) -> Result<(), OpError> {
        for (name, slot) in &self.slots {
            assert_eq!(slot.next, slot.end, "BUG: data of tensor `{name}` is missing");
        }
        self.file.sync_all()?;
        fs_err::rename(&self.staged, &self.path)?;
        Ok(())
    }

    /// Leaves nothing behind.
    pub fn abandon(self) {
        // What cannot be removed is overwritten by the next attempt.
        let _ = fs_err::remove_file(&self.staged);
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn place() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("x.safetensors")).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_in_parts_equals_what_the_library_writes() {
        let data: [(&str, Dtype, Vec<usize>, Vec<u8>); 4] = [
            ("b", Dtype::F32, vec![2, 3], (0..24).collect()),
            ("a.10", Dtype::BF16, vec![3], (24..30).collect()),
            ("z", Dtype::I64, vec![1], (30..38).collect()),
            ("a.2", Dtype::F32, vec![0, 4], Vec::new()),
        ];
        let views = data.iter().map(|(n, t, s, d)| (*n, TensorView::new(*t, s.clone(), d).unwrap()));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let want = safetensors::serialize(views, Some(metadata)).unwrap();

        let (_dir, path) = place();
        let entry = |(name, dtype, shape, _): &(&str, Dtype, Vec<usize>, Vec<u8>)| Entry {
            name: (*name).to_owned(),
            dtype: *dtype,
            shape: shape.clone(),
        };
        let mut writer = TensorWriter::create(&path, data.iter().map(entry).collect()).unwrap();
        for (name, _, _, bytes) in data.iter().rev() {
            for part in bytes.chunks(5) {
                assert!(!path.exists());
                writer.write(name, part).unwrap();
            }
        }
        writer.finish().unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), want);
        let read = list_file(&path).unwrap();
        assert_eq!(read.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["z", "a.2", "b", "a.10"]);
        for tensor in read {
            let (_, dtype, shape, bytes) = data.iter().find(|(name, ..)| *name == tensor.name).unwrap();
            assert_eq!((&tensor.dtype, &tensor.shape, &tensor.raw().unwrap()), (dtype, shape, bytes));
        }
    }

    #[test]
    fn files_that_are_not_whole_are_refused() {
        let (_dir, path) = place();
        let entry = Entry { name: "w".to_owned(), dtype: Dtype::F32, shape: vec![4] };
        let mut writer = TensorWriter::create(&path, vec![entry]).unwrap();
        writer.write("w", &[7; 16]).unwrap();
        writer.finish().unwrap();
        let whole = fs_err::read(&path).unwrap();
        for keep in [0, 7, 8, 20, whole.len() - 1] {
            fs_err::write(&path, &whole[..keep]).unwrap();
            let error = list_file(&path).unwrap_err().to_string();
            assert!(error.contains("x.safetensors"), "{error}");
        }
    }
}

//! The `metrics` output of a step: JSON lines in the order emitted, the same bytes whether or not the step was stopped.
//!
//! Invariants: every line is in the file before `record` returns, so a killed process loses none that a checkpoint
//! counts; a start that resumes nothing begins with an empty file; a torn last line is dropped. Numbers print in the
//! shortest form that reads back the same; what is not finite is `null`.

use std::io::{ErrorKind, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::{File, OpenOptions};
use serde::{Deserialize, Serialize};

/// The growing file.
#[derive(Debug)]
pub(crate) struct MetricLog {
    path: Utf8PathBuf,
    /// `None` until the first line or the resume decides what of an earlier start stays.
    file: Option<File>,
    /// The first thing that went wrong; reported when the op is done.
    error: Option<std::io::Error>,
}

#[derive(Serialize)]
struct Line<'a> {
    step: u64,
    name: &'a str,
    /// Not finite: null.
    value: Option<f64>,
}

#[derive(Deserialize)]
struct Step {
    step: u64,
}

impl MetricLog {
    pub(crate) fn new(path: Utf8PathBuf) -> MetricLog {
        MetricLog { path, file: None, error: None }
    }

    /// Appends a line. A failure shows at [`finish`](Self::finish), because an op that reports a number is no place for it.
    pub(crate) fn record(&mut self, step: u64, name: &str, value: f64) {
        if let Err(error) = self.append(step, name, value) {
            self.error.get_or_insert(error);
        }
    }

    fn append(&mut self, step: u64, name: &str, value: f64) -> std::io::Result<()> {
        let value = value.is_finite().then_some(value);
        let mut line = serde_json::to_vec(&Line { step, name, value })?;
        line.push(b'\n');
        self.file()?.write_all(&line)
    }

    fn file(&mut self) -> std::io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            empty => Ok(empty.insert(File::create(&self.path)?)),
        }
    }

    pub(crate) fn sync(&mut self) -> std::io::Result<()> {
        self.file()?.sync_data()
    }

    /// Keeps what an earlier start recorded before its first metric of a step after `step`.
    pub(crate) fn resume(&mut self, step: u64) -> std::io::Result<()> {
        if self.file.is_some() {
            return Err(std::io::Error::other(
                "metrics were emitted before `resume_metrics`, expected the opposite order",
            ));
        }
        let bytes = match fs_err::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut keep = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let whole = line.ends_with(b"\n");
            match serde_json::from_slice::<Step>(line) {
                Ok(parsed) if whole && parsed.step <= step => keep += line.len(),
                _ => break,
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.set_len(keep as u64)?;
        self.file = Some(file);
        Ok(())
    }

    /// Copies everything to `dest`.
    pub(crate) fn finish(mut self, dest: &Utf8Path) -> std::io::Result<()> {
        self.file()?;
        if let Some(error) = self.error {
            return Err(error);
        }
        fs_err::copy(&self.path, dest)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    fn finished(log: MetricLog, dir: &Utf8Path) -> String {
        log.finish(&dir.join("out")).unwrap();
        fs_err::read_to_string(dir.join("out")).unwrap()
    }

    #[test]
    fn numbers_print_shortest_and_non_finite_ones_are_null() {
        let (_guard, dir) = folder();
        let mut log = MetricLog::new(dir.join("m"));
        log.record(0, "loss", 0.1);
        log.record(1, "loss", 3.0);
        log.record(1, "kl", f64::NAN);
        assert_eq!(
            finished(log, &dir),
            "{\"step\":0,\"name\":\"loss\",\"value\":0.1}\n{\"step\":1,\"name\":\"loss\",\"value\":3.0}\n\
             {\"step\":1,\"name\":\"kl\",\"value\":null}\n"
        );
    }

    #[test]
    fn a_start_that_resumes_nothing_begins_with_an_empty_file() {
        let (_guard, dir) = folder();
        let mut log = MetricLog::new(dir.join("m"));
        log.record(0, "loss", 1.0);
        drop(log);
        assert_eq!(finished(MetricLog::new(dir.join("m")), &dir), "");
    }

    #[test]
    fn a_resumed_log_has_the_bytes_of_one_that_never_stopped() {
        let (_guard, dir) = folder();
        let record = |log: &mut MetricLog, steps: std::ops::Range<u64>| {
            for step in steps {
                log.record(step, "loss", 1.0 / (step as f64 + 1.0));
                log.record(step, "lr", 1e-5);
            }
        };
        let mut whole = MetricLog::new(dir.join("whole"));
        record(&mut whole, 0..9);
        let whole = finished(whole, &dir);
        // The checkpoint is of step 4; the process died at step 7 in the middle of a line.
        let mut first = MetricLog::new(dir.join("m"));
        record(&mut first, 0..7);
        drop(first);
        let mut bytes = fs_err::read(dir.join("m")).unwrap();
        bytes.extend(b"{\"step\":7,\"na");
        fs_err::write(dir.join("m"), bytes).unwrap();
        fs_err::remove_file(dir.join("out")).unwrap();
        let mut second = MetricLog::new(dir.join("m"));
        second.resume(4).unwrap();
        record(&mut second, 5..9);
        assert_eq!(finished(second, &dir), whole);
    }

    #[test]
    fn resuming_after_the_first_metric_is_refused() {
        let (_guard, dir) = folder();
        let mut log = MetricLog::new(dir.join("m"));
        log.record(0, "loss", 1.0);
        assert!(log.resume(0).is_err());
    }
}

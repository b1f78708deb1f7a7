//! The real simulator: where Java and the JAR are, and how they are started.
//!
//! Invariants: nothing is installed or downloaded; an error names every place that was tried, and what to install.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::machine::{Launch, NAME, Running, late};
use crate::env::{EnvError, process};

/// Longest time of `java -version` and of asking Python.
const ANSWER: Duration = Duration::from_secs(60);

/// Java with the simulator's JAR.
pub struct Java {
    java: Utf8PathBuf,
    jar: Utf8PathBuf,
    /// MiB of heap.
    memory: usize,
    version: String,
    simulator: Option<String>,
    content: String,
}

impl Java {
    /// Finds both. The JAR is `data`, a file or a folder that holds it; else `SCIENCEWORLD_JAR`; else the one in the
    /// Python package `scienceworld` of `python3`.
    ///
    /// # Errors
    /// What is missing and where it was looked for.
    pub fn find(data: Option<&Utf8Path>, memory: usize) -> Result<Java, EnvError> {
        let jar = find_jar(data)?;
        whole(&jar)?;
        let content = content(&jar)?;
        let (java, version) = find_java()?;
        let simulator = File::open(&jar).ok().and_then(version_of);
        Ok(Java { java, jar, memory, version, simulator, content })
    }
}

impl Launch for Java {
    fn launch(&self, deadline: Duration) -> Result<(Box<dyn Running>, u16), EnvError> {
        let clock = Instant::now();
        let mut command = Command::new(&self.java);
        command.arg(format!("-Xmx{}m", self.memory)).arg("-XX:+UseSerialGC");
        command.arg("-cp").arg(std::path::absolute(&self.jar)?);
        // the simulator writes a table of its object types into the folder that it is started in
        let folder = tempfile::tempdir()?;
        command.current_dir(folder.path());
        // it takes a free port and prints it, and ends when its stdin does: when nobody holds this process any more
        command.args(["py4j.GatewayServer", "--die-on-broken-pipe", "0"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Housed { process: process::Running::start(command)?, _folder: folder };
        let (send, port) = mpsc::channel();
        if let Some(stdout) = running.process.child().stdout.take() {
            thread::Builder::new().name("stdout of java".to_owned()).spawn(move || {
                let mut stdout = BufReader::new(stdout);
                let mut line = Vec::new();
                let _ = stdout.by_ref().take(100).read_until(b'\n', &mut line);
                let _ = send.send(String::from_utf8_lossy(&line).trim().to_owned());
                // the simulator prints a lot, and would wait for a reader
                let _ = std::io::copy(&mut stdout, &mut std::io::sink());
            })?;
        }
        let line = match port.recv_timeout(deadline.saturating_sub(clock.elapsed())) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(late("start", deadline)),
            Err(mpsc::RecvTimeoutError::Disconnected) => String::new(),
        };
        match line.parse() {
            Ok(port) => Ok((Box::new(running), port)),
            Err(_) => {
                let why = running.ended(Duration::from_secs(1)).unwrap_or_else(|| format!("it said `{line}`"));
                if why.contains("py4j") {
                    // Java found no such class in it
                    return Err(no_jar(&self.jar));
                }
                Err(EnvError::Ended { env: NAME.to_owned(), call: "start".to_owned(), why })
            }
        }
    }

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "simulator": self.simulator, "jar": self.content, "java": self.version })
    }
}

/// A simulator in a folder of its own, which goes when it has ended.
struct Housed {
    process: process::Running,
    _folder: tempfile::TempDir,
}

impl Running for Housed {
    fn id(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn ended(&mut self, wait: Duration) -> Option<String> {
        self.process.ended(wait)
    }

    fn kill(&mut self) {
        self.process.kill();
    }
}

fn find_java() -> Result<(Utf8PathBuf, String), EnvError> {
    let home = std::env::var("JAVA_HOME").ok().filter(|home| !home.is_empty());
    let at_home = home.map(|home| Utf8PathBuf::from(home).join("bin").join("java"));
    let mut tried = Vec::new();
    for java in at_home.into_iter().chain([Utf8PathBuf::from("java")]) {
        match process::answer(Command::new(&java).arg("-version"), ANSWER) {
            Ok(said) => return Ok((java, said.lines().next().unwrap_or_default().trim().to_owned())),
            Err(why) => tried.push(format!("`{java}`: {why}")),
        }
    }
    Err(EnvError::with_help(
        format!("the environment `{NAME}` runs on Java, and there is none ({})", tried.join("; ")),
        "install Java 8 or later (Debian: `openjdk-17-jre-headless`), or set `JAVA_HOME`",
    ))
}

const JAR: &str = "scienceworld.jar";

fn find_jar(data: Option<&Utf8Path>) -> Result<Utf8PathBuf, EnvError> {
    let help =
        "install it with `pip install scienceworld`, or set `SCIENCEWORLD_JAR` to the path of `scienceworld.jar`";
    if let Some(data) = data {
        let jar = if data.is_dir() { data.join(JAR) } else { data.to_owned() };
        return if jar.is_file() {
            Ok(jar)
        } else {
            Err(EnvError::with_help(
                format!("there is no `{JAR}` at `{data}`"),
                "give the JAR, or a folder that holds it",
            ))
        };
    }
    if let Some(jar) = std::env::var("SCIENCEWORLD_JAR").ok().filter(|jar| !jar.is_empty()) {
        let jar = Utf8PathBuf::from(jar);
        return if jar.is_file() {
            Ok(jar)
        } else {
            Err(EnvError::with_help(format!("`SCIENCEWORLD_JAR` is `{jar}`, which is no file"), help))
        };
    }
    // the package is found, not imported
    let script = "import importlib.util as u; s = u.find_spec('scienceworld'); \
                  print((list(s.submodule_search_locations or []) + [''])[0] if s else '')";
    let mut tried = Vec::new();
    for python in ["python3", "python"] {
        let said = process::answer(Command::new(python).args(["-c", script]), ANSWER);
        match said.as_deref().map(str::trim) {
            Ok("") => tried.push(format!("`{python}`: it has no package `scienceworld`")),
            Ok(folder) => {
                let jar = Utf8Path::new(folder).join(JAR);
                if jar.is_file() {
                    return Ok(jar);
                }
                tried.push(format!("`{jar}`: no such file"));
            }
            Err(why) => tried.push(format!("`{python}`: {why}")),
        }
    }
    Err(EnvError::with_help(
        format!("the environment `{NAME}` needs the simulator's `{JAR}`, and there is none ({})", tried.join("; ")),
        help,
    ))
}

/// Refuses what is no archive, or lacks its end.
fn whole(jar: &Utf8Path) -> Result<(), EnvError> {
    let mut file = fs_err::File::open(jar)?;
    let mut head = [0; 4];
    let begins = file.read_exact(&mut head).is_ok() && head == *b"PK\x03\x04";
    // the directory's end: 22 bytes, and a comment
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(22 + (1 << 16))))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    if begins && tail.windows(4).any(|part| part == b"PK\x05\x06") { Ok(()) } else { Err(no_jar(jar)) }
}

fn no_jar(jar: &Utf8Path) -> EnvError {
    EnvError::with_help(
        format!("`{jar}` is not `{JAR}`, or it is damaged"),
        "take the one of `pip install scienceworld`",
    )
}

fn content(jar: &Utf8Path) -> Result<String, EnvError> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs_err::File::open(jar)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The version in a JAR's manifest, where the manifest is the first file of it that is not empty, as it should be.
fn version_of(jar: impl Read) -> Option<String> {
    let mut jar = jar.take(1 << 16);
    // entries without content may come before: folders
    for _ in 0..4 {
        let mut head = [0u8; 30];
        jar.read_exact(&mut head).ok()?;
        let at = |i: usize| usize::from(head[i]) | usize::from(head[i + 1]) << 8;
        let mut name = vec![0; at(26)];
        jar.read_exact(&mut name).ok()?;
        std::io::copy(&mut jar.by_ref().take(at(28) as u64), &mut std::io::sink()).ok()?;
        if &head[..4] != b"PK\x03\x04" {
            return None;
        }
        if name.ends_with(b"/") {
            continue;
        }
        let mut text = String::new();
        match at(8) {
            _ if name != b"META-INF/MANIFEST.MF" => return None,
            8 => flate2::read::DeflateDecoder::new(jar).take(1 << 16).read_to_string(&mut text).ok()?,
            _ => return None,
        };
        let line = text.lines().find_map(|line| line.strip_prefix("Implementation-Version:"));
        return line.map(|version| version.trim().chars().take(40).collect());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, method: u8, body: &[u8]) -> Vec<u8> {
        let mut out = b"PK\x03\x04\x14\x00\x08\x08".to_vec();
        out.extend([method, 0]);
        out.resize(26, 0);
        out.extend((name.len() as u16).to_le_bytes());
        out.extend([0, 0]);
        out.extend(name.as_bytes());
        out.extend(body);
        out
    }

    fn jar() -> Vec<u8> {
        let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"Manifest-Version: 1.0\r\nImplementation-Version: 1.2.3\r\n\r\n").unwrap();
        let mut jar = entry("META-INF/", 0, b"");
        jar.extend(entry("META-INF/MANIFEST.MF", 8, &packed.finish().unwrap()));
        jar
    }

    #[test]
    fn the_simulators_version_is_in_the_manifest() {
        assert_eq!(version_of(jar().as_slice()).as_deref(), Some("1.2.3"));
        assert_eq!(version_of(entry("other", 8, b"").as_slice()), None);
    }

    proptest! {
        #[test]
        fn any_file_has_a_version_or_none(
            mut bytes in Just(jar()), at in any::<prop::sample::Index>(), byte in any::<u8>(),
            keep in any::<prop::sample::Index>(), noise in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = version_of(noise.as_slice());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = version_of(bytes.as_slice());
            bytes.truncate(keep.index(bytes.len()));
            let _ = version_of(bytes.as_slice());
        }
    }

    #[test]
    fn junk_and_a_jar_without_its_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("scienceworld.jar")).unwrap();
        let mut good = jar();
        for bytes in [b"".to_vec(), b"junk".to_vec(), good.clone()] {
            fs_err::write(&path, bytes).unwrap();
            let said = whole(&path).unwrap_err().to_string();
            assert!(said.ends_with("scienceworld.jar` is not `scienceworld.jar`, or it is damaged"), "{said}");
        }
        good.extend(b"PK\x05\x06");
        good.extend([0; 18]);
        fs_err::write(&path, good).unwrap();
        whole(&path).unwrap();
    }

    #[test]
    fn a_jar_that_is_not_there_is_named() {
        let error = find_jar(Some(Utf8Path::new("/nowhere/at/all"))).unwrap_err();
        assert_eq!(error.to_string(), "there is no `scienceworld.jar` at `/nowhere/at/all`");
    }
}

//! One process of the program, and the lines to and from it.
//!
//! 1. A request is written by one thread, lines are read by another, so that no call waits longer than its deadline.
//! 2. A line is at most [`LONGEST`] bytes; what is longer ends the process.
//! 3. A process that broke the protocol, was late or ended is never used again.
//!
//! Invariant: a process plays one task at a time and is asked one thing at a time.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::message::{About, Hello, PROTOCOL, read, typed};
use crate::env::EnvError;
use crate::env::process::Running;

/// Bytes of the longest line.
pub const LONGEST: usize = 16 << 20;

/// What a program says.
enum Line {
    Text(Vec<u8>),
    TooLong,
    /// Nothing more will come; what was said last had no end.
    End(usize),
}

/// How processes are started and how long they may take.
#[derive(Clone)]
pub(super) struct Start {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    pub deadline: Duration,
}

impl Start {
    /// What errors call the program before it said its name.
    pub(super) fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
}

/// One process.
pub(super) struct Link {
    running: Running,
    requests: Option<Sender<Vec<u8>>>,
    lines: Receiver<Line>,
    deadline: Duration,
    name: String,
    next: u64,
    /// It can be asked more.
    sound: bool,
}

impl Link {
    /// Starts a process and greets it.
    ///
    /// # Errors
    /// A program that cannot be started, or says something else than hello.
    pub(super) fn open(start: &Start) -> Result<(Link, Hello), EnvError> {
        let mut command = Command::new(&start.program);
        command.args(&start.arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(command).map_err(|error| {
            EnvError::with_help(
                format!("cannot start `{}`: {error}", start.name()),
                "`command` of the world is a program and its arguments; a program without `/` is looked for in `PATH`",
            )
        })?;
        let (Some(stdin), Some(stdout)) = (running.child().stdin.take(), running.child().stdout.take()) else {
            panic!("BUG: pipes were asked for");
        };
        let (requests, wanted) = mpsc::channel::<Vec<u8>>();
        // a program that says more than it is asked waits, and is not heard further
        let (said, lines) = mpsc::sync_channel(2);
        thread::Builder::new().name("stdin of a program".to_owned()).spawn(move || write(stdin, &wanted))?;
        thread::Builder::new().name("stdout of a program".to_owned()).spawn(move || hear(stdout, &said))?;
        let mut link = Link {
            running,
            requests: Some(requests),
            lines,
            deadline: start.deadline,
            name: start.name(),
            next: 1,
            sound: true,
        };
        let about = About { env: &start.name(), call: "hello" };
        let fields = link.call("hello", json!({ "protocol": PROTOCOL }))?;
        let expected = "`protocol`, `name`, `splits` as a list of `{\"name\", \"tasks\"}`, and what it can do";
        let hello = typed::<Hello>(about, fields, expected).and_then(|hello| hello.checked(about))?;
        link.name.clone_from(&hello.name);
        Ok((link, hello))
    }

    /// Whether it may be given another task.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
    }

    /// Breaks with a process that said what cannot be.
    pub(super) fn distrust(&mut self) {
        self.sound = false;
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The deadline, an end, and whatever is not an answer to this; after these it is not asked again. A refusal.
    pub(super) fn call(&mut self, call: &str, arguments: Value) -> Result<Map<String, Value>, EnvError> {
        let id = self.next;
        self.next += 1;
        let mut request = json!({ "id": id, "call": call });
        if let (Some(request), Value::Object(arguments)) = (request.as_object_mut(), arguments) {
            request.extend(arguments);
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        // where the writer is gone the reader says why
        let _ = self.requests.as_ref().map(|requests| requests.send(line));
        let sound = std::mem::replace(&mut self.sound, false);
        if !sound {
            panic!("BUG: a process is asked that broke off");
        }
        let about = About { env: &self.name, call };
        let line = match self.lines.recv_timeout(self.deadline) {
            Ok(Line::Text(line)) => line,
            Ok(Line::TooLong) => {
                return Err(about.wrong(format!("a line of more than {LONGEST} bytes"), "shorter lines"));
            }
            Ok(Line::End(rest)) => return Err(self.ended(call, rest)),
            Err(RecvTimeoutError::Disconnected) => return Err(self.ended(call, 0)),
            Err(RecvTimeoutError::Timeout) => {
                let (env, call, seconds) = (self.name.clone(), call.to_owned(), self.deadline.as_secs_f64());
                self.running.kill();
                return Err(EnvError::Deadline { env, call, seconds });
            }
        };
        let answer = read(about, id, &line);
        self.sound = matches!(&answer, Ok(_) | Err(EnvError::Unusable { .. }));
        answer
    }

    fn ended(&mut self, call: &str, rest: usize) -> EnvError {
        // its pipe is closed; the process may take a moment, and so may what it said last
        if self.running.ended(Duration::from_secs(1)).is_some() {
            thread::sleep(Duration::from_millis(30));
        }
        let how = self.running.ended(Duration::ZERO);
        let mut why = how.unwrap_or_else(|| "it closed its stdout".to_owned());
        if rest > 0 {
            why = format!("in the middle of a line of {rest} bytes: {why}");
        }
        EnvError::Ended { env: self.name.clone(), call: call.to_owned(), why }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(requests) = self.requests.take().filter(|_| self.sound) {
            let close = format!("{}\n", json!({ "id": self.next, "call": "close" }));
            // it is killed if it does not go
            let _ = requests.send(close.into_bytes());
            drop(requests);
            let _ = self.running.ended(Duration::from_millis(300));
        }
    }
}

fn write(mut stdin: impl Write, requests: &Receiver<Vec<u8>>) {
    while let Ok(line) = requests.recv() {
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            break;
        }
    }
}

fn hear(stdout: impl Read, said: &SyncSender<Line>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = (&mut stdout).take(LONGEST as u64 + 1).read_until(b'\n', &mut line);
        let whole = line.last() == Some(&b'\n');
        let next = match read {
            Ok(_) if whole => Line::Text(line),
            Ok(n) if n > LONGEST => Line::TooLong,
            Ok(_) | Err(_) => Line::End(line.len()),
        };
        let last = !matches!(next, Line::Text(_));
        if said.send(next).is_err() || last {
            break;
        }
    }
}

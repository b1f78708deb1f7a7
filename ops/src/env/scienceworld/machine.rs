//! One simulator: a process that is spoken to over a socket.
//!
//! Invariants: every call has a deadline; after an error on the wire, a deadline or an end the machine is dead and its
//! process killed, for a reply that comes late would be taken for the next one's; objects that stay on the other side
//! are released.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::protocol::{Handle, Lines, Malformed, Reply, Request, Value, shown};
use crate::env::EnvError;

/// The environment's name in errors.
pub(super) const NAME: &str = "scienceworld";

/// The class that agents talk to.
pub const CLASS: &str = "scienceworld.runtime.pythonapi.PythonInterface";

/// Bounds of one machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest time of a call, and of a start.
    pub deadline: Duration,
    /// Longest reply, in bytes.
    pub reply: usize,
    /// Longest list, in items.
    pub list: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { deadline: Duration::from_secs(120), reply: 16 << 20, list: 100_000 }
    }
}

/// Starts simulators.
pub trait Launch: Send + Sync {
    /// Starts one, and says on which port of this computer it listens.
    ///
    /// # Errors
    /// Why there is none.
    fn launch(&self, deadline: Duration) -> Result<(Box<dyn Running>, u16), EnvError>;

    /// What the provenance should say of what it starts.
    fn identity(&self) -> serde_json::Value;
}

/// The process of a simulator; it ends when dropped.
pub trait Running: Send {
    /// The operating system's number for it, where it is a process.
    fn id(&self) -> Option<u32>;

    /// How it ended, if it has; waits for that at most so long.
    fn ended(&mut self, wait: Duration) -> Option<String>;

    fn kill(&mut self);
}

/// What the simulator thinks of an episode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// 0 to 1; below 0 where the task is failed.
    pub score: f64,
    pub completed: bool,
    /// As the simulator counts them: looking is free, waiting costs several.
    pub moves: i32,
}

/// One simulator.
pub struct Machine {
    running: Box<dyn Running>,
    stream: TcpStream,
    lines: Lines,
    limits: Limits,
    /// The object that plays.
    player: Handle,
    dead: bool,
    /// How many tasks were loaded.
    loads: usize,
}

impl Machine {
    /// Starts a simulator and connects to it.
    ///
    /// # Errors
    /// Where there is none, or none that answers in time.
    pub fn start(launch: &dyn Launch, limits: Limits) -> Result<Machine, EnvError> {
        let clock = Instant::now();
        let (mut running, port) = launch.launch(limits.deadline)?;
        let stream = connect(&mut *running, port, clock, limits.deadline)?;
        stream.set_nodelay(true)?;
        let lines = Lines::new(limits.reply);
        let player = Handle::new("t").unwrap_or_else(|| panic!("BUG: `t` is a name"));
        let mut machine = Machine { running, stream, lines, limits, player, dead: false, loads: 0 };
        match machine.ask("new", &Request::New { class: CLASS.to_owned() })? {
            Value::Object(player) => machine.player = player,
            other => return Err(machine.unexpected("new", &other, "an object")),
        }
        Ok(machine)
    }

    /// Whether it must not be used any more.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    pub fn id(&self) -> Option<u32> {
        self.running.id()
    }

    /// How many tasks it has loaded.
    pub fn loads(&self) -> usize {
        self.loads
    }

    fn kill(&mut self) {
        self.dead = true;
        self.running.kill();
    }

    fn broken(&mut self, call: &str, what: Malformed) -> EnvError {
        self.kill();
        EnvError::Protocol {
            env: NAME.to_owned(),
            call: call.to_owned(),
            found: what.found,
            expected: what.expected.to_owned(),
        }
    }

    fn unexpected(&mut self, call: &str, found: &Value, expected: &'static str) -> EnvError {
        let mut text = String::new();
        found.encode(&mut text);
        self.broken(call, Malformed { found: shown(text.as_bytes()), expected })
    }

    fn gone(&mut self, call: &str, why: &str) -> EnvError {
        // the socket may end a moment before the process
        let why = self.running.ended(Duration::from_secs(1)).unwrap_or_else(|| why.to_owned());
        self.kill();
        EnvError::Ended { env: NAME.to_owned(), call: call.to_owned(), why }
    }

    fn late(&mut self, call: &str) -> EnvError {
        self.kill();
        late(call, self.limits.deadline)
    }

    /// One request and its reply. What is thrown counts as an end: nothing says what state it leaves.
    fn ask(&mut self, call: &str, request: &Request) -> Result<Value, EnvError> {
        match self.exchange(call, request)? {
            Reply::Value(value) => Ok(value),
            Reply::Error(thrown) => {
                let text = match thrown {
                    Value::Text(text) => text,
                    Value::Object(target) => {
                        let (method, args) = ("toString".to_owned(), Vec::new());
                        match self.exchange(call, &Request::Call { target, method, args })? {
                            Reply::Value(Value::Text(text)) => text,
                            _ => "an error without a text".to_owned(),
                        }
                    }
                    _ => "an error without a text".to_owned(),
                };
                self.kill();
                let first: String = text.lines().next().unwrap_or_default().chars().take(300).collect();
                let why = format!("Java threw `{first}`");
                Err(EnvError::Ended { env: NAME.to_owned(), call: call.to_owned(), why })
            }
        }
    }

    fn exchange(&mut self, call: &str, request: &Request) -> Result<Reply, EnvError> {
        if self.dead {
            let why = "it was killed before".to_owned();
            return Err(EnvError::Ended { env: NAME.to_owned(), call: call.to_owned(), why });
        }
        if !self.lines.is_empty() {
            let found = "a reply that nothing had asked for".to_owned();
            return Err(self.broken(call, Malformed { found, expected: "one reply to each request" }));
        }
        let until = Instant::now() + self.limits.deadline;
        let text = request.encode();
        let mut left = text.as_bytes();
        while !left.is_empty() {
            let Some(time) = remaining(until) else { return Err(self.late(call)) };
            self.stream.set_write_timeout(Some(time))?;
            match self.stream.write(left) {
                Ok(0) => return Err(self.gone(call, "it closed the connection")),
                Ok(n) => left = &left[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if waited(&error) => return Err(self.late(call)),
                Err(error) => return Err(self.gone(call, &error.to_string())),
            }
        }
        let mut buffer = vec![0; 1 << 14];
        loop {
            match self.lines.take() {
                Ok(Some(line)) => return Reply::decode(&line).map_err(|what| self.broken(call, what)),
                Ok(None) => {}
                Err(what) => return Err(self.broken(call, what)),
            }
            let Some(time) = remaining(until) else { return Err(self.late(call)) };
            self.stream.set_read_timeout(Some(time))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.gone(call, "it closed the connection")),
                Ok(n) => self.lines.push(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if waited(&error) => return Err(self.late(call)),
                Err(error) => return Err(self.gone(call, &error.to_string())),
            }
        }
    }

    fn call(&mut self, method: &str, args: Vec<Value>) -> Result<Value, EnvError> {
        let target = self.player.clone();
        self.ask(method, &Request::Call { target, method: method.to_owned(), args })
    }

    fn text(&mut self, method: &str, args: Vec<Value>) -> Result<String, EnvError> {
        match self.call(method, args)? {
            Value::Text(text) => Ok(text),
            other => Err(self.unexpected(method, &other, "a text")),
        }
    }

    fn int(&mut self, method: &str, args: Vec<Value>) -> Result<i32, EnvError> {
        match self.call(method, args)? {
            Value::Int(n) => Ok(n),
            other => Err(self.unexpected(method, &other, "a whole number")),
        }
    }

    fn list(&mut self, method: &str) -> Result<Vec<String>, EnvError> {
        let target = match self.call(method, Vec::new())? {
            Value::List(handle) => handle,
            other => return Err(self.unexpected(method, &other, "a list")),
        };
        let of = |method: &str, args| Request::Call { target: target.clone(), method: method.to_owned(), args };
        let size = match self.ask(method, &of("size", Vec::new()))? {
            Value::Int(n) if usize::try_from(n).is_ok_and(|n| n <= self.limits.list) => n,
            other => return Err(self.unexpected(method, &other, "the length of a list that is not too long")),
        };
        let mut items = Vec::new();
        for i in 0..size {
            match self.ask(method, &of("get", vec![Value::Int(i)]))? {
                Value::Text(text) => items.push(text),
                other => return Err(self.unexpected(method, &other, "a text")),
            }
        }
        self.ask(method, &Request::Release(target))?;
        Ok(items)
    }

    /// Begins a task from its first state, whatever was before. Scores and states are right only after the first
    /// [`Machine::step`].
    ///
    /// # Errors
    /// A task, a variation or simplifications that the simulator does not take; the machine's end.
    pub fn load(&mut self, task: &str, variation: u32, simplifications: &str, gold: bool) -> Result<(), EnvError> {
        let variation = i32::try_from(variation).unwrap_or(i32::MAX);
        self.loads += 1;
        let args = vec![Value::text(task), Value::Int(variation), Value::text(simplifications), Value::Bool(gold)];
        match self.text("load", args)? {
            said if said.is_empty() => Ok(()),
            said => Err(EnvError::unusable(format!("cannot load variation {variation} of `{task}`: {}", said.trim()))),
        }
    }

    /// Gives the simulator an input, and returns what it says.
    ///
    /// # Errors
    /// The machine's end.
    pub fn step(&mut self, input: &str) -> Result<String, EnvError> {
        self.text("step", vec![Value::text(input)])
    }

    /// Where the episode stands after the last step.
    ///
    /// # Errors
    /// The machine's end.
    pub fn state(&mut self) -> Result<State, EnvError> {
        let score = match self.call("getScore", Vec::new())? {
            Value::Double(score) if score.is_finite() => score,
            other => return Err(self.unexpected("getScore", &other, "a finite number")),
        };
        let completed = match self.call("getCompleted", Vec::new())? {
            Value::Bool(completed) => completed,
            other => return Err(self.unexpected("getCompleted", &other, "`true` or `false`")),
        };
        Ok(State { score, completed, moves: self.int("getNumMoves", Vec::new())? })
    }

    /// The task in words.
    ///
    /// # Errors
    /// The machine's end.
    pub fn description(&mut self) -> Result<String, EnvError> {
        self.text("getTaskDescription", Vec::new())
    }

    /// What the agent carries; it costs nothing.
    ///
    /// # Errors
    /// The machine's end.
    pub fn inventory(&mut self) -> Result<String, EnvError> {
        self.text("freeActionInventory", Vec::new())
    }

    /// Actions that make sense now, in no order.
    ///
    /// # Errors
    /// The machine's end.
    pub fn actions(&mut self) -> Result<Vec<String>, EnvError> {
        #[derive(Deserialize)]
        struct All {
            #[serde(rename = "validActions")]
            actions: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            action: String,
        }
        let method = "getValidActionObjectCombinationsJSON";
        let text = self.text(method, Vec::new())?;
        match serde_json::from_str::<All>(&text) {
            Ok(all) => Ok(all.actions.into_iter().map(|one| one.action).collect()),
            Err(error) => Err(self.broken(
                method,
                Malformed {
                    found: format!("{} ({error})", shown(text.as_bytes())),
                    expected: "a JSON object with `validActions`",
                },
            )),
        }
    }

    /// A path to the goal, of a task that was loaded with one.
    ///
    /// # Errors
    /// The machine's end.
    pub fn gold(&mut self) -> Result<Vec<String>, EnvError> {
        self.list("getGoldActionSequence")
    }

    /// Names of all tasks.
    ///
    /// # Errors
    /// The machine's end.
    pub fn tasks(&mut self) -> Result<Vec<String>, EnvError> {
        self.list("getTaskNames")
    }

    /// How many variations a task has.
    ///
    /// # Errors
    /// The machine's end.
    pub fn variations(&mut self, task: &str) -> Result<i32, EnvError> {
        self.int("getTaskMaxVariations", vec![Value::text(task)])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.running.kill();
    }
}

/// The error of a call that took too long.
pub(super) fn late(call: &str, deadline: Duration) -> EnvError {
    EnvError::Deadline { env: NAME.to_owned(), call: call.to_owned(), seconds: deadline.as_secs_f64() }
}

fn remaining(until: Instant) -> Option<Duration> {
    until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

fn waited(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Connects as soon as somebody listens.
fn connect(running: &mut dyn Running, port: u16, clock: Instant, deadline: Duration) -> Result<TcpStream, EnvError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    loop {
        let left = deadline.saturating_sub(clock.elapsed());
        if left.is_zero() {
            running.kill();
            return Err(late("start", deadline));
        }
        if let Ok(stream) = TcpStream::connect_timeout(&address, left) {
            return Ok(stream);
        }
        if let Some(why) = running.ended(Duration::from_millis(20)) {
            return Err(EnvError::Ended { env: NAME.to_owned(), call: "start".to_owned(), why });
        }
    }
}

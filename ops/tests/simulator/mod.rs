//! A stand-in for the simulator: threads that speak its protocol and play a tiny world, faults included.
//!
//! It has the simulator's traps: scores are the last game's until the first step, a question takes whatever comes next
//! for its answer, the order of choices differs from load to load, `reset` is forbidden. The world: behind a door is a
//! kitchen with two oranges; the one from the bowl is to be taken and focused on.

#![expect(clippy::unwrap_used, reason = "a stand-in that cannot go on should stop")]

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use actloom_ops::env::EnvError;
use actloom_ops::env::scienceworld::protocol::{Handle, Reply, Request, Value};
use actloom_ops::env::scienceworld::tasks::KINDS;
use actloom_ops::env::scienceworld::{Launch, Running};

/// What goes wrong in a call of `step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Crash,
    Hang,
    Garbage,
    Huge,
    Throw,
    /// A reply, and then another one.
    Twice,
}

/// What the stand-ins of one test share.
#[derive(Default)]
pub struct World {
    /// Calls of `step` at which something goes wrong, counted over all machines from 1.
    pub faults: Vec<(usize, Fault)>,
    /// Starts (from 1) that end at once.
    pub stillborn: Vec<usize>,
    /// Time before a machine listens.
    pub slow: Duration,
    /// Machines after the first give other scores.
    pub wanders: bool,
    /// The table of tasks is another one.
    pub other: bool,
    pub steps: AtomicUsize,
    pub loads: AtomicUsize,
    pub starts: AtomicUsize,
    pub golds: AtomicUsize,
    /// Machines that run now, and most of them at any time.
    pub live: AtomicUsize,
    pub most: AtomicUsize,
    /// Lists that nobody released.
    pub lists: AtomicUsize,
    /// Inputs in order.
    pub inputs: Mutex<Vec<String>>,
}

pub struct StandIn(pub Arc<World>);

struct Thread {
    stream: Arc<Mutex<Option<TcpStream>>>,
    over: Arc<AtomicBool>,
    world: Arc<World>,
    port: u16,
}

impl Running for Thread {
    fn id(&self) -> Option<u32> {
        None
    }

    fn ended(&mut self, _wait: Duration) -> Option<String> {
        self.over.load(SeqCst).then(|| "it fell over".to_owned())
    }

    fn kill(&mut self) {
        if !self.over.swap(true, SeqCst) {
            self.world.live.fetch_sub(1, SeqCst);
        }
        match &*self.stream.lock().unwrap() {
            Some(stream) => drop(stream.shutdown(Shutdown::Both)),
            // it may wait for a connection
            None => drop(TcpStream::connect(("127.0.0.1", self.port))),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Launch for StandIn {
    fn launch(&self, _deadline: Duration) -> Result<(Box<dyn Running>, u16), EnvError> {
        let world = Arc::clone(&self.0);
        let start = world.starts.fetch_add(1, SeqCst) + 1;
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        world.most.fetch_max(world.live.fetch_add(1, SeqCst) + 1, SeqCst);
        let running = Thread { stream: Arc::default(), over: Arc::default(), world: Arc::clone(&world), port };
        let (stream, over) = (Arc::clone(&running.stream), Arc::clone(&running.over));
        if world.stillborn.contains(&start) {
            drop(listener);
            over.store(true, SeqCst);
            world.live.fetch_sub(1, SeqCst);
            return Ok((Box::new(running), port));
        }
        let (again, world_slow) = (start > 1, world.slow);
        let listener = if world_slow.is_zero() { Some(listener) } else { None };
        thread::spawn(move || {
            let listener = listener.unwrap_or_else(|| {
                thread::sleep(world_slow);
                TcpListener::bind(("127.0.0.1", port)).unwrap()
            });
            let client = listener.accept().unwrap().0;
            *stream.lock().unwrap() = Some(client.try_clone().unwrap());
            let mut machine = Simulator { world: Arc::clone(&world), again, ..Simulator::default() };
            machine.serve(client, &over);
            if !over.swap(true, SeqCst) {
                world.live.fetch_sub(1, SeqCst);
            }
        });
        Ok((Box::new(running), port))
    }

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "simulator": "a stand-in" })
    }
}

/// One simulator's state.
#[derive(Default)]
struct Simulator {
    world: Arc<World>,
    again: bool,
    load: usize,
    open: bool,
    kitchen: bool,
    orange: bool,
    asked: bool,
    done: bool,
    failed: bool,
    moves: i32,
    /// As of the last step.
    shown: (f64, bool),
    list: Vec<String>,
}

impl Simulator {
    fn serve(&mut self, client: TcpStream, over: &AtomicBool) {
        client.set_nodelay(true).unwrap();
        let mut out = client.try_clone().unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(client).lines() {
            let Ok(line) = line else { return };
            if line != "e" {
                lines.push(line);
                continue;
            }
            let request = Request::decode(&lines.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
            lines.clear();
            let mut said = Reply::Value(self.answer(&request)).encode().into_bytes();
            if matches!(&request, Request::Call { method, .. } if method == "step") {
                let step = self.world.steps.fetch_add(1, SeqCst) + 1;
                match self.world.faults.iter().find(|(at, _)| *at == step).map(|(_, fault)| fault) {
                    Some(Fault::Crash) => return drop(out.shutdown(Shutdown::Both)),
                    Some(Fault::Hang) => {
                        while !over.load(SeqCst) {
                            thread::sleep(Duration::from_millis(5));
                        }
                        return;
                    }
                    Some(Fault::Garbage) => said = b"\xffHTTP/1.1 400\n".to_vec(),
                    Some(Fault::Huge) => said = vec![b'x'; 20 << 20],
                    Some(Fault::Throw) => said = b"!xsjava.lang.OutOfMemoryError: Java heap space\\n\tat x\\n\n".to_vec(),
                    Some(Fault::Twice) => said.extend(b"!ysand another\n"),
                    None => {}
                }
            }
            if out.write_all(&said).is_err() {
                return;
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Value {
        let (target, method, args) = match request {
            Request::New { .. } => return Value::Object(Handle::new("o0").unwrap()),
            Request::Release(_) => {
                self.world.lists.fetch_sub(1, SeqCst);
                return Value::Void;
            }
            Request::Call { target, method, args } => (target, method.as_str(), args.as_slice()),
        };
        match (target.as_str(), method, args) {
            ("o1", "size", []) => Value::Int(self.list.len() as i32),
            ("o1", "get", [Value::Int(i)]) => Value::text(&self.list[*i as usize]),
            ("o0", "load", [Value::Text(_), Value::Int(_), Value::Text(_), Value::Bool(gold)]) => {
                let load = self.world.loads.fetch_add(1, SeqCst) + 1;
                self.world.golds.fetch_add(usize::from(*gold), SeqCst);
                let (world, again, shown) = (Arc::clone(&self.world), self.again, self.shown);
                *self = Simulator { world, again, shown, load, ..Simulator::default() };
                Value::text("")
            }
            ("o0", "step", [Value::Text(input)]) => {
                self.world.inputs.lock().unwrap().push(input.clone());
                let said = self.step(input);
                let score = if self.failed {
                    -1.0
                } else {
                    f64::from(u8::from(self.kitchen) + u8::from(self.orange) + 2 * u8::from(self.done)) / 4.0
                };
                let off = if self.world.wanders && self.again && self.kitchen { 0.125 } else { 0.0 };
                self.shown = (score - off, self.done);
                Value::text(&said)
            }
            ("o0", "getScore", []) => Value::Double(self.shown.0),
            ("o0", "getCompleted", []) => Value::Bool(self.shown.1),
            ("o0", "getNumMoves", []) => Value::Int(self.moves),
            ("o0", "getTaskDescription", []) => Value::text("Your task is to find an orange."),
            ("o0", "freeActionInventory", []) => Value::text("In your inventory, you see:\n\tan orange\n"),
            ("o0", "getValidActionObjectCombinationsJSON", []) => {
                let actions = match (self.asked, self.kitchen) {
                    (true, _) => vec!["1", "0"],
                    (false, true) => vec!["look around", "focus on orange", "focus on agent"],
                    (false, false) => vec!["open door to kitchen", "go to kitchen", "focus on agent", "go to kitchen"],
                };
                let all: Vec<_> = actions.iter().map(|a| serde_json::json!({ "action": a, "obj_ids": [1] })).collect();
                Value::text(&serde_json::json!({ "validActions": all }).to_string())
            }
            ("o0", "getGoldActionSequence", []) => {
                let gold = ["open door to kitchen", "go to kitchen", "pick up orange (in bowl)", "focus on orange"];
                self.list(gold.map(str::to_owned).to_vec())
            }
            ("o0", "getTaskNames", []) => self.list(KINDS.iter().map(|kind| kind.name.to_owned()).collect()),
            ("o0", "getTaskMaxVariations", [Value::Text(name)]) => {
                let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
                Value::Int(kind.variations as i32 + i32::from(self.world.other))
            }
            (target, method, args) => panic!("nobody should call `{method}` of `{target}` with {args:?}"),
        }
    }

    fn list(&mut self, items: Vec<String>) -> Value {
        self.list = items;
        self.world.lists.fetch_add(1, SeqCst);
        Value::List(Handle::new("o1").unwrap())
    }

    /// Places of the two oranges, in the order of this load.
    fn places(&self) -> [&'static str; 2] {
        if self.load % 2 == 1 { ["in inventory", "in bowl"] } else { ["in bowl", "in inventory"] }
    }

    fn take(&mut self, place: &str) -> String {
        self.moves += 1;
        self.orange |= place == "in bowl";
        format!("You move the orange ({place}) to the inventory.")
    }

    fn step(&mut self, input: &str) -> String {
        if std::mem::take(&mut self.asked) {
            return match input {
                "0" | "1" => self.take(self.places()[usize::from(input == "1")]),
                _ => {
                    self.moves += 1;
                    "Unknown action.  Type 'help' for a list of actions. ".to_owned()
                }
            };
        }
        let said = match input {
            "look around" => return format!("You are in the {}.", if self.kitchen { "kitchen" } else { "hallway" }),
            "open door to kitchen" => {
                self.open = true;
                "The door is now open."
            }
            "go to kitchen" if self.open => {
                self.kitchen = true;
                "You move to the kitchen."
            }
            "go to kitchen" => "The door is not open.",
            "pick up orange" if self.kitchen => {
                self.asked = true;
                let [a, b] = self.places();
                return format!(
                    "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):\n\
                     0:\tpick up orange ({a})\n1:\tpick up orange ({b})\n"
                );
            }
            "pick up orange (in bowl)" if self.kitchen => return self.take("in bowl"),
            "focus on orange" if self.kitchen => {
                self.done |= self.orange;
                "You focus on the orange."
            }
            "focus on agent" => {
                self.failed = true;
                "You focus on the agent."
            }
            "wait" => {
                self.moves += 10;
                "You decide to wait for 10 iterations."
            }
            _ => return "No known action matches that input.".to_owned(),
        };
        self.moves += 1;
        said.to_owned()
    }
}

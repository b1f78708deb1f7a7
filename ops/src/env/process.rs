//! Programs behind environments: they end with whoever started them.
//!
//! Invariants: a child is killed, with its process group, and waited for when its [`Running`] is dropped; on Linux the
//! kernel kills it when this process ends in whatever way; an interrupt typed at the terminal does not reach it, so the
//! op decides what becomes of it; of what it writes to stderr only the end is held.

use std::collections::VecDeque;
use std::io::Read;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of stderr that are held for an error.
const TAIL: usize = 2048;

/// A running child.
pub struct Running {
    child: Child,
    said: Arc<Mutex<VecDeque<u8>>>,
    over: Option<ExitStatus>,
}

impl Running {
    /// Starts a command; its stderr is read here.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(mut command: Command) -> std::io::Result<Running> {
        command.stderr(Stdio::piped());
        let mut child = spawn(command)?;
        let said = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            thread::Builder::new().name("stderr of a child".to_owned()).spawn(move || listen(stderr, &said))?;
        }
        Ok(Running { child, said, over: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its ends of the pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has; waits for that at most so long.
    pub fn ended(&mut self, wait: Duration) -> Option<String> {
        let clock = Instant::now();
        while self.over.is_none() {
            match self.child.try_wait() {
                Ok(Some(status)) => self.over = Some(status),
                Ok(None) if clock.elapsed() < wait => thread::sleep(Duration::from_millis(5)),
                Ok(None) => return None,
                Err(error) => return Some(error.to_string()),
            }
        }
        let status = self.over.map_or_else(String::new, |status| status.to_string());
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said.iter().copied().collect::<Vec<u8>>()).trim().to_owned();
        Some(if said.is_empty() { status } else { format!("{status}; it said `{said}`") })
    }

    /// Kills it and its process group, and waits for it.
    pub fn kill(&mut self) {
        if self.over.is_some() {
            return;
        }
        #[cfg(unix)]
        {
            let group = libc::pid_t::try_from(self.child.id()).unwrap_or(0);
            if group > 1 {
                // SAFETY: it only sends a signal; the child is not waited for yet, so the number is still its own, and it
                // leads a group of that number
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
        }
        // it may be gone already
        let _ = self.child.kill();
        self.over = self.child.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(mut stderr: ChildStderr, said: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut buffer) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend(&buffer[..n]);
        let over = said.len().saturating_sub(TAIL);
        said.drain(..over);
    }
}

/// What a short command writes to both streams; it is killed when it takes longer than it may.
///
/// # Errors
/// What is wrong with it, in words.
pub fn answer(command: &mut Command, deadline: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>),
        child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>),
    ];
    let (send, told) = mpsc::channel();
    for pipe in pipes.into_iter().flatten() {
        let send = send.clone();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.take(1 << 16).read_to_end(&mut text);
            let _ = send.send(text);
        });
    }
    drop(send);
    let clock = Instant::now();
    let mut text = String::new();
    loop {
        match told.recv_timeout(deadline.saturating_sub(clock.elapsed())) {
            Ok(part) => text.push_str(&String::from_utf8_lossy(&part)),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", deadline.as_secs_f64()));
            }
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() { Ok(text) } else { Err(format!("{status}; it said `{}`", text.trim())) }
}

/// Starts a child that dies when this process does.
#[cfg(target_os = "linux")]
fn spawn(mut command: Command) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;

    let parent = std::process::id();
    command.process_group(0);
    let dies = move || {
        // SAFETY: it only sets a flag of the calling process
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: it only asks; a parent that died before the flag was set would never be noticed
        if unsafe { libc::getppid() }.cast_unsigned() != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing
    unsafe { command.pre_exec(dies) };
    lasting(command)
}

#[cfg(not(target_os = "linux"))]
fn spawn(mut command: Command) -> std::io::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn()
}

/// Starts a child from a thread that never ends: the kernel takes the thread that started it for its parent, so that it
/// would die with a worker thread.
#[cfg(target_os = "linux")]
fn lasting(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static THREAD: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);

    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let orders = match &*thread {
        Some(orders) => orders.clone(),
        None => {
            let (orders, taken) = mpsc::channel::<Order>();
            thread::Builder::new().name("parent of children".to_owned()).spawn(move || {
                while let Ok((mut command, reply)) = taken.recv() {
                    // who asked does wait; a child that nobody takes is killed by its pipes' end
                    let _ = reply.send(command.spawn());
                }
            })?;
            thread.insert(orders).clone()
        }
    };
    drop(thread);
    let (reply, child) = mpsc::channel();
    let gone = || std::io::Error::other("the thread that starts children is gone");
    orders.send((command, reply)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    #[cfg(target_os = "linux")]
    fn runs(id: u32) -> bool {
        // a zombie has ended
        std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_child_that_ended_says_how_and_what_it_said_last() {
        let mut child = Running::start(shell("echo no luck >&2; exit 3")).unwrap();
        let how = child.ended(Duration::from_secs(20)).unwrap();
        assert!(how.starts_with("exit status: 3"), "{how}");
        // stderr is read by another thread
        let clock = Instant::now();
        while !child.ended(Duration::ZERO).unwrap().contains("it said `no luck`") {
            assert!(clock.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dropped_child_is_gone_with_the_children_it_has() {
        let mut child = Running::start(shell("sleep 1000 & echo $! >&2; wait")).unwrap();
        assert!(child.ended(Duration::ZERO).is_none());
        let clock = Instant::now();
        let grandchild: u32 = loop {
            let said: Vec<u8> = child.said.lock().unwrap().iter().copied().collect();
            match String::from_utf8_lossy(&said).trim().parse() {
                Ok(id) => break id,
                Err(_) => assert!(clock.elapsed() < Duration::from_secs(20)),
            }
            thread::sleep(Duration::from_millis(5));
        };
        let id = child.id();
        drop(child);
        assert!(!runs(id));
        while runs(grandchild) {
            assert!(clock.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut child = thread::spawn(|| Running::start(shell("sleep 1000")).unwrap()).join().unwrap();
        assert!(child.ended(Duration::from_millis(200)).is_none());
    }

    /// Not a test: the parent of the test below, which runs this program again.
    #[cfg(target_os = "linux")]
    #[test]
    #[ignore = "is run by another test, to be killed"]
    fn a_parent_that_is_killed() {
        let Ok(path) = std::env::var("ACTLOOM_TEST_CHILD") else { return };
        let child = Running::start(shell("exec sleep 1000")).unwrap();
        std::fs::write(format!("{path}.part"), child.id().to_string()).unwrap();
        std::fs::rename(format!("{path}.part"), path).unwrap();
        thread::sleep(Duration::from_secs(100));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_killed_parent_leaves_no_child() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("child");
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "env::process::tests::a_parent_that_is_killed", "--ignored", "--nocapture"])
            .env("ACTLOOM_TEST_CHILD", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let clock = Instant::now();
        while !path.exists() {
            assert!(clock.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(5));
        }
        let child: u32 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        assert!(runs(child));
        parent.kill().unwrap();
        parent.wait().unwrap();
        while runs(child) {
            assert!(clock.elapsed() < Duration::from_secs(60), "the child goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_short_command_answers_or_is_given_up() {
        assert_eq!(answer(&mut shell("echo a; echo b >&2"), Duration::from_secs(20)).unwrap().len(), 4);
        let late = answer(&mut shell("exec sleep 1000"), Duration::from_millis(100)).unwrap_err();
        assert_eq!(late, "no answer within 0.1 s");
        let failed = answer(&mut shell("echo why >&2; exit 2"), Duration::from_secs(20)).unwrap_err();
        assert_eq!(failed, "exit status: 2; it said `why`");
    }
}

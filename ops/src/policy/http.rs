//! Requests to a server: a bounded pool of threads, tried again where that can help, each with a deadline.
//!
//! 1. [`Server::all`] hands jobs to at most `concurrency` threads and waits.
//! 2. `patiently` makes one request until it is answered, the tries are used up, or the time is.
//! 3. `once` makes it.
//!
//! Invariants: answers come back in the order of the jobs; the key is sent in the `authorization` header and nowhere
//! else, and is cut out of whatever the server says; a redirect is never followed, so the key never goes elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use actloom_engine::op::OpError;
use serde_json::Value;
use ureq::{Agent, Timeout};

use crate::rng::Rng;

/// One request.
pub struct Job {
    /// Below the server's address: `/chat/completions`.
    pub path: &'static str,
    /// What is posted; `None` gets.
    pub body: Option<Value>,
    /// Where the jitter of waiting comes from.
    pub rng: Rng,
}

/// What a server answered.
#[derive(Debug)]
pub enum Reply {
    Json(Value),
    /// It refused, and asking again would not help: the status and what it said.
    Refused(u16, String),
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one request.
    pub deadline: Duration,
    /// For all of them, from the first on.
    pub overall: Duration,
    /// How often one is made again.
    pub retries: u32,
    pub concurrency: usize,
}

/// A server, and the key to it.
pub struct Server {
    url: String,
    key: Option<String>,
    patience: Patience,
    agent: Agent,
    retries: AtomicU64,
}

/// What is said instead of the key.
const REDACTED: &str = "[key]";
/// The first wait before a second try; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a waiting thread looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);
const LARGEST_ANSWER: u64 = 64 << 20;

/// Why one try was not answered.
enum Miss {
    /// Asking again may help; after this long at the earliest, if the server said so.
    Again(String, Option<Duration>),
    Never(OpError),
}

impl Server {
    pub fn new(url: &str, key: Option<String>, patience: Patience) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let authority = url.split("://").nth(1).unwrap_or_default();
        let here = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| authority.starts_with(host));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections_per_host(patience.concurrency)
            .max_idle_connections(patience.concurrency)
            .user_agent(concat!("actloom/", env!("CARGO_PKG_VERSION")));
        // a proxy cannot reach this machine
        let config = if here { config.proxy(None) } else { config };
        Server { url, key, patience, agent: Agent::new_with_config(config.build()), retries: AtomicU64::new(0) }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Requests that were made again so far.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    fn redact(&self, text: String) -> String {
        match &self.key {
            Some(key) if text.contains(key.as_str()) => text.replace(key.as_str(), REDACTED),
            _ => text,
        }
    }

    /// Makes every request and returns the answers in order. `end` is when patience ends altogether.
    ///
    /// # Errors
    /// The first request that could not be answered; `Interrupted` as soon as `stopping` says so, without waiting for
    /// requests that are under way.
    pub fn all(
        self: &Arc<Self>,
        jobs: Vec<Job>,
        end: Instant,
        stopping: &dyn Fn() -> bool,
    ) -> Result<Vec<Reply>, OpError> {
        let count = jobs.len();
        let jobs = Arc::new(jobs);
        let next = Arc::new(AtomicUsize::new(0));
        let given_up = Arc::new(AtomicBool::new(false));
        let (say, hear) = mpsc::channel();
        for _ in 0..self.patience.concurrency.min(count) {
            let (server, jobs, next, given_up, say) =
                (self.clone(), jobs.clone(), next.clone(), given_up.clone(), say.clone());
            std::thread::Builder::new().name("endpoint".into()).spawn(move || {
                while !given_up.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let reply = server.patiently(job, end, &given_up);
                    if say.send((index, reply)).is_err() {
                        break;
                    }
                }
            })?;
        }
        drop(say);
        let mut replies: Vec<Option<Reply>> = (0..count).map(|_| None).collect();
        let mut missing = count;
        let result = loop {
            if missing == 0 {
                break Ok(());
            }
            if stopping() {
                break Err(OpError::Interrupted);
            }
            match hear.recv_timeout(LOOK) {
                Ok((index, Ok(reply))) => {
                    replies[index] = Some(reply);
                    missing -= 1;
                }
                Ok((_, Err(error))) => break Err(error),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => panic!("BUG: the threads ended before their work"),
            }
        };
        given_up.store(true, Ordering::Relaxed);
        result.map(|()| replies.into_iter().flatten().collect())
    }

    fn patiently(&self, job: &Job, end: Instant, given_up: &AtomicBool) -> Result<Reply, OpError> {
        let mut rng = job.rng.clone();
        let mut tries = 0;
        loop {
            let (why, after) = match self.once(job, end) {
                Ok(reply) => return Ok(reply),
                Err(Miss::Never(error)) => return Err(error),
                Err(Miss::Again(why, after)) => (why, after),
            };
            tries += 1;
            let place = format!("{}{}", self.url, job.path);
            if tries > self.patience.retries {
                let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
                return Err(OpError::with_help(
                    format!("`{place}` was asked {times} without an answer, the last time: {why}"),
                    "see whether the server is up, or raise `retries` of the endpoint",
                ));
            }
            // "equal jitter": half of the wait is drawn, so that many that failed together do not come back together
            let wait = FIRST_WAIT.saturating_mul(1 << (tries - 1).min(10)).min(LONGEST_WAIT);
            let wait = wait.mul_f64(0.5 + 0.5 * rng.uniform()).max(after.unwrap_or_default());
            if Instant::now() + wait >= end {
                return Err(OpError::with_help(
                    format!("the time of the step's requests to `{place}` ran out (`overall`), the last time: {why}"),
                    "raise `overall` of the endpoint",
                ));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            let until = Instant::now() + wait;
            while Instant::now() < until && !given_up.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
            }
            if given_up.load(Ordering::Relaxed) {
                return Err(OpError::Interrupted);
            }
        }
    }

    fn once(&self, job: &Job, end: Instant) -> Result<Reply, Miss> {
        let place = format!("{}{}", self.url, job.path);
        let left = end.saturating_duration_since(Instant::now());
        let limit = self.patience.deadline.min(left);
        let late = || {
            let (seconds, name) = if left < self.patience.deadline {
                (self.patience.overall.as_secs_f64(), "overall")
            } else {
                (self.patience.deadline.as_secs_f64(), "deadline")
            };
            Miss::Never(OpError::with_help(
                format!("`{place}` gave no answer within {seconds} s (`{name}`)"),
                format!("raise `{name}` of the endpoint, or lower `max_tokens` of the step"),
            ))
        };
        if limit.is_zero() {
            return Err(late());
        }
        let bearer = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let sent = match &job.body {
            Some(body) => {
                let mut request = self.agent.post(&place).config().timeout_global(Some(limit)).build();
                if let Some(bearer) = bearer {
                    request = request.header("authorization", bearer);
                }
                request.send_json(body)
            }
            None => {
                let mut request = self.agent.get(&place).config().timeout_global(Some(limit)).build();
                if let Some(bearer) = bearer {
                    request = request.header("authorization", bearer);
                }
                request.call()
            }
        };
        let miss = |error: ureq::Error| match error {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                Miss::Again("no connection could be made in time".into(), None)
            }
            ureq::Error::Timeout(_) => late(),
            ureq::Error::Io(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::BodyStalled
            | ureq::Error::Protocol(_) => Miss::Again(self.redact(error.to_string()), None),
            error => {
                Miss::Never(OpError::failed(self.redact(format!("the request to `{place}` was not possible: {error}"))))
            }
        };
        let mut response = sent.map_err(miss)?;
        let status = response.status().as_u16();
        let after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| wait_of(value, SystemTime::now()));
        let text = response.body_mut().with_config().limit(LARGEST_ANSWER).lossy_utf8(true).read_to_string();
        let text = self.redact(text.map_err(miss)?);
        match status {
            200..300 => match serde_json::from_str(&text) {
                Ok(json) => Ok(Reply::Json(json)),
                Err(error) => Err(Miss::Never(OpError::with_help(
                    format!(
                        "the answer of `{place}` cannot be read: {error}; it begins `{}`, expected a JSON object",
                        beginning(&text)
                    ),
                    "`url` is the address below which `/models` and `/chat/completions` are, usually ending in `/v1`",
                ))),
            },
            408 | 429 | 500.. => Err(Miss::Again(format!("status {status}, `{}`", beginning(&text)), after)),
            _ => Ok(Reply::Refused(status, text)),
        }
    }
}

/// The first words of what a server said, on one line.
pub fn beginning(text: &str) -> String {
    const SHOWN: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// The wait that a `retry-after` header asks for: seconds, or a date (RFC 9110, 10.2.3).
fn wait_of(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let then = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    let then = SystemTime::from(then);
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_as_seconds_or_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 10);
        assert_eq!(wait_of(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(wait_of("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(wait_of("Sun, 06 Nov 1994 08:49:37 GMT", now + Duration::from_secs(60)), Some(Duration::ZERO));
        assert_eq!(wait_of("soon", now), None);
    }

    #[test]
    fn the_beginning_of_a_long_text_is_cut_between_characters() {
        assert_eq!(beginning("a\n  b"), "a b");
        let cut = beginning(&"ä".repeat(400));
        assert_eq!(cut.chars().count(), 303);
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Has two agents run cases, and collects what the ends see.
//!
//! A case is a sequence of phases. An end that has done its part of one says so; when both have, and a moment has
//! passed in which the network can do its part, they go on with the next.

use crate::agent::{Order, Role};
use crate::cases::{self, Named};
use crate::outcome::{Outcome, Transport};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed end may take to be gone.
const GRACE: Duration = Duration::from_secs(1);
/// How much longer an end may take that does nothing that could hang.
const BUSY: Duration = Duration::from_secs(60);

/// Where and how cases are run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The agent that runs clients.
    pub client: SocketAddr,
    /// The agent that runs servers.
    pub server: SocketAddr,
    /// The address that clients connect to.
    pub address: Ipv4Addr,
    /// Their other one.
    pub address6: Ipv6Addr,
    /// What the sockets are.
    pub transport: Transport,
    /// How many cases are run at once.
    pub parallel: usize,
    /// How long after a phase the next one begins.
    pub settle: Duration,
    /// How long nothing may happen in a phase before it counts as one that hangs.
    pub limit: Duration,
}

impl Plan {
    /// Runs the cases that `wanted` picks. `tell` is called after each.
    pub fn run(
        &self,
        wanted: impl Fn(&Named) -> bool,
        tell: impl Fn(&Outcome) + Sync,
    ) -> Vec<Outcome> {
        let cases: Vec<Named> = cases::all().filter(wanted).collect();
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::new());
        // The first connections between two systems are special: one is made before all others, and kept.
        let warm = (self.transport == Transport::Smc).then(|| self.keep_one());
        thread::scope(|scope| {
            for _ in 0..self.parallel.max(1) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(index) else { break };
                        let outcome = self.case(case);
                        tell(&outcome);
                        let mut all = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push((index, outcome));
                    }
                });
            }
        });
        drop(warm);
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Runs one case.
    pub fn case(&self, case: &Named) -> Outcome {
        let (observations, via) = match Conversation::begin(self, case.name) {
            Ok(conversation) => conversation.run(self),
            Err(error) => (vec![format!("agent: {error}")], Vec::new()),
        };
        let expected = self.transport.expected();
        Outcome {
            name: case.name.to_owned(),
            group: case.group.to_owned(),
            observations,
            proved: !via.is_empty() && via.iter().all(|via| via == expected),
            via,
        }
    }

    /// Makes a connection that stays until what is returned is dropped.
    fn keep_one(&self) -> io::Result<Conversation> {
        let mut conversation = Conversation::begin(self, cases::KEPT)?;
        conversation.phases(self, Some(cases::KEPT_PHASES));
        Ok(conversation)
    }
}

/// One end, as the hub sees it.
struct Side {
    stream: TcpStream,
    seen: Vec<(usize, String)>,
    doing: String,
    is_done: bool,
    has_ended: bool,
}

/// A case that runs.
struct Conversation {
    sides: [Side; 2],
    lines: Receiver<(usize, String)>,
    via: Vec<String>,
    port: String,
    phase: usize,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        for side in &self.sides {
            // Has the agent kill the end, if it is there still.
            let _ = side.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Conversation {
    fn begin(plan: &Plan, case: &str) -> io::Result<Self> {
        let (sender, lines) = channel();
        let client = side(plan, case, Role::Client, 0, &sender)?;
        let server = side(plan, case, Role::Server, 1, &sender)?;
        Ok(Conversation {
            sides: [client, server],
            lines,
            via: Vec::new(),
            port: "0".into(),
            phase: 0,
        })
    }

    /// Runs it to its end: what was seen, and what its connections were.
    fn run(mut self, plan: &Plan) -> (Vec<String>, Vec<String>) {
        self.phases(plan, None);
        let mut seen = Vec::new();
        for phase in 0..=self.phase {
            for (side, prefix) in self.sides.iter().zip(["c:", "s:"]) {
                let here = side.seen.iter().filter(|(at, _)| *at == phase);
                seen.extend(here.map(|(_, text)| format!("{prefix}{text}")));
            }
        }
        let via = std::mem::take(&mut self.via);
        (seen, via)
    }

    /// Leads both ends through the phases, until both have ended, one has hung, or `count` are done.
    fn phases(&mut self, plan: &Plan, count: Option<usize>) {
        while count.is_none_or(|count| self.phase < count) {
            if !self.wait_for_both(plan.limit) {
                self.kill();
                return;
            }
            if self.sides.iter().all(|side| side.has_ended) {
                return;
            }
            thread::sleep(plan.settle);
            self.phase += 1;
            for side in &mut self.sides {
                side.is_done = side.has_ended;
                // It may have ended meanwhile: that is told by its agent.
                let _ = side
                    .stream
                    .write_all(format!("go {}\n", self.port).as_bytes());
            }
        }
    }

    /// Waits until both have done their part of the phase; tells whether they have. If nothing happens for `limit`,
    /// they have not.
    fn wait_for_both(&mut self, limit: Duration) -> bool {
        let mut since = Instant::now();
        loop {
            let mut waiting = self.sides.iter().filter(|side| !side.is_done).peekable();
            if waiting.peek().is_none() {
                return true;
            }
            // One that is in no call has not begun yet: the machine is busy.
            let limit = if waiting.any(|side| side.doing.is_empty()) {
                limit + BUSY
            } else {
                limit
            };
            let left = limit.saturating_sub(since.elapsed());
            let Ok((from, line)) = self.lines.recv_timeout(left) else {
                return false;
            };
            self.take(from, &line);
            since = Instant::now();
        }
    }

    fn take(&mut self, from: usize, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (phase, side) = (self.phase, &mut self.sides[from]);
        match word {
            "begin" => side.doing = rest.to_owned(),
            "saw" => {
                side.doing.clear();
                side.seen.push((phase, rest.to_owned()));
            }
            "via" => {
                if !self.via.iter().any(|known| known == rest) {
                    self.via.push(rest.to_owned());
                }
            }
            "done" => {
                side.is_done = true;
                side.doing.clear();
                if rest != "0" {
                    self.port = rest.to_owned();
                }
            }
            "ended" => {
                (side.is_done, side.has_ended) = (true, true);
                if rest != "well" {
                    side.seen.push((phase, format!("ended={rest}")));
                }
            }
            _ => side.seen.push((phase, format!("unknown line: {line}"))),
        }
    }

    /// Notes what hangs, and has it killed.
    fn kill(&mut self) {
        // An end that waits for the other inside a phase says so by doing something; one that is done waits for us.
        for side in self.sides.iter_mut().filter(|side| !side.is_done) {
            let what = match side.doing.as_str() {
                "" => "end",
                doing => doing,
            };
            side.seen.push((self.phase, format!("{what}=hangs")));
        }
        for side in &self.sides {
            let _ = side.stream.shutdown(Shutdown::Write);
        }
        let deadline = Instant::now() + GRACE;
        while self.sides.iter().any(|side| !side.has_ended) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((from, line)) = self.lines.recv_timeout(left) else {
                return;
            };
            if line.starts_with("ended") {
                self.sides[from].has_ended = true;
            }
        }
    }
}

fn side(
    plan: &Plan,
    case: &str,
    role: Role,
    index: usize,
    lines: &Sender<(usize, String)>,
) -> io::Result<Side> {
    let agent = match role {
        Role::Client => plan.client,
        Role::Server => plan.server,
    };
    let mut stream = TcpStream::connect_timeout(&agent, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    let order = Order {
        case: case.to_owned(),
        role,
        transport: plan.transport,
        address: plan.address,
        address6: plan.address6,
        port: cases::port(case),
        // What an end waits for inside a phase has no second end to be waited for.
        moment_ms: u64::try_from(plan.settle.as_millis() * 3).unwrap_or(u64::MAX),
    };
    writeln!(stream, "{}", serde_json::to_string(&order)?)?;
    let (reader, lines) = (BufReader::new(stream.try_clone()?), lines.clone());
    thread::Builder::new().spawn(move || {
        for line in reader.lines().map_while(Result::ok) {
            if lines.send((index, line)).is_err() {
                break;
            }
        }
    })?;
    Ok(Side {
        stream,
        seen: Vec::new(),
        doing: String::new(),
        is_done: false,
        has_ended: false,
    })
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a case is written with.
//!
//! Both ends run a case's function, each in a process of its own. [`End::client`] and [`End::server`] are phases of which
//! one end has a part, [`End::both`] is one of which both have. A phase begins when both ends have done the one before.
//! What an end sees it notes ([`crate::see`]); a phase that does not end is noted as what it was in, `recv=hangs`.
//!
//! Lines to the hub: `begin CALL`, `saw TEXT`, `via KIND` (what a connection is, as SMC's diagnosis says), `done PORT`.
//! Line from the hub: `go PORT`.

use crate::agent::{Order, Role};
use crate::cases;
use crate::outcome::Transport;
use crate::sys::{self, Addr, Errno, Fd, Out};
use ivsmc_guest::connections::{self, Mode};
use ivsmc_guest::{IPPROTO_SMC, netlink};
use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Makes a system call of [`crate::sys`], and notes what it gives: `send=5`, `send=EPIPE+SIGPIPE`. The value is an
/// `Option`, and can be dropped. A call that needs a name of its own gets it before an arrow.
#[macro_export]
macro_rules! see {
    ($end:expr, $call:ident ( $($argument:expr),* $(,)? )) => {
        $crate::see!($end, stringify!($call) => $crate::sys::$call($($argument),*))
    };
    ($end:expr, $name:expr => $call:expr) => {{
        $end.begin($name);
        let result = $call;
        $end.saw($name, &$crate::end::shown(&result));
        $crate::end::value(result)
    }};
}

/// A call's outcome as it is noted.
pub fn shown<T: Display>(result: &Result<T, Errno>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

/// A call's value, which nobody has to use.
pub fn value<T>(result: Result<T, Errno>) -> Option<T> {
    result.ok()
}

/// A call that a thread of its own makes.
pub struct Running {
    name: &'static str,
    thread: i32,
    result: Receiver<String>,
    early: Option<String>,
}

impl Running {
    /// Signals the thread.
    pub fn signal(&self, signal: i32) {
        // It may have ended, which is seen by what the call gave.
        let _ = sys::signal_thread(self.thread, signal);
    }
}

impl Running {
    /// Waits for the call's end: what it gave.
    pub fn outcome(self) -> String {
        self.early
            .unwrap_or_else(|| self.result.recv().unwrap_or_else(|_| "?".into()))
    }
}

/// One end of a case.
pub struct End {
    role: Role,
    transport: Transport,
    order: Order,
    /// The port on which the server listens, once it does.
    pub port: u16,
    /// The connection.
    pub fd: Fd,
    /// The server's listening socket.
    pub listener: Fd,
    children: Vec<i32>,
}

/// By how much a call may be late on a busy machine.
const LATE: Duration = Duration::from_secs(4);

/// Runs one end, as the hub has ordered.
pub fn main(order: Order) -> Result<(), String> {
    let case = cases::find(&order.case).ok_or_else(|| format!("{}: no such case", order.case))?;
    for signal in [libc::SIGPIPE, libc::SIGURG, libc::SIGIO] {
        sys::handle(signal, true).map_err(|error| error.to_string())?;
    }
    let mut end = End {
        role: order.role,
        transport: order.transport,
        order,
        port: 0,
        fd: -1,
        listener: -1,
        children: Vec::new(),
    };
    (case.run)(&mut end);
    end.kill_children();
    Ok(())
}

/// Writes a line to the hub. One system call: threads and children write, too.
fn tell(line: &str) {
    let line = format!("{}\n", line.replace('\n', " "));
    // A hub that does not listen any more has this process killed.
    let _ = sys::write(1, line.as_bytes());
}

impl End {
    // --- phases

    /// A phase of the client's.
    pub fn client(&mut self, part: impl FnOnce(&mut End)) {
        self.phase(Role::Client, part);
    }

    /// A phase of the server's.
    pub fn server(&mut self, part: impl FnOnce(&mut End)) {
        self.phase(Role::Server, part);
    }

    /// A phase of both at once.
    pub fn both(&mut self, client: impl FnOnce(&mut End), server: impl FnOnce(&mut End)) {
        match self.role {
            Role::Client => client(self),
            Role::Server => server(self),
        }
        self.next_phase();
    }

    /// A phase in which both do the same.
    pub fn each(&mut self, part: impl FnOnce(&mut End)) {
        part(self);
        self.next_phase();
    }

    fn phase(&mut self, role: Role, part: impl FnOnce(&mut End)) {
        if self.role == role {
            part(self);
        }
        self.next_phase();
    }

    fn next_phase(&mut self) {
        let port = match self.role {
            Role::Server => self.port,
            Role::Client => 0,
        };
        tell(&format!("done {port}"));
        let mut line = String::new();
        // Not having a hub any more is the end.
        if !matches!(io::stdin().read_line(&mut line), Ok(1..)) {
            sys::exit(0);
        }
        if let Some(port) = line.trim().strip_prefix("go ") {
            self.port = port.parse().unwrap_or(0);
        }
    }

    // --- notes

    /// Notes something.
    pub fn note(&self, text: &str) {
        tell(&format!("saw {text}"));
    }

    /// Says what is about to be done, in case it hangs.
    pub fn begin(&self, name: &str) {
        tell(&format!("begin {name}"));
    }

    /// Notes what a call gave, and the signals that came with it.
    pub fn saw(&self, name: &str, result: &str) {
        self.note(&format!("{name}={result}{}", sys::handled()));
    }

    /// Makes a call that is to end after `expected`, and notes whether it did: at once, in time, late.
    pub fn timed<T: Display>(
        &self,
        name: &str,
        expected: Duration,
        call: impl FnOnce() -> Result<T, Errno>,
    ) {
        self.begin(name);
        let start = Instant::now();
        let result = call();
        let took = start.elapsed();
        let class = if took < expected * 3 / 4 {
            "early"
        } else if took < expected + LATE {
            "in time"
        } else {
            "late"
        };
        self.saw(name, &format!("{} {class}", shown(&result)));
    }

    /// A call without which the case makes no sense: its value, else the end of the case.
    pub fn must<T>(&self, name: &str, result: Result<T, Errno>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => {
                self.note(&format!("{name}={error}"));
                self.kill_children();
                std::process::exit(0);
            }
        }
    }

    // --- calls at the side

    /// Has a thread make a call.
    pub fn start<T: Display>(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<T, Errno> + Send + 'static,
    ) -> Running {
        let (send, result) = channel();
        let (send_id, id) = channel();
        thread::spawn(move || {
            let _ = send_id.send(sys::thread_id());
            let text = shown(&call());
            // Nobody waits for a call that was only to be under way.
            let _ = send.send(text + &sys::handled());
        });
        Running {
            name,
            thread: id.recv().unwrap_or(0),
            result,
            early: None,
        }
    }

    /// Notes that a call has not ended, if it has not.
    pub fn waits(&self, running: &mut Running) {
        match running.result.recv_timeout(self.moment()) {
            Ok(result) => running.early = Some(result),
            Err(_) => self.note(&format!("{} waits", running.name)),
        }
    }

    /// Waits for a call's end, and notes what it gave. The other end, which has not started it, has none.
    pub fn finish(&self, running: impl Into<Option<Running>>) {
        let Some(running) = running.into() else {
            return;
        };
        let name = running.name;
        self.begin(name);
        self.note(&format!("{name}={}", running.outcome()));
    }

    /// Long enough for what is to happen at once to have happened.
    pub fn moment(&self) -> Duration {
        Duration::from_millis(self.order.moment_ms)
    }

    /// Waits for that long.
    pub fn pause(&self) {
        thread::sleep(self.moment());
    }

    /// Has a child process do something; it ends well after that.
    pub fn fork(&mut self, part: impl FnOnce(&mut End)) -> i32 {
        match self.must("fork", sys::fork()) {
            0 => {
                self.children.clear();
                part(self);
                sys::exit(0)
            }
            child => {
                let child = i32::try_from(child).unwrap_or(0);
                self.children.push(child);
                child
            }
        }
    }

    /// Waits for a child's end, and notes how it was.
    pub fn wait(&mut self, child: i32) {
        self.begin("child");
        let ended = sys::wait(child);
        self.children.retain(|other| *other != child);
        self.note(&format!("child={ended}"));
    }

    fn kill_children(&self) {
        for child in &self.children {
            let _ = sys::kill(*child, libc::SIGKILL);
        }
    }

    // --- sockets

    /// A new socket of the run's transport.
    pub fn socket(&self, domain: i32) -> Fd {
        self.must("socket", self.try_socket(domain, 0)) as Fd
    }

    /// The same with flags, if it can be had.
    pub fn try_socket(&self, domain: i32, flags: i32) -> Out {
        sys::socket(domain, libc::SOCK_STREAM | flags, self.protocol())
    }

    /// The protocol that makes a socket one of the run's transport.
    pub fn protocol(&self) -> i32 {
        match self.transport {
            Transport::Tcp => libc::IPPROTO_TCP,
            Transport::Smc | Transport::Fallback => IPPROTO_SMC,
        }
    }

    /// A new IPv4 socket.
    pub fn stream(&self) -> Fd {
        self.socket(libc::AF_INET)
    }

    /// The server's address.
    pub fn to(&self) -> Addr {
        Addr::v4(self.order.address, self.port)
    }

    /// The server's IPv6 address.
    pub fn to6(&self) -> Addr {
        Addr::v6(self.order.address6, self.port)
    }

    /// The server's IPv4 address as IPv6 programs write it.
    pub fn to_mapped(&self) -> Addr {
        Addr::v6(self.order.address.to_ipv6_mapped(), self.port)
    }

    /// Any address of this system, any port.
    pub fn any(domain: i32) -> Addr {
        match domain {
            libc::AF_INET6 => Addr::v6(std::net::Ipv6Addr::UNSPECIFIED, 0),
            _ => Addr::v4(std::net::Ipv4Addr::UNSPECIFIED, 0),
        }
    }

    /// Binds `fd` to a port of this case's own, `port` from then on.
    ///
    /// It is none that the kernel gives away, so that no other case has it when this one has closed it; and all can have
    /// it again as soon as a run ends.
    pub fn bind_to_own_port(&mut self, fd: Fd, domain: i32) {
        self.must(
            "SO_REUSEADDR",
            sys::set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1),
        );
        self.port = self.order.port;
        let address = Self::any(domain).with_port(self.port);
        let start = Instant::now();
        let bound = loop {
            match sys::bind(fd, &address) {
                // What a killed end has left behind.
                Err(Errno(libc::EADDRINUSE)) if start.elapsed() < Duration::from_secs(2) => {
                    thread::sleep(Duration::from_millis(50));
                }
                bound => break bound,
            }
        };
        self.must("bind", bound);
        self.listener = fd;
    }

    /// Makes `fd` listen on a port of this case's own.
    pub fn listen_on(&mut self, fd: Fd, domain: i32, backlog: i32) {
        self.bind_to_own_port(fd, domain);
        self.must("listen", sys::listen(fd, backlog));
    }

    /// A phase after which the server listens.
    pub fn listening(&mut self) {
        self.listening_in(libc::AF_INET);
    }

    /// The same with IPv6, or IPv4.
    pub fn listening_in(&mut self, domain: i32) {
        self.server(|e| {
            let fd = e.socket(domain);
            e.listen_on(fd, domain, 128);
        });
    }

    /// Phases after which the ends have a connection, `fd`.
    pub fn connected(&mut self) {
        self.listening();
        self.connecting(|_| {}, |_| {});
    }

    /// A phase in which the client connects and the server accepts; each may do something to the socket before that.
    pub fn connecting(&mut self, client: impl FnOnce(&mut End), server: impl FnOnce(&mut End)) {
        self.both(
            |e| {
                e.fd = e.stream();
                client(e);
                e.begin("connect");
                e.must("connect", sys::connect(e.fd, &e.to()));
                e.prove(e.fd);
            },
            |e| {
                server(e);
                e.accept();
            },
        );
    }

    /// Accepts a connection.
    pub fn accept(&mut self) {
        self.begin("accept");
        self.fd = self.must("accept", sys::accept(self.listener)) as Fd;
        self.prove(self.fd);
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.begin("close");
        self.must("close", sys::close(self.fd));
        self.fd = -1;
    }

    /// Closes the connection with a reset.
    pub fn abort(&mut self) {
        self.must("linger", sys::linger(self.fd, Some(0)));
        self.close();
    }

    /// Tells the hub what the first of many connections is.
    pub fn prove_first(&self, fd: Fd, round: usize) {
        if round == 0 {
            self.prove(fd);
        }
    }

    /// Tells the hub what a connection is.
    pub fn prove(&self, fd: Fd) {
        tell(&format!("via {}", via(fd)));
    }
}

fn via(fd: Fd) -> String {
    let Ok(metadata) = std::fs::metadata(format!("/proc/self/fd/{fd}")) else {
        return "closed".into();
    };
    match connections::find(metadata.ino()) {
        Ok(None) | Err(netlink::Error::NoFamily(_)) => "tcp".into(),
        Ok(Some(connection)) => match connection.mode {
            Mode::SmcD => "smc-d".into(),
            Mode::SmcR => "smc-r".into(),
            Mode::Tcp => "fallback".into(),
            Mode::None => format!("smc, {}", connection.state),
        },
        Err(error) => error.to_string(),
    }
}

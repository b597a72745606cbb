// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest: its making, what it is asked to do, its state of health.

use crate::lab::{self, Lab};
use crate::network;
use crate::reports::is_report;
use crate::vmm::Vmm;
use anyhow::{Context, Result, bail, ensure};
use ivsmc_guest::connections::Mode as How;
use ivsmc_guest::status::Status;
use ivsmc_guest::warm;
use ivsmc_traffic::agent::{self, Agent, Command};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The port on which every guest serves self-checking traffic over SMC.
pub const SMC_PORT: u16 = 5000;
/// The same over plain TCP.
pub const TCP_PORT: u16 = 5001;
/// The port on which a guest is sent an archive.
const ARCHIVE_PORT: u16 = 5002;
/// How long it may take to unpack it when all of it has been sent.
const UNPACK_TIME: Duration = Duration::from_secs(60);
/// How long a connection may take to end when its peer has gone.
const END_TIME: Duration = Duration::from_secs(20);
/// How long a server may take to listen.
const LISTEN_TIME: Duration = Duration::from_secs(60);

/// How ivpci is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The sender writes into the receiver's buffer.
    NoCopy,
    /// The driver copies.
    Copy,
    /// Not at all.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::NoCopy => "nocopy",
            Mode::Copy => "copy",
            Mode::Off => "off",
        })
    }
}

/// A guest that can be booted.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    host: u8,
    mode: Mode,
    cpus: u8,
    megabytes: u32,
    device: Option<String>,
    moves: bool,
    landlocked: bool,
    vhost: bool,
    disk: Option<PathBuf>,
    peers: Vec<Ipv4Addr>,
}

impl Guest {
    /// A guest with this name, with host number `host` (2 to 254) in the network.
    pub fn new(name: &str, host: u8) -> Self {
        let mode = Mode::NoCopy;
        Guest {
            name: name.to_owned(),
            host,
            mode,
            cpus: 1,
            megabytes: 512,
            device: None,
            moves: false,
            landlocked: false,
            vhost: true,
            disk: None,
            peers: Vec::new(),
        }
    }

    /// How ivpci is loaded at boot.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many processors it has.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory it has, in MiB.
    pub fn memory(mut self, megabytes: u32) -> Self {
        self.megabytes = megabytes;
        self
    }

    /// Gives it an ivsmc device: the value of `--ivsmc`. For QEMU: the server's socket.
    pub fn ivsmc(mut self, option: impl Into<String>) -> Self {
        self.device = Some(option.into());
        self
    }

    /// Has it keep a connection to each of these guests.
    pub fn peers(mut self, peers: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// Makes it one that can be moved to another VMM on this machine while it runs.
    pub fn movable(mut self) -> Self {
        self.moves = true;
        self
    }

    /// Has Cloud Hypervisor confine itself with landlock.
    pub fn landlocked(mut self) -> Self {
        self.landlocked = true;
        self
    }

    /// Has vmm-reference move its packets by itself.
    pub fn without_vhost(mut self) -> Self {
        self.vhost = false;
        self
    }

    /// Gives it a disk, an image in this file. Cloud Hypervisor's only.
    pub fn disk(mut self, image: PathBuf) -> Self {
        self.disk = Some(image);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        network::address(self.host)
    }

    pub(crate) fn mac(&self) -> String {
        format!("02:69:76:73:6d:{:02x}", self.host)
    }

    pub(crate) fn mode_at_boot(&self) -> Mode {
        self.mode
    }

    pub(crate) fn kept_peers(&self) -> &[Ipv4Addr] {
        &self.peers
    }

    pub(crate) fn processors(&self) -> u8 {
        self.cpus
    }

    pub(crate) fn megabytes(&self) -> u32 {
        self.megabytes
    }

    pub(crate) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    pub(crate) fn is_landlocked(&self) -> bool {
        self.landlocked
    }

    pub(crate) fn has_vhost(&self) -> bool {
        self.vhost
    }

    pub(crate) fn disk_image(&self) -> Option<&Path> {
        self.disk.as_deref()
    }

    pub(crate) fn can_move(&self) -> bool {
        self.moves
    }

    /// Starts its VMM; the guest boots meanwhile.
    pub fn start<'a>(&self, lab: &'a Lab) -> Result<Booting<'a>> {
        Ok(Booting {
            lab,
            guest: self.clone(),
            vmm: Vmm::start(lab, self)?,
        })
    }

    /// Starts it as [`start`](Self::start), by the calls of Cloud Hypervisor's API that a container runtime makes.
    pub fn start_by_api<'a>(&self, lab: &'a Lab) -> Result<Booting<'a>> {
        Ok(Booting {
            lab,
            guest: self.clone(),
            vmm: Vmm::start_by_api(lab, self)?,
        })
    }

    /// It, as it boots in this VMM.
    pub(crate) fn booting<'a>(&self, lab: &'a Lab, vmm: Vmm) -> Booting<'a> {
        Booting {
            lab,
            guest: self.clone(),
            vmm,
        }
    }

    /// Starts it and waits until it can be used.
    pub fn boot(&self, lab: &Lab) -> Result<Running> {
        self.start(lab)?.ready()
    }
}

/// A guest that boots.
pub struct Booting<'a> {
    lab: &'a Lab,
    guest: Guest,
    vmm: Vmm,
}

impl Booting<'_> {
    /// Waits until it can be used.
    pub fn ready(self) -> Result<Running> {
        let Booting { lab, guest, vmm } = self;
        let limit = lab.boot_time();
        let mut vmm = vmm;
        match connect(&guest, &mut vmm, limit) {
            Ok(agent) => {
                let mut running = Running {
                    guest,
                    vmm,
                    agent,
                    boot_time: limit,
                };
                running.start_services()?;
                Ok(running)
            }
            Err(error) => Err(error
                .context(format!("guest {} does not come up", guest.name))
                .context(vmm.tails())),
        }
    }
}

fn connect(guest: &Guest, vmm: &mut Vmm, limit: Duration) -> Result<Agent> {
    let address = SocketAddr::from((guest.address(), agent::PORT));
    let deadline = Instant::now() + limit;
    loop {
        match Agent::connect(address, Duration::from_secs(1)) {
            Ok(agent) => return Ok(agent),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => vmm.check()?,
        }
    }
}

/// A guest that can be used.
pub struct Running {
    guest: Guest,
    vmm: Vmm,
    agent: Agent,
    boot_time: Duration,
}

impl Running {
    fn start_services(&mut self) -> Result<()> {
        for (port, smc) in [(SMC_PORT, true), (TCP_PORT, false)] {
            let mut command = vec!["ivsmc-traffic".to_owned(), "serve".into()];
            command.push(format!("--port={port}"));
            command.extend(smc.then(|| "--smc".to_owned()));
            self.agent.spawn(&Command::new(command))?;
        }
        Ok(())
    }

    /// What it was made from.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.guest.address()
    }

    /// Its agent.
    pub fn agent(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Goes on with the guest, as it is, in another VMM; gives the one that had it.
    pub fn continue_in(&mut self, vmm: Vmm) -> Result<Vmm> {
        let old = std::mem::replace(&mut self.vmm, vmm);
        self.agent = connect(&self.guest, &mut self.vmm, self.boot_time)?;
        Ok(old)
    }

    /// Its VMM.
    pub fn vmm(&mut self) -> &mut Vmm {
        &mut self.vmm
    }

    /// Runs a line of shell that has to succeed; gives what it wrote.
    pub fn shell(&mut self, line: &str) -> Result<String> {
        self.agent
            .shell(line)
            .with_context(|| format!("guest {}", self.guest.name))
    }

    /// Runs a program that has to succeed; gives what it wrote.
    pub fn check(&mut self, command: &Command) -> Result<String> {
        self.agent
            .check(command)
            .with_context(|| format!("guest {}", self.guest.name))
    }

    /// Talks to the guest's agent anew: the conversation so far may wait for a program that does not end.
    pub fn reconnect(&mut self) -> Result<()> {
        self.agent = connect(&self.guest, &mut self.vmm, Duration::from_secs(5))?;
        Ok(())
    }

    /// What `ivsmc-guest status` says.
    pub fn status(&mut self) -> Result<Status> {
        self.status_with("")
    }

    /// What `ivsmc-guest status --all` says, which is of containers too.
    pub fn status_everywhere(&mut self) -> Result<Status> {
        self.status_with("--all")
    }

    fn status_with(&mut self, option: &str) -> Result<Status> {
        let text = self.shell(&format!("ivsmc-guest status {option} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("status: {text}"))
    }

    /// ivpci's counters.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>> {
        counters(&self.shell("cat /sys/kernel/debug/ivpci/*/counters")?)
    }

    /// How many DMBs ivpci has: in use, no longer in use but not free yet, and attached ones of peers.
    pub fn buffers(&mut self) -> Result<[u64; 3]> {
        let counters = self.counters()?;
        Ok(["dmbs", "dmbs_retired", "attached"]
            .map(|name| counters.get(name).copied().unwrap_or(0)))
    }

    /// Looks again and again until nothing is amiss; `look` says what is.
    pub(crate) fn wait_until(
        &mut self,
        timeout: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<String>>,
    ) -> Result<()> {
        let start = Instant::now();
        while let Some(amiss) = look(self)? {
            ensure!(
                start.elapsed() < timeout,
                "guest {}: after {timeout:?} {amiss}",
                self.guest.name
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until it has none.
    pub fn wait_for_no_buffers(&mut self, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, |guest| {
            let buffers = guest.buffers()?;
            let amiss = || format!("there are DMBs in use, retired, attached: {buffers:?}");
            Ok((buffers != [0; 3]).then(amiss))
        })
    }

    /// Waits until ivpci says that a link is up (or, if not `up`, that none is).
    pub fn wait_for_link(&mut self, up: bool, timeout: Duration) -> Result<()> {
        let wanted = if up { "a link" } else { "no link" };
        self.wait_until_links(wanted, timeout, |count| (count > 0) == up)
    }

    /// Waits until ivpci says that so many links are up.
    pub fn wait_for_links(&mut self, wanted: usize, timeout: Duration) -> Result<()> {
        self.wait_until_links(&format!("{wanted} links"), timeout, |count| count == wanted)
    }

    fn wait_until_links(
        &mut self,
        wanted: &str,
        timeout: Duration,
        is_so: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.wait_until(timeout, |guest| {
            // There is no file while ivpci has no device.
            let links = guest.shell("cat /sys/kernel/debug/ivpci/*/links 2>/dev/null; true")?;
            let up = |line: &&str| line.split(' ').nth(1) == Some("up");
            let count = links.lines().filter(up).count();
            let amiss = || format!("{count} links are up instead of {wanted}: {links}");
            Ok((!is_so(count)).then(amiss))
        })
    }

    /// Waits until so many of the connections that `ivsmc-guest warm` keeps are there.
    pub fn wait_for_warm_connections(&mut self, count: usize, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, |guest| {
            let connections = guest.status()?.connections;
            let warm = connections.iter().filter(|connection| {
                [connection.local_port, connection.peer_port].contains(&warm::PORT)
                    && connection.mode == How::SmcD
                    && connection.state == "active"
                    // accept() has taken it
                    && connection.inode != 0
            });
            let amiss = || format!("there are not {count} warm connections: {connections:?}");
            Ok((warm.count() != count).then(amiss))
        })
    }

    /// The connections over SMC-D that were made from here to `port`: the kernel's numbers for them.
    pub fn connections_to(&mut self, port: u16) -> Result<BTreeSet<u64>> {
        let connections = self.status()?.connections.into_iter();
        let made = connections.filter(|connection| {
            connection.peer_port == port
                && connection.mode == How::SmcD
                && connection.state == "active"
        });
        Ok(made.map(|connection| connection.cookie).collect())
    }

    /// Sets the upper bound of ivpci's polling, in microseconds; gives what it was.
    pub fn poll_for(&mut self, microseconds: u64) -> Result<u64> {
        let parameter = "/sys/module/ivpci/parameters/poll_us";
        let was = self.shell(&format!(
            "cat {parameter} && echo {microseconds} >{parameter}"
        ))?;
        was.trim()
            .parse()
            .with_context(|| format!("{parameter}: {was:?}"))
    }

    /// Traffic that goes to a peer that is gone, program `id`, has to end soon, with an error; gives what it said.
    pub fn ends_with_error(&mut self, id: u64) -> Result<String> {
        let name = &self.guest.name;
        let outcome = self.agent.wait(id, END_TIME)?.with_context(|| {
            format!(
                "guest {name}: the connection to a peer that is gone is still there after {END_TIME:?}"
            )
        })?;
        ensure!(
            outcome.status == Some(1),
            "guest {name}: the traffic did not end with an error: {outcome}"
        );
        Ok(outcome.stderr)
    }

    /// Starts a server and waits until it listens.
    ///
    /// A client may not take it well to be refused: redis-benchmark then goes round in circles for ever.
    pub fn start_server(&mut self, command: &Command, port: u16) -> Result<u64> {
        let id = self.agent.spawn(command)?;
        let start = Instant::now();
        // State 0A is LISTEN; the TCP socket under an SMC socket is listed too.
        let listening = format!("grep -Eq ':{port:04X} 0+:0000 0A' /proc/net/tcp /proc/net/tcp6");
        while self.shell(&listening).is_err() {
            if start.elapsed() > LISTEN_TIME {
                let outcome = self.agent.wait(id, Duration::ZERO)?;
                bail!("`{command}` does not listen on port {port}: {outcome:?}");
            }
        }
        Ok(id)
    }

    /// Unpacks an archive into a folder of the guest's, which is made.
    pub fn unpack(&mut self, archive: &Path, folder: &str) -> Result<()> {
        self.shell(&format!("mkdir -p {folder}"))?;
        let line = format!("nc -l -p {ARCHIVE_PORT} -e tar x -C {folder}");
        let id = self.start_server(&Command::new(line.split_whitespace()), ARCHIVE_PORT)?;
        let mut file = File::open(archive).with_context(|| archive.display().to_string())?;
        let mut stream = TcpStream::connect((self.address(), ARCHIVE_PORT))?;
        std::io::copy(&mut file, &mut stream)?;
        drop(stream);
        let outcome = self.agent.wait(id, UNPACK_TIME)?;
        let outcome =
            outcome.with_context(|| format!("{} is still unpacked", archive.display()))?;
        ensure!(outcome.success(), "{}: {outcome}", archive.display());
        Ok(())
    }

    /// Waits for a file that program `id` makes, which must not end before.
    pub fn wait_for_file(&mut self, id: u64, file: &str, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, |guest| {
            if guest.shell(&format!("test -e {file}")).is_ok() {
                return Ok(None);
            }
            if let Some(outcome) = guest.agent.wait(id, Duration::ZERO)? {
                let name = &guest.guest.name;
                bail!("guest {name}: what should make {file} has ended: {outcome}");
            }
            Ok(Some(format!("there is no {file}")))
        })
    }

    /// Keeps the guest's processors on one of the machine's.
    pub fn pin(&self, processor: usize) -> Result<()> {
        self.vmm.pin(processor)
    }

    /// Loads or unloads ivpci.
    pub fn load_driver(&mut self, mode: Mode) -> Result<()> {
        if self
            .shell("lsmod")?
            .lines()
            .any(|line| line.starts_with("ivpci "))
        {
            self.shell("rmmod ivpci")?;
        }
        let nocopy = match mode {
            Mode::NoCopy => 1,
            Mode::Copy => 0,
            Mode::Off => return Ok(()),
        };
        // with the other parameters that it has at boot
        self.shell(&format!(
            "insmod /lib/modules/ivpci.ko nocopy={nocopy} \
             $(tr ' ' '\\n' </proc/cmdline | sed -n 's/^ivpci\\.//p')"
        ))?;
        Ok(())
    }

    /// Reboots the guest from within and waits until it can be used again.
    pub fn reboot(&mut self) -> Result<()> {
        self.restart(&Command::new(["reboot", "-f"]))
    }

    /// Has the guest's kernel panic, and waits until it has booted again and can be used.
    pub fn crash(&mut self) -> Result<()> {
        // It panics as soon as it has no memory left, which is when it has to keep more free than it has, and boots a
        // second later.
        let line = "echo 1 >/proc/sys/kernel/panic; echo 2 >/proc/sys/vm/panic_on_oom; \
                    echo 100000000 >/proc/sys/vm/min_free_kbytes";
        self.restart(&Command::shell(line))
    }

    /// Waits until the guest has booted anew because of `command`, and can be used again.
    pub(crate) fn restart(&mut self, command: &Command) -> Result<()> {
        let boot = Command::new(["cat", "/proc/sys/kernel/random/boot_id"]);
        self.come_back(command, &boot, self.boot_time)
    }

    /// Has a system take over that was unpacked into a mount of the guest's: its init becomes the first process. That system
    /// has to start `ivsmc-traffic agent`.
    pub fn hand_over(&mut self, system: &str, timeout: Duration) -> Result<()> {
        let line = format!("echo {system} >/run/system && killall ivsmc-traffic");
        let first = Command::new(["cat", "/proc/1/comm"]);
        self.come_back(&Command::shell(&line), &first, timeout)
    }

    /// Waits until what `question` asks of the guest has another answer because of `command`, and the guest can be used again.
    fn come_back(
        &mut self,
        command: &Command,
        question: &Command,
        timeout: Duration,
    ) -> Result<()> {
        let before = self.check(question)?;
        self.agent.spawn(command)?;
        let start = Instant::now();
        // What is asked of the guest as it was may never be answered.
        let question = question.clone().timeout(Duration::from_secs(1));
        loop {
            ensure!(
                start.elapsed() < timeout,
                "guest {} does not come back after `{command}`",
                self.guest.name
            );
            std::thread::sleep(Duration::from_millis(200));
            let Ok(mut agent) = connect(&self.guest, &mut self.vmm, timeout) else {
                bail!("guest {} does not come back", self.guest.name);
            };
            // A connection to the guest as it was may have been made still, and then breaks.
            if let Ok(now) = agent.check(&question)
                && now != before
            {
                self.agent = agent;
                return self.start_services();
            }
        }
    }

    /// Switches the guest off from within, and waits until its VMM has ended.
    pub fn power_off(&mut self) -> Result<()> {
        self.agent.spawn(&Command::new(["poweroff", "-f"]))?;
        let status = self.vmm.wait(self.boot_time)?;
        ensure!(
            status.success(),
            "guest {}: the VMM ended with {status}",
            self.guest.name
        );
        Ok(())
    }

    /// Says what is wrong with the guest: an ended VMM, a report of its kernel's checks.
    pub fn check_health(&mut self) -> Result<()> {
        self.vmm.check()?;
        let log = self.shell("dmesg -c")?;
        let file = self.vmm.folder().join("dmesg.log");
        let mut whole = std::fs::read_to_string(&file).unwrap_or_default();
        whole += &log;
        std::fs::write(&file, whole)?;
        match report(&log) {
            None => Ok(()),
            Some(report) => {
                bail!("the kernel of guest {} reports:\n{report}", self.guest.name)
            }
        }
    }

    /// The ends of its logs.
    pub fn tails(&self) -> String {
        self.vmm.tails()
    }

    /// What is known of it when something has failed.
    fn explain(&mut self) -> String {
        let mut text = format!("{}guest {}\n", lab::LOGS, self.guest.name);
        if let Err(error) = self.vmm.check() {
            text += &format!("{error:#}\n{}", self.tails());
            return text;
        }
        let mut is_silent = false;
        if self.shell("true").is_err() {
            text += "it did not answer; its programs, if a new connection can be made:\n";
            is_silent = self.reconnect().is_err();
        }
        for line in [
            // Nothing but the shell itself: a busy guest takes its time to start programs.
            "for t in /proc/[0-9]*/task/*; do read c <$t/comm; read s <$t/stat; s=${s##*) }; w=; read w <$t/wchan; \
             read n <$t/syscall; case $c in k*|rcu*|migration*|cpuhp*) ;; *) echo $c ${s%% *} $w $n;; esac; \
             done 2>/dev/null | tail -80",
            "cat /sys/kernel/debug/ivpci/*/*",
            "ivsmc-guest status",
            "dmesg | tail -20",
        ] {
            match self.shell(line) {
                Ok(output) => text += &output,
                Err(failed) => text += &format!("{failed:#}\n"),
            }
        }
        match self.vmm.process().activity(Duration::from_secs(1)) {
            Ok(activity) => text += &activity,
            Err(failed) => text += &format!("{failed:#}\n"),
        }
        if is_silent {
            self.vmm.ask_where_it_hangs();
        }
        text + &self.tails()
    }
}

/// Adds to an error what is known of these guests.
pub fn explain<'a>(
    guests: impl IntoIterator<Item = &'a mut Running>,
    error: anyhow::Error,
) -> anyhow::Error {
    let text: String = guests.into_iter().map(Running::explain).collect();
    error.context(text)
}

/// ivpci's counters in its file `counters`: a name and a value on each line.
pub fn counters(text: &str) -> Result<BTreeMap<String, u64>> {
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').context("no value")?;
            Ok((name.to_owned(), value.trim().parse()?))
        })
        .collect::<Result<_>>()
        .with_context(|| format!("counters: {text}"))
}

/// What kernels write below most reports: here it tells of those that begin in any other way.
const TRACE: &str = "Call Trace:";
/// Lines of a report that are shown.
const REPORT_LINES: usize = 60;

/// The first report in a kernel's log.
fn report(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let first = lines
        .iter()
        .position(|line| is_report(line) || line.contains(TRACE))?;
    Some(
        lines[first..]
            .iter()
            .take(REPORT_LINES)
            .copied()
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found() {
        let log = "[ 1.0] smc: fine\n[ 2.0] WARNING: CPU: 0 at x\n[ 2.1] Call Trace:\n";
        assert!(report(log).unwrap().starts_with("[ 2.0] WARNING"));
        assert_eq!(report("[ 1.0] smc: fine\n"), None);
    }
}

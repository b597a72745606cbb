// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that are all each other's peers, and streams of data between them.

use crate::guest::{self, Guest, Running, SMC_PORT};
use crate::lab::Lab;
use crate::pair::{DEVICE, LINK_TIME};
use crate::process::Footprint;
use anyhow::{Context, Result, bail, ensure};
use ivsmc_guest::connections::{Connection, Mode as How};
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::traffic::Report;
use ivsmc_traffic::windows::Device;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Memory of a guest, in MiB: several have to fit into the lab VM.
const MEMORY: u32 = 320;
/// How the names of the files begin in which a guest's streams say how many exchanges they have made; the number of the
/// guest at the other end and the stream's follow.
const PROGRESS: &str = "/run/stream";
/// The file that ends a guest's streams.
const STOP: &str = "/run/stop";
/// How long data may take to flow again, or things to be as they have to be.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds without a byte after which a stream has failed.
const SILENCE: u64 = 60;

/// How fast streams are to be: all of them share the machine.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes each way at a time.
    pub bytes: u64,
    /// Milliseconds from one time to the next.
    pub pause: u64,
}

/// A stream's ends: the number of the guest that has opened it, and of its peer.
pub type Ends = (usize, usize);

/// Two guests, in either order.
pub fn pair(one: usize, other: usize) -> Ends {
    (one.min(other), one.max(other))
}

/// A program that exchanges data on one connection.
#[derive(Debug)]
struct Stream {
    /// Its number at the agent of the guest that has opened it.
    id: u64,
    /// Which of all streams it is, from 1 on.
    number: u64,
    /// How many exchanges were right when it was last looked at.
    exchanges: u64,
}

/// The guests.
pub struct Mesh<'a> {
    lab: &'a Lab,
    folder: PathBuf,
    guests: Vec<Guest>,
    running: Vec<Option<Running>>,
    pace: Pace,
    streams: BTreeMap<Ends, Stream>,
    /// How many streams there have been.
    number: u64,
}

/// What a guest and its VMM hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// The VMM.
    vmm: Footprint,
    /// Windows that are memory slots, if the VMM has a counter of them.
    slots: Option<u64>,
    /// ivpci's DMBs: in use, no longer in use but not free yet, and attached ones of peers.
    buffers: [u64; 3],
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [used, retired, attached] = self.buffers;
        write!(
            f,
            "{}; in the guest {used} DMBs, {retired} retired, {attached} attached",
            self.vmm
        )?;
        match self.slots {
            Some(slots) => write!(f, "; {slots} windows are memory slots"),
            None => Ok(()),
        }
    }
}

impl<'a> Mesh<'a> {
    /// So many guests, none booted. `option` gives what the guest of this number has in its option `--ivsmc` beyond
    /// the folder, as `,NAME=VALUE`.
    pub fn new(
        lab: &'a Lab,
        count: usize,
        pace: Pace,
        option: impl Fn(usize) -> String,
    ) -> Result<Self> {
        // What else is in the run folder is no device's.
        let folder = lab.run_folder().join("mesh");
        // An earlier mesh that failed may have left it.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder)?;
        let guests = (0u8..)
            .zip("abcdefgh".chars())
            .take(count)
            .map(|(number, name)| {
                let more = option(number.into());
                let places = if more.contains("max_peers=") {
                    ""
                } else {
                    ",max_peers=8"
                };
                let value = format!(
                    "path={0}/{name},peer={0},id={DEVICE}{places}{more}",
                    folder.display()
                );
                Guest::new(&name.to_string(), 2 + number)
                    .memory(MEMORY)
                    .ivsmc(value)
            })
            .collect();
        Ok(Mesh {
            lab,
            folder,
            guests,
            running: (0..count).map(|_| None).collect(),
            pace,
            streams: BTreeMap::new(),
            number: 0,
        })
    }

    /// Has all guests be something else.
    pub fn map(mut self, change: impl Fn(Guest) -> Guest) -> Self {
        self.guests = self.guests.into_iter().map(change).collect();
        self
    }

    /// The folder with the devices' sockets.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// A guest's socket.
    pub fn socket(&self, number: usize) -> PathBuf {
        self.folder.join(self.guests[number].name())
    }

    /// How many guests there can be.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether there can be none.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// The names of guests.
    pub fn names(&self, numbers: &[usize]) -> String {
        numbers
            .iter()
            .map(|&number| self.guests[number].name())
            .collect::<Vec<_>>()
            .join("+")
    }

    /// The numbers of those that run.
    pub fn numbers(&self) -> Vec<usize> {
        (0..self.running.len())
            .filter(|&number| self.running[number].is_some())
            .collect()
    }

    /// A guest that runs.
    pub fn guest(&mut self, number: usize) -> Result<&mut Running> {
        let name = self.guests[number].name();
        let running = self.running[number].as_mut();
        running.with_context(|| format!("guest {name} does not run"))
    }

    /// Boots these, at once.
    pub fn boot(&mut self, numbers: &[usize]) -> Result<()> {
        let mut booting = Vec::new();
        for &number in numbers {
            booting.push((number, self.guests[number].start(self.lab)?));
        }
        for (number, booting) in booting {
            self.running[number] = Some(booting.ready()?);
        }
        Ok(())
    }

    /// Starts a guest's VMM, and kills it after a while.
    pub fn boot_in_part(&mut self, number: usize, time: Duration) -> Result<()> {
        let booting = self.guests[number].start(self.lab)?;
        std::thread::sleep(time);
        drop(booting);
        Ok(())
    }

    /// Kills the VMM of a guest as a crash would.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        self.guest(number)?.vmm().kill()?;
        self.running[number] = None;
        Ok(())
    }

    /// Switches a guest off from within.
    pub fn power_off(&mut self, number: usize) -> Result<()> {
        self.guest(number)?.power_off()?;
        self.running[number] = None;
        Ok(())
    }

    /// Does the same in several guests at once; gives what came of it in each.
    pub fn at_once<T: Send>(
        &mut self,
        numbers: &[usize],
        action: impl Fn(usize, &mut Running) -> Result<T> + Sync,
    ) -> Result<BTreeMap<usize, T>> {
        let action = &action;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, running) in self.running.iter_mut().enumerate() {
                if let Some(running) = running
                    && numbers.contains(&number)
                {
                    threads.push((number, scope.spawn(move || action(number, running))));
                }
            }
            let mut results = BTreeMap::new();
            for (number, thread) in threads {
                match thread.join() {
                    Ok(result) => results.insert(number, result?),
                    Err(_) => bail!("a thread panicked"),
                };
            }
            Ok(results)
        })
    }

    /// Adds what is known to an error.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        guest::explain(self.running.iter_mut().flatten(), error)
    }

    /// Says what is wrong with any of them.
    pub fn check_health(&mut self) -> Result<()> {
        let all = self.numbers();
        self.at_once(&all, |_, guest| guest.check_health())?;
        Ok(())
    }

    /// Waits until each has a link to each other.
    pub fn wait_for_links(&mut self) -> Result<()> {
        let all = self.numbers();
        let peers = all.len().saturating_sub(1);
        self.at_once(&all, |_, guest| guest.wait_for_links(peers, LINK_TIME))?;
        Ok(())
    }

    /// The device of a guest, and its links.
    pub fn device(&mut self, number: usize) -> Result<Device> {
        let text = self.guest(number)?.shell("ivsmc-traffic windows list")?;
        serde_json::from_str(&text).with_context(|| format!("device: {text}"))
    }

    /// The number of the link that guest `from` has to guest `to`.
    pub fn link(&mut self, from: usize, to: usize) -> Result<usize> {
        let gid = self.device(to)?.gid;
        let device = self.device(from)?;
        let link = device.links.iter().find(|link| link.peer == gid);
        Ok(link
            .with_context(|| format!("no link to {gid}: {device:?}"))?
            .number)
    }

    /// Opens a stream in each direction between each two guests that run and have none yet; waits for each until data
    /// has gone both ways, over SMC-D.
    ///
    /// Between two guests one after the other: the first connections must not be opened at once on a kernel that has
    /// the defect of the cold start.
    pub fn start_streams(&mut self) -> Result<()> {
        self.start_streams_between(|_| true)
    }

    /// The same between one guest and each other.
    pub fn start_streams_of(&mut self, number: usize) -> Result<()> {
        self.start_streams_between(|(from, to)| from == number || to == number)
    }

    fn start_streams_between(&mut self, which: impl Fn(Ends) -> bool) -> Result<()> {
        let numbers = self.numbers();
        for ascending in [true, false] {
            let mut started = BTreeSet::new();
            for &from in &numbers {
                for &to in &numbers {
                    let ends = (from, to);
                    let is_new = from != to && !self.streams.contains_key(&ends);
                    if is_new && (from < to) == ascending && which(ends) {
                        self.start_stream(ends)?;
                        started.insert(ends);
                    }
                }
            }
            self.wait_for_flow(|ends| started.contains(&ends))?;
        }
        Ok(())
    }

    fn start_stream(&mut self, ends: Ends) -> Result<()> {
        let (from, to) = ends;
        self.number += 1;
        let number = self.number;
        let line = format!(
            "ivsmc-traffic stream --connect {}:{SMC_PORT} --smc --seed {} --bytes {} --pause {} --until {STOP} \
             --progress {PROGRESS}-{to}-{number} --patience {SILENCE} --timeout 100000",
            self.guests[to].address(),
            number << 32,
            self.pace.bytes,
            self.pace.pause,
        );
        let command = Command::new(line.split_whitespace());
        let id = self.guest(from)?.agent().spawn(&command)?;
        let stream = Stream {
            id,
            number,
            exchanges: 0,
        };
        self.streams.insert(ends, stream);
        Ok(())
    }

    /// How many exchanges each stream has made.
    pub fn exchanges(&mut self) -> Result<BTreeMap<Ends, u64>> {
        self.exchanges_of(|_| true)
    }

    fn exchanges_of(&mut self, which: impl Fn(Ends) -> bool) -> Result<BTreeMap<Ends, u64>> {
        let ends = self.streams.keys().filter(|&&ends| which(ends));
        let clients: BTreeSet<usize> = ends.map(|&(from, _)| from).collect();
        let line = format!(
            "for f in {PROGRESS}-*; do n=; read n <$f; echo ${{f#{PROGRESS}-}}-$n; done 2>/dev/null; true"
        );
        let clients: Vec<usize> = clients.into_iter().collect();
        let mut found = BTreeMap::new();
        for (from, text) in self.at_once(&clients, |_, guest| guest.shell(&line))? {
            for line in text.lines() {
                // The next number that is being written, or a file that has just been removed, is none of these.
                let words: Vec<_> = line.split('-').map(str::parse::<u64>).collect();
                if let [Ok(to), Ok(number), Ok(exchanges)] = words[..]
                    && let ends = (from, usize::try_from(to)?)
                    && let Some(stream) = self.streams.get(&ends)
                    && stream.number == number
                {
                    found.insert(ends, exchanges);
                }
            }
        }
        Ok(found)
    }

    /// Waits until data has flowed on these streams since this was last asked.
    pub fn wait_for_flow(&mut self, which: impl Fn(Ends) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let now = self.exchanges_of(&which)?;
            let still: Vec<Ends> = self
                .streams
                .iter()
                .filter(|&(&ends, stream)| {
                    let flowed = now.get(&ends).is_some_and(|&now| now > stream.exchanges);
                    which(ends) && !flowed
                })
                .map(|(&ends, _)| ends)
                .collect();
            if still.is_empty() {
                for (ends, exchanges) in now {
                    if which(ends)
                        && let Some(stream) = self.streams.get_mut(&ends)
                    {
                        stream.exchanges = exchanges;
                    }
                }
                return Ok(());
            }
            self.still_run(&still)?;
            ensure!(
                start.elapsed() < PATIENCE,
                "no data has flowed for {PATIENCE:?} between {}; exchanges: {now:?}",
                self.list(&still)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn still_run(&mut self, streams: &[Ends]) -> Result<()> {
        for &ends in streams {
            if let Some(&Stream { id, .. }) = self.streams.get(&ends)
                && let Some(outcome) = self.guest(ends.0)?.agent().wait(id, Duration::ZERO)?
            {
                bail!("the stream {} has ended: {outcome}", self.list(&[ends]));
            }
        }
        Ok(())
    }

    fn list(&self, streams: &[Ends]) -> String {
        let names: Vec<_> = streams
            .iter()
            .map(|&(from, to)| format!("{}-{}", self.guests[from].name(), self.guests[to].name()))
            .collect();
        names.join(", ")
    }

    /// The streams between these two guests have to end, with an error, soon; but for those of a guest that is
    /// `gone`, or was meanwhile, and they with it.
    pub fn streams_end(&mut self, which: impl Fn(Ends) -> bool, gone: &[usize]) -> Result<()> {
        let streams: Vec<_> = self
            .streams
            .iter()
            .filter(|&(&(from, to), _)| which(pair(from, to)))
            .map(|(&ends, stream)| (ends, stream.id))
            .collect();
        for (ends, id) in streams {
            self.streams.remove(&ends);
            if gone.contains(&ends.0) {
                continue;
            }
            let mended = self.lab.is_mended();
            let said = self
                .guest(ends.0)?
                .ends_with_error(id)
                .with_context(|| format!("the stream {}", self.list(&[ends])))?;
            // Without the patch it may look like an end of file.
            ensure!(
                !mended || said.contains("os error"),
                "the stream {} ended without an error of the connection: {said}",
                self.list(&[ends])
            );
        }
        Ok(())
    }

    /// Ends all streams, for good; gives what came of each. All were SMC-D, and all that they carried was right.
    pub fn stop_streams(&mut self) -> Result<BTreeMap<Ends, Report>> {
        for number in self.numbers() {
            self.guest(number)?.shell(&format!("touch {STOP}"))?;
        }
        let mut reports = BTreeMap::new();
        for (ends, stream) in std::mem::take(&mut self.streams) {
            let name = self.list(&[ends]);
            let outcome = self
                .guest(ends.0)?
                .agent()
                .wait(stream.id, Duration::from_secs(SILENCE))?
                .with_context(|| format!("the stream {name} does not end"))?;
            ensure!(outcome.success(), "the stream {name}: {outcome}");
            let report: Report =
                serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())?;
            ensure!(report.smcd == 1, "the stream {name}: {report:?}");
            reports.insert(ends, report);
        }
        Ok(reports)
    }

    /// Waits until SMC knows of the connections of the streams in all guests and of no others, and all are SMC-D.
    pub fn wait_for_connections(&mut self) -> Result<()> {
        let wanted = |number| {
            let mine = |&&(from, to): &&Ends| from == number || to == number;
            self.streams.keys().filter(mine).count()
        };
        let all = self.numbers();
        let wanted: BTreeMap<usize, usize> = all.iter().map(|&n| (n, wanted(n))).collect();
        let right = |c: &Connection| c.state == "active" && c.mode == How::SmcD;
        self.at_once(&all, |number, guest| {
            let start = Instant::now();
            loop {
                let mut connections = guest.status()?.connections;
                connections.retain(Connection::is_connected);
                if connections.len() == wanted[&number] && connections.iter().all(right) {
                    return Ok(());
                }
                ensure!(
                    start.elapsed() < PATIENCE,
                    "guest {}: there should be {} connections, all of them SMC-D: {connections:#?}",
                    guest.guest().name(),
                    wanted[&number]
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        })?;
        Ok(())
    }

    /// What each guest that runs and its VMM hold.
    pub fn holdings(&mut self) -> Result<BTreeMap<usize, Holdings>> {
        let all = self.numbers();
        self.at_once(&all, |_, guest| {
            Ok(Holdings {
                vmm: guest.vmm().process().footprint()?,
                slots: match guest.vmm().api() {
                    Ok(_) => Some(guest.vmm().counter("windows")?),
                    Err(_) => None,
                },
                buffers: guest.buffers()?,
            })
        })
    }

    /// Waits until all hold what they held before, and there is one window for each two of them.
    pub fn wait_for_holdings(&mut self, wanted: &BTreeMap<usize, Holdings>) -> Result<()> {
        let start = Instant::now();
        loop {
            let now = self.holdings()?;
            let windows = self.windows();
            if now == *wanted && windows.is_ok() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let mut text = String::new();
                for (number, now) in now {
                    let (name, wanted) = (self.guests[number].name(), wanted.get(&number));
                    if wanted != Some(&now) {
                        let before = wanted.map(ToString::to_string).unwrap_or_default();
                        text += &format!("guest {name}: before {before}\nnow {now}\n");
                        let vmm = self.guest(number)?.vmm().process();
                        text += &format!("{:?}\n{:?}\n", vmm.descriptors()?, vmm.threads()?);
                    }
                }
                windows?;
                bail!("not all hold what they held before:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// That each two VMMs have one window in common, and no window has more than two.
    pub fn windows(&mut self) -> Result<()> {
        let mut owners: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        let numbers = self.numbers();
        for &number in &numbers {
            for window in self.guest(number)?.vmm().process().windows()? {
                owners.entry(window).or_default().insert(number);
            }
        }
        let pairs: BTreeSet<_> = owners.values().cloned().collect();
        let wanted: BTreeSet<_> = numbers
            .iter()
            .flat_map(|&one| {
                numbers
                    .iter()
                    .map(move |&other| BTreeSet::from([one, other]))
            })
            .filter(|pair| pair.len() == 2)
            .collect();
        ensure!(
            pairs == wanted && owners.len() == wanted.len(),
            "windows and the VMMs that have them mapped: {owners:?}"
        );
        Ok(())
    }
}

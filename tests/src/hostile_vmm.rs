// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mesh in which a hostile peer VMM, an admitted process of another user, attacks one device by all means that it
//! has. Each part is one of them. During and after each:
//!
//! - the streams over the other links go on, without a wrong byte; how much they carry is measured and printed;
//! - what is logged and told stays within the rates of docs/security.md;
//! - afterwards VMMs and guests hold what they held before: descriptors, threads, windows, DMBs;
//! - no kernel has reported anything.
//!
//! In the end the VMM has to end at once, whatever is in its way.

use crate::attack::link::{self, Answer, NAMES};
use crate::attack::{self, kinds, links};
use crate::attacker::Attacker;
use crate::guest::SMC_PORT;
use crate::lab::Lab;
use crate::measure;
use crate::mesh::{Ends, Holdings, Mesh, Pace};
use crate::pair::{LINK_TIME, traffic_command};
use crate::vmm::Vmm;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::Gid;

/// Guests that are linked all the time; the first one's device is attacked.
const GUESTS: usize = 4;
const VICTIM: usize = 0;
/// A guest that is not there at first.
const LATE: usize = GUESTS;
/// The GID of its device.
const LATE_GID: &str = "5ead0d1e-0000-4000-8000-0123456789ab";
/// What a window of the victim's may have in a snapshot: less than the window has.
const BUDGET: u64 = 16 << 20;
/// Time for what takes no time, on a machine that is slow.
const PROMPT: Duration = Duration::from_secs(10);
/// Time for what takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long is measured at a time.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often links are wanted that come and go.
    pub links: u64,
    /// How often in a second.
    pub per_second: u64,
    /// How often to measure, with and without an attack.
    pub samples: usize,
}

impl Settings {
    /// Some two minutes in the lab.
    pub const QUICK: Self = Settings {
        links: 500,
        per_second: 25,
        samples: 3,
    };
}

/// What is counted of what the victim's VMM says.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// Warnings of connections that have ended, and events of them.
    complaints: [u64; 2],
    /// Lines, and events, of links that the hostile process had.
    links: [u64; 2],
}

impl Said {
    /// What is new.
    fn since(self, before: Self) -> Self {
        let minus = |now: [u64; 2], before: [u64; 2]| [now[0] - before[0], now[1] - before[1]];
        Said {
            complaints: minus(self.complaints, before.complaints),
            links: minus(self.links, before.links),
        }
    }

    fn count(log: &str, events: &[Value]) -> Self {
        let lines = |is_it: &dyn Fn(&str) -> bool| log.lines().filter(|line| is_it(line)).count();
        let of_events = |is_it: &dyn Fn(&str, &str) -> bool| {
            let words = |event: &Value| {
                let peer = event["properties"]["peer"].as_str().unwrap_or_default();
                is_it(event["event"].as_str().unwrap_or_default(), peer)
            };
            events.iter().filter(|event| words(event)).count() as u64
        };
        let is_link = |line: &str| line.contains(": link ") && line.contains(NAMES);
        Said {
            complaints: [
                lines(&|line| line.contains(": a connection ends: ")) as u64,
                of_events(&|kind, _| kind == "refused"),
            ],
            links: [
                lines(&is_link) as u64,
                of_events(&|kind, peer| kind.starts_with("link-") && peer.contains(NAMES)),
            ],
        }
    }

    /// Whether that may be said in this time, of one user. Half a link may be from before.
    fn check(self, time: Duration) -> Result<()> {
        let seconds = time.as_secs() + 1;
        let complaints = 10 * (seconds + 1);
        let links = 32 + 2 * seconds + 1;
        for (what, [lines, events], most_lines, most_events) in [
            ("complaints", self.complaints, complaints, complaints),
            ("links", self.links, 2 * links, 3 * links),
        ] {
            ensure!(
                lines <= most_lines && events <= most_events,
                "{what}: {lines} lines and {events} events in {time:?}; {most_lines} and {most_events} would do"
            );
        }
        Ok(())
    }
}

struct Scene<'a> {
    lab: &'a Lab,
    mesh: Mesh<'a>,
    settings: Settings,
    holdings: BTreeMap<usize, Holdings>,
    /// What was measured of this part: before and after the attack, and during it.
    quiet: Vec<Sample>,
    attacked: Vec<Sample>,
    /// How many links the runner itself has made, to see how long that takes.
    probes: u64,
}

/// What was measured at a time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Exchanges in a second on all streams of the victim.
    rate: f64,
    /// Percent of a processor that the hostile process had, and the threads of the victim's VMM that are not the
    /// guest's processors.
    load: [f64; 2],
}

/// A part: its name, and what it does. It gives what is to be printed.
type Part = (&'static str, fn(&mut Scene<'_>) -> Result<String>);

const PARTS: [Part; 7] = [
    ("descriptors_of_every_kind", descriptors_of_every_kind),
    ("lingering_sockets", |scene| closing(scene, "lingering")),
    ("files_of_a_silent_file_system", |scene| {
        closing(scene, "fuse")
    }),
    (
        "snapshot_beside_a_held_writer",
        snapshot_beside_a_held_writer,
    ),
    (
        "window_too_full_for_a_snapshot",
        window_too_full_for_a_snapshot,
    ),
    ("another_guests_gid", another_guests_gid),
    ("links_that_come_and_go", links_that_come_and_go),
];

/// Guests that are all each other's peers, with what the attacks need of the victim's device.
fn mesh(lab: &Lab, count: usize, pause: u64) -> Result<Mesh<'_>> {
    let pace = Pace {
        bytes: 64 << 10,
        pause,
    };
    Mesh::new(lab, count, pace, |number| match number {
        VICTIM => {
            let user = attack::USER;
            let max_peers = (512 << 20) / BUDGET;
            format!(",allow={user},max_peers={max_peers},size={}M", BUDGET >> 19)
        }
        LATE => format!(",gid={LATE_GID}"),
        _ => String::new(),
    })
}

/// Has all parts happen, or those whose name contains one of `filters`.
pub fn run(lab: &Lab, settings: Settings, filters: &[String]) -> Result<()> {
    // The streams take as much as the machine can do.
    let mesh = mesh(lab, GUESTS + 1, 0)?;
    let mut scene = Scene {
        lab,
        mesh,
        settings,
        holdings: BTreeMap::new(),
        quiet: Vec::new(),
        attacked: Vec::new(),
        probes: 0,
    };
    let result = all(&mut scene, filters);
    result.map_err(|error| scene.mesh.explain(error))
}

fn all(scene: &mut Scene<'_>, filters: &[String]) -> Result<()> {
    scene.mesh.boot(&(0..GUESTS).collect::<Vec<_>>())?;
    scene.mesh.wait_for_links()?;
    scene.mesh.start_streams_of(VICTIM)?;
    scene.mesh.wait_for_connections()?;
    scene.holdings = scene.mesh.holdings()?;
    let is_wanted = |name: &str| {
        let contains = |filter: &String| name.contains(filter.as_str());
        filters.is_empty() || filters.iter().any(contains)
    };
    for (name, part) in PARTS.iter().filter(|(name, _)| is_wanted(name)) {
        let start = Instant::now();
        let told = one(scene, *part).with_context(|| format!("part {name}"))?;
        println!("{name}: {told}, {:.0} s", start.elapsed().as_secs_f64());
    }
    end(scene).context("part end_of_the_vmm")
}

fn one(scene: &mut Scene<'_>, part: fn(&mut Scene<'_>) -> Result<String>) -> Result<String> {
    (scene.quiet, scene.attacked) = (Vec::new(), Vec::new());
    scene.measure(None)?;
    let (before, start) = (scene.said()?, Instant::now());
    let told = part(scene)?;
    let flow = |(from, to): Ends| [from, to].contains(&VICTIM);
    scene.mesh.wait_for_flow(flow)?;
    scene.mesh.wait_for_holdings(&scene.holdings)?;
    scene.mesh.check_health()?;
    let said = scene.said()?.since(before);
    said.check(start.elapsed())?;
    scene.measure(None)?;
    let Said { complaints, links } = said;
    let Scene {
        quiet, attacked, ..
    } = scene;
    let (without, with) = (median(quiet, |s| s.rate), median(attacked, |s| s.rate));
    Ok(format!(
        "{told}; the other links carry {with:.0} exchanges/s, without the attack {without:.0}: {:.2}; of a processor the hostile \
         process has {:.0} %, the VMM's threads {:.0} %, without the attack {:.0} %; {} lines and {} events of complaints, \
         {} and {} of links",
        with / without,
        median(attacked, |s| s.load[0]),
        median(attacked, |s| s.load[1]),
        median(quiet, |s| s.load[1]),
        complaints[0],
        complaints[1],
        links[0],
        links[1],
    ))
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    measure::median(&samples.iter().map(value).collect::<Vec<_>>())
}

impl Scene<'_> {
    fn attack(&self, attack: &[&str]) -> Result<Attacker> {
        Attacker::start(&self.mesh.socket(VICTIM), attack)
    }

    fn said(&mut self) -> Result<Said> {
        let vmm = self.mesh.guest(VICTIM)?.vmm();
        let events = match vmm.api() {
            Ok(_) => vmm.events()?,
            Err(_) => Vec::new(),
        };
        Ok(Said::count(&vmm.log()?, &events))
    }

    /// Measures what the streams carry, during an attack or without one.
    fn measure(&mut self, attacker: Option<&Attacker>) -> Result<()> {
        (0..self.settings.samples).try_for_each(|_| self.measure_once(attacker))
    }

    fn measure_once(&mut self, attacker: Option<&Attacker>) -> Result<()> {
        let vmm = self.mesh.guest(VICTIM)?.vmm().process();
        let ticks = || -> Result<[u64; 2]> {
            let threads = vmm.threads()?;
            let own = threads.iter().filter(|t| !t.name.starts_with("vcpu"));
            let own = own.map(|thread| thread.ticks).sum();
            Ok([attacker.map_or(Ok(0), Attacker::ticks)?, own])
        };
        let (before, worked, start) = (self.exchanges()?, ticks()?, Instant::now());
        std::thread::sleep(SAMPLE);
        let (now, works, time) = (self.exchanges()?, ticks()?, start.elapsed().as_secs_f64());
        // A tick is 10 ms, and a thread may have ended.
        let load = |n: usize| works[n].saturating_sub(worked[n]) as f64 / time;
        let sample = Sample {
            rate: (now - before) as f64 / time,
            load: [load(0), load(1)],
        };
        match attacker {
            Some(_) => self.attacked.push(sample),
            None => self.quiet.push(sample),
        }
        Ok(())
    }

    fn exchanges(&mut self) -> Result<u64> {
        Ok(self.mesh.exchanges()?.values().sum())
    }

    /// How long a link of a third peer takes, of another user than the hostile process's.
    fn probe(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.probes += 1;
        let mut bytes = [0x60; 16];
        bytes[15] = self.probes as u8;
        let answer = link::attempt(&self.mesh.socket(VICTIM), Gid::from_bytes(bytes), 21)?;
        let took = start.elapsed();
        ensure!(
            matches!(answer, Answer::Link(_)) && took < PROMPT,
            "a third peer's link: {answer:?} after {took:?}"
        );
        Ok(took)
    }

    /// Takes a snapshot; gives the time, and the reason if there is none.
    fn snapshot(&mut self) -> Result<(Duration, Result<(), String>)> {
        let start = Instant::now();
        let taken = self.mesh.guest(VICTIM)?.vmm().snapshot(self.lab)?;
        Ok((start.elapsed(), taken))
    }
}

fn descriptors_of_every_kind(scene: &mut Scene<'_>) -> Result<String> {
    let mut attacker = scene.attack(&["kinds"])?;
    attacker.wait_for("ready", PATIENCE)?;
    scene.measure(Some(&attacker))?;
    // Some 200 connections, and no line until it has made them all.
    let line = attacker.line(4 * PATIENCE)?;
    let report: kinds::Report = serde_json::from_str(&line).context(line)?;
    // The lab's kernel has more; any has these.
    ensure!(
        report.wrong.is_empty() && report.kinds.len() >= 30 && report.links == 7,
        "{report:?}"
    );
    Ok(format!(
        "{} kinds, {} times refused, {} links of those that are good",
        report.kinds.len(),
        report.refused,
        report.links
    ))
}

/// Descriptors whose close() blocks.
fn closing(scene: &mut Scene<'_>, attack: &str) -> Result<String> {
    let mut attacker = scene.attack(&[attack])?;
    attacker.wait_for("ready", PATIENCE)?;
    scene.measure(Some(&attacker))?;
    let probe = scene.probe()?;
    let (snapshot, taken) = scene.snapshot()?;
    ensure!(taken.is_ok(), "a snapshot beside: {taken:?}");
    Ok(format!(
        "a third peer's link took {probe:.1?}, a snapshot {snapshot:.1?}"
    ))
}

fn snapshot_beside_a_held_writer(scene: &mut Scene<'_>) -> Result<String> {
    let (without, taken) = scene.snapshot()?;
    ensure!(taken.is_ok(), "a snapshot without an attack: {taken:?}");
    let mut attacker = scene.attack(&["write"])?;
    attacker.wait_for("ready", PATIENCE)?;
    scene.measure(Some(&attacker))?;
    let (with, taken) = scene.snapshot()?;
    ensure!(
        taken.is_ok() && with < without + PROMPT,
        "a snapshot: {taken:?} after {with:?}; without an attack {without:?}"
    );
    let probe = scene.probe()?;
    Ok(format!(
        "a snapshot took {with:.1?}, without {without:.1?}, a third peer's link {probe:.1?}"
    ))
}

fn window_too_full_for_a_snapshot(scene: &mut Scene<'_>) -> Result<String> {
    // Besides there is the guest's own control area.
    let full = BUDGET - (64 << 10);
    let mut took = Vec::new();
    for (bytes, fits) in [(full, true), (full + 1, false)] {
        let mut attacker = scene.attack(&["fill", &bytes.to_string()])?;
        attacker.wait_for("ready", PATIENCE)?;
        if !fits {
            scene.measure(Some(&attacker))?;
        }
        let (time, taken) = scene.snapshot()?;
        took.push(time);
        if fits {
            ensure!(taken.is_ok(), "as much as there may be: {taken:?}");
            continue;
        }
        // It says which link it is. With that one's end it can be taken.
        let why = taken.err().context("more than there may be: no error")?;
        let link = why
            .split_once("link ")
            .and_then(|(_, rest)| rest.split_once("'s window of 32M"));
        let link: usize = link
            .and_then(|(link, _)| link.parse().ok())
            .with_context(|| why.clone())?;
        for peer in (0..GUESTS).filter(|&peer| peer != VICTIM) {
            let good = scene.mesh.link(VICTIM, peer)?;
            ensure!(link != good, "it is the link of a good peer: {why}");
        }
        attacker.go_on()?;
        attacker.wait_for("over", PATIENCE)?;
        scene.mesh.wait_for_holdings(&scene.holdings)?;
        let (_, taken) = scene.snapshot()?;
        ensure!(taken.is_ok(), "without the link: {taken:?}");
    }
    Ok(format!(
        "a snapshot of a full window took {:.1?}, the error that a byte more gives {:.1?}",
        took[0], took[1]
    ))
}

fn another_guests_gid(scene: &mut Scene<'_>) -> Result<String> {
    let mut attacker = scene.attack(&["gids", LATE_GID])?;
    attacker.wait_for("ready", PATIENCE)?;
    scene.measure(Some(&attacker))?;
    scene.mesh.boot(&[LATE])?;
    let late = scene.mesh.guest(LATE)?;
    // With all but the victim, as long as another has a link under its name.
    late.wait_for_links(GUESTS - 1, LINK_TIME)?;
    attacker.go_on()?;
    attacker.wait_for("let go", PATIENCE)?;
    let start = Instant::now();
    late.wait_for_links(GUESTS, LINK_TIME)?;
    let took = start.elapsed();
    let address = format!("{}:{SMC_PORT}", late.address());
    let traffic = traffic_command("bulk --up 1000000 --down 1000000", &address, "--smc");
    scene.mesh.guest(VICTIM)?.check(&traffic)?;
    attacker.go_on()?;
    attacker.wait_for("over", PATIENCE)?;
    scene.mesh.guest(LATE)?.wait_for_links(GUESTS, LINK_TIME)?;
    scene.mesh.power_off(LATE)?;
    scene.mesh.wait_for_links()?;
    Ok(format!(
        "no GID of another's is taken from a window; {took:.1?} after its name was free the guest had its link"
    ))
}

fn links_that_come_and_go(scene: &mut Scene<'_>) -> Result<String> {
    let Settings {
        links, per_second, ..
    } = scene.settings;
    let attack = ["links", &links.to_string(), &per_second.to_string()];
    let mut attacker = scene.attack(&attack)?;
    attacker.wait_for("ready", PATIENCE)?;
    // As long as it lasts: the first links come all at once.
    let time = PATIENCE + Duration::from_secs(2 * links / per_second.max(1));
    let start = Instant::now();
    let line = loop {
        scene.measure_once(Some(&attacker))?;
        if let Some(line) = attacker.written()? {
            break line;
        }
        ensure!(start.elapsed() < time, "not over after {time:?}");
    };
    let report: links::Report = serde_json::from_str(&line).context(line)?;
    let most = 32 + 2 * (report.seconds as u64 + 1);
    // Full: as long as a machine that is slow has not closed what is to be closed.
    let refused = ["Busy", "Full"].map(|reason| report.refusals.get(reason).copied().unwrap_or(0));
    let answered = report.links + refused.iter().sum::<u64>();
    ensure!(
        report.attempts == links
            && answered == links
            && (10..=most).contains(&report.links)
            && u128::from(report.longest) < PROMPT.as_millis(),
        "{report:?}"
    );
    let probe = scene.probe()?;
    Ok(format!(
        "{} connections that want a link in {:.0} s, {} became one, {:?}; the slowest took {} ms, and a third peer's link \
         {probe:.1?}",
        report.attempts, report.seconds, report.links, report.refusals, report.longest
    ))
}

/// A guest moves to another VMM while writers stand still in write() to two of its windows.
pub fn migration(lab: &Lab) -> Result<()> {
    let mesh = mesh(lab, GUESTS, 100)?;
    let victim = mesh.socket(VICTIM);
    let mut mesh = mesh.map(|guest| match guest.name() {
        "a" => guest.movable(),
        _ => guest,
    });
    let result = (|| {
        mesh.boot(&(0..GUESTS).collect::<Vec<_>>())?;
        mesh.wait_for_links()?;
        mesh.start_streams()?;
        mesh.wait_for_connections()?;
        let mut attacker = Attacker::start(&victim, &["write"])?;
        attacker.wait_for("ready", PATIENCE)?;

        let guest = mesh.guest(VICTIM)?;
        let receiver = Vmm::receiver(lab, &guest.guest().clone(), guest.vmm())?;
        let start = Instant::now();
        guest.vmm().migrate(lab, &receiver, false)?;
        let moved = start.elapsed();
        let mut source = guest.continue_in(receiver)?;
        let status = source.wait(PROMPT).context("the VMM that had the guest")?;
        ensure!(status.success(), "the VMM that had the guest: {status}");
        println!("the guest had moved after {moved:.1?}, and its VMM ended");
        drop(attacker);

        // Its own links have ended, and no others.
        mesh.streams_end(|(one, other)| one == VICTIM || other == VICTIM, &[])?;
        mesh.wait_for_links()?;
        mesh.wait_for_flow(|_| true)?;
        mesh.start_streams()?;
        mesh.wait_for_connections()?;
        mesh.stop_streams()?;
        mesh.check_health()
    })();
    result.map_err(|error| mesh.explain(error))
}

/// The VMM ends while all that there is is in its way.
fn end(scene: &mut Scene<'_>) -> Result<()> {
    let reports = scene.mesh.stop_streams()?;
    let bytes: u64 = reports.values().map(|report| report.bytes).sum();
    let mut attacker = scene.attack(&["last"])?;
    attacker.wait_for("ready", PATIENCE)?;
    let mut took = Vec::new();
    for number in [VICTIM, VICTIM + 1] {
        let start = Instant::now();
        scene.mesh.power_off(number)?;
        took.push(start.elapsed());
    }
    attacker.wait_for("gone", PATIENCE)?;
    ensure!(
        took[0] < PROMPT,
        "the VMM that is attacked took {:?} to end, another one {:?}",
        took[0],
        took[1]
    );
    println!(
        "end_of_the_vmm: {:.1?}, of one that nobody attacks {:.1?}; {} streams over the other links have carried {} MB, all \
         right",
        took[0],
        took[1],
        reports.len(),
        bytes / 1_000_000
    );
    scene.mesh.check_health()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_is_counted() {
        let log = "ivsmc ivsmc0: a connection ends: x\n\
                   ivsmc ivsmc0: link 3 to 00000000-bad0-4000-8000-000000000001 is up: side 1, 32 MiB\n\
                   ivsmc ivsmc0: link 3 to 00000000-bad0-4000-8000-000000000001 ends: x\n\
                   ivsmc ivsmc0: link 1 to 0badcafe-0000-4000-8000-000000000001 is up: side 1, 32 MiB\n";
        let event = |kind: &str, peer: &str| json!({"event": kind, "properties": {"peer": peer}});
        let events = [
            event("refused", ""),
            event("link-up", "00000000-bad0-4000-8000-000000000001"),
            event("link-up", "0badcafe-0000-4000-8000-000000000001"),
        ];
        let said = Said::count(log, &events);
        assert_eq!((said.complaints, said.links), ([1, 1], [2, 1]));
        said.check(Duration::ZERO).unwrap();
        let loud = Said::count(&log.repeat(40), &events);
        loud.check(Duration::ZERO).unwrap_err();
        loud.check(Duration::from_secs(10)).unwrap();
        assert_eq!(loud.since(said).complaints, [39, 0]);
    }

    #[test]
    fn names_are_seen_in_the_log() {
        for gid in [link::name(7), link::high(7)] {
            assert!(gid.to_string().contains(NAMES), "{gid}");
        }
    }
}

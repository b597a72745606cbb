// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mesh whose guests, drivers and VMMs come and go at random, while data streams between all of them.
//!
//! What happens to whom follows from a seed and the fault's number, so that one that fails can be had again. After
//! each fault:
//!
//! - the streams between guests that it does not concern have gone on, without a wrong byte;
//! - those that it concerns have ended with an error, soon, and SMC has forgotten them;
//! - new ones in their place run over SMC-D;
//! - VMMs and guests hold what they held before: descriptors, threads, windows, DMBs;
//! - no kernel has reported anything.

use crate::guest::{Mode, Running};
use crate::lab::Lab;
use crate::mesh::{self, Ends, Holdings, Mesh, Pace};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::pattern::Random;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::peer::Client;

/// Guests in the mesh.
const GUESTS: usize = 4;
/// How long a driver may take to be unloaded.
const UNLOAD_TIME: Duration = Duration::from_secs(60);
/// How long a socket's file may take to be there again; two seconds, on a machine that is not busy.
const SOCKET_TIME: Duration = Duration::from_secs(10);

/// What can happen. The first of the two victims is *a*, the second *b*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The VMM of *a* is killed, and started again.
    Kill,
    /// Those of both.
    KillBoth,
    /// That of *a*, and again while the guest boots.
    KillWhileBooting,
    /// The VMM of *a* does not run for a while.
    Stall,
    /// The same, and then it is killed.
    KillStalled,
    /// The guest *a* reboots.
    Reboot,
    /// Both do at once.
    RebootBoth,
    /// The kernel of *a* panics.
    Crash,
    /// The guest *a* is switched off and started again.
    PowerOff,
    /// The driver of *a* is unloaded and loaded.
    Unload,
    /// Those of both, at once.
    UnloadBoth,
    /// That of *a*, while the VMM of *b* does not run.
    UnloadBesideStalled,
    /// The driver of *a* is unbound from the device and bound again.
    Unbind,
    /// The link between the two ends and comes up again.
    Flap,
    /// It does so again as soon as it is up.
    FlapAgain,
    /// The file of the socket of *a* is removed.
    RemoveSocket,
    /// The folder with all the sockets is removed, and made again.
    RemoveFolder,
    /// The same, and the VMM of *a* is killed and started again before it is made again.
    KillWithoutFolder,
}

/// All of them.
const KINDS: [Kind; 18] = [
    Kind::Kill,
    Kind::KillBoth,
    Kind::KillWhileBooting,
    Kind::Stall,
    Kind::KillStalled,
    Kind::Reboot,
    Kind::RebootBoth,
    Kind::Crash,
    Kind::PowerOff,
    Kind::Unload,
    Kind::UnloadBoth,
    Kind::UnloadBesideStalled,
    Kind::Unbind,
    Kind::Flap,
    Kind::FlapAgain,
    Kind::RemoveSocket,
    Kind::RemoveFolder,
    Kind::KillWithoutFolder,
];

/// One that happens.
#[derive(Debug, Clone)]
struct Fault {
    kind: Kind,
    a: usize,
    b: usize,
    /// How long what is to last a while lasts.
    time: Duration,
}

impl Fault {
    /// The fault with this number, from 1 on. Of as many in a row as there are kinds each is another.
    fn new(seed: u64, number: u64) -> Self {
        let kinds = KINDS.len() as u64;
        let (block, at) = ((number - 1) / kinds, (number - 1) % kinds);
        let random = |stream: u64, number: u64| {
            Random::new(seed.rotate_left(40) ^ stream.rotate_left(32) ^ number.rotate_left(8))
        };
        let (mut order, mut shuffle) = (KINDS, random(1, block));
        for last in (1..order.len()).rev() {
            order.swap(last, shuffle.below(last as u64 + 1) as usize);
        }
        let mut random = random(2, number);
        let guests = GUESTS as u64;
        let a = random.below(guests);
        let b = (a + 1 + random.below(guests - 1)) % guests;
        Fault {
            kind: order[at as usize],
            a: a as usize,
            b: b as usize,
            time: Duration::from_millis(100 + random.below(1900)),
        }
    }

    /// Whose streams end.
    fn victims(&self) -> Vec<usize> {
        use Kind::{
            Crash, Flap, FlapAgain, Kill, KillBoth, KillStalled, KillWhileBooting,
            KillWithoutFolder, PowerOff, Reboot, RebootBoth, RemoveFolder, RemoveSocket, Stall,
            Unbind, Unload, UnloadBesideStalled, UnloadBoth,
        };
        match self.kind {
            Stall | RemoveSocket | RemoveFolder => vec![],
            Kill | KillWhileBooting | KillStalled | Reboot | Crash | PowerOff | Unload
            | UnloadBesideStalled | Unbind | KillWithoutFolder => vec![self.a],
            KillBoth | RebootBoth | UnloadBoth | Flap | FlapAgain => vec![self.a, self.b],
        }
    }

    /// Whether the streams between these two guests end.
    fn ends(&self, pair: Ends) -> bool {
        match self.kind {
            Kind::Flap | Kind::FlapAgain => pair == mesh::pair(self.a, self.b),
            _ => {
                let victims = self.victims();
                victims.contains(&pair.0) || victims.contains(&pair.1)
            }
        }
    }

    /// Has it happen, and puts right again what it left, but for the streams.
    fn strike(&self, mesh: &mut Mesh<'_>) -> Result<()> {
        let (a, b, victims) = (self.a, self.b, self.victims());
        let end =
            |mesh: &mut Mesh<'_>, gone: &[usize]| mesh.streams_end(|pair| self.ends(pair), gone);
        match self.kind {
            Kind::Kill | Kind::KillBoth | Kind::KillWhileBooting => {
                for &victim in &victims {
                    mesh.kill(victim)?;
                }
                end(mesh, &victims)?;
                if self.kind == Kind::KillWhileBooting {
                    mesh.boot_in_part(a, 2 * self.time)?;
                }
                mesh.boot(&victims)?;
            }
            Kind::KillStalled => {
                mesh.guest(a)?.vmm().stall(true)?;
                std::thread::sleep(self.time);
                mesh.kill(a)?;
                end(mesh, &victims)?;
                mesh.boot(&victims)?;
            }
            Kind::Stall => self.while_stalled(mesh, a, |_| Ok(()))?,
            Kind::Reboot | Kind::RebootBoth => {
                mesh.at_once(&victims, |_, guest| guest.reboot())?;
                end(mesh, &victims)?;
            }
            Kind::Crash => {
                mesh.guest(a)?.crash()?;
                end(mesh, &victims)?;
            }
            Kind::PowerOff => {
                mesh.power_off(a)?;
                end(mesh, &victims)?;
                mesh.boot(&victims)?;
            }
            Kind::Unload | Kind::UnloadBoth => {
                mesh.at_once(&victims, |_, guest| unload(guest))?;
                end(mesh, &[])?;
                mesh.at_once(&victims, |_, guest| guest.load_driver(Mode::NoCopy))?;
            }
            Kind::UnloadBesideStalled => {
                self.while_stalled(mesh, b, |mesh| {
                    unload(mesh.guest(a)?)?;
                    mesh.guest(a)?.load_driver(Mode::NoCopy)
                })?;
                end(mesh, &[])?;
            }
            Kind::Unbind => {
                let guest = mesh.guest(a)?;
                let driver = "/sys/bus/pci/drivers/ivpci";
                let device = guest.shell(&format!("basename $(readlink -f {driver}/0000:*)"))?;
                let write = |guest: &mut Running, file| {
                    let line = format!("echo {} >{driver}/{file}", device.trim());
                    guest.check(&Command::shell(&line).timeout(UNLOAD_TIME))
                };
                write(guest, "unbind")?;
                end(mesh, &[])?;
                write(mesh.guest(a)?, "bind")?;
            }
            Kind::Flap | Kind::FlapAgain => {
                let times = if self.kind == Kind::Flap { 1 } else { 3 };
                let link = mesh.link(a, b)?;
                for time in 0..times {
                    self.flap(mesh, link)?;
                    if time == 0 {
                        end(mesh, &[])?;
                    }
                }
            }
            Kind::RemoveSocket => {
                let socket = mesh.socket(a);
                std::fs::remove_file(&socket)?;
                wait_for_socket(&socket)?;
            }
            Kind::RemoveFolder | Kind::KillWithoutFolder => {
                std::fs::remove_dir_all(mesh.folder())?;
                std::thread::sleep(self.time);
                if self.kind == Kind::KillWithoutFolder {
                    mesh.kill(a)?;
                    end(mesh, &victims)?;
                }
                std::fs::create_dir(mesh.folder())?;
                mesh.boot(&victims)?;
                for number in 0..mesh.len() {
                    wait_for_socket(&mesh.socket(number))?;
                }
            }
        }
        Ok(())
    }

    fn while_stalled(
        &self,
        mesh: &mut Mesh<'_>,
        number: usize,
        action: impl FnOnce(&mut Mesh<'_>) -> Result<()>,
    ) -> Result<()> {
        mesh.guest(number)?.vmm().stall(true)?;
        std::thread::sleep(self.time);
        let result = action(mesh);
        // If it is not to go on, nothing more can be learned of it.
        mesh.guest(number)?.vmm().stall(false)?;
        result
    }

    /// Has the link of *a* to *b* end, and waits until it has come up again.
    fn flap(&self, mesh: &mut Mesh<'_>, link: usize) -> Result<()> {
        let ups = |mesh: &mut Mesh<'_>| -> Result<[u64; 2]> {
            let mut ups = [0; 2];
            for (ups, number) in ups.iter_mut().zip([self.a, self.b]) {
                let counters = mesh.guest(number)?.counters()?;
                *ups = *counters.get("link_ups").context("no counter link_ups")?;
            }
            Ok(ups)
        };
        let before = ups(mesh)?;
        let line = format!("ivsmc-traffic windows flap --link {link}");
        mesh.guest(self.a)?.shell(&line)?;
        let start = Instant::now();
        while ups(mesh)?
            .iter()
            .zip(before)
            .any(|(now, before)| *now == before)
        {
            ensure!(
                start.elapsed() < UNLOAD_TIME,
                "link {link} of guest {} does not come up again",
                mesh.names(&[self.a])
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn unload(guest: &mut Running) -> Result<()> {
    let rmmod = Command::new(["rmmod", "ivpci"]).timeout(UNLOAD_TIME);
    guest.check(&rmmod).map(drop)
}

/// Waits until somebody listens on this socket.
fn wait_for_socket(path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match Client::connect(path, Duration::ZERO) {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(
                start.elapsed() < SOCKET_TIME,
                "{} is not made again: {error}",
                path.display()
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Survived {
    count: u64,
    /// The longest of them.
    longest: Duration,
    holdings: Vec<(String, Holdings)>,
}

impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults, the longest {:.1} s; after the last, as before the first:",
            self.count,
            self.longest.as_secs_f64()
        )?;
        for (name, holdings) in &self.holdings {
            write!(f, "\n  {name}: {holdings}")?;
        }
        Ok(())
    }
}

/// Has `count` faults happen, from number `first` on.
pub fn run(lab: &Lab, seed: u64, first: u64, count: u64) -> Result<Survived> {
    // Data that flows all the time, and leaves the machine time for what else has to be done.
    let pace = Pace {
        bytes: 64 << 10,
        pause: 300,
    };
    let mut mesh = Mesh::new(lab, GUESTS, pace, |_| String::new())?;
    let result = strike_all(&mut mesh, seed, first, count);
    result.map_err(|error| mesh.explain(error))
}

fn strike_all(mesh: &mut Mesh<'_>, seed: u64, first: u64, count: u64) -> Result<Survived> {
    mesh.boot(&(0..GUESTS).collect::<Vec<_>>())?;
    mesh.wait_for_links()?;
    mesh.start_streams()?;
    mesh.wait_for_connections()?;
    let holdings = mesh.holdings()?;
    let mut longest = Duration::ZERO;
    let last = first - 1 + count;
    for number in first..=last {
        let fault = Fault::new(seed, number);
        let mut victims = vec![fault.a];
        if fault.victims().len() > 1 || fault.kind == Kind::UnloadBesideStalled {
            victims.push(fault.b);
        }
        let what = format!(
            "fault {number}/{last} seed {seed} kind {:?} guests {} for {} ms",
            fault.kind,
            mesh.names(&victims),
            fault.time.as_millis()
        );
        let start = Instant::now();
        survive(mesh, &fault, &holdings).with_context(|| what.clone())?;
        let took = start.elapsed();
        println!("{what}: ok, took {:.1} s", took.as_secs_f64());
        longest = longest.max(took);
    }
    mesh.stop_streams()?;
    Ok(Survived {
        count,
        longest,
        holdings: holdings
            .into_iter()
            .map(|(number, holdings)| (mesh.names(&[number]), holdings))
            .collect(),
    })
}

fn survive(mesh: &mut Mesh<'_>, fault: &Fault, holdings: &BTreeMap<usize, Holdings>) -> Result<()> {
    mesh.wait_for_flow(|_| true)?;
    fault.strike(mesh)?;
    mesh.wait_for_links()?;
    mesh.wait_for_flow(|_| true)
        .context("streams that it does not concern")?;
    mesh.start_streams()?;
    mesh.wait_for_connections()?;
    mesh.wait_for_holdings(holdings)?;
    mesh.check_health()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_turn() {
        for seed in 0..20 {
            for block in 0..3 {
                let first = 1 + block * KINDS.len() as u64;
                let faults: Vec<_> = (first..first + KINDS.len() as u64)
                    .map(|number| Fault::new(seed, number))
                    .collect();
                for kind in KINDS {
                    assert!(faults.iter().any(|fault| fault.kind == kind), "{kind:?}");
                }
                assert!(faults.iter().all(|fault| fault.a != fault.b));
            }
        }
    }

    #[test]
    fn seeds_differ() {
        let faults = |seed| {
            (1..20)
                .map(|number| format!("{:?}", Fault::new(seed, number)))
                .collect::<Vec<_>>()
        };
        assert_eq!(faults(3), faults(3));
        assert_ne!(faults(3), faults(4));
    }

    #[test]
    fn a_flap_concerns_two_guests_only() {
        let fault = Fault {
            kind: Kind::Flap,
            a: 2,
            b: 1,
            time: Duration::ZERO,
        };
        assert!(fault.ends((1, 2)) && !fault.ends((0, 1)) && !fault.ends((2, 3)));
    }
}

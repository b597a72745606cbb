// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! More than two guests, each of which has a window with each other.

use super::Suite;
use crate::guest::Mode;
use crate::lab::Lab;
use crate::mesh::{Ends, Mesh, Pace};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::windows::{Device, Found, Search};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(super) fn add(suite: &mut Suite) {
    suite.add("mesh::four_guests_fifth_joins_one_leaves", |fixture| {
        fixture.without_pair(four_guests_fifth_joins_one_leaves)
    });
    suite.add("mesh::windows_are_private", |fixture| {
        fixture.without_pair(windows_are_private)
    });
}

/// Bytes of an exchange, each way.
const BYTES: u64 = 256 << 10;
/// The one that leaves, and the one that joins.
const LEAVER: usize = 3;
const JOINER: usize = 4;

fn four_guests_fifth_joins_one_leaves(lab: &Lab) -> Result<()> {
    let pace = Pace {
        bytes: BYTES,
        pause: 100,
    };
    let mut mesh = Mesh::new(lab, 5, pace, |_| String::new())?;
    join_and_leave(&mut mesh).map_err(|error| mesh.explain(error))
}

fn join_and_leave(mesh: &mut Mesh) -> Result<()> {
    mesh.boot(&[0, 1, 2, LEAVER])?;
    mesh.wait_for_links()?;
    mesh.start_streams()?;
    let all = |_| true;
    mesh.wait_for_flow(all)?;
    let at_first = mesh.exchanges()?;
    ensure!(at_first.len() == 12, "{at_first:?}");

    let joining = Instant::now();
    mesh.boot(&[JOINER])?;
    mesh.wait_for_links()?;
    let joined = joining.elapsed();
    mesh.start_streams()?;
    mesh.wait_for_flow(all)?;
    let with_five = mesh.exchanges()?;
    ensure!(with_five.len() == 20, "{with_five:?}");
    mesh.windows()?;

    let leaving = Instant::now();
    mesh.kill(LEAVER)?;
    mesh.streams_end(|(one, other)| one == LEAVER || other == LEAVER, &[LEAVER])?;
    let left = leaving.elapsed();
    mesh.wait_for_links()?;
    for _ in 0..3 {
        mesh.wait_for_flow(all)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    mesh.wait_for_connections()?;
    mesh.windows()?;
    let reports = mesh.stop_streams()?;
    ensure!(reports.len() == 12, "{reports:?}");

    println!(
        "the fifth has all its links {joined:.1?} after its VMM was started; the connections of the one that was killed had \
         ended after {left:.1?}"
    );
    for (&(from, to), report) in &reports {
        let count = |counts: &BTreeMap<Ends, u64>| counts.get(&(from, to)).copied().unwrap_or(0);
        println!(
            "  {}-{}: {} MB both ways, all right, SMC-D; exchanges with four, five, then four guests: {}, {}, {}",
            mesh.names(&[from]),
            mesh.names(&[to]),
            report.bytes / 1_000_000,
            count(&at_first),
            count(&with_five) - count(&at_first),
            report.bytes / (2 * BYTES) - count(&with_five),
        );
    }
    for number in mesh.numbers() {
        let counters = mesh.guest(number)?.counters()?;
        // Nothing but the link to the one that has left has gone down, and nothing has come up twice.
        for (name, wanted) in [("link_ups", 4), ("link_downs", 1), ("peer_faults", 0)] {
            ensure!(
                counters.get(name) == Some(&wanted),
                "guest {}: {name} should be {wanted}: {counters:?}",
                mesh.names(&[number])
            );
        }
    }
    mesh.check_health()
}

/// Sizes of the devices' windows, the smaller of which is that of a window.
const SIZES: [&str; 4] = ["2M", "4M", "2M", "4M"];

fn windows_are_private(lab: &Lab) -> Result<()> {
    let pace = Pace { bytes: 0, pause: 0 };
    let mesh = Mesh::new(lab, SIZES.len(), pace, |number| {
        format!(",size={}", SIZES[number])
    })?;
    // No driver uses the windows.
    let mut mesh = mesh.map(|guest| guest.mode(Mode::Off));
    privacy(&mut mesh).map_err(|error| mesh.explain(error))
}

fn privacy(mesh: &mut Mesh) -> Result<()> {
    let all: Vec<usize> = (0..SIZES.len()).collect();
    mesh.boot(&all)?;
    let devices = wait_for_devices(mesh)?;
    mesh.windows()?;
    let nothing = BTreeSet::new();
    see(mesh, &devices, &nothing).context("before anything was written")?;
    let mut written = BTreeSet::new();
    for &number in &all {
        mesh.guest(number)?
            .shell(&format!("ivsmc-traffic windows fill --seed {number}"))?;
        let others = all.iter().filter(|&&other| other != number);
        written.extend(others.map(|&other| (number, other)));
        let (marks, empty) = see(mesh, &devices, &written)
            .with_context(|| format!("after guest {} has written", mesh.names(&[number])))?;
        println!(
            "{} has written to its {} windows: {marks} marks in all guests, where they have to be and nowhere else; no \
             memory at {empty} other places",
            mesh.names(&[number]),
            devices[number].links.len()
        );
    }
    // One that comes back finds nothing of what was in its windows, nor does it see any other.
    let back = 1;
    mesh.kill(back)?;
    mesh.boot(&[back])?;
    let devices = wait_for_devices(mesh)?;
    mesh.windows()?;
    written.retain(|&(writer, reader)| writer != back && reader != back);
    see(mesh, &devices, &written).context("after a guest has come back")?;
    mesh.check_health()
}

/// Waits until each device has a link to each other.
fn wait_for_devices(mesh: &mut Mesh) -> Result<Vec<Device>> {
    let start = Instant::now();
    loop {
        let devices = (0..mesh.len())
            .map(|number| mesh.device(number))
            .collect::<Result<Vec<_>>>()?;
        let linked = |device: &Device, other: &Device| {
            device.gid == other.gid || device.links.iter().any(|link| link.peer == other.gid)
        };
        let all = devices.iter().all(|device| {
            device.links.len() == devices.len() - 1
                && devices.iter().all(|other| linked(device, other))
        });
        if all {
            return Ok(devices);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "not all links are up: {devices:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Looks through the memory of all guests for marks. `written` has writers, and to whom they have written. Gives how
/// many marks there are, and at how many places there is no memory.
fn see(mesh: &mut Mesh, devices: &[Device], written: &BTreeSet<Ends>) -> Result<(usize, u64)> {
    let seeds: Vec<String> = (0..devices.len()).map(|seed| seed.to_string()).collect();
    let line = format!("ivsmc-traffic windows search --seeds {}", seeds.join(","));
    let (mut marks, mut empty) = (0, 0);
    for (number, device) in devices.iter().enumerate() {
        let text = mesh.guest(number)?.shell(&line)?;
        let search: Search = serde_json::from_str(&text).with_context(|| text.clone())?;
        let name = mesh.names(&[number]);
        ensure!(
            search.device.links == device.links,
            "the links of guest {name} are others than before: {device:?}, {search:?}"
        );
        let mut wanted = Vec::new();
        for link in &device.links {
            let peer = devices.iter().position(|other| other.gid == link.peer);
            let peer = peer.context("a link to nobody")?;
            let back = devices[peer]
                .links
                .iter()
                .find(|back| back.peer == device.gid)
                .context("a link one way only")?;
            for (writer, number_there) in [(number, link.number), (peer, back.number)] {
                if written.contains(&(writer, number + peer - writer)) {
                    wanted.push(Found {
                        at: link.number,
                        seed: writer as u64,
                        link: number_there,
                        count: link.size / 4096,
                    });
                }
            }
        }
        wanted.sort();
        ensure!(
            search.found == wanted,
            "guest {name}: should find {wanted:?}, and finds {:?}",
            search.found
        );
        ensure!(
            search.not_empty == 0 && search.empty > 0,
            "guest {name}: there is something where no memory should be: {} of {} places",
            search.not_empty,
            search.empty
        );
        marks += wanted.iter().map(|found| found.count).sum::<usize>();
        empty += search.empty;
    }
    Ok((marks, empty))
}

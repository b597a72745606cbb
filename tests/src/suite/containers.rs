// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs in containers of podman's, the client's in guest a and the server's in guest b, whose sockets are SMC sockets by
//! `ivsmc-guest enable`.
//!
//! `tests/containers/README.md` says what guests have for it. Where nothing was staged there is no test.

use super::Suite;
use super::programs::{
    self, Counts, END_TIME, Figure, PATIENCE, SCRIPTS, clients, end_server, three_digits,
    with_environment,
};
use crate::guest::Running;
use crate::lab::Lab;
use crate::measure::{self, Transport};
use crate::pair::Pair;
use anyhow::{Context, Result, bail, ensure};
use ivsmc_guest::connections::Mode;
use ivsmc_traffic::agent::Command;
use std::time::{Duration, Instant};

/// The folder with podman, among those of programs.
pub(super) const ENGINE: &str = "podman";
/// Where a guest has podman's root, and in that the images' roots.
const ROOT: &str = "/program";
const IMAGES: &str = "/images";
/// What a guest has room in for all that, in MiB.
const MEMORY: u32 = 1280;
/// What podman hands on of its environment.
const PASSED: &str = "--env PORT --env SERVER";
/// The program of which many containers are made.
const OF_MANY: &str = "nginx";
/// How many containers are made one after the other, if nothing else is said.
const MANY: u32 = 25;
/// How many are made before that, and after how many more it is told how it goes.
const WARM_UP: u32 = 5;
const BATCH: u32 = 10;
/// How long one of them may take.
const EACH: Duration = Duration::from_secs(20);
/// The first port of the servers of the first case; those of others come after it.
const PORT: u16 = 6000;
const PORTS: u16 = 20;

pub(super) fn add(suite: &mut Suite) {
    if !suite.fixture.lab.programs.join(ENGINE).exists() {
        return;
    }
    for name in programs::staged(&suite.fixture.lab) {
        if name == OF_MANY {
            suite.add("containers::many", |fixture| {
                fixture.without_pair(|lab| many(lab, MANY))
            });
        }
        suite.add(format!("containers::{name}"), move |fixture| {
            fixture.without_pair(|lab| {
                programs::report(lab, &name, MEMORY, |pair| measured(lab, pair, &name))
            })
        });
    }
}

/// Where server and client run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In no container.
    Guest,
    /// In containers that have the guest's network.
    HostNetwork,
    /// In containers behind a bridge: the client's address is translated, the server's port published.
    Bridge,
}

/// What is measured: where, and whether sockets are SMC sockets.
const CASES: [(Place, bool); 5] = [
    (Place::Guest, false),
    (Place::Guest, true),
    (Place::HostNetwork, true),
    (Place::Bridge, false),
    (Place::Bridge, true),
];

/// Gives both guests podman and the program's image.
fn set_up(lab: &Lab, pair: &mut Pair, name: &str) -> Result<()> {
    pair.wait_for_warm_connection()?;
    measure::pin(pair)?;
    Transport::SmcdNocopy.prepare(lab, pair)?;
    for (guest, role) in [(&mut pair.a, "client"), (&mut pair.b, "server")] {
        guest.shell(&format!(
            "mkdir -p {ROOT} && mount -t tmpfs -o size=100% tmpfs {ROOT}"
        ))?;
        for (program, folder) in [(ENGINE, String::new()), (name, format!("{IMAGES}/{name}"))] {
            let staged = lab.programs.join(program);
            let folder = format!("{ROOT}{folder}");
            guest.unpack(&staged.join("root.tar"), &folder)?;
            guest.unpack(&staged.join("scripts.tar"), &format!("{folder}{SCRIPTS}"))?;
        }
        // A container's root cannot be what was unpacked by the kernel. So there is a mount namespace with another one.
        let line = format!(
            "cd {ROOT} && for place in dev proc sys; do mount -o rbind /$place $place; done && \
             mount -o move . / && echo $$ >/tmp/holder && exec chroot . sleep 1000000"
        );
        let holder = Command::new(["busybox", "unshare", "-m", "sh", "-c", &line]);
        let id = guest.agent().spawn(&holder)?;
        guest.wait_for_file(id, "/tmp/holder", END_TIME)?;
        let setup = within(&format!("bash {SCRIPTS}/setup {name}"));
        guest.check(&setup.env("ROLE", role).timeout(PATIENCE))?;
    }
    Ok(())
}

/// A command in podman's root.
fn within(line: &str) -> Command {
    with_environment(Command::shell(&format!(
        "exec busybox nsenter -t \"$(cat /tmp/holder)\" -m {line}"
    )))
}

/// Measures all cases; gives the rows of the table.
fn measured(lab: &Lab, pair: &mut Pair, name: &str) -> Result<Vec<String>> {
    set_up(lab, pair, name)?;
    let mut table = Vec::new();
    for ((place, is_smc), port) in CASES.into_iter().zip((PORT..).step_by(PORTS.into())) {
        if is_smc {
            let of_whom = match place {
                Place::Guest => "",
                Place::HostNetwork | Place::Bridge => "'libpod-*'",
            };
            in_both(pair, &format!("ivsmc-guest enable {of_whom}"))?;
        }
        let figures = rounds(lab, pair, name, place, is_smc, port);
        table.push(figures.with_context(|| format!("{place:?}, SMC: {is_smc}"))?);
        if is_smc {
            in_both(pair, "ivsmc-guest disable")?;
        }
    }
    let counts: Vec<_> = table.iter().map(Vec::len).collect();
    ensure!(
        counts[0] > 0 && counts.iter().all(|&count| count == counts[0]),
        "the clients told so many figures: {counts:?}"
    );
    let rows = (0..counts[0]).map(|row| {
        let Figure { what, unit, .. } = &table[0][row];
        let medians = table.iter().map(|case| three_digits(case[row].median()));
        let medians: Vec<_> = medians.collect();
        format!("| {what} | {unit} | {} |", medians.join(" | "))
    });
    Ok(rows.collect())
}

/// Runs a line of shell in both guests.
fn in_both(pair: &mut Pair, line: &str) -> Result<()> {
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell(line)?;
    }
    Ok(())
}

/// What runs the server in a container, on this port and those after it.
fn server_in_container(name: &str, network: &str) -> String {
    format!("podman run --rm --name server {PASSED} {network} {name} bash {SCRIPTS}/server")
}

/// The option that publishes a server's port, and the one after it, on which some listen as well.
fn published(port: u16) -> String {
    format!("-p {port}-{}:{port}-{0}", port + 1)
}

/// Runs the server, and the clients again and again.
fn rounds(
    lab: &Lab,
    pair: &mut Pair,
    name: &str,
    place: Place,
    is_smc: bool,
    port: u16,
) -> Result<Vec<Figure>> {
    let address = pair.b.address().to_string();
    let script = |line: &str| {
        let command = within(line).env("PORT", &port.to_string());
        command.env("SERVER", &address).timeout(PATIENCE)
    };
    let in_guest = |role| format!("chroot {IMAGES}/{name} bash {SCRIPTS}/{role}");
    let in_client = format!("podman exec {PASSED} client bash {SCRIPTS}/client");
    let (server, client, network) = match place {
        Place::Guest => (in_guest("server"), in_guest("client"), None),
        Place::HostNetwork => {
            let network = "--network host";
            (server_in_container(name, network), in_client, Some(network))
        }
        Place::Bridge => {
            let server = server_in_container(name, &published(port));
            (server, in_client, Some(""))
        }
    };
    let server = pair.b.agent().spawn(&script(&server))?;
    if let Some(network) = network {
        // One that stays, as SMC counts by network namespace.
        let client = format!("podman run -d --name client {network} {name} sleep 1000000");
        pair.a.check(&within(&client).timeout(PATIENCE))?;
    }
    let result = wait_for_listener(&mut pair.b, server, port, network.is_some())
        .and_then(|()| clients(pair, &script(&client), is_smc))
        .and_then(|figures| {
            if place == Place::Bridge && is_smc {
                containers_are_seen(lab, pair)?;
            }
            Ok(figures)
        });
    if network.is_some() {
        pair.a
            .check(&within("podman rm -f -t 0 client").timeout(PATIENCE))?;
        stop_server(pair)?;
    }
    end_server(&mut pair.b, server, result)
}

/// Ends the server's container.
fn stop_server(pair: &mut Pair) -> Result<()> {
    let stop = within("podman stop -t 5 server").timeout(PATIENCE);
    pair.b.check(&stop).map(drop)
}

/// Waits until the server listens on a port, in a container or in the guest.
fn wait_for_listener(
    guest: &mut Running,
    server: u64,
    port: u16,
    in_container: bool,
) -> Result<()> {
    // As its processes see it: in the guest podman itself listens on a port that it publishes, before the container runs.
    let processes = if in_container {
        "$(find /sys/fs/cgroup/libpod_parent -path '*/libpod-[0-9a-f][0-9a-f]*' -name cgroup.procs -exec cat {} + \
         2>/dev/null)"
    } else {
        "self"
    };
    let listening = format!(
        "for process in {processes}; do \
         grep -Eqs ':{port:04X} 0+:0000 0A' /proc/$process/net/tcp /proc/$process/net/tcp6 && exit 0; done; exit 1"
    );
    let start = Instant::now();
    while guest.shell(&listening).is_err() {
        if let Some(outcome) = guest.agent().wait(server, Duration::ZERO)? {
            bail!("the server has ended: {outcome}");
        }
        ensure!(start.elapsed() < PATIENCE, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// `status --all` names the server's container, and a container's buffers are as large as the guest's.
fn containers_are_seen(lab: &Lab, pair: &mut Pair) -> Result<()> {
    let status = pair.b.status_everywhere()?;
    let mut owners = status.connections.iter().flat_map(|connection| {
        let is_elsewhere = connection.network.is_some();
        connection
            .owners
            .iter()
            .map(move |owner| (is_elsewhere, owner))
    });
    ensure!(
        owners.any(|(is_elsewhere, owner)| {
            let is_podmans = |name: &String| name.starts_with("libpod-");
            is_elsewhere && owner.container.as_ref().is_some_and(is_podmans)
        }),
        "no container has an SMC socket: {status:?}"
    );
    if lab.is_mended() {
        let read = "cat /proc/sys/net/smc/rmem";
        let here = pair.a.shell(read)?;
        let there = pair
            .a
            .check(&within(&format!("podman exec client {read}")))?;
        ensure!(here == there, "rmem is {here} here, {there} in a container");
    }
    Ok(())
}

/// Makes and ends so many containers one after the other, each with a network namespace and a connection of its own:
/// all of it is given back.
pub fn many(lab: &Lab, count: u32) -> Result<()> {
    let mut pair = programs::boot(lab, MEMORY)?;
    let result = all_given_back(lab, &mut pair, count).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

fn all_given_back(lab: &Lab, pair: &mut Pair, count: u32) -> Result<()> {
    set_up(lab, pair, OF_MANY)?;
    in_both(pair, "ivsmc-guest enable 'libpod-*'")?;
    let server = within(&server_in_container(OF_MANY, &published(PORT)));
    let server = server.env("PORT", &PORT.to_string());
    let server = server.timeout(Duration::from_secs(24 * 3600));
    let id = pair.b.agent().spawn(&server)?;
    wait_for_listener(&mut pair.b, id, PORT, true)?;
    let url = format!("http://{}:{PORT}/64k", pair.b.address());
    let run = |pair: &mut Pair, first: u32, last: u32| {
        let many = within(&format!("bash {SCRIPTS}/many {first} {last} {url}"));
        pair.a
            .check(&many.timeout(PATIENCE + EACH * (last - first + 1)))
    };
    // The first ones leave behind what is kept for the next.
    run(pair, 1, WARM_UP)?;
    let memory = |guest: &mut Running| -> Result<i64> {
        guest.shell("echo 3 >/proc/sys/vm/drop_caches")?;
        let free = guest.shell("sed -n 's/^MemFree: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        free.trim().parse().context(free)
    };
    let before = memory(&mut pair.a)?;
    let connections = Counts::of(&mut pair.b)?;
    let started = Instant::now();
    for done in (0..count).step_by(BATCH as usize) {
        let batch = (count - done).min(BATCH);
        run(pair, WARM_UP + done + 1, WARM_UP + done + batch)?;
        println!("{} of {count} containers", done + batch);
    }
    let took = started.elapsed();
    let lost = before - memory(&mut pair.a)?;
    let more = Counts::of(&mut pair.b)?.accepted - connections.accepted;
    println!(
        "{count} containers in {took:.0?}, {more} connections over SMC-D, {lost} KiB less memory"
    );
    ensure!(more == u64::from(count), "{more} connections were SMC-D");
    // A network namespace alone has more, and its own buffers.
    ensure!(lost < i64::from(count) * 64 + 8192, "{lost} KiB are lost");
    let status = pair.a.status_everywhere()?;
    let left = status.connections.iter().filter(|it| it.mode == Mode::SmcD);
    let left: Vec<_> = left.filter(|it| it.network.is_some()).collect();
    ensure!(left.is_empty(), "connections are left: {left:?}");
    stop_server(pair)?;
    in_both(pair, "ivsmc-guest disable")?;
    // Link groups that are left would hold the driver up.
    in_both(pair, "rmmod ivpci")
}

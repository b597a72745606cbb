// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs in containers of podman's, the client's in guest a and the server's in guest b, whose sockets are SMC sockets by
//! `ivsmc-guest enable`.
//!
//! `tests/containers/README.md` says what guests have for it. Where nothing was staged there is no test.

use super::Suite;
use super::programs::{
    Counts, END_TIME, Figure, PATIENCE, ROUNDS, SCRIPTS, add_round, all_is_smcd, end, three_digits,
    with_environment,
};
use crate::guest::{Guest, Running};
use crate::lab::{Lab, Platform};
use crate::measure::{self, LAB_POLL_US};
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
/// How many containers are made one after the other, if nothing else is said.
const MANY: u32 = 25;
/// How long one of them may take.
const EACH: Duration = Duration::from_secs(20);
/// The first port of the servers of the first case; those of others come after it.
const PORT: u16 = 6000;
const PORTS: u16 = 20;

pub(super) fn add(suite: &mut Suite) {
    let programs = &suite.fixture.lab.programs;
    if !programs.join(ENGINE).exists() {
        return;
    }
    let folders = std::fs::read_dir(programs);
    let mut names: Vec<_> = folders
        .into_iter()
        .flatten()
        .flatten()
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .filter(|name| name != ENGINE)
        .collect();
    names.sort();
    for name in names {
        if name == "nginx" {
            suite.add("containers::many", |fixture| {
                fixture.without_pair(|lab| many(lab, MANY))
            });
        }
        suite.add(format!("containers::{name}"), move |fixture| {
            fixture.without_pair(|lab| program(lab, &name))
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

/// Measures a program everywhere, and prints rows of the table in docs/programs.md.
fn program(lab: &Lab, name: &str) -> Result<()> {
    let mut pair = boot(lab)?;
    let result = measured(lab, &mut pair, name).and_then(|table| {
        pair.check_health()?;
        Ok(table)
    });
    let version = std::fs::read_to_string(lab.programs.join(name).join("version"))?;
    let rows = result.map_err(|error| pair.explain(error))?;
    // A line has been begun already.
    println!();
    for row in rows {
        println!("| {name} {version} {row}");
    }
    Ok(())
}

fn boot(lab: &Lab) -> Result<Pair> {
    let guests = Pair::guests(lab)?.map(|guest| guest.memory(MEMORY));
    // Without a connection that is kept some of the first ones would be TCP's, on a kernel that is not mended.
    let peers = guests.each_ref().map(Guest::address);
    let mut pair = Pair::boot_these(lab, &guests.map(|guest| guest.peers(peers)))?;
    pair.wait_for_warm_connection()?;
    measure::pin(&pair)?;
    if lab.platform == Platform::Lab {
        pair.a.poll_for(LAB_POLL_US)?;
        pair.b.poll_for(LAB_POLL_US)?;
    }
    Ok(pair)
}

/// Gives both guests podman and the program's image.
fn set_up(lab: &Lab, pair: &mut Pair, name: &str) -> Result<()> {
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
            for guest in [&mut pair.a, &mut pair.b] {
                guest.shell(&format!("ivsmc-guest enable {of_whom}"))?;
            }
        }
        let figures = rounds(lab, pair, name, place, is_smc, port);
        table.push(figures.with_context(|| format!("{place:?}, SMC: {is_smc}"))?);
        if is_smc {
            for guest in [&mut pair.a, &mut pair.b] {
                guest.shell("ivsmc-guest disable")?;
            }
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

/// Runs the server, and the clients again and again.
fn rounds(
    lab: &Lab,
    pair: &mut Pair,
    name: &str,
    place: Place,
    is_smc: bool,
    port: u16,
) -> Result<Vec<Figure>> {
    let variables = [
        format!("PORT={port}"),
        format!("SERVER={}", pair.b.address()),
    ]
    .join(" ");
    let network = match place {
        Place::HostNetwork => "--network host".to_owned(),
        // Some listen on the one after it as well.
        Place::Bridge => format!("-p {port}-{}:{port}-{0}", port + 1),
        Place::Guest => String::new(),
    };
    let passed = "--env PORT --env SERVER";
    let [server, client] = match place {
        Place::Guest => ["server", "client"].map(|script| {
            format!("env {variables} chroot {IMAGES}/{name} bash {SCRIPTS}/{script}")
        }),
        _ => [
            format!(
                "env {variables} podman run --rm --name server {passed} {network} {name} bash {SCRIPTS}/server"
            ),
            format!("env {variables} podman exec {passed} client bash {SCRIPTS}/client"),
        ],
    };
    let server = pair.b.agent().spawn(&within(&server).timeout(PATIENCE))?;
    if place != Place::Guest {
        // One that stays, as SMC counts by network namespace.
        let network = if place == Place::Bridge { "" } else { &network };
        let client = format!("podman run -d --name client {network} {name} sleep 1000000");
        pair.a.check(&within(&client).timeout(PATIENCE))?;
    }
    let result = wait_for_listener(&mut pair.b, server, port)
        .and_then(|()| clients(pair, &client, is_smc))
        .and_then(|figures| {
            if place == Place::Bridge && is_smc {
                containers_are_seen(lab, pair)?;
            }
            Ok(figures)
        });
    if place != Place::Guest {
        pair.a
            .check(&within("podman rm -f -t 0 client").timeout(PATIENCE))?;
        pair.b
            .check(&within("podman stop -t 5 server").timeout(PATIENCE))?;
    }
    match result {
        Ok(figures) => {
            end(&mut pair.b, server)?;
            Ok(figures)
        }
        Err(error) => {
            pair.b.agent().kill(server, libc::SIGKILL)?;
            let server = pair.b.agent().wait(server, END_TIME)?;
            Err(error.context(format!("the server: {server:?}")))
        }
    }
}

/// Waits until something listens on a port, in whatever network namespace.
fn wait_for_listener(guest: &mut Running, server: u64, port: u16) -> Result<()> {
    // What podman itself has it reserved with, for a published port, is in the guest's own.
    let listening = format!(
        "for process in $(cat /sys/fs/cgroup/libpod_parent/libpod-[0-9a-f][0-9a-f]*/cgroup.procs \
         /sys/fs/cgroup/libpod_parent/libpod-[0-9a-f][0-9a-f]*/*/cgroup.procs 2>/dev/null || echo self); do \
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

fn clients(pair: &mut Pair, client: &str, is_smc: bool) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let before = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        let output = pair.a.check(&within(client).timeout(PATIENCE))?;
        let after = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        if is_smc {
            all_is_smcd(&before, &after)?;
        }
        add_round(&mut figures, &output)?;
    }
    Ok(figures)
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
    let mut pair = boot(lab)?;
    let result = all_given_back(lab, &mut pair, count).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

fn all_given_back(lab: &Lab, pair: &mut Pair, count: u32) -> Result<()> {
    const NAME: &str = "nginx";
    set_up(lab, pair, NAME)?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("ivsmc-guest enable 'libpod-*'")?;
    }
    let server = within(&format!(
        "env PORT={PORT} podman run --rm --name server --env PORT -p {PORT}:{PORT} {NAME} bash {SCRIPTS}/server"
    ));
    let id = pair
        .b
        .agent()
        .spawn(&server.timeout(Duration::from_secs(24 * 3600)))?;
    wait_for_listener(&mut pair.b, id, PORT)?;
    let url = format!("http://{}:{PORT}/64k", pair.b.address());
    let run = |pair: &mut Pair, count: u32| {
        let many = within(&format!("bash {SCRIPTS}/many {count} {url}"));
        pair.a.check(&many.timeout(PATIENCE + EACH * count))
    };
    // The first ones leave behind what is kept for the next.
    run(pair, 5)?;
    let memory = |guest: &mut Running| -> Result<i64> {
        guest.shell("echo 3 >/proc/sys/vm/drop_caches")?;
        let free = guest.shell("sed -n 's/^MemFree: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        free.trim().parse().context(free)
    };
    let before = memory(&mut pair.a)?;
    let connections = Counts::of(&mut pair.b)?;
    let started = Instant::now();
    run(pair, count)?;
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
    pair.b
        .check(&within("podman stop -t 5 server").timeout(PATIENCE))?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("ivsmc-guest disable")?;
    }
    // Link groups that are left would hold the driver up.
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("rmmod ivpci")?;
    }
    Ok(())
}

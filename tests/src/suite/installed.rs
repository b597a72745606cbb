// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that are Debian systems, with systemd, the project's packages, and programs of Debian's as services.
//!
//! `tests/debian/README.md` says what they are made of. Where nothing was staged there is no test.

use super::Suite;
use super::programs::{Counts, PATIENCE, all_is_smcd, three_digits};
use crate::guest::{Mode, Running};
use crate::lab::Lab;
use crate::measure::{self, median};
use crate::pair::{LINK_TIME, Pair};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use std::path::Path;
use std::time::Duration;

/// The folder with the system, among those of programs.
pub(super) const SYSTEM: &str = "debian";
/// Where a guest has the system, and that the tests' files.
const ROOT: &str = "/system";
const FILES: &str = "/test";
/// What a guest has room in for all of it, in MiB.
const MEMORY: u32 = 1536;
/// How long a system may take to boot.
const BOOT_TIME: Duration = Duration::from_secs(600);
/// How often everything is measured; the median counts.
const ROUNDS: usize = 3;
/// The services whose sockets become SMC sockets, and the programs that are their clients.
const SERVICES: &str = "postgresql@17-main.service nginx.service";
const CLIENT: &str = "client.service";

pub(super) fn add(suite: &mut Suite) {
    if !suite.fixture.lab.programs.join(SYSTEM).exists() {
        return;
    }
    suite.add("installed::services", |fixture| {
        fixture.without_pair(|lab| {
            let guests = Pair::guests(lab)?;
            let guests = guests.map(|guest| guest.memory(MEMORY).mode(Mode::Off));
            let [a, b] = &guests;
            let (a, b) = (a.start(lab)?, b.start(lab)?);
            let mut pair = Pair::unlinked(a.ready()?, b.ready()?);
            let result = services(lab, &mut pair).and_then(|()| pair.check_health());
            result.map_err(|error| pair.explain(error))
        })
    });
}

fn services(lab: &Lab, pair: &mut Pair) -> Result<()> {
    let folder = lab.programs.join(SYSTEM);
    for guest in [&mut pair.a, &mut pair.b] {
        unpack(guest, &folder)?;
    }
    // One has the packages when it boots for the first time, as an image would; the other one gets them when it runs.
    step("packages in an image", || {
        let install = format!("chroot {ROOT} /bin/bash -c '{}'", install("ivsmc-guest"));
        check(&mut pair.a, &install).map(drop)
    })?;
    step("systemd takes over", || {
        for guest in [&mut pair.a, &mut pair.b] {
            guest.hand_over(ROOT, BOOT_TIME)?;
            check(
                guest,
                "systemctl is-system-running --wait || systemctl --failed",
            )?;
        }
        Ok(())
    })?;
    step("packages in a system that runs", || {
        check(&mut pair.b, &install("ivsmc-guest")).map(drop)
    })?;
    step("a link, and nothing amiss", || {
        measure::pin(pair)?;
        for guest in [&mut pair.a, &mut pair.b] {
            guest.wait_for_link(true, LINK_TIME)?;
            let failed = check(guest, "systemctl --failed --no-legend")?;
            ensure!(failed.is_empty(), "services have failed: {failed}");
            // It prints what it has found, and fails if that is not all.
            println!("{}", check(guest, "ivsmc-guest check")?);
        }
        Ok(())
    })?;
    // Those of the tests' agent.
    let at_first = [smc_sockets(&mut pair.a)?, smc_sockets(&mut pair.b)?];
    measured(pair)?;
    from_the_file(pair)?;
    upgraded_in_use(pair)?;
    removed(pair, at_first)
}

/// Has a guest make a system of the archives in this folder.
fn unpack(guest: &mut Running, folder: &Path) -> Result<()> {
    guest.shell(&format!(
        "mkdir -p {ROOT} && mount -t tmpfs -o size=100%,mode=755 system {ROOT}"
    ))?;
    guest.unpack(&folder.join("root.tar"), ROOT)?;
    guest.unpack(&folder.join("scripts.tar"), &format!("{ROOT}{FILES}"))?;
    let name = guest.guest().name().to_owned();
    let modules = format!("{ROOT}/lib/modules/$(uname -r)/updates/dkms");
    check(
        guest,
        &format!(
            "cp /bin/ivsmc-traffic {ROOT}/usr/local/sbin/ && mkdir -p {modules} && \
             cp /lib/modules/ivpci.ko {modules}/ && echo {name} >{ROOT}/etc/hostname && \
             chroot {ROOT} /bin/bash {FILES}/prepare"
        ),
    )?;
    Ok(())
}

/// The line that installs a package of ours.
fn install(package: &str) -> String {
    format!("DEBIAN_FRONTEND=noninteractive /usr/bin/dpkg --install {FILES}/{package}_*.deb")
}

/// How many SMC sockets a guest has; that asks no tool of ours.
fn smc_sockets(guest: &mut Running) -> Result<u64> {
    let count = "awk '/^SMC/ { sum += $3 } END { print sum + 0 }' /proc/net/protocols";
    let text = check(guest, count)?;
    text.trim().parse().context(text)
}

/// A part of the test, which takes its time: it is told that it goes on.
fn step(name: &str, part: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("installed: {name}");
    part().with_context(|| name.to_owned())
}

/// Runs a line of shell that may take long.
fn check(guest: &mut Running, line: &str) -> Result<String> {
    guest.check(&Command::shell(line).timeout(PATIENCE))
}

/// A client as a service of its own, whose sockets `enable` knows by its unit's name.
fn client(guest: &mut Running, line: &str) -> Result<String> {
    let run = format!("systemd-run --quiet --wait --collect --pipe --unit={CLIENT} {line}");
    check(guest, &run)
}

/// What one of the clients has measured: its name, its unit, and how the number is found in what it writes.
struct Benchmark {
    what: &'static str,
    unit: &'static str,
    line: fn(&str) -> String,
    figure: &'static str,
}

const BENCHMARKS: [Benchmark; 3] = [
    Benchmark {
        what: "pgbench, read only",
        unit: "transactions/s",
        line: |server| pgbench(server, "--select-only --time=3"),
        figure: "tps = ",
    },
    Benchmark {
        what: "pgbench, read and write",
        unit: "transactions/s",
        line: |server| pgbench(server, "--time=3"),
        figure: "tps = ",
    },
    Benchmark {
        what: "nginx, 64 KiB",
        unit: "requests/s",
        line: |server| format!("wrk --threads 1 --connections 4 --duration 3s http://{server}/64k"),
        figure: "Requests/sec:",
    },
];

fn pgbench(server: &str, options: &str) -> String {
    format!("pgbench --host={server} --username=postgres --no-vacuum --client=4 {options} postgres")
}

impl Benchmark {
    /// Runs it once.
    fn run(&self, pair: &mut Pair) -> Result<f64> {
        let server = pair.b.address().to_string();
        let output = client(&mut pair.a, &(self.line)(&server))?;
        let is_good = !output.contains("Socket errors")
            && !output.contains("Non-2xx")
            && (!output.contains("tps = ") || output.contains("number of failed transactions: 0 "));
        ensure!(is_good, "{}: {output}", self.what);
        let figure = output.lines().find_map(|line| {
            let (_, rest) = line.split_once(self.figure)?;
            rest.split_whitespace().next()?.parse().ok()
        });
        figure.with_context(|| format!("{}: no figure: {output}", self.what))
    }

    fn median(&self, pair: &mut Pair) -> Result<f64> {
        let rounds: Result<Vec<_>> = (0..ROUNDS).map(|_| self.run(pair)).collect();
        Ok(median(&rounds?))
    }
}

/// The services over TCP, and by nothing but `systemctl` and `ivsmc-guest enable` over SMC-D.
fn measured(pair: &mut Pair) -> Result<()> {
    let mut tcp = Vec::new();
    step("services over TCP", || {
        let start = "systemctl start postgresql nginx && su postgres -c \
                     '/usr/bin/pgbench --initialize --quiet postgres'";
        check(&mut pair.b, start)?;
        for benchmark in &BENCHMARKS {
            tcp.push(benchmark.median(pair)?);
        }
        Ok(())
    })?;
    let mut smc = Vec::new();
    step("services over SMC-D", || {
        check(&mut pair.a, &format!("ivsmc-guest enable {CLIENT}"))?;
        let restart =
            format!("ivsmc-guest enable {SERVICES} && systemctl restart postgresql nginx");
        check(&mut pair.b, &restart)?;
        let before = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        for benchmark in &BENCHMARKS {
            smc.push(benchmark.median(pair)?);
        }
        let after = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        all_is_smcd(&before, &after)
    })?;
    for ((benchmark, tcp), smc) in BENCHMARKS.iter().zip(tcp).zip(smc) {
        println!(
            "| {} | {} | {} | {} | {} |",
            benchmark.what,
            benchmark.unit,
            three_digits(tcp),
            three_digits(smc),
            three_digits(smc / tcp)
        );
    }
    Ok(())
}

/// Some transactions, all of which have to go over SMC-D, or none.
fn transactions(pair: &mut Pair, are_smcd: bool) -> Result<()> {
    let before = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
    BENCHMARKS[0].run(pair)?;
    let after = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
    if are_smcd {
        return all_is_smcd(&before, &after);
    }
    ensure!(
        after[1].accepted == before[1].accepted,
        "connections are SMC-D"
    );
    Ok(())
}

/// `/etc/ivsmc/guest.toml` says what is enabled when the system boots.
fn from_the_file(pair: &mut Pair) -> Result<()> {
    step("what is enabled by the file", || {
        let file = "/etc/ivsmc/guest.toml";
        for (guest, cgroups) in [(&mut pair.a, CLIENT), (&mut pair.b, SERVICES)] {
            let names: Vec<_> = cgroups
                .split(' ')
                .map(|name| format!("\"{name}\""))
                .collect();
            let lines = format!("[enable]\\ncgroups = [{}]\\n", names.join(", "));
            check(
                guest,
                &format!(
                    "ivsmc-guest disable && printf '{lines}' >>{file} && systemctl restart ivsmc-guest"
                ),
            )?;
        }
        check(&mut pair.b, "systemctl restart postgresql nginx")?;
        transactions(pair, true)
    })
}

/// An upgrade, in both, while a client has connections: they go on, and what is enabled stays so.
fn upgraded_in_use(pair: &mut Pair) -> Result<()> {
    step("an upgrade in use", || {
        let server = pair.b.address().to_string();
        let line = pgbench(&server, "--time=30");
        let run = format!("systemd-run --quiet --wait --collect --pipe --unit={CLIENT} {line}");
        let id = pair
            .a
            .agent()
            .spawn(&Command::shell(&run).timeout(PATIENCE))?;
        for guest in [&mut pair.a, &mut pair.b] {
            let upgrade = format!(
                "set -e; cd /tmp; rm -rf newer; dpkg-deb -R {FILES}/ivsmc-guest_*.deb newer; \
                 sed -i 's/^Version: .*/&+newer/' newer/DEBIAN/control; \
                 dpkg-deb --root-owner-group -b newer newer.deb >/dev/null; \
                 DEBIAN_FRONTEND=noninteractive dpkg --install newer.deb; \
                 dpkg-query -W -f '${{Version}}\\n' ivsmc-guest | grep newer"
            );
            check(guest, &upgrade)?;
        }
        let ended = pair.a.agent().wait(id, PATIENCE)?;
        let ended = ended.context("the client has not ended")?;
        ensure!(
            ended.success() && ended.stdout.contains("number of failed transactions: 0 "),
            "the client: {ended}"
        );
        transactions(pair, true)
    })
}

/// Removed, the package leaves its configuration; purged, it leaves nothing, and connections are TCP's.
fn removed(pair: &mut Pair, at_first: [u64; 2]) -> Result<()> {
    step("removed and purged", || {
        for guest in [&mut pair.a, &mut pair.b] {
            let files = check(guest, "dpkg -L ivsmc-guest")?;
            check(guest, "dpkg --remove ivsmc-guest")?;
            check(guest, "test -e /etc/ivsmc/guest.toml")?;
            check(guest, "dpkg --purge ivsmc-guest")?;
            let left = format!(
                "for file in {}; do test -d $file || ! test -e $file || echo $file; done; \
                 ls -d /etc/ivsmc /run/ivsmc /var/lib/ivsmc /sys/fs/bpf/ivsmc* 2>/dev/null; true",
                files.split_whitespace().collect::<Vec<_>>().join(" ")
            );
            let left = check(guest, &left)?;
            ensure!(left.is_empty(), "left behind: {left}");
            let failed = check(guest, "systemctl --failed --no-legend")?;
            ensure!(failed.is_empty(), "services have failed: {failed}");
        }
        check(&mut pair.b, "systemctl restart postgresql nginx")?;
        for benchmark in &BENCHMARKS {
            benchmark.run(pair)?;
        }
        for (guest, before) in [&mut pair.a, &mut pair.b].into_iter().zip(at_first) {
            let after = smc_sockets(guest)?;
            ensure!(after == before, "{after} SMC sockets and not {before}");
        }
        Ok(())
    })
}

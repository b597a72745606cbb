// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's kernel does between its boot and its end: it is somewhere else each time, has VLANs, gives up
//! processors, sleeps, makes room for another kernel, and has programs that let go of nothing.

use super::Suite;
use super::life::{ends_soon, start_endless, works};
use crate::guest::{Mode, Running, SMC_PORT};
use crate::lab::Lab;
use crate::pair::{BOTH, From, LINK_TIME, Pair, traffic_command};
use anyhow::{Context, Result, bail, ensure};
use ivsmc_traffic::agent::{self, Command};
use ivsmc_traffic::traffic::Report;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) fn add(suite: &mut Suite) {
    suite.add("guest_life::addresses_differ_between_boots", |fixture| {
        // The kernel knows where KASAN's shadow is: it leaves its maps where they are.
        let is_memory_random = !fixture.lab.is_debug();
        fixture.with_pair(Mode::NoCopy, |pair| {
            addresses_differ_between_boots(pair, is_memory_random)
        })
    });
    suite.add("guest_life::first_connection_over_a_vlan", |fixture| {
        fixture.with_pair(Mode::NoCopy, first_connection_over_a_vlan)
    });
    suite.add("guest_life::processors_go_and_come", |fixture| {
        fixture.without_pair(processors_go_and_come)
    });
    suite.add("guest_life::kexec_without_ivpci", |fixture| {
        fixture.with_pair(Mode::NoCopy, |pair| kexec_without_ivpci(pair, &fixture.lab))
    });
    for state in [State::Freeze, State::Mem, State::Disk] {
        suite.add(format!("guest_life::suspend_{state}"), move |fixture| {
            fixture.with_pair(Mode::NoCopy, |pair| suspend(pair, state))
        });
    }
    suite.add("guest_life::peer_dies_during_suspend", |fixture| {
        fixture.with_pair(Mode::NoCopy, |pair| {
            peer_dies_during_suspend(pair, &fixture.lab)
        })
    });
    for what in ["descriptor", "pipe"] {
        suite.add(
            format!("guest_life::peer_returns_while_a_program_keeps_a_{what}"),
            move |fixture| fixture.with_pair(Mode::NoCopy, |pair| peer_returns(pair, what)),
        );
        suite.add(
            format!("guest_life::driver_is_unloaded_while_a_program_keeps_a_{what}"),
            move |fixture| fixture.with_pair(Mode::NoCopy, |pair| driver_is_unloaded(pair, what)),
        );
    }
    suite.add_for_mended_kernel(
        "guest_life::driver_is_unloaded_while_a_connection_waits_to_be_accepted",
        |fixture| fixture.with_pair(Mode::NoCopy, driver_is_unloaded_below_a_queue),
    );
}

/// How long a guest may take for what it does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

// --- addresses

/// Where a guest's kernel is: its code in virtual and in physical memory, and where it maps what it wants mapped.
fn places(guest: &mut Running) -> Result<[String; 3]> {
    let mut line = |line: &str| -> Result<String> { Ok(guest.shell(line)?.trim().to_owned()) };
    Ok([
        line("grep ' _text$' /proc/kallsyms")?,
        line("grep 'Kernel code' /proc/iomem")?,
        line(
            "r=/proc/sys/kernel/kptr_restrict; was=$(cat $r); echo 1 >$r; \
             cut -d- -f1 /proc/vmallocinfo | sort | head -n 1; echo $was >$r",
        )?,
    ])
}

/// Each guest has booted once, both the same kernel in the same machine.
fn addresses_differ_between_boots(pair: &mut Pair, is_memory_random: bool) -> Result<()> {
    /// Where x86-64's map of what the kernel wants mapped begins without RANDOMIZE_MEMORY, with four levels of page tables.
    const NOT_RANDOM: &str = "0xffffc900";
    let (a, b) = (places(&mut pair.a)?, places(&mut pair.b)?);
    println!("a: {a:?}\nb: {b:?}");
    // One of the two places of the code is the same now and then, both are not.
    ensure!(a[..2] != b[..2], "RANDOMIZE_BASE: {a:?} and {b:?}");
    for place in [&a[2], &b[2]] {
        ensure!(
            place.starts_with("0xffff") && place.starts_with(NOT_RANDOM) != is_memory_random,
            "RANDOMIZE_MEMORY: {place}"
        );
    }
    works(pair)
}

// --- VLANs

/// The VLAN's number and interface, and its network.
const VLAN: (u16, &str, &str) = (77, "eth0.77", "10.78.0");

fn vlan_address(from: From) -> String {
    let host = match from {
        From::A => 2,
        From::B => 3,
    };
    format!("{}.{host}", VLAN.2)
}

fn first_connection_over_a_vlan(pair: &mut Pair) -> Result<()> {
    let (number, name, _) = VLAN;
    for from in BOTH {
        let address = vlan_address(from);
        pair.ends(from).0.shell(&format!(
            "ip link add link eth0 name {name} type vlan id {number} && \
             ip address add {address}/24 dev {name} && ip link set {name} up"
        ))?;
    }
    for from in BOTH {
        // There must be no link group: one that is there is used for connections over any interface.
        pair.a.load_driver(Mode::NoCopy)?;
        pair.b.load_driver(Mode::NoCopy)?;
        pair.wait_for_link()?;
        let to = format!("{}:{SMC_PORT}", vlan_address(from.other()));
        let client = pair.ends(from).0;
        for traffic in ["ping-pong --count 20", "bulk --up 1000000 --down 1000000"] {
            client
                .check(&traffic_command(traffic, &to, "--smc"))
                .with_context(|| format!("over {name}, the first connection from {from:?}"))?;
        }
        works(pair)?;
    }
    for from in BOTH {
        let client = pair.ends(from).0;
        client.shell(&format!("ip link delete {name}"))?;
    }
    works(pair)
}

// --- processors

/// How often a processor goes and comes, in each guest.
const ROUNDS: usize = 4;
/// The file that ends a stream, and the one that has the number of its exchanges so far.
const STOP: &str = "/run/guest-life-stop";
const PROGRESS: &str = "/run/guest-life-progress";
/// How long the pollers poll, in microseconds.
const POLL_US: u64 = 20_000;
/// The processor that goes; the first cannot.
const PROCESSOR: u32 = 1;

fn processors_go_and_come(lab: &Lab) -> Result<()> {
    let guests = Pair::guests(lab)?.map(|guest| guest.cpus(2));
    let mut pair = Pair::boot_these(lab, &guests)?;
    let result = take_processors(&mut pair).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

fn take_processors(pair: &mut Pair) -> Result<()> {
    works(pair)?;
    // For so long that the pollers have always something to do while streams run.
    let usual = [pair.a.poll_for(POLL_US)?, pair.b.poll_for(POLL_US)?];
    let before = poll_hits(pair)?;
    let streams = start_streams(pair)?;
    for _ in 0..ROUNDS {
        for from in BOTH {
            bring_poller(pair.ends(from).0)?;
            for online in [0, 1] {
                pair.ends(from).0.shell(&format!(
                    "echo {online} >/sys/devices/system/cpu/cpu{PROCESSOR}/online"
                ))?;
                flows(pair).with_context(|| format!("processor {PROCESSOR}: online={online}"))?;
            }
        }
    }
    end_streams(pair, streams)?;
    let after = poll_hits(pair)?;
    pair.a.poll_for(usual[0])?;
    pair.b.poll_for(usual[1])?;
    println!("found by polling: {before:?} before, {after:?} after");
    for (before, after) in before.into_iter().zip(after) {
        ensure!(
            after > before / 4,
            "polling found {before} before the processor had gone, and {after} now"
        );
    }
    works(pair)
}

/// How often the pollers find something during a ping-pong.
fn poll_hits(pair: &mut Pair) -> Result<[u64; 2]> {
    let hits = |pair: &mut Pair| -> Result<[u64; 2]> {
        Ok([
            pair.a.counters()?["poll_hits"],
            pair.b.counters()?["poll_hits"],
        ])
    };
    let before = hits(pair)?;
    pair.traffic(From::A, "ping-pong --count 1000")?;
    let after = hits(pair)?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

/// Has ivpci's thread run on the processor that is about to go.
fn bring_poller(guest: &mut Running) -> Result<()> {
    let line = format!(
        "for p in /proc/[0-9]*; do read c <$p/comm; case $c in ivpci/*) \
         taskset -p {:x} ${{p#/proc/}} >/dev/null; cut -d' ' -f39 $p/stat;; esac; done 2>/dev/null",
        1 << PROCESSOR
    );
    let wanted = PROCESSOR.to_string();
    // It moves when it runs, and may follow a sender to another one.
    guest.wait_until(PATIENCE, |guest| {
        let processor = guest.shell(&line)?.trim().to_owned();
        let amiss = || format!("ivpci's thread is on processor {processor:?}");
        Ok((processor != wanted).then(amiss))
    })
}

fn start_streams(pair: &mut Pair) -> Result<[u64; 2]> {
    let mut start = |from| -> Result<u64> {
        let (client, server) = pair.ends(from);
        let traffic = format!(
            "stream --bytes 200000 --pause 5 --patience 60 --until {STOP} --progress {PROGRESS}"
        );
        let to = format!("{}:{SMC_PORT}", server.address());
        let id = client
            .agent()
            .spawn(&traffic_command(&traffic, &to, "--smc"))?;
        client.wait_for_file(id, PROGRESS, PATIENCE)?;
        Ok(id)
    };
    Ok([start(From::A)?, start(From::B)?])
}

/// Both streams have to get on.
fn flows(pair: &mut Pair) -> Result<()> {
    for from in BOTH {
        let client = pair.ends(from).0;
        let exchanges = |client: &mut Running| -> Result<u64> {
            let text = client.shell(&format!("cat {PROGRESS}"))?;
            text.trim().parse().context("a number of exchanges")
        };
        let begin = exchanges(client)?;
        client.wait_until(PATIENCE, |client| {
            let now = exchanges(client)?;
            let amiss = || format!("the stream stands still after {now} exchanges");
            Ok((now < begin + 5).then(amiss))
        })?;
    }
    Ok(())
}

fn end_streams(pair: &mut Pair, streams: [u64; 2]) -> Result<()> {
    for (from, id) in BOTH.into_iter().zip(streams) {
        let client = pair.ends(from).0;
        client.shell(&format!("touch {STOP}"))?;
        let outcome = client.agent().wait(id, PATIENCE)?;
        let outcome = outcome.context("the stream does not end")?;
        ensure!(outcome.success(), "{from:?}: {outcome}");
        let report: Report = serde_json::from_str(&outcome.stdout)?;
        ensure!(report.smcd == report.connections, "{report:?}");
        client.shell(&format!("rm {STOP}"))?;
    }
    Ok(())
}

// --- another kernel

/// Gives a guest a file of this machine's.
fn send_file(guest: &mut Running, file: &Path, to: &str) -> Result<()> {
    const PORT: u16 = 7100;
    let receive = Command::shell(&format!("nc -l -p {PORT} >{to}"));
    let id = guest.start_server(&receive, PORT)?;
    let mut stream = TcpStream::connect((guest.address(), PORT))?;
    let sent = io::copy(&mut File::open(file)?, &mut stream)?;
    drop(stream);
    guest.agent().wait(id, PATIENCE)?;
    let size = guest.shell(&format!("stat -c %s {to}"))?;
    ensure!(
        size.trim() == sent.to_string(),
        "{}: {sent} bytes were sent, and {size} have come",
        file.display()
    );
    Ok(())
}

fn kexec_without_ivpci(pair: &mut Pair, lab: &Lab) -> Result<()> {
    send_file(&mut pair.b, &lab.stage.join("bzImage"), "/tmp/bzImage")?;
    send_file(&mut pair.b, &lab.stage.join("guest.cpio"), "/tmp/initramfs")?;
    works(pair)?;
    let ids = [start_endless(pair, From::A)?, start_endless(pair, From::B)?];
    pair.b.restart(&Command::shell(
        "exec ivsmc-traffic kexec --kernel /tmp/bzImage --initramfs /tmp/initramfs \
         --command-line \"$(sed 's/ivsmc.mode=[a-z]*/ivsmc.mode=off/' /proc/cmdline)\"",
    ))?;
    ensure!(
        !pair.b.shell("lsmod")?.contains("ivpci"),
        "the other kernel has loaded ivpci"
    );
    ends_soon(pair, From::A, ids[0])?;
    // The other one ended with its kernel.
    pair.a.wait_for_link(false, LINK_TIME)?;
    pair.a.wait_for_no_buffers(LINK_TIME)?;
    let to = format!("{}:{SMC_PORT}", pair.b.address());
    pair.a.check(&traffic_command(
        "bulk --up 1000000 --down 1000000",
        &to,
        "--smc --expect fallback",
    ))?;
    pair.b.load_driver(Mode::NoCopy)?;
    works(pair)?;
    // As all other tests know it.
    pair.b.reboot()?;
    works(pair)
}

// --- sleep

/// What a guest is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Suspend to idle.
    Freeze,
    /// Suspend to RAM, which is to idle on a machine without firmware for it.
    Mem,
    /// Hibernate.
    Disk,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Freeze => "freeze",
            State::Mem => "mem",
            State::Disk => "disk",
        })
    }
}

/// For how long guests sleep, in seconds.
const SLEEP: u32 = 6;

/// Has a guest sleep for a while: all its devices do, and the kernel then does not sleep itself, but waits and wakes them.
/// Gives the number of the program that has it sleep.
fn put_to_sleep(guest: &mut Running, state: State) -> Result<u64> {
    let line = format!(
        "echo {SLEEP} | tee /sys/module/suspend/parameters/pm_test_delay \
         >/sys/module/hibernate/parameters/pm_test_delay; \
         echo platform >/sys/power/pm_test && sleep 0.2 && echo {state} >/sys/power/state"
    );
    let id = guest.agent().spawn(&Command::shell(&line))?;
    let start = Instant::now();
    while is_awake(guest) {
        if start.elapsed() > PATIENCE {
            let outcome = guest.agent().wait(id, Duration::ZERO)?;
            let name = guest.guest().name();
            bail!("guest {name} does not fall asleep: {outcome:?}");
        }
    }
    Ok(id)
}

/// A guest whose network device sleeps answers nobody.
fn is_awake(guest: &Running) -> bool {
    let address = SocketAddr::from((guest.address(), agent::PORT));
    TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
}

fn wait_until_awake(guest: &mut Running, id: u64) -> Result<()> {
    let start = Instant::now();
    while !is_awake(guest) {
        ensure!(
            start.elapsed() < PATIENCE,
            "guest {} does not wake up",
            guest.guest().name()
        );
    }
    let outcome = guest.agent().wait(id, PATIENCE)?;
    let outcome = outcome.context("the guest is still falling asleep")?;
    ensure!(outcome.success(), "{outcome}");
    Ok(())
}

/// Links end when a guest goes to sleep, for its peer at once, and come up when it wakes.
fn suspend(pair: &mut Pair, state: State) -> Result<()> {
    works(pair)?;
    let ids = [start_endless(pair, From::A)?, start_endless(pair, From::B)?];
    let sleeping = put_to_sleep(&mut pair.b, state)?;
    pair.a.wait_for_link(false, LINK_TIME)?;
    ends_soon(pair, From::A, ids[0])?;
    ensure!(
        !is_awake(&pair.b),
        "the guest has woken before its peer's connection had ended"
    );
    wait_until_awake(&mut pair.b, sleeping)?;
    ends_soon(pair, From::B, ids[1])?;
    works(pair)
}

fn peer_dies_during_suspend(pair: &mut Pair, lab: &Lab) -> Result<()> {
    let guest = pair.a.guest().clone();
    works(pair)?;
    let id = start_endless(pair, From::B)?;
    let sleeping = put_to_sleep(&mut pair.b, State::Freeze)?;
    pair.a.vmm().kill()?;
    wait_until_awake(&mut pair.b, sleeping)?;
    ends_soon(pair, From::B, id)?;
    pair.b.wait_for_link(false, LINK_TIME)?;
    pair.b.wait_for_no_buffers(LINK_TIME)?;
    pair.a = guest.boot(lab)?;
    works(pair)
}

// --- programs that let go of nothing

/// The file that tells a program to let go.
const LET_GO: &str = "/run/guest-life-let-go";

/// Has a program of guest b keep `what` of a connection to guest a; gives its number.
fn hold(pair: &mut Pair, what: &str) -> Result<u64> {
    const READY: &str = "/run/guest-life-holds";
    let traffic = format!("hold --what {what} --ready {READY} --until {LET_GO}");
    let to = format!("{}:{SMC_PORT}", pair.a.address());
    let id = pair
        .b
        .agent()
        .spawn(&traffic_command(&traffic, &to, "--smc"))?;
    pair.b.wait_for_file(id, READY, PATIENCE)?;
    pair.b.shell(&format!("rm {READY}"))?;
    Ok(id)
}

fn let_go(guest: &mut Running, id: u64) -> Result<()> {
    guest.shell(&format!("touch {LET_GO}"))?;
    let outcome = guest.agent().wait(id, PATIENCE)?;
    guest.shell(&format!("rm {LET_GO}"))?;
    let outcome = outcome.context("the program does not let go")?;
    ensure!(outcome.success(), "{outcome}");
    Ok(())
}

fn peer_returns(pair: &mut Pair, what: &str) -> Result<()> {
    works(pair)?;
    let id = hold(pair, what)?;
    pair.a.shell("rmmod ivpci")?;
    pair.b.wait_for_link(false, LINK_TIME)?;
    pair.a.load_driver(Mode::NoCopy)?;
    works(pair).with_context(|| format!("while a program keeps a {what}"))?;
    let_go(&mut pair.b, id)?;
    works(pair)
}

/// To unload the driver takes until the program lets go. The peer does not wait for that, and it is told who is waited for.
fn driver_is_unloaded(pair: &mut Pair, what: &str) -> Result<()> {
    works(pair)?;
    let id = hold(pair, what)?;
    let unloading = pair.b.agent().spawn(&Command::new(["rmmod", "ivpci"]))?;
    pair.a.wait_for_link(false, LINK_TIME)?;
    pair.a.wait_for_no_buffers(LINK_TIME)?;
    pair.b.wait_until(PATIENCE, |guest| {
        let told = guest.shell("dmesg")?.contains("programs keep");
        let amiss = || format!("nothing tells that a program keeps a {what}");
        Ok((!told).then(amiss))
    })?;
    let_go(&mut pair.b, id)?;
    let outcome = pair.b.agent().wait(unloading, PATIENCE)?;
    let outcome = outcome.context("the driver is not unloaded when the program has let go")?;
    ensure!(outcome.success(), "{outcome}");
    pair.b.load_driver(Mode::NoCopy)?;
    works(pair)
}

/// The driver is unloaded when a server goes on that a connection has been waiting for.
fn driver_is_unloaded_below_a_queue(pair: &mut Pair) -> Result<()> {
    works(pair)?;
    let accepted =
        |guest: &mut Running| -> Result<u64> { Ok(guest.status()?.statistics.server_connections) };
    let before = accepted(&mut pair.b)?;
    let server =
        "$(for p in $(pidof ivsmc-traffic); do grep -q -e --smc /proc/$p/cmdline && echo $p; done)";
    pair.b.shell(&format!("kill -STOP {server}"))?;
    let to = format!("{}:{SMC_PORT}", pair.b.address());
    let client = pair
        .a
        .agent()
        .spawn(&traffic_command("ping-pong --count 1", &to, "--smc"))?;
    pair.b.wait_until(PATIENCE, |guest| {
        let none = accepted(guest)? == before;
        Ok(none.then(|| "there is no connection".into()))
    })?;
    let unloading = pair.b.agent().spawn(&Command::new(["rmmod", "ivpci"]))?;
    pair.a.wait_for_link(false, LINK_TIME)?;
    let outcome = pair.a.agent().wait(client, PATIENCE)?;
    let outcome = outcome.context("the client waits for a peer that is gone")?;
    ensure!(!outcome.success(), "{outcome}");
    pair.b.shell(&format!("kill -CONT {server}"))?;
    let outcome = pair.b.agent().wait(unloading, PATIENCE)?;
    let outcome = outcome.context("the driver is not unloaded when the server goes on")?;
    ensure!(outcome.success(), "{outcome}");
    pair.b.load_driver(Mode::NoCopy)?;
    works(pair)
}

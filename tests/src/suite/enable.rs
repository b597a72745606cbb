// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest enable`: the sockets of programs that nobody has started through anything.

use super::Suite;
use crate::guest::{Mode, Running};
use crate::pair::{BOTH, From, Pair};
use anyhow::{Context, Result, ensure};
use ivsmc_guest::IPPROTO_SMC;
use ivsmc_guest::connections::Mode as How;
use ivsmc_guest::enable::Enabled;
use ivsmc_guest::status::Status;
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::bpf::Objects;
use ivsmc_traffic::sockets::{Opened, Storm};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long connections may take to come, and the kernel to free what nothing refers to.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where servers of these tests listen.
const PORT: u16 = 7300;
/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn add(suite: &mut Suite) {
    type Test = fn(&mut Pair) -> Result<()>;
    let tests: [(&str, Test); 9] = [
        ("every_tcp_socket", every_tcp_socket),
        ("programs_that_know_nothing", programs_that_know_nothing),
        ("cgroups", cgroups),
        ("connections", connections),
        ("anew_without_a_gap", anew_without_a_gap),
        ("storm", storm),
        ("disable_leaves_nothing", disable_leaves_nothing),
        ("errors", errors),
        ("run_says_that_it_is_enabled", run_says_that_it_is_enabled),
    ];
    for (name, test) in tests {
        suite.add(format!("enable::{name}"), move |fixture| {
            fixture.with_pair(Mode::NoCopy, |pair| {
                let result = test(pair);
                for guest in [&mut pair.a, &mut pair.b] {
                    guest.shell("ivsmc-guest disable")?;
                }
                result
            })
        });
    }
}

/// The kinds of sockets that a program gets that is started like this.
fn sockets(guest: &mut Running, started: &str) -> Result<Vec<Opened>> {
    let text = guest.shell(&format!("{started} ivsmc-traffic sockets"))?;
    let opened: Vec<Opened> = serde_json::from_str(&text).context(text)?;
    ensure!(!opened.is_empty());
    Ok(opened)
}

/// Whether TCP sockets of a program that is started like this are SMC sockets.
pub(super) fn is_smc(guest: &mut Running, started: &str) -> Result<bool> {
    let opened = sockets(guest, started)?;
    let plain = opened.iter().find(|it| it.protocol == 0).context("none")?;
    Ok(plain.got == IPPROTO_SMC)
}

/// What is enabled.
fn enabled(guest: &mut Running) -> Result<Enabled> {
    guest.status()?.enabled.context("nothing is enabled")
}

/// Sockets for TCP and MPTCP are SMC sockets, in other network namespaces too; their flags, and all other sockets, are what
/// they would be. After `disable` all are.
fn every_tcp_socket(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    let before = sockets(guest, "")?;
    let expected: Vec<_> = before
        .iter()
        .map(|before| {
            let is_tcp = [0, libc::IPPROTO_TCP, libc::IPPROTO_MPTCP].contains(&before.protocol)
                // MPTCP may be there for IPv4 alone.
                && (before.got >= 0 || before.protocol == libc::IPPROTO_MPTCP)
                && before.domain != libc::AF_UNIX
                && before.kind & 0xf == libc::SOCK_STREAM;
            if !is_tcp {
                return before.clone();
            }
            Opened {
                got: IPPROTO_SMC,
                flags: before.kind & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC),
                ..before.clone()
            }
        })
        .collect();
    let count = expected.iter().filter(|it| it.got == IPPROTO_SMC).count() as u64;
    guest.shell("ivsmc-guest enable")?;
    for started in [
        "",
        "busybox unshare -n",
        "busybox unshare -n -p -f -m -U -r",
    ] {
        let before = enabled(guest)?;
        ensure!(
            before.policy == "everything" && before.uid == 0,
            "{before:?}"
        );
        let with = sockets(guest, started)?;
        for (with, expected) in with.iter().zip(&expected) {
            ensure!(with == expected, "{started}: {with:?} and not {expected:?}");
        }
        let after = enabled(guest)?;
        ensure!(
            after.made >= before.made + count,
            "{before:?}, then {after:?}"
        );
    }
    guest.shell("ivsmc-guest disable")?;
    guest.wait_until(PATIENCE, |guest| {
        let after = sockets(guest, "")?;
        Ok((after != before).then(|| format!("{after:?}")))
    })
}

/// Two programs of the two guests talk SMC-D.
fn programs_that_know_nothing(pair: &mut Pair) -> Result<()> {
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("ivsmc-guest enable")?;
    }
    for from in BOTH {
        ensure!(is_smcd(pair, from)?, "from {from:?}");
    }
    Ok(())
}

/// The innermost cgroup that has a name in the policy decides, and of several names the longest.
fn cgroups(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    let folders = [
        "web.service",
        "web.service/worker",
        "web.service/backup.service",
        "machine.slice/libpod-1.scope/container",
        "machine.slice/libpod-conmon-1.scope",
        "machine.slice/web.services",
    ];
    for folder in folders {
        guest.shell(&format!("mkdir -p {CGROUPS}/{folder}"))?;
    }
    let file = "/tmp/enable.toml";
    guest.shell(&format!(
        "printf '%s\\n' 'cgroups = [\"web.service\", \"libpod-*\"]' \
         'except = [\"backup.service\", \"libpod-conmon-*\"]' >{file}"
    ))?;
    let result = [
        "web.service 'libpod-*' --except backup.service --except 'libpod-conmon-*'".to_owned(),
        format!("--policy {file}"),
    ]
    .iter()
    .try_for_each(|policy| {
        guest.shell(&format!("ivsmc-guest enable {policy}"))?;
        let expected = [true, true, false, true, false, false];
        for (folder, expected) in folders.into_iter().zip(expected) {
            let within =
                format!("busybox sh -c 'echo $$ >{CGROUPS}/{folder}/cgroup.procs; exec \"$@\"' -");
            ensure!(is_smc(guest, &within)? == expected, "{policy}: {folder}");
        }
        ensure!(!is_smc(guest, "")?, "{policy}: outside");
        let enabled = enabled(guest)?;
        let told = "libpod-*, web.service; except backup.service, libpod-conmon-*";
        ensure!(enabled.policy == told, "{enabled:?}");
        ensure!(enabled.made > 0 && enabled.left > 0, "{enabled:?}");
        Ok(())
    });
    // The innermost first.
    for folder in [
        "web.service/worker",
        "web.service/backup.service",
        "web.service",
        "machine.slice/libpod-1.scope/container",
        "machine.slice/libpod-1.scope",
        "machine.slice/libpod-conmon-1.scope",
        "machine.slice/web.services",
        "machine.slice",
    ] {
        guest.shell(&format!("rmdir {CGROUPS}/{folder}"))?;
    }
    result
}

/// The server's port and the peer's address decide, on both sides, in network namespaces that are there and in new ones.
fn connections(pair: &mut Pair) -> Result<()> {
    let file = "/tmp/connections.toml";
    // A namespace that a process has, and one that is kept.
    let keeper = Command::shell("echo $$ >/tmp/keeper; exec busybox unshare -n sleep 1000");
    let keeper = pair.a.agent().spawn(&keeper)?;
    pair.a.shell(
        "mkdir -p /run/netns; touch /run/netns/kept; \
         busybox unshare -n mount --bind /proc/self/ns/net /run/netns/kept",
    )?;
    let other = pair.b.address();
    // a's policy, and whether connections with b may be SMC's by it.
    let cases = [
        (format!("ports = [{PORT}]"), true),
        (format!("ports = ['1-{}', 443]", PORT - 1), false),
        (format!("except_ports = [{PORT}]"), false),
        (format!("peers = ['{other}']"), true),
        (format!("except_peers = ['{other}/32']"), false),
        (
            format!("peers = ['10.0.0.0/8']\nexcept_peers = ['{other}']"),
            false,
        ),
        ("peers = ['fd00::/8']".into(), false),
    ];
    pair.b.shell("ivsmc-guest enable")?;
    let result = cases.iter().try_for_each(|(policy, expected)| {
        pair.a.shell(&format!(
            "printf '[connections]\n%s\n' \"{policy}\" >{file}; ivsmc-guest enable --policy {file}"
        ))?;
        for from in BOTH {
            let found = is_smcd(pair, from)?;
            ensure!(found == *expected, "{policy}: from {from:?}: {found}");
        }
        let words = enabled(&mut pair.a)?.policy;
        ensure!(words.starts_with("everything; p"), "{words}");
        // The name that the kernel knows it by.
        let control = "cat /proc/sys/net/smc/hs_ctrl";
        let name = pair.a.shell(control)?;
        ensure!(name.starts_with("ivsmc_"), "{name}");
        for namespace in [
            format!("busybox nsenter --net=/run/netns/kept {control}"),
            format!("busybox nsenter -t $(cat /tmp/keeper) -n {control}"),
            format!("busybox unshare -n {control}"),
        ] {
            let there = pair.a.shell(&namespace)?;
            ensure!(there == name, "{namespace}: {there}, not {name}");
        }
        Ok(())
    });
    let result = result.and_then(|()| {
        // Without a word of connections all may be SMC's again.
        pair.a.shell("ivsmc-guest enable")?;
        let control = pair.a.shell("cat /proc/sys/net/smc/hs_ctrl")?;
        ensure!(control.trim().is_empty(), "{control}");
        ensure!(is_smcd(pair, From::B)?);
        Ok(())
    });
    pair.a.agent().kill(keeper, libc::SIGKILL)?;
    pair.a.agent().wait(keeper, PATIENCE)?;
    pair.a.shell("umount /run/netns/kept; rm /run/netns/kept")?;
    result
}

/// Whether a connection of two programs is SMC-D's.
fn is_smcd(pair: &mut Pair, from: From) -> Result<bool> {
    is_smcd_after(pair, from, "")
}

/// The same of two programs that are started by a shell, after it has done this.
pub(super) fn is_smcd_after(pair: &mut Pair, from: From, first: &str) -> Result<bool> {
    let (client, server) = match from {
        From::A => (&mut pair.a, &mut pair.b),
        From::B => (&mut pair.b, &mut pair.a),
    };
    let listen = Command::shell(&format!(
        "{first} sleep 1000 | busybox nc -ll -p {PORT} -e cat"
    ));
    let listening = server.start_server(&listen, PORT)?;
    let connect = format!(
        "{first} sleep 1000 | busybox nc {} {PORT}",
        server.address()
    );
    let connecting = client.agent().spawn(&Command::shell(&connect))?;
    let mut found = None;
    let result = client.wait_until(PATIENCE, |guest| {
        let connections = guest.status()?.connections;
        let mut to = connections.iter().filter(|c| c.peer_port == PORT);
        found = to.find_map(|c| match c.mode {
            How::SmcD => Some(true),
            How::Tcp => Some(false),
            _ => None,
        });
        Ok(found.is_none().then(|| format!("{connections:#?}")))
    });
    for (guest, id) in [(client, connecting), (server, listening)] {
        guest.agent().kill(id, libc::SIGKILL)?;
        guest.agent().wait(id, PATIENCE)?;
    }
    result?;
    found.context("there was no connection")
}

/// While one policy after the other is enabled, no socket is TCP's.
fn anew_without_a_gap(pair: &mut Pair) -> Result<()> {
    let text = pair.a.shell(
        "ivsmc-guest enable && {
            for n in 1 2 3; do ivsmc-guest enable --except x$n; done &
            ivsmc-traffic storm --threads 2 --count 2000
            wait
        }",
    )?;
    let storm: Storm = serde_json::from_str(&text).context(text)?;
    ensure!(
        storm.got == BTreeMap::from([(IPPROTO_SMC, 4000)]),
        "{storm:?}"
    );
    Ok(())
}

/// Many threads open sockets, beside processes that are killed at it.
fn storm(pair: &mut Pair) -> Result<()> {
    let (threads, count) = (64, 100);
    let guest = &mut pair.b;
    let storm = format!("ivsmc-traffic storm --threads {threads} --count {count}");
    let mut times = Vec::new();
    for (protocol, enable) in [
        (libc::IPPROTO_TCP, "true"),
        (IPPROTO_SMC, "ivsmc-guest enable"),
    ] {
        guest.shell(enable)?;
        let text = guest.shell(&storm)?;
        let storm: Storm = serde_json::from_str(&text).context(text)?;
        ensure!(
            storm.got == BTreeMap::from([(protocol, threads * count)])
                && storm.killed > 0
                && storm.left_over == 0,
            "{storm:?}"
        );
        times.push(storm.milliseconds);
    }
    println!("{} sockets: {times:?} ms", threads * count);
    Ok(())
}

/// No pin, program, map or link.
fn disable_leaves_nothing(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    let look = |guest: &mut Running| -> Result<(Objects, String)> {
        let text = guest.shell("ivsmc-traffic bpf")?;
        let objects = serde_json::from_str(&text).context(text)?;
        Ok((objects, guest.shell("find /sys/fs/bpf")?))
    };
    let before = look(guest)?;
    for policy in ["", "web.service", "--except 'libpod-*'"] {
        guest.shell(&format!("ivsmc-guest enable {policy}"))?;
        let (objects, pins) = look(guest)?;
        ensure!(objects.links > before.0.links, "{objects:?}");
        ensure!(!pins.contains("new-"), "{pins}");
    }
    guest.shell("ivsmc-guest disable")?;
    guest.wait_until(PATIENCE, |guest| {
        let after = look(guest)?;
        Ok((after != before).then(|| format!("{after:?}, and not {before:?}")))
    })
}

/// What is missing is named, and what to do; nothing is enabled, and what was stays.
fn errors(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    guest.shell("ivsmc-guest enable web.service")?;
    let before = enabled(guest)?;
    let without = "busybox unshare -m busybox sh -c";
    for (line, said) in [
        ("ivsmc-guest enable 'a*b'", "* can only be at the end"),
        ("ivsmc-guest enable --policy /nonexistent", "/nonexistent"),
        (
            "echo 'cgroup = []' >/tmp/bad.toml; ivsmc-guest enable --policy /tmp/bad.toml",
            "/tmp/bad.toml:1: unknown field `cgroup`",
        ),
        ("ivsmc-guest enable --protocol 250", "CONFIG_SMC"),
        (
            &format!("{without} 'umount /sys/fs/bpf; exec ivsmc-guest enable'"),
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        (
            &format!("{without} 'mount -t tmpfs none /sys/kernel/btf; exec ivsmc-guest enable'"),
            "CONFIG_DEBUG_INFO_BTF",
        ),
        (
            &format!(
                "{without} 'mount --bind /dev/null /sys/kernel/btf/vmlinux; exec ivsmc-guest enable'"
            ),
            "/sys/kernel/btf/vmlinux cannot be read",
        ),
        (
            "busybox unshare -U busybox sh -c 'exec ivsmc-guest enable'",
            "it needs root",
        ),
    ] {
        let output = guest.shell(&format!("! {{ {line}; }} 2>&1"))?;
        ensure!(output.contains(said), "{line}: {output}");
        let after = enabled(guest)?;
        ensure!(after.policy == before.policy, "{line}: {after:?}");
    }
    Ok(())
}

/// `run` has nothing to do then, and says so.
fn run_says_that_it_is_enabled(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    let run = "ivsmc-guest run busybox true 2>&1";
    let silent = guest.shell(run)?;
    ensure!(silent.is_empty(), "{silent}");
    guest.shell("ivsmc-guest enable")?;
    let said = guest.shell(run)?;
    ensure!(said.contains("SMC sockets already"), "{said}");
    let text = guest.shell("ivsmc-guest run ivsmc-guest status --json 2>/dev/null")?;
    let status: Status = serde_json::from_str(&text).context(text)?;
    ensure!(status.enabled.is_some());
    Ok(())
}

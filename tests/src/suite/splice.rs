// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program splices out of an SMC-D socket can go anywhere: to a TCP socket, a disk, through tee().
//!
//! On a mainline kernel the pipe has pages of the window, and the guest's other devices are given their addresses. An
//! address that a device cannot reach stops it for good: so each test also looks whether the guest can still be reached.
//! That has to be so on any kernel. That the data is right is asked of a mended one only: mainline's SMC has the peer
//! write the next data into pages that a TCP socket still has to send.

use super::Suite;
use crate::guest::{Guest, Mode, Running, SMC_PORT, TCP_PORT};
use crate::lab::{Lab, VmmKind};
use crate::pair::{BOTH, From, Pair, traffic_command};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::traffic::Report;
use std::fs::File;
use std::time::Duration;

/// Where proxies listen.
const PROXY_PORT: u16 = 5600;
/// To TCP sockets: an amount that no buffer on the way holds.
const BYTES: u64 = 10_000_000;
/// A client of a proxy that is SMC-D, and gives up soon.
const PROXIED: &str = "--smc --expect proxied --patience 30";

pub(super) fn add(suite: &mut Suite) {
    for mode in [Mode::NoCopy, Mode::Copy] {
        suite.add(format!("splice::to_tcp_{mode}"), move |fixture| {
            let whole = fixture.lab.is_mended();
            fixture.with_pair(mode, |pair| to_tcp(pair, whole))
        });
    }
    suite.add("splice::haproxy", |fixture| {
        let whole = fixture.lab.is_mended();
        let connections = connections(&fixture.lab);
        fixture.with_pair(Mode::NoCopy, |pair| haproxy(pair, connections, whole))
    });
    suite.add("splice::without_vhost", |fixture| {
        if fixture.lab.vmm != VmmKind::Reference {
            return Ok(());
        }
        let whole = fixture.lab.is_mended();
        fixture.without_pair(|lab| {
            let guests = Pair::guests(lab)?.map(Guest::without_vhost);
            with_guests(lab, &guests, |pair| {
                to_tcp(pair, whole)?;
                haproxy(pair, connections(lab), whole)
            })
        })
    });
    suite.add_for_cloud_hypervisor("splice::to_disk", |fixture| {
        fixture.without_pair(|lab| {
            let image = lab.run_folder().join("disk");
            File::create(&image)?.set_len(64 << 20)?;
            let [a, b] = Pair::guests(lab)?;
            with_guests(lab, &[a, b.disk(image)], to_disk)
        })
    });
    // On others tee() fails: pages of an SMC-D connection's cannot be in two pipes.
    suite.add_for_mended_kernel("splice::tee", |fixture| {
        fixture.with_pair(Mode::NoCopy, |pair| {
            for from in BOTH {
                pair.traffic(from, "tee --bytes 3000000")?;
            }
            Ok(())
        })
    });
}

fn with_guests(
    lab: &Lab,
    guests: &[Guest; 2],
    test: impl FnOnce(&mut Pair) -> Result<()>,
) -> Result<()> {
    let mut pair = Pair::boot_these(lab, guests)?;
    let result = test(&mut pair).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

/// A sends to a proxy in b over SMC-D, which splices it into TCP connections to a.
fn to_tcp(pair: &mut Pair, whole: bool) -> Result<()> {
    let to = format!("{}:{TCP_PORT}", pair.a.address());
    let line = format!("ivsmc-traffic proxy --port {PROXY_PORT} --to {to}");
    let proxy = Command::new(line.split_whitespace());
    let traffic = [
        format!("bulk --up {BYTES} --down 0"),
        format!("bulk --up {BYTES} --down {BYTES}"),
        "ping-pong --count 100 --size 5000".to_owned(),
    ];
    through(pair, &proxy, &traffic, whole)
}

/// How many connections are opened to HAProxy at once. SMC gives a handshake six seconds, in which a debug kernel does not
/// do a hundred.
fn connections(lab: &Lab) -> u32 {
    if lab.is_debug() { 20 } else { 100 }
}

/// The same through HAProxy, which splices by itself, on many connections at once.
fn haproxy(pair: &mut Pair, connections: u32, whole: bool) -> Result<()> {
    let config = format!(
        "global\n maxconn 2000\n nbthread 1\n\
         defaults\n mode tcp\n option splice-auto\n timeout connect 30s\n timeout client 120s\n timeout server 120s\n\
         listen all\n bind 0.0.0.0:{PROXY_PORT}\n server a {}:{TCP_PORT}\n",
        pair.a.address()
    );
    pair.b
        .shell(&format!("printf '%s' '{config}' >/tmp/haproxy.cfg"))?;
    let proxy = Command::shell("ivsmc-guest run haproxy -db -f /tmp/haproxy.cfg");
    let traffic = [
        format!("bulk --up {BYTES} --down {BYTES}"),
        format!("many --connections {connections} --bytes 300000"),
    ];
    through(pair, &proxy, &traffic, whole)
}

/// Makes traffic from a to a proxy in b, and looks whether b can be reached after it, and, if it has to be `whole`, whether
/// all of it was right.
fn through(pair: &mut Pair, proxy: &Command, traffic: &[String], whole: bool) -> Result<()> {
    let id = pair.b.start_server(proxy, PROXY_PORT)?;
    for traffic in traffic {
        let report = pair.traffic_with(From::A, traffic, PROXY_PORT, PROXIED);
        answers(pair).with_context(|| format!("after `{traffic}`, which ended with {report:?}"))?;
        match report {
            Ok(Report {
                connections, smcd, ..
            }) => {
                ensure!(smcd == connections, "{smcd} of {connections} were SMC-D");
            }
            Err(error) if whole => return Err(error.context(traffic.clone())),
            Err(error) => {
                println!("splice, on a kernel that is not mended: `{traffic}`: {error:#}")
            }
        }
    }
    pair.b.agent().kill(id, libc::SIGKILL)?;
    pair.b.agent().wait(id, Duration::from_secs(10))?;
    Ok(())
}

/// Whether b's network works.
fn answers(pair: &mut Pair) -> Result<()> {
    let ping = format!("ping -c 3 -W 5 {}", pair.b.address());
    pair.a.shell(&ping).context("b's network is dead").map(drop)
}

/// B splices what it receives onto a disk, past its page cache: it gets there whole, or the call fails.
fn to_disk(pair: &mut Pair) -> Result<()> {
    const DISK: &str = "/dev/vda";
    let server = format!("{}:{SMC_PORT}", pair.a.address());
    let client = traffic_command(
        &format!("to-disk --disk {DISK} --bytes 8388608"),
        &server,
        "--smc --patience 30",
    );
    let before = disk_works(&mut pair.b, 1);
    before.context("before")?;
    let output = pair.b.check(&client);
    answers(pair)?;
    disk_works(&mut pair.b, 2).with_context(|| format!("after {output:?}"))?;
    println!("splice::to_disk: {}", output?.trim());
    Ok(())
}

fn disk_works(guest: &mut Running, byte: u8) -> Result<()> {
    let line = format!(
        "printf '\\{byte:03o}' | dd of=/dev/vda bs=1 seek=16777216 conv=fsync 2>/dev/null && \
         echo 3 >/proc/sys/vm/drop_caches && dd if=/dev/vda bs=1 skip=16777216 count=1 2>/dev/null | od -An -tu1"
    );
    let read = guest.check(&Command::shell(&line).timeout(Duration::from_secs(30)))?;
    ensure!(
        read.trim() == byte.to_string(),
        "the disk has {read:?} instead of {byte}"
    );
    Ok(())
}

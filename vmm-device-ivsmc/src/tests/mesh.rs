// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many devices of one folder, each with a link to every other one: how long it takes, what it costs, and that each
//! window is two devices' and nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::zeroed;
use std::slice;

use super::hostile::{descriptors, threads};
use super::*;

/// As many as can all have links to each other.
const DEVICES: usize = 64;
/// The smallest there is.
const SMALL: u64 = 2 << 20;
/// Descriptors of a device, and of each end of a link with one vector: connection, window, doorbell, interrupt line.
const OF_DEVICE: usize = 5;
const OF_LINK: usize = 4;
/// What the rest of the process, and handshakes under way, may need.
const OTHERS: usize = 500;

fn member(folder: &Path, n: usize) -> Config {
    Config {
        window_size: SMALL,
        vectors: 1,
        max_peers: 64,
        ..options(folder, &format!("vm{n}"), &[""])
    }
}

/// Raises the limit of descriptors as far as it goes, and returns it.
fn raise_limit() -> usize {
    // SAFETY: a limit of zeros is a valid one, and it outlives the calls.
    unsafe {
        let mut limit: libc::rlimit = zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
        limit.rlim_cur as usize
    }
}

/// A line of /proc/self/status in KiB.
fn kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// How many times the fabrics' threads have gone to sleep.
fn switches() -> u64 {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let at = |file: &str| task.as_ref().unwrap().path().join(file);
        if fs::read_to_string(at("comm")).unwrap().trim() == "fabric" {
            let status = fs::read_to_string(at("status")).unwrap();
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += line.unwrap().trim().parse::<u64>().unwrap();
        }
    }
    sum
}

/// The memory of windows that is mapped, by inode: how often.
fn mapped_windows() -> BTreeMap<u64, usize> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut inodes = BTreeMap::new();
    for line in maps.lines().filter(|line| line.contains("ivsmc-window")) {
        let inode = line.split_whitespace().nth(4).unwrap();
        *inodes.entry(inode.parse().unwrap()).or_default() += 1;
    }
    inodes
}

/// One end of a link.
struct End {
    vm: usize,
    peer: usize,
    side: u32,
    /// The window in the guest.
    memory: *mut u64,
}

/// Every link's two ends, found as drivers do.
fn ends(vms: &[Vm]) -> Vec<End> {
    let gid = |vm: &Vm| [0x20, 0x24, 0x28, 0x2c].map(|at| vm.read(at));
    let gids: Vec<_> = vms.iter().map(gid).collect();
    let mut ends = Vec::new();
    for (n, vm) in vms.iter().enumerate() {
        for link in (0..64).filter(|&link| vm.link_state(link) == UP) {
            let name = [0x10, 0x14, 0x18, 0x1c].map(|at| vm.link(link, at));
            let address = BAR2 + link * SMALL;
            ends.push(End {
                vm: n,
                peer: gids.iter().position(|gid| *gid == name).unwrap(),
                side: vm.link(link, 8),
                memory: vm.host.memory(address).cast(),
            });
        }
    }
    let pairs: BTreeSet<_> = ends.iter().map(|end| (end.vm, end.peer)).collect();
    assert_eq!(pairs.len(), ends.len(), "two links of one pair");
    assert_eq!(ends.len(), vms.len() * (vms.len() - 1));
    ends
}

fn start_mesh(folder: &Path, count: usize) -> Vec<Vm> {
    let vms: Vec<Vm> = (0..count).map(|n| Vm::start(member(folder, n))).collect();
    let links = count as u64 - 1;
    eventually("all have links to all", || {
        vms.iter().all(|vm| vm.links() == links)
    });
    vms
}

#[test]
fn sixty_four_devices_are_a_full_mesh() {
    alone("tests::mesh::full_mesh");
}

#[test]
#[ignore = "counts what the process has; run by sixty_four_devices_are_a_full_mesh"]
fn full_mesh() {
    let limit = raise_limit();
    let needs = |count: usize| count * (OF_DEVICE + (count - 1) * OF_LINK) + OTHERS;
    let count = (2..=DEVICES).rev().find(|&n| needs(n) <= limit).unwrap();
    if count < DEVICES {
        println!("the limit of {limit} descriptors leaves room for {count} devices only");
    }
    let folder = tempfile::tempdir().unwrap();
    let before = (descriptors(), threads(), mapped_windows().len());
    let (rss, shmem) = (kib("VmRSS:"), kib("RssShmem:"));
    let start = Instant::now();
    let vms = start_mesh(folder.path(), count);
    let took = start.elapsed();
    thread::sleep(Duration::from_secs(1));
    let links = count * (count - 1) / 2;
    let now = (descriptors(), threads());
    println!("{count} devices, {links} links, up in {took:?}");
    let sum = |name: &str| -> u64 {
        let of = |vm: &Vm| vm.device.counters().named();
        let all = vms.iter().flat_map(of);
        all.filter(|each| each.0 == name).map(|each| each.1).sum()
    };
    for name in [
        "connections_made",
        "connections_accepted",
        "handshakes_refused",
        "handshakes_timed_out",
        "protocol_errors",
        "host_errors",
    ] {
        println!("  {name}: {}", sum(name));
    }
    println!("  descriptors: {} (before: {})", now.0, before.0);
    println!("  threads: {} (before: {})", now.1, before.1);
    println!("  VmRSS: {} KiB (before: {rss})", kib("VmRSS:"));
    println!(
        "  shared memory: {} KiB (before: {shmem})",
        kib("RssShmem:")
    );
    println!("  address space: {} KiB", kib("VmSize:"));
    let count_wakes = || {
        let before = switches();
        thread::sleep(Duration::from_secs(2));
        switches() - before
    };
    // Handshakes that lost against others may still be coming to their end at first.
    let wakes = (0..5).map(|_| count_wakes()).find(|&wakes| wakes == 0);
    let wakes = wakes.unwrap_or_else(count_wakes);
    println!("  times that a thread ran in 2 s of peace: {wakes}");
    // Each window is mapped twice, by the two ends of one link, which see each other.
    let ends = ends(&vms);
    let windows = mapped_windows();
    assert_eq!(windows.len(), links);
    assert!(windows.values().all(|&times| times == 2));
    let value = |vm: usize, peer: usize| ((vm as u64 + 1) << 32) | (peer as u64 + 1);
    for end in &ends {
        // SAFETY: the window is mapped, and its first two words are in it.
        unsafe {
            let word = end.memory.add(end.side as usize);
            word.write_volatile(value(end.vm, end.peer));
        }
    }
    for end in &ends {
        // SAFETY: as above.
        let seen = unsafe { end.memory.add(1 - end.side as usize).read_volatile() };
        assert_eq!(seen, value(end.peer, end.vm));
    }
    if sum("handshakes_timed_out") == 0 {
        assert_eq!(sum("links_up"), 2 * links as u64, "a link came up twice");
    }
    assert_eq!(wakes, 0, "threads run though nothing happens");
    assert_eq!(now.0 - before.0, count * 5 + 2 * links * OF_LINK);
    // Each has two threads, and a reaper ends those that it starts.
    assert_eq!(now.1 - before.1, 2 * count);
    // All at once, as when all guests of a host reboot.
    let start = Instant::now();
    for vm in &vms {
        vm.device.reset();
    }
    eventually("all are linked again", || {
        vms.iter().all(|vm| vm.links() == count as u64 - 1)
    });
    let again = start.elapsed();
    println!("  up again in {again:?} after all were reset");
    for name in [
        "connections_made",
        "handshakes_refused",
        "handshakes_timed_out",
    ] {
        println!("  {name}: {}", sum(name));
    }
    let start = Instant::now();
    for vm in vms {
        vm.stop();
    }
    println!("  taken down in {:?}", start.elapsed());
    // The reapers end by themselves.
    let after = || (descriptors(), threads(), mapped_windows().len());
    eventually("nothing is left", || after() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_written_into_a_window_is_seen_by_the_peer_and_by_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let vms = start_mesh(folder.path(), 5);
    let ends = ends(&vms);
    let words = SMALL as usize / 8;
    // SAFETY: the windows are mapped as long as the links are up, which is to the end of the test, and nobody writes
    // to them while they are looked at.
    let content = |end: &End| unsafe { slice::from_raw_parts(end.memory, words) };
    let mut looked_at = 0;
    for (n, end) in ends.iter().enumerate() {
        let magic = 0x5ec2_e7a5_0000_0001 + ((n as u64) << 16);
        // Anywhere in the window.
        let at = (n * 104_729 + 12_345) % words;
        // SAFETY: it is in the window, into which no reference exists now.
        unsafe { end.memory.add(at).write_volatile(magic) };
        for other in &ends {
            let mut found = content(other).iter().enumerate();
            let found = found.find(|(_, word)| **word == magic).map(|(at, _)| at);
            let is_an_end = (other.vm, other.peer) == (end.vm, end.peer)
                || (other.vm, other.peer) == (end.peer, end.vm);
            assert_eq!(
                found,
                is_an_end.then_some(at),
                "{} {}",
                other.vm,
                other.peer
            );
            looked_at += SMALL;
        }
    }
    let windows = ends.len();
    println!(
        "{windows} windows' ends of 5 devices, {} MiB looked at",
        looked_at >> 20
    );
    for vm in vms {
        vm.stop();
    }
}

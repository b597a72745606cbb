// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fabric thread makes no system call that `Fabric::SYSCALLS` does not list.

#![cfg(target_arch = "x86_64")]

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::*;
use crate::Fabric;

/// Starts a VM whose fabric thread ends the process when it makes any other system call.
fn start_confined(config: Config) -> Vm {
    let host = FakeHost::new();
    let (device, fabric) = Device::new(config, host.clone(), None).unwrap();
    for (bar, address) in [BAR0, BAR1, BAR2].into_iter().enumerate() {
        device.move_bar(bar, address).unwrap();
    }
    // The fake VMM looks up what its descriptors are, which a real one leaves to KVM.
    let of_the_fake = [libc::SYS_readlink, libc::SYS_readlinkat];
    let listed = Fabric::SYSCALLS.iter().chain(&of_the_fake);
    let rules = listed.map(|&syscall| (syscall, Vec::new())).collect();
    let actions = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, actions.0, actions.1, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let thread = Some(std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        fabric.run();
    }));
    Vm {
        device,
        host,
        thread,
    }
}

#[test]
fn no_other_system_call() {
    alone("tests::sandbox::a_life_in_the_sandbox");
}

#[test]
#[ignore = "may end the process; run by no_other_system_call"]
fn a_life_in_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let a = start_confined(options(folder.path(), "a", &["b", "nobody", "other"]));
    let b = start_confined(options(folder.path(), "b", &["a"]));
    let other = Config {
        fabric_id: 0xff01,
        hugepages: true,
        ..options(folder.path(), "other", &[])
    };
    let other = start_confined(other);
    let huge = Config {
        fabric_id: 0xff01,
        ..options(folder.path(), "huge", &["other"])
    };
    let huge = start_confined(huge);
    for _ in 0..3 {
        eventually("up", || a.links() == 1 && b.links() == 1);
        a.enable_msix();
        let link = u64::from(a.link_state(0) != UP);
        a.claim(link);
        b.device.reset();
        eventually("lost", || a.link_state(link) == LOST);
        a.let_go(link);
        eventually("let go", || a.link_state(link) != LOST);
    }
    let silent = crate::socket::Socket::connect(&folder.path().join("b")).unwrap();
    let b_counters = || b.device.counters();
    eventually("timed out", || b_counters().handshakes_timed_out > 0);
    drop(silent);
    eventually("refused", || a.device.counters().handshakes_refused > 0);
    for vm in [a, b, other, huge] {
        vm.stop();
    }
}

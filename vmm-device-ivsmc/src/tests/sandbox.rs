// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No thread makes a system call that the list for it does not have.

#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::fs;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::*;
use crate::fabric::socket::Socket;
use crate::{Fabric, Reaper, Syscall};

/// From now on this thread ends the process when it makes any other system call.
fn confine(syscalls: &[Syscall]) {
    let of_the_test = [
        // The fake VMM copies descriptors and looks up what they are, which a real one leaves to KVM.
        libc::SYS_fcntl,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        // The thread ends.
        libc::SYS_exit,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
    ];
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for syscall in syscalls {
        if let Some((argument, value)) = syscall.argument {
            let (kind, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            let condition = SeccompCondition::new(argument, kind, equal, value.into()).unwrap();
            let rule = SeccompRule::new(vec![condition]).unwrap();
            rules.entry(syscall.number).or_default().push(rule);
        }
    }
    // No rule: any arguments will do.
    let any = syscalls.iter().filter(|each| each.argument.is_none());
    for number in any.map(|each| each.number).chain(of_the_test) {
        rules.insert(number, Vec::new());
    }
    let actions = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, actions.0, actions.1, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Starts a VM whose fabric thread is confined.
fn start_confined(config: Config) -> Vm {
    start_confined_with(config, None)
}

/// The same, of a snapshot. The thread that makes the device is confined, too.
fn start_confined_with(config: Config, state: Option<&DeviceState>) -> Vm {
    let host = FakeHost::new();
    let make = || {
        confine(&[Device::NEW_SYSCALLS, Fabric::SYSCALLS].concat());
        Device::new("test", config, host.clone(), state).unwrap()
    };
    let (device, mut fabric) = thread::scope(|scope| scope.spawn(make).join()).unwrap();
    let reaper = fabric.reaper().unwrap();
    thread::spawn(move || {
        confine(Reaper::SYSCALLS);
        reaper.run();
    });
    place(&device);
    device.resume();
    let thread = Some(thread::spawn(move || {
        confine(Fabric::SYSCALLS);
        fabric.run();
    }));
    Vm {
        device,
        host,
        thread,
    }
}

/// What a guest does, on a thread that is confined as a vCPU's.
fn guest(vm: &Vm) {
    vm.read(0);
    vm.device.place_registers(Some(BAR0 + 0x8000)).unwrap();
    vm.device.place_windows(Some(2 * BAR2)).unwrap();
    vm.claim(0);
    vm.let_go(0);
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
        let link = u64::from(a.link_state(0) != UP);
        a.claim(link);
        b.device.reset();
        eventually("lost", || a.link_state(link) == LOST);
        a.let_go(link);
        eventually("let go", || a.link_state(link) != LOST);
    }
    eventually("up", || a.link_state(0) == UP);
    let confined_guest = || {
        confine(Device::SYSCALLS);
        guest(&a);
    };
    thread::scope(|scope| scope.spawn(confined_guest).join()).unwrap();
    let silent = Socket::connect(&folder.path().join("b")).unwrap();
    let b_counters = || b.device.counters();
    eventually("timed out", || b_counters().handshakes_timed_out > 0);
    drop(silent);
    eventually("refused", || a.device.counters().handshakes_refused > 0);
    // A folder of peers, which comes, changes, is replaced and goes.
    let joined = folder.path().join("folder");
    let joiner = start_confined(Config {
        allow: vec![1000.into(), "group:1000".parse().unwrap()],
        ..options(folder.path(), "joiner", &["folder"])
    });
    // Its socket's file is removed.
    let file = folder.path().join("joiner");
    fs::remove_file(&file).unwrap();
    eventually("it is made again", || file.exists());
    fs::create_dir(&joined).unwrap();
    for n in 0..2 {
        let member = start_confined(options(&joined, "member", &[]));
        eventually("found", || member.links() == 1);
        member.stop();
        fs::rename(&joined, folder.path().join(format!("old{n}"))).unwrap();
        fs::create_dir(&joined).unwrap();
    }
    fs::remove_dir(&joined).unwrap();
    thread::sleep(Duration::from_millis(200));
    joiner.stop();
    // A VM that moves: it waits for the path, which was in use.
    let joins = [Path::new("nobody-relative").into(), folder.path().join("b")];
    let moved = Config {
        peers: joins.into(),
        ..options(folder.path(), "a", &[])
    };
    a.claim(0);
    // SAFETY: it is in the window, which is mapped.
    unsafe { a.host.memory(2 * BAR2 + 9).write_volatile(1) };
    let snapshot = || {
        confine(Device::STATE_SYSCALLS);
        a.device.state().unwrap()
    };
    let state = thread::scope(|scope| scope.spawn(snapshot).join()).unwrap();
    let moved = start_confined_with(moved, Some(&state));
    moved.let_go(0);
    eventually("it joins", || moved.links() == 1);
    // A guest unplugs its device.
    let path = folder.path().join("a");
    let unplug = |mut vm: Vm| {
        confine(Device::SYSCALLS);
        vm.device.shutdown();
        vm.thread.take().unwrap().join().unwrap();
        drop(vm);
    };
    thread::scope(|scope| scope.spawn(|| unplug(a)).join()).unwrap();
    eventually("it listens", || path.exists());
    for vm in [b, other, huge, moved] {
        vm.stop();
    }
    assert!(!path.exists());
}

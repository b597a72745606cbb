// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits of the process and settings of the system lead to errors that say what would do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::process;

use super::hostile::{HIGH, LOW, OFFER, Scene, eventfd};
use super::*;
use crate::Window;
use crate::fabric::wire::{Bye, Message};
use crate::test_utils::{keep_log, logged};

fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    // SAFETY: a limit of zeros is a valid one, and it outlives the calls.
    unsafe {
        let mut limit: libc::rlimit = zeroed();
        assert_eq!(libc::getrlimit(resource, &mut limit), 0);
        limit.rlim_cur = value;
        assert_eq!(libc::setrlimit(resource, &limit), 0);
    }
}

fn descriptors() -> BTreeSet<i32> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.map(|each| each.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

fn error() -> String {
    Window::create(WINDOW, false).unwrap_err().to_string()
}

#[test]
fn a_limit_of_file_sizes_is_an_error() {
    alone("tests::limits::file_size");
}

#[test]
#[ignore = "may end the process; run by a_limit_of_file_sizes_is_an_error"]
fn file_size() {
    limit(libc::RLIMIT_FSIZE, WINDOW - 1);
    let error = error();
    assert!(
        error.contains("RLIMIT_FSIZE") && error.contains("ulimit -f"),
        "{error}"
    );
    limit(libc::RLIMIT_FSIZE, WINDOW);
    Window::create(WINDOW, false).unwrap();
}

#[test]
fn a_limit_of_locked_memory_is_an_error() {
    alone("tests::limits::locked_memory");
}

#[test]
#[ignore = "locks the process's memory; run by a_limit_of_locked_memory_is_an_error"]
fn locked_memory() {
    // SAFETY: plain system calls. The user is changed so that the limit is for this process, too.
    unsafe {
        assert_eq!(libc::mlockall(libc::MCL_FUTURE), 0);
        limit(libc::RLIMIT_MEMLOCK, WINDOW / 2);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setuid(65534), 0);
        }
    }
    let error = error();
    assert!(
        error.contains("RLIMIT_MEMLOCK") && error.contains("ulimit -l"),
        "{error}"
    );
}

#[test]
fn a_system_that_refuses_executable_memory_files_has_windows() {
    alone("tests::limits::noexec");
}

#[test]
#[ignore = "makes a namespace; run by a_system_that_refuses_executable_memory_files_has_windows"]
fn noexec() {
    // SAFETY: plain system calls; the child only makes windows and ends.
    unsafe {
        if libc::unshare(libc::CLONE_NEWPID) < 0 {
            println!("SKIPPED: no namespace for the setting");
            return;
        }
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let set = fs::write("/proc/sys/vm/memfd_noexec", "2").is_ok();
            let refused = libc::memfd_create(c"plain".as_ptr(), libc::MFD_CLOEXEC) < 0;
            let made = Window::create(WINDOW, false).is_ok();
            process::exit(if !set || !refused {
                2
            } else {
                i32::from(!made)
            });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        match libc::WEXITSTATUS(status) {
            2 => println!("SKIPPED: the setting has no effect here"),
            status => assert_eq!(status, 0, "no window"),
        }
    }
}

#[test]
fn a_limit_of_descriptors_is_said_in_the_log() {
    alone("tests::limits::few_descriptors");
}

#[test]
#[ignore = "uses up the process's descriptors; run by a_limit_of_descriptors_is_said_in_the_log"]
fn few_descriptors() {
    keep_log();
    let scene = Scene::new();
    let (low, high) = (scene.connect(), scene.connect());
    low.hello(LOW);
    assert!(matches!(low.next(), Some((Message::Hello(_), _))));
    assert!(matches!(high.next(), Some((Message::Hello(_), _))));
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    limit(libc::RLIMIT_NOFILE, descriptors().len() as u64 + 20);
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // There is room for one of two.
    hoard.pop();
    low.send(OFFER, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
    assert_eq!(low.end(), Some(Bye::Internal));
    let said = |what| logged(&[what, "RLIMIT_NOFILE", "ulimit -n"]);
    assert_eq!(said("take those that came"), 1);
    eventually("what came is closed", || {
        File::open("/dev/null").is_ok_and(|file| {
            hoard.push(file);
            true
        })
    });
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    high.hello(HIGH);
    assert_eq!(high.end(), Some(Bye::Internal));
    assert_eq!(said("make a window"), 1);
    drop(hoard);
    drop((low, high));
    scene.is_as_before();
}

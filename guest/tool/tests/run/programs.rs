// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs that the tests run, all in the tests' own executable: `run as NAME ARGUMENTS...`.

use ivsmc_guest::socket::{open_kind as open, protocol};
use ivsmc_traffic::sockets;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const STREAM: i32 = libc::SOCK_STREAM;

/// Becomes the program `name`.
pub fn run(name: &str, arguments: &[String]) -> io::Result<()> {
    let number = |index: usize| arguments[index].parse().unwrap();
    match name {
        "kinds" => println!("{}", serde_json::to_string(&sockets::kinds())?),
        "storm" => {
            let storm = sockets::storm(number(0), number(1))?;
            println!("{}", serde_json::to_string(&storm)?);
        }
        "answer" => answer()?,
        "signals" => signals(Duration::from_micros(number(0).into()))?,
        "namespace" => namespace(arguments[0] == "user")?,
        "confined" => confined(arguments)?,
        "watched" => watched(arguments)?,
        "listener" => println!("{:?} {}", listener(libc::SECCOMP_RET_ALLOW).err(), one()),
        "foreign" => foreign(),
        "wait" => println!("{}", wait()),
        "hidden" => println!("{}", hidden()),
        "one" => println!("{}", one()),
        _ => return Err(io::Error::other(format!("no program {name}"))),
    }
    Ok(())
}

/// The protocol of a TCP socket, or a negative errno.
fn one() -> i32 {
    match open(libc::AF_INET, STREAM, 0) {
        Ok(socket) => protocol(&socket).unwrap(),
        Err(error) => -error.raw_os_error().unwrap(),
    }
}

/// The same of a process of which its user may know nothing.
fn hidden() -> i32 {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    one()
}

/// Opens a socket for each line and says what it is. What asks a service to stop does not stop it.
fn answer() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: has the signal ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    println!("ready");
    for line in io::stdin().lock().lines() {
        line?;
        println!("{}", one());
    }
    Ok(())
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

/// Opens sockets while a timer's signal, whose handler does not have calls go on, comes at this interval. Says how many
/// were opened, how often that gave EINTR and how often something else.
fn signals(interval: Duration) -> io::Result<()> {
    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: interval.as_micros() as i64,
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: the handler does nothing that must not be done in one; what is pointed to is alive during the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    let start = Instant::now();
    let [mut calls, mut interrupted, mut other] = [0u64; 3];
    while start.elapsed() < Duration::from_secs(2) {
        calls += 1;
        match open(libc::AF_INET, STREAM, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => interrupted += 1,
            Err(_) => other += 1,
        }
    }
    let signals = SIGNALS.load(Ordering::Relaxed);
    println!(
        "{}",
        serde_json::json!([calls, interrupted, other, signals])
    );
    Ok(())
}

/// Says what a socket is and whether it is in the network namespace of its thread, for a thread that goes to a new
/// namespace, and for one that stays.
fn namespace(user: bool) -> io::Result<()> {
    let at_home = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    let look = move || -> io::Result<String> {
        let socket = open(libc::AF_INET, STREAM, 0)?;
        let other = open(libc::AF_INET6, STREAM, 0)?;
        let here = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        let right = network_of(&socket)? == here && network_of(&other)? == here;
        Ok(format!(
            "{} {right} {}",
            protocol(&socket)?,
            here == at_home
        ))
    };
    let enter = |kinds| {
        // SAFETY: takes no pointers.
        match unsafe { libc::unshare(kinds) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if user {
        enter(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
        println!("{}", look()?);
        return Ok(());
    }
    let there = std::thread::spawn(move || enter(libc::CLONE_NEWNET).and_then(|()| look()));
    println!("{}", there.join().unwrap()?);
    println!("{}", look()?);
    Ok(())
}

/// The inode of the network namespace that a socket is in.
fn network_of(socket: &OwnedFd) -> io::Result<u64> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    let namespace = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(namespace.metadata()?.ino())
}

/// `confined CALL ARGUMENT ACTION PROGRAM...`: becomes the program, under a filter that does ACTION to CALL, or if
/// ARGUMENT is not 0 to CALL with this as its second argument.
fn confined(arguments: &[String]) -> io::Result<()> {
    let [call, argument, action, program, arguments @ ..] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let [call, argument, action] = [call, argument, action].map(|word| word.parse().unwrap());
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let skip = |value, yes, no| libc::sock_filter {
        jt: yes,
        jf: no,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
    };
    let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let mut filter = [
        load(0),
        skip(call, 0, 2),
        load(24),
        skip(argument, 1, if argument == 0 { 1 } else { 0 }),
        give(libc::SECCOMP_RET_ALLOW),
        give(action),
    ];
    install(&mut filter, 0)?;
    Err(Command::new(program).args(arguments).exec())
}

/// Becomes a program that is under a listener already, which nobody asks.
fn watched(arguments: &[String]) -> io::Result<()> {
    let listener = File::from(listener(libc::SECCOMP_RET_ALLOW)?);
    // SAFETY: takes no pointers. The listener has to stay open.
    unsafe { libc::dup(listener.as_raw_fd()) };
    Err(Command::new(&arguments[0]).args(&arguments[1..]).exec())
}

fn listener(action: u32) -> io::Result<OwnedFd> {
    let mut filter = [statement(libc::BPF_RET | libc::BPF_K, action)];
    let fd = install(&mut filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: `fd` was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn install(filter: &mut [libc::sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions are alive during the call.
    let fd = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd as i32)
}

/// Opens sockets as a program of 32 bits does: with `socket()`, and with `socketcall()`.
#[cfg(target_arch = "x86_64")]
fn foreign() {
    let call = |number: i64, first: i64, second: i64, third: i64| -> i32 {
        let result: i64;
        // SAFETY: a system call of i386, which keeps all registers but the result's and some that are named.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
                first = inout(reg) first => _, inlateout("rax") number => result,
                in("rcx") second, in("rdx") third,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result as i32
    };
    let say = |fd: i32| {
        if fd < 0 {
            return println!("{fd}");
        }
        // SAFETY: `fd` was just opened and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        println!("{}", protocol(&socket).unwrap());
    };
    say(call(359, libc::AF_INET.into(), STREAM.into(), 0));
    // SAFETY: a new mapping that touches nothing else, where pointers of 32 bits reach, and room for the arguments.
    let arguments = unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        page.cast::<[i32; 3]>().write([libc::AF_INET, STREAM, 0]);
        page as i64
    };
    say(call(102, 1, arguments, 0));
}

#[cfg(not(target_arch = "x86_64"))]
fn foreign() {
    println!("{0}\n{0}", -libc::ENOSYS);
}

/// What wait() says to who has no children.
fn wait() -> i32 {
    one();
    // SAFETY: no status is wanted.
    let child = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    match child {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap(),
        child => child,
    }
}

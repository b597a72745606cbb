// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seccomp filter: which calls of `socket()` the supervisor is asked about.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The filters' `AUDIT_ARCH_*` and the number of `socket()` for each of a processor's instruction sets. What is not
/// here goes on as if there were no filter: x32, whose numbers have a bit of their own, and i386's `socketcall()`,
/// whose arguments lie in memory, which a filter does not see.
#[cfg(target_arch = "x86_64")]
const SOCKET_CALLS: [(u32, u32); 2] = [(0xc000_003e, 41), (0x4000_0003, 359)];
#[cfg(target_arch = "aarch64")]
const SOCKET_CALLS: [(u32, u32); 2] = [(0xc000_00b7, 198), (0x4000_0028, 281)];

/// The protocols of TCP sockets: the default, TCP, and MPTCP, which is what Go's listeners ask for.
const PROTOCOLS: [u32; 3] = [0, libc::IPPROTO_TCP as u32, libc::IPPROTO_MPTCP as u32];

/// Offsets in the kernel's `struct seccomp_data`; of an argument, its lower half (little-endian).
mod data {
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCH: u32 = 4;
    pub(super) const DOMAIN: u32 = 16;
    pub(super) const TYPE: u32 = 24;
    pub(super) const PROTOCOL: u32 = 32;
}

/// The bits of a socket's type that are not flags.
const SOCKET_TYPE_MASK: u32 = 0xf;

/// Once the supervisor has a call, only a deadly signal ends the wait for its answer (Linux 5.19).
const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;

/// The filter: hand over `socket()` for a TCP socket, allow everything else.
///
/// Architecture and number come first and alone: so Linux finds out once, and not at each call, that it allows all
/// other numbers.
fn filter() -> Vec<libc::sock_filter> {
    let allow = || give(libc::SECCOMP_RET_ALLOW);
    let mut filter = vec![load(data::ARCH)];
    for (index, (arch, number)) in SOCKET_CALLS.into_iter().enumerate() {
        // Over this block's end, the blocks that follow, and the end of all of them.
        let to_domain = 1 + 4 * (SOCKET_CALLS.len() - 1 - index) + 1;
        filter.extend([
            equals(arch, 0, 3),
            load(data::NUMBER),
            equals(number, to_domain as u8, 0),
            allow(),
        ]);
    }
    filter.push(allow());
    // Jump distances count from the next instruction; the last but one allows, the last notifies.
    filter.extend([
        load(data::DOMAIN),
        equals(libc::AF_INET as u32, 1, 0),
        equals(libc::AF_INET6 as u32, 0, 7),
        load(data::TYPE),
        statement(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            SOCKET_TYPE_MASK,
        ),
        equals(libc::SOCK_STREAM as u32, 0, 4),
        load(data::PROTOCOL),
        equals(PROTOCOLS[0], 3, 0),
        equals(PROTOCOLS[1], 2, 0),
        equals(PROTOCOLS[2], 1, 0),
        allow(),
        give(libc::SECCOMP_RET_USER_NOTIF),
    ]);
    filter
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(action: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn equals(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no)
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Puts this process and all that it becomes or starts under the filter; gives the listener.
pub(super) fn install() -> io::Result<OwnedFd> {
    // A filter is no reason to do without speculation, as Linux before 5.16 took it for.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    match install_with(flags | WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install_with(flags),
        other => other,
    }
}

fn install_with(flags: libc::c_ulong) -> io::Result<OwnedFd> {
    match seccomp(flags) {
        // Without the privilege the kernel wants no_new_privs first. It is not set needlessly,
        // because it keeps set-user-ID programs from working.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: takes no pointers.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            seccomp(flags)
        }
        other => other,
    }
}

fn seccomp(flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let mut filter = filter();
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions are alive during the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says of a call.
    fn verdict(arch: u32, number: u32, arguments: [u64; 3]) -> u32 {
        let mut bytes = [number.to_ne_bytes(), arch.to_ne_bytes()].concat();
        bytes.extend([0; 8]);
        bytes.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (filter, mut at, mut register) = (filter(), 0, 0u32);
        loop {
            let libc::sock_filter { code, jt, jf, k } = filter[at];
            at += 1;
            match u32::from(code) & 7 {
                libc::BPF_LD => {
                    let offset = k as usize;
                    register = u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap());
                }
                libc::BPF_ALU => register &= k,
                libc::BPF_JMP => at += usize::from(if register == k { jt } else { jf }),
                _ => return k,
            }
        }
    }

    const STREAM: u64 = libc::SOCK_STREAM as u64;

    #[test]
    fn tcp_sockets_of_each_instruction_set_are_handed_over() {
        let flags = (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u64;
        for (arch, number) in SOCKET_CALLS {
            for domain in [libc::AF_INET, libc::AF_INET6] {
                for kind in [STREAM, STREAM | flags] {
                    for protocol in [0, 6, 262] {
                        let arguments = [domain as u64, kind, protocol];
                        // What is in the upper half of an int's register says nothing.
                        let dirty = arguments.map(|argument| argument | 7 << 32);
                        for arguments in [arguments, dirty] {
                            let verdict = verdict(arch, number, arguments);
                            assert_eq!(verdict, libc::SECCOMP_RET_USER_NOTIF, "{arguments:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn all_else_goes_on() {
        let (arch, number) = SOCKET_CALLS[0];
        let inet = libc::AF_INET as u64;
        let x32 = number | 0x4000_0000;
        for (arch, number, arguments) in [
            (arch, number, [inet, STREAM, 256]),
            (arch, number, [inet, STREAM, 132]),
            (arch, number, [inet, libc::SOCK_DGRAM as u64, 0]),
            (arch, number, [libc::AF_UNIX as u64, STREAM, 0]),
            (arch, number, [43, STREAM, 0]),
            (arch, number + 1, [inet, STREAM, 0]),
            (arch, x32, [inet, STREAM, 0]),
            // i386's socketcall()
            (0x4000_0003, 102, [1, 0x1000, 0]),
            (0x1234, number, [inet, STREAM, 0]),
        ] {
            let verdict = verdict(arch, number, arguments);
            assert_eq!(verdict, libc::SECCOMP_RET_ALLOW, "{number} {arguments:?}");
        }
    }
}

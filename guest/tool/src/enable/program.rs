// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel runs at each `socket()`: it makes the socket an SMC socket if that asks for TCP and the policy has a cgroup
//! around the process.

use super::assembler::{Assembler, Label, Register, Width};
use super::kernel::Offsets;
use super::policy::COMPARED;
use aya_obj::generated::{bpf_func_id, bpf_insn};
use std::os::fd::BorrowedFd;

/// Cgroups within each other that are looked at.
const DEPTH: i32 = 32;
/// Bytes before a key of the names: how many bits of it count.
const HEAD: usize = 4;
/// A key of the names.
pub const KEY: usize = HEAD + COMPARED;
/// Kinds of sockets, without their flags: `SOCK_TYPE_MASK` of the kernel.
const KIND: i32 = 0xf;

/// What is counted, as places in the map of counts.
#[derive(Debug, Clone, Copy)]
pub enum Count {
    /// Sockets that became SMC sockets.
    Made = 0,
    /// TCP sockets that the policy left alone.
    Left = 1,
}

impl Count {
    /// How many there are.
    pub const ALL: usize = 2;
}

/// A key of the names, of which the first of these bytes count.
pub fn key(bytes: &[u8]) -> [u8; KEY] {
    let mut key = [0; KEY];
    let bits = (8 * bytes.len()) as u32;
    key[..HEAD].copy_from_slice(&bits.to_ne_bytes());
    key[HEAD..HEAD + bytes.len()].copy_from_slice(bytes);
    key
}

/// The program for `update_socket_protocol(family, type, protocol)`. Its result is the protocol to take; 0 leaves it as it is.
/// `names` has what the policy says of cgroups' names, a byte; `counts` is as [`Count`].
pub fn write(
    offsets: &Offsets,
    protocol: i32,
    names: BorrowedFd<'_>,
    counts: BorrowedFd<'_>,
) -> Option<Vec<bpf_insn>> {
    use Register::{R0, R1, R2, R3, R6, R7, R8, R10};
    let on_stack = -(KEY as i16);
    let name_on_stack = on_stack + HEAD as i16;
    let mut program = Assembler::default();
    let labels: [Label; 5] = std::array::from_fn(|_| program.label());
    let [leave, inner, undecided, decided, next] = labels;

    // family: IPv4 or IPv6
    let [is_inet, is_tcp] = [program.label(), program.label()];
    program.load(R6, Width::Double, R1, 0);
    program.jump_if_equal(R6, libc::AF_INET, is_inet);
    program.jump_if_not_equal(R6, libc::AF_INET6, leave);
    program.place(is_inet);
    // type: a stream
    program.load(R6, Width::Double, R1, 8);
    program.and(R6, KIND);
    program.jump_if_not_equal(R6, libc::SOCK_STREAM, leave);
    // protocol: TCP or MPTCP
    program.load(R6, Width::Double, R1, 16);
    for tcp in [0, libc::IPPROTO_TCP] {
        program.jump_if_equal(R6, tcp, is_tcp);
    }
    program.jump_if_not_equal(R6, libc::IPPROTO_MPTCP, leave);
    program.place(is_tcp);

    // the process's cgroup
    program.call(bpf_func_id::BPF_FUNC_get_current_task_btf);
    program.load(R6, Width::Double, R0, offsets.task_cgroups);
    program.load(R6, Width::Double, R6, offsets.set_cgroup);
    program.load(R6, Width::Double, R6, offsets.cgroup_node);
    program.set(R7, DEPTH);

    // its name, else that of the one around it
    program.place(inner);
    program.jump_if_equal(R6, 0, undecided);
    program.store_value(Width::Word, R10, on_stack, (8 * COMPARED) as i32);
    for at in (0..COMPARED as i16).step_by(8) {
        // The stack is aligned to 8 bytes at its end, and so is not where the name begins.
        for half in [0, 4] {
            program.store_value(Width::Word, R10, name_on_stack + at + half, 0);
        }
    }
    program.copy(R1, R10);
    program.add(R1, name_on_stack.into());
    program.set(R2, COMPARED as i32);
    program.load(R3, Width::Double, R6, offsets.node_name);
    program.call(bpf_func_id::BPF_FUNC_probe_read_kernel_str);
    program.look_up(names, on_stack);
    program.jump_if_not_equal(R0, 0, decided);
    program.load(R6, Width::Double, R6, offsets.node_parent);
    program.add(R7, -1);
    program.jump_if_not_equal(R7, 0, inner);
    // No name is for it, or it is deeper than we look.
    program.place(undecided);
    program.set(R8, 0);
    program.jump(next);

    // R8: whether it is to be SMC's. Counts it.
    program.place(decided);
    program.load(R8, Width::Byte, R0, 0);
    program.place(next);
    let [left, count] = [program.label(), program.label()];
    program.set(R1, Count::Left as i32);
    program.jump_if_equal(R8, 0, left);
    program.set(R1, Count::Made as i32);
    program.place(left);
    program.store(Width::Word, R10, -4, R1);
    program.look_up(counts, -4);
    program.jump_if_equal(R0, 0, count);
    program.set(R1, 1);
    program.atomic_add(Width::Double, R0, 0, R1);
    program.place(count);
    program.jump_if_equal(R8, 0, leave);
    program.set(R0, protocol);
    program.exit();

    program.place(leave);
    program.set(R0, 0);
    program.exit();
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_program_can_be_written() {
        let offsets = Offsets {
            task_cgroups: 8,
            set_cgroup: 16,
            cgroup_node: 24,
            node_name: 32,
            node_parent: 40,
        };
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(write(&offsets, crate::IPPROTO_SMC, file.as_fd(), file.as_fd()).is_some());
    }
}

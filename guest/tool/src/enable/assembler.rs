// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BPF instructions, with labels to jump to. What they mean: the kernel's `Documentation/bpf/standardization/instruction-set.rst`.

use aya_obj::generated::{
    BPF_ADD, BPF_ALU, BPF_ALU64, BPF_AND, BPF_ATOMIC, BPF_B, BPF_CALL, BPF_DW, BPF_END, BPF_EXIT,
    BPF_H, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JNE, BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MOV,
    BPF_PSEUDO_MAP_FD, BPF_RSH, BPF_ST, BPF_STX, BPF_TO_BE, BPF_W, BPF_X, bpf_func_id, bpf_insn,
};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// What a function gives back.
    R0,
    /// A function's first argument; with all up to `R5` lost in a call.
    R1,
    /// The second.
    R2,
    /// The third.
    R3,
    /// Kept by calls, as those up to `R9`.
    R6,
    /// Kept by calls.
    R7,
    /// Kept by calls.
    R8,
    /// The end of the stack, which has 512 bytes.
    R10,
}

impl Register {
    fn number(self) -> u8 {
        match self {
            Register::R0 => 0,
            Register::R1 => 1,
            Register::R2 => 2,
            Register::R3 => 3,
            Register::R6 => 6,
            Register::R7 => 7,
            Register::R8 => 8,
            Register::R10 => 10,
        }
    }
}

/// How wide a word in memory is.
#[derive(Debug, Clone, Copy)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Half,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Double,
}

impl Width {
    fn code(self) -> u32 {
        match self {
            Width::Byte => BPF_B,
            Width::Half => BPF_H,
            Width::Word => BPF_W,
            Width::Double => BPF_DW,
        }
    }
}

/// A place to jump to.
#[derive(Debug, Clone, Copy)]
pub struct Label(usize);

/// A program that is being written.
#[derive(Default)]
pub struct Assembler {
    code: Vec<bpf_insn>,
    /// Where the labels are.
    labels: Vec<Option<usize>>,
    /// Jumps, and where they go.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label that is not yet anywhere.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) {
        self.push(
            BPF_ALU64 | BPF_MOV | BPF_X,
            to.number(),
            from.number(),
            0,
            0,
        );
    }

    /// `to = value`
    pub fn set(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_MOV | BPF_K, to.number(), 0, 0, value);
    }

    /// `to += value`
    pub fn add(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_ADD | BPF_K, to.number(), 0, 0, value);
    }

    /// `to &= value`
    pub fn and(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_AND | BPF_K, to.number(), 0, 0, value);
    }

    /// `to >>= count`
    pub fn shift_right(&mut self, to: Register, count: i32) {
        self.push(BPF_ALU64 | BPF_RSH | BPF_K, to.number(), 0, 0, count);
    }

    /// `to >>= count`, of which the lower 6 bits count
    pub fn shift_right_by(&mut self, to: Register, count: Register) {
        let code = BPF_ALU64 | BPF_RSH | BPF_X;
        self.push(code, to.number(), count.number(), 0, 0);
    }

    /// `to`, which has 16 bits in the network's order, in the processor's
    pub fn swap_network_16(&mut self, to: Register) {
        self.push(BPF_ALU | BPF_END | BPF_TO_BE, to.number(), 0, 0, 16);
    }

    /// `to = from[offset]`, the rest of the register 0
    pub fn load(&mut self, to: Register, width: Width, from: Register, offset: i16) {
        let code = BPF_LDX | BPF_MEM | width.code();
        self.push(code, to.number(), from.number(), offset, 0);
    }

    /// `to[offset] = from`
    pub fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        let code = BPF_STX | BPF_MEM | width.code();
        self.push(code, to.number(), from.number(), offset, 0);
    }

    /// `to[offset] += from`, as one step for all processors
    pub fn atomic_add(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        let code = BPF_STX | BPF_ATOMIC | width.code();
        self.push(code, to.number(), from.number(), offset, BPF_ADD as i32);
    }

    /// `to[offset] = value`
    pub fn store_value(&mut self, width: Width, to: Register, offset: i16, value: i32) {
        let code = BPF_ST | BPF_MEM | width.code();
        self.push(code, to.number(), 0, offset, value);
    }

    /// `to` = the map, as functions want it
    fn map(&mut self, to: Register, map: BorrowedFd<'_>) {
        let source = BPF_PSEUDO_MAP_FD as u8;
        let code = BPF_LD | BPF_IMM | BPF_DW;
        self.push(code, to.number(), source, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    /// `R0` = where the map has the entry whose key is on the stack at `key`, or 0
    pub fn look_up(&mut self, map: BorrowedFd<'_>, key: i16) {
        self.map(Register::R1, map);
        self.copy(Register::R2, Register::R10);
        self.add(Register::R2, key.into());
        self.call(bpf_func_id::BPF_FUNC_map_lookup_elem);
    }

    /// Calls a function of the kernel's.
    pub fn call(&mut self, function: bpf_func_id) {
        self.push(BPF_JMP | BPF_CALL, 0, 0, 0, function as i32);
    }

    /// Goes there.
    pub fn jump(&mut self, label: Label) {
        self.branch(BPF_JA, 0, 0, label);
    }

    /// Goes there if `register == value`.
    pub fn jump_if_equal(&mut self, register: Register, value: i32, label: Label) {
        self.branch(BPF_JEQ | BPF_K, register.number(), value, label);
    }

    /// Goes there if `register != value`.
    pub fn jump_if_not_equal(&mut self, register: Register, value: i32, label: Label) {
        self.branch(BPF_JNE | BPF_K, register.number(), value, label);
    }

    /// Ends the program, with `R0`.
    pub fn exit(&mut self) {
        self.push(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }

    /// The program; `None` if a label was not placed, or is too far away.
    pub fn finish(mut self) -> Option<Vec<bpf_insn>> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0]?;
            // From the instruction after the jump.
            let distance = i64::try_from(target).ok()? - i64::try_from(*at).ok()? - 1;
            self.code[*at].off = i16::try_from(distance).ok()?;
        }
        Some(self.code)
    }

    fn branch(&mut self, condition: u32, register: u8, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(BPF_JMP | condition, register, 0, 0, value);
    }

    fn push(&mut self, code: u32, to: u8, from: u8, offset: i16, value: i32) {
        let mut instruction = bpf_insn {
            code: code as u8,
            _bitfield_align_1: [],
            _bitfield_1: Default::default(),
            off: offset,
            imm: value,
        };
        instruction.set_dst_reg(to);
        instruction.set_src_reg(from);
        self.code.push(instruction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_to_their_labels() {
        let mut program = Assembler::default();
        let [start, end] = [program.label(), program.label()];
        program.place(start);
        program.jump_if_equal(Register::R6, 1, end);
        program.jump(start);
        program.place(end);
        program.exit();
        let code = program.finish().unwrap();
        let distances: Vec<_> = code.iter().map(|instruction| instruction.off).collect();
        assert_eq!(distances, [1, -2, 0]);
    }

    #[test]
    fn a_label_that_is_nowhere_is_found() {
        let mut program = Assembler::default();
        let nowhere = program.label();
        program.jump(nowhere);
        assert!(program.finish().is_none());
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SMC's handshake control: programs that the kernel asks before it offers SMC to a peer, and before it answers a peer's offer.
//! Where they say no, the connection is TCP's.

use super::assembler::{Assembler, Register, Width};
use super::bpf::{self, Purpose};
use super::connections::{Connections, PEERS, WORDS};
use super::kernel::{HandshakeControl, SocketOffsets};
use super::{Error, NAME, doing};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_insn, bpf_map_type};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A key of the peers' networks: how many bits of it count, then an IPv6 address.
const PEER_KEY: usize = 4 + 16;
/// The only entry of the map that is the control.
const ENTRY: [u8; 4] = 0u32.to_ne_bytes();
/// New network namespaces get the control of the initial one: `SMC_HS_CTRL_FLAG_INHERITABLE`.
const INHERITABLE: i32 = 1;

/// What the kernel is given, not yet in use.
pub struct Control {
    programs: [OwnedFd; 2],
    /// The control itself, as a map.
    pub map: OwnedFd,
    kernel: HandshakeControl,
}

/// Which side of a handshake.
#[derive(Clone, Copy)]
enum Side {
    /// The server's port is the peer's.
    Client,
    /// The server's port is the own one.
    Server,
}

impl Control {
    /// Loads what decides as the policy says.
    pub fn load(kernel: &HandshakeControl, connections: &Connections) -> Result<Self, Error> {
        let ports = bpf::create_map(
            NAME,
            bpf_map_type::BPF_MAP_TYPE_ARRAY,
            size_of::<u32>(),
            size_of::<u64>(),
            WORDS,
            0,
        )
        .map_err(doing("making a map"))?;
        for (at, word) in (0u32..).zip(connections.ports()) {
            bpf::update(ports.as_fd(), &at.to_ne_bytes(), &word.to_ne_bytes())
                .map_err(doing("filling a map"))?;
        }
        let peers = bpf::create_map(
            NAME,
            bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
            PEER_KEY,
            1,
            PEERS,
            BPF_F_NO_PREALLOC,
        )
        .map_err(doing("making a map"))?;
        for (network, allowed) in connections.peers() {
            let mut key = [0; PEER_KEY];
            key[..4].copy_from_slice(&u32::from(network.prefix_len()).to_ne_bytes());
            key[4..].copy_from_slice(&network.network().octets());
            bpf::update(peers.as_fd(), &key, &[allowed.into()]).map_err(doing("filling a map"))?;
        }
        let program = |side, argument, member| {
            let code = write(&kernel.socket, side, argument, ports.as_fd(), peers.as_fd());
            let purpose = Purpose::Member {
                structure: kernel.structure,
                member,
            };
            bpf::load(NAME, &code.ok_or(Error::Program)?, purpose).map_err(|(source, said)| {
                Error::Bpf {
                    doing: "loading the program for connections",
                    source,
                    said,
                }
            })
        };
        let programs = [
            program(Side::Client, 0, kernel.syn.1)?,
            program(Side::Server, 8, kernel.synack.1)?,
        ];
        let map = bpf::create_structure(NAME, kernel.value, kernel.size)
            .map_err(doing("making the map for connections"))?;
        Ok(Control {
            programs,
            map,
            kernel: *kernel,
        })
    }

    /// Has the kernel know it by this name.
    pub fn register(&self, name: &str) -> Result<(), Error> {
        let mut value = vec![0; self.kernel.size];
        let mut put = |at: usize, bytes: &[u8]| match value.get_mut(at..at + bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            // It is the kernel's own account of itself.
            None => debug_assert!(false),
        };
        put(self.kernel.name, name.as_bytes());
        put(self.kernel.flags, &INHERITABLE.to_ne_bytes());
        let places = [self.kernel.syn.0, self.kernel.synack.0];
        for (place, program) in places.into_iter().zip(&self.programs) {
            put(place, &(program.as_raw_fd() as u64).to_ne_bytes());
        }
        bpf::update(self.map.as_fd(), &ENTRY, &value)
            .map_err(doing("registering the program for connections"))
    }
}

/// Has the kernel forget it. Network namespaces that use it go on with it until they are given another.
pub fn unregister(map: BorrowedFd<'_>) {
    // It may not be registered.
    let _ = bpf::delete(map, &ENTRY);
}

/// The program that says 1 for a connection that may be SMC's, else 0. Its argument is at `argument` of its context.
fn write(
    offsets: &SocketOffsets,
    side: Side,
    argument: i16,
    ports: BorrowedFd<'_>,
    peers: BorrowedFd<'_>,
) -> Option<Vec<bpf_insn>> {
    use Register::{R0, R1, R6, R7, R8, R10};
    let mut program = Assembler::default();
    let [refuse, allow, is_v6, look_up] = std::array::from_fn(|_| program.label());
    program.load(R6, Width::Double, R1, argument);

    // R7: the server's port
    match side {
        Side::Client => {
            program.load(R7, Width::Half, R6, offsets.peer_port);
            program.swap_network_16(R7);
        }
        Side::Server => program.load(R7, Width::Half, R6, offsets.own_port),
    }
    program.copy(R1, R7);
    program.shift_right(R1, u64::BITS.ilog2() as i32);
    program.store(Width::Word, R10, -4, R1);
    program.look_up(ports, -4);
    program.jump_if_equal(R0, 0, refuse);
    program.load(R8, Width::Double, R0, 0);
    program.and(R7, u64::BITS as i32 - 1);
    program.shift_right_by(R8, R7);
    program.and(R8, 1);
    program.jump_if_equal(R8, 0, refuse);

    // its address
    let key = -(PEER_KEY as i16);
    program.store_value(Width::Word, R10, key, 128);
    program.load(R7, Width::Half, R6, offsets.family);
    program.jump_if_equal(R7, libc::AF_INET6, is_v6);
    for at in [4, 8] {
        program.store_value(Width::Word, R10, key + at, 0);
    }
    program.store_value(
        Width::Word,
        R10,
        key + 12,
        i32::from_ne_bytes([0, 0, 0xff, 0xff]),
    );
    program.load(R7, Width::Word, R6, offsets.peer);
    program.store(Width::Word, R10, key + 16, R7);
    program.jump(look_up);
    program.place(is_v6);
    for at in (0..16).step_by(4) {
        program.load(R7, Width::Word, R6, offsets.peer_v6 + at);
        program.store(Width::Word, R10, key + 4 + at, R7);
    }
    program.place(look_up);
    program.look_up(peers, key);
    program.jump_if_equal(R0, 0, refuse);
    program.load(R7, Width::Byte, R0, 0);
    program.jump_if_not_equal(R7, 0, allow);

    program.place(refuse);
    program.set(R0, 0);
    program.exit();
    program.place(allow);
    program.set(R0, 1);
    program.exit();
    program.finish()
}

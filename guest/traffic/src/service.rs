// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serving end, and what the two ends say to each other.
//!
//! A connection begins with an [`Order`] of the client's. Then data flows as ordered, both ends check
//! it, and the server ends with a [`Verdict`]: whether what it got was right, and what SMC's
//! diagnosis says of the connection on its side. If it was right the client may order again, on the same connection.

use crate::pattern::{Pattern, Sizes};
use ivsmc_guest::connections::Connection;
use ivsmc_guest::socket;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Whatever can go wrong, for a line in the log.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

const MAGIC: [u8; 8] = *b"ivsmctrf";
/// Largest piece that is written or read at once, in bytes.
const MAX_PIECE: usize = 128 << 10;
/// Longest verdict, in bytes.
const MAX_VERDICT: u32 = 64 << 10;
/// After so long without a byte a peer counts as gone. Longer than any client takes: some hold a connection
/// open while they work with others.
pub const SILENCE: Duration = Duration::from_secs(900);

/// What a client wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Both directions at once: so many bytes up to the server and down from it.
    Exchange {
        /// Seed of the data up; the data down has its complement.
        seed: u64,
        /// Bytes to the server.
        up: u64,
        /// Bytes from the server.
        down: u64,
    },
    /// Every message is sent back.
    Echo {
        /// Seed of the messages.
        seed: u64,
        /// Bytes in a message.
        size: u32,
        /// How many messages.
        count: u64,
    },
}

impl Order {
    const LENGTH: usize = 40;

    /// As it travels.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let words = match self {
            Order::Exchange { seed, up, down } => [1, seed, up, down],
            Order::Echo { seed, size, count } => [2, seed, u64::from(size), count],
        };
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What travelled.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Result<Self, Failure> {
        let mut words = bytes[8..].chunks_exact(8).map(|piece| {
            piece
                .iter()
                .rev()
                .fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        });
        let mut word = || words.next().unwrap_or(0);
        let (kind, seed, first, second) = (word(), word(), word(), word());
        match kind {
            _ if bytes[..8] != MAGIC => Err("not an order".into()),
            1 => Ok(Order::Exchange {
                seed,
                up: first,
                down: second,
            }),
            2 => match u32::try_from(first) {
                Ok(size) if size as usize <= MAX_PIECE => Ok(Order::Echo {
                    seed,
                    size,
                    count: second,
                }),
                _ => Err(format!("message of {first} bytes is too large").into()),
            },
            _ => Err(format!("unknown order {kind}").into()),
        }
    }
}

/// What the server has to say in the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// What was wrong with what it got; `None` if nothing.
    pub error: Option<String>,
    /// The connection as SMC's diagnosis shows it on the server's side; `None` if it is no SMC socket.
    pub connection: Option<Connection>,
}

/// Receives a verdict.
pub fn read_verdict(stream: &mut impl Read) -> Result<Verdict, Failure> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_VERDICT {
        return Err(format!("verdict of {length} bytes").into());
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write_verdict(stream: &mut impl Write, verdict: &Verdict) -> Result<(), Failure> {
    let text = serde_json::to_vec(verdict)?;
    stream.write_all(&u32::try_from(text.len())?.to_le_bytes())?;
    Ok(stream.write_all(&text)?)
}

/// Sends `length` bytes of the seed's pattern in pieces of every size.
pub fn send_pattern(mut stream: impl Write, seed: u64, length: u64) -> Result<(), Failure> {
    let (mut pattern, mut sizes) = (Pattern::new(seed), Sizes::new(seed, MAX_PIECE));
    let mut buffer = vec![0; MAX_PIECE];
    while pattern.position() < length {
        let rest = usize::try_from(length - pattern.position()).unwrap_or(usize::MAX);
        let piece = &mut buffer[..sizes.next_size().min(rest)];
        pattern.fill(piece);
        stream.write_all(piece)?;
    }
    Ok(())
}

/// Receives `length` bytes and checks that they are the seed's pattern.
pub fn check_pattern(mut stream: impl Read, seed: u64, length: u64) -> Result<(), Failure> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; MAX_PIECE];
    while pattern.position() < length {
        let rest = usize::try_from(length - pattern.position()).unwrap_or(usize::MAX);
        match stream.read(&mut buffer[..rest.min(MAX_PIECE)]) {
            Ok(0) => {
                let got = pattern.position();
                return Err(format!("stream {seed:#x} ended after {got} of {length} bytes").into());
            }
            Ok(count) => pattern.check(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let got = pattern.position();
                return Err(
                    format!("stream {seed:#x} after {got} of {length} bytes: {error}").into(),
                );
            }
        }
    }
    Ok(())
}

/// Sends one pattern and checks another at the same time.
pub fn exchange(
    stream: &TcpStream,
    (send_seed, send): (u64, u64),
    (receive_seed, receive): (u64, u64),
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .spawn_scoped(scope, || send_pattern(stream, send_seed, send))?;
        let received = check_pattern(stream, receive_seed, receive);
        let sent = sender.join().map_err(|_| "the sender panicked")?;
        match (received, sent) {
            // The connection's error is told once, and either may have heard it.
            (Err(received), Err(sent)) => Err(format!("{received}; sending: {sent}").into()),
            (received, sent) => received.and(sent),
        }
    })
}

/// Serves connections for ever, each in its own thread.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // That of an SMC connection that has broken while it waited to be accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
                ) =>
            {
                eprintln!("ivsmc-traffic: accept: {error}");
                continue;
            }
            Err(error) => return Err(error),
        };
        std::thread::Builder::new().spawn(move || {
            if let Err(error) = serve_one(&stream) {
                eprintln!("ivsmc-traffic: connection from {peer}: {error}");
            }
        })?;
    }
}

fn serve_one(mut stream: &TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut order = [0; Order::LENGTH];
    while read_order(stream, &mut order)? {
        let result = match Order::from_bytes(&order)? {
            Order::Exchange { seed, up, down } => exchange(stream, (!seed, down), (seed, up)),
            Order::Echo { seed, size, count } => echo(stream, seed, size as usize, count),
        };
        let error = result.as_ref().err().map(ToString::to_string);
        let connection = socket::diagnosis(stream)?;
        write_verdict(&mut stream, &Verdict { error, connection })?;
        if result.is_err() {
            // The client looks at its own side of the connection before it closes.
            while stream.read(&mut order)? != 0 {}
            return result;
        }
    }
    Ok(())
}

/// Whether there is an order; the connection ends with none.
fn read_order(mut stream: &TcpStream, order: &mut [u8; Order::LENGTH]) -> io::Result<bool> {
    if stream.read(&mut order[..1])? == 0 {
        return Ok(false);
    }
    stream.read_exact(&mut order[1..])?;
    Ok(true)
}

fn echo(mut stream: &TcpStream, seed: u64, size: usize, count: u64) -> Result<(), Failure> {
    let mut pattern = Pattern::new(seed);
    let mut message = vec![0; size];
    for _ in 0..count {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
        pattern.check(&message)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_travelling() {
        for order in [
            Order::Exchange {
                seed: u64::MAX,
                up: 1 << 40,
                down: 3,
            },
            Order::Echo {
                seed: 5,
                size: 64,
                count: 1000,
            },
        ] {
            assert_eq!(Order::from_bytes(&order.to_bytes()).unwrap(), order);
        }
        let mut bytes = Order::Echo {
            seed: 5,
            size: u32::MAX,
            count: 1,
        }
        .to_bytes();
        assert!(Order::from_bytes(&bytes).is_err());
        bytes[0] = 0;
        assert!(Order::from_bytes(&bytes).is_err());
    }
}

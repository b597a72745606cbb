// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sending.

use super::Case;
use crate::end::End;
use crate::see;
use crate::short::{TOO_MUCH, class, pattern};
use crate::sys::{self, Fd};
use libc::*;
use std::time::Duration;

/// More than all buffers on the way of a connection.
const MUCH: usize = 3_000_000;

pub const CASES: &[Case] = &[
    Case("blocking send of 8,000,000 bytes", |t| {
        t.connected();
        t.both(
            |e| see!(e, send(e.fd, &pattern(0, 8_000_000), 0)).map_or((), drop),
            |e| e.receives_pattern(0, 8_000_000),
        );
    }),
    Case("blocking write of 3,000,000 bytes", |t| much(t, sys::write)),
    Case("blocking sendmsg of 3,000,000 bytes", |t| {
        much(t, |fd, bytes| sys::sendmsg(fd, &[bytes], &[], 0));
    }),
    Case("blocking writev of 3,000,000 bytes in 8 parts", |t| {
        much(t, |fd, bytes| {
            sys::writev(fd, &bytes.chunks(1_000_000).collect::<Vec<_>>())
        });
    }),
    Case("blocking send of 1,048,576 bytes", |t| {
        t.connected();
        t.both(
            |e| see!(e, send(e.fd, &pattern(0, 1 << 20), 0)).map_or((), drop),
            |e| e.receives_pattern(0, 1 << 20),
        );
    }),
    Case("non-blocking send of too much", |t| {
        t.connected();
        t.client(|e| {
            sys::nonblocking(e.fd, true).ok();
            let all = vec![0; TOO_MUCH];
            see!(e, "send" => class(sys::send(e.fd, &all, 0), all.len()));
            e.fills();
            e.polls();
            e.sends(b"hello");
        });
        t.server(|e| e.drains());
        t.client(|e| e.polls());
    }),
    Case("MSG_DONTWAIT on a full connection", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            sys::nonblocking(e.fd, false).ok();
            see!(e, send(e.fd, b"hello", MSG_DONTWAIT));
            let fd = e.fd;
            let mut send = e.start("send", move || sys::send(fd, b"hello", 0));
            e.waits(&mut send);
        });
    }),
    Case("a blocked send goes on when there is room", |t| {
        t.connected();
        let mut running = None;
        t.client(|e| {
            e.fills();
            sys::nonblocking(e.fd, false).ok();
            let fd = e.fd;
            let mut send = e.start("send", move || sys::send(fd, &[1; 100_000], 0));
            e.waits(&mut send);
            running = Some(send);
        });
        t.server(|e| e.drains());
        t.client(|e| {
            e.finish(running);
        });
    }),
    Case("send of nothing", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"");
            see!(e, write(e.fd, b""));
            see!(e, sendmsg(e.fd, &[], &[], 0));
            see!(e, sendmsg(e.fd, &[b""], &[], 0));
            see!(e, writev(e.fd, &[]));
        });
        t.server(|e| e.polls());
    }),
    Case("send from a bad pointer", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send_at(e.fd, 8, 10, 0));
            see!(e, send_at(e.fd, 8, 0, 0));
            see!(e, send_at(e.fd, usize::MAX - 5, 10, 0));
        });
        t.server(|e| e.polls());
    }),
    Case("send from memory that ends", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send_at_edge(e.fd, 500, 1000, 0));
        });
        t.server(|e| e.polls());
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("writev of 1,024 parts", |t| {
        t.connected();
        t.client(|e| {
            see!(e, writev(e.fd, &[b"ab".as_slice(); 1024]));
        });
        t.server(|e| {
            see!(e, "recv" => class(sys::recv(e.fd, 2048, MSG_WAITALL).map(|got| got.0.len() as i64), 2048));
        });
    }),
    Case("writev and sendmsg of 1,025 parts", |t| {
        t.connected();
        t.client(|e| {
            see!(e, writev(e.fd, &[b"ab".as_slice(); 1025]));
            see!(e, sendmsg(e.fd, &[b"ab".as_slice(); 1025], &[], 0));
        });
        t.server(|e| e.polls());
    }),
    Case("writev with empty parts", |t| {
        t.connected();
        t.client(|e| {
            see!(e, writev(e.fd, &[b"", b"hel", b"", b"lo", b""]));
        });
        t.server(|e| e.receives(10));
    }),
    Case("MSG_MORE, then waiting", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"hello", MSG_MORE));
        });
        t.server(|e| {
            see!(e, poll(e.fd, POLLIN, 2000));
            e.receives(10);
        });
    }),
    Case("MSG_MORE, then a send without", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"hel", MSG_MORE));
            see!(e, send(e.fd, b"lo", 0));
        });
        t.server(|e| e.receives(10));
    }),
    Case("MSG_MORE, then close", |t| more_then(t, End::close)),
    Case("MSG_MORE, then shutdown", |t| {
        more_then(t, |e| see!(e, shutdown(e.fd, SHUT_WR)).map_or((), drop));
    }),
    Case("MSG_MORE, then exit", |t| more_then(t, |_| sys::exit(0))),
    Case("MSG_MORE, then receive", |t| {
        t.connected();
        t.both(
            |e| {
                see!(e, send(e.fd, b"question", MSG_MORE));
                e.receives(10);
            },
            |e| {
                e.receives(10);
                e.sends(b"answer");
            },
        );
    }),
    Case("MSG_MORE of 100,000 bytes", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, &pattern(0, 100_000), MSG_MORE));
        });
        t.server(|e| e.receives_pattern(0, 100_000));
    }),
    Case("TCP_CORK, then waiting", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set(e.fd, IPPROTO_TCP, TCP_CORK, 1));
            e.sends(b"hello");
        });
        t.server(|e| {
            see!(e, poll(e.fd, POLLIN, 2000));
            e.receives(10);
        });
    }),
    Case("TCP_CORK, then off", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set(e.fd, IPPROTO_TCP, TCP_CORK, 1));
            e.sends(b"hello");
            see!(e, set(e.fd, IPPROTO_TCP, TCP_CORK, 0));
        });
        t.server(|e| e.receives(10));
    }),
    Case("TCP_CORK, then TCP_NODELAY", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set(e.fd, IPPROTO_TCP, TCP_CORK, 1));
            e.sends(b"hello");
            see!(e, set(e.fd, IPPROTO_TCP, TCP_NODELAY, 1));
        });
        t.server(|e| {
            see!(e, poll(e.fd, POLLIN, 2000));
        });
    }),
    Case("TCP_CORK, then close", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set(e.fd, IPPROTO_TCP, TCP_CORK, 1));
            e.sends(b"hello");
            e.close();
        });
        t.server(|e| {
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("TCP_CORK, then killed", |t| {
        t.connected();
        t.client(|e| {
            sys::set(e.fd, IPPROTO_TCP, TCP_CORK, 1).ok();
            e.sends(b"hello");
            sys::kill(std::process::id() as i32, SIGKILL).ok();
        });
        t.server(|e| {
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("MSG_NOSIGNAL after shutdown", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            see!(e, send(e.fd, b"hello", MSG_NOSIGNAL));
            see!(e, send(e.fd, b"hello", 0));
            see!(e, write(e.fd, b"hello"));
            see!(e, sendmsg(e.fd, &[b"hello"], &[], 0));
            e.sends(b"");
        });
    }),
    Case("SIGPIPE ends a process", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            let child = e.fork(|e| {
                sys::default_action(SIGPIPE);
                e.sends(b"hello");
            });
            e.wait(child);
        });
    }),
    Case("flags that TCP does not look at", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"1", MSG_EOR));
            see!(e, send(e.fd, b"2", MSG_CONFIRM));
            see!(e, send(e.fd, b"3", MSG_DONTROUTE));
            see!(e, send(e.fd, b"4", MSG_WAITALL));
            see!(e, send(e.fd, b"5", MSG_TRUNC));
        });
        t.server(|e| e.receives(10));
    }),
    Case("send to an address", |t| {
        t.connected();
        t.client(|e| {
            see!(e, sendto(e.fd, b"hello", 0, &e.to()));
        });
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
    }),
    Case("sendmsg with descriptors", |t| {
        t.connected();
        t.client(|e| {
            see!(e, sendmsg(e.fd, &[b"hello"], &[0], 0));
        });
        t.server(|e| {
            see!(e, recvmsg(e.fd, 10, MSG_DONTWAIT));
        });
    }),
    Case("sendmmsg", |t| {
        t.connected();
        t.client(|e| {
            see!(e, sendmmsg(e.fd, b"ab", 4, 0));
            see!(e, shutdown(e.fd, SHUT_WR));
            see!(e, sendmmsg(e.fd, b"ab", 4, 0));
        });
        t.server(|e| e.receives(10));
    }),
    Case("MSG_ZEROCOPY without SO_ZEROCOPY", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, &pattern(0, 20_000), MSG_ZEROCOPY));
            see!(e, poll(e.fd, 0, 0));
        });
        t.server(|e| e.receives_pattern(0, 20_000));
    }),
    Case("MSG_ZEROCOPY with SO_ZEROCOPY", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_ZEROCOPY, 1));
            see!(e, get(e.fd, SOL_SOCKET, SO_ZEROCOPY));
            see!(e, send(e.fd, &pattern(0, 20_000), MSG_ZEROCOPY));
        });
        t.server(|e| e.receives_pattern(0, 20_000));
        t.client(|e| {
            see!(e, poll(e.fd, 0, 1000));
            see!(e, recvmsg(e.fd, 10, MSG_ERRQUEUE));
        });
    }),
    Case("MSG_ERRQUEUE with nothing in it", |t| {
        t.connected();
        t.client(|e| {
            see!(e, recv(e.fd, 10, MSG_ERRQUEUE));
            see!(e, recvmsg(e.fd, 10, MSG_ERRQUEUE));
        });
    }),
    Case("send with SO_SNDTIMEO to a peer that does not read", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            sys::nonblocking(e.fd, false).ok();
            let time = Duration::from_millis(500);
            sys::timeout(e.fd, SO_SNDTIMEO, time).ok();
            e.timed("send", time, || sys::send(e.fd, b"hello", 0));
            e.timed("send", time, || {
                class(sys::send(e.fd, &vec![0; TOO_MUCH], 0), TOO_MUCH)
            });
        });
    }),
    Case(
        "large send with SO_SNDTIMEO to a peer that does not read",
        |t| {
            t.connected();
            t.client(|e| {
                let time = Duration::from_millis(800);
                sys::timeout(e.fd, SO_SNDTIMEO, time).ok();
                e.timed("send", time, || {
                    class(sys::send(e.fd, &vec![0; TOO_MUCH], 0), TOO_MUCH)
                });
            });
        },
    ),
    Case("blocked send and a signal", |t| signal(t, false, false)),
    Case("blocked send and a signal with SA_RESTART", |t| {
        signal(t, true, false)
    }),
    Case("send blocked half way and a signal", |t| {
        signal(t, false, true)
    }),
    Case("send blocked half way and a signal with SA_RESTART", |t| {
        signal(t, true, true)
    }),
    Case("messages that end at every offset of a ring", |t| {
        t.connected();
        t.both(
            |e| offsets(e),
            |e| {
                e.receives_pattern_by(0, STEP * STEPS, |fd, left| {
                    sys::recv(fd, left.min(997), 0).map(|got| got.0)
                })
            },
        );
    }),
    Case(
        "messages and answers at every offset of a small ring",
        |t| {
            t.server(|e| {
                let fd = e.stream();
                small_buffers(e, fd);
                e.listen_on(fd, AF_INET, 5);
            });
            t.connecting(|e| small_buffers(e, e.fd), |_| {});
            t.both(|e| turns(e, true), |e| turns(e, false));
        },
    ),
    Case("sizes around powers of two", |t| {
        t.connected();
        let sizes = || (4..21).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]);
        t.both(
            |e| {
                let (mut at, mut short) = (0, 0);
                for size in sizes() {
                    e.begin("send");
                    let (bytes, mut sent) = (pattern(at, size), 0);
                    while sent < size {
                        sent += e.must("send", sys::send(e.fd, &bytes[sent..], 0)) as usize;
                        short += usize::from(sent < size);
                    }
                    at += size;
                }
                e.note(cut_short(short));
                e.close();
            },
            |e| e.receives_pattern(0, sizes().sum::<usize>() + 1),
        );
    }),
    Case("3,000,000 bytes under a timer with SA_RESTART", |t| {
        t.connected();
        t.each(|_| {
            sys::handle(SIGALRM, true).ok();
            sys::alarm_every(10_000).ok();
        });
        t.both(
            |e| e.sends_pattern(0, MUCH),
            |e| e.receives_pattern(0, MUCH),
        );
        t.each(|_| sys::alarm_every(0).map_or((), drop));
    }),
    Case("3,000,000 bytes both ways at once", |t| {
        t.connected();
        t.each(|e| {
            let fd = e.fd;
            let bytes = pattern(0, MUCH);
            let sending = e.start("send", move || {
                let mut sent = 0;
                while sent < MUCH {
                    sent += sys::send(fd, &bytes[sent..], 0)? as usize;
                }
                Ok::<_, sys::Errno>(sent)
            });
            e.receives_pattern(0, MUCH);
            e.finish(sending);
        });
    }),
];

/// Length of a message; it has no divisor in common with the sizes of rings.
const STEP: usize = 1021;
const STEPS: usize = 4000;

fn offsets(e: &End) {
    let mut short = 0;
    for step in 0..STEPS {
        if step % 200 == 0 {
            e.begin("send");
        }
        let (bytes, mut sent) = (pattern(step * STEP, STEP), 0);
        while sent < STEP {
            sent += e.must("send", sys::send(e.fd, &bytes[sent..], 0)) as usize;
            short += usize::from(sent < STEP);
        }
    }
    e.note(cut_short(short));
}

/// Whether calls did less than they should, in words.
fn cut_short(count: usize) -> &'static str {
    match count {
        0 => "no send was cut short",
        _ => "sends were cut short",
    }
}

fn small_buffers(e: &End, fd: Fd) {
    for option in [SO_SNDBUF, SO_RCVBUF] {
        e.must("buffer", sys::set(fd, SOL_SOCKET, option, 16_000));
    }
}

/// Messages in turn: each is the answer to the one before, and one byte longer.
fn turns(e: &End, mut is_mine: bool) {
    let mut at = 0;
    for size in (1..6000usize).step_by(29) {
        e.begin(if is_mine {
            "a turn's send"
        } else {
            "a turn's recv"
        });
        if is_mine {
            let bytes = pattern(at, size);
            let mut sent = 0;
            while sent < size {
                sent += e.must("send", sys::send(e.fd, &bytes[sent..], 0)) as usize;
            }
        } else {
            let got = e.must("recv", sys::recv(e.fd, size, MSG_WAITALL));
            if got.0 != pattern(at, size) {
                return e.note(&format!("turn {size}: WRONG"));
            }
        }
        at += size;
        is_mine = !is_mine;
    }
    e.note("all right");
}

fn much(t: &mut End, call: impl Fn(Fd, &[u8]) -> sys::Out) {
    t.connected();
    t.both(
        |e| {
            see!(e, "sent" => call(e.fd, &pattern(0, MUCH)));
            e.close();
        },
        |e| e.receives_pattern(0, MUCH + 1),
    );
}

fn more_then(t: &mut End, then: impl FnOnce(&mut End)) {
    t.connected();
    t.client(|e| {
        see!(e, send(e.fd, b"hello", MSG_MORE));
        then(e);
    });
    t.server(|e| {
        e.receives(10);
        e.receives(10);
    });
}

fn signal(t: &mut End, restart: bool, is_half_way: bool) {
    t.connected();
    t.client(|e| {
        sys::handle(SIGUSR1, restart).ok();
        if !is_half_way {
            e.fills();
            sys::nonblocking(e.fd, false).ok();
        }
        let fd = e.fd;
        let size = if is_half_way { TOO_MUCH } else { 5 };
        let mut send = e.start("send", move || {
            class(sys::send(fd, &vec![0; size], 0), size)
        });
        e.waits(&mut send);
        send.signal(SIGUSR1);
        if restart && !is_half_way {
            e.waits(&mut send);
        } else {
            e.finish(send);
        }
    });
}

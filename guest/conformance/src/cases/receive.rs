// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Receiving.

use super::Case;
use crate::end::End;
use crate::see;
use crate::short::class;
use crate::sys;
use libc::*;
use std::time::Duration;

/// The client sends "hello" over a new connection.
fn hello(t: &mut End) {
    t.connected();
    t.client(|e| e.sends(b"hello"));
}

pub const CASES: &[Case] = &[
    Case("receive in parts", |t| {
        hello(t);
        t.server(|e| {
            e.receives(3);
            e.receives(3);
            see!(e, recv(e.fd, 3, MSG_DONTWAIT));
        });
    }),
    Case("two sends, one receive", |t| {
        hello(t);
        t.client(|e| e.sends(b"world"));
        t.server(|e| e.receives(20));
    }),
    Case("read and readv", |t| {
        hello(t);
        t.server(|e| {
            see!(e, read(e.fd, 2));
            see!(e, readv(e.fd, 2, 4));
        });
    }),
    Case("readv of 1,024 and 1,025 parts", |t| {
        t.connected();
        t.client(|e| e.sends(&[b'x'; 2048]));
        t.server(|e| {
            see!(e, readv(e.fd, 1025, 1));
            see!(e, readv(e.fd, 1024, 2));
        });
    }),
    Case("MSG_PEEK", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv(e.fd, 3, MSG_PEEK));
            see!(e, recv(e.fd, 10, MSG_PEEK));
            e.receives(2);
            see!(e, recv(e.fd, 10, MSG_PEEK));
            e.receives(10);
            see!(e, recv(e.fd, 10, MSG_PEEK | MSG_DONTWAIT));
        });
    }),
    Case("MSG_PEEK waits", |t| {
        t.connected();
        let (mut running, fd) = (None, t.fd);
        t.server(|e| running = Some(e.receive_waits(fd, 10, MSG_PEEK)));
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.finish(running);
            e.receives(10);
        });
    }),
    Case("MSG_PEEK at the end", |t| {
        hello(t);
        t.client(End::close);
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_PEEK));
            e.receives(10);
            see!(e, recv(e.fd, 10, MSG_PEEK));
        });
    }),
    Case("SO_PEEK_OFF", |t| {
        hello(t);
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_PEEK_OFF, 2));
            see!(e, recv(e.fd, 2, MSG_PEEK));
            see!(e, recv(e.fd, 2, MSG_PEEK));
            e.receives(10);
        });
    }),
    Case("MSG_WAITALL", |t| {
        hello(t);
        let (mut running, fd) = (None, t.fd);
        t.server(|e| running = Some(e.receive_waits(fd, 10, MSG_WAITALL)));
        t.client(|e| e.sends(b"world"));
        t.server(|e| e.finish(running));
    }),
    Case("MSG_WAITALL and the end", |t| {
        hello(t);
        let (mut running, fd) = (None, t.fd);
        t.server(|e| running = Some(e.receive_waits(fd, 10, MSG_WAITALL)));
        t.client(End::close);
        t.server(|e| {
            e.finish(running);
            e.receives(10);
        });
    }),
    Case("MSG_WAITALL and a reset", |t| {
        hello(t);
        let (mut running, fd) = (None, t.fd);
        t.server(|e| running = Some(e.receive_waits(fd, 10, MSG_WAITALL)));
        t.client(End::abort);
        t.server(|e| {
            e.finish(running);
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("MSG_WAITALL and MSG_DONTWAIT", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_WAITALL | MSG_DONTWAIT));
            see!(e, recv(e.fd, 10, MSG_WAITALL | MSG_DONTWAIT));
        });
    }),
    Case("MSG_WAITALL and MSG_PEEK", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv(e.fd, 5, MSG_WAITALL | MSG_PEEK));
            e.receives(10);
        });
    }),
    Case("MSG_WAITALL and SO_RCVTIMEO", |t| {
        hello(t);
        t.server(|e| {
            let time = Duration::from_millis(500);
            sys::timeout(e.fd, SO_RCVTIMEO, time).ok();
            e.timed("recv", time, || sys::recv(e.fd, 10, MSG_WAITALL));
            e.timed("recv", time, || sys::recv(e.fd, 10, MSG_WAITALL));
        });
    }),
    Case("MSG_WAITALL and a signal", |t| {
        hello(t);
        t.server(|e| interrupted(e, false, 10, MSG_WAITALL));
    }),
    Case("MSG_WAITALL of 3,000,000 bytes", |t| {
        t.connected();
        t.both(
            |e| e.sends_pattern(0, 3_000_000),
            |e| {
                e.receives_pattern_by(0, 3_000_000, |fd, left| {
                    sys::recv(fd, left, MSG_WAITALL).map(|got| got.0)
                });
            },
        );
    }),
    Case("MSG_TRUNC drops", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv_nowhere(e.fd, 3, MSG_TRUNC));
            e.receives(10);
        });
    }),
    Case("MSG_TRUNC and MSG_PEEK", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv_nowhere(e.fd, 3, MSG_TRUNC | MSG_PEEK));
            see!(e, recv_nowhere(e.fd, 30, MSG_TRUNC | MSG_PEEK));
            e.receives(10);
        });
    }),
    Case("MSG_DONTWAIT with nothing there", |t| {
        t.connected();
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
            see!(e, recvmsg(e.fd, 10, MSG_DONTWAIT));
            sys::nonblocking(e.fd, true).ok();
            e.receives(10);
            see!(e, read(e.fd, 10));
        });
    }),
    Case("receive of nothing", |t| {
        hello(t);
        t.server(|e| {
            e.receives(0);
            see!(e, read(e.fd, 0));
            e.receives(10);
        });
    }),
    Case("receive of nothing when there is nothing", |t| {
        t.connected();
        t.server(|e| {
            see!(e, recv(e.fd, 0, MSG_DONTWAIT));
            see!(e, read(e.fd, 0));
        });
    }),
    Case("receive to a bad pointer", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recv_nowhere(e.fd, 10, 0));
            see!(e, recv_nowhere(e.fd, 0, MSG_DONTWAIT));
            e.receives(10);
        });
    }),
    Case("receive to memory that ends", |t| {
        t.connected();
        t.client(|e| e.sends(&[b'x'; 1000]));
        t.server(|e| {
            see!(e, recv_at_edge(e.fd, 500, 1000, 0));
            see!(e, "left" => sys::recv(e.fd, 2000, 0));
        });
    }),
    Case("recvmsg has flags, address, control messages", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recvmsg(e.fd, 10, 0));
        });
    }),
    Case("SO_TIMESTAMP", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_TIMESTAMP, 1));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, recvmsg(e.fd, 10, 0));
        });
    }),
    Case("TCP_INQ", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, IPPROTO_TCP, TCP_INQ, 1));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, recvmsg(e.fd, 3, 0));
        });
    }),
    Case("recvmmsg", |t| {
        hello(t);
        t.server(|e| {
            see!(e, recvmmsg(e.fd, 3, 4, MSG_DONTWAIT));
            see!(e, recvmmsg(e.fd, 3, 4, MSG_DONTWAIT));
        });
    }),
    Case("receive with SO_RCVTIMEO", |t| {
        t.connected();
        t.server(|e| {
            let time = Duration::from_millis(500);
            see!(e, timeout(e.fd, SO_RCVTIMEO, time));
            e.timed("recv", time, || sys::recv(e.fd, 10, 0));
            e.timed("read", time, || sys::read(e.fd, 10));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("receive and a signal", |t| {
        t.connected();
        t.server(|e| interrupted(e, false, 10, 0));
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("receive and a signal with SA_RESTART", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            sys::handle(SIGUSR1, true).ok();
            let mut recv = e.receive_waits(e.fd, 10, 0);
            recv.signal(SIGUSR1);
            e.waits(&mut recv);
            running = Some(recv);
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.finish(running));
    }),
    Case(
        "receive with SO_RCVTIMEO and a signal with SA_RESTART",
        |t| {
            t.connected();
            t.server(|e| {
                sys::timeout(e.fd, SO_RCVTIMEO, Duration::from_secs(60)).ok();
                interrupted(e, true, 10, 0);
            });
        },
    ),
    Case("SO_RCVLOWAT: receive waits", |t| {
        t.connected();
        let (mut running, fd) = (None, t.fd);
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_RCVLOWAT, 10));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.polls();
            running = Some(e.receive_waits(fd, 20, 0));
        });
        t.client(|e| e.sends(b"worldworld"));
        t.server(|e| e.finish(running));
    }),
    Case("SO_RCVLOWAT: poll waits", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_RCVLOWAT, 10));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.polls();
            see!(e, select(e.fd, 0));
        });
        t.client(|e| e.sends(b"world"));
        t.server(|e| {
            e.polls();
            e.receives(20);
        });
    }),
    Case("SO_RCVLOWAT: epoll wakes once for a trickle", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_RCVLOWAT, 16 * 1024));
            e.listener = sys::epoll();
            see!(e, epoll_add(e.listener, e.fd, EPOLLIN | EPOLLET));
        });
        t.both(
            |e| {
                for _ in 0..16 {
                    e.must("send", sys::send(e.fd, &[7; 1024], 0));
                    std::thread::sleep(Duration::from_millis(10));
                }
            },
            |e| {
                e.begin("epoll");
                let mut wakes = 0;
                while sys::ioctl(e.fd, FIONREAD).is_ok_and(|count| count < 16 << 10)
                    && sys::epoll_wait(e.listener, 5000).is_ok_and(|events| events.0 != 0)
                {
                    wakes += 1;
                }
                e.note(if wakes == 1 { "wakes once" } else { "wakes often" });
                see!(e, "recv" => class(sys::recv(e.fd, 1 << 16, 0).map(|got| got.0.len() as i64), 16 << 10));
            },
        );
    }),
    Case("SO_RCVLOWAT and the end", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_RCVLOWAT, 10));
        });
        t.client(|e| {
            e.sends(b"hello");
            e.close();
        });
        t.server(|e| {
            e.polls();
            e.receives(20);
            e.receives(20);
        });
    }),
    Case("SO_RCVLOWAT and MSG_DONTWAIT", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_RCVLOWAT, 10));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, recv(e.fd, 20, MSG_DONTWAIT));
        });
    }),
    Case("the end, again and again", |t| {
        t.connected();
        t.client(End::close);
        t.server(|e| {
            e.receives(10);
            e.receives(10);
            see!(e, read(e.fd, 10));
            see!(e, recvmsg(e.fd, 10, 0));
            e.keeps();
        });
    }),
    Case("data, then the end", |t| {
        hello(t);
        t.client(End::close);
        t.server(|e| {
            e.polls();
            e.receives(3);
            e.polls();
            e.receives(10);
            e.polls();
            e.receives(10);
        });
    }),
    Case("data and the end at once, 100 times", |t| {
        t.listening();
        t.both(
            |e| {
                for round in 0..100 {
                    e.begin("send");
                    let fd = e.stream();
                    e.must("connect", sys::connect(fd, &e.to()));
                    e.prove_first(fd, round);
                    // It begins with its length: who is accepted first is chance.
                    let mut bytes = vec![b'x'; 4 + round * 97];
                    let length = bytes.len() as u32;
                    bytes[..4].copy_from_slice(&length.to_le_bytes());
                    e.must("send", sys::send(fd, &bytes, 0));
                    e.must("close", sys::close(fd));
                }
                e.note("sent all");
            },
            |e| {
                let mut short = 0;
                for _ in 0..100 {
                    e.begin("recv");
                    let fd = e.must("accept", sys::accept(e.listener)) as sys::Fd;
                    let mut got = Vec::new();
                    loop {
                        match sys::recv(fd, 1 << 16, 0) {
                            Ok(more) if more.0.is_empty() => break,
                            Ok(more) => got.extend(more.0),
                            Err(error) => {
                                e.note(&format!("recv={error}"));
                                break;
                            }
                        }
                    }
                    let length = got.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
                    short += usize::from(length != Some(got.len() as u32));
                    e.must("close", sys::close(fd));
                }
                let short = if short == 0 { "none" } else { "some" };
                e.note(&format!("streams that were cut short={short}"));
            },
        );
    }),
    Case("receive wakes at the end", |t| {
        t.connected();
        let (mut running, fd) = (None, t.fd);
        t.server(|e| running = Some(e.receive_waits(fd, 10, 0)));
        t.client(End::close);
        t.server(|e| e.finish(running));
    }),
];

/// A recv() that is interrupted.
fn interrupted(e: &End, restart: bool, size: usize, flags: i32) {
    sys::handle(SIGUSR1, restart).ok();
    let recv = e.receive_waits(e.fd, size, flags);
    recv.signal(SIGUSR1);
    e.finish(recv);
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Closing, and what the peer sees of it.

use super::Case;
use crate::end::End;
use crate::see;
use crate::short::{TOO_MUCH, class};
use crate::sys;
use libc::*;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case("send after the peer has closed", |t| {
        t.connected();
        t.client(End::close);
        t.server(|e| {
            e.polls();
            e.sends(b"1");
        });
        t.server(|e| {
            e.polls();
            e.sends(b"2");
            e.sends(b"3");
            e.keeps();
        });
    }),
    Case("send and receive after the peer has closed", |t| {
        t.connected();
        t.client(End::close);
        t.server(|e| {
            e.receives(10);
            e.sends(b"1");
        });
        t.server(|e| {
            e.receives(10);
            e.receives(10);
            e.sends(b"2");
        });
    }),
    Case("close with unread data", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(End::close);
        t.client(|e| {
            e.polls();
            e.receives(10);
            e.receives(10);
            e.sends(b"more");
        });
    }),
    Case("close with unread data, a reader waits", |t| {
        t.connected();
        let mut running = None;
        t.client(|e| {
            e.sends(b"hello");
            running = Some(e.receive_waits(e.fd, 10, 0));
        });
        t.server(End::close);
        t.client(|e| {
            e.finish(running);
        });
    }),
    Case("close with part of an answer sent and unread data", |t| {
        t.connected();
        t.client(|e| e.sends(b"question"));
        t.server(|e| {
            e.sends(b"answer");
            e.receives(3);
            e.close();
        });
        t.client(|e| {
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("data comes after close", |t| {
        t.connected();
        t.server(End::close);
        t.client(|e| e.sends(b"hello"));
        t.client(|e| {
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("abort (SO_LINGER of 0)", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| {
            e.polls();
            e.receives(10);
            e.receives(10);
            e.sends(b"hello");
            e.polls();
        });
    }),
    Case("abort, SO_ERROR", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| {
            e.keeps();
            e.keeps();
            e.receives(10);
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("abort, send first", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| {
            e.sends(b"hello");
            e.sends(b"hello");
            e.receives(10);
        });
    }),
    Case("abort with data on the way", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"hello");
        });
        t.client(End::abort);
        t.server(|e| {
            e.polls();
            e.receives(10);
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("abort, a reader waits", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            running = Some(e.receive_waits(e.fd, 10, 0));
        });
        t.client(End::abort);
        t.server(|e| {
            e.finish(running);
            e.receives(10);
        });
    }),
    Case("abort, a writer waits", |t| writer_waits(t, End::abort)),
    Case("close, a writer waits", |t| writer_waits(t, End::close)),
    Case("abort, poll waits", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            running = Some(e.poll_waits(e.fd, POLLIN));
        });
        t.client(End::abort);
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("abort after SHUT_WR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.client(End::abort);
        t.server(|e| {
            e.receives(10);
            e.receives(10);
            e.polls();
        });
    }),
    Case("abort of both", |t| {
        t.connected();
        t.each(|e| e.sends(b"hello"));
        t.each(End::abort);
        t.each(|e| e.note("gone"));
    }),
    Case("SO_LINGER of 2 s, the peer reads", |t| {
        t.connected();
        t.both(
            |e| {
                see!(e, linger(e.fd, Some(2)));
                e.sends_pattern(0, 2_000_000);
                see!(e, close(e.fd));
            },
            |e| e.receives_pattern(0, 2_000_001),
        );
    }),
    Case("SO_LINGER of 1 s, the peer does not read", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            sys::nonblocking(e.fd, false).ok();
            see!(e, linger(e.fd, Some(1)));
            e.timed("close", Duration::from_secs(1), || sys::close(e.fd));
        });
    }),
    Case(
        "SO_LINGER of 1 s, non-blocking, the peer does not read",
        |t| {
            t.connected();
            t.client(|e| {
                e.fills();
                see!(e, linger(e.fd, Some(1)));
                e.timed("close", Duration::from_secs(1), || sys::close(e.fd));
            });
        },
    ),
    Case("SO_LINGER off, the peer reads later", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            see!(e, close(e.fd));
        });
        t.server(|e| e.drains());
    }),
    Case("close with 100,000 bytes on the way", |t| {
        t.connected();
        t.client(|e| {
            e.sends_pattern(0, 100_000);
            e.close();
        });
        t.server(|e| e.receives_pattern(0, 100_001));
    }),
    Case("exit with 100,000 bytes on the way", |t| {
        t.connected();
        t.client(|e| {
            e.sends_pattern(0, 100_000);
            sys::exit(0);
        });
        t.server(|e| e.receives_pattern(0, 100_001));
    }),
    Case("kill with 100,000 bytes on the way", |t| {
        t.connected();
        t.client(|e| {
            e.sends_pattern(0, 100_000);
            sys::kill(std::process::id() as i32, SIGKILL).ok();
        });
        t.server(|e| e.receives_pattern(0, 100_001));
    }),
    Case("kill while a send waits", |t| {
        t.connected();
        t.client(|e| {
            let child = e.fork(|e| {
                sys::send(e.fd, &vec![7; TOO_MUCH], 0).ok();
            });
            e.close();
            e.pause();
            sys::kill(child, SIGKILL).ok();
            e.wait(child);
        });
        t.server(|e| e.drains());
    }),
    Case("exit with unread data", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|_| sys::exit(0));
        t.client(|e| {
            e.receives(10);
            e.sends(b"hello");
        });
    }),
    Case("kill with unread data", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|_| sys::kill(std::process::id() as i32, SIGKILL).map_or((), drop));
        t.client(|e| {
            e.receives(10);
            e.sends(b"hello");
        });
    }),
    Case("kill while receive waits", |t| {
        t.connected();
        t.server(|e| {
            let child = e.fork(|e| e.receives(10));
            e.close();
            e.pause();
            sys::kill(child, SIGKILL).ok();
            e.wait(child);
        });
        t.client(|e| {
            e.polls();
            e.receives(10);
        });
    }),
    Case("kill while connect waits", |t| {
        t.black_hole();
        t.client(|e| {
            let child = e.fork(|e| {
                sys::connect(e.stream(), &e.to()).ok();
            });
            e.pause();
            sys::kill(child, SIGKILL).ok();
            e.wait(child);
        });
    }),
    Case("kill while accept waits", |t| {
        t.server(|e| {
            let child = e.fork(|e| {
                let fd = e.stream();
                e.listen_on(fd, AF_INET, 5);
                sys::accept(fd).ok();
            });
            e.pause();
            sys::kill(child, SIGKILL).ok();
            e.wait(child);
            let fd = e.stream();
            e.bind_to_own_port(fd, AF_INET);
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("kill while close lingers", |t| {
        t.connected();
        t.client(|e| {
            let child = e.fork(|e| {
                e.fills();
                sys::nonblocking(e.fd, false).ok();
                sys::linger(e.fd, Some(60)).ok();
                sys::close(e.fd).ok();
            });
            sys::close(e.fd).ok();
            for _ in 0..5 {
                e.pause();
            }
            sys::kill(child, SIGKILL).ok();
            e.wait(child);
        });
    }),
    Case("close twice", |t| {
        t.connected();
        t.client(|e| {
            see!(e, close(e.fd));
            see!(e, close(e.fd));
            e.sends(b"hello");
            e.receives(10);
            e.polls();
        });
    }),
    Case("close while a thread receives", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            let mut recv = e.receive_waits(e.fd, 10, 0);
            see!(e, close(e.fd));
            e.waits(&mut recv);
            running = Some(recv);
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.finish(running);
        });
        t.client(|e| e.receives(10));
    }),
    Case("close of what was never connected", |t| {
        t.client(|e| {
            let fd = e.stream();
            see!(e, linger(fd, Some(1)));
            see!(e, close(fd));
        });
    }),
    Case("both close at once, 100 times", |t| {
        t.listening();
        t.both(
            |e| {
                for round in 0..100 {
                    e.begin("connect");
                    let fd = e.stream();
                    e.must("connect", sys::connect(fd, &e.to()));
                    e.prove_first(fd, round);
                    e.must("close", sys::close(fd));
                }
                e.note("done");
            },
            |e| {
                for _ in 0..100 {
                    e.begin("accept");
                    let fd = e.must("accept", sys::accept(e.listener)) as sys::Fd;
                    e.must("close", sys::close(fd));
                }
                e.note("done");
            },
        );
    }),
];

/// A writer that waits while its peer does something.
fn writer_waits(t: &mut End, then: impl FnOnce(&mut End)) {
    t.connected();
    let mut running = None;
    t.server(|e| {
        e.fills();
        sys::nonblocking(e.fd, false).ok();
        let fd = e.fd;
        let mut send = e.start("send", move || class(sys::send(fd, &[7; 5], 0), 5));
        e.waits(&mut send);
        running = Some(send);
    });
    t.client(then);
    t.server(|e| {
        e.finish(running);
        e.sends(b"hello");
        e.receives(10);
    });
}

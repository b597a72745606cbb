// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One direction's end, and both's.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys;
use libc::*;

pub const CASES: &[Case] = &[
    Case("SHUT_WR, the other direction goes on", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"question");
            see!(e, shutdown(e.fd, SHUT_WR));
            e.polls();
        });
        t.server(|e| {
            e.polls();
            e.receives(20);
            e.receives(20);
            e.polls();
            e.sends(b"answer");
        });
        t.client(|e| {
            e.receives(20);
            e.polls();
            e.sends(b"more");
        });
    }),
    Case("3,000,000 bytes after the other direction's end", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.both(
            |e| e.receives_pattern(0, 3_000_001),
            |e| {
                e.receives(10);
                e.sends_pattern(0, 3_000_000);
                e.close();
            },
        );
    }),
    Case("SHUT_WR with much unsent", |t| {
        t.connected();
        t.both(
            |e| {
                e.sends_pattern(0, 3_000_000);
                see!(e, shutdown(e.fd, SHUT_WR));
            },
            |e| e.receives_pattern(0, 3_000_001),
        );
    }),
    Case("SHUT_WR both ways", |t| {
        t.connected();
        t.each(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.each(|e| {
            e.polls();
            e.receives(10);
            e.sends(b"hello");
            e.keeps();
            e.names("getpeername", sys::getpeername(e.fd));
            e.names("getsockname", sys::getsockname(e.fd));
            see!(e, shutdown(e.fd, SHUT_WR));
        });
    }),
    Case("SHUT_WR twice", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            see!(e, shutdown(e.fd, SHUT_WR));
        });
    }),
    Case("names after SHUT_WR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            e.names("getpeername", sys::getpeername(e.fd));
            e.names("getsockname", sys::getsockname(e.fd));
        });
        t.server(|e| {
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("SHUT_RD", |t| {
        t.connected();
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_RD));
            e.polls();
            e.receives(10);
            e.sends(b"hello");
        });
        t.client(|e| {
            e.receives(10);
            e.polls();
        });
    }),
    Case("SHUT_RD with data there", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_RD));
            e.polls();
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("SHUT_RD, then data comes", |t| {
        t.connected();
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_RD));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
        t.client(|e| {
            e.polls();
            e.sends(b"hello");
        });
    }),
    Case("SHUT_RD wakes a reader", |t| wakes_reader(t, SHUT_RD)),
    Case("SHUT_RDWR wakes a reader", |t| wakes_reader(t, SHUT_RDWR)),
    Case("SHUT_RD wakes poll", |t| wakes_poll(t, SHUT_RD)),
    Case("SHUT_RDWR wakes poll", |t| wakes_poll(t, SHUT_RDWR)),
    Case("SHUT_WR wakes a writer", |t| wakes_writer(t, SHUT_WR)),
    Case("SHUT_RDWR wakes a writer", |t| wakes_writer(t, SHUT_RDWR)),
    Case("SHUT_RDWR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
            e.polls();
            e.receives(10);
            e.sends(b"hello");
        });
        t.server(|e| {
            e.polls();
            e.receives(10);
            e.polls();
        });
    }),
    Case("SHUT_RDWR twice", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
    }),
    Case("SHUT_RDWR twice, the peer closes between", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
        t.server(End::close);
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
            e.names("getpeername", sys::getpeername(e.fd));
            e.polls();
        });
    }),
    Case("SHUT_RDWR, then the peer sends", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
        t.server(|e| e.sends(b"hello"));
        t.server(|e| {
            e.polls();
            e.sends(b"hello");
        });
        t.client(|e| {
            e.receives(10);
        });
    }),
    Case("SHUT_RDWR with data there", |t| {
        t.connected();
        t.server(|e| e.sends(b"hello"));
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("SHUT_RD, then SHUT_WR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RD));
            see!(e, shutdown(e.fd, SHUT_WR));
            see!(e, shutdown(e.fd, SHUT_RD));
            e.polls();
        });
        t.server(|e| e.receives(10));
    }),
    Case("shutdown of what is not known", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, 3));
            see!(e, shutdown(e.fd, -1));
            e.sends(b"hello");
        });
    }),
    Case("shutdown of what is not connected", |t| {
        t.client(|e| {
            let fd = e.stream();
            for how in [SHUT_RD, SHUT_WR, SHUT_RDWR] {
                see!(e, shutdown(fd, how));
            }
        });
    }),
    Case("shutdown after the peer has closed", |t| {
        t.connected();
        t.client(End::close);
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
            e.polls();
        });
    }),
    Case("shutdown after the peer has reset", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            e.polls();
            e.keeps();
        });
    }),
];

fn wakes_reader(t: &mut End, how: i32) {
    t.connected();
    t.server(|e| {
        let recv = e.receive_waits(e.fd, 10, 0);
        see!(e, shutdown(e.fd, how));
        e.finish(recv);
    });
}

fn wakes_poll(t: &mut End, how: i32) {
    t.connected();
    t.server(|e| {
        let poll = e.poll_waits(e.fd, POLLIN | POLLRDHUP);
        see!(e, shutdown(e.fd, how));
        e.finish(poll);
    });
}

fn wakes_writer(t: &mut End, how: i32) {
    t.connected();
    t.server(|e| {
        e.fills();
        sys::nonblocking(e.fd, false).ok();
        let fd = e.fd;
        let mut send = e.start("send", move || sys::send(fd, b"hello", 0));
        e.waits(&mut send);
        see!(e, shutdown(e.fd, how));
        e.finish(send);
    });
}

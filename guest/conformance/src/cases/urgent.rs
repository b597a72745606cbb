// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Urgent data.

use super::Case;
use crate::see;
use crate::sys::{self, SIOCATMARK};
use libc::*;

pub const CASES: &[Case] = &[
    Case("urgent byte", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| {
            e.polls();
            see!(e, select(e.fd, 0));
            see!(e, recv(e.fd, 10, MSG_OOB));
            see!(e, recv(e.fd, 10, MSG_OOB));
            e.polls();
        });
    }),
    Case("urgent byte of several", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"abcu", MSG_OOB));
        });
        t.server(|e| {
            e.polls();
            see!(e, recv(e.fd, 10, MSG_OOB));
            e.receives(10);
            e.polls();
        });
    }),
    Case("no urgent byte", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, recv(e.fd, 10, MSG_OOB));
            see!(e, ioctl(e.fd, SIOCATMARK));
        });
    }),
    Case("reading stops at the mark", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"before");
            see!(e, send(e.fd, b"u", MSG_OOB));
            e.sends(b"after");
        });
        t.server(|e| {
            see!(e, ioctl(e.fd, SIOCATMARK));
            e.receives(20);
            see!(e, ioctl(e.fd, SIOCATMARK));
            e.receives(20);
            see!(e, ioctl(e.fd, SIOCATMARK));
        });
    }),
    Case("SIOCATMARK at the mark", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| {
            see!(e, ioctl(e.fd, SIOCATMARK));
            see!(e, recv(e.fd, 1, MSG_OOB));
            see!(e, ioctl(e.fd, SIOCATMARK));
        });
    }),
    Case("urgent byte peeked", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| {
            see!(e, recv(e.fd, 1, MSG_OOB | MSG_PEEK));
            see!(e, recv(e.fd, 1, MSG_OOB));
        });
    }),
    Case("urgent byte not read", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
            e.sends(b"after");
        });
        t.server(|e| {
            e.receives(10);
            see!(e, recv(e.fd, 1, MSG_OOB));
        });
    }),
    Case("two urgent bytes", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"1", MSG_OOB));
        });
        t.client(|e| {
            see!(e, send(e.fd, b"2", MSG_OOB));
        });
        t.server(|e| {
            see!(e, recv(e.fd, 1, MSG_OOB));
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
    }),
    Case("SO_OOBINLINE", |t| {
        t.connected();
        t.server(|e| {
            see!(e, set(e.fd, SOL_SOCKET, SO_OOBINLINE, 1));
        });
        t.client(|e| {
            e.sends(b"before");
            see!(e, send(e.fd, b"u", MSG_OOB));
            e.sends(b"after");
        });
        t.server(|e| {
            e.polls();
            see!(e, recv(e.fd, 1, MSG_OOB));
            e.receives(20);
            see!(e, ioctl(e.fd, SIOCATMARK));
            e.receives(20);
        });
    }),
    Case("SIGURG", |t| {
        t.connected();
        t.server(|e| {
            see!(e, fcntl(e.fd, F_SETOWN, std::process::id() as i32));
        });
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| e.polls());
    }),
    Case("SIGURG without an owner", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| e.polls());
    }),
    Case("EPOLLPRI", |t| {
        t.connected();
        t.server(|e| {
            e.listener = sys::epoll();
            see!(e, epoll_add(e.listener, e.fd, EPOLLPRI));
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
        });
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, recv(e.fd, 1, MSG_OOB));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("urgent byte and FIONREAD", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"abc");
            see!(e, send(e.fd, b"u", MSG_OOB));
            e.sends(b"de");
        });
        t.server(|e| {
            see!(e, ioctl(e.fd, FIONREAD));
            e.receives(10);
            see!(e, ioctl(e.fd, FIONREAD));
            e.receives(10);
        });
    }),
    Case("nothing urgent", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"", MSG_OOB));
        });
        t.server(|e| {
            e.polls();
            see!(e, recv(e.fd, 1, MSG_OOB));
        });
    }),
    Case("urgent byte, then the end", |t| {
        t.connected();
        t.client(|e| {
            see!(e, send(e.fd, b"u", MSG_OOB));
            e.close();
        });
        t.server(|e| {
            e.polls();
            see!(e, recv(e.fd, 1, MSG_OOB));
            e.receives(10);
            see!(e, recv(e.fd, 1, MSG_OOB));
        });
    }),
];

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every call says of a socket in every state: names, SO_ERROR, FIONREAD, SIOCOUTQ, SIOCATMARK, TCP_INFO.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys::{self, Fd, SIOCATMARK};
use libc::*;

/// All that a socket can be asked.
fn ask(e: &End, fd: Fd) {
    e.names("getsockname", sys::getsockname(fd));
    e.names("getpeername", sys::getpeername(fd));
    see!(e, so_error(fd));
    see!(e, poll(fd, sys::ALL, 0));
    see!(e, "FIONREAD" => sys::ioctl(fd, FIONREAD));
    see!(e, "SIOCOUTQ" => sys::ioctl(fd, TIOCOUTQ));
    see!(e, "SIOCATMARK" => sys::ioctl(fd, SIOCATMARK));
    // tcpi_state is its first byte.
    see!(e, "TCP_INFO" => sys::get_bytes(fd, IPPROTO_TCP, TCP_INFO, 1).map(|info| info.first().copied().unwrap_or(0)));
}

pub const CASES: &[Case] = &[
    Case("a new socket", |t| t.client(|e| ask(e, e.stream()))),
    Case("a new socket: send, receive", |t| {
        t.client(|e| {
            e.fd = e.stream();
            e.sends(b"hello");
            e.receives(10);
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
            see!(e, recvmsg(e.fd, 10, MSG_PEEK));
            see!(e, write(e.fd, b"hello"));
            see!(e, read(e.fd, 10));
        });
    }),
    Case("a bound socket", |t| {
        t.server(|e| {
            let fd = e.stream();
            e.bind_to_own_port(fd, AF_INET);
            ask(e, fd);
        });
    }),
    Case("a listener", |t| {
        t.listening();
        t.server(|e| ask(e, e.listener));
    }),
    Case("a listener with a connection in its queue", |t| {
        t.listening();
        t.client(|e| {
            e.must("connect", sys::connect(e.stream(), &e.to()));
        });
        t.server(|e| ask(e, e.listener));
    }),
    Case("a connect without an answer", |t| {
        t.black_hole();
        t.client(|e| {
            let fd = e.stream();
            sys::nonblocking(fd, true).ok();
            sys::connect(fd, &e.to()).ok();
            ask(e, fd);
        });
    }),
    Case("a refused connect", |t| {
        t.nobody_listening();
        t.client(|e| {
            let fd = e.stream();
            sys::connect(fd, &e.to()).ok();
            ask(e, fd);
        });
    }),
    Case("a connection", |t| {
        t.connected();
        t.each(|e| ask(e, e.fd));
    }),
    Case("a connection with data there", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.each(|e| ask(e, e.fd));
        t.server(|e| {
            e.receives(2);
            see!(e, "FIONREAD" => sys::ioctl(e.fd, FIONREAD));
            e.receives(10);
            see!(e, "FIONREAD" => sys::ioctl(e.fd, FIONREAD));
        });
    }),
    Case("SIOCOUTQ of a full connection", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            let unsent =
                sys::ioctl(e.fd, TIOCOUTQ).map(|count| if count > 0 { "some" } else { "0" });
            see!(e, "SIOCOUTQ" => unsent);
        });
        t.server(|e| e.drains());
        t.client(|e| {
            see!(e, "SIOCOUTQ" => sys::ioctl(e.fd, TIOCOUTQ));
        });
    }),
    Case("after SHUT_WR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.each(|e| ask(e, e.fd));
    }),
    Case("after SHUT_RD", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RD));
        });
        t.each(|e| ask(e, e.fd));
    }),
    Case("after SHUT_RDWR", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
        t.each(|e| ask(e, e.fd));
    }),
    Case("after the peer has closed", |t| {
        t.connected();
        t.client(End::close);
        t.server(|e| ask(e, e.fd));
    }),
    Case("after the peer has closed, with data there", |t| {
        t.connected();
        t.client(|e| {
            e.sends(b"hello");
            e.close();
        });
        t.server(|e| ask(e, e.fd));
    }),
    Case("after a reset", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| ask(e, e.fd));
    }),
    Case("after the end of both directions", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.server(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.each(|e| ask(e, e.fd));
    }),
    Case("ioctl FIONBIO", |t| {
        t.connected();
        t.client(|e| {
            see!(e, ioctl_set(e.fd, FIONBIO, 1));
            e.receives(10);
            see!(e, fcntl(e.fd, F_GETFL, 0));
        });
    }),
    Case("ioctl FIOASYNC, SIOCSPGRP, SIOCGPGRP", |t| {
        t.connected();
        t.client(|e| {
            see!(e, ioctl_set(e.fd, FIOASYNC, 1));
            see!(e, fcntl(e.fd, F_GETFL, 0));
            see!(e, "SIOCSPGRP" => sys::ioctl_set(e.fd, 0x8902, std::process::id() as i32));
            let owner = sys::ioctl(e.fd, 0x8904).map(|id| id == i64::from(std::process::id()));
            see!(e, "SIOCGPGRP" => owner);
        });
    }),
    Case("ioctl SIOCOUTQNSD", |t| {
        t.connected();
        t.client(|e| {
            see!(e, "SIOCOUTQNSD" => sys::ioctl(e.fd, 0x894b));
        });
    }),
    Case("ioctl that there is not", |t| {
        t.connected();
        t.client(|e| {
            see!(e, ioctl(e.fd, 0x89ff));
            see!(e, ioctl(e.fd, 0x5401));
        });
    }),
    Case("lseek, pwrite, fsync, ftruncate of a socket", |t| {
        t.connected();
        t.client(|e| {
            see!(e, position(e.fd));
            see!(e, pwrite(e.fd, b"hello", 0));
            see!(e, fsync(e.fd));
            see!(e, ftruncate(e.fd));
        });
    }),
];

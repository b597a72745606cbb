// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listening and accepting.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys::{self, Addr, Errno, Fd};
use libc::*;
use std::net::Ipv4Addr;
use std::time::Duration;

/// accept(), whose descriptor is a number that does not matter.
fn accept(fd: Fd) -> Result<&'static str, Errno> {
    sys::accept(fd).map(|_| "a socket")
}

/// A client's connection, of which only the kernels know yet.
fn connect(e: &mut End) {
    e.fd = e.stream();
    e.begin("connect");
    e.must("connect", sys::connect(e.fd, &e.to()));
    e.prove(e.fd);
}

pub const CASES: &[Case] = &[
    Case("accept, non-blocking", |t| {
        t.listening();
        t.server(|e| {
            sys::nonblocking(e.listener, true).ok();
            see!(e, "accept" => accept(e.listener));
            see!(e, poll(e.listener, sys::ALL, 0));
        });
        t.client(connect);
        t.server(|e| {
            see!(e, poll(e.listener, sys::ALL, 0));
            e.accept();
            see!(e, fcntl(e.fd, F_GETFL, 0));
            see!(e, poll(e.listener, sys::ALL, 0));
        });
    }),
    Case("accept4 with SOCK_NONBLOCK and SOCK_CLOEXEC", |t| {
        t.listening();
        t.client(connect);
        t.server(|e| {
            see!(e, "bad flag" => sys::accept4(e.listener, 1));
            let flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
            e.fd = e.must("accept4", sys::accept4(e.listener, flags)) as Fd;
            e.prove(e.fd);
            see!(e, fcntl(e.fd, F_GETFL, 0));
            see!(e, fcntl(e.fd, F_GETFD, 0));
            e.receives(10);
        });
    }),
    Case("socket with SOCK_NONBLOCK and SOCK_CLOEXEC", |t| {
        t.client(|e| {
            let flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
            let fd = e.must("socket", e.try_socket(AF_INET, flags)) as Fd;
            see!(e, fcntl(fd, F_GETFL, 0));
            see!(e, fcntl(fd, F_GETFD, 0));
        });
    }),
    Case("accept of what does not listen", |t| {
        t.connected();
        t.client(|e| {
            see!(e, "accept" => accept(e.fd));
            see!(e, "accept" => accept(e.stream()));
        });
    }),
    Case("accept tells the address", |t| {
        t.listening();
        t.client(connect);
        t.server(|e| {
            let accepted = sys::accept_from(e.listener);
            e.names("accept", accepted.map(|(_, name)| name));
        });
    }),
    Case("options are inherited", |t| {
        t.server(|e| {
            e.listener = e.stream();
            for (level, option, value) in INHERITED {
                see!(e, set(e.listener, level, option, value));
            }
            sys::linger(e.listener, Some(7)).ok();
            sys::timeout(e.listener, SO_RCVTIMEO, Duration::from_millis(1500)).ok();
            e.listen_on(e.listener, AF_INET, 5);
        });
        t.client(connect);
        t.server(|e| {
            e.accept();
            for (level, option, _) in INHERITED {
                see!(e, get(e.fd, level, option));
            }
            for option in [SO_LINGER, SO_RCVTIMEO] {
                let value = sys::get_bytes(e.fd, SOL_SOCKET, option, 16);
                e.saw("get", &format!("{value:?}"));
            }
        });
    }),
    Case("O_NONBLOCK and FASYNC are not inherited", |t| {
        t.listening();
        t.client(connect);
        t.server(|e| {
            see!(e, fcntl(e.listener, F_SETFL, O_NONBLOCK | O_ASYNC));
            e.accept();
            see!(e, fcntl(e.fd, F_GETFL, 0));
        });
    }),
    Case("shutdown(SHUT_RD) of a listener wakes accept", |t| {
        shut_listener(t, SHUT_RD)
    }),
    Case("shutdown(SHUT_RDWR) of a listener wakes accept", |t| {
        shut_listener(t, SHUT_RDWR)
    }),
    Case("shutdown(SHUT_WR) of a listener", |t| {
        shut_listener(t, SHUT_WR)
    }),
    Case("a listener that was shut down", |t| {
        t.listening();
        t.server(|e| {
            see!(e, shutdown(e.listener, SHUT_RDWR));
            see!(e, poll(e.listener, sys::ALL, 0));
            see!(e, "accept" => accept(e.listener));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
        t.server(|e| {
            see!(e, listen(e.listener, 5));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
        t.server(|e| {
            see!(e, "accept" => accept(e.listener));
        });
    }),
    Case(
        "shutdown of a listener with a connection in its queue",
        |t| {
            t.listening();
            t.client(connect);
            t.server(|e| {
                see!(e, shutdown(e.listener, SHUT_RDWR));
                see!(e, "accept" => accept(e.listener));
            });
            t.client(|e| e.receives(10));
        },
    ),
    Case("poll of a listener wakes when it is shut down", |t| {
        t.listening();
        t.server(|e| {
            let poll = e.poll_waits(e.listener, POLLIN);
            see!(e, shutdown(e.listener, SHUT_RDWR));
            e.finish(poll);
        });
    }),
    Case("close of a listener while accept waits", |t| {
        t.listening();
        let mut running = None;
        t.server(|e| {
            let fd = e.listener;
            let mut waiting = e.start("accept", move || accept(fd));
            e.waits(&mut waiting);
            see!(e, close(e.listener));
            e.waits(&mut waiting);
            running = Some(waiting);
        });
        t.client(connect);
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("close of a listener with a connection in its queue", |t| {
        t.listening();
        t.client(connect);
        t.server(|e| {
            see!(e, close(e.listener));
        });
        t.client(|e| {
            e.polls();
            e.receives(10);
            e.receives(10);
            e.sends(b"hello");
        });
    }),
    Case("connect after the listener was closed", |t| {
        t.listening();
        t.server(|e| {
            see!(e, close(e.listener));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("data, then end, before accept", |t| {
        t.listening();
        t.client(|e| {
            connect(e);
            e.sends(b"hello");
            e.close();
        });
        t.server(|e| {
            e.accept();
            e.receives(10);
            e.receives(10);
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("reset before accept", |t| {
        t.listening();
        t.client(|e| {
            connect(e);
            e.abort();
        });
        t.server(|e| {
            see!(e, poll(e.listener, sys::ALL, 0));
            e.fd = see!(e, "accept" => accept(e.listener)).map_or(-1, |_| e.listener + 1);
            e.receives(10);
            e.keeps();
        });
    }),
    Case("accept and a signal", |t| {
        t.listening();
        t.server(|e| {
            sys::handle(SIGUSR1, false).ok();
            let fd = e.listener;
            let mut waiting = e.start("accept", move || accept(fd));
            e.waits(&mut waiting);
            waiting.signal(SIGUSR1);
            e.finish(waiting);
        });
    }),
    Case("accept and a signal with SA_RESTART", |t| {
        t.listening();
        let mut running = None;
        t.server(|e| {
            sys::handle(SIGUSR1, true).ok();
            let fd = e.listener;
            let mut waiting = e.start("accept", move || accept(fd));
            e.waits(&mut waiting);
            waiting.signal(SIGUSR1);
            e.waits(&mut waiting);
            running = Some(waiting);
        });
        t.client(connect);
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("accept with SO_RCVTIMEO", |t| {
        t.listening();
        t.server(|e| {
            let time = Duration::from_millis(500);
            sys::timeout(e.listener, SO_RCVTIMEO, time).ok();
            e.timed("accept", time, || accept(e.listener));
        });
    }),
    Case("accept by two threads", |t| {
        t.listening();
        let mut running = Vec::new();
        t.server(|e| {
            for _ in 0..2 {
                let fd = e.listener;
                running.push(e.start("accept", move || accept(fd)));
            }
            e.pause();
        });
        t.client(connect);
        t.client(connect);
        t.server(|e| {
            for waiting in running.drain(..) {
                e.finish(waiting);
            }
        });
    }),
    Case("accept by a child", |t| {
        t.listening();
        t.both(connect, |e| {
            let child = e.fork(|e| {
                e.accept();
                e.sends(b"hello");
            });
            e.wait(child);
        });
        t.client(|e| {
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("listen without bind", |t| {
        t.server(|e| {
            e.listener = e.stream();
            see!(e, listen(e.listener, 5));
            e.port = sys::getsockname(e.listener).map_or(0, |name| name.port());
            e.note(if e.port == 0 { "no port" } else { "a port" });
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("listen twice", |t| {
        t.listening();
        t.server(|e| {
            see!(e, listen(e.listener, 1));
            see!(e, listen(e.listener, -1));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("listen of a connection", |t| {
        t.connected();
        t.client(|e| {
            see!(e, listen(e.fd, 5));
        });
    }),
    Case("listen(0): how many connections are made", |t| {
        backlog(t, 0)
    }),
    Case("listen(3): how many connections are made", |t| {
        backlog(t, 3)
    }),
    Case("a full queue has room after accept", |t| {
        t.server(|e| {
            let fd = e.stream();
            e.listen_on(fd, AF_INET, 0);
        });
        t.client(|e| {
            for _ in 0..2 {
                e.fd = e.stream();
                sys::nonblocking(e.fd, true).ok();
                sys::connect(e.fd, &e.to()).ok();
            }
        });
        t.server(|e| {
            see!(e, "accept" => accept(e.listener));
        });
        t.client(|e| {
            see!(e, poll(e.fd, POLLOUT, 4000));
            e.keeps();
        });
        t.server(|e| {
            see!(e, "accept" => accept(e.listener));
        });
    }),
    Case("bind twice", |t| {
        t.server(|e| {
            let fd = e.stream();
            see!(e, bind(fd, &End::any(AF_INET)));
            see!(e, bind(fd, &End::any(AF_INET)));
        });
    }),
    Case("bind of a port in use", |t| {
        t.listening();
        t.server(|e| {
            let here = Addr::v4(Ipv4Addr::UNSPECIFIED, e.port);
            see!(e, bind(e.stream(), &here));
            let fd = e.stream();
            see!(e, set(fd, SOL_SOCKET, SO_REUSEADDR, 1));
            see!(e, bind(fd, &here));
        });
    }),
    Case("bind of a port whose connections linger", |t| {
        t.connected();
        t.server(|e| {
            e.close();
            see!(e, close(e.listener));
        });
        t.client(|e| e.close());
        t.server(|e| {
            let here = Addr::v4(Ipv4Addr::UNSPECIFIED, e.port);
            see!(e, bind(e.stream(), &here));
            let fd = e.stream();
            see!(e, set(fd, SOL_SOCKET, SO_REUSEADDR, 1));
            see!(e, bind(fd, &here));
            see!(e, listen(fd, 5));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("bind of an address that is not here", |t| {
        t.server(|e| {
            see!(
                e,
                bind(e.stream(), &Addr::v4(Ipv4Addr::new(192, 0, 2, 1), 0))
            );
            see!(e, bind(e.stream(), &e.to().with_length(8)));
            see!(e, bind(e.stream(), &e.to6()));
        });
    }),
    Case("bind of a connection", |t| {
        t.connected();
        t.client(|e| {
            see!(e, bind(e.fd, &End::any(AF_INET)));
        });
    }),
    Case("SO_REUSEPORT shares a port", |t| {
        t.server(|e| {
            e.listener = e.stream();
            e.fd = e.stream();
            for fd in [e.listener, e.fd] {
                see!(e, set(fd, SOL_SOCKET, SO_REUSEPORT, 1));
            }
            e.listen_on(e.listener, AF_INET, 64);
            see!(e, bind(e.fd, &Addr::v4(Ipv4Addr::UNSPECIFIED, e.port)));
            see!(e, listen(e.fd, 64));
        });
        t.client(|e| {
            for _ in 0..20 {
                e.must("connect", sys::connect(e.stream(), &e.to()));
            }
        });
        t.server(|e| {
            let count = |fd| {
                sys::nonblocking(fd, true).ok();
                std::iter::from_fn(|| sys::accept(fd).ok()).count()
            };
            let (one, other) = (count(e.listener), count(e.fd));
            e.note(&format!("accepted={}", one + other));
            e.note(if one > 0 && other > 0 {
                "by both"
            } else {
                "by one"
            });
        });
    }),
    Case("send, receive, names of a listener", |t| {
        t.listening();
        t.server(|e| {
            see!(e, send(e.listener, b"hello", 0));
            see!(e, recv(e.listener, 10, 0));
            e.names("getsockname", sys::getsockname(e.listener));
            e.names("getpeername", sys::getpeername(e.listener));
            see!(e, so_error(e.listener));
            see!(e, get(e.listener, SOL_SOCKET, SO_ACCEPTCONN));
            see!(e, ioctl(e.listener, FIONREAD));
            see!(e, ioctl(e.listener, TIOCOUTQ));
            see!(e, ioctl(e.listener, sys::SIOCATMARK));
        });
    }),
    Case("epoll of a listener, edge-triggered", |t| {
        t.listening();
        t.server(|e| {
            e.fd = sys::epoll();
            see!(e, epoll_add(e.fd, e.listener, EPOLLIN | EPOLLET));
            see!(e, epoll_wait(e.fd, 0));
        });
        t.client(connect);
        t.server(|e| {
            see!(e, epoll_wait(e.fd, 1000));
            see!(e, epoll_wait(e.fd, 0));
        });
        t.client(connect);
        t.server(|e| {
            see!(e, epoll_wait(e.fd, 1000));
            see!(e, "accept" => accept(e.listener));
            see!(e, "accept" => accept(e.listener));
        });
    }),
];

/// Options whose value a connection has from its listener.
const INHERITED: [(i32, i32, i32); 8] = [
    (SOL_SOCKET, SO_KEEPALIVE, 1),
    (SOL_SOCKET, SO_OOBINLINE, 1),
    (SOL_SOCKET, SO_RCVLOWAT, 5),
    (SOL_SOCKET, SO_PRIORITY, 3),
    (IPPROTO_TCP, TCP_NODELAY, 1),
    (IPPROTO_TCP, TCP_KEEPIDLE, 77),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 7000),
    (IPPROTO_IP, IP_TOS, 0x10),
];

fn shut_listener(t: &mut End, how: i32) {
    t.listening();
    t.server(|e| {
        let fd = e.listener;
        let mut waiting = e.start("accept", move || accept(fd));
        e.waits(&mut waiting);
        see!(e, shutdown(e.listener, how));
        if how == SHUT_WR {
            e.waits(&mut waiting);
        } else {
            e.finish(waiting);
        }
    });
}

/// Of six connections to a listener that does not accept.
fn backlog(t: &mut End, backlog: i32) {
    t.server(|e| {
        let fd = e.stream();
        e.listen_on(fd, AF_INET, backlog);
    });
    t.client(|e| {
        let made = (0..6)
            .filter(|_| {
                let fd = e.stream();
                sys::nonblocking(fd, true).ok();
                sys::connect(fd, &e.to()).ok();
                let ready = sys::poll(fd, POLLOUT, e.moment().as_millis() as i32);
                ready.is_ok_and(|events| events.0 == POLLOUT as u32)
            })
            .count();
        e.note(&format!("made={made}"));
    });
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! poll, select, epoll: level, edge, once, exclusive.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys;
use libc::*;

/// What epoll is asked for if a case asks for all.
const ALL: i32 = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP;

/// A new connection that the server watches with the epoll descriptor `listener`.
fn watched(t: &mut End, events: i32) {
    t.connected();
    t.server(|e| {
        e.listener = sys::epoll();
        see!(e, epoll_add(e.listener, e.fd, events));
    });
}

pub const CASES: &[Case] = &[
    Case("poll and select of a new socket", |t| {
        t.client(|e| {
            e.fd = e.stream();
            e.polls();
            see!(e, select(e.fd, 0));
        });
    }),
    Case("epoll of a new socket, then connected", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            e.listener = sys::epoll();
            see!(e, epoll_add(e.listener, e.fd, ALL | EPOLLET));
            see!(e, epoll_wait(e.listener, 0));
            see!(e, connect(e.fd, &e.to()));
            e.prove(e.fd);
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll of a non-blocking connect", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            e.listener = sys::epoll();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, epoll_add(e.listener, e.fd, EPOLLOUT));
            see!(e, epoll_wait(e.listener, 2000));
            e.keeps();
            e.prove(e.fd);
        });
    }),
    Case("epoll of a non-blocking connect, added before", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            e.listener = sys::epoll();
            sys::nonblocking(e.fd, true).ok();
            see!(e, epoll_add(e.listener, e.fd, EPOLLOUT | EPOLLIN | EPOLLET));
            e.must(
                "connect",
                match sys::connect(e.fd, &e.to()) {
                    Err(sys::Errno(EINPROGRESS)) => Ok(0),
                    other => other,
                },
            );
            // What was reported before the connection was there does not count.
            let came = e.comes(|| {
                sys::epoll_wait(e.listener, 500).is_ok_and(|events| events.0 == EPOLLOUT as u32)
            });
            e.note(if came { "came" } else { "did not come" });
        });
    }),
    Case("poll of a connection", |t| {
        t.connected();
        t.each(|e| {
            e.polls();
            see!(e, select(e.fd, 0));
            see!(e, poll(e.fd, 0, 0));
        });
    }),
    Case("poll with data there", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.polls();
            see!(e, select(e.fd, 0));
            see!(e, "normal" => sys::poll(e.fd, POLLRDNORM, 0).map(|events| events.0));
            see!(e, "write normal" => sys::poll(e.fd, POLLWRNORM, 0).map(|events| events.0));
            e.receives(10);
            e.polls();
        });
    }),
    Case("select after the end and after a reset", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.server(|e| {
            see!(e, select(e.fd, 0));
        });
        t.client(End::abort);
        t.server(|e| {
            see!(e, select(e.fd, 0));
        });
    }),
    Case("select after a refused connect", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, select(e.fd, 1000));
            see!(e, select(e.fd, 0));
        });
    }),
    Case("poll of a full connection", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            e.polls();
            see!(e, select(e.fd, 0));
        });
        t.server(|e| e.drains());
        t.client(|e| {
            see!(e, poll(e.fd, POLLOUT, 1000));
        });
    }),
    Case("poll for room wakes", |t| {
        t.connected();
        let mut running = None;
        t.client(|e| {
            e.fills();
            running = Some(e.poll_waits(e.fd, POLLOUT));
        });
        t.server(|e| e.drains());
        t.client(|e| {
            e.finish(running);
        });
    }),
    Case("poll wakes when data comes", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            running = Some(e.poll_waits(e.fd, POLLIN));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("POLLRDHUP wakes at the end", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            running = Some(e.poll_waits(e.fd, POLLRDHUP));
        });
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("POLLHUP wakes at a reset", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            running = Some(e.poll_waits(e.fd, 0));
        });
        t.client(End::abort);
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("epoll, level-triggered", |t| {
        watched(t, EPOLLIN);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
            e.receives(3);
            see!(e, epoll_wait(e.listener, 0));
            e.receives(3);
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered", |t| {
        watched(t, EPOLLIN | EPOLLET);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
            e.receives(3);
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered, for both directions", |t| {
        watched(t, ALL | EPOLLET);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered, reading makes no event", |t| {
        watched(t, ALL | EPOLLET);
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            e.receives(10);
            see!(e, epoll_wait(e.listener, 0));
            e.sends(b"answer");
            e.pause();
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered, data while one reads", |t| {
        watched(t, EPOLLIN | EPOLLET);
        t.both(
            |e| {
                for _ in 0..2000 {
                    e.must("send", sys::send(e.fd, b"hello", 0));
                }
            },
            |e| {
                sys::nonblocking(e.fd, true).ok();
                e.begin("epoll");
                let mut got = 0;
                while got < 10_000 {
                    match sys::recv(e.fd, 700, 0) {
                        Ok(more) => got += more.0.len(),
                        Err(_) => {
                            if sys::epoll_wait(e.listener, 3000).is_ok_and(|events| events.0 == 0) {
                                break;
                            }
                        }
                    }
                }
                e.note(&format!("received={got}"));
            },
        );
    }),
    Case("epoll, edge-triggered, the end", |t| {
        watched(t, ALL | EPOLLET);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered, a reset", |t| {
        watched(t, ALL | EPOLLET);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(End::abort);
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll, edge-triggered, room again", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            e.listener = sys::epoll();
            see!(e, epoll_add(e.listener, e.fd, EPOLLOUT | EPOLLET));
            see!(e, epoll_wait(e.listener, 0));
        });
        t.server(|e| e.drains());
        t.client(|e| {
            see!(e, epoll_wait(e.listener, 1000));
        });
    }),
    Case("EPOLLONESHOT", |t| {
        watched(t, EPOLLIN | EPOLLONESHOT);
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 1000));
            see!(e, epoll_wait(e.listener, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
            see!(e, epoll_mod(e.listener, e.fd, EPOLLIN | EPOLLONESHOT));
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("EPOLLEXCLUSIVE of a listener", |t| {
        t.listening();
        let mut running = Vec::new();
        t.server(|e| {
            for _ in 0..2 {
                let epoll = sys::epoll();
                see!(e, epoll_add(epoll, e.listener, EPOLLIN | EPOLLEXCLUSIVE));
                running.push(e.start("epoll_wait", move || sys::epoll_wait(epoll, 1000)));
            }
            e.pause();
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
        t.server(|e| {
            e.note("one or both wake");
            drop(running);
            see!(e, "accept" => sys::accept(e.listener).map(|_| "a socket"));
        });
    }),
    Case("epoll of a socket that is closed", |t| {
        watched(t, EPOLLIN);
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.close();
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("epoll after shutdown of both", |t| {
        watched(t, ALL);
        t.each(|e| {
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
        t.server(|e| {
            see!(e, epoll_wait(e.listener, 0));
        });
    }),
    Case("SIGIO when data comes", |t| {
        t.connected();
        t.server(|e| {
            see!(e, fcntl(e.fd, F_SETOWN, std::process::id() as i32));
            see!(e, fcntl(e.fd, F_SETFL, O_ASYNC));
            sys::handled();
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.polls());
    }),
    Case("SIGIO when the peer closes", |t| {
        t.connected();
        t.server(|e| {
            see!(e, fcntl(e.fd, F_SETOWN, std::process::id() as i32));
            see!(e, fcntl(e.fd, F_SETFL, O_ASYNC));
            sys::handled();
        });
        t.client(End::close);
        t.server(|e| e.polls());
    }),
];

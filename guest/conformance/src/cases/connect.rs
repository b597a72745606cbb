// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connecting.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys::{self, Addr, Fd};
use libc::*;
use std::net::Ipv4Addr;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case("blocking connect", |t| {
        t.connected();
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("connect, refused", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            e.keeps();
            e.polls();
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("connect, refused, then send and receive", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            e.sends(b"hello");
            e.receives(10);
            see!(e, shutdown(e.fd, SHUT_RDWR));
        });
    }),
    Case("connect, refused twice", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case(
        "connect, refused, then again when there is a listener",
        |t| {
            t.nobody_listening();
            t.client(|e| {
                e.fd = e.stream();
                see!(e, connect(e.fd, &e.to()));
            });
            t.server(|e| {
                see!(e, listen(e.listener, 5));
            });
            t.client(|e| {
                if see!(e, connect(e.fd, &e.to())).is_some() {
                    e.prove(e.fd);
                    e.sends(b"hello");
                }
            });
        },
    ),
    Case("non-blocking connect", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, poll(e.fd, POLLOUT, 2000));
            e.keeps();
            see!(e, connect(e.fd, &e.to()));
            see!(e, connect(e.fd, &e.to()));
            e.sends(b"hello");
        });
        t.server(|e| {
            e.accept();
            e.receives(10);
        });
        t.client(|e| e.prove(e.fd));
    }),
    Case("non-blocking connect, refused", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, poll(e.fd, 0, 2000));
            e.polls();
            e.keeps();
            e.keeps();
            e.polls();
        });
    }),
    Case("non-blocking connect, refused, connect tells", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, poll(e.fd, 0, 2000));
            see!(e, connect(e.fd, &e.to()));
            e.keeps();
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case("non-blocking connect, refused, receive tells", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, poll(e.fd, 0, 2000));
            e.receives(10);
            e.receives(10);
            e.sends(b"hello");
        });
    }),
    Case(
        "non-blocking connect, refused, then again when there is a listener",
        |t| {
            t.nobody_listening();
            t.client(|e| {
                e.fd = e.stream();
                sys::nonblocking(e.fd, true).ok();
                see!(e, connect(e.fd, &e.to()));
                see!(e, poll(e.fd, 0, 2000));
                e.keeps();
            });
            t.server(|e| {
                see!(e, listen(e.listener, 5));
            });
            t.client(|e| {
                see!(e, connect(e.fd, &e.to()));
                see!(e, poll(e.fd, POLLOUT, 2000));
                e.keeps();
            });
        },
    ),
    Case("non-blocking connect without an answer", |t| {
        t.black_hole();
        t.client(|e| {
            e.fd = e.stream();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, connect(e.fd, &e.to()));
            e.polls();
            e.keeps();
            e.sends(b"hello");
            e.receives(10);
            e.names("getpeername", sys::getpeername(e.fd));
            see!(e, close(e.fd));
        });
    }),
    Case(
        "non-blocking connect, shut down while there is no answer",
        |t| {
            t.black_hole();
            t.client(|e| {
                e.fd = e.stream();
                sys::nonblocking(e.fd, true).ok();
                see!(e, connect(e.fd, &e.to()));
                see!(e, shutdown(e.fd, SHUT_RDWR));
                e.polls();
                e.keeps();
            });
        },
    ),
    Case(
        "blocking connect, shut down while there is no answer",
        |t| {
            t.black_hole();
            t.client(|e| {
                e.fd = e.stream();
                let (fd, to) = (e.fd, e.to());
                let mut connect = e.start("connect", move || sys::connect(fd, &to));
                e.waits(&mut connect);
                see!(e, shutdown(e.fd, SHUT_RDWR));
                e.finish(connect);
            });
        },
    ),
    Case(
        "blocking connect with SO_SNDTIMEO, without an answer",
        |t| {
            t.black_hole();
            t.client(|e| {
                e.fd = e.stream();
                let time = Duration::from_millis(600);
                sys::timeout(e.fd, SO_SNDTIMEO, time).ok();
                e.timed("connect", time, || sys::connect(e.fd, &e.to()));
                e.timed("connect again", time, || sys::connect(e.fd, &e.to()));
                e.polls();
            });
        },
    ),
    Case("connect times out (TCP_SYNCNT)", |t| {
        t.black_hole();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, set(e.fd, IPPROTO_TCP, TCP_SYNCNT, 1));
            see!(e, connect(e.fd, &e.to()));
            e.keeps();
            e.polls();
        });
    }),
    Case("connect times out (TCP_USER_TIMEOUT)", |t| {
        t.black_hole();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, set(e.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 900));
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case("non-blocking connect times out", |t| {
        t.black_hole();
        t.client(|e| {
            e.fd = e.stream();
            sys::set(e.fd, IPPROTO_TCP, TCP_SYNCNT, 1).ok();
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
            see!(e, poll(e.fd, POLLOUT, 4500));
            e.keeps();
        });
    }),
    Case("blocking connect and a signal", |t| {
        t.black_hole();
        t.client(|e| {
            interrupted(e, false);
            // It goes on by itself.
            sys::nonblocking(e.fd, true).ok();
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case("blocking connect and a signal with SA_RESTART", |t| {
        t.black_hole();
        t.client(|e| {
            e.fd = e.stream();
            sys::handle(SIGUSR1, true).ok();
            let (fd, to) = (e.fd, e.to());
            let mut connect = e.start("connect", move || sys::connect(fd, &to));
            e.waits(&mut connect);
            connect.signal(SIGUSR1);
            e.waits(&mut connect);
        });
    }),
    Case(
        "blocking connect and a signal with SA_RESTART, then an answer",
        |t| {
            t.black_hole();
            let mut running = None;
            t.client(|e| {
                e.fd = e.stream();
                sys::handle(SIGUSR1, true).ok();
                let (fd, to) = (e.fd, e.to());
                let mut connect = e.start("connect", move || sys::connect(fd, &to));
                e.waits(&mut connect);
                connect.signal(SIGUSR1);
                running = Some(connect);
            });
            t.server(|e| {
                see!(e, "accept" => sys::accept(e.listener).map(|_| "a socket"));
            });
            t.client(|e| {
                e.finish(running);
                e.sends(b"hello");
            });
        },
    ),
    Case("blocking connect and a signal, then an answer", |t| {
        t.black_hole();
        t.client(|e| interrupted(e, false));
        t.server(|e| {
            see!(e, "accept" => sys::accept(e.listener).map(|_| "a socket"));
        });
        t.client(|e| {
            see!(e, poll(e.fd, POLLOUT, 4000));
            e.keeps();
            see!(e, connect(e.fd, &e.to()));
            see!(e, connect(e.fd, &e.to()));
            e.sends(b"hello");
        });
    }),
    Case("50 connections under a timer with SA_RESTART", |t| {
        t.listening();
        t.both(
            |e| {
                sys::handle(SIGALRM, true).ok();
                sys::alarm_every(300).ok();
                let mut failed = std::collections::BTreeSet::new();
                for _ in 0..50 {
                    e.begin("connect");
                    let fd = e.stream();
                    if let Err(error) = sys::connect(fd, &e.to()) {
                        failed.insert(error.to_string());
                        // What was begun may still come to be, and the server counts.
                        sys::alarm_every(0).ok();
                        e.must("connect", sys::connect(e.stream(), &e.to()));
                        sys::alarm_every(300).ok();
                    }
                }
                sys::alarm_every(0).ok();
                let failed: Vec<_> = failed.into_iter().collect();
                e.note(&format!("failed with={}", failed.join(",")));
            },
            |e| {
                for _ in 0..50 {
                    e.begin("accept");
                    e.must("accept", sys::accept(e.listener));
                }
            },
        );
    }),
    Case("connect twice", |t| {
        t.connected();
        t.client(|e| {
            see!(e, connect(e.fd, &e.to()));
            e.sends(b"hello");
        });
    }),
    Case("connect of a listener", |t| {
        t.listening();
        t.server(|e| {
            see!(e, connect(e.listener, &e.to()));
        });
    }),
    Case("connect to AF_UNSPEC, not connected", |t| {
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &Addr::unspecified()));
            e.polls();
        });
    }),
    Case("connect to AF_UNSPEC disconnects", |t| {
        t.connected();
        t.client(|e| {
            see!(e, connect(e.fd, &Addr::unspecified()));
            e.names("getpeername", sys::getpeername(e.fd));
            e.polls();
            e.sends(b"hello");
        });
        t.server(|e| e.receives(10));
    }),
    Case("connect to AF_UNSPEC, then again", |t| {
        t.connected();
        t.client(|e| {
            see!(e, connect(e.fd, &Addr::unspecified()));
            if see!(e, connect(e.fd, &e.to())).is_some() {
                e.prove(e.fd);
            }
        });
    }),
    Case("connect of a listener to AF_UNSPEC", |t| {
        t.listening();
        t.server(|e| {
            see!(e, connect(e.listener, &Addr::unspecified()));
            see!(e, "accept" => sys::accept(e.listener).map(|_| "a socket"));
        });
    }),
    Case("connect with too short an address", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            for length in [0, 1, 2, 8, 15] {
                see!(e, connect(e.fd, &e.to().with_length(length)));
            }
        });
    }),
    Case("connect to an address of another family", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to6()));
            let six = e.socket(AF_INET6);
            see!(e, connect(six, &e.to().with_length(28)));
        });
    }),
    Case("connect to port 0", |t| {
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case("connect to broadcast and multicast addresses", |t| {
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &Addr::v4(Ipv4Addr::BROADCAST, 9)));
            see!(e, connect(e.fd, &Addr::v4(Ipv4Addr::new(224, 0, 0, 1), 9)));
        });
    }),
    Case("connect with an address of one's own", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, bind(e.fd, &End::any(AF_INET)));
            let before = sys::getsockname(e.fd).map_or(0, |name| name.port());
            see!(e, connect(e.fd, &e.to()));
            e.prove(e.fd);
            let after = sys::getsockname(e.fd).map_or(0, |name| name.port());
            e.note(if before == after {
                "same port"
            } else {
                "another port"
            });
        });
    }),
    Case("connect to oneself", |t| {
        t.client(|e| {
            e.fd = e.stream();
            sys::bind(e.fd, &Addr::v4(Ipv4Addr::LOCALHOST, 0)).ok();
            let port = sys::getsockname(e.fd).map_or(0, |name| name.port());
            see!(e, connect(e.fd, &Addr::v4(Ipv4Addr::LOCALHOST, port)));
            e.sends(b"hello");
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
    }),
    Case("connect after the connection has ended", |t| {
        t.connected();
        t.each(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
        });
        t.client(|e| {
            see!(e, connect(e.fd, &e.to()));
            see!(e, connect(e.fd, &Addr::unspecified()));
            see!(e, connect(e.fd, &e.to()));
        });
    }),
    Case("30 connections, one after the other", |t| {
        t.listening();
        t.both(
            |e| {
                for round in 0..30 {
                    let fd = e.stream();
                    e.begin("connect");
                    e.must("connect", sys::connect(fd, &e.to()));
                    e.prove_first(fd, round);
                    e.must("send", sys::send(fd, b"hello", 0));
                    e.must("close", sys::close(fd));
                }
                e.note("done");
            },
            |e| {
                let mut total = 0;
                for _ in 0..30 {
                    e.begin("accept");
                    let fd = e.must("accept", sys::accept(e.listener)) as Fd;
                    e.begin("recv");
                    total += e.must("recv", sys::recv(fd, 10, MSG_WAITALL)).0.len();
                    e.must("close", sys::close(fd));
                }
                e.note(&format!("received={total}"));
            },
        );
    }),
    Case("Fast Open: MSG_FASTOPEN", |t| {
        t.listening();
        t.both(
            |e| {
                e.fd = e.stream();
                see!(e, sendto(e.fd, b"hello", MSG_FASTOPEN, &e.to()));
                e.prove(e.fd);
            },
            |e| {
                e.accept();
                e.receives(10);
            },
        );
        t.client(|e| {
            see!(e, sendto(e.fd, b"hello", MSG_FASTOPEN, &e.to()));
        });
    }),
    Case("Fast Open: MSG_FASTOPEN, refused", |t| {
        t.nobody_listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, sendto(e.fd, b"hello", MSG_FASTOPEN, &e.to()));
        });
    }),
    Case("Fast Open: TCP_FASTOPEN_CONNECT", |t| {
        t.listening();
        t.both(
            |e| {
                e.fd = e.stream();
                see!(e, set(e.fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1));
                see!(e, connect(e.fd, &e.to()));
                e.sends(b"hello");
                e.prove(e.fd);
            },
            |e| {
                e.accept();
                e.receives(10);
            },
        );
    }),
    Case("Fast Open: a listener with TCP_FASTOPEN", |t| {
        t.server(|e| {
            let fd = e.stream();
            see!(e, set(fd, IPPROTO_TCP, TCP_FASTOPEN, 5));
            e.listen_on(fd, AF_INET, 5);
        });
        t.connecting(|_| {}, |_| {});
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("TCP_DEFER_ACCEPT", |t| {
        t.server(|e| {
            let fd = e.stream();
            see!(e, set(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5));
            e.listen_on(fd, AF_INET, 5);
        });
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            e.prove(e.fd);
        });
        t.server(|e| {
            see!(e, poll(e.listener, POLLIN, 0));
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            see!(e, poll(e.listener, POLLIN, 1000));
            e.accept();
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
    }),
];

/// A connect() that is interrupted.
fn interrupted(e: &mut End, restart: bool) {
    e.fd = e.stream();
    sys::handle(SIGUSR1, restart).ok();
    let (fd, to) = (e.fd, e.to());
    let mut connect = e.start("connect", move || sys::connect(fd, &to));
    e.waits(&mut connect);
    connect.signal(SIGUSR1);
    e.finish(connect);
}

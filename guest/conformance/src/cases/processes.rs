// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! fork, dup, descriptors that are passed on, threads, network namespaces.

use super::Case;
use crate::end::{End, Running};
use crate::see;
use crate::short::pattern;
use crate::sys::{self, Addr, Fd};
use libc::*;
use std::net::Ipv4Addr;

pub const CASES: &[Case] = &[
    Case("a child sends", |t| {
        t.connected();
        t.client(|e| {
            let child = e.fork(|e| e.sends(b"child"));
            e.wait(child);
            e.sends(b"parent");
        });
        t.server(|e| {
            e.receives(20);
            see!(e, recv(e.fd, 20, MSG_DONTWAIT));
        });
    }),
    Case("a child receives", |t| {
        t.connected();
        t.both(
            |e| {
                let child = e.fork(|e| e.receives(10));
                e.wait(child);
            },
            |e| e.sends(b"hello"),
        );
        t.server(|e| e.sends(b"again"));
        t.client(|e| e.receives(10));
    }),
    Case("a child goes on when its parent has closed", |t| {
        t.connected();
        t.client(|e| {
            // It notes nothing: when it comes to that is chance.
            e.fork(|e| {
                sys::recv(e.fd, 10, 0).ok();
                sys::send(e.fd, b"child", 0).ok();
            });
            e.close();
        });
        t.server(|e| {
            e.polls();
            e.sends(b"hello");
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("a child's exit ends nothing", |t| {
        t.connected();
        t.client(|e| {
            let child = e.fork(|_| {});
            e.wait(child);
        });
        t.server(|e| e.polls());
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("a child's shutdown is its parent's, too", |t| {
        t.connected();
        t.client(|e| {
            let child = e.fork(|e| {
                see!(e, shutdown(e.fd, SHUT_WR));
            });
            e.wait(child);
            e.sends(b"hello");
        });
        t.server(|e| e.receives(10));
    }),
    Case("dup, and one is closed", |t| {
        t.connected();
        t.client(|e| {
            let other = e.must("dup", sys::dup(e.fd)) as Fd;
            e.close();
            see!(e, send(other, b"hello", 0));
            e.fd = other;
        });
        t.server(|e| {
            e.receives(10);
            e.sends(b"answer");
        });
        t.client(|e| {
            e.receives(10);
            e.close();
        });
        t.server(|e| e.receives(10));
    }),
    Case("dup shares O_NONBLOCK", |t| {
        t.connected();
        t.client(|e| {
            let other = e.must("dup", sys::dup(e.fd)) as Fd;
            sys::nonblocking(other, true).ok();
            e.receives(10);
        });
    }),
    Case("dup2 over a connection closes it", |t| {
        t.connected();
        t.client(|e| {
            let other = e.stream();
            see!(e, "dup2" => sys::dup2(other, e.fd).map(|_| 0));
            e.polls();
        });
        t.server(|e| e.receives(10));
    }),
    Case("dup of a listener", |t| {
        t.listening();
        t.server(|e| {
            let other = e.must("dup", sys::dup(e.listener)) as Fd;
            sys::close(e.listener).ok();
            e.listener = other;
        });
        t.connecting(|_| {}, |_| {});
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("a connection is passed to another process", |t| {
        t.connected();
        t.client(|e| {
            let [here, there] = sys::local_pair();
            let connection = e.fd;
            // It notes nothing: when it comes to that is chance.
            e.fork(|e| {
                sys::close(connection).ok();
                let message = e.must("recvmsg", sys::recvmsg(there, 10, 0));
                e.fd = message.right.unwrap_or(-1);
                sys::send(e.fd, b"hello", 0).ok();
                sys::recv(e.fd, 10, 0).ok();
            });
            see!(e, sendmsg(here, &[b"take"], &[e.fd], 0));
            e.close();
        });
        t.server(|e| {
            e.receives(10);
            e.sends(b"answer");
            e.receives(10);
        });
    }),
    Case("a connection that is passed and never taken", |t| {
        t.connected();
        t.client(|e| {
            let [here, there] = sys::local_pair();
            see!(e, sendmsg(here, &[b"take"], &[e.fd], 0));
            e.close();
            e.pause();
            see!(e, close(here));
            see!(e, close(there));
        });
        t.server(|e| e.receives(10));
    }),
    Case("a listener is passed to another process", |t| {
        t.listening();
        t.server(|e| {
            let [here, there] = sys::local_pair();
            let listener = e.listener;
            e.fork(|e| {
                sys::close(listener).ok();
                let message = e.must("recvmsg", sys::recvmsg(there, 10, 0));
                e.listener = message.right.unwrap_or(-1);
                e.accept();
                sys::send(e.fd, b"hello", 0).ok();
            });
            see!(e, sendmsg(here, &[b"take"], &[e.listener], 0));
            see!(e, close(e.listener));
        });
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            e.receives(10);
            e.receives(10);
        });
    }),
    Case("accept by eight children", |t| {
        t.listening();
        t.both(
            |e| {
                let mut all = 0;
                for _ in 0..8 {
                    let fd = e.stream();
                    e.begin("connect");
                    e.must("connect", sys::connect(fd, &e.to()));
                    e.prove(fd);
                    e.begin("recv");
                    all += e.must("recv", sys::recv(fd, 10, MSG_WAITALL)).0.len();
                    e.must("close", sys::close(fd));
                }
                e.note(&format!("received={all}"));
            },
            |e| {
                let children: Vec<_> = (0..8)
                    .map(|_| {
                        e.fork(|e| {
                            let fd = e.must("accept", sys::accept(e.listener)) as Fd;
                            e.must("send", sys::send(fd, b"0123456789", 0));
                        })
                    })
                    .collect();
                for child in children {
                    e.wait(child);
                }
            },
        );
    }),
    Case("eight threads send", |t| {
        t.connected();
        t.both(
            |e| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        let fd = e.fd;
                        e.start("sent", move || {
                            (0..200).try_fold(0, |sum, _| {
                                Ok::<_, sys::Errno>(sum + sys::send(fd, &[7; 500], 0)?)
                            })
                        })
                    })
                    .collect();
                finish_all(e, threads);
                e.close();
            },
            |e| {
                let mut all = 0;
                e.begin("received");
                while let Ok(more) = sys::recv(e.fd, 1 << 16, 0) {
                    if more.0.is_empty() {
                        break;
                    }
                    all += more.0.len();
                }
                e.note(&format!("received={all}"));
            },
        );
    }),
    Case("eight threads receive", |t| {
        t.connected();
        t.both(
            |e| {
                e.sends_pattern(0, 500_000);
                e.close();
            },
            |e| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        let fd = e.fd;
                        e.start("received", move || {
                            let mut all = 0;
                            loop {
                                match sys::recv(fd, 1000, 0)?.0.len() {
                                    0 => break,
                                    more => all += more,
                                }
                            }
                            TOTAL.fetch_add(all, std::sync::atomic::Ordering::SeqCst);
                            Ok::<_, sys::Errno>("some")
                        })
                    })
                    .collect();
                finish_all(e, threads);
                let total = TOTAL.load(std::sync::atomic::Ordering::SeqCst);
                e.note(&format!("all={total}"));
            },
        );
    }),
    Case("a thread sends while another receives", |t| {
        t.connected();
        t.each(|e| {
            let fd = e.fd;
            let sending = e.start("sent", move || {
                let bytes = pattern(0, 2_000_000);
                let mut sent = 0;
                while sent < bytes.len() {
                    sent +=
                        sys::send(fd, &bytes[sent..(sent + 3000).min(bytes.len())], 0)? as usize;
                }
                Ok::<_, sys::Errno>(sent)
            });
            e.receives_pattern(0, 2_000_000);
            e.finish(sending);
        });
    }),
    Case("shutdown wakes eight threads", |t| {
        t.connected();
        t.server(|e| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let fd = e.fd;
                    e.start("recv", move || sys::recv(fd, 10, 0))
                })
                .collect();
            e.pause();
            see!(e, shutdown(e.fd, SHUT_RDWR));
            finish_all(e, threads);
        });
    }),
    Case("the end wakes eight threads", |t| {
        t.connected();
        let mut threads = Vec::new();
        t.server(|e| {
            for _ in 0..8 {
                let fd = e.fd;
                threads.push(e.start("recv", move || sys::recv(fd, 10, 0)));
            }
            e.pause();
        });
        t.client(End::close);
        t.server(|e| finish_all(e, threads));
    }),
    Case("a reset wakes eight threads", |t| {
        t.connected();
        let mut threads = Vec::new();
        t.server(|e| {
            for _ in 0..8 {
                let fd = e.fd;
                threads.push(e.start("recv", move || sys::recv(fd, 10, 0).map(|_| "the end")));
            }
            e.pause();
        });
        t.client(End::abort);
        t.server(|e| {
            // Which of them gets the error is chance.
            e.begin("recv");
            let mut outcomes: Vec<_> = threads.into_iter().map(Running::outcome).collect();
            outcomes.sort();
            outcomes.dedup();
            e.note(&format!("recv={}", outcomes.join(" or ")));
        });
    }),
    Case("a socket keeps its network namespace", |t| {
        t.listening();
        t.client(|e| {
            e.fd = e.stream();
            see!(e, new_network());
            see!(e, "new" => sys::connect(e.stream(), &e.to()));
            see!(e, "old" => sys::connect(e.fd, &e.to()));
            e.sends(b"hello");
        });
        t.server(|e| {
            e.accept();
            e.receives(10);
        });
    }),
    Case("a connection within a new network namespace", |t| {
        t.client(|e| {
            see!(e, new_network());
            e.must("lo", sys::loopback_up());
            let listener = e.stream();
            e.listen_on(listener, AF_INET, 5);
            e.fd = e.stream();
            see!(e, connect(e.fd, &Addr::v4(Ipv4Addr::LOCALHOST, e.port)));
            e.prove(e.fd);
            let other = e.must("accept", sys::accept(listener)) as Fd;
            e.sends(b"hello");
            see!(e, recv(other, 10, MSG_DONTWAIT));
            see!(e, close(other));
            e.receives(10);
        });
    }),
    Case(
        "a connection outlives its network namespace's last process",
        |t| {
            t.client(|e| {
                let old = e.must("open", sys::open(c"/proc/self/ns/net")) as Fd;
                see!(e, new_network());
                e.must("lo", sys::loopback_up());
                let listener = e.stream();
                e.listen_on(listener, AF_INET, 5);
                e.fd = e.stream();
                see!(e, connect(e.fd, &Addr::v4(Ipv4Addr::LOCALHOST, e.port)));
                let other = e.must("accept", sys::accept(listener)) as Fd;
                see!(e, enter_network(old));
                e.sends(b"hello");
                e.pause();
                see!(e, recv(other, 10, MSG_DONTWAIT));
            });
        },
    ),
    Case("io_uring is there", |t| {
        t.client(|e| {
            let made = sys::io_uring_setup().map(|fd| sys::close(fd as Fd).is_ok());
            e.note(match made {
                Err(sys::Errno(ENOSYS)) => "no: this kernel has none",
                _ => "yes: its operations are not tried here",
            });
        });
    }),
];

static TOTAL: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

fn finish_all(e: &End, threads: Vec<Running>) {
    for thread in threads {
        e.finish(thread);
    }
}

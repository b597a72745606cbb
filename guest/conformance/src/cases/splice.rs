// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! splice, tee, vmsplice, sendfile.

use super::Case;
use crate::end::End;
use crate::see;
use crate::short::pattern;
use crate::sys::{self, Fd};
use libc::*;

/// The client sends "hello" over a new connection.
fn hello(t: &mut End) {
    t.connected();
    t.client(|e| e.sends(b"hello"));
}

pub const CASES: &[Case] = &[
    Case("splice from a socket", |t| {
        hello(t);
        t.server(|e| {
            let (out, into) = sys::pipe();
            see!(e, splice(e.fd, into, 3, 0));
            see!(e, splice(e.fd, into, 100, 0));
            see!(e, read(out, 10));
        });
    }),
    Case("splice from a socket with nothing there", |t| {
        t.connected();
        t.server(|e| {
            let (fd, (_, into)) = (e.fd, sys::pipe());
            let mut splice = e.start("SPLICE_F_NONBLOCK", move || {
                sys::splice(fd, into, 100, SPLICE_F_NONBLOCK)
            });
            e.waits(&mut splice);
            sys::nonblocking(e.fd, true).ok();
            let (_, into) = sys::pipe();
            see!(e, splice(e.fd, into, 100, 0));
        });
    }),
    Case("splice from a socket waits", |t| {
        t.connected();
        let mut running = None;
        t.server(|e| {
            let (fd, (_, into)) = (e.fd, sys::pipe());
            let mut splice = e.start("splice", move || sys::splice(fd, into, 100, 0));
            e.waits(&mut splice);
            running = Some(splice);
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| {
            e.finish(running);
        });
    }),
    Case("splice from a socket with SO_RCVTIMEO", |t| {
        t.connected();
        t.server(|e| {
            let (_, into) = sys::pipe();
            let time = std::time::Duration::from_millis(500);
            sys::timeout(e.fd, SO_RCVTIMEO, time).ok();
            e.timed("splice", time, || sys::splice(e.fd, into, 100, 0));
        });
    }),
    Case("splice from a socket at the end", |t| {
        hello(t);
        t.client(End::close);
        t.server(|e| {
            let (_, into) = sys::pipe();
            see!(e, splice(e.fd, into, 100, 0));
            see!(e, splice(e.fd, into, 100, 0));
        });
    }),
    Case("splice from a socket after a reset", |t| {
        t.connected();
        t.client(End::abort);
        t.server(|e| {
            let (_, into) = sys::pipe();
            see!(e, splice(e.fd, into, 100, 0));
            see!(e, splice(e.fd, into, 100, 0));
        });
    }),
    Case("splice from a socket and a signal", |t| {
        t.connected();
        t.server(|e| {
            sys::handle(SIGUSR1, false).ok();
            let (fd, (_, into)) = (e.fd, sys::pipe());
            let mut splice = e.start("splice", move || sys::splice(fd, into, 100, 0));
            e.waits(&mut splice);
            splice.signal(SIGUSR1);
            e.finish(splice);
        });
    }),
    Case("splice from what is not connected", |t| {
        t.client(|e| {
            let (_, into) = sys::pipe();
            see!(e, splice(e.stream(), into, 100, 0));
        });
    }),
    Case("what is spliced stays when more comes", |t| {
        t.connected();
        t.client(|e| e.sends_pattern(0, 3000));
        let mut pipe = (-1, -1);
        t.server(|e| {
            pipe = sys::pipe();
            see!(e, splice(e.fd, pipe.1, 3000, 0));
        });
        t.both(
            |e| e.sends_pattern(3000, 3_000_000),
            |e| e.receives_pattern(3000, 3_000_000),
        );
        t.server(|e| {
            let got = sys::read(pipe.0, 4000);
            let is_right = got.is_ok_and(|got| got.0 == pattern(0, 3000));
            e.note(if is_right { "right" } else { "WRONG" });
        });
    }),
    Case("3,000,000 bytes spliced from a socket", |t| {
        t.connected();
        t.both(
            |e| {
                e.sends_pattern(0, 3_000_000);
                e.close();
            },
            |e| {
                let (out, into) = sys::pipe();
                e.receives_pattern_by(0, 3_000_001, |fd, left| {
                    let moved = sys::splice(fd, into, left.min(1 << 16), 0)?;
                    if moved == 0 {
                        return Ok(Vec::new());
                    }
                    sys::read(out, moved as usize).map(|got| got.0)
                });
            },
        );
    }),
    Case("3,000,000 bytes spliced to a socket", |t| {
        t.connected();
        t.both(
            |e| {
                let (out, into) = sys::pipe();
                e.begin("splice");
                let (bytes, mut at) = (pattern(0, 3_000_000), 0);
                while at < bytes.len() {
                    let part = (bytes.len() - at).min(60_000);
                    e.must("write", sys::write(into, &bytes[at..at + part]));
                    let mut left = part;
                    while left > 0 {
                        left -= e.must("splice", sys::splice(out, e.fd, left, 0)) as usize;
                    }
                    at += part;
                }
                e.note("spliced all");
                e.close();
            },
            |e| e.receives_pattern(0, 3_000_001),
        );
    }),
    Case("a proxy that splices", |t| {
        t.connected();
        t.both(
            |e| {
                let fd = e.fd;
                let bytes = pattern(0, 3_000_000);
                let sending = e.start("send", move || {
                    let mut sent = 0;
                    while sent < bytes.len() {
                        sent += sys::send(fd, &bytes[sent..], 0)? as usize;
                    }
                    sys::shutdown(fd, SHUT_WR).map(|_| sent)
                });
                e.receives_pattern(0, 3_000_001);
                e.finish(sending);
            },
            |e| {
                let (out, into) = sys::pipe();
                e.begin("splice");
                loop {
                    let moved = e.must("splice", sys::splice(e.fd, into, 1 << 16, 0));
                    if moved == 0 {
                        break;
                    }
                    let mut left = moved as usize;
                    while left > 0 {
                        left -=
                            e.must("splice", sys::splice(out, e.fd, left, SPLICE_F_MORE)) as usize;
                    }
                }
                e.note("the end");
                e.close();
            },
        );
    }),
    Case("splice to a socket", |t| {
        t.connected();
        t.client(|e| {
            let (out, into) = sys::pipe();
            sys::write(into, b"hello").ok();
            see!(e, splice(out, e.fd, 100, 0));
        });
        t.server(|e| e.receives(10));
    }),
    Case("splice to a socket with SPLICE_F_MORE, then waiting", |t| {
        t.connected();
        t.client(|e| {
            let (out, into) = sys::pipe();
            sys::write(into, b"hello").ok();
            see!(e, splice(out, e.fd, 100, SPLICE_F_MORE));
        });
        t.server(|e| {
            see!(e, poll(e.fd, POLLIN, 2000));
            see!(e, recv(e.fd, 10, MSG_DONTWAIT));
        });
    }),
    Case("splice to a socket that was shut down", |t| {
        t.connected();
        t.client(|e| {
            see!(e, shutdown(e.fd, SHUT_WR));
            let (out, into) = sys::pipe();
            sys::write(into, b"hello").ok();
            see!(e, splice(out, e.fd, 100, 0));
        });
    }),
    Case("tee of what was spliced", |t| {
        hello(t);
        t.server(|e| {
            let ((out, into), (other_out, other_into)) = (sys::pipe(), sys::pipe());
            see!(e, splice(e.fd, into, 100, 0));
            see!(e, tee(out, other_into, 100, 0));
            see!(e, read(out, 10));
            see!(e, "other" => sys::read(other_out, 10));
        });
    }),
    Case("half of what was spliced goes to another pipe", |t| {
        hello(t);
        t.server(|e| {
            let ((out, into), (other_out, other_into)) = (sys::pipe(), sys::pipe());
            see!(e, splice(e.fd, into, 100, 0));
            see!(e, splice(out, other_into, 2, 0));
            see!(e, read(out, 10));
            see!(e, "other" => sys::read(other_out, 10));
        });
    }),
    Case("vmsplice, then splice to a socket", |t| {
        t.connected();
        t.client(|e| {
            let (out, into) = sys::pipe();
            see!(e, vmsplice(into, b"hello", 0));
            see!(e, splice(out, e.fd, 5, 0));
        });
        t.server(|e| e.receives(10));
    }),
    Case("sendfile, count as the file", |t| file(t, 5, None)),
    Case("sendfile, count less than the file", |t| file(t, 3, None)),
    Case("sendfile, count past the end of the file", |t| {
        file(t, 100, None)
    }),
    Case("sendfile, count far past the end of the file", |t| {
        file(t, 1 << 30, None)
    }),
    Case("sendfile, count of 0", |t| {
        t.connected();
        t.client(|e| {
            see!(e, sendfile(e.fd, sys::file(b"hello"), None, 0));
        });
        t.server(|e| e.polls());
    }),
    Case("sendfile from an offset", |t| file(t, 3, Some(2))),
    Case("sendfile from an offset past the end", |t| {
        t.connected();
        t.client(|e| {
            see!(e, sendfile(e.fd, sys::file(b"hello"), Some(100), 10));
        });
        t.server(|e| e.polls());
    }),
    Case(
        "sendfile of 100,000 bytes past the end, on a kept connection",
        |t| whole_file(t, 100_000, 200_000),
    ),
    Case(
        "sendfile of 65,536 bytes past the end, on a kept connection",
        |t| whole_file(t, 65_536, 65_537),
    ),
    Case("sendfile of 3,000,000 bytes", |t| {
        whole_file(t, 3_000_000, 3_000_000)
    }),
    Case("sendfile after a header with MSG_MORE", |t| {
        t.connected();
        t.both(
            |e| {
                see!(e, send(e.fd, b"head", MSG_MORE));
                see!(e, sendfile(e.fd, sys::file(b"body"), None, 4));
                e.receives(10);
            },
            |e| {
                see!(e, recv(e.fd, 8, MSG_WAITALL));
                e.sends(b"thanks");
            },
        );
    }),
    Case("sendfile to a non-blocking socket", |t| {
        t.connected();
        t.client(|e| {
            e.fills();
            see!(e, sendfile(e.fd, sys::file(b"hello"), None, 5));
        });
    }),
    Case("sendfile to a peer that has closed", |t| {
        t.connected();
        t.server(End::close);
        t.client(|e| {
            see!(e, sendfile(e.fd, sys::file(b"hello"), None, 5));
        });
        t.client(|e| {
            see!(e, sendfile(e.fd, sys::file(b"hello"), None, 5));
        });
    }),
    Case("sendfile from a socket", |t| {
        hello(t);
        t.server(|e| {
            see!(e, sendfile(e.fd, e.fd, None, 5));
        });
    }),
    Case("copy_file_range to a socket", |t| {
        t.connected();
        t.client(|e| {
            see!(e, copy_file_range(sys::file(b"hello"), e.fd, 5));
        });
    }),
];

fn file(t: &mut End, count: usize, offset: Option<i64>) {
    t.connected();
    t.client(|e| {
        let file = sys::file(b"hello");
        see!(e, sendfile(e.fd, file, offset, count));
        see!(e, position(file));
    });
    t.server(|e| {
        see!(e, poll(e.fd, POLLIN, 1000));
        see!(e, recv(e.fd, 10, MSG_DONTWAIT));
    });
}

/// A file, and an answer that comes when it is there.
fn whole_file(t: &mut End, size: usize, count: usize) {
    t.connected();
    t.both(
        |e| {
            let file: Fd = sys::file(&pattern(0, size));
            e.begin("sendfile");
            let mut left = count;
            let mut sent = 0;
            while left > 0 {
                match e.must("sendfile", sys::sendfile(e.fd, file, None, left)) as usize {
                    0 => break,
                    part => {
                        sent += part;
                        left -= part;
                    }
                }
            }
            e.note(&format!("sent={sent}"));
            e.receives(10);
        },
        |e| {
            e.receives_pattern(0, size);
            e.sends(b"thanks");
        },
    );
}

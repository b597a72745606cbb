// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Socket options, before and after connect.

use super::Case;
use crate::end::End;
use crate::see;
use crate::sys::{self, Fd};
use libc::*;
use std::fmt::Write;

/// Options that are numbers: a case each, that gets it, sets it and gets it again.
macro_rules! options {
    ($($level:ident $name:ident = $value:expr;)*) => {
        &[$(Case(concat!("option ", stringify!($name)), |t| option(t, $level, $name, $value))),*]
    };
}

/// Options that the C library's crate does not name.
const TCP_TX_DELAY: i32 = 37;
const TCP_NOTSENT_LOWAT: i32 = 25;
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;
const SO_RESERVE_MEM: i32 = 73;
const SO_TXREHASH: i32 = 74;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const TCP_ULP: i32 = 31;

pub const NUMBERS: &[Case] = options! {
    SOL_SOCKET SO_DEBUG = 0;
    SOL_SOCKET SO_REUSEADDR = 1;
    SOL_SOCKET SO_REUSEPORT = 1;
    SOL_SOCKET SO_KEEPALIVE = 1;
    SOL_SOCKET SO_BROADCAST = 1;
    SOL_SOCKET SO_DONTROUTE = 1;
    SOL_SOCKET SO_OOBINLINE = 1;
    SOL_SOCKET SO_PRIORITY = 3;
    SOL_SOCKET SO_MARK = 9;
    SOL_SOCKET SO_RCVLOWAT = 4;
    SOL_SOCKET SO_SNDLOWAT = 4;
    SOL_SOCKET SO_NO_CHECK = 1;
    SOL_SOCKET SO_PASSCRED = 1;
    SOL_SOCKET SO_TIMESTAMPNS = 1;
    SOL_SOCKET SO_TIMESTAMPING = 2;
    SOL_SOCKET SO_BUSY_POLL = 50;
    SOL_SOCKET SO_ZEROCOPY = 1;
    SOL_SOCKET SO_TYPE = 1;
    SOL_SOCKET SO_DOMAIN = 1;
    SOL_SOCKET SO_ACCEPTCONN = 1;
    SOL_SOCKET SO_ERROR = 1;
    SOL_SOCKET SO_LOCK_FILTER = 0;
    SOL_SOCKET SO_RXQ_OVFL = 1;
    SOL_SOCKET SO_PREFER_BUSY_POLL = 1;
    SOL_SOCKET SO_BUSY_POLL_BUDGET = 8;
    SOL_SOCKET SO_RESERVE_MEM = 4096;
    SOL_SOCKET SO_TXREHASH = 0;
    SOL_SOCKET SO_RCVMARK = 1;
    SOL_SOCKET SO_PASSPIDFD = 1;
    IPPROTO_TCP TCP_NODELAY = 1;
    IPPROTO_TCP TCP_CORK = 1;
    IPPROTO_TCP TCP_KEEPIDLE = 60;
    IPPROTO_TCP TCP_KEEPINTVL = 5;
    IPPROTO_TCP TCP_KEEPCNT = 3;
    IPPROTO_TCP TCP_SYNCNT = 2;
    IPPROTO_TCP TCP_LINGER2 = 10;
    IPPROTO_TCP TCP_DEFER_ACCEPT = 1;
    IPPROTO_TCP TCP_WINDOW_CLAMP = 50000;
    IPPROTO_TCP TCP_USER_TIMEOUT = 5000;
    IPPROTO_TCP TCP_FASTOPEN = 5;
    IPPROTO_TCP TCP_FASTOPEN_CONNECT = 1;
    IPPROTO_TCP TCP_FASTOPEN_NO_COOKIE = 1;
    IPPROTO_TCP TCP_NOTSENT_LOWAT = 16384;
    IPPROTO_TCP TCP_SAVE_SYN = 1;
    IPPROTO_TCP TCP_INQ = 1;
    IPPROTO_TCP TCP_TX_DELAY = 0;
    IPPROTO_TCP TCP_THIN_LINEAR_TIMEOUTS = 1;
    IPPROTO_IP IP_TOS = 0x10;
    IPPROTO_IP IP_TTL = 33;
    IPPROTO_IP IP_MTU_DISCOVER = 2;
    IPPROTO_IP IP_RECVERR = 1;
    IPPROTO_IP IP_RECVTTL = 1;
    IPPROTO_IP IP_RECVTOS = 1;
    IPPROTO_IP IP_PKTINFO = 1;
    IPPROTO_IP IP_FREEBIND = 1;
    IPPROTO_IP IP_TRANSPARENT = 1;
    IPPROTO_IP IP_MINTTL = 1;
    IPPROTO_IP IP_BIND_ADDRESS_NO_PORT = 1;
    IPPROTO_IP IP_LOCAL_PORT_RANGE = 0;
    IPPROTO_IP IP_HDRINCL = 1;
    IPPROTO_IP IP_MULTICAST_TTL = 2;
    IPPROTO_IPV6 IPV6_UNICAST_HOPS = 33;
};

/// Options of IPv6 sockets.
pub const IPV6: &[Case] = &[
    Case("IPV6_V6ONLY", |t| option6(t, IPV6_V6ONLY, 1)),
    Case("IPV6_TCLASS", |t| option6(t, IPV6_TCLASS, 0x10)),
    Case("IPV6_UNICAST_HOPS of IPv6", |t| {
        option6(t, IPV6_UNICAST_HOPS, 33)
    }),
    Case("IPV6_MTU_DISCOVER", |t| option6(t, IPV6_MTU_DISCOVER, 2)),
    Case("IPV6_RECVERR", |t| option6(t, IPV6_RECVERR, 1)),
    Case("IPV6_RECVPKTINFO", |t| option6(t, IPV6_RECVPKTINFO, 1)),
    Case("IPV6_MTU", |t| option6(t, IPV6_MTU, 1280)),
    Case("IPV6_DONTFRAG", |t| option6(t, IPV6_DONTFRAG, 1)),
    Case("IPV6_AUTOFLOWLABEL", |t| option6(t, 70, 0)),
    Case("IPV6_ADDR_PREFERENCES", |t| {
        option6(t, IPV6_ADDR_PREFERENCES, 2)
    }),
    Case("IP_TOS of an IPv6 socket", |t| {
        t.client(|e| {
            let fd = e.socket(AF_INET6);
            see!(e, set(fd, IPPROTO_IP, IP_TOS, 0x10));
            see!(e, get(fd, IPPROTO_IP, IP_TOS));
        });
    }),
];

pub const CASES: &[Case] = &[
    Case("options of a listener", |t| {
        t.listening();
        t.server(|e| {
            for (level, option, value) in FEW {
                try_option(e, "listener", e.listener, level, option, value);
            }
        });
    }),
    Case("options after the end", |t| {
        t.connected();
        t.client(|e| e.close());
        t.server(|e| {
            for (level, option, value) in FEW {
                try_option(e, "ended", e.fd, level, option, value);
            }
        });
    }),
    Case("options after a reset", |t| {
        t.connected();
        t.client(|e| e.abort());
        t.server(|e| {
            for (level, option, value) in FEW {
                try_option(e, "reset", e.fd, level, option, value);
            }
        });
    }),
    Case("SO_RCVBUF and SO_SNDBUF", |t| {
        t.client(|e| {
            let fd = e.stream();
            for option in [SO_RCVBUF, SO_SNDBUF] {
                see!(e, set(fd, SOL_SOCKET, option, 40_000));
                see!(e, get(fd, SOL_SOCKET, option));
                see!(e, set(fd, SOL_SOCKET, option, 1));
                let least = sys::get(fd, SOL_SOCKET, option).map(|size| size < 10_000);
                see!(e, "little" => least);
            }
        });
    }),
    Case("SO_RCVBUF and SO_SNDBUF of a connection", |t| {
        t.connected();
        t.each(|e| {
            for option in [SO_RCVBUF, SO_SNDBUF] {
                see!(e, set(e.fd, SOL_SOCKET, option, 40_000));
                see!(e, get(e.fd, SOL_SOCKET, option));
            }
        });
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
    }),
    Case("SO_PROTOCOL", |t| {
        t.client(|e| {
            let protocol = sys::get(e.stream(), SOL_SOCKET, SO_PROTOCOL);
            let is_ours = protocol.map(|number| number == i64::from(e.protocol()));
            see!(e, "as asked for" => is_ours);
        });
    }),
    Case("SO_LINGER", |t| {
        t.connected();
        t.client(|e| {
            for fd in [e.stream(), e.fd] {
                show_bytes(e, "get", fd, SOL_SOCKET, SO_LINGER, 8);
                see!(e, linger(fd, Some(7)));
                show_bytes(e, "get", fd, SOL_SOCKET, SO_LINGER, 8);
                see!(e, linger(fd, None));
                see!(e, set(fd, SOL_SOCKET, SO_LINGER, 1));
            }
        });
    }),
    Case("SO_RCVTIMEO and SO_SNDTIMEO", |t| {
        t.connected();
        t.client(|e| {
            for fd in [e.stream(), e.fd] {
                for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
                    show_bytes(e, "get", fd, SOL_SOCKET, option, 16);
                    see!(e, timeout(fd, option, std::time::Duration::from_secs(3)));
                    show_bytes(e, "get", fd, SOL_SOCKET, option, 16);
                    see!(e, set(fd, SOL_SOCKET, option, 1));
                }
            }
        });
    }),
    Case("SO_BINDTODEVICE", |t| {
        t.client(|e| {
            let fd = e.stream();
            see!(e, set_bytes(fd, SOL_SOCKET, SO_BINDTODEVICE, b"lo\0"));
            show_bytes(e, "get", fd, SOL_SOCKET, SO_BINDTODEVICE, 16);
            see!(e, set_bytes(fd, SOL_SOCKET, SO_BINDTODEVICE, b"none\0"));
        });
    }),
    Case("SO_ATTACH_FILTER and SO_DETACH_FILTER", |t| {
        t.client(|e| {
            let fd = e.stream();
            see!(e, set_bytes(fd, SOL_SOCKET, SO_ATTACH_FILTER, &[0; 16]));
            see!(e, set(fd, SOL_SOCKET, SO_DETACH_FILTER, 0));
        });
    }),
    Case("SO_PEERCRED and SO_COOKIE", |t| {
        t.connected();
        t.client(|e| {
            show_bytes(e, "SO_PEERCRED", e.fd, SOL_SOCKET, SO_PEERCRED, 12);
            let cookie = sys::get_bytes(e.fd, SOL_SOCKET, SO_COOKIE, 8).map(|bytes| bytes.len());
            see!(e, "SO_COOKIE" => cookie);
        });
    }),
    Case("TCP_MAXSEG", |t| {
        t.connected();
        t.client(|e| {
            let fd = e.stream();
            see!(e, get(fd, IPPROTO_TCP, TCP_MAXSEG));
            see!(e, set(fd, IPPROTO_TCP, TCP_MAXSEG, 1000));
            see!(e, set(e.fd, IPPROTO_TCP, TCP_MAXSEG, 1000));
            see!(e, set(fd, IPPROTO_TCP, TCP_MAXSEG, 1));
        });
    }),
    Case("TCP_CONGESTION", |t| {
        t.connected();
        t.client(|e| {
            for fd in [e.stream(), e.fd] {
                show_bytes(e, "get", fd, IPPROTO_TCP, TCP_CONGESTION, 16);
                see!(e, set_bytes(fd, IPPROTO_TCP, TCP_CONGESTION, b"reno"));
                see!(e, set_bytes(fd, IPPROTO_TCP, TCP_CONGESTION, b"none"));
            }
        });
    }),
    Case("TCP_ULP", |t| {
        t.connected();
        t.client(|e| {
            see!(e, set_bytes(e.stream(), IPPROTO_TCP, TCP_ULP, b"tls"));
            see!(e, set_bytes(e.fd, IPPROTO_TCP, TCP_ULP, b"none"));
            show_bytes(e, "get", e.fd, IPPROTO_TCP, TCP_ULP, 16);
        });
    }),
    Case("TCP_INFO", |t| {
        t.connected();
        t.each(|e| {
            let info = sys::get_bytes(e.fd, IPPROTO_TCP, TCP_INFO, 104).map(|info| info.len());
            see!(e, "length" => info);
        });
    }),
    Case("TCP_SAVED_SYN", |t| {
        t.server(|e| {
            let fd = e.stream();
            see!(e, set(fd, IPPROTO_TCP, TCP_SAVE_SYN, 1));
            e.listen_on(fd, AF_INET, 5);
        });
        t.connecting(|_| {}, |_| {});
        t.server(|e| {
            let syn =
                sys::get_bytes(e.fd, IPPROTO_TCP, TCP_SAVED_SYN, 200).map(|syn| !syn.is_empty());
            see!(e, "there" => syn);
        });
    }),
    Case("TCP_MD5SIG of too little", |t| {
        t.client(|e| {
            see!(e, set(e.stream(), IPPROTO_TCP, TCP_MD5SIG, 1));
        });
    }),
    Case("IP_MTU", |t| {
        t.connected();
        t.client(|e| {
            see!(e, get(e.stream(), IPPROTO_IP, IP_MTU));
            let mtu = sys::get(e.fd, IPPROTO_IP, IP_MTU).map(|mtu| mtu >= 1280);
            see!(e, "enough" => mtu);
        });
    }),
    Case("IP_OPTIONS", |t| {
        t.connected();
        t.client(|e| {
            show_bytes(e, "get", e.fd, IPPROTO_IP, IP_OPTIONS, 40);
            see!(e, set_bytes(e.fd, IPPROTO_IP, IP_OPTIONS, &[]));
        });
    }),
    Case("a level that there is not", |t| {
        t.connected();
        t.client(|e| {
            for fd in [e.stream(), e.fd] {
                see!(e, get(fd, 12345, 1));
                see!(e, set(fd, 12345, 1, 1));
                see!(e, get(fd, IPPROTO_UDP, 1));
            }
        });
    }),
    Case("an option that there is not", |t| {
        t.connected();
        t.client(|e| {
            for level in [SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP] {
                see!(e, get(e.fd, level, 9999));
                see!(e, set(e.fd, level, 9999, 1));
            }
        });
    }),
    Case("options of a bad length, from a bad pointer", |t| {
        t.connected();
        t.client(|e| {
            for fd in [e.stream(), e.fd] {
                see!(e, set_bytes(fd, SOL_SOCKET, SO_KEEPALIVE, &[1, 0]));
                see!(e, set_bytes(fd, IPPROTO_TCP, TCP_NODELAY, &[1, 0]));
                see!(e, set_bad(fd, SOL_SOCKET, SO_KEEPALIVE));
                see!(e, set_bad(fd, IPPROTO_TCP, TCP_NODELAY));
                show_bytes(e, "get", fd, SOL_SOCKET, SO_TYPE, 1);
                show_bytes(e, "get", fd, IPPROTO_TCP, TCP_KEEPCNT, 2);
                show_bytes(e, "get", fd, IPPROTO_TCP, TCP_KEEPCNT, 40);
            }
        });
    }),
];

/// Some options that a program may set at any time.
const FEW: [(i32, i32, i32); 8] = [
    (SOL_SOCKET, SO_KEEPALIVE, 1),
    (SOL_SOCKET, SO_PRIORITY, 2),
    (SOL_SOCKET, SO_REUSEADDR, 1),
    (IPPROTO_TCP, TCP_NODELAY, 1),
    (IPPROTO_TCP, TCP_CORK, 1),
    (IPPROTO_TCP, TCP_KEEPIDLE, 50),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 3000),
    (IPPROTO_IP, IP_TOS, 0x10),
];

/// An option's value before it is set, what setting it gives, and its value then.
fn try_option(e: &End, name: &str, fd: Fd, level: i32, option: i32, value: i32) {
    e.begin(name);
    let mut text = String::new();
    for outcome in [
        sys::get(fd, level, option),
        sys::set(fd, level, option, value),
        sys::get(fd, level, option),
    ] {
        let separator = if text.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(text, "{separator}{}", crate::end::shown(&outcome));
    }
    e.saw(name, &text);
}

fn option(t: &mut End, level: i32, option: i32, value: i32) {
    t.listening();
    t.both(
        |e| {
            let fresh = e.stream();
            try_option(e, "new", fresh, level, option, value);
            e.fd = e.stream();
            e.must("connect", sys::connect(e.fd, &e.to()));
            e.prove(e.fd);
        },
        |e| e.accept(),
    );
    t.each(|e| try_option(e, "connected", e.fd, level, option, value));
    // One that was set before: does the connection have it?
    t.client(|e| {
        let fd = e.stream();
        sys::set(fd, level, option, value).ok();
        see!(e, "set, connect" => sys::connect(fd, &e.to()));
        see!(e, get(fd, level, option));
    });
}

fn option6(t: &mut End, option: i32, value: i32) {
    t.listening_in(AF_INET6);
    t.both(
        |e| {
            let fresh = e.socket(AF_INET6);
            try_option(e, "new", fresh, IPPROTO_IPV6, option, value);
            e.fd = e.socket(AF_INET6);
            e.must("connect", sys::connect(e.fd, &e.to6()));
            e.prove(e.fd);
        },
        |e| e.accept(),
    );
    t.each(|e| try_option(e, "connected", e.fd, IPPROTO_IPV6, option, value));
    t.client(|e| {
        let fd = e.socket(AF_INET6);
        sys::set(fd, IPPROTO_IPV6, option, value).ok();
        see!(e, "set, connect" => sys::connect(fd, &e.to6()));
        e.prove(fd);
    });
}

fn show_bytes(e: &End, name: &str, fd: Fd, level: i32, option: i32, size: usize) {
    let text = sys::get_bytes(fd, level, option, size).map(|bytes| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{digits}", bytes.len())
    });
    e.saw(name, &crate::end::shown(&text));
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IPv6, and IPv4 in its clothes.

use super::Case;
use crate::see;
use crate::sys::{self, Addr, Fd};
use libc::*;

pub const CASES: &[Case] = &[
    Case("IPv6 connection", |t| {
        t.listening_in(AF_INET6);
        t.both(
            |e| {
                e.fd = e.socket(AF_INET6);
                see!(e, connect(e.fd, &e.to6()));
                e.prove(e.fd);
            },
            |e| e.accept(),
        );
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
        t.each(|e| {
            e.names("getsockname", sys::getsockname(e.fd));
            e.names("getpeername", sys::getpeername(e.fd));
            see!(e, get(e.fd, SOL_SOCKET, SO_DOMAIN));
        });
    }),
    Case("IPv6, refused", |t| {
        t.server(|e| {
            let fd = e.socket(AF_INET6);
            e.bind_to_own_port(fd, AF_INET6);
        });
        t.client(|e| {
            e.fd = e.socket(AF_INET6);
            see!(e, connect(e.fd, &e.to6()));
            e.polls();
        });
    }),
    Case("IPv6 socket to an IPv4 listener", |t| {
        t.listening();
        t.both(
            |e| {
                e.fd = e.socket(AF_INET6);
                see!(e, connect(e.fd, &e.to_mapped()));
                e.prove(e.fd);
            },
            |e| e.accept(),
        );
        t.client(|e| e.sends(b"hello"));
        t.server(|e| e.receives(10));
        t.each(|e| {
            e.names("getsockname", sys::getsockname(e.fd));
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("IPv4 socket to an IPv6 listener", |t| {
        t.listening_in(AF_INET6);
        t.client(|e| {
            e.fd = e.stream();
            see!(e, connect(e.fd, &e.to()));
            e.prove(e.fd);
        });
        t.server(|e| {
            let accepted = sys::accept_from(e.listener);
            e.fd = accepted.map_or(-1, |(fd, _)| fd);
            e.names("accept", accepted.map(|(_, name)| name));
            e.prove(e.fd);
        });
        t.each(|e| {
            e.names("getsockname", sys::getsockname(e.fd));
            e.names("getpeername", sys::getpeername(e.fd));
        });
    }),
    Case("IPv4 socket to an IPv6 listener with IPV6_V6ONLY", |t| {
        t.server(|e| {
            let fd = e.socket(AF_INET6);
            see!(e, set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
            e.listen_on(fd, AF_INET6, 5);
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
        });
    }),
    Case("IPv6 socket with IPV6_V6ONLY to a mapped address", |t| {
        t.listening();
        t.client(|e| {
            let fd = e.socket(AF_INET6);
            see!(e, set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
            see!(e, connect(fd, &e.to_mapped()));
        });
    }),
    Case("IPv4 and IPv6 listener on one port", |t| {
        t.server(|e| {
            let six = e.socket(AF_INET6);
            see!(e, set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1));
            e.listen_on(six, AF_INET6, 5);
            let four = e.stream();
            see!(
                e,
                bind(four, &Addr::v4(std::net::Ipv4Addr::UNSPECIFIED, e.port))
            );
            see!(e, listen(four, 5));
        });
        t.client(|e| {
            see!(e, connect(e.stream(), &e.to()));
            see!(e, connect(e.socket(AF_INET6), &e.to6()));
        });
    }),
    Case("IPv6 connect to AF_UNSPEC", |t| {
        t.client(|e| {
            let fd = e.socket(AF_INET6);
            see!(e, connect(fd, &Addr::unspecified()));
        });
    }),
    Case("IPv6 connect with too short an address", |t| {
        t.listening_in(AF_INET6);
        t.client(|e| {
            let fd = e.socket(AF_INET6);
            for length in [16, 24, 27] {
                see!(e, connect(fd, &e.to6().with_length(length)));
            }
        });
    }),
    Case("IPv6 bind of an address of another family", |t| {
        t.client(|e| {
            let fd = e.socket(AF_INET6);
            see!(e, bind(fd, &crate::end::End::any(AF_INET).with_length(28)));
            see!(e, bind(fd, &crate::end::End::any(AF_INET6).with_length(20)));
        });
    }),
    Case("IPv6, 1,000,000 bytes and the end", |t| {
        t.listening_in(AF_INET6);
        t.both(
            |e| {
                e.fd = e.socket(AF_INET6);
                e.must("connect", sys::connect(e.fd, &e.to6()));
                e.prove(e.fd);
                e.sends_pattern(0, 1_000_000);
                e.close();
            },
            |e| {
                e.accept();
                e.receives_pattern(0, 1_000_001);
            },
        );
    }),
    Case("sockets of other kinds and protocols", |t| {
        t.client(|e| {
            let protocol = e.protocol();
            let kind = |domain, kind| {
                sys::socket(domain, kind, protocol).map(|fd| sys::close(fd as Fd).is_ok())
            };
            see!(e, "datagram" => kind(AF_INET, SOCK_DGRAM));
            see!(e, "raw" => kind(AF_INET, SOCK_SEQPACKET));
            see!(e, "unknown" => kind(AF_INET, 77));
            see!(e, "local" => kind(AF_UNIX, SOCK_STREAM));
        });
    }),
];

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whatever comes through the socket spoils the link of whoever sent it, and nothing else.

use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use proptest::collection;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::Window;
use crate::fabric::socket::own_user;
use crate::peer::{self, Bye, Hello, Message, Packet};

/// Our GIDs: a hostile client is side 0 or side 1 to the device, whose GID is in between.
pub const LOW: u8 = 1;
pub const MIDDLE: u8 = 2;
pub const HIGH: u8 = 3;

/// A device with a link to a good peer, which must come to no harm.
pub struct Scene {
    pub folder: tempfile::TempDir,
    pub vm: Vm,
    pub good: Vm,
    pub expected: Vec<usize>,
}

impl Scene {
    pub fn new() -> Self {
        Self::with(Vm::start)
    }

    /// With the limits of a real device.
    pub fn strict() -> Self {
        Self::with(Vm::start_strict)
    }

    fn with(start: impl Fn(Config) -> Vm) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            gid: gid(MIDDLE),
            ..options(folder.path(), "a", &[])
        };
        let vm = start(config);
        let good = Vm::start(options(folder.path(), "good", &["a"]));
        good.eventually_up(0);
        vm.eventually_up(0);
        vm.claim(0);
        good.vectors();
        Scene {
            folder,
            vm,
            good,
            expected: vec![1],
        }
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.folder.path().join("a"))
    }

    /// A client that has a link as soon as its VMM call is no longer held, which it is from here on.
    pub fn joins_a_held_vmm(&self) -> Client {
        self.vm.host.hold(true);
        let client = self.connect();
        client.hello(HIGH);
        client.next();
        client.next();
        client.send(ACCEPT, &[eventfd().as_raw_fd()]);
        eventually("the VMM is asked", || self.vm.host.is_holding());
        client
    }

    pub fn is_unharmed(&self) {
        assert_eq!((self.vm.link_state(0), self.vm.generation(0)), (UP, 1));
        assert_eq!((self.good.link_state(0), self.good.generation(0)), (UP, 1));
        assert!(self.vm.host.store(BAR0 + 0x2004, 0));
        assert_eq!(self.good.vectors(), self.expected);
        let (ours, theirs) = (self.vm.host.memory(BAR2), self.good.host.memory(BAR2));
        // SAFETY: the windows are mapped as long as the link is up, and nobody else uses them.
        unsafe {
            let next = ours.read_volatile().wrapping_add(1);
            ours.write_volatile(next);
            assert_eq!(theirs.read_volatile(), next);
        }
        assert_eq!(
            self.vm
                .host
                .windows()
                .iter()
                .filter(|window| window.2 == 0)
                .count(),
            1
        );
    }

    /// Nothing of the hostile clients is left.
    pub fn is_as_before(&self) {
        eventually("the other links are down", || {
            self.vm.links() == 1 && self.vm.link_state(1) == DOWN && self.vm.link_state(2) == DOWN
        });
        assert_eq!(self.vm.host.windows().len(), 1);
        assert_eq!(self.vm.host.doorbells().len(), 4);
        self.is_unharmed();
    }
}

/// A client whose every failure is one of the test's.
pub struct Client(pub peer::Client);

impl Client {
    /// Connects as soon as there is room in the device's queue.
    pub fn connect(path: &Path) -> Self {
        Client(peer::Client::connect(path, PATIENCE).unwrap())
    }

    pub fn send(&self, message: Message, descriptors: &[RawFd]) {
        self.try_send(&message.encode(), descriptors).unwrap();
    }

    /// Sends as soon as the device takes descriptors, if it does at all.
    pub fn try_send(&self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        self.0.send_soon(bytes, descriptors, PATIENCE)
    }

    pub fn hello(&self, first: u8) {
        self.send(hello(first), &[]);
    }

    /// The next message; `None` if the device has closed the connection.
    pub fn next(&self) -> Option<(Message, Packet)> {
        self.0.next(PATIENCE).unwrap()
    }

    /// The reason with which the device ends the connection.
    pub fn end(&self) -> Option<Bye> {
        self.0.end(PATIENCE).unwrap()
    }
}

pub fn hello(first: u8) -> Message {
    let gid = gid(first).unwrap();
    let position = u32::from(gid.position());
    Message::Hello(Hello {
        gid,
        position,
        vectors: 1,
        fabric_id: 0xff00,
        window_shift: 22,
    })
}

pub const OFFER: Message = Message::Offer {
    window_shift: 22,
    vectors: 1,
};
pub const ACCEPT: Message = Message::Accept { vectors: 1 };

pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

/// Sends more descriptors than a good client could, as soon as the device takes any.
fn send_many(socket: &impl AsRawFd, bytes: &[u8], descriptors: &[RawFd]) {
    eventually("the device takes descriptors", || {
        try_send_many(socket, bytes, descriptors)
    });
}

fn try_send_many(socket: &impl AsRawFd, bytes: &[u8], descriptors: &[RawFd]) -> bool {
    let size = size_of_val(descriptors);
    let mut control = vec![0u64; 8 + size];
    let mut buffer = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a msghdr of zeros is a valid one; the control buffer is aligned and has room for all descriptors.
    let sent = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &mut buffer;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(size as u32) as usize;
        let message = libc::CMSG_FIRSTHDR(&header);
        (*message).cmsg_level = libc::SOL_SOCKET;
        (*message).cmsg_type = libc::SCM_RIGHTS;
        (*message).cmsg_len = libc::CMSG_LEN(size as u32) as usize;
        let data = libc::CMSG_DATA(message);
        ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), data, size);
        libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL)
    };
    sent >= 0
}

#[test]
fn a_client_that_does_everything_right_gets_a_link() {
    let scene = Scene::new();
    let (low, high) = (scene.connect(), scene.connect());
    low.hello(LOW);
    assert!(matches!(low.next(), Some((Message::Hello(_), _))));
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    low.send(OFFER, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
    let (accept, packet) = low.next().unwrap();
    assert_eq!(
        (accept, packet.descriptors.len()),
        (Message::Accept { vectors: 2 }, 2)
    );
    assert_eq!(scene.vm.link_state(1), UP);
    assert!(scene.vm.host.store(BAR0 + 0x2040, 0));
    assert_eq!(bell.read().unwrap(), 1);

    high.hello(HIGH);
    assert!(matches!(high.next(), Some((Message::Hello(_), _))));
    let (offer, packet) = high.next().unwrap();
    assert_eq!(
        offer,
        Message::Offer {
            window_shift: 22,
            vectors: 2
        }
    );
    assert_eq!(packet.descriptors.len(), 3);
    high.send(ACCEPT, &[bell.as_raw_fd()]);
    eventually("up", || scene.vm.link_state(2) == UP);
    // Once it is a link, a connection says nothing but BYE.
    high.send(ACCEPT, &[bell.as_raw_fd()]);
    assert_eq!(high.end(), Some(Bye::Protocol));
    low.send(Message::Bye(Bye::Closing), &[]);
    assert_eq!(low.end(), None);
    scene.is_as_before();
    assert_eq!(scene.vm.device.counters().protocol_errors, 1);
}

/// Finding 5.8: one for each link and vector.
#[test]
fn vectors_have_one_route_each_however_many_links() {
    const LINKS: u8 = 20;
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(Config {
        gid: gid(0xff),
        max_peers: 64,
        vectors: 16,
        ..options(folder.path(), "a", &[])
    });
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    let clients: Vec<Client> = (1..=LINKS)
        .map(|first| {
            let client = Client::connect(&folder.path().join("a"));
            client.hello(first);
            client.next();
            client.send(OFFER, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
            client.next();
            client
        })
        .collect();
    assert_eq!(vm.links(), u64::from(LINKS));
    let all = (0..16).map(|vector| (vector, usize::from(LINKS)));
    assert_eq!(vm.host.connected(), all.collect());
    drop(clients);
    eventually("the links are gone", || vm.links() == 0);
    assert!(vm.host.connected().is_empty());
    vm.stop();
}

#[test]
fn bytes_that_are_no_message() {
    let scene = Scene::new();
    let good = hello(HIGH).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for bytes in [
        b"x".to_vec(),
        good[..15].to_vec(),
        good[..55].to_vec(),
        [good.as_slice(), b"x"].concat(),
        vec![0x5a; 65536],
        with(0, 0),
        with(4, 2),
        with(6, 0),
        with(6, 5),
        with(8, 0),
        with(9, 1),
    ] {
        let client = scene.connect();
        client.0.send(&bytes, &[]).unwrap();
        assert_eq!(client.end(), Some(Bye::Protocol), "{} bytes", bytes.len());
    }
    let client = scene.connect();
    client.0.send(&[], &[]).unwrap();
    assert_eq!(
        client.end(),
        None,
        "an empty packet is the end of the connection"
    );
    scene.is_as_before();
    assert_eq!(scene.vm.device.counters().protocol_errors, 11);
}

#[test]
fn messages_out_of_their_turn() {
    let scene = Scene::new();
    let bell = eventfd();
    let window = Window::create(WINDOW, false).unwrap();
    let offered = [window.file().as_raw_fd(), bell.as_raw_fd()];
    for (first, message, descriptors) in [
        (None, OFFER, &offered[..]),
        (None, ACCEPT, &offered[1..]),
        (Some(LOW), ACCEPT, &offered[1..]),
        (Some(LOW), hello(LOW), &[]),
        (Some(HIGH), OFFER, &offered[..]),
        (Some(HIGH), hello(HIGH), &[]),
    ] {
        let client = scene.connect();
        if let Some(first) = first {
            client.hello(first);
        }
        client.send(message, descriptors);
        assert_eq!(client.end(), Some(Bye::Protocol), "{first:?} {message:?}");
    }
    // The same GID again while the first is about to become a link.
    let (first, second) = (scene.connect(), scene.connect());
    first.hello(HIGH);
    while !matches!(first.next(), Some((Message::Offer { .. }, _))) {}
    second.hello(HIGH);
    assert_eq!(second.end(), Some(Bye::Duplicate));
    drop(first);
    scene.is_as_before();
}

#[test]
fn descriptors_that_are_not_what_they_should_be() {
    let scene = Scene::new();
    let (bell, null) = (eventfd(), null());
    let good = Window::create(WINDOW, false).unwrap();
    let small = Window::create(WINDOW / 2, false).unwrap();
    let (bell_fd, null_fd) = (bell.as_raw_fd(), null.as_raw_fd());
    let (good_fd, small_fd) = (good.file().as_raw_fd(), small.file().as_raw_fd());
    let protocol = [
        (LOW, OFFER, vec![null_fd, bell_fd]),
        (LOW, OFFER, vec![bell_fd, bell_fd]),
        (LOW, OFFER, vec![small_fd, bell_fd]),
        (LOW, OFFER, vec![good_fd]),
        (LOW, OFFER, vec![]),
        (LOW, OFFER, vec![good_fd, bell_fd, bell_fd]),
        (
            LOW,
            Message::Offer {
                window_shift: 22,
                vectors: 16,
            },
            vec![good_fd; 17],
        ),
        (
            LOW,
            Message::Offer {
                window_shift: 22,
                vectors: u32::MAX,
            },
            vec![good_fd; 17],
        ),
        (
            LOW,
            Message::Offer {
                window_shift: 63,
                vectors: 1,
            },
            vec![good_fd, bell_fd],
        ),
        (HIGH, ACCEPT, vec![]),
        (HIGH, ACCEPT, vec![bell_fd, bell_fd]),
        (HIGH, Message::Accept { vectors: 0 }, vec![]),
    ];
    for (first, message, descriptors) in protocol {
        let client = scene.connect();
        client.hello(first);
        client.send(message, &descriptors);
        assert_eq!(
            client.end(),
            Some(Bye::Protocol),
            "{message:?} {descriptors:?}"
        );
    }
    // What should be an eventfd and is none is for KVM to say, or here for the fake VMM; it is the peer's fault.
    for (first, message, descriptors) in [
        (LOW, OFFER, vec![good_fd, null_fd]),
        (HIGH, ACCEPT, vec![null_fd]),
    ] {
        let client = scene.connect();
        client.hello(first);
        client.send(message, &descriptors);
        assert_eq!(client.end(), Some(Bye::Protocol));
    }
    let counters = scene.vm.device.counters();
    assert_eq!((counters.protocol_errors, counters.host_errors), (14, 0));
    for count in [1, 17, 18, 19, 253] {
        let client = scene.connect();
        send_many(&client.0, &hello(LOW).encode(), &vec![null_fd; count]);
        assert_eq!(client.end(), Some(Bye::Protocol), "{count} descriptors");
    }
    scene.is_as_before();
}

#[test]
fn half_open_connections_end_after_two_seconds() {
    let scene = Scene::strict();
    let start = Instant::now();
    let (silent, half, offered) = (scene.connect(), scene.connect(), scene.connect());
    half.hello(LOW);
    offered.hello(HIGH);
    for client in [silent, half, offered] {
        assert_eq!(client.end(), Some(Bye::Closing));
        assert!(start.elapsed() > Duration::from_millis(1900));
    }
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(scene.vm.device.counters().handshakes_timed_out, 3);
    scene.is_as_before();
}

#[test]
fn no_more_than_16_connections_wait() {
    let scene = Scene::new();
    let waiting: Vec<Client> = (0..16).map(|_| scene.connect()).collect();
    eventually("all are accepted", || {
        scene.vm.device.counters().connections_accepted == 17
    });
    let one_more = scene.connect();
    assert_eq!(one_more.end(), Some(Bye::Full));
    // A peer that comes now has to wait until there is room.
    let late = Vm::start(options(scene.folder.path(), "late", &["a"]));
    drop(waiting);
    late.eventually_up(0);
    late.stop();
    scene.is_as_before();
}

#[test]
fn a_thousand_refusals_are_not_told_a_thousand_times() {
    let scene = Scene::new();
    scene.vm.host.events();
    let start = Instant::now();
    for _ in 0..1000 {
        let client = scene.connect();
        client.0.send(b"nonsense", &[]).unwrap();
        assert_eq!(client.end(), Some(Bye::Protocol));
    }
    // Ten in each second that has begun.
    let most = 10 * (start.elapsed().as_secs() as usize + 2);
    thread::sleep(Duration::from_secs(1));
    let client = scene.connect();
    client.hello(MIDDLE);
    assert_eq!(client.end(), Some(Bye::Refused));
    let counters = scene.vm.device.counters();
    assert_eq!(counters.protocol_errors, 1000);
    assert_eq!(counters.handshakes_refused, 1);
    let named = counters.named();
    assert!(named.contains(&("protocol_errors", 1000)));
    // The last is told when it has happened.
    let mut events = scene.vm.host.events();
    eventually("the last is told", || {
        events.extend(scene.vm.host.events());
        events
            .last()
            .is_some_and(|last| last.reason.contains("own GID"))
    });
    assert!((11..=most).contains(&events.len()), "{}", events.len());
    assert!(events.iter().all(|each| each.kind.name() == "refused"));
    assert!(events.iter().any(|each| each.reason.contains("more that")));
    scene.is_as_before();
}

#[test]
fn another_user_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    if own_user() != 0 {
        println!("SKIPPED: only root can be another user");
        return;
    }
    let scene = Scene::new();
    for path in [scene.folder.path(), &scene.folder.path().join("a")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let connect_as_nobody = || {
        // SAFETY: plain system call. Made like this, and not by libc, it changes this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        scene.connect()
    };
    let client = thread::scope(|scope| scope.spawn(connect_as_nobody).join()).unwrap();
    assert_eq!(client.end(), Some(Bye::Refused));
    assert_eq!(scene.vm.device.counters().handshakes_refused, 1);
    scene.is_as_before();
}

/// One thing that a hostile client does.
#[derive(Clone, Debug)]
enum Act {
    Message(u8, u32, u32, Vec<u8>),
    Bytes(Vec<u8>),
    Read,
}

fn any_act() -> impl Strategy<Value = Act> {
    let small = || prop_oneof![Just(22u32), Just(1), Just(2), any::<u32>()];
    let descriptors = collection::vec(0u8..4, 0..5);
    prop_oneof![
        4 => (0u8..6, small(), small(), descriptors)
            .prop_map(|(kind, one, other, descriptors)| Act::Message(kind, one, other, descriptors)),
        1 => collection::vec(any::<u8>(), 1..80).prop_map(Act::Bytes),
        1 => Just(Act::Read),
    ]
}

#[test]
fn any_sequence_of_anything() {
    let scene = Scene::new();
    let window = Window::create(WINDOW, false).unwrap();
    let (bell, null) = (eventfd(), null());
    let known = [
        window.file().as_raw_fd(),
        bell.as_raw_fd(),
        bell.as_raw_fd(),
        null.as_raw_fd(),
    ];
    let play = |acts: &[Act]| {
        let client = scene.connect();
        for act in acts {
            // The device may have closed the connection by now.
            let _ = match act {
                Act::Message(kind, one, other, descriptors) => {
                    let message = match kind {
                        0 => hello(LOW),
                        1 => hello(HIGH),
                        2 => Message::Offer {
                            window_shift: *one,
                            vectors: *other,
                        },
                        3 => OFFER,
                        4 => ACCEPT,
                        _ => Message::Accept { vectors: *one },
                    };
                    let descriptors: Vec<RawFd> =
                        descriptors.iter().map(|&n| known[usize::from(n)]).collect();
                    client.0.send(&message.encode(), &descriptors)
                }
                Act::Bytes(bytes) => client.0.send(bytes, &[]),
                Act::Read => client.0.receive().map(drop),
            };
        }
    };
    let mut runner = TestRunner::deterministic();
    let acts = collection::vec(any_act(), 1..6);
    runner
        .run(&acts, |acts| {
            play(&acts);
            scene.is_unharmed();
            Ok(())
        })
        .unwrap();
    scene.is_as_before();
}

pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many descriptors this process has when nothing is under way any more: a link is up a moment before the
/// thread that made it has closed its copies.
pub fn settled_descriptors() -> usize {
    let mut last = (descriptors(), 0);
    eventually("the descriptors settle", || {
        let now = descriptors();
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        last.1 == 50
    });
    last.0
}

pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn nothing_leaks() {
    alone("tests::hostile::a_thousand_connections_leave_nothing_behind");
}

#[test]
#[ignore = "counts the process's descriptors; run by nothing_leaks"]
fn a_thousand_connections_leave_nothing_behind() {
    let at_first = (descriptors(), threads());
    let scene = Scene::strict();
    let window = Window::create(WINDOW, false).unwrap();
    let (bell, null) = (eventfd(), null());
    let before = settled_descriptors();
    for n in 0..1000 {
        let client = scene.connect();
        let result = match n % 5 {
            0 => Ok(()),
            1 => client.0.send(b"nonsense", &[null.as_raw_fd(); 17]),
            2 => client.0.send(&hello(HIGH).encode(), &[]),
            3 => client.0.send(&hello(LOW).encode(), &[bell.as_raw_fd()]),
            _ => {
                let offered = [window.file().as_raw_fd(), bell.as_raw_fd()];
                client
                    .0
                    .send(&hello(LOW).encode(), &[])
                    .and_then(|()| client.try_send(&OFFER.encode(), &offered))
            }
        };
        // The device may have closed the connection, if too many wait. Most clients do not look, but some see
        // to it that links are among what comes and goes.
        if result.is_ok() && n % 50 == 4 {
            while !matches!(client.next(), None | Some((Message::Accept { .. }, _))) {}
        }
    }
    eventually("the descriptors are back", || descriptors() == before);
    scene.is_as_before();
    // Clients that stay: silent, half-way, and with 10,000 bytes of anything, in one packet and in many.
    let scatter = |n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8;
    let anything: Vec<u8> = (0..10_000).map(scatter).collect();
    let timed_out = scene.vm.device.counters().handshakes_timed_out;
    let (silent, low, high) = (scene.connect(), scene.connect(), scene.connect());
    low.hello(LOW);
    high.hello(HIGH);
    let clients = [silent, low, high, scene.connect(), scene.connect()];
    clients[3].0.send(&anything, &[]).unwrap();
    for packet in anything.chunks(56) {
        // The device may have closed the connection, or the queue may be full.
        let _ = clients[4].0.send(packet, &[]);
    }
    scene.is_unharmed();
    let ends = clients.each_ref().map(Client::end);
    let late = Some(Bye::Closing);
    assert_eq!(ends[..3], [late, late, late]);
    assert_eq!(ends[3], Some(Bye::Protocol));
    assert_eq!(
        scene.vm.device.counters().handshakes_timed_out - timed_out,
        3
    );
    drop(clients);
    eventually("the descriptors are back", || descriptors() == before);
    scene.is_as_before();
    assert!(
        scene.vm.device.counters().links_up > 1,
        "some have become links"
    );
    let Scene {
        folder, vm, good, ..
    } = scene;
    vm.stop();
    good.stop();
    drop((folder, window, bell, null));
    // The reapers end by themselves.
    eventually("nothing is left", || (descriptors(), threads()) == at_first);
}

#[test]
fn a_process_without_descriptors_goes_on_when_it_has_some() {
    alone("tests::hostile::out_of_descriptors");
}

#[test]
#[ignore = "uses up the process's descriptors; run by a_process_without_descriptors_goes_on_when_it_has_some"]
fn out_of_descriptors() {
    let scene = Scene::strict();
    let limit = libc::rlimit {
        rlim_cur: descriptors() as u64 + 20,
        rlim_max: 4096,
    };
    // SAFETY: the limit outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let client = scene.connect();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // Connections cannot be accepted now, nor windows be made.
    client.hello(HIGH);
    thread::sleep(Duration::from_millis(300));
    drop(hoard);
    let _ = client.end();
    scene.is_as_before();
    let late = Vm::start(options(scene.folder.path(), "late", &["a"]));
    late.eventually_up(0);
    late.stop();
    scene.is_as_before();
}

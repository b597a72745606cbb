// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A link's life, and the table of them. There is no I/O in here.

use std::collections::BTreeMap;
use std::mem;
use std::slice;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::fabric::handshake::Terms;
use crate::fabric::wire::Bye;
use crate::{Gid, LinkInfo, LinkState, NoSuchPeer, RefusedPeer};

/// What a link is at, all told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    /// There is no peer.
    #[default]
    Down,
    /// There is none yet: a connection to this GID is about to bring the link up.
    Joining(Gid),
    /// Both ends have the window, and the guest has not claimed it.
    Up,
    /// The guest has.
    Claimed,
    /// The peer is gone, and the guest has not let go of the window.
    Lost,
    /// The guest has, or never had it, and the window is about to be taken out.
    LetGo,
}

/// What can happen to a link: the state machine's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A connection to this GID wants the place.
    Reserve(Gid),
    /// It wants it no longer.
    Cancel,
    /// It has become a link on these terms.
    Join(Terms),
    /// The peer is gone.
    Lose,
    /// The guest writes Claim.
    Claim(u32),
    /// The window has been taken out.
    Reap,
    /// The device is reset, or closes.
    End,
}

/// What an input asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// To turn whoever caused the input away: it cannot be now.
    Refuse,
    /// To tell that the link is up.
    Announce,
    /// To take the doorbells out of the guest, to disconnect the vectors, and to tell that the link is lost.
    Disconnect,
    /// To take all of the link out of the guest, then to reap it, and to tell that it is down.
    Remove,
    /// To reap the links soon, on the fabric's thread.
    Wake,
}

/// One link. Its transitions are those of docs/device.md, "The life of a link".
#[derive(Clone, Debug, Default)]
pub struct Link {
    life: Life,
    generation: u32,
    /// The present peer, or the last one.
    peer: Option<Terms>,
    /// That peer's socket, if it is known.
    path: Option<String>,
    /// When it came up.
    since: Option<Instant>,
}

/// A link in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSnapshot {
    generation: u32,
    claimed: Option<ClaimedSnapshot>,
}

/// What the guest knows of the peer whose window it has claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClaimedSnapshot {
    gid: Gid,
    position: u16,
    vectors: u16,
    window_shift: u32,
    side: u32,
}

impl Link {
    /// What the link is at.
    pub fn state(&self) -> LinkState {
        match self.life {
            Life::Down | Life::Joining(_) => LinkState::Down,
            Life::Up | Life::Claimed => LinkState::Up,
            Life::Lost | Life::LetGo => LinkState::Lost,
        }
    }

    /// How many times it came up.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The generation that the guest has claimed; 0: none.
    pub fn claim(&self) -> u32 {
        match self.life {
            Life::Claimed | Life::Lost => self.generation,
            _ => 0,
        }
    }

    /// The peer, while there is one or the guest still has its window.
    pub fn peer(&self) -> Option<&Terms> {
        let is_down = self.state() == LinkState::Down;
        self.peer.as_ref().filter(|_| !is_down)
    }

    /// Something happens. This is all that ever changes a link. The transitions other than those of `Claim` are made
    /// by who holds the lock of what is in the guest.
    pub fn on(&mut self, input: Input) -> Action {
        let (life, action) = match (self.life, input) {
            (Life::Down, Input::Reserve(gid)) => (Life::Joining(gid), Action::Nothing),
            (life, Input::Reserve(_)) => (life, Action::Refuse),

            (Life::Joining(_), Input::Cancel) => (Life::Down, Action::Nothing),
            (life, Input::Cancel) => (life, Action::Nothing),

            (Life::Joining(gid), Input::Join(terms)) if terms.gid == gid => {
                self.generation = self.generation.checked_add(1).unwrap_or(1);
                self.peer = Some(terms);
                self.path = None;
                self.since = Some(Instant::now());
                (Life::Up, Action::Announce)
            }
            (life, Input::Join(_)) => (life, Action::Refuse),

            (Life::Up, Input::Lose) => (Life::LetGo, Action::Remove),
            (Life::Claimed, Input::Lose) => (Life::Lost, Action::Disconnect),
            (life, Input::Lose) => (life, Action::Nothing),

            (Life::Up, Input::Claim(value)) if value == self.generation => {
                (Life::Claimed, Action::Nothing)
            }
            (Life::Claimed, Input::Claim(0)) => (Life::Up, Action::Nothing),
            (Life::Lost, Input::Claim(0)) => (Life::LetGo, Action::Wake),
            (life, Input::Claim(_)) => (life, Action::Nothing),

            (Life::LetGo, Input::Reap) => (Life::Down, Action::Nothing),
            (life, Input::Reap) => (life, Action::Nothing),

            (life @ (Life::Down | Life::Joining(_)), Input::End) => (life, Action::Nothing),
            (_, Input::End) => (Life::LetGo, Action::Remove),
        };
        self.life = life;
        action
    }

    /// What a snapshot needs.
    pub fn snapshot(&self) -> LinkSnapshot {
        let claimed = self
            .peer()
            .filter(|_| self.claim() != 0)
            .map(|peer| ClaimedSnapshot {
                gid: peer.gid,
                position: peer.position,
                vectors: peer.vectors,
                window_shift: peer.window_shift,
                side: peer.side,
            });
        LinkSnapshot {
            generation: self.generation,
            claimed,
        }
    }

    /// A link as it is after a restore: the peer is gone. A window that the guest had claimed is lost, and
    /// the caller puts memory of that size behind it, because the guest touches it until it lets go.
    /// Windows larger than `max_shift` cannot be.
    pub fn restore(snapshot: &LinkSnapshot, max_shift: u32) -> Self {
        let mut link = Link {
            generation: snapshot.generation,
            ..Link::default()
        };
        if let Some(saved) = &snapshot.claimed
            && (21..=max_shift).contains(&saved.window_shift)
        {
            link.life = Life::Lost;
            link.peer = Some(Terms {
                gid: saved.gid,
                position: saved.position,
                vectors: saved.vectors,
                window_shift: saved.window_shift,
                side: saved.side,
            });
        }
        link
    }
}

/// All links of a device.
#[derive(Clone, Debug)]
pub struct LinkTable {
    links: Vec<Link>,
    /// The peers that get no link, and their sockets.
    refused: BTreeMap<Gid, Option<String>>,
    /// Those whose links are to end.
    dropped: Vec<Gid>,
}

impl LinkTable {
    /// A table of `len` links that are down.
    pub fn new(len: u16) -> Self {
        LinkTable {
            links: vec![Link::default(); usize::from(len)],
            refused: BTreeMap::new(),
            dropped: Vec::new(),
        }
    }

    /// How many links are up.
    pub fn up(&self) -> u64 {
        let is_up = |link: &&Link| link.state() == LinkState::Up;
        self.links.iter().filter(is_up).count() as u64
    }

    /// Whether link number `index` is up, and in this generation.
    pub fn is_up(&self, index: usize, generation: u32) -> bool {
        let link = self.get(index);
        link.is_some_and(|link| link.state() == LinkState::Up && link.generation == generation)
    }

    /// How many times link number `index` came up.
    pub fn generation(&self, index: usize) -> u32 {
        self.get(index).map_or(0, Link::generation)
    }

    /// Whether the window of link number `index` is to be taken out.
    pub fn is_let_go(&self, index: usize) -> bool {
        self.get(index).is_some_and(|link| link.life == Life::LetGo)
    }

    /// The generation of link number `index` that the guest has claimed; 0: none.
    pub fn claim(&self, index: usize) -> u32 {
        self.get(index).map_or(0, Link::claim)
    }

    /// The peer of link number `index`, while there is one or the guest still has its window.
    pub fn peer(&self, index: usize) -> Option<Gid> {
        self.get(index)?.peer().map(|peer| peer.gid)
    }

    /// Link number `index`.
    pub fn get(&self, index: usize) -> Option<&Link> {
        self.links.get(index)
    }

    /// All links, in order.
    pub fn iter(&self) -> slice::Iter<'_, Link> {
        self.links.iter()
    }

    /// Whether there is a link to this GID, or about to be.
    pub fn is_joined(&self, gid: Gid) -> bool {
        self.links.iter().any(|link| match link.life {
            Life::Joining(other) => other == gid,
            Life::Up | Life::Claimed => link.had(gid),
            _ => false,
        })
    }

    /// Reserves a place for a link to `gid`: the one it had last if that is free. A guest may take as long as it likes
    /// to let go of a window, so one that is lost does not keep the peer away. Two do: a peer that comes and goes
    /// would get all the places.
    ///
    /// # Errors
    /// What to tell the peer if it can have none.
    pub fn reserve(&mut self, gid: Gid) -> Result<usize, Bye> {
        if self.refused.contains_key(&gid) {
            return Err(Bye::Busy);
        }
        if self.is_joined(gid) {
            return Err(Bye::Duplicate);
        }
        let is_lost = |link: &&Link| link.state() == LinkState::Lost;
        let its_lost = self.links.iter().filter(is_lost);
        if its_lost.filter(|link| link.had(gid)).count() > 1 {
            return Err(Bye::Busy);
        }
        let is_free = |link: &Link| link.life == Life::Down;
        let mut places = self.links.iter();
        let place = places.position(|link| is_free(link) && link.had(gid));
        let Some(index) = place.or_else(|| self.links.iter().position(is_free)) else {
            let is_any_lost = self.links.iter().any(|link| is_lost(&link));
            return Err(if is_any_lost { Bye::Busy } else { Bye::Full });
        };
        self.links[index].on(Input::Reserve(gid));
        Ok(index)
    }

    /// The links to `gid` are to end, and it is refused from now on, or not any more.
    ///
    /// # Errors
    /// There is no link to it, nor about to be one, and it is not refused.
    pub fn drop_peer(&mut self, gid: Gid, is_refused: bool) -> Result<(), NoSuchPeer> {
        let mut its = self
            .links
            .iter()
            .filter(|link| link.peer().is_some() && link.had(gid));
        let has_link = its.clone().next().is_some() || self.is_joined(gid);
        if !has_link && !self.refused.contains_key(&gid) {
            return Err(NoSuchPeer(gid));
        }
        if has_link {
            self.dropped.push(gid);
        }
        if is_refused {
            let path = its.find_map(|link| link.path.clone());
            self.refused.entry(gid).or_insert(path);
        } else {
            self.refused.remove(&gid);
        }
        Ok(())
    }

    /// Those whose links are to end, since the last call.
    pub fn take_dropped(&mut self) -> Vec<Gid> {
        mem::take(&mut self.dropped)
    }

    /// `gid` has answered at this socket. What is known of a link stays.
    pub fn found_at(&mut self, gid: Gid, path: &str) {
        for link in &mut self.links {
            if link.state() == LinkState::Up && link.had(gid) && link.path.is_none() {
                link.path = Some(path.into());
            }
        }
    }

    /// The links that are not down.
    pub fn info(&self) -> Vec<LinkInfo> {
        let links = self.links.iter().enumerate();
        links.filter_map(|(link, each)| each.info(link)).collect()
    }

    /// The peers that get no link.
    pub fn refused(&self) -> Vec<RefusedPeer> {
        let refused = self.refused.iter().map(|(&peer, path)| RefusedPeer {
            peer,
            path: path.clone(),
        });
        refused.collect()
    }

    /// Something happens to link number `index`.
    pub fn on(&mut self, index: usize, input: Input) -> Action {
        self.links
            .get_mut(index)
            .map_or(Action::Refuse, |link| link.on(input))
    }

    /// What a snapshot needs.
    pub fn snapshot(&self) -> Vec<LinkSnapshot> {
        self.links.iter().map(Link::snapshot).collect()
    }

    /// Takes over a snapshot, as far as there are links here.
    pub fn restore(&mut self, snapshot: &[LinkSnapshot], max_shift: u32) {
        for (link, saved) in self.links.iter_mut().zip(snapshot) {
            *link = Link::restore(saved, max_shift);
        }
    }
}

impl Link {
    /// What there is to tell of it as link number `link`, if it is not down.
    fn info(&self, link: usize) -> Option<LinkInfo> {
        let peer = self.peer()?;
        let state = self.state();
        let since = self.since.filter(|_| state == LinkState::Up);
        Some(LinkInfo {
            link,
            state,
            peer: peer.gid,
            path: self.path.clone(),
            side: peer.side,
            size: 1 << peer.window_shift,
            vectors: peer.vectors,
            generation: self.generation,
            claimed: self.claim() != 0,
            up_seconds: since.map(|since| since.elapsed().as_secs()),
        })
    }

    /// Whether this was the last peer.
    fn had(&self, gid: Gid) -> bool {
        self.peer.is_some_and(|peer| peer.gid == gid)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn peer(gid: u8) -> Terms {
        let gid = Gid::from_bytes([gid; 16]);
        Terms {
            gid,
            position: 1,
            vectors: 1,
            window_shift: 21,
            side: 0,
        }
    }

    /// A link in the given stage of life at generation 5.
    fn link(life: Life) -> Link {
        Link {
            life,
            generation: 5,
            peer: Some(peer(1)),
            ..Link::default()
        }
    }

    /// Every stage of life, with the name that docs/device.md has for it.
    fn lives() -> [(&'static str, Life); 6] {
        let joining = Life::Joining(peer(2).gid);
        [
            ("down", Life::Down),
            ("joining", joining),
            ("up", Life::Up),
            ("claimed", Life::Claimed),
            ("lost", Life::Lost),
            ("let go", Life::LetGo),
        ]
    }

    /// Every input, and all kinds of those that have some.
    fn inputs() -> [(&'static str, Input); 11] {
        [
            ("a peer wants the place", Input::Reserve(peer(2).gid)),
            ("another peer wants it", Input::Reserve(peer(3).gid)),
            ("the peer gives up", Input::Cancel),
            ("the peer has accepted", Input::Join(peer(2))),
            ("another peer says so", Input::Join(peer(3))),
            ("the peer is gone", Input::Lose),
            ("Claim := Generation", Input::Claim(5)),
            ("Claim := another number", Input::Claim(6)),
            ("Claim := 0", Input::Claim(0)),
            ("the window is out", Input::Reap),
            ("the device is reset or ends", Input::End),
        ]
    }

    /// What has to become of each stage of life with each input: the next one, if it is another, and what is to be done.
    const EXPECTED: [[&str; 6]; 11] = [
        ["joining", "refuse", "refuse", "refuse", "refuse", "refuse"],
        ["joining", "refuse", "refuse", "refuse", "refuse", "refuse"],
        ["-", "down", "-", "-", "-", "-"],
        [
            "refuse",
            "up, announce",
            "refuse",
            "refuse",
            "refuse",
            "refuse",
        ],
        ["refuse", "refuse", "refuse", "refuse", "refuse", "refuse"],
        ["-", "-", "let go, remove", "lost, disconnect", "-", "-"],
        ["-", "-", "claimed", "-", "-", "-"],
        ["-", "-", "-", "-", "-", "-"],
        ["-", "-", "-", "up", "let go, wake", "-"],
        ["-", "-", "-", "-", "-", "down"],
        [
            "-",
            "-",
            "let go, remove",
            "let go, remove",
            "let go, remove",
            "remove",
        ],
    ];

    fn word(action: Action) -> Option<&'static str> {
        match action {
            Action::Nothing => None,
            Action::Refuse => Some("refuse"),
            Action::Announce => Some("announce"),
            Action::Disconnect => Some("disconnect"),
            Action::Remove => Some("remove"),
            Action::Wake => Some("wake"),
        }
    }

    /// What becomes of a stage of life with an input.
    fn cell(life: Life, input: Input) -> String {
        let mut link = link(life);
        let action = link.on(input);
        // A generation is one time up, and a claim is of the present one.
        let generation = if action == Action::Announce { 6 } else { 5 };
        assert_eq!(link.generation(), generation);
        assert!([0, generation].contains(&link.claim()));
        assert_eq!(link.peer().is_none(), link.state() == LinkState::Down);
        let name = |(name, other): &(&'static str, Life)| match (other, link.life) {
            (Life::Joining(_), Life::Joining(_)) => Some(*name),
            (other, now) => (*other == now).then_some(*name),
        };
        let next = (link.life != life).then(|| lives().iter().find_map(name).unwrap());
        let words: Vec<&str> = next.into_iter().chain(word(action)).collect();
        if words.is_empty() {
            "-".into()
        } else {
            words.join(", ")
        }
    }

    /// Every input in every stage of life. The table is printed, and is that of docs/device.md.
    #[test]
    fn every_transition() {
        let row = |first: &str, cells: &[String]| format!("| {first} | {} |", cells.join(" | "));
        let names = lives().map(|(name, _)| name.to_owned());
        let mut table = vec![row("event", &names), "|---|---|---|---|---|---|---|".into()];
        for ((name, input), expected) in inputs().into_iter().zip(EXPECTED) {
            let cells = lives().map(|(_, life)| cell(life, input));
            assert_eq!(cells, expected, "{name}");
            table.push(row(name, &cells));
        }
        let table = table.join("\n");
        println!("{table}");
        println!("{} transitions", lives().len() * inputs().len());
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/device.md");
        // Another workspace that has this crate need not have the document.
        match fs::read_to_string(document) {
            Ok(text) => assert!(text.contains(&table), "docs/device.md has another table"),
            Err(error) => println!("not compared with docs/device.md: {error}"),
        }
    }

    /// All stages of life can be reached from the first one, and the last leads back.
    #[test]
    fn a_whole_life() {
        let mut link = Link::default();
        let (a, generation) = (peer(1), 1);
        for (input, action, state, claim) in [
            (Input::Reserve(a.gid), Action::Nothing, LinkState::Down, 0),
            (Input::Cancel, Action::Nothing, LinkState::Down, 0),
            (Input::Reserve(a.gid), Action::Nothing, LinkState::Down, 0),
            (Input::Join(a), Action::Announce, LinkState::Up, 0),
            (Input::Claim(generation), Action::Nothing, LinkState::Up, 1),
            (Input::Claim(0), Action::Nothing, LinkState::Up, 0),
            (Input::Claim(generation), Action::Nothing, LinkState::Up, 1),
            (Input::Lose, Action::Disconnect, LinkState::Lost, 1),
            (Input::Claim(0), Action::Wake, LinkState::Lost, 0),
            (Input::Reap, Action::Nothing, LinkState::Down, 0),
        ] {
            assert_eq!(link.on(input), action, "{input:?}");
            assert_eq!((link.state(), link.claim()), (state, claim), "{input:?}");
        }
        assert_eq!(link.life, Life::Down);
    }

    #[test]
    fn a_generation_is_never_zero() {
        let mut link = Link {
            generation: u32::MAX,
            life: Life::Joining(peer(1).gid),
            ..Link::default()
        };
        link.on(Input::Join(peer(1)));
        assert_eq!((link.state(), link.generation()), (LinkState::Up, 1));
    }

    #[test]
    fn places() {
        let mut table = LinkTable::new(2);
        let (a, b, c) = (peer(1), peer(2), peer(3));
        assert_eq!(table.reserve(a.gid), Ok(0));
        assert_eq!(table.reserve(a.gid), Err(Bye::Duplicate));
        let refused = Action::Refuse;
        assert_eq!(table.on(0, Input::Join(b)), refused, "it is another's");
        assert_eq!(table.on(1, Input::Join(a)), refused, "it is nobody's");
        assert_eq!(table.on(9, Input::Join(a)), refused, "it is not there");
        assert_eq!(table.on(0, Input::Join(a)), Action::Announce);
        assert_eq!(table.reserve(a.gid), Err(Bye::Duplicate));
        assert_eq!(table.reserve(b.gid), Ok(1));
        assert_eq!(table.reserve(c.gid), Err(Bye::Full));
        table.on(1, Input::Cancel);
        assert_eq!(table.reserve(c.gid), Ok(1));
        assert_eq!(table.on(1, Input::Join(c)), Action::Announce);
        table.on(0, Input::Lose);
        assert_eq!(table.reserve(b.gid), Err(Bye::Busy), "it is not out yet");
        table.on(0, Input::Reap);
        table.on(1, Input::Claim(1));
        table.on(1, Input::Lose);
        assert_eq!(table.reserve(b.gid), Ok(0));
        assert_eq!(
            table.reserve(c.gid),
            Err(Bye::Busy),
            "its guest still has the only place"
        );
        assert_eq!(
            table.reserve(a.gid),
            Err(Bye::Busy),
            "a place may become free soon"
        );
        table.on(0, Input::Cancel);
        table.on(1, Input::End);
        table.on(1, Input::Reap);
        assert_eq!(table.reserve(c.gid), Ok(1), "where it was");
        assert_eq!(table.on(1, Input::Join(c)), Action::Announce);
        assert_eq!(table.links[1].generation(), 2);
    }

    /// The guest's programs may keep a window for as long as they like.
    #[test]
    fn a_window_that_a_guest_keeps_does_not_keep_its_peer_away() {
        let mut table = LinkTable::new(4);
        let a = peer(1);
        let lose = |table: &mut LinkTable, index| {
            assert_eq!(table.on(index, Input::Join(a)), Action::Announce);
            table.on(index, Input::Claim(1));
            assert_eq!(table.on(index, Input::Lose), Action::Disconnect);
        };
        assert_eq!(table.reserve(a.gid), Ok(0));
        lose(&mut table, 0);
        assert_eq!(table.reserve(a.gid), Ok(1), "elsewhere");
        assert_eq!(table.reserve(a.gid), Err(Bye::Duplicate));
        lose(&mut table, 1);
        assert_eq!(table.reserve(a.gid), Err(Bye::Busy), "enough for one peer");
        assert_eq!(table.reserve(peer(2).gid), Ok(2), "others find room");
    }

    #[test]
    fn after_a_restore_a_claimed_window_is_lost_and_nothing_else() {
        let claimed = link(Life::Claimed).snapshot();
        let restored = Link::restore(&claimed, 21);
        assert_eq!((restored.state(), restored.claim()), (LinkState::Lost, 5));
        assert_eq!(restored.peer(), Some(&peer(1)));
        assert_eq!(Link::restore(&claimed, 20).state(), LinkState::Down);
        let unclaimed = Link::restore(&link(Life::Up).snapshot(), 21);
        assert_eq!(
            (unclaimed.state(), unclaimed.generation()),
            (LinkState::Down, 5)
        );
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A link's life, and the table of them. There is no I/O in here.

use std::slice;

use serde::{Deserialize, Serialize};

use crate::Gid;
use crate::handshake::Terms;
use crate::wire::Bye;

/// What a link is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// There is no peer.
    #[default]
    Down,
    /// Both ends have the window.
    Up,
    /// The peer is gone, and the guest still has the window.
    Lost,
}

/// One link. Its transitions are those of docs/device.md, "The life of a link".
#[derive(Clone, Debug, Default)]
pub struct Link {
    state: State,
    generation: u32,
    claim: u32,
    /// The present peer, or the last one.
    peer: Option<Terms>,
    /// A connection to this GID is about to bring the link up.
    reserved: Option<Gid>,
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
    pub fn state(&self) -> State {
        self.state
    }

    /// How many times it came up.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The generation that the guest has claimed; 0: none.
    pub fn claim(&self) -> u32 {
        self.claim
    }

    /// The peer, while there is one or the guest still has its window.
    pub fn peer(&self) -> Option<&Terms> {
        self.peer.as_ref().filter(|_| self.state != State::Down)
    }

    /// down to up. Returns the new generation.
    fn up(&mut self, peer: Terms) -> u32 {
        self.state = State::Up;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.claim = 0;
        self.peer = Some(peer);
        self.reserved = None;
        self.generation
    }

    /// The peer is gone: up to lost, or down if the guest has not claimed the window.
    pub fn lose(&mut self) -> State {
        if self.state == State::Up {
            self.state = if self.claim == 0 {
                State::Down
            } else {
                State::Lost
            };
        }
        self.state
    }

    /// The guest writes Claim.
    pub fn write_claim(&mut self, value: u32) {
        let claims = self.state == State::Up && value == self.generation;
        if claims || (value == 0 && self.state != State::Down) {
            self.claim = value;
        }
    }

    /// Whether the guest has let go of the window of a peer that is gone.
    pub fn is_let_go(&self) -> bool {
        self.state == State::Lost && self.claim == 0
    }

    /// Any state to down: the window is out of the guest.
    pub fn down(&mut self) {
        self.state = State::Down;
        self.claim = 0;
    }

    /// What a snapshot needs.
    pub fn snapshot(&self) -> LinkSnapshot {
        let claimed = self
            .peer()
            .filter(|_| self.claim != 0)
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
            link.state = State::Lost;
            link.claim = link.generation;
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
}

impl LinkTable {
    /// A table of `len` links that are down.
    pub fn new(len: u16) -> Self {
        LinkTable {
            links: vec![Link::default(); usize::from(len)],
        }
    }

    /// Link number `index`.
    pub fn get(&self, index: usize) -> Option<&Link> {
        self.links.get(index)
    }

    /// Link number `index`, to change it.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut Link> {
        self.links.get_mut(index)
    }

    /// All links, in order.
    pub fn iter(&self) -> slice::Iter<'_, Link> {
        self.links.iter()
    }

    /// Whether there is a link to this GID, or about to be.
    pub fn is_joined(&self, gid: Gid) -> bool {
        self.links
            .iter()
            .any(|link| link.reserved == Some(gid) || link.is_up_with(gid))
    }

    /// Reserves a place for a link to `gid`: the one it had last if that is free.
    ///
    /// # Errors
    /// What to tell the peer if it can have none.
    pub fn reserve(&mut self, gid: Gid) -> Result<usize, Bye> {
        if self.is_joined(gid) {
            return Err(Bye::Duplicate);
        }
        let had = |link: &Link| link.peer.is_some_and(|peer| peer.gid == gid);
        if self
            .links
            .iter()
            .any(|link| link.state == State::Lost && had(link))
        {
            return Err(Bye::Busy);
        }
        let free = |link: &Link| link.state == State::Down && link.reserved.is_none();
        let place = self.links.iter().position(|link| free(link) && had(link));
        let Some(index) = place.or_else(|| self.links.iter().position(free)) else {
            let lost = self.links.iter().any(|link| link.state == State::Lost);
            return Err(if lost { Bye::Busy } else { Bye::Full });
        };
        self.links[index].reserved = Some(gid);
        Ok(index)
    }

    /// Gives a reserved place back.
    pub fn cancel(&mut self, index: usize) {
        if let Some(link) = self.links.get_mut(index) {
            link.reserved = None;
        }
    }

    /// Brings the link up at a place that was reserved for this peer. Returns its generation; `None` if
    /// the place was not reserved.
    pub fn up(&mut self, index: usize, peer: Terms) -> Option<u32> {
        let link = self.links.get_mut(index)?;
        (link.reserved == Some(peer.gid)).then(|| link.up(peer))
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
    fn is_up_with(&self, gid: Gid) -> bool {
        self.state == State::Up && self.peer.is_some_and(|peer| peer.gid == gid)
    }
}

#[cfg(test)]
mod tests {
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

    /// A link in the given state at generation 5.
    fn link(state: State, claim: u32) -> Link {
        Link {
            state,
            generation: 5,
            claim,
            peer: Some(peer(1)),
            reserved: None,
        }
    }

    #[derive(Debug)]
    enum Event {
        Up,
        Lose,
        Claim(u32),
        Tend,
        Down,
    }

    /// Every event in every state, after docs/device.md.
    #[test]
    fn transitions() {
        use Event::*;
        use State::{Down as D, Lost as L, Up as U};
        // state and claim before, event, then state, claim, generation after
        let table = [
            (D, 0, Up, U, 0, 6),
            (D, 0, Lose, D, 0, 5),
            (D, 0, Claim(5), D, 0, 5),
            (D, 0, Claim(0), D, 0, 5),
            (D, 0, Tend, D, 0, 5),
            (D, 0, Down, D, 0, 5),
            (U, 0, Claim(5), U, 5, 5),
            (U, 0, Claim(4), U, 0, 5),
            (U, 0, Claim(6), U, 0, 5),
            (U, 5, Claim(9), U, 5, 5),
            (U, 5, Claim(0), U, 0, 5),
            (U, 0, Lose, D, 0, 5),
            (U, 5, Lose, L, 5, 5),
            (U, 0, Tend, U, 0, 5),
            (U, 5, Tend, U, 5, 5),
            (U, 5, Down, D, 0, 5),
            (L, 5, Claim(5), L, 5, 5),
            (L, 5, Claim(6), L, 5, 5),
            (L, 5, Claim(0), L, 0, 5),
            (L, 0, Claim(5), L, 0, 5),
            (L, 5, Lose, L, 5, 5),
            (L, 5, Tend, L, 5, 5),
            (L, 0, Tend, D, 0, 5),
            (L, 5, Down, D, 0, 5),
        ];
        for (state, claim, event, after, claim_after, generation) in table {
            let mut link = link(state, claim);
            match event {
                Up => assert_eq!(link.up(peer(2)), generation),
                Lose => assert_eq!(link.lose(), after),
                Claim(value) => link.write_claim(value),
                Tend if link.is_let_go() => link.down(),
                Tend => {}
                Down => link.down(),
            }
            let now = (link.state(), link.claim(), link.generation());
            assert_eq!(
                now,
                (after, claim_after, generation),
                "{state:?} {claim} {event:?}"
            );
            assert_eq!(link.peer().is_none(), after == D);
        }
    }

    #[test]
    fn a_generation_is_never_zero() {
        let mut link = Link {
            generation: u32::MAX,
            ..Link::default()
        };
        assert_eq!(link.up(peer(1)), 1);
    }

    #[test]
    fn places() {
        let mut table = LinkTable::new(2);
        let (a, b, c) = (peer(1), peer(2), peer(3));
        assert_eq!(table.reserve(a.gid), Ok(0));
        assert_eq!(table.reserve(a.gid), Err(Bye::Duplicate));
        assert_eq!(table.up(0, b), None, "the place is another's");
        assert_eq!(table.up(1, a), None, "the place is not reserved");
        assert_eq!(table.up(9, a), None);
        assert_eq!(table.up(0, a), Some(1));
        assert_eq!(table.reserve(a.gid), Err(Bye::Duplicate));
        assert_eq!(table.reserve(b.gid), Ok(1));
        assert_eq!(table.reserve(c.gid), Err(Bye::Full));
        table.cancel(1);
        assert_eq!(table.reserve(c.gid), Ok(1));
        assert_eq!(table.up(1, c), Some(1));
        table.links[0].lose();
        table.links[1].write_claim(1);
        table.links[1].lose();
        assert_eq!(
            table.reserve(c.gid),
            Err(Bye::Busy),
            "its guest still has the window"
        );
        assert_eq!(table.reserve(b.gid), Ok(0));
        assert_eq!(
            table.reserve(a.gid),
            Err(Bye::Busy),
            "a place may become free soon"
        );
        table.cancel(0);
        table.links[1].down();
        assert_eq!(table.reserve(c.gid), Ok(1), "where it was");
        assert_eq!(table.up(1, c), Some(2));
    }

    #[test]
    fn after_a_restore_a_claimed_window_is_lost_and_nothing_else() {
        let claimed = link(State::Up, 5).snapshot();
        let restored = Link::restore(&claimed, 21);
        assert_eq!((restored.state(), restored.claim()), (State::Lost, 5));
        assert_eq!(restored.peer(), Some(&peer(1)));
        assert_eq!(Link::restore(&claimed, 20).state(), State::Down);
        let unclaimed = Link::restore(&link(State::Up, 0).snapshot(), 21);
        assert_eq!(
            (unclaimed.state(), unclaimed.generation()),
            (State::Down, 5)
        );
    }
}

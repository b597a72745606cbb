// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whom the device joins, and when to try again. There is no I/O in here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Gid;

/// When to try again: at first, and at most.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
pub const LAST_RETRY: Duration = Duration::from_secs(1);

/// When to try again what has failed.
#[derive(Debug)]
pub struct Retry {
    /// When to try next, if at all.
    pub next: Option<Instant>,
    pub delay: Duration,
    /// What was said of it last in the log, so as not to repeat it at every try.
    said: String,
}

impl From<Option<Instant>> for Retry {
    /// To be tried at first at `next`.
    fn from(next: Option<Instant>) -> Self {
        Retry {
            next,
            delay: FIRST_RETRY,
            said: String::new(),
        }
    }
}

impl Retry {
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// Tries again, each time a little later.
    pub fn later(&mut self, now: Instant) {
        self.next = Some(now + self.delay);
        self.delay = (self.delay * 2).min(LAST_RETRY);
    }

    /// Whether this has not just been said.
    pub fn is_news(&mut self, why: &str) -> bool {
        let is_news = self.said != why;
        if is_news {
            self.said = why.into();
        }
        is_news
    }
}

/// A peer that the device joins, or a folder of them.
#[derive(Debug)]
pub struct Connector {
    pub path: PathBuf,
    /// Who was there the last time.
    pub gid: Option<Gid>,
    /// There is nothing to try while there is a connection, or the folder is watched.
    pub retry: Retry,
    /// Nor while somebody else's connection is the link to who was there.
    is_parked: bool,
    /// The folder that it was found in; `None`: the configuration lists it.
    found_in: Option<u64>,
    /// It is not in its folder any more.
    is_gone: bool,
}

impl Connector {
    fn new(path: PathBuf, found_in: Option<u64>, now: Instant) -> Self {
        Connector {
            path,
            gid: None,
            retry: Retry::from(Some(now)),
            is_parked: false,
            found_in,
            is_gone: false,
        }
    }

    /// Whether the configuration lists it: then it can be a folder.
    pub fn is_listed(&self) -> bool {
        self.found_in.is_none()
    }

    /// Logs why there is no link, once.
    pub fn say(&mut self, is_warning: bool, name: &str, why: &str) {
        let path = self.path.display();
        let level = match (self.retry.is_news(why), is_warning) {
            (false, _) => log::Level::Debug,
            (true, false) => log::Level::Info,
            (true, true) => log::Level::Warn,
        };
        log::log!(level, "{name}: no link to {path}: {why}");
    }
}

/// All that the device joins, by numbers that are not used again.
#[derive(Debug, Default)]
pub struct Connectors {
    all: BTreeMap<u64, Connector>,
    next_id: u64,
}

impl Connectors {
    /// Those that a configuration lists, to be tried now.
    pub fn new(paths: &[PathBuf], now: Instant) -> Self {
        let mut connectors = Connectors::default();
        for path in paths {
            connectors.add(Connector::new(path.clone(), None, now));
        }
        connectors
    }

    fn add(&mut self, connector: Connector) {
        self.all.insert(self.next_id, connector);
        self.next_id += 1;
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Connector> {
        self.all.get_mut(&id)
    }

    /// Where this GID was the last time.
    pub fn path_of(&self, gid: Gid) -> Option<&Path> {
        let mut all = self.all.values();
        let its = all.find(|each| each.gid == Some(gid))?;
        Some(&its.path)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.all.values().filter_map(|each| each.retry.next).min()
    }

    /// Those that are due.
    pub fn due(&self, now: Instant) -> Vec<u64> {
        let due = self.all.iter().filter(|(_, each)| each.retry.is_due(now));
        due.map(|(&id, _)| id).collect()
    }

    /// These are looked at now.
    pub fn look_at(&mut self, ids: impl Iterator<Item = u64>, now: Instant) {
        for id in ids {
            if let Some(connector) = self.all.get_mut(&id) {
                connector.retry.next = Some(now);
            }
        }
    }

    /// There is another connection to who was there the last time: nothing is tried before that ends.
    pub fn park(&mut self, id: u64) {
        if let Some(connector) = self.all.get_mut(&id) {
            connector.retry.next = None;
            connector.is_parked = true;
        }
    }

    /// A connection to this GID has ended.
    pub fn unpark(&mut self, gid: Gid, now: Instant) {
        let is_its = |each: &&mut Connector| each.is_parked && each.gid == Some(gid);
        for connector in self.all.values_mut().filter(is_its) {
            connector.is_parked = false;
            connector.retry.next = Some(now + FIRST_RETRY);
        }
    }

    /// Makes those that wait try again soon.
    pub fn retry_soon(&mut self, now: Instant, which: impl Fn(&Connector) -> bool) {
        let soon = now + FIRST_RETRY;
        for connector in self.all.values_mut().filter(|each| which(each)) {
            connector.retry.delay = FIRST_RETRY;
            connector.retry.next = connector.retry.next.map(|next| next.min(soon));
        }
    }

    /// These sockets are in a folder now. One that is not any more goes when it has no connection.
    pub fn update(&mut self, folder: u64, mut found: BTreeSet<PathBuf>, now: Instant) {
        self.all.retain(|_, connector| {
            if connector.found_in != Some(folder) {
                return true;
            }
            connector.is_gone = !found.remove(&connector.path);
            let has_connection = connector.retry.next.is_none() && !connector.is_parked;
            !connector.is_gone || has_connection
        });
        for path in found {
            self.add(Connector::new(path, Some(folder), now));
        }
    }

    /// A connection has ended: it is tried again, unless it is not there any more.
    pub fn ended(&mut self, id: u64, now: Instant) {
        if let Some(connector) = self.all.get_mut(&id) {
            connector.retry.later(now);
            if connector.is_gone {
                self.all.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> BTreeSet<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn names(connectors: &Connectors) -> Vec<(u64, &str)> {
        let all = connectors.all.iter();
        all.map(|(&id, each)| (id, each.path.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn tries_are_further_and_further_apart() {
        let now = Instant::now();
        let mut retry = Retry::from(Some(now));
        assert!(retry.is_due(now));
        let mut waits = Vec::new();
        for _ in 0..6 {
            retry.later(now);
            waits.push((retry.next.unwrap() - now).as_millis());
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert!(retry.is_news("a") && !retry.is_news("a") && retry.is_news("b"));
    }

    #[test]
    fn sockets_of_a_folder_come_and_go() {
        let now = Instant::now();
        let later = now + Duration::from_millis(50);
        let mut connectors = Connectors::new(&["f".into(), "g".into()], now);
        connectors.update(0, paths(&["f/a", "f/b"]), now);
        connectors.update(1, paths(&["g/a"]), now);
        let all = [(0, "f"), (1, "g"), (2, "f/a"), (3, "f/b"), (4, "g/a")];
        assert_eq!(names(&connectors), all);
        assert_eq!(connectors.due(now), [0, 1, 2, 3, 4]);
        let is_listed =
            |connectors: &mut Connectors, id| connectors.get_mut(id).map(|c| c.is_listed());
        assert_eq!(is_listed(&mut connectors, 1), Some(true));
        assert_eq!(is_listed(&mut connectors, 2), Some(false));
        // One with a connection stays until that ends; the one of another folder stays.
        connectors.get_mut(2).unwrap().retry.next = None;
        connectors.update(0, paths(&["f/c"]), later);
        let all = [(0, "f"), (1, "g"), (2, "f/a"), (4, "g/a"), (5, "f/c")];
        assert_eq!(names(&connectors), all);
        assert_eq!(connectors.next(), Some(now));
        // It comes back, and is what it was.
        connectors.update(0, paths(&["f/a", "f/c"]), later);
        connectors.ended(2, later);
        assert!(connectors.get_mut(2).is_some());
        connectors.get_mut(2).unwrap().retry.next = None;
        connectors.update(0, paths(&["f/c"]), later);
        connectors.ended(2, later);
        assert!(connectors.get_mut(2).is_none());
        connectors.update(0, paths(&[]), later);
        assert_eq!(names(&connectors), [(0, "f"), (1, "g"), (4, "g/a")]);
        connectors.ended(5, later);
    }

    #[test]
    fn one_whose_peer_has_connected_itself_is_parked_until_that_ends() {
        let now = Instant::now();
        let (gid, other) = (Gid::from_bytes([1; 16]), Gid::from_bytes([2; 16]));
        let mut connectors = Connectors::new(&["f".into()], now);
        connectors.update(0, paths(&["f/a", "f/b"]), now);
        for id in [1, 2] {
            connectors.get_mut(id).unwrap().gid = Some(gid);
            connectors.park(id);
        }
        assert_eq!(connectors.due(now + LAST_RETRY), [0]);
        connectors.retry_soon(now, |_| true);
        connectors.unpark(other, now);
        assert_eq!(connectors.due(now + LAST_RETRY), [0]);
        // It has no connection that could end, so it goes with its socket.
        connectors.update(0, paths(&["f/a"]), now);
        assert_eq!(names(&connectors), [(0, "f"), (1, "f/a")]);
        connectors.unpark(gid, now);
        assert_eq!(connectors.due(now), [0]);
        assert_eq!(connectors.due(now + FIRST_RETRY), [0, 1]);
    }

    #[test]
    fn who_waits_can_be_scheduled_soon() {
        let now = Instant::now();
        let mut connectors = Connectors::new(&["a".into(), "b".into(), "c".into()], now);
        for (id, next) in [(0, Some(now + LAST_RETRY)), (1, None), (2, Some(now))] {
            connectors.get_mut(id).unwrap().retry.next = next;
        }
        connectors.retry_soon(now, |_| true);
        let next = |id| connectors.all[&id].retry.next;
        assert_eq!(next(0), Some(now + FIRST_RETRY));
        assert_eq!((next(1), next(2)), (None, Some(now)));
    }
}

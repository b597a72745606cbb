// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whom a device admits: users and groups by their ids.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::one_or_many;
use crate::ConfigError;

/// What stands for no user or group at all where an id is expected.
const NOBODY: u32 = u32::MAX;
/// What is before the ids of groups.
const GROUP: &str = "group:";

/// Users whose processes are admitted, or groups whose members' are, by the first and the last of their ids. As text it is `1000`,
/// `1000-1999`, `group:990` or `group:990-999`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// These users.
    Users(RangeInclusive<u32>),
    /// Users who are in one of these groups: the process's group, or a supplementary one.
    Groups(RangeInclusive<u32>),
}

impl Allowed {
    /// Whether it is one or more ids of users or groups, each of whom there can be.
    pub(super) fn is_valid(&self) -> bool {
        let (Allowed::Users(ids) | Allowed::Groups(ids)) = self;
        !ids.is_empty() && *ids.end() != NOBODY
    }

    /// Whether some are in both.
    pub(super) fn overlaps(&self, other: &Allowed) -> bool {
        let meet = |a: &RangeInclusive<u32>, b: &RangeInclusive<u32>| {
            a.start() <= b.end() && b.start() <= a.end()
        };
        match (self, other) {
            (Allowed::Users(a), Allowed::Users(b)) | (Allowed::Groups(a), Allowed::Groups(b)) => {
                meet(a, b)
            }
            _ => false,
        }
    }
}

impl From<u32> for Allowed {
    fn from(user: u32) -> Self {
        Allowed::Users(user..=user)
    }
}

impl FromStr for Allowed {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (ids, is_group) = match text.strip_prefix(GROUP) {
            Some(ids) => (ids, true),
            None => (text, false),
        };
        let (first, last) = ids.split_once('-').unwrap_or((ids, ids));
        // `parse` would take a sign.
        let id = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
        let (Some(first), Some(last)) = (id(first), id(last)) else {
            return Err(ConfigError::BadUser(text.into()));
        };
        let allowed = if is_group {
            Allowed::Groups(first..=last)
        } else {
            Allowed::Users(first..=last)
        };
        if allowed.is_valid() {
            Ok(allowed)
        } else {
            Err(ConfigError::BadUser(text.into()))
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Allowed::Users(ids) | Allowed::Groups(ids)) = self;
        if matches!(self, Allowed::Groups(_)) {
            f.write_str(GROUP)?;
        }
        match (ids.start(), ids.end()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// A single user is a number, all else a string.
impl Serialize for Allowed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Allowed::Users(ids) if ids.start() == ids.end() => {
                serializer.serialize_u32(*ids.start())
            }
            _ => serializer.collect_str(self),
        }
    }
}

/// Says of what is none the same as the command line does.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Allowed>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Id(i64),
        Text(String),
    }
    let given: Vec<Given> = one_or_many(deserializer)?;
    let allowed = given.into_iter().map(|given| match given {
        Given::Id(id) => id.to_string().parse(),
        Given::Text(text) => text.parse(),
    });
    allowed.collect::<Result<_, _>>().map_err(D::Error::custom)
}

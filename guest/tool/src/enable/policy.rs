// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose sockets become SMC sockets: a TOML file, or the command line.
//!
//! ```toml
//! # Those of nginx and of all containers of podman's; without this line, all.
//! cgroups = ["nginx.service", "libpod-*"]
//! # But not of these, if they are within.
//! except = ["backup.service"]
//!
//! # SMC-D for these servers' ports, whichever side a guest is; without this line, for all.
//! [connections]
//! ports = [80, 443, "8000-8099"]
//! except_ports = [8022]
//! # And for these peers; without this line, for all. The narrowest network that a peer is in decides.
//! peers = ["10.0.0.0/8", "fd00::/8"]
//! except_peers = ["10.9.0.0/16"]
//! ```
//!
//! A name is that of one cgroup, a `*` at its end stands for any rest. A process is decided upon by the innermost of the
//! cgroups around it that has a name here; if several names are that cgroup's, by the longest.

use super::connections::{self, Connections};
use crate::file::{self, Problem};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use toml::Spanned;

/// Bytes of a name that are compared: one longer than the longest that a policy may have.
pub const COMPARED: usize = 128;
/// Names that a policy may have.
pub const NAMES: usize = 1024;

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is no policy.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The command line is no policy.
    #[error("{0}")]
    CommandLine(String),
}

/// The names of cgroups: one, or all that begin with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    text: String,
    is_start: bool,
}

impl Name {
    /// What the outermost cgroup is called.
    fn root() -> Self {
        Name {
            text: String::new(),
            is_start: false,
        }
    }

    /// The bytes that a cgroup's name, ended by a zero, begins with.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.text.clone().into_bytes();
        if !self.is_start {
            bytes.push(0);
        }
        bytes
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::root() {
            return f.write_str("everything");
        }
        write!(f, "{}{}", self.text, if self.is_start { "*" } else { "" })
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let (text, is_start) = match given.strip_suffix('*') {
            Some(start) => (start, true),
            None => (given, false),
        };
        let problem = if given == "*" {
            "leave cgroups out to have all".into()
        } else if text.is_empty() {
            "a name is empty".into()
        } else if let Some(last) = given.trim_end_matches('/').rsplit_once('/') {
            format!(
                "`{given}` is a path; give a cgroup's name alone, `{}`",
                last.1
            )
        } else if text.contains('*') {
            format!("`{given}`: * can only be at the end")
        } else if text.contains(|c: char| c.is_control()) {
            format!("`{}` has control characters", given.escape_debug())
        } else if text.len() > COMPARED - 2 {
            format!(
                "`{given}` is longer than {} bytes; shorten it and end it with *",
                COMPARED - 2
            )
        } else {
            return Ok(Name {
                text: text.into(),
                is_start,
            });
        };
        Err(problem)
    }
}

/// Whose sockets become SMC sockets, and which of their connections may be SMC's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    names: BTreeMap<Name, bool>,
    /// Of all connections if it is not there.
    connections: Option<Connections>,
}

/// What a file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    cgroups: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    except: Vec<Spanned<String>>,
    connections: Option<connections::Table>,
}

impl Policy {
    /// That of the command line.
    pub fn new(cgroups: &[String], except: &[String]) -> Result<Self, Error> {
        let cgroups = cgroups.iter().map(|name| (name.as_str(), 0));
        let except = except.iter().map(|name| (name.as_str(), 0));
        Self::of(cgroups.collect(), except.collect())
            .map_err(|(_, problem)| Error::CommandLine(problem))
    }

    /// That of a file, or what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(file::read(path, Self::of_table)?)
    }

    /// That of a part of a file.
    pub(crate) fn of_table(table: Table) -> Result<Self, Problem> {
        if let Some(cgroups) = &table.cgroups
            && cgroups.get_ref().is_empty()
        {
            let problem = "cgroups is empty: leave it out to have all, or disable";
            return Err((cgroups.span().start, problem.into()));
        }
        let names = |list: &'_ [Spanned<String>]| -> Vec<(String, usize)> {
            let placed = |name: &Spanned<String>| (name.get_ref().clone(), name.span().start);
            list.iter().map(placed).collect()
        };
        let cgroups = names(table.cgroups.as_ref().map_or(&[], |list| list.get_ref()));
        let except = names(&table.except);
        let mut policy = Self::of(borrowed(&cgroups), borrowed(&except))?;
        policy.connections = table.connections.map(Connections::new).transpose()?;
        Ok(policy)
    }

    /// From names and where they are. The error is where it is, and what.
    fn of(
        cgroups: Vec<(&str, usize)>,
        except: Vec<(&str, usize)>,
    ) -> Result<Self, (usize, String)> {
        let mut names = BTreeMap::new();
        if cgroups.is_empty() {
            names.insert(Name::root(), true);
        }
        let with = cgroups.into_iter().map(|name| (name, true));
        let without = except.into_iter().map(|name| (name, false));
        for ((text, at), decision) in with.chain(without) {
            let name: Name = text.parse().map_err(|problem| (at, problem))?;
            match names.insert(name, decision) {
                None => {}
                Some(before) if before == decision => {
                    return Err((at, format!("`{text}` is there twice")));
                }
                Some(_) => return Err((at, format!("`{text}` is both in cgroups and in except"))),
            }
            if names.len() > NAMES {
                return Err((at, format!("there are more than {NAMES} names")));
            }
        }
        Ok(Policy {
            names,
            connections: None,
        })
    }

    /// Which connections may be SMC's, if not all.
    pub fn connections(&self) -> Option<&Connections> {
        self.connections.as_ref()
    }

    /// Its names, and whether the sockets of those become SMC sockets.
    pub fn names(&self) -> impl Iterator<Item = (&Name, bool)> {
        self.names.iter().map(|(name, decision)| (name, *decision))
    }
}

/// In a line: `nginx.service, libpod-*; except backup.service; ports 80, 443`.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |wanted: bool| -> Vec<String> {
            let decided = self.names().filter(|(_, decision)| *decision == wanted);
            decided.map(|(name, _)| name.to_string()).collect()
        };
        f.write_str(&list(true).join(", "))?;
        let except = list(false);
        if !except.is_empty() {
            write!(f, "; except {}", except.join(", "))?;
        }
        match &self.connections {
            Some(connections) => write!(f, "; {connections}"),
            None => Ok(()),
        }
    }
}

fn borrowed(names: &[(String, usize)]) -> Vec<(&str, usize)> {
    names
        .iter()
        .map(|(name, at)| (name.as_str(), *at))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Policy, (usize, String)> {
        file::parse(text, Policy::of_table)
    }

    #[test]
    fn a_file_and_the_command_line_say_the_same() {
        let file =
            "cgroups = [\n  'nginx.service',\n  'libpod-*',\n]\nexcept = ['backup.service']\n";
        let file = parse(file).unwrap();
        let given = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let line = Policy::new(
            &given(&["nginx.service", "libpod-*"]),
            &given(&["backup.service"]),
        );
        assert_eq!(file, line.unwrap());
        assert_eq!(
            file.to_string(),
            "libpod-*, nginx.service; except backup.service"
        );
        let all = parse("# nothing\n").unwrap();
        assert_eq!(all, Policy::new(&[], &[]).unwrap());
        assert_eq!(all.to_string(), "everything");
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line_and_the_reason() {
        let long = format!("cgroups = ['{}']", "x".repeat(127));
        for (text, line, said) in [
            ("\ncgroup = ['a']", 2, "unknown field `cgroup`"),
            ("cgroups = 'a'", 1, "expected a sequence"),
            ("cgroups = ['a',\n1]", 2, "expected a string"),
            ("cgroups = ['a'", 1, "unclosed array"),
            ("\n\ncgroups = []", 3, "leave it out"),
            ("except = [\n\"\"]", 2, "is empty"),
            ("cgroups = ['*']", 1, "leave cgroups out"),
            ("cgroups = ['a*b']", 1, "only be at the end"),
            ("cgroups = ['/system.slice/a.service']", 1, "`a.service`"),
            ("cgroups = [\"a\\u0000\"]", 1, "control"),
            ("cgroups = ['a',\n'a']", 2, "twice"),
            ("cgroups = ['a']\nexcept = ['a']", 2, "both"),
            ("[connections]\nports = [80,\n0]", 3, "0 to 0 are no ports"),
            ("[connections]\npeer = 1", 2, "unknown field `peer`"),
            (&long, 1, "longer than 126"),
        ] {
            let (at, problem) = parse(text).unwrap_err();
            assert_eq!(at, line, "{text}: {problem}");
            assert!(problem.contains(said), "{text}: {problem}");
        }
        let many: Vec<_> = (0..=NAMES).map(|n| n.to_string()).collect();
        let problem = Policy::new(&many, &[]).unwrap_err().to_string();
        assert!(problem.contains("more than 1024"), "{problem}");
    }

    #[test]
    fn the_policy_for_kata_is_one() {
        let file = "../../host/kata/guest/enable.toml";
        let policy = Policy::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert_eq!(policy.to_string(), "default, k8s.io, kubepods*");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let missing = Policy::read(Path::new("/nonexistent/enable.toml")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/enable.toml"));
        let endless = Policy::read(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.to_string().contains("more than 1048576 bytes"));
    }

    proptest! {
        #[test]
        fn no_file_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn names_are_what_they_were(text in "[^*/\\p{C}]{1,40}\\*?") {
            let name: Name = text.parse().unwrap();
            prop_assert_eq!(name.to_string(), text);
            prop_assert!(name.bytes().len() < COMPARED);
        }
    }
}

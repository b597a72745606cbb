// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Patterns of API sockets' paths: `/run/vms/*/api.sock`.

use crate::name::{Name, NameError};
use std::path::PathBuf;

/// What Kata Containers' Go runtime leaves.
pub const KATA_GO: &str = "/run/vc/vm/*/clh-api.sock";
/// What Kata Containers' Rust runtime leaves.
pub const KATA_RUST: &str = "/run/kata/*/ch-api.sock";

/// A pattern: where sockets are, and which part of their paths is the VM's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The folder above the first `*`. It is the administrator's, so that symbolic links in it are followed.
    pub folder: PathBuf,
    /// What follows, one component each. What is there is others' work: symbolic links are not followed.
    pub parts: Vec<Part>,
}

/// One component of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Just this.
    Literal(String),
    /// Anything that begins and ends like this, and has a name in between.
    Star {
        /// What is before the `*`.
        before: String,
        /// What is after it.
        after: String,
    },
}

/// Why something is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is relative.
    #[error(
        "a pattern is an absolute path such as \"/run/vms/*/api.sock\", or one of \"kata-go\" and \"kata-rust\""
    )]
    NotAbsolute,
    /// It is one path.
    #[error("a pattern has a '*', which stands for the VM's name")]
    NoStar,
    /// Several in a component.
    #[error("a component of a pattern has one '*' at most, and {0:?} has more")]
    ManyStars(String),
    /// A character that could be meant to be special.
    #[error("a pattern has no special characters but '*', and {0:?} has one of \"?[]{{}}\"")]
    Special(String),
    /// `..`, `.` or an empty component.
    #[error("a pattern has no components \"..\", \".\" and \"\"")]
    Dots,
    /// Zero bytes or the like.
    #[error("a pattern has no control characters")]
    Control,
    /// It is very long.
    #[error("a pattern has 1024 bytes at most")]
    TooLong,
}

impl Part {
    fn new(text: &str) -> Result<Self, PatternError> {
        if matches!(text, "" | "." | "..") {
            return Err(PatternError::Dots);
        }
        if text.contains(['?', '[', ']', '{', '}']) {
            return Err(PatternError::Special(text.into()));
        }
        match text.split_once('*') {
            None => Ok(Part::Literal(text.into())),
            Some((_, after)) if after.contains('*') => Err(PatternError::ManyStars(text.into())),
            Some((before, after)) => Ok(Part::Star {
                before: before.into(),
                after: after.into(),
            }),
        }
    }

    /// What the `*` stands for in a file's name: `None` if the name is not meant.
    pub fn stands_for(&self, file: &[u8]) -> Option<Result<Name, NameError>> {
        match self {
            Part::Literal(_) => None,
            Part::Star { before, after } => {
                let rest = file.strip_prefix(before.as_bytes())?;
                Some(Name::new(rest.strip_suffix(after.as_bytes())?))
            }
        }
    }
}

impl Pattern {
    /// The pattern of this text.
    ///
    /// # Errors
    /// It is none; the error says what to write.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let text = match text {
            "kata-go" => KATA_GO,
            "kata-rust" => KATA_RUST,
            other => other,
        };
        let path = text.strip_prefix('/').ok_or(PatternError::NotAbsolute)?;
        if text.len() > 1024 {
            return Err(PatternError::TooLong);
        }
        if text.contains(char::is_control) {
            return Err(PatternError::Control);
        }
        let parts: Vec<Part> = path.split('/').map(Part::new).collect::<Result<_, _>>()?;
        let is_star = |part: &Part| matches!(part, Part::Star { .. });
        let first = parts.iter().position(is_star).ok_or(PatternError::NoStar)?;
        let mut folder = PathBuf::from("/");
        for part in &parts[..first] {
            if let Part::Literal(text) = part {
                folder.push(text);
            }
        }
        Ok(Pattern {
            folder,
            parts: parts[first..].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_folder_above_the_first_star_and_what_follows() {
        let pattern = Pattern::new("/run/vms/vm-*.d/api.sock").unwrap();
        assert_eq!(pattern.folder, Path::new("/run/vms"));
        let name = pattern.parts[0].stands_for(b"vm-one.d").unwrap().unwrap();
        assert_eq!(name.as_str(), "one");
        assert_eq!(pattern.parts[0].stands_for(b"other"), None);
        assert_eq!(
            pattern.parts[0].stands_for(b"vm-.d"),
            Some(Err(NameError::Empty))
        );
        // Not so much as both ends of it.
        assert_eq!(pattern.parts[0].stands_for(b"vm-d"), None);
        assert_eq!(pattern.parts[1], Part::Literal("api.sock".into()));
        assert_eq!(Pattern::new("/*.sock").unwrap().folder, Path::new("/"));
    }

    #[test]
    fn katas() {
        assert_eq!(Pattern::new("kata-go"), Pattern::new(KATA_GO));
        assert_eq!(Pattern::new("kata-rust"), Pattern::new(KATA_RUST));
    }

    #[test]
    fn what_is_no_pattern() {
        for (text, error) in [
            ("run/*", PatternError::NotAbsolute),
            ("", PatternError::NotAbsolute),
            ("/run/vm/api.sock", PatternError::NoStar),
            ("/run/*-*/x", PatternError::ManyStars("*-*".into())),
            ("/run/**/x", PatternError::ManyStars("**".into())),
            ("/run/?/*", PatternError::Special("?".into())),
            ("/run/../*", PatternError::Dots),
            ("/run//*", PatternError::Dots),
            ("/run/*/", PatternError::Dots),
            ("/run/\n/*", PatternError::Control),
        ] {
            assert_eq!(Pattern::new(text), Err(error), "{text:?}");
        }
        let long = format!("/*/{}", "x".repeat(1024));
        assert_eq!(Pattern::new(&long), Err(PatternError::TooLong));
    }
}

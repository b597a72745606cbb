// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of VMs and fabrics. They become files' names and go into logs, and VMs' names are what others made up.

use std::fmt;

/// The most bytes of a name: Kata Containers' sandboxes have 64.
pub const MAX_NAME: usize = 64;

/// The name of a VM or a fabric: 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_', '-', the first one of them neither
/// '.' nor '-'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why something is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There are no characters.
    #[error("a name has to have a character at least")]
    Empty,
    /// There are too many.
    #[error("a name has {MAX_NAME} bytes at most")]
    TooLong,
    /// The first character could make it hidden, or an option.
    #[error("a name begins with a letter, a digit or '_'")]
    First,
    /// A character that names do not have.
    #[error("a name consists of A-Z, a-z, 0-9, '.', '_' and '-'")]
    Character,
}

impl Name {
    /// A name of these bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        let is_usual = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        match bytes {
            [] => Err(NameError::Empty),
            _ if bytes.len() > MAX_NAME => Err(NameError::TooLong),
            _ if !bytes.iter().all(is_usual) => Err(NameError::Character),
            [b'.' | b'-', ..] => Err(NameError::First),
            _ => match str::from_utf8(bytes) {
                Ok(text) => Ok(Name(text.into())),
                Err(_) => Err(NameError::Character),
            },
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web-1", "0.b_C", &"x".repeat(64), "_"] {
            assert_eq!(Name::new(good.as_bytes()).unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("", NameError::Empty),
            (".", NameError::First),
            ("..", NameError::First),
            (".hidden", NameError::First),
            ("-option", NameError::First),
            ("a/b", NameError::Character),
            ("a\nb", NameError::Character),
            ("ä", NameError::Character),
            (&"x".repeat(65), NameError::TooLong),
        ] {
            assert_eq!(Name::new(bad.as_bytes()), Err(error), "{bad:?}");
        }
        assert_eq!(Name::new(b"a\xff"), Err(NameError::Character));
        assert_eq!(Name::new(b"a\0"), Err(NameError::Character));
    }
}

//! Names: of rings and of fields.

use arrayvec::ArrayString;
use core::fmt;

use crate::{MAX_FIELD_NAME, MAX_RING_NAME};

/// The name of a ring.
pub type RingName = ArrayString<MAX_RING_NAME>;
/// The name of a field.
pub type FieldName = ArrayString<MAX_FIELD_NAME>;

/// A name that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// It is empty.
    Empty,
    /// It is longer than the limit, in bytes.
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// It holds a character that names must not hold.
    BadCharacter(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::TooLong { found, limit } => {
                write!(f, "the name has {found} bytes, at most {limit} are allowed")
            }
            Self::BadCharacter(c) => write!(f, "the name holds {c:?}, which is not allowed there"),
        }
    }
}

impl core::error::Error for NameError {}

/// A ring's name: `[a-z0-9][a-z0-9._-]{0,63}`.
///
/// # Errors
/// The first reason why `name` is none.
pub fn check_ring_name(name: &str) -> Result<RingName, NameError> {
    for (i, c) in name.chars().enumerate() {
        let plain = c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(plain || i > 0 && matches!(c, '.' | '_' | '-')) {
            return Err(NameError::BadCharacter(c));
        }
    }
    check_length(name)
}

/// A field's name: 1 to 40 bytes of UTF-8 without control characters.
///
/// # Errors
/// The first reason why `name` is none.
pub fn check_field_name(name: &str) -> Result<FieldName, NameError> {
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(NameError::BadCharacter(c));
    }
    check_length(name)
}

fn check_length<const N: usize>(name: &str) -> Result<ArrayString<N>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    ArrayString::from(name).map_err(|_| NameError::TooLong { found: name.len(), limit: N })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn ring_names_are_safe_as_file_names() {
        for good in ["a", "tokens", "0.x_y-z"] {
            assert!(check_ring_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "A", "a b", "ä", "a\0"] {
            assert!(check_ring_name(bad).is_err(), "{bad}");
        }
        let long = [b'a'; 65];
        let long = core::str::from_utf8(&long).unwrap();
        assert_eq!(check_ring_name(long), Err(NameError::TooLong { found: 65, limit: 64 }));
    }

    #[test]
    fn field_names_are_any_text_without_control_characters() {
        let longest = [b'x'; MAX_FIELD_NAME];
        assert!(check_field_name(core::str::from_utf8(&longest).unwrap()).is_ok());
        assert!(check_field_name("ä b/C").is_ok());
        assert_eq!(check_field_name("a\n"), Err(NameError::BadCharacter('\n')));
        assert_eq!(check_field_name(""), Err(NameError::Empty));
        let long = [b'x'; MAX_FIELD_NAME + 1];
        let long = check_field_name(core::str::from_utf8(&long).unwrap()).unwrap_err();
        assert_eq!(long.to_string(), "the name has 41 bytes, at most 40 are allowed");
        assert_eq!(NameError::Empty.to_string(), "the name is empty");
        assert_eq!(NameError::BadCharacter('/').to_string(), "the name holds '/', which is not allowed there");
    }
}

//! Why a configuration cannot be used: where it was said, which key, what was found and what was expected.

use std::{fmt, path::PathBuf};

/// Why a configuration cannot be used. A program ends with exit code 64 on any of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: not TOML: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// There is no such key.
    #[error("{origin}: unknown key {key}{}", nearest.as_ref().map_or_else(String::new, |n| format!("; did you mean {n}?")))]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// The key, or the variable's name.
        key: String,
        /// The known one that is most like it.
        nearest: Option<String>,
    },
    /// A key says something that it cannot say.
    #[error("{origin}: {key} = {found}: expected {expected}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// A key that must be there is missing.
    #[error("{origin}: {key} is missing: expected {expected}")]
    Missing {
        /// Where it was looked for.
        origin: Origin,
        /// The key.
        key: String,
        /// What may stand there.
        expected: String,
    },
}

/// Where a key was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File(PathBuf),
    /// In a variable of the environment.
    Environment(String),
    /// On the command line.
    Flag,
    /// Nowhere: made by a program, or a default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag => f.write_str("command line"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

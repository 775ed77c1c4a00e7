//! The error of a system call: what was tried on what, what the kernel said, what to do about it.
//!
//! Only texts and numbers live here. Modules whose callers must branch have their own small enum
//! and wrap this one for everything else.

use std::io;

/// The result of an operation of this crate.
pub type Result<T, E = OsError> = std::result::Result<T, E>;

/// A system call, or a check of what one returned, that failed.
///
/// The text has three parts: what was tried on what, what the kernel answered, and, where one is
/// known, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed for {what}: {source}{}", Hint(.hint))]
#[non_exhaustive]
pub struct OsError {
    /// The system call or check, such as `shm_open`.
    pub call: &'static str,
    /// The object it was applied to, in words.
    pub what: String,
    /// What to do about it; empty when nothing better than the source is known.
    pub hint: String,
    /// The answer of the kernel, or of our check.
    #[source]
    pub source: io::Error,
}

/// Prints "; do this" and nothing at all for an empty hint.
struct Hint<'a>(&'a str);

impl std::fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; {}", self.0)
    }
}

impl OsError {
    /// An error of `call` on `what`; a hint is chosen from the error number where one is certain.
    pub fn new(call: &'static str, what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let hint = hint_for(source.raw_os_error()).to_owned();
        Self { call, what: what.into(), hint, source }
    }

    /// An error found by our own check rather than by the kernel.
    pub(crate) fn check(
        call: &'static str,
        what: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            call,
            what: what.into(),
            hint: hint.into(),
            source: io::Error::new(io::ErrorKind::InvalidData, found.into()),
        }
    }

    /// The same error with another advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The error number, if the kernel gave one; `None` for an answer of our own checks.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The kind of the source, for callers that branch on "not found" or "already exists".
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// What helps against an error number whatever the call was.
fn hint_for(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EMFILE) => "this process has no descriptor left; raise `ulimit -n`",
        Some(libc::ENFILE) => "the host has no descriptor left; raise fs.file-max",
        Some(libc::ENOSYS) => "this kernel lacks the call, or a seccomp filter hides it",
        Some(libc::ETOOMANYREFS) => {
            "too many descriptors are in flight between this user's processes; raise `ulimit -n`"
        }
        Some(libc::EROFS) => "the file system is mounted read-only",
        _ => "",
    }
}

/// Runs `f` again for as long as a signal interrupts it.
pub(crate) fn retry<T>(mut f: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match f() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_call_object_answer_and_advice() {
        let error = OsError::new("open", "\"/x\"", io::Error::from_raw_os_error(libc::EMFILE));
        let text = error.to_string();
        assert!(text.starts_with("open failed for \"/x\": "), "{text}");
        assert!(text.ends_with("raise `ulimit -n`"), "{text}");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }

    #[test]
    fn text_without_advice_ends_with_the_answer() {
        let error = OsError::new("open", "x", io::Error::from_raw_os_error(libc::ENOENT));
        assert!(error.to_string().ends_with("(os error 2)"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

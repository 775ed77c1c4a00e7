//! Every item that is left out, a line of JSON each, `--report`.
//!
//! A line is written when the item is found, before a batch that it would have been in is published: nothing is kept in
//! memory, and a kill loses none. What is read ahead of a kill or a signal is found again by the feed that goes on.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use forebay_ingest::Watcher;
use serde_json::json;

use crate::failure::Failure;

/// Writes what is left out to a file.
#[derive(Debug)]
pub(super) struct Skips {
    name: String,
    file: Mutex<File>,
    failed: Mutex<Option<io::Error>>,
}

impl Skips {
    /// Appends to the file, so that a feed that goes on keeps what an earlier one wrote; `fresh` empties it first.
    pub(super) fn open(path: &Path, fresh: bool) -> Result<Arc<Self>, Failure> {
        let name = path.display().to_string();
        let emptied = if fresh { File::create(path).map(drop) } else { Ok(()) };
        let opened = emptied.and_then(|()| OpenOptions::new().append(true).create(true).open(path));
        match opened {
            Ok(file) => Ok(Arc::new(Self { name, file: Mutex::new(file), failed: Mutex::default() })),
            Err(e) => Err(Failure::usage(format!("cannot write --report {name}: {e}; name another file"))),
        }
    }

    /// What the pipeline leaves out is written, too.
    pub(super) fn watcher(self: &Arc<Self>) -> Watcher {
        let this = Arc::clone(self);
        Watcher::new(move |input, item| this.write(input, item.line, item.kind(), &item.reason.to_string()))
    }

    /// Writes a line. What goes wrong is said by [`check`](Self::check).
    pub(super) fn write(&self, input: &str, item: u64, kind: &str, reason: &str) {
        let line = json!({ "input": input, "item": item, "kind": kind, "reason": reason }).to_string() + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = file.write_all(line.as_bytes()) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
    }

    /// Whether everything was written.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(e) => Err(Failure::failed(format!("cannot write --report {}: {e}; make room for it", self.name))),
        }
    }
}

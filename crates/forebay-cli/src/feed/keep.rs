//! The place of a feed in a file, `--position`, for when its ring is gone: memfd, a reboot, `forebay clean`.
//!
//! The ring knows better as long as it is there: its last message carries the place. The file is written after messages
//! were published, so it is never ahead of them; between two writes it is behind.
//!
//! # What a crash leaves
//! The file is written beside and renamed: it is the old one or the new one, whole. Its bytes are on the disk before it
//! gets its name, because otherwise a power cut could leave the name and no bytes. The name is not waited for: a power
//! cut may leave the older file, from which more is fed again.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::place::Place;
use crate::failure::Failure;

/// Between two writes, at least.
const EVERY: Duration = Duration::from_millis(100);
/// So many times as long as a write took nothing is written: a slow disk takes a twentieth of the time.
const REST: u32 = 19;
/// A file of a feed is a fraction of this.
const MAX_BYTES: u64 = 64 << 10;
const VERSION: u64 = 1;

/// Keeps the place of a feed in a file.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    temporary: PathBuf,
    /// The schema of the ring: as with a ring, a place is of use only for batches of the same rows and tensors.
    schema: String,
    saved: Option<Place>,
    /// Not before then.
    due: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(path: &Path, schema: String) -> Self {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        Self { path: path.to_owned(), temporary: temporary.into(), schema, saved: None, due: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier feed kept; `None` if there is no file.
    pub(super) fn read(&self) -> Result<Option<Place>, Failure> {
        let mut text = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.refused(&format!("it cannot be read: {e}"))),
        }
        let Ok(Value::Object(kept)) = serde_json::from_slice(&text) else {
            return Err(self.refused("it is none of a feed"));
        };
        if kept.get("version") != Some(&json!(VERSION)) {
            return Err(self.refused(&format!("it is none of a feed of version {VERSION}")));
        }
        let schema = kept.get("schema").and_then(Value::as_str).unwrap_or_default();
        if schema != self.schema {
            return Err(self.refused(&format!("it is of a feed of {schema:?}, expected {:?}", self.schema)));
        }
        let bytes = kept.get("place").cloned().and_then(|bytes| serde_json::from_value::<Vec<u8>>(bytes).ok());
        match Place::decode(&bytes.unwrap_or_default()) {
            Ok(place) => Ok(Some(place)),
            Err(e) => Err(self.refused(&e.to_string())),
        }
    }

    /// What to say about a file that this feed cannot go on from.
    pub(super) fn refused(&self, why: &str) -> Failure {
        let path = self.path.display();
        Failure::usage(format!("cannot go on from --position {path}: {why}. On the command line --fresh starts over"))
    }

    /// Writes the place, unless it was just done; with `now` in any case.
    pub(super) fn save(&mut self, place: &Place, now: bool) -> Result<(), Failure> {
        if self.saved.as_ref() == Some(place) || (!now && self.due.is_some_and(|due| Instant::now() < due)) {
            return Ok(());
        }
        let begun = Instant::now();
        self.write(place).map_err(|e| {
            let path = self.path.display();
            Failure::failed(format!("cannot write --position {path}: {e}; make room for it, or name another file"))
        })?;
        let took = begun.elapsed();
        self.due = Some(Instant::now() + EVERY.max(took * REST));
        self.saved = Some(place.clone());
        Ok(())
    }

    fn write(&self, place: &Place) -> io::Result<()> {
        let position = &place.checkpoint.position;
        let text = json!({
            "version": VERSION,
            "schema": self.schema,
            // For people; the place says it, too.
            "file": position.file,
            "line": position.line,
            "items": position.items,
            "rows_of_next_batch": place.part.map_or(0, |part| part.rows()),
            "place": place.encode(),
        });
        let mut file = File::create(&self.temporary)?;
        writeln!(file, "{text}")?;
        file.sync_data()?;
        fs::rename(&self.temporary, &self.path)
    }

    /// Takes the file away: all is done, and the next feed starts with the first item.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Failure::failed(format!("cannot remove --position {}: {e}; remove it", self.path.display())))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_ingest::{Checkpoint, Position};

    fn place(line: u64) -> Place {
        Checkpoint::from(Position { line, ..Position::default() }).into()
    }

    #[test]
    fn what_was_saved_is_read_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        let mut keeper = Keeper::new(&path, "rows".into());
        assert!(keeper.read().unwrap().is_none());
        for line in [1, 2] {
            keeper.save(&place(line), true).unwrap();
            assert_eq!(keeper.read().unwrap(), Some(place(line)));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        keeper.remove().unwrap();
        keeper.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_that_is_not_due_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(&folder.path().join("place"), "rows".into());
        keeper.save(&place(1), false).unwrap();
        keeper.due = Some(Instant::now() + Duration::from_secs(3600));
        keeper.save(&place(2), false).unwrap();
        assert_eq!(keeper.read().unwrap(), Some(place(1)));
        keeper.save(&place(2), true).unwrap();
        assert_eq!(keeper.read().unwrap(), Some(place(2)));
    }

    #[test]
    fn a_file_that_is_of_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        Keeper::new(&path, "rows".into()).save(&place(1), true).unwrap();
        let other = Keeper::new(&path, "other rows".into()).read().unwrap_err();
        assert!(other.text.contains("\"other rows\"") && other.text.contains("--fresh"), "{}", other.text);
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in ["", "7", "{}", "{\"version\": 1, \"schema\": \"rows\"}", &whole.replace("70", "71")] {
            fs::write(&path, damaged).unwrap();
            assert!(Keeper::new(&path, "rows".into()).read().is_err(), "{damaged}");
        }
    }
}

//! A directory of one test's own, and the objects in /dev/shm that belong to it.

use std::path::{Path, PathBuf};

use forebay_os::{Dir, process};

/// Where the rings of one test live. Dropping it checks that nothing is left in `/dev/shm`, and removes it all.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
    prefix: String,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// A new empty place.
    ///
    /// # Panics
    /// If there is no room for a directory.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("forebay-test-").tempdir().unwrap();
        let hash = Dir::open(Some(dir.path())).unwrap().hash();
        let prefix = format!("forebay.{}.{hash:08x}.", process::uid());
        let place = Self { dir, prefix };
        // Names follow from the directory's inode, and a number is used again: what is there is of a directory that is gone,
        // whose processes were killed.
        place.sweep();
        place
    }

    /// The directory, for the `dir` option and `FOREBAY_DIR`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The objects of all rings of this place in `/dev/shm`.
    #[must_use]
    pub fn objects(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir("/dev/shm") else { return Vec::new() };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&self.prefix))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found
    }

    /// One object of a posix ring: `ring`, `data`, `pool` or `m0` to `m31`.
    #[must_use]
    pub fn object(&self, ring: &str, part: &str) -> PathBuf {
        Path::new("/dev/shm").join(format!("{}{ring}.{part}", self.prefix))
    }

    /// Removes what a test left on purpose, for example by killing the last producer.
    pub fn sweep(&self) {
        for object in self.objects() {
            // A failure shows when the place is dropped.
            let _ = std::fs::remove_file(object);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.objects();
        self.sweep();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left in /dev/shm: {left:?}");
        }
    }
}

//! The words of a ring's objects from outside, as a peer that may write them has them; and what a dead producer left, to
//! be laid out again and again.

use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use forebay_testkit::Place;

/// One object.
#[derive(Debug)]
pub(crate) struct Object(fs::File);

impl Object {
    /// An object of a posix ring.
    pub(crate) fn named(place: &Place, ring: &str, part: &str) -> Self {
        Self::at(&place.object(ring, part))
    }

    /// An object of a memfd ring whose producer is this process, and which its members may write.
    pub(crate) fn anonymous(ring: &str, part: &str) -> Self {
        let wanted = format!("memfd:forebay.{ring}.{part} ");
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut found = fds
            .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains(&wanted)))
            .map(|fd| fd.path());
        Self::at(&found.next().unwrap_or_else(|| panic!("no {wanted}")))
    }

    pub(crate) fn at(path: &Path) -> Self {
        Self(fs::OpenOptions::new().read(true).write(true).open(path).unwrap())
    }

    pub(crate) fn words(&self) -> usize {
        (self.0.metadata().unwrap().len() / 8) as usize
    }

    pub(crate) fn get(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, word as u64 * 8).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn set(&self, word: usize, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), word as u64 * 8).unwrap();
    }

    /// Every word.
    pub(crate) fn all(&self) -> Vec<u64> {
        (0..self.words()).map(|word| self.get(word)).collect()
    }
}

/// What a dead producer of a posix ring left: its objects and its lock file.
#[derive(Debug)]
pub(crate) struct Corpse {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Corpse {
    /// Everything there is of `ring` in `place`.
    pub(crate) fn of(place: &Place, ring: &str) -> Self {
        let mut paths = place.objects();
        paths.push(place.path().join(format!("{ring}.lock")));
        Self { files: paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect() }
    }

    /// Lays it out anew, after `change` has changed the bytes of the objects: it gets the last part of each one's name.
    pub(crate) fn lay_out(&self, place: &Place, mut change: impl FnMut(&str, &mut Vec<u8>)) {
        place.sweep();
        for (path, bytes) in &self.files {
            let mut bytes = bytes.clone();
            let part = path.extension().unwrap().to_string_lossy();
            if part != "lock" {
                change(&part, &mut bytes);
            }
            let _ = fs::remove_file(path);
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        }
    }
}

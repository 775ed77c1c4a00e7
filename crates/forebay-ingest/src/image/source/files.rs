//! Lists of files: folders spread out in the order of their paths, and single files read with a bound.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ImageSourceError;

const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}

pub(super) fn is_shard(path: &Path) -> bool {
    has_ending(path, &["tar"])
}

/// The inputs, each folder replaced by the images and shards in it. A file that is named is taken whatever its name.
pub(super) fn spread<P: AsRef<Path>>(inputs: &[P]) -> Result<Vec<PathBuf>, ImageSourceError> {
    let mut found = Vec::new();
    for input in inputs {
        let path = input.as_ref();
        let metadata =
            fs::metadata(path).map_err(|source| ImageSourceError::Unreadable { path: path.to_owned(), source })?;
        if metadata.is_dir() { folder(path, &mut found)? } else { found.push(path.to_owned()) }
    }
    Ok(found)
}

/// The files of a folder and of the folders in it, sorted. Links to folders are not followed: they may lead back.
fn folder(path: &Path, found: &mut Vec<PathBuf>) -> Result<(), ImageSourceError> {
    let unreadable = |source| ImageSourceError::Unreadable { path: path.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        entries.push((entry.path(), entry.file_type().map_err(unreadable)?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in entries {
        if kind.is_dir() {
            folder(&path, found)?;
        } else if is_shard(&path) || has_ending(&path, &IMAGES) {
            found.push(path);
        }
    }
    Ok(())
}

/// Hash of the list: its length and each path, in order.
pub(super) fn fingerprint(inputs: &[PathBuf]) -> u64 {
    let lengths = (inputs.len() as u64).to_le_bytes();
    let paths = inputs.iter().flat_map(|path| {
        let bytes = path.as_os_str().as_bytes();
        (bytes.len() as u64).to_le_bytes().into_iter().chain(bytes.iter().copied())
    });
    // FNV-1a.
    lengths
        .into_iter()
        .chain(paths)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The bytes of a file of at most `max_bytes`; else why not.
pub(super) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let kind = fs::metadata(path).map_err(|error| error.to_string())?;
    if !kind.is_file() {
        return Err("not a file; name a regular file".into());
    }
    let read = File::open(path).and_then(|file| file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read the file: {error}; check its permissions"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("the file has more than {max_bytes} bytes; raise max_bytes or leave it out"));
    }
    Ok(bytes)
}

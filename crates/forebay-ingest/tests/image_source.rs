//! Images read from files, folders and shards, and resumed.
#![cfg(feature = "images")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::fs;
use std::path::Path;
use std::process::Command;

use forebay_ingest::image::{ImagePosition, ImageSource, ImageSourceError, ImageSourceOptions, Sample};

/// A folder with images of names, whose content is their name, and things to be passed over.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sub = folder.path().join("b");
    fs::create_dir(&sub).unwrap();
    for (at, name) in [(folder.path(), "c.JPG"), (folder.path(), "a.png"), (&*sub, "z.webp"), (&*sub, "y.jpeg")] {
        fs::write(at.join(name), name).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    folder
}

/// A shard made by the system's tar, with names that need a long-name header.
fn shard(folder: &Path) {
    let deep = folder.join("k".repeat(120));
    fs::create_dir(&deep).unwrap();
    for (name, content) in [("0.jpg", "zero"), ("0.cls", "5"), ("1.png", "one"), ("1.txt", "words")] {
        fs::write(deep.join(name), content).unwrap();
    }
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder).args(["--sort=name", "--format=gnu", "-cf"]).arg(folder.join("d.tar"));
    let done = tar.arg("k".repeat(120)).status().unwrap();
    assert!(done.success());
    fs::remove_dir_all(deep).unwrap();
}

fn images(source: ImageSource) -> Vec<String> {
    source.map(|sample| String::from_utf8(sample.unwrap().image).unwrap()).collect()
}

#[test]
fn folders_are_read_in_the_order_of_their_paths() {
    let folder = folder();
    shard(folder.path());
    let source = ImageSource::open(&[folder.path()], ImageSourceOptions::default()).unwrap();
    assert_eq!(images(source), ["a.png", "y.jpeg", "z.webp", "c.JPG", "zero", "one"]);
}

#[test]
fn shards_bring_labels() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path());
    let source = ImageSource::open(&[folder.path().join("d.tar")], ImageSourceOptions::default()).unwrap();
    let samples: Vec<Sample> = source.map(Result::unwrap).collect();
    assert_eq!(samples[0].label, Some(("cls".into(), b"5".to_vec())));
    assert_eq!(samples[1].label, Some(("txt".into(), b"words".to_vec())));
    assert_eq!(samples[1].key, format!("{}/1", "k".repeat(120)));
}

#[test]
fn every_position_is_one_to_resume_from() {
    let folder = folder();
    shard(folder.path());
    let inputs = [folder.path()];
    let mut source = ImageSource::open(&inputs, ImageSourceOptions::default()).unwrap();
    let all = images(ImageSource::open(&inputs, ImageSourceOptions::default()).unwrap());
    for done in 0..=all.len() {
        let position = source.position();
        assert_eq!(position.samples, done as u64);
        let rest = ImageSource::resume(&inputs, ImageSourceOptions::default(), &position).unwrap();
        assert_eq!(images(rest), all[done..], "after {done}");
        source.next();
    }
    let other = ImagePosition { check: 1, ..ImagePosition::default() };
    let refused = ImageSource::resume(&inputs, ImageSourceOptions::default(), &other).unwrap_err();
    assert!(matches!(refused, ImageSourceError::OtherInputs { inputs: 5, .. }), "{refused}");
}

#[test]
fn what_cannot_be_read_does_not_end_the_source() {
    let folder = folder();
    fs::write(folder.path().join("b/cut.tar"), [7u8; 700]).unwrap();
    fs::create_dir(folder.path().join("b/x.jpg")).unwrap();
    fs::remove_file(folder.path().join("a.png")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("a.png")).unwrap();
    let mut options = ImageSourceOptions::default();
    options.max_bytes = 5;
    let source = ImageSource::open(&[folder.path()], options).unwrap();
    let samples: Vec<_> = source.collect();
    let reasons: Vec<String> = samples.iter().filter_map(|s| s.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!((samples.len(), reasons.len()), (5, 4), "{reasons:?}");
    assert!(reasons[0].contains("a.png: No such file"), "{reasons:?}");
    assert!(reasons[1].contains("cut.tar at byte 0: the shard is damaged"), "{reasons:?}");
    assert!(reasons[2].contains("y.jpeg: the file has more than 5 bytes"), "{reasons:?}");
}

#[test]
fn nothing_to_read_and_missing_inputs_are_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ImageSource::open(&[path], ImageSourceOptions::default()).unwrap_err().to_string();
    assert!(open(folder.path()).contains("no image and no tar shard among the inputs (1 given)"));
    assert!(open(&folder.path().join("missing")).contains("missing: No such file"));
}

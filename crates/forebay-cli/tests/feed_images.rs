//! `forebay feed --images`: the tensors are those of the image processor, each image comes once, bad ones are told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path, process::Command};

use common::{PATIENCE, Place, watchdog};
use forebay::{Consumer, RecvError};
use forebay_ingest::{
    Work,
    image::{ImageOptions, ImageProcessor, Recipe},
};

const CLIP: &str = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32}}"#;
const NAMES: [&str; 6] = ["422.jpg", "gradient.png", "lossy.webp", "gray.jpg", "orientation-6.jpg", "palette.png"];
const ARGS: [&str; 7] = ["--images", "--processor", "clip.json", "--batch", "2", "--slots", "3"];

fn image(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../forebay-ingest/tests/data/images").join(name)).unwrap()
}

/// A place with a processor, a folder of three images and a shard of three more, with labels.
fn place() -> Place {
    let place = Place::new();
    place.write("clip.json", CLIP);
    for folder in ["files", "inner"] {
        fs::create_dir(place.path(folder)).unwrap();
    }
    for (at, name) in NAMES.iter().enumerate() {
        let folder = if at < 3 { "files" } else { "inner" };
        let ending = name.rsplit('.').next().unwrap();
        place.write(&format!("{folder}/{at}.{ending}"), image(name));
        place.write(&format!("{folder}/{at}.cls"), at.to_string());
    }
    let mut tar = Command::new("tar");
    let done = tar.current_dir(place.path("inner")).args(["--sort=name", "-cf", "../shard.tar", "."]).status();
    assert!(done.unwrap().success());
    place
}

/// Pixels and labels of messages until the ring is closed, or of so many.
fn receive(consumer: &mut Consumer, most: usize) -> (Vec<Vec<u8>>, Vec<i64>) {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..most {
        match consumer.recv_timeout(PATIENCE) {
            Ok(message) => {
                let tensor = message.tensor("pixel_values").unwrap();
                assert_eq!(tensor.shape()[1..], [3, 32, 32]);
                pixels.extend(tensor.as_bytes().chunks_exact(3 * 32 * 32 * 4).map(<[u8]>::to_vec));
                labels.extend_from_slice(message.as_slice::<i64>("labels").unwrap());
            }
            Err(RecvError::Closed { .. }) => break,
            Err(e) => panic!("{e}"),
        }
    }
    (pixels, labels)
}

/// Images of all messages until the ring is closed.
fn receive_rows(consumer: &mut Consumer) -> u64 {
    let mut rows = 0;
    while let Ok(message) = consumer.recv_timeout(PATIENCE) {
        rows += message.tensor("pixel_values").unwrap().shape()[0];
    }
    rows
}

fn expected() -> Vec<Vec<u8>> {
    let processor = ImageProcessor::new(Recipe::from_config(CLIP).unwrap(), ImageOptions::default()).unwrap();
    let bytes = NAMES.map(image);
    let plan = processor.plan(&bytes, &Work::here()).unwrap();
    let mut out = vec![0; plan.bytes(&processor)];
    assert!(processor.run(&plan, &bytes, &mut out, None, &Work::here()).unwrap().is_empty());
    out.chunks_exact(out.len() / NAMES.len()).map(<[u8]>::to_vec).collect()
}

#[test]
fn files_and_shards_arrive_as_the_processor_makes_them() {
    let (place, _dog) = (place(), watchdog());
    let args = [&ARGS[..], &["--labels", "--keys", "--json", "files", "*.tar"]].concat();
    let mut feed = place.feed_other(args);
    let mut consumer = place.consumer("images");
    let schema = consumer.schema().unwrap().to_string();
    let fields = "pixel_values: float32[2, 3, 32, 32], labels: int64[2], keys: uint8[2, 256]";
    assert_eq!(schema, format!("images 1.0 {{ {fields} }}"));
    let first = consumer.recv_timeout(PATIENCE).unwrap();
    let key = first.as_slice::<u8>("keys").unwrap();
    assert!(String::from_utf8_lossy(&key[..256]).trim_end_matches('\0').ends_with("files/0.jpg"));
    assert!(first.as_slice::<i64>("labels").unwrap() == [0, 1]);
    let mut pixels: Vec<Vec<u8>> =
        first.tensor("pixel_values").unwrap().as_bytes().chunks(3 * 32 * 32 * 4).map(<[u8]>::to_vec).collect();
    drop(first);
    let (rest, labels) = receive(&mut consumer, usize::MAX);
    pixels.extend(rest);
    assert!(pixels == expected());
    assert_eq!(labels, [2, 3, 4, 5]);
    let summary = feed.end().assert_code(0).json();
    assert_eq!((&summary["rows"], &summary["complete"]), (&6.into(), &true.into()));
    place.assert_clean();
}

/// The labels of all that comes of a feed that is killed after each of its first three batches and started again.
fn labels_through_kills(place: &Place, more: &[&str]) -> Vec<i64> {
    let args = [&ARGS[..], &["--labels"], more].concat();
    let mut feed = place.feed_other(&args);
    let mut consumer = place.consumer("images");
    let mut labels = Vec::new();
    for _ in 0..3 {
        labels.extend(receive(&mut consumer, 1).1);
        feed.kill();
        feed = place.feed_other(&args);
    }
    labels.extend(receive(&mut consumer, usize::MAX).1);
    feed.end().assert_code(0);
    labels
}

#[test]
fn a_killed_feed_of_images_goes_on_and_each_comes_once() {
    for more in [&["--repeat", "3"][..], &["--repeat", "3", "--shuffle", "9", "--shuffle-block", "4"]] {
        let (place, _dog) = (place(), watchdog());
        let mut labels = labels_through_kills(&place, &[more, &["files", "shard.tar"]].concat());
        assert_eq!(labels.len(), 18);
        for pass in labels.chunks_mut(6) {
            pass.sort_unstable();
            assert_eq!(pass, [0, 1, 2, 3, 4, 5]);
        }
        place.assert_clean();
    }
}

#[test]
fn a_shuffled_block_that_begins_behind_a_file_is_the_same_after_a_kill() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("clip.json", CLIP);
    fs::create_dir(place.path("many")).unwrap();
    for at in 0..8 {
        place.write(&format!("many/{at}.jpg"), image("gray.jpg"));
        place.write(&format!("many/{at}.cls"), at.to_string());
    }
    let mut labels = labels_through_kills(&place, &["--shuffle", "1", "--shuffle-block", "4", "many"]);
    labels.sort_unstable();
    assert_eq!(labels, [0, 1, 2, 3, 4, 5, 6, 7]);
    place.assert_clean();
}

#[test]
fn bad_images_are_told_and_skipped_or_end_the_feed() {
    let (place, _dog) = (place(), watchdog());
    let cut = image("coffee.jpg");
    place.write("files/1a.jpg", &cut[..cut.len() / 2]);
    place.write("files/1b.jpg", "no image");
    place.write("broken.tar", b"x".repeat(2000));
    let inputs = ["files", "broken.tar", "shard.tar"];
    let args = [&ARGS[..], &["--on-error", "skip", "--json"], &inputs].concat();
    let mut feed = place.feed_other(args);
    let mut consumer = place.consumer("images");
    assert_eq!(receive_rows(&mut consumer), 6);
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["1a.jpg sample 1:", "1b.jpg", "not an image", "broken.tar sample 1"]);
    let skipped = &ended.json()["skipped"];
    let count = |kind: &str| skipped[kind].as_u64().unwrap_or(0);
    assert_eq!([count("damaged"), count("not an image that is taken"), count("unreadable")], [1, 1, 1], "{skipped}");
    drop(consumer);

    let mut feed = place.feed_other([&ARGS[..], &inputs].concat());
    let mut consumer = place.consumer("images");
    assert_eq!(consumer.recv_timeout(PATIENCE).unwrap().correlation_id(), 0);
    while consumer.recv_timeout(PATIENCE).is_ok() {}
    feed.end().assert_code(1).assert_says(&["1a.jpg sample 1:", "--on-error skip"]);
}

#[test]
fn sigterm_drains_an_endless_feed_of_images() {
    let (place, _dog) = (place(), watchdog());
    let args = [&ARGS[..], &["--labels", "--repeat", "forever", "--ordered", "false", "files"]].concat();
    let mut feed = place.feed_other(args);
    let mut consumer = place.consumer("images");
    let images = receive(&mut consumer, 10).1.len();
    assert!((10..=20).contains(&images), "three images a pass, in batches of two and one: {images}");
    feed.signal("TERM");
    receive(&mut consumer, usize::MAX);
    feed.end().assert_code(0).assert_says(&["stays"]);
}

#[test]
fn what_images_need_is_asked_for() {
    let (place, _dog) = (place(), watchdog());
    place.write("bad.json", "{}");
    for (args, says) in [
        (&["--images", "files"][..], "--processor"),
        (&["--images", "--processor", "clip.json"], "standard input"),
        (&["--images", "--processor", "bad.json", "files"], "bad.json"),
        (&["--images", "--processor", "clip.json", "nothing"], "nothing"),
        (&["--images", "--processor", "clip.json", "nothing*.tar"], "nothing*.tar"),
        (&["--images", "--jsonl", "files"], "cannot be used with"),
        (&["--jsonl", "a.jsonl"], "--schema"),
        (&["a.txt"], "--tokenizer"),
    ] {
        place.feed_other(args).end().assert_code(64).assert_says(&[says]);
    }
}

#[test]
fn padded_images_beyond_a_slot_are_sent_as_small_as_they_are() {
    let (place, _dog) = (Place::new(), watchdog());
    let config = r#"{"image_processor_type": "DetrImageProcessor", "do_resize": false}"#;
    place.write("detr.json", config);
    // 12 × 16, 16 × 12, 28 × 36: with pixels and mask 3,840 bytes each of the first two, 20,160 the third, and each of
    // them as long as it is filled up for that.
    let images = ["orientation-1.jpg", "orientation-6.jpg", "gray.jpg"].map(image);
    for (name, image) in ["0.jpg", "1.jpg", "2.jpg"].iter().zip(&images) {
        place.write(name, image);
    }
    let processor = ImageProcessor::new(Recipe::from_config(config).unwrap(), ImageOptions::default()).unwrap();
    // A slot for none but the small ones, then one for the large one too, but for no two as long as that.
    for (slot, fit) in [("4096", 2), ("24KiB", 3)] {
        let args = ["--images", "--processor", "detr.json", "--batch", "3", "--slot-bytes", slot, "--on-error", "skip"];
        let mut feed = place.feed_other([&args[..], &["--json", "0.jpg", "1.jpg", "2.jpg"]].concat());
        let mut consumer = place.consumer("images");
        let mut next = 0;
        while next < fit {
            let message = consumer.recv_timeout(PATIENCE).unwrap();
            assert_eq!(message.correlation_id(), next as u64);
            let pixels = message.tensor("pixel_values").unwrap();
            let together = &images[next..next + pixels.shape()[0] as usize];
            let plan = processor.plan(together, &Work::here()).unwrap();
            assert_eq!(pixels.shape(), plan.shape(&processor).map(|dim| dim as u64));
            let mut out = vec![0; plan.bytes(&processor)];
            let (height, width) = plan.size();
            let mut mask = vec![0; together.len() * height as usize * width as usize];
            let failed = processor.run(&plan, together, &mut out, Some(&mut mask), &Work::here());
            assert!(failed.unwrap().is_empty());
            assert!(pixels.as_bytes() == out);
            assert!(message.as_slice::<i64>("pixel_mask").unwrap() == mask);
            next += together.len();
        }
        assert_eq!(next, fit);
        assert!(matches!(consumer.recv_timeout(PATIENCE), Err(RecvError::Closed { .. })));
        let ended = feed.end();
        ended.assert_code(0);
        if fit < images.len() {
            ended.assert_says(&["skipped 2.jpg sample 1: a message of"]);
        }
        assert_eq!(ended.json()["skipped"]["too large for a slot"].as_u64().unwrap_or(0), (images.len() - fit) as u64);
        place.assert_clean();
    }
}

/// A gray PNG of so many pixels, not compressed.
fn png(width: u32, height: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    };
    let lines = vec![0; (width as usize + 1) * height as usize];
    let mut data = vec![0x78, 0x01];
    let mut blocks = lines.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        data.push(u8::from(blocks.peek().is_none()));
        data.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        data.extend(block);
    }
    // The sums of Adler-32 over zeros: of them all, and of how many there are.
    data.extend(((lines.len() as u32 % 65521) << 16 | 1).to_be_bytes());
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", data), (b"IEND", Vec::new())] {
        bytes.extend((content.len() as u32).to_be_bytes());
        let chunk = [&kind[..], &content].concat();
        bytes.extend_from_slice(&chunk);
        bytes.extend(crc(&chunk).to_be_bytes());
    }
    bytes
}

/// Went wrong: such an image ended the feed, as no message of the ring could have its shape.
#[test]
fn an_image_that_stays_a_little_longer_than_the_longest_edge_is_fed() {
    let (place, _dog) = (Place::new(), watchdog());
    let size = r#"{"shortest_edge": 480, "longest_edge": 640}"#;
    place.write("detr.json", format!(r#"{{"image_processor_type": "DetrImageProcessor", "size": {size}}}"#));
    // 641 × 320 stays as it is, as transformers leaves it. Both are padded to 641 × 640.
    place.write("0.png", png(641, 320));
    place.write("1.png", png(480, 640));
    // As long as any can stay: there is no room for both in one message.
    place.write("2.png", png(1279, 1));
    place.write("3.png", png(480, 640));
    for policy in ["skip", "fail"] {
        let args = ["--images", "--processor", "detr.json", "--batch", "2", "--slots", "2", "--on-error", policy];
        let inputs = if policy == "skip" { &["0.png", "1.png", "2.png", "3.png"][..] } else { &["0.png", "1.png"] };
        let mut feed = place.feed_other([&args[..], &["--json"], inputs].concat());
        let mut consumer = place.consumer("images");
        let schema = consumer.schema().unwrap().to_string();
        assert!(schema.contains("pixel_values: float32[2, 3, any, any]"), "{schema}");
        let mut shapes = Vec::new();
        while let Ok(message) = consumer.recv_timeout(PATIENCE) {
            let mask = message.tensor("pixel_mask").unwrap().shape().to_vec();
            let shape = message.tensor("pixel_values").unwrap().shape().to_vec();
            assert_eq!([&shape[..1], &shape[2..]].concat(), mask);
            shapes.push(shape);
        }
        let all: [&[u64]; 3] = [&[2, 3, 640, 641], &[1, 3, 1, 1279], &[1, 3, 640, 480]];
        assert_eq!(shapes, all[..if policy == "skip" { 3 } else { 1 }]);
        let ended = feed.end();
        ended.assert_code(0);
        assert_eq!((&ended.json()["rows"], &ended.json()["skipped_lines"]), (&inputs.len().into(), &0.into()));
        place.assert_clean();
    }
}

/// Went wrong: a larger limit was only that of the files' reader, and the processor refused what was read.
#[test]
fn the_largest_image_file_may_be_larger_or_smaller_than_by_default() {
    let (place, _dog) = (place(), watchdog());
    let small = image("gradient.png");
    // What stands behind the end of an image is not looked at.
    let large = place.write("large.png", &small);
    fs::OpenOptions::new().write(true).open(large).unwrap().set_len((64 << 20) + 1).unwrap();
    place.write("small.png", &small);
    let least = small.len() as u64;
    for (limit, rows) in
        [("64MiB".into(), 1), ("65MiB".into(), 2), (least.to_string(), 1), ((least - 1).to_string(), 0)]
    {
        let args =
            [&ARGS[..], &["--on-error", "skip", "--json", "--max-image-bytes", &limit, "large.png", "small.png"]];
        let mut feed = place.feed_other(args.concat());
        if rows > 0 {
            assert_eq!(receive_rows(&mut place.consumer("images")), rows, "{limit}");
        }
        let ended = feed.end();
        ended.assert_code(0);
        let skipped = &ended.json()["skipped"];
        assert_eq!(skipped["unreadable"].as_u64().unwrap_or(0), 2 - rows, "{limit}: {skipped}");
        place.assert_clean();
    }
}

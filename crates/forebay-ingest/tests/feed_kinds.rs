//! Images and tables through the pipeline: the tensors are those of the processor and the encoder, every position is one
//! to go on from, bad items are placed.

#![cfg(all(feature = "images", feature = "tables", feature = "text"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{watchdog, write};
use forebay_ingest::image::{ImageError, ImageOptions, ImageProcessor, Recipe};
use forebay_ingest::table::{TableEncoder, TableOptions, TableSchema};
use forebay_ingest::{
    Checkpoint, ImageFeed, ImageFeedOptions, ImagePipeline, IngestError, ItemError, OnError, PipelineOptions, Position,
    Repeat, Source, SourceOptions, TablePipeline, Work,
};

const CLIP: &str = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32}}"#;
/// Padded to the largest image of a batch.
const PADDED: &str =
    r#"{"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 24, "longest_edge": 40}}"#;

fn image(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name)).unwrap()
}

const GOOD: [&str; 5] = ["422.jpg", "gradient.png", "lossy.webp", "gray.jpg", "orientation-6.jpg"];

/// Two images as files, with labels beside them, and three in a shard, with labels in it.
fn inputs(folder: &Path) -> Vec<PathBuf> {
    for (at, (name, from)) in ["a.jpg", "b.png"].iter().zip(GOOD).enumerate() {
        fs::write(folder.join(name), image(from)).unwrap();
        fs::write(folder.join(name).with_extension("cls"), at.to_string()).unwrap();
    }
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap();
    for (at, (name, from)) in ["2.webp", "3.jpg", "4.jpg"].iter().zip(&GOOD[2..]).enumerate() {
        fs::write(inner.join(name), image(from)).unwrap();
        fs::write(inner.join(name).with_extension("cls"), format!("{}\n", at + 2)).unwrap();
        fs::write(inner.join(name).with_extension("json"), "{}").unwrap();
    }
    let shard = folder.join("d.tar");
    let done = Command::new("tar").arg("-C").arg(&inner).args(["--sort=name", "-cf"]).arg(&shard).arg(".").status();
    assert!(done.unwrap().success());
    vec![folder.join("a.jpg"), folder.join("b.png"), shard]
}

fn processor(config: &str) -> Arc<ImageProcessor> {
    Arc::new(ImageProcessor::new(Recipe::from_config(config).unwrap(), ImageOptions::default()).unwrap())
}

fn options(batch_rows: usize) -> PipelineOptions {
    PipelineOptions { batch_rows, workers: 2, on_error: OnError::Skip, ..PipelineOptions::default() }
}

fn labelled() -> ImageFeedOptions {
    let mut options = ImageFeedOptions::default();
    options.labels = true;
    options
}

#[test]
fn tensors_of_images_are_those_of_the_processor() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = inputs(folder.path());
    for config in [CLIP, PADDED] {
        let processor = processor(config);
        let feed = ImageFeed::open(&inputs, labelled()).unwrap();
        let mut pipeline = ImagePipeline::images(feed, Arc::clone(&processor), options(3)).unwrap();
        let total = pipeline.input_bytes();
        let batches: Vec<_> = pipeline.by_ref().map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|batch| batch.rows()).collect::<Vec<_>>(), [3, 2]);
        let mut labels = Vec::new();
        for (batch, names) in batches.iter().zip(GOOD.chunks(3)) {
            let bytes: Vec<Vec<u8>> = names.iter().map(|name| image(name)).collect();
            let plan = processor.plan(&bytes, &Work::here()).unwrap();
            let mut pixels = vec![0; plan.bytes(&processor)];
            let mut mask = vec![0; plan.mask_shape().iter().product()];
            let failures = processor.run(&plan, &bytes, &mut pixels, Some(&mut mask), &Work::here()).unwrap();
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(batch.data.shape, plan.shape(&processor));
            assert!(batch.data.pixels == pixels);
            assert_eq!(batch.data.mask, (config == PADDED).then_some(mask));
            labels.extend(batch.data.labels.clone().unwrap());
        }
        assert_eq!(labels, [0, 1, 2, 3, 4]);
        assert!(pipeline.report().complete);
        assert_eq!(Some(pipeline.report().input_bytes), total);
    }
}

#[test]
fn images_go_on_from_every_position_over_files_shards_and_passes() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = inputs(folder.path());
    let mut options_of_feed = ImageFeedOptions::default();
    options_of_feed.repeat = Repeat::Times(2);
    let keys = |at: Option<&Position>| {
        let feed = match at {
            None => ImageFeed::open(&inputs, options_of_feed),
            Some(position) => ImageFeed::resume(&inputs, options_of_feed, position),
        };
        let pipeline = ImagePipeline::images(feed.unwrap(), processor(CLIP), options(2)).unwrap();
        pipeline.map(|batch| batch.unwrap()).map(|batch| (batch.data.keys.clone(), batch.next)).collect::<Vec<_>>()
    };
    let all = keys(None);
    let names: Vec<String> = all.iter().flat_map(|(keys, _)| keys.clone()).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[..5], names[5..]);
    for (at, (_, position)) in all.iter().enumerate() {
        let decoded = Checkpoint::decode(&position.encode()).unwrap().position;
        assert_eq!(keys(Some(&decoded)), all[at + 1..], "after batch {at}");
    }
    let refused = ImageFeed::resume(&inputs[..2], options_of_feed, &all[0].1).unwrap_err();
    assert!(matches!(refused, IngestError::OtherInputs { inputs: 2, .. }), "{refused}");
}

#[test]
fn bad_images_are_left_out_and_the_others_are_as_without_them() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let good = inputs(folder.path());
    let cut = image("coffee.jpg");
    let mut bad = vec![good[0].clone()];
    for (name, content) in [("cut.jpg", &cut[..cut.len() / 2]), ("none.jpg", b"text"), ("gone.jpg", b"")] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        bad.push(path);
    }
    bad.push(good[1].clone());
    for config in [CLIP, PADDED] {
        let run = |inputs: &[PathBuf], on_error| {
            let feed = ImageFeed::open(inputs, ImageFeedOptions::default()).unwrap();
            ImagePipeline::images(feed, processor(config), PipelineOptions { on_error, ..options(5) }).unwrap()
        };
        let mut skipping = run(&bad, OnError::Skip);
        let batch = skipping.next().unwrap().unwrap();
        assert!(batch.data == run(&good[..2], OnError::Skip).next().unwrap().unwrap().data);
        assert_eq!(batch.lines.iter().map(|id| id.file).collect::<Vec<_>>(), [0, 4]);
        assert!(skipping.next().is_none());
        let skipped = &skipping.report().skipped;
        assert_eq!(skipped.by_kind().collect::<Vec<_>>(), [("not an image that is taken", 2), ("damaged", 1)]);
        let first = &skipped.first()[0].reason;
        assert!(
            matches!(first, ItemError::Image { key, error: ImageError::Damaged { .. } } if key.ends_with("cut.jpg"))
        );

        let error = run(&bad, OnError::Fail).next().unwrap().unwrap_err();
        assert!(matches!(&error, IngestError::BadSample { sample: 1, .. }), "{error}");
        assert!(error.to_string().contains(".jpg sample 1: "), "{error}");
    }
    // Without a label it is no item, whatever it is.
    let feed = ImageFeed::open(&bad[3..], labelled()).unwrap();
    let mut pipeline = ImagePipeline::images(feed, processor(CLIP), options(5)).unwrap();
    assert_eq!(pipeline.next().unwrap().unwrap().data.labels, Some(vec![1]));
    assert!(pipeline.next().is_none());
    assert_eq!(pipeline.report().skipped.by_kind().collect::<Vec<_>>(), [("without a label", 1)]);
}

#[test]
fn an_image_that_makes_its_batch_too_large_is_left_out() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let mut inputs = Vec::new();
    for name in ["gradient.png", "coffee.jpg", "lossy.webp"] {
        inputs.push(folder.path().join(name));
        fs::write(folder.path().join(name), image(name)).unwrap();
    }
    let recipe = Recipe::from_config(r#"{"image_processor_type": "DetrImageProcessor", "do_resize": false}"#).unwrap();
    let mut limited = ImageOptions::default();
    limited.limits.max_batch_bytes = 1 << 20;
    let processor = Arc::new(ImageProcessor::new(recipe, limited).unwrap());
    let run = |inputs: &[PathBuf]| {
        let feed = ImageFeed::open(inputs, ImageFeedOptions::default()).unwrap();
        ImagePipeline::images(feed, Arc::clone(&processor), options(3)).unwrap()
    };
    let mut pipeline = run(&inputs);
    let batch = pipeline.next().unwrap().unwrap();
    assert_eq!((batch.rows(), batch.data.size), (2, (28, 36)));
    assert!(pipeline.next().is_none());
    let reason = &pipeline.report().skipped.first()[0].reason;
    let too_large =
        matches!(reason, ItemError::Image { error: ImageError::BatchTooLarge { images: 3, height: 375, .. }, .. });
    assert!(too_large, "{reason}");
    inputs.remove(1);
    assert!(batch.data == run(&inputs).next().unwrap().unwrap().data);
}

/// Went wrong: what a header said decided for a batch, though the image behind it was damaged, and the others were left
/// out with it.
#[test]
fn a_damaged_image_takes_no_good_one_with_it() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name)
    };
    let png = |width, height| {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&vec![7; (width * height * 3) as usize]).unwrap();
        bytes
    };
    let mut broken = png(500, 375);
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    let damaged = [file("0.png", &broken), file("1.png", &broken)];
    // 28 × 36 twice, 24 × 32, 375 × 500, 600 × 10.
    let (small, again) = (file("2.jpg", &image("gray.jpg")), file("3.jpg", &image("gray.jpg")));
    let (other, large) = (file("4.png", &image("gradient.png")), file("5.jpg", &image("coffee.jpg")));
    let lean = file("6.png", &png(10, 600));
    let mut limited = ImageOptions::default();
    // Four of 375 × 500, with their mask, and less than three of 600 × 500.
    limited.limits.max_batch_bytes = 4 * 375 * 500 * 20;
    let detr = Recipe::from_config(r#"{"image_processor_type": "DetrImageProcessor", "do_resize": false}"#).unwrap();
    let padded = Arc::new(ImageProcessor::new(detr, limited).unwrap());
    let plain = processor(r#"{"image_processor_type": "ViTImageProcessor", "do_resize": false}"#);
    // What comes of the good ones is what comes of them alone: the first one decides, whatever the size of the others.
    for (processor, good, size, left_out) in [
        (&plain, vec![&small, &again], (28, 36), 0),
        (&plain, vec![&small, &again, &other], (28, 36), 1),
        // As large as the damaged one, and good, but not the first.
        (&plain, vec![&small, &large], (28, 36), 1),
        (&plain, vec![&large, &small], (375, 500), 1),
        // There is no room for it beside the damaged one: 600 × 500.
        (&padded, vec![&small, &lean], (600, 36), 0),
    ] {
        let run = |inputs: &[&PathBuf]| {
            let feed = ImageFeed::open(inputs, ImageFeedOptions::default()).unwrap();
            let mut pipeline = ImagePipeline::images(feed, Arc::clone(processor), options(10)).unwrap();
            let batch = pipeline.next().unwrap().unwrap();
            assert!(pipeline.next().is_none());
            (batch.data, pipeline.report().skipped.by_kind().collect::<Vec<_>>())
        };
        let (alone, skipped) = run(&good);
        assert_eq!((alone.size, alone.keys.len()), (size, good.len() - left_out));
        assert_eq!(skipped.iter().map(|&(_, count)| count).sum::<u64>(), left_out as u64, "{skipped:?}");
        for beside in [vec![&damaged[0]], vec![&damaged[0], &damaged[1]]] {
            let bad = beside.len() as u64;
            let (beside, skipped) = run(&[&beside[..], &good].concat());
            assert!(beside == alone, "{:?}", beside.keys);
            assert!(skipped.contains(&("damaged", bad)), "{skipped:?}");
            assert_eq!(skipped.iter().map(|&(_, count)| count).sum::<u64>(), left_out as u64 + bad, "{skipped:?}");
        }
    }
    // Where that ends the run, the damaged one is to blame, not the good one that it left no room for.
    let feed = ImageFeed::open(&[&damaged[0], &small, &lean], ImageFeedOptions::default()).unwrap();
    let fail = PipelineOptions { on_error: OnError::Fail, ..options(10) };
    let error = ImagePipeline::images(feed, padded, fail).unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("0.png"), "{error}");
}

const SCHEMA: &str = r#"
    [[tensors]]
    name = "x"
    columns = [{ type = "numeric", path = "n" }, { type = "one_hot", path = "c", vocabulary = ["a", "b"] }]
    [[tensors]]
    name = "s"
    layout = "sparse"
    columns = [{ type = "hashed", path = "h", input = "dict", features = 64, missing = "zeros" }]
"#;

fn line(n: usize) -> String {
    let more: String = (0..n % 4).map(|k| format!("\"k{k}\":{n},")).collect();
    format!("{{\"n\":{n},\"c\":\"{}\",\"h\":{{{}}}}}", ["a", "b"][n % 2], more.trim_end_matches(','))
}

#[test]
fn tensors_of_tables_are_those_of_the_encoder_from_every_position() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = (0..200).map(line).collect();
    let input = [write(folder.path(), "a.jsonl", lines.join("\n"))];
    let schema = TableSchema::from_toml(SCHEMA).unwrap();
    let encoder = Arc::new(TableEncoder::new(&schema, TableOptions::default()).unwrap());
    let run = |at: Option<&Position>| {
        let source = match at {
            None => Source::open(&input, SourceOptions::default()),
            Some(at) => Source::resume(&input, SourceOptions::default(), at),
        };
        TablePipeline::tables(source.unwrap(), Arc::clone(&encoder), options(90)).unwrap().map(Result::unwrap)
    };
    let mut positions = Vec::new();
    for (batch, expected) in run(None).zip(lines.chunks(90)) {
        let bytes: Vec<&[u8]> = expected.iter().map(|line| line.as_bytes()).collect();
        let expected = encoder.encode(&bytes, &Work::here()).unwrap();
        assert_eq!(batch.rows(), expected.rows());
        let dense = |batch: &forebay_ingest::table::TableBatch| {
            let mut out = vec![0f32; 3 * batch.rows()];
            batch.write_dense(0, &mut out).unwrap();
            out
        };
        assert_eq!(dense(&batch.data), dense(&expected));
        let sparse = |batch: &forebay_ingest::table::TableBatch| {
            let entries = batch.sparse_shape(1).unwrap().entries;
            let mut out = (vec![0i64; batch.rows() + 1], vec![0i64; entries], vec![0f32; entries]);
            batch.write_sparse(1, &mut out.0, &mut out.1, &mut out.2).unwrap();
            out
        };
        assert_eq!(sparse(&batch.data), sparse(&expected));
        positions.push(batch.next);
    }
    assert_eq!(positions.len(), 3);
    for (at, position) in positions.iter().enumerate() {
        let rest: Vec<u64> = run(Some(position)).map(|batch| batch.first_item).collect();
        assert_eq!(rest, [0, 90, 180][at + 1..]);
    }
}

#[test]
fn bad_rows_are_placed_and_told_by_kind() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = (line(1), line(2));
    let bad: [&[u8]; 6] = [b"{\"c\":\"a\"}", b"", b"\xff", b"[1]", b"{\"n\":1,\"c\":\"z\"}", b"{"];
    let content = [&[first.as_bytes()], &bad[..], &[last.as_bytes()]].concat();
    let input = [write(folder.path(), "a.jsonl", content.join(&b'\n'))];
    let schema = TableSchema::from_toml(SCHEMA).unwrap();
    let encoder = Arc::new(TableEncoder::new(&schema, TableOptions::default()).unwrap());
    let run = |on_error| {
        let source = Source::open(&input, SourceOptions::default()).unwrap();
        let options = PipelineOptions { on_error, ..options(100) };
        TablePipeline::tables(source, Arc::clone(&encoder), options).unwrap()
    };
    let mut pipeline = run(OnError::Skip);
    let batch = pipeline.next().unwrap().unwrap();
    assert_eq!(batch.lines.iter().map(|id| id.line).collect::<Vec<_>>(), [1, 8]);
    assert!(pipeline.next().is_none());
    let skipped = &pipeline.report().skipped;
    assert_eq!(skipped.first().iter().map(|item| item.line).collect::<Vec<_>>(), [2, 4, 5, 6, 7]);
    assert_eq!((skipped.total(), skipped.blank()), (5, 1));
    let error = run(OnError::Fail).next().unwrap().unwrap_err();
    assert!(matches!(error, IngestError::BadLine { line: 2, reason: ItemError::Row { .. }, .. }), "{error}");
    let source = Source::open(&input, SourceOptions::default()).unwrap();
    let small = TableOptions { max_batch_bytes: 100, ..TableOptions::default() };
    let encoder = Arc::new(TableEncoder::new(&schema, small).unwrap());
    let refused = TablePipeline::tables(source, encoder, options(100));
    assert!(matches!(refused, Err(IngestError::BadOption { option: "batch_rows", .. })), "{refused:?}");
}

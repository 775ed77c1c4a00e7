//! What images become, against what Pillow makes of the same files (`data/images/make.py`).
#![cfg(feature = "images")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::fs;
use std::path::PathBuf;

use forebay_ingest::image::{
    ChannelOrder, Damage, Dtype, Filter, ImageBatchError, ImageError, ImageFailure, ImageOptions, ImageProcessor,
    Orientation, Pad, Recipe, Resampling, Size, Transparency,
};
use forebay_ingest::{Pool, Work};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/images")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

/// A processor that only decodes: levels, channels last.
fn decoder(change: impl FnOnce(&mut ImageOptions)) -> ImageProcessor {
    let mut options = ImageOptions::default();
    (options.dtype, options.order) = (Dtype::U8, ChannelOrder::Last);
    change(&mut options);
    ImageProcessor::new(Recipe::default(), options).unwrap()
}

fn prepare(processor: &ImageProcessor, bytes: &[u8]) -> Result<((u32, u32), Vec<u8>), ImageError> {
    let size = processor.size(&processor.header(bytes)?)?;
    let mut out = vec![0xaa; processor.tensor_bytes(size.0, size.1)];
    let written = processor.prepare(bytes, 0, size, &mut out).map_err(|failure| failure.error)?;
    assert_eq!(written, size);
    Ok((size, out))
}

fn worst(found: &[u8], expected: &[u8]) -> u8 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn every_kind_of_image_decodes_as_pillow_does() {
    let processor = decoder(|_| {});
    let (mut seen, mut off) = (0, Vec::new());
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rgb") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (_, found) = prepare(&processor, &read(&name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        // Decoders of JPEG may round differently; those of the others may not. Where chroma is interpolated, more.
        let allowed = match name.as_str() {
            "422.jpg" | "progressive.jpg" | "restarts.jpg" => 6,
            name if name.ends_with(".jpg") => 2,
            _ => 0,
        };
        let found = worst(&found, &fs::read(&path).unwrap());
        if found > allowed {
            off.push((name, found));
        }
        seen += 1;
    }
    assert!(off.is_empty(), "levels off: {off:?}");
    assert!(seen >= 25, "{seen} references found");
}

#[test]
fn sixteen_bits_are_cut_to_their_upper_eight() {
    let (size, deep) = prepare(&decoder(|_| {}), &read("gray16.png")).unwrap();
    let (_, plain) = prepare(&decoder(|_| {}), &read("gray.png")).unwrap();
    assert_eq!((size, deep), ((28, 36), plain));
}

#[test]
fn orientation_is_followed_unless_told_otherwise() {
    let upright = decoder(|_| {});
    let stored = decoder(|options| options.upright = false);
    for value in 1..=8u16 {
        let bytes = read(&format!("orientation-{value}.jpg"));
        let header = upright.header(&bytes).unwrap();
        assert_eq!(header.orientation, Orientation::from_exif(value));
        let size = if value < 5 { (12, 16) } else { (16, 12) };
        assert_eq!(prepare(&upright, &bytes).unwrap().0, size);
        assert_eq!(prepare(&stored, &bytes).unwrap(), prepare(&stored, &read("orientation-1.jpg")).unwrap());
    }
}

#[test]
fn transparency_can_be_dropped() {
    let bytes = read("rgba-lossless.webp");
    let (_, dropped) = prepare(&decoder(|options| options.transparency = Transparency::Drop), &bytes).unwrap();
    let (_, over_white) = prepare(&decoder(|_| {}), &bytes).unwrap();
    let (_, opaque) = prepare(&decoder(|_| {}), &read("lossless.webp")).unwrap();
    assert_eq!(dropped, opaque);
    assert_eq!(over_white[..3], [255; 3]);
}

#[test]
fn what_is_refused_on_purpose_is_named() {
    let processor = decoder(|_| {});
    for (name, word) in [
        ("animated.png", "PNG image is animated"),
        ("animated.webp", "WebP image is animated"),
        ("cmyk.jpg", "CMYK"),
        ("not-read.gif", "47 49 46 38"),
        ("make.py", "not an image"),
    ] {
        let why = processor.header(&read(name)).unwrap_err().to_string();
        assert!(why.contains(word), "{name}: {why}");
    }
}

/// Filter, source size, size, source, Pillow's result.
type Case = (Filter, (u32, u32), (u32, u32), Vec<u8>, Vec<u8>);

/// The cases of `resize.bin`.
fn resizes() -> Vec<Case> {
    let bytes = read("resize.bin");
    let mut rest = &bytes[..];
    let mut cases = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(10) {
        let number = |at: usize| u32::from(u16::from_le_bytes([head[2 * at], head[2 * at + 1]]));
        let (size, to) = ((number(1), number(2)), (number(3), number(4)));
        let (source, tail) = tail.split_at((size.0 * size.1 * 3) as usize);
        let (result, tail) = tail.split_at((to.0 * to.1 * 3) as usize);
        cases.push((Filter::from_number(number(0).into()).unwrap(), size, to, source.to_vec(), result.to_vec()));
        rest = tail;
    }
    cases
}

/// A PNG of these pixels.
fn png(size: (u32, u32), pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

fn resizer(filter: Filter, to: (u32, u32), resampling: Resampling, crop: Option<(u32, u32)>) -> ImageProcessor {
    let mut recipe = Recipe::default();
    recipe.resize = Some((Size::Fixed { height: to.1, width: to.0 }, filter));
    recipe.crop = crop;
    let mut options = ImageOptions::default();
    (options.dtype, options.order, options.resampling) = (Dtype::U8, ChannelOrder::Last, resampling);
    ImageProcessor::new(recipe, options).unwrap()
}

#[test]
fn exact_resizes_are_pillows() {
    let cases = resizes();
    assert_eq!(cases.len(), 12 * 6);
    for (filter, size, to, source, expected) in cases {
        let (_, found) = prepare(&resizer(filter, to, Resampling::Exact, None), &png(size, &source)).unwrap();
        assert_eq!(worst(&found, &expected), 0, "{filter:?} {size:?} to {to:?}");
    }
}

#[test]
fn fast_resizes_differ_by_one_level_where_no_weight_is_negative() {
    for (filter, size, to, source, expected) in resizes() {
        let (_, found) = prepare(&resizer(filter, to, Resampling::Fast, None), &png(size, &source)).unwrap();
        let allowed = match filter {
            Filter::Nearest => 0,
            Filter::Bilinear | Filter::Hamming => 1,
            // Noise of black and white is the worst that can be: overshoot is cut off in another order.
            _ => 255,
        };
        assert!(worst(&found, &expected) <= allowed, "{filter:?} {size:?} to {to:?}");
    }
}

#[test]
fn fast_resizes_of_a_photograph_are_nearly_exact() {
    let bytes = read("coffee.jpg");
    for filter in [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic] {
        for to in [(224, 224), (40, 30)] {
            let (_, exact) = prepare(&resizer(filter, to, Resampling::Exact, None), &bytes).unwrap();
            let (_, fast) = prepare(&resizer(filter, to, Resampling::Fast, None), &bytes).unwrap();
            let off = worst(&fast, &exact);
            assert!(off <= 8, "{filter:?} to {to:?}: {off}");
        }
    }
}

#[test]
fn a_crop_is_the_middle_of_the_whole_resize() {
    let bytes = read("coffee.jpg");
    let (crop_height, crop_width) = (101usize, 80usize);
    for (resampling, allowed) in [(Resampling::Exact, 0), (Resampling::Fast, 1)] {
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
            let to = (190u32, 150u32);
            let (_, whole) = prepare(&resizer(filter, to, resampling, None), &bytes).unwrap();
            let crop = Some((crop_height as u32, crop_width as u32));
            let (_, part) = prepare(&resizer(filter, to, resampling, crop), &bytes).unwrap();
            let (top, left) = ((150 - crop_height) / 2, (190 - crop_width) / 2);
            let rows = whole.chunks_exact(190 * 3).skip(top).take(crop_height);
            let expected: Vec<u8> = rows.flat_map(|row| &row[left * 3..(left + crop_width) * 3]).copied().collect();
            assert!(worst(&part, &expected) <= allowed, "{resampling} {filter:?}");
        }
    }
}

#[test]
fn a_batch_is_the_same_as_each_image_alone_on_any_number_of_threads() {
    let names = ["coffee.jpg", "rgba.png", "lossy.webp", "gray.jpg", "palette.png"];
    let items: Vec<Vec<u8>> = names.iter().cycle().take(7).map(|name| read(name)).collect();
    let recipe = Recipe::from_config(r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap();
    for (dtype, order) in [(Dtype::F32, ChannelOrder::First), (Dtype::Bf16, ChannelOrder::Last)] {
        let mut options = ImageOptions::default();
        (options.dtype, options.order) = (dtype, order);
        let processor = ImageProcessor::new(recipe, options).unwrap();
        let alone: Vec<u8> = items.iter().flat_map(|bytes| prepare(&processor, bytes).unwrap().1).collect();
        for threads in [1, 3] {
            let own = Pool::new(threads).unwrap();
            let work = Work::on(&own);
            let plan = processor.plan(&items, &work).unwrap();
            let mut out = vec![0x55; plan.bytes(&processor)];
            assert_eq!(processor.run(&plan, &items, &mut out, None, &work).unwrap(), []);
            assert!(out == alone, "{threads} threads");
        }
    }
}

#[test]
fn a_bad_image_is_a_failure_of_its_own() {
    let (good, cut) = (read("coffee.jpg"), read("coffee.jpg")[..9000].to_vec());
    let items = [&good[..], &cut, b"", &good, b"<html>"];
    let recipe = Recipe::from_config(r#"{"image_processor_type": "ViTFeatureExtractor", "size": 32}"#).unwrap();
    let processor = ImageProcessor::new(recipe, ImageOptions::default()).unwrap();
    let two = Pool::new(2).unwrap();
    let work = Work::on(&two);
    let plan = processor.plan(&items, &work).unwrap();
    assert_eq!((plan.size(), plan.failures()), ((32, 32), &[][..]));
    let mut out = vec![0x55; plan.bytes(&processor)];
    let failures = processor.run(&plan, &items, &mut out, None, &work).unwrap();
    assert_eq!(failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), [1, 2, 4]);
    assert!(failures[0].to_string().starts_with("image 1: the JPEG image is damaged"), "{}", failures[0]);
    let tensors: Vec<&[u8]> = out.chunks_exact(3 * 32 * 32 * 4).collect();
    assert!(tensors[0] == tensors[3] && tensors[0].iter().any(|&byte| byte != 0));
    assert!([1, 2, 4].iter().all(|&index| tensors[index].iter().all(|&byte| byte == 0)));
}

#[test]
fn a_cut_jpeg_gives_what_there_is_if_asked_for() {
    let cut = &read("coffee.jpg")[..9000];
    let strict = decoder(|_| {});
    assert!(matches!(prepare(&strict, cut), Err(ImageError::Damaged { .. })));
    let lenient = decoder(|options| options.damage = Damage::Accept);
    let (_, whole) = prepare(&strict, &read("coffee.jpg")).unwrap();
    let (size, part) = prepare(&lenient, cut).unwrap();
    assert_eq!(size, (375, 500));
    // Some rows at the top are there.
    assert_eq!(part[..500 * 3 * 8], whole[..500 * 3 * 8]);
    assert_ne!(part, whole);
}

#[test]
fn detection_processors_pad_to_the_largest_and_tell_where() {
    let config = r#"{"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 20, "longest_edge": 40}}"#;
    let processor = ImageProcessor::new(Recipe::from_config(config).unwrap(), ImageOptions::default()).unwrap();
    let items = [read("coffee.jpg"), read("not-read.gif"), read("orientation-6.jpg")];
    let two = Pool::new(2).unwrap();
    let work = Work::on(&two);
    let plan = processor.plan(&items, &work).unwrap();
    assert_eq!((plan.size(), plan.shape(&processor), plan.mask_shape()), ((26, 26), [3, 3, 26, 26], [3, 26, 26]));
    assert_eq!(plan.failures().len(), 1);
    let (mut out, mut mask) = (vec![0x55; plan.bytes(&processor)], vec![7i64; 3 * 26 * 26]);
    let failures = processor.run(&plan, &items, &mut out, Some(&mut mask), &work).unwrap();
    assert_eq!(failures, plan.failures());
    let masks: Vec<&[i64]> = mask.chunks_exact(26 * 26).collect();
    for (mask, (rows, columns)) in masks.iter().zip([(20, 26), (0, 0), (26, 20)]) {
        for (at, &one) in mask.iter().enumerate() {
            assert_eq!(one == 1, at / 26 < rows && at % 26 < columns);
            assert!(one == 0 || one == 1);
        }
    }
    let (_, alone) = prepare(&processor, &items[0]).unwrap();
    assert_eq!(out[..20 * 26 * 4], alone[..20 * 26 * 4]);
    assert_eq!(out[20 * 26 * 4..26 * 26 * 4], [0; 6 * 26 * 4]);
}

#[test]
fn images_of_several_sizes_without_padding_are_failures_after_the_first() {
    let mut recipe = Recipe::default();
    recipe.pad = None;
    let processor = ImageProcessor::new(recipe, ImageOptions::default()).unwrap();
    let items = [read("orientation-1.jpg"), read("coffee.jpg"), read("orientation-3.jpg")];
    let work = Work::here();
    let plan = processor.plan(&items, &work).unwrap();
    let mut out = vec![0; plan.bytes(&processor)];
    let failures = processor.run(&plan, &items, &mut out, None, &work).unwrap();
    assert_eq!(failures.len(), 1);
    let why = failures[0].to_string();
    assert!(why.contains("375 × 500") && why.contains("12 × 16") && why.contains("do_pad"), "{why}");
}

/// Went wrong: a damaged image decided by its header, and all others were of another size than it.
#[test]
fn an_image_that_others_would_fail_for_is_decoded_before_it_decides() {
    let (large, small) = (read("gradient.png"), read("orientation-1.jpg"));
    // As large, and its header is good.
    let mut broken = png((32, 24), &[7; 32 * 24 * 3]);
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    let vit = Recipe::from_config(r#"{"image_processor_type": "ViTImageProcessor", "do_resize": false}"#).unwrap();
    let detr = Recipe::from_config(r#"{"image_processor_type": "DetrImageProcessor", "do_resize": false}"#).unwrap();
    let lean = png((10, 60), &[7; 10 * 60 * 3]);
    let mut limited = ImageOptions::default();
    // Three of 24 × 32, with their mask, and less than two of 60 × 32.
    limited.limits.max_batch_bytes = 3 * 24 * 32 * 20;
    let plain = ImageProcessor::new(vit, ImageOptions::default()).unwrap();
    let padded = ImageProcessor::new(detr, limited).unwrap();
    let two = Pool::new(2).unwrap();
    for (processor, items, size, planned, failed) in [
        (&plain, vec![&broken, &small, &small], (12, 16), &[0][..], &[0][..]),
        (&plain, vec![&broken, &broken, &broken, &small, &large], (12, 16), &[0, 1, 2], &[0, 1, 2, 4]),
        // Nobody fails for it: it is not decoded twice.
        (&plain, vec![&broken, &large], (24, 32), &[], &[0]),
        (&plain, vec![&broken, &broken, &small, &broken], (12, 16), &[0, 1], &[0, 1, 3]),
        (&plain, vec![&large, &broken, &small], (24, 32), &[], &[1, 2]),
        (&padded, vec![&broken, &small, &large], (24, 32), &[], &[0]),
        (&padded, vec![&broken, &lean], (60, 10), &[0], &[0]),
        (&padded, vec![&large, &lean], (24, 32), &[1], &[1]),
    ] {
        for work in [Work::here(), Work::on(&two)] {
            let plan = processor.plan(&items, &work).unwrap();
            let indices = |failures: &[ImageFailure]| failures.iter().map(|failure| failure.index).collect::<Vec<_>>();
            assert_eq!((plan.size(), &indices(plan.failures())[..]), (size, planned), "{:?}", plan.failures());
            let mut out = vec![7; plan.bytes(processor)];
            let failures = processor.run(&plan, &items, &mut out, None, &work).unwrap();
            assert_eq!(indices(&failures), failed);
            for failure in failures {
                let damaged = matches!(failure.error, ImageError::Damaged { .. });
                // One of another size is not decoded, good or bad.
                let other = matches!(failure.error, ImageError::OtherSize { .. } | ImageError::BatchTooLarge { .. });
                assert!(
                    if *items[failure.index] == broken { damaged || failure.index == 3 } else { other },
                    "{failure}"
                );
            }
        }
    }
}

#[test]
fn a_padding_that_is_too_small_is_a_failure() {
    let mut recipe = Recipe::default();
    recipe.pad = Some(Pad::To { height: 30, width: 30 });
    let processor = ImageProcessor::new(recipe, ImageOptions::default()).unwrap();
    let mut out = vec![0; processor.tensor_bytes(30, 30)];
    assert_eq!(processor.prepare(&read("orientation-1.jpg"), 0, (30, 30), &mut out).unwrap(), (12, 16));
    let failure = processor.prepare(&read("coffee.jpg"), 5, (30, 30), &mut out).unwrap_err();
    assert!(matches!((failure.index, failure.error), (5, ImageError::OtherSize { found_height: 375, .. })));
}

#[test]
fn buffers_that_do_not_fit_are_refused_before_anything_is_written() {
    let recipe = Recipe::from_config(r#"{"image_processor_type": "ViTImageProcessor"}"#).unwrap();
    let processor = ImageProcessor::new(recipe, ImageOptions::default()).unwrap();
    let (items, work) = ([read("coffee.jpg")], Work::here());
    let plan = processor.plan(&items, &work).unwrap();
    let mut out = vec![1; plan.bytes(&processor)];
    let short = out.len() - 1;
    let error = processor.run(&plan, &items, &mut out[..short], None, &work).unwrap_err();
    assert!(matches!(error, ImageBatchError::Pixels { .. }));
    let error = processor.run(&plan, &items, &mut out, Some(&mut [0]), &work).unwrap_err();
    assert!(matches!(error, ImageBatchError::Mask { found: 1, expected: 50_176 }));
    let error = processor.run(&plan, &items[..0], &mut out, None, &work).unwrap_err();
    assert!(matches!(error, ImageBatchError::Items { planned: 1, given: 0 }));
    assert!(out.iter().all(|&byte| byte == 1));
}

#[test]
fn an_empty_batch_is_nothing() {
    let recipe = Recipe::from_config(r#"{"image_processor_type": "DetrImageProcessor"}"#).unwrap();
    let processor = ImageProcessor::new(recipe, ImageOptions::default()).unwrap();
    let (items, work): ([&[u8]; 0], _) = ([], Work::here());
    let plan = processor.plan(&items, &work).unwrap();
    assert_eq!(plan.shape(&processor), [0, 3, 0, 0]);
    assert_eq!(processor.run(&plan, &items, &mut [], Some(&mut []), &work).unwrap(), []);
}

//! Images that are cut, flipped, lie about their size, or are of extreme shapes: an error of that image, no more.
#![cfg(feature = "images")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::fs;
use std::path::PathBuf;

use forebay_ingest::Work;
use forebay_ingest::image::{Damage, ImageError, ImageFailure, ImageOptions, ImageProcessor, Recipe};

const KINDS: [&str; 9] = [
    "444.jpg",
    "gray.jpg",
    "orientation-6.jpg",
    "orientation-6.png",
    "palette.png",
    "gray16.png",
    "lossy.webp",
    "rgba.webp",
    "orientation-6.webp",
];

fn read(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name)).unwrap()
}

fn processor(config: &str, change: impl FnOnce(&mut ImageOptions)) -> ImageProcessor {
    let mut options = ImageOptions::default();
    change(&mut options);
    ImageProcessor::new(Recipe::from_config(config).unwrap(), options).unwrap()
}

fn small(change: impl FnOnce(&mut ImageOptions)) -> ImageProcessor {
    processor(r#"{"image_processor_type": "ViTImageProcessor", "size": 8}"#, change)
}

fn one(processor: &ImageProcessor, bytes: &[u8]) -> Result<(), ImageError> {
    let items = [bytes];
    let plan = processor.plan(&items, &Work::here()).unwrap();
    let mut out = vec![0x77; plan.bytes(processor)];
    match processor.run(&plan, &items, &mut out, None, &Work::here()).unwrap().pop() {
        None => Ok(()),
        Some(failure) => {
            assert!(out.iter().all(|&byte| byte == 0));
            assert!(!matches!(failure.error, ImageError::DecoderFailed { .. }), "{failure}");
            Err(failure.error)
        }
    }
}

#[test]
fn cut_anywhere_an_image_is_an_error() {
    let processor = small(|_| {});
    for name in KINDS {
        let bytes = read(name);
        assert_eq!(one(&processor, &bytes), Ok(()), "{name}");
        let step = bytes.len() / 60 + 1;
        for cut in (0..bytes.len() - 2).step_by(step) {
            assert!(one(&processor, &bytes[..cut]).is_err(), "{name} cut to {cut} of {}", bytes.len());
        }
    }
}

#[test]
fn with_any_bit_flipped_an_image_is_an_image_or_an_error() {
    let (strict, lenient) = (small(|_| {}), small(|options| options.damage = Damage::Accept));
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for name in KINDS {
        let whole = read(name);
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = (state % bytes.len() as u64) as usize;
                bytes[at] ^= 1 << (state >> 40 & 7);
            }
            for processor in [&strict, &lenient] {
                if let Err(why) = one(processor, &bytes) {
                    assert!(!why.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn a_header_that_promises_too_much_is_refused_before_anything_is_decoded() {
    let processor = small(|_| {});
    // JPEG: the size stands behind the marker of the frame.
    let mut jpeg = read("444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    // PNG: a size of 2³¹ - 1, with the checksum that belongs to it.
    let mut png = Vec::new();
    png::Encoder::new(&mut png, 0x7fff_ffff, 0x7fff_ffff).write_header().unwrap();
    // WebP: an extended header, whose canvas may have up to 2³² - 1 pixels.
    let webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xfe\xff\0VP8L\0\0\0\0".to_vec();
    let most = 0x7fff_ffff;
    for (bytes, size) in [(jpeg, (65_535, 65_535)), (png, (most, most)), (webp, (65_536, 65_535))] {
        let why = one(&processor, &bytes).unwrap_err();
        assert!(matches!(why, ImageError::TooLarge { width, height, .. } if (width, height) == size), "{why}");
    }
    let tight = small(|options| options.limits.max_pixels = 500 * 375 - 1);
    assert!(matches!(one(&tight, &read("coffee.jpg")), Err(ImageError::TooLarge { width: 500, height: 375, .. })));
    let narrow = small(|options| options.limits.max_side = 499);
    let why = one(&narrow, &read("coffee.jpg")).unwrap_err();
    assert!(!why.to_string().is_empty());
}

/// An extended WebP with a canvas of 10 × 10 and this frame.
fn webp_of(frame: &[u8]) -> Vec<u8> {
    let content = [&b"WEBPVP8X\x0a\0\0\0\0\0\0\0\x09\0\0\x09\0\0"[..], frame].concat();
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&b"RIFF"[..], &length[..], &content[..]].concat()
}

#[test]
fn a_frame_that_is_not_as_large_as_its_canvas_is_refused_before_it_is_decoded() {
    // The limits let the canvas pass; the decoder would ask for 400 MB, and then say that the sizes differ.
    let mut lossy = read("lossy.webp").split_off(12);
    lossy[14..18].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    let mut lossless = read("lossless.webp").split_off(12);
    lossless[9..13].copy_from_slice(&(16_382u32 | 16_382 << 14).to_le_bytes());
    // Behind another chunk as well, of an odd length and so a byte more.
    let second = [&b"none\x03\0\0\0abc\0"[..], &lossy[..]].concat();
    for frame in [lossy, lossless, second] {
        let why = small(|_| {}).header(&webp_of(&frame)).unwrap_err();
        assert!(matches!(why, ImageError::Damaged { .. }), "{why}");
        assert!(why.to_string().contains("its frame is 16383 × 16383, its canvas 10 × 10"), "{why}");
    }
}

fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..width * height * 3).map(|at| (at % 251) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    bytes
}

#[test]
fn extreme_shapes_are_images_as_well() {
    for kind in ["ViT", "CLIP", "ConvNext", "Detr"] {
        let config = format!(r#"{{"image_processor_type": "{kind}ImageProcessor", "size": 24}}"#);
        let config = config.replace("24}", if kind == "CLIP" { r#"24, "crop_size": 20}"# } else { "24}" });
        let processor = processor(&config, |_| {});
        for (width, height) in [(1, 1), (1, 20_000), (20_000, 1), (2, 3)] {
            assert_eq!(one(&processor, &png_of(width, height)), Ok(()), "{kind} {width} × {height}");
        }
    }
}

#[test]
fn a_resize_beyond_the_limit_is_an_error_that_says_so() {
    // The shorter side to 224, uncropped: 224 × 4,480,000.
    let config = r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#;
    let why = one(&processor(config, |_| {}), &png_of(1, 20_000)).unwrap_err();
    assert!(matches!(why, ImageError::ResizedTooLarge { pixels: 1_003_520_000, .. }), "{why}");
    assert!(why.to_string().contains("1 × 20000"), "{why}");
}

#[test]
fn images_that_would_need_too_much_together_are_refused_before_memory_is_asked_for() {
    // A high one and a wide one: padded to both, three would need 258 GB.
    let detr = processor(r#"{"image_processor_type": "DetrImageProcessor", "do_resize": false}"#, |_| {});
    let items = [png_of(1, 65_535), png_of(65_535, 1), png_of(3, 2)];
    let plan = detr.plan(&items, &Work::here()).unwrap();
    assert_eq!(plan.size(), (65_535, 3));
    let (mut out, mut mask) = (vec![7; plan.bytes(&detr)], vec![7; plan.mask_shape().iter().product()]);
    let failures = detr.run(&plan, &items, &mut out, Some(&mut mask), &Work::here()).unwrap();
    assert_eq!(failures, plan.failures());
    let bytes: u64 = 65_535 * 65_535 * (3 * 4 + 8) * 3;
    assert!(
        matches!(failures[..], [ImageFailure { index: 1, error: ImageError::BatchTooLarge { bytes: found, images: 3, .. } }]
            if found == bytes),
        "{failures:?}"
    );
    let why = failures[0].to_string();
    assert!(why.contains("3 images of 65535 × 65535") && why.contains("at most 2147483648"), "{why}");
    let (tensor, rows) = (out.len() / 3, mask.len() / 3);
    assert!(out[tensor..2 * tensor].iter().all(|&byte| byte == 0) && mask[rows..2 * rows].iter().all(|&at| at == 0));
    assert_eq!(mask[2 * rows..].iter().sum::<i64>(), 6);

    // Not padded, the first one decides for all, unless it is too much for so many.
    let vit = r#"{"image_processor_type": "ViTImageProcessor", "do_resize": false}"#;
    let vit = processor(vit, |options| options.limits.max_batch_bytes = 3 * 20 * 20 * 12);
    let items = [png_of(21, 20), png_of(20, 20), png_of(20, 20)];
    let plan = vit.plan(&items, &Work::here()).unwrap();
    let mut out = vec![7; plan.bytes(&vit)];
    let failures = vit.run(&plan, &items, &mut out, None, &Work::here()).unwrap();
    assert_eq!((plan.size(), failures.len(), failures[0].index), ((20, 20), 1, 0));
    assert!(matches!(failures[0].error, ImageError::BatchTooLarge { height: 20, width: 21, .. }));
    // Where the recipe decides, the number of images is the caller's.
    assert_eq!(one(&small(|options| options.limits.max_batch_bytes = 0), &png_of(2, 2)), Ok(()));
}

#[test]
fn zeros_and_noise_are_no_images() {
    let processor = small(|_| {});
    assert_eq!(one(&processor, &[]), Err(ImageError::Empty));
    for bytes in [&[0u8; 1000][..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF", b"\xff"] {
        assert!(one(&processor, bytes).is_err(), "{bytes:?}");
    }
}

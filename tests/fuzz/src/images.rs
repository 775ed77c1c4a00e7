//! What images are made from: files of each format, configurations, shards; all of any bytes.

use std::fs;

use forebay_ingest::Work;
use forebay_ingest::image::{
    ChannelOrder, Damage, Dtype, Filter, ImageError, ImageLimits, ImageOptions, ImageProcessor, ImageSource,
    ImageSourceOptions, Pad, Recipe, Resampling, Size, Transparency,
};
use forebay_testkit::Place;

use crate::bytes::Bytes;

/// What files of each format begin with.
const JPEG: &[u8] = b"\xff\xd8\xff";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const WEBP: &[u8] = b"RIFF\0\0\0\0WEBP";

/// The target `jpeg`.
pub fn jpeg(data: &[u8]) {
    file(data, JPEG);
}

/// The target `png`.
pub fn png(data: &[u8]) {
    file(data, PNG);
}

/// The target `webp`.
pub fn webp(data: &[u8]) {
    file(data, WEBP);
}

/// Lets `bytes` begin as files of a format do, so that its decoder is reached.
fn begin(bytes: &mut [u8], start: &[u8]) {
    let known = bytes.len().min(start.len());
    bytes[..known].copy_from_slice(&start[..known]);
    // A WebP says how long it is, and is refused at once if that is more than there is.
    if start == WEBP && bytes.len() >= 8 {
        let rest = (bytes.len() - 8) as u32;
        bytes[4..8].copy_from_slice(&rest.to_le_bytes());
    }
}

/// Small, so that a header cannot ask for seconds of work.
fn limits() -> ImageLimits {
    let mut limits = ImageLimits::default();
    (limits.max_pixels, limits.max_side) = (1 << 14, 3000);
    limits
}

/// What is done to the image: every filter, both ways, all sizes, orders and types, from two bytes.
fn processor(bits: u8, more: u8) -> ImageProcessor {
    let mut recipe = Recipe::default();
    let filter = Filter::from_number(u64::from(more % 6)).unwrap();
    recipe.resize = match bits & 3 {
        0 => None,
        1 => Some((Size::Fixed { height: 9, width: 14 }, filter)),
        2 => Some((Size::ShortestEdge { edge: 12, longest: (bits & 4 != 0).then_some(30) }, filter)),
        _ => Some((Size::Within { height: 20, width: 11 }, filter)),
    };
    recipe.crop = (bits & 8 != 0).then_some((10, 13));
    recipe.rescale = (bits & 16 != 0).then_some(1.0 / 255.0);
    recipe.pad = (bits & 32 != 0).then_some(Pad::Largest);
    let mut options = ImageOptions::default();
    options.limits = limits();
    options.dtype = if bits & 16 != 0 { Dtype::F16 } else { Dtype::U8 };
    options.order = if bits & 64 != 0 { ChannelOrder::Last } else { ChannelOrder::First };
    options.damage = if bits & 128 != 0 { Damage::Accept } else { Damage::Refuse };
    options.resampling = if more & 64 != 0 { Resampling::Fast } else { Resampling::Exact };
    options.transparency = if more & 128 != 0 { Transparency::Drop } else { Transparency::OverWhite };
    ImageProcessor::new(recipe, options).unwrap()
}

/// A file of a format, or an error that says something; the same alone, in a batch, and again.
fn file(data: &[u8], start: &[u8]) {
    let mut input = Bytes::new(data);
    let processor = processor(input.byte(), input.byte());
    let mut bytes = input.rest().to_vec();
    begin(&mut bytes, start);

    let alone = processor.header(&bytes).and_then(|header| {
        let (width, height) = header.upright();
        assert!(u64::from(width) * u64::from(height) <= limits().max_pixels && width.max(height) <= limits().max_side);
        let size = processor.size(&header)?;
        let mut out = vec![0xaa; processor.tensor_bytes(size.0, size.1)];
        processor.prepare(&bytes, 3, size, &mut out).map_err(|failure| {
            assert_eq!(failure.index, 3);
            failure.error
        })?;
        Ok(out)
    });
    let items = [&bytes[..], &bytes];
    let plan = processor.plan(&items, &Work::here()).unwrap();
    let mut out = vec![0x55; plan.bytes(&processor)];
    let failures = processor.run(&plan, &items, &mut out, None, &Work::here()).unwrap();
    match alone {
        Ok(tensor) => {
            assert!(failures.is_empty(), "{failures:?}");
            assert!(out.chunks_exact(tensor.len()).all(|found| found == tensor), "not the same in a batch");
        }
        Err(why) => {
            assert!(!why.to_string().is_empty());
            assert!(!matches!(why, ImageError::DecoderFailed { .. }), "{why}");
            assert_eq!(failures.len(), 2, "{why}, but not in a batch");
            assert!(out.iter().all(|&byte| byte == 0));
        }
    }
}

/// The target `recipe`: any text is a recipe that can be run on an image, or an error.
pub fn recipe(data: &[u8]) {
    let image = include_bytes!("../../../crates/forebay-ingest/tests/data/images/orientation-6.png");
    let text = String::from_utf8_lossy(data);
    let with_type = text.replacen('{', r#"{"image_processor_type":"DetrImageProcessor","#, 1);
    for text in [&*text, &with_type] {
        let recipe = match Recipe::from_config(text) {
            Ok(recipe) => recipe,
            Err(why) => {
                assert!(!why.to_string().is_empty());
                continue;
            }
        };
        let mut options = ImageOptions::default();
        options.limits = limits();
        let processor = ImageProcessor::new(recipe, options).unwrap();
        let header = processor.header(image).unwrap();
        // A size that passes the limits is an error of the image.
        let Ok((height, width)) = processor.size(&header) else { continue };
        let mut out = vec![0; processor.tensor_bytes(height, width)];
        processor.prepare(image, 0, (height, width), &mut out).unwrap();
    }
}

thread_local! {
    static PLACE: Place = Place::new();
}

/// The target `shard`: an archive of any bytes ends, and every position of it is one to go on from.
pub fn shard(data: &[u8]) {
    let mut input = Bytes::new(data);
    let (most, offset) = (u64::from(input.byte()) * 4, u64::from(input.byte()) * 64);
    let mut options = ImageSourceOptions::default();
    options.max_bytes = most;
    PLACE.with(|place| {
        let path = place.path().join("shard.tar");
        fs::write(&path, input.rest()).unwrap();
        let inputs = [&path];
        let mut source = ImageSource::open(&inputs, options).unwrap();
        let (mut found, mut positions) = (Vec::new(), vec![source.position()]);
        while let Some(sample) = source.next() {
            assert!(sample.as_ref().is_ok_and(|sample| sample.image.len() as u64 <= most) || sample.is_err());
            found.push(sample.map_err(|why| why.to_string()));
            positions.push(source.position());
            assert!(found.len() <= 1 + data.len() / 512);
        }
        for (done, position) in positions.iter().enumerate() {
            let rest: Vec<_> = ImageSource::resume(&inputs, options, position).unwrap().collect();
            let rest: Vec<_> = rest.into_iter().map(|sample| sample.map_err(|why| why.to_string())).collect();
            assert_eq!(rest, found[done..], "after {position:?}");
        }
        // A position that was never given out: something, and an end.
        let mut lost = positions[0];
        lost.offset = offset;
        assert!(ImageSource::resume(&inputs, options, &lost).unwrap().count() <= 1 + data.len() / 512);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decoder_of_each_format_is_reached() {
        let files: [(&[u8], &[u8]); 3] = [
            (JPEG, include_bytes!("../../../crates/forebay-ingest/tests/data/images/orientation-6.jpg")),
            (PNG, include_bytes!("../../../crates/forebay-ingest/tests/data/images/orientation-6.png")),
            (WEBP, include_bytes!("../../../crates/forebay-ingest/tests/data/images/lossy.webp")),
        ];
        for (start, file) in files {
            let mut bytes = file.to_vec();
            begin(&mut bytes, start);
            assert_eq!(bytes, file, "a good file is as it was");
            bytes.truncate(file.len() / 2);
            begin(&mut bytes, start);
            let processor = processor(0x80, 0);
            let size = |bytes: &[u8]| processor.header(bytes).map(|header| header.upright());
            assert!(size(file).is_ok());
            // What is left of it is still taken as far as the decoder: a file that is cut off is not told by its length.
            assert!(!size(&bytes).is_err_and(|why| why.to_string().contains("its length says more")));
        }
    }
}

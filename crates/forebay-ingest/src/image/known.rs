//! The image processors of `transformers` that are understood, and what each does where its configuration is silent.
//!
//! Only those are listed whose steps are the ones of [`Recipe`](super::recipe::Recipe): a processor with steps of its own
//! (patches, tiles, flips, other channel orders) under a wrong name would give wrong tensors without an error.

/// Defaults of one kind of processor, in the words of its configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The name without `ImageProcessor` and the like.
    pub(super) stem: &'static str,
    pub(super) resample: u64,
    pub(super) mean: [f64; 3],
    pub(super) std: [f64; 3],
    pub(super) size: DefaultSize,
    pub(super) crop: Option<u32>,
    pub(super) do_center_crop: bool,
    pub(super) do_normalize: bool,
    pub(super) do_pad: bool,
    pub(super) style: Style,
    /// Whether a size that is one number means a square.
    pub(super) default_to_square: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum DefaultSize {
    Square(u32),
    Shortest(u32),
    ShortestUpTo(u32, u32),
}

/// What is peculiar to a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// Small sizes are resized to size / crop_pct and cropped.
    ConvNext,
    /// `max_size` stands beside `size`; padding is asked for as `pad_and_return_pixel_mask`, too.
    Detr,
}

const STANDARD: ([f64; 3], [f64; 3]) = ([0.5; 3], [0.5; 3]);
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const CLIP: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);

const BILINEAR: u64 = 2;
const BICUBIC: u64 = 3;

const fn plain(stem: &'static str, resample: u64, colours: ([f64; 3], [f64; 3]), size: DefaultSize) -> Known {
    Known {
        stem,
        resample,
        mean: colours.0,
        std: colours.1,
        size,
        crop: None,
        do_center_crop: false,
        do_normalize: true,
        do_pad: false,
        style: Style::Plain,
        default_to_square: matches!(size, DefaultSize::Square(_)),
    }
}

const fn cropped(known: Known, crop: u32, do_center_crop: bool) -> Known {
    Known { crop: Some(crop), do_center_crop, ..known }
}

const fn detr(stem: &'static str) -> Known {
    let known = plain(stem, BILINEAR, IMAGENET, DefaultSize::ShortestUpTo(800, 1333));
    Known { do_pad: true, style: Style::Detr, ..known }
}

pub(super) const KNOWN: [Known; 17] = [
    cropped(plain("Beit", BICUBIC, STANDARD, DefaultSize::Square(224)), 224, false),
    cropped(plain("Bit", BICUBIC, CLIP, DefaultSize::Shortest(224)), 224, true),
    plain("Blip", BICUBIC, CLIP, DefaultSize::Square(384)),
    cropped(plain("CLIP", BICUBIC, CLIP, DefaultSize::Shortest(224)), 224, true),
    cropped(plain("ChineseCLIP", BICUBIC, CLIP, DefaultSize::Shortest(224)), 224, true),
    detr("ConditionalDetr"),
    Known { style: Style::ConvNext, ..plain("ConvNext", BICUBIC, STANDARD, DefaultSize::Shortest(384)) },
    cropped(plain("DeiT", BICUBIC, STANDARD, DefaultSize::Square(256)), 224, true),
    detr("DeformableDetr"),
    detr("Detr"),
    detr("GroundingDino"),
    cropped(plain("MobileNetV1", BILINEAR, STANDARD, DefaultSize::Shortest(256)), 224, true),
    plain("Pvt", BICUBIC, IMAGENET, DefaultSize::Square(224)),
    Known {
        do_normalize: false,
        style: Style::Detr,
        default_to_square: false,
        ..plain("RTDetr", BILINEAR, IMAGENET, DefaultSize::Square(640))
    },
    plain("Segformer", BILINEAR, IMAGENET, DefaultSize::Square(512)),
    Known { default_to_square: false, ..plain("Siglip", BICUBIC, STANDARD, DefaultSize::Square(224)) },
    plain("ViT", BILINEAR, STANDARD, DefaultSize::Square(224)),
];

/// The processor of a configuration's `image_processor_type` or `feature_extractor_type`.
pub(super) fn find(name: &str) -> Option<&'static Known> {
    let endings = ["ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"];
    let stem = endings.into_iter().find_map(|ending| name.strip_suffix(ending))?;
    KNOWN.iter().find(|known| known.stem == stem)
}

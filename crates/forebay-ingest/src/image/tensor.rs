//! From levels of 8 bits to the elements of a tensor: rescaled, normalized, laid out and converted in one pass.
//!
//! A level can become only 256 values a channel. They are computed once, in the arithmetic of `transformers` (rescaled
//! in double precision, rounded to single, normalized in single), so that each pixel is one look-up, the result is that
//! of its PIL processors to the last bit, and an image of floats never exists besides the tensor.

use half::{bf16, f16};

use super::geometry::Layout;

const CHANNELS: usize = 3;

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// Levels of 8 bits, neither rescaled nor normalized.
    U8,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    #[default]
    F32,
}

impl Dtype {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Order of a tensor's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChannelOrder {
    /// channels × height × width, as models in PyTorch take it.
    #[default]
    First,
    /// height × width × channels.
    Last,
}

/// Mean and standard deviation of each channel, in units of rescaled levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalize {
    /// Subtracted.
    pub mean: [f64; CHANNELS],
    /// Divided by.
    pub std: [f64; CHANNELS],
}

/// An element of a tensor, as bytes in the order of this machine.
trait Element: bytemuck::Pod {}
impl Element for u8 {}
impl Element for f16 {}
impl Element for bf16 {}
impl Element for f32 {}

/// What each level becomes, by channel.
type Table<T> = [[T; 256]; CHANNELS];

/// Writes images into tensors of one type, order and normalization.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    table: AnyTable,
    order: ChannelOrder,
}

#[derive(Debug, Clone)]
enum AnyTable {
    U8(Box<Table<u8>>),
    F16(Box<Table<f16>>),
    Bf16(Box<Table<bf16>>),
    F32(Box<Table<f32>>),
}

/// The value of a level, as `transformers` computes it.
fn value(level: u8, channel: usize, rescale: Option<f64>, normalize: Option<&Normalize>) -> f32 {
    let value = match rescale {
        Some(factor) => (f64::from(level) * factor) as f32,
        None => f32::from(level),
    };
    match normalize {
        Some(Normalize { mean, std }) => (value - mean[channel] as f32) / std[channel] as f32,
        None => value,
    }
}

impl Writer {
    pub(super) fn new(dtype: Dtype, order: ChannelOrder, rescale: Option<f64>, normalize: Option<&Normalize>) -> Self {
        fn table<T: Copy>(of: impl Fn(u8, usize) -> T) -> Box<Table<T>> {
            Box::new(std::array::from_fn(|channel| std::array::from_fn(|level| of(level as u8, channel))))
        }
        let single = |level, channel| value(level, channel, rescale, normalize);
        let table = match dtype {
            Dtype::U8 => AnyTable::U8(table(|level, _| level)),
            Dtype::F16 => AnyTable::F16(table(|level, channel| f16::from_f32(single(level, channel)))),
            Dtype::Bf16 => AnyTable::Bf16(table(|level, channel| bf16::from_f32(single(level, channel)))),
            Dtype::F32 => AnyTable::F32(table(single)),
        };
        Self { table, order }
    }

    /// Writes the window of an image into a tensor of `height` × `width`: beside the window stands black, beside the
    /// layout's area zero. `out` has exactly the bytes of the tensor, at any alignment.
    pub(super) fn write(&self, pixels: &[u8], layout: &Layout, height: u32, width: u32, out: &mut [u8]) {
        match &self.table {
            AnyTable::U8(table) => self.write_as(table, pixels, layout, height, width, out),
            AnyTable::F16(table) => self.write_as(table, pixels, layout, height, width, out),
            AnyTable::Bf16(table) => self.write_as(table, pixels, layout, height, width, out),
            AnyTable::F32(table) => self.write_as(table, pixels, layout, height, width, out),
        }
    }

    fn write_as<T: Element>(
        &self,
        table: &Table<T>,
        pixels: &[u8],
        layout: &Layout,
        height: u32,
        width: u32,
        out: &mut [u8],
    ) {
        let (height, width) = (height as usize, width as usize);
        let pixel_row = layout.window.width as usize * CHANNELS;
        let inside = layout.top as usize..layout.top as usize + layout.window.height as usize;
        let mut pixels = pixels.chunks_exact(pixel_row);
        match self.order {
            ChannelOrder::First => {
                let plane = height * width * size_of::<T>();
                let row_bytes = width * size_of::<T>();
                let (red, rest) = out.split_at_mut(plane);
                let (green, blue) = rest.split_at_mut(plane);
                let rows = red.chunks_exact_mut(row_bytes).zip(green.chunks_exact_mut(row_bytes));
                for (y, ((red, green), blue)) in rows.zip(blue.chunks_exact_mut(row_bytes)).enumerate() {
                    let row = if inside.contains(&y) { pixels.next() } else { None };
                    planes(table, row, layout, y, [red, green, blue]);
                }
            }
            ChannelOrder::Last => {
                for (y, out) in out.chunks_exact_mut(width * CHANNELS * size_of::<T>()).enumerate() {
                    let row = if inside.contains(&y) { pixels.next() } else { None };
                    interleaved(table, row, layout, y, out);
                }
            }
        }
    }
}

fn put<T: Element>(to: &mut [u8], value: T) {
    to.copy_from_slice(bytemuck::bytes_of(&value));
}

fn fill<T: Element>(to: &mut [u8], value: T) {
    to.chunks_exact_mut(size_of::<T>()).for_each(|to| put(to, value));
}

/// Where things stand in row `y` of the tensor, in pixels: the image's window, and the end of the black around it.
fn parts(layout: &Layout, y: usize, has_row: bool) -> (usize, usize, usize) {
    let black_end = if y < layout.height as usize { layout.width as usize } else { 0 };
    let left = layout.left as usize;
    if has_row { (left, left + layout.window.width as usize, black_end) } else { (black_end, black_end, black_end) }
}

/// One row of the three planes.
fn planes<T: Element>(table: &Table<T>, row: Option<&[u8]>, layout: &Layout, y: usize, planes: [&mut [u8]; CHANNELS]) {
    let size = size_of::<T>();
    let (left, right, black_end) = parts(layout, y, row.is_some());
    let [red, green, blue] = planes;
    for (plane, table) in [&mut *red, &mut *green, &mut *blue].into_iter().zip(table) {
        fill(&mut plane[..left * size], table[0]);
        fill(&mut plane[right * size..black_end * size], table[0]);
        plane[black_end * size..].fill(0);
    }
    let Some(row) = row else { return };
    let inside = left * size..right * size;
    let outs = red[inside.clone()].chunks_exact_mut(size).zip(green[inside.clone()].chunks_exact_mut(size));
    let outs = outs.zip(blue[inside].chunks_exact_mut(size));
    for (pixel, ((red, green), blue)) in row.chunks_exact(CHANNELS).zip(outs) {
        put(red, table[0][usize::from(pixel[0])]);
        put(green, table[1][usize::from(pixel[1])]);
        put(blue, table[2][usize::from(pixel[2])]);
    }
}

/// One row of interleaved channels.
fn interleaved<T: Element>(table: &Table<T>, row: Option<&[u8]>, layout: &Layout, y: usize, out: &mut [u8]) {
    let pixel_bytes = size_of::<T>() * CHANNELS;
    let (left, right, black_end) = parts(layout, y, row.is_some());
    let (black, rest) = out.split_at_mut(black_end * pixel_bytes);
    rest.fill(0);
    let put_pixel = |out: &mut [u8], pixel: [u8; CHANNELS]| {
        for ((out, table), level) in out.chunks_exact_mut(size_of::<T>()).zip(table).zip(pixel) {
            put(out, table[usize::from(level)]);
        }
    };
    let (before, rest) = black.split_at_mut(left * pixel_bytes);
    let (inside, behind) = rest.split_at_mut((right - left) * pixel_bytes);
    for out in before.chunks_exact_mut(pixel_bytes).chain(behind.chunks_exact_mut(pixel_bytes)) {
        put_pixel(out, [0; CHANNELS]);
    }
    let pixels = row.unwrap_or(&[]).chunks_exact(CHANNELS);
    for (out, pixel) in inside.chunks_exact_mut(pixel_bytes).zip(pixels) {
        put_pixel(out, [pixel[0], pixel[1], pixel[2]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Normalize = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn a_level_is_rescaled_in_double_and_normalized_in_single() {
        let scaled = (f64::from(200u8) * (1.0 / 255.0)) as f32;
        assert_eq!(value(200, 1, Some(1.0 / 255.0), Some(&IMAGENET)), (scaled - 0.456f32) / 0.224f32);
        assert_eq!(value(200, 1, Some(1.0 / 255.0), None), scaled);
        assert_eq!(value(200, 1, None, Some(&IMAGENET)), (200.0 - 0.456f32) / 0.224f32);
        assert_eq!(value(200, 1, None, None), 200.0);
    }

    #[test]
    fn both_orders_hold_the_same_values_at_any_alignment() {
        let pixels: Vec<u8> = (0..4 * 3 * 3).map(|at| at * 7).collect();
        let layout = Layout::new(4, 3, None, None);
        let mut bytes = [0u8; 3 * 12 * 4 + 1];
        Writer::new(Dtype::F32, ChannelOrder::First, Some(0.5), None).write(&pixels, &layout, 3, 4, &mut bytes[1..]);
        let first = floats(&bytes[1..]);
        Writer::new(Dtype::F32, ChannelOrder::Last, Some(0.5), None).write(&pixels, &layout, 3, 4, &mut bytes[..144]);
        let last = floats(&bytes[..144]);
        for pixel in 0..12 {
            for channel in 0..3 {
                let expected = f32::from(pixels[pixel * 3 + channel]) * 0.5;
                assert_eq!((first[channel * 12 + pixel], last[pixel * 3 + channel]), (expected, expected));
            }
        }
    }

    #[test]
    fn beside_the_window_is_black_and_beside_the_area_zero() {
        // One pixel, centred in an area of 3 × 2 (the odd row of padding above), in a tensor of 4 × 3.
        let layout = Layout::new(1, 1, None, Some((2, 3)));
        let normalize = Normalize { mean: [1.0; 3], std: [1.0; 3] };
        for order in [ChannelOrder::First, ChannelOrder::Last] {
            let mut bytes = vec![9u8; 3 * 12 * 4];
            Writer::new(Dtype::F32, order, None, Some(&normalize)).write(&[5, 6, 7], &layout, 3, 4, &mut bytes);
            let values = floats(&bytes);
            let at = |y: usize, x: usize, channel: usize| match order {
                ChannelOrder::First => values[channel * 12 + y * 4 + x],
                ChannelOrder::Last => values[(y * 4 + x) * 3 + channel],
            };
            for channel in 0..3 {
                let seen: Vec<f32> = (0..12).map(|pixel| at(pixel / 4, pixel % 4, channel)).collect();
                let pixel = 4.0 + channel as f32;
                assert_eq!(seen, [-1., -1., -1., 0., -1., pixel, -1., 0., 0., 0., 0., 0.], "{order:?}");
            }
        }
    }

    #[test]
    fn halves_are_rounded_from_single() {
        let layout = Layout::new(1, 1, None, None);
        let mut bytes = [0u8; 6];
        Writer::new(Dtype::Bf16, ChannelOrder::First, Some(1.0 / 255.0), None).write(
            &[1, 2, 3],
            &layout,
            1,
            1,
            &mut bytes,
        );
        let expected = bf16::from_f32((1.0 / 255.0) as f32).to_ne_bytes();
        assert_eq!(bytes[..2], expected);
        Writer::new(Dtype::U8, ChannelOrder::First, None, None).write(&[1, 2, 3], &layout, 1, 1, &mut bytes[..3]);
        assert_eq!(bytes[..3], [1, 2, 3]);
    }
}

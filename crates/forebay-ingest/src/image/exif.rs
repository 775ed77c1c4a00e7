//! The one thing that EXIF metadata is read for: the orientation of the image.
//!
//! A block of EXIF is a small TIFF file: a byte order, then a directory of 12-byte entries. The orientation is an entry
//! of the first directory. Whatever does not fit is no orientation, never an error: cameras write wrong EXIF, and the
//! image is there all the same.

use super::header::Orientation;

const ORIENTATION: u16 = 0x0112;
const SHORT: u16 = 3;

/// The orientation that a block of EXIF names; upright if it names none.
pub(super) fn orientation(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    value_of(tiff).map_or(Orientation::Upright, Orientation::from_exif)
}

fn value_of(tiff: &[u8]) -> Option<u16> {
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let u16_at = |at: usize| -> Option<u16> {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| -> Option<u32> {
        let bytes = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let directory = usize::try_from(u32_at(4)?).ok()?;
    let entries = usize::from(u16_at(directory)?);
    let first = directory.checked_add(2)?;
    for entry in 0..entries {
        let at = first.checked_add(entry * 12)?;
        if u16_at(at)? != ORIENTATION {
            continue;
        }
        if u16_at(at + 2)? != SHORT || u32_at(at + 4)? != 1 {
            return None;
        }
        return u16_at(at + 8);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(little: bool, entries: &[(u16, u16, u32, u16)]) -> Vec<u8> {
        let word = |value: u16| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let long = |value: u32| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut block = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        block.extend(long(8));
        block.extend(word(entries.len() as u16));
        for &(tag, kind, count, value) in entries {
            block.extend([word(tag), word(kind)].concat());
            block.extend(long(count));
            block.extend([word(value), [0, 0]].concat());
        }
        block
    }

    #[test]
    fn every_orientation_is_found_in_both_byte_orders() {
        for little in [true, false] {
            for value in 0..=9 {
                let bytes = block(little, &[(0x010f, 2, 1, 7), (ORIENTATION, SHORT, 1, value)]);
                let expected = Orientation::from_exif(value);
                assert_eq!(orientation(&bytes), expected);
                assert_eq!(orientation(&[b"Exif\0\0", &bytes[..]].concat()), expected);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_upright() {
        let good = block(true, &[(ORIENTATION, SHORT, 1, 6)]);
        for cut in 0..good.len() - 2 {
            assert_eq!(orientation(&good[..cut]), Orientation::Upright, "cut to {cut}");
        }
        for (kind, count) in [(4, 1), (SHORT, 2), (SHORT, 0)] {
            assert_eq!(orientation(&block(true, &[(ORIENTATION, kind, count, 6)])), Orientation::Upright);
        }
        let mut far = good;
        far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(orientation(&far), Orientation::Upright);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            orientation(&bytes);
            orientation(&[&b"II*\0\x08\0\0\0"[..], &bytes].concat());
            orientation(&[&b"MM\0*\0\0\0\x08"[..], &bytes].concat());
        }
    }
}

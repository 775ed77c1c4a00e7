//! How many tokens of a text, or of each of a pair, a row has room for.
//!
//! The arithmetic is that of the `tokenizers` crate, so that ids stay the same as in Python.

use crate::error::ItemError;
use crate::text::options::{Side, Truncate};

/// Tokens kept of the first and the second text.
pub(super) fn kept(
    first: usize,
    second: Option<usize>,
    room: usize,
    how: Truncate,
) -> Result<(usize, usize), ItemError> {
    let all = first + second.unwrap_or(0);
    let Some(excess) = all.checked_sub(room).filter(|&excess| excess > 0) else {
        return Ok((first, second.unwrap_or(0)));
    };
    match (how, second) {
        (Truncate::LongestFirst, None) | (Truncate::OnlyFirst, None) => Ok((room, 0)),
        (Truncate::LongestFirst, Some(second)) => Ok(longest_first(first, second, room)),
        (Truncate::OnlyFirst, Some(second)) => Ok((shortened("first", first, excess)?, second)),
        (Truncate::OnlySecond, Some(second)) => Ok((first, shortened("second", second, excess)?)),
        (Truncate::OnlySecond, None) => {
            let detail = "it is too long, only second texts may be cut, and there is none".into();
            Err(ItemError::Refused { detail })
        }
    }
}

fn shortened(which: &str, length: usize, excess: usize) -> Result<usize, ItemError> {
    let detail = || format!("the pair is {excess} tokens too long, its {which} text has {length} to give");
    length.checked_sub(excess).filter(|&kept| kept > 0).ok_or_else(|| ItemError::Refused { detail: detail() })
}

/// The shorter one whole if it takes no more than half, else both halves.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    let shorter = first.min(second);
    let longer = if shorter > room { shorter } else { shorter.max(room - shorter) };
    let (short, long) = if shorter + longer > room { (room / 2, room / 2 + room % 2) } else { (shorter, longer) };
    if first > second { (long, short) } else { (short, long) }
}

/// The part of `ids` that is kept.
pub(super) fn part(ids: &[u32], kept: usize, side: Side) -> &[u32] {
    match side {
        Side::Right => &ids[..kept.min(ids.len())],
        Side::Left => &ids[ids.len() - kept.min(ids.len())..],
    }
}

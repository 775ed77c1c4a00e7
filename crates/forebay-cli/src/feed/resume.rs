//! Where a feed begins: with the first item, or where an earlier one stopped.
//!
//! The last message of the ring says it. Where there is no ring, or one without a message, the file of `--position` does.

use forebay::Producer;

use super::{args::Args, keep::Keeper, kind::Feeds, place::Place};
use crate::{
    failure::Failure,
    show::{self, count},
};

/// The source, moved on to where an earlier feed stopped, and that place.
pub(super) fn resume<F: Feeds>(
    args: &Args,
    what: &F,
    producer: &Producer,
    source: F::Source,
    keeper: Option<&Keeper>,
) -> Result<(F::Source, Place), Failure> {
    let ring = args.ring(F::NAME);
    let left = producer.takeover().map(|takeover| count(takeover.outstanding, "message"));
    if let (Some(takeover), Some(left)) = (producer.takeover(), &left)
        && !takeover.last_user.is_empty()
    {
        let refused = |e: &dyn std::fmt::Display| {
            Failure::usage(format!(
                "ring {ring:?} was left by an earlier feed, which this one cannot go on from: {e}. On the command line that \
                 is --fresh, which discards {left} not received yet"
            ))
        };
        let place = Place::decode(&takeover.last_user).map_err(|e| refused(&e))?;
        drop(source);
        let source = what.resume(&place.checkpoint.position).map_err(|e| refused(&e))?;
        let after = after(what, &source, &place);
        show::say(&format!("going on after {after}; {left} of the earlier feed not received yet"));
        return Ok((source, place));
    }
    let kept = keeper.filter(|_| !args.fresh);
    if let Some(keeper) = kept
        && let Some(place) = keeper.read()?.filter(|place| !place.is_start())
    {
        drop(source);
        let source = what.resume(&place.checkpoint.position).map_err(|e| keeper.refused(&e.to_string()))?;
        let after = after(what, &source, &place);
        show::say(&format!("going on after {after}, as {} says", keeper.path().display()));
        return Ok((source, place));
    }
    if let Some(left) = left {
        show::say(&format!("took over ring {ring:?}, {left} not received yet; nothing tells where to go on"));
    }
    let start = forebay_ingest::Checkpoint::from(what.position(&source));
    Ok((source, start.into()))
}

/// What is done, for people.
fn after<F: Feeds>(what: &F, source: &F::Source, place: &Place) -> String {
    let at = &place.checkpoint.position;
    let block = if at.block_items > 0 { " in the block that begins there" } else { "" };
    let part =
        place.part.map_or_else(String::new, |part| format!(" and {} of a batch behind it", count(part.rows(), "row")));
    let (name, before) = (what.name(source, at.file), count(at.items, "row"));
    format!("{} {} of {name}{block}{part} ({before} done before)", F::UNIT, at.line)
}

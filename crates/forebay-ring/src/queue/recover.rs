//! Mending after a consumer's death: idempotent CASes on exact old words. Any member and the producer may do it, at the
//! same time, and die doing it.

use forebay_layout::Defect;

use crate::{MemberId, Pool, SlotState, SlotWord, sync::Ordering, words::Words};

/// What a round of mending did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mended {
    /// Messages that are FULL again.
    pub returned: u32,
    /// Messages that became dead letters.
    pub dead: u32,
    /// Slots of acked messages that are DONE.
    pub released: u32,
}

impl Mended {
    /// True if nothing was found.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// Takes their words from the dead: CLAIMED goes back to FULL (or DEAD), ACKED becomes DONE. `is_alive` probes a
/// member's lock byte; it is called after the word was read, never before. The caller then wakes consumers if
/// something was returned, and the producer if something died or was released.
///
/// # Errors
/// A word that no peer writes that keeps to the protocol; all others were looked at.
pub fn mend<W: Words>(
    pool: &Pool<W>,
    max_attempts: u32,
    mut is_alive: impl FnMut(MemberId) -> bool,
) -> Result<Mended, Defect> {
    let mut mended = Mended::default();
    let mut defect = None;
    for slot in 0..pool.slots() {
        // ORDER E8 life, Acquire: the probe that follows is of the life that wrote this word, or of a later moment. (What
        // a dead owner saw and did comes with its death: the kernel frees the lock byte after it.)
        let raw = pool.slot(slot).load(Ordering::Acquire);
        let word = match SlotWord::checked(raw) {
            Ok(word) => word,
            Err(e) => {
                defect = Some(e);
                continue;
            }
        };
        let Some(owner) = word.owner() else { continue };
        if is_alive(owner) {
            continue;
        }
        let next = match word.state() {
            SlotState::Claimed => word.given_back(max_attempts),
            _ => SlotWord::done(word.generation()),
        };
        // ORDER E4 return / E2 release, Release: passes on what the death ordered: the owner's reads (on a writable ring,
        // its writes) are over before the next claim, or the next use of the slot.
        if pool.slot(slot).compare_exchange(raw, next.raw(), Ordering::Release, Ordering::Relaxed).is_ok() {
            match next.state() {
                SlotState::Full => {
                    mended.returned += 1;
                    pool.count_return();
                }
                SlotState::Dead => mended.dead += 1,
                _ => mended.released += 1,
            }
        }
    }
    defect.map_or(Ok(mended), Err)
}

/// True if no slot is FULL, and nobody but `me` has an unacked claim. Whether who has one lives makes no difference: a
/// dead member's message comes back as soon as somebody has mended its word.
pub fn is_drained<W: Words>(pool: &Pool<W>, me: MemberId) -> bool {
    (0..pool.slots()).all(|slot| {
        // ORDER none, Acquire: the caller reads positions afterwards and must not see older ones.
        match SlotWord::checked(pool.slot(slot).load(Ordering::Acquire)) {
            Ok(word) => match word.state() {
                SlotState::Full => false,
                SlotState::Claimed => word.owner() == Some(me),
                _ => true,
            },
            Err(_) => true,
        }
    })
}

/// The slots whose words name member `index`, whatever its incarnation. While there is one, the index is not used
/// again.
pub fn held_by<W: Words>(pool: &Pool<W>, index: u8) -> impl Iterator<Item = (u32, SlotWord)> + '_ {
    (0..pool.slots()).filter_map(move |slot| {
        let word = SlotWord::checked(pool.peek_slot(slot)).ok()?;
        word.owner().is_some_and(|owner| owner.index == index).then_some((slot, word))
    })
}

/// Mends only what `member`, known to be dead, left. For the producer before it hands out the index again.
///
/// # Errors
/// As [`mend`].
pub fn release_all_of<W: Words>(pool: &Pool<W>, max_attempts: u32, member: u8) -> Result<Mended, Defect> {
    mend(pool, max_attempts, |owner| owner.index != member)
}

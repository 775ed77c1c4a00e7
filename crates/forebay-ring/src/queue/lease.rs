//! The end of a claim: acked, read to the end, or given back. Stores, not CASes: nobody else changes the CLAIMED or
//! ACKED word of a living member (I2, I5), and a member that is found dead runs no more code.

use crate::{Claim, Pool, SlotState, SlotWord, sync::Ordering, words::Words};

/// Says that the message is dealt with while its memory is still read: if this member dies now, the message does not
/// come back.
pub fn ack<W: Words>(pool: &Pool<W>, claim: &Claim) {
    // ORDER E8 life, Release: as the claim; no memory changes hands.
    pool.slot(claim.slot).store(claim.word.acked().raw(), Ordering::Release);
}

/// Ends the lease of an acked message. The caller then looks whether the producer sleeps.
pub fn finish<W: Words>(pool: &Pool<W>, claim: &Claim) {
    // ORDER E2 release, Release: all reads of the slot are over before the producer sees DONE.
    pool.slot(claim.slot).store(SlotWord::done(claim.generation).raw(), Ordering::Release);
}

/// Ends the lease of a message that was not dealt with: it is FULL again, or DEAD when its attempts are spent. The
/// caller then wakes a consumer, or the producer.
pub fn give_back<W: Words>(pool: &Pool<W>, claim: &Claim, max_attempts: u32) -> SlotState {
    let back = claim.word.given_back(max_attempts);
    // ORDER E4 return, Release: our reads (and, on a writable ring, writes) are over before the next claim.
    pool.slot(claim.slot).store(back.raw(), Ordering::Release);
    pool.count_return();
    back.state()
}

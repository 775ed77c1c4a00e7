//! The consumer's side of both kinds: position entries and slot descriptors, copied once and then checked.

use forebay_layout::{
    Defect, FieldName,
    descriptor::{FIELD_WORDS, HEAD_WORDS, Head, TensorMeta, USER_WORDS},
    entry::{ENTRY_TAIL, ENTRY_WORDS, EntryTensor, NO_SLOT},
    geometry::{ClassSpan, Plan},
    header::{W_EPOCH, W_FENCES, W_HEAD, W_STATE, state},
};

use crate::{
    SlotWord,
    sync::{Ordering, fence},
    words::{ReadOnly, Words},
};

/// Sequences stay below this, whatever a peer writes, so that no arithmetic on one overflows: at 10⁹ messages a second
/// it is a century away.
pub(crate) const SEQUENCES: u64 = 1 << 62;

/// Slot words that one call looks at, over and over, while a peer changes them under its eyes.
const LOOKS: u64 = 1 << 22;

/// How often one call passes over all of `slots`: see [`Reader::passes`].
pub(crate) fn passes(slots: u32) -> u64 {
    let most = u64::from(slots).saturating_mul(2).saturating_add(1);
    LOOKS.checked_div(slots.into()).unwrap_or(0).max(16).min(most)
}

/// `sequence`, if it is one that a producer could have reached.
pub(crate) fn bounded(field: &'static str, sequence: u64) -> Result<u64, Defect> {
    if sequence < SEQUENCES { Ok(sequence) } else { Err(Defect::bounded(field, sequence, "less than", SEQUENCES)) }
}

/// A message that is ours to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its sequence.
    pub sequence: u64,
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Deliveries before this one that ended without an ack.
    pub attempts: u8,
    /// Queue: the slot word as we left it, CLAIMED.
    pub word: SlotWord,
}

/// What the position entry of a sequence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// Not published yet.
    NotYet,
    /// Published there.
    At { slot: u32, generation: u32 },
    /// Never published: its producer died.
    Void,
    /// The entry is in use for this later sequence.
    Overtaken(u64),
}

/// A handle to the ring object, to read.
#[derive(Debug, Clone)]
pub struct Reader<W> {
    ring: ReadOnly<W>,
    plan: Plan,
    max_fields: u32,
}

impl<W: Words> Reader<W> {
    /// The ring object in `ring`, which the plan was checked against.
    pub fn new(ring: ReadOnly<W>, plan: Plan, max_fields: u32) -> Self {
        Self { ring, plan, max_fields }
    }

    /// The plan of the ring.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A word of the ring object, for display.
    pub fn peek(&self, index: usize) -> u64 {
        self.ring.peek(index)
    }

    /// The sequence that the producer will publish next; may be stale at once.
    pub fn head(&self) -> u64 {
        self.ring.peek(W_HEAD)
    }

    /// True once the producer said that nothing more will come; everything published before is then visible.
    pub fn is_closed(&self) -> bool {
        // ORDER E1 commit, Acquire: the last message was committed before CLOSED was stored.
        self.ring.load(W_STATE, Ordering::Acquire) == state::CLOSED
    }

    /// True once a successor discarded this ring and made another one of the same name.
    pub fn is_replaced(&self) -> bool {
        self.ring.peek(W_STATE) == state::REPLACED
    }

    /// The producer's life number.
    pub fn epoch(&self) -> u64 {
        self.ring.peek(W_EPOCH)
    }

    /// True if some peer cannot use membarrier, so that wakers must execute a fence.
    pub fn fences(&self) -> bool {
        self.ring.peek(W_FENCES) != 0
    }

    pub(crate) fn positions(&self) -> u64 {
        self.plan.positions
    }

    pub(crate) fn load(&self, index: usize, order: Ordering) -> u64 {
        self.ring.load(index, order)
    }

    #[inline]
    fn entry(&self, sequence: u64) -> usize {
        self.plan.position_word + (sequence & (self.plan.positions - 1)) as usize * ENTRY_WORDS
    }

    /// Looks up where `sequence` was published.
    pub(crate) fn position(&self, sequence: u64) -> Result<Position, Defect> {
        let at = self.entry(sequence);
        // ORDER E3 position, Acquire: the entry's words and the commit arrive with the stamp.
        let stamp = self.ring.load(at, Ordering::Acquire);
        if stamp != sequence {
            let stamp = bounded("position.stamp", stamp)?;
            return Ok(if stamp > sequence { Position::Overtaken(stamp) } else { Position::NotYet });
        }
        let place = self.ring.peek(at + 1);
        // ORDER E3 position, fence: if the word above is of a later sequence, the stamp below has changed too.
        fence(Ordering::Acquire);
        let again = self.ring.peek(at);
        if again != sequence {
            return Ok(Position::Overtaken(sequence.saturating_add(self.plan.positions)));
        }
        let (slot, generation) = ((place & 0xffff_ffff) as u32, (place >> 32) as u32);
        match slot {
            NO_SLOT => Ok(Position::Void),
            slot if slot < self.plan.slots => Ok(Position::At { slot, generation }),
            slot => Err(Defect::bounded("position.slot", slot.into(), "below", self.plan.slots.into())),
        }
    }

    /// Whether a look at the position of `sequence` may find something. Cheap: one load of a word that changes when the
    /// message comes.
    pub(crate) fn may_have(&self, sequence: u64) -> bool {
        // A hint: who looks then acquires.
        self.ring.peek(self.entry(sequence)) >= sequence
    }

    /// The sequence in the descriptor of `slot`; means something only while the slot's word does not change.
    pub(crate) fn sequence_of(&self, slot: u32) -> Result<u64, Defect> {
        let word = self.plan.descriptor_word + slot as usize * self.plan.descriptor_words;
        bounded("descriptor.sequence", self.ring.peek(word))
    }

    /// How many entries one look goes through before it gives up: far more than an honest producer can fill meanwhile.
    pub(crate) fn patience(&self) -> u64 {
        self.plan.positions.saturating_mul(16)
    }

    /// How often one look passes over all slots before it gives up, to go on in the next one. On rings of up to a few
    /// thousand slots as often as they could be lost to others one by one; on larger ones so often as takes some
    /// milliseconds.
    pub(crate) fn passes(&self) -> u64 {
        passes(self.plan.slots)
    }

    /// What a claimed message says of itself, from the slot's descriptor, which does not change under a claim.
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    pub fn head_of(&self, claim: &Claim) -> Result<Head, Defect> {
        let span = self.span(claim.slot)?;
        let base = self.plan.descriptor_word + claim.slot as usize * self.plan.descriptor_words;
        let mut words = [0; 6];
        self.ring.load_all(base, &mut words);
        let head = Head::decode(&words, self.max_fields, span.slot_bytes)?;
        for (field, found, own) in [
            ("descriptor.sequence", head.sequence, claim.sequence),
            ("descriptor.slot", head.slot.into(), claim.slot.into()),
            ("descriptor.generation", head.generation.into(), claim.generation.into()),
        ] {
            if found != own {
                return Err(Defect::bounded(field, found, "what the slot word and position say,", own));
            }
        }
        Ok(head)
    }

    /// A copy of the position entry of a claimed message, if it still is that message's.
    #[must_use]
    pub fn entry_of(&self, claim: &Claim) -> Option<[u64; ENTRY_WORDS]> {
        let mut words = [0; ENTRY_WORDS];
        self.copy_entry(claim, &mut words).then_some(words)
    }

    /// Copies the position entry of a claimed message. False if it is not that message's any more, and `words` nobody's.
    /// The entry is found without knowing the slot, so reading it instead of the descriptor saves a transfer.
    #[must_use]
    pub fn copy_entry(&self, claim: &Claim, words: &mut [u64; ENTRY_WORDS]) -> bool {
        let at = self.entry(claim.sequence);
        // ORDER E3 position, Acquire: as in `position`.
        words[0] = self.ring.load(at, Ordering::Acquire);
        self.ring.load_all(at + 1, &mut words[1..]);
        // ORDER E3 position, fence: as in `position`.
        fence(Ordering::Acquire);
        let place = u64::from(claim.slot) | u64::from(claim.generation) << 32;
        words[0] == claim.sequence && self.ring.peek(at) == claim.sequence && words[1] == place
    }

    /// Slot and generation of `sequence`, if it has a place at its position.
    #[inline]
    pub(crate) fn place_of(&self, sequence: u64) -> Option<(u32, u32)> {
        match self.position(sequence) {
            Ok(Position::At { slot, generation }) => Some((slot, generation)),
            _ => None,
        }
    }

    /// Copies the position entry of `sequence` into the room that is given for its slot; returns slot and generation.
    /// `None` says nothing: it may not be published, have no entry, or get no room; what was copied is nobody's then.
    #[inline]
    pub(crate) fn copy_position<'a>(
        &self,
        sequence: u64,
        room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>,
    ) -> Option<(u32, u32)> {
        let at = self.entry(sequence);
        // ORDER E3 position, Acquire: in order, the entry's words and the commit arrive with the stamp.
        if self.ring.load(at, Ordering::Acquire) != sequence {
            return None;
        }
        let place = self.ring.peek(at + 1);
        let (slot, generation) = ((place & 0xffff_ffff) as u32, (place >> 32) as u32);
        let words = room(slot)?;
        (words[0], words[1]) = (sequence, place);
        self.ring.load_all(at + 2, &mut words[2..]);
        // ORDER E3 position, fence: in order, if a word above is of a later sequence, the stamp below has changed too.
        fence(Ordering::Acquire);
        (self.ring.peek(at) == sequence).then_some((slot, generation))
    }

    /// The head that such a copy holds.
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    pub fn decode_entry_head(&self, claim: &Claim, words: &[u64; ENTRY_WORDS]) -> Result<Head, Defect> {
        let span = self.span(claim.slot)?;
        let [a, b, c, d, e, f, ..] = *words;
        Head::decode(&[a, b, c, d, e, f & 0xffff_ffff], self.max_fields, span.slot_bytes)
    }

    /// The tensor that such a copy describes, if it describes one.
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    pub fn decode_entry_tensor(
        &self,
        claim: &Claim,
        words: &[u64; ENTRY_WORDS],
    ) -> Result<Option<EntryTensor>, Defect> {
        let span = self.span(claim.slot)?;
        EntryTensor::decode(words, span.slot_bytes)
    }

    /// The head and the tensor of a claimed message from its position entry alone, if that is still there and says it
    /// all: at most one tensor, at the start of its slot, and no user data.
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    pub fn inline_of(&self, claim: &Claim) -> Result<Option<(Head, Option<TensorMeta>)>, Defect> {
        let Some(words) = self.entry_of(claim) else { return Ok(None) };
        let head = self.decode_entry_head(claim, &words)?;
        let tensor = self.decode_entry_tensor(claim, &words)?;
        let all = head.user_bytes == 0 && usize::from(head.fields) == usize::from(tensor.is_some());
        Ok(all.then(|| (head, tensor.map(|tensor| tensor.meta))))
    }

    /// Asks for the lines of the entry of `sequence`, which is looked up next.
    pub(crate) fn prefetch(&self, sequence: u64) {
        let at = self.entry(sequence);
        self.ring.prefetch(at);
        self.ring.prefetch(at + ENTRY_TAIL);
    }

    /// Field `index` of a claimed message.
    ///
    /// # Errors
    /// The first number that a producer would not have written.
    pub fn field_of(&self, claim: &Claim, index: u16) -> Result<(TensorMeta, FieldName), Defect> {
        self.decode_field(claim, &self.field_words(claim, index)?)
    }

    /// A copy of the words of field `index`.
    ///
    /// # Errors
    /// The ring has no such field or slot.
    pub fn field_words(&self, claim: &Claim, index: u16) -> Result<[u64; FIELD_WORDS], Defect> {
        let base = self.fields_of(claim.slot, usize::from(index) + 1)? + usize::from(index) * FIELD_WORDS;
        let mut words = [0; FIELD_WORDS];
        self.ring.load_all(base, &mut words);
        Ok(words)
    }

    /// Whether the fields of a claimed message say what these copies do.
    ///
    /// # Errors
    /// The ring has not so many fields, or no such slot.
    pub fn fields_are(&self, claim: &Claim, known: &[[u64; FIELD_WORDS]]) -> Result<bool, Defect> {
        Ok(self.ring.are(self.fields_of(claim.slot, known.len())?, known.as_flattened()))
    }

    /// Where the first `fields` of a slot's descriptor stand.
    fn fields_of(&self, slot: u32, fields: usize) -> Result<usize, Defect> {
        self.span(slot)?;
        if fields as u64 > self.max_fields.into() {
            return Err(Defect::bounded("field", fields as u64 - 1, "below", self.max_fields.into()));
        }
        Ok(self.plan.descriptor_word + slot as usize * self.plan.descriptor_words + HEAD_WORDS)
    }

    /// What such a copy says.
    ///
    /// # Errors
    /// The first number that a producer would not have written.
    pub fn decode_field(&self, claim: &Claim, words: &[u64; FIELD_WORDS]) -> Result<(TensorMeta, FieldName), Defect> {
        let span = self.span(claim.slot)?;
        TensorMeta::decode(words, span.slot_bytes)
    }

    /// The user data of a claimed message.
    pub fn user_of(&self, claim: &Claim, head: &Head) -> Vec<u8> {
        let base = self.plan.descriptor_word + (claim.slot as usize + 1) * self.plan.descriptor_words - USER_WORDS;
        let len = usize::from(head.user_bytes).min(USER_WORDS * 8);
        let mut user: Vec<u8> = (0..len.div_ceil(8)).flat_map(|i| self.ring.peek(base + i).to_le_bytes()).collect();
        user.truncate(len);
        user
    }

    fn span(&self, slot: u32) -> Result<&ClassSpan, Defect> {
        let class = self.plan.class_of(slot);
        class.map(|(_, span)| span).ok_or(Defect::bounded("slot", slot.into(), "below", self.plan.slots.into()))
    }
}

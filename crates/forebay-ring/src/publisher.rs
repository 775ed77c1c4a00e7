//! The producer's side of both kinds: its private shadow of every slot, descriptors, position entries, the sequence.
//!
//! Publishing stores, in this order: the last-record, the slot descriptor, the slot word (the commit, E1), the position
//! entry (E3), the counters. A producer that dies before the commit has published nothing; one that dies after it has
//! published, and the entry is filled in by its successor or found by a scan.

use forebay_layout::{
    Defect, FieldName, MAX_USER_BYTES,
    descriptor::{FIELD_WORDS, HEAD_WORDS, Head, TensorMeta, USER_WORDS},
    entry::{ENTRY_TAIL, ENTRY_WORDS, EntryTensor, NO_SLOT},
    geometry::Plan,
    header::{LAST_STRIDE, W_BYTES, W_DEAD, W_DROPPED, W_FULL_WAITS, W_HEAD, W_LAST},
    pool::SLOT_WORD_STRIDE,
};

use crate::{
    SlotState, SlotWord,
    reader::bounded,
    sync::{AtomicU64, Ordering, fence},
    words::Words,
};

/// What the producer knows of a slot without asking anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outstanding {
    /// Nothing in it.
    Free,
    /// Handed out to be written.
    Loaned,
    /// Published under this sequence; when it was released is what the shared word says.
    Published(u64),
}

/// A message about to be published.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draft<'a> {
    /// A number for what `fields` and `names` say: two drafts of one number say the same, and a slot that said it last is
    /// not told again. 0 for none.
    pub layout: u64,
    /// Chosen by the sender.
    pub correlation_id: u64,
    /// CLOCK_MONOTONIC now in ns, or 0.
    pub timestamp_ns: u64,
    /// Bytes of the slot in use.
    pub payload_bytes: u64,
    /// The tensors.
    pub fields: &'a [TensorMeta],
    /// Their names on a schemaless ring, else empty.
    pub names: &'a [FieldName],
    /// At most [`MAX_USER_BYTES`].
    pub user: &'a [u8],
    /// The bytes of the only tensor, if they are to be found without knowing the slot
    /// ([`EntryTensor::has_room`] says whether they can). Else empty.
    pub inline: &'a [u8],
}

/// A counter in the producer's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Messages dropped.
    Dropped,
    /// Dead letters.
    DeadLetters,
    /// Payload bytes published.
    Bytes,
    /// Waits for a slot.
    FullWaits,
}

/// What a successor found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Highest sequence that was published, 0 if none ever was.
    pub last_sequence: u64,
    /// The user data published with it.
    pub last_user: Vec<u8>,
    /// Messages still in the ring.
    pub outstanding: u64,
}

/// The producer's shadow and its right to write the ring object.
#[derive(Debug)]
pub struct Publisher<W> {
    ring: W,
    slot_words: W,
    plan: Plan,
    epoch: u64,
    next: u64,
    slots: Vec<(Outstanding, u32)>,
    /// The layout that each slot's descriptor says, 0 if that is not known.
    layouts: Vec<u64>,
    cursors: Vec<u32>,
}

impl<W: Words> Publisher<W> {
    /// The producer of a fresh ring: everything zero, nothing published. `slot_words` is the object that holds the
    /// slot words: the pool of a queue, the ring object of a broadcast ring.
    pub fn new(ring: W, slot_words: W, plan: Plan, epoch: u64) -> Self {
        let slots = vec![(Outstanding::Free, 0); plan.slots as usize];
        let layouts = vec![0; plan.slots as usize];
        let cursors = vec![0; plan.classes.len()];
        let this = Self { ring, slot_words, plan, epoch, next: 1, slots, layouts, cursors };
        this.set(W_HEAD, 1);
        this
    }

    /// The plan of the ring.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The sequence that will be published next.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// What the shadow says of `slot`, and its generation.
    #[inline]
    pub fn shadow(&self, slot: u32) -> (Outstanding, u32) {
        self.slots[slot as usize]
    }

    /// Slots in the shadow's order.
    pub fn shadows(&self) -> impl Iterator<Item = (u32, Outstanding, u32)> + '_ {
        self.slots.iter().enumerate().map(|(slot, &(state, generation))| (slot as u32, state, generation))
    }

    /// The slot words of a queue, or the broadcast ring's record of what is committed.
    #[inline]
    pub(crate) fn slot_word(&self, slot: u32) -> &AtomicU64 {
        self.slot_words.word(self.plan.slot_word + slot as usize * SLOT_WORD_STRIDE)
    }

    #[inline]
    fn set(&self, index: usize, value: u64) {
        // ORDER none, Relaxed: for display, or followed by an ordered store where it matters.
        self.ring.word(index).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self, index: usize) -> u64 {
        // ORDER none, Relaxed: the producer's own words, or a takeover after the death of their writer, which the
        // kernel's release of its lock orders.
        self.ring.word(index).load(Ordering::Relaxed)
    }

    /// Adds to a counter that others display.
    #[inline]
    pub fn count(&self, counter: Counter, add: u64) {
        let index = match counter {
            Counter::Dropped => W_DROPPED,
            Counter::DeadLetters => W_DEAD,
            Counter::Bytes => W_BYTES,
            Counter::FullWaits => W_FULL_WAITS,
        };
        self.set(index, self.get(index).wrapping_add(add));
    }

    /// A counter's value.
    pub fn counted(&self, counter: Counter) -> u64 {
        match counter {
            Counter::Dropped => self.get(W_DROPPED),
            Counter::DeadLetters => self.get(W_DEAD),
            Counter::Bytes => self.get(W_BYTES),
            Counter::FullWaits => self.get(W_FULL_WAITS),
        }
    }

    /// The slots of `class`, starting after the one taken last: with releases in order the first look succeeds.
    pub(crate) fn turn(&self, class: usize) -> impl Iterator<Item = u32> + use<W> {
        let span = self.plan.classes[class];
        let start = span.first_slot + self.cursors[class];
        (start..span.first_slot + span.slots).chain(span.first_slot..start)
    }

    /// The slot of `class` that is looked at first.
    #[inline]
    pub(crate) fn in_turn(&self, class: usize) -> u32 {
        self.plan.classes[class].first_slot + self.cursors[class]
    }

    /// The slot of `slot`'s class that will be looked at next.
    #[inline]
    pub(crate) fn upcoming(&self, slot: u32) -> Option<u32> {
        self.plan.class_of(slot).map(|(class, _)| self.in_turn(class))
    }

    /// Asks for the line that says whether `slot` is free.
    #[inline]
    pub(crate) fn prefetch_slot(&self, slot: u32) {
        self.slot_words.prefetch(self.plan.slot_word + slot as usize * SLOT_WORD_STRIDE);
    }

    /// Marks `slot` WRITING in its next generation, in the shadow and for all to see.
    #[inline]
    pub(crate) fn begin(&mut self, slot: u32) {
        let (state, generation) = &mut self.slots[slot as usize];
        *state = Outstanding::Loaned;
        *generation = generation.wrapping_add(1);
        let word = SlotWord::writing(self.epoch, *generation);
        // ORDER Release: the head of what this slot published before is stored before a successor can see WRITING, which
        // is how it tells a sequence that was committed from one that was not. Payload is ordered by the commit.
        self.slot_word(slot).store(word.raw(), Ordering::Release);
        self.taken(slot);
    }

    /// As [`begin`](Self::begin), for a slot whose word the caller already changed by CAS to WRITING.
    pub(crate) fn begun(&mut self, slot: u32) {
        let (state, generation) = &mut self.slots[slot as usize];
        *state = Outstanding::Loaned;
        *generation = generation.wrapping_add(1);
        self.taken(slot);
    }

    #[inline]
    fn taken(&mut self, slot: u32) {
        if let Some((class, span)) = self.plan.class_of(slot) {
            let next = slot - span.first_slot + 1;
            self.cursors[class] = if next == span.slots { 0 } else { next };
        }
    }

    /// The word that CASing `slot` away from its readers must store.
    pub(crate) fn writing_word(&self, slot: u32) -> SlotWord {
        SlotWord::writing(self.epoch, self.slots[slot as usize].1.wrapping_add(1))
    }

    /// Notes that a published slot is empty again.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.slots[slot as usize].0 = Outstanding::Free;
    }

    /// Gives a loan back unpublished.
    pub fn abandon(&mut self, slot: u32) {
        let (state, generation) = &mut self.slots[slot as usize];
        assert_eq!(*state, Outstanding::Loaned, "only a loan can be abandoned");
        *state = Outstanding::Free;
        let word = SlotWord::free(*generation);
        // ORDER none, Relaxed: nobody reads the slot on the strength of FREE.
        self.slot_word(slot).store(word.raw(), Ordering::Relaxed);
    }

    /// Publishes a loan and returns its sequence. The payload must be written; the caller then wakes who sleeps.
    ///
    /// # Panics
    /// If `slot` is not on loan, or the draft has more fields or user bytes than the ring (the caller checked both).
    #[inline]
    pub fn publish(&mut self, slot: u32, draft: &Draft<'_>) -> u64 {
        let (state, generation) = self.slots[slot as usize];
        assert_eq!(state, Outstanding::Loaned, "only a loan can be published");
        assert!(draft.user.len() <= MAX_USER_BYTES, "user data was checked before");
        let sequence = self.next;
        let head = Head {
            sequence,
            slot,
            generation,
            correlation_id: draft.correlation_id,
            payload_bytes: draft.payload_bytes,
            timestamp_ns: draft.timestamp_ns,
            fields: draft.fields.len() as u16,
            user_bytes: draft.user.len() as u16,
        };
        let words = head.encode();
        self.write_last(sequence, draft.user);
        self.write_descriptor(slot, &words, draft);
        // ORDER E1 commit, Release: whoever claims this word sees payload and descriptor.
        self.slot_word(slot).store(SlotWord::full(generation, 0).raw(), Ordering::Release);
        let first = draft.fields.first().filter(|meta| EntryTensor::describes(meta, head.fields));
        self.write_entry(&words, first, draft.inline);
        self.slots[slot as usize].0 = Outstanding::Published(sequence);
        self.next = sequence + 1;
        self.set(W_HEAD, self.next);
        self.count(Counter::Bytes, draft.payload_bytes);
        sequence
    }

    /// Keeps the user data of the last two sequences where a successor finds it, even if the slot is used again.
    #[inline]
    fn write_last(&self, sequence: u64, user: &[u8]) {
        // ORDER Release fence: the commit of the sequence before stays before these stores, which overwrite the record
        // of the one before that.
        fence(Ordering::Release);
        let at = W_LAST + (sequence & 1) as usize * LAST_STRIDE;
        self.ring.store_all(at, &[sequence, user.len() as u64]);
        self.write_user(at + 2, user);
    }

    #[inline]
    fn write_descriptor(&mut self, slot: u32, words: &[u64; 6], draft: &Draft<'_>) {
        let base = self.descriptor(slot);
        // ORDER Release: the last-record of this sequence is whole before a successor can learn of the sequence here.
        self.ring.word(base).store(words[0], Ordering::Release);
        self.ring.store_all(base + 1, &words[1..]);
        if draft.layout == 0 || self.layouts[slot as usize] != draft.layout {
            self.write_fields(slot, draft);
        }
        let user = base + self.plan.descriptor_words - USER_WORDS;
        self.write_user(user, draft.user);
    }

    /// Out of the way of the messages that have those of the last one in the slot.
    #[inline(never)]
    fn write_fields(&mut self, slot: u32, draft: &Draft<'_>) {
        let base = self.descriptor(slot);
        for (f, meta) in draft.fields.iter().enumerate() {
            let name = draft.names.get(f).map_or("", |name| name.as_str());
            self.ring.store_all(base + HEAD_WORDS + f * FIELD_WORDS, &meta.encode(name));
        }
        self.layouts[slot as usize] = draft.layout;
    }

    /// Out of the way of the messages that have none.
    #[inline]
    fn write_user(&self, at: usize, user: &[u8]) {
        #[inline(never)]
        fn write<W: Words>(ring: &W, at: usize, user: &[u8]) {
            ring.store_bytes(at, user);
        }
        if !user.is_empty() {
            write(&self.ring, at, user);
        }
    }

    #[inline]
    fn write_entry(&self, head: &[u64; 6], first: Option<&TensorMeta>, bytes: &[u8]) {
        let [sequence, place, correlation_id, payload_bytes, timestamp_ns, counts] = *head;
        let base = self.entry(sequence);
        let inline = first.is_some_and(|meta| bytes.len() as u64 == meta.nbytes && EntryTensor::has_room(meta));
        let [tensor, a, b] = first.map_or([0; 3], |meta| EntryTensor::encode(meta, inline));
        // ORDER E3 position: stamp 0, fence, words, stamp. A reader that sees one of the new words sees the stamp at
        // least 0 after its own fence, and throws its copy away.
        self.set(base, 0);
        fence(Ordering::Release);
        let words = [place, correlation_id, payload_bytes, timestamp_ns, counts | tensor, a, b];
        self.ring.store_all(base + 1, &words);
        match first {
            _ if inline => self.ring.store_bytes(base + ENTRY_TAIL, bytes),
            Some(meta) => self.ring.store_all(base + ENTRY_TAIL, EntryTensor::more_dims(meta)),
            None => {}
        }
        // ORDER E3 position, Release: the words above arrive with the stamp; so does the commit before them.
        self.ring.word(base).store(sequence, Ordering::Release);
    }

    #[inline]
    fn entry(&self, sequence: u64) -> usize {
        self.plan.position_word + (sequence & (self.plan.positions - 1)) as usize * ENTRY_WORDS
    }

    /// Messages that a dead producer left, of which a slot word says so that can be right. Changes nothing.
    pub fn count_left(ring: &W, slot_words: &W, plan: &Plan) -> u64 {
        let is_left = |&slot: &u32| {
            // ORDER none, Relaxed: a number for people.
            let raw = slot_words.word(plan.slot_word + slot as usize * SLOT_WORD_STRIDE).load(Ordering::Relaxed);
            let sequence =
                ring.word(plan.descriptor_word + slot as usize * plan.descriptor_words).load(Ordering::Relaxed);
            let published = |word: SlotWord| {
                !matches!(word.state(), SlotState::Free | SlotState::Done | SlotState::Writing) && sequence != 0
            };
            SlotWord::checked(raw).is_ok_and(published)
        };
        (0..plan.slots).filter(is_left).count() as u64
    }

    /// The producer of a ring whose last producer died: rebuilds the shadow from the shared words, which are read as
    /// hostile input, frees what was being written, and fills the position entries that are missing.
    ///
    /// # Errors
    /// A word that no producer writes. Nothing was changed then.
    pub fn take_over(ring: W, slot_words: W, plan: Plan, epoch: u64) -> Result<(Self, Recovered), Defect> {
        let layouts = vec![0; plan.slots as usize];
        let cursors = vec![0; plan.classes.len()];
        let mut this = Self { ring, slot_words, plan, epoch, next: 1, slots: Vec::new(), layouts, cursors };
        let head = bounded("head", this.get(W_HEAD))?;
        let mut highest = head.saturating_sub(1);
        for slot in 0..this.plan.slots {
            // ORDER E2 release, Acquire: what the readers of a DONE slot read is over.
            let word = SlotWord::checked(this.slot_word(slot).load(Ordering::Acquire)).map_err(|defect| Defect {
                expected: "a state from 0 to 6, in slot",
                bound: Some(slot.into()),
                ..defect
            })?;
            let sequence = bounded("descriptor.sequence", this.get(this.descriptor(slot)))?;
            let state = match word.state() {
                SlotState::Free | SlotState::Done | SlotState::Writing => Outstanding::Free,
                _ if sequence == 0 => {
                    let slot = slot.into();
                    return Err(Defect::bounded("descriptor.sequence", 0, "at least 1 once published, in slot", slot));
                }
                _ => Outstanding::Published(sequence),
            };
            // The head is stored after the commit and before the slot is WRITING again: a sequence from the head on,
            // in a slot that is WRITING or FREE, was never committed.
            if !matches!(word.state(), SlotState::Free | SlotState::Writing) {
                highest = highest.max(sequence);
            }
            this.slots.push((state, word.generation()));
        }
        this.next = highest + 1;
        this.free_unfinished();
        this.fill_entries(highest);
        this.set(W_HEAD, this.next);
        let outstanding = this.slots.iter().filter(|(state, _)| *state != Outstanding::Free).count() as u64;
        let last_user = this.read_last(highest).unwrap_or_default();
        Ok((this, Recovered { last_sequence: highest, last_user, outstanding }))
    }

    fn descriptor(&self, slot: u32) -> usize {
        self.plan.descriptor_word + slot as usize * self.plan.descriptor_words
    }

    fn read_last(&self, sequence: u64) -> Option<Vec<u8>> {
        let at = W_LAST + (sequence & 1) as usize * LAST_STRIDE;
        let len = usize::try_from(self.get(at + 1)).ok().filter(|&len| len <= MAX_USER_BYTES)?;
        if sequence == 0 || self.get(at) != sequence {
            return None;
        }
        let mut user: Vec<u8> = (0..len.div_ceil(8)).flat_map(|i| self.get(at + 2 + i).to_le_bytes()).collect();
        user.truncate(len);
        Some(user)
    }

    fn free_unfinished(&self) {
        for (slot, _, generation) in self.shadows() {
            // ORDER none, Relaxed: only the producer leaves WRITING, and its successor is the producer now.
            let word = self.slot_word(slot).load(Ordering::Relaxed);
            if SlotWord::checked(word).is_ok_and(|word| word.state() == SlotState::Writing) {
                self.slot_word(slot).store(SlotWord::free(generation).raw(), Ordering::Relaxed);
            }
            if self.get(self.descriptor(slot)) >= self.next {
                self.set(self.descriptor(slot), 0);
            }
        }
    }

    /// Every sequence that consumers may still look up gets an entry: that of its message, or an empty one. Messages
    /// first, and nothing that is right is written again: consumers look at the entries meanwhile, and one that sees an
    /// empty entry goes on to the next sequence for good.
    fn fill_entries(&self, highest: u64) {
        let oldest = (highest + 1).saturating_sub(self.plan.positions).max(1);
        for (slot, state, generation) in self.shadows() {
            let Outstanding::Published(sequence) = state else { continue };
            let entry = self.entry(sequence);
            let place = u64::from(slot) | u64::from(generation) << 32;
            if sequence >= oldest && (self.get(entry), self.get(entry + 1)) != (sequence, place) {
                self.write_entry_again(sequence, slot, generation);
            }
        }
        for sequence in oldest..=highest {
            if self.get(self.entry(sequence)) != sequence {
                let void = Head { sequence, slot: NO_SLOT, ..Head::default() };
                self.write_entry(&void.encode(), None, &[]);
            }
        }
    }

    /// The entry of a published message, from its descriptor. Consumers check what they read, so a field that lies is
    /// copied as it stands.
    fn write_entry_again(&self, sequence: u64, slot: u32, generation: u32) {
        let base = self.descriptor(slot);
        let head = Head {
            sequence,
            slot,
            generation,
            correlation_id: self.get(base + 2),
            payload_bytes: self.get(base + 3),
            timestamp_ns: self.get(base + 4),
            fields: self.get(base + 5) as u16,
            user_bytes: (self.get(base + 5) >> 16) as u16,
        };
        let mut words = [0; FIELD_WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.get(base + HEAD_WORDS + i);
        }
        let first = TensorMeta::decode(&words, u64::MAX >> 1).ok().map(|(meta, _)| meta);
        let first = first.filter(|meta| EntryTensor::describes(meta, head.fields));
        self.write_entry(&head.encode(), first.as_ref(), &[]);
    }
}

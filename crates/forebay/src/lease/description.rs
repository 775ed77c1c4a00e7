//! What a message says of itself: read once, checked once.

use forebay_layout::{
    Defect, FieldName, MAX_RANK,
    descriptor::{FIELD_WORDS, Head, TensorMeta},
    entry::{ENTRY_TAIL, ENTRY_WORDS, INLINE_RANK},
    schema::Schema,
};
use forebay_ring::Claim;

use super::Membership;

/// What the message in a slot says of itself. Kept from one message in the slot to the next, because often they say the
/// same but for the head.
#[derive(Debug, Default)]
pub(crate) struct Description {
    pub(crate) attempts: u8,
    pub(crate) fields: Vec<TensorMeta>,
    /// Schemaless rings only.
    pub(crate) names: Vec<FieldName>,
    pub(crate) user: Vec<u8>,
    /// Whether the bytes of the only tensor stand in the entry.
    inline: bool,
    /// The message's position entry; of one that was gone, its first six words, which the descriptor has as well.
    entry: Entry,
    /// What the descriptor said of the fields, if `fields` and `names` were read from there: the same words in the same
    /// slot say the same, and passed every check.
    words: Vec<[u64; FIELD_WORDS]>,
    /// What the position entry said of the message but for its identity, likewise; zeros if `fields` does not follow from
    /// it.
    told: Told,
}

/// A copy of a position entry. Its second half, a small tensor's bytes, is aligned as they are in a slot.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Entry([u64; ENTRY_WORDS]);

/// The words of a position entry that say how many bytes there are, the counts and what its tensor is.
type Told = [u64; 2 + MAX_RANK];

impl Entry {
    /// dtype, rank and bytes of the tensor that it describes; 0 if it describes none.
    fn tensor(&self) -> u64 {
        self.0[5] >> 32
    }

    fn has_bytes(&self) -> bool {
        self.tensor() >> 16 != 0
    }

    /// Where its bytes do not lie, its other dims do; beyond its rank nothing is read.
    fn more_dims(&self) -> &[u64] {
        let more = !self.has_bytes() && self.tensor() >> 8 & 0xff > INLINE_RANK as u64;
        &self.0[ENTRY_TAIL..][..if more { MAX_RANK - INLINE_RANK } else { 0 }]
    }

    /// Whether it says what was told.
    fn says(&self, told: &Told) -> bool {
        let [_, _, _, bytes, _, counts, a, b, ..] = self.0;
        let same = counts >> 32 != 0 && told[0] == bytes && told[1] == counts && told[2] == a && told[3] == b;
        same && (self.has_bytes() || told[4..][..self.more_dims().len()] == *self.more_dims())
    }

    fn told(&self) -> Told {
        let (mut told, more) = (Told::default(), self.more_dims());
        (told[0], told[1]) = (self.0[3], self.0[5]);
        told[2..][..INLINE_RANK].copy_from_slice(&self.0[6..ENTRY_TAIL]);
        told[2 + INLINE_RANK..][..more.len()].copy_from_slice(more);
        told
    }

    fn head(&self) -> Head {
        let [a, b, c, d, e, f, ..] = self.0;
        Head::unpack(&[a, b, c, d, e, f & 0xffff_ffff])
    }

    /// Of a message whose entry is gone: its head, and no word of its tensor.
    fn set_head(&mut self, head: &Head) {
        self.0 = [0; ENTRY_WORDS];
        self.0[..6].copy_from_slice(&head.encode());
    }
}

impl Description {
    /// The head of the message.
    #[inline]
    pub(crate) fn head(&self) -> Head {
        self.entry.head()
    }

    /// Room for the position entry of the next message in this slot; [`follow`](Self::follow) goes on with it.
    #[inline]
    pub(super) fn room(&mut self) -> &mut [u64; ENTRY_WORDS] {
        &mut self.entry.0
    }

    /// Reads what a claimed message says, and checks it, as [`read`](Self::read) does. Its entry lies in
    /// [`room`](Self::room).
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    #[inline]
    pub(super) fn follow(&mut self, from: &Membership, claim: &Claim) -> Result<(), Defect> {
        // Most messages: one small tensor of a schema, no user data, all as in the last one in this slot.
        if from.schema.is_some() && self.entry.says(&self.told) && self.is_without_user() {
            self.attempts = claim.attempts;
            self.inline = self.entry.has_bytes() && !from.geometry.writable;
            return Ok(());
        }
        self.read_with(from, claim, true)
    }

    fn is_without_user(&self) -> bool {
        self.user.is_empty() && self.entry.0[5] >> 16 & 0xffff == 0
    }

    /// The bytes of tensor `index`, if they came with the message.
    pub(super) fn inline(&self, index: usize) -> Option<&[u8]> {
        let meta = self.fields.get(index).filter(|_| self.inline)?;
        bytemuck::cast_slice(&self.entry.0[ENTRY_TAIL..]).get(..meta.nbytes as usize)
    }

    /// Reads what a claimed message says, and checks it.
    ///
    /// # Errors
    /// The first field that a producer would not have written.
    pub(super) fn read(&mut self, from: &Membership, claim: &Claim) -> Result<(), Defect> {
        let there = from.reader.copy_entry(claim, &mut self.entry.0);
        self.read_with(from, claim, there)
    }

    /// As [`read`](Self::read), with the entry copied if it is `there`.
    fn read_with(&mut self, from: &Membership, claim: &Claim, there: bool) -> Result<(), Defect> {
        self.attempts = claim.attempts;
        self.inline = false;
        let read = self.read_checked(from, claim, there);
        if read.is_err() {
            *self = Self::default();
        }
        read
    }

    fn read_checked(&mut self, from: &Membership, claim: &Claim, there: bool) -> Result<(), Defect> {
        let (reader, schema) = (&from.reader, from.schema.as_ref());
        if there && self.entry.says(&self.told) {
            // Most messages: the same as the last in this slot, and checked with that. Without a schema the descriptor has
            // a say in it, too.
            if schema.is_some() || !self.read_fields(from, claim)? {
                self.read_user(from, claim);
                self.inline = self.entry.has_bytes() && !from.geometry.writable;
                return Ok(());
            }
            self.told = Told::default();
        }
        if there {
            reader.decode_entry_head(claim, &self.entry.0)?;
        } else {
            self.entry.set_head(&reader.head_of(claim)?);
        }
        self.read_user(from, claim);
        if !there || self.entry.tensor() == 0 {
            self.told = Told::default();
            return self.read_fields(from, claim).map(drop);
        }
        // Without a schema the name stands in the descriptor, in lines that change only if the fields do.
        let renewed = schema.is_none() && self.read_fields(from, claim)?;
        if renewed || !self.entry.says(&self.told) {
            self.told = Told::default();
            let described = reader.decode_entry_tensor(claim, &self.entry.0)?.map(|tensor| tensor.meta);
            match schema {
                Some(schema) => {
                    self.words.clear();
                    self.fields.clear();
                    self.fields.extend(described);
                    check_schema(schema, &self.fields)?;
                }
                None if described.as_ref() == self.fields.first() && self.fields.len() == 1 => {}
                None => {
                    let found = self.entry.tensor();
                    return Err(Defect::new("position.tensor", found, "what the descriptor says of it"));
                }
            }
            self.told = self.entry.told();
        }
        // What a writable ring's consumer changes in the slot must be seen in what it reads.
        self.inline = self.entry.has_bytes() && !from.geometry.writable;
        Ok(())
    }

    fn read_user(&mut self, from: &Membership, claim: &Claim) {
        if !self.user.is_empty() {
            self.user.clear();
        }
        let head = self.head();
        if head.user_bytes != 0 {
            self.user = from.reader.user_of(claim, &head);
        }
    }

    /// Reads the fields from the descriptor. False if it says what it said of the last message in this slot.
    fn read_fields(&mut self, from: &Membership, claim: &Claim) -> Result<bool, Defect> {
        let (reader, schema) = (&from.reader, from.schema.as_ref());
        let fields = usize::from(self.head().fields);
        if self.words.len() == fields && self.fields.len() == fields && reader.fields_are(claim, &self.words)? {
            return Ok(false);
        }
        self.words.clear();
        self.fields.clear();
        self.names.clear();
        for index in 0..self.head().fields {
            let words = reader.field_words(claim, index)?;
            let (meta, name) = reader.decode_field(claim, &words)?;
            self.words.push(words);
            self.fields.push(meta);
            if schema.is_none() {
                self.names.push(name);
            }
        }
        schema.map_or(Ok(()), |schema| check_schema(schema, &self.fields))?;
        Ok(true)
    }
}

/// The schema's bounds hold for what arrives, so that a model fed from the ring need not check them again.
fn check_schema(schema: &Schema, fields: &[TensorMeta]) -> Result<(), Defect> {
    if fields.len() != schema.fields().len() {
        let expected = schema.fields().len() as u64;
        return Err(Defect::bounded("descriptor.fields", fields.len() as u64, "the schema's", expected));
    }
    for (meta, field) in fields.iter().zip(schema.fields()) {
        if meta.dtype != field.dtype {
            let (found, own) = (meta.dtype.code(), field.dtype.code());
            return Err(Defect::bounded("field.dtype", found.into(), "the schema's", own.into()));
        }
        if meta.rank() != field.max_dims().len() {
            return Err(Defect::bounded(
                "field.rank",
                meta.rank() as u64,
                "the schema's",
                field.max_dims().len() as u64,
            ));
        }
        if let Some((&dim, &most)) = meta.shape().iter().zip(field.max_dims()).find(|(dim, most)| dim > most) {
            return Err(Defect::bounded("field.dims", dim, "at most the schema's", most));
        }
    }
    Ok(())
}

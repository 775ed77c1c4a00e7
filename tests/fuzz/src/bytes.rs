//! A fuzz input read from front to back. It never ends: what is missing is 0, so that every prefix of an input is one.

/// What is left of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of `data`.
    #[must_use]
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let (head, rest) = self.0.split_at(N.min(self.0.len()));
        out[..head.len()].copy_from_slice(head);
        self.0 = rest;
        out
    }

    /// One byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// A number below `limit`, of one byte.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// Two bytes.
    pub(crate) fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub(crate) fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// True if nothing is left.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or fewer.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// Everything that is left.
    #[must_use]
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// A value for a word that now is `old`: often near it, often at an edge, sometimes anything.
    pub(crate) fn value(&mut self, old: u64) -> u64 {
        match self.byte() % 8 {
            0 => self.word(),
            1 => self.byte().into(),
            2 => old ^ 1 << (self.byte() & 63),
            3 => old.wrapping_add(self.byte() as i8 as u64),
            4 => old.rotate_left(32).wrapping_add(self.byte() as i8 as u64).rotate_left(32),
            5 => u64::MAX.wrapping_sub(self.byte().into()),
            6 => (1u64 << (self.byte() & 63)).wrapping_sub(1),
            _ => 0,
        }
    }
}

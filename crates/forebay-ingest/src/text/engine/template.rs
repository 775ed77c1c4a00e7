//! The special tokens around one text or a pair, learned from the post-processor once.
//!
//! Post-processors put the same tokens around whatever they get, so one run over a stand-in tells where they go. Later
//! rows are then written piece by piece, without the crate's own copies.

use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

/// Stand-ins for the first and the second text: ids that no vocabulary has.
const FIRST: u32 = u32::MAX;
const SECOND: u32 = u32::MAX - 1;

/// What a row is made of, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// A token of the tokenizer's own.
    Special { id: u32, type_id: u32 },
    /// The tokens of the first text.
    First { type_id: u32 },
    /// The tokens of the second text.
    Second { type_id: u32 },
}

/// The pieces of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) pieces: Vec<Piece>,
    /// Tokens that truncation leaves room for.
    pub(super) added: usize,
}

/// The templates of a tokenizer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Templates {
    /// By `[pair][with special tokens]`.
    all: [[Template; 2]; 2],
}

impl Templates {
    /// Learns them from `inner`, whose truncation and padding are off.
    pub(crate) fn learn(inner: &Tokenizer) -> Result<Self, String> {
        let mut all: [[Template; 2]; 2] = Default::default();
        for (pair, of_pair) in all.iter_mut().enumerate() {
            for (special, template) in of_pair.iter_mut().enumerate() {
                *template = learn(inner, pair == 1, special == 1)?;
            }
        }
        Ok(Self { all })
    }

    pub(super) fn get(&self, pair: bool, special: bool) -> &Template {
        &self.all[usize::from(pair)][usize::from(special)]
    }

    /// Special tokens that every row has.
    pub(crate) fn added(&self, pair: bool, special: bool) -> usize {
        self.get(pair, special).added
    }
}

fn learn(inner: &Tokenizer, pair: bool, special: bool) -> Result<Template, String> {
    let stand_in = |id, type_id| Encoding::from_tokens(vec![Token::new(id, "x".into(), (0, 1))], type_id);
    let second = pair.then(|| stand_in(SECOND, 1));
    let row = inner.post_process(stand_in(FIRST, 0), second, special).map_err(|e| e.to_string())?;
    let pieces = row.get_ids().iter().zip(row.get_type_ids()).map(|(&id, &type_id)| match id {
        FIRST => Piece::First { type_id },
        SECOND => Piece::Second { type_id },
        _ => Piece::Special { id, type_id },
    });
    let added = if special { inner.get_post_processor().map_or(0, |p| p.added_tokens(pair)) } else { 0 };
    Ok(Template { pieces: pieces.collect(), added })
}

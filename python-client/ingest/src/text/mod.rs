//! Tokenizers for Python: the conversions of arguments and results, no logic.

mod batch;
mod options;
mod stream;
mod texts;
mod tokenizer;
mod tokens;

pub(crate) use batch::PyBatch;
pub(crate) use stream::PyDecodeStream;
pub(crate) use tokenizer::PyTokenizer;
pub(crate) use tokens::PyTokens;

//! What tokenizing alone takes, without Python. `benches/ingest` asks for it.
//!
//! ```text
//! encode_loop TOKENIZER FILE bare BATCH       encode_fast of the tokenizers crate on each line of all whole batches
//! encode_loop TOKENIZER FILE pool THREADS     all lines in one call of Tokenizer::encode, on so many threads
//! ```
//!
//! Each line on standard input runs it once and prints `{"tokens": N}`.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;

use forebay_ingest::{Pool, Text, Tokenizer, TokenizerOptions};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, file, how, number] = arguments.as_slice() else {
        return Err("expected TOKENIZER FILE bare BATCH, or TOKENIZER FILE pool THREADS".into());
    };
    let (tokenizer, number) = (Path::new(tokenizer), number.parse()?);
    let content = std::fs::read_to_string(file)?;
    let lines: Vec<&str> = content.lines().collect();
    match how.as_str() {
        "bare" => bare(tokenizer, &lines[..lines.len() / number * number]),
        "pool" => pool(tokenizer, &lines, number),
        other => Err(format!("{other} is no way to tokenize, expected bare or pool").into()),
    }
}

fn bare(tokenizer: &Path, lines: &[&str]) -> Outcome<()> {
    let mut tokenizer = tokenizers::Tokenizer::from_file(tokenizer).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    whenever_asked(|| {
        let mut tokens = 0;
        for &line in lines {
            tokens += tokenizer.encode_fast(line, true).map_err(|error| error.to_string())?.get_ids().len();
        }
        Ok(tokens)
    })
}

fn pool(tokenizer: &Path, lines: &[&str], threads: usize) -> Outcome<()> {
    let tokenizer = Tokenizer::from_file(tokenizer, &TokenizerOptions::default())?;
    let pool = Pool::new(threads)?;
    let texts: Vec<Text<'_>> = lines.iter().map(|line| Text::Single(line)).collect();
    whenever_asked(|| Ok(tokenizer.encode(&texts, tokenizer.rows(), Some(&pool))?.complete()?.token_count()))
}

fn whenever_asked(mut once: impl FnMut() -> Outcome<usize>) -> Outcome<()> {
    for asked in stdin().lock().lines() {
        asked?;
        writeln!(stdout(), "{{\"tokens\": {}}}", once()?)?;
    }
    Ok(())
}

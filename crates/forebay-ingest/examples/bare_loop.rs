//! What the `tokenizers` crate alone takes: `encode_fast` on each line, nothing kept. `benches/ingest` asks for it.
//!
//! ```text
//! cargo run --release -p forebay-ingest --example bare_loop -- TOKENIZER FILE BATCH
//! ```
//!
//! Each line on standard input runs once over all whole batches of BATCH lines and prints `{"tokens": N}`.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};

use tokenizers::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, file, batch] = arguments.as_slice() else {
        return Err("expected TOKENIZER FILE BATCH".into());
    };
    let mut tokenizer = Tokenizer::from_file(tokenizer).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    let content = std::fs::read_to_string(file)?;
    let lines: Vec<&str> = content.lines().collect();
    let batch: usize = batch.parse()?;
    let whole = lines.len() / batch * batch;
    for asked in stdin().lock().lines() {
        asked?;
        let mut tokens = 0;
        for line in &lines[..whole] {
            tokens += tokenizer.encode_fast(*line, true).map_err(|error| error.to_string())?.get_ids().len();
        }
        writeln!(stdout(), "{{\"tokens\": {tokens}}}")?;
    }
    Ok(())
}

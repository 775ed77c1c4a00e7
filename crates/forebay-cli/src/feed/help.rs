//! What `forebay feed --help` says around the options.

pub(super) const LONG_ABOUT: &str = "\
Prepares texts, images or lines of JSON on all cores and publishes them, batch by batch, in a ring of shared memory.

A batch becomes one message, one row an item, its tensors written in place into the ring:

  --text (default): every line is one row; short rows are filled up with the tokenizer's padding id
    input_ids       int64 [rows, columns]   token ids
    attention_mask  int64 [rows, columns]   1 for a token, 0 for padding

  --images: every image of the files, folders and tar shards (WebDataset) is one row
    pixel_values    [rows, 3, height, width]      as the processor's configuration says
    pixel_mask      int64 [rows, height, width]   1 for the image, 0 for padding; if the configuration pads
    labels          int64 [rows]                  with --labels
    keys            uint8 [rows, 256]             with --keys

  --jsonl: every line is one row of the tensors of the schema; a sparse one NAME becomes NAME.indptr, NAME.indices and
  NAME.values, as compressed sparse rows are written

The message's correlation id is the number of its first row over the whole run, from 0.

Started again after it was killed or stopped, with the same files and options, it goes on after the last published item: \
nothing is sent twice, nothing is left out (posix backing), also shuffled and with --ordered false; but that of two \
batches larger than a slot, killed between their parts, rows may come twice then. --position FILE is for \
rings that do not stay: memfd, a reboot. --fresh starts over.

SIGINT and SIGTERM end it: it stops reading, waits until everything published was received, and closes the ring. A \
second signal ends it at once.";

pub(super) const AFTER_HELP: &str = "\
Examples:
  forebay feed --tokenizer tokenizer.json corpus.txt
  forebay feed --tokenizer models/minilm --field text --max-length 128 a.jsonl b.jsonl
  zcat corpus.gz | forebay feed --tokenizer tokenizer.json -
  forebay feed --tokenizer tokenizer.json --kind broadcast --wait-for 4 --repeat forever corpus.txt
  forebay feed --images --processor models/clip --labels --on-error skip --repeat forever --shuffle 1 train-*.tar
  forebay feed --jsonl --schema features.toml --batch 1024 events.jsonl

Sizes are bytes or carry KiB, MiB, GiB. Times are seconds or carry ms, s, m, h.";

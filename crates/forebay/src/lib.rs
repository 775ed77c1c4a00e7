//! Zero-copy tensors from a Rust process to a Python or Rust process, through shared memory.

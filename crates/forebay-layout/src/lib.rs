//! The bytes of a forebay ring that both sides agree on: offsets, dtype codes, versions and checks.

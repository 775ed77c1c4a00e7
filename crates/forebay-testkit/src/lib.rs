//! Unpublished: actors, crash points, watchdogs and the conformance suite of forebay.

//! The ring protocol of forebay on borrowed words: slot words, grants, cursors, recovery. Never makes a system call.

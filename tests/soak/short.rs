//! The short form of the kill soak: native victims only, everything audited as exactly as in the long one, and every state
//! died in.

use std::process::Command;

#[test]
fn twenty_seconds_of_kills_lose_tear_rob_and_leak_nothing() {
    let mut soak = Command::new(env!("CARGO_BIN_EXE_forebay-soak"));
    let output = soak.args(["--seconds", "20", "--least", "1"]).output().expect("the rig starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
}

//! The short form of `make crash`: the same program, unoptimized, for a few thousand crash points. See `main.rs` beside.

use std::process::Command;

/// Points that are enough for a test; fewer if the machine is slow, see below.
const POINTS: &str = "20000";
/// No further scenario is begun after this many seconds.
const SECONDS: &str = "30";

#[test]
fn recovery_is_exact_after_a_crash_at_any_instruction() {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        // The program says so by itself; there is nothing to run.
        return;
    }
    let run = Command::new(env!("CARGO_BIN_EXE_forebay-crash"))
        .args(["--points", POINTS, "--seconds", SECONDS, "--seed", "1"])
        .output()
        .expect("the program of this package");
    let (said, complaints) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    println!("{said}");
    assert!(run.status.success(), "{said}\n{complaints}");
    // One scenario alone has hundreds of points: with fewer the rig has looked at nothing.
    let points = said.split(" crash points").next().and_then(|text| text.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(points.is_some_and(|points| points >= 500), "too few points: {points:?}\n{said}");
}

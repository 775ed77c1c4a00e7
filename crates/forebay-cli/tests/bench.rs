//! `forebay bench` between two real processes: it answers, whatever the figures are.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{path::Path, process::Command};

use serde_json::Value;

fn bench(arguments: &[&str], folder: &Path) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    // No interpreter: Python's half has its own tests.
    let output = command.arg("bench").args(arguments).env("PATH", "").current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_figure_comes_with_its_floor_as_json_and_as_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "--size",
        "64,4KiB",
        "--wait",
        "spin,block",
        "--write",
        "copy",
        "--time",
        "20ms",
        "--json",
        "--plot",
        "out.svg",
    ];
    let (good, out, err) = bench(&arguments, folder.path());
    assert!(good, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["latencies"].as_array().unwrap().len(), 4, "{out}");
    for row in report["latencies"].as_array().unwrap() {
        let times = &row["one_way"];
        assert!(times["count"].as_u64().unwrap() > 0, "{row}");
        let at = |name: &str| times[name].as_u64().unwrap();
        assert!(at("p50") > 0 && at("p50") <= at("p99") && at("p99") <= at("p999") && at("p999") <= at("max"), "{row}");
        assert!(row["floor_ns"].as_f64().unwrap() > 0.0 && row["ratio"].as_f64().unwrap() > 0.0, "{row}");
    }
    for row in report["rates"].as_array().unwrap() {
        assert!(row["per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
    for floor in ["cache_line", "futex"] {
        assert!(report["floors"][floor]["p50"].as_u64().unwrap() > 0);
    }
    assert_eq!(report["missing"].as_array().unwrap().len(), 1, "Python alone is missing: {}", report["missing"]);
    let picture = std::fs::read_to_string(folder.path().join("out.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
}

#[test]
fn several_consumers_of_both_kinds_see_what_they_should() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["--size", "64", "--kind", "queue,broadcast", "--consumers", "2", "--read", "all", "--time", "20ms"];
    let (good, out, err) = bench(&arguments, folder.path());
    assert!(good, "{err}");
    assert_eq!(out.matches("Rust → Rust").count(), 4, "{out}");
    assert!(!out.contains("arrived"), "{out}");
}

#[test]
fn what_it_cannot_do_it_says() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (vec!["--size", "many"], "expected bytes"),
        (vec!["--direction", "up"], "expected native"),
        (vec!["--python", "/no/such/python"], "cannot run /no/such/python"),
        (vec!["--direction", "torch"], "no interpreter that imports forebay"),
    ] {
        let (good, _, err) = bench(&arguments, folder.path());
        assert!(!good && err.contains(says), "{arguments:?}: {err}");
    }
}

//! The log of a process: this test runs itself once more as that process, and reads its standard error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{env, process::Command};

use forebay_serve::{
    config::{LogConfig, LogFormat},
    logs,
};
use serde_json::Value;

const FORMAT: &str = "FOREBAY_TEST_LOG_FORMAT";

/// What the second process does; in the first one, nothing.
#[test]
fn the_other_process() {
    let Ok(format) = env::var(FORMAT) else { return };
    let format = if format == "json" { LogFormat::Json } else { LogFormat::Text };
    let config = LogConfig { format, level: "warn,logs=debug".to_owned(), ..LogConfig::default() };
    let _guard = logs::init(&config).unwrap();
    tracing::info!(id = "me", status = 200, ms = 0.25, "request");
    tracing::info!(target: "elsewhere", "not wanted");
    assert!(logs::init(&config).is_err(), "there is one already");
}

fn lines(format: &str) -> Vec<String> {
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command.args(["--exact", "the_other_process"]).env(FORMAT, format).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_line_of_json_is_an_object_with_the_request_s_id() {
    let [line] = &lines("json")[..] else { panic!("one line") };
    let object: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&object["id"], &object["status"], &object["level"]), (&"me".into(), &200.into(), &"INFO".into()));
    assert_eq!(object["message"], "request");
    assert!(object["timestamp"].is_string());
}

#[test]
fn a_line_of_text_has_the_same_and_no_colours_in_a_file() {
    let [line] = &lines("text")[..] else { panic!("one line") };
    assert!(line.contains(" INFO request id=\"me\" status=200 ms=0.25"), "{line}");
    assert!(!line.contains('\x1b'));
}

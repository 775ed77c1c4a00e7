//! What a configuration may say, and what is said of one that cannot be used.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use forebay_serve::{
    Config,
    config::{ConfigError, InputConfig, KEYS, Origin},
};

const TENSORS: &str = r#"
[model]
name = "adder"
[model.input]
type = "tensors"
tensors = [{ name = "x", dtype = "float32", shape = [3] }]
[worker]
command = ["python", "worker.py"]
"#;

fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let (_dir, path) = written(text);
    let own = |all: &[(&str, &str)]| all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    Config::load(Some(&path), own(env), &own(flags))
}

fn refused(text: &str) -> String {
    let whole = load(text, &[], &[]).unwrap_err().to_string();
    let (_, said) = whole.split_once("model.toml").expect("the file is named");
    said.to_owned()
}

#[test]
fn the_file_then_the_environment_then_flags_and_the_last_one_counts() {
    let text =
        format!("server.listen = \"127.0.0.1:1\"\n[limits]\nin_flight = 1\nitems = 3\nbody_bytes = 9\n{TENSORS}");
    let env = [("FOREBAY_SERVE_LIMITS_IN_FLIGHT", "2"), ("FOREBAY_SERVE_LIMITS_ITEMS", "4"), ("FOREBAY_SERVICE", "x")];
    let config = load(&text, &env, &[("limits.in_flight", "3"), ("worker.env.A", "b")]).unwrap();
    assert_eq!((config.limits.in_flight, config.limits.items, config.limits.body_bytes), (3, 4, 9));
    assert_eq!(config.server.listen, "127.0.0.1:1");
    assert_eq!(config.worker.env["A"], "b");
    assert_eq!(config.limits.request_timeout_s, 30.0);
}

#[test]
fn lists_come_from_the_environment_as_words_or_as_toml() {
    let env = [("FOREBAY_SERVE_WORKER_COMMAND", "python3 -u other.py"), ("FOREBAY_SERVE_BATCH_BUCKETS", "16, 64")];
    let config = load(TENSORS, &env, &[]).unwrap();
    assert_eq!(config.worker.command, ["python3", "-u", "other.py"]);
    assert_eq!(config.batch.buckets, [16, 64]);
    let config = load(TENSORS, &[("FOREBAY_SERVE_WORKER_COMMAND", r#"["a b", "c"]"#)], &[]).unwrap();
    assert_eq!(config.worker.command, ["a b", "c"]);
    let tensors = ("model.input.tensors", r#"[{ name = "y", dtype = "int64" }]"#);
    let config = load(TENSORS, &[], &[tensors]).unwrap();
    assert!(matches!(config.model.input, InputConfig::Tensors { tensors } if tensors[0].name == "y"));
}

#[test]
fn without_a_file_the_flags_can_say_everything() {
    let flags = [
        ("model.name", "m"),
        ("model.input.type", "tensors"),
        ("model.input.tensors", r#"[{ name = "y", dtype = "int64" }]"#),
        ("worker.command", "python worker.py"),
    ];
    let flags = flags.map(|(a, b)| (a.to_owned(), b.to_owned()));
    let config = Config::load(None, [], &flags).unwrap();
    assert_eq!(config.worker.cwd.as_deref(), Some(std::env::current_dir().unwrap().as_path()));
}

#[test]
fn paths_are_relative_to_the_file_or_from_elsewhere_to_the_current_folder() {
    let text = "[model]\nname = \"m\"\n[model.input]\ntype = \"text\"\ntokenizer = \"t/tokenizer.json\"\n[worker]\ncommand = [\"w\"]\n";
    let (dir, path) = written(text);
    fs::create_dir(dir.path().join("t")).unwrap();
    fs::write(dir.path().join("t/tokenizer.json"), "{}").unwrap();
    let config = Config::load(Some(&path), [], &[]).unwrap();
    let InputConfig::Text(input) = config.model.input else { panic!("text") };
    assert_eq!(input.tokenizer, dir.path().join("t/tokenizer.json"));
    assert_eq!(config.worker.cwd.as_deref(), Some(dir.path()));
    let flags = [("model.input.tokenizer".to_owned(), "nowhere.json".to_owned())];
    let said = Config::load(Some(&path), [], &flags).unwrap_err().to_string();
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        said,
        format!(
            "command line: model.input.tokenizer = {}: expected a file that is there",
            here.join("nowhere.json").display()
        )
    );
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    assert_eq!(
        refused(&format!("[limits]\nin_fligth = 3\n{TENSORS}")),
        ": unknown key limits.in_fligth; did you mean limits.in_flight?"
    );
    assert_eq!(
        refused(&format!("[server]\nbody_bytes = 3\n{TENSORS}")),
        ": unknown key server.body_bytes; did you mean limits.body_bytes?"
    );
    assert_eq!(refused(&format!("[limitz]\nin_flight = 3\n{TENSORS}")), ": unknown key limitz; did you mean limits?");
    assert_eq!(refused(&format!("qwertyuiop = 3\n{TENSORS}")), ": unknown key qwertyuiop");
    let text = TENSORS.replace("shape", "shap");
    assert_eq!(refused(&text), ": unknown key model.input.tensors[0].shap; did you mean shape?");
    let said = load(TENSORS, &[("FOREBAY_SERVE_SERVER_LISTN", "x")], &[]).unwrap_err().to_string();
    assert!(
        said.ends_with("unknown key FOREBAY_SERVE_SERVER_LISTN; did you mean FOREBAY_SERVE_SERVER_LISTEN?"),
        "{said}"
    );
    let said = load(TENSORS, &[], &[("server.listn", "x")]).unwrap_err().to_string();
    assert_eq!(said, "command line: unknown key server.listn; did you mean server.listen?");
}

#[test]
fn a_value_that_cannot_be_is_named_with_what_could() {
    for (line, said) in [
        ("limits.in_flight = \"many\"", ": limits.in_flight = \"many\": expected a whole number from 1 to 1048576"),
        ("limits.in_flight = 0", ": limits.in_flight = 0: expected a whole number from 1 to 1048576"),
        ("server.drain_s = nan", ": server.drain_s = nan: expected a number from 0 to 86400"),
        ("log.format = \"xml\"", ": log.format = \"xml\": expected one of text, json"),
        (
            "log.level = \"loud=very\"",
            ": log.level = \"loud=very\": expected error, warn, info, debug, trace, or such as info,forebay_serve::engine=debug",
        ),
        (
            "server.listen = \"8080\"",
            ": server.listen = \"8080\": expected an address and a port, such as 127.0.0.1:8080 or [::1]:0",
        ),
        (
            "trace.otlp = \"https://x\"",
            ": trace.otlp = \"https://x\": expected http://host:port of an OTLP collector over HTTP",
        ),
        ("batch.buckets = [3, 2]", ": batch.buckets = [3, 2]: expected lengths that grow"),
        ("limits.burst = 3", ": limits.burst = 3: expected limits.requests_per_s beside it"),
        ("auth.keys = [\"a b\"]", ": auth.keys = key 0: expected keys of printable ASCII without spaces"),
        ("limits = 3", ": limits = 3: expected a table: [limits]"),
    ] {
        assert_eq!(refused(&format!("{line}\n{TENSORS}")), said);
    }
    for (from, to, said) in [
        ("\"adder\"", "\"Adder\"", ": model.name = \"Adder\": expected [a-z0-9][a-z0-9._-]*, at most 40 characters"),
        ("name = \"adder\"", "", ": model.name is missing: expected a text"),
        ("[3] }", "[-1] }", ": model.input.tensors[0].max_dims = []: expected 1, one for each -1 in shape"),
        (
            "[3] }",
            "[0] }",
            ": model.input.tensors[0].shape = [0]: expected a list of at most 7 dims, each -1 or at least 1",
        ),
        ("\"tensors\"", "\"image\"", ": model.input.processor is missing: expected a path"),
        ("[model.input]", "[model.input]\nschema = \"s\"", "model.input.schema = "),
        (
            "[\"python\", \"worker.py\"]",
            "[]",
            ": worker.command = []: expected a program and its arguments, such as [\"python\", \"worker.py\"]",
        ),
    ] {
        let found = refused(&TENSORS.replace(from, to));
        assert!(found == said || found.contains(said) && said.ends_with("= "), "{found}");
    }
    let bad = load(TENSORS, &[("FOREBAY_SERVE_WORKER_COUNT", "two")], &[]).unwrap_err().to_string();
    assert_eq!(
        bad,
        "environment variable FOREBAY_SERVE_WORKER_COUNT: worker.count = \"two\": expected a whole number from 1 to 1024"
    );
}

#[test]
fn a_dtype_is_answered_with_all_there_are() {
    let said = refused(&TENSORS.replace("float32", "float"));
    assert!(said.starts_with(": model.input.tensors[0].dtype = \"float\": expected one of bool, uint8"), "{said}");
}

#[test]
fn parameters_have_a_default_that_they_can_have() {
    let with = |parameter: &str| format!("{}[[model.parameters]]\n{parameter}\n", TENSORS);
    let good = "name = \"temperature\"\ndtype = \"float32\"\ndefault = 1\nmin = 0\nmax = 2.5";
    assert_eq!(load(&with(good), &[], &[]).unwrap().model.parameters[0].max, Some(2.5));
    assert!(
        refused(&with(&good.replace("default = 1", "default = 3"))).contains("default = 3: expected from 0 to 2.5")
    );
    for dtype in ["complex64", "float16", "bfloat16"] {
        let said = refused(&with(&good.replace("float32", dtype)));
        assert!(said.contains(&format!("dtype = {dtype}: expected an integer, float32, float64 or bool")), "{said}");
    }
    assert!(refused(&with(&good.replace("temperature", "x y"))).contains("name = \"x y\""));
    assert!(refused(&with(&good.replace("default = 1\n", ""))).contains("parameters[0].default is missing"));
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let said = refused("[server]\nlisten = \n");
    assert!(said.starts_with(", line 2: not TOML: "), "{said}");
    let missing = Config::load(Some(Path::new("/nowhere/x.toml")), [], &[]).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }));
    assert!(missing.to_string().starts_with("cannot read the configuration /nowhere/x.toml: "));
}

#[test]
fn keys_come_from_a_file_too_and_are_never_shown() {
    let (dir, path) = written(TENSORS);
    fs::write(dir.path().join("keys"), "# ours\nsecret-one\n\n  secret-two \n").unwrap();
    let set =
        |file: &str| [("auth.keys".to_owned(), "secret-0".to_owned()), ("auth.keys_file".to_owned(), file.to_owned())];
    let file = dir.path().join("keys").display().to_string();
    let config = Config::load(Some(&path), [], &set(&file)).unwrap();
    assert_eq!(config.bearer_keys().unwrap(), ["secret-0", "secret-one", "secret-two"]);
    fs::write(dir.path().join("keys"), "# none\n").unwrap();
    let said = Config::load(Some(&path), [], &set(&file)).unwrap_err();
    assert!(matches!(&said, ConfigError::Value { origin: Origin::Flag, key, .. } if key == "auth.keys_file"), "{said}");
    assert!(!said.to_string().contains("secret"));
}

#[test]
fn every_key_can_be_set_and_has_a_variable_of_its_own() {
    let variables: Vec<_> = KEYS.iter().filter_map(|key| key.variable()).collect();
    let mut unique = variables.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), variables.len());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "secret").unwrap();
    let file = file.display().to_string();
    for key in KEYS.iter().filter(|key| key.variable().is_some()) {
        let value = match key.path {
            "server.listen" => "127.0.0.1:0",
            "server.grpc_listen" => continue,
            "trace.otlp" => "http://127.0.0.1:4318",
            "trace.sample" => "0.5",
            "log.format" => "json",
            "log.level" => "debug",
            "worker.on_death" => "retry",
            "worker.cwd" => "/",
            "model.parameters" | "model.outputs" => "[]",
            "limits.burst" => continue,
            path if path.starts_with("model.input.") => continue,
            path if path.ends_with("_file") => &file,
            "server.threads" | "server.cpu_threads" => "1",
            path if key.default == "true" || key.default == "false" || path.contains("pad") => "true",
            "worker.env" => "{ A = \"b\" }",
            "model.name" | "worker.command" | "auth.keys" => "word",
            _ => "3",
        };
        load(TENSORS, &[(&key.variable().unwrap(), value)], &[]).unwrap_or_else(|e| panic!("{}: {e}", key.path));
    }
}

#[test]
fn the_documentation_lists_every_key_with_its_default_and_its_variable() {
    let page = include_str!("../../../docs/serve/configuration.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for key in KEYS {
        let row = rows.iter().find(|row| row.starts_with(&format!("| `{}` |", key.path)));
        let row = row.unwrap_or_else(|| panic!("docs/serve/configuration.md is without {}", key.path));
        assert!(row.contains(key.default), "{}: the default is {}", key.path, key.default);
        if let Some(variable) = key.variable() {
            assert!(row.contains(&format!("| `{variable}` |")), "{}: the variable is {variable}", key.path);
        }
    }
    assert_eq!(rows.len(), KEYS.len(), "a row for what is no key");
}

#[test]
fn defaults_are_what_the_table_of_keys_says() {
    let config = load(TENSORS, &[], &[]).unwrap();
    let said = |path: &str| KEYS.iter().find(|key| key.path == path).unwrap().default.to_owned();
    for (path, is) in [
        ("server.listen", config.server.listen),
        ("server.threads", config.server.threads.to_string()),
        ("server.cpu_threads", config.server.cpu_threads.to_string()),
        ("server.drain_s", config.server.drain_s.to_string()),
        ("server.header_timeout_s", config.server.header_timeout_s.to_string()),
        ("server.body_timeout_s", config.server.body_timeout_s.to_string()),
        ("limits.in_flight", config.limits.in_flight.to_string()),
        ("limits.body_bytes", config.limits.body_bytes.to_string()),
        ("limits.queue_timeout_s", config.limits.queue_timeout_s.to_string()),
        ("limits.request_timeout_s", config.limits.request_timeout_s.to_string()),
        ("limits.items", config.limits.items.to_string()),
        ("log.level", config.log.level),
        ("log.requests", config.log.requests.to_string()),
        ("trace.sample", config.trace.sample.to_string()),
        ("model.version", config.model.version),
        ("model.generate", config.model.generate.to_string()),
        ("batch.max_items", config.batch.max_items.to_string()),
        ("batch.max_tokens", config.batch.max_tokens.to_string()),
        ("batch.window_ms", config.batch.window_ms.to_string()),
        ("batch.prefetch", config.batch.prefetch.to_string()),
        ("worker.count", config.worker.count.to_string()),
        ("worker.ranks", config.worker.ranks.to_string()),
        ("worker.start_timeout_s", config.worker.start_timeout_s.to_string()),
        ("worker.batch_timeout_s", config.worker.batch_timeout_s.to_string()),
        ("worker.grace_s", config.worker.grace_s.to_string()),
        ("worker.backoff_s", config.worker.backoff_s.to_string()),
        ("worker.crash_loop", config.worker.crash_loop.to_string()),
        ("worker.answer_slots", config.worker.answer_slots.to_string()),
        ("worker.answer_slot_bytes", config.worker.answer_slot_bytes.to_string()),
    ] {
        assert_eq!(said(path), is, "{path}");
    }
}

//! `ls`, `clean` and `doctor`: they see what is there and touch nothing that lives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{Ended, Place, finish, receive, receive_all, watchdog};
use serde_json::Value;

const ARGS: [&str; 5] = ["--batch", "4", "--slots", "4", "a.txt"];

fn run(place: &Place, command: &str, args: &[&str]) -> Ended {
    let mut command = place.command(command);
    command.args(args);
    finish(command)
}

fn ls(place: &Place) -> Value {
    let ended = run(place, "ls", &["--json", "--no-rates"]);
    ended.assert_code(0).json()
}

#[test]
fn ls_shows_a_living_ring_and_who_holds_what() {
    for (kind, backing) in [("queue", "posix"), ("queue", "memfd"), ("broadcast", "posix"), ("broadcast", "memfd")] {
        let (place, _dog) = (Place::new(), watchdog());
        place.numbers("a.txt", 100);
        let args = [&["--kind", kind, "--backing", backing, "--label", "the feeder"], &ARGS[..]].concat();
        let mut feed = place.feed(args);
        let mut consumer = place.consumer("tokens");
        let held = consumer.recv_timeout(common::PATIENCE).unwrap();

        let rings = ls(&place);
        let ring = &rings[0];
        assert_eq!(rings.as_array().unwrap().len(), 1);
        assert_eq!((&ring["name"], &ring["kind"], &ring["backing"]), (&"tokens".into(), &kind.into(), &backing.into()));
        let producer = &ring["producer"];
        assert_eq!((&producer["alive"], &producer["pid"]), (&true.into(), &feed.pid().into()), "{ring}");
        assert_eq!(producer["label"], "the feeder");
        assert!(ring["schema"].as_str().unwrap().starts_with("tokens 1.0"));
        let member = &ring["consumers"][0];
        assert_eq!((&member["alive"], &member["state"]), (&true.into(), &"active".into()), "{ring}");
        assert_eq!((&member["label"], &member["pid"]), (&"test consumer".into(), &std::process::id().into()));
        assert_eq!(member["received"], 1);
        let slot = &member["held"][0];
        assert_eq!((&slot["slot"], &slot["sequence"]), (&held.slot().into(), &held.sequence().into()), "{ring}");
        assert_eq!(ring["slots"]["claimed"], 1, "{ring}");

        let text = run(&place, "ls", &["tokens"]);
        for part in ["tokens", kind, "alive, pid", "the feeder", "test consumer", "message 1 in slot", "MSG/S"] {
            assert!(text.assert_code(0).out.contains(part), "{part:?} is not in:\n{}", text.out);
        }
        drop(held);
        receive_all(&mut consumer);
        feed.end().assert_code(0);
        assert_eq!(ls(&place), Value::Array(Vec::new()));
    }
}

#[test]
fn ls_counts_what_waits_and_what_was_dropped() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let mut feed = place.feed([&["--when-full", "drop-oldest"], &ARGS[..]].concat());
    feed.wait_for("everything is published");
    let ring = &ls(&place)[0];
    assert_eq!((&ring["published"], &ring["depth"], &ring["dropped"]), (&10.into(), &4.into(), &6.into()), "{ring}");
    assert_eq!(ring["slots"]["full"], 4);
    receive_all(&mut place.consumer("tokens"));
    feed.end().assert_code(0);
}

#[test]
fn ls_names_what_is_there_when_a_ring_is_not() {
    let place = Place::new();
    run(&place, "ls", &["nothing"]).assert_code(1).assert_says(&["no ring \"nothing\"", "FOREBAY_DIR"]);
    assert_eq!(run(&place, "ls", &[]).assert_code(0).out, "no rings");
}

#[test]
fn ls_and_clean_work_on_a_ring_whose_producer_is_stopped() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    for (backing, shows) in [("posix", "the stopped one"), ("memfd", "connected but silent")] {
        let mut feed = place.feed([&["--label", "the stopped one", "--backing", backing], &ARGS[..]].concat());
        let mut consumer = place.consumer("tokens");
        feed.signal("STOP");
        let listed = run(&place, "ls", &["--no-rates"]);
        assert!(listed.assert_code(0).out.contains(shows), "{}", listed.out);
        let kept = run(&place, "clean", &[]);
        assert!(kept.assert_code(0).out.contains("kept, its producer lives"), "{}", kept.out);
        feed.signal("CONT");
        assert_eq!(receive_all(&mut consumer).len(), 10);
        feed.end().assert_code(0);
    }
}

#[test]
fn clean_removes_what_the_dead_left_and_says_so() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    for backing in ["posix", "memfd"] {
        let feed = place.feed([&["--backing", backing], &ARGS[..]].concat());
        let mut consumer = place.consumer("tokens");
        receive(&mut consumer);
        drop(consumer);
        let pid = feed.pid();
        feed.kill();
        let text = run(&place, "ls", &["--no-rates"]);
        assert!(text.assert_code(0).out.contains("dead"), "{}", text.out);
        // A bind that was interrupted leaves this.
        fs::write(place.dir().join(".tokens.sock.0123abcd.tmp"), "").unwrap();

        let dry = run(&place, "clean", &["--dry-run"]);
        assert!(dry.assert_code(0).out.contains("would remove"), "{}", dry.out);
        assert!(place.dir().join("tokens.lock").exists());

        let done = run(&place, "clean", &[]);
        done.assert_code(0);
        for part in ["removed", "tokens.sock", "tokens.lock", ".tmp", "its producer is gone", &format!("pid {pid}")] {
            assert!(done.out.contains(part), "{part:?} is not in:\n{}", done.out);
        }
        assert_eq!(done.out.contains("/dev/shm/forebay."), backing == "posix", "{}", done.out);
        place.assert_clean();
        assert!(run(&place, "clean", &[]).assert_code(0).out.contains("nothing to remove"));
    }
}

#[test]
fn clean_keeps_a_ring_that_a_consumer_still_reads() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let held = consumer.recv_timeout(common::PATIENCE).unwrap();
    feed.kill();
    let kept = run(&place, "clean", &["--json"]);
    let kept = kept.assert_code(0).json();
    assert_eq!(kept["removed"], Value::Array(Vec::new()));
    assert!(kept["kept"][0]["why"].as_str().unwrap().contains("1 living consumer"), "{kept}");
    drop(held);
    drop(consumer);
    assert!(run(&place, "clean", &[]).assert_code(0).out.contains("removed"));
    place.assert_clean();
}

#[test]
fn a_ring_that_is_garbage_is_reported_and_cleaned() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let feed = place.feed(ARGS);
    place.consumer("tokens");
    feed.kill();
    let object = |part: &str| {
        let names = fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.path());
        let rings = forebay::inspect::would_clean(Some(&place.dir())).unwrap().removed;
        let wanted = rings.into_iter().find(|item| item.what.ends_with(part)).unwrap().what;
        names.into_iter().find(|path| path.to_str() == Some(&wanted)).unwrap()
    };
    let ring = object(".ring");
    let good = fs::read(&ring).unwrap();
    let broken: [(Vec<u8>, &str); 4] = [
        (vec![0xff; good.len()], "magic"),
        (good[..100].to_vec(), "ring object"),
        (good[..4096].to_vec(), "ring_bytes"),
        ([&good[..64], &[0xee; 8], &good[72..]].concat(), "kind"),
    ];
    for (bytes, says) in broken {
        fs::write(&ring, bytes).unwrap();
        let listed = ls(&place);
        assert!(listed[0]["error"].as_str().unwrap().contains(says), "{listed}");
        assert_eq!(listed[0]["producer"]["alive"], false);
        run(&place, "ls", &[]).assert_code(0);
    }
    fs::write(&ring, &good).unwrap();
    let pool = object(".pool");
    fs::write(&pool, vec![0; 10]).unwrap();
    assert!(ls(&place)[0]["error"].as_str().unwrap().contains("Pool"));
    let length = fs::metadata(&pool).unwrap().len();
    assert_eq!(length, 10, "ls changes nothing");
    assert!(run(&place, "clean", &[]).assert_code(0).out.contains("removed"));
    place.assert_clean();
}

#[test]
fn watch_looks_again_until_a_signal_comes() {
    let (place, _dog) = (Place::new(), watchdog());
    let mut command = place.command("ls");
    command.args(["--watch", "10ms", "--json"]);
    let mut watch = common::Running::start(command);
    watch.wait_for_output("[]");
    watch.signal("INT");
    let ended = watch.end();
    assert!(ended.assert_code(0).out.lines().all(|line| line == "[]"));
}

#[test]
fn doctor_checks_everything_and_says_how_to_mend_it() {
    let place = Place::new();
    let ended = run(&place, "doctor", &["--json"]);
    let checks = ended.json();
    let names: Vec<&str> = checks.as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    for name in
        ["kernel", "/dev/shm", "memory", "memory lock", "memfd seals", "futex", "membarrier", "huge pages", "RemoveIPC"]
    {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let problems = checks.as_array().unwrap().iter().filter(|check| check["severity"] == "problem").count();
    assert_eq!(ended.status.code(), Some(i32::from(problems > 0)));
    assert!(run(&place, "doctor", &[]).out.contains("membarrier"));

    let mut command = place.command("doctor");
    command.env("FOREBAY_NO_MEMBARRIER", "1").env("FOREBAY_DIR", "/proc/nothing");
    let ended = finish(command);
    ended.assert_code(1).assert_says(&["1 problem"]);
    assert!(ended.out.contains("FOREBAY_NO_MEMBARRIER") && ended.out.contains("/proc/nothing"), "{}", ended.out);
}

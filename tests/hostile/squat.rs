//! Somebody was there before: another user's files, sockets and folders, links, pipes, at every name that forebay uses.
//! What needs two users is tested as root, and says so otherwise.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        net::UnixListener,
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use forebay::{Kind, Producer};
use forebay_layout::control::{Control, Intent};
use forebay_os::{Conn, Dir, Listener, Trust};
use forebay_testkit::{Place, WATCHDOG, ledger::publish};

use crate::{
    control::{answer, bytes, hello},
    header::attached,
    rig::{
        Book,
        Expect::{Either, Refused},
        Outcome,
    },
    stage::{attach, here, next},
};

/// nobody: somebody else than root.
const OTHER: u32 = 65534;

fn is_root() -> bool {
    let root = forebay_os::process::uid() == 0;
    if !root {
        eprintln!("skipped in part: this needs a second user (run it as root)");
    }
    root
}

/// What can be at a name.
const SQUATTERS: [&str; 6] =
    ["a folder", "a link to a file", "a link to nothing", "a pipe", "a socket", "a file that others may write"];

fn squat(what: &str, at: &Path, precious: &Path) {
    match what {
        "a folder" => fs::create_dir(at).unwrap(),
        "a link to a file" => symlink(precious, at).unwrap(),
        "a link to nothing" => symlink("/nonexistent/forebay", at).unwrap(),
        "a pipe" => assert!(Command::new("mkfifo").arg(at).status().unwrap().success()),
        "a socket" => drop(UnixListener::bind(at).unwrap()),
        "a file that others may write" => {
            fs::write(at, [0; 8192]).unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(0o666)).unwrap();
        }
        _ => {
            fs::write(at, [0; 8192]).unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(0o600)).unwrap();
            chown(at, Some(OTHER), None).unwrap();
        }
    }
}

fn remove(at: &Path) {
    let _ = fs::remove_file(at).or_else(|_| fs::remove_dir(at));
}

fn squatters() -> Vec<&'static str> {
    let mut all = SQUATTERS.to_vec();
    if is_root() {
        all.push("another user's file");
    }
    all
}

#[test]
fn what_somebody_put_at_the_name_of_an_object_or_lock_is_not_used_and_not_followed() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let precious = place.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let members = if kind == Kind::Queue { "pool" } else { "m0" };
        let mut book = Book::new(&format!("squatters on a {kind}'s names"));
        let named = Refused(NAMED);
        for what in squatters() {
            for part in ["ring", "data", members, "lock"] {
                let at = match part {
                    "lock" => place.path().join("squat.lock"),
                    part => place.object("squat", part),
                };
                squat(what, &at, &precious);
                // A part of no ring is what a producer that died left, and its own user's to remove; a lock file that
                // leads elsewhere, or a ring's object, is a reason to stop.
                let expect = if part == "ring" || part == "lock" { named } else { Either(NAMED) };
                book.lie(part, what, expect, || match here(&place, "squat").kind(kind).create() {
                    Ok(mut producer) => {
                        let works = publish(&mut producer, 8).is_ok();
                        producer.discard();
                        if works { Outcome::Harmless } else { Outcome::Damage("it does not work".to_owned()) }
                    }
                    Err(e) => Outcome::Refused(e.to_string()),
                });
                remove(&at);
                place.sweep();
                let _ = fs::remove_file(place.path().join("squat.lock"));
            }
        }
        book.close();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }
}

const NAMED: &[&str] =
    &["plain file", "symbolic link", "belongs to uid", "others than the owner", "directory", "exist", "No such device"];

#[test]
fn what_somebody_put_at_the_name_of_the_socket_is_replaced_or_told_and_never_waited_for() {
    let place = Place::new();
    let precious = place.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let at = place.path().join("squat.sock");
    let mut book = Book::new("squatters on a socket's name");
    for what in squatters() {
        squat(what, &at, &precious);
        book.lie("socket", &format!("{what}, to a consumer"), Either(NAMED), || {
            match attach(&place, "squat").timeout(Some(Duration::ZERO)).attach() {
                Ok(_) => Outcome::Damage("it attached".to_owned()),
                Err(e) => attached(&e),
            }
        });
        let expect = if what == "a folder" { Refused(NAMED) } else { Either(NAMED) };
        book.lie("socket", &format!("{what}, to a producer"), expect, || match here(&place, "squat").create() {
            Ok(mut producer) => {
                let mut reader = attach(&place, "squat").attach().unwrap();
                publish(&mut producer, 8).unwrap();
                next(&mut reader);
                producer.discard();
                Outcome::Harmless
            }
            Err(e) => Outcome::Refused(e.to_string()),
        });
        remove(&at);
        place.sweep();
    }
    book.close();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn a_folder_that_is_not_ours_alone_is_refused() {
    let place = Place::new();
    let at = place.path().join("meeting");
    let mut book = Book::new("squatters on the folder");
    let both = |book: &mut Book, what: &str, expect| {
        book.lie("folder", &format!("{what}, to a producer"), expect, || {
            match Producer::options("squat").dir(&at).create() {
                Ok(_) => Outcome::Damage("it was made there".to_owned()),
                Err(e) => Outcome::Refused(e.to_string()),
            }
        });
        book.lie("folder", &format!("{what}, to a consumer"), expect, || {
            match forebay::Consumer::options("squat").dir(&at).timeout(Some(Duration::ZERO)).attach() {
                Ok(_) => Outcome::Damage("it attached".to_owned()),
                Err(e) => attached(&e),
            }
        });
        book.lie("folder", &format!("{what}, to an observer"), expect, || match forebay::inspect::list(Some(&at)) {
            Ok(_) => Outcome::Damage("it was read".to_owned()),
            Err(e) => Outcome::Refused(e.to_string()),
        });
    };
    let elsewhere = place.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for (what, make) in [
        ("a file", (|at, _| fs::write(at, "").unwrap()) as fn(&Path, &Path)),
        ("a link to a folder", |at, elsewhere| symlink(elsewhere, at).unwrap()),
        ("a pipe", |at, _| squat("a pipe", at, at)),
    ] {
        make(&at, &elsewhere);
        both(&mut book, what, Refused(&["a directory itself"]));
        remove(&at);
    }
    for mode in [0o777, 0o770, 0o720, 0o1777, 0o702] {
        fs::create_dir(&at).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
        both(&mut book, &format!("mode {mode:o}"), Refused(&["mode is"]));
        remove(&at);
    }
    if is_root() {
        fs::create_dir(&at).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&at, Some(OTHER), None).unwrap();
        both(&mut book, "another user's", Refused(&["belongs to uid 65534"]));
        remove(&at);
    }
    book.close();
}

// === another user, for real ===

/// Not a test: what the other user's process does, as its environment says.
#[test]
#[ignore = "started by the other tests, as another user"]
#[allow(clippy::print_stdout, reason = "how it speaks to the test that started it")]
fn the_stranger() {
    let Ok(told) = std::env::var("FOREBAY_STRANGER") else { return };
    let (role, path) = told.split_once(':').unwrap();
    let trust = Trust { uids: vec![0], mode: 0o777 };
    let dir = Dir::open_trusting(Some(Path::new(path)), trust).unwrap();
    match role {
        "client" => {
            let conn = Conn::connect(&dir, "open.sock").unwrap();
            conn.send(&bytes(&hello("open", Intent::Attach).encode()), &[]).unwrap();
            match answer(&conn) {
                Ok((Control::Refuse(_, why), fds)) => println!("stranger: refused, {} descriptors: {why}", fds.len()),
                other => println!("stranger: {other:?}"),
            }
        }
        _ => {
            let _listener = Listener::bind(&dir, "open.sock").unwrap();
            println!("stranger: listens");
            // Until its stdin ends.
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        }
    }
}

/// This program again, as the other user, from a place where that one may run it.
fn stranger(role: &str, place: &Place, own: &Path) -> Command {
    let program = own.join("stranger");
    if !program.exists() {
        // Copied by another process: a file that this one writes cannot be run while a process that another test is
        // starting has its descriptor.
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
        assert!(copied.success(), "{copied}");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(own, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["--exact", "squat::the_stranger", "--ignored", "--nocapture"]);
    command.env("FOREBAY_STRANGER", format!("{role}:{}", place.path().display()));
    command.uid(OTHER).gid(OTHER).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn another_user_s_client_is_refused_even_where_it_can_reach_the_socket() {
    if !is_root() {
        return;
    }
    let (place, own) = (Place::new(), tempfile());
    let mut producer = here(&place, "open").create().unwrap();
    // Somebody opened what was closed.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.path().join("open.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let output = stranger("client", &place, own.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("refused, 0 descriptors: uid 65534 is not allowed here"), "{said}");
    crate::control::serves(&place, &mut producer).unwrap();
    producer.discard();
}

#[test]
fn another_user_s_server_is_refused_even_in_a_folder_of_ours() {
    if !is_root() {
        return;
    }
    use std::io::BufRead;
    let (place, own) = (Place::new(), tempfile());
    // It could put its socket there while the folder was open to it.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut child = stranger("server", &place, own.path()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let listens = lines.map_while(Result::ok).any(|line| line.contains("stranger: listens"));
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = attach(&place, "open").timeout(Some(WATCHDOG)).attach().unwrap_err();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(listens);
    assert!(error.to_string().contains("uid 65534"), "{error}");
}

/// A folder that is removed at the end.
fn tempfile() -> Own {
    let path = std::env::temp_dir().join(format!("forebay-stranger-{:x}", forebay_os::process::random_u128()));
    fs::create_dir(&path).unwrap();
    Own(path)
}

struct Own(std::path::PathBuf);

impl Own {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

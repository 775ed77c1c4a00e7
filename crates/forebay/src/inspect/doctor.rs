//! What the host has and allows, what that costs, and the exact way to mend it.
//!
//! Each check tries the thing itself where that is harmless, rather than reading a version number.

use std::{collections::BTreeSet, fs, path::Path};

use forebay_os::{
    Barrier, Dir, EventFd, LockFile, barrier, host,
    object::{memfd, shm},
    process,
};

use super::clean::would_clean;
use crate::rendezvous::objects;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// As it should be.
    Good,
    /// It costs a little, or matters to some.
    Note,
    /// It is likely to hurt.
    Warning,
    /// Rings do not work like this.
    Problem,
}

impl Severity {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// What it is good for, or what it costs as it is.
    pub meaning: String,
    /// What to do, if anything is to be done.
    pub fix: Option<String>,
    /// How much it matters.
    pub severity: Severity,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>, meaning: &str) -> Self {
        Self { name, found: found.into(), meaning: meaning.to_owned(), fix: None, severity: Severity::Good }
    }

    fn but(self, severity: Severity, meaning: &str, fix: impl Into<String>) -> Self {
        Self { meaning: meaning.to_owned(), fix: Some(fix.into()), severity, ..self }
    }
}

const MIB: u64 = 1 << 20;

/// Looks at everything that forebay uses of this host. `None` is the default directory.
///
/// Changes nothing, except that it creates the directory if there is none, as producers do.
#[must_use]
pub fn doctor(dir: Option<&Path>) -> Vec<Check> {
    let mut checks = vec![kernel(), directory(dir), shm_space(), memory(), memory_lock(), seals()];
    checks.extend([locks(), futexes(), fences(), huge_pages(), transparent_huge_pages(), remove_ipc()]);
    checks.extend(leftovers(dir));
    checks
}

fn bytes(bytes: u64) -> String {
    match bytes {
        b if b >= 10 << 30 => format!("{} GiB", b >> 30),
        b if b >= MIB => format!("{} MiB", b / MIB),
        b => format!("{} KiB", b >> 10),
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel() -> Check {
    let release = host::kernel_release();
    let check = Check::good("kernel", release.clone(), "has everything that rings use");
    match version(&release) {
        Some(found) if found < (5, 14) => check.but(
            Severity::Problem,
            "before 5.14 pages cannot be populated in advance, before 5.1 memfd rings cannot be sealed against writing",
            "run Linux 5.14 or newer; 5.16 or newer for broadcast rings with several consumers",
        ),
        Some(found) if found < (5, 16) => check.but(
            Severity::Note,
            "without futex_waitv the producer of a broadcast ring looks after its consumers each millisecond when it waits",
            "run Linux 5.16 or newer if broadcast rings matter to you",
        ),
        Some(_) => check,
        None => check.but(Severity::Note, "the release does not tell its version", "run Linux 5.16 or newer"),
    }
}

fn directory(dir: Option<&Path>) -> Check {
    match Dir::open(dir) {
        Ok(dir) => Check::good(
            "directory",
            dir.path().display().to_string(),
            "producers and consumers meet here; both sides need the same one (FOREBAY_DIR, --dir)",
        ),
        Err(e) => Check::good("directory", e.to_string(), "").but(
            Severity::Problem,
            "without a directory of its own no ring can be made or found",
            "set FOREBAY_DIR to a folder that is yours and that nobody else may write (mode 0700)",
        ),
    }
}

fn shm_space() -> Check {
    const FIX: &str = "docker: --shm-size=2g; Kubernetes: an emptyDir with medium Memory at /dev/shm; else: mount -o \
                       remount,size=2G /dev/shm; or backing memfd, which does not use it";
    let (Some(size), Some(free)) = (host::shm_size(), host::shm_free()) else {
        return Check::good("/dev/shm", "not mounted", "").but(
            Severity::Problem,
            "posix rings live there",
            "mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm; or use backing memfd",
        );
    };
    let check = Check::good(
        "/dev/shm",
        format!("{} free of {}", bytes(free), bytes(size)),
        "posix rings are allocated there in full when they are created",
    );
    if free < 16 * MIB {
        check.but(Severity::Warning, "there is hardly room for a posix ring", FIX)
    } else if size <= 64 * MIB {
        check.but(Severity::Warning, "64 MiB is the default of containers, and less than a ring of large batches", FIX)
    } else {
        check
    }
}

fn memory() -> Check {
    let host = host::memory_available();
    let cgroup = host::cgroup_memory_available();
    let show = |room: Option<u64>| room.map_or("unknown".to_owned(), bytes);
    let found = match cgroup {
        Some(room) => format!("{} by the cgroup's limits, {} on the host", bytes(room), show(host)),
        None => format!("{} on the host, no cgroup limit", show(host)),
    };
    let check =
        Check::good("memory", found, "rings count as memory of the cgroup that first touches them, the producer's");
    match host.into_iter().chain(cgroup).min() {
        Some(room) if room < 256 * MIB => check.but(
            Severity::Warning,
            "a ring that does not fit is refused; what other programs take meanwhile ends in an out-of-memory kill",
            "raise the memory limit (docker: --memory, Kubernetes: resources.limits.memory), or use fewer or smaller slots",
        ),
        _ => check,
    }
}

fn memory_lock() -> Check {
    match host::memlock_limit() {
        None => Check::good("memory lock", "no limit", "mlock can keep rings from being swapped out"),
        Some(limit) => Check::good("memory lock", format!("{} (ulimit -l)", bytes(limit)), "").but(
            Severity::Note,
            "a larger ring cannot be locked: with mlock asked for it is made all the same, with a note, and may be swapped",
            "only if you use mlock: ulimit -l unlimited; systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1",
        ),
    }
}

fn seals() -> Check {
    use memfd::Seals;
    let tried = memfd::create("forebay-doctor", None).and_then(|fd| {
        let wanted = Seals::SHRINK | Seals::GROW | Seals::FUTURE_WRITE;
        memfd::seal(&fd, wanted)?;
        memfd::reopen_read_only(&fd)?;
        memfd::seals(&fd).map(|found| found.contains(wanted))
    });
    match tried {
        Ok(true) => Check::good("memfd seals", "work", "memfd rings cannot be cut or written by a hostile peer"),
        Ok(false) => Check::good("memfd seals", "are not kept", "").but(
            Severity::Warning,
            "memfd rings do not work; posix rings do",
            "run Linux 5.1 or newer, not under an emulation that ignores F_ADD_SEALS",
        ),
        Err(e) => Check::good("memfd seals", e.to_string(), "").but(
            Severity::Warning,
            "memfd rings do not work; posix rings do",
            "allow memfd_create and fcntl(F_ADD_SEALS) in the seccomp profile, and mount /proc",
        ),
    }
}

fn locks() -> Check {
    const NAME: &str = "liveness locks";
    let tried = LockFile::anonymous().and_then(|file| {
        let _lock = file.try_lock(0)?;
        let seen = file.probe()?.is_locked(0)?;
        EventFd::new().map(|_| seen)
    });
    match tried {
        Ok(true) => Check::good(NAME, "work", "a dead process is noticed at once, a stopped one is never taken for dead"),
        Ok(false) => Check::good(NAME, "are not seen by others", "").but(
            Severity::Problem,
            "nobody can tell whether a producer or consumer lives",
            "run on a kernel with open-file-description locks (F_OFD_SETLK), not under gVisor or an emulation without them",
        ),
        Err(e) => Check::good(NAME, e.to_string(), "").but(
            Severity::Problem,
            "nobody can tell whether a producer or consumer lives",
            "mount /proc, and allow fcntl and eventfd in the seccomp profile",
        ),
    }
}

fn futexes() -> Check {
    const NAME: &str = "futex";
    if forebay_os::futex::has_waitv() {
        return Check::good(NAME, "works, futex_waitv too", "sleeping costs nothing, and a wake about 25 µs");
    }
    Check::good(NAME, "works, without futex_waitv", "").but(
        Severity::Note,
        "the producer of a broadcast ring looks after its consumers each millisecond when it waits",
        "run Linux 5.16 or newer, and allow futex_waitv in the seccomp profile",
    )
}

fn fences() -> Check {
    match barrier::register() {
        Barrier::Membarrier => {
            Check::good("membarrier", "works", "publishing needs no fence; who goes to sleep pays about 12 µs instead")
        }
        Barrier::Fence => Check::good("membarrier", "refused", "").but(
            Severity::Note,
            "every publish and release executes a fence, here and in every process that shares a ring with this one",
            "allow membarrier in the seccomp profile, and do not set FOREBAY_NO_MEMBARRIER",
        ),
    }
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    match host::hugepages_free() {
        Some((free, size)) if free > 0 => Check::good(
            NAME,
            format!("{free} free of {} each", bytes(size)),
            "there are some; rings of gigabytes are mapped faster with them",
        ),
        Some((_, size)) => Check::good(NAME, format!("none reserved (of {} each)", bytes(size)), "").but(
            Severity::Note,
            "a first touch costs 45 to 255 µs per MiB, all before the first message; only rings of gigabytes gain",
            "sysctl vm.nr_hugepages=N, N as many as the ring needs",
        ),
        None => Check::good(NAME, "not in this kernel", "only rings of gigabytes gain from them"),
    }
}

fn transparent_huge_pages() -> Check {
    const NAME: &str = "transparent huge pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some(chosen @ ("advise" | "always" | "within_size" | "force")) => {
            Check::good(NAME, format!("{chosen} for shared memory"), "huge_pages is granted on memfd rings")
        }
        Some(chosen) => Check::good(NAME, format!("{chosen} for shared memory"), "").but(
            Severity::Note,
            "huge_pages is asked for in vain: the ring has small pages",
            format!("echo advise > {FILE}; for posix rings also mount -o remount,huge=advise /dev/shm"),
        ),
        None => Check::good(NAME, "not in this kernel", "huge_pages is asked for in vain; nothing else changes"),
    }
}

fn remove_ipc() -> Check {
    const NAME: &str = "RemoveIPC";
    match host::remove_ipc_setting() {
        None => Check::good(NAME, "no systemd-logind", "nobody removes posix rings at logout"),
        Some(false) => Check::good(NAME, "no", "posix rings outlive a logout"),
        Some(true) if process::uid() < 1000 => {
            Check::good(NAME, "yes, but not for system users such as this one", "posix rings outlive a logout")
        }
        Some(true) => Check::good(NAME, "yes", "").but(
            Severity::Warning,
            "when your last session ends, systemd removes your posix rings; a successor then finds nothing to take over",
            "RemoveIPC=no in /etc/systemd/logind.conf and systemctl restart systemd-logind; or loginctl enable-linger; or \
             run as a system user",
        ),
    }
}

/// Memory that the dead left, here and under directories that are not asked about.
fn leftovers(dir: Option<&Path>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Ok(cleaned) = would_clean(dir) {
        let memory: u64 = cleaned.removed.iter().map(|item| item.bytes).sum();
        let check = |found| Check::good("left by the dead", found, "no memory is lost to rings that nobody holds");
        checks.push(if cleaned.removed.is_empty() {
            check("nothing".to_owned())
        } else {
            check(format!("{} in {} objects and files", bytes(memory), cleaned.removed.len())).but(
                Severity::Note,
                "a producer of the same name takes it over; until then it takes memory",
                "forebay clean",
            )
        });
    }
    let ours = Dir::open(dir).map(|dir| objects::object_prefix(&dir)).unwrap_or_default();
    let all = shm::list(&format!("/forebay.{}.", process::uid())).unwrap_or_default();
    // "/forebay.<uid>.<directory>." is 3 parts.
    let prefix = |name: &String| name.splitn(4, '.').take(3).collect::<Vec<_>>().join(".") + ".";
    let others: BTreeSet<String> = all.iter().map(prefix).filter(|prefix| *prefix != ours).collect();
    if !others.is_empty() {
        let files: Vec<String> = others.iter().map(|prefix| format!("/dev/shm{prefix}*")).collect();
        checks.push(Check::good("other directories", format!("{} with objects in /dev/shm", others.len()), "").but(
            Severity::Note,
            "only those directories tell whether somebody holds their rings",
            format!(
                "forebay ls --dir THAT, forebay clean --dir THAT; once the directory is gone: rm {}",
                files.join(" ")
            ),
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_what_it_means_and_every_finding_how_to_mend_it() {
        let dir = tempfile::tempdir().unwrap();
        let checks = doctor(Some(dir.path()));
        assert!(checks.len() >= 12);
        for check in checks {
            assert!(!check.found.is_empty() && !check.meaning.is_empty(), "{check:?}");
            assert_eq!(check.fix.is_some(), check.severity > Severity::Good, "{check:?}");
        }
    }

    #[test]
    fn a_directory_that_others_may_write_is_a_problem() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let found = directory(Some(dir.path()));
        assert_eq!(found.severity, Severity::Problem, "{found:?}");
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.0"), Some((5, 15)));
        assert_eq!(version("plan9"), None);
    }
}

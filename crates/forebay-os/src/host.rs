//! What the host has and allows, for `forebay doctor` and for error texts.
//!
//! Everything is read anew at each call and is a snapshot: other processes take memory meanwhile.
//! A question that the host does not answer (no `/proc`, another cgroup layout) yields `None`.

use std::fs;
use std::path::{Path, PathBuf};

/// The kernel's release, such as `6.1.0-18-amd64`.
#[must_use]
pub fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// How many bytes this process may lock into memory; `None` means as many as it likes.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// The bytes that `/dev/shm` has altogether.
#[must_use]
pub fn shm_size() -> Option<u64> {
    let fs = rustix::fs::statfs("/dev/shm").ok()?;
    bytes(fs.f_blocks, fs.f_bsize)
}

/// The bytes that `/dev/shm` has left.
#[must_use]
pub fn shm_free() -> Option<u64> {
    let fs = rustix::fs::statfs("/dev/shm").ok()?;
    bytes(fs.f_bavail, fs.f_bsize)
}

pub(crate) fn bytes(blocks: u64, block: i64) -> Option<u64> {
    blocks.checked_mul(u64::try_from(block).ok()?)
}

/// Memory that the host can still hand out: available plus free swap.
#[must_use]
pub fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo(&text, "MemAvailable:")?;
    Some(available.saturating_add(meminfo(&text, "SwapFree:").unwrap_or(0)))
}

/// Free huge pages of the default size, and that size in bytes.
#[must_use]
pub fn hugepages_free() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    // A count, not kilobytes; `meminfo` multiplies.
    let free = meminfo(&text, "HugePages_Free:")? / 1024;
    Some((free, meminfo(&text, "Hugepagesize:")?))
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The bytes that the memory limits of this process's cgroups leave, the tightest of all levels.
///
/// File pages that the kernel can drop count as free, swap within its own limit too. `None` if
/// there is no limit.
#[must_use]
pub fn cgroup_memory_available() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut tightest = None;
    for line in own.lines() {
        // `0::/path` is the unified hierarchy, `N:memory:/path` the older one.
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let (Some(controllers), Some(path)) = (controllers, path) else {
            continue;
        };
        let (root, room): (&str, fn(&Path) -> Option<u64>) = if controllers.is_empty() {
            ("/sys/fs/cgroup", room_v2)
        } else if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", room_v1)
        } else {
            continue;
        };
        for level in levels(root, path) {
            if let Some(here) = room(&level) {
                tightest = Some(tightest.map_or(here, |t: u64| t.min(here)));
            }
        }
    }
    tightest
}

/// The group's folder and all above it, down to the root. In a container whose `/proc/self/cgroup`
/// shows the host's path, only the root exists, and it is the container's own group.
fn levels(root: &str, path: &str) -> Vec<PathBuf> {
    let root = Path::new(root);
    let relative = path.trim_start_matches('/');
    let mut level = root.to_path_buf();
    let mut all = vec![level.clone()];
    for part in relative.split('/').filter(|p| !p.is_empty() && *p != "..") {
        level.push(part);
        all.push(level.clone());
    }
    all
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The sum of the named lines of a `memory.stat`.
fn stat_sum(folder: &Path, keys: &[&str]) -> u64 {
    let text = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let mut sum = 0_u64;
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(' ')
            && keys.contains(&key)
        {
            sum = sum.saturating_add(value.trim().parse().unwrap_or(0));
        }
    }
    sum
}

fn room_v2(folder: &Path) -> Option<u64> {
    // "max" is no number, and no limit.
    let limit = number(&folder.join("memory.max"))?;
    let used = number(&folder.join("memory.current"))?;
    let keys = ["active_file", "inactive_file", "slab_reclaimable"];
    let room = limit.saturating_sub(used.saturating_sub(stat_sum(folder, &keys)));
    Some(room.saturating_add(swap_room_v2(folder)))
}

/// Swap that this group may still use. No limit there leaves the host's own, which is free swap.
fn swap_room_v2(folder: &Path) -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text, "SwapFree:")).unwrap_or(0);
    let Some(limit) = number(&folder.join("memory.swap.max")) else {
        return host;
    };
    let used = number(&folder.join("memory.swap.current")).unwrap_or(0);
    host.min(limit.saturating_sub(used))
}

fn room_v1(folder: &Path) -> Option<u64> {
    let limit = number(&folder.join("memory.limit_in_bytes"))?;
    // "No limit" is a number here, the largest page-aligned one.
    if limit > i64::MAX as u64 / 2 {
        return None;
    }
    let used = number(&folder.join("memory.usage_in_bytes"))?;
    let keys = ["total_active_file", "total_inactive_file"];
    Some(limit.saturating_sub(used.saturating_sub(stat_sum(folder, &keys))))
}

/// Whether systemd removes this user's objects in `/dev/shm` when the last session ends.
///
/// `None` if there is no logind configuration to read. System users (below 1000) are never cleaned.
#[must_use]
pub fn remove_ipc_setting() -> Option<bool> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let mut files = vec![PathBuf::from("/etc/systemd/logind.conf")];
    for folder in ["/usr/lib", "/run", "/etc"] {
        let folder = format!("{folder}/systemd/logind.conf.d");
        let mut parts: Vec<PathBuf> =
            fs::read_dir(folder).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        parts.sort();
        files.append(&mut parts);
    }
    // systemd's own default is yes; distributions change it in the files.
    let mut setting = true;
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for line in text.lines() {
            if let Some(value) = line.trim().strip_prefix("RemoveIPC=") {
                setting = matches!(value.trim(), "yes" | "true" | "1" | "on");
            }
        }
    }
    Some(setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_answers_the_plain_questions() {
        assert!(!kernel_release().is_empty());
        assert!(memory_available().is_some_and(|b| b > 0));
        assert!(shm_free() <= shm_size());
        // No assertion on the value: most hosts have none, and some have no hugetlb at all.
        if let Some((_, size)) = hugepages_free() {
            assert!(size.is_power_of_two());
        }
    }

    #[test]
    fn meminfo_lines_are_kibibytes() {
        let text = "MemTotal: 10 kB\nMemAvailable:    3 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(3072));
        assert_eq!(meminfo(text, "SwapFree:"), None);
    }

    #[test]
    fn a_cgroup_limit_leaves_what_is_not_used_plus_what_can_be_dropped() {
        let folder = std::env::temp_dir().join(format!("forebay-os-cgroup-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory.max"), "1000\n").unwrap();
        fs::write(folder.join("memory.current"), "900\n").unwrap();
        fs::write(folder.join("memory.swap.max"), "0\n").unwrap();
        fs::write(folder.join("memory.stat"), "anon 500\nactive_file 100\ninactive_file 50\n").unwrap();
        assert_eq!(room_v2(&folder), Some(250));
        fs::write(folder.join("memory.max"), "max\n").unwrap();
        assert_eq!(room_v2(&folder), None);

        fs::write(folder.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(room_v1(&folder), None);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn all_levels_of_a_cgroup_are_asked() {
        let all = levels("/r", "/a/../b");
        assert_eq!(all, [Path::new("/r"), Path::new("/r/a"), Path::new("/r/a/b")]);
    }
}

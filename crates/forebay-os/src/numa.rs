//! Which NUMA node memory lies on, and where a device is attached.
//!
//! Nodes are numbers of the kernel's; a host without NUMA has node 0 and nothing else.
#![allow(unsafe_code, reason = "memory policies are set through raw system calls: neither libc nor rustix wraps them")]

use std::{fs, io, marker::PhantomData, path::Path, ptr::null};

use crate::{Mapping, OsError, Result};

/// The kernel's nodes go up to 1023.
const NODE_WORDS: usize = 16;
const NODES: u32 = NODE_WORDS as u32 * u64::BITS;

/// `MPOL_PREFERRED`: of this node while it has memory.
const PREFERRED: libc::c_int = 1;
/// `MPOL_F_NODE | MPOL_F_ADDR`: of which node the page at an address is.
const NODE_OF_ADDRESS: libc::c_ulong = 1 | 2;

/// The nodes that have memory.
#[must_use]
pub fn nodes() -> Vec<u32> {
    let text = fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let nodes = list(&text);
    if nodes.is_empty() { vec![0] } else { nodes }
}

/// Numbers of a list such as `0-1,4`.
fn list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?.min(NODES))
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Where PCI devices are described.
pub const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// NVIDIA's GPUs under `devices` ([`PCI_DEVICES`]), by bus id such as `0000:3b:00.0`, in the order of `nvidia-smi`.
#[must_use]
pub fn gpus(devices: &Path) -> Vec<String> {
    let word = |name: &str, file: &str| fs::read_to_string(devices.join(name).join(file)).unwrap_or_default();
    let is_gpu = |name: &String| {
        // 3D and VGA controllers; their sound and bridges are devices of the same maker.
        let class = word(name, "class");
        word(name, "vendor").trim() == "0x10de" && (class.starts_with("0x0302") || class.starts_with("0x0300"))
    };
    let names = fs::read_dir(devices).map(|entries| entries.flatten()).into_iter().flatten();
    let mut gpus: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_gpu).collect();
    gpus.sort();
    gpus
}

/// The node that a PCI device is attached to; `None` if it is near none in particular, or not there.
#[must_use]
pub fn node_of_device(devices: &Path, bus_id: &str) -> Option<u32> {
    // nvidia-smi writes eight digits of domain, the kernel four, in small letters.
    let bus_id = bus_id.to_ascii_lowercase();
    let bus_id = if bus_id.len() == "00000000:00:00.0".len() { &bus_id[4..] } else { &bus_id };
    if bus_id.contains('/') {
        return None;
    }
    // -1 where there is none.
    fs::read_to_string(devices.join(bus_id).join("numa_node")).ok()?.trim().parse().ok()
}

/// Until it is dropped, new memory of this thread comes from one node, as long as that has some.
#[derive(Debug)]
pub struct Preference {
    before: (libc::c_int, [u64; NODE_WORDS]),
    /// It is this thread's.
    _here: PhantomData<*const ()>,
}

impl Preference {
    /// Prefers `node`.
    ///
    /// # Errors
    /// There is no such node, or a container forbids the call.
    pub fn set(node: u32) -> Result<Self> {
        let failed = |call, e| {
            let error = OsError::new(call, format!("memory of NUMA node {node}"), e);
            match error.raw_os_error() {
                Some(libc::EPERM | libc::ENOSYS) => {
                    error.with_hint("this container forbids it; give it CAP_SYS_NICE, or start it on that node")
                }
                Some(libc::EINVAL) => error.with_hint("there is no such node with memory"),
                _ => error,
            }
        };
        let mut before = (0, [0_u64; NODE_WORDS]);
        // SAFETY: there is room for a mode and for as many nodes as it is told (one more than asked for: the kernel counts
        // from there).
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut before.0,
                before.1.as_mut_ptr(),
                libc::c_ulong::from(NODES),
                null::<libc::c_void>(),
                0 as libc::c_ulong,
            )
        };
        if rc != 0 {
            return Err(failed("get_mempolicy", io::Error::last_os_error()));
        }
        let mut mask = [0_u64; NODE_WORDS];
        let Some(word) = mask.get_mut((node / u64::BITS) as usize) else {
            return Err(failed("set_mempolicy", io::Error::from_raw_os_error(libc::EINVAL)));
        };
        *word = 1 << (node % u64::BITS);
        set(PREFERRED, &mask).map_err(|e| failed("set_mempolicy", e))?;
        Ok(Self { before, _here: PhantomData })
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // What was in force before is in force again, or nobody can help it.
        let _ = set(self.before.0, &self.before.1);
    }
}

fn set(mode: libc::c_int, mask: &[u64; NODE_WORDS]) -> io::Result<()> {
    let empty = mask.iter().all(|&word| word == 0);
    let (at, bits) = if empty { (null(), 0) } else { (mask.as_ptr(), libc::c_ulong::from(NODES)) };
    // SAFETY: the kernel reads as many nodes as it is told, which the mask has, or none.
    let rc = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, at, bits) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a mapping's pages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// All that were looked at, on this node.
    Node(u32),
    /// Some here, some there.
    Mixed,
    /// The kernel does not say.
    Unknown,
}

/// Looks at up to 64 pages of a mapping, evenly spread; those that are not there yet come to be.
#[must_use]
pub fn placement(of: &Mapping) -> Placement {
    const LOOKS: usize = 64;
    if of.is_stale() {
        return Placement::Unknown;
    }
    let mut found = None;
    for look in 0..LOOKS {
        let offset = of.len() / LOOKS * look;
        let mut node: libc::c_int = 0;
        // SAFETY: there is room for one number; the address lies in the mapping, and no byte of it is changed.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut node,
                null::<u64>(),
                0 as libc::c_ulong,
                of.base().as_ptr().wrapping_add(offset),
                NODE_OF_ADDRESS,
            )
        };
        let Ok(node) = u32::try_from(node) else { return Placement::Unknown };
        match found {
            _ if rc != 0 => return Placement::Unknown,
            None => found = Some(node),
            Some(other) if other != node => return Placement::Mixed,
            Some(_) => {}
        }
    }
    found.map_or(Placement::Unknown, Placement::Node)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::object::{Access, allocate, memfd};

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(list("0-1,4\n"), [0, 1, 4]);
        assert_eq!(list("0\n"), [0]);
        assert_eq!(list(""), [0; 0]);
        assert!(nodes().contains(&0) || !nodes().is_empty());
    }

    #[test]
    fn memory_comes_from_the_node_preferred_and_the_policy_before_returns() {
        let node = nodes()[0];
        let fd = memfd::create("forebay-os-numa", None).unwrap();
        match Preference::set(node) {
            Ok(preference) => {
                assert!(policy().contains("prefer"), "{}", policy());
                allocate(&fd, 1 << 20).unwrap();
                drop(preference);
                assert!(policy().contains("default"), "{}", policy());
            }
            // A container that forbids it says so.
            Err(e) => {
                assert!(e.to_string().contains("forbids"), "{e}");
                allocate(&fd, 1 << 20).unwrap();
            }
        }
        let mapping = Mapping::map(fd.as_fd(), 1 << 20, Access::ReadWrite).unwrap();
        if nodes().len() == 1 {
            assert!(matches!(placement(&mapping), Placement::Node(found) if found == node) || policy().is_empty());
        }
    }

    /// This thread's policy, as the kernel shows it for its stack.
    fn policy() -> String {
        let text = fs::read_to_string("/proc/thread-self/numa_maps").unwrap_or_default();
        text.lines().find(|line| line.contains("heap") || line.contains("anon=")).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_node_that_is_not_there_is_refused() {
        for node in [1000, NODES, u32::MAX] {
            let error = Preference::set(node).unwrap_err().to_string();
            assert!(error.contains(&format!("node {node}")) && error.contains(';'), "{error}");
        }
    }

    #[test]
    fn gpus_are_found_in_the_order_of_the_bus() {
        let folder = tempfile::tempdir().unwrap();
        for (bus_id, vendor, class, node) in [
            ("0000:b1:00.0", "0x10de\n", "0x030200\n", "1\n"),
            ("0000:3b:00.0", "0x10de\n", "0x030000\n", "0\n"),
            ("0000:3b:00.1", "0x10de\n", "0x040300\n", "0\n"),
            ("0000:00:02.0", "0x8086\n", "0x030000\n", "-1\n"),
            ("0001:00:00.0", "0x10de\n", "0x030200\n", "-1\n"),
        ] {
            let device = folder.path().join(bus_id);
            fs::create_dir(&device).unwrap();
            for (file, text) in [("vendor", vendor), ("class", class), ("numa_node", node)] {
                fs::write(device.join(file), text).unwrap();
            }
        }
        assert_eq!(gpus(folder.path()), ["0000:3b:00.0", "0000:b1:00.0", "0001:00:00.0"]);
        let node = |bus_id| node_of_device(folder.path(), bus_id);
        assert_eq!(node("00000000:B1:00.0"), Some(1));
        assert_eq!((node("0001:00:00.0"), node("0002:00:00.0"), node("../x")), (None, None, None));
    }
}

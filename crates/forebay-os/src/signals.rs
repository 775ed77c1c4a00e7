//! Keeping signals away from threads that belong to the library.
#![allow(unsafe_code, reason = "signal sets are filled through pointers, and rustix leaves masks to libc")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use crate::{OsError, Result};

/// Raised by the thread's own instructions: blocking them would turn a handler (a debugger's, a
/// fault handler's) into certain death without a message.
const FAULTS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT];

/// Blocks every signal on the calling thread, so that the program's own threads get them.
///
/// Faults of the thread itself (SIGSEGV and the like) stay deliverable. Threads started from this
/// one inherit the mask.
///
/// # Errors
/// None is known for these arguments; the kernel's answer is passed on all the same.
pub fn block_all_signals_on_this_thread() -> Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) writes a whole `sigset_t` to a pointer valid for one.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    for fault in FAULTS {
        // SAFETY: the set was initialised by sigfillset above, and `fault` is a valid number.
        unsafe { libc::sigdelset(set.as_mut_ptr(), fault) };
    }
    // SAFETY: the set is initialised; the old mask is not asked for.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
    if rc != 0 {
        let source = io::Error::from_raw_os_error(rc);
        return Err(OsError::new("pthread_sigmask", "this thread", source));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocked signals of the calling thread, as the kernel shows them.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_keeps_only_its_own_faults() {
        std::thread::spawn(|| {
            block_all_signals_on_this_thread().unwrap();
            let mask = blocked();
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD] {
                assert_ne!(mask & (1 << (signal - 1)), 0, "signal {signal} is not blocked");
            }
            for signal in FAULTS {
                assert_eq!(mask & (1 << (signal - 1)), 0, "fault {signal} is blocked");
            }
        })
        .join()
        .unwrap();
    }
}

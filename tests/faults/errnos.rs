//! Which errors a system call is made to return, and what the library may make of them.

use libc::{
    EACCES, EAGAIN, EBUSY, ECONNABORTED, ECONNREFUSED, ECONNRESET, EDQUOT, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENOBUFS,
    ENODEV, ENOENT, ENOLCK, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EPIPE, EROFS, ETOOMANYREFS, c_long,
};

use crate::tracer::Call;

/// `fcntl` of open-file-description locks and of seals.
const GETLK: u64 = libc::F_OFD_GETLK as u64;
const SETLK: u64 = libc::F_OFD_SETLK as u64;
const ADD_SEALS: u64 = libc::F_ADD_SEALS as u64;
const DUPFD: u64 = libc::F_DUPFD_CLOEXEC as u64;
/// Linux's numbers, which libc does not name everywhere.
const POPULATE_READ: u64 = 22;
const POPULATE_WRITE: u64 = 23;
const DONTFORK: u64 = 10;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAIT_BITSET: u64 = 9;
const ANONYMOUS: u64 = libc::MAP_ANONYMOUS as u64;
const STACK: u64 = (libc::MAP_ANONYMOUS | libc::MAP_STACK) as u64;

/// Errors that `call` returns on some machine on some day. Empty for calls that cannot fail, or whose failure the C
/// library and not this one answers for (the allocator's, the start of a thread after clone).
pub(crate) fn of(call: Call) -> &'static [i32] {
    match (call.number, call.part) {
        (libc::SYS_openat, _) => &[EMFILE, ENFILE, EINTR, EACCES, ENOMEM, ENOSPC, ENOENT],
        (libc::SYS_memfd_create, _) => &[EMFILE, ENFILE, ENOMEM, EINVAL, ENOSYS, EPERM],
        (libc::SYS_ftruncate, _) => &[EINTR, ENOSPC, EPERM, EIO],
        (libc::SYS_fallocate, _) => &[ENOSPC, ENOMEM, EDQUOT, EINTR, EOPNOTSUPP, ENOSYS, EIO],
        (libc::SYS_mmap, 0) => &[ENOMEM, EAGAIN, EPERM, ENODEV],
        (libc::SYS_mmap, STACK) => &[ENOMEM],
        (libc::SYS_mmap, ANONYMOUS) => &[],
        (libc::SYS_madvise, DONTFORK) => &[ENOMEM, EINVAL],
        (libc::SYS_madvise, POPULATE_READ | POPULATE_WRITE) => &[ENOMEM, EINVAL, EINTR, EAGAIN],
        (libc::SYS_madvise, _) => &[EINVAL],
        // Guards of stacks, made by the standard library and the C library: without one they end the process.
        (libc::SYS_mprotect, _) => &[],
        (libc::SYS_close, _) => &[EINTR, EIO],
        (libc::SYS_fcntl, GETLK) => &[EINTR, ENOLCK, ENOMEM],
        (libc::SYS_fcntl, SETLK) => &[EINTR, ENOLCK, EAGAIN, ENOMEM],
        (libc::SYS_fcntl, ADD_SEALS) => &[EPERM, EBUSY],
        (libc::SYS_fcntl, DUPFD) => &[EMFILE],
        (libc::SYS_fcntl, _) => &[EPERM],
        (libc::SYS_socket | libc::SYS_eventfd2 | libc::SYS_epoll_create1 | libc::SYS_timerfd_create, _) => {
            &[EMFILE, ENFILE, ENOMEM]
        }
        (libc::SYS_epoll_ctl, _) => &[ENOMEM, ENOSPC],
        (libc::SYS_timerfd_settime, _) => &[EINVAL],
        (libc::SYS_bind, _) => &[ENOSPC, EACCES, ENOMEM, EROFS],
        (libc::SYS_listen, _) => &[ENOMEM],
        (libc::SYS_connect, _) => &[EINTR, EAGAIN, EACCES, ECONNREFUSED, ENOENT],
        (libc::SYS_accept4, _) => &[EINTR, EMFILE, ENFILE, ENOMEM, ECONNABORTED, EAGAIN],
        (libc::SYS_sendmsg, _) => &[EINTR, EAGAIN, ENOMEM, ENOBUFS, EPIPE, ETOOMANYREFS],
        (libc::SYS_recvmsg, _) => &[EINTR, EAGAIN, ENOMEM, ECONNRESET],
        (libc::SYS_poll | libc::SYS_ppoll, _) => &[EINTR, ENOMEM],
        (libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2, _) => &[EINTR],
        // Waits are the standard library's too, which takes anything but these for a broken kernel. Waking cannot fail.
        (libc::SYS_futex, FUTEX_WAIT | FUTEX_WAIT_BITSET) => &[EINTR, EAGAIN],
        (libc::SYS_futex_waitv, _) => &[EINTR, ENOSYS, EPERM, ENOMEM, EAGAIN],
        (libc::SYS_membarrier, _) => &[ENOSYS, EPERM, EINVAL, ENOMEM],
        (libc::SYS_clone3, _) => &[EAGAIN, ENOMEM, ENOSYS],
        (libc::SYS_clone, _) => &[EAGAIN, ENOMEM],
        (libc::SYS_getrandom, _) => &[EINTR],
        (libc::SYS_fstat | libc::SYS_fstatfs | libc::SYS_statfs, _) => &[ENOMEM, EIO],
        (libc::SYS_newfstatat, _) => &[ENOMEM, EACCES],
        (libc::SYS_statx, _) => &[ENOMEM, EACCES, ENOSYS],
        (libc::SYS_mkdir | libc::SYS_mkdirat, _) => &[ENOSPC, EACCES, EROFS],
        (libc::SYS_unlink | libc::SYS_unlinkat, _) => &[EACCES, EROFS, EBUSY],
        (libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2, _) => &[ENOSPC, EACCES, EROFS],
        (libc::SYS_fchmod | libc::SYS_fchmodat | libc::SYS_chmod, _) => &[EPERM, EROFS, EIO],
        (libc::SYS_getdents64, _) => &[ENOMEM, EIO],
        (libc::SYS_read | libc::SYS_pread64, _) => &[EINTR, EIO, EAGAIN],
        (libc::SYS_preadv2, _) => &[EINTR, EAGAIN, ENOSYS, EOPNOTSUPP],
        (libc::SYS_write | libc::SYS_pwrite64, _) => &[EINTR, EIO, ENOSPC],
        (libc::SYS_getsockopt, _) => &[ENOBUFS],
        (libc::SYS_readlink | libc::SYS_readlinkat, _) => &[EACCES, ENOMEM],
        (libc::SYS_nanosleep | libc::SYS_clock_nanosleep, _) => &[EINTR],
        (libc::SYS_mlock, _) => &[ENOMEM, EPERM],
        _ => &[],
    }
}

/// Whether a stack is made.
pub(crate) fn is_stack(call: Call) -> bool {
    (call.number, call.part) == (libc::SYS_mmap, STACK)
}

/// Calls that are carried out although they are made to report an error: Linux closes whatever close says.
pub(crate) fn happens_all_the_same(call: Call) -> bool {
    call.number == libc::SYS_close
}

/// Errors behind which there is another way, so that the operation has to succeed: interrupted calls, and features of
/// newer kernels.
pub(crate) fn must_succeed(call: Call, errno: i32, times: u32) -> bool {
    match (call.number, errno) {
        (_, EINTR) | (libc::SYS_close | libc::SYS_membarrier | libc::SYS_futex, _) => true,
        // Retried or waited for again, unless it never ends.
        (libc::SYS_futex_waitv, _) => times < 10 || errno != ENOMEM,
        (libc::SYS_memfd_create, EINVAL) => times == 1,
        (libc::SYS_madvise, EINVAL) => call.part != DONTFORK,
        (libc::SYS_statx | libc::SYS_clone3, ENOSYS) | (libc::SYS_preadv2, ENOSYS | EOPNOTSUPP) => true,
        (libc::SYS_madvise, EAGAIN) => times < 10,
        _ => false,
    }
}

/// A call's name, for people.
pub(crate) fn name(call: Call) -> String {
    let names: &[(c_long, &str)] = &[
        (libc::SYS_openat, "openat"),
        (libc::SYS_memfd_create, "memfd_create"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_fallocate, "fallocate"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_madvise, "madvise"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_close, "close"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_eventfd2, "eventfd2"),
        (libc::SYS_epoll_create1, "epoll_create1"),
        (libc::SYS_timerfd_create, "timerfd_create"),
        (libc::SYS_epoll_ctl, "epoll_ctl"),
        (libc::SYS_timerfd_settime, "timerfd_settime"),
        (libc::SYS_bind, "bind"),
        (libc::SYS_listen, "listen"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_accept4, "accept4"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_futex_waitv, "futex_waitv"),
        (libc::SYS_membarrier, "membarrier"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_getrandom, "getrandom"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_fstatfs, "fstatfs"),
        (libc::SYS_statfs, "statfs"),
        (libc::SYS_newfstatat, "newfstatat"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_mkdir, "mkdir"),
        (libc::SYS_unlink, "unlink"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_renameat, "renameat"),
        (libc::SYS_fchmod, "fchmod"),
        (libc::SYS_fchmodat, "fchmodat"),
        (libc::SYS_chmod, "chmod"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_read, "read"),
        (libc::SYS_pread64, "pread64"),
        (libc::SYS_preadv2, "preadv2"),
        (libc::SYS_write, "write"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_getsockopt, "getsockopt"),
        (libc::SYS_readlink, "readlink"),
        (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    ];
    let name = names.iter().find(|(number, _)| *number == call.number);
    let name = name.map_or_else(|| format!("call {}", call.number), |(_, name)| (*name).to_owned());
    if call.part == 0 { name } else { format!("{name}({})", call.part) }
}

/// An errno in words, as the error texts have it.
pub(crate) fn text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

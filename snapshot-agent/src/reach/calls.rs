//! The system calls that the agent and `qemu-img` make, by `strace` and by what their libraries document; all others are refused.
//!
//! - **EPERM**: the call fails and its caller tells of it. A killed process would be worse: a merge that a library's update broke
//!   would be taken up again after each restart, and die again.
//! - **ENOSYS** for what is of [`NUMBERED_ALIKE`] and not on the list, as an older kernel answers: libraries try the new call
//!   first and fall back. `clone3` is among them because its flags, which may ask for a namespace, lie in memory that a filter
//!   does not see; the C library falls back to `clone`, whose flags are looked at.
//! - A call by another architecture's numbers ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition as When, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What has come to the kernel since 2019 has the same numbers on all architectures, from this one on.
const NUMBERED_ALIKE: std::ops::Range<i64> = 424..1024;

/// Whatever their arguments.
const PLAIN: &[i64] = &[
    // Files. Which ones is Landlock's business.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_umask,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_membarrier,
    // Threads, and qemu-img.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_tgkill,
    libc::SYS_kill,
    libc::SYS_restart_syscall,
    libc::SYS_prlimit64,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets that are there.
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Time, chance, and who one is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_capget,
    // To narrow qemu-img further.
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
];

/// What newer architectures have left out, because they have the same in another form.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_signalfd,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_time,
    libc::SYS_arch_prctl,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Namespaces, in which one would be root again.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// What a process may ask about or set for itself: names of threads and of memory, slack of timers, `no_new_privs`.
const OPTIONS: [i32; 7] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_TIMERSLACK,
    libc::PR_SET_VMA,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_DUMPABLE,
];
/// The low bits of a socket's type, without what is said beside it.
const KIND_OF_SOCKET: u64 = 0xf;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The two programs, in the order in which they are to be loaded.
pub(super) fn programs() -> Result<[BpfProgram; 2], seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut allowed = allowed()?;
    let is_newer = |call: &i64| !allowed.contains_key(call);
    let newer: Rules = NUMBERED_ALIKE.filter(is_newer).map(|call| (call, vec![])).collect();
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    // With the second program in place no other can be loaded. Of two refusals its own would count, so it lets pass what the
    // first refuses.
    allowed.extend(newer.clone());
    let first = SeccompFilter::new(newer, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    let second = SeccompFilter::new(allowed, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    Ok([first.try_into()?, second.try_into()?])
}

fn allowed() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = PLAIN.iter().chain(OLDER).map(|call| (*call, vec![])).collect();
    let value = |value: i32| u64::from(value.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![all([(0, Is::MaskedEq(value(NEW_NAMESPACES)), 0)])?]);
    let is = |family: i32| (0, Is::Eq, value(family));
    let stream = || (1, Is::MaskedEq(KIND_OF_SOCKET), value(libc::SOCK_STREAM));
    let sockets =
        vec![all([is(libc::AF_UNIX)])?, all([is(libc::AF_INET), stream()])?, all([is(libc::AF_INET6), stream()])?];
    rules.insert(libc::SYS_socket, sockets);
    let options: Result<Vec<_>, _> = OPTIONS.into_iter().map(|option| all([(0, Is::Eq, value(option))])).collect();
    rules.insert(libc::SYS_prctl, options?);
    // Typing into the terminal of whoever started it.
    let not = |request: u64| (1, Is::Ne, request);
    rules.insert(libc::SYS_ioctl, vec![all([not(libc::TIOCSTI), not(libc::TIOCLINUX)])?]);
    Ok(rules)
}

fn all<const N: usize>(conditions: [(u8, Is, u64); N]) -> Result<SeccompRule, seccompiler::Error> {
    let conditions: Result<Vec<_>, _> =
        conditions.into_iter().map(|(argument, is, value)| When::new(argument, Width::Dword, is, value)).collect();
    Ok(SeccompRule::new(conditions?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_lead_out_is_not_on_the_list() {
        let allowed = allowed().unwrap();
        for call in [
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_setuid,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_mknodat,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_process_vm_readv,
            libc::SYS_symlinkat,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_open_by_handle_at,
            libc::SYS_execveat,
            libc::SYS_memfd_create,
            libc::SYS_pidfd_getfd,
        ] {
            assert!(!allowed.contains_key(&call), "{call}");
        }
        assert!(programs().is_ok());
    }
}

//! Starts a process as posix_spawn does: the child shares the guard's memory until its program runs, so that nothing is
//! copied. A fork of the guard would take a multiple of that, and posix_spawn knows no parent-death signal.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;

/// What to start. It gets a process group of its own and dies with the guard.
pub struct Start {
    pub program: String,
    pub args: Vec<String>,
    pub cwd: String,
    /// The whole environment; its `PATH` is where a program without `/` is looked for.
    pub env: BTreeMap<OsString, OsString>,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Signals that the guard ignores, and its children do not.
pub const IGNORED: [c_int; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGQUIT,
];

/// Enough for the few calls that the child makes.
const STACK: usize = 64 << 10;

/// All that the child needs, made before it exists: it may not allocate.
struct Plan {
    guard: libc::pid_t,
    cwd: *const c_char,
    descriptors: [RawFd; 3],
    /// Files to try, in order; null-terminated.
    files: *const *const c_char,
    argv: *const *const c_char,
    /// Runs a file that has no interpreter line: `/bin/sh`, the file (set by the child), the arguments.
    shell: *mut *const c_char,
    envp: *const *const c_char,
    /// Why the program could not be run, told by the child.
    errno: c_int,
}

impl Start {
    /// Starts it; its process id.
    pub fn start(self) -> io::Result<i32> {
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::other);
        let cwd = text(self.cwd.into_bytes())?;
        let files = candidates(&self.program, self.env.get(&OsString::from("PATH")))
            .into_iter()
            .map(|file| text(file.into_bytes()))
            .collect::<io::Result<Vec<_>>>()?;
        let mut argv = vec![text(self.program.into_bytes())?];
        for arg in self.args {
            argv.push(text(arg.into_bytes())?);
        }
        let mut envp = Vec::with_capacity(self.env.len());
        for (name, value) in self.env {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            envp.push(text(entry)?);
        }
        let pointers = |list: &[CString]| -> Vec<*const c_char> {
            list.iter()
                .map(|s| s.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        let (files, arguments, environment) = (pointers(&files), pointers(&argv), pointers(&envp));
        let mut shell = vec![c"/bin/sh".as_ptr(), ptr::null()];
        shell.extend(&arguments[1..]);
        let mut plan = Plan {
            guard: std::process::id() as libc::pid_t,
            cwd: cwd.as_ptr(),
            descriptors: [&self.stdin, &self.stdout, &self.stderr].map(|fd| fd.as_raw_fd()),
            files: files.as_ptr(),
            argv: arguments.as_ptr(),
            shell: shell.as_mut_ptr(),
            envp: environment.as_ptr(),
            errno: 0,
        };
        let mut stack = vec![0u128; STACK / 16];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: this thread stands still until the child has run its program or ended, so all that `plan` points to
        // outlives it; the child runs on `stack`, whose top is aligned, and touches nothing but `plan`.
        let pid = unsafe {
            libc::clone(
                child,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                ptr::from_mut(&mut plan).cast(),
            )
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: written by the child, which is gone.
        let errno = unsafe { ptr::read_volatile(&plan.errno) };
        if errno != 0 {
            // SAFETY: reaps the child that could not start, so that nobody takes it for a rank.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(pid)
    }
}

/// Where a program may lie.
fn candidates(program: &str, path: Option<&OsString>) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = path.map_or("/bin:/usr/bin".into(), |p| p.to_string_lossy());
    let folders = path.split(':').map(|f| if f.is_empty() { "." } else { f });
    folders.map(|f| format!("{f}/{program}")).collect()
}

/// The child, from its first instruction to its program's. Only system calls.
extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan: *mut Plan = plan.cast();
    // SAFETY: `plan` is alive as long as the guard stands still, see above. `_exit` runs no destructor of the guard's.
    unsafe {
        (*plan).errno = run(&mut *plan);
        libc::_exit(127)
    }
}

/// Runs the program; the error number where that fails.
unsafe fn run(plan: &mut Plan) -> c_int {
    unsafe {
        let errno = || *libc::__errno_location();
        for signal in IGNORED {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != plan.guard || libc::setpgid(0, 0) != 0 {
            return libc::ESRCH;
        }
        for (to, from) in plan.descriptors.iter().enumerate() {
            if libc::dup2(*from, to as RawFd) < 0 {
                return errno();
            }
        }
        if libc::chdir(plan.cwd) != 0 {
            return errno();
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        let mut failed = libc::ENOENT;
        let mut file = plan.files;
        while !(*file).is_null() {
            libc::execve(*file, plan.argv, plan.envp);
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::ENOEXEC => {
                    *plan.shell.add(1) = *file;
                    libc::execve(*plan.shell, plan.shell, plan.envp);
                    return libc::ENOEXEC;
                }
                // one that may not be run does not hide one further on
                libc::EACCES => failed = libc::EACCES,
                other => return other,
            }
            file = file.add(1);
        }
        failed
    }
}

//! Ranks as forked processes: made once, before libtorch has started a thread, and given one job
//! after the other. A fork costs milliseconds where a start with libtorch costs a second.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a rank says of a job.
pub type Answer<A> = Result<A, String>;

/// Processes that do jobs.
pub struct Pool {
    ranks: Vec<Rank>,
}

struct Rank {
    pid: libc::pid_t,
    jobs: Option<File>,
    answers: File,
}

impl Pool {
    /// Forks `size` processes that run `work` on every job. The caller must not have used libtorch.
    pub fn fork<J, A>(size: usize, work: fn(J) -> A) -> Pool
    where
        J: DeserializeOwned,
        A: Serialize,
    {
        let mut ranks: Vec<Rank> = Vec::new();
        for _ in 0..size {
            let (job_out, job_in) = pipe();
            let (answer_out, answer_in) = pipe();
            // SAFETY: this process has one thread, so the child may do anything.
            let pid = unsafe { libc::fork() };
            assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
            if pid == 0 {
                // the ends of the others would keep their pipes open
                drop((ranks, job_in, answer_out));
                serve(job_out, answer_in, work);
            }
            ranks.push(Rank {
                pid,
                jobs: Some(job_in),
                answers: answer_out,
            });
        }
        Pool { ranks }
    }

    /// Gives the first `jobs.len()` processes a job each and waits for all their answers.
    pub fn run<J: Serialize, A: DeserializeOwned>(&mut self, jobs: &[J]) -> Vec<Answer<A>> {
        for (rank, job) in self.ranks.iter_mut().zip(jobs) {
            let bytes = serde_json::to_vec(job).expect("plain data");
            let pipe = rank.jobs.as_mut().expect("open until the end");
            write_frame(pipe, &bytes).expect("the rank takes jobs");
        }
        let answers = self.ranks.iter_mut().take(jobs.len()).map(|rank| {
            let bytes = read_frame(&mut rank.answers).map_err(|e| format!("rank ended: {e}"))?;
            serde_json::from_slice::<Answer<A>>(&bytes).map_err(|e| e.to_string())?
        });
        answers.collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            // no more jobs: the process ends
            rank.jobs = None;
            // SAFETY: our own child, waited for once.
            unsafe { libc::waitpid(rank.pid, std::ptr::null_mut(), 0) };
        }
    }
}

/// A child's life.
fn serve<J: DeserializeOwned, A: Serialize>(
    mut jobs: File,
    mut answers: File,
    work: fn(J) -> A,
) -> ! {
    while let Ok(bytes) = read_frame(&mut jobs) {
        let answer: Answer<A> = match serde_json::from_slice(&bytes) {
            Ok(job) => catch_unwind(AssertUnwindSafe(|| work(job))).map_err(|e| text(&*e)),
            Err(e) => Err(e.to_string()),
        };
        let bytes = serde_json::to_vec(&answer).expect("plain data");
        if write_frame(&mut answers, &bytes).is_err() {
            break;
        }
    }
    // SAFETY: ends this process without the parent's clean-up.
    unsafe { libc::_exit(0) }
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    let text = owned.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}

fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written; each is owned by one file.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

fn write_frame(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(&(bytes.len() as u64).to_le_bytes())?;
    file.write_all(bytes)
}

fn read_frame(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

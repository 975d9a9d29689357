//! c10d over Gloo: a TCP store for rendezvous and process groups on CPU tensors.
//!
//! Calls block until the collective ends or the group's timeout passes (`*_start` return at once);
//! every rank must make the same calls in the same order. A group is used by one thread at a time.

use std::ffi::CString;
use std::time::Duration;

use tch::Tensor;

use crate::{Error, ffi};

/// The rendezvous: rank 0 serves it, all others connect.
pub struct Store {
    raw: ffi::Raw,
    loopback: bool,
}

// SAFETY: TCPStore locks inside; the handle is only freed once.
unsafe impl Send for Store {}

impl Store {
    /// Connects to (`serve`: opens) the store at `host:port` for `world` ranks.
    pub fn connect(
        host: &str,
        port: u16,
        serve: bool,
        world: usize,
        timeout: Duration,
    ) -> Result<Store, Error> {
        let c = CString::new(host).map_err(|_| Error::Nul("host"))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` receives an owned handle on success.
        ffi::check(unsafe {
            ffi::rt_store_new(
                c.as_ptr(),
                port,
                serve.into(),
                world as i64,
                millis(timeout),
                &mut raw,
            )
        })?;
        let loopback = host == "localhost" || host == "::1" || host.starts_with("127.");
        Ok(Store { raw, loopback })
    }

    /// Another handle of the same connection, for another thread.
    pub fn share(&self) -> Store {
        // SAFETY: a live handle; the result is owned.
        let raw = unsafe { ffi::rt_store_share(self.raw) };
        Store {
            raw,
            loopback: self.loopback,
        }
    }

    /// Leaves a text for the other ranks. Blocks as long as the serving rank does not answer.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        let key = CString::new(key).map_err(|_| Error::Nul("key"))?;
        let value = CString::new(value).map_err(|_| Error::Nul("value"))?;
        // SAFETY: live handle and texts.
        ffi::check(unsafe { ffi::rt_store_set(self.raw, key.as_ptr(), value.as_ptr()) })
    }

    /// What a rank left, if it has. Blocks as long as the serving rank does not answer.
    pub fn get(&self, key: &str) -> Result<Option<String>, Error> {
        let key = CString::new(key).map_err(|_| Error::Nul("key"))?;
        let mut out = std::ptr::null_mut();
        // SAFETY: live handle and text; `out` receives null or an owned text.
        ffi::check(unsafe { ffi::rt_store_get(self.raw, key.as_ptr(), &mut out) })?;
        Ok((!out.is_null()).then(|| ffi::take_text(out)))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: owned, freed once. Groups hold their own reference.
        unsafe { ffi::rt_store_free(self.raw) }
    }
}

/// A process group over Gloo.
pub struct Gloo {
    raw: ffi::Raw,
    rank: usize,
    size: usize,
}

// SAFETY: moved between threads, never shared (no Sync).
unsafe impl Send for Gloo {}

impl Gloo {
    /// Joins the group `name` of `size` ranks as `rank`; blocks until all have joined.
    pub fn new(
        store: &Store,
        name: &str,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Gloo, Error> {
        let name = CString::new(name).map_err(|_| Error::Nul("group"))?;
        // On one machine the host's own name may not resolve; loopback always does.
        let host = CString::new(if store.loopback { "127.0.0.1" } else { "" }).expect("no NUL");
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` receives an owned handle on success.
        ffi::check(unsafe {
            ffi::rt_gloo_new(
                store.raw,
                name.as_ptr(),
                host.as_ptr(),
                rank as i32,
                size as i32,
                millis(timeout),
                &mut raw,
            )
        })?;
        Ok(Gloo { raw, rank, size })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces `tensor` on every rank by the sum over ranks.
    pub fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_all_reduce(self.raw, ffi::raw(tensor), 0) })
    }

    /// Replaces `tensor` on every rank by the elementwise maximum over ranks.
    pub fn all_reduce_max(&self, tensor: &mut Tensor) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_all_reduce(self.raw, ffi::raw(tensor), 1) })
    }

    /// Replaces `tensor` by rank `root`'s.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_broadcast(self.raw, ffi::raw(tensor), root as i32) })
    }

    /// `out [size * n, ..]` receives every rank's `input [n, ..]`, in rank order.
    pub fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_all_gather(self.raw, ffi::raw(out), ffi::raw(input)) })
    }

    /// [`Gloo::all_gather`] that goes on beside the caller's work.
    pub fn all_gather_start(&self, out: &Tensor, input: &Tensor) -> Result<Work, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: live handles; libtorch keeps the tensors until the work ends.
        ffi::check(unsafe {
            ffi::rt_gloo_all_gather_start(self.raw, ffi::raw(out), ffi::raw(input), &mut raw)
        })?;
        Ok(Work { raw })
    }

    /// [`Gloo::reduce_scatter`] that goes on beside the caller's work.
    pub fn reduce_scatter_start(&self, out: &Tensor, input: &Tensor) -> Result<Work, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: live handles; libtorch keeps the tensors until the work ends.
        ffi::check(unsafe {
            ffi::rt_gloo_reduce_scatter_start(self.raw, ffi::raw(out), ffi::raw(input), &mut raw)
        })?;
        Ok(Work { raw })
    }

    /// `out [n, ..]` receives this rank's part of the sum of all ranks' `input [size * n, ..]`.
    pub fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_reduce_scatter(self.raw, ffi::raw(out), ffi::raw(input)) })
    }

    /// Sends `in_rows[r]` rows of `input` to rank r and receives `out_rows[r]` from it.
    pub fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
    ) -> Result<(), Error> {
        assert!(
            out_rows.len() == self.size && in_rows.len() == self.size,
            "one row count for each rank"
        );
        // SAFETY: live handles, arrays of `size`.
        ffi::check(unsafe {
            ffi::rt_gloo_all_to_all(
                self.raw,
                ffi::raw(out),
                ffi::raw(input),
                out_rows.as_ptr(),
                in_rows.as_ptr(),
                self.size,
            )
        })
    }

    /// Sends `tensor` to rank `to`, which must [`recv`](Gloo::recv) with the same tag.
    pub fn send(&self, tensor: &Tensor, to: usize, tag: u32) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_gloo_send(self.raw, ffi::raw(tensor), to as i32, tag as i32) })
    }

    /// [`Gloo::send`] that goes on beside the caller's work.
    pub fn send_start(&self, tensor: &Tensor, to: usize, tag: u32) -> Result<Work, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: live handles; libtorch keeps the tensor until the work ends.
        ffi::check(unsafe {
            ffi::rt_gloo_send_start(self.raw, ffi::raw(tensor), to as i32, tag as i32, &mut raw)
        })?;
        Ok(Work { raw })
    }

    /// Receives into `tensor` from rank `from`.
    pub fn recv(&self, tensor: &mut Tensor, from: usize, tag: u32) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe {
            ffi::rt_gloo_recv(self.raw, ffi::raw(tensor), from as i32, tag as i32)
        })
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: a live handle.
        ffi::check(unsafe { ffi::rt_gloo_barrier(self.raw) })
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::rt_gloo_free(self.raw) }
    }
}

/// A collective under way.
pub struct Work {
    raw: ffi::Raw,
}

impl Work {
    /// Returns when the collective has ended, at its group's timeout at the latest.
    pub fn wait(self) -> Result<(), Error> {
        // SAFETY: a live handle.
        ffi::check(unsafe { ffi::rt_work_wait(self.raw) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the group itself keeps work that has not ended.
        unsafe { ffi::rt_work_free(self.raw) }
    }
}

fn millis(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}

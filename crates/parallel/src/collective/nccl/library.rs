//! NCCL's library, loaded at run time: the product builds and starts where there is none.
//!
//! Types are cudarc's. Its own loader is not used: it does not look for `libnccl.so.2`, the only
//! name that PyTorch's wheels have, and panics where it finds nothing.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use cudarc::nccl::sys::{
    cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId,
};
use tch::Kind;

/// Where the library may be: libtorch's own is loaded already, and found by this name.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclResult_t`. A number, since a newer library may have results that cudarc does not know.
pub type Code = u32;
/// All is well.
pub const SUCCESS: Code = 0;
/// The communicator is still at it.
pub const IN_PROGRESS: Code = 7;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($arg:ty),*) -> $out:ty;)*) => {
        /// The functions that we call.
        pub struct Library { $(pub $name: unsafe extern "C" fn($($arg),*) -> $out,)* }

        impl Library {
            /// Finds all functions in a loaded library.
            fn bind(handle: *mut c_void) -> Result<Library, String> {
                Ok(Library { $($name: {
                    // SAFETY: a loaded library and a text.
                    let found = unsafe { libc::dlsym(handle, concat!($symbol, "\0").as_ptr().cast()) };
                    if found.is_null() {
                        return Err(format!("it has no {}", $symbol));
                    }
                    // SAFETY: the declaration of nccl.h.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $out>(found) }
                },)* })
            }
        }
    };
}

functions! {
    version = "ncclGetVersion"(*mut c_int) -> Code;
    unique_id = "ncclGetUniqueId"(*mut ncclUniqueId) -> Code;
    init = "ncclCommInitRankConfig"(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> Code;
    async_error = "ncclCommGetAsyncError"(ncclComm_t, *mut Code) -> Code;
    finalize = "ncclCommFinalize"(ncclComm_t) -> Code;
    destroy = "ncclCommDestroy"(ncclComm_t) -> Code;
    abort = "ncclCommAbort"(ncclComm_t) -> Code;
    error_text = "ncclGetErrorString"(Code) -> *const c_char;
    last_error = "ncclGetLastError"(ncclComm_t) -> *const c_char;
    all_reduce = "ncclAllReduce"(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Code;
    broadcast = "ncclBroadcast"(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    all_gather = "ncclAllGather"(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code;
    reduce_scatter = "ncclReduceScatter"(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Code;
    send = "ncclSend"(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    recv = "ncclRecv"(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    group_start = "ncclGroupStart"() -> Code;
    group_end = "ncclGroupEnd"() -> Code;
}

impl Library {
    /// The library of this process, loaded once.
    ///
    /// # Errors
    /// Why it cannot be loaded, and what to do.
    pub fn get() -> Result<&'static Library, String> {
        static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
        let loaded = LOADED.get_or_init(|| Library::load(&NAMES));
        loaded.as_ref().map_err(Clone::clone)
    }

    /// Loads the first of these libraries that is there.
    fn load(names: &[&str]) -> Result<Library, String> {
        let mut problems = Vec::new();
        for name in names {
            let text = CString::new(*name).expect("no NUL");
            // SAFETY: a library by name; its handle is kept for the life of the process.
            let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW) };
            if !handle.is_null() {
                return Library::bind(handle).map_err(|e| format!("{name}: {e}: {FIX}"));
            }
            // SAFETY: a static text or null, read before the next call.
            let why = unsafe { libc::dlerror() };
            let why = match why.is_null() {
                true => name.to_string(),
                // SAFETY: ends in NUL.
                false => unsafe { CStr::from_ptr(why) }
                    .to_string_lossy()
                    .into_owned(),
            };
            problems.push(why);
        }
        Err(format!("NCCL is not here: {}: {FIX}", problems.join("; ")))
    }

    /// A fresh name for a communicator, for all its ranks.
    pub fn new_id(&self) -> Result<ncclUniqueId, String> {
        let mut id = MaybeUninit::uninit();
        // SAFETY: written on success.
        let code = unsafe { (self.unique_id)(id.as_mut_ptr()) };
        self.check(code, std::ptr::null_mut())?;
        // SAFETY: as above.
        Ok(unsafe { id.assume_init() })
    }

    /// Success, or what NCCL says of the failure; `comm` may be null.
    pub fn check(&self, code: Code, comm: ncclComm_t) -> Result<(), String> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: static texts; NCCL takes null for the last error of any communicator.
        let (what, last) =
            unsafe { (text((self.error_text)(code)), text((self.last_error)(comm))) };
        Err(match last.trim() {
            "" => format!("NCCL: {what}"),
            last => format!("NCCL: {what}: {last}"),
        })
    }
}

const FIX: &str = "install NCCL 2.28 or newer (`pip install nvidia-nccl-cu13`; it comes with PyTorch's \
    CUDA wheels) where the dynamic linker finds it, or use Gloo: `collectives = \"gloo\"`";

/// # Safety
/// `text` is null or ends in NUL.
unsafe fn text(text: *const c_char) -> String {
    match text.is_null() {
        true => String::new(),
        // SAFETY: by the contract.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    }
}

/// Settings of a communicator whose calls return at once. What is not set here NCCL chooses.
pub fn non_blocking() -> ncclConfig_t {
    /// `NCCL_CONFIG_UNDEF_INT`
    const UNSET: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        // `NCCL_CONFIG_INITIALIZER`: its mark, and the version whose fields these are
        magic: 0xcafe_beef,
        version: 22800,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: std::ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: std::ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
    }
}

/// NCCL's name of an element.
pub fn element(kind: Kind) -> Result<ncclDataType_t, String> {
    use ncclDataType_t::{
        ncclBfloat16, ncclFloat16, ncclFloat32, ncclFloat64, ncclInt8, ncclInt32, ncclInt64,
        ncclUint8,
    };
    Ok(match kind {
        Kind::Float => ncclFloat32,
        Kind::Double => ncclFloat64,
        Kind::BFloat16 => ncclBfloat16,
        Kind::Half => ncclFloat16,
        Kind::Int64 => ncclInt64,
        Kind::Int => ncclInt32,
        Kind::Int8 => ncclInt8,
        Kind::Uint8 | Kind::Bool => ncclUint8,
        other => return Err(format!("NCCL does not carry {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_says_what_to_do() {
        let error = Library::load(&["libnccl.so.no", "libnothing.so"]).err();
        let error = error.expect("no such library");
        for part in [
            "libnccl.so.no",
            "libnothing.so",
            "nvidia-nccl-cu13",
            "collectives = \"gloo\"",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_library_that_is_another_is_refused() {
        let error = Library::load(&["libc.so.6"]).err().expect("not NCCL");
        assert!(
            error.contains("libc.so.6: it has no ncclGetVersion"),
            "{error}"
        );
    }

    #[test]
    fn elements_are_as_wide_as_ours() {
        use ncclDataType_t::{ncclBfloat16, ncclFloat64, ncclInt64, ncclUint8};
        // the numbers of nccl.h
        for (kind, want, number) in [
            (Kind::Bool, ncclUint8, 1),
            (Kind::Int64, ncclInt64, 4),
            (Kind::Double, ncclFloat64, 8),
            (Kind::BFloat16, ncclBfloat16, 9),
        ] {
            let got = element(kind).expect("carried");
            assert_eq!((got, got as u32), (want, number), "{kind:?}");
        }
        assert!(element(Kind::ComplexFloat).is_err());
    }
}

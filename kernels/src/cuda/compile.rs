//! NVRTC through cudarc, and compiled code kept on disk by the digest of all that it depends on.
//!
//! The library is looked for by the dynamic linker's rules when a kernel is first needed: PyTorch's CUDA wheels have it.
//! What was compiled lies in `recipe/kernels` of the user's cache; a file there that is not whole is compiled again.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys;

use super::Error;
use super::source::{COMMON, File};

/// Machine code of all kernels of a source for GPUs of compute capability `arch` (90 for 9.0): from `cache` if it has it,
/// else compiled, and kept there. A cache that cannot be written is done without.
///
/// # Errors
/// No NVRTC, or a source that does not compile.
pub fn cubin(file: &File, arch: u32, cache: Option<&Path>) -> Result<Vec<u8>, Error> {
    let options = [
        format!("--gpu-architecture=sm_{arch}"),
        "--std=c++17".to_owned(),
    ];
    let version = version()?;
    let at = cache.map(|dir| {
        let mut hasher = blake3::Hasher::new_derive_key("recipe kernels 1");
        for text in [COMMON.text, file.text, &version, &options.join(" ")] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let name = file.name.trim_end_matches(".cu");
        dir.join(format!(
            "{name}-sm_{arch}-{}.cubin",
            &hasher.finalize().to_hex()[..32]
        ))
    });
    if let Some(code) = at.as_deref().and_then(read) {
        return Ok(code);
    }
    let code = compile(file, arch, &options)?;
    if let Some(at) = at {
        // a cache: the next process compiles again where this fails
        let _ = write(&at, &code);
    }
    Ok(code)
}

/// Where compiled code is kept: `recipe/kernels` in `$XDG_CACHE_HOME` or `~/.cache`; nowhere without a home.
pub fn directory() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("recipe/kernels"))
}

/// NVRTC's version, as `13.0`.
///
/// # Errors
/// No NVRTC.
pub fn version() -> Result<String, Error> {
    // SAFETY: looks for the library; every other call comes after this one found it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Missing(
            "NVRTC is not here: install libnvrtc.so.13 (`pip install nvidia-cuda-nvrtc`; it comes with PyTorch's CUDA \
             wheels) where the dynamic linker finds it, or use RECIPE_KERNELS=libtorch"
                .into(),
        ));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    let code = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(format!("{major}.{minor}")),
        other => Err(Error::Missing(format!("NVRTC does not work: {other:?}"))),
    }
}

fn compile(file: &File, arch: u32, options: &[String]) -> Result<Vec<u8>, Error> {
    let text = |s: &str| CString::new(s).expect("sources have no NUL");
    let (source, name) = (text(file.text), text(file.name));
    let (header, header_name) = (text(COMMON.text), text(COMMON.name));
    let options: Vec<CString> = options.iter().map(|o| text(o)).collect();
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let failed = |log: String| Error::Compile {
        file: file.name,
        arch,
        log,
    };
    let check = |code: sys::nvrtcResult| match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(failed(format!("{other:?}"))),
    };
    let mut program = std::ptr::null_mut();
    // SAFETY: texts that outlive the program; one header.
    check(unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            1,
            &header.as_ptr(),
            &header_name.as_ptr(),
        )
    })?;
    let result = (|| {
        // SAFETY: a live program, and as many options as said.
        let code =
            unsafe { sys::nvrtcCompileProgram(program, options.len() as c_int, options.as_ptr()) };
        if code != sys::nvrtcResult::NVRTC_SUCCESS {
            let mut log = buffer(|n| unsafe { sys::nvrtcGetProgramLogSize(program, n) });
            // SAFETY: the log fits: NVRTC gave its size.
            unsafe { sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()) };
            let said = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy);
            return Err(failed(format!("{code:?}\n{}", said.unwrap_or_default())));
        }
        let mut code = buffer(|n| unsafe { sys::nvrtcGetCUBINSize(program, n) });
        // SAFETY: the code fits: NVRTC gave its size.
        check(unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()) })?;
        Ok(code)
    })();
    // SAFETY: made above, destroyed once.
    unsafe { sys::nvrtcDestroyProgram(&mut program) };
    result
}

/// Room for what NVRTC says the size of.
fn buffer(size: impl Fn(*mut usize) -> sys::nvrtcResult) -> Vec<u8> {
    let mut n = 0;
    size(&mut n);
    vec![0; n]
}

/// A file's code, if the digest at its beginning is its own.
fn read(at: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(at).ok()?;
    let (digest, code) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(code).as_bytes() == digest).then(|| bytes.split_off(blake3::OUT_LEN))
}

/// Puts a file in place whole.
fn write(at: &Path, code: &[u8]) -> std::io::Result<()> {
    let dir = at.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let part = at.with_extension(format!("part-{}", std::process::id()));
    let mut out = std::fs::File::create(&part)?;
    out.write_all(blake3::hash(code).as_bytes())?;
    out.write_all(code)?;
    std::fs::rename(part, at)
}

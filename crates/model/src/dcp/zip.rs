//! The archives of `torch.save`: zip files whose entries are stored, not compressed.
//!
//! Layout: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>, sections 4.3 and 4.5.3;
//! what PyTorch writes: `caffe2/serialize/inline_container.cc` (data at multiples of 64 bytes,
//! data descriptors, a zip64 end record whatever the size).

use std::io::{self, Write};

const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;
/// Sizes follow the data; names are UTF-8.
const FLAGS: u16 = 0x0808;
const ENCRYPTED: u16 = 1;
/// Entries' data begin at multiples of this, so that they can be mapped as tensors.
const ALIGN: u64 = 64;
/// No archive of one tensor has more entries than this.
const MAX_ENTRIES: u64 = 1000;

/// A file in an archive.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    pub name: &'a str,
    pub data: &'a [u8],
    pub crc: u32,
}

/// The files of an archive that is all of `bytes`.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Vec<File<'_>>, String> {
    const CUT: &str = "is no zip archive to its end; the file is truncated or damaged";
    let end = bytes.len().checked_sub(22).ok_or(CUT)?;
    if u32_at(bytes, end) != Some(END) {
        return Err(CUT.into());
    }
    let mut entries = u64::from(u16_at(bytes, end + 10).ok_or(CUT)?);
    let mut directory = u64::from(u32_at(bytes, end + 16).ok_or(CUT)?);
    if let Some(locator) = end.checked_sub(20)
        && u32_at(bytes, locator) == Some(LOCATOR64)
    {
        let at = place(u64_at(bytes, locator + 8)).ok_or(CUT)?;
        if u32_at(bytes, at) != Some(END64) {
            return Err("has no zip64 end record where it says; it is damaged".into());
        }
        entries = u64_at(bytes, at + 32).ok_or(CUT)?;
        directory = u64_at(bytes, at + 48).ok_or(CUT)?;
    }
    if entries > MAX_ENTRIES {
        return Err(format!(
            "says it has {entries} entries; a tensor's has at most {MAX_ENTRIES}"
        ));
    }
    let mut at = place(Some(directory)).ok_or(CUT)?;
    let mut out = Vec::new();
    for i in 0..entries {
        let bad = || format!("has a bad entry {i} in its directory; it is damaged");
        let (file, next) = entry(bytes, at).ok_or_else(bad)??;
        out.push(file);
        at = next;
    }
    Ok(out)
}

/// The file that the directory describes at `at`, and where the next entry begins. `None` is a
/// place outside the archive, or no entry.
fn entry(bytes: &[u8], at: usize) -> Option<Result<(File<'_>, usize), String>> {
    if u32_at(bytes, at)? != CENTRAL {
        return None;
    }
    let flags = u16_at(bytes, at + 8)?;
    let method = u16_at(bytes, at + 10)?;
    let crc = u32_at(bytes, at + 16)?;
    let mut sizes = [at + 20, at + 24, at + 42].map(|p| u32_at(bytes, p).map(u64::from));
    let name = usize::from(u16_at(bytes, at + 28)?);
    let extra = usize::from(u16_at(bytes, at + 30)?);
    let comment = usize::from(u16_at(bytes, at + 32)?);
    let extra_at = at + 46 + name;
    let text = std::str::from_utf8(bytes.get(at + 46..extra_at)?).ok()?;
    wide(bytes.get(extra_at..extra_at + extra)?, &mut sizes)?;
    if method != 0 || flags & ENCRYPTED != 0 {
        return Some(Err(format!(
            "has '{text}' compressed or encrypted, as torch.save never writes it"
        )));
    }
    let [stored, size, offset] = sizes;
    let (size, offset) = (place(size)?, place(offset)?);
    if place(stored)? != size || u32_at(bytes, offset)? != LOCAL {
        return None;
    }
    let skip = usize::from(u16_at(bytes, offset + 26)?) + usize::from(u16_at(bytes, offset + 28)?);
    let start = offset.checked_add(30 + skip)?;
    let data = bytes.get(start..start.checked_add(size)?)?;
    let file = File {
        name: text,
        data,
        crc,
    };
    Some(Ok((file, extra_at + extra + comment)))
}

/// Sizes and offset that did not fit in 32 bits stand in the zip64 extra field, in this order.
fn wide(mut extra: &[u8], [stored, size, offset]: &mut [Option<u64>; 3]) -> Option<()> {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let mut field = extra.get(4..4 + length)?;
        if id == 1 {
            for value in [size, stored, offset] {
                if *value == Some(u32::MAX.into()) {
                    *value = Some(u64_at(field, 0)?);
                    field = &field[8..];
                }
            }
            return Some(());
        }
        extra = &extra[4 + length..];
    }
    Some(())
}

fn place(at: Option<u64>) -> Option<usize> {
    // half of the address space is more than any file, and leaves room to add to
    at.and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n < usize::MAX / 2)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

/// An archive that is being written.
pub struct Writer<W: Write> {
    out: Summing<W>,
    written: Vec<Written>,
}

struct Written {
    name: String,
    offset: u64,
    start: u64,
    size: u64,
    crc: u32,
}

impl<W: Write> Writer<W> {
    /// An empty archive at the place where `out` stands.
    pub fn new(out: W) -> Self {
        Self {
            out: Summing {
                out,
                at: 0,
                crc: crc32fast::Hasher::new(),
            },
            written: Vec::new(),
        }
    }

    /// Begins a file: what is written to [`Writer::data`] until [`Writer::end`] is its bytes.
    ///
    /// # Errors
    /// The sink's.
    pub fn begin(&mut self, name: &str) -> io::Result<()> {
        let offset = self.out.at;
        // the extra field "FB" pads the data to its alignment, as PyTorch's does
        let head = offset + 30 + name.len() as u64 + 4;
        let padding = (head.next_multiple_of(ALIGN) - head) as u16;
        self.out.longs(&[LOCAL])?;
        self.out.shorts(&[0, FLAGS, 0, 0, 0])?;
        self.out.longs(&[0, 0, 0])?;
        self.out.shorts(&[name.len() as u16, padding + 4])?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(b"FB")?;
        self.out.shorts(&[padding])?;
        self.out.write_all(&vec![b'Z'; padding.into()])?;
        self.out.crc = crc32fast::Hasher::new();
        self.written.push(Written {
            name: name.into(),
            offset,
            start: self.out.at,
            size: 0,
            crc: 0,
        });
        Ok(())
    }

    /// Where the bytes of the file that was begun go.
    pub fn data(&mut self) -> &mut dyn Write {
        &mut self.out
    }

    /// Ends the file that was begun; returns its size in bytes.
    ///
    /// # Errors
    /// The sink's.
    pub fn end(&mut self) -> io::Result<u64> {
        let crc = self.out.crc.clone().finalize();
        let Some(file) = self.written.last_mut() else {
            return Ok(0);
        };
        file.size = self.out.at - file.start;
        file.crc = crc;
        let size = file.size;
        self.out.longs(&[DESCRIPTOR, crc])?;
        match u32::try_from(size) {
            Ok(size) if size < u32::MAX => self.out.longs(&[size, size])?,
            _ => self.out.wides(&[size, size])?,
        }
        Ok(size)
    }

    /// A whole file.
    ///
    /// # Errors
    /// The sink's.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(name)?;
        self.data().write_all(bytes)?;
        self.end()?;
        Ok(())
    }

    /// Writes the directory; returns the archive's length in bytes.
    ///
    /// # Errors
    /// The sink's.
    pub fn finish(mut self) -> io::Result<u64> {
        let start = self.out.at;
        for file in &self.written {
            let large = |n: u64| n >= u32::MAX.into();
            let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let mut extra = Vec::new();
            if large(file.size) {
                extra.extend([file.size, file.size]);
            }
            if large(file.offset) {
                extra.push(file.offset);
            }
            let extra_bytes = if extra.is_empty() {
                0
            } else {
                extra.len() * 8 + 4
            };
            self.out.longs(&[CENTRAL])?;
            self.out.shorts(&[0, 0, FLAGS, 0, 0, 0])?;
            self.out
                .longs(&[file.crc, low(file.size), low(file.size)])?;
            self.out
                .shorts(&[file.name.len() as u16, extra_bytes as u16, 0, 0, 0])?;
            self.out.longs(&[0, low(file.offset)])?;
            self.out.write_all(file.name.as_bytes())?;
            if !extra.is_empty() {
                self.out.shorts(&[1, (extra.len() * 8) as u16])?;
                self.out.wides(&extra)?;
            }
        }
        let (end, files) = (self.out.at, self.written.len() as u64);
        self.out.longs(&[END64])?;
        self.out.wides(&[44])?;
        self.out.shorts(&[45, 45])?;
        self.out.longs(&[0, 0])?;
        self.out.wides(&[files, files, end - start, start])?;
        self.out.longs(&[LOCATOR64, 0])?;
        self.out.wides(&[end])?;
        self.out.longs(&[1])?;
        let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        self.out.longs(&[END])?;
        self.out.shorts(&[0, 0, files as u16, files as u16])?;
        self.out.longs(&[low(end - start), low(start)])?;
        self.out.shorts(&[0])?;
        self.out.flush()?;
        Ok(self.out.at)
    }
}

/// Counts what passes and sums it up.
struct Summing<W: Write> {
    out: W,
    at: u64,
    crc: crc32fast::Hasher,
}

impl<W: Write> Summing<W> {
    fn shorts(&mut self, values: &[u16]) -> io::Result<()> {
        values
            .iter()
            .try_for_each(|v| self.write_all(&v.to_le_bytes()))
    }

    fn longs(&mut self, values: &[u32]) -> io::Result<()> {
        values
            .iter()
            .try_for_each(|v| self.write_all(&v.to_le_bytes()))
    }

    fn wides(&mut self, values: &[u64]) -> io::Result<()> {
        values
            .iter()
            .try_for_each(|v| self.write_all(&v.to_le_bytes()))
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.crc.update(&bytes[..n]);
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

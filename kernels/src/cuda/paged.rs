//! Attention of single rows over paged keys and values, and writing to them (`paged_attention.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, FLOATS, aligned, kind_name, width};
use super::launch::{Args, Launch};
use super::source::PAGED_ATTENTION;
use super::{Error, Machine};

/// Slots of a block of the cache, as the source has it.
pub const SLOTS: i64 = 16;
/// Positions of a part of a sequence, as the source has it.
const PART: i64 = 256;
const WARPS: i64 = 4;

/// Keys and values `[slots, kv_heads, d]` of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    /// Keys.
    pub keys: &'a Tensor,
    /// Values.
    pub values: &'a Tensor,
}

/// Where the rows of a forward look.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Blocks of each row's sequence `[rows, width]`, int32; those past its end are not read.
    pub tables: &'a Tensor,
    /// Positions that each row sees, itself included `[rows]`, int32; 0 gives zeros.
    pub lengths: &'a Tensor,
    /// The greatest of the lengths, or more.
    pub longest: i64,
    /// Positions before itself that a row sees, itself included.
    pub window: Option<i64>,
}

/// Query heads of a block, and elements that the kernel has room for.
fn shape(d: i64, group: i64) -> Option<(i64, i64)> {
    let room = [64, 128, 256].into_iter().find(|&room| d <= room)?;
    let most = if room == 256 { 1 } else { 4 };
    let heads = [4, 2, 1]
        .into_iter()
        .find(|&g| g <= most && group % g == 0)?;
    Some((heads, room))
}

/// Whether heads of this size and kind have a kernel.
pub fn fits(kind: Kind, d: i64) -> bool {
    FLOATS.contains(&kind) && d > 0 && d % 8 == 0 && d <= 256
}

/// Attention of `q` `[rows, heads, d]`, one row of each sequence, whose keys are in the cache.
///
/// # Errors
/// Tensors that do not fit, heads without a kernel, or the machine's.
pub fn attend(
    machine: &dyn Machine,
    q: &Tensor,
    cache: Cache,
    seen: &Seen,
    scale: f64,
) -> Result<Tensor, Error> {
    let check = Check::new("paged_attention", machine);
    let kind = q.kind();
    check.tensor("q", q, &FLOATS, &[-1, -1, -1])?;
    let (rows, heads, d) = (q.size()[0], q.size()[1], q.size()[2]);
    check.tensor("keys", cache.keys, &[kind], &[-1, -1, d])?;
    check.tensor("values", cache.values, &[kind], &cache.keys.size())?;
    let kv_heads = cache.keys.size()[1];
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(check.refuse(format!(
            "{heads} query heads cannot share {kv_heads} key heads evenly"
        )));
    }
    for (name, t) in [("keys", cache.keys), ("values", cache.values)] {
        if !aligned(t, 16) {
            let at = t.data_ptr() as usize;
            return Err(check.refuse(format!("{name} lie at {at:#x}, no multiple of 16 bytes")));
        }
    }
    check.tensor("tables", seen.tables, &[Kind::Int], &[rows, -1])?;
    check.tensor("lengths", seen.lengths, &[Kind::Int], &[rows])?;
    let table = seen.tables.size()[1];
    if seen.longest > table * SLOTS {
        return Err(check.refuse(format!(
            "rows see up to {} positions, but tables have {table} blocks of {SLOTS}",
            seen.longest
        )));
    }
    let Some((group, room)) = shape(d, heads / kv_heads).filter(|_| fits(kind, d)) else {
        return Err(check.unsupported(format!(
            "heads of {d} elements: a multiple of 8, at most 256"
        )));
    };
    let parts = (seen.longest + PART - 1) / PART;
    if heads > 65535 || parts > 65535 {
        return Err(check.unsupported(format!("{heads} heads over {} positions", seen.longest)));
    }
    let grid = check.int("rows", rows)?;
    let out = machine.empty(&q.size(), kind);
    if rows == 0 || heads == 0 {
        return Ok(out);
    }
    let acc = machine.empty(&[rows, heads, parts, d], Kind::Float);
    let ml = machine.empty(&[rows, heads, parts, 2], Kind::Float);
    let window = seen.window.unwrap_or(0).min(i64::from(i32::MAX));
    let name = kind_name(kind);
    if parts > 0 {
        machine.launch(&Launch {
            file: &PAGED_ATTENTION,
            kernel: format!("paged_attention_{name}_d{room}_g{group}"),
            grid: [grid, (heads / group) as u32, parts as u32],
            threads: (32 * WARPS) as u32,
            shared: (4 * WARPS * group * (room + 2)) as u32,
            args: Args::default()
                .tensor(q)
                .tensor(cache.keys)
                .tensor(cache.values)
                .tensor(seen.tables)
                .tensor(seen.lengths)
                .tensor(&acc)
                .tensor(&ml)
                .int(heads)
                .int(kv_heads)
                .int(d)
                .int(table)
                .int(window)
                .float(scale),
        })?;
    }
    machine.launch(&Launch {
        file: &PAGED_ATTENTION,
        kernel: format!("paged_combine_{name}"),
        grid: [grid, heads as u32, 1],
        threads: 128,
        shared: 0,
        args: Args::default()
            .tensor(&acc)
            .tensor(&ml)
            .tensor(seen.lengths)
            .tensor(&out)
            .int(heads)
            .int(d)
            .int(parts)
            .int(window),
    })?;
    Ok(out)
}

/// Writes `k` and `v` `[rows, kv_heads, d]` to `slots` `[rows]` (int64; a negative one is left out) of the cache. Two
/// rows must not have one slot.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn write(
    machine: &dyn Machine,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
    cache: Cache,
) -> Result<(), Error> {
    let check = Check::new("cache_write", machine);
    let kind = k.kind();
    check.tensor("k", k, &FLOATS, &[-1, -1, -1])?;
    let (rows, kv_heads, d) = (k.size()[0], k.size()[1], k.size()[2]);
    check.tensor("v", v, &[kind], &k.size())?;
    check.tensor("slots", slots, &[Kind::Int64], &[rows])?;
    check.tensor("keys", cache.keys, &[kind], &[-1, kv_heads, d])?;
    check.tensor("values", cache.values, &[kind], &cache.keys.size())?;
    let grid = check.int("rows", rows)?;
    check.int("elements of a row", kv_heads * d)?;
    if rows == 0 || kv_heads * d == 0 {
        return Ok(());
    }
    let (_, odd) = width(kv_heads * d, &[k, v, cache.keys, cache.values]);
    machine.launch(&Launch {
        file: &PAGED_ATTENTION,
        kernel: format!("cache_write_{}{odd}", kind_name(kind)),
        grid: [grid, 1, 1],
        threads: 128,
        shared: 0,
        args: Args::default()
            .tensor(k)
            .tensor(v)
            .tensor(slots)
            .tensor(cache.keys)
            .tensor(cache.values)
            .int(kv_heads * d),
    })
}

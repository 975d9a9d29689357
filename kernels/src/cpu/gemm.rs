//! A linear layer's products, the first in bf16 too:
//!
//! ```text
//! y = x w^T + b          dx = dy w          dw = dy^T x
//! ```
//!
//! x, dx `[m, k]`, w, dw `[n, k]`, b `[n]`, y, dy `[m, n]`.
//!
//! The matrix whose columns stand in the lanes is packed into panels of 64 columns; the other's
//! elements are broadcast from where they lie, but in dw, where those of one column lie far
//! apart. Sums run over the inner dimension in ascending order in one chain, so an element of y or
//! dx depends on its row of x or dy alone and nothing depends on the number of threads. libtorch's
//! BLAS library has no AVX-512 code for AMD's processors; on FACTS' machine this reaches 100 of a
//! core's 113 GFLOP/s where that one reaches 80.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::simd::f32s::product;
use super::simd::{Broadcast, Cell, Rows, available, first, transpose};
use super::{Lines, Shared, pieces};
use crate::elem::LANES;

/// Columns of a panel: four registers.
const PANEL: usize = 4 * LANES;
/// Numbers that a tile broadcasts at a time.
const TILE: usize = 6;
/// Rows that are multiplied by a panel before the next panel.
const ROWS: usize = 11 * TILE;
/// So many rows are few: a piece is of one panel, and of so many rows where panels are few too.
const FEW: usize = 256;
const FEW_ROWS: usize = 4 * TILE;
const FEW_PANELS: usize = 8;
/// Inner elements whose part of a panel stays in the second-level cache.
const DEPTH: usize = 256;
/// Rows of x and dy that are packed at a time for dw.
const STEP: usize = 128;
/// Rows between the one that is packed and the one that is asked for.
const AHEAD: usize = 6;
/// Most columns of dy, and of x, in one piece of dw: what is packed of them and the sums stay in
/// the second-level cache.
const DY_COLUMNS: usize = 192;
const X_COLUMNS: usize = 4 * PANEL;

/// Calls `work(0..count)`, each once, in any order and on any thread.
pub type Team<'a> = &'a mut dyn FnMut(usize, &(dyn Fn(usize) + Sync));

/// `w` `[n, k]` packed for products with rows of x.
pub struct Panels<'a, E> {
    /// `[panel][k / E::PER][lanes]`.
    cells: &'a [f32],
    n: usize,
    k: usize,
    element: PhantomData<E>,
}

impl<'a, E: Cell> Panels<'a, E> {
    /// Whether matrices of this `k` can be multiplied here.
    pub fn fit(k: usize) -> bool {
        E::available() && k.is_multiple_of(E::PER)
    }

    /// Cells that a packed matrix takes.
    pub fn size([n, k]: [usize; 2]) -> usize {
        n.next_multiple_of(LANES) * (k / E::PER)
    }

    /// Packs `w` into `cells`.
    ///
    /// # Panics
    /// If it does not [`fit`](Self::fit), or lengths do not.
    pub fn pack(team: Team, w: &[E], [n, k]: [usize; 2], cells: &'a mut [f32]) -> Self {
        let size = Self::size([n, k]);
        assert!(
            Self::fit(k) && w.len() == n * k && cells.len() >= size,
            "shapes of a matrix to be packed"
        );
        let (to, depth) = (Shared::new(cells), k / E::PER);
        team(n.div_ceil(PANEL), &|p| {
            // SAFETY: the instruction set was checked, and lengths; panels are disjoint.
            unsafe {
                let to = to.pointer().add(p * PANEL * depth);
                pack_columns(w.as_ptr().cast(), depth, panel(p, n), to);
            }
        });
        Self::packed(cells, [n, k])
    }

    /// What [`pack`](Self::pack) left in `cells` for a matrix of this size.
    pub fn packed(cells: &'a [f32], [n, k]: [usize; 2]) -> Self {
        assert!(cells.len() >= Self::size([n, k]), "size of a packed matrix");
        Self {
            cells,
            n,
            k,
            element: PhantomData,
        }
    }
}

/// A packed matrix that rows are multiplied by, and where `y = x w^T + b` goes.
pub struct Product<'a, E> {
    pub panels: Panels<'a, E>,
    pub bias: Option<&'a [E]>,
    pub y: &'a mut [E],
}

/// How products of the same rows are cut, so that every thread has work and reads a panel seldom.
struct Cut {
    /// Rows of x.
    m: usize,
    /// Of a piece.
    rows: usize,
    by_panel: bool,
}

impl Cut {
    fn new<E>(m: usize, products: &[Product<E>]) -> Cut {
        let panels: usize = products.iter().map(|p| p.panels.n.div_ceil(PANEL)).sum();
        let few = m <= FEW;
        Cut {
            m,
            rows: match few && panels < FEW_PANELS {
                true => FEW_ROWS,
                false => ROWS,
            },
            by_panel: few,
        }
    }

    /// Pieces down and across.
    fn pieces<E>(&self, product: &Product<E>) -> (usize, usize) {
        let across = match self.by_panel {
            true => product.panels.n.div_ceil(PANEL),
            false => 1,
        };
        (self.m.div_ceil(self.rows), across)
    }

    /// Rows and panels of a piece.
    fn part<E>(&self, product: &Product<E>, piece: usize) -> (Range<usize>, Range<usize>) {
        let down = self.pieces(product).0;
        let from = piece % down * self.rows;
        let panels = match self.by_panel {
            true => piece / down..piece / down + 1,
            false => 0..product.panels.n.div_ceil(PANEL),
        };
        (from..(from + self.rows).min(self.m), panels)
    }
}

/// All products of the same rows, each rounded once.
///
/// # Panics
/// If lengths do not fit.
pub fn multiply<E: Cell>(team: Team, x: &[E], products: &mut [Product<E>]) {
    let outs: Vec<_> = products.iter_mut().map(|p| Shared::new(p.y)).collect();
    let products = &*products;
    let Some(first) = products.first() else {
        return;
    };
    let k = first.panels.k;
    for p in products {
        let n = p.panels.n;
        check(x.len(), n * p.panels.k, p.y.len(), [n, k]);
        assert!(
            p.bias.is_none_or(|b| b.len() == n),
            "shape of a linear's bias"
        );
    }
    let cut = Cut::new(x.len() / k, products);
    let pieces = |p| {
        let (down, across) = cut.pieces(p);
        down * across
    };
    team(products.iter().map(pieces).sum(), &|mut piece| {
        let mut at = 0;
        while piece >= pieces(&products[at]) {
            piece -= pieces(&products[at]);
            at += 1;
        }
        let (product, n) = (&products[at], products[at].panels.n);
        let (rows, panels) = cut.part(product, piece);
        let cells = product.panels.cells.as_ptr();
        // SAFETY: lengths were checked; pieces are disjoint rows and columns.
        unsafe {
            let x = x.as_ptr().add(rows.start * k);
            let y = outs[at].pointer().add(rows.start * n);
            tiles(x, cells, rows.len(), k / E::PER, n, panels, product.bias, y);
        }
    });
}

/// `y` from `x`, `w` and perhaps `b` on libtorch's threads; `n` and `k` as above.
///
/// # Panics
/// If `k` does not [fit](Panels::fit), or lengths do not.
pub fn forward<E: Cell>(x: &[E], w: &[E], b: Option<&[E]>, [n, k]: [usize; 2], y: &mut [E]) {
    with_memory(Panels::<E>::size([n, k]), |memory| {
        let mut team = pieces;
        let panels = Panels::pack(&mut team, w, [n, k], memory);
        multiply(&mut team, x, &mut [Product { panels, bias: b, y }]);
    });
}

/// `dx` from `dy` and `w`.
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(dy: &[f32], w: &[f32], [n, k]: [usize; 2], dx: &mut [f32]) {
    check(dx.len(), w.len(), dy.len(), [n, k]);
    let out = Shared::new(dx);
    let m = dy.len() / n;
    with_memory(k.next_multiple_of(LANES) * n, |memory| {
        let packed = Shared::new(memory);
        pieces(k.div_ceil(PANEL), &|p| {
            // SAFETY: as in `forward`.
            unsafe { pack_rows(w, 0..n, k, panel(p, k), packed.pointer().add(p * PANEL * n)) };
        });
        pieces(m.div_ceil(ROWS), &|block| {
            let rows = block * ROWS..((block + 1) * ROWS).min(m);
            // SAFETY: as in `forward`.
            unsafe {
                let dy = dy.as_ptr().add(rows.start * n);
                let dx = out.pointer().add(rows.start * k);
                let panels = 0..k.div_ceil(PANEL);
                tiles::<f32>(dy, packed.pointer(), rows.len(), n, k, panels, None, dx);
            }
        });
    });
}

/// `dw` from `dy` and `x`.
///
/// # Panics
/// As [`forward`].
pub fn weight_gradient(dy: &[f32], x: &[f32], [n, k]: [usize; 2], dw: &mut [f32]) {
    check(x.len(), dw.len(), dy.len(), [n, k]);
    let m = x.len() / k;
    if m == 0 {
        return dw.fill(0.0);
    }
    let out = Shared::new(dw);
    // as equal as tiles and panels allow
    let cut =
        |n: usize, most: usize, unit: usize| n.div_ceil(n.div_ceil(most)).next_multiple_of(unit);
    let (wide, deep) = (cut(n, DY_COLUMNS, TILE), cut(k, X_COLUMNS, PANEL));
    let (down, across) = (n.div_ceil(wide), k.div_ceil(deep));
    let tile_size = STEP * TILE + LANES;
    let tiles = wide / TILE;
    pieces(across * down, &|piece| {
        let part = |i: usize, size: usize, n: usize| i * size..((i + 1) * size).min(n);
        let mine = part(piece / across, wide, n);
        let columns = part(piece % across, deep, k);
        let lanes = columns.len().next_multiple_of(LANES);
        with_memory(tiles * tile_size + (STEP + wide) * lanes, |memory| {
            let (packed_dy, rest) = memory.split_at_mut(tiles * tile_size);
            let (packed_x, sums) = rest.split_at_mut(STEP * lanes);
            for at in (0..m).step_by(STEP) {
                let rows = at..(at + STEP).min(m);
                // SAFETY: `check` found AVX-512 and that lengths fit; the memory was made to fit.
                unsafe {
                    pack_tiles(dy, rows.clone(), n, mine.clone(), tile_size, packed_dy);
                    for from in (0..lanes).step_by(PANEL) {
                        let panel =
                            columns.start + from..columns.end.min(columns.start + from + PANEL);
                        let vectors = panel.len().div_ceil(LANES);
                        let to = packed_x.as_mut_ptr().add(STEP * from);
                        pack_rows(x, rows.clone(), k, panel, to);
                        for tile in 0..mine.len().div_ceil(TILE) {
                            let a = Broadcast {
                                at: packed_dy.as_ptr().add(tile * tile_size),
                                by_n: 1,
                                by_i: TILE,
                            };
                            let b = Rows {
                                at: to.cast_const(),
                                stride: vectors * LANES,
                            };
                            let c = Rows {
                                at: sums.as_mut_ptr().add(tile * TILE * lanes + from),
                                stride: lanes,
                            };
                            product(TILE, vectors, rows.len(), a, b, c, at > 0);
                        }
                    }
                }
            }
            for (row, sums) in mine.zip(sums.chunks_exact(lanes)) {
                // SAFETY: pieces are disjoint rows and columns of dw.
                unsafe {
                    let to = out.pointer().add(row * k + columns.start);
                    to.copy_from_nonoverlapping(sums.as_ptr(), columns.len());
                }
            }
        });
    });
}

fn check(x: usize, w: usize, y: usize, [n, k]: [usize; 2]) {
    assert!(available(), "products by this kernel need AVX-512");
    let fits = n > 0 && k > 0 && w == n * k && x.is_multiple_of(k) && y == x / k * n;
    assert!(fits, "shapes of a linear");
}

/// Columns of panel `p` of `n`.
fn panel(p: usize, n: usize) -> Range<usize> {
    p * PANEL..((p + 1) * PANEL).min(n)
}

thread_local! {
    static MEMORY: RefCell<Lines> = const { RefCell::new(Lines::EMPTY) };
}

/// Calls `work` with at least `size` elements of any value.
fn with_memory(size: usize, work: impl FnOnce(&mut [f32])) {
    // taken out, as a piece of the work may run on this thread
    let mut memory = MEMORY.take();
    memory.fit(size);
    work(memory.get_mut());
    MEMORY.set(memory);
}

/// `c[m, n] = a[m, depth] b[depth, n] + bias` in some of the panels that `b` is in; depth in cells.
///
/// # Safety
/// AVX-512; pointers to as many elements, `c`'s in these panels to nobody else's; `m <= ROWS`.
#[allow(clippy::too_many_arguments)]
unsafe fn tiles<E: Cell>(
    a: *const E,
    packed: *const f32,
    m: usize,
    depth: usize,
    n: usize,
    panels: Range<usize>,
    bias: Option<&[E]>,
    c: *mut E,
) {
    let mut tile = Tile([0.0; ROWS * PANEL]);
    for p in panels {
        let columns = panel(p, n);
        let lanes = columns.len().next_multiple_of(LANES);
        // f32 in whole registers needs no rounding and no tile of its own
        let direct = E::PER == 1 && lanes == columns.len() && bias.is_none();
        // SAFETY: inside the matrices; an f32 is its own cell.
        unsafe {
            let b = packed.add(p * PANEL * depth);
            let c = c.add(columns.start);
            let to = match direct {
                true => Rows {
                    at: c.cast::<f32>(),
                    stride: n,
                },
                false => Rows {
                    at: tile.0.as_mut_ptr(),
                    stride: lanes,
                },
            };
            for at in (0..depth).step_by(DEPTH) {
                let a = Broadcast {
                    at: a.cast::<f32>().add(at),
                    by_n: depth,
                    by_i: 1,
                };
                let b = Rows {
                    at: b.add(at * lanes),
                    stride: lanes,
                };
                E::product(m, lanes / LANES, DEPTH.min(depth - at), a, b, to, at > 0);
            }
            if !direct {
                let bias = bias.map(|b| b.as_ptr().add(columns.start));
                round(&tile, m, columns.len(), bias, c, n);
            }
        }
    }
}

/// Sums of up to `ROWS` rows and a panel's columns.
#[repr(align(64))]
struct Tile([f32; ROWS * PANEL]);

/// Stores a tile's `m` rows and `n` columns, plus `bias`, in rows of `stride`.
///
/// # Safety
/// AVX-512; pointers to as many elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn round<E: Cell>(
    tile: &Tile,
    m: usize,
    n: usize,
    bias: Option<*const E>,
    c: *mut E,
    stride: usize,
) {
    let lanes = n.next_multiple_of(LANES);
    for r in 0..m {
        for j in (0..n).step_by(LANES) {
            let mask = first(n - j);
            // SAFETY: masked to the columns.
            unsafe {
                let mut x = _mm512_loadu_ps(tile.0.as_ptr().add(r * lanes + j));
                if let Some(bias) = bias {
                    x = _mm512_add_ps(x, E::load(bias.add(j), mask));
                }
                E::store(c.add(r * stride + j), mask, x);
            }
        }
    }
}

/// Asks for a row's columns: rows are too far apart for the hardware to foresee them.
#[inline(always)]
fn fetch(x: &[f32], row: usize, width: usize, columns: &Range<usize>) {
    for c in columns.clone().step_by(LANES) {
        // SAFETY: a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(row * width + c).cast()) };
    }
}

/// Columns of `x` `[.., width]` as `[rows, lanes]`, zeros beyond the last column.
///
/// # Safety
/// AVX-512; rows and columns are inside `x`, `to` has the room.
#[target_feature(enable = "avx512f")]
unsafe fn pack_rows(
    x: &[f32],
    rows: Range<usize>,
    width: usize,
    columns: Range<usize>,
    to: *mut f32,
) {
    let lanes = columns.len().next_multiple_of(LANES);
    for (i, row) in rows.enumerate() {
        fetch(x, row + AHEAD, width, &columns);
        for c in (0..columns.len()).step_by(LANES) {
            // SAFETY: masked to the columns.
            unsafe {
                let from = x.as_ptr().add(row * width + columns.start + c);
                let x = _mm512_maskz_loadu_ps(first(columns.len() - c), from);
                _mm512_storeu_ps(to.add(i * lanes + c), x);
            }
        }
    }
}

/// Columns of `x` `[.., width]` in tiles of `[row][6]`, zeros beyond the last column; a tile starts
/// every `size` elements.
///
/// # Safety
/// AVX-512; rows and columns are inside `x`.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn pack_tiles(
    x: &[f32],
    rows: Range<usize>,
    width: usize,
    columns: Range<usize>,
    size: usize,
    to: &mut [f32],
) {
    let tiles = columns.len().div_ceil(TILE);
    assert!(rows.len() * TILE + 2 <= size && to.len() >= tiles * size);
    for (i, row) in rows.enumerate() {
        fetch(x, row + AHEAD, width, &columns);
        for tile in 0..tiles {
            let here = (columns.len() - tile * TILE).min(TILE);
            // SAFETY: masked to the columns. Eight lanes are stored, as a masked store is slow: two
            // go where the next row comes, or behind the last one.
            unsafe {
                let from = x.as_ptr().add(row * width + columns.start + tile * TILE);
                let x = _mm256_maskz_loadu_ps((1 << here) - 1, from);
                _mm256_storeu_ps(to.as_mut_ptr().add(tile * size + i * TILE), x);
            }
        }
    }
}

/// Rows `columns` of `w` `[.., k]` as `[k, lanes]`, zeros beyond the last; `k` in cells.
///
/// # Safety
/// AVX-512; the rows are inside `w`, `to` has the room.
#[target_feature(enable = "avx512f")]
unsafe fn pack_columns(w: *const f32, k: usize, columns: Range<usize>, to: *mut f32) {
    let lanes = columns.len().next_multiple_of(LANES);
    for l in (0..lanes).step_by(LANES) {
        for i in (0..k).step_by(LANES) {
            let mut m = [_mm512_setzero_ps(); LANES];
            for (r, row) in m.iter_mut().enumerate().take(columns.len() - l) {
                // SAFETY: masked to the row.
                *row = unsafe {
                    let from = w.add((columns.start + l + r) * k + i);
                    _mm512_maskz_loadu_ps(first(k - i), from)
                };
            }
            transpose(&mut m);
            for (r, column) in m.iter().enumerate().take(k - i) {
                // SAFETY: inside the panel.
                unsafe { _mm512_storeu_ps(to.add((i + r) * lanes + l), *column) };
            }
        }
    }
}

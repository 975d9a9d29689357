//! Rows of one forward: each is one token of one sequence.

use crate::blocks::BLOCK;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: u32,
    /// Its place in its sequence, from 0.
    pub position: u32,
    /// Where its sequence's table starts and ends in [`Batch::tables`].
    table: (u32, u32),
}

/// Rows and the block tables of their sequences.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub rows: Vec<Row>,
    /// Sequences' rows, as ranges of `rows`: a sequence's rows lie together, ascending.
    pub runs: Vec<std::ops::Range<usize>>,
    /// Rows whose token is not known yet, and where it is among the choices of the forward before.
    pub unread: Vec<(usize, usize)>,
    tables: Vec<u32>,
}

impl Batch {
    /// Appends tokens that stand at `position..` of the sequence with this block table; `unread`: where the last of them
    /// is among the choices of the forward before, if it is not known.
    pub fn push(&mut self, tokens: &[u32], position: usize, table: &[u32], unread: Option<usize>) {
        let start = self.tables.len() as u32;
        self.tables.extend(table);
        let table = (start, self.tables.len() as u32);
        let from = self.rows.len();
        self.rows
            .extend(tokens.iter().enumerate().map(|(i, &token)| Row {
                token,
                position: (position + i) as u32,
                table,
            }));
        self.runs.push(from..self.rows.len());
        self.unread
            .extend(unread.map(|place| (self.rows.len() - 1, place)));
    }

    /// Blocks of a row's sequence.
    pub fn table(&self, row: usize) -> &[u32] {
        let (start, end) = self.rows[row].table;
        &self.tables[start as usize..end as usize]
    }

    /// Block and slot of a row's keys and values.
    pub fn place(&self, row: usize) -> (usize, usize) {
        let position = self.rows[row].position as usize;
        (self.table(row)[position / BLOCK] as usize, position % BLOCK)
    }
}

//! The meshes, and what each trains.

use crate::cases::Algorithm;
use crate::job::{Axes, Case, Model, Placement};

/// A mesh of the table.
pub struct Row {
    pub name: &'static str,
    pub axes: Axes,
    pub placement: Placement,
    /// Part of the tests.
    pub fast: bool,
    pub models: &'static [Model],
}

const ONE: Axes = Axes {
    dp_replicate: 1,
    dp_shard: 1,
    ep: 1,
    cp: 1,
    tp: 1,
    pp: 1,
    pp_chunks: 1,
    sp: true,
};

/// Small microbatches, so that every rank has some, and a head chunk that divides nothing.
const SMALL: Placement = Placement {
    microbatch_tokens: 40,
    head_chunk: Some(7),
    selective: false,
};

/// One process, everything in one microbatch.
pub fn solo() -> Row {
    Row {
        name: "solo",
        axes: ONE,
        placement: Placement {
            microbatch_tokens: 1 << 20,
            head_chunk: None,
            selective: false,
        },
        fast: false,
        models: &[],
    }
}

/// The table's rows, in issue order.
pub fn rows() -> Vec<Row> {
    use Model::{Biased, Deep, Experts, Odd, Tied};
    let row = |name, axes, models| Row {
        name,
        axes,
        placement: SMALL,
        fast: false,
        models,
    };
    let fast = |row: Row| Row { fast: true, ..row };
    let selective = |row: Row| Row {
        placement: Placement {
            selective: true,
            ..SMALL
        },
        ..row
    };
    // rows of one microbatch are shared by several documents
    let packed = |row: Row| Row {
        placement: Placement {
            microbatch_tokens: 200,
            ..SMALL
        },
        ..row
    };
    vec![
        row(
            "dp2",
            Axes {
                dp_replicate: 2,
                ..ONE
            },
            &[Tied],
        ),
        row("dp_shard2", Axes { dp_shard: 2, ..ONE }, &[Tied, Biased]),
        selective(row("dp_shard4", Axes { dp_shard: 4, ..ONE }, &[Tied])),
        fast(row("dp_shard3", Axes { dp_shard: 3, ..ONE }, &[Tied, Odd])),
        fast(row(
            "hsdp 2x2",
            Axes {
                dp_replicate: 2,
                dp_shard: 2,
                ..ONE
            },
            &[Tied],
        )),
        row(
            "tp2",
            Axes {
                tp: 2,
                sp: false,
                ..ONE
            },
            &[Tied, Odd, Biased],
        ),
        row(
            "tp4 on 2 kv heads",
            Axes {
                tp: 4,
                sp: false,
                ..ONE
            },
            &[Tied],
        ),
        fast(row("tp2 + sp", Axes { tp: 2, ..ONE }, &[Tied, Odd, Biased])),
        row("tp4 + sp", Axes { tp: 4, ..ONE }, &[Tied]),
        row("cp2", Axes { cp: 2, ..ONE }, &[Tied, Odd]),
        fast(packed(row(
            "cp2 packed",
            Axes { cp: 2, ..ONE },
            &[Tied, Odd],
        ))),
        packed(row("cp4", Axes { cp: 4, ..ONE }, &[Tied])),
        fast(row("pp2", Axes { pp: 2, ..ONE }, &[Tied, Odd])),
        row(
            "pp4 interleaved",
            Axes {
                pp: 4,
                pp_chunks: 2,
                ..ONE
            },
            &[Deep],
        ),
        fast(row("ep2", Axes { ep: 2, ..ONE }, &[Experts])),
        row("ep4", Axes { ep: 4, ..ONE }, &[Experts]),
        row(
            "dp_shard2 x ep2",
            Axes {
                dp_shard: 2,
                ep: 2,
                ..ONE
            },
            &[Experts],
        ),
        row(
            "ep2 x tp2",
            Axes {
                ep: 2,
                tp: 2,
                ..ONE
            },
            &[Experts],
        ),
        row(
            "pp2 x ep2",
            Axes {
                pp: 2,
                ep: 2,
                ..ONE
            },
            &[Experts],
        ),
        fast(row(
            "dp_shard2 x tp2",
            Axes {
                dp_shard: 2,
                tp: 2,
                ..ONE
            },
            &[Tied],
        )),
        row(
            "dp_shard2 x cp2",
            Axes {
                dp_shard: 2,
                cp: 2,
                ..ONE
            },
            &[Tied],
        ),
        row(
            "pp2 x tp2",
            Axes {
                pp: 2,
                tp: 2,
                ..ONE
            },
            &[Tied],
        ),
        row(
            "pp2 x dp_shard2",
            Axes {
                pp: 2,
                dp_shard: 2,
                ..ONE
            },
            &[Tied],
        ),
        fast(row(
            "pp2 x tp2 x dp_shard2",
            Axes {
                pp: 2,
                tp: 2,
                dp_shard: 2,
                ..ONE
            },
            &[Tied],
        )),
        selective(row(
            "pp2 x cp2 x tp2",
            Axes {
                pp: 2,
                cp: 2,
                tp: 2,
                ..ONE
            },
            &[Deep],
        )),
    ]
}

impl Row {
    /// Its cases: each model's gradients in fp64; for the first model also all algorithms, and
    /// their loss curves in fp32.
    pub fn cases(&self, all: bool) -> Vec<Case> {
        use Algorithm::{Dpo, Grpo, Sft};
        let mut out = Vec::new();
        for (i, &model) in self.models.iter().enumerate() {
            for algorithm in [Sft, Dpo, Grpo] {
                let case = Case {
                    model,
                    algorithm,
                    double: true,
                    batch: 5,
                    steps: 1,
                };
                let curve = Case {
                    double: false,
                    batch: 7,
                    steps: 20,
                    ..case
                };
                // key biases have gradients that fp32 cannot tell from nothing
                let float = model != Model::Biased;
                match (i, all) {
                    (0, true) => out.extend([case, curve]),
                    (0, false) if algorithm == Sft => out.extend([case, curve]),
                    (_, true) if algorithm == Sft && float => out.extend([case, curve]),
                    (_, _) if algorithm == Sft => out.push(case),
                    (0, false) if algorithm == Grpo => out.push(case),
                    _ => {}
                }
            }
        }
        // one unit leaves all data ranks but one with nothing
        out.push(Case {
            model: self.models[0],
            algorithm: Sft,
            double: true,
            batch: 1,
            steps: 2,
        });
        out
    }
}

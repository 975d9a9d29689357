//! What wrappers refuse before they launch anything: the machine here fails the test if it is asked to.

use kernels::cuda::launch::Launch;
use kernels::cuda::{Error, Machine, adamw, paged, rms_norm, rope, sample, softmax, swiglu};
use tch::{Device, Kind, Tensor};

struct Never;

impl Machine for Never {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn run(&self, launch: &Launch) -> Result<(), Error> {
        panic!("launched {}", launch.kernel)
    }
}

fn t(size: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(size, (kind, Device::Cpu))
}

fn f(size: &[i64]) -> Tensor {
    t(size, Kind::Float)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, parts: &[&str]) {
    let text = result.expect_err("does not fit").to_string();
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

/// Elements that begin one byte past a multiple of their size.
fn shifted(n: i64) -> Tensor {
    let bytes = Tensor::zeros([4 * n + 16], (Kind::Uint8, Device::Cpu));
    let at = bytes.data_ptr() as usize;
    // SAFETY: within the bytes, which are leaked with this clone; never read.
    let out = unsafe {
        Tensor::from_blob(
            ((at | 3) + 2) as *const u8,
            &[n],
            &[1],
            Kind::Float,
            Device::Cpu,
        )
    };
    std::mem::forget(bytes);
    out
}

#[test]
fn norms() {
    let w = f(&[8]);
    let x = f(&[4, 8]);
    let go = |x: &Tensor, r: Option<&Tensor>, w: &Tensor| rms_norm::forward(&Never, x, r, w, 1e-6);
    refused(
        go(&x, None, &f(&[7])),
        &["rms_norm_forward", "weight", "[7]", "[8]"],
    );
    refused(
        go(&t(&[4, 8], Kind::Double), None, &w),
        &["x is Double", "BFloat16"],
    );
    refused(
        go(&x, None, &t(&[8], Kind::BFloat16)),
        &["weight is BFloat16", "Float"],
    );
    refused(
        go(&x, Some(&f(&[8, 4])), &w),
        &["residual", "[8, 4]", "[4, 8]"],
    );
    refused(
        go(&f(&[8, 4]).tr(), None, &w),
        &["x of shape [4, 8]", "strides", "contiguous"],
    );
    refused(
        go(&x, None, &shifted(8)),
        &["weight lies at address", "4 bytes"],
    );
    refused(go(&f(&[4, 0]), None, &f(&[0])), &["no element"]);
    let back = |rstd: &Tensor, dy: &Tensor, d: Option<&Tensor>| {
        rms_norm::backward(&Never, &x, &w, rstd, dy, d)
    };
    refused(
        back(&f(&[3]), &x, None),
        &["rms_norm_backward", "rstd", "[3]", "[4]"],
    );
    refused(back(&f(&[4]), &f(&[4, 9]), None), &["dy", "[4, 9]"]);
    refused(
        back(&f(&[4]), &x, Some(&t(&[4, 8], Kind::Half))),
        &["d_sum is Half"],
    );
    let long = f(&[1, 10241]);
    refused(
        rms_norm::backward(&Never, &long, &f(&[10241]), &f(&[1]), &long, None),
        &["not made for rows of 10241 elements", "10240"],
    );
}

#[test]
fn rotations() {
    let (q, k, c) = (f(&[4, 2, 6]), f(&[4, 1, 6]), f(&[4, 3]));
    let go = |q: &Tensor, k: &Tensor, c: &Tensor| rope::turn(&Never, q, k, (c, c), false);
    refused(
        go(&q, &f(&[5, 1, 6]), &c),
        &["rope", "k has shape [5, 1, 6]", "[4, -1, 6]"],
    );
    refused(
        go(&q, &t(&[4, 1, 6], Kind::BFloat16), &c),
        &["k is BFloat16"],
    );
    refused(go(&q, &k, &f(&[4, 6])), &["cos", "[4, 6]", "[4, 3]"]);
    refused(go(&q, &k, &t(&[4, 3], Kind::Double)), &["cos is Double"]);
    refused(
        go(&f(&[4, 2, 5]), &f(&[4, 1, 5]), &c),
        &["5 elements", "even"],
    );
    refused(go(&f(&[4, 12]), &k, &c), &["q has shape [4, 12]"]);
    refused(
        go(&f(&[4, 6, 2]).transpose(1, 2), &k, &c),
        &["q of shape [4, 2, 6]", "contiguous"],
    );
}

#[test]
fn activations() {
    let x = f(&[4, 8]);
    refused(
        swiglu::forward(&Never, &x, &f(&[8, 4])),
        &["swiglu_forward", "up", "[8, 4]"],
    );
    refused(
        swiglu::forward(&Never, &t(&[4], Kind::Int64), &x),
        &["gate is Int64"],
    );
    refused(
        swiglu::forward(&Never, &shifted(3), &f(&[3])),
        &["gate lies at"],
    );
    refused(
        swiglu::backward(&Never, &x, &x, &t(&[4, 8], Kind::BFloat16)),
        &["swiglu_backward", "dy is BFloat16"],
    );
    refused(
        swiglu::backward(&Never, &x, &f(&[4, 8, 1]), &x),
        &["up has shape [4, 8, 1]"],
    );
}

#[test]
fn softmaxes() {
    let (x, ids) = (f(&[3, 9]), t(&[3], Kind::Int64));
    refused(
        softmax::forward(&Never, &x, &t(&[4], Kind::Int64), 1.0, true),
        &["targets", "[4]", "[3]"],
    );
    refused(
        softmax::forward(&Never, &x, &t(&[3], Kind::Int), 1.0, true),
        &["targets is Int", "Int64"],
    );
    refused(
        softmax::forward(&Never, &f(&[3]), &ids, 1.0, true),
        &["logits has shape [3]"],
    );
    refused(
        softmax::forward(&Never, &f(&[3, 0]), &ids, 1.0, true),
        &["no token"],
    );
    let values = || softmax::Values {
        logp: f(&[3]),
        entropy: None,
        lse: f(&[3]),
    };
    let back = |values: &softmax::Values, d: &Tensor, e: Option<&Tensor>| {
        softmax::backward(&Never, &mut f(&[3, 9]), &ids, 1.0, values, d, e)
    };
    refused(
        back(&values(), &t(&[3], Kind::Double), None),
        &["d_logp is Double"],
    );
    refused(
        back(&values(), &f(&[3]), Some(&f(&[3]))),
        &["not asked for"],
    );
    refused(
        back(
            &softmax::Values {
                lse: f(&[2]),
                ..values()
            },
            &f(&[3]),
            None,
        ),
        &["lse", "[2]"],
    );
}

#[test]
fn updates() {
    let x = f(&[4, 3]);
    let slot = || adamw::Slot {
        master: &x,
        grad: &x,
        first: &x,
        second: &x,
        weight: None,
        decays: false,
    };
    let table = |slot: adamw::Slot| adamw::Table::new(&Never, &[slot]);
    let (other, wide) = (f(&[3, 4]), t(&[4, 3], Kind::Double));
    refused(
        table(adamw::Slot {
            grad: &other,
            ..slot()
        }),
        &["adamw", "grad", "[3, 4]", "[4, 3]"],
    );
    refused(
        table(adamw::Slot {
            first: &wide,
            ..slot()
        }),
        &["first moment is Double"],
    );
    refused(
        table(adamw::Slot {
            second: &other,
            ..slot()
        }),
        &["second moment"],
    );
    refused(
        table(adamw::Slot {
            weight: Some(&x),
            ..slot()
        }),
        &["weight is Float", "BFloat16"],
    );
    let turned = other.tr();
    refused(
        table(adamw::Slot {
            master: &turned,
            ..slot()
        }),
        &["master", "contiguous"],
    );
    let table = table(slot()).unwrap();
    let with = torch::fused::AdamW {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.9,
        weight_decay: 0.0,
        eps: 1e-8,
    };
    refused(
        adamw::step(&Never, &table, 1.0, with, 0),
        &["counted from 1"],
    );
}

#[test]
fn paged_attention() {
    let (q, keys) = (f(&[2, 4, 16]), f(&[64, 2, 16]));
    let (table, lens) = (t(&[2, 3], Kind::Int), t(&[2], Kind::Int));
    let go =
        |q: &Tensor, keys: &Tensor, values: &Tensor, tables: &Tensor, lengths: &Tensor, longest| {
            let seen = paged::Seen {
                tables,
                lengths,
                longest,
                window: None,
            };
            paged::attend(&Never, q, paged::Cache { keys, values }, &seen, 1.0)
        };
    refused(
        go(&q, &keys, &f(&[48, 2, 16]), &table, &lens, 48),
        &["values", "[48, 2, 16]", "[64, 2, 16]"],
    );
    refused(
        go(&q, &f(&[64, 2, 8]), &keys, &table, &lens, 48),
        &["keys", "[64, 2, 8]"],
    );
    refused(
        go(&q, &f(&[64, 3, 16]), &f(&[64, 3, 16]), &table, &lens, 48),
        &["4 query heads", "3 key heads"],
    );
    refused(
        go(&q, &keys, &keys, &t(&[2, 3], Kind::Int64), &lens, 48),
        &["tables is Int64"],
    );
    refused(
        go(&q, &keys, &keys, &table, &t(&[3], Kind::Int), 48),
        &["lengths", "[3]"],
    );
    refused(
        go(&q, &keys, &keys, &table, &lens, 49),
        &["49 positions", "3 blocks of 16"],
    );
    let odd = f(&[64, 2, 12]);
    refused(
        go(&f(&[2, 4, 12]), &odd, &odd, &table, &lens, 48),
        &["not made for heads of 12", "256"],
    );
    let shifted = f(&[64 * 2 * 16 + 1])
        .narrow(0, 1, 64 * 2 * 16)
        .view([64, 2, 16]);
    refused(
        go(&q, &shifted, &keys, &table, &lens, 48),
        &["keys lie at", "16 bytes"],
    );
    let write = |k: &Tensor, slots: &Tensor| {
        paged::write(
            &Never,
            k,
            k,
            slots,
            paged::Cache {
                keys: &keys,
                values: &keys,
            },
        )
    };
    refused(
        write(&f(&[2, 2, 8]), &t(&[2], Kind::Int64)),
        &["cache_write", "keys", "[-1, 2, 8]"],
    );
    refused(
        write(&f(&[2, 2, 16]), &t(&[2], Kind::Int)),
        &["slots is Int"],
    );
    refused(
        write(&t(&[2, 2, 16], Kind::BFloat16), &t(&[2], Kind::Int64)),
        &["keys is Float"],
    );
}

#[test]
fn samples() {
    let logits = f(&[2, 9]);
    let (ints, floats, longs) = (t(&[2], Kind::Int), f(&[2]), t(&[2], Kind::Int64));
    let picks = || sample::Picks {
        rows: &ints,
        by: &floats,
        top_k: &ints,
        top_p: &floats,
        draws: &longs,
    };
    let go = |logits: &Tensor, picks: sample::Picks| sample::choose(&Never, logits, &picks);
    refused(go(&f(&[9]), picks()), &["sample", "logits", "[9]"]);
    refused(
        go(
            &logits,
            sample::Picks {
                by: &f(&[3]),
                ..picks()
            },
        ),
        &["by", "[3]", "[2]"],
    );
    refused(
        go(
            &logits,
            sample::Picks {
                draws: &ints,
                ..picks()
            },
        ),
        &["draws is Int"],
    );
    refused(
        go(
            &logits,
            sample::Picks {
                top_k: &longs,
                ..picks()
            },
        ),
        &["top_k is Int64"],
    );
    refused(
        go(&f(&[1, (1 << 19) + 1]), picks()),
        &["524289 tokens", "524288"],
    );
}

#[test]
fn another_device_is_named() {
    struct Gpu;
    impl Machine for Gpu {
        fn device(&self) -> Device {
            Device::Cuda(3)
        }
        fn run(&self, _: &Launch) -> Result<(), Error> {
            panic!("launched")
        }
    }
    let x = f(&[4, 8]);
    refused(
        swiglu::forward(&Gpu, &x, &x),
        &["gate is on Cpu", "Cuda(3)"],
    );
}

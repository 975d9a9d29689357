//! How fast each GPU kernel is, as a share of what this machine's copy and matrix product reach, as JSON lines.
//!
//! `rates cuda` measures; `rates cpu` goes the same way through the emulator, small, and prints no rate: it shows that
//! the program runs. Bytes are those that a kernel must move at least: every tensor read or written once.

use std::time::Instant;

use kernels::cuda::adamw::{Slot, Table};
use kernels::cuda::paged::{Cache, Seen};
use kernels::cuda::{Error, Machine, adamw, paged, rms_norm, rope, sample, softmax, swiglu};
use model::{Libtorch, Ops};
use serde_json::json;
use tch::{Device, Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(device @ ("cuda" | "cpu")) => match run(device == "cuda") {
            Ok(()) => std::process::ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("rates: {e}");
                std::process::ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: rates cuda|cpu");
            std::process::ExitCode::from(2)
        }
    }
}

/// Where and how long to measure, and the ceilings in bytes and FLOPs a second.
struct Bench {
    machine: &'static dyn Machine,
    measured: bool,
    copy: f64,
    gemm: f64,
}

impl Bench {
    fn random(&self, size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (kind, self.machine.device()))
    }

    fn ints(&self, size: &[i64], below: i64, kind: Kind) -> Tensor {
        Tensor::randint(below, size, (kind, self.machine.device()))
    }

    /// Median seconds of a call, over batches of calls between which the device is waited for.
    fn seconds<T>(&self, mut once: impl FnMut() -> std::result::Result<T, Error>) -> Result<f64> {
        let Device::Cuda(index) = self.machine.device() else {
            drop(once()?);
            return Ok(f64::NAN);
        };
        let wait = || tch::Cuda::synchronize(index as i64);
        for _ in 0..3 {
            drop(once()?);
        }
        wait();
        let start = Instant::now();
        drop(once()?);
        wait();
        let calls = (0.02 / start.elapsed().as_secs_f64()).clamp(1.0, 200.0) as usize;
        let mut batches = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            for _ in 0..calls {
                drop(once()?);
            }
            wait();
            batches.push(start.elapsed().as_secs_f64() / calls as f64);
        }
        batches.sort_by(f64::total_cmp);
        Ok(batches[3])
    }

    /// Prints a kernel's line; `peer` is libtorch's way of the same, if it has one.
    fn line<T>(
        &self,
        kernel: &str,
        shape: &str,
        bytes: usize,
        once: impl FnMut() -> std::result::Result<T, Error>,
        peer: Option<&dyn Fn() -> Tensor>,
    ) -> Result<()> {
        let seconds = self.seconds(once)?;
        let peer = match peer {
            Some(peer) => Some(self.seconds(|| Ok(peer()))?),
            None => None,
        };
        let line = match self.measured {
            true => json!({
                "kernel": kernel, "shape": shape, "bytes": bytes, "microseconds": seconds * 1e6,
                "gb_s": bytes as f64 / seconds / 1e9, "share_of_copy": bytes as f64 / seconds / self.copy,
                "libtorch_microseconds": peer.map(|s| s * 1e6),
            }),
            false => json!({ "kernel": kernel, "shape": shape, "bytes": bytes, "measured": false }),
        };
        println!("{line}");
        Ok(())
    }
}

fn bytes(tensors: &[&Tensor]) -> usize {
    let of = |t: &&Tensor| t.numel() * t.kind().elt_size_in_bytes();
    tensors.iter().map(of).sum()
}

fn run(measured: bool) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let machine: &'static dyn Machine = match measured {
        true => {
            torch::cuda::load()?;
            kernels::cuda::machine(Device::Cuda(0)).ok_or("no GPU with our kernels here")?
        }
        false => emulate::Emulator::leak(emulate::Guard::End, 0),
    };
    let mut bench = Bench {
        machine,
        measured,
        copy: f64::NAN,
        gemm: f64::NAN,
    };
    ceilings(&mut bench)?;
    // rows of Qwen3-0.6B and of Llama-3.1-8B in training, and of a decoding step
    let (rows, few) = if measured { (8192, 256) } else { (9, 3) };
    for n in if measured {
        vec![128, 1024, 4096]
    } else {
        vec![24]
    } {
        norms(&bench, if n == 128 { rows * 16 } else { rows }, n)?;
    }
    norms(&bench, few, if measured { 1024 } else { 16 })?;
    rotations(&bench, rows, 16, 8, if measured { 128 } else { 16 })?;
    for n in if measured {
        vec![3072, 14336]
    } else {
        vec![40]
    } {
        activations(&bench, rows, n)?;
    }
    let (chunk, vocabulary) = if measured { (1024, 151_936) } else { (2, 700) };
    softmaxes(&bench, chunk, vocabulary)?;
    updates(&bench, if measured { 600_000_000 } else { 5000 })?;
    let long = if measured {
        vec![512, 1024, 4096]
    } else {
        vec![40]
    };
    for length in long {
        attentions(
            &bench,
            few,
            length,
            (16, 8, if measured { 128 } else { 16 }),
        )?;
    }
    if measured {
        attentions(&bench, 64, 4096, (32, 8, 128))?;
    }
    for (top_k, top_p) in [(0, 1.0), (50, 0.95)] {
        samples(&bench, few, vocabulary, top_k, top_p)?;
    }
    Ok(())
}

fn ceilings(bench: &mut Bench) -> Result<()> {
    if !bench.measured {
        return Ok(());
    }
    let from = bench.random(&[1 << 29], Kind::BFloat16);
    let mut to = from.empty_like();
    let seconds = bench.seconds(|| {
        to.copy_(&from);
        Ok::<(), Error>(())
    })?;
    bench.copy = bytes(&[&from, &to]) as f64 / seconds;
    let (a, b) = (
        bench.random(&[8192, 8192], Kind::BFloat16),
        bench.random(&[8192, 8192], Kind::BFloat16),
    );
    let seconds = bench.seconds(|| {
        let _ = a.matmul(&b);
        Ok::<(), Error>(())
    })?;
    bench.gemm = 2.0 * 8192f64.powi(3) / seconds;
    let line = json!({
        "ceiling": "copy of 1 GiB; bf16 product of 8192 x 8192",
        "copy_gb_s": bench.copy / 1e9, "gemm_tflops": bench.gemm / 1e12,
        "device": format!("{:?}", bench.machine.device()), "nvrtc": kernels::cuda::compile::version()?,
    });
    println!("{line}");
    Ok(())
}

fn norms(bench: &Bench, rows: i64, n: i64) -> Result<()> {
    let m = bench.machine;
    let (x, r, w) = (
        bench.random(&[rows, n], Kind::BFloat16),
        bench.random(&[rows, n], Kind::BFloat16),
        bench.random(&[n], Kind::BFloat16),
    );
    let shape = format!("bf16 [{rows}, {n}]");
    let plain = &|| Libtorch.rms_norm(&x, &w, 1e-6);
    bench.line(
        "rms_norm_forward",
        &shape,
        bytes(&[&x, &x, &w]),
        || rms_norm::forward(m, &x, None, &w, 1e-6),
        Some(plain),
    )?;
    let added = &|| Libtorch.rms_norm(&(&x + &r), &w, 1e-6);
    bench.line(
        "rms_norm_forward with residual",
        &shape,
        bytes(&[&x, &r, &x, &x, &w]),
        || rms_norm::forward(m, &x, Some(&r), &w, 1e-6),
        Some(added),
    )?;
    let rstd = rms_norm::forward(m, &x, None, &w, 1e-6)?.rstd;
    bench.line(
        "rms_norm_backward",
        &shape,
        bytes(&[&x, &r, &x, &w, &w]),
        || rms_norm::backward(m, &x, &w, &rstd, &r, None),
        None,
    )
}

fn rotations(bench: &Bench, rows: i64, heads: i64, kv_heads: i64, d: i64) -> Result<()> {
    let (q, k) = (
        bench.random(&[rows, heads, d], Kind::BFloat16),
        bench.random(&[rows, kv_heads, d], Kind::BFloat16),
    );
    let (cos, sin) = (
        bench.random(&[rows, d / 2], Kind::Float),
        bench.random(&[rows, d / 2], Kind::Float),
    );
    let shape = format!("bf16 [{rows}, {heads} + {kv_heads}, {d}]");
    let plain = &|| Libtorch.rope(&q, &k, &cos, &sin).0;
    bench.line(
        "rope",
        &shape,
        bytes(&[&q, &k, &q, &k, &cos, &sin]),
        || rope::turn(bench.machine, &q, &k, (&cos, &sin), false),
        Some(plain),
    )
}

fn activations(bench: &Bench, rows: i64, n: i64) -> Result<()> {
    let [g, u, dy] = [(); 3].map(|()| bench.random(&[rows, n], Kind::BFloat16));
    let shape = format!("bf16 [{rows}, {n}]");
    let plain = &|| Libtorch.swiglu(&g, &u);
    bench.line(
        "swiglu_forward",
        &shape,
        bytes(&[&g, &u, &g]),
        || swiglu::forward(bench.machine, &g, &u),
        Some(plain),
    )?;
    bench.line(
        "swiglu_backward",
        &shape,
        bytes(&[&g, &u, &dy, &g, &u]),
        || swiglu::backward(bench.machine, &g, &u, &dy),
        None,
    )
}

fn softmaxes(bench: &Bench, rows: i64, n: i64) -> Result<()> {
    let mut logits = bench.random(&[rows, n], Kind::BFloat16);
    let targets = bench.ints(&[rows], n, Kind::Int64);
    let d = bench.random(&[rows], Kind::Float);
    let shape = format!("bf16 [{rows}, {n}]");
    let m = bench.machine;
    bench.line(
        "softmax_forward",
        &shape,
        bytes(&[&logits]),
        || softmax::forward(m, &logits, &targets, 1.0, true),
        None,
    )?;
    let values = softmax::forward(m, &logits, &targets, 1.0, true)?;
    let twice = 2 * bytes(&[&logits]);
    bench.line(
        "softmax_backward",
        &shape,
        twice,
        || softmax::backward(m, &mut logits, &targets, 1.0, &values, &d, None),
        None,
    )
}

fn updates(bench: &Bench, n: i64) -> Result<()> {
    // thirty tensors, as a model has matrices
    let each = n / 30;
    let make = || {
        (0..30)
            .map(|_| bench.random(&[each], Kind::Float))
            .collect::<Vec<_>>()
    };
    let (p, g, m) = (make(), make(), make());
    let v: Vec<Tensor> = make().iter().map(Tensor::square).collect();
    let w: Vec<Tensor> = p.iter().map(|p| p.to_kind(Kind::BFloat16)).collect();
    let slots: Vec<Slot> = (0..30)
        .map(|i| Slot {
            master: &p[i],
            grad: &g[i],
            first: &m[i],
            second: &v[i],
            weight: Some(&w[i]),
            decays: true,
        })
        .collect();
    let table = Table::new(bench.machine, &slots)?;
    let with = torch::fused::AdamW {
        lr: 1e-6,
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 0.1,
        eps: 1e-8,
    };
    let shape = format!("fp32 30 x [{each}]");
    let all = (each * 30) as usize;
    bench.line(
        "adamw",
        &shape,
        all * (7 * 4 + 2),
        || adamw::step(bench.machine, &table, 0.5, with, 3),
        None,
    )?;
    bench.line(
        "squares",
        &shape,
        all * 4,
        || adamw::squares(bench.machine, &table),
        None,
    )
}

fn attentions(
    bench: &Bench,
    rows: i64,
    length: i64,
    (heads, kv_heads, d): (i64, i64, i64),
) -> Result<()> {
    let width = (length + 15) / 16;
    let slots = rows * width * 16;
    let (keys, values) = (
        bench.random(&[slots, kv_heads, d], Kind::BFloat16),
        bench.random(&[slots, kv_heads, d], Kind::BFloat16),
    );
    let q = bench.random(&[rows, heads, d], Kind::BFloat16);
    let device = bench.machine.device();
    let tables = Tensor::randperm(rows * width, (Kind::Int64, Device::Cpu));
    let tables = tables
        .to_kind(Kind::Int)
        .view([rows, width])
        .to_device(device);
    let lengths = Tensor::full([rows], length, (Kind::Int, device));
    let cache = Cache {
        keys: &keys,
        values: &values,
    };
    let seen = Seen {
        tables: &tables,
        lengths: &lengths,
        longest: length,
        window: None,
    };
    let shape = format!("bf16 {rows} rows, {heads} heads on {kv_heads}, {d}, {length} positions");
    bench.line(
        "paged_attention",
        &shape,
        bytes(&[&q, &q, &keys, &values]),
        || paged::attend(bench.machine, &q, cache, &seen, 0.1),
        None,
    )?;
    let (k, v) = (
        bench.random(&[rows, kv_heads, d], Kind::BFloat16),
        bench.random(&[rows, kv_heads, d], Kind::BFloat16),
    );
    let at = Tensor::arange(rows, (Kind::Int64, device)) * (width * 16);
    bench.line(
        "cache_write",
        &shape,
        bytes(&[&k, &v, &k, &v]),
        || paged::write(bench.machine, &k, &v, &at, cache),
        None,
    )
}

fn samples(bench: &Bench, rows: i64, n: i64, top_k: i64, top_p: f64) -> Result<()> {
    let logits = bench.random(&[rows, n], Kind::BFloat16);
    let device = bench.machine.device();
    let picks = sample::Picks {
        rows: &Tensor::arange(rows, (Kind::Int, device)),
        by: &Tensor::ones([rows], (Kind::Float, device)),
        top_k: &Tensor::full([rows], top_k, (Kind::Int, device)),
        top_p: &Tensor::full([rows], top_p, (Kind::Float, device)),
        draws: &bench.ints(&[rows], i64::MAX, Kind::Int64),
    };
    let shape = format!("bf16 [{rows}, {n}], top_k {top_k}, top_p {top_p}");
    bench.line(
        "sample",
        &shape,
        bytes(&[&logits]),
        || sample::choose(bench.machine, &logits, &picks),
        None,
    )
}

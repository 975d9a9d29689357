//! What the emulator must find, or its silence would mean nothing.

use emulate::{Emulator, Guard};
use kernels::cuda::launch::{Args, Launch};
use kernels::cuda::source::{RMS_NORM, SOFTMAX};
use kernels::cuda::{Error, Machine};
use tch::{Kind, Tensor};

fn given(machine: &Emulator, size: &[i64], kind: Kind) -> Tensor {
    machine.empty(size, kind).fill_(1.0)
}

fn norm(machine: &Emulator, rows: i64, n: i64, shared: u32) -> Result<(), Error> {
    let [x, y] = [(); 2].map(|()| given(machine, &[4, 24], Kind::Float));
    let (w, rstd) = (
        given(machine, &[24], Kind::Float),
        given(machine, &[4], Kind::Float),
    );
    machine.launch(&Launch {
        file: &RMS_NORM,
        kernel: "rms_norm_forward_f32_wide".into(),
        grid: [rows as u32, 1, 1],
        threads: 64,
        shared,
        args: Args::default()
            .tensor(&x)
            .optional(None)
            .tensor(&w)
            .optional(None)
            .tensor(&y)
            .tensor(&rstd)
            .int(rows)
            .int(n)
            .float(1e-6),
    })
}

#[track_caller]
fn found(result: Result<(), Error>, part: &str) {
    let text = result.expect_err("a fault").to_string();
    assert!(text.contains(part), "{text}");
}

#[test]
fn accesses_outside_of_tensors_and_shared_memory_are_found() {
    let machine = Emulator::leak(Guard::End, 7);
    norm(machine, 4, 24, 128).unwrap();
    found(norm(machine, 5, 24, 128), "outside of any tensor");
    found(norm(machine, 4, 28, 128), "outside of any tensor");
    found(norm(machine, 4, 24, 0), "outside of any tensor");
    // before the beginning: a target of -1
    let machine = Emulator::leak(Guard::Start, 0);
    let (logits, out) = (
        given(machine, &[1, 64], Kind::Float),
        given(machine, &[1], Kind::Float),
    );
    let targets = machine.empty(&[1], Kind::Int64).fill_(-1);
    let softmax = Launch {
        file: &SOFTMAX,
        kernel: "softmax_forward_f32".into(),
        grid: [1, 1, 1],
        threads: 64,
        shared: 384,
        args: Args::default()
            .tensor(&logits)
            .tensor(&targets)
            .tensor(&out)
            .optional(None)
            .tensor(&out)
            .int(64)
            .float(1.0),
    };
    found(machine.launch(&softmax), "outside of any tensor");
    // and goes on after a fault
    norm(machine, 4, 24, 128).unwrap();
}

#[test]
fn a_barrier_that_some_threads_never_come_to_is_found() {
    let machine = Emulator::leak(Guard::End, 0);
    let x = given(machine, &[4, 24], Kind::Float);
    let launch = |kernel: &str, threads, args| {
        machine.launch(&Launch {
            file: &RMS_NORM,
            kernel: kernel.into(),
            grid: [1, 1, 1],
            threads,
            shared: 4096,
            args,
        })
    };
    found(
        launch("rms_norm_forward_f32_wide", 48, Args::default()),
        "arguments",
    );
    let args = || Args::default().tensor(&x).tensor(&x).int(1).int(24);
    found(launch("rms_norm_columns_f32", 48, args()), "whole warps");
    found(
        launch("no_such_kernel", 64, args()),
        "no kernel no_such_kernel",
    );
    // this one exists in the emulator alone: half of its threads come to the barrier
    found(
        launch("emulate_divergent", 64, Args::default().int(32)),
        "__syncthreads, which other threads never come to",
    );
    found(
        launch("emulate_divergent", 64, Args::default().int(16)),
        "__syncthreads, which other threads never come to",
    );
    launch("emulate_divergent", 64, Args::default().int(64)).unwrap();
}

#[test]
fn memory_of_undefined_content_is_nan() {
    let machine = Emulator::leak(Guard::Start, 0);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        assert!(machine.empty(&[3, 5], kind).isnan().all().int64_value(&[]) == 1);
    }
}

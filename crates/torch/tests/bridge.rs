//! The bridge against libtorch's own autograd and arithmetic, and Gloo over real processes.

use std::process::Command;
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch::{autograd, dist, fused, storage, stream};

fn arange(shape: &[i64]) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 0.37)
        .sin()
        .reshape(shape)
}

fn close(a: &Tensor, b: &Tensor) {
    let d = (a - b).abs().max().double_value(&[]);
    assert!(d < 1e-12, "differ by {d}");
}

/// `y = x * w` summed over rows, with a backward written by hand.
fn by_hand(x: &Tensor, w: &Tensor) -> Tensor {
    let (xd, wd) = (x.detach(), w.detach());
    let y = tch::no_grad(|| &xd * &wd);
    autograd::node(
        &[x, w],
        vec![y],
        Box::new(move |mut grads| {
            let g = grads.remove(0).expect("y is used");
            vec![
                Some(&g * &wd),
                Some((&g * &xd).sum_dim_intlist([0i64].as_slice(), false, Kind::Double)),
            ]
        }),
    )
    .unwrap()
    .remove(0)
}

#[test]
fn a_rust_node_gives_the_gradients_of_plain_autograd() {
    let x = arange(&[5, 3]).set_requires_grad(true);
    let w = arange(&[3]).set_requires_grad(true);
    let upstream = |y: Tensor| (y.exp() * arange(&[5, 3])).sum(Kind::Double);
    let hand = upstream(by_hand(&(&x * 2.0), &w));
    let hand = autograd::vjp(&[&hand], &[&Tensor::from(1.0)], &[&x, &w], false).unwrap();
    let plain = upstream((&x * 2.0) * &w);
    let plain = autograd::vjp(&[&plain], &[&Tensor::from(1.0)], &[&x, &w], false).unwrap();
    for (h, p) in hand.iter().zip(&plain) {
        close(h.as_ref().unwrap(), p.as_ref().unwrap());
    }
    // The graph runs into leaves' .grad as well.
    upstream(by_hand(&x, &w)).backward();
    assert!(w.grad().defined());
}

#[test]
fn vjp_takes_output_gradients_and_reports_unreached_inputs() {
    let x = arange(&[4]).set_requires_grad(true);
    let z = arange(&[4]).set_requires_grad(true);
    let y = &x * &x;
    let g = autograd::vjp(&[&y], &[&arange(&[4])], &[&x, &z], false).unwrap();
    close(g[0].as_ref().unwrap(), &(2.0 * x.detach() * arange(&[4])));
    assert!(g[1].is_none());
    assert!(!x.grad().defined(), "nothing is accumulated");
}

#[test]
fn a_panic_in_backward_is_an_error_not_an_abort() {
    let x = arange(&[2]).set_requires_grad(true);
    let y = autograd::node(
        &[&x],
        vec![arange(&[2])],
        Box::new(|_| panic!("no such row")),
    )
    .unwrap();
    let e = autograd::vjp(&[&y[0]], &[&arange(&[2])], &[&x], false).unwrap_err();
    assert!(e.to_string().contains("no such row"), "{e}");
}

#[test]
fn fused_adamw_is_the_paper() {
    let (mut p, g) = (arange(&[7]), arange(&[7]).cos());
    let (mut m, mut v) = (p.zeros_like(), p.zeros_like());
    let (q, qm, qv) = (p.copy(), p.zeros_like(), p.zeros_like());
    let w = fused::AdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        weight_decay: 0.1,
        eps: 1e-8,
    };
    for t in 1..=3 {
        m = &m * w.beta1 + &g * (1.0 - w.beta1);
        v = &v * w.beta2 + &g * &g * (1.0 - w.beta2);
        let (mh, vh) = (&m / (1.0 - w.beta1.powi(t)), &v / (1.0 - w.beta2.powi(t)));
        p = &p * (1.0 - w.lr * w.weight_decay) - w.lr * mh / (vh.sqrt() + w.eps);
        let step = Tensor::from(t as f32);
        fused::adamw(&[&q], &[&g], &[&qm], &[&qv], &[&step], w).unwrap();
    }
    close(&p, &q);
}

#[test]
fn versions_count_in_place_changes() {
    let mut t = arange(&[3]);
    let before = storage::version(&t);
    let _ = t.f_add_scalar_(1.0).unwrap();
    assert!(storage::version(&t) > before);
    storage::resize(&t, 0).unwrap();
    storage::resize(&t, 24).unwrap();
    assert_eq!(t.fill_(2.0).sum(Kind::Double).double_value(&[]), 6.0);
}

/// Not a test of its own: the body of each rank of the next one.
#[test]
fn gloo_rank() {
    let Ok(rank) = std::env::var("BRIDGE_TEST_RANK") else {
        return;
    };
    let (rank, port) = (
        rank.parse::<usize>().unwrap(),
        std::env::var("BRIDGE_TEST_PORT").unwrap().parse().unwrap(),
    );
    let limit = Duration::from_secs(30);
    let store = dist::Store::connect("127.0.0.1", port, rank == 0, 2, limit).unwrap();
    let g = dist::Gloo::new(&store, "world", rank, 2, limit).unwrap();
    let f = |v: &[f32]| Tensor::from_slice(v);
    let list = |t: &Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).flatten(0, -1)).unwrap();

    let mut t = f(&[1.0 + rank as f32, 2.0]);
    g.all_reduce_sum(&mut t).unwrap();
    assert_eq!(list(&t), [3.0, 4.0]);
    let mut t = f(&[1.5 + rank as f32]).to_kind(Kind::BFloat16);
    g.all_reduce_max(&mut t).unwrap();
    assert_eq!(list(&t), [2.5]);
    let mut t = f(&[rank as f32]);
    g.broadcast(&mut t, 1).unwrap();
    assert_eq!(list(&t), [1.0]);
    let mut out = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
    g.all_gather(&mut out, &f(&[rank as f32, 7.0]).reshape([1, 2]))
        .unwrap();
    assert_eq!(list(&out), [0.0, 7.0, 1.0, 7.0]);
    let mut out = Tensor::zeros([1, 2], (Kind::Float, Device::Cpu));
    g.reduce_scatter(&mut out, &f(&[1.0, 2.0, 3.0, 4.0]).reshape([2, 2]))
        .unwrap();
    assert_eq!(list(&out), if rank == 0 { [2.0, 4.0] } else { [6.0, 8.0] });
    // Rank 0 keeps one row and sends two; rank 1 sends none and keeps one.
    let (input, rows_in, rows_out) = if rank == 0 {
        (f(&[1.0, 2.0, 3.0]), [1, 2], [1, 0])
    } else {
        (f(&[9.0]), [0, 1], [2, 1])
    };
    let mut out = Tensor::zeros([rows_out.iter().sum::<i64>()], (Kind::Float, Device::Cpu));
    g.all_to_all(&mut out, &input, &rows_out, &rows_in).unwrap();
    assert_eq!(
        list(&out),
        if rank == 0 {
            vec![1.0]
        } else {
            vec![2.0, 3.0, 9.0]
        }
    );
    if rank == 0 {
        g.send(&f(&[5.0]), 1, 3).unwrap();
    } else {
        let mut t = f(&[0.0]);
        g.recv(&mut t, 0, 3).unwrap();
        assert_eq!(list(&t), [5.0]);
    }
    g.barrier().unwrap();
}

#[test]
fn gloo_between_two_processes() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["gloo_rank", "--exact", "--nocapture"])
                .env("BRIDGE_TEST_RANK", rank.to_string())
                .env("BRIDGE_TEST_PORT", port.to_string())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut rank in ranks {
        assert!(rank.wait().unwrap().success());
    }
}

#[test]
fn parallel_parts_cover_the_range_once() {
    use std::sync::atomic::{AtomicU32, Ordering};
    torch::threads::set(2);
    let seen: Vec<AtomicU32> = (0..1001).map(|_| AtomicU32::new(0)).collect();
    torch::threads::parallel_for(seen.len(), 16, &|part| {
        for i in part {
            seen[i].fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    let panicked = std::panic::catch_unwind(|| {
        torch::threads::parallel_for(8, 1, &|part| assert!(!part.contains(&5), "part {part:?}"));
    });
    assert!(panicked.is_err());
}

#[test]
fn facts_about_libtorch() {
    assert!(
        torch::version().starts_with("2.11."),
        "{}",
        torch::version()
    );
    assert!(["DEFAULT", "AVX2", "AVX512"].contains(&torch::instruction_set().as_str()));
}

/// The CPU has one stream and no events; a device that is not there is named.
#[test]
fn streams_are_those_of_a_device_that_is_there() {
    stream::select(Device::Cpu).unwrap();
    let here = stream::Stream::current(Device::Cpu).unwrap();
    let Err(error) = here.record() else {
        panic!("the CPU has no events")
    };
    assert!(error.to_string().contains("event"), "{error}");
    assert!(here.native().is_err());
    if !tch::Cuda::is_available() {
        let error = stream::Stream::current(Device::Cuda(0)).unwrap_err();
        assert!(error.to_string().to_lowercase().contains("cuda"), "{error}");
        assert!(torch::cuda::bus_id(0).is_err());
    }
}

//! Every collective against its expected values, on real processes.
//!
//!     collectives [--device cpu|cuda] [--transport gloo|nccl] [--ranks 1,2,4]
//!
//! With `--device cuda` all ranks share the first GPU: Gloo stages their tensors in host memory; NCCL
//! takes one rank only, and must refuse two, and not wait for one that is late. Then what does not end: a rank that does not come, and on
//! NCCL work that outlasts the deadline, which must be aborted and named. Prints a JSON line for each
//! number of ranks; exit code 1 if one is wrong.

use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use parallel::{Collective, Gloo, Nccl, NcclProcess, Net, free_port};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RANK: &str = "RECIPE_COLLECTIVES_RANK";
/// How long the ranks wait for one another.
const DEADLINE: Duration = Duration::from_secs(60);
/// The same where nobody will come, or nothing end.
const SHORT: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Args {
    device: String,
    transport: String,
    ranks: Vec<usize>,
}

fn arguments() -> Result<Args> {
    let mut args = Args {
        device: "cpu".into(),
        transport: "gloo".into(),
        ranks: vec![1, 2, 4],
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--device" if ["cpu", "cuda"].contains(&&*value) => args.device = value,
            "--transport" if ["gloo", "nccl"].contains(&&*value) => args.transport = value,
            "--ranks" => {
                let each = value.split(',').map(str::parse);
                args.ranks = each.collect::<std::result::Result<_, _>>()?;
            }
            _ => return Err(format!("unknown: {name} {value}").into()),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match arguments() {
        Ok(args) => args,
        Err(why) => {
            eprintln!("collectives: {why}");
            return ExitCode::from(2);
        }
    };
    if let Ok(place) = std::env::var(RANK) {
        let numbers: Vec<usize> = place
            .split(' ')
            .map(|n| n.parse().expect("a number"))
            .collect();
        return rank(&args, numbers[0], numbers[1], numbers[2] as u16);
    }
    let mut wrong = false;
    for &size in &args.ranks {
        let port = free_port().expect("a port");
        let start = |rank: usize| {
            Command::new(std::env::current_exe().expect("this program"))
                .args(std::env::args().skip(1))
                .env(RANK, format!("{rank} {size} {port}"))
                .stdout(Stdio::piped())
                .spawn()
                .expect("a rank starts")
        };
        let ranks: Vec<_> = (0..size).map(start).collect();
        let ended = ranks
            .into_iter()
            .map(|r| r.wait_with_output().expect("an end"));
        let ended: Vec<_> = ended.collect();
        let ok = ended.iter().all(|e| e.status.success());
        wrong |= !ok;
        let said = |out: &std::process::Output| -> Value {
            serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
        };
        let line = json!({
            "device": args.device, "transport": args.transport, "ranks": size, "ok": ok,
            "said": ended.iter().map(said).collect::<Vec<_>>(),
        });
        println!("{line}");
    }
    ExitCode::from(u8::from(wrong))
}

/// One rank: prints what it found.
fn rank(args: &Args, rank: usize, size: usize, port: u16) -> ExitCode {
    torch::threads::set(1);
    let outcome = checks(args, rank, size, port);
    let ok = outcome.is_ok();
    let line = match outcome {
        Ok(said) => said,
        Err(why) => json!({ "error": why.to_string() }),
    };
    println!("{line}");
    // NCCL's threads may hold a process that failed
    // SAFETY: ends this process at once; what was printed is flushed by its newline.
    unsafe { libc::_exit(i32::from(!ok)) }
}

fn checks(args: &Args, rank: usize, size: usize, port: u16) -> Result<Value> {
    let device = match args.device.as_str() {
        "cpu" => Device::Cpu,
        _ => {
            torch::cuda::load()?;
            if !torch::cuda::available() {
                return Err("no CUDA device here".into());
            }
            Device::Cuda(0)
        }
    };
    let all: Vec<usize> = (0..size).collect();
    let net = Net::join(rank, size, "127.0.0.1", port, DEADLINE)?;
    if args.transport == "gloo" {
        let group = Gloo::new(&net, "all", &all)?;
        let checked = values(&group, device)?;
        // a group of one has nobody to wait for
        let said = match size {
            1 => Value::Null,
            _ => absent(rank, size, port_of(&group, rank)?)?,
        };
        return Ok(json!({ "checked": checked, "failure": said }));
    }
    let process = NcclProcess::new(device, DEADLINE)?;
    let version = process.version()?;
    let group = Nccl::new(&net, "all", &all, &process, true);
    if size > 1 {
        let refused = group.err().ok_or("NCCL let ranks share a GPU")?.to_string();
        if !refused.contains("invalid usage") {
            return Err(
                format!("NCCL refused to share a GPU for another reason: {refused}").into(),
            );
        }
        let late = late(&net, rank, &all, device)?;
        return Ok(json!({ "nccl": version, "refused": refused, "late": late }));
    }
    let group = group?;
    let checked = values(&group, device)?;
    drop(group);
    Ok(json!({ "nccl": version, "checked": checked, "failure": outlasting(device)? }))
}

/// A rank that takes part until NCCL's own meeting and does not come there: the others end at the
/// deadline.
fn late(net: &Rc<Net>, rank: usize, all: &[usize], device: Device) -> Result<Value> {
    if rank > 0 {
        let group = Gloo::new(net, "late", all)?;
        let mut name = Tensor::zeros([128], (Kind::Uint8, Device::Cpu));
        group.broadcast(&mut name, 0, "start")?;
        std::thread::sleep(SHORT * 2);
        return Ok(Value::Null);
    }
    let process = NcclProcess::new(device, SHORT)?;
    let start = Instant::now();
    let group = Nccl::new(net, "late", all, &process, false);
    let said = group
        .err()
        .ok_or("NCCL met without one of its ranks")?
        .to_string();
    for part in [
        "join over late",
        "at the deadline",
        "rank 1: no word from it",
    ] {
        if !said.contains(part) {
            return Err(format!("the failure does not say '{part}': {said}").into());
        }
    }
    if start.elapsed() > SHORT * 3 {
        return Err(format!("it took {:?} to fail", start.elapsed()).into());
    }
    Ok(json!(said))
}

/// A port for another meeting, chosen by rank 0.
fn port_of(group: &dyn Collective, rank: usize) -> Result<u16> {
    let mut port = Tensor::from_slice(&[if rank == 0 {
        i64::from(free_port()?)
    } else {
        0
    }]);
    group.broadcast(&mut port, 0, "port")?;
    Ok(port.int64_value(&[0]) as u16)
}

/// A rank that does not come: the others end at the deadline, and name it.
fn absent(rank: usize, size: usize, port: u16) -> Result<Value> {
    let net = Net::join(rank, size, "127.0.0.1", port, SHORT)?;
    let group = Gloo::new(&net, "all", &(0..size).collect::<Vec<_>>())?;
    if rank == size - 1 {
        // longer than the others wait, and look for what it says
        std::thread::sleep(SHORT * 2);
        return Ok(Value::Null);
    }
    let start = Instant::now();
    let mut tensor = Tensor::zeros([8], (Kind::Float, Device::Cpu));
    let said = group
        .all_reduce_sum(&mut tensor, "nobody comes")
        .err()
        .ok_or("a collective ended without one of its ranks")?
        .to_string();
    let absent = format!("rank {}: no word from it", size - 1);
    for part in [
        "all_reduce_sum",
        "nobody comes",
        &format!("rank {rank} of {size}"),
        &absent,
    ] {
        if !said.contains(part) {
            return Err(format!("the failure does not say '{part}': {said}").into());
        }
    }
    if start.elapsed() > SHORT * 2 {
        return Err(format!("it took {:?} to fail", start.elapsed()).into());
    }
    Ok(json!(said))
}

/// Work on the device that outlasts the deadline: the collective behind it is aborted and named, and
/// the next one says so at once.
fn outlasting(device: Device) -> Result<Value> {
    let process = NcclProcess::new(device, SHORT)?;
    let net = Net::join(0, 1, "127.0.0.1", free_port()?, SHORT)?;
    let group = Nccl::new(&net, "all", &[0], &process, false)?;
    let side = 8192;
    let a = Tensor::ones([side, side], (Kind::Double, device));
    let product = || drop(a.matmul(&a));
    let seconds = |count: usize| {
        let start = Instant::now();
        (0..count).for_each(|_| product());
        tch::Cuda::synchronize(0);
        start.elapsed().as_secs_f64()
    };
    seconds(1);
    let each = seconds(4) / 4.0;
    for _ in 0..(3.0 * SHORT.as_secs_f64() / each).ceil() as usize {
        product();
    }
    let start = Instant::now();
    let mut small = Tensor::ones([8], (Kind::Float, device));
    let said = group
        .all_reduce_sum(&mut small, "outlasted")
        .err()
        .ok_or("it ended before the work before it")?
        .to_string();
    for part in [
        "all_reduce_sum over all",
        "outlasted",
        "rank 0 of 1",
        "did not end within",
    ] {
        if !said.contains(part) {
            return Err(format!("the failure does not say '{part}': {said}").into());
        }
    }
    let waited = start.elapsed();
    if waited > SHORT + SHORT {
        return Err(format!("it took {waited:?} to fail").into());
    }
    let next = group.all_gather(&mut small.shallow_clone(), &small, "after");
    let next = next.err().ok_or("the next collective went on")?.to_string();
    if !next.contains("outlasted") {
        return Err(format!("the next failure hides the first: {next}").into());
    }
    Ok(json!({ "said": said, "seconds": waited.as_secs_f64() }))
}

/// Runs every collective; returns how many results were compared.
fn values(group: &dyn Collective, device: Device) -> Result<usize> {
    let mut checks = Checks {
        group,
        device,
        compared: 0,
    };
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64] {
        // one that the host waits for, and one that it does not
        for count in [3, 40_000] {
            checks.reductions(kind, count)?;
            checks.gathers(kind, count)?;
            checks.rows(kind, count)?;
            checks.messages(kind, count)?;
        }
    }
    checks.ordered()?;
    group.barrier("end")?;
    Ok(checks.compared)
}

struct Checks<'a> {
    group: &'a dyn Collective,
    device: Device,
    compared: usize,
}

impl Checks<'_> {
    /// Element `i` of what rank `rank` has: small whole numbers, exact in every kind.
    fn of(&self, rank: usize, count: i64, kind: Kind) -> Tensor {
        let i = Tensor::arange(count, (Kind::Int64, Device::Cpu));
        let values = (i * 3 + 5 * rank as i64).remainder(11);
        values.to_kind(kind).to_device(self.device)
    }

    fn same(&mut self, got: &Tensor, want: &Tensor, what: &str) -> Result<()> {
        self.compared += 1;
        if got.kind() == want.kind() && got.equal(want) {
            return Ok(());
        }
        let (size, kind) = (got.size(), got.kind());
        Err(format!("{what} of {size:?} {kind:?} gave other values than expected").into())
    }

    fn all(&self, count: i64, kind: Kind) -> Vec<Tensor> {
        let size = self.group.size();
        (0..size).map(|r| self.of(r, count, kind)).collect()
    }

    fn reductions(&mut self, kind: Kind, count: i64) -> Result<()> {
        let (group, all) = (self.group, self.all(count, kind));
        let stacked = Tensor::stack(&all, 0);
        let mut x = self.of(group.rank(), count, kind);
        group.all_reduce_sum(&mut x, "sum")?;
        let sum = stacked.sum_dim_intlist([0i64].as_slice(), false, kind);
        self.same(&x, &sum, "all_reduce_sum")?;
        let mut x = self.of(group.rank(), count, kind);
        group.all_reduce_max(&mut x, "max")?;
        self.same(
            &x,
            &stacked.amax([0i64].as_slice(), false),
            "all_reduce_max",
        )?;
        let root = group.size() - 1;
        let mut x = self.of(group.rank(), count, kind);
        group.broadcast(&mut x, root, "copy")?;
        self.same(&x, &all[root], "broadcast")
    }

    fn gathers(&mut self, kind: Kind, count: i64) -> Result<()> {
        let (group, all) = (self.group, self.all(count, kind));
        let size = group.size() as i64;
        let whole = Tensor::cat(&all, 0);
        let mine = self.of(group.rank(), count, kind);
        let mut out = Tensor::zeros([size * count], (kind, self.device));
        group.all_gather(&mut out, &mine, "gather")?;
        self.same(&out, &whole, "all_gather")?;
        let mut out = Tensor::zeros([size * count], (kind, self.device));
        let started = group.all_gather_start(&mut out, &mine, "gather beside")?;
        let beside = self.of(group.rank(), count, kind).sum(kind);
        started.wait()?;
        self.same(&(out + &beside), &(&whole + &beside), "all_gather_start")?;

        // rank r gets the r-th part of the sum of everybody's `size` parts
        let parts = |rank: usize| self.of(rank, size * count, kind);
        let sum = (0..group.size()).map(parts).reduce(|a, b| a + b);
        let sum = sum
            .expect("a rank")
            .narrow(0, group.rank() as i64 * count, count);
        let input = parts(group.rank());
        let mut out = Tensor::zeros([count], (kind, self.device));
        group.reduce_scatter(&mut out, &input, "scatter")?;
        self.same(&out, &sum, "reduce_scatter")?;
        let mut out = Tensor::zeros([count], (kind, self.device));
        group
            .reduce_scatter_start(&mut out, &input, "scatter beside")?
            .wait()?;
        self.same(&out, &sum, "reduce_scatter_start")
    }

    /// Every rank sends every other another number of rows, none among them.
    fn rows(&mut self, kind: Kind, width: i64) -> Result<()> {
        let size = self.group.size();
        let rows = |from: usize, to: usize| ((from + 2 * to) % 3) as i64;
        let input = |from: usize| {
            let total: i64 = (0..size).map(|to| rows(from, to)).sum();
            self.of(from, total * width, kind).view([total, width])
        };
        let me = self.group.rank();
        let parts = (0..size).map(|from| {
            let before: i64 = (0..me).map(|to| rows(from, to)).sum();
            input(from).narrow(0, before, rows(from, me))
        });
        let want = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
        let mut out = Tensor::zeros(want.size(), (kind, self.device));
        let gives: Vec<i64> = (0..size).map(|to| rows(me, to)).collect();
        let takes: Vec<i64> = (0..size).map(|from| rows(from, me)).collect();
        self.group
            .all_to_all(&mut out, &input(me), &takes, &gives, "rows")?;
        self.same(&out, &want, "all_to_all")
    }

    /// Both ways around the ring at once.
    fn messages(&mut self, kind: Kind, count: i64) -> Result<()> {
        let (group, size, me) = (self.group, self.group.size(), self.group.rank());
        if size == 1 {
            return Ok(());
        }
        let (next, before) = ((me + 1) % size, (me + size - 1) % size);
        let mine = self.of(me, count, kind);
        let sent = [
            group.send_start(&mine, next, "on")?,
            group.send_start(&mine, before, "back")?,
        ];
        let empty = || Tensor::zeros([count], (kind, self.device));
        let (mut first, mut second) = (empty(), empty());
        group.recv(&mut first, before, "on")?;
        group.recv(&mut second, next, "back")?;
        sent.into_iter().try_for_each(|s| s.wait())?;
        let (a, b) = (self.of(before, count, kind), self.of(next, count, kind));
        self.same(&first, &a, "recv")?;
        self.same(&second, &b, "recv")
    }

    /// What is computed before and after a collective keeps its order with it, in reused memory.
    fn ordered(&mut self) -> Result<()> {
        let size = self.group.size() as f64;
        let mut x = Tensor::ones([1 << 18], (Kind::Double, self.device));
        for step in 0..30 {
            x = &x * 2.0;
            self.group.all_reduce_sum(&mut x, "order")?;
            x /= 2.0 * size;
            x += 1.0;
            let want = Tensor::full(
                [1 << 18],
                f64::from(step) + 2.0,
                (Kind::Double, self.device),
            );
            self.same(&x, &want, "a chain of collectives")?;
        }
        Ok(())
    }
}

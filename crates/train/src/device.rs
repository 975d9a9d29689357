//! Which device a rank computes on, and the numerics that its results depend on.

use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::Error;

/// The device of the rank with this index on its machine, for `--device auto`, `cpu` or `cuda`.
/// Call before the first tensor: CUDA's library is loaded here.
pub fn device(name: &str, local_rank: usize) -> Result<Device, Error> {
    let refuse = |why: String| Err(Error::Config(why));
    if let Err(why) = kernels::cuda::choice() {
        return refuse(why);
    }
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    if name != "auto" && name != "cuda" {
        return refuse(format!("unknown device '{name}': use auto, cpu or cuda"));
    }
    let loaded = torch::cuda::load();
    let count = if loaded.is_ok() && torch::cuda::available() {
        torch::cuda::device_count()
    } else {
        0
    };
    match (name, loaded) {
        _ if count > local_rank => Ok(Device::Cuda(local_rank)),
        ("auto", _) if count == 0 => Ok(Device::Cpu),
        (_, Err(why)) => refuse(format!("no CUDA here: {why}; use --device cpu")),
        (_, Ok(())) => refuse(format!(
            "rank {local_rank} on this machine needs a GPU of its own but {count} are visible; ask for fewer ranks or use --device cpu"
        )),
    }
}

/// What equal digests depend on: device, instruction set, libtorch, threads, whose kernels, compute kind.
pub fn numerics(device: Device, kind: Kind) -> Value {
    json!({
        "device": match device { Device::Cpu => "cpu", Device::Cuda(_) => "cuda", _ => "other" },
        "instruction_set": torch::instruction_set(),
        "libtorch": torch::version(),
        "threads": torch::threads::get(),
        "kernels": kernels_of(device),
        "dtype": match kind {
            Kind::Float => "fp32",
            Kind::BFloat16 => "bf16",
            Kind::Double => "fp64",
            _ => "other",
        },
    })
}

/// Whose kernels compute on a device. The CPU's are chosen by its instruction set.
fn kernels_of(device: Device) -> &'static str {
    match (device, kernels::cuda::machine(device)) {
        (Device::Cpu, _) | (_, Some(_)) => "fused",
        _ => "libtorch",
    }
}

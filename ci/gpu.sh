#!/bin/sh
# GPU checks and benchmarks from prebuilt binaries, on a machine without Rust.
#
# Usage: ci/gpu.sh BINARIES [NAME]
#   BINARIES  a directory that `cargo xtask pack DIR` has filled
#   NAME      results go to ci/results/NAME.json [default: the GPU's name]
#
# Needs python3 whose torch is 2.11 with CUDA; PYTHON names another python. RECIPE_GPU_CHECKS="kernels product"
# runs some of, in this order:
#   kernels      every GPU kernel against its reference in fp64, and its rate beside a copy's
#   product      SFT at Qwen3-0.6B and Llama-3.1-8B shapes, generation, a GRPO step, sampler against trainer;
#                training again with RECIPE_KERNELS=libtorch
#   peers        ci/gpu_peers.py: PyTorch eager and compiled, and generation, on the same GPU
#   recipe       recipes/sft-then-grpo.toml
#   models       every golden model's scores against transformers'
#   sanitizer    the kernels under compute-sanitizer, where it is installed
#   collectives  NCCL with one rank, host-staged Gloo with ranks that share the GPU
#   mesh         training on meshes of two and four such ranks against one process
#   bench        the CPU's benchmarks on the GPU
# Results are written after each of the first three, so that a run that is cut short leaves something; a run of other
# checks with the same binaries and NAME adds to the file. Then
# `python3 ci/gpu.py table` makes the README's table. RECIPE_GPU_DEVICE=cpu goes the same way on the CPU,
# small, kernels by the emulator: a test of this script.
# Exit: 0 ok, 1 a check failed (results are written), 2 usage, 4 no GPU or no libtorch here.
set -eu

fail() {
    code=$1
    shift
    echo "gpu.sh: $*" >&2
    exit "$code"
}

[ $# -eq 1 ] || [ $# -eq 2 ] || fail 2 "usage: ci/gpu.sh BINARIES [NAME]"
[ -d "$1" ] || fail 2 "$1 is no directory"
binaries=$(cd "$1" && pwd)
name=${2:-}
for binary in recipe recipe-worker bench collectives mesh kernel-tests kernel-rates gpu; do
    [ -x "$binaries/$binary" ] || fail 2 "$binaries/$binary is missing: build it with \
\`cargo xtask pack $1\`"
done
cd "$(dirname "$0")/.."

device=${RECIPE_GPU_DEVICE:-cuda}
case $device in
cuda)
    command -v nvidia-smi >/dev/null 2>&1 || fail 4 "no GPU here: nvidia-smi is not installed; \
run this on a machine with an NVIDIA GPU, or with RECIPE_GPU_DEVICE=cpu to test the script"
    nvidia-smi -L 2>&1 | grep -q '^GPU ' || fail 4 "no GPU here: nvidia-smi lists none"
    ;;
cpu) ;;
*) fail 2 "RECIPE_GPU_DEVICE=$device: use cuda or cpu" ;;
esac

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || fail 4 "$python is not installed"
torch=$("$python" ci/gpu.py torch) || exit 4
LD_LIBRARY_PATH=$torch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$python" ci/gpu.py run --device "$device" --binaries "$binaries" --scratch "$scratch" --name "$name" \
    --checks "${RECIPE_GPU_CHECKS:-}"

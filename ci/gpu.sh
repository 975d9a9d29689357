#!/bin/sh
# GPU checks and benchmarks from prebuilt binaries, on a machine without Rust.
#
# Usage: ci/gpu.sh BINARIES [NAME]
#   BINARIES  a directory that `cargo xtask pack DIR` has filled
#   NAME      results go to ci/results/NAME.json [default: the GPU's name]
#
# Needs python3 whose torch is 2.11 with CUDA; PYTHON names another python. Runs
# recipes/sft-then-grpo.toml, scores every golden model against transformers, checks the collectives
# (NCCL with one rank, host-staged Gloo with ranks that share the GPU), trains on meshes of two and four
# such ranks against one process, and benchmarks, all on the GPU. RECIPE_GPU_CHECKS="collectives mesh"
# runs some of: recipe, models, collectives, mesh, bench. RECIPE_GPU_DEVICE=cpu goes the same way on the
# CPU, small: a test of this script.
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
for binary in recipe recipe-worker bench collectives mesh; do
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

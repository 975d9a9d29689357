"""What ci/gpu.sh runs, checks and writes down. Standard library only; see ci/gpu.sh for usage.

    gpu.py torch    prints the library path of this python's libtorch
    gpu.py run ..   runs the checks and writes ci/results/NAME.json; exit 1 when one fails
"""

import argparse
import datetime
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.11."
# what log-probabilities on any device may differ from transformers' on CPU, in nats
TOLERANCE = 1e-4

# in this order
CHECKS = ["recipe", "models", "collectives", "mesh", "bench"]

SCORE = """[recipe]
name = "score-fixture"
schema = 1

[source.model]
path = "model"

[source.rows]
path = "rows.jsonl"

[stage.score]
kind = "score"
in = { model = "source.model", data = "source.rows" }
"""


def torch():
    """The directories that the dynamic linker must know, joined by colons."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        sys.exit(f"gpu.py: {sys.executable} has no torch: install torch {TORCH}* with CUDA, or set PYTHON")
    version = importlib.metadata.version("torch")
    if not version.startswith(TORCH):
        sys.exit(f"gpu.py: torch {version} of {sys.executable} is not {TORCH}*, which the binaries need")
    site = Path(spec.origin).parent.parent
    print(":".join([str(site / "torch/lib"), *sorted(glob.glob(str(site / "nvidia/*/lib")))]))


def call(command, log):
    """Exit code, standard output and seconds; standard error goes to `log`."""
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as stderr:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        tail = Path(log).read_text(encoding="utf-8").splitlines()[-20:]
        print(f"exit {done.returncode}: {' '.join(map(str, command))}", *tail, sep="\n", file=sys.stderr)
    return done.returncode, done.stdout, seconds


def run_recipe(args, file, *more):
    """`recipe run` into the scratch store: exit code and the outcome."""
    command = [args.binaries / "recipe", "run", file, "--device", args.device, "--offline", "--json",
               "--store", args.scratch / "store", *more]
    code, out, seconds = call(command, args.scratch / "run.log")
    try:
        outcome = json.loads(out)
    except json.JSONDecodeError:
        outcome = {}
    return code, outcome, seconds


def main_recipe(args):
    """The whole spine: init, SFT, GRPO, evaluation, export."""
    # small where it is only a test of this script
    name = "ci/pipeline.toml" if args.device == "cpu" else "sft-then-grpo.toml"
    shutil.copytree(ROOT / "recipes", args.scratch / "recipes", ignore=shutil.ignore_patterns("recipe.lock"))
    code, outcome, seconds = run_recipe(args, args.scratch / "recipes" / name)
    stages = [{key: stage.get(key) for key in ("stage", "kind", "status", "seconds", "metrics")}
              for stage in outcome.get("stages", [])]
    return {"recipe": f"recipes/{name}", "ok": code == 0, "exit_code": code, "seconds": seconds,
            "stages": stages}


def fixture(args, model):
    """Scores a golden model's sequences; the greatest difference to transformers."""
    expected = json.loads((model / "expected.json").read_text(encoding="utf-8"))
    folder = args.scratch / "score" / model.name
    folder.mkdir(parents=True)
    shutil.copytree(model, folder / "model")
    (folder / "recipe.toml").write_text(SCORE, encoding="utf-8")
    rows = "".join(json.dumps({"tokens": tokens}) + "\n" for tokens in expected["sequences"])
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    result = {"model": model.name, "ok": False}
    code, _, _ = run_recipe(args, folder / "recipe.toml")
    if code == 0:
        code, _, _ = call([args.binaries / "recipe", "get", folder / "recipe.toml", "score.logprobs",
                           "--store", args.scratch / "store", "--to", folder / "out"], folder / "get.log")
    if code != 0:
        return result | {"exit_code": code}
    lines = (folder / "out" / "logprobs.jsonl").read_text(encoding="utf-8").splitlines()
    ours = [json.loads(line)["logprobs"] for line in lines]
    theirs = expected["logprobs"]
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return result | {"error": "other numbers of tokens than expected"}
    apart = [abs(a - b) for mine, other in zip(ours, theirs) for a, b in zip(mine, other)]
    # written so that a NaN fails
    return result | {"ok": all(x < TOLERANCE for x in apart), "tokens": len(apart),
                     "max_difference": max(apart), "tolerance": TOLERANCE}


def benchmarks(args):
    """The benchmark's lines."""
    quick = ["--quick"] if args.device == "cpu" else []
    code, out, seconds = call([args.binaries / "bench", "--device", args.device, *quick], args.scratch / "bench.log")
    lines = [json.loads(line) for line in out.splitlines()]
    return {"ok": code == 0, "seconds": seconds, "arguments": ["--device", args.device, *quick], "lines": lines}


def ranks(args):
    """Collectives against their expected values, and what must fail: NCCL with one rank (several cannot share a
    GPU, and must say so), host-staged Gloo with two and four ranks on one GPU."""
    ways = [("nccl", "1,2"), ("gloo", "2,4")] if args.device == "cuda" else [("gloo", "1,2,4")]
    results = []
    for transport, sizes in ways:
        code, out, seconds = call([args.binaries / "collectives", "--device", args.device, "--transport", transport,
                                   "--ranks", sizes], args.scratch / "collectives.log")
        results.append({"transport": transport, "ok": code == 0, "seconds": seconds,
                        "lines": [json.loads(line) for line in out.splitlines()]})
    return results


def meshes(args):
    """The table of `cargo xtask mesh` with up to four ranks, which share one GPU over host-staged Gloo."""
    settings = {"RECIPE_MESH_DEVICE": args.device, "RECIPE_MESH_RANKS": "4"}
    if args.device == "cuda":
        settings["RECIPE_MESH_TABLE"] = "1"
    os.environ.update(settings)
    code, out, seconds = call([args.binaries / "mesh"], args.scratch / "mesh.log")
    lines = out.splitlines()
    for line in lines:
        print(f"  {line}")
    # a header, lines and a summary: none of them is no table
    return {"ok": code == 0 and len(lines) > 2, "exit_code": code, "seconds": seconds, "settings": settings,
            "table": lines}


def gpus(device):
    """What nvidia-smi says of each GPU."""
    if device == "cpu":
        return []
    fields = ["name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit"]
    out = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                         stdout=subprocess.PIPE, text=True, check=True).stdout
    return [dict(zip(fields, map(str.strip, line.split(",")))) for line in out.strip().splitlines()]


def binary(path):
    """Size and digest of a binary."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def run(args):
    """All checks; returns whether all are well."""
    devices = gpus(args.device)
    code, out, _ = call([args.binaries / "recipe-worker", "identity"], args.scratch / "identity.log")
    if code != 0:
        sys.exit("gpu.py: recipe-worker does not start here")
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(filter(None, [
            "RECIPE_GPU_DEVICE=cpu" if args.device == "cpu" else "",
            f"RECIPE_GPU_CHECKS='{' '.join(args.checks)}'" if args.checks != CHECKS else "",
            "ci/gpu.sh", "BINARIES", args.name])),
        "device": args.device,
        "gpus": devices,
        "cores": os.cpu_count(),
        "torch": importlib.metadata.version("torch"),
        "worker": json.loads(out),
        "binaries": {path.name: binary(path) for path in sorted(args.binaries.iterdir()) if path.is_file()},
    }
    checks = []
    if "recipe" in args.checks:
        print("running the recipe", flush=True)
        results["run"] = main_recipe(args)
        checks.append(results["run"])
    if "models" in args.checks:
        models = sorted(path.parent for path in ROOT.glob("tests/golden/models/*/expected.json"))
        print(f"scoring {len(models)} golden models", flush=True)
        results["fixtures"] = [fixture(args, model) for model in models]
        checks += results["fixtures"] or [{"ok": False}]
    if "collectives" in args.checks:
        print("checking collectives", flush=True)
        results["collectives"] = ranks(args)
        checks += results["collectives"]
    if "mesh" in args.checks:
        print("training on meshes", flush=True)
        results["mesh"] = meshes(args)
        checks.append(results["mesh"])
    if "bench" in args.checks:
        print("benchmarking", flush=True)
        results["bench"] = benchmarks(args)
        checks.append(results["bench"])
    results["ok"] = all(check["ok"] for check in checks)

    default = devices[0]["name"] if devices else "cpu"
    name = args.name or re.sub(r"[^a-z0-9]+", "-", default.lower()).strip("-")
    to = ROOT / "ci" / "results" / f"{name}.json"
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for check in results.get("fixtures", []):
        print(f"  {check['model']}: {'ok' if check['ok'] else 'FAILED'}, {check.get('max_difference')}")
    for check in results.get("collectives", []):
        for line in check["lines"]:
            print(f"  {check['transport']}, {line['ranks']} ranks: {'ok' if line['ok'] else 'FAILED'}")
            if not line["ok"]:
                print(f"    {json.dumps(line['said'])}")
    print(f"{'ok' if results['ok'] else 'FAILED'}: {to.relative_to(ROOT)}")
    return results["ok"]


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("torch")
    runs = verbs.add_parser("run")
    runs.add_argument("--device", required=True)
    runs.add_argument("--binaries", type=Path, required=True)
    runs.add_argument("--scratch", type=Path, required=True)
    runs.add_argument("--name", default="")
    runs.add_argument("--checks", default=CHECKS, type=lambda text: text.split() or CHECKS)
    args = parser.parse_args()
    unknown = set(getattr(args, "checks", [])) - set(CHECKS)
    if unknown:
        sys.exit(f"gpu.py: no check named {', '.join(sorted(unknown))}: there are {', '.join(CHECKS)}")
    if args.verb == "torch":
        torch()
    elif not run(args):
        sys.exit(1)


main()

"""What ci/gpu.sh runs, checks and writes down. Standard library only; see ci/gpu.sh for usage.

    gpu.py torch    prints the library path of this python's libtorch
    gpu.py run ..   runs the checks and writes ci/results/NAME.json; exit 1 when one fails
    gpu.py table    writes the README's table of GPU figures from ci/results/*.json
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

# in this order; the first ones tell most
CHECKS = ["kernels", "product", "peers", "recipe", "models", "sanitizer", "collectives", "mesh", "bench"]
# where a check's results lie in the file, unless under its name
SECTIONS = {"recipe": "run", "models": "fixtures"}
# seconds that one program of a check may take
LIMIT = 420
README_BEGIN, README_END = "<!-- gpu figures: ci/gpu.py table -->", "<!-- end of gpu figures -->"

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


def call(command, log, **more):
    """Exit code, standard output and seconds; standard error goes to `log`. 124 is a program that took too long; what it
    printed until then is kept."""
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as stderr:
        env = os.environ | more
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, env=env,
                                  timeout=LIMIT)
            code, out = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, out = 124, (late.stdout or b"").decode(errors="replace")
    seconds = time.monotonic() - start
    if code != 0:
        tail = Path(log).read_text(encoding="utf-8").splitlines()[-20:]
        print(f"exit {code}: {' '.join(map(str, command))}", *tail, sep="\n", file=sys.stderr)
    return code, out, seconds


def json_lines(text):
    """The lines that are JSON objects."""
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def measured(args, command, name, **more):
    """A program that prints JSON lines: its result."""
    code, out, seconds = call(command, args.scratch / f"{name}.log", **more)
    lines = json_lines(out)
    for line in lines:
        print(f"  {json.dumps(line)}", flush=True)
    return {"name": name, "ok": code == 0 and bool(lines), "exit_code": code, "seconds": seconds,
            "arguments": [str(part) for part in command[1:]], "lines": lines}


def kernels(args):
    """Every kernel against its reference in fp64, outputs poisoned first, on inputs that no run had before; then rates."""
    seed = str(int(time.time()))
    tests = args.binaries / "kernel-tests"
    # without NVRTC's own tests: they write below the folder that the binary was built in
    code, out, seconds = call([tests, "--skip", "compile::", "--skip", "arguments::", "--test-threads", "1"],
                              args.scratch / "kernel-tests.log", RECIPE_KERNEL_SEED=seed, RECIPE_GPU_DEVICE=args.device)
    lines = [line for line in out.splitlines() if line.startswith("test ")]
    for line in lines:
        print(f"  {line}", flush=True)
    if code != 0:
        print("\n".join(out.splitlines()[-60:]), flush=True)
    ok = code == 0 and len(lines) > 10
    agree = {"name": "kernel-tests", "ok": ok, "seed": seed, "seconds": seconds, "tests": lines,
             "tolerance": {"fp32": 1e-5, "bf16": 1e-2}, "said": [] if ok else out.splitlines()[-60:]}
    return [agree, measured(args, [args.binaries / "kernel-rates", args.device], "kernel-rates")]


def sanitizer(args):
    """The same tests under compute-sanitizer, where there is one."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if args.device == "cpu" or tool is None:
        return [{"name": "compute-sanitizer", "ok": True, "skipped": "it is not installed, or there is no GPU"}]
    results = []
    for check in ["memcheck", "racecheck"]:
        code, out, seconds = call(
            [tool, "--tool", check, "--error-exitcode", "9", args.binaries / "kernel-tests", "--skip", "compile::",
             "--skip", "arguments::", "--skip", "many_rows", "--test-threads", "1"],
            args.scratch / f"{check}.log", RECIPE_GPU_DEVICE=args.device)
        results.append({"name": f"compute-sanitizer {check}", "ok": code == 0, "exit_code": code, "seconds": seconds,
                        "said": out.splitlines()[-20:]})
    return results


def product(args):
    """Training, generation and a GRPO step at real sizes, with our kernels; training and agreement with libtorch's too."""
    gpu = args.binaries / "gpu"
    results = [measured(args, [gpu, what, args.device], what) for what in ["agree", "sft", "decode", "grpo"]]
    return results + [measured(args, [gpu, what, args.device], f"{what}, RECIPE_KERNELS=libtorch",
                               RECIPE_KERNELS="libtorch") for what in ["agree", "sft"]]


def peers(args):
    """What people would use instead. A peer that fails is its own line; it fails no check of ours."""
    script = ROOT / "ci/gpu_peers.py"
    results = [measured(args, [sys.executable, script, what, args.device], f"peer {what}") for what in ["sft", "decode"]]
    return [result | {"ok": True, "measured": result["ok"]} for result in results]


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
    code, outcome, seconds = run_recipe(args, args.scratch / "recipes" / name, "--profile-steps", "2..3")
    traces = outcome.get("profile", {}).get("traces", [])
    seen = [row for path in traces for row in profile(path)]
    # on a GPU the device's own times are part of every trace
    told = {row["trace"] for row in seen if row["thread"] == "gpu"} if args.device == "cuda" else traces
    stages = [{key: stage.get(key) for key in ("stage", "kind", "status", "seconds", "metrics")}
              for stage in outcome.get("stages", [])]
    return {"recipe": f"recipes/{name}", "ok": code == 0 and 0 < len(traces) == len(told), "exit_code": code,
            "seconds": seconds, "stages": stages, "profile": seen}


def profile(path):
    """What a trace's threads spent their time on: by name, slices and milliseconds, the GPU first, the longest first."""
    events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    sums = {}
    for event in (e for e in events if e["ph"] == "X" and e["cat"] != "step"):
        entry = sums.setdefault((threads[event["tid"]], event["cat"], event["name"]), [0, 0.0])
        entry[0] += 1
        entry[1] += event["dur"] / 1e3
    rows = [{"trace": Path(path).name, "thread": thread, "category": category, "name": name, "slices": count,
             "ms": round(ms, 3)} for (thread, category, name), (count, ms) in sums.items()]
    return sorted(rows, key=lambda row: (row["thread"] != "gpu", -row["ms"]))[:40]


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


def place(args, devices):
    """The file of the results."""
    default = devices[0]["name"] if devices else "cpu"
    name = args.name or re.sub(r"[^a-z0-9]+", "-", default.lower()).strip("-")
    return ROOT / "ci" / "results" / f"{name}.json"


def earlier(args, results, devices):
    """What a run of other checks of the same binaries on the same GPU left in the file: several short runs make one."""
    to = place(args, devices)
    if not to.exists():
        return {}
    old = json.loads(to.read_text(encoding="utf-8"))
    if any(old.get(key) != results[key] for key in ["binaries", "gpus", "torch", "device"]):
        return {}
    mine = {SECTIONS.get(check, check) for check in args.checks}
    kept = {key: old[key] for key in map(lambda check: SECTIONS.get(check, check), CHECKS) if key in old and key not in mine}
    return kept | ({"earlier": old.get("earlier", []) + [[old["date"], old["command"], old["ok"]]]} if kept else {})


def write(args, results, devices):
    """Writes the results so far: a run that is cut short leaves what it had."""
    to = place(args, devices)
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return to


def best(results, check, measure, **want):
    """The last line of a measure whose fields are as wanted."""
    lines = [line for part in results.get(check, []) for line in part.get("lines", [])
             if line.get("measure") == measure and all(line.get(key) == value for key, value in want.items())]
    return lines[-1] if lines else None


def rows(results):
    """Lines of the table: what, ours, theirs."""
    out = []
    number = lambda value, unit: "not measured" if value is None else f"{value:,.0f} {unit}"
    for length in [4096, 8192]:
        ours = best(results, "product", "sft", model="qwen3-0.6b", length=length, kernels="fused")
        if ours is None:
            continue
        for peer in ["PyTorch eager", "PyTorch compiled"]:
            theirs = best(results, "peers", "sft", peer=peer, length=length) or {}
            gib = lambda line: number((line.get("peak_bytes") or 0) / 2**30 or None, "GiB")
            out.append((f"SFT, Qwen3-0.6B shapes, bf16, {length} tokens", f"{number(ours['tokens_per_second'], 'tokens/s')}, "
                        f"MFU {ours['mfu']:.0%}, {gib(ours)}", f"{peer}: {number(theirs.get('tokens_per_second'), 'tokens/s')}, "
                        f"{gib(theirs)}"))
    ours = best(results, "product", "decode")
    if ours and ours["sequences"] == 256:
        for peer in ["plain PyTorch loop over a static KV cache", "transformers, continuous batching"]:
            theirs = best(results, "peers", "decode", peer=peer) or {}
            out.append(("decode, 256 x (512 + 512)", f"{number(ours['tokens_per_second'], 'tokens/s')}, "
                        f"{ours['share_of_floor']:.0%} of the bandwidth floor",
                        f"{peer}: {number(theirs.get('tokens_per_second'), 'tokens/s')}"))
    step = best(results, "product", "grpo")
    if step and step["groups"] == 64:
        out.append(("GRPO step, 64 x 16, up to 1,024 tokens", f"{step['seconds']:.1f} s, {step['share_other']:.1%} neither "
                    "generation nor forward and backward", "-"))
    return out


def table():
    """Puts the table of all GPU results into the README."""
    text = []
    for path in sorted((ROOT / "ci" / "results").glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.get("device") != "cuda" or not rows(results):
            continue
        gpu = results["gpus"][0]
        text += ["", f"{gpu['name']}, driver {gpu['driver_version']}, torch {results['torch']}, {results['date'][:10]} "
                 f"(`ci/results/{path.name}`, `{results['command']}`):", "", "| work | recipe | beside it |", "|---|---|---|"]
        text += [f"| {' | '.join(row)} |" for row in rows(results)]
    text = text[1:] or ["No figures of a GPU have been measured yet."]
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    before, rest = old.split(README_BEGIN)
    _, after = rest.split(README_END)
    readme.write_text(before + "\n".join([README_BEGIN, *text, README_END]) + after, encoding="utf-8")


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
    results |= {"ok": False} | earlier(args, results, devices)
    checks = []
    for name, check in [("kernels", kernels), ("product", product), ("peers", peers)]:
        if name in args.checks:
            print(f"checking {name}", flush=True)
            results[name] = check(args)
            checks += results[name]
            write(args, results, devices)
    if "recipe" in args.checks:
        print("running the recipe", flush=True)
        results["run"] = main_recipe(args)
        checks.append(results["run"])
    if "models" in args.checks:
        models = sorted(path.parent for path in ROOT.glob("tests/golden/models/*/expected.json"))
        print(f"scoring {len(models)} golden models", flush=True)
        results["fixtures"] = [fixture(args, model) for model in models]
        checks += results["fixtures"] or [{"ok": False}]
    if "sanitizer" in args.checks:
        print("running compute-sanitizer", flush=True)
        results["sanitizer"] = sanitizer(args)
        checks += results["sanitizer"]
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
    results["ok"] = all(check["ok"] for check in checks) and all(ok for _, _, ok in results.get("earlier", []))

    to = write(args, results, devices)
    for check in results.get("fixtures", []):
        print(f"  {check['model']}: {'ok' if check['ok'] else 'FAILED'}, {check.get('max_difference')}")
    for check in checks:
        if "name" in check:
            print(f"  {check['name']}: {check.get('skipped') or ('ok' if check['ok'] else 'FAILED')}")
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
    verbs.add_parser("table")
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
    elif args.verb == "table":
        table()
    elif not run(args):
        sys.exit(1)


main()

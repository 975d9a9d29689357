#!/usr/bin/env python3
"""Times recipe beside ninja, doit, snakemake and dvc on the same graphs, in one run; prints JSON lines, then a table.

    ci/bench-runner.py [--shapes chains,fan,s3] [--tools recipe,ninja] [--small N] [--recipe FILE] [--table FILE]

| shape | stages | beside |
|---|---|---|
| chains | 1,000 `cp` stages, in 100 rows of 10 | ninja, doit, snakemake, dvc |
| fan | 10,000 `cp` stages that read one file | ninja, doit: the other two take too long |
| s3 | chains, in a store on an S3 server (moto): what is asked of it, in requests and bytes, by way of a relay | - |

Each stage runs `sh -c 'cp IN OUT'`. Cold is the first run, in a new folder; no-op finds nothing to do. Tools are asked to
run as many stages at once as there are cores. recipe hashes and publishes every output and looks at what its last hash
said of each file that it serves; ninja compares times only. After each cold run the outputs are read and compared with
the input. Quick tools run several times, in turn; snakemake and dvc once. A cold run that takes longer than --patience
is ended, and told as such; what it left is made by hand then and committed to the tool's records, so that its no-op can
be measured (dvc alone needs that).

The other tools come from PyPI, into a folder of their own below the user's cache.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import tools as local

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = local.HOME
PEERS = {"ninja": "ninja==1.13.*", "doit": "doit==0.37.*", "snakemake": "snakemake==9.*", "dvc": "dvc==3.*"}
TOOLS = {"chains": ["recipe", *PEERS], "fan": ["recipe", "ninja", "doit"], "s3": ["recipe"]}
# cold and no-op runs of each; the others run once
ROUNDS = {"recipe": (3, 20), "ninja": (3, 20), "doit": (1, 5)}
CORES = len(os.sched_getaffinity(0))
TEXT = "hello\n" * 10


class Graph:
    """Stages in rows; each reads its neighbour above, or the source."""

    def __init__(self, wide, deep):
        self.wide, self.deep = wide, deep
        self.stages = [(f"s{c}-{r}", f"s{c}-{r - 1}" if r else None) for r in range(deep) for c in range(wide)]

    def ends(self):
        return [f"s{c}-{self.deep - 1}" for c in range(self.wide)]


def write_recipe(folder, graph):
    lines = ['[recipe]', 'name = "bench"', 'schema = 1', '[source.text]', 'path = "in.txt"']
    for name, above in graph.stages:
        source = f"{above}.out" if above else "source.text"
        # the last word makes each stage a computation of its own: equal ones run once
        lines += [f"[stage.{name}]", 'kind = "command"', f'in.x = "{source}"',
                  f'cmd = ["sh", "-c", "cp $IN_x $OUT_out", "{name}"]', 'out = ["out"]']
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
    (folder / "recipe.lock").write_text("")


def write_ninja(folder, graph):
    lines = ["rule cp", "  command = cp $in $out"]
    lines += [f"build {name}: cp {above or 'in.txt'}" for name, above in graph.stages]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def write_doit(folder, graph):
    (folder / "dodo.py").write_text(f"""
def task_cp():
    for name, above in {graph.stages!r}:
        source = above or "in.txt"
        yield {{"name": name, "file_dep": [source], "targets": [name], "actions": [f"cp {{source}} {{name}}"]}}
""")


def write_snakemake(folder, graph):
    lines = [f"rule all:\n    input: {graph.ends()!r}"]
    for name, above in graph.stages:
        lines.append(f"rule:\n    input: {(above or 'in.txt')!r}\n    output: {name!r}\n    shell: 'cp {{input}} {{output}}'")
    (folder / "Snakefile").write_text("\n".join(lines) + "\n")


def write_dvc(folder, graph):
    stages = {name: {"cmd": f"cp {above or 'in.txt'} {name}", "deps": [above or "in.txt"], "outs": [name]} for name, above in graph.stages}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([HOME / "bin" / "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)


def commands(tool, recipe):
    """How to write a tool's graph, and to run it."""
    peer = lambda name: str(HOME / "bin" / name)
    return {
        "recipe": (write_recipe, [recipe, "run", "recipe.toml"]),
        "ninja": (write_ninja, [peer("ninja"), f"-j{CORES}", "--quiet"]),
        "doit": (write_doit, [peer("doit"), "-n", str(CORES), "-v0"]),
        "snakemake": (write_snakemake, [peer("snakemake"), f"-j{CORES}", "--quiet", "all"]),
        "dvc": (write_dvc, [peer("dvc"), "repro", "-q"]),
    }[tool]


class Late(Exception):
    """A command took longer than it may."""


def timed(command, folder, patience=None):
    """Wall seconds, CPU seconds and the largest resident set (MiB) of a command and its descendants."""
    with open(folder / "said", "wb") as said:
        start = time.monotonic()
        child = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True)
        if patience:
            signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, patience)
        _, status, usage = os.wait4(child.pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - start
    if patience and seconds >= patience:
        raise Late
    if status != 0:
        sys.exit(f"{command} failed ({status}) in {folder}:\n{(folder / 'said').read_text()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def complete(tool, folder, graph):
    """Makes what an ended cold run left, and has the tool record it; how many stages had been run."""
    done = 0
    for name, above in graph.stages:
        if (folder / name).exists():
            done += 1
        else:
            shutil.copyfile(folder / (above or "in.txt"), folder / name)
    if tool != "dvc":
        sys.exit(f"{tool} took too long: raise --patience")
    (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
    subprocess.run([HOME / "bin" / "dvc", "commit", "-f", "-q"], cwd=folder, check=True)
    return done


def outputs(tool, folder, graph, recipe):
    """Reads the outputs of the last row, as a user gets them."""
    if tool != "recipe":
        return [(folder / name).read_text() for name in graph.ends()]
    subprocess.run([recipe, "cache", "verify", "--paranoid"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    some = graph.ends()[:: max(1, graph.wide // 20)]
    found = []
    for name in some:
        to = folder / "got" / name
        subprocess.run([recipe, "get", "recipe.toml", f"{name}.out", "--to", to], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found.append((to / "data").read_text())
    return found


def cold_run(tool, folder, graph, args):
    """A cold run, checked: its figures, and how many stages were run should it have been ended."""
    (folder / "in.txt").write_text(TEXT)
    write, command = commands(tool, args.recipe)
    write(folder, graph)
    try:
        cold, done = timed(command, folder, args.patience), None
    except Late:
        cold, done = (args.patience, None, None), complete(tool, folder, graph)
    assert all(text == TEXT for text in outputs(tool, folder, graph, args.recipe)), tool
    return cold, done


def measure(shape, tools, graph, args):
    """Times the tools in turn; the table's rows."""
    colds, noops, ended = {t: [] for t in tools}, {t: [] for t in tools}, {}
    most = max(ROUNDS.get(t, (1, 1))[0] for t in tools)
    for turn in range(most):
        for tool in tools:
            rounds, repeats = ROUNDS.get(tool, (1, 1))
            if turn >= rounds:
                continue
            folder = pathlib.Path(tempfile.mkdtemp(prefix=f"bench-{tool}-"))
            try:
                cold, ended[tool] = cold_run(tool, folder, graph, args)
                colds[tool].append(cold)
                if turn + 1 == rounds:
                    # the first settles what was too young to be trusted
                    first = timed(commands(tool, args.recipe)[1], folder)
                    again = [timed(commands(tool, args.recipe)[1], folder) for _ in range(repeats - 1)]
                    noops[tool] = again or [first]
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for tool in tools:
        row = {"shape": shape, "stages": len(graph.stages), "tool": tool, "ended_at": ended[tool]}
        for phase, runs in (("cold", colds[tool]), ("noop", noops[tool])):
            seconds = [run[0] for run in runs]
            row[phase] = {"runs": len(runs), "best": round(min(seconds), 4), "median": round(statistics.median(seconds), 4)}
            if runs[0][1] is not None:
                row[phase] |= {"cpu_seconds": round(statistics.median(run[1] for run in runs), 4),
                               "max_rss_mib": round(max(run[2] for run in runs), 1)}
        emit(**row)
        rows.append(row)
    return rows


def s3(graph, recipe):
    """What runs ask of an S3 server; the table's rows."""
    rows = []
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-s3-"))
    try:
        with local.Server() as server:
            relay = local.Relay(server.port)
            relay.start()
            os.environ.update(server.environment(relay.port), XDG_CACHE_HOME=str(folder / "cache"))
            (folder / "in.txt").write_text(TEXT)
            write_recipe(folder, graph)
            command = [recipe, "run", "recipe.toml", "--store", "s3://bucket/store"]
            for phase in ("cold", "first no-op", "no-op"):
                relay.reset()
                seconds, cpu, memory = timed(command, folder)
                rows.append({"shape": "s3", "stages": len(graph.stages), "phase": phase, "seconds": round(seconds, 3),
                             "cpu_seconds": round(cpu, 3), "max_rss_mib": round(memory, 1), "requests": dict(relay.requests),
                             "all_requests": sum(relay.requests.values()), "bytes_sent": relay.sent,
                             "bytes_received": relay.received})
                emit(**rows[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def table(rows, command, load):
    """The figures as Markdown."""
    lines = ["# recipe beside other build tools", "",
             f"`{command}`, {CORES} cores, load {load[0]:.1f} before and {load[1]:.1f} after. Median (best) of so many runs; ratios",
             "are of the medians, recipe's over the tool's: below 1 recipe is quicker. The script's head says what is measured.", ""]
    timed_rows = [row for row in rows if row["shape"] != "s3"]
    if timed_rows:
        lines += ["| shape | stages | tool | cold, s | runs | no-op, ms | runs | peak MiB | recipe's cold | recipe's no-op |",
                  "|---|---|---|---|---|---|---|---|---|---|"]
    for row in timed_rows:
        cold, noop = row["cold"], row["noop"]
        ours = next((r for r in timed_rows if r["tool"] == "recipe" and r["shape"] == row["shape"]), None)
        told = f"{cold['median']:.2f} ({cold['best']:.2f})"
        ratios = ["", ""]
        if ours and ours is not row:
            ratios = [f"{ours[phase]['median'] / row[phase]['median']:.3g}" for phase in ("cold", "noop")]
        if row["ended_at"] is not None:
            told = f"ended after {cold['best']:.0f}, {row['ended_at']:,} stages run"
            ratios[0] = ratios[0] and f"below {ratios[0]}"
        memory = max(phase.get("max_rss_mib", 0) for phase in (cold, noop))
        lines.append(f"| {row['shape']} | {row['stages']:,} | {row['tool']} | {told} | {cold['runs']} | {noop['median'] * 1e3:,.1f} "
                     f"({noop['best'] * 1e3:,.1f}) | {noop['runs']} | {memory:.0f} | {ratios[0]} | {ratios[1]} |")
    remote = [row for row in rows if row["shape"] == "s3"]
    if remote:
        lines += ["", "| on S3 (moto) | stages | s | requests | sent, KB | received, KB |", "|---|---|---|---|---|---|"]
    for row in remote:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(row["requests"].items()))
        lines.append(f"| {row['phase']} | {row['stages']:,} | {row['seconds']:.2f} | {row['all_requests']:,} ({kinds}) "
                     f"| {row['bytes_sent'] / 1e3:,.0f} | {row['bytes_received'] / 1e3:,.0f} |")
    return "\n".join(lines) + "\n"


def emit(**fields):
    print(json.dumps({"bench": "runner", **fields}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(TOOLS))
    parser.add_argument("--tools", help="only these [default: those of the table above]")
    parser.add_argument("--small", type=int, default=1, help="divide the stages by N")
    parser.add_argument("--patience", type=float, default=240, help="seconds that a cold run may take")
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    parser.add_argument("--table", help="write the table to this file as well")
    args = parser.parse_args()
    args.recipe = os.path.abspath(args.recipe)
    chains = Graph(10, 100 // args.small)
    graphs = {"chains": chains, "fan": Graph(10_000 // args.small, 1), "s3": chains}
    tools = {shape: [t for t in TOOLS[shape] if not args.tools or t in args.tools.split(",")] for shape in args.shapes.split(",")}
    for tool in sorted({tool for some in tools.values() for tool in some if tool != "recipe"}):
        local.install(tool, PEERS[tool])
    before = os.getloadavg()[0]
    rows = []
    for shape, some in tools.items():
        rows += s3(chains, args.recipe) if shape == "s3" else measure(shape, some, graphs[shape], args)
    text = table(rows, " ".join(["ci/bench-runner.py", *sys.argv[1:]]), (before, os.getloadavg()[0]))
    print(text)
    if args.table:
        pathlib.Path(args.table).write_text(text)


if __name__ == "__main__":
    main()

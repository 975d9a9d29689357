#!/usr/bin/env python3
"""Times recipe beside ninja, doit, snakemake and dvc on the same graphs, in one run; prints JSON lines.

    ci/bench-runner.py [--shapes chains,fan] [--tools recipe,ninja,doit] [--small N] [--recipe FILE] [--s3]

| shape | stages |
|---|---|
| chains | 1,000 `cp` stages, in 100 rows of 10 |
| fan | 10,000 `cp` stages that read one file |

Each stage runs `sh -c 'cp IN OUT'`. Cold is the first run, no-op the best of several that find nothing to do. Tools are
asked to run as many stages at once as there are cores. recipe hashes and publishes every output and looks at what its
last hash said of each file that it serves; ninja compares times only. snakemake and dvc take minutes on large graphs:
name them in --tools, best with --small. After each cold run the outputs are read and compared with the input.

--s3 counts instead what recipe asks of an S3 server (moto) when nothing is to do: requests and bytes, in a relay.

The other tools come from PyPI, into a folder of their own below the user's cache.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import tools as local

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = local.HOME
PEERS = {"ninja": "ninja==1.13.*", "doit": "doit==0.37.*", "snakemake": "snakemake==9.*", "dvc": "dvc==3.*"}
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


def timed(command, folder):
    """Wall seconds, CPU seconds and the largest resident set (MiB) of a command and its descendants."""
    with open(folder / "said", "wb") as said:
        start = time.monotonic()
        child = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
    if status != 0:
        sys.exit(f"{command} failed ({status}) in {folder}:\n{(folder / 'said').read_text()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


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


def measure(tool, shape, graph, recipe, repeats):
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"bench-{tool}-"))
    try:
        (folder / "in.txt").write_text(TEXT)
        write, command = commands(tool, recipe)
        write(folder, graph)
        cold = timed(command, folder)
        assert all(text == TEXT for text in outputs(tool, folder, graph, recipe)), tool
        # the first no-op settles what was too young to be trusted; the best is the machine's answer
        noop = min(timed(command, folder) for _ in range(repeats))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for phase, (seconds, cpu, memory) in (("cold", cold), ("noop", noop)):
        emit(shape=shape, stages=len(graph.stages), tool=tool, phase=phase, seconds=round(seconds, 4),
             cpu_seconds=round(cpu, 4), max_rss_mib=round(memory, 1))
    return cold[0], noop[0]


def emit(**fields):
    print(json.dumps({"bench": "runner", **fields}), flush=True)


def s3(graph, recipe):
    """What a run asks of an S3 server."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-s3-"))
    try:
        with local.Server() as server:
            relay = local.Relay(server.port)
            relay.start()
            os.environ.update(server.environment(relay.port), XDG_CACHE_HOME=str(folder / "cache"))
            (folder / "in.txt").write_text(TEXT)
            write_recipe(folder, graph)
            command = [recipe, "run", "recipe.toml", "--store", "s3://bucket/store"]
            for phase in ("cold", "noop", "noop"):
                relay.reset()
                seconds, cpu, memory = timed(command, folder)
                emit(shape="s3", stages=len(graph.stages), tool="recipe", phase=phase, seconds=round(seconds, 3),
                     cpu_seconds=round(cpu, 3), max_rss_mib=round(memory, 1), requests=relay.requests,
                     all_requests=sum(relay.requests.values()), bytes_sent=relay.sent, bytes_received=relay.received)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="chains,fan")
    parser.add_argument("--tools", default="recipe,ninja,doit")
    parser.add_argument("--small", type=int, default=1, help="divide the stages by N")
    parser.add_argument("--repeats", type=int, default=7, help="no-op runs")
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    parser.add_argument("--s3", action="store_true")
    args = parser.parse_args()
    recipe = os.path.abspath(args.recipe)
    graphs = {"chains": Graph(10, 100 // args.small), "fan": Graph(10_000 // args.small, 1)}
    if args.s3:
        return s3(graphs["chains"], recipe)
    tools = args.tools.split(",")
    for tool in tools:
        if tool != "recipe":
            local.install(tool, PEERS[tool])
    for shape in args.shapes.split(","):
        took = {tool: measure(tool, shape, graphs[shape], recipe, args.repeats) for tool in tools}
        if "recipe" in took:
            for tool in (t for t in tools if t != "recipe"):
                emit(shape=shape, ratio=f"recipe/{tool}", cold=round(took["recipe"][0] / took[tool][0], 2),
                     noop=round(took["recipe"][1] / took[tool][1], 2))


if __name__ == "__main__":
    main()

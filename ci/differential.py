#!/usr/bin/env python3
"""Random graphs and edits: the stages that recipe runs beside those that a model says it must, and ninja's.

    ci/differential.py [--cases 500] [--seed 1] [--ninja] [--recipe FILE]

A case is a graph of `command` stages and a script of edits. After each edit the recipe is run, and the stages that ran
(each notes itself in a file) are compared with the model's: a dictionary from what a stage is made of (command, contents
read, declared variables) to what it wrote. Both sides start empty. Contents are compared as well.

| edit | what should run |
|---|---|
| a source, or back to what it was | what reads it, until something comes out as before |
| a command's text | the stage, and what reads its changed outputs |
| the order of stages, a comment, a name, placement, a source's times | nothing |
| an input rewired, a stage added or removed | what is new |
| a declared variable | the stages that declare it |
| --force=STAGE | that stage |
| a blob lost or damaged | its producer, if something needs it |

--ninja builds the same graph with `restat` in the same steps (ninja from PyPI, as ci/bench-runner.py installs it). It has
no memory of earlier contents, looks at times and knows no variables, so it may run more, or less after an edit that it
cannot see; every difference has to be of a kind in DIFFERENCES, or it counts as a mismatch.

A case is replayed with --cases 1 --seed its number.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import tools

ROOT = pathlib.Path(__file__).resolve().parent.parent
NINJA = tools.HOME / "bin" / "ninja"
DIFFERENCES = {
    "remembered": "recipe has computed this before, ninja has no memory",
    "same": "another stage of the graph computes the same, and ran instead",
    "again": "recipe was forced, or something was lost from its store",
    "unseen": "ninja sees no variable, here or above",
}
VARIABLES = ["V1", "V2"]


class Stage:
    """What a stage says; its function is the text, in shell and in Python."""

    def __init__(self, name, inputs, how, word, outs, env):
        self.name, self.inputs, self.how, self.word, self.outs, self.env = name, inputs, how, word, outs, env

    def shell(self):
        ins = " ".join(f"$IN_{port}" for port in sorted(self.inputs)) or "/dev/null"
        lines = [f"echo $0 >> $LOG"]
        for i, out in enumerate(self.outs):
            body = {
                "join": f"(cat {ins}; echo {self.word}{i})",
                "first": f"(cat {ins} | head -c 2; echo {i})",
                "size": f"(cat {ins} | wc -c)",
                "fixed": f"(echo {self.word}{i})",
            }[self.how]
            shown = "".join(f"; echo ${name}" for name in self.env)
            lines.append(f"({body}{shown}) > $OUT_{out}")
        return "; ".join(lines)

    def compute(self, read, variables):
        """Contents of the outputs, from those of the inputs in the order of ports."""
        whole = "".join(read)
        shown = "".join(f"{variables[name]}\n" for name in self.env)
        outs = {}
        for i, out in enumerate(self.outs):
            body = {
                "join": whole + f"{self.word}{i}\n",
                "first": whole[:2] + f"{i}\n",
                "size": f"{len(whole)}\n",
                "fixed": f"{self.word}{i}\n",
            }[self.how]
            outs[out] = body + shown
        return outs


class Graph:
    def __init__(self, rng):
        self.rng = rng
        self.count = 0
        self.sources = {f"d{i}": rng.choice(["aa\n", "ab\n", "ba\n"]) for i in range(rng.randint(1, 3))}
        self.stages = {}
        self.variables = {name: "1" for name in VARIABLES}
        for _ in range(rng.randint(3, 9)):
            self.add()

    def places(self, before):
        """What a new stage may read: sources, and outputs of stages above."""
        found = [("source", name) for name in self.sources]
        for name in before:
            found += [(name, out) for out in self.stages[name].outs]
        return found

    def add(self):
        rng = self.rng
        name = f"s{self.count}"
        self.count += 1
        places = self.places(self.stages)
        inputs = {port: rng.choice(places) for port in "xyz"[: rng.randint(0, min(3, len(places)))]}
        outs = ["o"] if rng.random() < 0.8 else ["o", "p"]
        env = [v for v in VARIABLES if rng.random() < 0.15]
        how = rng.choice(["join", "join", "first", "size", "fixed"])
        self.stages[name] = Stage(name, inputs, how, rng.choice("uvw"), outs, env)
        return name

    def readers(self, name):
        return [s for s in self.stages.values() if any(place[0] == name for place in s.inputs.values())]

    def declares(self, stage):
        """Whether the stage, or one that it depends on, declares a variable."""
        above = [self.stages[name] for name, _ in stage.inputs.values() if name != "source"]
        return bool(stage.env) or any(self.declares(s) for s in above)

    def edit(self):
        """One random edit: its name, and options of the run."""
        rng = self.rng
        names = list(self.stages)
        kind = rng.choice(["source", "source", "source", "word", "word", "how", "cosmetic", "touch", "rewire", "add",
                           "remove", "rename", "variable", "force", "lose", "damage", "nothing"])
        if kind == "source":
            source = rng.choice(list(self.sources))
            self.sources[source] = rng.choice(["aa\n", "ab\n", "aab\n", "ba\n", "bab\n", "\n"])
        elif kind == "word":
            self.stages[rng.choice(names)].word = rng.choice("uvw")
        elif kind == "how":
            self.stages[rng.choice(names)].how = rng.choice(["join", "first", "size", "fixed"])
        elif kind == "rewire":
            name = rng.choice(names)
            stage = self.stages[name]
            if stage.inputs:
                above = names[: names.index(name)]
                stage.inputs[rng.choice(list(stage.inputs))] = rng.choice(self.places(above))
        elif kind == "add":
            self.add()
        elif kind == "remove":
            leaves = [n for n in names if not self.readers(n)]
            if len(names) > 2:
                del self.stages[rng.choice(leaves)]
        elif kind == "rename":
            old = rng.choice(names)
            new = f"s{self.count}"
            self.count += 1
            self.stages = {new if n == old else n: s for n, s in self.stages.items()}
            self.stages[new].name = new
            for stage in self.readers(old):
                stage.inputs = {p: (new if a == old else a, o) for p, (a, o) in stage.inputs.items()}
        elif kind == "variable":
            self.variables[rng.choice(VARIABLES)] = rng.choice("123")
        options = [f"--force={rng.choice(names)}"] if kind == "force" else []
        return kind, options

    def order(self):
        return list(self.stages.values())

    def toml(self, kind):
        rng = self.rng
        shuffled = list(self.stages.values())
        if kind == "cosmetic":
            rng.shuffle(shuffled)
        lines = ["[recipe]", 'name = "random"', "schema = 1"]
        for name in self.sources:
            lines += [f"[source.{name}]", f'path = "{name}.txt"']
        for stage in shuffled:
            if kind == "cosmetic":
                lines.append(f"# {rng.random()}")
            # the name is no part of the key: $0 would make it one, so a stage is known by a hash of what it is
            lines += [f"[stage.{stage.name}]", 'kind = "command"']
            for port, (above, out) in stage.inputs.items():
                lines.append(f'in.{port} = "{above}.{out}"')
            lines += [f"cmd = {json.dumps(['sh', '-c', stage.shell(), ident(stage)])}", f"out = {json.dumps(stage.outs)}"]
            lines.append(f"env = {json.dumps(['LOG'] + stage.env)}")
            if kind == "cosmetic":
                lines.append(f'timeout = "{rng.randint(5, 50)}m"')
        return "\n".join(lines) + "\n"


def ident(stage):
    """What the stage says it is, in the log: the same for stages that say the same."""
    said = json.dumps([stage.shell(), sorted(stage.inputs), stage.outs])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


class Model:
    """What recipe has to do, from the definition of a key and of what is needed."""

    def __init__(self):
        self.known = {}
        self.lost = set()

    def run(self, graph, forced):
        order = graph.order()
        self.keys, self.outs = {}, {}
        decided = {}
        # 1. as far as results are known
        for stage in order:
            key = self.key(graph, stage, self.outs)
            if key is None:
                decided[stage.name] = "open"
            elif stage.name in forced or key not in self.known:
                decided[stage.name] = "run"
            else:
                decided[stage.name] = "reuse"
                self.outs[stage.name] = self.known[key]
            self.keys[stage.name] = key
        # 2. what is needed has to be whole; what made it runs again, and what read it is open until then
        checked = set()
        while True:
            broken = []
            for stage in reversed(order):
                if decided[stage.name] != "reuse" or stage.name in checked:
                    continue
                readers = graph.readers(stage.name)
                if not readers or any(decided[r.name] != "reuse" for r in readers):
                    checked.add(stage.name)
                    if not self.whole(self.outs[stage.name]):
                        broken.append(stage.name)
            if not broken:
                break
            for name in broken:
                decided[name] = "run"
                del self.outs[name]
            for stage in order:
                if self.key(graph, stage, self.outs) is None:
                    decided[stage.name] = "open"
                    self.outs.pop(stage.name, None)
        # 3. the run
        ran = collections.Counter()
        done = set()
        for stage in order:
            if decided[stage.name] == "reuse":
                continue
            key = self.key(graph, stage, self.outs)
            self.keys[stage.name] = key
            again = decided[stage.name] == "run" and key in self.known and key not in done
            if decided[stage.name] == "open" and stage.name not in forced:
                again = key in self.known and not self.whole(self.known[key])
            if stage.name in forced:
                again = True
            if key not in self.known or again:
                ran[ident(stage)] += 1
                done.add(key)
                read = [graph.sources[o] if a == "source" else self.outs[a][o] for _, (a, o) in sorted(stage.inputs.items())]
                self.known[key] = stage.compute(read, graph.variables)
                self.lost -= set(self.known[key].values())
            self.outs[stage.name] = self.known[key]
        return ran

    def key(self, graph, stage, outs):
        read = []
        for port, (above, out) in sorted(stage.inputs.items()):
            if above == "source":
                # a source keeps its file's extension, an output has none: other manifests, other digests
                read.append((port, "txt", graph.sources[out]))
            elif above in outs:
                read.append((port, "", outs[above][out]))
            else:
                return None
        return (stage.shell(), ident(stage), tuple(read), tuple(stage.outs), tuple((v, graph.variables[v]) for v in stage.env))

    def whole(self, outs):
        return not self.lost & set(outs.values())


class Recipe:
    """The real one, in a folder."""

    def __init__(self, folder, program):
        self.folder, self.program = folder, program
        (folder / "recipe.lock").write_text("")

    def run(self, graph, kind, options):
        for name, text in graph.sources.items():
            path = self.folder / f"{name}.txt"
            if not path.exists() or path.read_text() != text or kind == "touch":
                path.write_text(text)
        (self.folder / "recipe.toml").write_text(graph.toml(kind))
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        env = {"PATH": os.environ["PATH"], "LOG": str(log), "NO_COLOR": "1", **graph.variables}
        command = [self.program, "run", "recipe.toml", "--json", "-j", "2", *options]
        out = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        if out.returncode != 0:
            raise Mismatch(f"exit code {out.returncode}: {out.stderr[-600:]}")
        self.outputs = {s["stage"]: s["outputs"] for s in json.loads(out.stdout)["stages"]}
        return collections.Counter(log.read_text().split()) if log.exists() else collections.Counter()

    def manifest(self, digest):
        path = self.folder / ".recipe/blobs" / digest[:2] / digest
        return json.loads(path.read_text())["files"]

    def blob(self, stage, out):
        blob = self.manifest(self.outputs[stage][out])[0]["blob"]
        return self.folder / ".recipe/blobs" / blob[:2] / blob


class Ninja:
    """The same graph for ninja; an output is replaced only when it differs."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, graph, kind):
        folder = self.folder
        for name, text in graph.sources.items():
            path = folder / name
            if not path.exists() or path.read_text() != text or kind == "touch":
                path.write_text(text)
        lines = ["rule sh", "  command = $cmd", "  restat = 1"]
        for stage in graph.order():
            place = lambda above, out: out if above == "source" else f"{above}.{out}"
            ins = {p: place(a, o) for p, (a, o) in stage.inputs.items()}
            outs = [f"{stage.name}.{o}" for o in stage.outs]
            given = " ".join([f"IN_{p}={f}" for p, f in ins.items()] + [f"OUT_{o}={stage.name}.{o}.new" for o in stage.outs])
            swap = "; ".join(f"cmp -s {f} {f}.new || mv {f}.new {f}" for f in outs)
            text = f"LOG=log {given} sh -c '{stage.shell()}' {stage.name}; {swap}".replace("$", "$$")
            lines += [f"build {' '.join(outs)}: sh {' '.join(ins.values())}", f"  cmd = {text}"]
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        log = folder / "log"
        log.unlink(missing_ok=True)
        env = {"PATH": os.environ["PATH"], **graph.variables}
        subprocess.run([NINJA, "--quiet"], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        return set(log.read_text().split()) if log.exists() else set()


class Mismatch(Exception):
    pass


def case(seed, program, ninja, tally):
    rng = random.Random(seed)
    graph = Graph(rng)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="differential-"))
    try:
        (folder / "r").mkdir()
        (folder / "n").mkdir()
        recipe, model, beside = Recipe(folder / "r", program), Model(), Ninja(folder / "n") if ninja else None
        kind, options, steps = "start", [], []
        for _ in range(rng.randint(4, 8)):
            steps.append(kind)
            forced = {o.split("=")[1] for o in options}
            before = set(model.known)
            expected = model.run(graph, forced)
            ran = recipe.run(graph, kind, options)
            if ran != expected:
                raise Mismatch(f"after {steps}: ran {dict(ran)}, the model {dict(expected)}\n{graph.toml(kind)}")
            for stage in graph.order():
                for out in stage.outs:
                    path = recipe.blob(stage.name, out)
                    if path.exists() and path.read_text() != model.outs[stage.name][out] and model.whole(model.outs[stage.name]):
                        raise Mismatch(f"after {steps}: {stage.name}.{out} is {path.read_text()!r}")
            tally["runs"] += 1
            tally["executed"] += sum(ran.values())
            if beside:
                compare(graph, model, before, ran, beside.run(graph, kind), tally, steps)
            kind, options = graph.edit()
            if kind in ("lose", "damage"):
                stage = rng.choice(graph.order())
                out = rng.choice(stage.outs)
                path = recipe.blob(stage.name, out)
                # what was damaged twice may be whole again
                if path.exists() and model.outs[stage.name][out] not in model.lost:
                    model.lost.add(model.outs[stage.name][out])
                    if kind == "damage":
                        text = path.read_bytes()
                        path.chmod(0o644)
                        path.write_bytes(bytes([text[0] ^ 1]) + text[1:] if text else b"x")
                    else:
                        path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(graph, model, before, ran, ninjas, tally, steps):
    """Every stage that only one of the two ran needs a reason."""
    for stage in graph.order():
        ours, theirs = ran[ident(stage)] > 0, stage.name in ninjas
        if ours == theirs:
            tally["agree"] += 1
            continue
        key = model.keys[stage.name]
        twins = [s for s in graph.order() if s is not stage and model.keys[s.name] == key]
        if theirs and key in before:
            why = "remembered"
        elif theirs and twins:
            why = "same"
        elif ours and (twins or any(ident(s) == ident(stage) for s in graph.order() if s is not stage)):
            why = "same"
        elif ours and key in before:
            why = "again"
        elif ours and graph.declares(stage):
            why = "unseen"
        else:
            raise Mismatch(f"after {steps}: only {'recipe' if ours else 'ninja'} ran {stage.name}\n{graph.toml('')}")
        tally[why] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="the first case's")
    parser.add_argument("--ninja", action="store_true")
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    args = parser.parse_args()
    if args.ninja:
        tools.install("ninja", "ninja==1.13.*")
    tally, wrong = collections.Counter(), []
    for seed in range(args.seed, args.seed + args.cases):
        try:
            case(seed, os.path.abspath(args.recipe), args.ninja, tally)
        except Mismatch as e:
            wrong.append(seed)
            print(f"case {seed}: {e}", file=sys.stderr, flush=True)
    print(json.dumps({"cases": args.cases, "first_seed": args.seed, "mismatches": len(wrong), "wrong_seeds": wrong, **tally}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

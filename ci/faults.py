#!/usr/bin/env python3
"""The fault matrix: recipe killed, failed, starved and misled in many places; prints a table, and one JSON line.

    ci/faults.py [--seed 1] [--each 40] [--only points,..] [--recipe FILE]

| row | what is done to a run of seven stages |
|---|---|
| points | SIGKILL at each visit of each named point (`RECIPE_FAULT`) |
| syscalls | SIGKILL, at a random one of the system calls by which runner, guard and commands change files (strace) |
| enospc, eio | such a call fails with "no space left" or an input/output error, then all goes on |
| disk | the store's disk holds less and less (a tmpfs in a mount namespace) |
| readonly | the store cannot be written, before the first run and after the last |
| clocks | two runners whose clocks are ten hours apart, at once, and one taking over from the other (faketime) |

After each fault: the store verifies; the next run ends with the outputs of an undisturbed one; the store verifies again;
no process and no scratch is left. The faulty run itself must end well, or with one error and exit code 1 or 4, or by the
signal. A run that ends well must have the right outputs. Everything else is wrong, and listed with what replays it.

strace and faketime are Debian's, installed where they are not and this is root.
"""

import argparse
import collections
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = """[recipe]
name = "faults"
schema = 1
[source.text]
path = "in.txt"
[stage.a]
kind = "command"
in.x = "source.text"
cmd = ["sh", "-c", "tr a-z A-Z < $IN_x > $OUT_out"]
out = ["out"]
[stage.b]
kind = "command"
in.x = "a.out"
cmd = ["sh", "-c", "mkdir -p $OUT_out/below; cp $IN_x $OUT_out/one; cp $IN_x $OUT_out/below/two; echo b >> $OUT_out/below/two"]
out = ["out"]
[stage.c]
kind = "command"
in.x = "a.out"
cmd = ["sh", "-c", "wc -c < $IN_x > $OUT_out; sort $IN_x > $OUT_side"]
out = ["out", "side"]
[stage.d]
kind = "command"
in = { x = "b.out", y = "c.out" }
cmd = ["sh", "-c", "cat $IN_x/one $IN_x/below/two $IN_y > $OUT_out"]
out = ["out"]
[stage.e]
kind = "command"
in.x = ["c.side", "d.out"]
cmd = ["sh", "-c", "cat $IN_x > $OUT_out; head -c 300000 /dev/zero >> $OUT_out"]
out = ["out"]
[stage.f]
kind = "command"
in.x = "e.out"
cmd = ["sh", "-c", "wc -c < $IN_x > $OUT_out"]
out = ["out"]
[stage.g]
kind = "command"
in.x = "e.out"
cmd = ["sh", "-c", "tail -c 10 $IN_x > $OUT_out"]
out = ["out"]
"""
CALLS = "openat,mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,ftruncate,copy_file_range,fchmodat,chmod,fsync,flock"
FAILING = "mkdir,rename,renameat,renameat2,write,ftruncate,fsync"


class Wrong(Exception):
    pass


class Project:
    def __init__(self, program):
        self.program = program
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
        (self.folder / "recipe.toml").write_text(RECIPE)
        (self.folder / "in.txt").write_text("some\nwords\nin lines\n")
        (self.folder / "recipe.lock").write_text("")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *args, before=(), env=None):
        command = [*before, self.program, *args]
        out = subprocess.run(command, cwd=self.folder, env={**os.environ, "NO_COLOR": "1", **(env or {})}, capture_output=True,
                             text=True, errors="replace", timeout=120)
        return out

    def outputs(self):
        out = self.call("run", "recipe.toml", "--json")
        if out.returncode != 0:
            raise Wrong(f"the next run: exit {out.returncode}: {out.stderr[-700:]}")
        return {s["stage"]: s["outputs"] for s in json.loads(out.stdout)["stages"]}

    def verify(self, when):
        if (self.folder / ".recipe").exists():
            out = self.call("cache", "verify", "--paranoid")
            if out.returncode != 0:
                raise Wrong(f"verify {when}: exit {out.returncode}: {out.stdout[-400:]}{out.stderr[-300:]}")

    def healed(self, expected):
        """What must hold after any fault that left the store writable."""
        self.verify("after the fault")
        if self.outputs() != expected:
            raise Wrong("the next run has other outputs")
        self.verify("after the next run")
        left = list((self.folder / ".recipe/local/attempts").glob("*"))
        if left:
            raise Wrong(f"scratch is left: {left}")


def adopt():
    """Makes what outlives its run a child of this script, so that it is found by descent. By name others would be found
    as well: `du /tmp/*` names every project."""
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        sys.exit("cannot become a subreaper")


def quiet():
    """Waits until nothing is left of a run that has ended."""
    until = time.monotonic() + 20
    while left := children():
        if time.monotonic() > until:
            raise Wrong(f"processes are left: {'; '.join(map(described, left))}")
        time.sleep(0.02)


def children():
    """This script's children that still live; reaps the others."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return []
    return pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def described(pid):
    """What a process is, and what it waits for."""
    def read(name):
        try:
            return (pathlib.Path("/proc") / pid / name).read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError as e:
            return str(e)
    state = re.search(r"State:\s*(.*)", read("status"))
    return f"{pid} ({state and state[1]}, in {read('wchan')}): {read('cmdline')[:300]}"


def judge(out, project, expected):
    """How a faulty run ended; whether it may."""
    if out.returncode < 0 or out.returncode in (128 + 9, 137):
        return "killed"
    if "panicked" in out.stderr or "internal error" in out.stderr:
        raise Wrong(f"a panic: {out.stderr[-700:]}")
    if out.returncode == 0:
        return "ended well"
    if out.returncode in (1, 4) and "error[" in out.stderr:
        return f"error, exit {out.returncode}"
    raise Wrong(f"exit {out.returncode}: {out.stderr[-700:]}")


def points(args, expected, tell):
    with Project(args.recipe) as project:
        said = project.call("run", "recipe.toml", env={"RECIPE_FAULT": "none"}).stderr
    for point in re.search(r"one of (.*)", said).group(1).split(", "):
        for visit in range(1, 40):
            with Project(args.recipe) as project:
                out = project.call("run", "recipe.toml", env={"RECIPE_FAULT": f"{point}:{visit}"})
                if out.returncode == 0:
                    break
                tell(f"{point}:{visit}", project, out)


def strace(args, expected, tell, what, calls, row):
    rng = random.Random(f"{args.seed} {row}")
    with Project(args.recipe) as project:
        project.call("run", "recipe.toml", before=["strace", "-f", "-qq", "-o", "trace", "-e", f"trace={calls}"])
        lines = (project.folder / "trace").read_text().splitlines()
        # strace counts per process and call: so many at most
        calls_made = (re.match(r"(\d+) +([a-z0-9_]+)\(", line) for line in lines)
        most = collections.Counter(call.groups() for call in calls_made if call)
    reach = collections.Counter()
    for (_, call), n in most.items():
        reach[call] = max(reach[call], n)
    choices = [(call, k) for call, n in sorted(reach.items()) for k in range(1, n + 1)]
    for call, k in rng.sample(choices, min(args.each, len(choices))):
        with Project(args.recipe) as project:
            out = project.call("run", "recipe.toml", before=["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                                                            f"inject={call}:{what}:when={k}"])
            tell(f"{call} {k} {what}", project, out)


def disk(args, expected, tell):
    rng = random.Random(args.seed)
    script = """mkdir -p .recipe; mount -t tmpfs -o size=4m none .recipe || exit 99
room=$(df --output=avail -k .recipe | tail -1); head -c $((room - FREE))k /dev/zero > .recipe/filler || exit 99
"$RECIPE" run recipe.toml > full.out 2> full.err; code=$?; rm .recipe/filler
"$RECIPE" cache verify --paranoid > verify.out 2>&1 || exit 98
"$RECIPE" run recipe.toml --json > again.json 2> again.err || exit 97
"$RECIPE" cache verify --paranoid > verify.out 2>&1 || exit 96
exit $code"""
    for free in sorted(rng.sample(range(0, 1400, 4), args.each)):
        with Project(args.recipe) as project:
            out = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], cwd=project.folder,
                                 env={**os.environ, "RECIPE": args.recipe, "FREE": str(free)}, capture_output=True, text=True)
            def look(out=out, project=project):
                if out.returncode >= 96:
                    raise Wrong(f"step {out.returncode}: {(project.folder / 'verify.out').read_text()[-300:]}")
                stages = json.loads((project.folder / "again.json").read_text())["stages"]
                if {s["stage"]: s["outputs"] for s in stages} != expected:
                    raise Wrong("the next run has other outputs")
                err = (project.folder / "full.err").read_text()
                if out.returncode not in (0, 4) or out.returncode == 4 and ("error[" not in err or "space" not in err):
                    raise Wrong(f"exit {out.returncode}: {err[-500:]}")
                return "ended well" if out.returncode == 0 else "error, exit 4"
            tell(f"{free} KiB free", project, look=look)


def readonly(args, expected, tell):
    script = """mkdir -p .recipe; [ -z "$FIRST" ] || "$RECIPE" run recipe.toml > /dev/null 2>&1 || exit 99
mount --bind .recipe .recipe && mount -o remount,ro,bind .recipe || exit 99
"$RECIPE" $VERB > out 2> err"""
    verbs = {"run recipe.toml": (4, 4), "plan recipe.toml": (0, 0), "why recipe.toml f": (0, 0), "cache verify": (0, 0),
             "cache stat": (0, 0), "get recipe.toml f.out --to got": (2, 0), "runs": (0, 0), "run recipe.toml --force": (4, 4)}
    for first in (0, 1):
        for verb, codes in verbs.items():
            with Project(args.recipe) as project:
                out = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], cwd=project.folder,
                                     env={**os.environ, "RECIPE": args.recipe, "FIRST": "1" if first else "", "VERB": verb})
                def look(out=out, project=project, code=codes[first]):
                    err = (project.folder / "err").read_text()
                    if out.returncode != code or (code and err.count("error[") != 1):
                        raise Wrong(f"exit {out.returncode}, not {code}: {err[-500:]}")
                    return f"error, exit {code}" if code else "ended well"
                tell(f"{verb}, {'after a run' if first else 'empty'}", project, look=look)


def clocks(args, expected, tell):
    late, early = ["faketime", "-f", "+5h"], ["faketime", "-f", "-5h"]
    env = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "RECIPE_CLAIM_TTL": "2s", "NO_COLOR": "1"}
    for a, b in ((late, early), (early, late)):
        name = f"{a[2]} and {b[2]}"
        with Project(args.recipe) as project:
            def at_once(project=project):
                run = [args.recipe, "run", "recipe.toml"]
                both = [subprocess.Popen([*clock, *run], cwd=project.folder, env=env, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL) for clock in (a, b)]
                if any(p.wait(60) != 0 for p in both):
                    raise Wrong("one of two runners failed")
                return "ended well"
            tell(f"{name}, at once", project, look=at_once)
        for point in ("claimed", "launched", "ingested"):
            with Project(args.recipe) as project:
                dead = project.call("run", "recipe.toml", before=a, env={**env, "RECIPE_FAULT": f"{point}:2"})
                def over(project=project, dead=dead):
                    if dead.returncode == 0:
                        raise Wrong("it was not killed")
                    next = project.call("run", "recipe.toml", before=b, env=env)
                    if next.returncode != 0:
                        raise Wrong(f"the other clock: exit {next.returncode}: {next.stderr[-500:]}")
                    return "killed"
                tell(f"{name}, killed at {point}", project, look=over)
        with Project(args.recipe) as project:
            def asleep(project=project):
                run = [args.recipe, "run", "recipe.toml"]
                first = subprocess.Popen([*a, *run], cwd=project.folder, env={**env, "RECIPE_FAULT": "ingested:1:stop"},
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                time.sleep(1)
                second = project.call("run", "recipe.toml", before=b, env=env)
                # the stopped one may be a child of faketime
                subprocess.run(["pkill", "-CONT", "-P", str(first.pid)])
                first.send_signal(18)
                said = first.communicate(timeout=60)[1]
                if second.returncode != 0 or "taking over" not in second.stderr or first.returncode != 0 or "was taken over" not in said:
                    raise Wrong(f"{second.stderr[-300:]} / {said[-300:]}")
                return "ended well"
            tell(f"{name}, stopped before it publishes", project, look=asleep)


def tools():
    for tool in ("strace", "faketime"):
        if not shutil.which(tool):
            subprocess.run(["apt-get", "install", "-y", "-q", tool], check=True, stdout=subprocess.DEVNULL)


ROWS = {
    "points": points,
    "syscalls": lambda a, e, t: strace(a, e, t, "signal=KILL", CALLS, "syscalls"),
    "enospc": lambda a, e, t: strace(a, e, t, "error=ENOSPC", FAILING, "enospc"),
    "eio": lambda a, e, t: strace(a, e, t, "error=EIO", FAILING, "eio"),
    "disk": disk,
    "readonly": readonly,
    "clocks": clocks,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=40, help="faults in each random row")
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    args = parser.parse_args()
    args.recipe = os.path.abspath(args.recipe)
    tools()
    adopt()
    with Project(args.recipe) as project:
        expected = project.outputs()
    total, wrong = collections.Counter(), []
    print(f"seed {args.seed}\n{'row':<10} {'faults':>6}  outcomes")
    for row in args.only.split(","):
        tally = collections.Counter()

        def tell(what, project, out=None, look=None):
            try:
                how = look() if look else judge(out, project, expected)
                quiet()
                if row not in ("disk", "readonly"):
                    project.healed(expected)
                tally[how] += 1
            except (Wrong, subprocess.TimeoutExpired) as e:
                tally["WRONG"] += 1
                wrong.append(f"{row}: {what}: {e}")

        ROWS[row](args, expected, tell)
        print(f"{row:<10} {sum(tally.values()):>6}  {', '.join(f'{n} {how}' for how, n in sorted(tally.items()))}", flush=True)
        total += tally
    for line in wrong:
        print(line, file=sys.stderr)
    print(json.dumps({"bench": "faults", "seed": args.seed, "faults": sum(total.values()), "wrong": len(wrong), **total}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

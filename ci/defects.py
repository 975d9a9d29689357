#!/usr/bin/env python3
"""Shows that the regression recipe sees what it is there to see.

Takes a copy of HEAD, runs recipes/ci/regression.toml there, then plants each defect of ci/defects/ (a patch,
whose first lines say what is wrong), builds the worker again and runs the recipe on the same, warm store. A
defect is seen when the run, or `recipe verify sft --resume` after it, ends with exit code 3.

    ci/defects.py [--only NAME,..] [--copy DIR]
    ci/defects.py --check        only: does each patch still apply to this tree? (part of `cargo xtask test`)

Building the copy takes some minutes, each defect about one. Exit: 0 all seen, 1 some not.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFECTS = ROOT / "ci" / "defects"
RECIPE = "recipes/ci/regression.toml"
GOOD, ASSERTION = 0, 3


def sh(command, cwd=ROOT, **more):
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False, **more)


def must(command, cwd=ROOT):
    done = sh(command, cwd)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def apply(patch, tree, *how):
    return sh(["git", "apply", *how, str(patch)], tree)


def title(patch):
    return patch.read_text(encoding="utf-8").splitlines()[0]


def check(patches):
    """Patches that no longer apply."""
    stale = [(patch, apply(patch, ROOT, "--check").stderr) for patch in patches]
    stale = [(patch, why) for patch, why in stale if why]
    for patch, why in stale:
        print(f"{patch.relative_to(ROOT)} does not apply: write it anew\n{why}", file=sys.stderr)
    print(f"{len(patches) - len(stale)} of {len(patches)} planted defects apply")
    return not stale


class Copy:
    """A copy of HEAD with its own build and store."""

    def __init__(self, place):
        self.tree, self.store = place / "tree", place / "store"
        if not self.tree.exists():
            place.mkdir(parents=True, exist_ok=True)
            must(["git", "clone", "--quiet", "--shared", ROOT, self.tree])
        must(["git", "fetch", "--quiet", "origin", "HEAD"], self.tree)
        must(["git", "checkout", "--quiet", "--detach", "--force", "FETCH_HEAD"], self.tree)

    def build(self):
        """Builds both binaries as `cargo recipe` does; its own output is worth seeing when it fails."""
        must(["cargo", "recipe", "check", RECIPE], self.tree)

    def recipe(self, verb, *more):
        command = ["target/release/recipe", verb, RECIPE, *more, "--store", self.store, "--device", "cpu"]
        return sh(command, self.tree)

    def judge(self):
        """Exit code and the lines that say what is wrong: of a run, else of a stage killed and resumed."""
        done = self.recipe("run", "--keep-going", "--json")
        ran, wrong = [], []
        try:
            stages = json.loads(done.stdout)["stages"]
        except (json.JSONDecodeError, KeyError):
            return done.returncode, 0, [done.stderr.strip()[-2000:]]
        ran = [stage["stage"] for stage in stages if stage["status"] not in ("reused", "not-run")]
        for stage in stages:
            if stage.get("error"):
                wrong.append(f"{stage['stage']}: {stage['error']['message']}")
        if done.returncode != GOOD:
            return done.returncode, len(ran), wrong
        done = self.recipe("verify", "sft", "--resume")
        return done.returncode, len(ran), [] if done.returncode == GOOD else [done.stdout + done.stderr]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--copy", type=Path, default=ROOT / "target" / "defects")
    args = parser.parse_args()

    patches = sorted(DEFECTS.glob("*.patch"))
    if args.check:
        sys.exit(0 if check(patches) else 1)
    if args.only:
        names = args.only.split(",")
        unknown = set(names) - {patch.stem for patch in patches}
        if unknown:
            sys.exit(f"defects.py: no defect {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in patches)}")
        patches = [patch for patch in patches if patch.stem in names]

    os.environ.pop("RECIPE_STORE", None)
    copy = Copy(args.copy.resolve())
    copy.build()
    code, ran, wrong = copy.judge()
    print(f"as it is: exit {code}, {ran} stages ran", *wrong, sep="\n  ", flush=True)
    if code != GOOD:
        sys.exit("defects.py: the recipe fails without a defect")

    missed = 0
    for patch in patches:
        done = apply(patch, copy.tree)
        if done.returncode != 0:
            sys.exit(f"{patch.name} does not apply:\n{done.stderr}")
        start = time.monotonic()
        try:
            copy.build()
            built = time.monotonic()
            code, ran, wrong = copy.judge()
        finally:
            must(["git", "checkout", "--quiet", "--force", "HEAD"], copy.tree)
        seen = code == ASSERTION
        missed += not seen
        print(f"{'seen' if seen else 'MISSED'}: {patch.stem} ({title(patch)}) exit {code}, {ran} stages ran, "
              f"built in {built - start:.0f} s, judged in {time.monotonic() - built:.0f} s", flush=True)
        for line in wrong:
            print("    " + line.strip().replace("\n", "\n    "), flush=True)
    print(f"{len(patches) - missed} of {len(patches)} planted defects seen")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

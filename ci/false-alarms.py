#!/usr/bin/env python3
"""How often a recipe's assertions fail by chance, and how large a regression they catch: the recipe run over many seeds.

    ci/false-alarms.py RECIPE [--seeds 20] [--first 1] [--param seed] [-S NAME=VALUE].. [--profile P] [--store DIR]
                       [--device D] [--recipe FILE] [--json FILE]

Each run is `recipe run RECIPE -S PARAM=SEED --json` in one store, so what does not depend on the seed is computed once.
A run that ends with another code than 0 or 3 stops the script: that is no verdict.

For every assertion, with the n values that the runs gave it (mean m, standard deviation s with n - 1) and its bounds:

| column | formula |
|---|---|
| failed | runs in which it does not hold: false alarms, since nothing is wrong |
| by chance | probability that a new run fails: T(-d / e), summed over both bounds where there are two |
| caught at 95% | shift for the worse that makes a run fail with 95% probability: d + t(0.95) e |

d is the distance from m to the bound, e = s sqrt(1 + 1/n) the error of predicting one more run, T the distribution function
of Student's t with n - 1 degrees of freedom and t its quantile. They take the values as normal. A bound that was passed
by infinity (a bound on the other side only) has no column entry. Bounds that come from a baseline are those of the last run.

Exit code: 0 no false alarm, 3 some, 1 a run ended without a verdict.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CAUGHT = 0.95


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=20, help="how many runs")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--param", default="seed", help="what the seed is set as: a parameter, or a path")
    parser.add_argument("-S", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--profile")
    parser.add_argument("--store", help="kept afterwards; left out, one that goes")
    parser.add_argument("--device")
    parser.add_argument("--recipe", default=ROOT / "target/release/recipe", help="the binary")
    parser.add_argument("--json", metavar="FILE", help="the table as JSON")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: a spread takes at least 2")
    with tempfile.TemporaryDirectory(prefix="false-alarms-") as scratch:
        store = options.store or scratch
        runs = [verdicts(options, store, seed) for seed in range(options.first, options.first + options.seeds)]
    rows = [judge(stage, asked, found) for (stage, asked), found in by_assertion(runs).items()]
    print(table(rows))
    failed = sum(1 for run in runs if any(not v["holds"] for _, v in run))
    last = options.first + options.seeds - 1
    print(f"\nseeds {options.first} to {last}: {failed} of {len(runs)} runs would have failed")
    if options.json:
        report = {"recipe": options.file, "first": options.first, "runs": len(runs), "failed": failed, "assertions": rows}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if not rows:
        sys.exit("the recipe has no assertions")
    sys.exit(3 if failed else 0)


def verdicts(options, store, seed):
    """The verdicts of one run, each with its stage."""
    command = [str(options.recipe), "run", options.file, "--json", "--store", str(store), "-S", f"{options.param}={seed}"]
    for setting in options.settings:
        command += ["-S", setting]
    for name in ("profile", "device"):
        if value := getattr(options, name):
            command += [f"--{name}", value]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if ran.returncode not in (0, 3):
        sys.stderr.write(ran.stderr)
        sys.exit(f"seed {seed}: the run ended with exit code {ran.returncode}")
    outcome = json.loads(ran.stdout)
    found = [(stage["stage"], v) for stage in outcome["stages"] for v in stage.get("verdicts", [])]
    broken = ", ".join(f"{stage}: {v['asked']}" for stage, v in found if not v["holds"])
    print(f"seed {seed}: {broken or 'all hold'}", file=sys.stderr, flush=True)
    return found


def by_assertion(runs):
    """Verdicts by stage and what is asked, in the order of the recipe."""
    found = {}
    for run in runs:
        for stage, verdict in run:
            found.setdefault((stage, verdict["asked"]), []).append(verdict)
    return found


def judge(stage, asked, found):
    values = [v["value"] for v in found if v.get("value") is not None]
    row = {"stage": stage, "asked": asked, "runs": len(found), "failed": sum(not v["holds"] for v in found),
           "values": len(values), "mean": None, "deviation": None, "chance": None, "caught": {}}
    if len(values) < 2:
        return row
    n, mean, deviation = len(values), statistics.fmean(values), statistics.stdev(values)
    row.update(mean=mean, deviation=deviation, least=min(values), most=max(values))
    judged = [v for v in found if v.get("value") is not None][-1]
    error, chance = deviation * math.sqrt(1 + 1 / n), 0.0
    for side, sign in (("min", 1), ("max", -1)):
        if judged.get(side) is None:
            continue
        distance = sign * (mean - judged[side])
        row[side] = judged[side]
        chance += cumulative(-distance / error, n - 1) if error else float(distance < 0)
        row["caught"]["drop" if side == "min" else "rise"] = distance + quantile(CAUGHT, n - 1) * error
    row["chance"] = chance
    return row


def table(rows):
    head = ["stage", "asked", "runs", "failed", "mean", "deviation", "by chance", "caught at 95%"]
    lines = [head]
    for row in rows:
        caught = []
        for way, shift in row["caught"].items():
            share = f" ({abs(shift / row['mean']):.1%})" if row["mean"] else ""
            caught.append(f"{way} {shift:.4g}{share}")
        number = lambda x, form: "-" if x is None else format(x, form)
        lines.append([row["stage"], row["asked"], str(row["runs"]), str(row["failed"]), number(row["mean"], ".5g"),
                      number(row["deviation"], ".3g"), number(row["chance"], ".1e"), " or ".join(caught) or "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def cumulative(t, freedom):
    """P(T <= t) of Student's t (Abramowitz and Stegun 26.7.1)."""
    tail = 0.5 * beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return tail if t < 0 else 1 - tail


def quantile(p, freedom):
    low, high = 0.0, 1.0
    while cumulative(high, freedom) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if cumulative(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def beta(x, a, b):
    """The regularised incomplete beta function by its continued fraction (26.5.8), Lentz's method."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    away = lambda v: v if abs(v) > 1e-300 else 1e-300
    c, d = 1.0, 1 / away(1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 10_000):
        for term in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                     -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1 / away(1 + term * d)
            c = away(1 + term / c)
            total *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * total / a


if __name__ == "__main__":
    main()

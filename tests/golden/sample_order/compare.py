"""Compares orders and samples with megatron-core's, for random data, lengths, epochs, seeds, splits and blends. The datasets are
written by Megatron.

  compare.py BUILD/bin [CASES [SEED]]      default: 1000 cases, seed 1
"""
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import megatron_order as megatron


def main():
    binary = pathlib.Path(sys.argv[1]) / "dump_order"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    megatron.helpers()
    rng = megatron.generator(seed)
    seen = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        mt = subprocess.Popen([binary, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made = {}
        for i in range(count):
            if i % 100 == 0:
                made = megatron.datasets(folder, rng, 12, first=len(made) + i)
                tokens_of = {name: sum(d["lengths"]) for name, d in made.items()}
            case = megatron.case(rng, list(made), tokens_of)
            try:
                expected = megatron.order(folder, case)
            except (megatron.Refused, AssertionError, IndexError) as error:
                expected = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(case), file=mt.stdin, flush=True)
            got = json.loads(mt.stdout.readline())
            judge(case, expected, got, seen)
        mt.stdin.close()
        mt.wait()
    print(", ".join(f"{n} {what}" for what, n in sorted(seen.items())))
    if not seen["equal"]:
        sys.exit("no case was compared")


def judge(case, expected, got, seen):
    if "error" in expected and "error" in got:
        seen["refused by both"] += 1
    elif "error" in expected or "error" in got:
        # Megatron goes on with what mt does not let a run begin with: a share without tokens, one epoch that is fewer samples than
        # the run takes.
        few = "error" in got and any(s in got["error"] for s in ("too few for one sample", "one epoch of each", "is empty"))
        if not few:
            sys.exit(f"{json.dumps(case)}\nMegatron: {str(expected)[:400]}\nmt: {str(got)[:400]}")
        seen["refused by mt alone"] += 1
    elif expected != got:
        for name in sorted(set(expected) | set(got)):
            if expected.get(name) != got.get(name):
                sys.exit(f"{json.dumps(case)}\n{name}\nMegatron: {str(expected.get(name))[:400]}\nmt: {str(got.get(name))[:400]}")
    else:
        seen["equal"] += 1
        seen["values compared"] += sum(map(len, got.values()))


main()

"""Writes expected.txt: the batches that Megatron-Core gives to the steps of a run whose batch ramps up.

  VENV/bin/pip install megatron-core==0.16.1
  VENV/bin/python tests/golden/batch_rampup/make.py tests/golden/batch_rampup/expected.txt

A line is `start increment samples global_batch : size*steps ...`, every step from the first until some steps after the ramp-up, in
runs of one size.
"""
import itertools
import random
import sys

from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

STEPS_AFTER = 5


def sizes(start, increment, samples, final):
    calculator = RampupBatchsizeNumMicroBatchesCalculator(final, 1, 1, False, 1, start, increment, samples)
    consumed, after = 0, 0
    while after < STEPS_AFTER:
        calculator.update(consumed, consistency_check=True)
        size = calculator.get_current_global_batch_size()
        yield size
        after += consumed > samples
        consumed += size


def main():
    cases = [(16, 8, 300, 64), (1, 1, 1, 2), (1, 1, 7, 4), (32, 32, 100_000, 1536), (2, 3, 1000, 17), (8, 8, 8, 64), (3, 1, 10, 10)]
    generator = random.Random(11)
    for _ in range(60):
        increment = generator.randint(1, 12)
        start = generator.randint(1, 40)
        final = start + increment * generator.randint(1, 30)
        cases.append((start, increment, generator.randint(1, 20_000), final))
    with open(sys.argv[1], "w") as out:
        for case in cases:
            runs = " ".join(f"{size}*{len(list(run))}" for size, run in itertools.groupby(sizes(*case)))
            out.write(f"{case[0]} {case[1]} {case[2]} {case[3]} : {runs}\n")


main()

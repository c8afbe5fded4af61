"""The order of samples: mt_order_bench beside megatron-core's Python and helpers.cpp, in turns, on the same lengths, equal array by array.

  VENV/bin/python bench/order_speed.py BUILD/bench/mt_order_bench [DOCUMENTS [EPOCHS]]
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy
from megatron.core.datasets import helpers
from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

T, SEED, ROUNDS = 4096, 1234, 3


def megatron(lengths, epochs):
    """As GPTDataset._build_document_sample_shuffle_indices where the last epoch is not shuffled apart."""
    seconds, begin = {}, time.perf_counter()
    state = numpy.random.RandomState(SEED)
    documents = _build_document_index(numpy.arange(len(lengths), dtype=numpy.int32), epochs, state, False)
    walked = time.perf_counter()
    samples = helpers.build_sample_idx(lengths, documents, T, epochs, int(lengths.sum()), True, True)
    seconds["walk"] = time.perf_counter() - walked
    shuffle = _build_shuffle_index(len(samples) - 1, len(samples) - 1, state)
    seconds["order"] = time.perf_counter() - begin
    begin = time.perf_counter()
    size = len(samples) - 1
    index, sample = numpy.zeros(size, numpy.int16), numpy.zeros(size, numpy.int64)
    helpers.build_blending_indices(index, sample, numpy.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]), 8, size, False)
    seconds["blend"] = time.perf_counter() - begin
    return seconds, b"".join(a.tobytes() for a in (documents, samples.astype(numpy.int32), shuffle))


def main():
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4_000_000
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    lengths = numpy.random.default_rng(1).integers(1, 1600, count, dtype=numpy.int32)
    wanted = (epochs * int(lengths.sum()) - 1) // T
    best = {}
    with tempfile.TemporaryDirectory() as folder:
        lengths.tofile(f"{folder}/lengths")
        for _ in range(ROUNDS):
            runs = {}
            runs["megatron"], expected = megatron(lengths, epochs)
            for threads in (1, os.cpu_count()):
                said = subprocess.run([sys.argv[1], f"{folder}/lengths", str(T), str(wanted), str(SEED), str(threads), f"{folder}/out"],
                                      check=True, capture_output=True, text=True).stdout
                runs[f"mt, {threads} threads"] = json.loads(said)
                with open(f"{folder}/out", "rb") as out:
                    assert out.read() == expected, "another order"
            for who, seconds in runs.items():
                for what, value in seconds.items():
                    best[who, what] = min(value, best.get((who, what), value))
    print(f"{count} documents, {epochs} epochs, {wanted} samples of {T}; best of {ROUNDS}, in turns; arrays equal; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    for who in runs:
        print(f"{who:>16}: " + ", ".join(f"{what} {best[who, what]:.3f} s ({best['megatron', what] / best[who, what]:.1f} x)"
                                         for what in ("walk", "order", "blend")))


main()

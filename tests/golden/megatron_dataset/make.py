#!/usr/bin/env python3
"""Datasets as megatron-core's IndexedDatasetBuilder writes them: the golden files of this folder.

  python3 make.py FOLDER    (torch, numpy, megatron-core 0.16.1: see ../requirements.txt)

first, second: int32, one sequence per document, an empty document among them. sentences: int32, several sequences per document.
merged: first, sentences and second through add_index. small: uint16, bytes of English text with 256 for the end of a document.
wide: int64.
"""
import sys
import warnings

warnings.filterwarnings("ignore")
import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path


def write(prefix, documents, dtype):
    """documents: lists of sequences, which are lists of ids."""
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=dtype)
    for sequences in documents:
        ids = [i for sequence in sequences for i in sequence]
        builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(s) for s in sequences])
    builder.finalize(get_idx_path(prefix))


def main(folder):
    random = numpy.random.RandomState(7)
    draw = lambda n: [int(i) for i in random.randint(0, 100000, n)]
    write(f"{folder}/first", [[draw(n)] for n in (3, 1, 0, 17, 5)], numpy.int32)
    write(f"{folder}/second", [[draw(n)] for n in (2, 9)], numpy.int32)
    write(f"{folder}/sentences", [[draw(2), draw(4)], [draw(1)], [draw(3), draw(0), draw(6)]], numpy.int32)
    write(f"{folder}/wide", [[draw(4)], [draw(2)]], numpy.int64)
    text = ["The quick brown fox", "jumps over", "the lazy dog.\nAnd again."]
    write(f"{folder}/small", [[list(t.encode()) + [256]] for t in text], numpy.uint16)
    merged = IndexedDatasetBuilder(get_bin_path(f"{folder}/merged"), dtype=numpy.int32)
    for name in ("first", "sentences", "second"):
        merged.add_index(f"{folder}/{name}")
    merged.finalize(get_idx_path(f"{folder}/merged"))


main(sys.argv[1])

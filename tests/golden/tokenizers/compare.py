#!/usr/bin/env python3
"""Every id of every document against Hugging Face's `tokenizers` and tiktoken: compare.py BENCH CORPUS [--parts …] [--only …].

BENCH is mt_tokenize_bench. For every tokenizer of this folder and every part of the corpus (make_corpus.py) both sides encode
every document, once with special tokens seen and once as ordinary text; the first differences are shown with the text around
them, and the exit status says whether there was any.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import tiktoken.load
import tokenizers

import make_tokenizers

HERE = pathlib.Path(__file__).parent


def read_documents(path):
    data, documents, at = path.read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at:at + 8], "little")
        documents.append(data[at + 8:at + 8 + size])
        at += 8 + size
    return documents


def our_ids(bench, tokenizer, path, special):
    with tempfile.NamedTemporaryFile(suffix=".ids", dir=path.parent) as out:
        subprocess.run([bench, tokenizer, "--ids", out.name, path, *(["--special"] if special else [])], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        data = numpy.fromfile(out.name, dtype=numpy.int32)
    ids, at = [], 0
    while at < len(data):
        size = int(data[at:at + 2].view(numpy.uint64)[0])
        ids.append(data[at + 2:at + 2 + size])
        at += 2 + size
    return ids


def hugging_face(path, special):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = not special
    return lambda texts: [numpy.array(e.ids, numpy.int32)
                          for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def tiktoken_encoder(path):
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    encoding = tiktoken.Encoding("o200k_small", pat_str=make_tokenizers.O200K, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: [numpy.array(ids, numpy.int32) for ids in encoding.encode_ordinary_batch(texts)]


def differences(documents, ours, peer, shown):
    """The number of documents whose ids differ; describes the first ones."""
    if len(ours) != len(documents):
        print(f"  {len(ours)} documents of {len(documents)}")
        return len(documents)
    count = 0
    for first in range(0, len(documents), 1000):
        theirs = peer([document.decode() for document in documents[first:first + 1000]])
        for i, expected in enumerate(theirs, first):
            if numpy.array_equal(ours[i], expected):
                continue
            count += 1
            if count > shown:
                continue
            common = min(len(ours[i]), len(expected))
            unequal = numpy.flatnonzero(ours[i][:common] != expected[:common])
            at = int(unequal[0]) if len(unequal) else common
            print(f"  document {i}, id {at}: {ours[i][at:at + 6].tolist()}, expected {expected[at:at + 6].tolist()}; begins "
                  f"{documents[i][:60]!r}")
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench")
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("--parts", nargs="*", default=["adversarial", "scripts", "text", "code"])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--shown", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    failed = False
    for part in arguments.parts:
        path = arguments.corpus / f"{part}.docs"
        documents = read_documents(path)
        megabytes = sum(map(len, documents)) / 1e6
        for family in make_tokenizers.FAMILIES:
            name = family.__name__
            if arguments.only and name not in arguments.only:
                continue
            file = HERE / name / "tokenizer.json"
            checks = [("ordinary", file, False, hugging_face(file, False))]
            if part == "adversarial":  # elsewhere no document has a special token
                checks.append(("special", file, True, hugging_face(file, True)))
            ranks = file.with_name("o200k_small.tiktoken")
            if ranks.exists():
                checks.append(("tiktoken", ranks, False, tiktoken_encoder(ranks)))
            for what, spec, special, peer in checks:
                start = time.time()
                ours = our_ids(arguments.bench, spec, path, special)
                wrong = differences(documents, ours, peer, arguments.shown)
                failed |= wrong > 0
                print(f"{part} {name} {what}: {len(documents)} documents, {megabytes:.1f} MB, {sum(map(len, ours))} ids, "
                      f"{wrong} documents differ ({time.time() - start:.0f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

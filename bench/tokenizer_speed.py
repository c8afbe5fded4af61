#!/usr/bin/env python3
"""mt's encoder beside its peers in one run: tokenizer_speed.py BIN CORPUS TOKENIZERS [--rounds 3] [--part text …] [--threads 1 N].

BIN: the folder of mt_tokenize_bench. CORPUS: tests/golden/tokenizers/make_corpus.py's. TOKENIZERS: a folder with gpt2/ and
gpt_oss/ (or one of them) of make_tokenizers.py, of a vocabulary as large as real ones. Every pass is a process of its own, cold, and peers take turns;
peers, which are slower, read only the documents of the first --peer-megabytes of each part (so does mt then, for the ratio: all
passes of one comparison read the same bytes). Ids are counted, and a count that differs ends the run. The figures are the best of
the rounds, by processor time (which a busy machine disturbs less) and by wall time. JSON to stdout, a table to stderr.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def cut(path, megabytes, out):
    """The first documents of `path`, about so many megabytes."""
    data, at = path.read_bytes(), 0
    while at < min(len(data), megabytes * 1_000_000):
        at += 8 + int.from_bytes(data[at:at + 8], "little")
    out.write_bytes(data[:at])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bin", "corpus", "tokenizers"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="*", default=["text", "code", "scripts"])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count()])
    parser.add_argument("--peer-megabytes", type=int, default=20)
    arguments = parser.parse_args()
    gpt2 = arguments.tokenizers / "gpt2" / "tokenizer.json"
    o200k = arguments.tokenizers / "gpt_oss" / "tokenizer.json"
    ranks = o200k.with_name("o200k_small.tiktoken")
    ours = [str(arguments.bin / "mt_tokenize_bench")]
    peer = [sys.executable, str(HERE / "tokenizer_peer.py")]

    def command(kind, spec, threads, docs):
        if kind == "mt":
            return [*ours, str(spec), "--threads", str(threads), str(docs)]
        return [*peer, kind, str(spec), str(threads), str(docs)]

    revision = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    results = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
               "machine": next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                               platform.processor()) + f", {os.cpu_count()} processors",
               "commit": revision.stdout.strip(), "load": os.getloadavg()[0], "passes": []}
    for part in arguments.parts:
        docs = cut(arguments.corpus / f"{part}.docs", arguments.peer_megabytes, arguments.corpus / f"{part}.cut.docs")
        for threads in arguments.threads:
            for pattern, contenders in {"gpt2": [("mt", gpt2), ("hf", gpt2)],
                                        "o200k": [("mt", o200k), ("hf", o200k), ("tiktoken", ranks)]}.items():
                if not contenders[0][1].exists():
                    continue
                best, tokens = {}, set()
                for _ in range(arguments.rounds):
                    for kind, spec in contenders:
                        run = subprocess.run(command(kind, spec, threads, docs), capture_output=True, text=True, check=True)
                        figures = json.loads(run.stdout)
                        tokens.add(figures["tokens"])
                        for key in ("seconds", "cpu_seconds"):
                            best[kind, key] = min(figures[key], best.get((kind, key), figures[key]))
                        size = figures["bytes"]
                if len(tokens) != 1:
                    sys.exit(f"{part} {pattern}: the contenders made different numbers of ids: {sorted(tokens)}")
                for kind, _ in contenders:
                    entry = {"part": part, "pattern": pattern, "kind": kind, "threads": threads,
                             "mb_per_s": round(size / best[kind, "seconds"] / 1e6, 2),
                             "mb_per_cpu_s": round(size / best[kind, "cpu_seconds"] / 1e6, 2),
                             "times_hf_cpu": round(best["hf", "cpu_seconds"] / best[kind, "cpu_seconds"], 2)}
                    results["passes"].append(entry)
                    print("{part:8} {pattern:6} {kind:9} {threads} thread(s): {mb_per_s:9.2f} MB/s, {mb_per_cpu_s:9.2f} MB per "
                          "processor second, {times_hf_cpu:7.2f} x HF".format(**entry), file=sys.stderr, flush=True)
        docs.unlink()
    print(json.dumps(results, indent=1))


main()

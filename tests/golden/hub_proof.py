"""Proof that folders go out as they came in, and that what is trained here is what transformers loads.

  VENV/bin/python tests/golden/hub_proof.py BUILD/bin [CASE...]

For every golden case (make_golden.py):
1. mtctl imports the folder and exports it again, in shards; transformers loads both and gives the same logits, bit for bit.
2. A job begins with the folder's weights, cut over two ranks, and trains for six steps with a checkpoint after the fifth; mtctl
   exports that; transformers computes the loss that the job had in its sixth step, to 1e-5.
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_golden

GOLDEN = pathlib.Path(__file__).parent.resolve()
STEPS = 6
JOB = """
name: proof
initial_checkpoint: hf:{folder}
data: {{train: {data}, sequence_length: {sequence}}}
training:
  steps: {steps}
  global_batch: 4
  optimizer: {{lr: 1e-2}}
  schedule: {{kind: constant}}
parallel: {{tensor: 2}}
checkpoint: {{every_steps: {saved}}}
runtime: {{backend: cpu, threads_per_rank: 1}}
"""


def mtctl(*arguments):
    done = subprocess.run([sys.argv[1] + "/mtctl", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"mtctl {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    make_golden.scale_softmax(model)
    return model


def logits(folder, tokens):
    with torch.no_grad():
        return load(folder)(input_ids=tokens).logits


def write_dataset(prefix, sample):
    """One document in which every window of a sequence holds the same tokens: whatever the order, each step sees them."""
    tokens = sample.repeat(100).to(torch.int32).numpy()
    prefix.with_suffix(".bin").write_bytes(tokens.tobytes())
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 1, 2) + struct.pack("<iqqq", len(tokens), 0, 0, 1))


def prove_round_trip(case, work):
    tokens = load_file(GOLDEN / case / "expected.safetensors")["tokens"][:4, :-1].long()
    imported, exported = work / f"{case}-imported", work / f"{case}-exported"
    mtctl("checkpoint", "import", "hf", GOLDEN / case, imported)
    mtctl("checkpoint", "export", "hf", imported, exported, "--max-shard-size", "64KB")
    shards = len(list(exported.glob("model-*.safetensors")))
    difference = (logits(exported, tokens) - logits(GOLDEN / case, tokens)).abs().max().item()
    assert difference == 0, f"{case}: logits differ by {difference}"
    return f"{shards} shards, logits differ by {difference}"


def prove_training(case, work):
    sample = load_file(GOLDEN / case / "expected.safetensors")["tokens"][0, :-1].long()
    data, job_file, exported = work / f"{case}-data", work / f"{case}.yaml", work / f"{case}-trained"
    write_dataset(data, sample)
    job_file.write_text(JOB.format(folder=GOLDEN / case, data=data, sequence=len(sample), steps=STEPS, saved=STEPS - 1))
    job = json.loads(mtctl("submit", job_file, "-o", "json"))["id"]
    mtctl("wait", job, "--timeout", "5m")
    here = json.loads(mtctl("status", job, "-o", "json"))["progress"]["loss"]
    mtctl("checkpoint", "export", "hf", f"{job}@{STEPS - 1}", exported)
    following = torch.cat([sample[1:], sample[:1]])
    there = torch.nn.functional.cross_entropy(logits(exported, sample[None])[0], following).item()
    assert abs(here - there) < 1e-5 * there, f"{case}: loss {here} here, {there} in transformers"
    return f"loss of step {STEPS}: {here:.7f} here, {there:.7f} in transformers, relative {abs(here - there) / there:.1e}"


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="mt-hub-proof-") as folder:
        work = pathlib.Path(folder)
        os.environ["MT_CONFIG_DIR"] = str(work / "config")
        mtctl("dev", "up", "--nodes", "1", "--slots", "2", "--state", work / "cluster")
        try:
            for case in sys.argv[2:] or make_golden.CASES:
                print(f"{case}: {prove_round_trip(case, work)}; {prove_training(case, work)}", flush=True)
        finally:
            mtctl("dev", "down", "--now", "--purge", "--state", work / "cluster")


if __name__ == "__main__":
    main()

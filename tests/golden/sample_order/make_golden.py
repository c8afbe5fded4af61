"""Makes golden.json: small orders by megatron-core's own Python and C++ (pip install megatron-core torch pybind11).

  VENV/bin/python tests/golden/sample_order/make_golden.py > tests/golden/sample_order/golden.json
"""
import json
import tempfile

import megatron_order as megatron


def main():
    megatron.helpers()
    rng = megatron.generator(5)
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for number, lengths in enumerate([[5, 9, 3, 12, 7, 4], [1], [0, 4, 0, 0, 9, 1], [30, 2, 2, 40], list(range(12))]):
            megatron.write(f"{folder}/d{number}", number, lengths)
            made[f"d{number}"] = dict(number=number, lengths=lengths)
        tokens_of = {name: sum(d["lengths"]) for name, d in made.items()}
        cases = {}
        while len(cases) < 40:
            case = megatron.case(rng, list(made), tokens_of)
            if case["samples"] > 60:
                continue
            case["read"] = min(case["read"], 2)
            try:
                expected = megatron.order(folder, case)
            except (megatron.Refused, AssertionError, IndexError):  # Megatron refuses it: too little data, an empty share
                continue
            if len(expected.get("blend.dataset", range(case["samples"]))) < case["samples"]:
                continue  # one epoch of each that is less than was asked for: Megatron's is shorter, mt refuses it
            cases[str(len(cases))] = dict(case=case, expected=expected)
    blends = sum("blend.dataset" in c["expected"] for c in cases.values())
    assert 10 <= blends <= 30, blends
    lines = ",\n".join(f'"{name}": {json.dumps(c, separators=(",", ":"))}' for name, c in cases.items())
    print(f'{{"eod": {megatron.EOD}, "datasets": {json.dumps(made, separators=(",", ":"))},\n"cases": {{\n{lines}\n}}}}')


main()

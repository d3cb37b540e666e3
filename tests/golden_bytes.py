#!/usr/bin/env python3
"""List the SHA-256 of the event log and the weights of many small runs.

    tests/golden_bytes.py [--binary target/release/stagger] [--backends cpu,wgpu] [--check FILE]

One line per run: rule, clock, backend, problem, hash of events.jsonl, hash of model.safetensors. The list is the same for every
checkout that computes the same, on one kind of processor and adapter (the CPU backend picks its instruction set at run time).
Without --check the list goes to standard output. With --check FILE the runs of FILE are repeated; a difference ends with exit code 1.
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Rules whose default parameters are too long for a small run.
PARAMETERS = {
    "diloco": "diloco:h=3",
    "async-diloco": "async-diloco:h=3",
    "easgd": "easgd:period=2",
    "fedbuff": "fedbuff:b=2,q=2,local_lr=0.05",
    "fadas": "fadas:b=2,q=2,local_lr=0.05",
}
# The workers write the weights themselves: no clock but the wall clock orders them.
UNORDERED = {"hogwild"}
PROBLEMS = {
    "quadratic": ["--dataset", "quadratic:CENTRES", "--lr", "0.1", "--updates", "40", "--workers", "4"],
    "mlp": ["--dataset", "clusters", "--model", "mlp", "--batch", "8", "--lr", "0.02", "--updates", "12", "--workers", "3"],
    "cnn": ["--dataset", "synthetic", "--model", "cnn", "--batch", "2", "--lr", "0.02", "--updates", "3", "--workers", "2"],
}
COMMON = [
    "--delay", "exp:1", "--seed", "7", "--checkpoint-every", "0", "--test-samples", "16", "--partition",
]  # fmt: skip
# Options that change what an arrival computes, on a few rules.
VARIANTS = [
    ("asgd", ["--momentum", "0.9"]),
    ("sync", ["--momentum", "0.9", "--weight-decay", "0.01"]),
    ("dude", ["--table-dtype", "bf16"]),
    ("dude", ["--clip", "0.5"]),
    ("asgd", ["--precision", "bf16"]),
    ("dude", ["--step", "stacked:2"]),
    ("fedbuff:b=3", ["--step", "stacked"]),
]


def runs(binary, backends):
    names = [rule["name"] for rule in json.loads(subprocess.check_output([binary, "rules", "--json"]))]
    for backend in backends:
        for problem in PROBLEMS:
            for name in names:
                if name not in UNORDERED:
                    yield PARAMETERS.get(name, name), backend, problem, []
            if problem != "quadratic":
                for rule, extra in VARIANTS:
                    yield rule, backend, problem, extra


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(binary, centres, job):
    rule, backend, problem, extra = job
    folder = pathlib.Path(tempfile.mkdtemp(prefix="golden-"))
    try:
        flags = [flag.replace("CENTRES", str(centres)) for flag in PROBLEMS[problem]]
        common = COMMON[:-1] if problem == "quadratic" else COMMON + ["dirichlet:0.3"]
        if problem == "quadratic":
            common = [flag for flag in common if flag not in ("--test-samples", "16")]
        found = []
        for clock in ["virtual", f"replay:{folder}/virtual/events.jsonl"]:
            out = folder / clock.split(":")[0]
            command = [binary, "train", "--rule", rule, "--backend", backend, "--clock", clock, "--out", str(out)]
            done = subprocess.run(command + flags + common + extra, capture_output=True, text=True)
            what = " ".join([rule, *extra, out.name, backend, problem])
            if done.returncode:
                found.append(f"{what} exit {done.returncode}")
            else:
                found.append(f"{what} {sha(out / 'events.jsonl')} {sha(out / 'model.safetensors')}")
        return found
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/stagger")
    parser.add_argument("--backends", default="cpu,wgpu")
    parser.add_argument("--check", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        centres = pathlib.Path(folder) / "centres.csv"
        centres.write_text("0,1\n1,-2\n4,0.5\n-1,3\n")
        jobs = runs(arguments.binary, arguments.backends.split(","))
        list_ = [line for part in pool.map(lambda job: lines(arguments.binary, centres, job), jobs) for line in part]
    if not arguments.check:
        print("\n".join(list_))
        return 0
    wanted = pathlib.Path(arguments.check).read_text().splitlines()
    backends = set(arguments.backends.split(","))
    wanted = [line for line in wanted if backends & set(line.split())]
    differ = [f"- {a}\n+ {b}" for a, b in zip(wanted, list_) if a != b]
    print("\n".join(differ))
    print(f"{len(list_)} runs, {len(wanted)} expected, {len(differ)} differ")
    return 1 if differ or len(list_) != len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())

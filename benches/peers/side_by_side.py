"""Compare a step of stagger with a step of PyTorch on this machine's CPU. Both are measured in turn; the best of a few rounds counts.

    cargo build --release
    python3 benches/peers/side_by_side.py [--rounds 3] [--seconds 4] [--models cnn,resnet18] [--batches 32,128]

If PyTorch is missing, pip installs it into a virtual environment (STAGGER_TORCH_VENV, default ~/.cache/stagger/torch).
Both sides use the same network, batch size and number of threads. PyTorch's step is forward, backward and its own SGD.
stagger's step also draws its batch from the training set. The last row of each model compares two workers with two PyTorch
processes, of one thread each. There the figure is the number of samples of the whole run per second, not the median step.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
STAGGER = HERE.parent.parent / "target" / "release" / "stagger"


def torch_python():
    home = pathlib.Path(os.environ.get("STAGGER_TORCH_VENV", pathlib.Path.home() / ".cache/stagger/torch"))
    python = home / "bin" / "python"
    # Import PyTorch: an interrupted installation leaves an environment without it.
    if not python.exists() or subprocess.run([str(python), "-c", "import torch, numpy"], stderr=subprocess.DEVNULL).returncode:
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", "torch", "numpy"], check=True)
        except subprocess.CalledProcessError:
            sys.exit(f"PyTorch could not be installed into {home}: install it there by hand, or set STAGGER_TORCH_VENV to an environment that has it")
    return str(python)


def torch(python, model, batch, threads, seconds, processes=1):
    command = [python, str(HERE / "pytorch_step.py"), "--model", model, "--batch", str(batch), "--threads", str(threads), "--seconds", str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)]
    # One process: the median step. Two processes: the total throughput, as for two workers.
    field = "samples_per_second" if processes == 1 else "mean_samples_per_second"
    total = 0.0
    for process in running:
        said, complained = process.communicate()
        if process.returncode:
            sys.exit(f"PyTorch's step failed:\n{complained}")
        total += json.loads(said.strip().splitlines()[-1])[field]
    return total


def stagger(subject, model, batch, threads, seconds, workers=None):
    with tempfile.TemporaryDirectory() as out:
        command = [str(STAGGER), "bench", subject, "--backend", "cpu", "--model", model, "--batch", str(batch),
                   "--threads-per-worker", str(threads), "--seconds", str(seconds), "--out", out]
        if workers:
            # This script makes the rounds.
            command += ["--workers", str(workers), "--rounds", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"`{' '.join(command)}` failed:\n{done.stderr}")
        rows = json.load(open(pathlib.Path(out) / "bench.json"))["rows"]
    return rows[-1]["samples/s"]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--seconds", type=float, default=4.0)
    args.add_argument("--models", default="cnn,resnet18")
    args.add_argument("--batches", default="32,128")
    args = args.parse_args()
    if not STAGGER.exists():
        sys.exit(f"{STAGGER.relative_to(HERE.parent.parent)} does not exist: run `cargo build --release` first")
    python = torch_python()
    print(f"{'model':9} {'batch':>5} {'what':28} {'stagger':>10} {'PyTorch':>10} {'ratio':>6}   samples/s")

    def row(model, batch, what, ours, theirs):
        best = [0.0, 0.0]
        for _ in range(args.rounds):
            best = [max(best[0], ours()), max(best[1], theirs())]
        if best[0] == 0.0:
            sys.exit(f"{model}, batch {batch}, {what}: no worker finished two steps in this time; use more --seconds")
        print(f"{model:9} {batch:5} {what:28} {best[0]:10.1f} {best[1]:10.1f} {best[0] / best[1]:6.2f}", flush=True)

    for model in args.models.split(","):
        for batch in map(int, args.batches.split(",")):
            for threads in (1, 2):
                row(model, batch, f"one step, {threads} thread{'s' * (threads > 1)}",
                    lambda: stagger("model", model, batch, threads, args.seconds),
                    lambda: torch(python, model, batch, threads, args.seconds))
        batch = int(args.batches.split(",")[0])
        row(model, batch, "two at once, 1 thread each",
            lambda: stagger("scaling", model, batch, 1, 2 * args.seconds, workers=2),
            lambda: torch(python, model, batch, 1, 2 * args.seconds, processes=2))


if __name__ == "__main__":
    main()

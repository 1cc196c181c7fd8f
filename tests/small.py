"""Small runs, in this process or in one of their own, and all that must be equal of two runs."""
import json
import os
import random
import subprocess
import sys

import microgpt
from conftest import ROOT
from microgpt import backends
from microgpt.corpus.load import load
from microgpt.corpus.sources import gather
from microgpt.nn import init_weights
from microgpt.tokenizers import CharTokenizer
from microgpt.training import checkpoint, runs
from microgpt.training.settings import settings_of
from microgpt.training.trainer import Trainer

TEXT = "".join(f"{word}\n" for word in """
    anna bertha cecil dora emil fritz gustav hans ida jakob karl lena max nora otto paula quirin
    rosa stefan tina ulla viktor willi xaver yvonne zoe""".split())
TINY = ["--backend", "matrix", "--n-embd", "4", "--n-head", "1", "--block-size", "6"]


def texts(folder):
    """Returns the path of a small text."""
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def command(*flags, code=None, folder, **options):
    """Returns the process of `python3 microgpt.py` with these flags, its runs kept in a folder.

    code: what it does before, such as breaking something.
    """
    call = [sys.executable, "microgpt.py", *map(str, flags)]
    if code:
        call = [sys.executable, "-c", f"import sys\nimport microgpt\n{code}\n"
                f"sys.exit(microgpt.main({[str(flag) for flag in flags]!r}))"]
    environment = {**os.environ, "MICROGPT_RUNS": str(folder), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, encoding="utf-8", **options)


def finished(process, timeout=120):
    """Returns (exit code, standard output, standard error) of a process."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def main(*flags):
    """Returns the exit code of the command, run in this process."""
    try:
        return microgpt.main([str(flag) for flag in flags]) or 0
    except SystemExit as stop:
        return stop.code


def a_run(folder, *flags, name="x"):
    """Trains a tiny model for 4 steps; returns its folder."""
    assert main("--data", texts(folder), *TINY, "--num-steps", 4, "--val-fraction", 0.2,
                "--num-samples", 1, "--name", name, *flags) == 0
    return runs.runs_folder() / name


def content(folder):
    """Returns name -> bytes of a folder's files, without the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())
            if path.name != "lock" and path.is_file()}


def without_times(values):
    return {name: value for name, value in values.items()
            if name not in ("seconds", "tokens_per_second")}


def end_of(path):
    """Returns all that must be equal of two runs: weights, memory, losses, samples, no times."""
    found = {}
    for name in ("last", "best"):
        tensors, metadata = checkpoint.read(path / f"{name}.safetensors")
        found[name] = {name: [list(row) for row in rows] for name, rows in tensors.items()}
        if name == "last":
            found["state"] = without_times(json.loads(metadata["state"]))
            found["random"] = metadata["random"]
        else:
            found["best loss"] = metadata["val_loss"]
    log = (path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found["log"] = [without_times(json.loads(line)) for line in log]
    found["samples"] = (path / "samples.txt").read_text(encoding="utf-8")
    found["files"] = sorted(file.name for file in path.iterdir())
    return found


class Clock:
    """Time that passes only when it is told to: so much with each look at it."""

    def __init__(self, tick=0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


def trainer(folder, keep=True, val_fraction=0.2, **options):
    """Returns a Trainer of a tiny matrix model, in a run of its own; options: of Settings, and
    those that Trainer takes itself."""
    own = {name: options.pop(name) for name in ("clock", "stop", "report", "sampler")
           if name in options}
    settings = settings_of({"backend": "matrix", "n_embd": 4, "n_head": 1, "block_size": 6,
                            "num_steps": 4, "val_fraction": val_fraction, **options}).completed()
    gathered = gather([str(texts(folder))])
    rng = random.Random(settings.seed)
    data = load(gathered, CharTokenizer.learn, rng, val_fraction=val_fraction)
    config = settings.config(data.tokenizer.vocab_size)
    backend = backends.load("matrix")(config, init_weights(config, rng),
                                      optimizer=settings.optimizer)
    run = None
    if keep:
        run = runs.create("x", "x", {
            "settings": settings.to_dict(), "vocab_size": config.vocab_size,
            "tokenizer_hash": data.tokenizer.hash,
            "data": {"mode": data.mode, "sha256": gathered.sha256}}, data.tokenizer, backend, rng)
        run.lock.__exit__()
    return Trainer(backend, data, settings, rng, run, **own)

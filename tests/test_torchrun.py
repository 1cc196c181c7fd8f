"""Several processes that train one model, each with its share of the batch, are one process."""
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CASES = [  # batches of 5 do not divide by 2, and of 1 leave a process without a sequence
    ("float64", "muon", 5, 1e-12), ("float32", "adamw", 8, 1e-6), ("float64", "sgd", 1, 1e-12)]

# Takes 20 steps on ragged documents, and evaluates; the process that writes tells what came of it.
STEPS = """
import json, random, sys
sys.path.insert(0, ROOT)
import microgpt
sys.path.pop(0)
from microgpt.backends import load
from microgpt.nn import GPTConfig, init_weights
from microgpt.training.evaluation import evaluate
results = []
for dtype, optimizer, batch_size, _ in CASES:
    config = GPTConfig(9, n_embd=8, n_head=2, n_layer=2, block_size=6)
    rng = random.Random(1)
    backend = load("torch")(config, init_weights(config, rng), optimizer=optimizer, dtype=dtype,
                            device="cpu", threads=1, together=True, max_norm=0.5)
    documents = [[rng.randrange(9) for _ in range(rng.randint(2, 7))] for _ in range(50)]
    losses = []
    for step in range(20):
        batch = [rng.choice(documents) for _ in range(batch_size)]
        losses.append(backend.step(batch, 0.01, micro_batch=2))
    found = evaluate(backend, documents, False, characters=[1] * 9)
    results.append({"losses": losses, "weights": backend.weights(), "size": backend.size,
                    "found": [found.loss, found.tokens, found.characters, found.whole]})
if backend.rank == 0:
    json.dump(results, open(sys.argv[1], "w"))
"""


def torchrun(count, *command, **options):
    """Runs a script in so many processes, as torchrun does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count),
         "--standalone", *map(str, command)],
        capture_output=True, text=True, env=environment, timeout=120, **options)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Returns what one process and two came to, a list of one result a case for each."""
    folder = tmp_path_factory.mktemp("steps")
    script = folder / "steps.py"
    script.write_text(STEPS.replace("ROOT", repr(str(ROOT))).replace("CASES", repr(CASES)),
                      encoding="utf-8")
    alone = subprocess.run([sys.executable, script, folder / "1.json"], timeout=120)
    assert alone.returncode == 0
    done = torchrun(2, script, folder / "2.json")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((folder / f"{count}.json").read_text()) for count in (1, 2)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(map(str, c)) for c in CASES])
def test_two_processes_are_one(case, results):
    one, two = (some[case] for some in results)
    tolerance = CASES[case][-1]
    assert (one["size"], two["size"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=10 * tolerance)
    for name, rows in one["weights"].items():
        largest = max(abs(number) for row in rows for number in row)
        error = max(abs(a - b) for pair in zip(rows, two["weights"][name]) for a, b in zip(*pair))
        assert error <= tolerance * max(largest, 1)
    assert two["found"] == pytest.approx(one["found"], rel=1e-6)


def test_a_run_is_trained_killed_and_resumed_by_two_processes(tmp_path, monkeypatch):
    """Of the command: one process writes, the losses are one process's, and so is the end."""
    from microgpt.training import runs
    data = tmp_path / "text.txt"
    data.write_text("".join(f"{'ab' * (i % 5)}{i}\n" for i in range(60)), encoding="utf-8")
    flags = ["--data", data, "--backend", "torch", "--dtype", "float64", "--device", "cpu",
             "--batch-size", 5, "--num-steps", 12, "--n-embd", 8, "--num-samples", 2,
             "--eval-interval", 4, "--threads", 1, "--val-fraction", 0.2]
    monkeypatch.setenv("MICROGPT_RUNS", str(tmp_path / "runs"))
    command = [str(ROOT / "microgpt.py"), *map(str, flags)]
    alone = subprocess.run([sys.executable, *command, "--name", "alone"], capture_output=True,
                           text=True, timeout=120)
    together = torchrun(2, *command, "--name", "together", "--max-time", "0.001")
    assert (alone.returncode, together.returncode) == (0, 0), together.stderr[-2000:]
    assert together.stdout.count("num docs") == 1 and "stopped after step" in together.stdout
    resumed = torchrun(2, ROOT / "microgpt.py", "--resume", "together", "--max-time", "100")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "no longer exact" not in resumed.stdout
    ended = [runs.open_run(tmp_path / "runs" / name) for name in ("alone", "together")]
    assert [line["step"] for line in ended[1].log()[1:]] == [4, 8, 12]
    for one, two in zip(ended[0].log(), ended[1].log()[1:]):
        for name in ("val_loss", "train_loss", "bits_per_character", "tokens"):
            assert two[name] == pytest.approx(one[name], rel=1e-12)
    samples = [[line for line in done.stdout.splitlines() if line.startswith("sample")]
               for done in (alone, resumed)]
    assert samples[0] == samples[1] and len(samples[0]) == 2


def test_other_backends_do_not_share(tmp_path):
    done = torchrun(2, ROOT / "microgpt.py", "--backend", "matrix", "--num-steps", 1)
    assert done.returncode != 0 and "only --backend torch shares the work" in done.stderr


def test_other_backends_do_not_share_a_resumed_run_either(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_RUNS", str(tmp_path))
    subprocess.run([sys.executable, str(ROOT / "microgpt.py"), "--backend", "matrix", "--name", "m",
                    "--num-steps", "2", "--num-samples", "0"], check=True, capture_output=True)
    done = torchrun(2, ROOT / "microgpt.py", "--resume", "m", "--num-steps", 4)
    assert done.returncode != 0 and "this is --backend matrix" in done.stderr


def test_a_device_for_each_process(monkeypatch):
    from microgpt.backends import torch_group
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch_group.torch.cuda, "is_available", lambda: False)
    assert [torch_group.own_device(name) for name in ("auto", "cpu", "cuda")] == [
        "cpu", "cpu", "cuda"]
    monkeypatch.setattr(torch_group.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_group.torch.cuda, "device_count", lambda: 2)
    assert [torch_group.own_device(name) for name in ("auto", "cpu", "cuda")] == [
        "cuda:1", "cpu", "cuda:1"]
    for name in ("cuda:0", "mps"):
        with pytest.raises(ValueError, match=f"device is '{name}': .*; leave --device out"):
            torch_group.own_device(name)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="it has 2 GPUs: give --nproc-per-node 2"):
        torch_group.own_device("auto")

"""The command as people type it, in the repository: training on each backend, and the proofs."""
import json
import subprocess
import sys

import pytest

import microgpt
from conftest import ROOT
from microgpt import backends

EVERY_BACKEND = ["scalar", "matrix", pytest.param("torch", marks=pytest.mark.torch)]


def run(*flags, code=None, **options):
    """Returns what `python3 microgpt.py` with these flags did; code runs before it."""
    call = [sys.executable, "microgpt.py", *flags]
    if code:
        call = [sys.executable, "-c", f"{code}\nimport microgpt\n"
                f"sys.exit(microgpt.main({list(flags)!r}))"]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
                          timeout=120, **options)


NO_TORCH = "import sys; sys.modules['torch'] = None"  # importing it fails, as if it were not there


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


# ---- training

@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("model", ["gpt", "bigram"])
def test_every_backend_trains_and_samples(backend, model):
    done = run("--backend", backend, "--model", model, "--batch-size", "3", "--num-steps", "4",
               "--num-samples", "2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[1:3] == ["vocab size: 27", f"num params: {4192 if model == 'gpt' else 729}"]
    assert [line.split()[0] for line in lines[3:10]] == [
        "documents:", "text:", "model:", "optimizer:", "plan:", "run:", "to"]
    steps = [line[:16] for line in lines if line.startswith("step ")]
    assert steps == [f"step    {i} /    4" for i in range(1, 5)]
    assert [line[:8] for line in lines[-8:-3]] == ["learned ", "held out", "sample  ", "sample  ",
                                                   "kept in "]


@pytest.mark.parametrize("backend", ["scalar", "matrix"])
def test_the_default_run_is_the_golden_run(golden_short, backend, capsys):
    steps = len(golden_short["losses"])
    assert not microgpt.main(["--backend", backend, "--num-steps", str(steps)])
    out = capsys.readouterr().out.splitlines()
    assert [float(line.split("loss ")[1]) for line in out if line.startswith("step")] == (
        golden_short["losses"])
    assert [line[11:] for line in out if line.startswith("sample")] == golden_short["samples"]


def test_long_documents_are_cut_as_the_file_cuts_them(tmp_path, capsys):
    """The loop of the file and the trainer's give the same run, digit for digit."""
    data = tmp_path / "lines.txt"
    data.write_text("".join(f"{'abcdefg' * n} {n}\n" for n in range(1, 9)), encoding="utf-8")
    flags = ["--data", str(data), "--num-steps", "12", "--block-size", "7", "--n-embd", "8"]
    outs = []
    for lone in (microgpt.make_parser(), microgpt.run), ():
        microgpt.main(flags, *lone)
        outs.append([line for line in capsys.readouterr().out.splitlines()
                     if line.startswith(("step", "sample"))])
    assert outs[0] == outs[1] and len(outs[0]) == 32


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_every_optimizer_learns(optimizer, capsys):
    microgpt.main(["--backend", "matrix", "--optimizer", optimizer, "--batch-size", "8",
                   "--num-steps", "30", "--grad-clip", "1", "--num-samples", "0",
                   "--eval-tokens", "100"])
    losses = [float(line.split("loss ")[1]) for line in capsys.readouterr().out.splitlines()
              if line.startswith("step")]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.2


def test_dropout_follows_from_the_seed(capsys):
    def losses(*flags):
        microgpt.main(["--backend", "matrix", "--num-steps", "3", "--num-samples", "0", *flags])
        return [line for line in capsys.readouterr().out.splitlines() if line[:5] == "step "]
    assert losses("--dropout", "0.3") == losses("--dropout", "0.3") != losses()


def test_batch_sizes(monkeypatch, capsys):
    """One document a step in plain Python, 64 in torch; --device alone means torch."""
    pytest.importorskip("torch")
    seen = []
    for name in ("scalar", "torch"):
        monkeypatch.setattr(backends.load(name), "step",
                            lambda self, batch, *_: seen.append((self.name, len(batch))) or 1.0)
    for flags in ([], ["--device", "cpu"], ["--backend", "torch", "--batch-size", "5"]):
        microgpt.main(["--num-steps", "1", "--num-samples", "0", *flags])
    assert seen == [("scalar", 1), ("torch", 64), ("torch", 5)]


# ---- the proofs

@pytest.mark.torch
def test_backends_pass():
    done = run("backends")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["scalar", "PASS"], ["matrix", "PASS"], ["torch", "PASS"]]


def test_backends_without_torch():
    done = run("backends", code=NO_TORCH)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[2] == "torch    not installed: pip install torch"


GRADCHECKS = [
    [], ["--model", "bigram"], ["--dropout", "0.2"], ["--n-layer", "2", "--seed", "3"],
    ["--n-embd", "6", "--n-head", "3", "--block-size", "3", "--vocab-size", "4"],
    ["--init-std", "0.5", "--block-size", "5", "--vocab-size", "9"],
]


@pytest.mark.parametrize("flags", GRADCHECKS, ids=" ".join)
def test_gradcheck_passes(flags, capsys):
    assert microgpt.main(["gradcheck", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS: every gradient of ")


@pytest.mark.parametrize("op", ["linear", "attention", "rmsnorm"])
def test_gradcheck_fails_when_a_gradient_is_wrong(op, monkeypatch, capsys):
    from microgpt.backends.matrix import MatrixOps
    right = vars(MatrixOps)[op]

    def wrong(*arguments):
        node = getattr(right, "__func__", right)(*arguments)
        push = node.push
        node.push = lambda grad: push([[1.001 * g for g in row] for row in grad])
        return node
    monkeypatch.setattr(MatrixOps, op, staticmethod(wrong) if isinstance(right, staticmethod)
                        else wrong)
    assert microgpt.main(["gradcheck", "--block-size", "4"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("FAIL: the gradients marked *") and "e-03*" in out


# ---- mistakes, and what a command costs

def test_without_torch_one_line_says_what_works_now():
    done = run("--backend", "torch", code=NO_TORCH)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("microgpt: the torch backend needs PyTorch, which is not installed: pip "
                           "install torch; --backend matrix works now\n")


BAD = [
    (["--backend", "numpy"], "invalid choice: 'numpy'"),
    (["--backend", "matrix", "--device", "cpu"], "--device is torch's; --backend matrix has none"),
    (["--backend", "scalar", "--dropout", "0.1"], "the matrix backend does"),
    (["--dropout", "1"], "--dropout: got '1', takes a number, 0 or more, below 1"),
    (["--batch-size", "0"], "--batch-size: got '0', takes a whole number, 1 or more"),
    (["--num-steps", "-1"], "--num-steps: got '-1', takes a whole number, 0 or more"),
    (["--n-layer", "0"], "--n-layer: got '0', takes a whole number, 1 or more"),
    (["--learning-rate", "nan"], "--learning-rate: got 'nan', takes a number, 0 or more"),
    (["--n-embd", "10"], "n_embd, 10, is not a multiple of n_head, 4"),
    (["--optimizer", "adam", "--weight-decay", "0.1"], "adam has no weight_decay"),
    (["--learnig-rate", "1"], "no --learnig-rate; did you mean --learning-rate\\?"),
    (["--data", "missing.txt"], "missing.txt.*No such file"),
    (["trian"], "no command 'trian'; did you mean train\\? there are train, sample, chat, compare"),
    (["backends", "--n-embd", "4"], "there is no --n-embd; `python3 microgpt.py backends --help`"),
    (["gradcheck", "--vocab-size", "0"], "--vocab-size: got '0'"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_a_mistake_gets_one_line(flags, message, capsys):
    import re
    try:
        code = microgpt.main(flags)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("microgpt: ") and re.search(message, err)


@pytest.mark.torch
def test_a_device_that_is_not_there():
    import torch
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run("--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "there is " in done.stderr and "cpu" in done.stderr


@pytest.mark.parametrize("flags", [["--help"], ["gradcheck", "--help"], ["--num-steps", "0"]])
def test_torch_is_imported_only_when_used(flags):
    code = ("import sys, json\n"
            "def report():\n"
            "    print(json.dumps('torch' in sys.modules))\n"
            "import atexit; atexit.register(report)")
    done = run(*flags, code=code)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) is False


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        microgpt.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--backend", "--device", "--batch-size", "--optimizer", "--n-embd", "--dropout"):
        assert flag in text
    assert "default: 16" in text and "64 with torch" in text

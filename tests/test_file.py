"""microgpt.py on its own: the golden runs, the model's properties, and the command as people type
it, in a folder that holds nothing else."""
import ast
import gc
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from conftest import ROOT
from microgpt import CharTokenizer, Config, Value, dot, gpt, mean_loss, sample, train

FILE = ROOT / "microgpt.py"
NAMES = ROOT / "corpus" / "data" / "names.txt"


def start(docs, **sizes):
    """Returns tokenizer, config, weights and generator as the command sets them up, seed 42."""
    rng = random.Random(42)
    rng.shuffle(docs)
    tokenizer = CharTokenizer(docs)
    sizes = {"n_embd": 16, "n_head": 4, "n_layer": 1, "block_size": 16, **sizes}
    config = Config(tokenizer.vocab_size, **sizes)
    return tokenizer, config, microgpt.init_weights(config, rng), rng


def golden_run(path, num_steps, stop):
    """Returns the first `stop` losses of a run over num_steps, and its samples, rounded so."""
    docs, _ = microgpt.load_docs(path)
    tokenizer, config, weights, rng = start(docs)
    losses = train(docs, tokenizer, weights, config, num_steps=num_steps)
    losses = [round(loss, 4) for loss, _ in zip(losses, range(stop))]
    return losses, [sample(tokenizer, weights, config, 0.5, rng) for _ in range(20)]


@pytest.fixture
def alone(tmp_path):
    """A folder that holds microgpt.py and nothing else."""
    shutil.copy(FILE, tmp_path)
    return tmp_path


def command(folder, *flags, python=(sys.executable, "-I"), **options):
    return subprocess.run([*python, "microgpt.py", *flags], cwd=folder, capture_output=True,
                          text=True, encoding="utf-8", timeout=120, **options)


# ---- golden runs

def test_first_200_losses_of_the_reference_run(reference_golden, reference_names):
    losses, _ = golden_run(reference_names, 1000, 200)
    assert losses == reference_golden["losses"][:200]


def test_first_200_losses_of_the_projects_own_run(golden):
    losses, _ = golden_run(NAMES, 1000, 200)
    assert losses == golden["losses"][:200]


def test_a_short_run_and_its_samples(golden_short):
    steps = len(golden_short["losses"])
    assert golden_run(NAMES, steps, steps) == (golden_short["losses"], golden_short["samples"])


@pytest.mark.slow
def test_the_whole_reference_run(reference_golden, reference_names, alone):
    out = command(alone, "--data", str(reference_names)).stdout.splitlines()
    assert [float(line.split("loss ")[1]) for line in out if line.startswith("step")] == (
        reference_golden["losses"])
    assert [line[11:] for line in out if line.startswith("sample")] == reference_golden["samples"]


@pytest.mark.slow
def test_the_projects_own_whole_run(golden):
    assert golden_run(NAMES, 1000, 1000) == (golden["losses"], golden["samples"])


# ---- the file as a text

def test_the_file_stays_readable():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 240
    assert max(map(len, lines)) <= 100


def test_the_file_imports_the_standard_library_alone():
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert top <= {"argparse", "collections", "gc", "math", "operator", "os", "random", "re", "sys"}


def test_importing_does_nothing():
    code = ("import random, gc; before = random.getstate(), gc.isenabled(); import microgpt; "
            "assert before == (random.getstate(), gc.isenabled())")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# ---- the model

def test_the_future_never_changes_past_logits():
    _, config, weights, _ = start(["abcdefgh"], n_embd=8, n_head=2, n_layer=2)

    def logits(tokens):
        cache = [([], []) for _ in range(config.n_layer)]
        return [[v.data for v in gpt(token, pos, cache, weights, config)]
                for pos, token in enumerate(tokens)]
    first, second = logits([0, 1, 2, 3, 4]), logits([0, 1, 2, 7, 6])
    assert first[:3] == second[:3] and first[3:] != second[3:]


def test_the_loss_of_a_batch_is_the_mean_over_all_its_targets():
    _, config, weights, _ = start(["abcdefgh"], n_embd=8, n_head=2)
    short, long = [8, 0, 8], [8, 1, 2, 3, 4, 8]
    one, other = (mean_loss([tokens], weights, config).data for tokens in (short, long))
    both = mean_loss([short, long], weights, config).data
    assert math.isclose(both, (2 * one + 5 * other) / 7, rel_tol=1e-12)


def test_no_cycles_and_a_flat_memory_over_200_steps():
    docs = ["anna", "bela", "carla"] * 70
    tokenizer, config, weights, _ = start(docs)
    gc.collect()
    gc.disable()
    try:
        losses = train(docs, tokenizer, weights, config, num_steps=201)
        for _ in range(200):
            next(losses)
        alive = sum(type(thing) is Value for thing in gc.get_objects())
        assert gc.collect() < 100  # the interpreter's own; a graph would leave some ten thousand
    finally:
        gc.enable()
    if sys.implementation.name == "cpython":
        parameters = sum(len(row) for rows in weights.values() for row in rows)
        assert alive < parameters + 100


def test_four_layers_of_64_and_a_block_of_64_go_backward():
    docs = ["abcdefgh" * 10]
    tokenizer, config, weights, _ = start(docs, n_embd=64, n_layer=4, block_size=64)
    loss = mean_loss([tokenizer.encode(docs[0])[:65]], weights, config)
    loss.backward()
    assert all(any(p.grad for row in rows for p in row) for rows in weights.values())


def test_every_part_of_a_long_document_is_learned_from(monkeypatch):
    seen = set()
    monkeypatch.setattr(microgpt, "mean_loss",
                        lambda batch, *_: seen.update(batch[0]) or Value(1.0))
    doc = "".join(map(chr, range(200, 300)))
    tokenizer, config, weights, _ = start([doc])
    list(train([doc], tokenizer, weights, config, num_steps=200))
    assert seen == set(range(101))


def test_dot_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="lists of 1 and 2; they must be equally long"):
        dot([Value(1.0)], [Value(1.0), Value(2.0)])


def test_a_run_that_diverges_says_so():
    docs = ["anna", "bela"]
    tokenizer, config, weights, _ = start(docs)
    with pytest.raises(ValueError, match="at step .*lower --learning-rate"):
        list(train(docs, tokenizer, weights, config, num_steps=20, learning_rate=1e4))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_choose_at_temperature_zero_takes_the_likeliest(logits, seed):
    rng = random.Random(seed)
    assert logits[microgpt.choose(logits, 0.0, rng)] == max(logits)
    assert logits[microgpt.choose(logits, 1e-320, rng)] == max(logits)


def test_choose_draws_as_softmax_says():
    rng, logits = random.Random(0), [0.0, math.log(2.0), math.log(5.0)]
    counts = [0, 0, 0]
    for _ in range(8000):
        counts[microgpt.choose(logits, 1.0, rng)] += 1
    assert [round(count / 1000) for count in counts] == [1, 2, 5]


# ---- the command

def test_alone_it_learns_the_words_of_pythons_manual(alone):
    run = command(alone, "--num-steps", "50")
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and run.stderr == ""
    assert lines[0].startswith("num docs: ") and "manual" in lines[0]
    assert lines[1:4] == ["vocab size: 27", "num params: 4192", lines[3]]
    assert lines[3].startswith("step    1 /   50 | loss 3.")
    assert sum(line.startswith("step") for line in lines) == 50
    assert sum(line.startswith("sample") for line in lines) == 20
    assert "full repository" in lines[-1]


def test_it_takes_input_txt_from_the_working_folder(alone):
    (alone / "input.txt").write_text("\ufeffuno\r\ndue\r\n\r\ntre\n", encoding="utf-8")
    assert command(alone, "--num-steps", "2").stdout.startswith("num docs: 3 (input.txt)\n"
                                                                "vocab size: 8\n")


def test_in_the_repository_it_learns_the_bundled_names():
    run = command(ROOT, "--tokenizer", "char", "--num-steps", "2", python=(sys.executable,))
    count = len(NAMES.read_text(encoding="utf-8").split())
    assert run.stdout.startswith(f"num docs: {count} (names)\nvocab size: 27\n")


BAD = [
    (["--n-embd", "10", "--n-head", "4"], "n_embd, 10, is not a multiple of n_head, 4"),
    (["--data", "missing.txt"], "missing.txt.*No such file.*a document a line"),
    (["--data", "empty.txt"], "empty.txt: it holds no text"),
    (["--data", "binary.bin"], "binary.bin.*byte 0xff in position 3.*UTF-8"),
    (["--data", "."], "--data .: .*; give UTF-8 text"),
    (["--num-steps", "-1"], "num_steps is -1; sizes begin at 1 and all other numbers at 0"),
    (["--num-steps", "many"], "--num-steps: invalid int value: 'many'"),
    (["--learning-rate", "nan"], "learning_rate is nan"),
    (["--n-layer", "0"], "n_layer is 0"),
    (["--n-embed", "16"], "--n-embed 16: a typo, or it needs the full repository"),
    (["--tokenizer", "bpe"], "'bpe'.*char.*full repository"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_gets_one_clear_line(alone, flags, message):
    (alone / "empty.txt").write_text("\n \n", encoding="utf-8")
    (alone / "binary.bin").write_bytes(b"abc\xff\x00")
    run = command(alone, *flags)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("microgpt: ")
    assert re.search(message, run.stderr)


def test_piped_into_head_it_ends_without_a_traceback(alone):
    child = subprocess.Popen([sys.executable, "-I", "microgpt.py", "--num-steps", "40"], cwd=alone,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline().startswith(b"num docs")
    child.stdout.close()
    assert (child.stderr.read(), child.wait(60)) == (b"", 0)
    child.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_ends_with_one_line(alone):
    child = subprocess.Popen([sys.executable, "-I", "microgpt.py"], cwd=alone, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(5):
        child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "\ninterrupted; nothing was kept\n")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_console_without_the_character_shows_its_number(alone, encoding):
    (alone / "input.txt").write_text("नमस्ते\nदुनिया\n", encoding="utf-8")
    run = subprocess.run([sys.executable, "microgpt.py", "--num-steps", "3", "--temperature", "0"],
                         cwd=alone, capture_output=True, timeout=60,
                         env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (run.returncode, run.stderr) == (0, b"")
    assert (b"\\u09" in run.stdout) == (encoding != "utf-8")


def test_temperature_zero_always_writes_the_same(alone):
    run = command(alone, "--num-steps", "5", "--temperature", "0", "--num-samples", "3")
    samples = [line[11:] for line in run.stdout.splitlines() if line.startswith("sample")]
    assert len(samples) == 3 and len(set(samples)) == 1


def test_on_a_terminal_one_line_is_rewritten(alone):
    pty = pytest.importorskip("pty", reason="a pseudo-terminal needs a Unix")
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-I", "microgpt.py", "--num-steps", "3"], cwd=alone,
                             stdout=theirs)
    os.close(theirs)
    out, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says the other end is closed with an error
            break
        if not piece:
            break
        out += piece
    os.close(ours)
    assert child.wait(60) == 0
    assert out.count(b"\rstep") == 2 and b"\r\nsample  1: " in out


def peak_memory(num_steps):
    """Returns the peak memory, in MB, of a process that trains the default model."""
    code = (f"import microgpt; microgpt.main(['--num-steps', '{num_steps}', '--num-samples', '1']);"
            "print(open('/proc/self/status').read())")  # note: getrusage counts our own peak in
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return int(re.search(r"VmHWM:\s+(\d+) kB", run.stdout)[1]) / 1024


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"),
                                reason="the peak memory of a process is read from Linux's /proc")


@needs_proc
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="a figure of CPython's")
def test_peak_memory_is_below_30_mb():
    assert peak_memory(60) < 30


@pytest.mark.slow
@needs_proc
def test_memory_is_flat_over_3000_steps():
    assert peak_memory(3000) < peak_memory(300) * 1.1 + 2

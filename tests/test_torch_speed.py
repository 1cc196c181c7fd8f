"""What makes the torch backend fast changes nothing: each fast path is held to the plain one."""
import doctest
import random
import shutil
import sys
from array import array

import pytest
from hypothesis import given

from microgpt.backends.base import count_targets
from microgpt.backends.proof import example, relative_errors
from microgpt.corpus.batches import StreamBatch, stream_batch
from microgpt.nn import GPTConfig, init_weights
from strategies import cases, some
from tolerances import BFLOAT16, FLOAT64

torch = pytest.importorskip("torch")
from microgpt.backends import pytorch, torch_flat, torch_kernels, torch_ops, torch_optim  # noqa

TorchBackend, TorchOps = pytorch.TorchBackend, torch_ops.TorchOps
CONFIG = GPTConfig(11, n_embd=12, n_head=3, n_layer=2, block_size=7)
DROPPING = GPTConfig(11, n_embd=12, n_head=3, n_layer=2, block_size=7, dropout=0.25)
STREAM = [random.Random(5).randrange(11) for _ in range(100)]
SAME = 1e-12  # float64: only the order of sums differs
pytestmark = pytest.mark.usefixtures("one_thread")


def build(config=CONFIG, weights=None, **settings):
    settings = {"device": "cpu", "dtype": "float64", **settings}
    return TorchBackend(config, weights or example(config)[0], **settings)


def worst(expected, got):
    return max(relative_errors(got, expected).values())


# ---- Batches from a resident stream --------------------------------------------------------------


@pytest.mark.parametrize("form", [list, lambda tokens: array("H", tokens),
                                  lambda tokens: array("I", tokens)], ids=["list", "H", "I"])
def test_a_stream_batch_is_its_lists(form):
    tokens = form(STREAM)
    batch = stream_batch(tokens, 3, 4, 7, 42)
    lists = [STREAM[start:start + 8] for start in batch.starts]
    assert list(batch) == lists == batch and len(batch) == 4 and batch[1:3] == lists[1:3]
    assert all(type(window) is list for window in batch)
    assert count_targets(batch) == count_targets(lists) == 28
    whole, cut = build(), build()
    for step in range(3):
        batch = stream_batch(tokens, step, 4, 7, 42)
        size = step or None  # in parts too
        assert whole.step(batch, 0.01, micro_batch=size) == cut.step(
            list(batch), 0.01, micro_batch=size)
    assert whole.weights() == cut.weights()


def test_a_stream_goes_to_the_device_once_and_only_if_it_fits(monkeypatch):
    brought = []
    monkeypatch.setattr(pytorch, "stream_tensor",
                        lambda tokens, bring=pytorch.stream_tensor: brought.append(1) or bring(
                            tokens))
    backend, other = build(), list(STREAM)
    for tokens in (STREAM, STREAM, other, STREAM):
        backend.loss(StreamBatch(tokens, [0, 5], 8))
    assert len(brought) == 3
    monkeypatch.setattr(pytorch, "RESIDENT_TOKENS", 99)
    small = build()
    assert small.loss(StreamBatch(STREAM, [0, 5], 8)) == backend.loss(
        [STREAM[:8], STREAM[5:13]])
    assert len(brought) == 3


def test_streams_that_a_model_cannot_take():
    backend = build()
    for _ in range(2):  # the second time it has been looked at already
        with pytest.raises(ValueError, match="tokens from 0 to 11: the vocabulary has 0 to 10"):
            backend.loss(StreamBatch([0, 11], [0], 2))
    with pytest.raises(ValueError, match="sequence 0 has 9 tokens: it takes 2 to block_size"):
        backend.loss(StreamBatch(STREAM, [0], 9))
    with pytest.raises(ValueError, match="the batch is empty"):
        backend.step(StreamBatch(STREAM, [], 8), 0.1)


# ---- Kernels by hand, and attention's forms ------------------------------------------------------


def losses_and_gradients(backend, batch, **how):
    weights = backend._training_weights()
    loss = backend._plain_loss(weights, backend._windows(batch), **how)
    grads = torch.autograd.grad(loss, list(weights.values()))
    return loss.item(), {name: grad.tolist() for name, grad in zip(weights, grads)}


@given(case=cases())
@some
def test_kernels_by_hand_are_the_plain_ops(case):
    backend = build(case.config, case.weights)
    loss, expected = losses_and_gradients(backend, case.batch, by_hand=False)
    other_loss, got = losses_and_gradients(backend, case.batch, by_hand=True)
    assert other_loss == pytest.approx(loss, rel=SAME) and worst(expected, got) < FLOAT64["oracle"]


@pytest.mark.parametrize("length", [3, 8])
def test_fused_attention_is_the_explicit_one(length, monkeypatch):
    backend, batch = build(), [STREAM[i:i + length] for i in (0, 9, 30)]
    loss, expected = backend.gradients(batch)
    fused = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda *a, **k: fused.append(1) or attention(*a, **k))
    monkeypatch.setitem(torch_ops.FUSED_FROM, torch.float64, 2)
    other_loss, got = backend.gradients(batch)
    assert len(fused) == CONFIG.n_layer
    assert other_loss == pytest.approx(loss, rel=SAME) and worst(expected, got) < FLOAT64["oracle"]


def test_the_form_of_attention_follows_from_dtype_length_and_masks():
    def form(dtype, T, masks=None):
        return torch_ops.attention_form(torch.zeros(1, T, 4, dtype=dtype), masks)
    drawn = torch_ops.random_masks(0.5, "seed", torch.device("cpu"))
    assert form(torch.float32, 64) == form(torch.bfloat16, 1024) == "fused"
    assert form(torch.bfloat16, 1023) == form(torch.float64, 2048) == "explicit"
    assert form(torch.float32, 64, drawn) == form(torch.bfloat16, 1024, drawn) == "explicit"


def test_masks_of_the_device_follow_the_seed_and_leave_the_generator_alone(monkeypatch):
    """As on CUDA: fused attention drops by torch's generator, which starts from the seed."""
    monkeypatch.setattr(torch_ops, "attention_form", lambda q, masks: "fused")
    backend, batch = build(DROPPING), [STREAM[:8], STREAM[8:16]]
    windows, state = backend._windows(batch), torch.random.get_rng_state()

    def loss(seed):
        with torch_ops.seeded(seed, backend.device):
            masks = torch_ops.DeviceMasks(0.25)
            return backend._plain_loss(backend._training_weights(), windows, masks).item()
    drawn = [loss(f"{seed} dropout") for seed in range(200)]
    assert drawn[0] == loss("0 dropout") and len({*drawn}) == 200
    assert torch.equal(state, torch.random.get_rng_state())
    monkeypatch.undo()
    explicit = build(DROPPING, optimizer="sgd")
    others = [explicit.step(batch, 0.0, f"{seed}") for seed in range(200)]
    means = [sum(each) / 200 for each in (drawn, others)]
    spread = sum((x - mean) ** 2 for each, mean in zip((drawn, others), means) for x in each)
    assert abs(means[0] - means[1]) < 4 * (spread / 200 / 200) ** 0.5


def test_flat_tensors_share_one_block():
    shapes = {"wte": (5, 2), "layer0.attn_wq": (2, 2), "layer0.mlp_fc1": (8, 2),
              "layer0.attn_wk": (2, 2), "lm_head": (5, 2)}
    flat = torch_flat.Flat(shapes)
    assert list(flat.named) == list(shapes) and flat.all.numel() == 44
    flat.all += torch.arange(44)
    assert sorted(x for w in flat.named.values() for x in w.flatten().tolist()) == [*range(44)]
    assert [tuple(stack.shape) for stack in flat.stacks] == [(2, 2, 2), (1, 8, 2)]
    assert torch.equal(flat.stacks[0][1], flat.named["layer0.attn_wk"])
    assert torch.equal(flat.rest[10:], flat.named["lm_head"].flatten())


# ---- bfloat16 ------------------------------------------------------------------------------------

WIDE = GPTConfig(11, n_embd=64, n_head=4, n_layer=2, block_size=32)


def distance(expected, got):
    """Returns the largest length of a tensor's error, relative to the length of the tensor."""
    pairs = [(torch.tensor(rows), torch.tensor(got[name])) for name, rows in expected.items()]
    return max(((a - b).norm() / a.norm()).item() for a, b in pairs)


def test_bfloat16_is_close_to_float32_and_is_not_it():
    weights, batch = init_weights(WIDE, random.Random(3)), example(WIDE)[1]
    exact, low = (build(WIDE, weights, dtype=dtype) for dtype in ("float32", "bfloat16"))
    (loss, expected), (low_loss, got) = (each.gradients(batch) for each in (exact, low))
    assert low_loss == pytest.approx(loss, rel=BFLOAT16["loss"]) and low_loss != loss
    assert 1e-4 < distance(expected, got) < BFLOAT16["gradients"]


@pytest.mark.parametrize("by_hand", [True, False])
def test_bfloat16_by_hand_or_not(by_hand):
    weights, batch = init_weights(WIDE, random.Random(3)), example(WIDE)[1]
    low = build(WIDE, weights, dtype="bfloat16")
    _, expected = build(WIDE, weights, dtype="float32").gradients(batch)
    _, got = losses_and_gradients(low, batch, by_hand=by_hand, products=torch.bfloat16)
    assert distance(expected, got) < BFLOAT16["gradients"]


def test_bfloat16_holds_and_evaluates_in_float32():
    weights, batch = init_weights(WIDE, random.Random(3)), example(WIDE)[1]
    exact, low = (build(WIDE, weights, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (low.dtype, low.products) == (torch.float32, torch.bfloat16)
    assert low.weights() == exact.weights() and low.loss(batch) == exact.loss(batch)
    assert low.logits(batch) == exact.logits(batch)
    assert low.decoder()(1) == exact.decoder()(1)
    assert "bfloat16 on cpu" in low.describe()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_bfloat16_goes_on_bit_for_bit_from_a_snapshot(optimizer):
    weights, batch = init_weights(WIDE, random.Random(3)), example(WIDE)[1]
    first = build(WIDE, weights, dtype="bfloat16", optimizer=optimizer)
    for _ in range(3):
        first.step(batch, 0.01)
    weights, state = first.snapshot()
    second = build(WIDE, weights, dtype="bfloat16", optimizer=optimizer)
    second.load_optimizer_state(state)
    assert first.step(batch, 0.01) == second.step(batch, 0.01)
    assert first.weights() == second.weights()
    assert first.optimizer_state() == second.optimizer_state()


def test_muon_in_bfloat16_points_the_same_way():
    torch.manual_seed(1)
    stack = torch.randn(3, 32, 96)
    exact, low = torch_optim.orthogonalize(stack), torch_optim.orthogonalize(stack, torch.bfloat16)
    assert low.dtype == torch.float32 and not torch.equal(exact, low)
    assert (exact - low).norm() / exact.norm() < BFLOAT16["oracle"]


def test_auto_takes_bfloat16_where_it_gains(monkeypatch):
    small, wide = (GPTConfig(5, n_embd=n) for n in (16, 64))
    cpu = torch.device("cpu")
    for has in (True, False):
        monkeypatch.setattr(pytorch, "has_bfloat16", lambda device, has=has: has)
        assert pytorch.product_dtype("auto", cpu, small) == torch.float32
        assert (pytorch.product_dtype("auto", cpu, wide) == torch.bfloat16) == has
        assert pytorch.product_dtype("bfloat16", cpu, small) == torch.bfloat16
        assert pytorch.product_dtype("float32", cpu, wide) == torch.float32


# ---- Memory, threads, compilers ------------------------------------------------------------------


def failing_above(backend, size):
    """Lets the backend run out of memory on more than `size` sequences; returns what it tried."""
    gradients, tried = backend._gradients, []

    def limited(weights, batch, masks=None):
        tried.append(len(batch))
        result = gradients(weights, batch, masks)
        if len(batch) > size:
            raise torch.cuda.OutOfMemoryError("injected")
        return result
    backend._gradients = limited
    return tried


def test_out_of_memory_halves_the_micro_batch_and_says_so_once():
    lines, batch = [], [STREAM[i:i + 8] for i in range(0, 56, 8)]
    plain, backend = build(optimizer="sgd"), build(optimizer="sgd", report=lines.append)
    tried = failing_above(backend, 2)
    for _ in range(2):
        assert backend.step(batch, 0.1) == pytest.approx(plain.step(batch, 0.1), rel=SAME)
    assert tried == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]
    assert backend.micro_batch == 2
    assert worst(plain.weights(), backend.weights()) < SAME
    assert lines == [f"out of memory: {n} sequences at a time from here on; the batch stays as it "
                     "is" for n in (4, 2)]


def test_out_of_memory_in_a_later_part_starts_the_step_anew():
    plain, backend = (build(optimizer="sgd", report=print) for _ in range(2))
    batch, gradients, count = [STREAM[i:i + 8] for i in range(0, 32, 8)], backend._gradients, []

    def second_fails(*arguments):
        count.append(1)
        if len(count) == 2:
            raise torch.cuda.OutOfMemoryError("injected")
        return gradients(*arguments)
    backend._gradients = second_fails
    backend.step(batch, 0.1, micro_batch=2)
    plain.step(batch, 0.1)
    assert worst(plain.weights(), backend.weights()) < SAME and backend.micro_batch == 1


def test_a_single_sequence_that_does_not_fit_is_an_error():
    backend = build(report=lambda line: None)
    failing_above(backend, 0)
    before = backend.weights()
    with pytest.raises(ValueError, match="one sequence at a time: take a smaller --n-embd"):
        backend.step([STREAM[:8], STREAM[8:16]], 0.1)
    assert backend.weights() == before


def test_a_test_that_does_not_fit_is_taken_in_parts(monkeypatch):
    """Of any device: only CUDA has an exception of its own for it."""
    lines, batch = [], [STREAM[i:i + 8] for i in range(0, 56, 8)]
    backend = build(report=lines.append)
    plain, tried = backend.loss(batch), []

    def limited(weights, windows, *rest, compute=backend._plain_loss, **words):
        tried.append(len(windows))
        if len(windows) > 3:
            raise RuntimeError("MPS backend out of memory (injected)")
        return compute(weights, windows, *rest, **words)
    monkeypatch.setattr(backend, "_plain_loss", limited)
    for _ in range(2):
        assert backend.loss(batch) == pytest.approx(plain, rel=SAME)
    assert tried == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]
    assert (backend.test_batch, backend.micro_batch, len(lines)) == (2, None, 2)


@pytest.mark.parametrize("place", ["like", "load"])
def test_memory_that_does_not_do_for_the_optimizer_or_the_weights_is_a_line(place, monkeypatch):
    """Neither gets smaller with the batch."""
    def full(*_):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED (injected)")
    if place == "like":
        backend = build(optimizer="adamw")
        monkeypatch.setattr(type(backend._flat), "like", full)
        with pytest.raises(ValueError, match="not for the batch: take a smaller --n-embd"):
            backend.step([STREAM[:8]], 0.1)
        return
    monkeypatch.setattr(pytorch.TorchBackend, "load", full)
    with pytest.raises(ValueError, match="not for the batch: take a smaller --n-embd"):
        build()


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    backend = build(report=print)

    def broken(*_):
        raise RuntimeError("shape")
    backend._gradients = broken
    with pytest.raises(RuntimeError, match="shape"):
        backend.step([STREAM[:8], STREAM[8:16]], 0.1)


def test_choosing_threads_changes_nothing():
    backend, batch = build(), stream_batch(STREAM, 0, 4, 7, 42)
    backend.step(batch, 0.01)
    before = backend.weights(), backend.optimizer_state(), torch.get_num_threads()
    assert pytorch.choose_threads(backend, batch, seconds=0.01, cores=2) in (1, 2)
    assert (backend.weights(), backend.optimizer_state(), torch.get_num_threads()) == before


@pytest.mark.parametrize("cores, times, chosen, tried", [
    (1, {}, 1, []), (2, {1: 1.0, 2: 0.95}, 1, [1, 2]), (2, {1: 1.0, 2: 0.6}, 2, [1, 2]),
    (8, {1: 1.0, 2: 0.6, 4: 0.7}, 2, [1, 2, 4]), (6, {1: 1, 2: 0.6, 4: 0.4, 6: 0.3}, 6,
                                                   [1, 2, 4, 6])])
def test_more_threads_must_gain(cores, times, chosen, tried, monkeypatch):
    seen = []

    def seconds(*_):
        seen.append(torch.get_num_threads())
        return times[seen[-1]]
    monkeypatch.setattr(pytorch, "gradient_seconds", seconds)
    assert pytorch.choose_threads(build(), [STREAM[:8]], cores=cores) == chosen
    assert seen == tried and torch.get_num_threads() == 1


def test_threads_are_set_or_refused():
    try:
        assert build(threads=2).threads == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert build().threads == 1
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="threads is .*: it takes a whole number, 1 or more"):
            build(threads=wrong)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") or sys.platform != "linux", reason="no C++ compiler")
@pytest.mark.parametrize("config", [CONFIG, GPTConfig(11, block_size=7, model="bigram")])
def test_compiled_is_eager(config):
    weights, _ = example(config)
    plain, fast = (build(config, weights, compiled=flag) for flag in (False, True))
    batch = stream_batch(STREAM, 0, 4, 7, 42)
    (loss, expected), (other, got) = (each.gradients(batch) for each in (plain, fast))
    assert fast._compiled is not None, "it fell back"
    assert other == pytest.approx(loss, rel=SAME) and worst(expected, got) < FLOAT64["oracle"]


class Broken(torch.autograd.Function):
    """A compiled model whose way back is what fails."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no compiler")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_compiler_that_fails_is_named_once_and_left_out(where):
    lines, batch = [], stream_batch(STREAM, 0, 4, 7, 42)
    backend, plain = build(report=lines.append), build()

    def compiled(weights, *_):
        if where == "forward":
            raise RuntimeError("no compiler")
        return sum(Broken.apply(w) for w in weights.values())
    backend._compiled = compiled
    for _ in range(2):
        assert backend.step(batch, 0.01) == plain.step(batch, 0.01)
    assert lines == ["torch.compile does not work here (RuntimeError): this run goes on without "
                     "it, slower"]


@pytest.mark.parametrize("module", [torch_flat, torch_kernels, torch_ops])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed

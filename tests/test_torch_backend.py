"""The torch backend: against a second model written here, and against engine/optim.py's steps."""
import doctest
import math
import random
import subprocess
import sys

import pytest

from conftest import ROOT
from microgpt.backends import load
from microgpt.backends.proof import example, relative_errors
from microgpt.engine import optim
from microgpt.nn import GPTConfig
from microgpt.nn.dropout import DropoutMasks
from tolerances import FLOAT64

torch = pytest.importorskip("torch")
from microgpt.backends import pytorch, torch_kernels, torch_flat, torch_ops, torch_optim  # noqa

TorchBackend, TorchOps = pytorch.TorchBackend, pytorch.TorchOps

STEPS = 1e-12    # weights and state after a few steps on the same gradients: only rounding differs
FLOAT32 = 2e-5   # 24 bits of precision, summed over a batch

GPT = GPTConfig(11, n_embd=12, n_head=3, n_layer=2, block_size=7)
BIGRAM = GPTConfig(11, block_size=7, model="bigram")
pytestmark = pytest.mark.usefixtures("one_thread")
both_models = pytest.mark.parametrize("config", [GPT, BIGRAM], ids=["gpt", "bigram"])


def build(config, weights=None, **settings):
    """Returns the backend on the CPU in float64."""
    settings = {"device": "cpu", "dtype": "float64", **settings}
    return TorchBackend(config, weights or example(config)[0], **settings)


def worst(expected, got):
    """Returns the largest error of name -> rows, or of rows."""
    if not isinstance(expected, dict):
        expected, got = {"": expected}, {"": got}
    assert expected.keys() == got.keys()
    return max(relative_errors(got, expected).values())


# ---- A second model, a token and a head at a time ------------------------------------------------


def reference_loss(weights, config, batch, masks=None):
    """Returns the loss by the formulas of the design, for name -> tensor: no batch, no padding."""
    def norm(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def dropped(x, site, index, T, columns, *place):
        if masks is None:
            return x
        return x * torch.tensor(masks.rows(site, (index, *place), T, columns), dtype=x.dtype)

    def head(q, k, v, mask):
        rows = []
        for t in range(len(q)):  # token t sees those up to itself
            odds = torch.exp(k[:t + 1] @ q[t] / math.sqrt(q.shape[1]))
            rows.append((odds / odds.sum() * mask[t, :t + 1]) @ v[:t + 1])
        return torch.stack(rows)

    losses, C, D = [], config.n_embd, config.n_embd // config.n_head
    for index, tokens in enumerate(batch):
        T = len(tokens) - 1
        x = norm(weights["wte"][tokens[:-1]] + weights["wpe"][:T])
        x = dropped(x, "embedding", index, T, C)
        for i in range(config.n_layer):
            w, site = {key: weights[f"layer{i}.{key}"] for key in (
                "attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")}, f"layer{i}"
            q, k, v = (norm(x) @ w[f"attn_w{letter}"].T for letter in "qkv")
            ones, heads = torch.ones(T, T, dtype=x.dtype), []
            for h in range(config.n_head):
                part = slice(h * D, h * D + D)
                mask = dropped(ones, f"{site}.attention", index, T, T, h)
                heads.append(head(q[:, part], k[:, part], v[:, part], mask))
            x = x + dropped(torch.cat(heads, 1) @ w["attn_wo"].T, f"{site}.attn_wo", index, T, C)
            hidden = (norm(x) @ w["mlp_fc1"].T).clamp(min=0)
            x = x + dropped(hidden @ w["mlp_fc2"].T, f"{site}.mlp_fc2", index, T, C)
        logits = x @ weights["lm_head"].T
        losses += [logits[t].logsumexp(0) - logits[t, tokens[t + 1]] for t in range(T)]
    return sum(losses) / len(losses)


def reference_gradients(config, weights, batch, masks=None):
    leaves = {name: torch.tensor(rows, dtype=torch.float64, requires_grad=True)
              for name, rows in weights.items()}
    loss = reference_loss(leaves, config, batch, masks)
    loss.backward()
    return loss.item(), {name: leaf.grad.tolist() for name, leaf in leaves.items()}


@pytest.mark.parametrize("masks", [None, DropoutMasks(0.3, "5 masks")], ids=["plain", "dropout"])
@pytest.mark.parametrize("sizes", [
    dict(n_embd=12, n_head=3, n_layer=2, block_size=7), dict(n_embd=4, n_head=1, block_size=3),
    dict(n_embd=6, n_head=6, n_layer=3, block_size=4)], ids=str)
def test_every_gradient_is_the_second_models(sizes, masks):
    config = GPTConfig(11, **sizes)
    weights, batch = example(config, seed=3)
    assert len({*map(len, batch)}) > 1, "ragged"
    expected_loss, expected = reference_gradients(config, weights, batch, masks)
    loss, gradients = build(config, weights).gradients(batch, masks)
    assert loss == pytest.approx(expected_loss, rel=FLOAT64["oracle"])
    assert worst(expected, gradients) < FLOAT64["oracle"]


OPS = ["embed", "add", "linear", "linears", "rmsnorm", "relu", "attention", "dropout",
       "cross_entropy"]


@pytest.mark.parametrize("op", OPS)
def test_op_whose_backward_is_off_by_a_thousandth_is_caught(op, monkeypatch):
    weights, batch = example(GPT)
    masks = DropoutMasks(0.3, 1)
    _, expected = reference_gradients(GPT, weights, batch, masks)
    right = vars(TorchOps)[op]
    function = getattr(right, "__func__", right)

    def wrong(*arguments):
        out = function(*arguments)
        for tensor in out if isinstance(out, tuple) else [out]:
            tensor.register_hook(lambda grad: grad * 1.001)
        return out
    monkeypatch.setattr(TorchOps, op, staticmethod(wrong) if function is not right else wrong)
    assert worst(expected, build(GPT, weights).gradients(batch, masks)[1]) > 1e-4


def test_attention_is_the_fused_attention_of_torch():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 5, 12, dtype=torch.float64) for _ in range(3))
    heads = [x.unflatten(-1, (4, 3)).transpose(1, 2) for x in (q, k, v)]
    fused = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    explicit = TorchOps().attention(q, k, v, 4, "here")
    torch.testing.assert_close(explicit, fused.transpose(1, 2).flatten(-2), rtol=0, atol=1e-14)


# ---- Batches -------------------------------------------------------------------------------------


@both_models
def test_filling_up_changes_no_sequence(config):
    weights, batch = example(config)
    backend = build(config, weights)
    together = backend.logits(batch)
    assert [len(rows) for rows in together] == [len(tokens) - 1 for tokens in batch]
    for tokens, rows in zip(batch, together):
        assert worst(backend.logits([tokens])[0], rows) < STEPS


@both_models
def test_loss_is_the_mean_over_targets_not_over_sequences(config):
    weights, batch = example(config)
    backend = build(config, weights)
    losses, targets = [backend.loss([s]) for s in batch], [len(s) - 1 for s in batch]
    mean = sum(loss * n for loss, n in zip(losses, targets)) / sum(targets)
    assert backend.loss(batch) == pytest.approx(mean, rel=STEPS)
    assert abs(mean - sum(losses) / len(losses)) > 1e-3, "a case that tells the two apart"


@both_models
def test_step_returns_the_loss_before_it(config):
    weights, batch = example(config)
    backend = build(config, weights)
    before = backend.loss(batch)
    assert backend.step(batch, 0.01) == pytest.approx(before, rel=STEPS)
    assert backend.loss(batch) < before


@pytest.mark.parametrize("batch, message", [
    ([], "the batch is empty"), ([[1, 2], [3]], "sequence 1 has 1 tokens"),
    ([[1] * 9], "sequence 0 has 9 tokens"), ([[1, 11]], "the vocabulary has 0 to 10"),
    ([[1, -1]], "the vocabulary has 0 to 10")])
def test_batches_that_a_model_cannot_take(batch, message):
    backend = build(GPT)
    for use in (backend.logits, backend.loss, backend.gradients,
                lambda batch: backend.step(batch, 0.01)):
        with pytest.raises(ValueError, match=message):
            use(batch)


# ---- Weights -------------------------------------------------------------------------------------


@both_models
def test_weights_come_back_digit_for_digit(config):
    weights, _ = example(config)
    first, last = next(iter(weights)), [*weights][-1]
    weights[first][0][:2] = 5e-324, -1.7976931348623157e308
    weights[last][-1][-1] = 0.1 + 0.2
    backend = build(config, weights)
    assert backend.weights() == weights
    kept = backend.weights()
    kept[first][0][0] = 3.0  # a copy, as what was loaded is
    weights[first][0][0] = 4.0
    assert backend.weights()[first][0][0] == 5e-324
    backend.load(kept)
    assert backend.weights() == kept


def test_float32_weights_come_back_as_the_nearest_and_then_exactly():
    weights, _ = example(GPT)
    rounded = build(GPT, weights, dtype="float32").weights()
    assert rounded != weights and worst(weights, rounded) < 2 ** -24
    assert build(GPT, rounded, dtype="float32").weights() == rounded


def test_weights_of_another_model_are_refused():
    backend = build(GPT)
    with pytest.raises(ValueError, match="another model: missing .*bigram"):
        build(BIGRAM).load(backend.weights())
    weights = {name: rows[1:] for name, rows in backend.weights().items()}
    with pytest.raises(ValueError, match="wte must be 11 x 12, got 10 rows"):
        backend.load(weights)


def test_float32_is_close_to_float64():
    weights, batch = example(GPT)
    _, expected = build(GPT, weights).gradients(batch)
    single = build(GPT, weights, dtype="auto")
    assert single.dtype == torch.float32
    assert worst(expected, single.gradients(batch)[1]) < FLOAT32


# ---- Optimizers ----------------------------------------------------------------------------------

SETTINGS = [("sgd", {}), ("sgd", {"momentum": 0.9}),
            ("sgd", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2}), ("adam", {}),
            ("adam", {"max_norm": 0.1}), ("adamw", {"max_norm": 0.1}),
            ("adamw", {"weight_decay": 0.1, "beta1": 0.8, "eps": 1e-3}), ("muon", {}),
            ("muon", {"momentum": 0.8, "weight_decay": 0.1, "beta2": 0.9, "max_norm": 0.05})]
all_settings = pytest.mark.parametrize("name, settings", SETTINGS, ids=str)


def other_batch(batch, step):
    """Returns a batch of the same lengths and other tokens."""
    return [[(token + step * i) % GPT.vocab_size for i, token in enumerate(tokens)]
            for tokens in batch]


def walk(rule, weights, batch, steps, max_norm=None, first=0):
    """Takes steps of an engine.optim optimizer on torch's gradients, and changes weights."""
    backend = build(GPT, weights)
    for step in range(first, first + steps):
        backend.load(weights)
        _, grads = backend.gradients(other_batch(batch, step))
        if max_norm is not None:
            assert optim.clip_gradients(grads, max_norm) > max_norm
        rule.step(weights, grads, 0.02 / (1 + step))


def train(backend, batch, steps, first=0):
    for step in range(first, first + steps):
        backend.step(other_batch(batch, step), 0.02 / (1 + step))


def worst_of_state(expected, got):
    """Returns the largest error of any slot, of two states of the same form."""
    assert expected.keys() == got.keys() and expected["step"] == got["step"]
    return max([worst(expected[slot], got[slot]) for slot in expected if slot != "step"] + [0.0])


@all_settings
def test_five_steps_are_those_of_engine_optim(name, settings):
    weights, batch = example(GPT)
    backend = build(GPT, weights, optimizer=name, **settings)
    start = optim.copied(weights)
    settings = dict(settings)
    max_norm = settings.pop("max_norm", None)
    rule = optim.make(name, **settings)
    train(backend, batch, 5)
    walk(rule, weights, batch, 5, max_norm)
    assert worst(weights, start) > 1e-3, "all of it moved"
    assert worst(weights, backend.weights()) < STEPS
    assert worst_of_state(rule.state(), backend.optimizer_state()) < STEPS


@all_settings
def test_state_goes_over_to_engine_optim_and_back(name, settings):
    weights, batch = example(GPT)
    whole = build(GPT, weights, optimizer=name, **settings)
    train(whole, batch, 6)
    half = build(GPT, weights, optimizer=name, **settings)
    train(half, batch, 3)

    weights, rules = half.weights(), dict(settings)
    max_norm = rules.pop("max_norm", None)
    rule = optim.make(name, **rules)
    rule.load_state(half.optimizer_state())
    walk(rule, weights, batch, 1, max_norm, first=3)

    back = build(GPT, weights, optimizer=name, **settings)
    back.load_optimizer_state(rule.state())
    assert back.optimizer_state() == rule.state()
    train(back, batch, 2, first=4)
    walk(rule, weights, batch, 2, max_norm, first=4)
    for other in (weights, back.weights()):
        assert worst(whole.weights(), other) < STEPS
    for state in (rule.state(), back.optimizer_state()):
        assert worst_of_state(whole.optimizer_state(), state) < STEPS


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resumed_run_is_the_one_that_was_not_interrupted(name, dtype):
    weights, batch = example(BIGRAM)
    whole, half = (build(BIGRAM, weights, optimizer=name, dtype=dtype) for _ in range(2))
    train(whole, batch, 4)
    train(half, batch, 2)
    resumed = build(BIGRAM, half.weights(), optimizer=name, dtype=dtype)
    resumed.load_optimizer_state(half.optimizer_state())
    train(resumed, batch, 2, first=2)
    assert resumed.weights() == whole.weights()
    assert resumed.optimizer_state() == whole.optimizer_state()


def test_every_optimizer_has_its_steps_here():
    assert {*optim.OPTIMIZERS.values()} == {*torch_optim.UPDATES}


def test_states_of_others_are_refused_and_change_nothing():
    weights, batch = example(GPT)
    backend = build(GPT, weights, optimizer="adamw")
    train(backend, batch, 1)
    state = backend.optimizer_state()
    with pytest.raises(ValueError, match="another optimizer's"):
        backend.load_optimizer_state({"step": 5, "momentum": {}})
    for wrong in ({"wte": [[1.0]]}, {"unknown": weights["wte"]}, {"wte": []}):
        with pytest.raises(ValueError, match="slot v of .* has another shape than its weights"):
            backend.load_optimizer_state({"step": 5, "m": {}, "v": wrong})
    assert backend.optimizer_state() == state
    with pytest.raises(ValueError, match="sgd has no beta1"):
        build(GPT, optimizer="sgd", beta1=0.5)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 0.5, 1.0, 1e3, math.inf, math.nan])
def test_clipping_is_that_of_engine_optim(factor):
    rows = {"a": [[3.0 * factor, -1.0 * factor]], "b": [[0.5 * factor, 0.0], [factor, factor]]}
    tensors = [torch.tensor(r, dtype=torch.float64) for r in rows.values()]
    torch_optim.clip_gradients(tensors, 2.5)
    optim.clip_gradients(rows, 2.5)
    for expected, got in zip(rows.values(), tensors):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-15,
                                   atol=0, equal_nan=True)


def test_max_norm_must_be_above_0():
    with pytest.raises(ValueError, match="max_norm is 0.*above 0"):
        build(GPT, max_norm=0).step(example(GPT)[1], 0.01)


@pytest.mark.parametrize("shape", [(4, 4), (8, 2), (2, 8), (1, 3)])
def test_stack_is_orthogonalized_matrix_by_matrix(shape):
    torch.manual_seed(1)
    stack = torch.randn(3, *shape, dtype=torch.float64)
    stack[1] *= 1e-6
    for rows, got in zip(stack, torch_optim.orthogonalize(stack)):
        assert worst(optim.orthogonalize(rows.tolist()), got.tolist()) < STEPS


# ---- Decoding ------------------------------------------------------------------------------------


@both_models
def test_decoder_gives_the_logits_of_the_full_pass(config):
    weights, batch = example(config)
    backend = build(config, weights)
    tokens = max(batch, key=len)
    decode, other = backend.decoder(), backend.decoder()
    rows = []
    for token in tokens[:-1]:
        rows.append(decode(token))
        other((token + 1) % config.vocab_size)  # has a past of its own
    assert worst(backend.logits([tokens])[0], rows) < FLOAT64["oracle"]
    with pytest.raises(ValueError, match="has seen 7 of block_size, 7, tokens"):
        decode(0)


# ---- Dropout while training ----------------------------------------------------------------------

DROPPING = GPTConfig(11, n_embd=12, n_head=3, n_layer=2, block_size=7, dropout=0.25)


def test_step_drops_by_its_seed_alone():
    weights, batch = example(DROPPING)

    def after(seed, noise=0):
        backend = build(DROPPING, weights)
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        loss = backend.step(batch, 0.01, seed)
        assert torch.equal(state, torch.random.get_rng_state()), "torch's own generator was used"
        return loss, backend.weights()
    assert after("42 3 dropout") == after("42 3 dropout", noise=1)
    assert after("42 3 dropout")[0] != after("42 4 dropout")[0]
    assert after(None)[0] == build(DROPPING, weights).loss(batch)


def test_nothing_is_dropped_outside_training():
    weights, batch = example(DROPPING)
    dropping, plain = build(DROPPING, weights), build(GPT, weights)
    assert dropping.loss(batch) == plain.loss(batch)
    assert dropping.logits(batch) == plain.logits(batch)
    assert dropping.gradients(batch) == plain.gradients(batch)
    assert dropping.decoder()(1) == plain.decoder()(1)


def test_random_masks_drop_the_share_and_keep_the_mean():
    masks = pytorch.random_masks(0.25, "seed", torch.device("cpu"))
    first, second = (masks(torch.ones(100, 100), "site") for _ in range(2))
    assert {*first.flatten().tolist()} == {0.0, (torch.tensor(1.0) / 0.75).item()}
    assert abs((first == 0).double().mean() - 0.25) < 0.02  # four standard deviations
    assert not torch.equal(first, second), "each site gets masks of its own"


def test_losses_with_random_masks_are_those_of_given_ones_on_average():
    weights, batch = example(DROPPING)
    backend = build(DROPPING, weights, optimizer="sgd")
    drawn = [backend.step(batch, 0.0, seed) for seed in range(200)]
    given = [backend.gradients(batch, DropoutMasks(0.25, seed))[0] for seed in range(200)]
    assert len({*drawn}) == len({*given}) == 200

    def mean(numbers):
        return sum(numbers) / len(numbers)

    def variance(numbers):
        return mean([(x - mean(numbers)) ** 2 for x in numbers])
    spread = math.sqrt((variance(drawn) + variance(given)) / 200)
    assert abs(mean(drawn) - mean(given)) < 4 * spread


# ---- Devices and numbers -------------------------------------------------------------------------


def test_auto_takes_the_first_device_that_is_here():
    backend = TorchBackend(GPT, example(GPT)[0])
    assert backend.device.type == torch.device(pytorch.devices()[0]).type
    assert backend.dtype == torch.float32
    assert pytorch.devices()[-1] == "cpu"


@pytest.mark.parametrize("device", pytorch.devices())
def test_every_device_that_is_here_computes_and_learns(device):
    weights, batch = example(DROPPING)
    here = build(DROPPING, weights, device=device, dtype="float32", max_norm=1.0)
    assert here.device == torch.device(device)
    masks = DropoutMasks(0.25, 1)
    _, expected = build(DROPPING, weights).gradients(batch, masks)
    assert worst(expected, here.gradients(batch, masks)[1]) < FLOAT32
    decode = here.decoder()
    rows = [decode(token) for token in batch[0][:-1]]
    assert worst(here.logits(batch)[0], rows) < FLOAT32
    before = here.loss(batch)
    for step in range(10):
        here.step(batch, 0.01, f"{step}")
    assert here.loss(batch) < before


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu"])
def test_device_that_is_not_here_is_refused_in_one_line(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError) as refusal:
        build(GPT, device=device)
    assert str(refusal.value) == f"device is {device!r}: torch finds none here; there is cpu"


def test_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pytorch.devices() == ["cuda", "cuda:0", "cuda:1", "cpu"]
    assert pytorch.find_device("auto", torch.float64) == torch.device("cuda")
    assert pytorch.find_device("cuda:1", torch.float32) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="'cuda:2': .*there is cuda, cuda:0, cuda:1, cpu"):
        build(GPT, device="cuda:2")


def test_mps_has_no_float64(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pytorch.find_device("auto", torch.float32) == torch.device("mps")
    assert pytorch.find_device("auto", torch.float64) == torch.device("cpu")
    with pytest.raises(ValueError, match="the device mps has none; use float32, or the device cpu"):
        build(GPT, device="mps", dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "double", None])
def test_dtypes_that_are_not_taken(dtype):
    with pytest.raises(ValueError, match="dtype is .*: it takes auto, float32, bfloat16, float64"):
        build(GPT, dtype=dtype)


# ---- Packages that are not here ------------------------------------------------------------------


def python(source):
    """Returns what a fresh Python prints, errors and warnings included."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import microgpt; sys.path.pop(0)\n"
    done = subprocess.run([sys.executable, "-c", start + source], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8", timeout=120)
    return done.stdout


def test_without_torch_one_line_says_what_to_do():
    printed = python("sys.modules['torch'] = None\nimport microgpt.backends.pytorch")
    assert printed.splitlines()[-1] == (
        "ImportError: the torch backend needs PyTorch, which is not installed: pip install torch; "
        "--backend matrix works now")
    assert "ModuleNotFoundError" not in printed  # the cause would only distract


def test_torch_that_is_broken_speaks_for_itself():
    printed = python("""
class Broken:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'sympy'", name="sympy")
sys.meta_path.insert(0, Broken())
import microgpt.backends.pytorch""")
    assert printed.splitlines()[-1] == "ModuleNotFoundError: No module named 'sympy'"


def test_torch_is_imported_only_when_used_and_silently():
    printed = python("""
import microgpt.backends, microgpt.backends.matrix, microgpt.nn
print("torch" in sys.modules)
microgpt.backends.load("torch")
print("torch" in sys.modules)""")
    assert printed.split() == ["False", "True"]


def test_examples_in_docstrings():
    result = doctest.testmod(pytorch)
    assert result.attempted and not result.failed


def test_backend_is_found_by_name():
    assert load("torch") is TorchBackend and TorchBackend.name == "torch"


def test_training_learns_a_text_by_heart():
    rng = random.Random(1)
    config = GPTConfig(11, block_size=7)
    batch = [[0, *rng.sample(range(1, 11), 7)] for _ in range(2)]
    backend = build(config, example(config)[0], dtype="float32")
    for _ in range(60):
        loss = backend.step(batch, 0.02)
    assert loss < 0.3  # where they part, after the first token, ln 2 / 7 = 0.1 is the least

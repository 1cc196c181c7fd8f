"""HOW_IT_WORKS.md and its picture are true: what they name exists, what they count is counted here.

The examples themselves run in test_docs.py, as those of all documents.
"""
import ast
import doctest
import importlib
import inspect
import math
import random
import re
import xml.etree.ElementTree as ElementTree

import pytest

import microgpt
from conftest import ROOT
from microgpt.backends import base, load
from microgpt.cli import train
from microgpt.engine import matrix
from microgpt.nn import GPTConfig
from microgpt.nn.gpt import gpt
from microgpt.nn.weights import count_parameters, init_weights, weight_shapes

NAME = "HOW_IT_WORKS.md"
TEXT = (ROOT / NAME).read_text(encoding="utf-8")
EXAMPLES = doctest.DocTestParser().get_examples(TEXT)
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
TOLD = PROSE.split("## 13. Exercises")[0]  # the numbers of an exercise are given, not claimed
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
TOKENIZER = microgpt.CharTokenizer(microgpt.load_docs(str(ROOT / "corpus/data/names.txt"))[0])

# ---- Names ---------------------------------------------------------------------------------------


def names_in(source):
    """Returns every name that a Python text uses or makes: variables, arguments, attributes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(getattr(node, field, None), str):
                found.add(getattr(node, field))
    return found


FILE_NAMES = names_in((ROOT / "microgpt.py").read_text(encoding="utf-8"))
EXAMPLE_NAMES = set().union(*(names_in(example.source) for example in EXAMPLES))
WEIGHT_NAMES = {name.split(".")[-1] for name in weight_shapes(GPTConfig(27))}
ELSEWHERE = {"Matrix": matrix, "gradcheck": importlib.import_module("microgpt.engine.gradcheck")}


def exists(span):
    """Returns whether what stands in `code` is a file, a command, a name or made of names."""
    if re.fullmatch(r"[\w/]+\.(py|md|json|txt|svg)|[\w/]+/", span):
        return (ROOT / span).exists()
    if span.startswith("python3"):
        return span == "python3" or bool(re.match(
            r"python3 (microgpt\.py [a-z]+$|-m pytest$|-m doctest " + NAME + "$)", span))
    if span.startswith("--"):
        flags = [flag for action in train.make_parser()._actions for flag in action.option_strings]
        return span.split()[0] in flags
    if span in (">>>", "*", "+", "None"):
        return True
    if span in ELSEWHERE:
        return hasattr(ELSEWHERE[span], span)
    if span in WEIGHT_NAMES or span in TOKENIZER.chars:
        return True
    if re.fullmatch(r"[A-Z]\w*\.\w+", span):
        owner, attribute = span.split(".")
        return hasattr(getattr(microgpt, owner, None), attribute)
    try:
        parts = {node.id for node in ast.walk(ast.parse(span)) if isinstance(node, ast.Name)}
    except SyntaxError:
        return False
    return bool(parts) and parts <= (FILE_NAMES | EXAMPLE_NAMES | set(TOKENIZER.chars)
                                     | set(matrix.Matrix.__slots__))


@pytest.mark.parametrize("span", SPANS)
def test_what_is_named_exists(span):
    assert exists(span), f"{NAME} names `{span}`, and there is no such thing"


@pytest.mark.parametrize("span", ["init_wieghts", "Value.backwards", "engine/gone.py", "Adam.leap",
                                  "wqe", "softmaxed(logits)", "python4", "--batches 64",
                                  "python3 -m doctests README.md"])
def test_what_does_not_exist_is_found(span):
    assert not exists(span)


def test_the_story_names_the_functions_of_the_file():
    """In its order; what is left out on purpose is listed here."""
    defined = [node.name for node in ast.parse(inspect.getsource(microgpt)).body
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    told = [name for name in defined if f"`{name}`" in PROSE]
    assert [name for name in defined if name not in told] == ["make_parser", "run", "main"]


# ---- Links ---------------------------------------------------------------------------------------


def anchors(path):
    """Returns the anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", PROSE))))
def test_links_lead_somewhere(target):
    name, _, anchor = target.partition("#")
    path = ROOT / (name or NAME)
    assert path.is_file()
    assert not anchor or anchor in anchors(path)


def test_every_section_can_be_jumped_to():
    assert set(re.findall(r"\]\(#([^)]+)\)", PROSE)) >= {
        anchor for anchor in anchors(ROOT / NAME) if anchor[0].isdigit()}


# ---- Numbers -------------------------------------------------------------------------------------

NUMBER = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
CHECKED_BELOW = {"26", "11", "100", "2.490", "2.524", "2.34"}


def numbers(text):
    return [number.rstrip(",") for number in re.findall(NUMBER, text)]


COMPUTED = {float(number.replace(",", "").replace("_", "")) for example in EXAMPLES
            for number in re.findall(r"\d[\d_,]*(?:\.\d+)?(?:e-\d+)?",
                                     example.want + " " + example.source)
            if number.rstrip(",").replace(",", "").replace("_", "")}


def is_computed(number):
    """Returns whether an example computes a number, or one that is it when rounded or in %."""
    decimals = len(number.partition(".")[2])
    return float(number.replace(",", "")) in (
        {round(x, decimals) for x in COMPUTED} | {round(100 * x) for x in COMPUTED if x < 1})


def told_numbers():
    text = re.sub(r"`[^`\n]+`|\]\([^)]+\)|^#.*$", "", TOLD, flags=re.MULTILINE)
    return sorted(set(numbers(text)))


@pytest.mark.parametrize("number", told_numbers())
def test_every_number_is_computed(number):
    assert number in CHECKED_BELOW or is_computed(number), f"nothing computes the {number}"


def test_what_nothing_computes_is_found():
    assert not any(map(is_computed, ["4,193", "2.473", "3.1417", "467"]))
    assert CHECKED_BELOW <= set(told_numbers())


def test_fourteen_times_fewer_nodes():
    few, many = (int(re.search(rf"^({count})$", TEXT, re.MULTILINE)[1]) for count in (3199, 45943))
    assert round(many / few) == 14 and "Fourteen times fewer nodes" in TEXT


def test_the_speeds_are_those_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        name, *cells = line.strip("| ").split(" | ")
        rows.setdefault(name.strip(" `"), cells)  # of matrix the first row, one document a step
    _, file_speed, script, function, _ = rows["scalar`: the file"]
    assert f"the file trains {script} times as fast as a textbook's engine in a script" in TEXT
    assert f"{function} times as fast as the same inside a function" in " ".join(TEXT.split())
    ratio = float(rows["matrix"][1].replace(",", "")) / float(file_speed.replace(",", ""))
    assert 2.5 < ratio < 4 and "in a third of the time" in TEXT


class NoFirstNorm:
    """A backend's ops, but for the first rmsnorm that is asked for, which leaves x as it is."""

    def __init__(self, ops):
        self.ops, self.met = ops, False

    def __getattr__(self, name):
        return getattr(self.ops, name)

    def rmsnorm(self, x):
        first, self.met = not self.met, True
        return x if first else self.ops.rmsnorm(x)


def unseen_loss(backend="matrix", batch_size=1, constant_rate=False, seed=None, **options):
    """Returns the loss on names never seen after the run that the document tells of.

    seed: of other first weights than the document's.
    """
    docs, _ = microgpt.load_docs(str(ROOT / "corpus/data/names.txt"))
    rng = random.Random(42)
    rng.shuffle(docs)
    config = GPTConfig(27)
    weights = init_weights(config, rng if seed is None else random.Random(seed))
    model = load(backend)(config, weights, **options)
    sequences = [[26, *TOKENIZER.encode(doc), 26] for doc in docs]
    learned, unseen = sequences[:5439], sequences[5439:]
    for step in range(1000):
        first = step * batch_size
        batch = [learned[i % len(learned)] for i in range(first, first + batch_size)]
        model.step(batch, 0.01 * (1 if constant_rate else 1 - step / 1000))
    return model.loss(unseen)


@pytest.fixture
def no_first_norm(monkeypatch):
    monkeypatch.setitem(base.FORWARD, "gpt", lambda ops, *others: gpt(NoFirstNorm(ops), *others))


@pytest.mark.slow
def test_what_a_falling_rate_is_worth():
    assert f"The loss on names never seen is {unseen_loss():.3f}; at a constant 0.01 it is " \
           f"{unseen_loss(constant_rate=True):.3f}." in TEXT


@pytest.mark.slow
def test_what_the_first_norm_is_worth(no_first_norm):
    assert f"the loss on names never seen is {unseen_loss():.3f} without it" in TEXT


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_first_norm_is_worth_it_for_other_weights_too(seed, request):
    assert "other first weights give the same picture" in TEXT
    with_it = unseen_loss(seed=seed)
    request.getfixturevalue("no_first_norm")
    assert with_it + 0.01 < unseen_loss(seed=seed) < with_it + 0.04


@pytest.mark.slow
@pytest.mark.torch
def test_what_64_names_a_step_reach():
    pytest.importorskip("torch")
    loss = unseen_loss("torch", 64, device="cpu", dtype="float64")
    assert f"**{loss:.2f}** is the same model after 1000 steps of 64 names each" in TEXT


@pytest.mark.torch
def test_torch_has_fewer_than_100_nodes(monkeypatch):
    torch = pytest.importorskip("torch")
    config, counts, grad = GPTConfig(27), [], torch.autograd.grad

    def counted(loss, *others, **options):
        found, stack = {loss.grad_fn}, [loss.grad_fn]
        while stack:
            new = {node for node, _ in stack.pop().next_functions if node} - found
            found |= new
            stack += new
        counts.append(len(found))
        return grad(loss, *others, **options)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    model = load("torch")(config, init_weights(config, random.Random(0)), device="cpu")
    tokens = [26, 19, 4, 6, 4, 13, 26]
    for batch in ([tokens], [tokens, tokens[:3]] * 32):
        model.gradients(batch)
    assert len(counts) == 2 and all(10 < count < 100 for count in counts)


# ---- Exercises -----------------------------------------------------------------------------------


def test_every_exercise_has_its_solution():
    told = re.findall(r"^(\d+)\. \*\*(.+?)\.?\*\*", TEXT.split("## 13. Exercises")[1], re.MULTILINE)
    solved = re.findall(r"^def test_exercise_(\d+)_(\w+)\(",
                        (ROOT / "tests/test_exercises.py").read_text(encoding="utf-8"),
                        re.MULTILINE)
    assert [(int(number), title.lower().replace(" ", "_")) for number, title in told] == [
        (int(number), title) for number, title in solved]
    assert [int(number) for number, _ in solved] == list(range(1, len(told) + 1))


# ---- The picture ---------------------------------------------------------------------------------

PICTURE = ROOT / "docs" / "architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def picture():
    return ElementTree.parse(str(PICTURE)).getroot()


def texts(picture):
    """Returns (classes, text) of each text in the picture, in order."""
    return [(set(node.get("class", "").split()), "".join(node.itertext()).strip())
            for node in picture.iter(SVG + "text")]


def test_the_picture_stands_alone(picture):
    source = PICTURE.read_text(encoding="utf-8")
    for node in picture.iter():
        assert node.tag.startswith(SVG), "an element of SVG"
        assert node.tag[len(SVG):] not in ("script", "image", "foreignObject", "use", "a")
        assert not [key for key in node.attrib if "href" in key or key.startswith("on")]
    assert set(re.findall(r"url\((.)", source)) == {"#"}
    assert source.count("http") == 1 and "@import" not in source and "@font-face" not in source
    assert len(source) < 20_000


def test_the_picture_can_be_read_aloud(picture):
    assert picture.get("role") == "img"
    ids = picture.get("aria-labelledby").split()
    assert [node.get("id") for node in list(picture)[:2]] == ids
    description = picture.find(SVG + "desc").text
    assert all(name in description for name in WEIGHT_NAMES | {"rmsnorm", "softmax", "relu"})


def test_the_picture_has_the_weights_and_their_shapes(picture):
    """Each name in a weight's box is followed by its shape."""
    config = GPTConfig(7, n_embd=10, n_head=2, n_layer=1, block_size=3)  # no two sizes are equal
    sizes = {"V": config.vocab_size, "T": config.block_size, "C": config.n_embd}

    def size(text):
        factor, letter = re.fullmatch(r"(\d*)([A-Z])", text).groups()
        return int(factor or 1) * sizes[letter]
    shown, row = {}, texts(picture)
    for (classes, name), (_, shape) in zip(row, row[1:]):
        if "name" in classes and "×" in shape:
            shown[name] = tuple(size(part) for part in shape.split(" × "))
    assert shown == {name.split(".")[-1]: shape for name, shape in weight_shapes(config).items()}
    assert any(text.startswith("layer{i}:") for _, text in row)


def test_the_pictures_default_sizes(picture):
    row, config = [text for _, text in texts(picture)], GPTConfig(TOKENIZER.vocab_size)
    told = {key: row[row.index(key) + 2] for key in "VTCHL"}
    assert told == {"V": str(config.vocab_size), "T": str(config.block_size),
                    "C": str(config.n_embd), "H": str(config.n_head), "L": str(config.n_layer)}
    assert row[row.index("weights, learned") + 1] == f"{count_parameters(config):,}"
    for name in ("rmsnorm", "softmax", "relu", "backward", "Adam"):
        assert name in FILE_NAMES and any(name in text for text in row)


def colours(rules):
    """Returns (class or text, property) -> colour of some rules of CSS."""
    found = {}
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", rules):
        for selector in selectors.split(","):
            for key, colour in re.findall(r"(fill|stroke):\s*(#\w+)", body):
                found[selector.strip().lstrip("."), key] = colour
    return found


def contrast(one, other):
    """Returns the contrast of two colours as the web's accessibility guidelines define it."""
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return math.fsum(map(lambda a, b: a * b, (0.2126, 0.7152, 0.0722), linear))
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_the_picture_is_readable_on_light_and_dark(picture):
    light, dark = picture.find(SVG + "style").text.split("@media (prefers-color-scheme: dark) {")
    light, dark = colours(light), colours(dark)
    assert light.keys() == dark.keys(), "each colour has its twin in the dark"
    for scheme in (light, dark):
        for text in ("text", "small"):
            for ground in ("page", "panel", "plain", "weight"):
                assert contrast(scheme[text, "fill"], scheme[ground, "fill"]) > 4.5
        for text in ("blue", "red"):
            assert contrast(scheme[text, "fill"], scheme["page", "fill"]) > 4.5
        for text in ("chip", "here"):
            assert contrast(scheme["text", "fill"], scheme[text, "fill"]) > 4.5


def test_a_change_of_a_weight_would_be_seen(picture, monkeypatch):
    shapes = weight_shapes(GPTConfig(7))
    monkeypatch.setitem(globals(), "weight_shapes",
                        lambda config: {**shapes, "layer0.mlp_fc3": (1, 1)})
    with pytest.raises(AssertionError):
        test_the_picture_has_the_weights_and_their_shapes(picture)

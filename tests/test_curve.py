"""The loss curve: its ticks are round, its points lie where they belong, and no text breaks it."""
import doctest
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.training import curve
from microgpt.training.curve import (all_series, best_point, crop, make_scale, points, to_svg,
                                     to_text)
from strategies import many, some

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = float("nan"), float("inf")
LOG = [{"step": step, "train_loss": 4.2 / (1 + step / 500), "val_loss": val}
       for step, val in ((0, 4.17), (500, 2.2), (1000, 1.7), (1500, 1.63), (2000, 1.71))]
LEVELS = [("uniform", 4.174), ("bigram", 2.486), ("5-gram", 1.669)]

losses = st.one_of(st.none(), st.floats(0, 20), st.floats(), st.sampled_from([2.5, 0.0]))
logs = st.lists(st.fixed_dictionaries(
    {"step": st.integers(0, 10 ** 7)},
    optional={"train_loss": losses, "val_loss": losses, "loss": losses}), max_size=12)


def test_doctests():
    assert doctest.testmod(curve).failed == 0


# ---- Points and ticks ----------------------------------------------------------------------------


def test_points_leave_out_what_is_not_there():
    log = [{"step": 30, "val_loss": 2.0}, {"step": 10, "val_loss": NAN}, {"step": 20},
           {"step": 0, "val_loss": None}, {"val_loss": 1.0}, {"step": 40, "val_loss": INF},
           {"step": 5, "val_loss": 9.0}, {"step": 5, "val_loss": 3.0}, {"step": 6, "val_loss": "1"}]
    assert points(log, "val_loss") == [(5, 3.0), (30, 2.0)]
    assert best_point(log) == (30, 2.0) and best_point([]) is None
    assert all_series(log) == {"val_loss": [(5, 3.0), (30, 2.0)]}


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6), most=st.integers(3, 12))
@many
def test_ticks_are_round_and_cover_the_numbers(low, span, most):
    high = low + span
    scale = make_scale(low, high, most)
    assert (scale.ticks[0], scale.ticks[-1]) == (scale.low, scale.high)
    assert -1e-9 <= scale.share(low) <= scale.share(high) <= 1 + 1e-9
    assert 3 <= len(scale.ticks) == len(scale.labels) <= most
    gaps = [b - a for a, b in zip(scale.ticks, scale.ticks[1:])]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-6)
    assert f"{gaps[0]:.5e}"[:7] in ("1.00000", "2.00000", "5.00000")


@given(low=st.floats(0, 1e4), span=st.floats(0, 1e4))
@many
def test_labels_are_the_ticks(low, span):
    scale = make_scale(low, low + span)
    assert len(set(scale.labels)) == len(scale.labels)
    for tick, label in zip(scale.ticks, scale.labels):
        assert float(label.replace(",", "")) == pytest.approx(tick, rel=1e-9, abs=1e-12)
    inside = crop(scale, low, low + span)
    assert set(inside.ticks) <= set(scale.ticks) and len(inside.ticks) >= 2
    assert -1e-9 <= inside.share(low) <= inside.share(low + span) <= 1 + 1e-9


def test_steps_are_whole():
    scale = make_scale(0, 1, smallest=1)
    assert scale.labels == ("0", "1", "2")
    assert make_scale(0, 1234, 9, smallest=1).labels[:3] == ("0", "200", "400")


# ---- SVG -----------------------------------------------------------------------------------------


def parse(svg):
    """Returns the picture's root, with every coordinate checked to be a finite number."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for key in ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy"):
            assert math.isfinite(float(element.get(key, 0)))
    assert not re.search(r"\b(nan|inf)\b", svg)
    return root


def of_class(root, name):
    """Returns the elements of a class."""
    return [element for element in root.iter() if name in element.get("class", "").split()]


def path_of(root, key):
    """Returns the pixels of a series, the one in the legend left out."""
    path = of_class(root, key)[-1].get("d")
    return [tuple(map(float, pair.split())) for pair in path.replace("h0", "")[1:].split("L")]


def test_svg():
    root = parse(to_svg(LOG, "names", LEVELS))
    texts = [element.text for element in root.iter(SVG + "text")]
    assert {"names", "step", "nats a token", "held-out text", "training text", "uniform 4.174",
            "bigram 2.486", "5-gram 1.669", "best 1.6300 at step 1,500"} <= set(texts)
    assert [e.text for e in of_class(root, "tick-x")] == ["0", "500", "1,000", "1,500", "2,000"]
    assert [e.text for e in of_class(root, "tick-y")][:3] == ["0.5", "1.0", "1.5"]
    assert "prefers-color-scheme: dark" in root.find(SVG + "style").text
    dot, = of_class(root, "dot")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == path_of(root, "val_loss")[3]
    assert len(of_class(root, "level")) == 3 and not of_class(root, "loss")
    assert of_class(root, "curve")[-1].get("class") == "curve val_loss"  # on top


def test_points_of_the_svg_lie_between_their_ticks():
    root = parse(to_svg([{"step": 100 * i, "val_loss": 1 + i} for i in range(5)], "line"))
    line = path_of(root, "val_loss")
    xs = {e.text: float(e.get("x")) for e in of_class(root, "tick-x")}
    ys = {e.text: float(e.get("y")) - 4 for e in of_class(root, "tick-y")}
    for i, (x, y) in enumerate(line):
        assert x == pytest.approx(xs[str(100 * i)], abs=0.1)
        assert y == pytest.approx(ys[f"{1 + i:.1f}"], abs=0.1)


@given(log=logs, levels=st.lists(st.tuples(st.text(max_size=20), st.floats()), max_size=3))
@some
def test_svg_of_any_log(log, levels):
    """It is well-formed and finite, no point outside the axes, and higher is higher."""
    root = parse(to_svg(log, "any", levels))
    series = all_series(log)
    assert any(e.text == "no losses yet" for e in root.iter()) == (not series)
    assert len(of_class(root, "dot")) == ("val_loss" in series)
    for key, line in series.items():
        pixels = path_of(root, key)
        assert len(pixels) == len(line)
        for (x, y), (step, loss) in zip(pixels, line):
            assert curve.LEFT <= x <= curve.WIDTH and curve.TOP <= y <= curve.HEIGHT - curve.BOTTOM
            assert all(x <= other + 0.02 for (other, _), p in zip(pixels, line) if p[0] >= step)
            assert all(y >= other - 0.02 for (_, other), p in zip(pixels, line) if p[1] >= loss)


@given(title=st.text())
@some
def test_any_title(title):
    assert parse(to_svg(LOG, title, [(title, 2.0)])).find(SVG + "title") is not None


@pytest.mark.parametrize("title", [
    "</title><script>alert(1)</script>", '" onload="alert(1)', "&lt;&#0;", "]]><![CDATA[",
    "</style><script/>", "\0\x1b[31m\ud800\uffff", "<!--", "x" * 10_000])
def test_hostile_titles(title):
    root = parse(to_svg(LOG, title, [(title, 2.0)]))
    plain = parse(to_svg(LOG, "t", [("t", 2.0)]))
    assert [e.tag for e in root.iter()] == [e.tag for e in plain.iter()]
    assert [sorted(e.keys()) for e in root.iter()] == [sorted(e.keys()) for e in plain.iter()]
    shown = root.find(SVG + "title").text
    assert len(shown) <= 80 and shown[:20].replace("\ufffd", "") in title
    assert to_svg(LOG, title).encode("utf-8")


def test_names_of_near_levels_lie_apart():
    root = parse(to_svg(LOG, "near", [("a", 2.5), ("b", 2.5), ("c", 2.49)]))
    ys = sorted(float(e.get("y")) for e in root.iter(SVG + "text")
                if re.match("[abc] 2", e.text or ""))
    assert len(ys) == 3 and all(b - a >= curve.LINE_HEIGHT for a, b in zip(ys, ys[1:]))


def test_svg_of_one_line_and_of_equal_losses():
    root = parse(to_svg([{"step": 100, "train_loss": 2.5, "val_loss": 2.5}], "one"))
    assert "best 2.5000 at step 100" in [e.text for e in root.iter()]
    root = parse(to_svg([{"step": i, "val_loss": 2.5} for i in range(3)], "equal"))
    assert len({y for _, y in path_of(root, "val_loss")}) == 1
    labels = [e.text for e in of_class(root, "tick-y")]
    assert len(set(labels)) == len(labels)


# ---- Text ----------------------------------------------------------------------------------------


def test_text_in_ascii():
    log = [{"step": 100 * i, "train_loss": 4 - i, "val_loss": max(4 - i, 2)} for i in range(4)]
    assert to_text(log, 40, height=7, ascii=True).splitlines() == [
        "4 +oooo",
        "  |    ooooo",
        "3 +         ooooooo",
        "  |                ooooo",
        "2 +                     oooooooooooooooo",
        "  |                            .....",
        "1 +                                 ....",
        "  ++-----------+-----------+-----------+",
        "   0          100         200        300",
        "o held-out text   . training text",
        "best 2.0000 at 200"]


def test_text_ends_at_the_last_step():
    text = to_text([{"step": 50 * i, "val_loss": i} for i in range(20)], 60, 6, ascii=True)
    assert text.split("\n")[0].endswith("oooo") and len(text.split("\n")[0]) == 60
    assert text.split("\n")[7].split() == ["0", "200", "400", "600", "800"]


def test_text_in_braille():
    log = [{"step": i, "train_loss": 1.5, "val_loss": 2 - i / 10} for i in range(11)]
    assert to_text(log, 24, height=4).splitlines() == [
        "2.0 ┤⠉⠒⠤⣄⡀",
        "    │    ⠈⠑⠒⠤⢄⡀",
        "1.5 ┤·········⠉⠑⠒⠤⢄⡀····",
        "1.0 ┤              ⠈⠙⠒⠤⣀",
        "    └┬────────┬────────┬",
        "     0        5       10",
        "⠒ held-out text",
        "· training text",
        "best 1.0000 at 10"]


@given(log=logs, width=st.integers(20, 200), height=st.integers(4, 30), ascii=st.booleans())
@some
def test_text_of_any_log_fits(log, width, height, ascii):
    text = to_text(log, width, height, ascii)
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert text.isascii() or not ascii
    if all_series(log):
        assert height + 3 <= len(lines) <= height + 5
        assert sum(bool(re.match(r" *-?\d", line)) for line in lines[:height]) >= 2  # axis numbers
        assert any(line.strip(" |+\u2502\u2524") for line in lines[:height])
        best = best_point(log)
        assert ("best " in text) == (best is not None)


@pytest.mark.parametrize("ascii", [False, True])
def test_text_fits_each_width(ascii):
    for width in range(20, 201):
        longest = max(map(len, to_text(LOG, width, 6, ascii).split("\n")))
        assert width - 1 <= longest <= width


@given(values=st.lists(st.floats(0, 5), min_size=2, max_size=30, unique=True))
@some
def test_text_falls_where_the_losses_fall(values):
    values.sort(reverse=True)
    log = [{"step": i, "val_loss": value} for i, value in enumerate(values)]
    text = to_text(log, 60, 10, ascii=True).split("\n")[:10]
    rows = [re.split(r"[|+]", row, maxsplit=1)[1] for row in text]
    places = [(i, j) for j, row in enumerate(rows) for i, c in enumerate(row) if c == "o"]
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    for (i0, j0), (i1, j1) in zip(sorted(places), sorted(places)[1:]):
        assert j0 <= j1 <= j0 + 10 and i1 - i0 <= 1


def test_text_without_held_out_text():
    text = to_text([{"step": i, "loss": 3 - i / 10} for i in range(10)], 50, 6)
    assert "training steps" in text and "best" not in text
    both = to_text([{"step": i, "loss": 3.0, "train_loss": 2.0} for i in range(10)], 50, 6)
    assert "training steps" not in both
    assert to_text([], 50) == to_text([{"step": 1, "val_loss": NAN}], 50) == "no losses yet"


@pytest.mark.parametrize("width, height", [(19, 12), (80, 3)])
def test_text_needs_room(width, height):
    with pytest.raises(ValueError, match=f"{width} columns and {height} lines: it takes 20 and 4"):
        to_text(LOG, width, height)

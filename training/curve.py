"""The loss curve of a run, drawn from the lines of its log: as a picture, or in a terminal.

A log is a list of dicts, one for each evaluation, with "step" and some of the losses in SERIES.
Losses that are missing, None or not finite are left out. What both drawings need comes first:
points, round ticks, and where a number lies between them.
"""
import html
import math
import re
from dataclasses import dataclass
from typing import Tuple

SERIES = {"val_loss": "held-out text", "train_loss": "training text", "loss": "training steps"}
LARGEST = 1e15  # a loss beyond it is as good as infinite

# ---- Points and ticks ----------------------------------------------------------------------------


def is_number(x):
    """Returns whether x is a finite number, and not so large that nothing else would be seen."""
    return isinstance(x, (int, float)) and abs(x) < LARGEST  # false of NaN


def points(log, key):
    """Returns (step, loss) of the lines that have that loss, by step; of a step, the last counts.

    >>> points([{"step": 0, "loss": 3.3}, {"step": 10, "loss": None}, {"step": 20, "loss": 2}],
    ...        "loss")
    [(0, 3.3), (20, 2)]
    """
    found = {line["step"]: line[key] for line in log
             if is_number(line.get("step")) and is_number(line.get(key))}
    return sorted(found.items())


def all_series(log):
    """Returns key -> points, of the losses of SERIES that the log has."""
    found = {key: points(log, key) for key in SERIES}
    return {key: line for key, line in found.items() if line}


def best_point(log):
    """Returns (step, loss) of the lowest loss on held-out text, the first of equals, or None."""
    return min(points(log, "val_loss"), key=lambda point: point[1], default=None)


@dataclass(frozen=True)
class Scale:
    """An axis from low to high, with ticks at round numbers, and the labels of these."""
    low: float
    high: float
    ticks: Tuple[float, ...]
    labels: Tuple[str, ...]

    def share(self, value):
        """Returns where a value lies on the axis, 0 at its low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def make_scale(low, high, most=7, smallest=0.0):
    """Returns a Scale that begins and ends with a tick and holds low and high.

    It has at most `most` ticks, but three at least; smallest: no two ticks are nearer, as between
    steps, which are whole.

    >>> make_scale(1.63, 4.17, most=7).labels
    ('1.5', '2.0', '2.5', '3.0', '3.5', '4.0', '4.5')
    """
    middle, half = (low + high) / 2, (high - low) / 2
    half = max(half, 0.005 * abs(middle), 1e-3)  # equal losses have a place too
    low, high = min(low, middle - half), max(high, middle + half)
    power = math.floor(math.log10((high - low) / most)) if high > low else 0
    for exponent in range(power, power + 4):
        for factor in (1, 2, 5):
            gap = factor * 10.0 ** exponent
            first, last = math.floor(low / gap), math.ceil(high / gap)
            if gap >= smallest and last - first < max(most, 3):
                last = max(last, first + 2)
                numbers = range(first, last + 1)
                return Scale(first * gap, last * gap, tuple(i * gap for i in numbers),
                             tuple(tick_label(i * factor, exponent) for i in numbers))
    raise AssertionError(f"no ticks from {low} to {high}")


def crop(scale, low, high):
    """Returns the Scale from low to high, where a terminal has no room for more, if that has two
    ticks at least; otherwise the scale itself.

    >>> crop(make_scale(1.63, 4.17), 1.63, 4.17).labels
    ('2.0', '2.5', '3.0', '3.5', '4.0')
    """
    inside = [i for i, tick in enumerate(scale.ticks) if low <= tick <= high]
    if len(inside) < 2:
        return scale
    return Scale(low, high, tuple(scale.ticks[i] for i in inside),
                 tuple(scale.labels[i] for i in inside))


def tick_label(count, exponent):
    """Returns count * 10 ** exponent as a short text.

    >>> [tick_label(25, -1), tick_label(0, -1), tick_label(15, 2), tick_label(2, 6)]
    ['2.5', '0.0', '1,500', '2e+06']
    """
    if exponent < -6 or exponent + math.log10(abs(count) or 1) >= 6:
        return f"{count * 10.0 ** exponent:g}"
    return f"{count * 10.0 ** exponent:,.{max(0, -exponent)}f}"


def make_scales(lines, levels, most_x, most_y):
    """Returns the Scales of steps and of losses that lines of points, and levels, need."""
    steps = [step for line in lines for step, _ in line] or [0]
    losses = [loss for line in lines for _, loss in line] + list(levels) or [0, 1]
    # a run's first step stands at the left edge, but for a piece out of the middle of a long run
    first = min(steps) if max(steps) / 2 < min(steps) < max(steps) else min(0, min(steps))
    return (make_scale(first, max(max(steps), first + 1), most_x, smallest=1),
            make_scale(min(losses), max(losses), most_y))


# ---- SVG -----------------------------------------------------------------------------------------

WIDTH, HEIGHT = 760, 420                    # in pixels, as all that follows
LEFT, TOP, BOTTOM = 64, 74, 52              # margins
RIGHT, RIGHT_WITH_LEVELS = 28, 128          # the names of horizontal lines stand at their right
LINE_HEIGHT, LETTER = 15, 6.6               # of small text; the width is that of most letters
LONGEST_TITLE, LONGEST_NAME = 80, 12        # characters
LIGHT = dict(paper="#ffffff", ink="#1f2328", soft="#59636e", grid="#e4e8ec", val_loss="#0969da",
             train_loss="#bc4c00", loss="#a5adb6", level="#6e7781")
DARK = dict(paper="#0d1117", ink="#e6edf3", soft="#9198a1", grid="#262c36", val_loss="#58a6ff",
            train_loss="#f0883e", loss="#59626d", level="#8b949e")
STYLE = """
.paper {{ fill: {paper} }}
text {{ fill: {soft} }}
.title, .best {{ fill: {ink} }}
.halo {{ stroke: {paper} }}
.grid {{ stroke: {grid} }}
.axis {{ stroke: {soft} }}
.level {{ stroke: {level} }}
.val_loss {{ stroke: {val_loss} }}
.train_loss {{ stroke: {train_loss} }}
.loss {{ stroke: {loss} }}
.dot {{ fill: {val_loss}; stroke: {paper} }}
"""
SHAPE = """
.title { font-size: 16px; font-weight: 600 }
.best { font-weight: 600 }
.halo { stroke-width: 5; stroke-linejoin: round; paint-order: stroke }
.level { stroke-dasharray: 5 4 }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.loss { stroke-width: 1.25 }
.dot { stroke-width: 2 }
"""


@dataclass(frozen=True)
class Frame:
    """The rectangle between the axes, and the Scale of each."""
    x: Scale
    y: Scale
    right: float

    def at(self, step, loss):
        """Returns the pixel of a point."""
        return (LEFT + self.x.share(step) * (self.right - LEFT),
                HEIGHT - BOTTOM - self.y.share(loss) * (HEIGHT - BOTTOM - TOP))


def to_svg(log, title, baselines=()):
    """Returns the curve as an SVG picture that needs nothing else, for light and dark pages.

    baselines: (name, nats a token) of horizontal lines to compare with. To look at it:

        pathlib.Path("loss.svg").write_text(to_svg(log, "names"), encoding="utf-8")
    """
    lines = all_series(log)
    levels = [(name, value) for name, value in baselines if is_number(value)]
    x, y = make_scales(lines.values(), [value for _, value in levels], 9, 10)
    frame = Frame(x, y, WIDTH - (RIGHT_WITH_LEVELS if levels else RIGHT))
    parts = [svg_head(title), *svg_axes(frame), *svg_legend(lines), *svg_levels(levels, frame)]
    for key in reversed(list(lines)):  # that of held-out text lies on top
        path = "L".join("{:.2f} {:.2f}".format(*frame.at(*point)) for point in lines[key])
        # a lone point is seen as a line of no length, whose ends are round
        path += "h0" if len(lines[key]) == 1 else ""
        parts.append(f'<path class="curve {key}" d="M{path}"/>')
    if not lines:
        parts.append(svg_text((LEFT + frame.right) / 2, HEIGHT / 2, "no losses yet", "middle"))
    if best_point(log):
        flat = [[(x.low, value), (x.high, value)] for _, value in levels]
        parts.append(svg_best(best_point(log), frame, [*lines.values(), *flat]))
    return "\n".join([*parts, "</svg>\n"])


def clean(text, longest):
    """Returns text for XML: escaped, without what XML has no way to say, and cut to a length."""
    text = re.sub("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))
    return html.escape(text if len(text) <= longest else text[:longest - 3] + "...")


def svg_head(title):
    """Returns the beginning: size, colours, background and title."""
    title = clean(title, LONGEST_TITLE)
    dark = STYLE.format(**DARK).strip()
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f'<title>{title}</title>\n<style>{STYLE.format(**LIGHT)}{SHAPE.strip()}\n'
            f'@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n</style>\n'
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>\n'
            f'<text class="title" x="{LEFT}" y="32">{title}</text>')


def svg_text(x, y, text, anchor="start", kind="", more=""):
    """Returns a text; anchor: which end of it is at x. The text is escaped by the caller."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{text}</text>'


def svg_line(kind, x0, y0, x1, y1):
    """Returns a straight line."""
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def svg_axes(frame):
    """Returns grid, ticks and the names of both axes."""
    parts, floor = [], HEIGHT - BOTTOM
    for tick, label in zip(frame.y.ticks, frame.y.labels):
        y = frame.at(frame.x.low, tick)[1]
        parts += [svg_line("grid", LEFT, y, frame.right, y),
                  svg_text(LEFT - 8, y + 4, label, "end", "tick-y")]
    for tick, label in zip(frame.x.ticks, frame.x.labels):
        x = frame.at(tick, frame.y.low)[0]
        parts += [svg_line("axis", x, floor, x, floor + 5),
                  svg_text(x, floor + 19, label, "middle", "tick-x")]
    middle = (TOP + floor) / 2
    turned = f' transform="rotate(-90 18 {middle})"'
    return [*parts, svg_line("axis", LEFT, floor, frame.right, floor),
            svg_text((LEFT + frame.right) / 2, HEIGHT - 12, "step", "middle"),
            svg_text(18, middle, "nats a token", "middle", more=turned)]


def svg_legend(lines):
    """Returns a short line in the colour of each series, and its name."""
    parts, x = [], LEFT
    for key in lines:
        parts += [f'<path class="curve {key}" d="M{x} 50h20"/>', svg_text(x + 27, 54, SERIES[key])]
        x += 27 + LETTER * len(SERIES[key]) + 24
    return parts


def svg_levels(levels, frame):
    """Returns the dashed lines, their names beside them, apart from each other."""
    parts, lowest = [], math.inf
    for name, value in sorted(levels, key=lambda level: level[1]):
        y = frame.at(frame.x.low, value)[1]
        lowest = min(y + 4, lowest - LINE_HEIGHT)
        parts += [svg_line("level", LEFT, y, frame.right, y),
                  svg_text(frame.right + 8, lowest, f"{clean(name, LONGEST_NAME)} {value:.3f}")]
    return parts


def svg_best(best, frame, lines):
    """Returns the best point and its loss, where the fewest lines run behind the text."""
    x, y = frame.at(*best)
    text = f"best {best[1]:.4f} at step {best[0]:,}"
    wide = LETTER * len(text)

    def disturbance(place):
        left = x + place[0] - {"start": 0, "middle": wide / 2, "end": wide}[place[2]]
        top = y + place[1] - 12
        outside = (left < LEFT + 4 or left + wide > frame.right or top < TOP
                   or top + LINE_HEIGHT > HEIGHT - BOTTOM)
        return 1000 * outside + sum(
            left < px < left + wide and top < py < top + LINE_HEIGHT
            for line in lines for px, py in every_pixel(line, frame))
    places = [(dx, dy, anchor) for dy in (22, -13, 36, -27)
              for dx, anchor in ((0, "middle"), (4, "start"), (-4, "end"))]
    dx, dy, anchor = min(places, key=disturbance)
    return (svg_text(x + dx, y + dy, text, anchor, "best halo")
            + f'\n<circle class="dot" cx="{x:.2f}" cy="{y:.2f}" r="5"/>')


def every_pixel(line, frame):
    """Yields the pixels of a line of points, four apart."""
    for start, end in zip(line, line[1:]):
        (x0, y0), (x1, y1) = frame.at(*start), frame.at(*end)
        count = 1 + int(max(abs(x1 - x0), abs(y1 - y0)) / 4)
        for i in range(count):
            yield x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count


# ---- Text ----------------------------------------------------------------------------------------

NARROWEST, LOWEST = 20, 4  # columns and lines; with fewer, two ticks may share a line
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # a cell's dots, by column and row


def to_text(log, width, height=12, ascii=False):
    """Returns the curve as lines of at most `width` columns, `height` of them between the axes.

    Losses on held-out text are a line of Braille dots, those on training text small dots where
    that leaves room; with ascii, "o" and ".". The steps' own losses are drawn if there are no
    others. Raises ValueError for a width below 20 or a height below 4.
    """
    if width < NARROWEST or height < LOWEST:
        raise ValueError(f"a curve of {width} columns and {height} lines: it takes {NARROWEST} "
                         f"and {LOWEST} at least")
    lines = all_series(log)
    if not lines:
        return "no losses yet"
    if len(lines) > 1:
        lines.pop("loss", None)
    x, y = make_scales(lines.values(), (), max(4, width // 10), max(5, 2 + height // 3))
    x = crop(x, x.low, max(step for line in lines.values() for step, _ in line))
    losses = [loss for line in lines.values() for _, loss in line]
    y = crop(y, min(losses), max(losses))
    columns = width - max(map(len, y.labels)) - 2
    frame = [" " * columns for _ in range(height)]
    marks = {}
    for key, line in reversed(list(lines.items())):
        sparse = key != "val_loss" and "val_loss" in lines
        rows, marks[key] = draw_line(line, x, y, columns, height, sparse, ascii)
        frame = [overlay(below, above) for below, above in zip(frame, rows)]
    text = text_axes(frame, x, y, columns, ascii) + text_legend(lines, marks, log, width)
    return "\n".join(line.rstrip() for line in text)


def overlay(below, above):
    """Returns the characters of above, and below those where it has a space."""
    return "".join(b if a == " " else a for b, a in zip(below, above))


def draw_line(line, x, y, columns, rows, sparse, ascii):
    """Returns a line of points as rows of text, and the mark that it is drawn with."""
    if ascii or sparse:
        mark = ("." if sparse else "o") if ascii else "\u00b7"
        cells = {(column, row): mark for column, row in dots(line, x, y, columns, rows)}
    else:
        mark, cells = "\u2812", {}
        for i, j in dots(line, x, y, 2 * columns, 4 * rows):
            cell = i // 2, j // 4
            cells[cell] = chr(ord(cells.get(cell, "\u2800")) | BRAILLE[i % 2][j % 4])
    return ["".join(cells.get((i, j), " ") for i in range(columns)) for j in range(rows)], mark


def dots(line, x, y, columns, rows):
    """Returns the set of (column, row from above) that a line of points goes through."""
    places = [(x.share(step) * (columns - 1), (1 - y.share(loss)) * (rows - 1))
              for step, loss in line]
    found = {(round(i), round(j)) for i, j in places[:1]}
    for (i0, j0), (i1, j1) in zip(places, places[1:]):
        count = math.ceil(max(abs(i1 - i0), abs(j1 - j0))) or 1
        found |= {(round(i0 + (i1 - i0) * k / count), round(j0 + (j1 - j0) * k / count))
                  for k in range(count + 1)}
    return found


def text_axes(rows, x, y, columns, ascii):
    """Returns the rows with the axis of losses before them and that of steps below."""
    side, notch, corner, flat, tooth = "|++-+" if ascii else "\u2502\u2524\u2514\u2500\u252c"
    margin = max(map(len, y.labels))
    labels = [""] * len(rows)
    for tick, label in zip(y.ticks, y.labels):
        labels[round((1 - y.share(tick)) * (len(rows) - 1))] = label
    text = [f"{label:>{margin}} {notch if label else side}{row}"
            for label, row in zip(labels, rows)]
    below, line = [flat] * columns, [" "] * (margin + 2 + columns)
    free = 0
    for tick, label in zip(x.ticks, x.labels):
        place = round(x.share(tick) * (columns - 1))
        start = min(margin + 2 + place - len(label) // 2, len(line) - len(label))
        if start >= free:
            below[place] = tooth
            line[start:start + len(label)] = label
            free = start + len(label) + 2
    return [*text, " " * margin + " " + corner + "".join(below), "".join(line)]


def text_legend(lines, marks, log, width):
    """Returns what the marks mean and the best loss, in as few lines as the width allows."""
    parts = [f"{marks[key]} {SERIES[key]}" for key in lines]
    best = best_point(log)
    if best:
        parts.append(f"best {best[1]:.4f} at {best[0]:,}")
    text = []
    for part in parts:
        if text and len(text[-1]) + 3 + len(part) <= width:
            text[-1] += "   " + part
        else:
            text.append(part[:width])
    return text

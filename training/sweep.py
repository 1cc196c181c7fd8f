"""A sweep: one set of settings, varied; what runs it has, what they are called, how they compare.

    {"name": "depth", "about": "How deep should it be?",
     "base": {"data": "shakespeare", "backend": "torch"},     settings of every run
     "grid": {"n_layer": [1, 2, 4]},                          a run for each combination
     "runs": [{"n_embd": 64}, {"n_embd": 128}],               times each of these
     "prompts": ["ROMEO:"]}                                   what all continue at the end

All but "name" may be left out. Here nothing is started and nothing printed: cli/sweep.py does that.
"""
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import PurePath

from microgpt.training import runs
from microgpt.training.settings import KINDS, NAMES, OPTIONAL

MOST_RUNS, MOST_PROMPTS, LONGEST_NAME = 1000, 100, 80
DATA = ("data", "urls", "url_file")
# What a run of a sweep may be told, and of what kind: texts, whole numbers, ...
SETTINGS = {**KINDS, **dict.fromkeys(DATA, str), "preset": str}
SEVERAL = ("data", "urls")  # these take a list too
KEYS = {"name": str, "about": str, "base": dict, "grid": dict, "runs": list, "prompts": list}
OURS = ("sweep.json", "table.json", "failed.json", "lock")  # files in a sweep's folder


@dataclass(frozen=True)
class Sweep:
    """A sweep that was checked. runs: name -> settings, in order. varying: what they differ in."""
    name: str
    about: str
    runs: dict
    varying: list
    prompts: list
    definition: dict  # as JSON has it, the flags of the command line in it

    def difference(self, before):
        """Returns what would make it another sweep than `before`, in a line; else None.

        Runs that come on top are no difference.
        """
        for name, settings in before.runs.items():
            if name not in self.runs:
                return f"there it has a run {name}, which is not among these"
            for key in [*settings, *(key for key in self.runs[name] if key not in settings)]:
                old, new = settings.get(key), self.runs[name].get(key)
                if old != new:
                    return f"{key} of {name} was {shown(old)}, and is {shown(new)}"
        return None

    def variation(self, name):
        """Returns what sets a run apart: setting -> value."""
        return {key: self.runs[name][key] for key in self.varying if key in self.runs[name]}


# ---- Reading: a file may be a stranger's ---------------------------------------------------------


def shown(value):
    """Returns a value as a message shows it.

    >>> shown(None), shown([1, 2]), shown("x")
    ('none', '[1, 2]', '"x"')
    """
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_setting(name, value):
    """Returns a setting's value as its kind has it; ValueError unless it is one of these."""
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {shown(name)}; `python3 microgpt.py --help` lists "
                         "them, with - for _")
    kind = SETTINGS[name]
    if value is None and name in OPTIONAL:
        return value
    if name in SEVERAL and isinstance(value, list) and value and all(
            isinstance(item, str) for item in value):
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or kind is float and not math.isfinite(value):
        raise ValueError(f"{name} is {shown(value)}: it takes {NAMES[kind]}")
    return value


def check_settings(values, where):
    """Returns a dict of settings, checked; ValueError names the place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {shown(values)}: it takes settings and their values")
    try:
        return {name: check_setting(name, value) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_axis(name, values, where):
    """Returns a setting's values in a grid, checked, each once."""
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {name} is {shown(values)}: it takes a list of values")
    if len(values) > MOST_RUNS:
        raise ValueError(f"{where}: {name} has {len(values):,} values, and the most are "
                         f"{MOST_RUNS:,}")
    found = []
    for value in values:
        value = check_settings({name: value}, where)[name]
        if value not in found:
            found.append(value)
    return found


def check_definition(document):
    """Returns what a sweep's file holds, checked, with nothing left out; ValueError, in a line."""
    for key, value in document.items():
        if key not in KEYS:
            raise ValueError(f"there is no {shown(key)} in a sweep; there are {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]):
            kind = {str: "a text", dict: "names and values in {}", list: "a list in []"}[KEYS[key]]
            raise ValueError(f"{key} is {shown(value)}: it takes {kind}")
    if "name" not in document:
        raise ValueError("it has no name; --name gives it one")
    check_name(document["name"])
    prompts = document.get("prompts", [])
    if len(prompts) > MOST_PROMPTS or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts are texts, {MOST_PROMPTS} at most")
    entries = document.get("runs", [])
    if len(entries) > MOST_RUNS:
        raise ValueError(f"it has {len(entries):,} runs, and the most are {MOST_RUNS:,}")
    grid = {name: check_axis(name, values, "grid")
            for name, values in document.get("grid", {}).items()}
    entries = [check_settings(entry, f"run {number} of runs")
               for number, entry in enumerate(entries, 1)]
    twice = next((name for entry in entries for name in entry if name in grid), None)
    if twice:
        raise ValueError(f"{twice} stands both in grid and in runs: one of them varies it")
    return {"name": document["name"], "about": document.get("about", ""),
            "base": check_settings(document.get("base", {}), "base"), "grid": grid,
            "runs": entries, "prompts": prompts}


def check_name(name):
    """Raises ValueError unless a folder can be called this."""
    if not runs.NAME.fullmatch(name) or name.rstrip(". ") != name:
        raise ValueError(f"the sweep's name is {shown(name)}: it takes letters, digits, spaces and "
                         "most signs, a letter or digit first, 100 at most")


def read(path, name=None):
    """Returns what a sweep's file holds, checked; name: in the place of its own."""
    try:
        document = runs.read_json(path)
    except ValueError as error:
        raise ValueError(str(error).replace("is damaged: ", "is no file of a sweep: ")) from None
    try:
        return check_definition({**document, "name": name} if name else document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_axis(text):
    """Returns (setting, values) of what --grid says.

    >>> parse_axis("n_layer=1,2,4")
    ('n_layer', [1, 2, 4])
    >>> parse_axis("learning-rate=0.01,1e-3")
    ('learning_rate', [0.01, 0.001])
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ValueError(f"--grid {text}: it takes a setting and its values, as n_layer=1,2,4")
    found = [parse_value(name, value.strip()) for value in values.split(",")]
    return name, check_axis(name, found, "--grid")


def parse_value(name, text):
    """Returns a text as the kind of its setting; as it stands where it is none."""
    kind = SETTINGS.get(name, str)
    if text == "none" and name in OPTIONAL:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    try:
        return kind(text)
    except ValueError:
        return text


# ---- From a definition to runs -------------------------------------------------------------------


def overridden(definition, flags=(), grid=(), prompts=()):
    """Returns the definition with the command line over it: settings, a grid's axes, prompts.

    The command line wins everywhere: a setting that it names varies no longer as it did.
    """
    flags, grid = dict(flags), dict(grid)
    both = next((name for name in grid if name in flags), None)
    if both:
        raise ValueError(f"{both} is varied by --grid, and set by --{both.replace('_', '-')}: "
                         "leave one of them out")
    gone = {*flags, *grid}
    if gone & {*DATA}:  # a text that is named takes the place of all others
        gone |= {*DATA}

    def rest(values):
        return {name: value for name, value in values.items() if name not in gone}
    return {**definition, "base": {**rest(definition["base"]), **flags},
            "grid": {**rest(definition["grid"]), **grid},
            "runs": [rest(entry) for entry in definition["runs"]],
            "prompts": [*prompts] or definition["prompts"]}


def expand(definition):
    """Returns the Sweep of a definition; of runs that are the same, the first stands for all."""
    grid, entries = definition["grid"], definition["runs"] or [{}]
    count = len(entries) * math.prod(map(len, grid.values()))
    if count > MOST_RUNS:
        raise ValueError(f"these are {count:,} runs, and the most are {MOST_RUNS:,}")
    found = []
    for entry in entries:
        for values in itertools.product(*grid.values()):
            settings = {**definition["base"], **entry, **dict(zip(grid, values))}
            if settings not in found:
                found.append(settings)
    keys = dict.fromkeys(key for entry in entries for key in entry)
    varying = [*(key for key in keys if any(other.get(key) != found[0].get(key)
                                            for other in found)), *grid]
    return Sweep(definition["name"], definition["about"], named(found, varying), varying,
                 definition["prompts"], definition)


def named(found, varying):
    """Returns name -> settings: each name says what varies, is a folder's, and only this run's."""
    names = [name_of(settings, varying) for settings in found]
    same = [name.lower() for name in names]  # for some systems, one folder
    for i, settings in enumerate(found):
        if same.count(same[i]) > 1:
            names[i] = f"{names[i]}-{digest(settings)}"
    return dict(zip(names, found))


def name_of(settings, varying):
    """Returns what a run is called, which follows from its own settings alone.

    >>> name_of({"n_layer": 2, "data": ["texts/a b.txt"], "seed": 1}, ["n_layer", "data"])
    'n_layer=2,data=a-b'
    """
    parts = [f"{key}={text_of(key, settings[key])}" for key in varying if key in settings]
    name = re.sub(r"[^\w.,+=-]+", "-", ",".join(parts) or "run", flags=re.ASCII).rstrip(". ")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME - 8].rstrip('. ')}-{digest(settings)}"
    return name


def text_of(key, value):
    if key in DATA:
        items = value if isinstance(value, list) else [value]
        return "+".join(PurePath(item).stem for item in items)
    return shown(value).strip('"')


def digest(settings):
    """Returns six signs that tell settings apart."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:6]


def flags_of(settings):
    """Returns the flags that tell the train command these settings.

    >>> flags_of({"n_layer": 2, "dedupe": True, "data": ["a", "b"], "grad_clip": None})
    ['--n-layer=2', '--dedupe', '--data=a', '--data=b']
    """
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    return flags


# ---- While it runs, and after --------------------------------------------------------------------


def work_of(settings):
    """Returns how much work a run's training is, about, in multiplications: to compare runs by."""
    C, L = settings.n_embd, settings.n_layer
    vocabulary = {"char": 65, "word": 16_000, "bpe": 257 + (settings.bpe_merges or 500),
                  "pretrained": 50_257}[settings.tokenizer]
    parameters = vocabulary * C + 12 * L * C * C
    return settings.num_steps * (settings.batch_size or 1) * settings.block_size * parameters


def seconds_left(work, done, elapsed):
    """Returns how long the rest takes, at the pace so far; None before there is one.

    work: of all runs that this start has to do. done: how much of it is.
    """
    return elapsed * (work - done) / done if done > 0 else None


def ranked(rows):
    """Returns rows of the table, the best first: by bits a character, which tokenizers share.

    Then those whose tokenizer loses text, whose loss says less; then those without a loss.
    """
    def key(row):
        bits, loss = row["bits_per_character"], row["val_loss"]
        order = 0 if bits is not None else 1 if loss is not None else 2
        return order, bits if bits is not None else loss or 0.0, row["name"]
    return sorted(rows, key=key)

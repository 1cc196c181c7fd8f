"""python3 microgpt.py sweep: many runs that differ in a few settings, several at once, compared."""
import importlib.util
import json
import random
import sys

from microgpt import backends
from microgpt.cli import arguments, learning, session, texts, train
from microgpt.cli.runs import print_table
from microgpt.cli.sweeping import COLUMNS, Start, count_of, write
from microgpt.corpus.load import load
from microgpt.nn import GPTConfig, count_parameters, init_weights
from microgpt.training import costs, runs, sweep
from microgpt.training.lock import Lock

OWN = ("file", "grid", "jobs", "devices", "retry", "dry_run", "json", "name", "prompt")


def make_parser():
    """Returns the train command's parser, whose flags are the base, with the sweep's own."""
    parser = train.make_parser()
    parser.prog = "python3 microgpt.py sweep"
    parser.usage = "%(prog)s [FILE.json] [--grid SETTING=VALUES ...] [flags of train]"
    parser.description = ("Trains a run for each combination of some settings, several at once, "
                          "and compares them. Started again, it goes on where it was stopped.")
    group = parser.add_argument_group("sweep")
    group.add_argument("file", nargs="?", metavar="FILE.json",
                       help="base, grid, runs and prompts; the flags win over it")
    group.add_argument("--grid", action="append", default=[], metavar="SETTING=VALUES",
                       help="as n_layer=1,2,4; repeated, every combination is a run")
    group.add_argument("--jobs", type=arguments.ranged(int, 1), metavar="N",
                       help="runs at once (default: 1, or one for each of --devices)")
    group.add_argument("--devices", metavar="NAMES", help="dealt out to the runs, as cuda:0,cuda:1")
    group.add_argument("--name", help="of the sweep's folder in runs/ (default: the file's, or "
                       "after the grid)")
    group.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                       help="what each run continues at the end; can be repeated")
    group.add_argument("--retry", action="store_true", help="start those that failed again")
    group.add_argument("--dry-run", action="store_true",
                       help="list the runs, with parameters and memory, and start none")
    group.add_argument("--json", action="store_true", help="the table as JSON")
    return parser


def run(args):
    """Trains what is left of a sweep, and prints the table; the exit code is 1 if a run failed."""
    asked = asked_sweep(args)
    devices = [name.strip() for name in (args.devices or "").split(",") if name.strip()]
    plans = checked_runs(asked, devices)
    if args.dry_run:
        return dry_run(asked, plans, args.jobs or len(devices) or 1, args)
    folder = runs.runs_folder() / asked.name
    check_folder(folder, asked)
    gather_once(plans)
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "lock"):
        check_folder(folder, asked)  # again: another may have begun one of this name just now
        write(folder / "sweep.json", asked.definition)
        return Start(asked, plans, folder, devices, args).go()


# ---- What is asked for ---------------------------------------------------------------------------


def asked_sweep(args):
    """Returns the Sweep of the file and the flags; ValueError for what is none."""
    flags = {}
    for name, value in vars(args).items():
        if name in sweep.SETTINGS and value is not None:
            flags[name] = sweep.check_setting(name, value)
        elif name not in OWN and value:
            raise ValueError(f"--{name.replace('_', '-')} is for a run of its own, not for a sweep")
    axes = [sweep.parse_axis(text) for text in args.grid]
    twice = next((name for name, _ in axes if [n for n, _ in axes].count(name) > 1), None)
    if twice:
        raise ValueError(f"--grid {twice} is given twice: it takes all values at once, "
                         f"{twice}=1,2")
    if args.file is None and not axes:
        raise ValueError("a sweep takes a FILE.json, or what varies: --grid n_layer=1,2,4")
    definition = {"name": args.name or "-".join(["sweep", *(name for name, _ in axes)])}
    if args.file is not None:
        definition = sweep.read(args.file, args.name)
    definition = sweep.check_definition(definition)
    return sweep.expand(sweep.overridden(definition, flags, axes, args.prompt))


def checked_runs(asked, devices):
    """Returns name -> (args, Settings) of all runs; ValueError names the first that cannot be."""
    parser = train.make_parser()

    def refuse(message):
        raise ValueError(message)
    parser.error = refuse
    plans, has_torch = {}, False
    for name, wanted in asked.runs.items():
        flags = sweep.flags_of(wanted) + [f"--device={device}" for device in devices[:1]]
        try:
            args = parser.parse_args(flags)
            plans[name] = args, checked_settings(args)
        except ValueError as error:
            raise ValueError(f"run {name}: {error}") from None
        if plans[name][1].backend == "torch" and not has_torch:
            has_torch = importlib.util.find_spec("torch") or backends.load("torch")
    return plans


def checked_settings(args):
    """Returns the Settings of a run's flags; ValueError for what no engine would take."""
    settings = train.asked_settings(args)
    if settings.epochs is None:
        settings.completed()
    # The engines have the last word on options; a model of one number asks them.
    tiny = GPTConfig(2, 1, 1, 1, 1, settings.model, settings.dropout, settings.init_std)
    engine = settings
    if settings.backend == "torch":  # which takes what matrix takes, and seconds to import
        engine = settings.changed(backend="matrix", device=None, dtype=None, threads=None)
    session.make_backend(engine, tiny, init_weights(tiny, random.Random(0)))
    return settings


def gather_once(plans):
    """Returns text flags -> Gathered, each text gathered once.

    So no page is fetched by all runs at once, and a file that is not there is named before the
    first run starts.
    """
    found = {}
    for name, (args, settings) in plans.items():
        if args.no_cache:
            continue
        key = text_key(args, settings)
        if key not in found:
            try:
                found[key] = texts.gather_texts(args, settings)
            except ValueError as error:
                raise ValueError(f"run {name}: {error}") from None
    return found


def text_key(args, settings):
    """Returns what tells texts apart; writes a preset's text into the flags."""
    return json.dumps([texts.asked_texts(args), settings.encoding, settings.extract],
                      sort_keys=True)


def check_folder(folder, asked):
    """Raises ValueError unless a folder is free for this sweep, or already its own."""
    if not folder.exists():
        return
    if not (folder / "sweep.json").exists():
        if not folder.is_dir() or any(file.name != "lock" for file in folder.iterdir()):
            raise ValueError(f"{folder} is there, and is no sweep's: give this one another --name")
        return
    differs = asked.difference(sweep.expand(sweep.read(folder / "sweep.json")))
    if differs:
        raise ValueError(f"{folder} holds a sweep of this name with other settings: {differs}; "
                         "give this one another --name")


# ---- Without starting any ------------------------------------------------------------------------


def dry_run(asked, plans, jobs, args):
    """Prints the runs, with the parameters that they will have, and the memory that they need."""
    gathered, sizes, rows = gather_once(plans), {}, []
    for name, (flags, settings) in plans.items():
        row = {"name": name, "parameters": None, "steps": None, "memory": None}
        try:
            row.update(size_of(flags, settings, gathered, sizes))
        except ValueError as error:
            print(f"microgpt: run {name}: {error}", file=sys.stderr)
        rows.append(row)
    if args.json:
        print(json.dumps({"name": asked.name, "runs": rows}))
        return 0
    print_table(rows, {"name": COLUMNS["name"], "parameters": COLUMNS["parameters"],
                       "steps": COLUMNS["steps"],
                       "memory": ("memory", lambda size: f"{size / 1e6:,.0f} MB")})
    most = sum(sorted(row["memory"] or 0 for row in rows)[-jobs:])
    print(f"{count_of(len(rows), 'run')}, {jobs} at once: about {most / 1e6:,.0f} MB of memory at "
          "most; none was started")
    return 0


def size_of(args, settings, gathered, sizes):
    """Returns parameters, steps and bytes of memory of a run; sizes: what is known of the texts."""
    text = gathered.get(text_key(args, settings)) or texts.gather_texts(args, settings)
    settings = settings.changed(val_fraction=texts.held_out_fraction(settings, text))
    key = (id(text), settings.tokenizer, settings.bpe_merges, settings.word_min_count,
           settings.vocabulary, settings.documents, settings.val_fraction, settings.dedupe)
    if key not in sizes:
        sizes[key] = load(text, lambda docs: learning.learn_tokenizer(
            settings, settings.tokenizer, docs, True), random.Random(settings.seed),
            mode=settings.documents, val_fraction=settings.val_fraction, dedupe=settings.dedupe)
    data = sizes[key]
    settings = session.with_steps(settings, data)
    config = settings.config(data.tokenizer.vocab_size)
    return {"parameters": count_parameters(config), "steps": settings.num_steps,
            "memory": costs.memory(config, settings, data.tokens_in_memory)}

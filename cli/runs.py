"""python3 microgpt.py runs: a table of all runs, or one run's loss curve."""
import contextlib
import json
import sys

from microgpt.cli import terminal
from microgpt.cli.parser import Parser
from microgpt.cli.progress import duration
from microgpt.nn import count_parameters
from microgpt.training import curve, runs

# column -> (heading, how a value is shown)
COLUMNS = {
    "name": ("name", str),
    "parameters": ("params", lambda n: f"{n:,}"),
    "tokenizer": ("tokenizer", str),
    "steps": ("steps", lambda n: f"{n:,}"),
    "val_loss": ("held out", lambda loss: f"{loss:.4f}"),
    "bits_per_character": ("bits/char", lambda bits: f"{bits:.3f}"),
    "tokens_per_second": ("tokens/s", lambda n: f"{n:,.0f}"),
    "backend": ("backend", str),
    "seconds": ("time", duration),
}


TEXTS = ("name", "tokenizer", "backend")
LEAST_FIRST = ("backend", "tokens_per_second", "tokenizer", "seconds", "parameters", "steps",
               "bits_per_character")  # what a narrow terminal does without
NARROWEST = 12  # of the names


def make_parser():
    parser = Parser("runs", "Lists all runs; with a run's name, draws its loss curve.")
    parser.add_argument("run", nargs="?", help="a run's name or path")
    parser.add_argument("--sort", choices=COLUMNS, metavar="COLUMN", type=column,
                        help=f"{', '.join(COLUMNS)}, or a heading of the table (default: the one "
                        "last written to first)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--json", action="store_true", help="the table as JSON, numbers whole")
    return parser


def column(text):
    """Returns the column of that name, or under that heading.

    >>> column("held out"), column("steps")
    ('val_loss', 'steps')
    """
    return {heading: name for name, (heading, _) in COLUMNS.items()}.get(text, text)


def run(args):
    """Prints a row a run; one that cannot be read says why, on standard error."""
    if args.run is not None:
        return show(runs.find(args.run), args)
    rows = []
    for path in runs.all_runs():
        try:
            rows.append(row_of(runs.open_run(path)))
        except ValueError as error:
            print(f"microgpt: {error}", file=sys.stderr)
    if args.sort:
        rows.sort(key=lambda row: (row[args.sort] is None, row[args.sort] or 0)
                  if args.sort not in TEXTS else row[args.sort])
    if args.reverse:
        rows.reverse()
    if args.json:
        print(json.dumps(rows))
    elif not rows:
        print(f"no runs in {runs.runs_folder()} yet: `python3 microgpt.py` trains one")
    else:
        print_table(rows)


def row_of(run):
    """Returns a run's row of the table: column -> value, None where there is none."""
    lines = run.log()
    last = lines[-1] if lines else {}
    best = min((line for line in lines if line["val_loss"] is not None),
               key=lambda line: line["val_loss"], default=last)
    settings, state = run.settings, None
    with contextlib.suppress(ValueError):  # damaged: whoever resumes it will hear so
        state = run.state()  # which has gone on since the last line of the log
    row = {"name": run.name, "parameters": count_parameters(run.config),
           "tokenizer": settings.tokenizer, "steps": state.step if state else last.get("step", 0),
           "val_loss": best.get("val_loss"), "bits_per_character": best.get("bits_per_character"),
           "tokens_per_second": last.get("tokens_per_second"), "backend": settings.backend,
           "seconds": last.get("seconds")}
    row.update(num_steps=settings.num_steps, best_step=best.get("step"), path=str(run.path))
    return row


def print_table(rows, shown=COLUMNS):
    """Prints rows under headings. On a terminal no line is broken: columns that it has no room
    for are left out, and then names are cut."""
    columns = {}
    for name, (heading, show_value) in shown.items():
        cells = ["-" if row[name] is None else printable(show_value(row[name])) for row in rows]
        columns[name] = [heading, *cells]
    widths = {name: max(map(len, cells)) for name, cells in columns.items()}
    if sys.stdout.isatty():
        room = terminal.columns() - 1
        for name in LEAST_FIRST:
            if name in widths and min(widths["name"], NARROWEST) + others(widths) > room:
                del widths[name]
        widths["name"] = max(1, min(widths["name"], room - others(widths)))
    for i in range(len(rows) + 1):
        line = []
        for name, width in widths.items():
            cell = columns[name][i][:width]
            line.append(cell.ljust(width) if name in TEXTS else cell.rjust(width))
        print("  ".join(line).rstrip())


def others(widths):
    """Returns how wide all columns but the names are, and the space between."""
    return sum(width + 2 for name, width in widths.items() if name != "name")


def printable(text):
    """Returns a text that moves no cursor: a folder may be named anything."""
    return "".join(character if character.isprintable() else "?" for character in text)


def show(run, args):
    """Prints one run: its row and its loss curve."""
    row, log = row_of(run), run.log()
    if args.json:
        print(json.dumps({**row, "log": log}))
        return
    print_table([row])
    if log:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        width = max(20, min(100, terminal.columns()))
        print(curve.to_text(log, width, ascii=not unicode))

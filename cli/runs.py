"""python3 microgpt.py runs: a table of all runs, or one run's loss curve."""
import argparse
import json
import shutil
import sys

from microgpt.cli import arguments
from microgpt.cli.progress import duration
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


def make_parser():
    parser = argparse.ArgumentParser("python3 microgpt.py runs", allow_abbrev=False,
                                     description="Lists all runs; with a run's name, draws its "
                                     "loss curve.")
    parser.add_argument("run", nargs="?", help="a run's name or path")
    parser.add_argument("--sort", choices=COLUMNS, metavar="COLUMN",
                        help=f"{', '.join(COLUMNS)} (default: the one last written to first)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--json", action="store_true", help="the table as JSON, numbers whole")
    return arguments.finish(parser)


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
                  if args.sort not in ("name", "tokenizer", "backend") else row[args.sort])
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
    best = min((line for line in lines if is_number(line.get("val_loss"))),
               key=lambda line: line["val_loss"], default=last)
    settings = run.settings
    row = {"name": run.name, "parameters": run.about.get("parameters"),
           "tokenizer": settings.tokenizer, "steps": last.get("step", 0),
           "val_loss": best.get("val_loss"), "bits_per_character": best.get("bits_per_character"),
           "tokens_per_second": last.get("tokens_per_second"), "backend": settings.backend,
           "seconds": last.get("seconds")}
    for name, value in row.items():
        if name not in ("name", "tokenizer", "backend") and not is_number(value):
            row[name] = None
    row.update(num_steps=settings.num_steps, best_step=best.get("step"), path=str(run.path))
    return row


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e300


def print_table(rows):
    """Prints rows under headings, each column as wide as it needs; names are cut to the rest."""
    table = [[heading for heading, _ in COLUMNS.values()]]
    for row in rows:
        table.append(["-" if row[name] is None else show_value(row[name])
                      for name, (_, show_value) in COLUMNS.items()])
    widths = [max(map(len, column)) for column in zip(*table)]
    if sys.stdout.isatty():
        spare = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths)
        widths[0] = min(widths[0], max(12, spare))
    for cells in table:
        line = [cells[0][:widths[0]].ljust(widths[0])]
        line += [cell.ljust(width) if heading in ("tokenizer", "backend") else cell.rjust(width)
                 for cell, width, heading in zip(cells[1:], widths[1:], [*COLUMNS][1:])]
        print("  ".join(line).rstrip())


def show(run, args):
    """Prints one run: its row and its loss curve."""
    row, log = row_of(run), run.log()
    if args.json:
        print(json.dumps({**row, "log": log}))
        return
    print_table([row])
    if log:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        width = min(100, shutil.get_terminal_size().columns)
        print(curve.to_text(log, width, ascii=not unicode))

"""python3 microgpt.py compare: what several runs write after the same prompts, side by side.

All with the same seed. In columns where the terminal has room for them, else one under the other.
"""
import json
import math
import sys

from microgpt.cli import arguments
from microgpt.cli.parser import Parser
from microgpt.cli.runs import row_of
from microgpt.cli.terminal import bold, columns, fold_lines, width
from microgpt.cli.writing import Writer, note, read_prompts, write_jobs
from microgpt.training import checkpoint, runs

LATEST = 4            # runs, where none is named
UNPROMPTED = 5        # texts, where there is no prompt
NARROWEST = 24        # column
BETWEEN = " | "


def make_parser():
    parser = Parser("compare", "Lets several runs write, each after the same prompts and with the "
                    "same seed, and shows the texts side by side.")
    parser.add_argument("runs", nargs="*", metavar="RUN",
                        help=f"names or paths of runs (default: the latest {LATEST})")
    arguments.add_use_flags(parser)
    group = arguments.add_generation_flags(parser)
    arguments.add_prompt_flags(group)
    group.add_argument("--num-samples", type=arguments.ranged(int, 1), metavar="N",
                       help=f"texts, of each prompt (default: 1; without a prompt, {UNPROMPTED})")
    parser.add_argument("--json", action="store_true", help="all of it as JSON")
    return parser


def run(args):
    """Prints what the runs write."""
    prompts = read_prompts(args)
    each = args.num_samples or (UNPROMPTED if prompts is None else 1)
    jobs = [(prompt, index) for prompt in prompts or [""] for index in range(each)]
    columns_of_runs = [column_of(args, one, jobs) for one in chosen_runs(args)]
    if args.json:
        print(json.dumps({"seed": args.seed, "prompts": [prompt for prompt, _ in jobs],
                          "runs": columns_of_runs}))
    else:
        show(jobs, columns_of_runs)


def chosen_runs(args):
    """Returns the Runs that are named, or the latest, and says which these are."""
    if args.runs:
        return [runs.find(name) for name in args.runs]
    found = []
    for path in runs.all_runs():
        try:
            found.append(runs.open_run(path))
        except ValueError as error:
            note(error)
        if len(found) == LATEST:
            break
    found = found or [runs.find(None)]
    note(f"the latest runs: {', '.join(one.name for one in found)}")
    return found


def column_of(args, one, jobs):
    """Returns a run's column, as JSON has it: how good it is, and its texts."""
    settings = arguments.sampling_settings(args, one.is_stream)
    writer = Writer(arguments.backend_of_run(args, one), one.tokenizer, one.is_stream)
    return {**facts_of(one), "texts": [
        {"prompt": text.prompt, "text": text.text, "tokens": text.tokens, "end": text.end}
        for text in write_jobs(one.name, writer, jobs, settings, args.seed)]}


def facts_of(one):
    """Returns a run's name, size and loss on held-out text: name -> value, None where unknown."""
    row = row_of(one)
    loss, bits = row["val_loss"], row["bits_per_character"]
    if loss is None and (one.path / "best.safetensors").exists():  # a model without its log
        _, metadata = checkpoint.read(one.path / "best.safetensors")
        try:
            loss = float(metadata.get("val_loss", ""))
        except ValueError:
            loss = None
        if loss is not None and one.settings.tokenizer == "char":
            bits = loss / math.log(2)
    return {"run": one.name, "tokenizer": row["tokenizer"], "parameters": row["parameters"],
            "val_loss": loss, "bits_per_character": bits}


# ---- for people ----------------------------------------------------------------------------------


def heading(column):
    """Returns what a column has above its texts, a line each."""
    lines = [column["run"], f"{column['tokenizer']}, {column['parameters'] or 0:,} parameters"]
    if column["val_loss"] is not None:
        lines.append(f"held out {column['val_loss']:.4f}")
    if column["bits_per_character"] is not None:
        lines.append(f"{column['bits_per_character']:.3f} bits a character")
    return lines


def show(jobs, found):
    """Prints the columns side by side, or one under the other."""
    room = (columns() - len(BETWEEN) * (len(found) - 1)) // len(found)
    if sys.stdout.isatty() and room >= NARROWEST and len(found) > 1:
        side_by_side(jobs, found, room)
        return
    for column in found:
        name, *facts = heading(column)
        print(f"{bold(name)}: {', '.join(facts)}")
    for i, (prompt, _) in enumerate(jobs):
        under_each_other(i, prompt, {column["run"]: column["texts"][i]["text"]
                                     for column in found})


def under_each_other(i, prompt, found):
    """Prints what each run has written behind a prompt: name -> text."""
    print(title_of(i, prompt))
    for name, text in found.items():
        text = prompt + text
        print(f"{name}:" + ("\n" if "\n" in text else " ") + text)


def title_of(i, prompt):
    return f"\n{i + 1}. " + (f"after {prompt!r}" if prompt else "without a prompt")


def side_by_side(jobs, found, room):
    """Prints the columns beside each other, each so wide."""
    print_cells([heading(column) for column in found], room)
    for i, (prompt, _) in enumerate(jobs):
        print(title_of(i, prompt))
        print_cells([[prompt + column["texts"][i]["text"]] for column in found], room)


def print_cells(cells, room):
    """Prints texts beside each other, lists of lines, each folded to its room."""
    folded = [[line for text in cell for line in fold_lines(text, room)] for cell in cells]
    for row in range(max(map(len, folded))):
        parts = [lines[row] if row < len(lines) else "" for lines in folded]
        padded = [part + " " * (room - width(part)) for part in parts]
        print(BETWEEN.join(padded).rstrip())

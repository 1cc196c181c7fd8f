"""python3 microgpt.py eval: the loss of a run's model, on its held-out text or on any other."""
import json
import math
import random

from microgpt.cli import arguments, texts
from microgpt.cli.parser import Parser
from microgpt.corpus.documents import encode, prepare
from microgpt.corpus.load import load
from microgpt.training.evaluation import characters_of_tokens, evaluate


def make_parser():
    parser = Parser("eval", "Measures a run's model: on the text that was held out from it, or, "
                    "with --data, on all of another text.")
    arguments.add_run_choice(parser)
    arguments.add_use_flags(parser)
    parser.add_argument("--eval-tokens", type=arguments.ranged(int, 1), metavar="N",
                        help="at most so many tokens (default: 20,000 in plain Python, 2 million "
                        "with torch)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    arguments.add_data_flags(parser)
    parser.set_defaults(extract=None, documents=None)
    return parser


def run(args):
    """Prints the loss, in nats a token and bits a character."""
    chosen = arguments.chosen_run(args)
    tokenizer = chosen.tokenizer
    other = arguments.given(args, texts.DATA_FLAGS)
    sequences, source, lost = (other_text if other else held_out)(args, chosen)
    backend = arguments.backend_of_run(args, chosen)
    characters = None if lost else characters_of_tokens(tokenizer)
    found = evaluate(backend, sequences, chosen.is_stream, args.eval_tokens, characters,
                     lambda done, total: texts.show_progress(f"testing: {100 * done // total} %"))
    texts.show_progress("")
    if args.json:
        print(json.dumps({"run": chosen.name, "weights": args.weights, "text": source,
                          "loss": found.loss,
                          "perplexity": math.exp(found.loss) if found.loss < 700 else None,
                          "bits_per_character": found.bits_per_character,
                          "tokens": found.tokens, "whole": found.whole, "unknown": lost}))
        return
    print(f"{chosen.name} ({args.weights}) on {source}: {found}")
    if lost:
        print(f"not in the vocabulary, so left out: {' '.join(map(repr, lost[:10]))}"
              + ", ..." * (len(lost) > 10))


def held_out(args, chosen):
    """Returns (tokens, name, []) of what was held out from a run."""
    settings = chosen.settings
    gathered = texts.stored_texts(args, chosen, settings)
    data = load(gathered, lambda docs: chosen.tokenizer, random.Random(settings.seed),
                mode=chosen.about["data"]["mode"], val_fraction=settings.val_fraction,
                dedupe=settings.dedupe, progress=texts.encoding_progress)
    texts.show_progress("")
    if not len(data.validation):
        raise ValueError(f"nothing was held out from {chosen.name}; name a text with --data")
    return data.validation, f"the text held out of {gathered.name}", []


def other_text(args, chosen):
    """Returns (tokens, name, symbols that are not in the vocabulary) of what --data names."""
    args.extract = args.extract or "builtin"
    gathered = texts.gather_texts(args)
    mode = args.documents or chosen.about["data"]["mode"]
    if mode == "auto":
        mode = chosen.about["data"]["mode"]
    if (mode == "stream") != chosen.is_stream:
        raise ValueError(f"--documents {mode}: the run {chosen.name} learned "
                         f"{chosen.about['data']['mode']}, and knows no other")
    corpus = prepare(gathered.texts(), random.Random(0), mode, dedupe=bool(args.dedupe))
    tokenizer = chosen.tokenizer
    unknown = list(dict.fromkeys(symbol for text in corpus.documents
                                 for symbol in tokenizer.unknown(text)))
    sequences = encode(corpus.documents, tokenizer, chosen.is_stream)
    if chosen.is_stream and len(sequences) < 2:
        raise ValueError(f"{gathered.name} has {len(sequences)} tokens that the model knows; there "
                         "must be two, one to predict the other from")
    return sequences, gathered.name, unknown

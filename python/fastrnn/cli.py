"""The command line: ``python -m fastrnn info | train [PATH] | sample MODEL``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__, corpus, demo, info, set_num_threads
from .charmodel import CELLS, CharacterModel, Vocabulary

__all__ = ["main"]

DEFAULT_MINUTES = 1.75
NEW_LINE = "\n"
PYTHON_START = "import sys\n\n\ndef "

TEMPERATURE_HELP = "below 1: likelier characters; 0: always the likeliest"

# The best of a few tried at hidden size 256 over a few million characters.  A cell without gates needs
# small steps; an LSTM takes large ones.
DEFAULT_LEARNING_RATES = {"lstm": 1e-2, "gru": 5e-3, "rnn": 2e-3}


class UsageError(Exception):
    """Something that the user can put right; the message says how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    code
        0: done; 1: the training diverged, and nothing is saved; 2: wrong usage; 130: interrupted by Ctrl-C
        other than the first one of a training, which ends it early.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except BrokenPipeError:
        # The reader (head, less) has had enough.  Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UsageError, corpus.CorpusError) as error:
        print(f"fastrnn: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"fastrnn: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(
            f"fastrnn: training diverged ({error}) and nothing is saved; try a smaller --learning-rate",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nfastrnn: interrupted", file=sys.stderr)
        return 130
    return 0


def _info(options: argparse.Namespace) -> None:
    print(info())


def _train(options: argparse.Namespace) -> None:
    missing = [name for name in ("tqdm", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"train needs {' and '.join(missing)}: pip install 'fastrnn[cli]'")
    text = corpus.standard_library() if options.path is None else corpus.read(options.path)
    try:
        if options.threads is not None:
            set_num_threads(options.threads)
        model = CharacterModel(
            Vocabulary.from_text(text.train), options.cell, options.hidden, options.layers, seed=options.seed
        )
    except (ValueError, MemoryError) as error:  # too many threads, too large a model
        raise UsageError(error) from error
    unlimited = options.minutes is None and options.steps is None
    prompt = PYTHON_START if options.path is None else NEW_LINE
    demo.run(
        text,
        model,
        demo.Options(
            out=options.out,
            batch=options.batch,
            chunk=options.chunk,
            learning_rate=options.learning_rate or DEFAULT_LEARNING_RATES[options.cell],
            minutes=DEFAULT_MINUTES if unlimited else options.minutes,
            steps=options.steps,
            prompt=prompt if options.prompt is None else options.prompt,
            temperature=options.temperature,
            seed=options.seed,
        ),
    )


def _sample(options: argparse.Namespace) -> None:
    path = options.model / "model.safetensors" if options.model.is_dir() else options.model
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UsageError(f"{path} is not a file")
    try:
        model = CharacterModel.load(path)
    except (ValueError, MemoryError) as error:
        raise UsageError(error) from error
    model.layer.eval()
    prompt = NEW_LINE if options.prompt is None else options.prompt
    demo.write(model, prompt, options.length, options.temperature, options.seed)


def _argument(
    kind: Callable[[str], Any], accept: Callable[[Any], bool], expected: str
) -> Callable[[str], Any]:
    """Make an argument type whose error says what it expects."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return value

    return parse


_COUNT = _argument(int, lambda value: value > 0, "a whole number greater than 0")
_SEED = _argument(int, lambda value: value >= 0, "a whole number, 0 or more")
_POSITIVE = _argument(float, lambda value: 0 < value < math.inf, "a number greater than 0")
_TEMPERATURE = _argument(float, lambda value: 0 <= value < math.inf, "a number, 0 or more")
_PATH = _argument(lambda text: Path(text) if text else None, lambda path: True, "a path")  # "" would be "."
_PROMPT = _argument(str, bool, "at least one character")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn", description="Fused recurrent layers: try them on text."
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "info",
        help="version, instruction sets, threads, CUDA",
        description="Print the version, how it was built, instruction sets, threads, and CUDA devices.",
    )
    command.set_defaults(command=_info)

    command = commands.add_parser(
        "train",
        help="train a character-level model on text",
        description="Train a character-level language model by truncated back-propagation through time. "
        "Writes model.safetensors and loss.png. Ctrl-C stops early and saves.",
    )
    command.set_defaults(command=_train)
    command.add_argument(
        "path",
        nargs="?",
        type=_PATH,
        metavar="PATH",
        help="a UTF-8 text file or a folder of such files (default: the source of Python's standard library)",
    )
    option = partial(_option, command)
    option("--cell", "kind of layer: lstm, gru or rnn", str.lower, "lstm", choices=list(CELLS))
    option("--hidden", "hidden size", _COUNT, 256)
    option("--layers", "stacked layers", _COUNT, 1)
    option("--minutes", f"time limit (default: {DEFAULT_MINUTES}, unless there are --steps)", _POSITIVE)
    option("--steps", "limit on optimizer steps", _COUNT)
    option("--batch", "streams read in parallel", _COUNT, 16)
    option("--chunk", "time steps per optimizer step", _COUNT, 64)
    rates = ", ".join(f"{rate:g} for {cell}" for cell, rate in DEFAULT_LEARNING_RATES.items())
    option("--learning-rate", f"peak of the cosine schedule (default: {rates})", _POSITIVE)
    option("--threads", "threads of the kernels (default: the CPUs there are)", _COUNT)
    option("--out", "folder for the results", _PATH, Path("fastrnn-model"))
    option("--prompt", "start of the samples (default: a new line, or how a Python file starts)", _PROMPT)
    option("--temperature", TEMPERATURE_HELP, _TEMPERATURE, 0.6)
    option("--seed", "of the initial parameters and the samples", _SEED, 0)

    command = commands.add_parser(
        "sample",
        help="let a trained model write",
        description="Write text with a model that train saved, one stream.step per character.",
    )
    command.set_defaults(command=_sample)
    command.add_argument(
        "model", type=_PATH, metavar="MODEL", help="model.safetensors or the folder it is in"
    )
    option = partial(_option, command)
    option("--prompt", "text to continue (default: a new line)", _PROMPT)
    option("--length", "characters to write", _COUNT, 1000)
    option("--temperature", TEMPERATURE_HELP, _TEMPERATURE, 0.6)
    option("--seed", "makes the text reproducible (default: another text every time)", _SEED)
    return parser


def _option(
    command: argparse.ArgumentParser,
    name: str,
    help: str,
    kind: Callable[[str], Any],
    default: Any = None,
    **options: Any,
) -> None:
    shown = help if default is None else f"{help} (default: {default})"
    metavar = name.removeprefix("--").upper()
    command.add_argument(name, type=kind, default=default, help=shown, metavar=metavar, **options)

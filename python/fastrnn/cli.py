"""The command line: ``python -m fastrnn info | train [PATH] | sample MODEL``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import corpus, info, set_num_threads
from .charmodel import CELLS, CharacterModel

__all__ = ["main"]

DEFAULT_MINUTES = 1.75


class UsageError(Exception):
    """Something that the user can put right; the message says how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    code
        0: done; 1: the training diverged; 2: wrong usage; 130: interrupted by Ctrl-C before there was
        anything to save.
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
        print(f"fastrnn: training diverged ({error}); try a smaller --learning-rate", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfastrnn: interrupted", file=sys.stderr)
        return 130
    return 0


def _info(options: argparse.Namespace) -> None:
    print(info())


def _train(options: argparse.Namespace) -> None:
    missing = [
        name for name in ("tqdm", "matplotlib", "threadpoolctl") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UsageError(f"train needs {' and '.join(missing)}: pip install 'fastrnn[cli]'")
    from . import demo

    if options.threads is not None:
        set_num_threads(options.threads)
    text = corpus.standard_library() if options.path is None else corpus.read(options.path)
    unlimited = options.minutes is None and options.steps is None
    prompt = "def " if options.path is None else "\n"
    demo.run(
        text,
        demo.Options(
            out=options.out,
            cell=options.cell,
            hidden=options.hidden,
            layers=options.layers,
            batch=options.batch,
            chunk=options.chunk,
            learning_rate=options.learning_rate,
            minutes=DEFAULT_MINUTES if unlimited else options.minutes,
            steps=options.steps,
            prompt=prompt if options.prompt is None else options.prompt,
            temperature=options.temperature,
            seed=options.seed,
        ),
    )


def _sample(options: argparse.Namespace) -> None:
    path = options.model / "model.safetensors" if options.model.is_dir() else options.model
    try:
        model = CharacterModel.load(path)
    except ValueError as error:
        raise UsageError(error) from error
    model.layer.eval()
    sys.stdout.write(options.prompt)
    for character in model.generate(
        options.prompt, options.length, temperature=options.temperature, seed=options.seed
    ):
        sys.stdout.write(character)
        sys.stdout.flush()
    print()


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
_PROMPT = _argument(str, bool, "at least one character")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn", description="Fused recurrent layers: try them on text."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("info", help="version, instruction sets, threads, CUDA")
    command.set_defaults(command=_info)

    command = commands.add_parser(
        "train",
        help="train a character-level model on text",
        description="Train a character-level language model by truncated back-propagation through time. "
        "Writes model.safetensors and loss.png. Ctrl-C stops early and saves.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(command=_train)
    command.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="a UTF-8 text file or a folder of such files; the source of Python's standard library",
    )
    command.add_argument("--cell", type=str.lower, choices=list(CELLS), default="lstm", help="kind of layer")
    command.add_argument("--hidden", type=_COUNT, default=256, help="hidden size")
    command.add_argument("--layers", type=_COUNT, default=1, help="number of stacked layers")
    command.add_argument("--minutes", type=_POSITIVE, help=f"time limit; {DEFAULT_MINUTES} if none is given")
    command.add_argument("--steps", type=_COUNT, help="limit on optimizer steps")
    command.add_argument("--batch", type=_COUNT, default=64, help="streams read in parallel")
    command.add_argument("--chunk", type=_COUNT, default=64, help="time steps per optimizer step")
    command.add_argument("--learning-rate", type=_POSITIVE, default=5e-3, help="peak of the cosine schedule")
    command.add_argument("--threads", type=_COUNT, help="kernel threads; as many as there are CPUs")
    command.add_argument("--out", type=Path, default=Path("fastrnn-model"), help="folder for the results")
    command.add_argument("--prompt", type=_PROMPT, help='start of the samples; "def " or a new line')
    _add_sampling(command, temperature=0.6, seed=0)

    command = commands.add_parser(
        "sample",
        help="let a trained model write",
        description="Write text with a model that train saved, one stream.step per character.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(command=_sample)
    command.add_argument("model", type=Path, metavar="MODEL", help="model.safetensors or the folder it is in")
    command.add_argument("--prompt", type=_PROMPT, default="\n", help="text to continue; a new line")
    command.add_argument("--length", type=_COUNT, default=1000, help="characters to write")
    _add_sampling(command, temperature=0.6, seed=None)
    return parser


def _add_sampling(command: argparse.ArgumentParser, temperature: float, seed: int | None) -> None:
    command.add_argument(
        "--temperature",
        type=_TEMPERATURE,
        default=temperature,
        help="below 1: likelier characters; 0: always the likeliest",
    )
    command.add_argument("--seed", type=_SEED, default=seed, help="makes the result reproducible")

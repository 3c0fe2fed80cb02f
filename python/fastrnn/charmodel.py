"""A character-level language model on one fused stack: what ``python -m fastrnn train`` trains.

Characters become integer tokens, tokens go straight into an LSTM, GRU or RNN, and a `Linear` layer
turns its output into logits for the next character (Graves, "Generating Sequences With Recurrent
Neural Networks", 2013).  Training is truncated back-propagation through time: the text is cut into
parallel streams, every stream is read chunk by chunk, and the state at the end of one chunk starts
the next, so that only gradients, not memory, end at a chunk's border.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _files
from ._backends import CPU, Array
from ._calls import check_num_layers, check_parameters
from .layers import GRU, LSTM, RNN
from .layouts import Cell, Spec, integer, one_of
from .models import ManyToMany
from .sampling import generate_steps
from .training import mean_loss, softmax_cross_entropy

__all__ = ["CharacterModel", "Vocabulary", "chunks", "stream_count"]

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

Tokens = NDArray[np.int64]


class Vocabulary:
    """The characters a model knows.  Token 0 stands for every other one.

    Parameters
    ----------
    characters : str
        Each once; the first is token 1.

    Raises
    ------
    TypeError, ValueError
        It is no string, is empty, or has a character twice.

    Examples
    --------
    >>> from fastrnn.charmodel import Vocabulary
    >>> vocabulary = Vocabulary("abc")
    >>> vocabulary.encode("cab?")
    array([3, 1, 2, 0])
    >>> vocabulary.decode([3, 1, 2, 0])
    'cab\N{REPLACEMENT CHARACTER}'
    """

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str):
            raise TypeError(f"characters has type {type(characters).__name__}; expected a string")
        if not characters or len(set(characters)) != len(characters):
            raise ValueError(f"characters is {characters!r}; expected at least one, and each once")
        self.characters = characters
        codes = _code_points(characters)
        # One entry more than the largest known code point: what lies above reads that last 0.
        self._token_of = np.zeros(int(codes.max(initial=-1)) + 2, np.int64)
        self._token_of[codes] = np.arange(1, len(characters) + 1)

    @classmethod
    def from_text(cls, text: str, coverage: float = 0.9999, max_size: int = 2000) -> Vocabulary:
        """Take the most frequent characters, up to `coverage` of the text or max_size of them.

        Rare characters are left out because each costs a row of every product of the output layer and
        is seen too seldom to be learned.
        """
        counts = Counter(text)
        kept: list[str] = []
        seen = 0
        for character, count in counts.most_common(max_size):
            if seen >= coverage * len(text):
                break
            if character != UNKNOWN:
                kept.append(character)
            seen += count
        return cls("".join(sorted(kept)))

    def __repr__(self) -> str:
        return f"Vocabulary({self.characters!r})"

    def __len__(self) -> int:
        """V: the number of tokens, the one for unknown characters included."""
        return len(self.characters) + 1

    def encode(self, text: str) -> Tokens:
        """Turn each character into a token."""
        if not isinstance(text, str):
            raise TypeError(f"text has type {type(text).__name__}; expected a string")
        codes = np.minimum(_code_points(text), len(self._token_of) - 1)
        tokens: Tokens = self._token_of[codes]
        return tokens

    def decode(self, tokens: Any) -> str:
        """Turn tokens into text; unknown characters come out as U+FFFD."""
        symbols = UNKNOWN + self.characters
        return "".join(symbols[token] for token in tokens)


def _code_points(text: str) -> NDArray[np.int64]:
    # A command-line prompt may hold lone surrogates (undecodable bytes): they are unknown characters too.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


def chunks(tokens: NDArray[Any], batch: int, steps: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Cut a token sequence into `batch` contiguous streams and yield them chunk by chunk.

    Row b of each chunk continues row b of the chunk before, so the state carries over (Williams & Peng,
    "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories", 1990).

    Parameters
    ----------
    tokens
        (N,), one long sequence, N > batch.
    batch
        B: the number of streams, (N - 1) // B tokens each.  The remainder is left out.
    steps
        T: the length of a chunk; the last one may be shorter.

    Yields
    ------
    x, targets
        Both (T, B): the targets are x one step later.

    Raises
    ------
    ValueError
        The sequence is too short for one step of every stream.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.charmodel import chunks
    >>> for x, targets in chunks(np.arange(7), batch=2, steps=2):
    ...     print(x.tolist(), targets.tolist())
    [[0, 3], [1, 4]] [[1, 4], [2, 5]]
    [[2, 5]] [[3, 6]]
    """
    integer("batch", batch, 1)
    integer("steps", steps, 1)
    length = (len(tokens) - 1) // batch
    if length < 1:
        raise ValueError(
            f"{len(tokens)} tokens are too few for {batch} streams; expected at least {batch + 1}"
        )
    x = tokens[: batch * length].reshape(batch, length).T
    targets = tokens[1 : batch * length + 1].reshape(batch, length).T
    for start in range(0, length, steps):
        part = slice(start, start + steps)
        yield np.ascontiguousarray(x[part], np.int64), np.ascontiguousarray(targets[part], np.int64)


def stream_count(tokens: NDArray[Any], most: int, steps: int) -> int:
    """Into how many streams to cut a sequence: at most `most`, fewer where they would not fill a chunk."""
    return max(1, min(most, (len(tokens) - 1) // steps))


class CharacterModel:
    """A vocabulary, and a `models.ManyToMany` over its tokens.

    Parameters
    ----------
    vocabulary
        The characters it reads and writes.
    cell
        "lstm", "gru" or "rnn".
    hidden_size, num_layers
        Of the stack.
    seed
        Makes the initial parameters reproducible.

    Attributes
    ----------
    model
        What is trained.
    layer, output
        Its recurrent stack and its readout.

    Examples
    --------
    >>> from fastrnn.charmodel import CharacterModel, Vocabulary, chunks
    >>> from fastrnn.training import Adam, fit, softmax_cross_entropy
    >>> text = "tick tock " * 200
    >>> model = CharacterModel(Vocabulary.from_text(text), hidden_size=32, seed=0)
    >>> history = fit(
    ...     model.model,
    ...     list(chunks(model.vocabulary.encode(text), batch=8, steps=25)),
    ...     loss=softmax_cross_entropy,
    ...     optimizer=Adam([model.model], learning_rate=0.01),
    ...     epochs=20,
    ...     carry_state=True,
    ... )
    >>> _ = model.model.eval()
    >>> "".join(model.generate("tick", length=16, temperature=0))
    ' tock tick tock '
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        cell: Cell = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        *,
        seed: int | None = None,
    ) -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise TypeError(f"vocabulary is {vocabulary!r}; expected a Vocabulary")
        one_of("cell", cell, tuple(CELLS))
        self.vocabulary = vocabulary
        self.cell = cell
        layer: Any = CELLS[cell](len(vocabulary), hidden_size, num_layers, seed=seed)
        # The readout draws from its own stream, or it would repeat the first weights of the stack.
        output_seed = None if seed is None else seed + 1
        self.model = ManyToMany(layer, len(vocabulary), output="softmax", seed=output_seed)
        self.layer, self.output = self.model.layer, self.model.readout

    def __repr__(self) -> str:
        return f"CharacterModel({self.vocabulary!r}, {self.layer!r})"

    def bits_per_character(self, tokens: NDArray[Any], batch: int = 32, steps: int = 256) -> float:
        """Mean cross entropy over a token sequence, at least 2, in at most `batch` streams from a zero state.

        Unknown characters count as one symbol.
        """
        parts = chunks(tokens, stream_count(tokens, batch, steps), steps)
        return mean_loss(self.model, parts, softmax_cross_entropy, carry_state=True) / math.log(2)

    def generate(
        self, prompt: str, length: int, *, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """Read the prompt, then yield `length` characters, each drawn given all before it.

        The layer must be in eval mode; it advances one `stream` step by step.  Characters are drawn as by
        `sampling.generate`, the unknown one never.

        Parameters
        ----------
        prompt
            At least one character.  It is not yielded.
        length
            The number of characters to yield.
        temperature
            Below 1 the likely characters get likelier; 0 always takes the likeliest.
        seed
            Makes the draws reproducible.
        """
        if not prompt:
            raise ValueError("prompt is empty; expected at least one character to start from")
        tokens = self.vocabulary.encode(prompt)
        steps = generate_steps(self.model, tokens, length, temperature=temperature, exclude=[0], seed=seed)
        return (self.vocabulary.characters[token - 1] for (token,) in steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, vocabulary and configuration to one safetensors file.

        The file appears complete or not at all: an interrupted save leaves an older one as it was.
        """
        description = {
            "cell": self.cell,
            "hidden_size": self.layer.hidden_size,
            "num_layers": self.layer.num_layers,
            "characters": self.vocabulary.characters,
        }
        arrays = {f"layer.{name}": array for name, array in self.layer.parameters.items()}
        arrays |= {f"output.{name}": array for name, array in self.output.parameters.items()}
        _files.write(path, _files.CHARACTER_MODEL, arrays, description)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CharacterModel:
        """Read a model that `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is no file of `save`.
        """
        return _files.load(path, _files.CHARACTER_MODEL, cls._described)

    @classmethod
    def _described(cls, description: dict[str, Any], arrays: Mapping[str, Array]) -> CharacterModel:
        """Make the model that `save` described; sizes are compared before anything is allocated."""
        vocabulary = Vocabulary(description.pop("characters"))
        spec = Spec(input_size=len(vocabulary), **description)
        check_num_layers(spec, arrays)
        output = {"weight": (len(vocabulary), spec.hidden_size), "bias": (len(vocabulary),)}
        shapes = {f"layer.{name}": shape for name, shape in spec.parameter_shapes().items()}
        shapes |= {f"output.{name}": shape for name, shape in output.items()}
        checked = check_parameters(CPU.own, "parameters", shapes, arrays, spec.dtype, cast=True)

        model = cls(vocabulary, spec.cell, spec.hidden_size, spec.num_layers)
        own = [*model.layer.parameters.values(), *model.output.parameters.values()]
        for parameter, array in zip(own, checked, strict=True):
            parameter[...] = array
        return model

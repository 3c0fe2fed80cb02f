"""A character model of source code: the demo, small, and what its hidden units follow.

    h_t = GRU(x_t, h_{t-1}),    p_t = softmax(V h_t + c),    L = -mean log p_t[x_{t+1}]

`python -m fastrnn train` reads the source of Python's standard library, character by character, and writes
samples on the way: indentation comes first, then words such as def and self, then brackets that close.
L / ln 2 is in bits per character; a guess among V characters costs log2 V.  Afterwards the hidden units
that vary most are drawn over a text: some follow something that can be named, such as a bracket (Karpathy,
Johnson & Fei-Fei, "Visualizing and understanding recurrent networks", 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastrnn import cli
from fastrnn.charmodel import CharacterModel
from fastrnn.corpus import standard_library
from fastrnn.diagnostics import hidden_picture
from lecture import parser, save

TEXT = '''def mean(values):
    """Return the average of some values."""
    if not values:
        raise ValueError("there are no values")
    return sum(values) / len(values)  # of numbers
'''


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=800, help="updates, of 1024 characters each")
    options = arguments.parse_args(argv)

    folder = options.out / "character_model"
    size = ["--cell", "gru", "--hidden", "128", "--steps", str(options.steps)]
    if cli.main(["train", *size, "--out", str(folder)]) != 0:
        raise SystemExit("the training failed")
    model = CharacterModel.load(folder / "model.safetensors")
    model.layer.eval()
    held_out = model.vocabulary.encode(standard_library().held_out[:200_000])
    bits, guess = model.bits_per_character(held_out), np.log2(len(model.vocabulary))
    print(f"\n{bits:.2f} bits per character of code that it has not read; a guess costs {guess:.2f}")
    save(hidden_picture(model, TEXT).draw(columns=60), options.out, __file__)
    return {"bits": bits, "guess": guess}


if __name__ == "__main__":
    main()

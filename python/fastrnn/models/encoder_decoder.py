"""A sequence from a sequence, of another length."""

from __future__ import annotations

from typing import Any

from .._arrays import expect_shape, is_on_device, take
from .._backends import is_integer
from ..info import Report
from ..layouts import boolean
from ._host import seeds
from ._model import PartStream, State, given, joined_reports
from ._states import (
    Bridge,
    check_backward,
    check_layer,
    check_one_direction,
    flat_state,
    state_of_flat,
    state_shapes,
)
from .readouts import Decoder, ManyToMany


class EncoderDecoder(Decoder):
    """Two layers: one reads x of T_x steps, the other starts from its final state and makes T_y outputs.

    ::

        s = encoder(x)                  its final state
        d_0 = s, or tanh(W s + b)       with a bridge
        o_t = V d_t + c                 d_t of the decoder

    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", and Sutskever, Vinyals & Le, "Sequence to sequence learning with neural networks", both
    2014; Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.4.  In training the decoder's
    inputs are given, the targets one step late (teacher forcing); `start` gives a stream to generate from.

    Parameters
    ----------
    encoder
        A layer or a model with a state; time-major.
    decoder
        A layer or a model of one direction.
    output_size
        O: width of o.
    bridge
        Whether an affine map and tanh make the decoder's state of the encoder's: needed where they are of
        different shapes, as from a bidirectional encoder.
    output, seed
        As of `ManyToMany`.

    Raises
    ------
    ValueError
        The states are of different shapes and there is no bridge, or the decoder is bidirectional.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import EncoderDecoder
    >>> encoder = fastrnn.GRU(10, 8, bidirectional=True, seed=0)
    >>> model = EncoderDecoder(encoder, fastrnn.GRU(10, 8, seed=1), 10, bridge=True, seed=2)
    >>> x, inputs = np.full((7, 4), 3), np.full((5, 4), 2)
    >>> o, _ = model(x, inputs=inputs, lengths=[7, 6, 5, 4])
    >>> o.shape
    (5, 4, 10)
    >>> model.eval().start(x, lengths=[7, 6, 5, 4]).step(inputs[0]).shape
    (4, 10)
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        output_size: int,
        *,
        bridge: bool = False,
        output: str = "linear",
        seed: int | None = None,
    ) -> None:
        check_layer("encoder", encoder)
        check_one_direction("decoder", decoder, "its sequence is yet to be made")
        self._encoded, wanted = state_shapes(encoder, 1), state_shapes(decoder, 1)
        if not boolean("bridge", bridge) and self._encoded != wanted:
            raise ValueError(
                f"the encoder's state has the shapes {self._encoded} a row, the decoder's {wanted}; "
                f"expected the same, or bridge=True"
            )
        self.encoder = encoder
        self.bridge: Bridge | None = None
        first, second = seeds(seed, 2)
        parts: dict[str, Any] = {"encoder": encoder}
        if bridge:
            width = sum(n * w for n, _, w in self._encoded)
            self.bridge = parts["bridge"] = Bridge(width, decoder, seed=first)
        super().__init__(ManyToMany(decoder, output_size, output=output, seed=second), **parts)

    @property
    def input_size(self) -> int:
        """I: the encoder's."""
        return int(self.encoder.input_size)

    def __call__(
        self,
        x: Any,
        state: State = None,
        *,
        inputs: Any = None,
        lengths: Any = None,
        target_lengths: Any = None,
    ) -> tuple[Any, State]:
        """Read x, then run the decoder over `inputs`.

        Parameters
        ----------
        x : array (T_x, B, I), or tokens (T_x, B)
        state : as the encoder's, optional
            Where the encoder starts.
        inputs : array (T_y, B, I_y), or tokens (T_y, B)
            Of the decoder.
        lengths, target_lengths : integers (B,), optional
            Steps of each row of x, and of `inputs`.

        Returns
        -------
        o : array (T_y, B, O)
        state_n : as the decoder's

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        x = self._check_x(x)
        inputs, target_lengths = self._check_inputs(inputs, x.shape[1], target_lengths)
        return self.decoder(inputs, self._encode(x, state, lengths), **given(lengths=target_lengths))

    def _check_x(self, x: Any) -> Any:
        """Return x (T_x, B, ...); the encoder checks what is on a device."""
        if not is_on_device(x):
            x = take("x", x)
            axes = {"T": None, "B": None}
            expect_shape("x", x, axes if is_integer(x) else axes | {"I": self.input_size})
        return x

    def _encode(self, x: Any, state: State, lengths: Any) -> State:
        _, encoded = self.encoder(x, state, **given(lengths=lengths))
        if self.bridge is None:
            return encoded
        _, started = self.bridge(flat_state(encoded, self.device))
        return started

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns dx and dstate, both of the encoder.

        The gradient in `inputs` is then in `dinputs`.
        """
        check_backward(self.encoder, None, None)
        self.dinputs, dstate = self.decoder.backward(do, dstate_n)
        if self.bridge is not None:
            dflat, _ = self.bridge.backward(None, dstate)
            dstate = state_of_flat(dflat, self._encoded)
        dx, dfirst = self.encoder.backward(None, dstate)
        return dx, dfirst

    def explain(self, x: Any, *, inputs: Any = None) -> Report:
        """Tell what runs encoder and decoder in a call with these; computes nothing."""
        x = self._check_x(x)
        inputs, _ = self._check_inputs(inputs, x.shape[1], None)
        return joined_reports(encoder=self.encoder.explain(x), decoder=self.decoder.explain(inputs))

    def start(self, x: Any, state: State = None, *, lengths: Any = None) -> PartStream:
        """Return a stream of B rows that has read x, and takes the decoder's inputs; needs eval mode."""
        x = self._check_x(x)
        stream = self.decoder.stream(x.shape[1])
        stream.state = self._encode(x, state, lengths)
        return stream

"""The modules: torch.nn's in arguments, attributes, checks and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from . import _kernels
from ._autograd import recurrence

Tensor = Any
_HALVES = (torch.float32, torch.bfloat16, torch.float16)


def _check_weights(weights: Sequence[Tensor], x: Tensor) -> None:
    """Refuse what the kernels have no numbers for."""
    kind = weights[0].dtype
    if kind not in (torch.float32, torch.float64) and not (kind in _HALVES and x.is_cuda):
        raise TypeError(
            f"weights are {kind} on {x.device}; expected torch.float32 or torch.float64 there: convert the "
            f"module with .float()"
        )
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(f"input is on {x.device}; expected the CPU or a CUDA device")


class _Casts:
    """What torch.autocast makes of a call: inputs in the dtype of the weights, results in torch.nn's."""

    def __init__(
        self, x: Tensor, state: Sequence[Tensor], weight: Tensor, promote: bool, promote_c: bool
    ) -> None:
        self.results: Any = None
        self.c: Any = None
        self.x, self.state = x, list(state)
        device = x.device.type
        if not torch.is_autocast_enabled(device) or weight.dtype not in _HALVES:
            return
        if x.dtype not in _HALVES or any(s.dtype not in _HALVES for s in state):
            return
        # Where the last formula of a step is torch's own, it has the wider dtype of gates and state.
        narrow = wide = torch.get_autocast_dtype(device)
        for value in state or (x,):
            wide = torch.promote_types(wide, value.dtype)
        self.results = wide if promote else narrow
        self.c = wide if promote_c else narrow
        self.x = x.to(weight.dtype)
        self.state = [s.to(weight.dtype) for s in state]

    def cast(self, value: Tensor) -> Tensor:
        """Return a result in the dtype that torch.nn's has."""
        return value if self.results is None else value.to(self.results)

    def cast_c(self, value: Tensor | None) -> Tensor | None:
        """Return c, if there is one, in the dtype that torch.nn's has."""
        return value if self.c is None or value is None else value.to(self.c)


def _tensors(module: Any, names: Sequence[str]) -> list[Tensor]:
    own = module._parameters
    try:
        return [own[name] for name in names]
    except KeyError:  # parametrized, or computed by a hook
        return [getattr(module, name) for name in names]


class _Packs(torch.nn.Module):
    """What drops the packed weights of a module."""

    def _drop(self) -> None:
        for name in ("weight_ih_l0", "weight_ih"):
            weight = self._parameters.get(name)
            if weight is not None:
                _kernels.drop_memory(weight)
        # What a call saw may be other tensors: hooks, as those that shard weights, put them in and out.
        _kernels.drop_packed()

    def train(self, mode: bool = True) -> Any:
        """Set the mode, as torch.nn's, and forget the packed weights, of every layer."""
        self._drop()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # torch.utils.swap_tensors takes no tensor that there are weak references to.
        self._drop()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop()
        super()._load_from_state_dict(*args, **kwargs)


class _Layer(_Packs, torch.nn.RNNBase):
    """What LSTM, GRU and RNN have in common."""

    peephole: Any = False  # of the class, so that a torch.nn module can become one of these
    reset_after: bool = True
    _cell: str
    _promote = False

    def _weights(self) -> list[Tensor]:
        return _tensors(self, self._flat_weights_names)

    def flatten_parameters(self) -> None:
        """Forget the packed weights, of every layer; the next call of each packs them again.

        Needed in eval mode alone, after writes that torch counts no version for: in place through
        ``.data`` (``target.data.copy_(...)``), into a NumPy or DLPack view, into a flat buffer that the
        weights are views of, by a fused function of torch's that is called without its optimizer. While
        there is a process group of torch.distributed, weights are packed at every call.
        """
        self._drop()

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        if self.peephole:
            text += f", peephole={self.peephole!r}"
        return text if self.reset_after else text + ", reset_after=False"

    def _options(self, layout: str, dropout: float) -> str:
        nonlinearity = "relu" if self.mode == "RNN_RELU" else "tanh"
        return (
            f"layout={layout} cell={self._cell} input_size={self.input_size} hidden_size={self.hidden_size} "
            f"num_layers={self.num_layers} bias={self.bias} dropout={dropout} "
            f"bidirectional={self.bidirectional} proj_size={self.proj_size} "
            f"peephole={self.peephole or 'none'} reset_after={self.reset_after} nonlinearity={nonlinearity}"
        )

    def _seed(self) -> tuple[float, Tensor | None]:
        """Return the dropout that this call has, and what its masks are drawn with."""
        if not self.training or not self.dropout or self.num_layers == 1:
            return 0.0, None
        return self.dropout, torch.randint(2**63 - 1, (), dtype=torch.int64)

    def _check_input(self, input: Tensor, weights: Sequence[Tensor], casts: Any) -> None:
        dtype = weights[0].dtype
        x = input if casts is None else casts.x
        if x.dtype is not dtype:
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
            )
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {input.size(-1)}"
            )
        if not input.is_cpu or not weights[0].is_cpu:
            _kernels.check_device(input.device, weights[0], "parameter")
        if dtype is not torch.float32 and dtype is not torch.float64:
            _check_weights(weights, input)

    def _check_state(self, x: Tensor, state: Sequence[Tensor], batch: int, batched: bool) -> None:
        front = (self.num_layers * (2 if self.bidirectional else 1), batch)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        for number, (part, width) in enumerate(zip(state, widths, strict=False)):
            expected = (*front, width)
            if (tuple(part.shape) if batched else (part.shape[0], 1, *part.shape[1:])) != expected:
                which = f"hidden[{number}]" if self._cell == "lstm" else "hidden"
                self.check_hidden_size(
                    part if batched else part.unsqueeze(1), expected, f"Expected {which} size {{}}, got {{}}"
                )
            if not part.is_cpu or not x.is_cpu:
                _kernels.check_device(x.device, part, "hidden")
            if part.dtype is not x.dtype:
                raise RuntimeError(
                    f"input is {x.dtype} and hx is {part.dtype}; expected the same dtype for both"
                )

    def _check_ranks(self, state: Sequence[Tensor], batched: bool) -> None:
        kind, rank = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
        ranks = [part.dim() for part in state]
        if any(found != rank for found in ranks):
            if self._cell == "lstm":
                found = ", ".join(f"{n}-D" for n in ranks)
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {rank}-D but got ({found}) tensors"
                )
            raise RuntimeError(f"For {kind} input, hx should also be {rank}-D but got {ranks[0]}-D tensor")

    def _parts(self, hx: Any) -> tuple[Tensor, ...]:
        if self._cell != "lstm":
            return (hx,)
        if isinstance(hx, torch.Tensor):
            raise TypeError(f"hx is one tensor, of shape {tuple(hx.shape)}; expected the pair (h, c)")
        if len(hx) > 2:
            raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
        return (hx[0], hx[1])

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None
    ) -> tuple[Any, Any]:
        """Run the layers, as torch.nn's.

        Parameters
        ----------
        input : Tensor (T, B, I), with batch_first (B, T, I), or (T, I); or a PackedSequence
        hx : Tensor (L*D, B, R), for LSTM the pair (h, c) with c (L*D, B, H), optional
            Without a batch axis for an input without one.  Zeros if None.
        lengths : integers (B,), optional
            Steps of each row, in any order, 0 allowed, in place of packing: past them the output is 0, the
            final state is that of the row's own end, and the input may hold anything.
        resets : bool, with the leading axes of `input`, optional
            A boundary before a step: the state that enters it is zero, and no gradient crosses.

        Returns
        -------
        output : Tensor (T, B, D*R), laid out as `input`; or a PackedSequence
        h_n : Tensor, for LSTM the pair (h_n, c_n), shaped as hx

        Raises
        ------
        ValueError, RuntimeError
            Those of torch.nn, for wrong ranks, sizes, dtypes and devices, and for T = 0; ValueError for
            lengths and resets of another shape or out of range.
        TypeError
            For weights of a dtype that there are no kernels for; for lengths and resets of another dtype.
        """
        if isinstance(input, PackedSequence):
            run = self._forward_packed
            if torch.compiler.is_compiling():  # sizes that are data break the graph
                run = torch.compiler.disable(run)
            return run(input, hx, lengths, resets)
        rank = input.dim()
        if rank not in (2, 3):
            noun = " tensor" if self._cell == "rnn" else ""
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {rank}D{noun} instead"
            )
        batched = rank == 3
        weights = self._weights()
        state: Sequence[Tensor] = () if hx is None else self._parts(hx)
        if state:
            self._check_ranks(state, batched)
        casts, x = None, input
        if torch._C._is_any_autocast_enabled():
            casts = _Casts(input, state, weights[0], self._promote, self.proj_size > 0)
            x, state = casts.x, casts.state
        self._check_input(input, weights, casts)
        time = 1 if self.batch_first and batched else 0
        batch = input.shape[1 - time] if batched else 1
        if state:
            self._check_state(x, state, batch, batched)
        if input.shape[time] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            lengths = _lengths(lengths, batch, batched, x)
        if resets is not None:
            resets = _resets(resets, input)
        dropout, seed = self._seed()
        h, c = (*state, None, None)[:2]
        options = self._options("T" if not batched else "BT" if time else "TB", dropout)
        y, h_n, c_n = recurrence(x, h, c, weights, lengths, resets, seed, options, not self.training)
        if casts is not None:
            y, h_n, c_n = casts.cast(y), casts.cast(h_n), casts.cast_c(c_n)
        return y, (h_n, c_n) if self._cell == "lstm" else h_n

    def _forward_packed(self, packed: Any, hx: Any, lengths: Any, resets: Any) -> tuple[Any, Any]:
        """Pad, run with lengths, pack again."""
        for name, value in (("lengths", lengths), ("resets", resets)):
            if value is not None:
                raise ValueError(f"{name} is given beside a PackedSequence; expected a padded tensor")
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        weights = self._weights()
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        batch = int(batch_sizes[0])
        state: Sequence[Tensor] = ()
        if hx is not None:
            state = [
                part if sorted_indices is None else part.index_select(1, sorted_indices)
                for part in self._parts(hx)
            ]
        casts, x = None, data
        if torch._C._is_any_autocast_enabled():
            # The LSTM of oneDNN, which rounds everything, takes no packed sequences and no projections.
            promote = self._promote or (self._cell == "lstm" and not self.proj_size)
            casts = _Casts(data, state, weights[0], promote, True)
            x, state = casts.x, casts.state
        self._check_input(data, weights, casts)
        if state:
            self._check_state(x, state, batch, True)
        x, ends = torch._VF._pad_packed_sequence(x, batch_sizes, False, 0.0, batch_sizes.numel())
        dropout, seed = self._seed()
        h, c = (*state, None, None)[:2]
        options = self._options("TB", dropout)
        y, h_n, c_n = recurrence(x, h, c, weights, ends.to(x.device), None, seed, options, not self.training)
        y = torch._VF._pack_padded_sequence(y, ends, False)[0]
        if casts is not None:
            y, h_n, c_n = casts.cast(y), casts.cast(h_n), casts.cast_c(c_n)
        lstm = self._cell == "lstm"
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices) if lstm else None
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n) if lstm else h_n


def _tensor(given: Any, x: Tensor) -> Tensor:
    """Return a tensor where x is, a copy of what is none: nobody counts the writes to a NumPy array."""
    if isinstance(given, torch.Tensor):
        return given.to(x.device)
    return torch.as_tensor(np.array(given), device=x.device)


def _lengths(lengths: Any, batch: int, batched: bool, x: Tensor) -> Tensor:
    found = _tensor(lengths, x)
    if found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise TypeError(f"lengths is {found.dtype}; expected integers")
    if not batched and found.dim() == 0:
        found = found[None]
    if tuple(found.shape) != (batch,):
        raise ValueError(f"lengths has shape {tuple(found.shape)}; expected (B,) = ({batch},)")
    return found.to(torch.int64)


def _resets(resets: Any, x: Tensor) -> Tensor:
    found = _tensor(resets, x)
    if found.dtype is not torch.bool:
        raise TypeError(f"resets is {found.dtype}; expected torch.bool")
    if found.shape != x.shape[:-1]:
        raise ValueError(
            f"resets has shape {tuple(found.shape)}; expected those of input but the last, "
            f"{tuple(x.shape[:-1])}"
        )
    return found


class LSTM(_Layer):
    """torch.nn.LSTM, computed by the kernels of fastrnn.

    Parameters
    ----------
    *args, **kwargs
        Arguments of torch.nn.LSTM: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
        dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None.
    peephole : False, "diagonal" or "full", optional
        Let the gates see the cell state; adds the parameters ``weight_ch_l0`` and so on, (3*H,) or
        (3*H, H), gates in the order i, f, o.

    Notes
    -----
    Equations and sources: `fastrnn.reference`.  Parameters, their order, their initial values for a seed of
    torch's, `state_dict` and attributes are torch.nn's.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> layer = fastrnn.torch.LSTM(3, 4, batch_first=True)
    >>> y, (h_n, c_n) = layer(torch.zeros(2, 5, 3))
    >>> y.sum().backward()
    >>> y.shape, layer.weight_ih_l0.grad.shape
    (torch.Size([2, 5, 4]), torch.Size([16, 3]))
    """

    _cell = "lstm"
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args
    permute_hidden = torch.nn.LSTM.permute_hidden

    def __init__(self, *args: Any, peephole: Any = False, **kwargs: Any) -> None:
        if peephole not in (False, "diagonal", "full"):
            raise ValueError(f"peephole is {peephole!r}; expected False, 'diagonal' or 'full'")
        super().__init__("LSTM", *args, **kwargs)
        if not peephole:
            return
        self.peephole = peephole
        H = self.hidden_size
        bound = 1 / math.sqrt(H)
        for names in self._all_weights:
            name = names[0].replace("weight_ih", "weight_ch")
            like = getattr(self, names[0])
            shape = (3 * H,) if peephole == "diagonal" else (3 * H, H)
            value = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-bound, bound)
            names.append(name)
            setattr(self, name, torch.nn.Parameter(value))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()


class GRU(_Layer):
    """torch.nn.GRU, computed by the kernels of fastrnn.

    Parameters
    ----------
    *args, **kwargs
        Arguments of torch.nn.GRU: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
        dropout=0.0, bidirectional=False, device=None, dtype=None.
    reset_after : bool, optional
        False: the reset gate multiplies h before the recurrent product, as in the paper of Cho et al., 2014.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> layer = fastrnn.torch.GRU(3, 4)
    >>> y, h_n = layer(torch.zeros(5, 2, 3), lengths=torch.tensor([5, 0]))
    >>> bool((y[:, 1] == 0).all())
    True
    """

    _cell = "gru"
    _promote = True

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(reset_after).__name__}")
        super().__init__("GRU", *args, **kwargs)
        if not reset_after:
            self.reset_after = False


class RNN(_Layer):
    """torch.nn.RNN, computed by the kernels of fastrnn.

    Parameters
    ----------
    *args, **kwargs
        Arguments of torch.nn.RNN: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True,
        batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> layer = fastrnn.torch.RNN(3, 4, nonlinearity="relu").eval()
    >>> y, h_n = layer(torch.zeros(5, 2, 3), resets=torch.zeros(5, 2, dtype=torch.bool))
    >>> y.shape
    torch.Size([5, 2, 4])
    """

    _cell = "rnn"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)


# ------------------------------------------------------------------------------------------- cells


class _Cell(_Packs, torch.nn.RNNCellBase):
    """What LSTMCell, GRUCell and RNNCell have in common."""

    peephole: Any = False
    reset_after: bool = True
    _cell: str
    _promote = False

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        if self.peephole:
            text += f", peephole={self.peephole!r}"
        return text if self.reset_after else text + ", reset_after=False"

    def _nonlinearity(self) -> str:
        return "tanh"

    def _step(self, input: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return h and, of an LSTM, c after a step; `state` is empty for zeros."""
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] if self.bias else ["weight_ih", "weight_hh"]
        if self.peephole:
            names.append("weight_ch")
        weights = _tensors(self, names)
        casts, x = None, input
        if torch._C._is_any_autocast_enabled():
            casts = _Casts(input, state, weights[0], self._promote, True)
            x, state = casts.x, casts.state
        dtype, batched = weights[0].dtype, input.dim() == 2
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[-1]} expected {self.input_size}"
            )
        if x.dtype is not dtype:
            raise RuntimeError(f"input and weights must have the same dtype, but got {x.dtype} and {dtype}")
        if not x.is_cpu or not weights[0].is_cpu:
            _kernels.check_device(x.device, weights[0], "parameter")
        if dtype is not torch.float32 and dtype is not torch.float64:
            _check_weights(weights, x)
        expected = (x.shape[0], self.hidden_size) if batched else (self.hidden_size,)
        for number, part in enumerate(state):
            if part.shape != expected:
                self._refuse_shape(x, number, part, batched)
            if not part.is_cpu or not x.is_cpu:
                _kernels.check_device(x.device, part, "hidden")
            if part.dtype is not dtype:
                raise RuntimeError(
                    f"input is {dtype} and hx is {part.dtype}; expected the same dtype for both"
                )
        options = (
            f"layout={'B' if batched else ''} cell={self._cell} input_size={self.input_size} "
            f"hidden_size={self.hidden_size} bias={self.bias} peephole={self.peephole or 'none'} "
            f"reset_after={self.reset_after} nonlinearity={self._nonlinearity()}"
        )
        h, c = (*state, None, None)[:2]
        _, h_n, c_n = recurrence(x, h, c, weights, None, None, None, options, not self.training)
        if casts is not None:
            h_n, c_n = casts.cast(h_n), casts.cast_c(c_n)
        return h_n, c_n

    def _refuse_shape(self, x: Tensor, number: int, part: Tensor, batched: bool) -> NoReturn:
        # torch.nn adds an axis to what has one too few, and its check then sees rows.
        if batched and part.shape[0] != x.shape[0]:
            raise RuntimeError(
                f"Input batch size {x.shape[0]} doesn't match hidden{number} batch size {part.shape[0]}"
            )
        size = part.shape[0 if not batched and part.dim() == 2 else -1]
        raise RuntimeError(
            f"hidden{number} has inconsistent hidden_size: got {size}, expected {self.hidden_size}"
        )

    def _check_rank(self, input: Tensor) -> None:
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )

    def _step_of_h(self, input: Tensor, hx: Tensor | None) -> Tensor:
        self._check_rank(input)
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead"
            )
        return self._step(input, () if hx is None else (hx,))[0]


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell, computed by the kernels of fastrnn.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool, default: True
        Whether there are bias_ih and bias_hh.
    device, dtype : optional, default: None
        Those of torch.nn.LSTMCell.
    peephole : False, "diagonal" or "full", optional
        As that of `LSTM`; the parameter is ``weight_ch``.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> cell = fastrnn.torch.LSTMCell(3, 4)
    >>> h, c = cell(torch.zeros(2, 3))
    >>> h, c = cell(torch.zeros(2, 3), (h, c))
    >>> h.shape
    torch.Size([2, 4])
    """

    _cell = "lstm"
    _promote = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: Any = False,
    ) -> None:
        if peephole not in (False, "diagonal", "full"):
            raise ValueError(f"peephole is {peephole!r}; expected False, 'diagonal' or 'full'")
        super().__init__(input_size, hidden_size, bias, device, dtype)
        if peephole:
            self.peephole = peephole
            shape = (3 * hidden_size,) if peephole == "diagonal" else (3 * hidden_size, hidden_size)
            bound = 1 / math.sqrt(hidden_size)
            value = torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound)
            self.weight_ch = torch.nn.Parameter(value)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:
        """Return (h, c) after a step: input (B, I) or (I,), hx the pair (h, c), zeros if None.

        Raises
        ------
        ValueError, RuntimeError, TypeError
            As torch.nn.LSTMCell, for wrong ranks, sizes, dtypes and devices.
        """
        self._check_rank(input)
        if isinstance(hx, torch.Tensor):
            raise TypeError(f"hx is one tensor, of shape {tuple(hx.shape)}; expected the pair (h, c)")
        if hx is not None and len(hx) != 2:
            raise RuntimeError(f"lstm_cell expects two hidden states, got {len(hx)}")
        for number, part in enumerate(hx or ()):
            if part.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{number}] to be 1D or 2D, got {part.dim()}D instead")
        h, c = self._step(input, () if hx is None else (hx[0], hx[1]))
        return h, c


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell, computed by the kernels of fastrnn.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool, default: True
        Whether there are bias_ih and bias_hh.
    device, dtype : optional, default: None
        Those of torch.nn.GRUCell.
    reset_after : bool, optional
        As that of `GRU`.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> fastrnn.torch.GRUCell(3, 4)(torch.zeros(3)).shape
    torch.Size([4])
    """

    _cell = "gru"
    _promote = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(reset_after).__name__}")
        super().__init__(input_size, hidden_size, bias, device, dtype)
        if not reset_after:
            self.reset_after = False

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h after a step: input (B, I) or (I,), hx (B, H) or (H,), zeros if None.

        Raises
        ------
        ValueError, RuntimeError, TypeError
            As torch.nn.GRUCell, for wrong ranks, sizes, dtypes and devices.
        """
        return self._step_of_h(input, hx)


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell, computed by the kernels of fastrnn.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool, default: True
        Whether there are bias_ih and bias_hh.
    nonlinearity : str, default: "tanh"
        "tanh" or "relu".
    device, dtype : optional, default: None
        Those of torch.nn.RNNCell.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> fastrnn.torch.RNNCell(3, 4, nonlinearity="relu")(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    _cell = "rnn"

    def _nonlinearity(self) -> str:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return str(self.nonlinearity)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h after a step: input (B, I) or (I,), hx (B, H) or (H,), zeros if None.

        Raises
        ------
        ValueError, RuntimeError, TypeError
            As torch.nn.RNNCell, for wrong ranks, sizes, dtypes and devices.
        """
        return self._step_of_h(input, hx)

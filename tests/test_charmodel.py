"""Does the character model read, write, save and load text faithfully?"""

from __future__ import annotations

import json
import math

import fastrnn
import numpy as np
import pytest
import safetensors.numpy
from fastrnn.charmodel import CELLS, UNKNOWN, CharacterModel, Vocabulary, chunks, stream_count
from fastrnn.training import Adam, full_bptt, softmax_cross_entropy

TEXT = "Ångström, 東京 and \N{SNOWMAN}: the rain in Spain stays mainly in the plain.\n" * 8


def make_model(cell="lstm", **options):
    return CharacterModel(Vocabulary.from_text(TEXT), cell, hidden_size=12, num_layers=2, seed=3, **options)


# ---- Vocabulary -------------------------------------------------------------------------------------


def test_vocabulary_round_trip():
    vocabulary = Vocabulary.from_text(TEXT, coverage=1.0)
    tokens = vocabulary.encode(TEXT)
    assert vocabulary.decode(tokens) == TEXT
    assert tokens.min() >= 1
    assert tokens.max() == len(set(TEXT)) == len(vocabulary) - 1


@pytest.mark.parametrize("text", ["", "é", "\N{GRINNING FACE}", "\udc80", UNKNOWN, "\0"])
def test_characters_outside_the_vocabulary_are_token_0(text):
    vocabulary = Vocabulary("abc")
    np.testing.assert_array_equal(vocabulary.encode("a" + text + "c"), [1] + [0] * len(text) + [3])
    assert vocabulary.decode(vocabulary.encode(text)) == UNKNOWN * len(text)


def test_vocabulary_leaves_rare_characters_out():
    text = "a" * 9000 + "b" * 999 + "c"
    assert Vocabulary.from_text(text, coverage=0.9999).characters == "ab"
    assert Vocabulary.from_text(text, coverage=1.0).characters == "abc"
    assert Vocabulary.from_text(text, max_size=1).characters == "a"


@pytest.mark.parametrize("characters", ["", "aba"])
def test_vocabulary_bad_input(characters):
    with pytest.raises(
        ValueError, match=f"characters is '{characters}'; expected at least one, and each once"
    ):
        Vocabulary(characters)


# ---- Chunks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(101, 4, 5), (102, 4, 6), (104, 4, 25), (9, 1, 99), (2, 1, 1)]
)
def test_chunks_continue_each_stream(count, batch, steps, dtype):
    parts = list(chunks(np.arange(count, dtype=dtype), batch, steps))
    x = np.concatenate([x for x, _ in parts])
    targets = np.concatenate([t for _, t in parts])
    length = (count - 1) // batch
    np.testing.assert_array_equal(x, np.arange(batch * length).reshape(batch, length).T)
    np.testing.assert_array_equal(targets, x + 1)
    assert all(len(part[0]) == steps for part in parts[:-1])
    assert all(a.dtype == np.int64 and a.flags.c_contiguous for part in parts for a in part)


def test_chunks_bad_input():
    with pytest.raises(ValueError, match="4 tokens are too few for 4 streams; expected at least 5"):
        next(chunks(np.arange(4), 4, 1))
    with pytest.raises(ValueError, match="batch is 0; expected an integer of at least 1"):
        next(chunks(np.arange(4), 0, 1))


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (17, 1), (20, 1), (21, 2), (81, 8), (999, 8)])
def test_streams_are_at_least_a_chunk_long(count, expected):
    tokens = np.arange(count)
    assert stream_count(tokens, 8, 10) == expected
    x, _ = next(chunks(tokens, expected, 10))
    assert len(x) == min(10, count - 1)


# ---- Model ------------------------------------------------------------------------------------------


def test_unknown_cell():
    with pytest.raises(ValueError, match="cell is 'mgu'; expected one of 'lstm', 'gru', 'rnn'"):
        make_model("mgu")
    with pytest.raises(TypeError, match="vocabulary is 'abc'; expected a Vocabulary"):
        CharacterModel("abc")
    with pytest.raises(TypeError, match="text has type list; expected a string"):
        Vocabulary("abc").encode(["a"])


@pytest.mark.parametrize("cell", CELLS)
def test_training_lowers_the_loss(cell):
    model = make_model(cell)
    optimizer = Adam([model.layer, model.output], 0.02)
    losses = []
    for _ in range(12):
        state = None
        for x, targets in chunks(model.vocabulary.encode(TEXT), batch=4, steps=20):
            optimizer.zero_grad()
            loss, state = full_bptt(model.model, x, targets, softmax_cross_entropy, state=state)
            optimizer.step()
            losses.append(loss)
    assert abs(losses[0] - math.log(len(model.vocabulary))) < 0.3
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_gradients_are_those_of_the_loss():
    model = make_model()
    tokens = model.vocabulary.encode(TEXT[:41])
    ((x, targets),) = chunks(tokens, batch=2, steps=20)
    full_bptt(model.model, x, targets, softmax_cross_entropy)
    rng = np.random.default_rng(0)
    for module in (model.layer, model.output):
        for name, parameter in module.parameters.items():
            direction = rng.standard_normal(parameter.shape).astype(np.float32)
            direction /= np.linalg.norm(direction)
            kept, slope = parameter.copy(), float(np.sum(module.gradients[name] * direction))
            values = []
            for step in (0.02, -0.02):
                parameter[...] = kept + step * direction
                values.append(make_loss(model, x, targets))
            parameter[...] = kept
            assert abs((values[0] - values[1]) / 0.04 - slope) < 1e-4, name


def make_loss(model, x, targets):
    other = CharacterModel(model.vocabulary, model.cell, 12, 2)
    other.layer.load_state_dict(model.layer.state_dict())
    for name, parameter in model.output.parameters.items():
        other.output.parameters[name][...] = parameter
    return full_bptt(other.model, x, targets, softmax_cross_entropy)[0]


@pytest.mark.parametrize("cell", CELLS)
def test_bits_per_character_is_the_mean_over_the_text(cell):
    model = make_model(cell)
    x, targets = next(chunks(model.vocabulary.encode(TEXT), 1, len(TEXT)))
    loss, _ = full_bptt(model.model, x, targets, softmax_cross_entropy)
    model.layer.eval()
    bits = model.bits_per_character(model.vocabulary.encode(TEXT), batch=1, steps=7)
    assert math.isclose(bits, loss / math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("count", [2, 25, 100])
def test_bits_per_character_of_a_short_text(count):
    model = make_model()
    model.layer.eval()
    tokens = model.vocabulary.encode(TEXT[:count])
    assert model.bits_per_character(tokens) == model.bits_per_character(tokens, batch=1)


@pytest.mark.parametrize("cell", CELLS)
def test_saved_and_loaded_model_is_the_same(tmp_path, cell):
    model = make_model(cell)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = CharacterModel.load(path)
    assert list(tmp_path.iterdir()) == [path]
    assert loaded.vocabulary.characters == model.vocabulary.characters
    assert repr(loaded.layer) == repr(model.layer)
    for module, other in ((model.layer, loaded.layer), (model.output, loaded.output)):
        for name, parameter in module.parameters.items():
            np.testing.assert_array_equal(other.parameters[name], parameter)
    model.layer.eval()
    loaded.layer.eval()
    texts = ["".join(m.generate("the ", 30, seed=7)) for m in (model, loaded)]
    assert texts[0] == texts[1]


def test_greedy_text_is_the_argmax_of_a_whole_call():
    model = make_model()
    model.layer.eval()
    written = "".join(model.generate("the rain", 20, temperature=0))
    y, _ = model.layer(model.vocabulary.encode("the rain" + written)[:, None])
    likeliest = 1 + np.argmax(model.output(y)[7:-1, 0, 1:], axis=-1)
    assert model.vocabulary.decode(likeliest) == written


def test_text_depends_on_the_seed_alone():
    model = make_model()
    model.layer.eval()
    first, same, other = ("".join(model.generate("in", 40, seed=seed)) for seed in (1, 1, 2))
    assert first == same != other
    assert UNKNOWN not in first


def test_text_follows_the_distribution():
    model = make_model()
    model.layer.eval()
    model.output.parameters["weight"][...] = 0
    model.output.parameters["bias"][...] = -30
    for character, probability in (("a", 0.8), ("e", 0.2)):
        model.output.parameters["bias"][model.vocabulary.encode(character)] = 2 * math.log(probability)
    count = 2000
    written = "".join(model.generate("x", count, temperature=2.0, seed=0))
    assert set(written) == set("ae")
    assert abs(written.count("a") / count - 0.8) < 4 * math.sqrt(0.8 * 0.2 / count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty; expected at least one character"),
        ({"temperature": -1.0}, "temperature is -1.0; expected a finite number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan; expected a finite number of at least 0"),
    ],
)
def test_generate_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        make_model().generate(**{"prompt": "a", "length": 1, **options})


def test_load_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        CharacterModel.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "it has format 2; expected 1"),
        ({"hidden_size": 13}, r"layer.weight_hh_l0 has shape \(\d+, \d+\), expected \(\d+, 13\)"),
        ({"hidden_size": 2**24}, "layer.weight_hh_l0 has shape"),
        ({"num_layers": 1}, "unexpected layer.bias_hh_l1"),
        ({"num_layers": 2**31 - 1}, "num_layers is 2147483647, but there are"),
        ({"cell": "mgu"}, "cell is 'mgu'; expected one of 'lstm', 'gru', 'rnn'"),
        ({"characters": ""}, "characters is ''"),
        ({"characters": ["a", "b"]}, "characters has type list; expected a string"),
        (
            {"zoneout": 1},
            "it is described by .*, zoneout; expected format, cell, hidden_size, num_layers, ch",
        ),
    ],
)
def test_load_refuses_what_does_not_fit(tmp_path, changes, message):
    refuse_changed(tmp_path, message, lambda text: json.dumps(json.loads(text) | changes))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "{}"])
def test_load_refuses_other_descriptions(tmp_path, text):
    refuse_changed(tmp_path, "", lambda _: text)


@pytest.mark.parametrize("name", ["output.weight", "output.bias"])
def test_load_refuses_sizes_that_could_be_broadcast(tmp_path, name):
    refuse_changed(tmp_path, f"{name} has shape", lambda text: text, **{name: lambda array: array[:1]})


def refuse_changed(tmp_path, message, change_description, **change_arrays):
    path = tmp_path / "model.safetensors"
    make_model().save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        ((key, description),) = file.metadata().items()
    arrays = safetensors.numpy.load_file(path)
    arrays |= {name: change(arrays[name]) for name, change in change_arrays.items()}
    safetensors.numpy.save_file(arrays, path, {key: change_description(description)})
    with pytest.raises(ValueError, match=f"holds a character model that cannot be read here: .*{message}"):
        CharacterModel.load(path)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "model.safetensors"
    fastrnn.LSTM(3, 4).save(path)
    with pytest.raises(ValueError, match=r"holds a layer: read it with fastrnn\.load\(path\)"):
        CharacterModel.load(path)

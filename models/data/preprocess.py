"""From raw columns to the arrays that a model takes, by the preprocessing that its contract states.

Shape letters: ``n`` rows, ``h`` height, ``w`` width, ``c`` channels, ``s`` tokens. Rows are counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from monograph.errors import ContractError, DataError, SourceError
from monograph.models.contract import Contract, ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.models.data.pixels import pixels_from_array, pixels_from_pictures, scaled_pixels
from monograph.models.data.rows import Array
from monograph.models.data.unreadable import UnreadableRowError

Values = Array | Sequence[str] | Sequence[Image.Image]
"""One raw column: an array ``[n, …]``, strings, or pictures."""

_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


def preprocess(
    columns: Mapping[str, Values], contract: Contract, *, tokenizer_json: str | None = None, origin: str = "rows"
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Turn raw columns into the model's inputs.

    Pictures and uint8 arrays go through the contract's image preprocessing, strings through the tokenizer. Other arrays
    pass unchanged but for casts that lose nothing more than digits of a float, and a channel axis of size 1 that is missing.

    Args:
        columns: the raw values of each input, by the input's name; the inputs of one text name the same strings.
        contract: what the model takes.
        tokenizer_json: the text of the tokenizer's JSON file, where the model takes text.
        origin: where the columns came from, for messages.

    Returns:
        The array ``[n, …]`` of each input, and a sentence for each thing that had to be assumed.

    Raises:
        DataError: values that do not fit the input.
        ContractError: a preprocessing that cannot be carried out.
        SourceError: a tokenizer that cannot be read.
    """
    inputs: dict[str, Array] = {}
    assumed: list[str] = []
    texts: dict[int, list[TensorSpec]] = {}
    for spec in contract.inputs:
        if spec.name not in columns:
            raise DataError(f"{origin}: input {spec.name!r} has no column, got {', '.join(columns) or 'none'}")
        values = columns[spec.name]
        where = f"{origin}: input {spec.name!r}"
        if len(values) == 0:
            raise DataError(f"{where} has no rows, expected at least one")
        if isinstance(spec.preprocessing, TextPreprocessing) and _are_strings(values):
            texts.setdefault(id(values), []).append(spec)
            continue
        convert = _image_input if isinstance(spec.preprocessing, ImagePreprocessing) else _array_input
        inputs[spec.name], sentences = convert(values, spec, where)
        assumed += sentences
    for specs in texts.values():
        inputs |= _text_inputs(columns[specs[0].name], specs, tokenizer_json, f"{origin}: input {specs[0].name!r}")
    for spec in contract.inputs:
        _require_fit(inputs[spec.name], spec, f"{origin}: input {spec.name!r}")
    return {spec.name: inputs[spec.name] for spec in contract.inputs}, tuple(assumed)


def first_row(bad: Array) -> int:
    """Return the first row in which ``bad`` (bool ``[n, …]``) holds a True."""
    return int(bad.reshape(len(bad), -1).any(axis=1).argmax())


def require_finite(array: Array, where: str) -> None:
    """Refuse NaN and infinity in a float array ``[n, …]``.

    Raises:
        DataError: names the first row that holds one; as a row that cannot be read where that is NaN, which stands for no value.
    """
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if not finite.all():
        row = first_row(~finite)
        value = array[row][~finite[row]].flat[0] if array.ndim > 1 else array[row]
        told = f"{where}: row {row} holds {value}, expected finite numbers: fill or drop such rows"
        raise UnreadableRowError(told, f"it holds {value}") if np.isnan(value) else DataError(told)


def _are_strings(values: Values) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "UO"
    return isinstance(values[0], str)


def _array_input(values: Values, spec: TensorSpec, where: str) -> tuple[Array, list[str]]:
    """Pass an array through, with safe casts only."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        pictures = f"{values.dtype} values" if isinstance(values, np.ndarray) else "pictures"
        found = "text" if _are_strings(values) else pictures
        stated = "text preprocessing" if isinstance(spec.preprocessing, TextPreprocessing) else "no preprocessing"
        raise DataError(f"{where} got {found}, but the model's contract states {stated} for it: give numbers ({spec.describe()})")
    array, assumed = _with_channel_axis(values, spec, where)
    if array.dtype == np.uint8 and np.dtype(spec.dtype).kind == "f" and array.ndim > 2:
        assumed.append(f"{where} is uint8 and was taken without scaling: the contract states no preprocessing")
    return _cast(array, spec, where), assumed


def _with_channel_axis(array: Array, spec: TensorSpec, where: str) -> tuple[Array, list[str]]:
    """Add an axis of size 1, the first or the last one of a row, where only that is missing."""
    for axis in (1, array.ndim):
        if array.ndim + 1 == len(spec.shape) and _shape_fits(np.expand_dims(array, axis), spec) and spec.shape[axis] == 1:
            shape = " x ".join(map(str, array.shape[1:])) or "scalar"
            return np.expand_dims(array, axis), [f"{where}: rows are {shape}: axis {axis} of size 1 was added"]
    return array, []


def _shape_fits(array: Array, spec: TensorSpec) -> bool:
    # The batch axis may differ: rows are fed in batches of whatever size the model takes.
    pairs = zip(array.shape[1:], spec.shape[1:], strict=False)
    return array.ndim == len(spec.shape) and all(isinstance(dim, str) or size == dim for size, dim in pairs)


def _cast(array: Array, spec: TensorSpec, where: str) -> Array:
    require_finite(array, where)
    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return array
    if target.kind not in "biuf" or (array.dtype.kind == "f" and target.kind != "f"):
        raise DataError(f"{where} holds {array.dtype}, expected {target}: convert the column to {target}")
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    lost = ~np.isfinite(cast) if target.kind == "f" else cast != array
    if lost.any():
        row = first_row(lost)
        value = array[row][lost[row]].flat[0] if array.ndim > 1 else array[row]
        raise DataError(f"{where}: row {row} holds {value}, which {target} cannot hold: correct the value or its scale")
    return cast


def _require_fit(array: Array, spec: TensorSpec, where: str) -> None:
    """Check the shape, and the range of ids: an id beyond the vocabulary would fail deep inside the graph, or read astray."""
    if not _shape_fits(array, spec):
        shape = " x ".join(map(str, ("n", *array.shape[1:])))
        raise DataError(f"{where} got [{shape}], expected {spec.describe()}: reshape the column")
    if spec.upper_bound is None or array.dtype.kind not in "iu":
        return
    bad = (array < 0) | (array >= spec.upper_bound)
    if bad.any():
        row = first_row(bad)
        value = array[row][bad[row]].flat[0] if array.ndim > 1 else array[row]
        raise DataError(
            f"{where}: row {row} holds {value}, expected 0 to {spec.upper_bound - 1}: is this another model's tokenizer?"
        )


def _image_input(values: Values, spec: TensorSpec, where: str) -> tuple[Array, list[str]]:
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "f":
            return _preprocessed_already(values, spec, where)
        pixels, assumed = pixels_from_array(values, spec, where)
    elif isinstance(values[0], str):
        raise DataError(f"{where} got text, expected pictures or uint8 pixels: name the column that holds the pictures")
    else:
        pixels, assumed = pixels_from_pictures(values, spec, where), []  # type: ignore[arg-type]  # no strings are left here
    return scaled_pixels(pixels, spec), assumed


def _preprocessed_already(array: Array, spec: TensorSpec, where: str) -> tuple[Array, list[str]]:
    array, assumed = _with_channel_axis(array, spec, where)
    if not _shape_fits(array, spec):
        shape = " x ".join(map(str, ("n", *array.shape[1:])))
        raise DataError(
            f"{where} got {array.dtype} [{shape}], expected {spec.describe()}: "
            "give uint8 pixels to have them resized, or floats of the input's shape"
        )
    cast = _cast(array, spec, where)
    low, high = float(array.min()), float(array.max())
    assumed.append(
        f"{where} is {array.dtype} from {low:g} to {high:g} and was taken as preprocessed already: "
        "give uint8 pixels to have the contract's preprocessing applied"
    )
    return cast, assumed


def _text_inputs(values: Values, specs: Sequence[TensorSpec], tokenizer_json: str | None, where: str) -> dict[str, Array]:
    """Return the arrays ``[n x s]`` of one text's inputs; ``s`` is the longest text, or what the contract fixes."""
    texts = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{where}: row {row} holds {text!r}, expected text: fill or drop such rows")
    if tokenizer_json is None:
        raise DataError(f"{where} got text, but the model carries no tokenizer: give arrays of token ids instead")
    tokenizer = _tokenizer(tokenizer_json, specs, where)
    encodings = tokenizer.encode_batch_fast(texts)
    roles: dict[str, Callable[[Any], list[int]]] = {
        "input_ids": lambda encoding: encoding.ids,
        "attention_mask": lambda encoding: encoding.attention_mask,
        "token_type_ids": lambda encoding: encoding.type_ids,
    }
    inputs = {}
    for spec in specs:
        assert isinstance(spec.preprocessing, TextPreprocessing)
        role = spec.preprocessing.role
        if role not in roles:
            raise ContractError(f"{where} has the role {role!r} in the contract, expected one of {', '.join(roles)}")
        inputs[spec.name] = np.array([roles[role](encoding) for encoding in encodings], np.dtype(spec.dtype))
    return inputs


def _tokenizer(tokenizer_json: str, specs: Sequence[TensorSpec], where: str) -> Any:
    """Read the tokenizer and set it to cut at the maximal length and to pad to the longest text, or to a fixed length."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise SourceError(f"{where}: the model's tokenizer cannot be read ({error}): export the model again") from error
    fixed = {spec.shape[1] for spec in specs if len(spec.shape) > 1 and isinstance(spec.shape[1], int)}
    limits = [spec.preprocessing.max_length for spec in specs if isinstance(spec.preprocessing, TextPreprocessing)]
    length = min(fixed, default=None)
    stated = tokenizer.truncation or {}
    tokenizer.enable_truncation(min([*limits, *fixed]), direction=stated.get("direction", "right"))
    padding = tokenizer.padding or _default_padding(tokenizer)
    sides = {key: padding[key] for key in ("direction", "pad_id", "pad_type_id", "pad_token") if key in padding}
    tokenizer.enable_padding(length=length, **sides)
    return tokenizer


def _default_padding(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer saved by transformers mostly states no padding: take the padding token of its vocabulary."""
    for token in _PAD_TOKENS:
        token_id = tokenizer.token_to_id(token)
        if token_id is not None:
            return {"pad_id": token_id, "pad_token": token}
    return {}

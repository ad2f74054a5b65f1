"""Predict with the model of this folder; needs onnxruntime and numpy only.

::

    python predict.py picture.png              label and probability
    python predict.py rows.npz --json          rows as arrays, one for each input of the model
    python predict.py --text "fine weather"    of a model of texts; needs the package tokenizers

Pictures are read from PNG (up to 8 bits, not interlaced), PGM, PPM and ``.npy`` (uint8 pixels); from all else, JPEG among it,
where Pillow is installed. They are resized here by Pillow's algorithm, width first: to the same numbers, but where Pillow 13
takes the height first, as it does for some shapes; there some pixels differ by a few levels of 255.

Shape letters: ``n`` rows, ``h`` height, ``w`` width, ``c`` channels or classes. Pixels are uint8 ``[h x w x c]``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

Array = Any
Spec = Mapping[str, Any]
"""One input or output, as ``contract.json`` has it."""

FOLDER = Path(__file__).resolve().parent
_PIXEL_ARRAYS = (1, 3, 4)
_LARGEST_PIXELS = 1 << 28
_LUMA = (19595, 38470, 7471)
"""Of red, green and blue, in 65536ths (ITU-R 601-2), as Pillow has it."""
_PRECISION_BITS = 22
"""Of the weights in Pillow's resampling (src/libImaging/Resample.c)."""


class UnusableError(Exception):
    """What was given cannot be used; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict for every row that is given; return the exit code."""
    options = _options(arguments)
    try:
        session = open_model(options.model)
        contract = contract_of(session)
        answers = [answer for name, inputs in _given(options, contract) for answer in predict(session, contract, inputs, name)]
    except UnusableError as error:
        sys.stderr.write(f"predict: {error}\n")
        return 2
    lines = [json.dumps(answers, indent=1, ensure_ascii=False)] if options.json else [_line(one, answers) for one in answers]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict.py", description="Predict with the model of this folder.")
    parser.add_argument("inputs", nargs="*", type=Path, help="pictures, .npy or .npz files")
    parser.add_argument("--text", action="append", default=[], help="a text, for a model of texts")
    parser.add_argument("--model", type=Path, default=FOLDER / "model.onnx", help="another file, such as lowered/int8.onnx")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    options = parser.parse_args(arguments)
    if not options.inputs and not options.text:
        parser.error("give a picture, a .npy or .npz file, or --text")
    return options


def open_model(path: Path) -> Any:
    """Load a model on the processor."""
    if not path.is_file():
        raise UnusableError(f"no such file: {path}")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def contract_of(session: Any) -> Mapping[str, Any]:
    """Return the contract that a model file holds; that of the folder where it holds none."""
    text = session.get_modelmeta().custom_metadata_map.get("monograph.contract")
    contract: Mapping[str, Any] = json.loads(text or (FOLDER / "contract.json").read_text(encoding="utf-8"))
    return contract


def predict(session: Any, contract: Mapping[str, Any], inputs: Mapping[str, Array], name: str) -> list[dict[str, Any]]:
    """Return the answer for each row of ``inputs`` ``[n x …]``; rows are run one by one."""
    count = {len(array) for array in inputs.values()}
    if len(count) != 1:
        raise UnusableError(f"{name}: its arrays have {sorted(count)} rows: give as many of each")
    answers = []
    for row in range(count.pop()):
        batch = {spec["name"]: _batch(inputs[spec["name"]][row : row + 1], spec) for spec in contract["inputs"]}
        output = session.run([contract["outputs"][0]["name"]], batch)[0]
        answers.append({"input": name, "row": row} | answer_of(np.asarray(output)[0], contract))
    return answers


def answer_of(output: Array, contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return label and probability of one row ``[c]``; the numbers themselves where they are no classes."""
    if contract["kind"] not in ("logits", "probabilities") or output.ndim != 1:
        return {"output": output.tolist()}
    values = output.astype(np.float64)
    if contract["kind"] == "logits":
        values = np.exp(values - values.max())
        values /= values.sum()
    names = contract["class_names"] or [f"class {index}" for index in range(len(values))]
    order = np.argsort(-values, kind="stable")
    top = [{"label": names[index], "index": int(index), "probability": float(values[index])} for index in order[:5]]
    return {**top[0], "top": top}


def _line(answer: Mapping[str, Any], answers: Sequence[object]) -> str:
    row = f" row {answer['row']}" if answer["row"] else ""
    where = f"{answer['input']}{row}: " if len(answers) > 1 else ""
    return where + (f"{answer['label']}  {answer['probability']:.4f}" if "label" in answer else json.dumps(answer["output"]))


def _batch(row: Array, spec: Spec) -> Array:
    """Repeat a row where the model takes batches of one size only."""
    size = spec["shape"][0] if spec["shape"] else None
    return np.repeat(row, size, axis=0) if isinstance(size, int) and size > 1 else row


def _given(options: argparse.Namespace, contract: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Array]]]:
    specs = contract["inputs"]
    for path in options.inputs:
        if not path.is_file():
            raise UnusableError(f"no such file: {path}")
        yield str(path), inputs_from_file(path, specs)
    for text in options.text:
        yield json.dumps(text, ensure_ascii=False), inputs_from_text(text, specs)


def inputs_from_file(path: Path, specs: Sequence[Spec]) -> dict[str, Array]:
    """Return the array ``[n x …]`` of each input, preprocessed as the contract says."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if len(specs) == 1 and specs[0]["name"] not in arrays and "x" in arrays:
            arrays[specs[0]["name"]] = arrays["x"]
        missing = [spec["name"] for spec in specs if spec["name"] not in arrays]
        if missing:
            raise UnusableError(f"{path} holds {', '.join(arrays) or 'nothing'}: give an array for each of {', '.join(missing)}")
        return {spec["name"]: _from_array(arrays[spec["name"]], spec, path) for spec in specs}
    if len(specs) > 1:
        names = ", ".join(spec["name"] for spec in specs)
        raise UnusableError(f"the model takes {names}: give one .npz file with an array for each (--text for a text)")
    (spec,) = specs
    if path.suffix == ".npy":
        return {spec["name"]: _from_array(np.load(path, allow_pickle=False), spec, path)}
    if not _is_picture(spec):
        raise UnusableError(f"the model takes {spec['dtype']} {spec['shape']}, no pictures: give a .npy or .npz file")
    return {spec["name"]: scaled(fitted(read_picture(path), spec), spec)[None]}


def _is_picture(spec: Spec) -> bool:
    return (spec["preprocessing"] or {}).get("type") == "image"


def _from_array(array: Array, spec: Spec, path: Path) -> Array:
    """Return rows ``[n x …]``; uint8 pixels of a picture input are preprocessed, floats are taken as they are."""
    shape, dtype = spec["shape"], np.dtype(spec["dtype"])
    if _is_picture(spec) and array.dtype == np.uint8:
        return np.stack([scaled(fitted(pixels, spec), spec) for pixels in _pictures(array, path)])
    rows = array[None] if array.ndim == len(shape) - 1 else array
    fits = rows.ndim == len(shape) and all(isinstance(a, str) or a == b for a, b in zip(shape[1:], rows.shape[1:], strict=True))
    if not fits or (rows.dtype.kind, dtype.kind) == ("f", "i"):
        raise UnusableError(f"{path}: input {spec['name']} is {array.dtype} {list(array.shape)}, expected {dtype} {shape}")
    return rows.astype(dtype)


def _pictures(array: Array, path: Path) -> Array:
    """Return ``[n x h x w x c]`` from one picture or several, channels last, first or left out."""
    if array.ndim == 2:
        return array[None, ..., None]
    if array.ndim == 3:
        return array[None] if array.shape[2] in _PIXEL_ARRAYS else array[..., None]
    if array.ndim != 4:
        raise UnusableError(f"{path} holds uint8 {list(array.shape)}, expected pixels [h x w], [h x w x c] or several of them")
    return np.moveaxis(array, 1, -1) if array.shape[3] not in _PIXEL_ARRAYS and array.shape[1] in _PIXEL_ARRAYS else array


def inputs_from_text(text: str, specs: Sequence[Spec]) -> dict[str, Array]:
    """Return the tokens ``[1 x s]`` of one text for each input."""
    if any((spec["preprocessing"] or {}).get("type") != "text" for spec in specs):
        raise UnusableError("the model takes no text: give a picture, a .npy or a .npz file")
    if not (FOLDER / "tokenizer.json").is_file():
        raise UnusableError("the model carries no tokenizer: give token ids as a .npz file")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnusableError("texts need the package tokenizers: pip install tokenizers; or give token ids as .npz") from error
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    fixed = [spec["shape"][1] for spec in specs if len(spec["shape"]) > 1 and isinstance(spec["shape"][1], int)]
    limits = [spec["preprocessing"]["max_length"] for spec in specs]
    tokenizer.enable_truncation(min([*limits, *fixed]), direction=(tokenizer.truncation or {}).get("direction", "right"))
    stated = tokenizer.padding or _padding(tokenizer)
    sides = {key: stated[key] for key in ("direction", "pad_id", "pad_type_id", "pad_token") if key in stated}
    tokenizer.enable_padding(length=min(fixed, default=None), **sides)
    encoded = tokenizer.encode(text)
    by_role = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    return {spec["name"]: np.array([by_role[spec["preprocessing"]["role"]]], spec["dtype"]) for spec in specs}


def _padding(tokenizer: Any) -> dict[str, Any]:
    tokens = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
    known = [(token, tokenizer.token_to_id(token)) for token in tokens if tokenizer.token_to_id(token) is not None]
    return {"pad_token": known[0][0], "pad_id": known[0][1]} if known else {}


def read_picture(path: Path) -> Array:
    """Return the pixels of a picture file; ``c`` is 1 or 3, or one more with transparency."""
    data = path.read_bytes()
    if data[:2] in (b"P5", b"P6"):
        return _read_netpbm(data, path)
    chunks = _chunks(data) if data[:8] == b"\x89PNG\r\n\x1a\n" else {}
    depth, interlaced = (chunks["IHDR"][8], chunks["IHDR"][12]) if len(chunks.get("IHDR", b"")) == 13 else (16, 1)
    if depth <= 8 and not interlaced and "eXIf" not in chunks:
        return _read_png(chunks, path)
    return _read_by_pillow(path)


def _read_by_pillow(path: Path) -> Array:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnusableError(
            f"{path} is neither plain PNG nor PGM, PPM or .npy, and Pillow, which reads the others, is not here: pip install "
            "pillow, or convert the picture"
        ) from error
    try:
        with Image.open(path) as opened:
            picture: Any = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnusableError(f"{path} cannot be read as a picture: {error}") from error
    if picture.mode.startswith(("I", "F")):
        raise UnusableError(f"{path} has pixels of more than 8 bits (mode {picture.mode}): convert it to 8 bits")
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode not in ("L", "LA", "RGB", "RGBA"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_netpbm(data: bytes, path: Path) -> Array:
    """Read PGM (P5) and PPM (P6) of 8 bits."""
    numbers: list[int] = []
    position = 2
    while len(numbers) < 3:
        while data[position : position + 1].isspace():
            position += 1
        end = position
        if data[position : position + 1] == b"#":
            position = data.find(b"\n", position) + 1 or len(data)
            continue
        while data[end : end + 1].isdigit():
            end += 1
        if end == position:
            raise UnusableError(f"{path} is a damaged PGM or PPM file")
        numbers.append(int(data[position:end]))
        position = end
    (width, height, largest), channels = numbers, 1 if data[:2] == b"P5" else 3
    pixels = np.frombuffer(data, np.uint8, offset=position + 1)
    if largest != 255 or len(pixels) < width * height * channels:
        raise UnusableError(f"{path} has values up to {largest} and {len(pixels)} bytes, expected 255 and all pixels")
    return pixels[: width * height * channels].reshape(height, width, channels)


def _chunks(data: bytes) -> dict[str, bytes]:
    """Return the chunks of a PNG file, those of one name joined."""
    chunks: dict[str, bytes] = {}
    position = 8
    while position + 8 <= len(data):
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8].decode("latin-1")
        chunks[name] = chunks.get(name, b"") + data[position + 8 : position + 8 + size]
        position += 12 + size
    return chunks


def _read_png(chunks: Mapping[str, bytes], path: Path) -> Array:
    """Decode a PNG of 1 to 8 bits that is not interlaced (https://www.w3.org/TR/png-3)."""
    head = chunks["IHDR"]
    width, height, depth, colour = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big"), head[8], head[9]
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    line_bytes = (width * samples * depth + 7) // 8
    if not samples or depth not in (1, 2, 4, 8) or not 0 < width * height <= _LARGEST_PIXELS:
        raise UnusableError(f"{path} is a damaged PNG file, or larger than {_LARGEST_PIXELS} pixels")
    expected = height * (line_bytes + 1)
    try:
        raw = zlib.decompressobj().decompress(chunks.get("IDAT", b""), expected)
    except zlib.error as error:
        raise UnusableError(f"{path} is a damaged PNG file ({error})") from error
    if len(raw) != expected:
        raise UnusableError(f"{path} is cut short: {len(raw)} bytes of pixels, expected {expected}")
    lines = np.frombuffer(raw, np.uint8).reshape(height, line_bytes + 1)
    step = max(1, samples * depth // 8)
    values = _unfiltered(lines[:, 1:].reshape(height, -1, step), lines[:, 0], path).reshape(height, -1)
    if depth < 8:
        bits = np.unpackbits(values, axis=1).reshape(height, -1, depth)[:, :width]
        values = np.packbits(bits, axis=2)[..., 0] >> (8 - depth)
        values = values if colour == 3 else values * (255 // (2**depth - 1))
    pixels = values.reshape(height, width, samples)
    return _from_palette(pixels[..., 0], chunks, path) if colour == 3 else pixels


def _from_palette(indices: Array, chunks: Mapping[str, bytes], path: Path) -> Array:
    palette = np.frombuffer(chunks.get("PLTE", b""), np.uint8).reshape(-1, 3)
    if indices.max() >= len(palette):
        raise UnusableError(f"{path} names colours that its palette of {len(palette)} lacks")
    alpha = np.full((len(palette), 1), 255, np.uint8)
    known = np.frombuffer(chunks.get("tRNS", b""), np.uint8)[: len(palette)]
    alpha[: len(known), 0] = known
    return (np.hstack([palette, alpha]) if len(known) else palette)[indices]


def _unfiltered(lines: Array, filters: Array, path: Path) -> Array:
    """Undo PNG's filters on ``[h x w x bytes]``, one diagonal after the other: a value needs those left, above and between."""
    if filters.max() > 4:
        raise UnusableError(f"{path} is a damaged PNG file (filter {filters.max()})")
    height, width = lines.shape[:2]
    done = np.zeros((height + 1, width + 1, lines.shape[2]), np.int16)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, above, between = done[y + 1, x], done[y, x + 1], done[y, x]
        far_left, far_above = abs(above - between), abs(left - between)
        far_between = abs(left + above - 2 * between)
        nearest = np.where(far_above <= far_between, above, between)
        nearest = np.where((far_left <= far_above) & (far_left <= far_between), left, nearest)
        guesses = (np.zeros_like(left), left, above, (left + above) // 2, nearest)
        done[y + 1, x + 1] = (lines[y, x] + np.choose(filters[y][:, None], guesses)) & 255
    return done[1:, 1:].astype(np.uint8)


def fitted(pixels: Array, spec: Spec) -> Array:
    """Bring pixels to the model's channels and size: resize the shorter side and crop the centre, or stretch."""
    prep, shape = spec["preprocessing"], spec["shape"]
    channels, height, width = shape[1:] if prep["layout"] == "NCHW" else (shape[3], shape[1], shape[2])
    shorter, resample = prep["resize_shorter_side"], prep["resample"].lower()
    pixels = _to_channels(pixels, channels)
    is_fixed = isinstance(height, int) and isinstance(width, int)
    if shorter is None:
        return resized(pixels, height, width, resample) if is_fixed else pixels
    own_height, own_width = pixels.shape[:2]
    long = int(shorter * max(own_height, own_width) / min(own_height, own_width))
    new_height, new_width = (long, shorter) if own_width <= own_height else (shorter, long)
    pixels = resized(pixels, new_height, new_width, resample)
    if not is_fixed:
        return pixels
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


def _to_channels(pixels: Array, channels: int) -> Array:
    has_alpha, is_grey = pixels.shape[2] in (2, 4), pixels.shape[2] < 3
    colour = pixels[..., :1] if is_grey else pixels[..., :3]
    if channels == 1 and not is_grey:
        red, green, blue = np.moveaxis(colour.astype(np.int64), -1, 0)
        return ((red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + (1 << 15)) >> 16).astype(np.uint8)[..., None]
    if channels in (3, 4) and is_grey:
        colour = np.repeat(colour, 3, axis=2)
    if channels not in _PIXEL_ARRAYS:
        raise UnusableError(f"the model takes {channels} channels: give a .npy file")
    alpha = pixels[..., -1:] if has_alpha else np.full_like(pixels[..., :1], 255)
    return np.concatenate([colour, alpha], axis=2) if channels == 4 else colour


def resized(pixels: Array, height: int, width: int, resample: str) -> Array:
    """Resize as Pillow does: first along the width, then along the height, 8 bits in between."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[2] == 4:
        raise UnusableError(f"a picture with transparency is not resized here: bring it to {width} x {height} pixels first")
    across = _along(np.moveaxis(pixels, 1, 0), width, resample)
    return _along(np.moveaxis(across, 0, 1), height, resample)


def _along(lines: Array, size: int, resample: str) -> Array:
    """Resample the first axis of ``[k x …]`` to ``size``; weights are whole numbers, so that the sum is exact."""
    if len(lines) == size:
        return lines
    if resample == "nearest":
        scale = len(lines) / size
        return lines[np.minimum(np.cumsum([scale / 2] + [scale] * (size - 1)).astype(int), len(lines) - 1)]
    if resample not in _FILTERS:
        raise UnusableError(f"the contract asks for resampling {resample!r}, which is not known here")
    flat = lines.reshape(len(lines), -1)
    out = np.empty((size, flat.shape[1]), np.uint8)
    for position in range(size):
        first, weights = _weights(position, len(lines), size, *_FILTERS[resample])
        total = weights @ flat[first : first + len(weights)].astype(np.float64)
        out[position] = np.clip((total.astype(np.int64) + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS, 0, 255)
    return out.reshape(size, *lines.shape[1:])


def _weights(position: int, old: int, new: int, reach: float, kernel: Callable[[float], float]) -> tuple[int, Array]:
    """Return the first line that counts for one new line, and the weights from there on."""
    scale = old / new
    stretch = max(scale, 1.0)
    centre, support = (position + 0.5) * scale, reach * stretch
    first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
    values = np.array([kernel((line - centre + 0.5) * (1.0 / stretch)) for line in range(first, last)])
    total = values.cumsum()[-1]  # added in turn, as Pillow does
    values = values / total if total else values
    return first, np.trunc(values * (1 << _PRECISION_BITS) + np.where(values < 0, -0.5, 0.5))


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _hamming(x: float) -> float:
    x = abs(x)
    return 0.0 if x >= 1 else _sinc(x) * (0.54 + 0.46 * math.cos(x * math.pi))


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


_FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}


def scaled(pixels: Array, spec: Spec) -> Array:
    """Compute ``(value · scale - mean) / std`` per channel, in the model's layout: ``[c x h x w]`` or ``[h x w x c]``."""
    prep, dtype = spec["preprocessing"], np.dtype(spec["dtype"])
    if dtype.kind == "f":
        values = pixels.astype(np.float32)
        values *= np.float32(prep["scale"])
        values -= np.array(prep["mean"], np.float32)
        values /= np.array(prep["std"], np.float32)
        values = values.astype(dtype, copy=False)
    else:
        values = pixels.astype(dtype)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if prep["layout"] == "NCHW" else values)


if __name__ == "__main__":
    sys.exit(main())

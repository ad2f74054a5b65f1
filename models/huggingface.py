"""Models of Hugging Face: a folder or an id of the hub becomes a PyTorch module with its contract.

Nothing that is read here can run code: no remote code, safetensors before pickles, and a folder never reaches for the
network. A hub id is first downloaded to a folder, so there is one way from there on.

Shape letters: ``b`` batch, ``s`` sequence, ``c`` classes, ``d`` width of an embedding.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from monograph.errors import ConfigError, SourceError
from monograph.models.bounded import read_json
from monograph.models.contract import Contract, Dim, Kind, TensorSpec, random_inputs
from monograph.models.huggingface_inputs import first_line, image_input, text_inputs
from monograph.models.torch_model import TorchModel

TASKS: Mapping[str, str] = {
    "text-classification": "logits",
    "image-classification": "logits",
    "feature-extraction": "last_hidden_state",
}
"""The tasks that can be loaded, and the name of the output that each gives."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PROBE_BATCH_SIZE, _PROBE_SEQUENCE_LENGTH = 2, 7
_LIBRARY_ERRORS = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, ImportError, RuntimeError,
    SafetensorError, StrictDataclassError, UnpicklingError,
)  # fmt: skip
"""What transformers raises, by turns, for a file that it cannot use."""


class HuggingFaceModule(nn.Module):
    """A model of transformers, called by position; gives back the one tensor that its task is about."""

    def __init__(self, model: nn.Module, task: str, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.input_names = input_names

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """Return ``logits`` float32 ``[b, c]`` or ``last_hidden_state`` float32 ``[b, s, d]``."""
        output: torch.Tensor = self.model(**dict(zip(self.input_names, args, strict=True)), return_dict=True)[TASKS[self.task]]
        return output


def load_huggingface(id_or_folder: str, *, task: str | None = None, allow_pickle: bool = False) -> TorchModel:
    """Load a model of the tasks in ``TASKS`` with its contract, in float32 and eval mode.

    Text models take int64 ``[batch, sequence]`` ids, as many of ``input_ids``, ``attention_mask`` and
    ``token_type_ids`` as their tokenizer makes and they know; image models take ``pixel_values`` float32
    ``[batch, k, h, w]``. They give ``logits`` float32 ``[batch, c]`` or ``last_hidden_state`` float32
    ``[batch, sequence, d]``. Without ``task``, the architecture that the folder names decides.

    Raises:
        ConfigError: ``task`` is unknown.
        SourceError: the model is missing, damaged, of another task, incomplete, a pickle that nobody asked to read,
            wants to run code of its own, or cannot be had from the hub.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"task is {task!r}, expected one of: {', '.join(TASKS)}")
    name = id_or_folder if _is_hub_id(id_or_folder) else Path(id_or_folder).expanduser().resolve().name
    with quiet_transformers():
        folder = _folder(id_or_folder, allow_pickle)
        record = _read_config(folder)
        _require_native(folder, record)
        chosen, assumed = (task, ()) if task is not None else _guess_task(folder, record)
        _check_weights_files(folder, allow_pickle)
        model = _load_model(folder, record, chosen)
        inputs, tokenizer_json, notes = _inputs(folder, model)
        module = HuggingFaceModule(model, chosen, tuple(spec.name for spec in inputs)).eval()
        kind, class_names, class_notes = _meaning(folder, model.config, chosen)
        notes = (*assumed, *notes, *class_notes)
        contract = Contract(
            inputs, (_output(module, inputs, name),), kind, class_names, tuple(f"{name}: {note}" for note in notes)
        )
    return TorchModel(module, contract, name, tokenizer_json)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the bars, logs and warnings of transformers off stderr; what matters reaches the user as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as transformers_logging

        logging: Any = transformers_logging
        verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if had_bars:
                logging.enable_progress_bar()


def _is_hub_id(text: str) -> bool:
    return not Path(text).expanduser().exists() and _HUB_ID.fullmatch(text) is not None


def _folder(id_or_folder: str, allow_pickle: bool) -> Path:
    if _is_hub_id(id_or_folder):
        return _download(id_or_folder, allow_pickle)
    folder = Path(id_or_folder).expanduser()
    if not folder.exists():
        raise SourceError(f"no such model folder: {id_or_folder}")
    if not folder.is_dir():
        raise SourceError(f"{folder} is a file, expected a Hugging Face folder (with config.json in it)")
    return folder


def _download(model_id: str, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*_HUB_FILES, "*.bin"] if allow_pickle else _HUB_FILES
    try:
        # Other exports of the same weights lie in subfolders.
        return Path(snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise SourceError(
            f"{model_id} is no folder here, and the Hugging Face hub did not give it: {first_line(error)} "
            "Check the name and the network, or give the path of a folder"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise SourceError(f"{folder} is not a Hugging Face model folder: it holds no config.json")
    try:
        record = read_json(path)
    except (ValueError, OSError) as error:
        raise SourceError(f"{path} is not JSON, or is cut short ({error}): copy the folder again") from error
    if not isinstance(record, dict) or not isinstance(record.get("model_type"), str):
        raise SourceError(f"{path} names no model_type: it is not the configuration of a transformers model")
    return record


def _task_classes() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Return each task's loader and what it can load: architectures by model type."""
    from transformers.models.auto import modeling_auto as auto

    return {
        "text-classification": (auto.AutoModelForSequenceClassification, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        "image-classification": (auto.AutoModelForImageClassification, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        "feature-extraction": (auto.AutoModel, auto.MODEL_MAPPING_NAMES),
    }


def _require_native(folder: Path, record: Mapping[str, Any]) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = record["model_type"]
    if model_type in CONFIG_MAPPING_NAMES:
        return
    if "auto_map" in record:
        raise SourceError(
            f"{folder} brings its own code for models of the type {model_type!r}, and such code is never run: "
            "take a model whose architecture transformers has"
        )
    raise SourceError(f"{folder} is of the type {model_type!r}, which transformers {transformers.__version__} does not know")


def _guess_task(folder: Path, record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the task, and what had to be guessed: nothing where the architecture says it."""
    model_type, architectures = record["model_type"], record.get("architectures")
    types = {task: names[model_type] for task, (_, names) in _task_classes().items() if model_type in names}
    if isinstance(architectures, list) and architectures:
        for task, names in types.items():
            if architectures[0] in ([names] if isinstance(names, str) else names):
                return task, ()
        hint = ": pass --task feature-extraction to take it without its head" if "feature-extraction" in types else ""
        raise SourceError(f"{folder} holds a {architectures[0]}, expected a model of one of the tasks {', '.join(TASKS)}{hint}")
    classifiers = [task for task in types if task != "feature-extraction" and "id2label" in record]
    task = classifiers[0] if classifiers else "feature-extraction"
    return task, (f"names no architecture, so it is taken for {task}",)


def _check_weights_files(folder: Path, allow_pickle: bool) -> None:
    if (folder / "adapter_config.json").is_file():
        raise SourceError(
            f"{folder} holds a PEFT adapter, for which transformers would fetch another model: merge it by merge_and_unload() "
            "and save the whole model"
        )
    if any((folder / name).is_file() for name in _SAFETENSORS):
        return
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles and not allow_pickle:
        raise SourceError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read: convert it to model.safetensors, "
            "or pass --allow-pickle to read its tensors with torch's weights_only loader"
        )
    if not pickles:
        raise SourceError(
            f"{folder} holds no model.safetensors: copy the weights into it"
            + ("" if allow_pickle else " (from a hub model that has pickles only, --allow-pickle takes those)")
        )


def _load_model(folder: Path, record: Mapping[str, Any], task: str) -> Any:
    import transformers

    loader, types = _task_classes()[task]
    model_type = record["model_type"]
    if model_type not in types:
        others = [other for other, (_, names) in _task_classes().items() if model_type in names]
        instead = f"pass --task {' or '.join(others)}" if others else f"take a model for {', '.join(TASKS)}"
        raise SourceError(f"{folder} is of the type {model_type!r}, of which transformers has no {task} model: {instead}")
    safe = any((folder / name).is_file() for name in _SAFETENSORS)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise SourceError(f"{folder} is an encoder with a decoder ({model_type}), expected a model that answers in one pass")
        model, loading = loader.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safe,
            weights_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            # Makes the smaller graph: sdpa writes the scaling and the mask out once more in each layer.
            attn_implementation="eager",
        )
    except _LIBRARY_ERRORS as error:
        what = "" if safe else "it holds more than tensors, or is cut short, and was not read: "
        raise SourceError(f"{folder} cannot be loaded for {task}: {what}{first_line(error)}") from error
    _require_complete(folder, record, task, loading["missing_keys"])
    return model.eval()


def _require_complete(folder: Path, record: Mapping[str, Any], task: str, missing_keys: Any) -> None:
    """Transformers fills what is missing with random numbers; the hidden states alone do not need the pooler."""
    missing = sorted(key for key in missing_keys if task != "feature-extraction" or "pooler" not in key.split("."))
    if not missing:
        return
    names = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    if "auto_map" in record:
        raise SourceError(f"{folder} has no weights for {names}: it is made for code of its own, and such code is never run")
    raise SourceError(
        f"{folder} has no weights for {names}: it is no complete {task} model; pass another --task (one of {', '.join(TASKS)})"
    )


def _inputs(folder: Path, model: Any) -> tuple[tuple[TensorSpec, ...], str | None, tuple[str, ...]]:
    """Return the inputs, the tokenizer of a text model, and what had to be assumed."""
    if model.main_input_name == "input_ids":
        return text_inputs(folder, model)
    if model.main_input_name == "pixel_values":
        try:
            spec, notes = image_input(folder, model.config)
        except _LIBRARY_ERRORS as error:
            raise SourceError(
                f"the image processor in {folder} cannot be used: {first_line(error)}; mend its preprocessor_config.json, or "
                "remove it for a model that takes prepared pixels only"
            ) from error
        return (spec,), None, notes
    raise SourceError(f"{folder} takes {model.main_input_name!r}, expected a model of texts or of images")


def _meaning(folder: Path, config: Any, task: str) -> tuple[Kind, tuple[str, ...] | None, tuple[str, ...]]:
    """Return what the output means, its class names, and what had to be assumed."""
    if task == "feature-extraction":
        return Kind.EMBEDDING, None, ()
    if config.problem_type == "multi_label_classification":
        kind = Kind.SCORES
    elif config.problem_type == "regression" or config.num_labels == 1:
        return Kind.REGRESSION, None, ()
    else:
        kind = Kind.LOGITS
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise SourceError(f"{folder / 'config.json'}: id2label has the keys {list(config.id2label)[:5]}, expected 0 to c-1")
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if names == [f"LABEL_{index}" for index in range(config.num_labels)]:
        return kind, None, ("names no classes: they are matched by position",)
    repeated = sorted({name for name in names if names.count(name) > 1})
    unique = tuple(f"{name} ({index})" if name in repeated else name for index, name in enumerate(names))
    notes = (f"several classes are called {', '.join(repeated[:3])}: their index was added",) if repeated else ()
    return kind, unique, notes


def _output(module: HuggingFaceModule, inputs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    """Run the model once, at a batch and a sequence of sizes that nothing else has, to learn the output's shape."""
    output = TASKS[module.task]
    contract = Contract(inputs, (TensorSpec(output, "float32", ()),), Kind.EMBEDDING)
    rows = random_inputs(contract, _PROBE_BATCH_SIZE, np.random.default_rng(0), _PROBE_SEQUENCE_LENGTH)
    try:
        with torch.inference_mode():
            value = module(*(torch.from_numpy(rows[spec.name]) for spec in inputs))
    except _LIBRARY_ERRORS as error:
        taken = ", ".join(spec.describe() for spec in inputs)
        raise SourceError(f"{name} cannot compute {output!r} from {taken}: {first_line(error)}") from error
    shape: list[Dim] = ["batch", *value.shape[1:]]
    if "sequence" in inputs[0].shape and len(shape) == 3:
        shape[1] = "sequence"
    return TensorSpec(output, "float32", tuple(shape))

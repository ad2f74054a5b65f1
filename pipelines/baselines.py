"""What people run today instead of one fused graph: N sessions and numpy, or PyTorch eager.

Child side of the measurement: each is loaded in a fresh process, as a user without monograph would write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from monograph.models.contract import Kind
from monograph.runtime.results import Placed
from monograph.runtime.session import Session, open_session

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SessionsAndNumpy:
    """One ONNX Runtime session a member, outputs combined by numpy in float32."""

    sessions: Sequence[Session]
    members: Sequence[Mapping[str, Any]]
    softmax_first: bool
    output_name: str

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch."""
        fused: Array | None = None
        for session, member in zip(self.sessions, self.members, strict=True):
            feed = {own: inputs[shared] for own, shared in member["inputs"].items()}
            (output,) = session.ort_session.run([member["output"]], feed)
            if self.softmax_first and member["kind"] == Kind.LOGITS:
                output = softmax(output, axis=-1)
            scaled = np.float32(member["weight"]) * output
            fused = scaled if fused is None else fused + scaled
        assert fused is not None
        return {self.output_name: fused}

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the call on these inputs."""
        return lambda: self(inputs)

    def placement(self) -> list[Placed]:
        """Return the nodes of all sessions."""
        return [placed for session in self.sessions for placed in session.placement()]


def load_sessions(
    members: Sequence[Mapping[str, Any]], softmax_first: bool, output_name: str, threads: int, spinning: bool
) -> SessionsAndNumpy:
    """Load one session a member; ``members`` hold ``path``, ``inputs``, ``output``, ``kind`` and ``weight``."""
    sessions = [
        open_session(Path(member["path"]), threads=threads, spinning=spinning, record_placement=True) for member in members
    ]
    return SessionsAndNumpy(sessions, members, softmax_first, output_name)


class Eager:
    """The same fusion in PyTorch eager mode."""

    def __init__(self, members: Sequence[Mapping[str, Any]], softmax_first: bool, output_name: str, threads: int) -> None:
        import torch

        from monograph.models.sources import load_python_model, parse_source

        torch.set_num_threads(threads)
        self.output_name, self.softmax_first = output_name, softmax_first
        self.weights = [float(member["weight"]) for member in members]
        self.models = [
            load_python_model(
                parse_source(member["source"]),
                arguments=member["arguments"],
                weights=member["weights"] and Path(member["weights"]),
            )
            for member in members
        ]
        for model in self.models:
            model.module.eval()
        self._torch: Any = torch

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch."""
        torch = self._torch
        with torch.inference_mode():
            tensors = [torch.from_numpy(inputs[spec.name]) for spec in self.models[0].contract.inputs]
            fused: Any = 0
            for model, weight in zip(self.models, self.weights, strict=True):
                output = model.module(*tensors)
                if self.softmax_first and model.contract.kind is Kind.LOGITS:
                    output = output.softmax(-1)
                fused = fused + weight * output
            return {self.output_name: fused.numpy()}

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the call on these inputs."""
        return lambda: self(inputs)

    def placement(self) -> list[Placed]:
        """Return nothing: ONNX Runtime does not run this."""
        return []


def load_eager(
    members: Sequence[Mapping[str, Any]], softmax_first: bool, output_name: str, threads: int, spinning: bool
) -> Eager:
    """Load the modules; ``members`` hold ``source``, ``arguments``, ``weights`` and ``weight``."""
    del spinning
    return Eager(members, softmax_first, output_name, threads)

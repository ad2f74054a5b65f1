"""What a student that was made for its teacher starts from, beside random weights."""

from __future__ import annotations

from torch import Tensor, nn

from monograph.models.students import start_from_embeddings
from monograph.models.torch_model import TorchModel
from monograph.pipelines.teachers import Teacher


def start_from_teacher(learner: TorchModel, teacher: Teacher) -> tuple[str, ...]:
    """Start a fresh text student's token embeddings from those of a PyTorch teacher of the same tokens; return what was done."""
    table = _token_embeddings(teacher)
    own = getattr(learner.module, "token_embedding", None)
    if table is None or not isinstance(own, nn.Embedding) or own.num_embeddings != len(table):
        return ()
    if learner.tokenizer_json != teacher.tokenizer_json:
        return ()
    start_from_embeddings(learner.module, table)
    wide, narrow = table.shape[1], own.embedding_dim
    how = f"projected from {wide} numbers to {narrow}" if wide > narrow else f"in {min(wide, narrow)} of its {narrow} numbers"
    return (f"the student's token embeddings start from {teacher.name}'s, {how}",)


def _token_embeddings(teacher: Teacher) -> Tensor | None:
    """Return the table of a teacher of transformers, float32 ``[vocabulary x m]``."""
    if teacher.module is None:
        return None
    for module in teacher.module.module.modules():
        find = getattr(module, "get_input_embeddings", None)
        found = find() if callable(find) else None
        if isinstance(found, nn.Embedding):
            return found.weight.detach()
    return None

"""Losses between layers inside the models: hints through a learned projection, and attention maps.

Shape letters: ``b`` batch, ``k`` channels of the student, ``m`` of the teacher, ``h`` height, ``w`` width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.linalg import vector_norm

from monograph.errors import ContractError
from monograph.pipelines.losses.checks import check_dimensions, in_single_precision, unit
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions
from monograph.pipelines.losses.regression import squared_error

_ATTENTION = "attention"


class Hint(nn.Module):
    """Squared error between a layer of the teacher and a learned projection of a layer of the student.

    The projection is linear: a matrix for vectors, a 1x1 convolution for maps. Its weights belong to the loss: give them to
    the optimizer, and leave them out of the student that is saved.

    Source: Romero et al. 2015, arXiv 1412.6550, with the mean over elements in place of half the sum, so that
    the weight of the loss does not depend on the size of the layer.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, maps: bool) -> None:
        """Make the projection from ``student_channels`` to ``teacher_channels``; ``maps`` for ``[b x k x h x w]``."""
        super().__init__()
        self.projection: nn.Module
        if maps:
            self.projection = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        else:
            self.projection = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared error of each row, ``[b]``.

        Args:
            student: ``[b x k]`` or ``[b x k x h x w]``.
            teacher: ``[b x m]`` or ``[b x m x h x w]``.

        Raises:
            ContractError: the projected shape is not the teacher's.
        """
        projected: Tensor = self.projection(student)
        if projected.shape != teacher.shape:
            raise ContractError(
                f"a hint projects the student's {list(student.shape)} to {list(projected.shape)}, and the teacher has "
                f"{list(teacher.shape)}: choose layers with maps of one size, or pool the larger with adaptive_avg_pool2d"
            )
        return squared_error(projected, teacher)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over places of the squared difference between the attention maps of a row.

    An attention map is the mean over channels of the squared activations, divided by its Euclidean norm over all places.
    A map of zeros stays zero.

    Args:
        student: ``[b x k x h x w]``.
        teacher: ``[b x m x h x w]``; the number of channels may be another.

    Returns:
        ``[b]``, without a unit. The authors weigh it by 1000.

    Raises:
        ContractError: other dimensions, rows, heights or widths.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, in the squared form of the authors' code,
    https://github.com/szagoruyko/attention-transfer.
    """
    for maps in (student, teacher):
        check_dimensions(_ATTENTION, maps, 4)
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ContractError(
            f"the loss {_ATTENTION} got maps {list(student.shape)} of the student and {list(teacher.shape)} of the teacher, "
            "expected equal rows, heights and widths: pool the larger with adaptive_avg_pool2d"
        )
    return (_attention(in_single_precision(student)) - _attention(in_single_precision(teacher.detach()))).square().mean(1)


def _attention(maps: Tensor) -> Tensor:
    """``[b x k x h x w]`` to unit vectors ``[b x h*w]``."""
    energy = maps.square().mean(1).flatten(1)
    return unit(energy, vector_norm(energy, dim=-1, keepdim=True))[0]


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return attention_transfer(student, teacher)


ATTENTION = DistillationLoss(
    name=_ATTENTION,
    title="Attention transfer",
    source="arXiv 1612.03928",
    compute=_compute,
    takes="feature maps",
    defaults=LossOptions(),
)

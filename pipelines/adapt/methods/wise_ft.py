"""WiSE-FT: the mean of the weights before and after fine-tuning, which keeps more of what the trunk knew of other rows.

Source: Wortsman et al. 2022, arXiv 2109.01903. The share is chosen on validation rows; what it costs or gains on shifted rows is
reported, never chosen by.
"""

from __future__ import annotations

import copy

import torch

from monograph.pipelines.adapt.methods.head import fit_head
from monograph.pipelines.adapt.methods.method import Adaptation, Mix, Outcome, fine_tuning_settings, fit_all

_SHARES = tuple(step / 10 for step in range(11))


def wise_ft(adaptation: Adaptation) -> Outcome:
    """Train as LP-FT does, then keep the best mean of the weights before (with the trained head) and after it."""
    head = fit_head(adaptation)
    before = copy.deepcopy(adaptation.network.state_dict())
    stage = fit_all(adaptation, "full", fine_tuning_settings(adaptation))
    after = copy.deepcopy(adaptation.network.state_dict())
    mixes = tuple(_mixed(adaptation, before, after, share) for share in _SHARES)
    # Of equals the one nearer to the pretrained weights.
    best = max(mixes, key=lambda mix: (mix.validation, -mix.share))
    _load(adaptation, before, after, best.share)
    return Outcome((head, stage), (_told(adaptation, best, mixes),), mixes)


def _mixed(adaptation: Adaptation, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float) -> Mix:
    _load(adaptation, before, after, share)
    shifted = adaptation.rows.get("shifted")
    validation = adaptation.quality(adaptation.model, adaptation.rows["validation"])
    return Mix(share, validation, None if shifted is None else adaptation.quality(adaptation.model, shifted))


def _load(adaptation: Adaptation, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float) -> None:
    """Set each weight to (1 − share) · before + share · after; whole numbers, as counts of batches are, stay those after."""
    mean = {name: torch.lerp(before[name], new, share) if new.is_floating_point() else new for name, new in after.items()}
    adaptation.network.load_state_dict(mean)
    adaptation.network.eval()


def _told(adaptation: Adaptation, best: Mix, mixes: tuple[Mix, ...]) -> str:
    text = f"{best.share:.1f} of the new weights are kept, by validation rows"
    if best.shifted is None:
        return f"{text}; there are no shifted rows to say what that does elsewhere: give some by --shifted"
    new = mixes[-1]
    assert new.shifted is not None
    shown = ".2%" if adaptation.model.contract.kind.has_classes else ".4g"
    return f"{text}: {best.shifted:{shown}} on shifted rows, where all of them give {new.shifted:{shown}}"

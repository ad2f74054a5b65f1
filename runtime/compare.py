"""Interleaved comparison: which of several contenders is faster, on a machine whose speed drifts.

Every block runs each contender once, in a fresh process of its own, in random order and then in the reverse of that
order (ABBA), so that a drift of the machine's speed falls on all alike. Ratios are taken within blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monograph.models.data.rows import Rows
from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.measure import Contender, Settings, raw_timings
from monograph.runtime.results import Interval
from monograph.runtime.statistics import bootstrap_interval
from monograph.runtime.timing import TimingRule

BLOCK_RULE = TimingRule(min_runs=15, min_s=0.3, max_s=3.0, warmup_s=0.2)


@dataclass(frozen=True)
class Comparison:
    """Median seconds of a call: one value per contender and block."""

    p50_s: dict[str, tuple[float, ...]]

    def ratio(self, numerators: Sequence[str], denominators: Sequence[str]) -> Interval:
        """Return Σ numerators / Σ denominators: the median over blocks with its bootstrap interval over blocks."""
        top = np.sum([self.p50_s[name] for name in numerators], axis=0)
        bottom = np.sum([self.p50_s[name] for name in denominators], axis=0)
        return bootstrap_interval(top / bottom, np.median)


def compare(
    contenders: Sequence[Contender],
    rows: Rows | Mapping[str, Rows | None] | None,
    settings: Settings,
    *,
    blocks: int = 5,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda name: None,
    run: Callable[[Job], RawRun] = run_in_process,
) -> Comparison:
    """Time all contenders over ``blocks`` interleaved blocks, at the first batch size of ``settings``.

    ``rows`` are for all contenders, or for each by its name. ``on_progress`` is told before each process; ``run`` is how a
    target runs a job.
    """
    rng = np.random.default_rng(seed)
    settings = replace(settings, batch_sizes=settings.batch_sizes[:1], rule=BLOCK_RULE)
    medians: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(blocks):
        order = list(rng.permutation(len(contenders)))
        samples: dict[str, list[int]] = {name: [] for name in medians}
        for index in order + order[::-1]:
            contender = contenders[index]
            on_progress(contender.name)
            own = rows[contender.name] if isinstance(rows, Mapping) else rows
            samples[contender.name].extend(raw_timings(contender, own, settings, run)[0].samples_ns)
        for name, values in samples.items():
            medians[name].append(float(np.median(values)) / 1e9)
    return Comparison({name: tuple(values) for name, values in medians.items()})

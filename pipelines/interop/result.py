"""What an interoperability study finds: the record that the terminal, the page and the JSON file are made from.

Every figure that rows do not carry is None beside a reason, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monograph.runtime.metrics.ranking_gain import RankingGain
from monograph.runtime.results import Accuracy, Score

RESULT_FILE, REPORT_FILE = "interop.json", "report.html"
TOP1, AUC, RMSE = "top-1", "AUC", "RMSE"
"""What a study goes by: of classes, of a score for yes or no, of numbers."""
R2 = "R²"
DEFAULT_STUDENTS = ("auto:1/10",)


def worth(metric: str, figure: Score | float | None) -> float:
    """Return a figure so that higher is better; minus infinity where there is none."""
    estimate = figure.estimate if isinstance(figure, Score) else figure
    if estimate is None:
        return float("-inf")
    return -estimate if metric == RMSE else estimate


@dataclass(frozen=True)
class Change:
    """How much better one is than another on the same rows, with its 95% interval."""

    amount: float
    """In points of top-1, in AUC, or by how much the RMSE is lower, in the unit of the labels."""
    low: float
    high: float
    over: str
    """The other's name."""


@dataclass(frozen=True)
class Subject:
    """One model, measured by itself."""

    name: str
    source: str
    """As the user gave it."""
    path: str
    """Its ONNX file."""
    sha256: str
    size_bytes: int
    kind: str
    opset: int
    macs: int | None
    """Multiply-accumulates of a row; None where they cannot be counted."""
    parts: tuple[str, ...] = ()
    """Names of the inner tensors that were kept, in the order of the graph; the last feeds the head."""
    score: Score | None = None
    """By the metric of the study."""
    accuracy: Accuracy | None = None
    """Where it gives probabilities: those of a score for yes or no are two."""
    latency_ms: float | None = None
    """The median of a row."""
    seen_count: int = 0
    """Of the rows that it says it was fitted, calibrated or chosen on: what it reaches on those proves nothing."""
    reason: str = ""
    """Why it was not run on the rows; empty where it was."""


@dataclass(frozen=True)
class Contact:
    """Whether two models fit each other, before any row is read."""

    first: str
    second: str
    fits: bool
    adapted: tuple[str, ...] = ()
    """What the fusion compiler will change or assume, each a clause."""
    reason: str = ""
    """Why they cannot be joined."""
    macs: int | None = None
    """Of the fused graph, one row."""
    shared_macs: int | None = None
    """What both compute alike, by weights, and the fused graph computes once."""
    shared_bytes: int = 0
    """Of weights that the fused graph holds once."""


@dataclass(frozen=True)
class Diversity:
    """How differently two classifiers err on the same rows."""

    scores: Mapping[str, Score]
    """``disagreement``, ``double fault``, ``Yule's Q``, ``error consistency``, ``oracle accuracy``, ``churn``."""
    only_first: int
    only_second: int


@dataclass(frozen=True)
class Fusion:
    """What a weighted fusion gives on rows that its weights were not fitted on."""

    members: tuple[str, ...]
    form: str = ""
    weights: tuple[float, ...] = ()
    """Fitted on all rows, one a member."""
    gain: Change | None = None
    """Over the best member."""
    score: Score | None = None
    """Held out: each row by weights that the other half gave. ``accuracy`` likewise."""
    accuracy: Accuracy | None = None
    ranking: RankingGain | None = None
    """Where rows are ranked within groups: AUC and NDCG@10 beside every member."""
    ece_before: float | None = None
    """Of the better member."""
    ece_tempered: float | None = None
    """Of the fusion with a temperature a member, held out; None where no member gives logits."""
    macs: int | None = None
    """Of the graph of those members that have any weight."""
    latency_ms: float | None = None
    """The median of a row, of that graph."""
    error_correlation: Score | None = None
    """Of two models of numbers: Pearson's, of their errors; what a mean of them can cancel is what is not in common."""
    diversity: Diversity | None = None
    reason: str = ""
    """Why there is no figure."""


@dataclass(frozen=True)
class Cascade:
    """A cheap model that passes rows on which it is unsure to a dear one: an estimate from stored outputs."""

    cheap: str
    dear: str
    hard_share: float | None = None
    """Of the rows, held out, that the dear one answers."""
    score: Score | None = None
    """Top-1, held out."""
    change: Change | None = None
    """Over the dear model alone."""
    macs: float | None = None
    """A row, on average."""
    latency_ms: float | None = None
    """A row, on average, by the medians of both: an estimate."""
    threshold_probability: float | None = None
    """Below it the cheap one is unsure; fitted on all rows."""
    reason: str = ""


@dataclass(frozen=True)
class Soup:
    """Whether the weights of two models can be averaged, and what their mean reaches."""

    first: str
    second: str
    fits: bool
    score: Score | None = None
    change: Change | None = None
    """Over the better of the two, on the same rows."""
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Transfer:
    """What the frozen trunk of a model is worth for the task: fitted on one half of the rows, told on the other."""

    model: str
    layer: str = ""
    width: int | None = None
    metric: str = TOP1
    """Top-1 of classes and of yes or no, R² of numbers."""
    probe: Score | None = None
    """Of logistic, or ridge, regression."""
    neighbours: Score | None = None
    """Of k nearest neighbours."""
    few_shot: Mapping[int, float] | None = None
    """Mean top-1 of the probe by rows a class; a count that the rows do not have is left out."""
    leep: float | None = None
    """In nats, 0 at best: an estimate."""
    logme: float | None = None
    """In nats a row, an estimate: comparable among models on these rows only."""
    reason: str = ""


@dataclass(frozen=True)
class Stitch:
    """How well one linear layer turns the last features of the first model into those of the second, held out."""

    first: str
    second: str
    r2: float | None = None
    noise_r2: float | None = None
    class_noise_r2: float | None = None
    """Of noise that knows the class and nothing else: what is not above it speaks for no likeness."""
    reason: str = ""


@dataclass(frozen=True)
class Likeness:
    """Linear CKA of the layers of two models, unbiased, by minibatches."""

    first: str
    second: str
    first_layers: tuple[str, ...] = ()
    second_layers: tuple[str, ...] = ()
    cka: tuple[tuple[float | None, ...], ...] = ()
    """The first model's layers down; None where a layer does not vary."""
    reason: str = ""


@dataclass(frozen=True)
class Lesson:
    """What a student took of a teacher, or may take."""

    teacher: str
    """A model, or several that are fused: ``A + C``."""
    student: str
    is_estimate: bool
    """True where nothing was trained: then only ``agreement`` and ``entropy`` are told."""
    agreement: float | None = None
    """Share of rows to which both give one class: of the taught student, held out, or of the two models as they are."""
    entropy: float | None = None
    """Mean entropy of the teacher's probabilities in nats: near 0 they teach no more than labels."""
    score: Score | None = None
    """By the metric of the study, held out."""
    retention: float | None = None
    """The share of what the teacher can: of top-1 counted from 0, of AUC from 0.5, of RMSE from the spread of the labels."""
    control: Score | None = None
    """Of the same student, trained on labels alone for as long."""
    gain: Change | None = None
    """Over that control."""
    student_macs: int | None = None
    steps: int | None = None
    """Of each of the two trainings."""
    reason: str = ""


@dataclass(frozen=True)
class Advice:
    """One thing to do, or to leave, with its reason and what to type."""

    text: str
    reason: str
    command: str = ""
    is_shown: bool = False
    """True where the interval of the figure excludes that nothing is gained."""


@dataclass(frozen=True)
class Interop:
    """The whole study."""

    title: str
    created: str
    monograph: str
    data: str
    row_count: int
    metric: str
    """By which all is told: ``top-1``, ``AUC`` or ``RMSE``."""
    target: str | None
    """On which latencies were measured; None for none."""
    class_names: tuple[str, ...] | None
    rows_sha256: str
    quick: bool
    subjects: tuple[Subject, ...]
    contacts: tuple[Contact, ...]
    fusions: tuple[Fusion, ...]
    """Pairs, then the whole."""
    cascades: tuple[Cascade, ...]
    soups: tuple[Soup, ...]
    transfers: tuple[Transfer, ...]
    likenesses: tuple[Likeness, ...]
    stitches: tuple[Stitch, ...]
    lessons: tuple[Lesson, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]

"""The report of a pipeline run: one HTML file that needs nothing else, and a table for the terminal."""

from monograph.pipelines.report.line import line_tables
from monograph.pipelines.report.model import (
    AdaptationSummary,
    BundleSummary,
    Contender,
    FusionSummary,
    MemberWeight,
    Proof,
    RankingGain,
    Ratio,
    Report,
    Role,
    StudentSummary,
    TrainingCurve,
    VerdictSummary,
)
from monograph.pipelines.report.render import write_report
from monograph.pipelines.report.sections import terminal_tables
from monograph.pipelines.report.terminal import contender_table

__all__ = [
    "AdaptationSummary",
    "BundleSummary",
    "Contender",
    "FusionSummary",
    "MemberWeight",
    "Proof",
    "RankingGain",
    "Ratio",
    "Report",
    "Role",
    "StudentSummary",
    "TrainingCurve",
    "VerdictSummary",
    "contender_table",
    "line_tables",
    "terminal_tables",
    "write_report",
]

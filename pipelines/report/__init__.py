"""The report of a pipeline run: one HTML file that needs nothing else, and a table for the terminal."""

from monograph.pipelines.report.model import (
    Contender,
    FusionSummary,
    MemberWeight,
    Proof,
    Ratio,
    Report,
    Role,
    TrainingCurve,
)
from monograph.pipelines.report.render import write_report
from monograph.pipelines.report.sections import terminal_tables
from monograph.pipelines.report.terminal import contender_table

__all__ = [
    "Contender",
    "FusionSummary",
    "MemberWeight",
    "Proof",
    "Ratio",
    "Report",
    "Role",
    "TrainingCurve",
    "contender_table",
    "terminal_tables",
    "write_report",
]

"""The verdict as JUnit XML, which every CI shows: one test case a check.

What is inconclusive is written as a failure of the type ``inconclusive``, not as an error or a skipped test: it has to block, and
some CIs let errors and skipped tests pass. The format: https://github.com/testmoapp/junitxml.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from monograph.models.files import write_atomically
from monograph.pipelines.gate.check import Check, Outcome
from monograph.pipelines.gate.verdict import Verdict

_SUITE = "monograph gate"


def write_junit(verdict: Verdict, path: Path) -> None:
    """Write the verdict to ``path``.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    with write_atomically(path) as staged:
        staged.write_bytes(junit_xml(verdict))


def junit_xml(verdict: Verdict) -> bytes:
    """Return the verdict as an XML document in UTF-8."""
    blocked = sum(check.outcome is not Outcome.PASS for check in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(blocked), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": _SUITE, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _SUITE, **counts, "timestamp": verdict.created})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("verdict", verdict.outcome.value),
        ("candidate", f"{verdict.candidate.path} sha256:{verdict.candidate.sha256}"),
        ("reference", f"{verdict.reference.path} sha256:{verdict.reference.sha256}"),
        ("data", verdict.data or ""),
        ("policy_sha256", verdict.policy_sha256),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _printable(value)})
    for check in verdict.checks:
        suite.append(_case(check))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(check: Check) -> ElementTree.Element:
    target = f".{check.target}" if check.target else ""
    case = ElementTree.Element("testcase", {"name": _printable(check.name), "classname": f"gate{target}", "time": "0"})
    told = _printable(check.describe())
    if check.outcome is not Outcome.PASS:
        failure = ElementTree.SubElement(case, "failure", {"type": check.outcome.value, "message": told})
        failure.text = told
    else:
        ElementTree.SubElement(case, "system-out").text = told
    return case


def _printable(text: str) -> str:
    """Leave out what XML cannot hold: class names and paths may hold anything."""
    return "".join(letter for letter in text if letter in "\t\n\r" or " " <= letter <= "\ud7ff" or "\ue000" <= letter <= "\ufffd")

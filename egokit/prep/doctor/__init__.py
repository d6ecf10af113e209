"""Report what a site has and lacks: its files, and its tables compared with its videos.

Every expected file is a finding; a missing one names the command or page that provides it. `examine` turns a check
that fails into a finding instead of raising, and changes or downloads nothing.

    finding.py   Finding, the fixes, and the checks that all data sets share
    parts.py     the checks of the machine, the models and each data set
"""
from __future__ import annotations

import collections
from collections.abc import Iterable

from egokit.config.schema import Config
from egokit.prep.doctor.finding import SAMPLE, Finding
from egokit.prep.doctor.parts import Examination

__all__ = ["SAMPLE", "Finding", "examine", "format_findings", "is_sound"]

PARTS = ("machine", "models", "egoclip", "egomcq", "ek100", "charades", "egomq")
STATES = ("ok", "note", "missing", "wrong")


def examine(config: Config, sample: int = SAMPLE, parts: Iterable[str] = PARTS) -> list[Finding]:
    """Return all findings of a site.

    Args:
        sample: number of videos opened per table; 0 opens all.
        parts: which of PARTS to examine. A data set of which nothing is present gives one finding.
    """
    examination = Examination(config, sample)
    if config.site.toy and not examination.root.is_dir():
        return [Finding("site", "site.root", "note", "the embedded data set is not made yet",
                        f"notebook 01_data_prep makes it, or egokit prep --site {config.site.name}")]
    if not config.site.root or not examination.root.is_dir():
        return [Finding("site", "site.root", "missing", f"{config.site.root or 'not set'}: no such folder",
                        f"set site.root in params/sites/{config.site.name}.yaml")]
    findings: list[Finding] = []
    for part in parts:
        of_part: list[Finding] = []
        try:
            for finding in getattr(examination, part)():
                of_part.append(finding)
        except Exception as error:  # a check that fails is a finding, whatever the error is
            message = (str(error) or type(error).__name__).splitlines()[0]
            of_part.append(Finding(of_part[0].part if of_part else part, "check", "wrong",
                                   f"{type(error).__name__}: {message}"))
        missing = [finding for finding in of_part if finding.state == "missing"]
        if len(missing) == len(of_part) and part not in ("machine", "models"):
            of_part = [Finding(of_part[0].part, "everything", "note", "nothing of it under this root", missing[0].fix)]
        findings += of_part
    return findings


def format_findings(findings: list[Finding]) -> str:
    """Return the findings as text, part by part.

    Each finding's fix stands below it, and the counts of all states at the end.
    """
    text, part = [], None
    for finding in findings:
        if finding.part != part:
            text, part = [*text, "", finding.part], finding.part
        text.append(f"  {finding.state:8}{finding.what}: {finding.message}")
        if finding.fix:
            text.append(f"          -> {finding.fix}")
    counts = collections.Counter(finding.state for finding in findings)
    return "\n".join([*text, "", ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]).lstrip()


def is_sound(findings: list[Finding]) -> bool:
    """Return whether nothing is missing or wrong."""
    return not any(finding.state in ("missing", "wrong") for finding in findings)

"""What a site has and lacks: every expected file, found or missing, with what provides it; and tables against videos.

`examine` never raises for what it finds: a check that fails is a finding. Nothing is changed or downloaded here.
"""
from __future__ import annotations

import collections

from egokit.config.schema import Config
from egokit.prep.doctor.finding import SAMPLE, Finding
from egokit.prep.doctor.parts import Examination

__all__ = ["SAMPLE", "Finding", "examine", "lines", "sound"]

PARTS = ("machine", "models", "egoclip", "egomcq", "ek100", "charades", "egomq")
STATES = ("ok", "note", "missing", "wrong")


def examine(config: Config, sample: int = SAMPLE, parts=PARTS) -> list[Finding]:
    """Every finding of a site. sample: videos opened of each table; 0 opens all. A part of which nothing is there is one line."""
    examination = Examination(config, sample)
    if config.site.toy and not examination.root.is_dir():
        return [Finding("site", "site.root", "note", "the embedded data set is not made yet",
                        f"notebook 01_data_prep makes it, or egokit prep --site {config.site.name}")]
    if not config.site.root or not examination.root.is_dir():
        return [Finding("site", "site.root", "missing", f"{config.site.root or 'not set'}: no such folder",
                        f"set site.root in params/sites/{config.site.name}.yaml")]
    out: list[Finding] = []
    for part in parts:
        found: list[Finding] = []
        try:
            for finding in getattr(examination, part)():
                found.append(finding)
        except Exception as error:  # a check that fails is a finding, whatever it is
            said = (str(error) or type(error).__name__).splitlines()[0]
            found.append(Finding(found[0].part if found else part, "check", "wrong", f"{type(error).__name__}: {said}"))
        files = [one for one in found if one.state == "missing"]
        if len(files) == len(found) and part not in ("machine", "models"):
            found = [Finding(found[0].part, "everything", "note", "nothing of it under this root", files[0].fix)]
        out += found
    return out


def lines(findings: list[Finding]) -> str:
    """The findings as text, part by part, with what to do under each that is not in order."""
    out, part = [], None
    for one in findings:
        if one.part != part:
            out, part = [*out, "", one.part], one.part
        out.append(f"  {one.state:8}{one.what}: {one.said}")
        if one.fix:
            out.append(f"          -> {one.fix}")
    counts = collections.Counter(one.state for one in findings)
    return "\n".join([*out, "", ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]).lstrip()


def sound(findings: list[Finding]) -> bool:
    return not any(one.state in ("missing", "wrong") for one in findings)

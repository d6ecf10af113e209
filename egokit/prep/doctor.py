"""Report what a site has and lacks: the machine, the models, and the files of every task.

Every expected file is a finding; a missing one names the command or page that provides it. What a task expects is said
by its class, in `check_site`. `examine` turns a check that fails into a finding instead of raising, and changes or
downloads nothing.
"""
import collections
import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from egokit import tasks
from egokit.config.names import printable
from egokit.config.schema import RANDOM, Config
from egokit.data.site_checks import SAMPLE, Checks, Finding
from egokit.prep import speed
from egokit.prep.video import SetupError, ffmpeg

__all__ = ["SAMPLE", "Finding", "examine", "format_findings", "is_sound"]

STATES = ("ok", "note", "missing", "wrong")
RELEASED = ("EgoVLPv2.pth", "EgoVLPv2_smallproj.pth", "EgoVLPv2_smallproj_epoch1.pth", "EK-100_finetune.pth",
            "Charades-Ego_finetune.pth")


def machine(checks: Checks) -> Iterator[Finding]:
    """Check the GPUs, ffmpeg and the disk."""
    import torch

    def gpus() -> Iterator[Finding]:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("machine", "GPUs", "ok" if devices else "note",
                      ", ".join(devices) or "none: evaluation works, training is slow")
    yield from checks.each("machine", "GPUs", gpus())
    try:
        yield Finding("machine", "ffmpeg", "ok", ffmpeg())
    except SetupError as error:
        yield Finding("machine", "ffmpeg", "missing", str(error))
    free = shutil.disk_usage(checks.root).free / 1e9
    yield Finding("machine", "disk", "ok" if free > 50 or checks.config.site.toy else "note",
                  f"{free:,.0f} GB free under {checks.root}")


def models(checks: Checks) -> Iterator[Finding]:
    """Check the tokenizer, the encoders to start from, and the released checkpoints."""
    from egokit.model.text_encoder import load_tokenizer
    site, tokenizer = checks.config.site, f"tokenizer {checks.config.site.tokenizer}"

    def words() -> Iterator[Finding]:
        try:
            yield Finding("models", tokenizer, "ok", f"{load_tokenizer(site.tokenizer, fetch=True).vocab_size:,} words")
        except FileNotFoundError as error:
            yield Finding("models", tokenizer, "missing", str(error).splitlines()[0], "set site.tokenizer to a folder "
                          "with vocab.json and merges.txt, or go online once for a name")
    yield from checks.each("models", tokenizer, words())
    for key, source in (("site.vit", site.vit), ("site.roberta", site.roberta)):
        if source and source != RANDOM:
            local = checks.check_file("models", Path(source).expanduser(), "")
            yield dataclasses.replace(local, what=f"{key}: {source}") if local.state != "missing" else Finding(
                "models", f"{key}: {source}", "note", "no file: taken as a name, downloaded at the first use")
    if site.weights:
        folder = Path(site.weights).expanduser()
        of_file = {name: checks.check_file("models", folder / name, "") for name in RELEASED}
        absent = [name for name, finding in of_file.items() if finding.state == "missing"]
        yield from (finding for finding in of_file.values() if finding.state == "wrong")
        message = f"{len(RELEASED) - len(absent)} of {len(RELEASED)} in {folder}"
        if absent:
            yield Finding("models", "released checkpoints", "note", f"{message}; not {', '.join(absent)}",
                          "the checkpoints of https://github.com/facebookresearch/EgoVLPv2, into site.weights")
        else:
            yield Finding("models", "released checkpoints", "ok", message)


GENERAL = {"machine": machine, "models": models}  # what is examined beside the tasks
ASKED = {"speed": speed.check}  # what is examined only if it is asked for


def findings_of(part: str, checks: Checks) -> Iterator[Finding]:
    """Yield what the checks of "machine", "models", "speed" or a task report."""
    general = GENERAL | ASKED
    yield from general[part](checks) if part in general else tasks.find(part).check_site(checks)


def examine(config: Config, sample: int = SAMPLE, parts: Iterable[str] = ()) -> list[Finding]:
    """Return all findings of a site.

    Args:
        sample: number of videos opened per table; 0 opens all.
        parts: what to examine: "machine", "models", "speed", and tasks. By default the first two, all tasks of egokit,
            and config.task, which may be a user's "file.py:Class". A task of egokit of which nothing is present gives
            one finding.
    """
    checks = Checks(config, sample)
    if config.site.toy and not checks.root.is_dir():
        return [Finding("site", "site.root", "note", "the embedded data set is not made yet",
                        f"notebook 01_data_prep makes it, or {checks.prep}")]
    if not config.site.root or not checks.root.is_dir():
        return [Finding("site", "site.root", "missing", f"{config.site.root or 'not set'}: no such folder",
                        f"set site.root in params/sites/{config.site.name}.yaml")]
    root = checks.check_file("site", checks.root, "")
    if root.state == "wrong":
        return [root]
    findings: list[Finding] = []
    for part in parts or dict.fromkeys(filter(None, (*GENERAL, *tasks.TASKS, config.task.name))):
        of_part = list(checks.each(part, "check", findings_of(part, checks)))
        of_part = [dataclasses.replace(finding, part=of_part[0].part) if finding.part == part else finding
                   for finding in of_part]  # an error's
        if part in tasks.TASKS and of_part and all(finding.state == "missing" for finding in of_part):
            of_part = [Finding(of_part[0].part, "everything", "note", "nothing of it under this root", of_part[0].fix)]
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
        text.append(printable(f"  {finding.state:8}{finding.what}: {finding.message}"))
        if finding.fix:
            text.append(printable(f"          -> {finding.fix}"))
    counts = collections.Counter(finding.state for finding in findings)
    return "\n".join([*text, "", ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]).lstrip()


def is_sound(findings: list[Finding]) -> bool:
    """Return whether nothing is missing or wrong."""
    return not any(finding.state in ("missing", "wrong") for finding in findings)

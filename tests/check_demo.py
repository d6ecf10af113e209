"""Check the result of `make demo`, for .ci/run: held-out numbers, files, a second run."""
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def shuffle_vectors(folder: Path, target: Path) -> Path:
    """Copy stored vectors, each to the place of another question's."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    paths = sorted(target.glob("*.npy"))
    arrays = [np.load(path) for path in paths]
    mixed = np.random.default_rng(0).permutation(np.concatenate(arrays))
    for path, rows in zip(paths, np.split(mixed, np.cumsum([len(array) for array in arrays])[:-1]), strict=True):
        np.save(path, rows)
    return target


ROOT = Path(__file__).parents[1]
summary = json.loads((ROOT / "outputs/demo/summary.json").read_text())
AT_LEAST = {"egomcq.ensemble.inter": 85, "egomcq.ensemble.intra": 60, "egomcq.ensemble.verb_only": 50,
            "ek100.zeroshot.mAP": 2 * summary["ek100.chance.mAP"],
            "charades.zeroshot.mAP": 2 * summary["charades.chance.mAP"],
            "ek100.finetune.mAP": summary["ek100.zeroshot.mAP"] + 1e-9,
            "ek100.finetune.nDCG": summary["ek100.zeroshot.nDCG"] + 1e-9,
            "charades.finetune.mAP": summary["charades.zeroshot.mAP"] + 1e-9, "mq.clips": 1,
            "mq.detection.mAP": 5 * summary["mq.chance.mAP"],
            "nlq.grounding.R@5_0.3": 3 * summary["nlq.chance.R@5_0.3"],
            "egotaskqa_head.headtune.direct_open": 4 * summary["egotaskqa_head.chance.direct_open"],
            "egotaskqa_head.headtune.direct_all": 1.8 * summary["egotaskqa_head.chance.direct_all"]}
wrong = [f"{name} is {summary[name]:.1f}, below {least:.1f}"
         for name, least in AT_LEAST.items() if summary[name] < least]
if summary["seconds"] > 900:
    print(f"the demo took {summary['seconds']:.0f} s, more than the 15 minutes it should")
if summary["seconds"] > 1800:  # some machines' bf16 takes three times as long for the same steps; more is the code
    wrong.append("the demo has become too slow")
for pattern in ("0*/demo/notebook.ipynb", "0*/demo/metrics.json", "05_egomcq/demo/figures/questions-egomcq.png",
                "0[34]*/demo/figures/retrieved-*.png", "0[678]*/demo/features/manifest.json", "07*/demo/clips/*.mp4",
                "07*/demo/figures/search-*.html", "06*/demo/figures/detections*.png", "08*/demo/figures/answers.png",
                "0[68]*/demo/submission.json", "0[89]*/demo/figures/question-*.html", "09*/demo/vectors/manifest.json",
                "09*/demo/figures/kinds-headtune.png", "09*/demo/figures/answer-attention.png",
                "09*/demo/figures/browser-headtune.html", "10*/demo/figures/overlaid.png", "10*/demo/here/log.jsonl",
                "11*/demo/figures/mean-curves.png", "09*/demo-lr*/figures/browser-headtune.html"):
    if not list((ROOT / "outputs").glob(pattern)):
        wrong.append(f"nothing at outputs/{pattern}")


def snippets(name: str) -> tuple[list[str], list[str]]:
    """Return a document's Python snippets, and its shell lines that need no more than the demo's files."""
    text = (ROOT / name).read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
             for line in re.sub(r"\\\n *", "", block).splitlines()
             if line.startswith(".venv/bin/") and not re.search("--site (local|mycluster)", line)]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL) if name == "README.md" else [], lines


def faults_of(name: str) -> list[str]:
    """Run a document's snippets, verbatim and in their order; return what is wrong.

    tests/test_docs.py parses the snippets of all documents.
    """
    faults, (python, shell) = [], snippets(name)
    for command in [line for line in shell if "tensorboard" in line]:  # it would serve forever
        shell.remove(command)
        server = subprocess.Popen([*command.split("#")[0].split(), "--port", "0"], cwd=ROOT, stderr=subprocess.PIPE,
                                  text=True)
        if not any("http://" in message for message in server.stderr):
            faults.append(f"{name}'s {command}: it ended with {server.wait()}")
        server.kill()
    for kind, command in [("python", snippet) for snippet in python] + [("shell", line) for line in shell]:
        arguments = [sys.executable, "-c", command] if kind == "python" else ["bash", "-c", command]
        process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        if process.returncode or (kind == "python" and "tensor" not in process.stdout):
            faults.append(f"{name}'s {command[:200]}: {process.stderr[-500:]}")
    return faults


def faults_of_shuffled_vectors() -> list[str]:
    """A head on other questions' vectors learns nothing but how often an answer is right; return what is wrong."""
    shuffled = shuffle_vectors(ROOT / "outputs/09_egotaskqa/demo/vectors", ROOT / "outputs/shuffled_vectors")
    trained = subprocess.run([sys.executable, "-m", "egokit.cli", "submit", "toy/egotaskqa_head", "--run", "shuffled",
                              "--action", "train", "--overrides", f"task.vectors={shuffled}", "--wait"],
                             cwd=ROOT, capture_output=True, text=True)
    if trained.returncode:
        return [f"training on shuffled vectors failed: {trained.stderr[-500:]}"]
    result = json.loads((ROOT / "outputs/09_egotaskqa/shuffled/metrics.json").read_text())["headtune"]
    return [f"{name} on shuffled vectors is {result[name]:.1f}, above chance" for name in ("direct_all", "direct_open")
            if result[name] > summary[f"egotaskqa_head.chance.{name}"] + 5]


DOCUMENTS = ("docs/extending.md", "README.md", "docs/notebooks.md", "docs/checkpoints.md", "docs/examples.md")
found = [snippets(name) for name in DOCUMENTS]
if sum(len(python) for python, _ in found) < 1 or sum(len(shell) for _, shell in found) < 9:
    wrong.append("the documents have fewer snippets than this check expects")
with ThreadPoolExecutor(2) as pool:  # the longest document first; a snippet seldom keeps two cores busy
    of_documents, of_vectors = pool.map(faults_of, DOCUMENTS), pool.submit(faults_of_shuffled_vectors)
    wrong += [fault for faults in of_documents for fault in faults] + of_vectors.result()
notebooks = list((ROOT / "notebooks").glob("[0-9]*.ipynb"))
began = time.perf_counter()
again = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True)
took = time.perf_counter() - began
if again.returncode or took > 60 or again.stdout.count("done before") != len(notebooks):
    wrong.append(f"the second make demo: exit {again.returncode}, {took:.0f} s, {again.stdout[-500:]}")
print("\n".join(wrong) or f"the demo holds: {len(AT_LEAST)} numbers in place, {summary['seconds']:.0f} s, "
                          f"again in {took:.0f} s")
sys.exit(bool(wrong))

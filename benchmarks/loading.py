"""Time and memory of loading a checkpoint: egokit against PyTorch's and safetensors' own readers.

    python benchmarks/loading.py                  (the table that it printed stands at the end of this file)
    python benchmarks/loading.py ANOTHER_TREE     compares with another version of egokit, too

Each loading is a process of its own; the readers take turns, and medians are printed. Memory is the growth of the
process's peak; pages of a mapped file count. The libraries' readers verify no checksums.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import types
from pathlib import Path

ROOT, ROUNDS = Path(__file__).parents[1], 3
MEASURE = """
import re, sys, time, torch, egokit, egokit.model.weights, safetensors.torch
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
class ConfigParser:
    pass
def library(path):
    if path.endswith(".safetensors"):
        state = safetensors.torch.load_file(path)
    else:
        with torch.serialization.safe_globals([(ConfigParser, "parse_config.ConfigParser")]):
            state = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    return {key: value.clone() for key, value in state.items()}
load = library if sys.argv[1] == "library" else egokit.load
before, began, cpu = peak(), time.perf_counter(), time.process_time()
loaded = load(sys.argv[2])
print(time.perf_counter() - began, time.process_time() - cpu, peak() - before)
"""


def make(folder: Path) -> list[Path]:
    """Write a released-like file with an optimizer and a foreign object, an egokit checkpoint, and .safetensors."""
    import torch

    from egokit.config.schema import ModelConfig
    from egokit.model import backbones, weights
    model = backbones.initialise(ModelConfig(projection="linear256", depth=1, num_fused_layers=1), "", seed=0)
    parser = types.ModuleType("parse_config")
    parser.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})
    sys.modules["parse_config"] = parser
    paths = [folder / name for name in ("released.pth", "egokit.pt", "egokit.safetensors")]
    weights.export(model, paths[0])
    content = torch.load(paths[0], weights_only=True)
    content["optimizer"] = {name: [torch.zeros_like(value) for value in content["state_dict"].values()]
                            for name in ("exp_avg", "exp_avg_sq")}
    torch.save({**content, "parser": parser.ConfigParser()}, paths[0])
    for path in paths[1:]:
        weights.save(model, path)
    return paths


def measure(tree: str, reader: str, path: Path) -> list[float]:
    """Seconds, seconds of the processor, and MiB of one loading in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": tree, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE, reader, str(path)], check=True, stdout=subprocess.PIPE,
                          text=True, env=environment)
    return [float(number) for number in done.stdout.split()]


def main(others: list[str]) -> None:
    readers = [("egokit", str(ROOT), "egokit"), *(("other tree", tree, "egokit") for tree in others),
               ("library", str(ROOT), "library")]
    with tempfile.TemporaryDirectory() as folder:
        print("file                  MiB  reader      seconds  processor  MiB more")
        for path in make(Path(folder)):
            rows = [[measure(tree, kind, path) for _, tree, kind in readers] for _ in range(ROUNDS)]
            for index, (name, _, _) in enumerate(readers):
                seconds, cpu, memory = (statistics.median(row[index][column] for row in rows) for column in range(3))
                print(f"{path.name:20} {path.stat().st_size / 2**20:5.0f}  {name:10} {seconds:8.2f} {cpu:10.2f}"
                      f" {memory:9.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

# Printed on an idle machine of 2 cores, PyTorch 2.15, safetensors 0.8; the other tree is egokit before its unpickler
# was made smaller:
#
# file                  MiB  reader      seconds  processor  MiB more
# released.pth          1179  egokit         0.24       0.24       398
# released.pth          1179  other tree     0.23       0.23       398
# released.pth          1179  library        0.10       0.18       788
# egokit.pt              393  egokit         0.24       0.24       398
# egokit.pt              393  other tree     0.23       0.23       398
# egokit.pt              393  library        0.09       0.17       788
# egokit.safetensors     393  egokit         0.19       0.19       397
# egokit.safetensors     393  other tree     0.18       0.18       397
# egokit.safetensors     393  library        0.09       0.17       789

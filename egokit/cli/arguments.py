"""The arguments of every subcommand, with its help and an example."""
import argparse

from egokit.cli import commands
from egokit.tasks import score


def _recipe(parser: argparse.ArgumentParser, params: str | None = None, run: str | None = "demo",
            run_help: str = "name of the run folder") -> None:
    """Add the arguments that name a config and a run; `run` is the run's default name."""
    if params:
        parser.add_argument("params", help="recipe: a name under params/ or a YAML file")
    parser.add_argument("--site", default="toy", help="a name under params/sites/ or a YAML file (default: toy)")
    parser.add_argument("--overrides", default="",
                        help="'section.key=value …', for example 'train.epochs=1 optim.lr=1e-4'")
    parser.add_argument("--run", default=run,
                        help=f"{run_help} (default: {run or 'a name made from the folder of videos'})")


def _in_place_of_the_notebooks(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that take the place of a notebook's own parameters."""
    for name, what in (("params", "recipe: a name under params/ or a YAML file"),
                       ("site", "a name under params/sites/ or a YAML file"),
                       ("overrides", "'section.key=value …'")):
        parser.add_argument(f"--{name}", help=f"{what} (default: the notebook's)")


def shard(text: str) -> tuple[int, int]:
    """Parse "3/16" to (3, 16)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write NUMBER/COUNT, from 1/16 to 16/16")
    return int(number), int(count)


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")


def minutes(text: str) -> float:
    """Parse a number of minutes above 0."""
    try:
        if (value := float(text)) > 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number of minutes above 0")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="egokit", description="EgoVLPv2 as a notebook-centric research kit. Without a "
                                  "command: where you stand, and the next command.")
    top.set_defaults(function=commands.overview)
    subparsers = top.add_subparsers(dest="command")

    def add(name, help, example):
        sub = subparsers.add_parser(name, help=help, description=f"{help}\n\nexample:\n  {example}",
                                  formatter_class=formatter)
        sub.set_defaults(function=getattr(commands, name))
        return sub

    sub = add("demo", "Run every notebook on the embedded data set.", "egokit demo")
    sub.add_argument("--run", default="demo")
    sub.add_argument("--overrides", default="", help="for every notebook, for example 'train.epochs=0'")
    sub = add("toy", "Make the embedded data set.", "egokit toy outputs/toy")
    sub.add_argument("root")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--size", choices=("demo", "tiny"), default="demo")
    sub = add("prep", "Prepare data: resize, cut, metadata, relevancy. Resumable; failed parts are tried again.",
              "egokit prep --site local                                everything on this machine\n"
              "  egokit prep ek100 --site local                          one data set: ego4d, charades or ek100\n"
              "  egokit prep nlq-narrations --site local --every 10      narrations as questions (not part of all)\n"
              "  egokit prep ego4d --site local --source VIDEOS          full videos of another folder\n"
              "  egokit prep ego4d --site local --shard 3/16             the third of sixteen shares (without SLURM)\n"
              "  egokit prep ego4d --site mycluster --array 16 --wait    sixteen jobs on the site's launch.cluster")
    sub.add_argument("what", nargs="?", choices=("all", "ego4d", "charades", "ek100", "nlq-narrations"), default="all")
    sub.add_argument("--params", default="toy/pretrain")
    sub.add_argument("--site", default="toy",
                     help="a name under params/sites/ or a YAML file (default: toy, which is for its own root alone)")
    sub.add_argument("--overrides", default="", help="for example 'site.encoding=original launch.cpus_per_task=16'")
    sub.add_argument("--source", help="folder of full videos (default: ROOT/Ego4D)")
    sub.add_argument("--root", help="data root (default: the site's)")
    one_part = sub.add_mutually_exclusive_group()
    one_part.add_argument("--shard", type=shard, metavar="I/N", help="do only this share of the videos")
    one_part.add_argument("--array", type=positive, metavar="N",
                          help="submit N shards as jobs; a second time: only the unfinished shards")
    sub.add_argument("--clip-seconds", type=positive, metavar="S",
                     help="nlq-narrations: length of the clips that videos are cut into (default: 480)")
    sub.add_argument("--every", type=positive, metavar="N", help="nlq-narrations: keep one narration of N")
    sub.add_argument("--videos", type=positive, metavar="N", help="nlq-narrations: N videos, evenly over the table")
    sub.add_argument("--wait", action="store_true",
                     help="with --array: wait until all jobs have ended; exit code 1 if a video failed")
    sub = add("run", "Run notebooks with papermill: in order, up to the first that fails, or side by side.\n"
              "The exit code is 1 if a notebook failed.",
              "egokit run 03_ek100 --params ek100_finetune --site local\n"
              "  egokit run 05_egomcq:egomcq 03_ek100:ek100_finetune --site local --run released --submit\n"
              "  egokit run 03_ek100 04_charades_ego 06_egomq_features --side-by-side 2 --timeout 600")
    sub.add_argument("notebooks", nargs="+",
                     help="a notebook's name or its beginning; NOTEBOOK:RECIPE gives it its own --params")
    sub.add_argument("--side-by-side", type=positive, default=1, metavar="N",
                     help="run N notebooks at once, each in its own process")
    sub.add_argument("--timeout", type=minutes, metavar="MINUTES",
                     help="time limit of each notebook; the jobs that it submitted go on")
    sub.add_argument("--submit", action="store_true",
                     help="run the notebooks in a small job on the site's launch.cluster")
    _in_place_of_the_notebooks(sub)
    sub.add_argument("--run", dest="run_name", help="name of the run folder (default: the notebook's)")
    sub = add("compare", "Evaluate several models on a notebook's benchmark: a table beside the published\n"
              "numbers, and how sure the differences are. The exit code is 1 if a model failed.",
              "egokit compare 03_ek100 --init EgoVLPv2_smallproj.pth --init lavila_b.pth --site local")
    sub.add_argument("notebook", help="a notebook's name or its beginning")
    sub.add_argument("--init", action="append", required=True, help="a model, as a recipe has it; once for each")
    _in_place_of_the_notebooks(sub)
    sub.add_argument("--run", default="compare", dest="run_name", help="first part of the run folders' names")
    sub.add_argument("--side-by-side", type=positive, default=1, metavar="N", help="on this machine, N models at once")
    sub.add_argument("--wait", action="store_true", help="on SLURM: wait until all jobs have ended")
    sub = add("submit", "Start the job of a recipe, or attach to it; the recipe's notebook finds it, too.",
              "egokit submit toy/pretrain --run mine --wait\n"
              "  egokit submit params/pretrain.yaml --site mycluster           on a cluster; returns at once\n"
              "  egokit submit params/pretrain.yaml --site mycluster --print   only shows the sbatch script")
    _recipe(sub, "params")
    sub.add_argument("--action", help="train, evaluate or extract (default: the main action of the task)")
    then = sub.add_mutually_exclusive_group()
    then.add_argument("--wait", action="store_true", help="show progress until the job has finished")
    then.add_argument("--print", action="store_true",
                      help="print the sbatch script instead; nothing is submitted or written")
    sub = add("sweep", "Start a recipe's job at every combination of some keys' values, each as a run of its own: as\n"
              "one job array on SLURM. Again: submits what is missing or failed. The exit code is 1 if a run failed.",
              "egokit sweep toy/egotaskqa_head --over optim.lr=3e-3,3e-2 --over seed=0,1\n"
              "  egokit sweep ek100_finetune --site mycluster --run lr --over optim.lr=1e-5,3e-5 --over seed=0,1,2\n"
              "  egokit sweep ek100_finetune --site mycluster --run lr --over seed=0,1,2 --print   only shows")
    _recipe(sub, "params", run_help="first part of the run folders' names")
    sub.add_argument("--over", action="append", required=True, metavar="KEY=VALUE,VALUE",
                     help="a key and its values, each YAML; once for each key")
    sub.add_argument("--action", help="train, evaluate or extract (default: train, where the task trains)")
    sub.add_argument("--side-by-side", type=positive, default=1, metavar="N", help="on this machine, N runs at once")
    then = sub.add_mutually_exclusive_group()
    then.add_argument("--wait", action="store_true", help="on SLURM: wait until all jobs have ended")
    then.add_argument("--print", action="store_true",
                      help="print the runs and the array's sbatch script instead; nothing is submitted or written")
    sub = add("profile", "Find out why a training is slow: a few steps under PyTorch's profiler. Trains nothing.",
              "egokit profile toy/pretrain\n"
              "  egokit profile params/pretrain.yaml --site mycluster --steps 20   as the site's launch says")
    _recipe(sub, "params")
    sub.add_argument("--steps", type=positive, default=8, metavar="N", help="steps to record (default: 8)")
    sub = add("search", "Search the videos of a folder by text or by example; new videos are indexed first.",
              'egokit search ~/videos "#C C opens the box" --params search --site local\n'
              '  egokit search ~/videos --like kitchen.mp4@1:23 --top 100 --page hits.html\n'
              '  egokit search ~/videos "#C C opens the box" --rerank 50 --csv hits.csv --clips hits')
    sub.add_argument("folder", help="folder of videos, with sub-folders")
    sub.add_argument("query", nargs="?", default="",
                     help="an action in the style of Ego4D's narrations: '#C C opens the box'")
    sub.add_argument("--like", metavar="EXAMPLE", help="search by example, alone or with a query: VIDEO@1:23, "
                     "VIDEO@1:23-1:27, or the file of a clip or a picture (.jpg, .png)")
    sub.add_argument("--weight", type=fraction, default=0.5, metavar="W",
                     help="share of the example beside a query, 0 to 1 (default: 0.5)")
    sub.add_argument("--single", action="store_true",
                     help="list single clips: merge none that overlap or adjoin into one moment")
    sub.add_argument("--params", default="toy/search",
                     help="a recipe (default: toy/search; with the released weights: search)")
    _recipe(sub, run=None)
    sub.add_argument("--checkpoint", help="a checkpoint in place of the recipe's")
    sub.add_argument("--top", type=positive, default=10, metavar="N", help="number of hits (default: 10)")
    sub.add_argument("--rerank", type=positive, default=0, metavar="N", help="reorder the best N by the fusion encoder")
    sub.add_argument("--csv", metavar="FILE", help="write the hits as a table")
    sub.add_argument("--clips", metavar="FOLDER", help="write each hit as an MP4")
    sub.add_argument("--page", metavar="FILE", help="write the hits as an HTML page that plays them")
    sub = add("score", "Score a result file of EgoMQ, EgoNLQ or QFVS, whoever made it: mAP, recalls, F1.",
              "egokit score mq submission.json --site local\n"
              "  egokit score nlq nlq_submission.json --site local --json > scores.json\n"
              "  egokit score qfvs summaries.json --root ~/QFVS")
    score.add_arguments(sub)
    sub = add("runs", "List every run's jobs, newest first: state, step, time left, last metric.", "egokit runs")
    sub.add_argument("--outputs", help="folder of the runs (default: outputs)")
    add("trust", "Let an unfinished run that somebody else made go on with its copy of egokit's code.",
        "egokit trust outputs/02_pretrain/theirs").add_argument("folder", help="the run folder")
    sub = add("doctor", "Report what a site has and lacks, and where to get it. Changes nothing.",
              "egokit doctor --site local")
    sub.add_argument("--params", default="toy/pretrain",
                     help="the recipe that names the video reader, and for --speed the samples (default: toy/pretrain)")
    sub.add_argument("--site", default="toy")
    sub.add_argument("--overrides", default="")
    sub.add_argument("--all", action="store_true", help="open every video instead of a sample of 40 per table")
    sub.add_argument("--speed", action="store_true", help="only measure, for a minute, how many GPUs the site feeds")
    sub = add("ledger", "Show published numbers beside every run's, and how recipes differ.", "egokit ledger")
    sub.add_argument("--outputs", help="folder of the runs (default: outputs)")
    for name, help, example in (
            ("convert", "Convert a checkpoint to .safetensors, or to an egokit checkpoint (.pt, .pth).",
             "egokit convert EgoVLPv2.pth EgoVLPv2.safetensors"),
            ("export", "Write a checkpoint with the released key names, for the original code to load.",
             "egokit export outputs/02_pretrain/mine mine.pth")):
        sub = add(name, help, example)
        sub.add_argument("source", help="a released file, an egokit checkpoint, a .safetensors file or a run folder")
        sub.add_argument("out")
        sub.add_argument("--frames", type=int, help="resize the temporal embedding (default: as it is)")
        sub.add_argument("--force", action="store_true", help="replace an existing file")
    return top

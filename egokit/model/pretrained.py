"""EgoVLPv2 models as folders of the Hugging Face hub: config.json, model.safetensors, a tokenizer, and a model card.

`EgoVLP` derives from `Pretrained`, and so from huggingface_hub's mixin: save_pretrained, push_to_hub, from_pretrained.
"""
import json
import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelHubMixin

from egokit.config.json_file import check_fields
from egokit.config.names import shortened
from egokit.model import checkpoints, hub
from egokit.model.checkpoints import WeightsError
from egokit.model.text_encoder import load_tokenizer
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown

MODEL_TYPE = "egokit"  # in config.json
RECORD = {"format": str, "model_config": dict, "tokenizer": str}  # in config.json, under "egokit"
CODE = "https://github.com/facebookresearch/EgoVLPv2"  # of the paper
NOT_METRICS = {"seconds", "evaluation_seconds", "processes", "expected", "failed", "frames", "samples", "unlisted"}


def record_of(config: dict, folder: Path) -> dict:
    """Return what a config.json records of the model: its shape, its tokenizer, and its head.

    Raises:
        WeightsError: the record is damaged, or of a later version of the format.
    """
    try:
        check_fields(config, {"egokit": RECORD})
    except ValueError as error:
        raise WeightsError(f"{folder / hub.CONFIG}: {shortened(error)}; expected what save_pretrained of egokit has "
                           "written") from None
    record = config["egokit"]
    if record["format"] != checkpoints.FORMAT:
        raise WeightsError(f"{folder / hub.CONFIG}: its format is {shown(record['format'], 40)}, but this egokit reads "
                           f"{checkpoints.FORMAT}: use the egokit that wrote it")
    return {key: value for key, value in record.items() if key != "state_dict"}


def read(folder: Path, config: dict) -> tuple[Path, dict]:
    """Return the file of weights in a folder that egokit wrote, and its content as that of a checkpoint.

    Raises:
        WeightsError: a file is missing or damaged, or config.json does not belong to the weights.
    """
    record, path = record_of(config, folder), folder / hub.TENSORS
    if path not in hub.tensor_files(folder):
        raise WeightsError(f"{path} is missing: expected what save_pretrained of egokit has written")
    content = checkpoints.read(path, everything=False)
    state = checkpoints.state_dict(content, path)
    within = content.get("model_config")
    if within is not None and within != record["model_config"]:
        raise WeightsError(f"{folder / hub.CONFIG} records another model than {hub.TENSORS} beside it: take both files "
                           "from one save_pretrained")
    return path, record | {"tokenizer": record["tokenizer"] or str(folder), "state_dict": state}


class Pretrained(ModelHubMixin, library_name="egokit", repo_url=CODE,
                 tags=["egocentric-video", "video-text-retrieval", "EgoVLPv2"]):
    """What makes an EgoVLPv2 model a citizen of the Hugging Face hub.

    Attributes:
        source: the file that the model was loaded from; "" if it was not.
    """

    source = ""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, *, revision: str | None = None, cache_dir=None,
                        token: str | bool | None = None, force_download: bool = False, local_files_only: bool = False,
                        frames: int | None = None, tokenizer: str | None = None):
        """Return the model of a folder, or of the hub, as `egokit.load` does.

        Example:
            model = EgoVLP.from_pretrained("outputs/hub/mine")

        Args:
            name: a folder that `save_pretrained` has written, or OWNER/NAME, which is fetched if the cache lacks it.
            revision: a branch, tag or commit of the hub.
            cache_dir: the cache; None takes huggingface_hub's.
            token: as of huggingface_hub.
            force_download: not known here: the cache's files are taken where they are whole.
            local_files_only: don't ask the hub.
            frames: as of `egokit.load`.
            tokenizer: as of `egokit.load`.

        Raises:
            WeightsError: it is not there, or no EgoVLPv2 model.
        """
        from egokit.model import weights
        if force_download:
            raise WeightsError("force_download: the cache's files are taken as they are; delete the model's folder in "
                               "the cache, or give another cache_dir, to fetch it again")
        folder = Path(name) if os.path.exists(name) else hub.snapshot(
            str(name).removeprefix("hf:"), revision or "", cache_dir, token, not local_files_only)
        model = weights.load(folder, frames=frames, tokenizer=tokenizer)
        if not isinstance(model, cls):
            raise WeightsError(f"{folder} holds a {type(model).__name__}, not {cls.__name__}: egokit.load takes it")
        return model

    def save_pretrained(self, folder: str | os.PathLike, *, run: Run | str | os.PathLike | None = None,
                        repo_id: str | None = None, push_to_hub: bool = False, **options):
        """Write the model to a folder in the hub's layout.

        Example:
            egokit.load("outputs/03_ek100/demo").save_pretrained("outputs/hub/ek100")

        Args:
            folder: it is made; an earlier model in it is replaced, but a README.md stays.
            run: whose metrics and recipe the model card shows; None: the run that the model was loaded from, if any.
            repo_id: OWNER/NAME, for push_to_hub; by default the folder's name.
            push_to_hub: upload it, too.
            options: for `push_to_hub`.

        Returns:
            The commit's address if it was uploaded, else None.

        Raises:
            WeightsError: it can't be written, or the tokenizer's folder is gone.
        """
        card = {"run": run, "name": repo_id or Path(folder).name} | options.pop("model_card_kwargs", {})
        return super().save_pretrained(folder, repo_id=repo_id, push_to_hub=push_to_hub, model_card_kwargs=card,
                                       **options)

    def push_to_hub(self, repo_id: str, *, run: Run | str | os.PathLike | None = None, **options) -> str:
        """Upload the model, as `save_pretrained` writes it, and return the commit's address.

        Args:
            repo_id: OWNER/NAME; the repository is made if there is none.
            run: as of `save_pretrained`.
            options: huggingface_hub's: private, token, branch, create_pr, commit_message.
        """
        card = {"run": run, "name": repo_id} | (options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        from egokit.model import weights
        folder, record = Path(save_directory), weights.record_of(self)
        if os.path.isdir(record["tokenizer"]) or os.path.isabs(record["tokenizer"]):  # no name: it goes with the model
            try:
                load_tokenizer(record["tokenizer"]).inner.save_pretrained(folder)
            except FileNotFoundError as error:
                raise WeightsError(f"{folder}: the model's tokenizer can't be written beside it: {error}; set "
                                   "model.tokenizer_source to the folder or name that it was trained with") from None
            record["tokenizer"] = ""
        checkpoints.write(folder / hub.TENSORS, record | {"state_dict": self.state_dict()})
        write_text(folder / hub.CONFIG, json.dumps(
            {"model_type": MODEL_TYPE, "architectures": [type(self).__name__], "egokit": record}, indent=1))

    def generate_model_card(self, run: Run | str | os.PathLike | None = None, name: str = "", **_) -> ModelCard:
        """Return the model card: how to load the model, and its run's metrics and recipe."""
        source = Path(self.source)
        if run is None and source.parent.name == "checkpoints":
            run = source.parents[1]
        data = self._hub_mixin_info.model_card_data.to_yaml()
        return ModelCard(f"---\n{data}\n---\n\n{card_text(self, run, name)}")


def card_text(model, run: Run | str | os.PathLike | None, name: str) -> str:
    """Return the text of a model card, in Markdown.

    Args:
        model: an EgoVLP.
        run: whose metrics and recipe are shown, or None.
        name: of the model, for the heading and the example; OWNER/NAME, or a folder's name.
    """
    config = model.config
    lines = [f"# {shown(name or 'EgoVLPv2', 100)}", "",
             f"An [EgoVLPv2]({CODE}) model for egocentric video and text, by egokit: {config.frames} frames of "
             f"{config.image_size} px, embeddings of {model.embed_dim} numbers.", "", "```python", "import egokit", "",
             f'model = egokit.load("hf:{shown(name, 100)}")' if "/" in name else
             'model = egokit.load("…")  # this folder, or hf:OWNER/NAME', "```", "",
             "Its licence is not stated here: add `license` to the head of this card. Weights that began with the "
             "released ones of EgoVLPv2 are under their licence."]
    if getattr(model.head, "classes", ()):
        lines += ["", f"It has a head of {model.head.num_classes:,} classes: `model.answer`."]
    if run is not None:
        lines += _results(run if isinstance(run, Run) else Run(Path(run)))
    return "\n".join(lines) + "\n"


def _results(run: Run) -> list[str]:
    """The lines of a card with a run's metrics and recipes."""
    lines = []
    for section, entry in run.metrics().items():
        metrics = {key: value for key, value in entry.items() if isinstance(value, (int, float))
                   and not isinstance(value, bool) and key not in NOT_METRICS}
        if not entry.get("finished") or not metrics or entry.get("action") == "extract":
            continue
        where = [f"task {_public(entry.get('task', ''))}", f"{entry.get('frames', '?')} frames",
                 f"{entry.get('expected', '?')} samples", *(["the embedded toy data set"] if entry.get("toy") else [])]
        lines += ["", f"## Results: {shown(section, 60)}", "", f"On {', '.join(where)}.", "", "| metric | |",
                  "|---|---|"]
        lines += [f"| {shown(key, 60).replace('|', ' ')} | {value:.4g} |" for key, value in metrics.items()]
        recipe = {key: value for key, value in (entry.get("recipe") or {}).items() if value == _public(value)}
        if recipe:
            text = "\n".join(f"{key}: {json.dumps(recipe[key], ensure_ascii=False)}" for key in sorted(recipe))
            lines += ["", "Its recipe:", "", "```yaml", text.replace("```", "'''"), "```"]
    return lines


def _public(value):
    """A value without the folders of this machine: a path becomes its last part."""
    if not isinstance(value, str):
        return value
    return shown(value.rpartition("/")[2] if os.path.isabs(value) else value, 100)

"""How each family's published numbers were made: the keys of a recipe at which its evaluation differs from EgoVLPv2's.

Source: the evaluation code of EgoVLP, LaViLa and AVION.
"""
from egokit.runs.ledger import Result

CLIP_TEXT = ("data.eval_max_tokens", 77)
EGOVLP = (("data.eval_resize", 256), ("model.image_size", 224), CLIP_TEXT)
LAVILA = (("data.eval_resize", 224), ("model.image_size", 224), CLIP_TEXT)
HALF = (("evaluate.precision", "fp16"),)
AVION = (*LAVILA, *HALF)

# released files: (name, first digits of its MD5 sum or "", other names)
# EgoVLP's are also known as LaViLa converted them, of which the sum is
EGOVLP_BEST = ("EgoVLP_PT_BEST.pth", "c33363", ("egovlp.pth", "egovlp_converted_f16.md5sum_c33363.pth"))
EGOVLP_FIRST_EPOCH = ("EgoVLP_PT_EPO1.pth", "7a3d3b", ("egovlp_epo1_converted_f16.md5sum_7a3d3b.pth",))
LAVILA_BASE = ("clip_openai_timesformer_base.narrator_rephraser.ep_0005.md5sum_d73a9c.pth", "d73a9c", ())
LAVILA_LARGE = ("clip_openai_timesformer_large.narrator_rephraser.ep_0003.md5sum_c89337.pth", "c89337", ())


def peer(name: str, section: str, metric: str, number: float | None, model: str, file: tuple, frames: int,
         conditions: tuple, source: str, note: str = "") -> Result:
    """Return a number that was published for another family's released file.

    Args:
        name: of the metric, as the task's own Result has it.
        section: the task's section that has this metric.
        metric: key in that section.
        number: %; None: nothing is published.
        model: as readers know it.
        file: see above.
        frames: of a clip in that evaluation.
        conditions: keys and values of that evaluation's recipe.
        source: where the number stands.
        note: in what the number differs from any run here.
    """
    checkpoint, md5, others = file
    # LaViLa's code converted EgoVLP's files to its own layout, too
    families = ("EgoVLP", "LaViLa") if model.startswith("EgoVLP") else (model.partition(" ")[0],)
    return Result(name, section, metric, number, checkpoint, metric, note=note, model=model, frames=frames, md5=md5,
                  other_names=others, conditions=conditions, source=source, families=families)

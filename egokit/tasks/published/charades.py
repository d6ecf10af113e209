"""Charades-Ego: what EgoVLP and LaViLa published."""
from egokit.tasks.published.conditions import EGOVLP, EGOVLP_FIRST_EPOCH, LAVILA, peer

LAVILA_ZOO = "LaViLa's README, model zoo"
ZEROS = "EgoVLP's own code fills the temporal embeddings of frames 5 to 16 with zeros; here they are interpolated"

PEERS = [
    peer(f"Charades-Ego mAP, {words}", section, "mAP", number, model, file, 16, conditions, source, note)
    for section, words, model, file, conditions, source, note, number in (
        ("zeroshot", "zero-shot", "EgoVLP", EGOVLP_FIRST_EPOCH, EGOVLP, "EgoVLP's README", ZEROS, 25.0),
        ("zeroshot", "zero-shot", "EgoVLP, by LaViLa", EGOVLP_FIRST_EPOCH, LAVILA, "LaViLa's README, re-evaluated", "",
         25.2),
        ("zeroshot", "zero-shot", "LaViLa TSF-B",
         ("clip_openai_timesformer_base.narrator_rephraser.ep_0001.md5sum_02dbb9.pth", "02dbb9", ()), LAVILA,
         LAVILA_ZOO, "", 26.8),
        ("zeroshot", "zero-shot", "LaViLa TSF-L",
         ("clip_openai_timesformer_large.narrator_rephraser.ep_0001.md5sum_9a25de.pth", "9a25de", ()), LAVILA,
         LAVILA_ZOO, "", 28.9),
        ("finetune", "fine-tuned", "EgoVLP", ("EgoVLP_FT_CHARADES.pth", "", ()), EGOVLP, "EgoVLP's README", "", 32.1),
        ("finetune", "fine-tuned", "LaViLa TSF-B",
         ("clip_openai_timesformer_base.ft_charades_ego.ep_0005.md5sum_39bf4b.pth", "39bf4b", ()), LAVILA, LAVILA_ZOO,
         "", 33.7),
        ("finetune", "fine-tuned", "LaViLa TSF-L",
         ("clip_openai_timesformer_large.ft_charades_ego.ep_0003.md5sum_9448b2.pth", "9448b2", ()), LAVILA, LAVILA_ZOO,
         "", 36.1))]

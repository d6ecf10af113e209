"""A byte-level BPE tokenizer in RoBERTa's file format, trained on the toy's sentences.

A space is put before the first word, so that a word is one token wherever it stands. The folder takes the place of the
folder of `roberta-base`; egokit.model.text_encoder reads both.
"""
import json
from pathlib import Path

from egokit.runs.files import atomic_path
from egokit.toy.words import all_sentences, verb_pieces

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in RoBERTa; <mask> is the last id
MASK = "<mask>"
MERGE_LIMIT = 1000  # more than there are to learn: training stops when every word is one token


def write_tokenizer(folder: Path) -> int:
    """Train the tokenizer and write its five files; return the size of the vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    # stems and endings are learned separately, and first: "picks" and "picking" share a token, as in a large vocabulary
    pieces = {stem + ending: (stem, ending) for stem, ending in verb_pieces()}
    split_pieces = pre_tokenizers.Sequence([pre_tokenizers.Split("|", "removed"),
                                            pre_tokenizers.ByteLevel(add_prefix_space=False)])
    sentences = [" " + " ".join("|".join(pieces.get(word, (word,))) for word in sentence.split())
                 for sentence in all_sentences()]
    sentences += [" " + "|".join(piece) for piece in pieces.values()] * len(sentences)
    trainer = trainers.BpeTrainer(vocab_size=MERGE_LIMIT, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.pre_tokenizer = split_pieces
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**learned["vocab"], MASK: len(learned["vocab"])}
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in learned["merges"]]

    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens([*SPECIAL, tokenizers.AddedToken(MASK, lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True,
                                                            add_prefix_space=True)
    names = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
             "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": MASK}
    config = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512,
              "add_prefix_space": True, "trim_offsets": True, **names}
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=1),
        "special_tokens_map.json": json.dumps(names, indent=1),
    }
    for name, text in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return len(vocabulary)

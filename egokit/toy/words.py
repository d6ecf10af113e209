"""The toy's vocabulary, the three ways in which the data sets narrate an action, and questions about one.

Class ids are positions in NOUNS and VERBS. Verbs stand in opposite pairs: verb ^ 1 is the opposite, verb // 2 the pair.
Nothing here depends on videos or files.
"""
NOUNS = ("cup", "bowl", "ball", "box", "bottle", "plate", "knife", "pan", "book", "phone", "hammer", "apple")
VERBS = ("pick up", "put down", "open", "close", "push", "pull", "move left", "move right")
COLOURS = ("red", "blue", "green", "yellow", "purple", "white")

# base form, third person, gerund, and what follows the verb and the object; "|" divides stem and ending (tokenizer)
_FORMS = (
    ("pick", "pick|s", "pick|ing", " up", ""),
    ("put", "put|s", "put|ting", " down", ""),
    ("open", "open|s", "open|ing", "", ""),
    ("clos|e", "clos|es", "clos|ing", "", ""),
    ("push", "push|es", "push|ing", "", ""),
    ("pull", "pull|s", "pull|ing", "", ""),
    ("mov|e", "mov|es", "mov|ing", "", " to the left"),
    ("mov|e", "mov|es", "mov|ing", "", " to the right"),
)

_DONE = ("picked up", "put down", "opened", "closed", "pushed", "pulled", "moved to the left", "moved to the right")


def _phrase(verb: int, form: int, thing: str) -> str:
    words = _FORMS[verb]
    return f"{words[form].replace('|', '')}{words[3]} {thing}{words[4]}"


def verb_pieces() -> list[tuple[str, str]]:
    """Return every form of every verb as (stem, ending); the ending may be empty."""
    forms = {form for row in _FORMS for form in row[:3]}
    return sorted((form.partition("|")[0], form.partition("|")[2]) for form in forms)


def ego4d_narration(verb: int, noun: int, colour: int | None, hand: str | None, style: int = 0) -> str:
    """Return a narration such as "#C C picks up the red cup".

    Styles 1 to 3 are "#C C starts to pick up", "#C C is picking up" and "picking up". They bring the verb forms of the
    other data sets into pre-training; a real text encoder knows from its own pre-training that they are one verb.

    Args:
        colour: class id; None leaves the colour out.
        hand: "left" or "right"; None leaves the hand out.
    """
    thing = " ".join(["the", *([] if colour is None else [COLOURS[colour]]), NOUNS[noun]])
    # "moves the cup to the left with the right hand" would be confusing, and longer than 15 tokens
    by_hand = f" with the {hand} hand" if hand and not style and VERBS[verb] not in ("move left", "move right") else ""
    lead, form = (("#C C ", 1), ("#C C starts to ", 0), ("#C C is ", 2), ("", 2))[style]
    return f"{lead}{_phrase(verb, form, thing)}{by_hand}"


def ek100_narration(verb: int, noun: int, colour: int | None, article: bool, neighbour: int | None) -> str:
    """Return a narration in EK-100's terse style.

    Examples: "pick up cup", "push the red pan", "put down cup next to plate".
    """
    words = [*(["the"] if article else []), *([] if colour is None else [COLOURS[colour]]), NOUNS[noun]]
    return _phrase(verb, 0, " ".join(words)) + ("" if neighbour is None else f" next to {NOUNS[neighbour]}")


def charades_sentence(verb: int, noun: int) -> str:
    """Return a class name in Charades' style, such as "picking up the cup"."""
    return _phrase(verb, 2, f"the {NOUNS[noun]}")


def nlq_questions(verb: int, noun: int, colour: int | None) -> dict[str, str]:
    """Return {template of EgoNLQ: question} about an action, such as "Where did I put down the red cup?".

    The action is worded as EgoClip narrates it, because the tokenizer has whole tokens for those words alone.

    Args:
        colour: class id; None leaves the colour out.
    """
    thing = " ".join([*([] if colour is None else [COLOURS[colour]]), NOUNS[noun]])
    done = _phrase(verb, 0, f"the {thing}")
    if VERBS[verb] == "put down":
        return {"Place: Where did I put X?": f"Where did I {done}?"}
    if VERBS[verb] in ("open", "close"):
        return {"Objects: State of an object": f"Did I {done}?"}
    return {"Objects: What X did I Y?": f"What {thing} did I {' '.join(_phrase(verb, 0, '').split())}?",
            "Objects: Where is object X before / after event Y?": f"Where is it after I {done}?"}


def task_question(kind: str, verb: int, noun: int, colour: int, first: bool = False) -> str:
    """Return a question of EgoTaskQA about an action, such as "What is the hand doing with the cup?".

    Most words are those of narrations, for the reason that `nlq_questions` tells: of the others the text encoder learns
    too little for them to steer what the video encoder sees.

    Args:
        kind: what is asked for: "action", "object", "state" (a colour), "binary" or "next" (the next thing).
        first: ask about the first action of several, whichever it is; a binary question names it, too.
    """
    shades = f"{', '.join(COLOURS[:-1])} or {COLOURS[-1]}"
    done = _DONE[verb]
    if kind == "next":
        return "Which object is next?"
    if first:
        return {"action": "What is the hand doing first?", "object": f"Which object is {done} first?",
                "state": f"Is the first object {shades}?",
                "binary": f"Is the hand first {_phrase(verb, 2, f'the {COLOURS[colour]} {NOUNS[noun]}')}?"}[kind]
    return {"action": f"What is the hand doing with the {NOUNS[noun]}?", "object": f"Which object is {done}?",
            "state": f"Is the {NOUNS[noun]} {shades}?",
            "binary": f"Is the hand {_phrase(verb, 2, f'the {COLOURS[colour]} {NOUNS[noun]}')}?"}[kind]


def charades_classes() -> list[tuple[int, int]]:
    """Return the 24 (verb, noun) classes c000..c023: every noun twice, every verb three times.

    The two verbs of a noun come from different pairs.
    """
    return sorted((verb % len(VERBS), noun) for noun in range(len(NOUNS)) for verb in (noun, noun + 4))


def all_sentences() -> list[str]:
    """Return every sentence that the toy can hold, for the tokenizer.

    Of the narrations with two nouns there is one per verb and noun.
    """
    sentences, colours = [], (None, *range(len(COLOURS)))
    for verb in range(len(VERBS)):
        for noun in range(len(NOUNS)):
            sentences.append(charades_sentence(verb, noun))
            for hand in (None, "left", "right"):
                sentences += [ego4d_narration(verb, noun, colour, hand, style)
                              for colour in colours for style in range(4)]
            for article in (False, True):
                sentences += [ek100_narration(verb, noun, colour, article, None) for colour in colours]
            sentences.append(ek100_narration(verb, noun, None, False, (noun + 5) % len(NOUNS)))
    return sentences

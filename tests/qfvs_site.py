"""A made-up folder of QFVS annotations: two videos of some dozen shots, in the layout of the real ones."""
from pathlib import Path

CONCEPTS = ("Book", "Car", "Cupglass", "Hands", "Street")
TAGS = {  # none for the last shot of P02
    "P01": ["Book,Hands", "Car,Street", "Book", "Street", "Hands", "Car", "Book,Car", "Cupglass", "Cupglass,Hands",
            "Book,Street"],
    "P02": ["Car", "Car,Street", "Book", "Hands", ""]}
ORACLES = {"P01": {"Book_Street": [1, 3, 10], "Car_Hands": [1, 2, 6, 9]}, "P02": {"Book_Street": [2, 3]}}
USERS = {"P01": {"Book_Street": ([1, 3, 10], [3, 4]), "Car_Hands": ([2, 6],)}, "P02": {}}


def write(root: Path) -> Path:
    """Write the folder and return it."""
    def lines(path: Path, texts) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{text}\n" for text in texts))
    lines(root / "Dense_per_shot_tags/Dictionary.txt", [f"'{name}'" for name in CONCEPTS])
    for video, tags in TAGS.items():
        lines(root / f"Dense_per_shot_tags/{video}/{video}.txt", tags)
        for query, shots in ORACLES[video].items():
            lines(root / f"Query-Focused_Summaries/Oracle_Summaries/{video}/{query}_oracle.txt", shots)
        for query, people in USERS[video].items():
            for number, shots in enumerate(people, 1):
                lines(root / f"Query-Focused_Summaries/User_Summaries/{video}/{query}_user{number}.txt", shots)
    return root

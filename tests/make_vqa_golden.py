"""Golden values of the official VQA evaluation, written once by its own code.

    python -m tests.make_vqa_golden vqaEval.py

vqaEval.py is PythonEvaluationTools/vqaEvaluation/vqaEval.py of https://github.com/GT-Vision-Lab/VQA. It is Python 2:
its print statements are taken out.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "vqa_accuracy.json"
WORDS = (
    *("yes", "Yes", "no", "a", "an", "the", "The", "dog", "cats", "none", "zero", "One", "two", "ten", "eleven", "10"),
    *("1,000", "2.5", "3.", "U.S.", "dont", "Don't", "isnt", "wouldn'tve", "oclock", "o'clock", "somebody'd", "shes"),
    *("t-shirt", "black/white", "(left)", "left,", "right;", "what?", "'ow'sat", "twas", "&", "it's", "its", "yall"),
    *("red\nblue", "\ttabbed", "", "...", "10:30", "half-", "-half", "100%", "#1", "café", "\u00bd"),
)
"""Words, put together at random: everything that the normalisation treats in a special way."""


def cases() -> list[tuple[str, list[str]]]:
    """Return answers, each with the answers of ten people; some agree."""
    rng = random.Random(0)
    made = []
    for _ in range(250):
        pool = [" ".join(rng.choices(WORDS, k=rng.choice((1, 1, 1, 2, 3)))) for _ in range(rng.choice((1, 2, 3, 6)))]
        people = rng.choices(pool, k=10)
        made.append((rng.choice([*pool, pool[0].upper(), rng.choice(WORDS)]), people))
    return made


def official(source: str) -> Any:
    """Return the class of the official evaluation."""
    names: dict[str, Any] = {}
    source = re.sub(r'print "[^"]*"', "pass", source.replace("\t", "    "))
    exec(compile(re.sub(r"sys\.stdout\.\w+\(.*\)", "pass", source), "vqaEval.py", "exec"), names)
    return names["VQAEval"]


def main() -> None:
    """Write the golden file."""
    evaluation = official(Path(sys.argv[1]).read_text())
    rows = []
    for answer, people in cases():
        answers = [{"answer": each, "answer_id": number} for number, each in enumerate(people)]
        question = {"answers": answers, "question_type": "", "answer_type": ""}
        vqa = SimpleNamespace(qa={1: question}, getQuesIds=lambda: [1])
        found = evaluation(vqa, SimpleNamespace(qa={1: {"answer": answer}}), n=8)
        found.evaluate()
        normal = found.processDigitArticle(
            found.processPunctuation(answer.replace("\n", " ").replace("\t", " ").strip())
        )
        rows.append([answer, people, normal, found.accuracy["overall"]])
    GOLDEN.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()

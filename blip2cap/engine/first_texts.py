"""Notices a model that does not work: all of its first texts are empty, or all are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blip2cap.records import Generated

_NUM_TEXTS = 100
_FEWEST_EMPTY, _FEWEST_SAME = 3, 10
"""Least number of texts in a short run that says something about the model."""
_SHORT = 3
"""Number of tokens of a text that many pictures may share: an answer such as "yes"."""


class FirstTexts:
    """The first texts of a run, each about another picture; says once if there is only one text among them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.text: str | None = None
        self.num_texts = 0
        self.settled = False
        """True: nothing remains to be said."""

    def add(self, texts: Sequence[Generated], label: str | None) -> None:
        """Look at the texts about one picture, best first; `label` is their question, if there is one."""
        if self.settled:
            return
        best = texts[0]
        self.text = best.text if self.text is None else self.text
        self.num_texts += 1
        may_be_shared = best.text != "" and (label is not None or best.num_tokens <= _SHORT)
        self.settled = may_be_shared or best.text != self.text
        if self.num_texts == _NUM_TEXTS:
            self.finish()

    def finish(self) -> None:
        """Say what is wrong, if anything is."""
        if not self.settled and self.num_texts >= (_FEWEST_SAME if self.text else _FEWEST_EMPTY):
            found = f'the same: "{self.text[:60]}"' if self.text else "empty"
            self.say(
                f"WARNING: the first {self.num_texts} texts are all {found}. Unless the images are alike, the files of "
                "this model are damaged or do not belong together."
            )
        self.settled = True

"""Beam search that makes the same choices as transformers' `generate`, for each text separately.

A text ends when its own beams cannot improve, independent of the other texts, so slots are freed one by one.

Shapes: M = slots, B = beams, C = candidates of each step (B for every end token, and B more), N = M x B rows,
T = new tokens, V = vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.sampling import Rules
from blip2cap.models.blip2.search import Results, Start, Text
from blip2cap.models.blip2.transfer import HostCopy, to_device

_NEVER = -1.0e9
"""Score of beams that must not be chosen, as in transformers."""


@dataclass(kw_only=True, slots=True)
class _State:
    """State of the search, with one entry for each slot."""

    ids_MBT: torch.Tensor
    """New tokens of the running beams."""
    scores_MB: torch.Tensor
    """Sums of their log-probabilities."""
    done_ids_MBT: torch.Tensor
    """New tokens of the best finished beams."""
    done_lengths_MB: torch.Tensor
    done_scores_MB: torch.Tensor
    """Sums divided by length ** length_penalty."""
    is_done_MB: torch.Tensor
    can_improve_M: torch.Tensor
    """True if a running beam may still beat a finished one."""
    continues_M: torch.Tensor
    """True if the search continues."""
    num_chosen_M: torch.Tensor

    def select(self, slots: slice | torch.Tensor) -> _State:
        """Return the state of some slots: a slice shares memory, a tensor of indices copies."""
        return _State(**{field.name: getattr(self, field.name)[slots] for field in fields(self)})


class Beams:
    """Keeps the `num_beams` best partial texts of every text."""

    def __init__(self, options: GenerateOptions, ends: Sequence[int], device: torch.device) -> None:
        self.options = options
        self.num_beams = options.num_beams
        self.num_candidates = max(2, 1 + len(ends)) * options.num_beams
        self.rules = Rules(options, ends, device)
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.texts: list[Text] = []
        self.unread: deque[tuple[list[Text], HostCopy]] = deque()
        """Texts of each choice, with their flags `continues`."""
        self.state = self._new(0)

    def _new(self, num_slots: int) -> _State:
        beams, device = (num_slots, self.num_beams), self.ends.device
        ids = torch.zeros((*beams, self.options.max_new_tokens), dtype=torch.long, device=device)
        scores = torch.zeros(beams, device=device)
        scores[:, 1:] = _NEVER  # all beams start equal: only the first may be continued
        yes = torch.ones(num_slots, dtype=torch.bool, device=device)
        return _State(
            ids_MBT=ids,
            scores_MB=scores,
            done_ids_MBT=ids.clone(),
            done_lengths_MB=torch.zeros(beams, dtype=torch.long, device=device),
            done_scores_MB=torch.full(beams, _NEVER, device=device),
            is_done_MB=torch.zeros(beams, dtype=torch.bool, device=device),
            can_improve_M=yes,
            continues_M=yes.clone(),
            num_chosen_M=torch.zeros(num_slots, dtype=torch.long, device=device),
        )

    def start(self, starts: Sequence[Start]) -> None:
        """Add texts, in the slots after the existing ones."""
        self.texts += [Text(start=start) for start in starts]
        self.rules.start([start.given_ids for start in starts])
        new = self._new(len(starts))
        for field in fields(_State):
            joined = torch.cat([getattr(self.state, field.name), getattr(new, field.name)])
            setattr(self.state, field.name, joined)

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the next token of the slots from `first` on, given the logits of their rows."""
        texts, state = self.texts[first:], self.state.select(slice(first, None))
        num_slots, beams, vocabulary = len(texts), self.num_beams, scores_NV.shape[-1]
        log_probs_NV = scores_NV.log_softmax(-1)
        if self.rules.active:
            num_chosen_N = state.num_chosen_M.repeat_interleave(beams)
            self.rules.apply(first, state.ids_MBT.flatten(0, 1), num_chosen_N, log_probs_NV)
        total_M_BV = (log_probs_NV.view(num_slots, beams, vocabulary) + state.scores_MB.unsqueeze(-1)).flatten(1)
        score_MC, index_MC = total_M_BV.topk(self.num_candidates)
        parent_MC, token_MC = index_MC // vocabulary, index_MC % vocabulary
        ids_MCT = _select_beams(state.ids_MBT, parent_MC)
        at_MC1 = state.num_chosen_M.view(-1, 1, 1).expand(-1, self.num_candidates, 1)
        ids_MCT.scatter_(2, at_MC1, token_MC.unsqueeze(-1))
        length_M1 = (state.num_chosen_M + 1).unsqueeze(-1)
        ended_MC = torch.isin(token_MC, self.ends) | (length_M1 >= self.options.max_new_tokens)

        running_MC = score_MC + ended_MC.float() * _NEVER
        best_MB = running_MC.topk(beams)[1]
        self._keep_finished(state, score_MC, ids_MCT, ended_MC, length_M1)
        state.ids_MBT.copy_(_select_beams(ids_MCT, best_MB))
        state.scores_MB.copy_(running_MC.gather(1, best_MB))
        state.num_chosen_M += 1
        self._update_flags(state, ended_MC, length_M1)
        self.unread.append((texts, HostCopy(state.continues_M)))
        for text in texts:
            text.num_chosen += 1
        return token_MC.gather(1, best_MB).flatten(), parent_MC.gather(1, best_MB)

    def _keep_finished(
        self,
        state: _State,
        score_MC: torch.Tensor,
        ids_MCT: torch.Tensor,
        ended_MC: torch.Tensor,
        length_M1: torch.Tensor,
    ) -> None:
        """Replace worse finished beams by candidates that ended; only the best `num_beams` candidates count."""
        just_done_MC = ended_MC.clone()
        just_done_MC[:, self.num_beams :] = False
        # The end of a text is read a step later: nothing may change in between.
        just_done_MC &= (state.can_improve_M & state.continues_M).unsqueeze(-1)
        score_MC = score_MC / length_M1**self.options.length_penalty
        score_MC = score_MC + (~just_done_MC).float() * _NEVER
        scores, best = torch.cat([state.done_scores_MB, score_MC], 1).topk(self.num_beams)
        lengths = torch.cat([state.done_lengths_MB, length_M1.expand_as(score_MC)], 1)
        state.done_ids_MBT.copy_(_select_beams(torch.cat([state.done_ids_MBT, ids_MCT], 1), best))
        state.done_lengths_MB.copy_(lengths.gather(1, best))
        state.is_done_MB.copy_(torch.cat([state.is_done_MB, just_done_MC], 1).gather(1, best))
        state.done_scores_MB.copy_(scores)

    def _update_flags(self, state: _State, ended_MC: torch.Tensor, length_M1: torch.Tensor) -> None:
        """End texts whose running beams cannot beat the finished ones, or cannot continue."""
        possible_M = (state.scores_MB[:, :1] / length_M1**self.options.length_penalty).squeeze(1)
        worst_M = torch.where(state.is_done_MB.all(1), state.done_scores_MB.min(1)[0], _NEVER)
        state.can_improve_M &= possible_M > worst_M
        state.continues_M &= state.can_improve_M & ~ended_MC.all(1)

    def read(self, leave: int = 0) -> None:
        """Wait for the device to make all but the last `leave` choices, and read which texts ended with them."""
        while len(self.unread) > leave:
            texts, continues_M = self.unread.popleft()
            for text, continues in zip(texts, continues_M.tolist(), strict=True):
                text.ended = text.ended or not continues

    def finished(self) -> list[int]:
        """Return the slots whose texts have ended."""
        longest = self.options.max_new_tokens
        return [slot for slot, text in enumerate(self.texts) if text.ended or text.num_chosen >= longest]

    def take(self, slots: Sequence[int]) -> Results:
        """Return the results of finished slots, which are copied to the host together."""
        state, number = self.state.select(to_device(list(slots), self.ends.device)), self.options.num_captions
        lengths_MB1, ids_MBT = state.done_lengths_MB.unsqueeze(2), state.done_ids_MBT
        copied = HostCopy(torch.cat([lengths_MB1, ids_MBT], dim=2)[:, :number])
        return lambda: [[ids[1 : 1 + ids[0]] for ids in text] for text in copied.tolist()]

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order."""
        self.texts = [self.texts[slot] for slot in slots]
        order_M = to_device(list(slots), self.ends.device)
        self.rules.keep(order_M)
        self.state = self.state.select(order_M)


def _select_beams(values_MBT: torch.Tensor, beams_MC: torch.Tensor) -> torch.Tensor:
    """Return the entries of some beams of each slot."""
    return values_MBT.gather(1, beams_MC.unsqueeze(-1).expand(-1, -1, values_MBT.shape[-1]))

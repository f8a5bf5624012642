"""What the original predicts, in a form with which another model's logits can be compared.

All logits give the exact divergence. The k likeliest tokens and the mass of all others together take k numbers a token
instead of the whole vocabulary, and a divergence that is never larger, since nothing is seen of how the rest is
distributed:

    KL_k = sum over the k tokens of p (log p - log q)  +  r_p (log r_p - log r_q),   r = 1 - sum over the k tokens
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from roundel.errors import ModelError

# Rows of logits handled at once: bounds the fp32 copies at large vocabularies.
_ROWS = 512


@dataclass(frozen=True)
class Difference:
    """Of a window of S tokens, on the CPU.

    Attributes:
        loss: `[S - 1]` fp32, the original's next-token losses, nats.
        found_loss: the model's.
        kl: `[S]` fp32, KL(original || model), nats.
        same: `[S]` bool, whether the likeliest next token is the same.
    """

    loss: torch.Tensor
    found_loss: torch.Tensor
    kl: torch.Tensor
    same: torch.Tensor


class Distribution(Protocol):
    """The original's predictions on a window."""

    def compare(self, found: torch.Tensor, window: torch.Tensor) -> Difference:
        """With the logits `[S, V]` of another model on `window [S]`.

        Raises:
            ModelError: the vocabularies differ.
        """
        ...


@dataclass(frozen=True)
class Full:
    """All logits `[S, V]`."""

    logits: torch.Tensor

    def compare(self, found: torch.Tensor, window: torch.Tensor) -> Difference:
        """Exactly."""
        check_vocabulary(self.logits.shape[-1], found)
        loss, found_loss, kl, same = [], [], [], []
        rows = zip(self.logits.split(_ROWS), found.to(self.logits.device).split(_ROWS), strict=True)
        for (p, q), following in zip(rows, window.roll(-1).split(_ROWS), strict=True):
            log_p, log_q = F.log_softmax(p.float(), -1), F.log_softmax(q.float(), -1)
            loss.append(losses_of(log_p, following))
            found_loss.append(losses_of(log_q, following))
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1).cpu())
            same.append((p.argmax(-1) == q.argmax(-1)).cpu())
        # The last prediction is of a token that nobody knows.
        return Difference(torch.cat(loss)[:-1], torch.cat(found_loss)[:-1], torch.cat(kl), torch.cat(same))


@dataclass(frozen=True)
class Top:
    """The likeliest tokens.

    Attributes:
        ids: `[S, k]` int32, likeliest first.
        log_p: `[S, k]` fp32.
        log_rest: `[S]` fp32, log of the mass of all others.
        loss: `[S - 1]` fp32.
        vocabulary: number of tokens.
    """

    ids: torch.Tensor
    log_p: torch.Tensor
    log_rest: torch.Tensor
    loss: torch.Tensor
    vocabulary: int

    @classmethod
    def of(cls, logits: torch.Tensor, window: torch.Tensor, k: int) -> "Top":
        """Of `logits [S, V]`, where k < V."""
        ids, log_p, log_rest, loss = [], [], [], []
        for rows, following in zip(logits.split(_ROWS), window.roll(-1).split(_ROWS), strict=True):
            of_all = F.log_softmax(rows.float(), -1)
            loss.append(losses_of(of_all, following))
            likely, places = of_all.sort(dim=-1, descending=True, stable=True)
            ids.append(places[:, :k].int().cpu())
            log_p.append(likely[:, :k].cpu())
            log_rest.append(likely[:, k:].logsumexp(-1).cpu())
        # The last prediction is of a token that nobody knows.
        return cls(
            torch.cat(ids), torch.cat(log_p), torch.cat(log_rest), torch.cat(loss)[:-1], logits.shape[-1]
        )

    def compare(self, found: torch.Tensor, window: torch.Tensor) -> Difference:
        """By the k tokens and the rest."""
        check_vocabulary(self.vocabulary, found)
        found_loss, kl, same = [], [], []
        rows = (found, window.roll(-1), self.ids, self.log_p, self.log_rest)
        parts = zip(*(of_all.split(_ROWS) for of_all in rows), strict=True)
        for q, following, ids, log_p, log_rest in parts:
            log_q = F.log_softmax(q.float(), -1).cpu()
            found_loss.append(losses_of(log_q, following))
            likely = log_q.gather(-1, ids.long())
            others = log_q.scatter(-1, ids.long(), float("-inf")).logsumexp(-1)
            rest = log_rest.exp() * (log_rest - others)
            kl.append((log_p.exp() * (log_p - likely)).sum(-1) + rest.nan_to_num(0.0))
            same.append(q.argmax(-1).cpu() == ids[:, 0])
        return Difference(self.loss, torch.cat(found_loss)[:-1], torch.cat(kl), torch.cat(same))


def losses_of(log_p: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Losses `[s]` of the tokens `following [s]`, on the CPU, by their predictions `log_p [s, V]`."""
    return -log_p.gather(-1, following.to(log_p.device)[:, None])[:, 0].cpu()


def next_token_loss(logits: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Losses of a window's S - 1 predictions, `[S - 1]` fp32 on the CPU, nats."""
    target = window[1:].to(logits.device)
    losses = [
        F.cross_entropy(rows.float(), ids, reduction="none").cpu()
        for rows, ids in zip(logits[:-1].split(_ROWS), target.split(_ROWS), strict=True)
    ]
    return torch.cat(losses)


def check_vocabulary(wanted: int, found: torch.Tensor) -> None:
    """Raise ModelError where logits `[S, V]` are not over so many tokens."""
    if found.shape[-1] != wanted:
        raise ModelError(
            f"the model predicts {found.shape[-1]} tokens, the reference {wanted}: "
            "a reference with the same vocabulary is expected"
        )

"""In which order GPTQ and SpQR round the columns.

Columns that come early see their error made up for by all later ones; columns that come late gather the
compensation of all earlier ones. So those that matter most come first.

    identity      as they are
    act_order     by descending diagonal of H
    group_aware   groups by their largest diagonal, and columns inside each group by theirs: nearly as good, and
                  every group stays together, so nothing is permuted at run time
    spearman      a path through similar columns: from the most important one always to the column whose
                  weights have the closest ranks (Spearman's correlation over the rows)
"""

import torch

from roundel.methods.options import OrderName


def column_order(
    kind: OrderName, weight: torch.Tensor, diagonal: torch.Tensor, group_width: int
) -> torch.Tensor | None:
    """The order of rounding.

    Args:
        kind: which rule.
        weight: `[out, in]`.
        diagonal: `[in]`, of H.
        group_width: columns of a group.

    Returns:
        `[in]` int64, the column to round first, second, ...; None for `identity`.
    """
    if kind == "identity":
        return None
    if kind == "act_order":
        return diagonal.argsort(descending=True, stable=True)
    if kind == "group_aware":
        return _group_aware(diagonal, group_width)
    return _spearman(weight, diagonal)


def _group_aware(diagonal: torch.Tensor, group_width: int) -> torch.Tensor:
    groups = torch.arange(len(diagonal), device=diagonal.device).split(group_width)
    largest = torch.stack([diagonal[group].max() for group in groups])
    ordered = [groups[i] for i in largest.argsort(descending=True, stable=True).tolist()]
    return torch.cat([group[diagonal[group].argsort(descending=True, stable=True)] for group in ordered])


def _spearman(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    ranks = weight.argsort(0).argsort(0).float()
    ranks -= ranks.mean(0)
    ranks /= ranks.norm(dim=0).clamp_min(1e-30)
    similarity = ranks.t() @ ranks
    column = int(diagonal.argmax())
    path = []
    for _ in range(len(diagonal)):
        path.append(column)
        similarity[:, column] = -torch.inf
        column = int(similarity[column].argmax())
    return torch.tensor(path, device=weight.device)

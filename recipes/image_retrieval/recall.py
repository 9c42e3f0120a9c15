"""Recall@K: the share of queries with an image of their class among the K nearest."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BOTH", "GALLERY", "QUERY", "recall_at"]

# What an image is to others: leave-one-out has BOTH only, In-Shop the other two.
BOTH, QUERY, GALLERY = 0, 1, 2
ROWS = 1024  # queries whose similarities are in memory at once


def recall_at(
    ks: Sequence[int], embeddings: Tensor, labels: Tensor, roles: Tensor | None = None
) -> dict[int, float]:
    """Return Recall@K for each K, a share from 0 to 1; nan if an embedding is not finite.

    Nearest is the largest cosine. No image is its own neighbour. A query whose class the gallery
    does not have counts as missed.

    Args:
        ks: numbers of neighbours.
        embeddings: unit vectors, (images, size).
        labels: classes, (images,).
        roles: `BOTH`, `QUERY` or `GALLERY` of each image, (images,). Default: all `BOTH`.

    Raises:
        ValueError: a K is below 1 or not below the number of images in the gallery; or there is no
            query.
    """
    if roles is None:
        roles = torch.full_like(labels, BOTH)
    queries, gallery = ((roles != other).nonzero()[:, 0] for other in (GALLERY, QUERY))
    if not ks or min(ks) < 1 or max(ks) >= len(gallery):
        raise ValueError(
            f"recall_at={list(ks)} must be from 1 to below the gallery's {len(gallery)} images."
        )
    if not len(queries):
        raise ValueError("there is no query: all images are of the gallery only.")
    if not embeddings.isfinite().all():
        return dict.fromkeys(ks, float("nan"))
    found = torch.zeros(len(ks), dtype=torch.long, device=embeddings.device)
    for some in queries.split(ROWS):
        similar = embeddings[some] @ embeddings[gallery].T
        similar[some[:, None] == gallery] = -torch.inf
        nearest = gallery[similar.topk(max(ks)).indices]
        hits = labels[nearest] == labels[some][:, None]
        found += torch.stack([hits[:, :k].any(-1).sum() for k in ks])
    return {k: count / len(queries) for k, count in zip(ks, found.tolist(), strict=True)}

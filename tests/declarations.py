"""Weights of every kind with a `scale_invariant` each, as several test files train them."""

from itertools import groupby

# Groups of one and of several weights, declared and not, take turns.
DECLARED = {
    "linear": ("head", 2),
    "conv1d": ("head_dim", 2),
    "conv2d": "row",
    "bias": "row",
    "embedding": "tensor",
    "one_row": "row",
    "rows_of_one": ("head", 7),
    "one_element": ("head", 1),
    "conv3d": False,
    "norm": ("head", 3),
    "scalar": "tensor",
    "no_rows": ("head", 2),
    "no_columns": ("head_dim", 3),
}


def groups_of(weights, declared=DECLARED):
    """Param groups of these weights by name, one for each run of weights declared alike."""
    runs = groupby(weights, key=declared.get)
    return [
        {"params": [weights[name] for name in names], "scale_invariant": value}
        for value, names in runs
    ]

"""How near two computations of the same step must come, by dtype, in one table.

float64: round-off of about 1e-16 an operation, some thousand operations.
float32: round-off of 6e-8 an operation; twenty steps of about ten operations each, in any order.
float16, bfloat16: arithmetic is float32, so after one step weights differ only where rounding to
    the stored format tips over, by a unit in the last place (2⁻¹⁰, 2⁻⁷).
State of half-precision weights is float32 and gets float32's row.
"""

import torch

TOLERANCES = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 3e-6, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},
}


def assert_close(actual, expected, *, dtype=None, what=""):
    """Equal within the row of `dtype` (by default that of `actual`); NaN equals NaN."""
    actual = actual.detach().cpu()
    expected = expected.detach().cpu()
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        **TOLERANCES[dtype or actual.dtype],
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )

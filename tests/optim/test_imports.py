"""What importing the optimizers loads, and what it doesn't."""

import subprocess
import sys

import pytest

LOADED = """
import sys
{code}
print(sorted(name for name in {names} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import hf_adamp.optim",
        "import torch, hf_adamp; hf_adamp.AdamP([torch.nn.Parameter(torch.ones(2, 2))])",
    ],
)
def test_optimizers_load_torch_only(code):
    names = ["transformers", "accelerate", "datasets", "adamp"]
    script = LOADED.format(code=code, names=names)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_public_names_are_those_documented():
    import hf_adamp
    from hf_adamp import optim

    assert set(optim.__all__) >= {"SGDP", "AdamP", "StepRecord", "adamp", "sgdp"}
    assert optim.AdamP is hf_adamp.AdamP
    assert optim.SGDP is hf_adamp.SGDP

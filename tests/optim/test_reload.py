"""Steps stay the same when modules of the package are imported a second time."""

import subprocess
import sys

# In a process of its own: this one's tests compare classes that would be there twice.
CODE = """
import importlib, sys, torch
from torch import nn
from hf_adamp import SGDP, AdamP, get_param_groups
from hf_adamp.diagnostics.steps import watch

PATHS = [{}, {"foreach": True}, {"foreach": False}, {"rounding": "kahan"},
         {"scale_invariant": ("head", 2)}]

def steps():
    found = []
    for name, options in (("adamp.AdamP", {}), ("sgdp.SGDP", {"momentum": 0.9})):
        module, cls = name.split(".")
        for path in PATHS:
            torch.manual_seed(0)
            weight = nn.Parameter(torch.randn(4, 3))
            optimizer = getattr(sys.modules["hf_adamp.optim." + module], cls)(
                [weight], lr=0.1, weight_decay=0.1, **options, **path)
            reader = watch(optimizer)
            for _ in range(3):
                weight.grad = torch.randn(4, 3)
                optimizer.step()
                reader.after_step()
            found += [weight.detach(), torch.tensor(reader.read()[0][1]["effective_step"])]
    return found

expected, names = steps(), [name for name in sys.modules if name.startswith("hf_adamp.optim")]
assert len(names) > 20
for name in [*names, *reversed(names)]:
    importlib.reload(sys.modules[name])
    assert all(map(torch.equal, steps(), expected)), name
"""


def test_steps_are_the_same_after_each_reload():
    outcome = subprocess.run(
        [sys.executable, "-c", CODE], check=False, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr

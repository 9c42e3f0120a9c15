"""Whether an installed wheel has its kernel and takes the paper's steps: run outside of a clone."""

import adamp
import torch

import hf_adamp
from hf_adamp.optim.backends.cpu import library

kernel, reason = library.load()
if kernel is None:
    raise SystemExit(f"the kernel {reason}")
torch.manual_seed(0)
start = torch.randn(300, 500)
ours, paper = (torch.nn.Parameter(start.clone()) for _ in range(2))
steps = (
    hf_adamp.AdamP([ours], lr=1e-3, weight_decay=0.1, fused=True),
    adamp.AdamP([paper], lr=1e-3, weight_decay=0.1),
)
for _ in range(10):
    grad = torch.randn_like(start)
    for weight, optimizer in zip((ours, paper), steps, strict=True):
        weight.grad = grad.clone()
        optimizer.step()
deviation = (ours - paper).abs().max().item()
print(f"{hf_adamp.__file__}: {deviation:.1e} from adamp 0.3.0 after 10 steps")
# float32's round-off, as in the table of tests/tolerances.py.
torch.testing.assert_close(ours, paper, rtol=3e-6, atol=1e-6)

"""The optimizers that the benchmarks compare: ours, torch's and other packages'."""

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = ["FAMILIES", "Contender", "Family", "NotAvailableError"]


class NotAvailableError(Exception):
    """A contender cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A class of a package and the options that make it a variant."""

    package: str
    class_name: str
    options: dict[str, Any] = field(default_factory=dict)
    # Ours again, as on a machine where the package was installed without a C compiler.
    without_native: bool = False
    # What is no AdamP or SGDP has other weights after a step, by intention.
    same_algorithm: bool = True

    @property
    def label(self) -> str:
        """Name in a table."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        variant = " without C kernel" if self.without_native else ""
        return f"{self.package} {self.class_name}" + (f"({options})" if options else "") + variant

    def make(self, parameters: Iterable[Parameter], settings: dict[str, Any]) -> Optimizer:
        """Build the optimizer.

        Raises:
            NotAvailableError: if its package is missing or does not import.
        """
        try:
            module = _optim_of_timm() if self.package == "timm" else self._module()
        except ModuleNotFoundError as error:
            if error.name == self.package:
                raise NotAvailableError("not installed") from error
            raise NotAvailableError(f"does not import without {error.name}") from error
        optimizer = getattr(module, self.class_name)(parameters, **settings, **self.options)
        return _switch_off_native(optimizer) if self.without_native else optimizer

    def _module(self) -> ModuleType:
        return importlib.import_module("torch.optim" if self.package == "torch" else self.package)


def _switch_off_native(optimizer: Optimizer) -> Optimizer:
    """Let our native backend refuse whatever this optimizer steps."""
    from hf_adamp.optim.backends.cpu import NATIVE

    step = optimizer.step

    def step_without() -> None:
        with patch.object(NATIVE, "refusal", return_value="is switched off"):
            step()

    optimizer.step = step_without
    return optimizer


def _optim_of_timm() -> ModuleType:
    """Load timm.optim's files without timm itself, which does not import without torchvision."""
    spec = find_spec("timm")
    if spec is None:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")
    package = ModuleType("timm_optim_alone")
    package.__path__ = [f"{place}/optim" for place in spec.submodule_search_locations or ()]
    sys.modules[package.__name__] = package
    for name, class_name in (("adamp", "AdamP"), ("sgdp", "SGDP")):
        module = importlib.import_module(f"{package.__name__}.{name}")
        setattr(package, class_name, getattr(module, class_name))
    return package


@dataclass(frozen=True)
class Family:
    """Contenders of one algorithm in a table's order, and the settings that all of them get."""

    settings: dict[str, Any]
    contenders: tuple[Contender, ...]
    yardstick: Contender
    reference: Contender

    @property
    def brief(self) -> "Family":
        """Ours as it comes and without a compiler, the yardstick and the reference."""
        kept = (self.yardstick, self.reference)
        ours = [c for c in self.contenders if c.package == "hf_adamp"]
        chosen = tuple(c for c in ours if not c.options or c.without_native)
        return replace(self, contenders=(*chosen, *kept))

    @property
    def others(self) -> tuple[Contender, ...]:
        """All but the yardstick and the reference."""
        return tuple(c for c in self.contenders if c not in (self.yardstick, self.reference))


def _family(ours: str, torchs: str, settings: dict[str, Any]) -> Family:
    def torch_variant(**options: bool) -> Contender:
        return Contender("torch", torchs, options, same_algorithm=False)

    yardstick, reference = torch_variant(fused=True), Contender("adamp", ours)
    contenders = (
        Contender("hf_adamp", ours),
        Contender("hf_adamp", ours, {"fused": True}),
        Contender("hf_adamp", ours, {}, without_native=True),
        Contender("hf_adamp", ours, {"foreach": True}),
        Contender("hf_adamp", ours, {"foreach": False}),
        yardstick,
        torch_variant(foreach=True),
        torch_variant(foreach=False),
        reference,
        Contender("timm", ours),
        Contender("pytorch_optimizer", ours),
        Contender("pytorch_optimizer", ours, {"foreach": True}),
        Contender("torch_optimizer", ours),
    )
    return Family(settings, contenders, yardstick, reference)


FAMILIES = {
    "adamp": _family("AdamP", "AdamW", {"lr": 1e-3, "weight_decay": 0.01}),
    # With Nesterov's momentum, because adamp 0.3.0 without it projects its momentum buffer in
    # place, which the paper's Algorithm 1 does not: there would be two right answers.
    "sgdp": _family(
        "SGDP", "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    ),
}

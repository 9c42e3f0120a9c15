"""The benchmark measures what it says: regimes, deviations, memory, and who is missing."""

import dataclasses
import time

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import contenders, shapes, step_time
from tests.benchmarks.contenders import FAMILIES, Contender
from tests.benchmarks.step_time import Plan, compare

SMALL = [(8, 32), (8,), (4, 2, 3, 3), ()]


class GradientChanger(torch.optim.SGD):
    """Adds its weight decay to the gradient itself."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, lr=0.1)

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.add_(1)


class Refuser(torch.optim.SGD):
    def __init__(self, parameters, **settings):
        raise RuntimeError("needs | another machine")


@pytest.fixture
def family(monkeypatch):
    """AdamP's family with three contenders that cannot take part."""
    monkeypatch.setattr(torch.optim, "GradientChanger", GradientChanger, raising=False)
    monkeypatch.setattr(torch.optim, "Refuser", Refuser, raising=False)
    adamp = FAMILIES["adamp"]
    extra = (
        Contender("no_such_package", "AdamP"),
        Contender("torch", "GradientChanger"),
        Contender("torch", "Refuser"),
    )
    return dataclasses.replace(adamp, contenders=(*adamp.contenders, *extra))


@pytest.mark.parametrize(
    ("name", "weights", "elements"),
    [("bert-base", 199, 109_482_240), ("resnet50", 161, 25_557_032), ("tiny", 5000, 824_000)],
)
def test_shapes_are_those_of_the_model(name, weights, elements):
    made = shapes.SHAPES[name]()
    assert len(made) == weights
    assert sum(torch.Size(shape).numel() for shape in made) == elements


@pytest.mark.parametrize("algorithm", FAMILIES)
@pytest.mark.parametrize("regime", step_time.REGIMES)
def test_our_variants_stay_with_the_reference(algorithm, regime):
    results = compare(FAMILIES[algorithm], SMALL, Plan(regime, steps=4, warmup=1)).results
    by_label = {result.contender.label: result for result in results}
    reference = by_label.pop(FAMILIES[algorithm].reference.label)
    if reference.failure:
        pytest.skip(f"needs the reference: {reference.failure}")
    ours = [r for r in by_label.values() if r.contender.package == "hf_adamp"]
    assert len(ours) == 5
    for result in ours:
        assert result.failure is None
        assert len(result.seconds) == len(result.ratios) == 4
        # Weights are 0.02 to 1, steps 1e-3 to 1e-2 each: this is round-off of a few steps.
        assert result.deviation < 1e-6


def test_native_kernel_can_be_left_out(monkeypatch):
    """Fails where the switch no longer reaches the chooser of backends."""
    from hf_adamp.optim.backends.cpu import NATIVE

    served = []
    refusal = NATIVE.refusal
    monkeypatch.setattr(NATIVE, "refusal", lambda one: served.append(one) or refusal(one))
    for without_native, asked in ((True, False), (False, True)):
        served.clear()
        weight = torch.nn.Parameter(torch.ones(4, 4))
        weight.grad = torch.ones(4, 4)
        contender = Contender("hf_adamp", "AdamP", {}, without_native=without_native)
        contender.make([weight], {}).step()
        assert bool(served) is asked


def test_batches_add_up_the_times_of_those_in_every_batch():
    family = FAMILIES["adamp"]
    plan = Plan("independent", steps=2, warmup=0, memory_gib=(4 + 3 * 8) / 2**14)
    comparison = compare(family, [(1 << 14,)], plan)
    assert comparison.batches == 2
    counts = {r.contender.label: len(r.seconds) for r in comparison.results if not r.failure}
    assert counts.pop(family.yardstick.label) == 4
    counts.pop(family.reference.label, None)
    assert set(counts.values()) == {2}


def test_torchs_own_optimizer_does_not_stay_with_the_reference():
    """What the last test looks at must be able to differ."""
    results = compare(FAMILIES["adamp"], SMALL, Plan("orthogonal", steps=4, warmup=0)).results
    deviations = {r.contender.label: r.deviation for r in results}
    if deviations["adamp AdamP"] is None:
        pytest.skip("needs adamp 0.3.0")
    assert deviations["torch AdamW(fused=True)"] > 1e-5


def test_regimes_differ_in_what_projects():
    independent, orthogonal = (
        compare(FAMILIES["adamp"], SMALL, Plan(regime, steps=1)).projected
        for regime in step_time.REGIMES
    )
    assert independent[0] == 0
    assert orthogonal == (2, 0, 2)


def test_contender_that_cannot_take_part_keeps_a_row_with_the_reason(family):
    results = compare(family, SMALL, Plan("independent", steps=1, warmup=0)).results
    assert [result.contender for result in results] == list(family.contenders)
    missing, changer, refuser = results[-3:]
    assert missing.failure == "not installed"
    assert changer.failure.startswith("RuntimeError: changes the gradients")
    assert "needs | another machine" in refuser.failure
    assert all(result.seconds for result in results[:8])


def test_package_that_needs_a_missing_one_says_so(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(contenders.NotAvailableError, match="does not import without no_such"):
        Contender("half_installed", "AdamP").make([], {})


def test_extra_memory_is_what_a_step_allocates():
    """torch's fused operator works in place; its list operators keep a second copy of v."""
    elements = 1 << 20
    family = FAMILIES["adamp"]
    results = compare(family, [(elements,)], Plan("independent", steps=1, warmup=0)).results
    extra = {result.contender.label: result.extra_bytes for result in results}
    assert extra["torch AdamW(fused=True)"] < 1024
    assert 4 * elements <= extra["torch AdamW(foreach=True)"] < 8 * elements + 1024


def test_batches_hold_everyone_once_and_fit_into_memory():
    family = FAMILIES["adamp"]
    one_gib = [(1 << 28,)]
    batches = list(step_time._batches(family, one_gib, memory_gib=4 + 3 * 5))
    assert [contender for batch in batches for contender in batch] == list(family.others)
    assert max(len(batch) for batch in batches) == 3
    with pytest.raises(SystemExit, match=r"--memory 8 GiB cannot hold .* at least --memory 13"):
        list(step_time._batches(family, one_gib, memory_gib=8))


def test_command_writes_its_section_and_a_plot(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- step-time -->\nold\n<!-- /step-time -->\nafter\n", encoding="utf-8"
    )
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setitem(command.SHAPES, "tiny", lambda: SMALL)
    plot = tmp_path / "plot.png"
    threads = torch.get_num_threads()
    arguments = ["--shapes", "tiny", "--regime", "orthogonal", "--steps", "2", "--output"]
    section = command.main([*arguments, "--threads", str(threads), "--plot", str(plot)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert section in text
    assert "old" not in text
    assert "2 of 2 weights with rows project" in text
    assert "python -m tests.benchmarks --shapes tiny" in text
    assert text.count("\n| ") == 1 + len(FAMILIES["adamp"].contenders) + 1
    assert section.splitlines()[0] in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_brief_command_has_its_own_section_and_the_defaults_only(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- step-time-brief -->\n\n<!-- /step-time-brief -->\n", encoding="utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setitem(command.SHAPES, "tiny", lambda: SMALL)
    arguments = ["--shapes", "tiny", "--regime", "orthogonal", "--steps", "2", "--brief"]
    command.main([*arguments, "--output"])
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if "AdamP" in line]
    assert [row.split("|")[1].strip() for row in rows] == [
        "hf_adamp AdamP",
        "hf_adamp AdamP without C kernel",
        "adamp AdamP",
    ]


def test_cpu_clock_needs_one_thread(capsys):
    assert command.parse(["--clock", "cpu", "--threads", "1"]).clock == "cpu"
    with pytest.raises(SystemExit):
        command.parse(["--clock", "cpu", "--threads", "2"])
    assert "needs --threads 1" in capsys.readouterr().err


def test_cpu_clock_does_not_count_waiting(monkeypatch):
    class Sleeper(torch.optim.SGD):
        def __init__(self, parameters, **settings):
            super().__init__(parameters, lr=0.1)

        def step(self, closure=None):
            time.sleep(0.05)

    monkeypatch.setattr(torch.optim, "Sleeper", Sleeper, raising=False)
    sleeper = Contender("torch", "Sleeper")
    family = dataclasses.replace(FAMILIES["adamp"], contenders=(sleeper,))
    for clock, least, most in (("wall", 0.05, 9), ("cpu", 0, 0.05)):
        (result,) = compare(family, SMALL, Plan("independent", steps=1, clock=clock)).results
        assert least <= result.seconds[0] < most

"""Automatic registration: over import orders, and what it must never do."""

import importlib
import shutil
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

import pytest
import transformers.trainer  # noqa: F401 - what `import torch` made our hook wait for

import hf_adamp
from hf_adamp.integration import import_hook

IMPORT_ORDERS = {
    "torch_first": "import torch, transformers",
    "transformers_first": "import transformers, torch",
    "arguments_import_torch": "from transformers import TrainingArguments",
    "arguments_module": "import transformers.training_args",
    "enum": "from transformers.training_args import OptimizerNames",
    "seq2seq_arguments": "from transformers import Seq2SeqTrainingArguments",
    "parser": "from transformers import HfArgumentParser",
    "trainer": "from transformers import Trainer",
    "trainer_module": "import transformers.trainer",
    "model": "from transformers import AutoModel",
    "datasets": "import datasets",
    "accelerate": "import accelerate",
    "package": "import hf_adamp",
    "optimizer": "from hf_adamp import AdamP",
}

USE = """
import sys
from transformers import HfArgumentParser, Trainer, TrainingArguments
command = ["--output_dir", "out", "--use_cpu", "--optim", "adamp", "--optim_args", "delta=0.05"]
(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(command)
cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
assert "hf_adamp" not in sys.argv
print(cls.__module__, cls.__name__, kwargs["delta"])
"""


@pytest.mark.parametrize("first", IMPORT_ORDERS.values(), ids=IMPORT_ORDERS.keys())
def test_names_are_known_whatever_is_imported_first(run_python, first):
    outcome = run_python("-c", f"{first}\n{USE}", automatic=True)
    assert outcome.stdout.split() == ["hf_adamp.optim.adamp", "AdamP", "0.05"]


def test_switch_of_torch_turns_it_off(run_python):
    outcome = run_python("-c", USE, automatic=False, status=2)
    assert "invalid choice: 'adamp'" in outcome.stderr


LOADED = "print(sorted(m for m in sys.modules if m.startswith(('hf_adamp', 'transformers'))))"


def test_import_torch_loads_two_small_modules_and_no_more(run_python):
    outcome = run_python("-c", f"import sys, torch; {LOADED}", automatic=True)
    assert outcome.stdout.strip() == str(
        [
            *("hf_adamp", "hf_adamp._autoload", "hf_adamp._version"),
            *("hf_adamp.integration", "hf_adamp.integration.import_hook"),
        ]
    )


def test_import_of_the_package_loads_neither_torch_nor_transformers(run_python):
    code = "import sys, hf_adamp; print({'torch', 'transformers'} & set(sys.modules))"
    assert run_python("-c", code).stdout.strip() == "set()"


def test_register_loads_neither_torch_nor_transformers(run_python):
    code = "import sys, hf_adamp; hf_adamp.register(); print({'torch'} & set(sys.modules))"
    assert run_python("-c", f"{code}; {LOADED}").stdout.splitlines()[0] == "set()"


def test_failed_registration_is_silent_until_asked_for(run_python):
    broken = """
import sys, torch
from hf_adamp.integration import registration
def fail(): raise RuntimeError("no such place")
registration.add_names = registration.add_dispatch = fail
import transformers.training_args, transformers.trainer
print("silent")
import hf_adamp
hf_adamp.register()
"""
    outcome = run_python("-c", broken, automatic=True, status=1)
    assert outcome.stdout.strip() == "silent"
    assert outcome.stderr.splitlines()[-1] == "RuntimeError: no such place"


def test_import_of_transformers_fails_loudly_after_explicit_register(run_python):
    broken = """
from hf_adamp.integration import registration
def fail(): raise RuntimeError("no such place")
registration.add_names = fail
registration.register()
import transformers.training_args
"""
    outcome = run_python("-c", broken, status=1)
    assert outcome.stderr.splitlines()[-1] == "RuntimeError: no such place"


def test_create_optimizer_works_where_registration_fails(run_python):
    code = """
from hf_adamp.integration import registration
def fail(): raise RuntimeError("no such place")
registration.add_names = registration.add_dispatch = fail
import torch
from transformers import TrainingArguments
from hf_adamp import AdamPTrainer, create_optimizer
args = TrainingArguments("out", use_cpu=True, report_to="none")
model = torch.nn.Linear(2, 2)
print(type(create_optimizer(model, args)).__name__)
AdamPTrainer(model, args).create_optimizer()
"""
    outcome = run_python("-c", code, status=1)
    assert outcome.stdout.split() == ["AdamP"]
    assert outcome.stderr.splitlines()[-1] == "RuntimeError: no such place"


@pytest.fixture
def module_file(tmp_path, monkeypatch):
    """A module that can be imported, and fails to import while its file says so."""
    monkeypatch.syspath_prepend(tmp_path)
    name = "hf_adamp_awaited"
    yield tmp_path / f"{name}.py"
    sys.modules.pop(name, None)
    import_hook._callbacks.pop(name, None)


def finders():
    return [finder for finder in sys.meta_path if finder is import_hook._finder]


def test_callback_comes_after_the_module_is_complete(module_file):
    module_file.write_text("first = 1\nlast = 2\n")
    seen = []
    import_hook.when_imported(module_file.stem, lambda: seen.append(vars(awaited())["last"]))
    assert (seen, len(finders())) == ([], 1)
    __import__(module_file.stem)
    assert seen == [2]
    assert type(awaited().__spec__) is ModuleSpec


def awaited():
    return sys.modules["hf_adamp_awaited"]


def test_same_callback_is_called_once(module_file):
    module_file.write_text("")
    seen = []

    def callback():
        seen.append(1)

    import_hook.when_imported(module_file.stem, callback)
    import_hook.when_imported(module_file.stem, callback)
    __import__(module_file.stem)
    assert seen == [1]


def test_callback_comes_at_once_for_a_loaded_module():
    seen = []
    import_hook.when_imported("json", lambda: seen.append(1))
    assert seen == [1]


def again(name):
    importlib.reload(sys.modules[name])


def anew(name):
    del sys.modules[name]
    __import__(name)


@pytest.mark.parametrize("way", [again, anew])
def test_callback_comes_after_every_import(module_file, way):
    module_file.write_text("first = 1\nlast = 2\n")
    seen = []
    import_hook.when_imported(module_file.stem, lambda: seen.append(vars(awaited()).pop("last")))
    for count in (1, 2, 3):
        __import__(module_file.stem) if count == 1 else way(module_file.stem)
        # Not before the module has been executed to its end.
        assert seen == [2] * count
    assert len(finders()) == 1
    assert type(awaited().__spec__) is ModuleSpec
    assert type(awaited().__loader__) is type(awaited().__spec__.loader) is SourceFileLoader


def test_reload_that_fails_tells_nobody(module_file):
    module_file.write_text("")
    seen = []
    import_hook.when_imported(module_file.stem, lambda: seen.append(1))
    __import__(module_file.stem)
    module_file.write_text("raise ValueError('not now')  # longer than before\n")
    with pytest.raises(ValueError, match="not now"):
        again(module_file.stem)
    assert seen == [1]


# Transformers' own front door hands out what it has once looked up.
REUSE = """
from transformers.training_args import TrainingArguments
from transformers.trainer import Trainer
args = TrainingArguments("out", use_cpu=True, optim="adamp", optim_args="delta=0.05")
cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
print(cls.__module__, cls.__name__, kwargs["delta"])
"""
SECOND_IMPORTS = {
    "reload": "importlib.reload(sys.modules['transformers.training_args'])\n"
    "importlib.reload(sys.modules['transformers.trainer'])",
    "purge": "[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('transformers')]",
    "other copy of this package": "[sys.modules.pop(n) for n in list(sys.modules) if "
    "n.partition('.')[0] in ('hf_adamp', 'transformers')]\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "import hf_adamp; assert hf_adamp.__file__.startswith(sys.argv[1])\n"
    "hf_adamp.register()",
}


@pytest.mark.parametrize("second", SECOND_IMPORTS.values(), ids=SECOND_IMPORTS.keys())
def test_names_are_known_after_a_second_import(run_python, second, tmp_path):
    copied = tmp_path / "elsewhere"
    shutil.copytree(Path(hf_adamp.__file__).parent, copied / "hf_adamp")
    first = "import importlib, sys; from transformers import Trainer, TrainingArguments"
    outcome = run_python("-c", f"{first}\n{second}\n{REUSE}", copied, automatic=True)
    assert outcome.stdout.split() == ["hf_adamp.optim.adamp", "AdamP", "0.05"]


def test_callback_waits_for_a_module_that_is_half_executed(module_file):
    module_file.write_text(
        "from hf_adamp.integration import import_hook\n"
        "seen = []\n"
        "import_hook.when_imported(__name__, lambda: seen.append(last))\n"
        "assert seen == []\n"
        "last = 2\n"
    )
    assert __import__(module_file.stem).seen == [2]


def test_callback_waits_for_the_import_that_succeeds(module_file):
    module_file.write_text("raise ImportError('not yet')\n")
    seen = []
    import_hook.when_imported(module_file.stem, lambda: seen.append(1))
    with pytest.raises(ImportError, match="not yet"):
        __import__(module_file.stem)
    assert seen == []
    module_file.write_text("ready = True  # longer than before, so that the cache is stale\n")
    __import__(module_file.stem)
    assert seen == [1]

"""The names in OptimizerNames, in argument parsers, in files, and the refusals."""

import copy
import json
import pickle
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_adamp
from hf_adamp.integration import registration

NAMES = ("adamp", "sgdp")


@pytest.mark.parametrize("name", NAMES)
def test_name_is_a_full_member_of_the_enum(name):
    member = OptimizerNames(name)
    assert member is OptimizerNames[name.upper()] is getattr(OptimizerNames, name.upper())
    assert member in list(OptimizerNames)
    assert (member.name, member.value) == (name.upper(), name)
    assert member == name
    assert isinstance(member, OptimizerNames)
    assert (
        copy.copy(member) is copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member
    )


def test_register_twice_changes_nothing():
    members, method = list(OptimizerNames), Trainer.get_optimizer_cls_and_kwargs
    hf_adamp.register()
    assert list(OptimizerNames) == members
    assert len({member.value for member in members}) == len(members)
    assert Trainer.get_optimizer_cls_and_kwargs is method


def test_other_optimizers_are_left_to_transformers(make_args):
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(make_args(optim="adamw_torch"))
    assert cls is torch.optim.AdamW
    assert "delta" not in kwargs


def test_other_members_pickle_without_this_package():
    assert b"hf_adamp" not in pickle.dumps(OptimizerNames.ADAMW_TORCH)


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments])
def test_argument_parser_accepts_the_names_and_help_lists_them(cls, capsys):
    parser = HfArgumentParser(cls)
    command = ["--output_dir", "out", "--optim", "sgdp", "--optim_args", "momentum=0.9"]
    (args,) = parser.parse_args_into_dataclasses(command)
    assert args.optim is OptimizerNames("sgdp")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_argument_files_accept_the_names(tmp_path, suffix):
    path = tmp_path / f"arguments.{suffix}"
    # YAML reads JSON; options may be a mapping there, which has its own types.
    options = "delta=0.05,nesterov=true" if suffix == "json" else {"delta": 0.05, "nesterov": True}
    fields = {"output_dir": str(tmp_path), "optim": "adamp", "optim_args": options}
    path.write_text(json.dumps(fields))
    parse = getattr(HfArgumentParser(TrainingArguments), f"parse_{suffix}_file")
    (args,) = parse(str(path))
    _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert (kwargs["delta"], kwargs["nesterov"]) == (0.05, True)


def test_set_optimizer_accepts_the_names(make_args):
    args = make_args().set_optimizer("adamp", learning_rate=1e-3, args="delta=0.05")
    _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert (kwargs["lr"], kwargs["delta"]) == (1e-3, 0.05)


def test_unknown_name_is_refused_with_a_list_that_has_ours(make_args):
    with pytest.raises(ValueError, match="adampp") as error:
        make_args(optim="adampp")
    assert all(f"'{name}'" in str(error.value) for name in NAMES)


def test_arguments_become_json_and_come_back(make_args):
    fields = json.loads(make_args(optim="adamp").to_json_string())
    assert fields["optim"] == "adamp"
    assert make_args(optim=fields["optim"]).optim is OptimizerNames("adamp")


LOAD = "import sys, torch; print(repr(torch.load(sys.argv[1], weights_only=False).optim))"


@pytest.fixture
def training_args_bin(make_args, tmp_path):
    path = tmp_path / "training_args.bin"
    torch.save(make_args(optim="adamp"), path)
    return path


def test_training_args_bin_loads_in_a_process_that_has_not_registered(
    run_python, training_args_bin
):
    outcome = run_python("-c", LOAD, training_args_bin)
    assert outcome.stdout.strip() == "<OptimizerNames.ADAMP: 'adamp'>"


def test_training_args_bin_without_the_package_says_what_is_missing(run_python, training_args_bin):
    hide = "import sys; sys.modules['hf_adamp'] = None; "
    outcome = run_python("-c", hide + LOAD, training_args_bin, status=1)
    assert "ModuleNotFoundError" in outcome.stderr.splitlines()[-1]
    assert "hf_adamp" in outcome.stderr.splitlines()[-1]


def fake_transformers(monkeypatch, **modules):
    for name, content in modules.items():
        module = ModuleType(f"transformers.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_transformers_without_the_enum_is_refused(monkeypatch):
    fake_transformers(monkeypatch, training_args={})
    with pytest.raises(RuntimeError, match=r"OptimizerNames cannot be extended.*4\.57 and 5\.x"):
        registration.add_names()


def test_transformers_without_the_method_is_refused(monkeypatch):
    fake_transformers(monkeypatch, trainer={"Trainer": SimpleNamespace()})
    with pytest.raises(RuntimeError, match=r"get_optimizer_cls_and_kwargs is missing.*4\.57 and 5"):
        registration.add_dispatch()


def test_foreign_optimizer_of_the_same_name_is_left_alone(monkeypatch):
    class Names(str, Enum):
        ADAMW = "adamw"
        SGDP = "sgdp"

    fake_transformers(monkeypatch, training_args={"OptimizerNames": Names})
    with pytest.raises(RuntimeError, match="already has another sgdp"):
        registration.add_names()
    assert [member.value for member in Names] == ["adamw", "sgdp"]


@pytest.mark.parametrize(
    ("name", "meant"), [("AdamP", "adamp"), ("adamp_fused", "adamp"), ("SGDP", "sgdp")]
)
def test_name_that_is_nearly_ours_gets_an_answer(name, meant):
    hf_adamp.register()
    with pytest.raises(ValueError, match=f"did you mean {meant}\\?$"):
        OptimizerNames(name)
    with pytest.raises(ValueError, match="is not a valid OptimizerNames") as error:
        OptimizerNames("lion99")
    assert "did you mean" not in str(error.value)

"""Training: the memory from segment to segment and over an interruption, AdamP, two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_adamp import get_param_groups
from recipes.transformer_xl_wikitext103 import train
from recipes.transformer_xl_wikitext103.configuration_transformer_xl import TransformerXLConfig
from recipes.transformer_xl_wikitext103.modeling_transformer_xl import TransformerXLForCausalLM
from recipes.transformer_xl_wikitext103.streams import training_stream
from recipes.transformer_xl_wikitext103.trainer import TransformerXLTrainer, last_checkpoint

REPOSITORY = Path(__file__).parents[3]
MODEL = {"cutoffs": "10 20", "d_model": 16, "n_layer": 2, "n_head": 2, "d_head": 6, "d_inner": 32}
SETTINGS = {
    **MODEL,
    "mem_len": 8,
    "dropout": 0.1,
    "columns": 4,
    "tgt_len": 5,
    "eval_tgt_len": 5,
    "use_cpu": "true",
    "report_to": "none",
    "disable_tqdm": "true",
    "dataloader_pin_memory": "false",
    "logging_steps": 1,
    "learning_rate": 0.01,
    "weight_decay": 0.01,
    "save_strategy": "no",
    "optim": "adamp",
}


def options(text, cache, output, **changes):
    settings = {**SETTINGS, "data": text, "cache_dir": cache, "output_dir": output, **changes}
    return [part for name, value in settings.items() for part in (f"--{name}", *str(value).split())]


@pytest.fixture
def run(text, tmp_path):
    """Train in this process; the output folder's name comes first."""

    def run(name, **changes):
        train.main(options(text, tmp_path / "cache", tmp_path / name, **changes))
        return tmp_path / name

    return run


def stop_after(monkeypatch, step):
    """Interrupt training after a step, as Ctrl-C would."""
    original = TransformerXLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TransformerXLTrainer, "training_step", training_step)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("saved", [4, 103])  # 103: in the second epoch
def test_resumed_run_is_bitwise_the_uninterrupted_one(run, monkeypatch, saved):
    steps = {"save_strategy": "steps", "save_steps": saved, "max_steps": saved + 4}
    whole = run("whole", **steps)
    state = json.loads((whole / f"checkpoint-{saved}" / "trainer_state.json").read_text())
    assert (state["epoch"] > 1) == (saved == 103)
    with monkeypatch.context() as patch:
        stop_after(patch, saved + 2)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", **steps)
    resumed = run("stopped", **steps, resume_from_checkpoint="true")
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name
    memory = load_file(whole / f"checkpoint-{saved}" / "memory-1-of-1.safetensors")
    assert memory["layer_1"].shape == (4, 8, 16)


def test_forgotten_memory_would_be_noticed(run, monkeypatch):
    steps = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole = run("whole", **steps)
    original = TransformerXLTrainer._load_memory

    def forget(self, checkpoint):
        original(self, checkpoint)
        self._mems = None

    monkeypatch.setattr(TransformerXLTrainer, "_load_memory", forget)
    shutil.rmtree(whole / "checkpoint-8")
    before = weights(whole)
    resumed = weights(run("whole", **steps, resume_from_checkpoint="true"))
    assert any(not torch.equal(resumed[name], weight) for name, weight in before.items())


@pytest.fixture
def stopped(run):
    return run("run", save_strategy="steps", save_steps=2, max_steps=4)


REFUSED = [
    ({"tgt_len": 6, "eval_tgt_len": 6}, r"does not fit tgt_len=6 \(was 5\)"),
    ({"columns": 8}, r"columns of a process=8 \(was 4\)"),
    ({"mem_len": 9}, r"another model: mem_len=9 \(was 8\)"),
    ({"n_layer": 3}, r"another model: n_layer=3 \(was 2\)"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_resume_refuses_what_does_not_fit(run, stopped, changes, message):
    before = {path.name for path in stopped.iterdir()}
    with pytest.raises(ValueError, match=message):
        run("run", resume_from_checkpoint="true", max_steps=6, **changes)
    assert {path.name for path in stopped.iterdir()} == before


def test_resume_with_another_vocabulary_is_refused(run, stopped, text, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in text.iterdir():
        (other / path.name).write_text(path.read_text().replace("w1", "v1"))
    with pytest.raises(ValueError, match=r"another model: vocab_sha256=.*the data it was trained"):
        run("run", resume_from_checkpoint="true", max_steps=6, data=other)


def test_resume_with_other_processes_is_refused(run, stopped):
    checkpoint = stopped / "checkpoint-4"
    (checkpoint / "memory-1-of-1.safetensors").rename(checkpoint / "memory-1-of-2.safetensors")
    with pytest.raises(
        ValueError, match=r"no memory-1-of-1.* but memory-1-of-2.*as many processes"
    ):
        run("run", resume_from_checkpoint="true", max_steps=6)


def test_incomplete_checkpoint_is_passed_over(stopped):
    (stopped / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(stopped).name == "checkpoint-2"
    (stopped / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        last_checkpoint(stopped)


def test_run_that_could_be_resumed_is_not_overwritten(run, stopped):
    with pytest.raises(ValueError, match=r"has checkpoint-4.*--resume_from_checkpoint true"):
        run("run", save_strategy="steps", save_steps=2, max_steps=4)


def test_evaluation_that_does_not_fit_is_refused(run):
    with pytest.raises(
        ValueError, match=r"eval_tgt_len=14 does not fit into mem_len=8 and tgt_len=5"
    ):
        run("run", eval_tgt_len=14, max_steps=1)


def test_unknown_option_is_refused(run):
    with pytest.raises(ValueError, match="unknown options --mem_length 8"):
        run("run", mem_length=8)


def test_configuration_files_are_overruled_by_what_follows(text, tmp_path):
    (tmp_path / "base.yaml").write_text("n_layer: 3\nd_inner: 7\ncutoffs: [5, 6]\n")
    (tmp_path / "more.yaml").write_text("d_inner: 8\n")
    files = [str(tmp_path / name) for name in ("base.yaml", "more.yaml")]
    model, _, _ = train.parse(
        (train.ModelArguments, train.DataArguments, train.TrainingArguments),
        [*files, "--n_layer", "2", "--output_dir", str(tmp_path)],
    )
    assert (model.n_layer, model.d_inner, model.cutoffs) == (2, 8, [5, 6])


def test_loss_is_that_of_segments_read_with_memory(run, text, tmp_path):
    # No dropout and a learning rate of zero: the model stays, only the memory grows.
    still = {"dropout": 0, "learning_rate": 0, "max_steps": 4, "weight_decay": 0}
    output = run("run", **still)
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = [entry["loss"] for entry in history if "loss" in entry]
    model = AutoModelForCausalLM.from_pretrained(output)
    corpus = train.load_corpus(str(text), tmp_path / "cache")
    stream = training_stream(corpus.splits["train"], 4, 5)
    mems = None
    for loss, batch in zip(logged, stream.loader(), strict=False):
        batch.pop("segment")
        read = model(**batch, mems=mems)
        mems = read.mems
        assert loss == pytest.approx(read.loss.item(), abs=1e-4)
    assert len(logged) == 4


def test_each_epoch_starts_without_memory(run, monkeypatch):
    seen = []
    original = TransformerXLForCausalLM.forward

    def forward(self, input_ids, mems=None, **kwargs):
        if self.training:
            seen.append(0 if mems is None else mems[0].shape[1])
        return original(self, input_ids, mems, **kwargs)

    monkeypatch.setattr(TransformerXLForCausalLM, "forward", forward)
    run("run", num_train_epochs=2, columns=40)
    half = len(seen) // 2
    assert seen == seen[:half] * 2
    assert seen[:3] == [0, 5, 8]


@pytest.mark.parametrize("optim", ["adamp", "adamw_torch"])
def test_gains_of_weight_norm_have_no_weight_decay(tiny, tmp_path, optim):
    model = TransformerXLForCausalLM(TransformerXLConfig(**tiny, weight_norm=True))
    args = train.TrainingArguments(str(tmp_path), optim=optim, weight_decay=0.1, use_cpu=True)
    stream = training_stream(torch.arange(40).numpy(), 4, 3)
    optimizer = TransformerXLTrainer(model, args, train_dataset=stream).create_optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {
        names[id(p)] for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]
    }
    assert {name for name in names.values() if name.endswith("original0")} <= spared
    assert not any(name.endswith("original1") for name in spared)
    wanted = get_param_groups(model, 0.1)
    assert spared == {names[id(p)] for g in wanted if not g["weight_decay"] for p in g["params"]}


def projected(folder):
    """Return, for each weight, the share of logged steps in which its update was projected."""
    shares = {}
    for line in (folder / "projection.jsonl").open():
        row = json.loads(line)
        if row["weight"] is not None:
            either = row["projected_channel"] or row["projected_layer"]
            shares.setdefault(row["weight"], []).append(float(either))
    return {name: sum(values) / len(values) for name, values in shares.items()}


def test_adamp_projects_every_direction_in_every_step(run):
    shares = projected(run("run", weight_norm="true", max_steps=12, dropout=0.1))
    directions = {name: share for name, share in shares.items() if name.endswith("original1")}
    assert len(directions) == 2 * 5
    assert set(directions.values()) == {1.0}


def test_adamp_projects_few_weights_of_the_plain_model(run):
    shares = projected(run("run", max_steps=12))
    layers = [share for name, share in shares.items() if ".layers." in name]
    assert sum(layers) / len(layers) < 0.5


def test_two_processes_train_what_one_does(run, text, tmp_path):
    still = {"dropout": 0, "max_steps": 5, "columns": 8, "eval_columns": 3}
    still |= {"save_strategy": "steps", "save_steps": 3}
    one = run("one", **still)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", "-m", "hf_adamp", "-m"]
    command += ["recipes.transformer_xl_wikitext103.train"]
    command += options(text, tmp_path / "cache", tmp_path / "two", **still)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        command,
        check=False,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "2 processes" in finished.stdout
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, atol=2e-5, rtol=1e-4)
    saved = [folder / "checkpoint-3" for folder in (one, tmp_path / "two")]
    whole = load_file(saved[0] / "memory-1-of-1.safetensors")
    shares = [load_file(saved[1] / f"memory-{rank}-of-2.safetensors") for rank in (1, 2)]
    for layer, columns in whole.items():
        both = torch.cat([share[layer] for share in shares])
        torch.testing.assert_close(both, columns, atol=1e-4, rtol=1e-3)
    results = [
        json.loads((folder / "test_results.json").read_text()) for folder in (one, tmp_path / "two")
    ]
    assert results[0]["test_tokens"] == results[1]["test_tokens"]
    assert results[0]["test_loss"] == pytest.approx(results[1]["test_loss"], rel=1e-4)

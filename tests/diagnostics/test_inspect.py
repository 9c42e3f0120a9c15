"""python -m hf_adamp inspect, and the models behind it: from types, files, folders and the Hub."""

import json
import re

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from hf_adamp import ProbeReport
from hf_adamp.__main__ import main
from hf_adamp.diagnostics import models
from hf_adamp.diagnostics.inspect_command import _setting
from hf_adamp.diagnostics.models import inspect_model
from tests.tables.decay_rules import GATED, T5, WIDE
from tests.versions import needs_a_stack_of_experts

HEADS = {**GATED, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN = {**HEADS, "num_hidden_layers": 4, "max_window_layers": 4}
DEEPSEEK = {
    **WIDE,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}


@pytest.fixture
def config_file(tmp_path):
    """Write a config, and return the path of its file."""

    def write(model_type, **options):
        AutoConfig.for_model(model_type, **options).save_pretrained(tmp_path)
        return str(tmp_path / "config.json")

    return write


def test_one_layer_of_each_kind_speaks_for_all(config_file):
    path = config_file("qwen3", **QWEN)
    short, whole = inspect_model(path), inspect_model(path, all_layers=True)
    assert short.granularities == whole.granularities
    assert short.weights["model.layers.3.self_attn.q_proj.weight"].granularity == ("head", 4)
    stand_ins = {name: weight.like for name, weight in short.weights.items() if weight.like}
    assert len(stand_ins) == 3 * 7
    assert all(like == name.replace(name.split(".")[2], "0", 1) for name, like in stand_ins.items())
    assert any("Of the 4 layers of model.layers, 1 were probed" in note for note in short.notes)
    assert [weight.like for weight in whole.weights.values()] == [None] * len(whole.weights)


@pytest.mark.parametrize(
    ("model_type", "options", "probed"),
    [
        # Five layers with a sliding window, then one without.
        ("gemma3_text", {**HEADS, "num_hidden_layers": 12}, {"model.layers": 2}),
        # The first layer holds the table of relative positions.
        ("t5", {**T5, "num_layers": 5}, {"encoder.block": 2, "decoder.block": 2}),
        # The first layer has no experts, and only the order of layers tells.
        pytest.param("deepseek_v3", DEEPSEEK, {"model.layers": 2}, marks=needs_a_stack_of_experts),
    ],
)
def test_every_kind_of_layer_is_probed(model_type, options, probed, config_file):
    path = config_file(model_type, **options)
    report = inspect_model(path, gradients=1)
    assert report.granularities == inspect_model(path, gradients=1, all_layers=True).granularities
    for prefix, count in probed.items():
        layers = {
            (weight.like or name).removeprefix(f"{prefix}.").split(".")[0]
            for name, weight in report.weights.items()
            if name.startswith(prefix)
        }
        assert len(layers) == count


def test_vocabulary_is_cut_and_the_report_speaks_of_the_whole(config_file):
    path = config_file("llama", **{**HEADS, "vocab_size": 20_000, "pad_token_id": 19_999})
    report = inspect_model(path)
    assert report.weights["model.embed_tokens.weight"].shape == (20_000, 16)
    assert "The vocabulary was cut from 20000 to 1024." in report.notes


def test_folder_with_weights_is_loaded_on_request(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **QWEN))
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.fill_(0)
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = 1e-30
    model.save_pretrained(tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert inspect_model(str(tmp_path)).weights[name].effect > 0
    report = inspect_model(str(tmp_path), pretrained=True)
    assert report.weights[name].effect == 0
    assert report.notes == ()


@pytest.mark.parametrize("model_type", ["vit", "audio-spectrogram-transformer", "wav2vec2", "clip"])
def test_inputs_are_made_up_for_images_and_sound(model_type, config_file):
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    small["num_attention_heads"] = 2
    options = {
        "vit": {**small, "image_size": 16, "patch_size": 8},
        "audio-spectrogram-transformer": {**small, "max_length": 32, "num_mel_bins": 32},
        "wav2vec2": {
            **small,
            "conv_dim": (16, 16),
            "conv_stride": (20, 4),
            "conv_kernel": (3, 3),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        "clip": {
            "text_config": {**small, "vocab_size": 64, "projection_dim": 8},
            "vision_config": {**small, "image_size": 16, "patch_size": 8, "projection_dim": 8},
            "projection_dim": 8,
        },
    }[model_type]
    report = inspect_model(config_file(model_type, **options), gradients=1)
    assert sum(weight.effect > 0 for weight in report.weights.values()) > 5
    if model_type == "clip":
        # The embeddings of text and image are compared by their direction.
        assert report.granularities["visual_projection.weight"] == "tensor"
        assert report.granularities["text_projection.weight"] == "tensor"


def fail_to_connect(*args, **kwargs):
    raise OSError("We couldn't connect to the Hub.\nCheck your internet connection.")


def test_unknown_name_says_what_was_tried(monkeypatch, capsys):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail_to_connect)
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", "nobody/nothing"])
    error = " ".join(capsys.readouterr().err.split())
    assert exit_.value.code == 2
    assert "cannot find 'nobody/nothing'" in error
    assert "(We couldn't connect to the Hub.)" in error
    assert "give its path" in error


def test_bad_models_are_refused(tmp_path, config_file, monkeypatch):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        inspect_model(str(tmp_path))
    (tmp_path / "other.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match="holds no config that Transformers reads"):
        inspect_model(str(tmp_path / "other.json"))
    path = config_file("llama", **HEADS)
    with pytest.raises(
        ValueError, match=r"LlamaConfig has no 'hidden' to set; it has .*hidden_size"
    ):
        inspect_model(path, settings={"hidden": 3})
    monkeypatch.setattr(models, "_free_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match="free; make the model smaller, as in --set") as e:
        inspect_model(path)
    # What it names, the model has.
    key = str(e.value).partition("--set ")[2].partition("=")[0]
    assert hasattr(models.load_config(path), key)


def test_free_memory_counts_what_the_system_would_give_back():
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    assert abs(models._free_memory() - 1024 * available) < 2**30


def test_settings_reach_what_is_derived_from_them(config_file):
    """Such as DeepSeek-V3's `qk_head_dim`, a sum of two others."""
    config = models.load_config("deepseek_v3")
    built = models._with_settings(config, {}, {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8})
    assert built.qk_head_dim == 24
    path = config_file("qwen3", **QWEN)
    values = models._values_of(path, {})
    built = models._with_settings(models.load_config(path), values, {"num_key_value_heads": 1})
    assert (built.num_key_value_heads, built.hidden_size) == (1, QWEN["hidden_size"])


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("None", None)])
def test_settings_are_read_as_python_writes_them(text, value):
    assert _setting(f"x={text}") == ("x", value)


def test_command_prints_table_json_and_picture(config_file, tmp_path, capsys, monkeypatch):
    path = config_file("qwen3", **QWEN)
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", path, "--gradients", "2", "--set", "num_key_value_heads=1"])
    table = capsys.readouterr().out
    assert "model.layers.*.self_attn.k_proj.weight  4      Linear     tensor" in table
    assert table.startswith("Qwen3ForCausalLM: AdamP is worth trying")
    pytest.importorskip("matplotlib")
    main(["inspect", path, "--json", "--plot", str(tmp_path / "probe.png")])
    printed = capsys.readouterr().out
    assert json.loads(printed)["model"] == "Qwen3ForCausalLM"
    granularity = ProbeReport.from_json(printed).granularities
    assert granularity["model.layers.0.self_attn.k_proj.weight"] == ("head", 2)
    assert (tmp_path / "probe.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: MODEL"),
        (["resnet", "--plot", "probe.txt"], "--plot probe.txt must end in .png, .pdf or .svg."),
        (["resnet", "--set", "depths"], "'depths' must be KEY=VALUE"),
        (["resnet", "--gradients", "0"], "gradients=0 must be an integer >= 1."),
    ],
)
def test_command_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *arguments])
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_command_shows_a_bar_unless_transformers_is_told_not_to(config_file, capsys):
    path = config_file("qwen3", **QWEN)
    main(["inspect", path, "--gradients", "2", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["model"] == "Qwen3ForCausalLM"
    # To its end: every step has been counted.
    assert re.search(r"probe Qwen3ForCausalLM: .*14/14", printed.err)
    transformers.logging.disable_progress_bar()
    try:
        main(["inspect", path, "--gradients", "2"])
    finally:
        transformers.logging.enable_progress_bar()
    assert "probe Qwen3" not in capsys.readouterr().err


@needs_a_stack_of_experts
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_table_fits_the_terminal(config_file, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    main(["inspect", config_file("deepseek_v3", **DEEPSEEK), "--gradients", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    # No name is cut, so that it can be copied.
    name = "model.layers.*.self_attn.kv_a_proj_with_mqa.weight"
    assert any(line.split()[:1] == [name] for line in lines)
    # And nothing is lost.
    whole = " ".join(" ".join(lines).split())
    for part in ("rows (8 − 4)", "lm_head.weight", "finds it", "others have their results."):
        assert part in whole


@pytest.mark.parametrize("command", [[], ["inspect"], ["plot"]])
def test_help_fits_the_terminal_and_ends_its_line(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert shown.endswith("\n")
    assert not shown.endswith("\n\n")
    assert max(map(len, shown.splitlines())) <= 80


def test_script_named_inspect_still_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "inspect").write_text("print('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hf_adamp"])
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    main(["./inspect"])
    assert capsys.readouterr().out == "ran\n"

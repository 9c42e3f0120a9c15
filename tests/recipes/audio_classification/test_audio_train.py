"""The training script, from folders of real clips to a model that the pipeline takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)

import hf_adamp
from recipes.audio_classification import compare
from recipes.audio_classification.tasks import TASKS
from recipes.audio_classification.train import DataArguments, ModelArguments, build_model, main
from recipes.common.arguments import parse
from tests.recipes.audio_classification.audio_files import WORDS, read_clip, write_clip, write_rows

TINY = {"conv_channels": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}
QUIET = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
QUIET += ["--dataloader_pin_memory", "false", "--save_strategy", "no", "--seed", "1"]
KEYWORDS = {"task": "keyword_spotting", "source": "speech_commands"}


def train(output, **options):
    hf_adamp.register()
    settings = {**TINY, "per_device_train_batch_size": 4, "output_dir": output, **options}
    arguments = list(QUIET)
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name}", *map(str, values)]
    main(arguments)
    return json.loads((output / "all_results.json").read_text())


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Five seconds of two words a clip, each word a tag."""
    root = tmp_path_factory.mktemp("tagged")
    for split, voice in (
        ("train", "allison_en"),
        ("validation", "menardi_it"),
        ("test", "june_fr"),
    ):
        rows = [["file_name", "label"]]
        for number, word in enumerate(WORDS):
            others = (word, WORDS[number - 1])
            parts = [np.resize(read_clip(voice, w)[0], 20000) for w in others]
            write_clip(root / split / f"{word}.wav", np.concatenate(parts), 8000)
            rows.append([f"{split}/{word}.wav", ";".join(others)])
        write_rows(root / f"{split}.csv", rows)
    return root


@pytest.mark.parametrize("optimizer", ["adamp", "sgdp", "adamw_torch", "adam_then_sgd"])
def test_every_optimizer_trains_the_harmonic_cnn(speech_commands, tmp_path, optimizer):
    if optimizer == "adam_then_sgd":
        choice = {"adam_then_sgd": "true", "max_steps": 4}
    else:
        choice = {"optim": optimizer}
    output = tmp_path / "run"
    results = train(output, data_dir=speech_commands, **KEYWORDS, **choice)
    assert 0 <= results["test_accuracy"] <= 1
    assert results["test_unseen_classes"] == 0
    rows = [json.loads(line) for line in (output / "projection.jsonl").open()]
    steps = choice.get("max_steps", TINY["max_steps"])
    assert [row["step"] for row in rows if row["weight"] is None] == list(range(1, steps + 1))
    assert all(row["weight_norm"] > 0 for row in rows if row["weight"] is None)
    assert f"- optimizer: {optimizer}" in (output / "README.md").read_text()


def test_adamp_projects_what_feeds_a_norm_and_leaves_the_classifier(speech_commands, tmp_path):
    train(tmp_path / "run", data_dir=speech_commands, optim="adamp", **KEYWORDS)
    rows = [json.loads(line) for line in (tmp_path / "run" / "projection.jsonl").open()]
    shares = {row["weight"]: row["projected_channel"] for row in rows if row["weight"]}
    assert len(shares) == 14
    assert shares.pop("classifier.weight") == 0
    assert set(shares.values()) == {1.0}


@pytest.mark.parametrize(
    ("task", "metric"), [("music_tagging", "test_pr_auc"), ("sound_event_tagging", "test_f1")]
)
def test_tagging_averages_sixteen_chunks(tagged, tmp_path, task, metric):
    results = train(tmp_path / "run", task=task, source="table", data_dir=tagged, optim="adamp")
    assert 0 < results[metric] <= 1
    saved = np.load(tmp_path / "run" / "test_predictions.npz")
    assert saved["scores"].shape == saved["labels"].shape == (3, 3)
    assert (saved["labels"].sum(1) == 2).all()
    assert (
        "16 chunks each, their probabilities averaged."
        in (tmp_path / "run" / "README.md").read_text()
    )
    assert (tmp_path / "run" / "curves.png").exists()


def save_hub_model(kind, folder):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "ast":
        config = ASTConfig(**small, intermediate_size=16, max_length=128, num_mel_bins=32)
        ASTForAudioClassification(config).save_pretrained(folder)
        ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(folder)
        return
    small |= {"intermediate_size": 16, "conv_dim": (8, 8), "conv_kernel": (10, 8)}
    small |= {"conv_stride": (10, 8), "num_conv_pos_embeddings": 8, "classifier_proj_size": 8}
    small |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
    small |= {"mask_time_prob": 0.0}
    if kind == "hubert":
        HubertForSequenceClassification(HubertConfig(**small)).save_pretrained(folder)
    else:
        Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**small)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=kind == "hubert").save_pretrained(folder)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "ast"])
@pytest.mark.parametrize("task", ["keyword_spotting", "music_tagging"])
def test_models_of_the_hub_train_on_one_label_and_on_several(
    speech_commands, tagged, tmp_path, kind, task
):
    save_hub_model(kind, tmp_path / "base")
    if task == "keyword_spotting":
        data = {**KEYWORDS, "data_dir": speech_commands}
    else:
        data = {"task": task, "source": "table", "data_dir": tagged, "chunks": 2}
    results = train(
        tmp_path / "run", model=tmp_path / "base", optim="adamp", input_length=16000, **data
    )
    assert np.isfinite(results["test_loss"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert sorted(config["id2label"].values()) == list(WORDS)
    several = task == "music_tagging"
    assert config["problem_type"] == (
        "multi_label_classification" if several else "single_label_classification"
    )
    answers = pipeline("audio-classification", model=str(tmp_path / "run"))(
        np.zeros(16000, dtype=np.float32)
    )
    total = sum(answer["score"] for answer in answers)
    assert several != (total == pytest.approx(1, abs=1e-3))


def test_resumed_training_continues(speech_commands, tmp_path):
    whole = {**KEYWORDS, "data_dir": speech_commands, "optim": "adamp", "max_steps": 4}
    kept = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "whole", **whole, **kept)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "preprocessor_config.json").is_file()
    train(tmp_path / "again", **whole, resume_from_checkpoint=checkpoint)
    state = json.loads((tmp_path / "again" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "again"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_last_batch_of_one_clip_is_left_out(speech_commands, tmp_path):
    # Nine clips in batches of four.
    results = train(
        tmp_path / "run", data_dir=speech_commands, optim="adamp", max_steps=3, **KEYWORDS
    )
    assert results["epoch"] == 1.5


def test_card_has_what_the_hub_looks_for(speech_commands, tmp_path, capsys):
    results = train(tmp_path / "run", data_dir=speech_commands, optim="adamp", **KEYWORDS)
    printed = capsys.readouterr().out
    assert "validation: 3 of 3 files (3 shorter than the model's input, padded; 3 resampled" in (
        printed
    )
    # Which of the own classes is taken for which.
    assert f"picture: {tmp_path / 'run' / 'confusion.png'}" in printed
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.pipeline_tag == "audio-classification"
    assert card.data.library_name == "transformers"
    assert {"keyword-spotting", "harmonic_cnn", "adamp"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(results["test_accuracy"], abs=1e-6)
    assert card.data.base_model is None
    assert "trust_remote_code=True" in card.text
    assert ", ".join(WORDS) in card.text
    assert "on the test split: 3 clips, one chunk each.\n" in card.text


def test_trained_model_works_where_the_recipe_is_not(speech_commands, tmp_path):
    train(tmp_path / "run", data_dir=speech_commands, optim="adamp", **KEYWORDS)
    script = (
        "import sys, numpy as np\n"
        "from transformers import pipeline\n"
        f"p = pipeline('audio-classification', model={str(tmp_path / 'run')!r}, "
        "trust_remote_code=True)\n"
        "assert 'recipes' not in sys.modules\n"
        "print(sorted(a['label'] for a in p(np.zeros(16000, dtype=np.float32))))\n"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.stdout.strip() == str(list(WORDS)), run.stderr


def test_compare_tabulates_and_draws(speech_commands, tagged, tmp_path, monkeypatch, capsys):
    for optimizer in ("adamp", "adamw_torch"):
        name = f"keyword_spotting-{optimizer}-1"
        train(tmp_path / name, data_dir=speech_commands, optim=optimizer, **KEYWORDS)
        events = {"task": "sound_event_tagging", "source": "table", "data_dir": tagged, "chunks": 1}
        train(tmp_path / f"sound_event_tagging-{optimizer}-1", optim=optimizer, **events)
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    compare.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == [
        *("optimizer", "---", "AdamP", "AdamW"),
        *("optimizer", "---", "AdamP", "AdamW"),
    ]
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        *(f"keyword_spotting-{kind}.png" for kind in ("training", "confusion", "filters")),
        *(f"sound_event_tagging-{kind}.png" for kind in ("training", "curves", "filters")),
    }


def test_compare_without_a_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run; run recipes/audio_classification"):
        compare.main()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", ["full", "demo"])
def test_configurations_are_complete(tmp_path, task, size):
    configs = Path(compare.__file__).parent / "configs"
    own = configs / (f"demo_{task}.yaml" if size == "demo" else f"{task}.yaml")
    model, data, args = parse(
        (ModelArguments, DataArguments, TrainingArguments),
        [f"{configs}/{size}.yaml", str(own), *QUIET[:2], "--output_dir", str(tmp_path)]
        + ([] if size == "demo" else ["--data_dir", "somewhere"]),
    )
    length = data.input_length or TASKS[data.task].input_length
    built, extractor = build_model(model, TASKS[data.task], ["a", "b"], length)
    assert built.config.min_samples <= length == extractor.min_length
    assert (data.task, built.config.conv_channels) == (task, 128 if size == "full" else 16)
    assert args.load_best_model_at_end == (size == "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "keywords"}, "task='keywords' is unknown; known tasks: music_tagging"),
        ({"input_length": 4000}, "input_length=4000 is below the 8065 samples which time_pools"),
    ],
)
def test_impossible_options_are_refused(speech_commands, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", data_dir=speech_commands, **{**KEYWORDS, **options})

import json

import pytest
import torch
from image_files import encode, write_folders, write_shard
from transformers import TrainingArguments

from recipes.common.arguments import parse
from recipes.image_classification import train
from recipes.image_classification.small_images import SmallImages
from recipes.image_classification.trainer import ImageTrainer, best_five, top_accuracies

CONFIGS = train.Path(train.__file__).parent / "configs"
QUICK = ["--use_cpu", "true", "--max_steps", "3", "--logging_steps", "1"]


def run(tmp_path, *options, config="small"):
    folder = tmp_path / "run"
    return train.main([str(CONFIGS / f"{config}.yaml"), "--output_dir", str(folder), *options])


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [("adamp", None), ("adamw_torch", None), ("sgdp", "momentum=0.9"), ("sgd", "momentum=0.9")],
)
def test_every_arm_trains_the_small_form(tmp_path, optim, optim_args):
    options = ["--optim", optim, *(["--optim_args", optim_args] if optim_args else [])]
    measured = run(tmp_path, *options, *QUICK)
    assert 0 <= measured["test_accuracy"] <= measured["test_accuracy_top5"] <= 1
    saved = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert saved["validation_accuracy"] == measured["validation_accuracy"]
    lines = map(json.loads, (tmp_path / "run" / "projection.jsonl").open())
    projected = [line["projected_channel"] for line in lines if "projected_channel" in line]
    assert bool(projected) == (optim in ("adamp", "sgdp"))


EPOCHS = ["--use_cpu", "true", "--save_strategy", "epoch", "--per_device_train_batch_size", "750"]
EPOCHS += ["--ema_decay", "0.9", "--step_epochs", "0.5", "--step_factor", "0.5"]


def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "a", *EPOCHS, "--num_train_epochs", "2")
    # Stopped after an epoch of two, whose schedule it keeps, and gone on with.
    half, resume = tmp_path / "b" / "run", ["--resume_from_checkpoint", "true"]
    half.mkdir(parents=True)
    (tmp_path / "a" / "run" / "checkpoint-8").rename(half / "checkpoint-8")
    again = run(tmp_path / "b", *EPOCHS, "--num_train_epochs", "2", *resume)
    assert again["test_loss"] == whole["test_loss"]
    ours, theirs = weights(half), weights(tmp_path / "a" / "run")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_averaged_weights_are_evaluated_in_place_of_the_last(tmp_path):
    last = run(tmp_path / "a", *QUICK)
    # An average that forgets at once is the last weights; a slow one is nearly the first.
    quick = run(tmp_path / "b", *QUICK, "--ema_decay", "1e-9")
    slow = run(tmp_path / "c", *QUICK, "--ema_decay", "0.999999")
    assert quick["test_loss"] == pytest.approx(last["test_loss"], abs=1e-4)
    assert slow["test_loss"] == pytest.approx(2.303, abs=0.05)
    ours, theirs = weights_after(tmp_path / "a"), weights_after(tmp_path / "c")
    assert ours == theirs  # training itself is as without an average


def weights_after(root):
    lines = [json.loads(line) for line in (root / "run" / "projection.jsonl").open()]
    return [line["weight_norm"] for line in lines if line["weight"] is None]


def test_resume_without_an_average_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"begun without ema_decay"):
        run(tmp_path, *QUICK, "--ema_decay", "0.9", "--resume_from_checkpoint", str(tmp_path))


def test_average_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay=1\.0 must be in \(0, 1\)"):
        run(tmp_path, *QUICK, "--ema_decay", "1.0")


class Linear(torch.nn.Module):
    """Logits without a batch norm, so accumulated passes can equal one."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(784, 10)

    def forward(self, pixel_values):
        return {"logits": self.layer(pixel_values.flatten(1))}


def gradients(tmp_path, batch, accumulated, mixed):
    """Return the gradient of the first step of 24 images."""
    torch.manual_seed(0)
    pixels, labels = torch.randn(24, 784), torch.arange(24) % 10
    if mixed:
        labels = torch.softmax(torch.randn(24, 10), -1)
    data = [{"pixel_values": p, "labels": t} for p, t in zip(pixels, labels, strict=True)]
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
    )
    torch.manual_seed(1)
    model = Linear()
    before = model.layer.weight.detach().clone()
    ImageTrainer(model, args, train_dataset=data, label_smoothing=0.1).train()
    return before - model.layer.weight.detach()


@pytest.mark.parametrize("mixed", [False, True])
def test_accumulated_passes_are_one_batch(tmp_path, mixed):
    whole = gradients(tmp_path, 24, 1, mixed)
    torch.testing.assert_close(gradients(tmp_path, 8, 3, mixed), whole, rtol=1e-4, atol=1e-7)
    torch.manual_seed(0)
    pixels, labels = torch.randn(24, 784), torch.arange(24) % 10
    if mixed:
        labels = torch.softmax(torch.randn(24, 10), -1)
    torch.manual_seed(1)
    model = Linear()
    logits = model(pixels)["logits"]
    torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    torch.testing.assert_close(whole, model.layer.weight.grad, rtol=1e-4, atol=1e-7)


def settings(*options):
    classes = (train.ModelArguments, train.DataArguments, TrainingArguments)
    common = ["--model", "small", "--source", "silhouettes", "--output_dir", "x", "--use_cpu"]
    return parse(classes, [*common, "true", "--per_device_train_batch_size", "64", *options])


def test_total_batch_is_reached_by_accumulation_and_scales_the_rate():
    options = ["--total_batch", "4096", "--learning_rate", "0.1", "--lr_scaling", "sqrt"]
    model, _, args = settings(*options)
    train.set_batch(model, args)
    assert args.gradient_accumulation_steps == 64
    assert args.learning_rate == pytest.approx(0.4)


def test_total_batch_that_is_no_multiple_is_refused():
    model, _, args = settings("--total_batch", "100")
    with pytest.raises(ValueError, match="total_batch=100 must be a multiple of 64"):
        train.set_batch(model, args)


PHOTOS = ["--image_size", "32", "--use_cpu", "true", "--report_to", "none", "--model", "resnet18"]
PHOTOS += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
PHOTOS += ["--optim", "adamp", "--save_strategy", "no", "--transforms", "pillow"]


def train_photos(tmp_path, source, *options):
    folder = ["--source", source, "--data", str(tmp_path / "data")]
    return train.main([*folder, "--output_dir", str(tmp_path / "run"), *PHOTOS, *options])


def test_folder_with_corrupt_images_trains_on_the_others(tmp_path, capsys):
    write_folders(tmp_path / "data", counts=(4, 4, 6))
    (tmp_path / "data" / "train" / "cat" / "1.jpg").write_bytes(b"no image")
    (tmp_path / "data" / "val" / "owl" / "0.jpg").write_bytes(encode(1)[:100])
    measured = train_photos(tmp_path, "folder")
    printed = capsys.readouterr().out
    assert "1.jpg: UnidentifiedImageError" in printed
    assert "train: 13 images, 1 left out" in printed
    assert "validation: 5 images, 1 left out" in printed
    # 13 images in batches of four: the last one alone is left out, in evaluation none is.
    assert measured["train_samples_per_second"] > 0
    assert round(measured["validation_accuracy"] * 5, 6) % 1 == 0


def test_shards_train_with_training_images_held_out(tmp_path):
    for split, count in (("train", 12), ("validation", 5)):
        samples = []
        for number in range(count):
            samples += [(f"{number}.jpg", encode(number)), (f"{number}.cls", b"%d" % (number % 3))]
        write_shard(tmp_path / "data" / f"x-{split}-0.tar", samples)
    measured = train_photos(tmp_path, "shards", "--held_out", "4", "--check_images", "evaluation")
    assert round(measured["validation_accuracy"] * 4, 6) % 1 == 0
    assert round(measured["test_accuracy"] * 5, 6) % 1 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_images", "1281167"], "train has 12 images, not 1,281,167"),
        (["--num_labels", "2"], "labels are not in 0 to 1"),
        (["--image_size", "16"], "image_size=16 must be at least 32"),
        (["--held_out", "12"], "held_out=12 must be 0 to 11"),
        (["--check_images", "none"], "check_images='none' must be all or evaluation"),
        (["--colour_jitter", "0.4"], "need torchvision and timm"),
        (["--source", "zip"], "source='zip'"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(tmp_path, options, message):
    write_folders(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        train_photos(tmp_path, "folder", *options)


def test_split_without_a_readable_image_is_refused(tmp_path):
    write_folders(tmp_path / "data")
    for file in (tmp_path / "data" / "val").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="validation has no image that can be decoded"):
        train_photos(tmp_path, "folder")


def test_small_images_are_mirrored_in_training_only():
    images = SmallImages(train.load_silhouettes()["test"], flip=True)
    still = SmallImages(train.load_silhouettes()["test"], flip=False)
    chosen = range(40)
    first, second = still.__getitems__(chosen), still[0]
    assert second["pixel_values"].equal(first["pixel_values"][:1])
    flipped = images.__getitems__(chosen)
    same = (flipped["pixel_values"] == first["pixel_values"]).flatten(1).all(1)
    mirrored = (flipped["pixel_values"].flip(-1) == first["pixel_values"]).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 5 < int(mirrored.sum()) < 35
    assert first["pixel_values"].equal(still.__getitems__(chosen)["pixel_values"])


def test_accuracies_count_the_first_and_the_first_five():
    logits = torch.tensor([[6, 5, 4, 3, 2, 1.0], [1, 6, 5, 4, 3, 2], [6, 5, 4, 3, 2, 1]])
    labels = torch.tensor([0, 2, 5])
    best = best_five(logits, labels)
    prediction = type("P", (), {"predictions": best.numpy(), "label_ids": labels.numpy()})
    assert top_accuracies(prediction) == {
        "accuracy": pytest.approx(1 / 3),
        "accuracy_top5": pytest.approx(2 / 3),
    }

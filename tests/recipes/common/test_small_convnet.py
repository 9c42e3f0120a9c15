import re

import torch

from recipes.common.small_convnet import CONVOLUTIONS, SmallConvNet


def test_small_convnet_has_the_documented_size():
    assert sum(p.numel() for p in SmallConvNet().parameters()) == 61_050


def test_small_convnet_returns_logits_and_the_mean_loss():
    model = SmallConvNet(num_labels=7, in_channels=3)
    pixels, labels = torch.randn(4, 3, 28, 28), torch.tensor([0, 1, 2, 6])
    output = model(pixels, labels)
    assert output["logits"].shape == (4, 7)
    expected = -output["logits"].log_softmax(-1)[range(4), labels].mean()
    torch.testing.assert_close(output["loss"], expected)
    assert "loss" not in model(pixels)


def test_small_convnet_convolutions_are_the_scale_invariant_weights():
    model = SmallConvNet()
    named = [name for name, _ in model.named_parameters() if re.search(CONVOLUTIONS, name)]
    assert len(named) == 4
    pixels, labels = torch.randn(8, 1, 28, 28), torch.randint(10, (8,))
    loss = model(pixels, labels)["loss"].item()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in named:
                parameter *= 3
    assert abs(model(pixels, labels)["loss"].item() - loss) < 1e-3

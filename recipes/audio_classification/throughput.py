"""Clips a second at full size: forward, backward and step, AdamP beside AdamW in one run.

    python -m recipes.audio_classification.throughput --task keyword_spotting --steps 20

Noise instead of clips: how long a step takes does not depend on what is heard. On a CPU the time is
that of the processor, all threads together, which neighbours on the machine hardly change.
"""

import argparse
import statistics
import time

import torch

from hf_adamp import AdamP, get_param_groups

from .configuration_harmonic_cnn import HarmonicCnnConfig
from .modeling_harmonic_cnn import HarmonicCnnForAudioClassification
from .tasks import TASKS

LABELS = {"music_tagging": 50, "keyword_spotting": 35, "sound_event_tagging": 17}
OPTIMIZERS = {"AdamW": torch.optim.AdamW, "AdamP": AdamP}


class Contender:
    """A model with an optimizer of its own, so that both can take turns."""

    def __init__(self, name: str, task: str, batch: int, device: torch.device) -> None:
        settings = TASKS[task]
        config = HarmonicCnnConfig(
            num_labels=LABELS[task],
            time_pools=settings.time_pools,
            hop_length=settings.hop_length,
            problem_type=settings.problem_type,
        )
        self.model = HarmonicCnnForAudioClassification(config).to(device).train()
        self.optimizer = OPTIMIZERS[name](get_param_groups(self.model, 1e-4), lr=1e-4)
        self.device = device
        self.clips = torch.randn(batch, settings.input_length, device=device)
        shape = (batch, LABELS[task]) if settings.several else (batch,)
        self.labels = torch.randint(0, 2, shape, device=device)

    def step(self) -> tuple[float, float]:
        """Return the seconds of a whole step, and those of the optimizer in it."""
        begin = self.now()
        self.model(self.clips, labels=self.labels).loss.backward()
        middle = self.now()
        self.optimizer.step()
        end = self.now()
        self.optimizer.zero_grad()
        return end - begin, end - middle

    def now(self) -> float:
        """Return the time when everything before is computed."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main() -> None:
    """Take turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="keyword_spotting")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    contenders = {
        name: Contender(name, arguments.task, arguments.batch, device) for name in OPTIMIZERS
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(arguments.steps + 1):
        for name, contender in contenders.items():
            seconds = contender.step()
            if number:  # the first warms up
                times[name].append(seconds)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, processor time"
    print(f"{arguments.task}, {arguments.batch} clips a step, {where}, torch {torch.__version__}")
    for name, measured in times.items():
        whole, step = (statistics.median(part) for part in zip(*measured, strict=True))
        print(
            f"{name}: {arguments.batch / whole:.1f} clips/s, {1000 * whole:.1f} ms a step, "
            f"{1000 * step:.2f} ms of them the optimizer"
        )


if __name__ == "__main__":
    main()

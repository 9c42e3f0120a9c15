"""Word-level perplexity of a trained model, over every word of a split.

    python -m recipes.transformer_xl_wikitext103.evaluate --model runs/base
    accelerate launch -m recipes.transformer_xl_wikitext103.evaluate --model runs/base

The defaults are those of the published evaluation: segments of 64 words with a memory of 640,
every word seeing equally many (`same_length`), distances from 400 on told alike (`clamp_len`),
10 columns. Perplexity depends on all of them, so they are printed with it.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse

from .data import WIKITEXT_103, load_corpus
from .modeling_transformer_xl import memory
from .streams import SegmentStream, evaluation_stream

__all__ = ["Evaluation", "perplexity", "score"]


@dataclass
class EvaluationArguments:
    """What to evaluate, on which words, with which memory."""

    model: str = field(metadata={"help": "Folder of a trained model or checkpoint."})
    data: str = field(default=WIKITEXT_103, metadata={"help": "As in training."})
    cache_dir: str = field(default="runs/cache", metadata={"help": "Where encoded words are."})
    min_count: int = field(default=1, metadata={"help": "As in training."})
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    columns: int = field(default=10, metadata={"help": "Columns of all processes together."})
    tgt_len: int = field(default=64, metadata={"help": "Words of a column in a segment."})
    mem_len: int = field(default=640, metadata={"help": "Positions remembered."})
    same_length: bool = field(default=True, metadata={"help": "Every word sees mem_len words."})
    clamp_len: int = field(default=400, metadata={"help": "Largest distance told; -1 for all."})


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; `loss` is the mean negative log-likelihood of a word."""

    loss: float
    perplexity: float
    tokens: int
    seconds: float


@torch.no_grad()
def score(
    model: PreTrainedModel,
    stream: SegmentStream,
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
) -> tuple[float, int]:
    """Return the sum of negative log-likelihoods of one process's words, and their number.

    Args:
        model: a Transformer-XL, on its device; its memory settings are used as they are.
        stream: this process's words.
        autocast: makes the context of each segment, for mixed precision. Default: none.
        progress: whether to show a bar. Default: False.
    """
    training = model.training
    model.eval()
    total, tokens, mems = 0.0, 0, None
    loader: DataLoader | list = stream.loader() if stream.columns else []
    for batch in tqdm(loader, desc="evaluate", disable=not progress, mininterval=1):
        input_ids, targets = (batch[n].to(model.device) for n in ("input_ids", "shift_labels"))
        with autocast():
            output = model(input_ids, mems=mems, shift_labels=targets)
        mems = output.mems
        total += output.losses.sum().item()
        tokens += int((batch["shift_labels"] >= 0).sum())
    model.train(training)
    return total, tokens


def perplexity(
    model: PreTrainedModel, stream: SegmentStream, accelerator: Accelerator, *, progress: bool
) -> Evaluation:
    """Score each process's words and put the sums together.

    Args:
        model: a Transformer-XL, on its device.
        stream: this process's words.
        accelerator: the processes.
        progress: whether the first process shows a bar.
    """
    start = time.perf_counter()
    progress = progress and accelerator.is_main_process
    total, tokens = score(model, stream, autocast=accelerator.autocast, progress=progress)
    shares = gather_object([(total, tokens)])
    tokens = sum(count for _, count in shares)
    loss = math.fsum(nll for nll, _ in shares) / tokens
    return Evaluation(loss, math.exp(min(loss, 700)), tokens, time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    """Evaluate as the command line says, and print the result as one line of JSON."""
    (arguments,) = parse([EvaluationArguments], sys.argv[1:] if argv is None else argv)
    accelerator = Accelerator()
    with accelerator.main_process_first():
        corpus = load_corpus(arguments.data, arguments.cache_dir, min_count=arguments.min_count)
    if arguments.split not in corpus.splits:
        raise ValueError(f"split={arguments.split} is none of {', '.join(corpus.splits)}.")
    model = AutoModelForCausalLM.from_pretrained(arguments.model).to(accelerator.device)
    config = model.config
    corpus.check_vocabulary(config.vocab_sha256, config.vocab_size, arguments.model)
    stream = evaluation_stream(
        corpus.splits[arguments.split],
        arguments.columns,
        arguments.tgt_len,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    settings = {name: getattr(arguments, name) for name in ("mem_len", "same_length", "clamp_len")}
    with memory(model, **settings):
        result = perplexity(model, stream, accelerator, progress=True)
    if accelerator.is_main_process:
        settings |= {"split": arguments.split, "tgt_len": arguments.tgt_len}
        settings |= {"columns": arguments.columns}
        print(json.dumps({"model": arguments.model, **settings, **asdict(result)}))


if __name__ == "__main__":
    run_and_exit(main)

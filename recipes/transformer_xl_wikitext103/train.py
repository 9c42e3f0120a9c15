"""Train a Transformer-XL on WikiText-103, or on any text, with any optimizer of `--optim`.

    TXL=recipes/transformer_xl_wikitext103
    accelerate launch -m hf_adamp -m recipes.transformer_xl_wikitext103.train $TXL/configs/base.yaml

Configurations come first, options after them overrule them. `launch/` has a script for each kind of
machine.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import TrainingArguments, set_seed

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse

from .configuration_transformer_xl import TransformerXLConfig
from .data import WIKITEXT_103, Corpus, load_corpus
from .modeling_transformer_xl import TransformerXLForCausalLM
from .streams import evaluation_stream, training_stream
from .trainer import EvaluationMemory, TransformerXLTrainer, last_checkpoint


@dataclass
class ModelArguments:
    """The model, as in `TransformerXLConfig`; the size of the vocabulary is the data's."""

    cutoffs: list[int] = field(
        default_factory=lambda: [20000, 40000, 200000],
        metadata={"help": "First word of each cluster but the first."},
    )
    div_val: int = field(default=1, metadata={"help": "Word vectors narrow by it a cluster."})
    d_model: int = field(default=410, metadata={"help": "Width of the layers."})
    d_embed: int | None = field(default=None, metadata={"help": "Width of frequent words."})
    n_layer: int = field(default=16, metadata={"help": "Number of layers."})
    n_head: int = field(default=10, metadata={"help": "Number of heads."})
    d_head: int = field(default=41, metadata={"help": "Width of a head."})
    d_inner: int = field(default=2100, metadata={"help": "Width of the feed-forward layer."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of activations."})
    dropatt: float = field(default=0.0, metadata={"help": "Dropout of attention."})
    mem_len: int = field(default=150, metadata={"help": "Positions remembered in training."})
    weight_norm: bool = field(default=False, metadata={"help": "Directions and gains."})


@dataclass
class DataArguments:
    """The words, and how they are cut."""

    data: str = field(
        default=WIKITEXT_103,
        metadata={"help": "wikitext-103, a folder with train, valid and test, or synthetic:N."},
    )
    cache_dir: str = field(default="runs/cache", metadata={"help": "Where encoded words are kept."})
    min_count: int = field(default=1, metadata={"help": "Rarer words of train become <unk>."})
    columns: int = field(default=60, metadata={"help": "Columns of all processes together."})
    tgt_len: int = field(default=150, metadata={"help": "Words of a column in a segment."})
    eval_columns: int = field(default=10, metadata={"help": "Columns of an evaluation."})
    eval_tgt_len: int = field(default=150, metadata={"help": "The same, in evaluations."})


def build_model(arguments: ModelArguments, corpus: Corpus) -> TransformerXLForCausalLM:
    """Build the model with random weights for the corpus's vocabulary."""
    config = TransformerXLConfig(
        **asdict(arguments), vocab_size=len(corpus.words), vocab_sha256=corpus.sha256
    )
    return TransformerXLForCausalLM(config)


def build_trainer(
    model: TransformerXLForCausalLM, corpus: Corpus, data: DataArguments, args: TrainingArguments
) -> TransformerXLTrainer:
    """Give each process its columns."""
    # A segment and what it remembers are as long in evaluation as in training.
    total = model.config.mem_len + data.tgt_len
    if data.eval_tgt_len > total:
        raise ValueError(
            f"eval_tgt_len={data.eval_tgt_len} does not fit into mem_len={model.config.mem_len} "
            f"and tgt_len={data.tgt_len} together; make it at most {total}."
        )
    share = {"rank": args.process_index, "world": args.world_size}
    train = training_stream(corpus.splits["train"], data.columns, data.tgt_len, **share)
    validation = corpus.splits["validation"]
    args.per_device_train_batch_size = train.columns
    log = Path(args.output_dir) / "projection.jsonl"
    return TransformerXLTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=evaluation_stream(validation, data.eval_columns, data.eval_tgt_len, **share),
        evaluation_memory=EvaluationMemory(total - data.eval_tgt_len),
        callbacks=[ProjectionLog(jsonl=log, per_kind=False)],
    )


def check_output(args: TrainingArguments) -> str | bool | None:
    """Return where to resume from; refuse to overwrite a run that could be resumed."""
    wanted = args.resume_from_checkpoint
    if wanted and wanted.lower() == "true":
        return True
    if wanted:
        return wanted
    if args.save_strategy != "no" and any(Path(args.output_dir).glob("checkpoint-*")):
        raise ValueError(
            f"{args.output_dir} has {last_checkpoint(args.output_dir).name} of an earlier run; "
            "--resume_from_checkpoint true continues it, another --output_dir leaves it alone."
        )
    return None


def main(argv: list[str] | None = None) -> None:
    """Train, then evaluate on validation and test, and leave the model in the output folder."""
    classes = (ModelArguments, DataArguments, TrainingArguments)
    model_args, data_args, args = parse(classes, sys.argv[1:] if argv is None else argv)
    resume = check_output(args)
    # Every weight is used in every segment, also that of a cluster without a word in it.
    args.ddp_find_unused_parameters = False
    with args.main_process_first(desc="encode the words"):
        corpus = load_corpus(data_args.data, data_args.cache_dir, min_count=data_args.min_count)
    set_seed(args.seed)
    trainer = build_trainer(build_model(model_args, corpus), corpus, data_args, args)
    if trainer.is_world_process_zero():
        print(
            f"{args.world_size} processes, {trainer.model.num_parameters():,} weights, "
            f"{len(corpus.words):,} words; an epoch has {len(trainer.train_dataset):,} segments of "
            f"{data_args.columns} x {data_args.tgt_len} words"
        )
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    # Steps of this call, not of the run: what was resumed took its time before.
    metrics["train_tokens_per_second"] = round(
        metrics["train_steps_per_second"]
        * args.gradient_accumulation_steps
        * data_args.columns
        * data_args.tgt_len
    )
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_model()
    trainer.save_state()
    share = {"rank": args.process_index, "world": args.world_size}
    for split in ("validation", "test"):
        stream = evaluation_stream(
            corpus.splits[split], data_args.eval_columns, data_args.eval_tgt_len, **share
        )
        metrics = trainer.evaluate(stream, metric_key_prefix=split)
        trainer.log_metrics(split, metrics)
        trainer.save_metrics(split, metrics)


if __name__ == "__main__":
    run_and_exit(main)

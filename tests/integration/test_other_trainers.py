"""Seq2SeqTrainer, TRL's SFTTrainer and PEFT, with the flag and with the mixin."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from hf_adamp import AdamP, AdamPMixin

TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def mixed(cls):
    return type("Mixed", (AdamPMixin, cls), {})


@pytest.mark.parametrize("mixin", [False, True], ids=["flag", "mixin"])
def test_seq2seq_trainer_trains(mixin, make_args):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=16,
    )
    data = [{"input_ids": [3, 4, 5], "labels": [5, 4, 3]}] * 8
    args = make_args(
        Seq2SeqTrainingArguments,
        optim="adamw_torch" if mixin else "adamp",
        optim_args="delta=0.05",
        predict_with_generate=True,
    )
    cls = mixed(Seq2SeqTrainer) if mixin else Seq2SeqTrainer
    trainer = cls(BartForConditionalGeneration(config), args, train_dataset=data)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert (type(optimizer), optimizer.defaults["delta"]) == (AdamP, 0.05)
    assert optimizer.state


def test_lora_trains_the_adapters_only(make_args):
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY, intermediate_size=16))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = [{"input_ids": [3, 4, 5], "labels": i % 2} for i in range(8)]
    args = make_args(optim="adamp", learning_rate=1e-2)
    trainer = Trainer(model, args, train_dataset=data)
    trainer.train()
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in optimized) == parameter.requires_grad, name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize("mixin", [False, True], ids=["flag", "mixin"])
def test_sft_trainer_trains(mixin, make_args, tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    trl = pytest.importorskip("trl", reason="needs trl")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=16))
    data = datasets.Dataset.from_dict({"text": ["a b c d", "e f g h"] * 4})
    args = make_args(
        trl.SFTConfig,
        optim="adamw_torch" if mixin else "adamp",
        optim_args="delta=0.05",
        bf16=False,
        max_length=8,
    )
    cls = mixed(trl.SFTTrainer) if mixin else trl.SFTTrainer
    trainer = cls(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert (type(optimizer), optimizer.defaults["delta"]) == (AdamP, 0.05)
    assert optimizer.state

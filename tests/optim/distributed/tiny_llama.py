"""A Llama that trains in a second, and the run that tests of the Trainer give it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Four steps, and a checkpoint after two.
RUN = {
    "optim": "adamp",
    "max_steps": 4,
    "save_steps": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "disable_tqdm": True,
}


def tiny_llama():
    """One layer of 16 units, 32 words."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
        )
    )


def token_rows():
    """32 rows of 8 random words, the same in every process."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(32, (8,), generator=draw) for _ in range(32)]
    return [{"input_ids": row, "labels": row} for row in rows]

"""Tiny models of the architectures that docs/which-models.md lists, and of some that look inside.

The latter read hidden states or attentions within their forward pass, for which Transformers
installs hooks in the first pass that asks for them.
"""

import copy

import torch
import transformers

from tests.tables.decay_rules import GATED, GPT2, SPEECH, STAGES, T5, VISION, WHISPER, WIDE

TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
HEADS = {**GATED, "num_attention_heads": 4, "num_key_value_heads": 2}
DUAL = {
    "text_config": {**WIDE, **TOKENS, "projection_dim": 8},
    "vision_config": {**VISION, "projection_dim": 8},
    "projection_dim": 8,
}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 16}
BART = {k: v for k, v in WHISPER.items() if k != "decoder_start_token_id"}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 16, 16],
    "num_attention_heads": [1, 1, 1],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 2, 4, 2, 2]],
}
MIXTRAL = {**GATED, "num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
SPECTROGRAM = {**WIDE, "max_length": 32, "num_mel_bins": 32}
IMAGE_IN_TEXT = {
    "text_config": {"model_type": "llama", **HEADS},
    "vision_config": {"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3},
    "image_token_index": 63,
    "image_token_id": 63,
}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
BACKBONE = {"model_type": "convnext", **CONVNEXT}
DINO = {**VISION, "model_type": "dinov2", "out_indices": [1, 2], "reshape_hidden_states": False}

LATENT = {
    **WIDE,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
JAMBA = {
    **GATED,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 8,
    "expert_layer_offset": 4,
    "num_experts": 1,
    "mamba_dt_rank": 6,
    "mamba_d_state": 4,
    # Transformers 4.57 asks for kernels of a GPU otherwise.
    "use_mamba_kernels": False,
}
CANINE = {
    **WIDE,
    "downsampling_rate": 2,
    "upsampling_kernel_size": 2,
    "local_transformer_stride": 8,
}


def tokens(length=12, below=60):
    return torch.randint(1, below, (2, length))


def images(size=16, count=2):
    return {"pixel_values": torch.randn(count, 3, size, size)}


def captioned():
    """Four image tokens, then text."""
    ids = torch.cat([torch.full((2, 4), 63), tokens(6)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images()}


def text():
    return {"input_ids": tokens()}


def both():
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}


def sound():
    return {"input_values": torch.randn(2, 400)}


def pairs():
    return {**text(), **images()}


# name: model type, options of its config, name of the class, what makes inputs
TABLE = {
    "ResNet": ("resnet", STAGES, "AutoModel", lambda: images(32)),
    "RegNet": ("regnet", {**STAGES, "groups_width": 8}, "AutoModel", lambda: images(32)),
    "MobileNetV2": (
        "mobilenet_v2",
        {"depth_multiplier": 0.25, "image_size": 32},
        "AutoModel",
        lambda: images(32),
    ),
    "EfficientNet": (
        "efficientnet",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.1,
            "hidden_dim": 320,
            "image_size": 32,
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "kernel_sizes": [3, 3],
            "strides": [1, 2],
            "expand_ratios": [1, 2],
            "num_block_repeats": [1, 1],
            "depthwise_padding": [],
        },
        "AutoModel",
        lambda: images(32),
    ),
    "LeViT": ("levit", LEVIT, "AutoModel", lambda: images(64)),
    "ConvNeXt": ("convnext", CONVNEXT, "AutoModel", lambda: images(32)),
    "ConvNeXtV2": ("convnextv2", CONVNEXT, "AutoModel", lambda: images(32)),
    "ViT": ("vit", VISION, "AutoModel", images),
    "DINOv2": ("dinov2", VISION, "AutoModel", images),
    "Swin": ("swin", {**SWIN, "patch_size": 4}, "AutoModel", images),
    "Swin V2": ("swinv2", {**SWIN, "patch_size": 4}, "AutoModel", images),
    "CLIP": ("clip", DUAL, "AutoModel", pairs),
    "SigLIP": ("siglip", DUAL, "AutoModel", pairs),
    "BERT": ("bert", WIDE, "AutoModel", text),
    "DeBERTa-v2": ("deberta-v2", {**WIDE, "relative_attention": True}, "AutoModel", text),
    "T5": ("t5", T5, "AutoModel", both),
    "BART": ("bart", BART, "AutoModel", text),
    "GPT-2": ("gpt2", GPT2, "AutoModelForCausalLM", text),
    "Llama": ("llama", HEADS, "AutoModelForCausalLM", text),
    "Mixtral": ("mixtral", MIXTRAL, "AutoModelForCausalLM", text),
    "Qwen3": ("qwen3", HEADS, "AutoModelForCausalLM", text),
    "Gemma 2": ("gemma2", HEADS, "AutoModelForCausalLM", text),
    "Gemma 3": ("gemma3_text", HEADS, "AutoModelForCausalLM", text),
    "OLMo 2": ("olmo2", {**HEADS, "pad_token_id": 0}, "AutoModelForCausalLM", text),
    "Mamba": ("mamba", MAMBA, "AutoModelForCausalLM", text),
    "Whisper": (
        "whisper",
        {**WHISPER, "num_mel_bins": 8, "max_source_positions": 16},
        "AutoModel",
        lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": tokens(4)},
    ),
    "Wav2Vec2": ("wav2vec2", SPEECH, "AutoModel", sound),
    "HuBERT": ("hubert", SPEECH, "AutoModel", sound),
    "AST": (
        "audio-spectrogram-transformer",
        SPECTROGRAM,
        "AutoModel",
        lambda: {"input_values": torch.randn(2, 32, 32)},
    ),
}
LOOKING_INSIDE = {
    "LLaVA": ("llava", IMAGE_IN_TEXT, "AutoModelForImageTextToText", captioned),
    "VipLLaVA": (
        "vipllava",
        {**IMAGE_IN_TEXT, "vision_feature_layers": [-2, -1]},
        "AutoModelForImageTextToText",
        captioned,
    ),
    "CLIPSeg": (
        "clipseg",
        {**DUAL, "extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2},
        "CLIPSegForImageSegmentation",
        pairs,
    ),
    "DPT": (
        "dpt",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
        },
        "AutoModelForDepthEstimation",
        images,
    ),
    "Depth Anything": (
        "depth_anything",
        {
            "backbone_config": DINO,
            "patch_size": 8,
            "reassemble_hidden_size": 16,
            "neck_hidden_sizes": [8, 8],
            "reassemble_factors": [2, 1],
            "fusion_hidden_size": 8,
            "head_hidden_size": 8,
        },
        "AutoModelForDepthEstimation",
        images,
    ),
    "UPerNet": (
        "upernet",
        {
            "backbone_config": {**BACKBONE, "out_indices": [1, 2]},
            "hidden_size": 8,
            "pool_scales": [1, 2],
            "use_auxiliary_head": False,
        },
        "AutoModelForSemanticSegmentation",
        lambda: images(32),
    ),
    "SegFormer": (
        "segformer",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 8,
        },
        "AutoModelForSemanticSegmentation",
        lambda: images(32),
    ),
    "Wav2Vec2, layers weighted": (
        "wav2vec2",
        {**SPEECH, "use_weighted_layer_sum": True},
        "AutoModelForAudioClassification",
        sound,
    ),
    "HuBERT, layers weighted": (
        "hubert",
        {**SPEECH, "use_weighted_layer_sum": True},
        "AutoModelForAudioClassification",
        sound,
    ),
    "WavLM, layers weighted": (
        "wavlm",
        {**SPEECH, "use_weighted_layer_sum": True},
        "AutoModelForAudioClassification",
        sound,
    ),
    "Whisper, layers weighted": (
        "whisper",
        {
            **WHISPER,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "use_weighted_layer_sum": True,
        },
        "AutoModelForAudioClassification",
        lambda: {"input_features": torch.randn(2, 8, 32)},
    ),
    "ViTPose": (
        "vitpose",
        {
            "backbone_config": {
                "model_type": "vitpose_backbone",
                "image_size": [16, 16],
                "patch_size": [8, 8],
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "out_indices": [2],
            },
            "num_labels": 3,
        },
        "VitPoseForPoseEstimation",
        images,
    ),
    "Aya Vision": (
        "aya_vision",
        {
            "text_config": {"model_type": "cohere2", **HEADS},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "image_token_index": 63,
            "downsample_factor": 1,
        },
        "AutoModelForImageTextToText",
        captioned,
    ),
    "DINOv3": ("dinov3_vit", {**VISION, "num_register_tokens": 1}, "AutoModel", images),
    "BEiT": (
        "beit",
        {
            **VISION,
            "num_hidden_layers": 4,
            "out_indices": [1, 2, 3, 4],
            "pool_scales": [1, 2],
            "use_auxiliary_head": False,
        },
        "AutoModelForSemanticSegmentation",
        images,
    ),
}
# Others that keep something, look at attentions, or run in a way of their own.
OTHERS = {
    "RWKV": (
        "rwkv",
        {
            **{"vocab_size": 64, "hidden_size": 16, "attention_hidden_size": 16},
            **{"num_hidden_layers": 3, "rescale_every": 1, "intermediate_size": 16},
        },
        "AutoModelForCausalLM",
        text,
    ),
    "Jamba": ("jamba", {**JAMBA, "use_cache": False}, "AutoModelForCausalLM", text),
    "DeepSeek-V3": ("deepseek_v3", LATENT, "AutoModelForCausalLM", text),
    "XLNet": (
        "xlnet",
        {"vocab_size": 64, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16, "mem_len": 4},
        "AutoModel",
        text,
    ),
    "CANINE": ("canine", CANINE, "AutoModel", text),
    "Data2Vec, layers weighted": (
        "data2vec-audio",
        {**SPEECH, "use_weighted_layer_sum": True, "conv_pos_kernel_size": 3},
        "AutoModelForAudioClassification",
        sound,
    ),
    "UniSpeech-SAT, layers weighted": (
        "unispeech-sat",
        {**SPEECH, "use_weighted_layer_sum": True},
        "AutoModelForAudioClassification",
        sound,
    ),
    "SEW, layers weighted": (
        "sew",
        {**SPEECH, "use_weighted_layer_sum": True, "squeeze_factor": 1},
        "AutoModelForAudioClassification",
        sound,
    ),
    "Encodec": (
        "encodec",
        {"num_filters": 4, "hidden_size": 8, "codebook_size": 8, "upsampling_ratios": [2, 2]},
        "AutoModel",
        lambda: {"input_values": torch.randn(2, 1, 400)},
    ),
    "DeiT, distilled": ("deit", VISION, "DeiTForImageClassificationWithTeacher", images),
    "BLIP": ("blip", DUAL, "AutoModel", pairs),
    "GIT": ("git", {**WIDE, "vision_config": VISION}, "AutoModelForCausalLM", text),
    "Longformer": (
        "longformer",
        {**WIDE, "attention_window": [4] * WIDE["num_hidden_layers"], "pad_token_id": 1},
        "AutoModel",
        text,
    ),
}
ALL = {**TABLE, **LOOKING_INSIDE, **OTHERS}


def build(name):
    """A model in evaluation, and inputs for it."""
    model_type, options, class_name, make_inputs = ALL[name]
    config = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(options))
    cls = getattr(transformers, class_name)
    model = cls.from_config(config) if class_name.startswith("Auto") else cls(config)
    return model.eval(), make_inputs()

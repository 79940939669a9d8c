"""Codecs of the library with small random weights, and folders as they are published."""

import json
from pathlib import Path

import safetensors.torch
import torch

CONVOLUTIONS = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 8,
    "embed_dim": 8,
}
HUBERT = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
DAC = {
    "model_type": "dac",
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [8, 5, 4, 2],
}
SMALL = {
    "chameleon_vqgan": {**CONVOLUTIONS, "resolution": 16, "num_embeddings": 64},
    "emu3_vqgan": {**CONVOLUTIONS, "codebook_size": 64, "hidden_size": 64, "attn_resolutions": [1]},
    "janus_vqgan": {**CONVOLUTIONS, "num_patches": 8, "num_embeddings": 64},
    "encodec": {
        "num_filters": 4,
        "hidden_size": 16,
        "codebook_size": 64,
        "target_bandwidths": [0.9, 1.8, 3.6],
    },
    "dac": {
        **DAC,
        "n_codebooks": 4,
        "codebook_size": 64,
        "downsampling_ratios": [2, 4, 5, 8],
    },
    "mimi": {
        "num_filters": 4,
        "hidden_size": 32,
        "codebook_size": 64,
        "codebook_dim": 16,
        "num_quantizers": 4,
        "vector_quantization_hidden_dimension": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "upsample_groups": 32,
    },
    "xcodec": {
        "codebook_size": 64,
        "target_bandwidths": [0.6, 1.2],
        "acoustic_model_config": {**DAC, "upsampling_ratios": [8, 5, 4, 2], "hidden_size": 64},
        "semantic_model_config": HUBERT,
    },
}
"""Configurations by model_type; the networks have 0.1 to 0.7 million weights."""


def make_model(model_type: str, seed: int = 0):
    """A model of the library, whose codebooks are random too: as it makes them, some are zero."""
    import transformers

    from plait.tokenizers.pretrained import KINDS

    cls = getattr(transformers, KINDS[model_type].name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(cls.config_class.from_dict(SMALL[model_type])).eval()
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if last in ("embed", "embed_sum"):
                tensor.normal_(0, 0.01 if model_type == "encodec" else 0.3)
            elif last in ("cluster_usage", "cluster_size"):
                tensor.fill_(1.0)
    return model


def save_model(model, folder: Path) -> Path:
    """The folder of a codec alone."""
    model.save_pretrained(folder)
    return folder


def save_whole(model, folder: Path, model_type: str) -> Path:
    """The folder of a whole model that holds the codec, in two files."""
    folder.mkdir(parents=True)
    tensors = {f"model.vqmodel.{k}": v.contiguous() for k, v in model.state_dict().items()}
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        data = {name: tensors[name] for name in held} | {f"lm_head.{file}": torch.zeros(3)}
        safetensors.torch.save_file(data, folder / file, {"format": "pt"})
    where = {name: file for file, held in halves.items() for name in held}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": model_type, "vq_config": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

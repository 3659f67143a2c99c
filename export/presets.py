"""The checkpoints released with the paper, by short names that carry every setting a checkpoint file cannot tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """What `--model NAME` stands for: an open_clip architecture and the tag whose settings the checkpoint follows."""

    model: str
    base_tag: str
    checkpoint_url: str


PRESETS = {
    # Fine-tuned from OpenAI's weights, which were trained with QuickGELU; the plain config builds GELU and loads without a word.
    "mcip-vit-l-14-336": Preset(
        model="ViT-L-14-336",
        base_tag="openai",
        checkpoint_url="https://visual-computing.com/files/MCIP/MCIP-ViT-L-14-336.pth",
    ),
    "mcip-vit-so400m-14-siglip-384": Preset(
        model="ViT-SO400M-14-SigLIP-384",
        base_tag="webli",
        checkpoint_url="https://visual-computing.com/files/MCIP/MCIP-ViT-SO400M-14-SigLIP-384.pth",
    ),
}

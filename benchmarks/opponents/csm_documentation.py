"""The recipe of transformers' CSM documentation under PEFT: an opponent for `training_speed.py`.

Its model page trains so: conversations with sound go through the processor with `output_labels=True`, the model codes
the sound, merges it with the text and computes its own loss, of every depth frame. Everything here but the loop is
transformers' and PEFT's. Where a base's codec isn't Mimi (the miniature's), a stand-in of Mimi's interface calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.csm import modeling_csm

from affetto.model.base import Base
from affetto.model.fused import PLAIN_TURN
from affetto.quiet import quiet_transformers
from affetto.types import Codec

FRAME_SAMPLES = 1920


@dataclass(frozen=True)
class Example:
    """One clip: what is said, the samples, and what they were coded to."""

    text: str
    speaker: int
    samples: NDArray[np.float32]
    codes_TK: NDArray[np.integer]


class CodecInLoop(nn.Module):
    """The miniature's codec behind the two methods of Mimi that CSM calls."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def encode(self, values: Tensor) -> Any:
        """Codes (1, K, T) of samples (1, 1, L)."""
        return SimpleNamespace(audio_codes=torch.from_numpy(self.codec.encode(values[0, 0].numpy()).T[None]))

    def get_audio_codes_mask(self, mask_BL: Tensor) -> Tensor:
        """Which frames (B, T) are sound, from which samples are."""
        return frame_mask(mask_BL)


class CodesBefore(nn.Module):
    """Codes that were prepared before training, given back in the order in which the loader brings their clips."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Tensor] = []

    def encode(self, values: Tensor) -> Any:
        """The next clip's codes (1, K, T)."""
        return SimpleNamespace(audio_codes=self.waiting.pop(0)[None].to(values.device))

    def get_audio_codes_mask(self, mask_BL: Tensor) -> Tensor:
        """Which frames (B, T) are sound, from which samples are."""
        return frame_mask(mask_BL)


def frame_mask(mask_BL: Tensor) -> Tensor:
    """A frame for every 1920 samples that have begun."""
    lengths_B = -(-mask_BL.sum(dim=-1) // FRAME_SAMPLES)
    return torch.arange(int(lengths_B.max()), device=mask_BL.device) < lengths_B[:, None]


class DocumentedRecipe:
    """A model with PEFT's LoRA, and its training step. `share` of the frames go through the depth decoder."""

    def __init__(
        self, base: Base, pattern: str, rank: int, alpha: float, *, codec: Codec | None = None, share: float = 1.0
    ) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoProcessor, CsmForConditionalGeneration

        dtype = base.model.dtype
        with quiet_transformers():
            self.processor = AutoProcessor.from_pretrained(base.folder)
            model = CsmForConditionalGeneration.from_pretrained(base.folder, dtype=dtype).to(base.device)
        # The frozen weights are ours, which spares a second copy; the text's table of ours never leaves the host.
        ours = base.model.state_dict()
        for name, parameter in model.named_parameters():
            if name in ours and ours[name].device == parameter.device:
                parameter.data = ours[name]
        self.before = CodesBefore()
        self.inside = model.codec_model if codec is None else CodecInLoop(codec)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)
        self.csm = model
        self.model = get_peft_model(model, config)
        self.model.train()
        self.inside.eval()
        self.share = share
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-6, betas=(0.9, 0.99), weight_decay=0.0)
        self.device = base.device

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """What the documentation's collator gives: conversations through the processor."""
        talks = [
            [
                {
                    "role": str(example.speaker),
                    "content": [
                        {"type": "text", "text": example.text}, {"type": "audio", "audio": example.samples}
                    ],
                }
            ]
            for example in examples
        ]  # fmt: skip
        made = self.processor.apply_chat_template(
            talks, tokenize=True, return_dict=True,
            processor_kwargs={"output_labels": True, "depth_decoder_labels_ratio": self.share},
        )  # fmt: skip
        return dict(made)

    def prepared(self, example: Example) -> dict[str, Tensor]:
        """A clip that was processed and coded before training."""
        made = self.batch([example])
        return {"input_ids": made["input_ids"][0], "labels": made["labels"][0],
                "samples": torch.tensor(len(example.samples)),
                "codes_KT": torch.from_numpy(np.ascontiguousarray(example.codes_TK.T, dtype=np.int64))}  # fmt: skip

    def padded(self, clips: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of prepared clips, padded on the left as the processor does. The sound is only as long as it was."""
        width = max(len(clip["input_ids"]) for clip in clips)
        pads = [width - len(clip["input_ids"]) for clip in clips]
        self.before.waiting = [clip["codes_KT"] for clip in clips]
        end = self.processor.tokenizer.pad_token_id
        pairs = list(zip(clips, pads, strict=True))
        return {
            "input_ids": torch.stack([functional.pad(clip["input_ids"], (pad, 0), value=end) for clip, pad in pairs]),
            "labels": torch.stack([functional.pad(self._drawn(clip["labels"]), (pad, 0), value=-100)
                                   for clip, pad in pairs]),
            "attention_mask": torch.stack([(torch.arange(width) >= pad).long() for pad in pads]),
            "input_values": torch.zeros(len(clips), 1, max(int(clip["samples"]) for clip in clips)),
            "input_values_cutoffs": torch.stack([clip["samples"][None] for clip in clips]),
        }  # fmt: skip

    def _drawn(self, labels_S: Tensor) -> Tensor:
        """Labels with another draw of depth frames for every step, as the processor draws them."""
        if self.share == 1:
            return labels_S
        audio = self.csm.config.audio_token_id
        frames = ((labels_S == audio) | (labels_S == -101)).nonzero()[:, 0]
        labels_S = labels_S.clone()
        labels_S[frames] = audio
        labels_S[frames[torch.randperm(len(frames))[: int(len(frames) * (1 - self.share))]]] = -101
        return labels_S

    def loss(self, batch: dict[str, Tensor], *, is_coded: bool) -> Tensor:
        """The model's own loss; `is_coded` tells whose codes it hears."""
        self.csm.codec_model = self.before if is_coded else self.inside
        told = {name: value.to(self.device) for name, value in batch.items()}
        if "input_values" in told:
            told["input_values"] = told["input_values"].to(self.csm.dtype)
        ours = modeling_csm.apply_rotary_pos_emb
        modeling_csm.apply_rotary_pos_emb = PLAIN_TURN
        try:
            loss: Tensor = self.model(**told).loss
        finally:
            modeling_csm.apply_rotary_pos_emb = ours
        return loss

    def step(self, batch: dict[str, Tensor], *, is_coded: bool) -> None:
        """Forward, backward, clipping, AdamW."""
        self.loss(batch, is_coded=is_coded).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

"""Which codec a base speaks through: the vocoder codec in its folder, or the Mimi inside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.codes.vocoder import VocoderCodec
from affetto.errors import BaseModelError
from affetto.files import hash_folder, hash_text, read_json
from affetto.tensors import weight_files
from affetto.types import Codec


class MimiCodec:
    """Kyutai's Mimi through transformers, one clip at a time: it has no padding mask (transformers #43377)."""

    name = "mimi"

    def __init__(self, model: Any, num_codebooks: int) -> None:
        self.model = model.requires_grad_(False)
        self.sample_rate = int(model.config.sampling_rate)
        self.frame_rate = float(model.config.frame_rate)
        self.num_codebooks = num_codebooks
        self.codebook_size = int(model.config.codebook_size)

    def encode(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of mono samples at `sample_rate`."""
        import torch

        frame = round(self.sample_rate / self.frame_rate)
        padded = np.pad(np.asarray(samples, dtype=np.float32), (0, max(0, frame - len(samples))))
        values = torch.from_numpy(padded)[None, None].to(self.model.device)
        with torch.inference_mode():
            codes = self.model.eval().encode(values, num_quantizers=self.num_codebooks).audio_codes
        return np.asarray(codes[0].T.cpu().numpy(), dtype=np.int64)

    def decode(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Mono samples of codes (T, K)."""
        import torch

        if len(codes_TK) == 0:
            return np.zeros(0, dtype=np.float32)
        codes = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64).T.copy())[None]
        with torch.inference_mode():
            values = self.model.eval().decode(codes.to(self.model.device)).audio_values
        return np.asarray(values[0, 0].float().cpu().numpy(), dtype=np.float32)


def load_codec(base_folder: Path) -> Codec:
    """The codec of a base's folder."""
    if (base_folder / "codec.json").is_file():
        return VocoderCodec.load(base_folder)
    if (base_folder / "config.json").is_file():
        return _load_mimi(base_folder)
    raise BaseModelError(f"{base_folder} holds neither codec.json nor a checkpoint with a codec inside")


def codec_hash(base_folder: Path) -> str:
    """SHA-256 that names the codec; codes made with another one are never mixed in."""
    if (base_folder / "codec.json").is_file():
        return hash_folder(base_folder, ("codec.safetensors", "codec.json"))
    return hash_text("mimi", hash_folder(base_folder, ("*.safetensors", "config.json")))


def _load_mimi(folder: Path) -> MimiCodec:
    from transformers import AutoConfig, MimiModel

    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "mimi":
        return MimiCodec(MimiModel.from_pretrained(folder), int(config.num_quantizers))
    inside = getattr(config, "codec_config", None) or getattr(config, "audio_encoder_config", None)
    if inside is None:
        raise BaseModelError(f"{folder}: a checkpoint of type {config.model_type!r} has no Mimi inside that is known")
    model = MimiModel(inside)
    state = {name.partition(".")[2]: value for name, value in codec_tensors(folder).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        wrong = [*(f"{key} is missing" for key in missing), *(f"{key} is unknown" for key in unexpected)]
        raise BaseModelError(f"{folder}: the codec inside the checkpoint doesn't fit: {', '.join(wrong[:5])}")
    return MimiCodec(model, int(config.num_codebooks))


_INSIDE = ("codec_model.", "audio_encoder.")
"""Begin the names of the codec's tensors inside a checkpoint of CSM or Moshi."""


def codec_tensors(folder: Path) -> dict[str, Any]:
    """The tensors of the codec inside a checkpoint, by the checkpoint's names, in float32."""
    import torch
    from safetensors import SafetensorError, safe_open

    state = {}
    try:
        for path in weight_files(folder, read_json(folder / "config.json").get("transformers_weights")):
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith(_INSIDE):
                        value = file.get_tensor(key)
                        state[key] = value.to(torch.float32) if value.is_floating_point() else value
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder}: the checkpoint's weights can't be read ({error}); get them again") from error
    return state

"""Finds and loads a base's codec: the vocoder in its folder, the Mimi inside it, or the one its processor names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.codes.neural import DacCodec, MimiCodec, frame_rate_of
from affetto.codes.vocoder import VocoderCodec
from affetto.errors import BaseModelError
from affetto.file_hashes import LARGE_BYTES, WEIGHT_HASHES, HashMemory
from affetto.files import expanded, hash_folder, hash_text, read_json
from affetto.hub import fetch
from affetto.quiet import quiet_transformers
from affetto.tensors import FLOATS, check_tensors, only_shapes, refused_config, stored_tensors, weight_files
from affetto.types import Codec


def load_codec(base_folder: Path, *, use_gpu: bool = False, speaks_only: bool = False) -> Codec:
    """The codec of a base's folder. With `use_gpu` a network goes to the GPU, if there is one; with `speaks_only` its
    encoder follows only when it first codes sound."""
    if (base_folder / "codec.json").is_file():
        return VocoderCodec.load(base_folder)
    if (base_folder / "config.json").is_file():
        import torch

        codec = _load_neural(base_folder)
        if use_gpu and torch.cuda.is_available():
            codec.to("cuda", speaks_only=speaks_only)
        return codec
    raise BaseModelError(f"{base_folder} holds neither codec.json nor a checkpoint with a codec inside")


def codec_hash(base_folder: Path) -> str:
    """SHA-256 that identifies the codec, so that codes of different codecs are never mixed."""
    if (base_folder / "codec.json").is_file():
        return hash_folder(base_folder, ("codec.safetensors", "codec.json"))
    # If the codec has a folder of its own, the base's weights don't matter.
    beside = _codec_beside(base_folder)
    with HashMemory(WEIGHT_HASHES, least_bytes=LARGE_BYTES) as hash_of:
        content = hash_folder(beside or base_folder, ("*.safetensors", "config.json"), hash_of)
    return hash_text("mimi" if beside is None else "beside", content)


def codec_frame_rate(base_folder: Path) -> float:
    """Frames per second of a base's codec, without loading it."""
    if (base_folder / "codec.json").is_file():
        return VocoderCodec.frame_rate
    config = _config(_codec_beside(base_folder) or base_folder)
    return frame_rate_of(config if config.model_type in _ALONE else _inside(base_folder, config))


def plain_frame_rate(base_folder: Path, config: Mapping[str, Any]) -> float:
    """`codec_frame_rate` of a CSM, computed from its config.json without transformers.

    Raises KeyError, TypeError, ValueError or an ArithmeticError if the configuration isn't the plain case.
    """
    if (base_folder / "codec.json").is_file():
        return VocoderCodec.frame_rate
    if name := _name_beside(base_folder):
        raise ValueError(f"the codec is beside the base: {name}")
    codec = config["codec_config"]
    # As in `MimiConfig.frame_rate`: the configured rate, else from the product of all strides.
    configured = codec.get("_frame_rate", codec.get("frame_rate"))
    return float(configured or codec["sampling_rate"] / (2 * math.prod(codec["upsampling_ratios"])))


_ALONE = ("mimi", "dac")
"""Codecs that may be in a folder of their own."""


def _config(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise refused_config(folder, error) from error


def _inside(folder: Path, config: Any) -> Any:
    """Configuration of the Mimi inside a checkpoint."""
    codec_config = getattr(config, "codec_config", None) or getattr(config, "audio_encoder_config", None)
    if codec_config is None:
        raise BaseModelError(
            f"{folder}: no Mimi is known inside a checkpoint of type {config.model_type!r}, and there is no "
            f"{' or '.join(file for file, _ in _PROCESSORS)} that names a codec; fetch the whole checkpoint"
        )
    if isinstance(codec_config, dict):
        # The key belongs to another model type; transformers keeps it as a plain dict.
        raise BaseModelError(
            f"{folder / 'config.json'}: its codec is that of another kind of checkpoint than model_type "
            f"{config.model_type!r}; copy or fetch the checkpoint again"
        )
    return codec_config


_PROCESSORS = (("processor_config.json", "audio_tokenizer"), ("audio_tokenizer_config.json", None))
"""File and key in which a processor names its codec: in transformers 5, and before."""


def _codec_beside(folder: Path) -> Path | None:
    """Folder of the codec that a checkpoint's processor names, maybe in the hub's cache; None if it names none."""
    if not (name := _name_beside(folder)):
        return None
    local = [path for path in (folder / name, expanded(name)) if path.is_dir()]
    return local[0] if local else fetch(name)


def _name_beside(folder: Path) -> str:
    """The codec that a checkpoint's processor names; empty if it names none."""
    for file, key in _PROCESSORS:
        if not (folder / file).is_file():
            continue
        try:
            content = read_json(folder / file)
            tokenizer = content.get(key) if key else content
            name = str(tokenizer["audio_tokenizer_name_or_path"]) if tokenizer else ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseModelError(f"{folder / file} can't be read ({error!r}); fetch the checkpoint again") from error
        if name:
            return name
    return ""


def _load_neural(folder: Path) -> MimiCodec:
    from transformers import DacModel, MimiModel

    place = _codec_beside(folder) or folder
    config = _config(place)
    if config.model_type in _ALONE:
        kind = DacModel if config.model_type == "dac" else MimiModel
        _check_codec(place, config, config)
        with quiet_transformers():
            model = kind.from_pretrained(place)
        return DacCodec(model) if kind is DacModel else MimiCodec(model, int(config.num_quantizers))
    inside = _inside(folder, config)
    _check_codec(folder, config, inside, "codec_model." if hasattr(config, "codec_config") else "audio_encoder.")
    model = MimiModel(inside)
    model.load_state_dict({name.partition(".")[2]: value for name, value in codec_tensors(folder).items()})
    return MimiCodec(model, int(config.num_codebooks))


_INSIDE = ("codec_model.", "audio_encoder.")
"""Prefixes of the codec's tensor names inside a checkpoint of CSM or Moshi."""


def _check_codec(folder: Path, config: Any, codec_config: Any, prefix: str = "") -> None:
    """Raise BaseModelError if a codec's tensors are not those of its configuration.

    In the checkpoint of `config` their names begin with `prefix`. Unlike `check_tensors` this checks the dtype of all
    of them: by their names Mimi's centroids are neither weights nor biases.
    """
    from transformers import DacModel, MimiModel

    kind, name = (DacModel, "DAC") if codec_config.model_type == "dac" else (MimiModel, "Mimi")
    with only_shapes(folder):
        state = kind(codec_config).state_dict()
    expected = {f"{prefix}{key}": tuple(value.shape) for key, value in state.items()}
    everything = stored_tensors(folder, getattr(config, "transformers_weights", None))
    stored = {key: tensor for key, tensor in everything.items() if key.startswith(prefix)}
    if not stored:
        files = ", ".join(sorted({tensor.file.name for tensor in everything.values()}))
        raise BaseModelError(
            f"{folder}: {files} holds no tensor of the {name} that config.json describes (none is called {prefix}…), "
            "so no sound can be coded; copy or fetch the whole checkpoint again"
        )
    check_tensors(folder, stored, expected, name)
    for key, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise BaseModelError(
                f"{tensor.file}: {key} is stored as {tensor.dtype}, but a codec's tensors must be one of "
                f"{', '.join(FLOATS)}; give the original checkpoint"
            )


def codec_tensors(folder: Path) -> dict[str, Any]:
    """The tensors of the codec inside a checkpoint, by their names there, in float32."""
    import torch
    from safetensors import SafetensorError, safe_open

    state = {}
    for path in weight_files(folder, read_json(folder / "config.json").get("transformers_weights")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith(_INSIDE):
                        value = file.get_tensor(key)
                        state[key] = value.to(torch.float32) if value.is_floating_point() else value
        except (SafetensorError, OSError, ValueError) as error:
            raise BaseModelError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error
    return state

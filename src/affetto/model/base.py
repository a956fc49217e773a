"""Bases: a speech language model with its tokenizer and its codec's frame rate, whatever its architecture.

Nothing outside this folder knows whether a base is the miniature or CSM-1B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from affetto.codes.codec import codec_frame_rate
from affetto.errors import BaseModelError
from affetto.file_hashes import LARGE_BYTES, WEIGHT_HASHES, HashMemory
from affetto.files import expanded, hash_folder, hash_text, read_json
from affetto.hub import fetch
from affetto.model.conversion.moshi import converted
from affetto.model.csm import CsmNetwork
from affetto.model.dia import DIA, DiaNetwork, load_dia
from affetto.model.four_bit import FOUR_BIT, FourBitLinear, packed_linear, replace_linears, require_four_bit
from affetto.model.moshi import MOSHI, MoshiNetwork, load_moshi
from affetto.model.network import Network
from affetto.model.outline import Outline
from affetto.model.packed import unpacked
from affetto.model.random_base import RANDOM, random_base
from affetto.model.text_ids import check_ids, check_tokenizer, load_tokenizer, tokenizer_path
from affetto.quiet import quiet_transformers
from affetto.tensors import check_tensors, only_shapes, refused_config, stored_tensors, weight_files

MINIATURE = "miniature"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, FOUR_BIT: torch.bfloat16}
"""The type that a base computes in, by the configuration's `base_precision`."""
MINIATURE_FOLDER = Path(__file__).parent.parent / "miniature" / "assets" / "base"
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Base:
    """A loaded, frozen base."""

    id: str
    """As the user named it: `miniature`, a hub id or a folder."""
    folder: Path
    hash: str
    """SHA-256 over the files of its weights; adapters and caches are bound to it."""
    model: Any
    """The transformers model, in eval mode, without gradients."""
    network: Network
    tokenizer: Any
    frame_rate: float
    """Frames per second of its codec."""
    revision: str | None = None
    """The hub's commit, if it comes from there."""

    @property
    def num_codebooks(self) -> int:
        """Codebooks per frame, K."""
        return self.network.num_codebooks

    @property
    def window(self) -> int:
        """Positions that the base can attend to."""
        return self.network.window

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.network.parameters()).device

    @property
    def has_text_stream(self) -> bool:
        """Whether its text runs in parallel with the frames (Moshi) instead of being a prompt before them (CSM)."""
        return self.network.has_text_stream

    def prompt_ids(self, text: str, speaker: int) -> tuple[int, ...]:
        """Token ids of one turn's text, begin and end tokens included, as the processor's chat template gives them.

        With a text stream they are those of the words alone, whoever speaks. BaseModelError if the text's embedding
        table has no row for one of them.
        """
        prompt = self.network.prompt(text, speaker)
        ids = tuple(self.tokenizer(prompt, add_special_tokens=not self.has_text_stream)["input_ids"])
        check_ids(tokenizer_path(self.folder), ids, self.network.num_text_ids)
        return ids

    @property
    def answers_hash(self) -> str:
        """The key of caches of this base's answers: its weights, and the precision that it computes in."""
        dtype = self.model.dtype
        if any(isinstance(module, FourBitLinear) for module in self.model.modules()):
            return f"{self.hash}/{dtype}/{FOUR_BIT}"
        return self.hash if dtype == torch.float32 else f"{self.hash}/{dtype}"

    def to(self, device: torch.device | str) -> Base:
        """The base on another device, except CSM's text embeddings, which stay where they are.

        A batch reads only a few hundred of their rows, and CSM-1B's take 0.5 GB in bfloat16.
        """
        stays = host_part(self.model, self.network)
        for name, part in self.model.named_children():
            if name != stays:
                part.to(device)
        return replace(self)


def host_part(model: Any, network: Any) -> str | None:
    """The name of the model's child that never leaves the host's memory; None if there is none."""
    table = getattr(network, "embed_text", None)
    return next((name for name, part in model.named_children() if part is table), None)


def load_base(
    name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, precision: str | None = None
) -> Base:
    """Load a base by name, folder or hub id, frozen and in eval mode. Raises BaseModelError if it can't be loaded.

    `precision` is the configuration's `base_precision` and replaces `dtype`; nf4 packs the linear layers, and raises
    MissingDependencyError if bitsandbytes is missing.
    """
    if precision is not None:
        dtype = DTYPES[precision]
    if precision == FOUR_BIT:
        require_four_bit()
    folder = find_base(name)
    kind = kind_of(folder / "config.json", _config(folder))
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet_transformers():
            model, tokenizer = BASES[kind].load(folder, dtype)
    except (TypeError, StrictDataclassError) as error:
        raise refused_config(folder, error) from error
    # What transformers, safetensors and tokenizers raise for missing, damaged or mismatched files.
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BaseModelError(
            f"{name}: the checkpoint in {folder} can't be loaded; copy or fetch it again. {error}"
        ) from error
    model.eval().requires_grad_(False)
    if precision == FOUR_BIT and not replace_linears(model, lambda layer: packed_linear(layer, device)):
        raise nothing_to_pack(name)
    network = BASES[kind].network(model).eval()
    return found_base(name, folder, model, network, tokenizer, codec_frame_rate(folder)).to(device)


def found_base(name: str, folder: Path, model: Any, network: Network, tokenizer: Any, frame_rate: float) -> Base:
    """The `Base` of what was loaded from `folder`. BaseModelError if its tokenizer is another model's."""
    check_tokenizer(tokenizer_path(folder), tokenizer, network.num_text_ids)
    revision = folder.name if folder.parent.name == "snapshots" else None
    return Base(name, folder, weights_hash(folder), model, network, tokenizer, frame_rate, revision)


def nothing_to_pack(name: str) -> BaseModelError:
    """The error for a base with no layers that four bits can hold."""
    return BaseModelError(f"{name}: it has no layers that base_precision: {FOUR_BIT} packs; set it to bf16")


def find_base(name: str) -> Path:
    """The folder of a base; a hub id is fetched into the hub's cache (or found there, offline).

    A hub id may be pinned to a commit, branch or tag: `owner/name@REVISION`. `random:NAME` has random weights. A
    checkpoint of the `moshi` package is converted into the cache, once.
    """
    if name == MINIATURE:
        if not (MINIATURE_FOLDER / "config.json").is_file():
            raise BaseModelError("the miniature's weights are not installed; run `affetto miniature build`")
        return unpacked(MINIATURE_FOLDER)
    if name.startswith(RANDOM):
        return random_base(name)
    folder = expanded(name)
    if folder.is_dir():
        folder = converted(folder)
        if not (folder / "config.json").is_file():
            raise BaseModelError(f"{folder} has no config.json; give the folder of a transformers checkpoint")
        kind_of(folder / "config.json", _config(folder))
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BaseModelError(f"there is no folder {name!r}, and it is not a hub id (owner/name) or {MINIATURE!r}")
    hub_id, _, revision = name.partition("@")
    folder = converted(fetch(hub_id, revision or None))
    kind_of(folder / "config.json", _config(folder))
    return folder


def kind_of(path: Path, config: Any) -> str:
    """The key in BASES of a configuration read from `path`. BaseModelError if it is of no supported kind."""
    if not isinstance(config, dict):
        raise BaseModelError(f"{path} holds no settings; copy or fetch the checkpoint again")
    kind = config.get("model_type")
    if "backbone_flavor" in config:
        raise BaseModelError(
            f"{path} is in the format of CSM's authors (backbone_flavor: {config['backbone_flavor']}), which affetto "
            "doesn't read: give the checkpoint in transformers' format. sesame/csm-1b on the hub has both"
        )
    if not isinstance(kind, str) or kind not in BASES:
        raise BaseModelError(
            f"{path}: model_type {kind!r} is not supported; supported: {', '.join(BASES)}. Give a checkpoint of one of "
            "them in transformers' format, such as sesame/csm-1b"
        )
    return kind


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights in `folder`: of the files that config.json names, if it does, since those are loaded."""
    config = _config(folder)
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    patterns = [path.name for path in weight_files(folder, named)] if named else _WEIGHTS
    with HashMemory(WEIGHT_HASHES, least_bytes=LARGE_BYTES) as hash_of:
        return hash_text(hash_folder(folder, patterns, hash_of), (folder / "config.json").read_text(encoding="utf-8"))


def has_text_stream(folder: Path) -> bool:
    """`Base.has_text_stream` of the base in `folder`, without loading it."""
    return BASES[kind_of(folder / "config.json", _config(folder))].network.has_text_stream


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error


def _load_csm(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import CsmConfig, CsmForConditionalGeneration

    class WithoutCodec(CsmForConditionalGeneration):  # type: ignore[misc]
        """Training needs only the codes, so Mimi isn't even read."""

        _keys_to_ignore_on_load_unexpected = (r"^codec_model\.",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            del self.codec_model

    config = CsmConfig.from_pretrained(folder)
    with only_shapes(folder):
        model = WithoutCodec(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {
        name: tensor
        for name, tensor in stored_tensors(folder, getattr(config, "transformers_weights", None)).items()
        if not name.startswith("codec_model.")
    }
    is_tied = config.tie_codebooks_embeddings and bool({_HEARD, _SPOKEN} & stored.keys())
    check_tensors(folder, stored, expected, "CSM", may_lack=(_HEARD, _SPOKEN) if is_tied else ())
    model, report = WithoutCodec.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    # So that what is saved or copied later is transformers' own class.
    model.__class__ = CsmForConditionalGeneration
    left = _tie_codes(model, set(report["missing_keys"])) | set(report["unexpected_keys"])
    assert not left, f"weights that would be drawn at random or dropped: {sorted(left)}"
    return model, load_tokenizer(folder)


_HEARD, _SPOKEN = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
"""CSM's two tables of code embeddings."""


def _tie_codes(model: Any, missing: set[str]) -> set[str]:
    """Share CSM's two tables of code embeddings as its checkpoint does; returns what else is missing.

    transformers 4 did so; transformers 5 leaves the table that isn't stored at random values (transformers #48999).
    """
    if not model.config.tie_codebooks_embeddings:
        return missing
    heard, spoken = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    if _HEARD in missing and _SPOKEN not in missing:
        heard.weight = spoken.weight
    elif _SPOKEN in missing and _HEARD not in missing:
        spoken.weight = heard.weight
    elif torch.equal(heard.weight, spoken.weight):
        heard.weight = spoken.weight
    else:
        # Two different tables are stored: they were trained apart, whatever the configuration says.
        return missing
    return missing - {_HEARD, _SPOKEN}


@dataclass(frozen=True)
class BaseKind:
    """The entry points of a kind of base (docs/bases.md)."""

    load: Callable[[Path, torch.dtype], tuple[Any, Any]]
    """Loads the model, without a codec, and the tokenizer from a checkpoint's folder; raises BaseModelError."""
    network: type[Network]
    """Computes logits with the loaded model, and speaks unless `affetto.speak` has an engine for it."""
    outline: Outline
    """What plans know about it without a checkpoint."""


_CSM = Outline(
    "CsmConfig", "CsmForConditionalGeneration", ("num_hidden_layers", "depth_decoder_config.num_hidden_layers"), 12.5,
    codec="codec_model", unread=("text_vocab_size",), finish=lambda model: _tie_codes(model, {_HEARD}),
)  # fmt: skip
BASES: dict[str, BaseKind] = {
    "csm": BaseKind(_load_csm, CsmNetwork, _CSM),
    "moshi": BaseKind(load_moshi, MoshiNetwork, MOSHI),
    "dia": BaseKind(load_dia, DiaNetwork, DIA),
}
"""By transformers' `model_type`."""

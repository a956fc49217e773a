"""`affetto convert`: turns a checkpoint of the `moshi` package into one that transformers, and so affetto, can load.

Tensors are read, converted and written one shard at a time: memory holds two copies of a shard (safetensors makes one
while it writes) and one tensor, whatever the model's size.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from affetto.errors import BaseModelError, MissingDependencyError, listed
from affetto.file_hashes import LARGE_BYTES, WEIGHT_HASHES, HashMemory
from affetto.files import cache_root, expanded, hash_text, write_json
from affetto.hub import fetch
from affetto.model.conversion.architecture import language_model_settings, mimi_path, mimi_settings
from affetto.model.conversion.names import Recipe, language_model_recipes, mimi_recipes
from affetto.model.conversion.source import FLOATS, AuthorsCheckpoint, is_authors_format, open_checkpoint
from affetto.model.text_ids import check_tokenizer
from affetto.progress import progress, say

SHARD_BYTES = 1 << 30
_TYPES = dict(zip(FLOATS, (torch.bfloat16, torch.float16, torch.float32), strict=True))


@dataclass(frozen=True)
class Shard:
    """One file of the new checkpoint."""

    name: str
    recipes: tuple[Recipe, ...]


def convert(source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Convert the checkpoint in folder `source` into the new folder `target`, complete or not at all.

    Raises BaseModelError naming file, tensor and remedy if the source is damaged, incomplete or of another kind.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BaseModelError(f"{target} exists already: give a folder that is new or empty")
    checkpoint = open_checkpoint(source)
    config = _configuration(checkpoint)
    codec = config.audio_encoder_config
    recipes = [*language_model_recipes(checkpoint.weights, config), *mimi_recipes(checkpoint.mimi, codec)]
    sizes = _checked(checkpoint, config, recipes)
    tokenizer = _tokenizer(checkpoint.text_model)
    check_tokenizer(checkpoint.text_model, tokenizer, config.vocab_size)
    temporary = _folder_beside(target)
    try:
        _write_weights(temporary, _shards(recipes, sizes, shard_bytes), sum(sizes.values()))
        _write_beside(temporary, checkpoint, config, tokenizer)
        temporary.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise BaseModelError(
            f"{target} can't be written ({error}); it needs {sum(sizes.values()) / 1e9:.1f} GB of free disk"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _folder_beside(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BaseModelError(f"{target} can't be created ({error}); name another place") from error


def converted(folder: Path) -> Path:
    """`folder` itself, or if it is in the authors' format the cache's conversion of it, made once.

    Raises what `convert` raises; a contradictory checkpoint is refused even if an older affetto converted it.
    """
    if not is_authors_format(folder):
        return folder
    checkpoint = open_checkpoint(folder)
    language_model_settings(checkpoint)
    files = (checkpoint.weights.path, checkpoint.mimi.path, checkpoint.text_model)
    settings = repr(sorted((checkpoint.config or {}).items()))
    with HashMemory(WEIGHT_HASHES, least_bytes=LARGE_BYTES) as hash_of:
        key = hash_text("moshi-1", settings, *map(hash_of, files))
    target = cache_root() / "converted" / key[:24]
    if not target.is_dir():
        say(f"{folder} is in the moshi package's format: converting it once into {target}")
        try:
            convert(folder, target)
        except BaseModelError:
            # Another process may have been first; its folder is the same.
            if not target.is_dir():
                raise
    return target


def convert_named(name: str, target: Path) -> Path:
    """`convert` for a folder or a hub id (`owner/name` or `owner/name@REVISION`)."""
    folder = expanded(name)
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise BaseModelError(f"there is no folder {name!r}, and it is not a hub id (owner/name)")
        hub_id, _, revision = name.partition("@")
        folder = fetch(hub_id, revision or None)
    return convert(folder, target)


def _configuration(checkpoint: AuthorsCheckpoint) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MoshiConfig

    settings, codec = language_model_settings(checkpoint), mimi_settings(checkpoint)
    try:
        config = MoshiConfig(**settings, audio_encoder_config={"model_type": "mimi", **codec})
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise _refused(checkpoint, error) from error
    config.architectures = ["MoshiForConditionalGeneration"]
    config.dtype = str(_TYPES[next(iter(checkpoint.weights.tensors.values())).dtype]).removeprefix("torch.")
    return config


def _refused(checkpoint: AuthorsCheckpoint, error: Exception) -> BaseModelError:
    """The error if transformers refuses settings that are valid one by one."""
    path = mimi_path(checkpoint) or checkpoint.folder
    return BaseModelError(f"{path}: transformers refuses this model; get it again. {' '.join(str(error).split())}")


def _checked(checkpoint: AuthorsCheckpoint, config: Any, recipes: Sequence[Recipe]) -> dict[str, int]:
    """Bytes of every new tensor; BaseModelError if the files and transformers' model don't match exactly."""
    from transformers import MoshiForConditionalGeneration

    for file in (checkpoint.weights, checkpoint.mimi):
        used = {name for recipe in recipes if recipe.file is file for name in recipe.sources}
        if missing := sorted(used - set(file.tensors)):
            raise BaseModelError(f"{file.path} lacks {listed(missing, 4)}: get it again, or from where it was trained")
        if extra := sorted(set(file.tensors) - used):
            raise BaseModelError(
                f"{file.path} has tensors that transformers' Moshi has no place for: {listed(extra, 4)}. It is of "
                "another kind of model (conditioned, cross-attending or with extra heads), which can't be converted"
            )
    try:
        with torch.device("meta"):
            expected = {name: value.shape for name, value in MoshiForConditionalGeneration(config).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise _refused(checkpoint, error) from error
    names = {recipe.name for recipe in recipes}
    if wrong := sorted(expected.keys() ^ names):
        lost = [f"{name} (missing)" if name in expected else f"{name} (unknown to transformers)" for name in wrong]
        raise BaseModelError(f"{checkpoint.mimi.path} doesn't fit transformers' Mimi: {listed(lost, 4)}; get it again")
    sizes = {}
    for recipe in recipes:
        shape = _made_shape(recipe)
        if shape != expected[recipe.name]:
            raise BaseModelError(
                f"{recipe.file.path}: {', '.join(recipe.sources[:2])} would make {recipe.name} {tuple(shape or ())} "
                f"but the model has {tuple(expected[recipe.name])}; the file or its config.json is wrong"
            )
        width = _TYPES[recipe.file.tensors[recipe.sources[0]].dtype].itemsize
        sizes[recipe.name] = width * expected[recipe.name].numel()
    return sizes


def _made_shape(recipe: Recipe) -> torch.Size | None:
    """Shape of a recipe's result, from the headers alone; None if its sources don't fit together."""
    parts = []
    for name in recipe.sources:
        info = recipe.file.tensors[name]
        if info.dtype not in _TYPES:
            raise BaseModelError(
                f"{recipe.file.path}: {name} is {info.dtype}, not bfloat16, float16 or float32; get it again"
            )
        parts.append(torch.empty(info.shape, dtype=_TYPES[info.dtype], device="meta"))
    try:
        return recipe.make(parts).shape
    except RuntimeError:
        return None


def _shards(recipes: Sequence[Recipe], sizes: dict[str, int], most: int) -> list[Shard]:
    groups: list[list[Recipe]] = [[]]
    filled = 0
    for recipe in recipes:
        if groups[-1] and filled + sizes[recipe.name] > most:
            groups.append([])
            filled = 0
        groups[-1].append(recipe)
        filled += sizes[recipe.name]
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def _write_weights(folder: Path, shards: Sequence[Shard], total: int) -> None:
    with progress("Converting", sum(len(shard.recipes) for shard in shards)) as bar:
        for shard in shards:
            tensors = {}
            for recipe in shard.recipes:
                tensors[recipe.name] = recipe()
                bar.advance(1)
            save_file(tensors, folder / shard.name, metadata={"format": "pt"})
            (folder / shard.name).chmod(0o644)
    if len(shards) > 1:
        places = {recipe.name: shard.name for shard in shards for recipe in shard.recipes}
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_beside(folder: Path, checkpoint: AuthorsCheckpoint, config: Any, tokenizer: Any) -> None:
    """Write configuration, generation defaults, tokenizer and feature extractor."""
    from transformers import EncodecFeatureExtractor, GenerationConfig

    config.save_pretrained(folder)
    steps = config.num_codebooks + 1
    # Temperatures and top-k are the defaults of the package's `LMGen`.
    # No padding token, since `generate` would mask every pause of the inner monologue as padding.
    generation = GenerationConfig(do_sample=True, temperature=0.7, top_k=25)
    generation.depth_decoder_config = {
        "do_sample": True, "temperature": 0.8, "top_k": 250, "min_length": steps, "max_length": steps,
        "cache_implementation": "static",
    }  # fmt: skip
    generation.save_pretrained(folder)
    EncodecFeatureExtractor(
        feature_size=config.audio_encoder_config.audio_channels, sampling_rate=config.sampling_rate
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(
        folder / "conversion.json",
        {
            "source": checkpoint.folder.name,
            "files": {
                "model": checkpoint.weights.path.name,
                "codec": checkpoint.mimi.path.name,
                "text": checkpoint.text_model.name,
            },
        },
    )


def _tokenizer(path: Path) -> Any:
    """The SentencePiece model as a fast tokenizer."""
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import MoshiConverter

    try:
        converter = MoshiConverter(str(path))
        tokenizer = converter.converted()
    except ImportError as error:
        raise MissingDependencyError(f"reading {path.name} needs protobuf: pip install protobuf ({error})") from error
    # protobuf's DecodeError and what the tokenizer's parts raise on bad input have no common parent.
    except Exception as error:
        raise BaseModelError(f"{path} is no SentencePiece model that can be read ({error}); get it again") from error
    if converter.proto.normalizer_spec.remove_extra_whitespaces:
        # transformers' converter leaves this out, and would tokenize "a  b" differently from SentencePiece.
        single, end = (normalizers.Replace(Regex(pattern), new) for pattern, new in (("▁{2,}", "▁"), ("▁$", "")))
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, single, end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip

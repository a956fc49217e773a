"""Memory and time of `affetto convert` on Moshi at its full size: 7.7 billion numbers, all of them zero.

    python benchmarks/conversion_memory.py --work FOLDER

The source is written as sparse files (names, shapes and kinds of kyutai/moshiko-pytorch-bf16, no blocks on disk), the
result is not: FOLDER needs 16 GB, which are removed at the end. Writes benchmarks/results/conversion_memory.json.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from facts import run_facts

from affetto.files import write_json

RESULT = Path(__file__).parent / "results" / "conversion_memory.json"
DIM, TEXT, CARD, LAYERS, FFN = 4096, 32_000, 2048, 32, 22_528
DEPTH, DEPTH_LAYERS, DEPTH_FFN, CODEBOOKS = 1024, 6, 5632, 8
LIMIT_GIB = 6.0
Shapes = Mapping[str, tuple[int, ...]]


def main() -> None:
    """Write the source, convert it in a process of its own, and write down its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder on a disk with 16 GB to spare")
    work: Path = parser.parse_args().work
    source, target = work / "moshiko", work / "converted"
    source.mkdir(parents=True, exist_ok=True)
    language_model = moshi_shapes()
    sparse(source / "model.safetensors", language_model, "BF16", 2)
    sparse(source / "tokenizer-e351c8d8-checkpoint125.safetensors", mimi_shapes(), "F32", 4)
    (source / "tokenizer_spm_32k_3.model").write_bytes(text_model())
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "affetto", "convert", str(source), str(target)], check=True)
    wall_s = time.perf_counter() - start
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    files = sorted(target.glob("*.safetensors"))
    found = {
        "parameters": sum(math.prod(shape) for shape in language_model.values()),
        "source_gb": sum(path.stat().st_size for path in source.iterdir()) / 1e9,
        "written_gb": sum(path.stat().st_size for path in files) / 1e9,
        "files": len(files),
        "largest_file_gb": max(path.stat().st_size for path in files) / 1e9,
        "peak_resident_gib": round(peak_gib, 2),
        "limit_gib": LIMIT_GIB,
        "wall_s": round(wall_s, 1),
    }
    shutil.rmtree(source)
    shutil.rmtree(target)
    write_json(RESULT, run_facts() | {"command": "python benchmarks/conversion_memory.py --work FOLDER"} | found)
    print(json.dumps(found, indent=2))
    if peak_gib > LIMIT_GIB:
        raise SystemExit(f"{peak_gib:.2f} GiB of memory, and {LIMIT_GIB} were promised")


def moshi_shapes() -> Shapes:
    """Names and shapes of the published language model."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_emb.weight": (TEXT + 1, DIM), "text_linear.weight": (TEXT, DIM), "out_norm.alpha": (1, 1, DIM),
        "depformer_text_emb.weight": (TEXT + 1, DEPTH),
    }  # fmt: skip
    shapes |= {f"emb.{k}.weight": (CARD + 1, DIM) for k in range(2 * CODEBOOKS)}
    shapes |= {f"depformer_emb.{k}.weight": (CARD + 1, DEPTH) for k in range(CODEBOOKS - 1)}
    for k in range(CODEBOOKS):
        shapes |= {f"depformer_in.{k}.weight": (DEPTH, DIM), f"linears.{k}.weight": (CARD, DEPTH)}
    for part, count, dim, steps in (("transformer", LAYERS, DIM, 1), ("depformer", DEPTH_LAYERS, DEPTH, CODEBOOKS)):
        for layer in range(count):
            name = f"{part}.layers.{layer}"
            shapes |= {f"{name}.{norm}.alpha": (1, 1, dim) for norm in ("norm1", "norm2")}
            shapes[f"{name}.self_attn.in_proj_weight"] = (3 * dim * steps, dim)
            shapes[f"{name}.self_attn.out_proj.weight"] = (dim * steps, dim)
            ffn = FFN if part == "transformer" else DEPTH_FFN
            for gating in ["gating"] if part == "transformer" else [f"gating.{k}" for k in range(steps)]:
                shapes[f"{name}.{gating}.linear_in.weight"] = (ffn, dim)
                shapes[f"{name}.{gating}.linear_out.weight"] = (dim, ffn // 2)
    return shapes


def mimi_shapes() -> Shapes:
    """Names and shapes of the published codec, from transformers' model of the same sizes."""
    from transformers import MimiConfig, MimiModel

    back = (
        ("encoder.layers.", "encoder.model."), ("decoder.layers.", "decoder.model."),
        ("semantic_residual_vector_quantizer.layers", "rvq_first.vq.layers"),
        ("acoustic_residual_vector_quantizer.layers", "rvq_rest.vq.layers"),
        ("semantic_residual_vector_quantizer", "rvq_first"), ("acoustic_residual_vector_quantizer", "rvq_rest"),
        ("codebook.initialized", "_codebook._initialized"), ("codebook.embed_sum", "_codebook.embedding_sum"),
        ("codebook.cluster_usage", "_codebook.cluster_usage"),
        ("_transformer.layers", "_transformer.transformer.layers"),
        ("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"), ("mlp.fc1", "linear1"),
        ("mlp.fc2", "linear2"), ("self_attn_layer_scale", "layer_scale_1"), ("mlp_layer_scale", "layer_scale_2"),
        ("self_attn.o_proj", "self_attn.out_proj"),
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in MimiModel(MimiConfig()).state_dict().items():
        shape = tuple(value.shape)
        if any(part in name for part in (".k_proj", ".v_proj")):
            continue
        if name.endswith(".q_proj.weight"):
            name, shape = name.replace("q_proj.weight", "in_proj_weight"), (3 * shape[0], shape[1])
        for ours, theirs in back:
            name = name.replace(ours, theirs)
        if name.startswith("downsample."):
            name = name.replace("downsample.conv.", "downsample.conv.conv.conv.")
        elif name.startswith("upsample."):
            name = name.replace("upsample.conv.", "upsample.convtr.convtr.convtr.")
        elif name.startswith(("encoder.model.", "decoder.model.")):
            is_up = name.startswith("decoder.model.") and name.split(".")[2] in ("2", "5", "8", "11")
            name = name.replace(".conv.", ".convtr.convtr." if is_up else ".conv.conv.")
        shapes[name] = shape
    return shapes


def sparse(path: Path, shapes: Shapes, dtype: str, width: int) -> None:
    """A safetensors file of zeros that takes no room."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def text_model() -> bytes:
    """Any SentencePiece model; the tests have one."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from moshi_checkpoint import text_model as made

    return made()


if __name__ == "__main__":
    main()

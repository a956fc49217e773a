"""The miniature's base: a tiny CSM, its tokenizer and processor, and the recipe that trains it on plain speech."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CsmConfig,
    CsmDepthDecoderConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    EncodecFeatureExtractor,
    GenerationConfig,
    MimiConfig,
    PreTrainedTokenizerFast,
)

from affetto.files import write_atomically, write_json
from affetto.miniature.grammar import Grammar
from affetto.miniature.muon import Muon
from affetto.miniature.products import fast_products, training_device
from affetto.model.batch import Batch, Row, collate
from affetto.model.csm import CsmNetwork
from affetto.model.losses import code_losses

_log = logging.getLogger(__name__)

BEGIN, END, AUDIO, AUDIO_EOS = "<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>"
CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789[]{}()<>|.,:;!?'\"-&%$#@+/_*="
NUM_MERGES = 150
NUM_CODEBOOKS, CODEBOOK_SIZE = 8, 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}"
    f"{BEGIN}[{{{{ message['role'] }}}}]{{{{ part['text'] }}}}{END}"
    "{% elif part['type'] == 'audio' %}"
    f"{AUDIO}{AUDIO_EOS}"
    "{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A small BPE over lower-cased words and single characters, between CSM's begin and end tokens."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(_trained_pieces())
    ends = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token="<|unknown|>",
        additional_special_tokens=[AUDIO, AUDIO_EOS],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained_pieces() -> str:
    """The BPE as JSON, trained on sentences of the grammar that only by chance are a clip's, too."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    specials = [BEGIN, END, AUDIO, AUDIO_EOS, "<|unknown|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[a-z']+|."), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + len(CHARACTERS) + NUM_MERGES, special_tokens=specials,
        initial_alphabet=list(CHARACTERS), limit_alphabet=len(CHARACTERS), show_progress=False,
    )  # fmt: skip
    grammar = Grammar(random.Random("tokenizer"))
    tokenizer.train_from_iterator(list(grammar.sentences(8_000)), trainer)
    return str(tokenizer.to_str())


def make_processor() -> CsmProcessor:
    """A `CsmProcessor` with CSM-1B's treatment of turns."""
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000)
    return CsmProcessor(feature_extractor=extractor, tokenizer=make_tokenizer(), chat_template=CHAT_TEMPLATE)


def make_config(hidden_size: int = 192, num_layers: int = 5, depth_size: int = 128, depth_layers: int = 2) -> CsmConfig:
    """Configuration of a tiny CSM over the miniature's codec and tokenizer.

    The codec inside the checkpoint is a dummy Mimi that nothing calls, since CSM's class requires one.
    """
    tokenizer = make_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    depth = CsmDepthDecoderConfig(
        num_codebooks=NUM_CODEBOOKS, backbone_hidden_size=hidden_size, vocab_size=CODEBOOK_SIZE + 3,
        hidden_size=depth_size, intermediate_size=3 * depth_size, num_hidden_layers=depth_layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=NUM_CODEBOOKS + 1,
        rope_parameters=rope,
    )  # fmt: skip
    codec = MimiConfig(
        hidden_size=16, num_filters=2, num_residual_layers=1, codebook_size=CODEBOOK_SIZE, codebook_dim=8,
        vector_quantization_hidden_dimension=8, num_quantizers=NUM_CODEBOOKS, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, intermediate_size=16, upsample_groups=16,
        kernel_size=3, last_kernel_size=3,
    )  # fmt: skip
    return CsmConfig(
        num_codebooks=NUM_CODEBOOKS, vocab_size=CODEBOOK_SIZE + 3, text_vocab_size=len(tokenizer),
        hidden_size=hidden_size, intermediate_size=5 * hidden_size // 2, num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32, num_key_value_heads=2, head_dim=32, max_position_embeddings=2048,
        codebook_pad_token_id=CODEBOOK_SIZE + 2, codebook_eos_token_id=0, tie_codebooks_embeddings=False,
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN), eos_token_id=None,
        audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO), pad_token_id=tokenizer.convert_tokens_to_ids(AUDIO),
        audio_eos_token_id=tokenizer.convert_tokens_to_ids(AUDIO_EOS), rope_parameters=rope,
        depth_decoder_config=depth, codec_config=codec,
    )  # fmt: skip


def make_model(config: CsmConfig, seed: int) -> CsmForConditionalGeneration:
    """A randomly initialised model with generation settings in CSM-1B's form."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, max_new_tokens=125)
    model.depth_decoder.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, max_new_tokens=NUM_CODEBOOKS - 1, min_new_tokens=NUM_CODEBOOKS - 1
    )
    return model


@dataclass(frozen=True)
class BaseRecipe:
    """How the base is trained: cycles of steps, each with a whole learning-rate schedule and fresh optimizers.

    Warm restarts (Loshchilov & Hutter 2017) let finished weights continue to learn.
    """

    cycles: tuple[int, ...] = (8000, 11000, 12000)
    positions_per_batch: int = 1600
    depth_share: float = 0.5
    lr: float = 2.5e-3
    muon_lr: float = 0.015
    warmup_steps: int = 100
    decay_share: float = 0.5
    seed: int = 0

    @property
    def num_steps(self) -> int:
        """Steps of all cycles."""
        return sum(self.cycles)

    def place(self, step: int) -> tuple[int, int]:
        """(step within its cycle, steps of that cycle)."""
        for length in self.cycles:
            if step < length:
                return step, length
            step -= length
        raise AssertionError(f"step {step} past the last cycle")


def train_base(
    train: Sequence[Row], validation: Sequence[Row], folder: Path, recipe: BaseRecipe, config: CsmConfig | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> CsmForConditionalGeneration:  # fmt: skip
    """Train on plain speech; returns the model on the CPU. State is saved in `folder` every few minutes and resumed.

    `start` are the initial weights; None means random ones.
    """
    device = training_device()
    model: Any = make_model(config or make_config(), recipe.seed)
    if start is not None:
        model.load_state_dict(start, strict=True)
    model.to(device)
    network = CsmNetwork(model)
    # On a CPU the fused attention's backward pass is slower for sequences this short.
    for part in (model.backbone_model, model.depth_decoder):
        part.set_attn_implementation("eager")
    optimizers = _optimizers(model, recipe)
    state = folder / "state.pt"
    first = _restore(state, model, optimizers)
    batches = _batches(train, recipe, first)
    last_save = last_report = time.monotonic()
    sums = np.zeros(2)
    for step in range(first, recipe.num_steps):
        if recipe.place(step)[0] == 0 and step:
            optimizers = _optimizers(model, recipe)
        factor = _schedule(step, recipe)
        for optimizer, peak in zip(optimizers, (recipe.lr, recipe.muon_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        batch = next(batches).to(device)
        with fast_products():
            logits = network(batch)
        c0, depth = code_losses(logits, batch)
        torch.autograd.backward(c0.mean + depth.mean)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums += (c0.mean.item(), depth.mean.item())
        done = step + 1
        if done % 100 == 0:
            held = evaluate(network, validation[:192]) if done % 500 == 0 or done == recipe.num_steps else None
            rate = 100 / (time.monotonic() - last_report)
            _log.info("step %d: c0 %.3f depth %.3f, %.2f steps/s, held out %s", done, *(sums / 100), rate, held)
            sums[:], last_report = 0.0, time.monotonic()
        if time.monotonic() - last_save > 240 or done == recipe.num_steps:
            value = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": done}
            write_atomically(state, lambda path, value=value: torch.save(value, path))  # type: ignore[misc]
            last_save = time.monotonic()
    return cast(CsmForConditionalGeneration, model.cpu())


def _restore(state: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Restore a saved state, if there is one; returns its number of steps."""
    if not state.exists():
        return 0
    saved = torch.load(state, map_location=training_device(), weights_only=True)
    model.load_state_dict(saved["model"], strict=True)
    for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return int(saved["step"])


@torch.no_grad()
def evaluate(network: CsmNetwork, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean (codebook zero, depth) loss in nats per code."""
    sums, counts = np.zeros(2), np.zeros(2)
    for start in range(0, len(rows), 48):
        batch = collate(rows[start : start + 48], network.num_codebooks).to(network.c0_head.weight.device)
        for index, term in enumerate(code_losses(network(batch), batch)):
            sums[index] += term.total.item()
            counts[index] += term.count
    c0, depth = sums / counts
    return round(float(c0), 4), round(float(depth), 4)


def save_base(model: CsmForConditionalGeneration, folder: Path, facts: dict[str, Any]) -> None:
    """Write a transformers checkpoint in float16, with processor, generation settings and `miniature.json`.

    `model` itself is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.float16)
    half.set_attn_implementation("sdpa")
    half.save_pretrained(folder)
    # safetensors makes files that only their owner can read; these are installed for all users.
    (folder / "model.safetensors").chmod(0o644)
    make_processor().save_pretrained(folder)
    write_json(folder / "miniature.json", facts)


def _optimizers(model: CsmForConditionalGeneration, recipe: BaseRecipe) -> tuple[torch.optim.Optimizer, Muon]:
    model.codec_model.requires_grad_(False)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = [weight for name, weight in trained.items() if weight.ndim == 2 and ".layers." in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in trained.values() if id(weight) not in chosen]
    return torch.optim.AdamW(others, recipe.lr, betas=(0.9, 0.95), weight_decay=0.0), Muon(matrices, recipe.muon_lr)


def _schedule(step: int, recipe: BaseRecipe) -> float:
    """Warm-up, plateau, linear decay to 2 %."""
    done, length = recipe.place(step)
    left = (length - done) / (recipe.decay_share * length)
    return min(1.0, (done + 1) / recipe.warmup_steps, max(left, 0.02))


def _batches(rows: Sequence[Row], recipe: BaseRecipe, first: int) -> Iterator[Batch]:
    """Endless batches of rows of similar length; the same from any starting step."""
    epoch, skip = 0, first
    while True:
        draw = random.Random(f"{recipe.seed}/{epoch}")
        order = sorted(range(len(rows)), key=lambda i: rows[i].num_positions + draw.uniform(-4, 4))
        groups: list[list[int]] = [[]]
        for index in order:
            widest = rows[index].num_positions + 4
            if groups[-1] and (len(groups[-1]) + 1) * widest > recipe.positions_per_batch:
                groups.append([])
            groups[-1].append(index)
        draw.shuffle(groups)
        if skip >= len(groups):
            skip, epoch = skip - len(groups), epoch + 1
            continue
        for number, group in enumerate(groups[skip:], start=skip):
            rng = np.random.default_rng((recipe.seed, epoch, number))
            frames = [rows[i].num_frames for i in group]
            chosen = [rng.permutation(count)[: max(1, round(recipe.depth_share * count))] for count in frames]
            yield collate([rows[i] for i in group], NUM_CODEBOOKS, chosen)
        skip, epoch = 0, epoch + 1

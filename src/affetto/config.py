"""The configuration file: strict, commented, with the guide's keys.

An unknown key is an error that names the nearest known one. The stages of a run take the whole object; the functions
they call take plain arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from affetto.adapters.checks import TEMPLATE_RULE, is_template
from affetto.adapters.targets import Part
from affetto.errors import ConfigError, did_you_mean
from affetto.files import expanded
from affetto.judges.kinds import KINDS
from affetto.types import EMOTIONS, SPEAKING_TAKES, SPEAKING_TEMPERATURE
from affetto.yaml_files import read_yaml

EXPRESSIVE = "base"
"""Name of the expressive base: the adapter over all emotions that each emotion's own may build on."""
EVERY = "all"
"""Means every emotion of the configuration, trained in one run."""
RESERVED = (EXPRESSIVE, EVERY, "general", "plain", "none", "real", "files")
"""Names with another meaning where emotions are named, so no emotion can have them."""
RESERVED_ENDINGS = ("_base", "_plain", "_real", "_strengths")
"""Endings of other folders of spoken sentences, which lie beside an emotion's own."""


def _no_boolean(value: object) -> object:
    """Refuse `true` and `false`, which pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


_Number = BeforeValidator(_no_boolean)
Share = Annotated[float, _Number, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, _Number, Field(gt=0.0)]
NotNegative = Annotated[float, _Number, Field(ge=0.0)]
Count = Annotated[int, _Number, Field(ge=1)]
Whole = Annotated[int, _Number, Field(ge=0)]
Listed = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""A single name may be written without brackets."""
Names = Annotated[Listed, Field(min_length=1)]


class Config(BaseModel):
    """All settings of a run; `configs/emotion_specific_finetuning.yaml` explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    emotions: Names = EMOTIONS
    base: Annotated[str, Field(min_length=1)] = "miniature"
    data: Names = ("miniature",)
    general: Literal["data", "self"] = "data"
    output_dir: Path = Path()
    seed: Annotated[int, _Number, Field(ge=0, lt=2**32)] = 0  # NumPy's own limit
    split_by_speaker: bool = False

    use_adapters: bool = True
    expressive_base: bool = False
    adapter_r: Count = 16
    adapter_alpha: Positive | None = None
    adapter_dropout: Annotated[float, _Number, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: Names = ("both",)
    adapted_parts: Part = "both"

    ewc_lambda: NotNegative = 5000.0
    ewc_curvature: Literal[
        "diagonal", "diagonal_positions", "rank1", "kfac", "sketch", "full", "factors", "factors_batch"
    ] = "kfac"
    fisher_kind: Literal["true", "empirical"] = "true"
    fisher_clips: Count = 120

    distillation_alpha: Share = 1.0
    temperature: Positive = 1.0
    distill_on: Literal["rehearsal", "emotion", "both"] = "rehearsal"
    teacher_frames_share: Annotated[float, _Number, Field(gt=0.0, le=1.0)] | None = None

    rehearsal_buffer_size: Whole = 240
    replay_ratio: Annotated[float, _Number, Field(ge=0.0, lt=1.0, validate_default=True)] = 0.5

    forgetting_budget: Positive | None = None

    learning_rate: Positive = 6e-3
    num_epochs: Count = 3
    batch_size: Count = 12
    grad_accumulation_steps: Count = 1
    warmup_ratio: Share = 0.1
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    first_codebook_weight: Share = 0.5
    depth_frames_share: Annotated[float, _Number, Field(gt=0.0, le=1.0)] = 1.0
    prompt_template: str = "Say this with emotion: {text}"

    num_checkpoints: Whole = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    base_precision: Literal["fp32", "bf16", "nf4"] = "fp32"
    optimizer_bits: Literal[32, 8] = 32
    activation_checkpointing: bool = False
    trackers: Listed = ("tensorboard",)

    validation_clips: Count = 48
    matching_sentences: Whole = 24
    evaluation_sentences: Count = 48
    evaluation_clips: Count = 120
    evaluation_strengths: tuple[Annotated[float, _Number, Field(gt=0.0, le=2.0)], ...] = (0.5, 0.75, 1.0, 1.25)
    sampling_temperature: NotNegative = SPEAKING_TEMPERATURE
    sampling_depth_temperature: NotNegative | None = None
    sampling_takes: Count = SPEAKING_TAKES
    judges: dict[str, str] = Field(default_factory=dict)

    @field_validator("emotions")
    @classmethod
    def _names(cls, emotions: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [name for name in emotions if not name.isidentifier()]:
            raise ValueError(f"{bad[0]!r} can't name a folder and a gate: use letters, digits and _")
        if taken := [name for name in emotions if name in RESERVED]:
            raise ValueError(f"{taken[0]!r} isn't an emotion here: {', '.join(RESERVED)} are taken")
        if taken := [name for name in emotions if name.endswith(RESERVED_ENDINGS)]:
            raise ValueError(f"{taken[0]!r} ends in one of {', '.join(RESERVED_ENDINGS)}, which other folders end in")
        if len(set(emotions)) != len(emotions):
            raise ValueError("an emotion is named twice")
        return emotions

    @field_validator("replay_ratio")
    @classmethod
    def _rehearsed(cls, ratio: float, info: ValidationInfo) -> float:
        if ratio > 0 and info.data.get("rehearsal_buffer_size") == 0:
            raise ValueError(
                "it is above 0 but there is no general speech to rehearse; give a rehearsal_buffer_size above 0, or "
                "set replay_ratio to 0"
            )
        return ratio

    @field_validator("forgetting_budget")
    @classmethod
    def _budget(cls, budget: float | None, info: ValidationInfo) -> float | None:
        # A key whose own value is wrong is not in `info.data`; it gets an error of its own.
        if budget is None:
            return None
        if not info.data.get("replay_ratio", True):
            raise ValueError(
                "it is kept by rehearsing general clips: set replay_ratio (0.5, say) and rehearsal_buffer_size above "
                "0, or leave out forgetting_budget"
            )
        if info.data.get("distill_on", "rehearsal") != "rehearsal":
            raise ValueError(
                "it bounds the KL on rehearsed clips and nothing else: set distill_on to rehearsal, or leave out "
                "forgetting_budget"
            )
        if not info.data.get("distillation_alpha", True) and info.data.get("general") != "self":
            raise ValueError(
                "it is kept by the KL on rehearsed clips: set distillation_alpha above 0 (1 is the default), or leave "
                "out forgetting_budget"
            )
        return budget

    @field_validator("output_dir")
    @classmethod
    def _output_dir(cls, folder: Path) -> Path:
        return expanded(folder)

    @field_validator("distill_on")
    @classmethod
    def _distilled(cls, distill_on: str, info: ValidationInfo) -> str:
        if info.data.get("general") == "self" and distill_on == "emotion":
            raise ValueError(
                "it must be rehearsal or both with general: self, as the base's own samples are learned by the KL alone"
            )
        if distill_on != "rehearsal" and info.data.get("distillation_alpha") == 1:
            raise ValueError(
                "with distillation_alpha 1 the emotion's clips would only teach the adapter to stay like the base: set "
                "distillation_alpha below 1 (0.5, say), or distill_on to rehearsal"
            )
        return distill_on

    @field_validator("first_codebook_weight")
    @classmethod
    def _something_learns(cls, weight: float, info: ValidationInfo) -> float:
        if weight == 1 and info.data.get("adapted_parts") == "depth":
            raise ValueError("it must be under 1 with adapted_parts: depth, which doesn't predict codebook zero")
        return weight

    @field_validator("prompt_template")
    @classmethod
    def _template(cls, template: str) -> str:
        if not is_template(template):
            raise ValueError(f"it must hold {TEMPLATE_RULE}")
        return template

    @field_validator("judges")
    @classmethod
    def _judges(cls, judges: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(judges.keys() - set(KINDS)):
            hint = did_you_mean(unknown[0], KINDS)
            raise ValueError(f"unknown judge {unknown[0]!r}{hint}: there are {', '.join(KINDS)}")
        return judges

    @field_validator("adapter_dropout", "base_precision", "expressive_base")
    @classmethod
    def _of_adapters(cls, value: float | str | bool, info: ValidationInfo) -> float | str | bool:
        is_on = value == "nf4" if info.field_name == "base_precision" else bool(value)
        if is_on and not info.data.get("use_adapters", True):
            raise ValueError(_OF_ADAPTERS[str(info.field_name)])
        return value

    @field_validator("ewc_curvature")
    @classmethod
    def _of_factors(cls, ewc_curvature: str, info: ValidationInfo) -> str:
        if ewc_curvature.startswith("factors") and not info.data.get("use_adapters", True):
            raise ValueError("it is of LoRA's A and B: leave use_adapters on, or choose another curvature")
        if ewc_curvature.startswith("factors") and info.data.get("expressive_base"):
            raise ValueError("it is of one adapter's A and B: leave expressive_base off, or choose another curvature")
        return ewc_curvature

    @property
    def expressive_folder(self) -> Path:
        """The folder of the expressive base's adapter, which `affetto train --emotion base` writes."""
        return self.model_of(EXPRESSIVE) / "best"

    def model_of(self, emotion: str) -> Path:
        """The folder of an emotion's run."""
        return self.output_dir / "emotion_models" / emotion

    def results_of(self, emotion: str) -> Path:
        """The path of an emotion's evaluation results."""
        return self.output_dir / "evaluation_results" / f"{emotion}_results.json"

    @property
    def lora_alpha(self) -> float:
        """LoRA's alpha; twice the rank unless given."""
        return self.adapter_alpha if self.adapter_alpha is not None else 2.0 * self.adapter_r

    @property
    def teacher_share(self) -> float:
        """Share of the frames whose depth logits the teacher keeps; the cross-entropy's unless given."""
        return self.depth_frames_share if self.teacher_frames_share is None else self.teacher_frames_share


_OF_ADAPTERS = {
    "adapter_dropout": "it is LoRA's: leave use_adapters on, or adapter_dropout at 0",
    "base_precision": "nf4 needs adapters: leave use_adapters on, or set it to bf16",
    "expressive_base": "it is an adapter below others: leave use_adapters on, or expressive_base off",
}


def load_config(path: Path | None, *, told_as: str = "configuration", **overrides: Any) -> Config:
    """Read a YAML file (None: all defaults), then apply `overrides`.

    An override of None changes nothing, and a dict changes only the entries it names. Raises `ConfigError`, which lists
    every wrong key with its origin: the file, or the overrides, which it calls `told_as`.
    """
    read = read_yaml(path) if path is not None else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    values = dict(read)
    for key, value in given.items():
        is_part = isinstance(value, dict) and isinstance(read.get(key), dict)
        values[key] = read[key] | value if is_part else value

    def origin(key: object) -> str:
        is_read = key not in given or (values[key] != given[key] and not _is_right(key, read[key]))
        return str(path) if is_read and path else told_as

    wrong = [f"{origin(key)}: {_unknown_key(str(key))}" for key in values if key not in Config.model_fields]
    try:
        config = Config(**{key: value for key, value in values.items() if key in Config.model_fields})
    except ValidationError as error:
        wrong += [f"{origin(item['loc'][0])}: {_wrong_value(item)}" for item in error.errors()]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return config


def _is_right(key: Any, value: Any) -> bool:
    """Whether `value` is valid for `key`, whatever the other keys are."""
    try:
        Config(**{key: value})
    except ValidationError:
        return False
    return True


_MESSAGES = {
    "tuple_type": "must be a list, such as [one, two]", "too_short": "must name at least one",
    "string_too_short": "must not be empty", "path_type": "must be a path",
}  # fmt: skip
"""Plain wording for pydantic errors that use Python's terms."""


def _wrong_value(item: Mapping[str, Any]) -> str:
    message = item["msg"].removeprefix("Value error, ").replace("Input should ", "must ")
    return f"{'.'.join(map(str, item['loc']))}: {_MESSAGES.get(item['type'], message)} (got {item['input']!r})"


def _unknown_key(key: str) -> str:
    near = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(Config.model_fields)}"
    return f"unknown key {key!r}; {hint}"

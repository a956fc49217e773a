"""The configuration: the shipped file says what the code does, and what is wrong is told with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from affetto.config import Config, load_config
from affetto.errors import ConfigError
from affetto.types import EMOTIONS

SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "emotion_specific_finetuning.yaml"
GUIDE_KEYS = (
    "emotions", "ewc_lambda", "distillation_alpha", "temperature", "rehearsal_buffer_size", "replay_ratio", "adapter_r",
    "learning_rate", "num_epochs", "grad_accumulation_steps",
)  # fmt: skip
"""What the users' guide names, in its sections on techniques, configuration and troubleshooting."""


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_file_equals_the_defaults() -> None:
    assert load_config(SHIPPED) == Config() == load_config(None)


def test_shipped_file_shows_every_key_once_with_a_comment() -> None:
    lines = [line for line in SHIPPED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# ")]
    optional = [
        line for line in SHIPPED.read_text(encoding="utf-8").splitlines() if line.startswith("# adapter_alpha:")
    ]
    shown = [line.removeprefix("# ").split(":")[0] for line in (*lines, *optional)]
    assert sorted(shown) == sorted(Config.model_fields)
    for line in (*lines, *optional):
        _, _, comment = line.removeprefix("# ").partition("  # ")
        assert len(comment.strip()) > 5, f"no comment: {line}"


def test_commented_alpha_is_the_default() -> None:
    values = yaml.safe_load(SHIPPED.read_text(encoding="utf-8").replace("# adapter_alpha", "adapter_alpha"))
    assert values["adapter_alpha"] == Config().lora_alpha == 2 * Config().adapter_r


def test_guide_keys_are_there() -> None:
    assert set(GUIDE_KEYS) <= Config.model_fields.keys()


def test_guide_example_loads(tmp_path: Path) -> None:
    example = """
# Key parameters for tuning
ewc_lambda: 5000.0          # EWC regularization strength
distillation_alpha: 0.5     # Weight for distillation loss
adapter_r: 16               # LoRA rank
learning_rate: 1.0e-5       # Learning rate
num_epochs: 3               # Number of epochs
"""
    config = load_config(write(tmp_path, example))
    assert (config.ewc_lambda, config.distillation_alpha, config.adapter_r) == (5000.0, 0.5, 16)
    assert (config.learning_rate, config.num_epochs) == (1e-5, 3)
    assert config.emotions == EMOTIONS


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


@pytest.mark.parametrize("number", ["1e-5", "1.0e-5", "0.00001"])
def test_numbers_may_be_written_as_people_do(tmp_path: Path, number: str) -> None:
    """YAML 1.1 takes 1e-5, without a point, for text."""
    assert load_config(write(tmp_path, f"learning_rate: {number}")).learning_rate == 1e-5


@pytest.mark.parametrize(("key", "name"), [("emotions", "happy"), ("data", "foo.jsonl"), ("trackers", "tensorboard")])
def test_one_name_may_stand_without_brackets(tmp_path: Path, key: str, name: str) -> None:
    assert getattr(load_config(write(tmp_path, f"{key}: {name}")), key) == (name,)


def test_a_preset_of_targets_may_stand_without_brackets(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "target_modules: attention")).target_modules == ("attention",)
    assert load_config(write(tmp_path, "target_modules: [attention, up_proj]")).target_modules == (
        "attention",
        "up_proj",
    )


def test_custom_emotions(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "emotions: [happy, proud, in_love]"))
    assert config.emotions == ("happy", "proud", "in_love")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("ewc_lamda", "ewc_lambda"), ("epochs", "num_epochs"), ("adaptor_r", "adapter_r"), ("Temperature", "temperature")],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    path = write(tmp_path, f"{key}: 1")
    with pytest.raises(ConfigError, match=f"settings.yaml: unknown key '{key}'; did you mean '{nearest}'"):
        load_config(path)


def test_unknown_keys_without_a_neighbour_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known keys: emotions, base, .*judges"):
        load_config(write(tmp_path, "zzz: 1"))
    with pytest.raises(ConfigError, match="unknown key '12'"):
        load_config(write(tmp_path, "12: 1"))


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    """YAML takes the last one without a word."""
    with pytest.raises(ConfigError, match="'adapter_r' is given twice"):
        load_config(write(tmp_path, "adapter_r: 8\nnum_epochs: 2\nadapter_r: 16"))
    with pytest.raises(ConfigError, match="'words' is given twice"):
        load_config(write(tmp_path, "judges:\n  words: a\n  words: b"))


def test_the_output_folder_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(write(tmp_path, "output_dir: ~/runs")).output_dir == tmp_path / "runs"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "adapter_r: none\nepochs: 3\nnum_epochs: 0\nseed: -1"))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "unknown key 'epochs'; did you mean 'num_epochs'?", "seed", "adapter_r", "num_epochs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("general: other", {"general": "foo"}, ["command line: general"]),
        ("seed: -1", {"general": "foo"}, ["command line: general", "FILE: seed"]),
        ("judges: {words: a}", {"judges": {"emotin": "x"}}, ["command line: judges"]),
        ("judges: {wrds: a}", {"judges": {"emotion": "x"}}, ["FILE: judges"]),
        ("general: self", {"base": None, "general": None}, []),
        ("distill_on: emotion", {"general": "self"}, ["FILE: distill_on"]),
    ],
)
def test_what_the_command_line_says_wrong_is_not_blamed_on_the_file(
    tmp_path: Path, text: str, given: dict[str, Any], told: list[str]
) -> None:
    path = write(tmp_path, text)
    try:
        load_config(path, told_as="command line", **given)
        found = []
    except ConfigError as error:
        found = [": ".join(line.split(": ")[:2]).replace(str(path), "FILE") for line in str(error).splitlines()]
    assert found == told


def test_a_judge_that_is_not_known_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown judge 'emotin' \(did you mean 'emotion'\?\)"):
        load_config(None, judges={"emotin": "x"})


WRONG = [
    ("emotions: []", "emotions", "must name at least one"),
    ("emotions: 3", "emotions", "must be a list, such as [one, two]"),
    ("emotions: happy, sad", "emotions", "letters, digits"),
    ("emotions: [happy, happy]", "emotions", "named twice"),
    ("emotions: [very happy]", "emotions", "letters, digits"),
    ("emotions: [../up]", "emotions", "letters, digits"),
    ("emotions: [happy, base]", "emotions", "'base' isn't an emotion"),
    ("emotions: [happy, real]", "emotions", "'real' isn't an emotion"),
    ("emotions: [happy, happy_plain]", "emotions", "'happy_plain' ends in one of _base, _plain"),
    ("emotions: [happy, 3]", "emotions.1", "valid string"),
    ("base: ''", "base", "must not be empty"),
    ("base: [a]", "base", "valid string"),
    ("data: []", "data", "must name at least one"),
    ("data: 3", "data", "must be a list"),
    ("general: none", "general", "'data' or 'self'"),
    ("output_dir: 3", "output_dir", "must be a path"),
    ("seed: -1", "seed", "greater than or equal to 0"),
    ("seed: 4294967296", "seed", "less than 4294967296"),
    ("seed: true", "seed", "must be a number"),
    ("split_by_speaker: 3", "split_by_speaker", "valid boolean"),
    ("use_adapters: 3", "use_adapters", "valid boolean"),
    ("expressive_base: 3", "expressive_base", "valid boolean"),
    ("adapter_r: 0", "adapter_r", "greater than or equal to 1"),
    ("adapter_r: 16.5", "adapter_r", "valid integer"),
    ("adapter_r: many", "adapter_r", "valid integer"),
    ("adapter_r:", "adapter_r", "valid integer"),
    ("adapter_alpha: 0", "adapter_alpha", "greater than 0"),
    ("adapter_dropout: 1", "adapter_dropout", "less than 1"),
    ("use_adapters: false\nadapter_dropout: 0.1", "adapter_dropout", "leave use_adapters on"),
    ("target_modules: []", "target_modules", "must name at least one"),
    ("target_modules: 3", "target_modules", "must be a list"),
    ("adapted_parts: codec", "adapted_parts", "'both', 'backbone' or 'depth'"),
    ("adapted_parts: depth\nfirst_codebook_weight: 1", "first_codebook_weight", "under 1 with adapted_parts: depth"),
    ("ewc_lambda: -1", "ewc_lambda", "greater than or equal to 0"),
    ("ewc_lambda: .nan", "ewc_lambda", "finite"),
    ("ewc_lambda: .inf", "ewc_lambda", "finite"),
    ("ewc_curvature: kfac2", "ewc_curvature", "diagonal"),
    ("fisher_kind: true", "fisher_kind", "'true' or 'empirical'"),
    ("fisher_clips: 0", "fisher_clips", "greater than or equal to 1"),
    ("distillation_alpha: 1.2", "distillation_alpha", "less than or equal to 1"),
    ("temperature: 0", "temperature", "greater than 0"),
    ("distill_on: all", "distill_on", "'rehearsal'"),
    ("general: self\ndistill_on: emotion", "distill_on", "rehearsal or both with general: self"),
    ("distill_on: emotion", "distill_on", "distillation_alpha below 1"),
    ("distill_on: both", "distill_on", "distillation_alpha below 1"),
    ("teacher_frames_share: 0", "teacher_frames_share", "greater than 0"),
    ("teacher_frames_share: 1.5", "teacher_frames_share", "less than or equal to 1"),
    ("rehearsal_buffer_size: -3", "rehearsal_buffer_size", "greater than or equal to 0"),
    ("replay_ratio: 1.0", "replay_ratio", "less than 1"),
    ("rehearsal_buffer_size: 0", "replay_ratio", "give a rehearsal_buffer_size above 0, or set replay_ratio to 0"),
    ("expressive_base: true\newc_curvature: factors", "ewc_curvature", "leave expressive_base off"),
    ("forgetting_budget: 0", "forgetting_budget", "greater than 0"),
    ("forgetting_budget: true", "forgetting_budget", "must be a number"),
    ("forgetting_budget: 0.01\nreplay_ratio: 0", "forgetting_budget", "set replay_ratio (0.5, say)"),
    ("forgetting_budget: 0.01\nrehearsal_buffer_size: 0", "replay_ratio", "rehearsal_buffer_size above 0"),
    (
        "forgetting_budget: 0.01\nreplay_ratio: 0\nrehearsal_buffer_size: 0",
        "forgetting_budget",
        "rehearsal_buffer_size above 0",
    ),
    (
        "forgetting_budget: 0.01\ndistill_on: emotion\ndistillation_alpha: 0.5",
        "forgetting_budget",
        "set distill_on to rehearsal",
    ),
    ("forgetting_budget: 0.01\ndistillation_alpha: 0", "forgetting_budget", "set distillation_alpha above 0"),
    (
        "forgetting_budget: 0.01\ndistill_on: both\ndistillation_alpha: 0.5",
        "forgetting_budget",
        "set distill_on to rehearsal",
    ),
    ("learning_rate: 0", "learning_rate", "greater than 0"),
    ("learning_rate: fast", "learning_rate", "valid number"),
    ("learning_rate: yes", "learning_rate", "must be a number"),
    ("num_epochs: 0", "num_epochs", "greater than or equal to 1"),
    ("batch_size: 0", "batch_size", "greater than or equal to 1"),
    ("grad_accumulation_steps: 0", "grad_accumulation_steps", "greater than or equal to 1"),
    ("warmup_ratio: 2", "warmup_ratio", "less than or equal to 1"),
    ("weight_decay: -0.1", "weight_decay", "greater than or equal to 0"),
    ("max_grad_norm: 0", "max_grad_norm", "greater than 0"),
    ("first_codebook_weight: 1.5", "first_codebook_weight", "less than or equal to 1"),
    ("depth_frames_share: 0", "depth_frames_share", "greater than 0"),
    ("prompt_template: plain", "prompt_template", "{text} once"),
    ("prompt_template: '{text} {mood}'", "prompt_template", "no other braces"),
    ("num_checkpoints: -1", "num_checkpoints", "greater than or equal to 0"),
    ("precision: fp8", "precision", "'fp32', 'bf16' or 'fp16'"),
    ("base_precision: fp16", "base_precision", "'fp32', 'bf16' or 'nf4'"),
    ("use_adapters: false\nbase_precision: nf4", "base_precision", "nf4 needs adapters"),
    ("optimizer_bits: 16", "optimizer_bits", "32 or 8"),
    ("activation_checkpointing: sometimes", "activation_checkpointing", "valid boolean"),
    ("trackers: 3", "trackers", "must be a list"),
    ("validation_clips: 0", "validation_clips", "greater than or equal to 1"),
    ("evaluation_sentences: 0", "evaluation_sentences", "greater than or equal to 1"),
    ("matching_sentences: -1", "matching_sentences", "greater than or equal to 0"),
    ("evaluation_clips: 0", "evaluation_clips", "greater than or equal to 1"),
    ("evaluation_strengths: [0]", "evaluation_strengths.0", "greater than 0"),
    ("sampling_temperature: -1", "sampling_temperature", "greater than or equal to 0"),
    ("sampling_depth_temperature: -0.5", "sampling_depth_temperature", "greater than or equal to 0"),
    ("sampling_takes: 0", "sampling_takes", "greater than or equal to 1"),
    ("judges: {mood: x}", "judges", "there are emotion, words, quality, voice, dimensions, embedding"),
    ("judges: [x]", "judges", "valid dictionary"),
]


@pytest.mark.parametrize(("text", "key", "message"), WRONG)
def test_wrong_values_are_told_with_their_key(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'settings.yaml'}: {key}: ")
    assert message in told
    assert "(got " in told


def test_a_budget_may_be_given_or_left_empty(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "forgetting_budget: 0.01")).forgetting_budget == 0.01
    empty = load_config(
        write(tmp_path, "forgetting_budget:\nreplay_ratio: 0\ndistillation_alpha: 0.5\ndistill_on: emotion")
    )
    assert empty.forgetting_budget is None


def test_every_key_has_a_wrong_value_in_the_table() -> None:
    assert {key.split(".")[0] for _, key, _ in WRONG} == set(Config.model_fields)


def test_files_that_are_not_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read the configuration .*No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load_config(write(tmp_path, "- a\n- b"))
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "settings.yaml")


def test_overrides_replace_what_they_give(tmp_path: Path) -> None:
    path = write(tmp_path, "base: mine\nnum_epochs: 2\njudges: {words: w, emotion: e}")
    config = load_config(path, base="other", data=None, output_dir=tmp_path, judges={"emotion": "new"})
    assert (config.base, config.num_epochs, config.output_dir) == ("other", 2, tmp_path)
    assert config.data == Config().data
    assert config.judges == {"words": "w", "emotion": "new"}
    with pytest.raises(ConfigError, match="configuration: base: "):
        load_config(None, base=3)
    with pytest.raises(ConfigError, match="unknown key 'bse'"):
        load_config(None, bse="x")


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().adapter_r = 3  # type: ignore[misc]


def test_the_teachers_share_of_frames_is_the_cross_entropys_unless_given() -> None:
    assert Config(depth_frames_share=0.25).teacher_share == 0.25
    assert Config(depth_frames_share=0.25, teacher_frames_share=0.5).teacher_share == 0.5


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert Config(adapter_r=8).lora_alpha == 16
    assert Config(adapter_r=8, adapter_alpha=5).lora_alpha == 5


def test_moshis_settings_are_read() -> None:
    config = load_config(SHIPPED.with_name("moshi.yaml"))
    assert config.base == "kyutai/moshiko-pytorch-bf16"
    # 100 against seven others that count 1 each (moshi-finetune).
    assert config.first_codebook_weight == pytest.approx(100 / 107, abs=1e-4)

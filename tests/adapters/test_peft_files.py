"""Adapters on disk: nothing loads half-way, and every wrong key is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_tools import dense_deltas, random_adapter
from safetensors.torch import load_file, save_file

from affetto import files
from affetto.adapters import peft_files
from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import CONFIG, FACTS, WEIGHTS, insert_adapter, read_adapter, save_adapter
from affetto.errors import AdapterError
from affetto.miniature.base import make_config, make_model
from affetto.model.base import Base, load_base
from affetto.model.csm import CsmNetwork

SITE = "backbone_model.layers.1.mlp.up_proj"
KEY = f"base_model.model.{SITE}.lora_A.weight"
AGAIN = "Copy or train the adapter again"


@pytest.fixture
def bank(tiny_base: Base) -> AdapterBank:
    return AdapterBank(tiny_base.model, tiny_base.network.gates)


@pytest.fixture(scope="module")
def saved(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base(str(tiny_base_folder))
    bank = AdapterBank(base.model, base.network.gates)
    random_adapter(bank, "happy")
    folder = tmp_path_factory.mktemp("saved") / "best"
    save_adapter(folder, bank, "happy", base.id, {"base": {"id": base.id, "hash": base.hash}})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A saved adapter, free to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "best"))


def _configure(folder: Path, **values: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


def _insert(bank: AdapterBank, base: Base, folder: Path, **options: bool) -> None:
    insert_adapter(bank, "happy", read_adapter(folder), base.hash, **options)


def _assert_refused(bank: AdapterBank, base: Base, folder: Path, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        _insert(bank, base, folder)
    assert bank.names == [], "refused, and yet in the bank"
    assert all(len(site.A) == 0 for site in bank.sites.values())


def test_what_was_saved_is_loaded(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _insert(bank, tiny_base, folder)
    random_adapter(bank, "same")
    assert bank.names == ["happy", "same"]
    for first, second in zip(bank.factors("happy"), bank.factors("same"), strict=True):
        assert first[0] == second[0]
        assert torch.equal(first[1], second[1])
        assert torch.equal(first[2], second[2])
        assert first[3] == second[3] == 2.0
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, WEIGHTS, FACTS])


def test_layers_ranks_and_scales_of_their_own_survive(bank: AdapterBank, tiny_base: Base, tmp_path: Path) -> None:
    """Some layers of one kind only, two ranks, two scales."""
    shapes = {
        "backbone_model.layers.0.self_attn.q_proj": (2, 1.5),
        "backbone_model.layers.1.self_attn.k_proj": (2, 1.5),
        "depth_decoder.model.layers.1.mlp.down_proj": (5, 0.1),
    }
    tensors = {}
    for site, (rank, _) in shapes.items():
        out_features, in_features = bank.sites[site].layer.weight.shape
        tensors[site] = (torch.randn(rank, in_features), torch.randn(out_features, rank))
    bank.insert("odd", tensors, {site: scale for site, (_, scale) in shapes.items()})
    save_adapter(tmp_path / "odd", bank, "odd", tiny_base.id, {})
    assert len(load_file(tmp_path / "odd" / WEIGHTS)) == 6
    insert_adapter(bank, "again", read_adapter(tmp_path / "odd"), tiny_base.hash)
    first, second = dense_deltas(bank, {"odd": 1.0}), dense_deltas(bank, {"again": 1.0})
    for site, delta in first.items():
        torch.testing.assert_close(second[site], delta, rtol=1e-6, atol=0)
        assert delta.any() == (site in shapes)


def test_pitfall_12_another_base_is_refused_by_hash(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    facts = {"base": {"id": "sesame/csm-1b", "hash": "f" * 64}}
    (folder / FACTS).write_text(json.dumps(facts))
    refusal = rf"{FACTS}: trained on sesame/csm-1b with weights f{{12}}.*{tiny_base.hash[:12]}\. Give that base, or"
    _assert_refused(
        bank, tiny_base, folder, rf"{refusal} train again \(Voice\.load_adapter has allow_other_base=True\)"
    )
    _insert(bank, tiny_base, folder, allow_other_base=True)
    assert bank.names == ["happy"]


@pytest.mark.parametrize("facts", [{}, {"base": "sesame/csm-1b"}, None])
def test_adapters_made_elsewhere_name_no_hash(
    bank: AdapterBank, tiny_base: Base, folder: Path, facts: dict[str, object] | None
) -> None:
    (folder / FACTS).unlink() if facts is None else (folder / FACTS).write_text(json.dumps(facts))
    assert read_adapter(folder).base_hash is None
    _insert(bank, tiny_base, folder)


@pytest.mark.parametrize(("stored", "expected"), [(None, 1.0), (0.0, 0.0), (0.7, 0.7)])
def test_recommended_intensity_may_be_zero(folder: Path, stored: float | None, expected: float) -> None:
    (folder / FACTS).write_text(json.dumps({"recommended_intensity": stored}))
    assert read_adapter(folder).recommended_intensity == expected


def test_pitfall_12_every_wrong_key_is_named(folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.q_proj.lora_A.weight"] = torch.ones(2, 2)
        tensors["base_model.model.x.lora_embedding_A"] = torch.ones(2, 2)
        del tensors[KEY]

    _change(folder, rename)
    with pytest.raises(AdapterError, match=rf"{WEIGHTS}: 3 tensors are not LoRA of linear.*{AGAIN}") as raised:
        read_adapter(folder)
    for name in ("model.q_proj.lora_A.weight", "base_model.model.x.lora_embedding_A", f"{SITE} (half)"):
        assert name in str(raised.value)


def test_pitfall_12_wrong_prefixes_are_named(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _change(folder, lambda t: [t.__setitem__(k.replace("backbone_model", "backbone"), t.pop(k)) for k in list(t)])
    told = rf"{WEIGHTS}: 14 layers are not in this base.*backbone\.layers\.0.*8 more\. Give the base that it was"
    _assert_refused(bank, tiny_base, folder, rf"{told} trained on, {re.escape(tiny_base.id)} by its {CONFIG}")
    _configure(folder, base_model_name_or_path=None)
    _assert_refused(bank, tiny_base, folder, rf"{told} trained on$")


def test_pitfall_12_layers_that_were_dropped_are_named(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    """Four of seven target types gone, as in VibeVoice-finetuning #13."""

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "mlp" in key or "o_proj" in key]:
            del tensors[key]

    _change(folder, drop)
    told = rf"{WEIGHTS}: 16 layers of its target_modules have no tensors: .*o_proj.*{AGAIN}"
    _assert_refused(bank, tiny_base, folder, told)
    _configure(folder, target_modules=["q_proj", "k_proj", "v_proj"])
    _insert(bank, tiny_base, folder)


def test_layers_to_transform_are_understood(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _change(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layers.0." in key])
    _configure(folder, target_modules=sorted(bank.targets), layers_to_transform=[1])
    _insert(bank, tiny_base, folder)
    assert not any(bank.sites[site].A["happy"].shape[0] for site in bank.sites if ".layers.0." in site)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_pitfall_12_an_adapter_that_changes_nothing_is_refused(
    bank: AdapterBank, tiny_base: Base, folder: Path, factor: str
) -> None:
    _change(folder, lambda tensors: [tensor.zero_() for key, tensor in tensors.items() if factor in key])
    _assert_refused(bank, tiny_base, folder, rf"{WEIGHTS}: it changes nothing.*{AGAIN}")


def test_weights_that_are_not_numbers_are_refused(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _change(folder, lambda tensors: tensors[KEY].__setitem__((0, 0), float("nan")))
    _assert_refused(bank, tiny_base, folder, rf"{WEIGHTS}: .*NaN or infinite\. {AGAIN}")


def test_pitfall_12_wrong_shapes_are_named(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({KEY: torch.ones(3, 17)}))
    told = rf"{WEIGHTS}: shapes don't fit: {SITE}: A \(3, 17\), B \(320, 3\) for a layer 320x128\. Give the base"
    _assert_refused(bank, tiny_base, folder, told)


def test_pitfall_12_ranks_other_than_configured_are_named(folder: Path) -> None:
    _configure(folder, r=6)
    with pytest.raises(AdapterError, match=rf"{WEIGHTS}: 28 layers don't have the rank .* for rank 6.*{AGAIN}"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", f"{CONFIG}: peft_type is 'LOHA'; .*: train that"),
        ("use_dora", True, f"{CONFIG}: it carries DoRA.*; merge it or train plain LoRA"),
        ("modules_to_save", ["lm_head"], "whole modules"),
        ("bias", "lora_only", r"biases too \(bias='lora_only'\).*; train plain LoRA"),
        ("lora_bias", True, "biases of B"),
        ("trainable_token_indices", [1], "trained tokens"),
        ("target_parameters", ["w"], "bare parameters"),
        ("alora_invocation_tokens", [1], "aLoRA"),
        ("layer_replication", [[0, 1]], "replicated layers"),
        ("init_lora_weights", "pissa", "initialised by pissa"),
        ("init_lora_weights", "pissa_niter_16", "initialised by pissa_niter_16"),
        ("init_lora_weights", "olora", "initialised by olora"),
        ("init_lora_weights", "corda", "initialised by corda"),
        ("init_lora_weights", "loftq", "initialised by loftq"),
        ("init_lora_weights", "lora_ga", "initialised by lora_ga"),
    ],
)
def test_pitfall_12_other_methods_are_refused(folder: Path, key: str, value: object, message: str) -> None:
    _configure(folder, **{key: value})
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("r", "x", "a whole number above 0"), ("r", 0, "a whole number above 0"), ("r", None, "a whole number above 0"),
        ("lora_alpha", None, "a number"), ("lora_alpha", 10**400, "a number"), ("lora_alpha", float("nan"), "a number"),
        ("rank_pattern", {"q_proj(": 3}, "regular expressions, each with a whole number above 0"),
        ("rank_pattern", {"(?i)q_proj": 3}, "regular expressions, each with a whole number above 0"),
        ("rank_pattern", {"q_proj": 1.5}, "regular expressions, each with a whole number above 0"),
        ("alpha_pattern", ["q_proj"], "regular expressions, each with a number"),
        ("target_modules", "*q_proj", "a regular expression, or a list of layers' names"),
        ("target_modules", [1], "a regular expression, or a list of layers' names"),
        ("exclude_modules", "a{9999999999}", "a regular expression, or a list of layers' names"),
        ("layers_pattern", ["("], "a regular expression, or a list of them"),
        ("layers_to_transform", ["1"], "a layer's number, or a list of them"),
        ("target_parameters", 5, "a list of parameters' names"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(folder: Path, key: str, value: object, expected: str) -> None:
    _configure(folder, **{key: value})
    told = re.escape(f"{folder / CONFIG}: {key} must be {expected}, not {value!r}. {AGAIN}")
    with pytest.raises(AdapterError, match=told):
        read_adapter(folder)


def test_settings_that_peft_refuses_are_refused(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    _change(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layers.0." in key])
    _configure(folder, layers_to_transform=[1])
    _assert_refused(bank, tiny_base, folder, rf"{CONFIG}: .layers_to_transform. cannot be used when.*{AGAIN}")


@pytest.mark.parametrize("names", [None, [f"{SITE}.weight"]])
def test_tensors_that_are_no_matrices_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    monkeypatch.setattr(peft_files, "_STACKED", SITE)
    _configure(folder, target_parameters=names)
    _change(folder, lambda tensors: tensors.update({KEY: torch.tensor(1.0)}))
    with pytest.raises(AdapterError, match=rf"{SITE}: A \(\), B \(320, 3\) for rank 3"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prompt_template", "no text", "a text with {text} once and no other braces"),
        ("prompt_template", "{text} {text}", "a text with {text} once and no other braces"),
        ("prompt_template", None, "a text with {text} once and no other braces"),
        ("recommended_intensity", "strong", "a number, 0 or more"),
        ("recommended_intensity", -1, "a number, 0 or more"),
        ("recommended_intensity", float("inf"), "a number, 0 or more"),
        ("speakers", ["a"], "names of speakers, each with its number, 0 or more"),
        ("speakers", {"a": "0"}, "names of speakers, each with its number, 0 or more"),
        ("frontier", [{"kl": 0.1}], "a list of points, each with its intensity, a number of 0 or more"),
        ("frontier", 5, "a list of points, each with its intensity, a number of 0 or more"),
    ],
)  # fmt: skip
def test_facts_that_nothing_could_be_spoken_with_are_named(
    folder: Path, key: str, value: object, expected: str
) -> None:
    (folder / FACTS).write_text(json.dumps({key: value}))
    told = re.escape(f"{folder / FACTS}: {key} must be {expected}, not {value!r}. {AGAIN}")
    with pytest.raises(AdapterError, match=told):
        read_adapter(folder)


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_fine(folder: Path, value: object) -> None:
    before = read_adapter(folder).scales
    _configure(folder, init_lora_weights=value)
    assert read_adapter(folder).scales == before


def test_patterns_and_rslora_set_the_scale(folder: Path) -> None:
    first, second = "backbone_model.layers.0.self_attn.q_proj", "backbone_model.layers.1.self_attn.q_proj"
    other = "depth_decoder.model.layers.0.mlp.up_proj"
    _configure(folder, lora_alpha=12, alpha_pattern={"layers.0.self_attn.q_proj": 30, "up_proj": 6})
    scales = read_adapter(folder).scales
    assert (scales[first], scales[second], scales[other]) == (10.0, 4.0, 2.0)
    _configure(folder, use_rslora=True)
    scales = read_adapter(folder).scales
    assert scales[first] == pytest.approx(30 / 3**0.5)
    _change(
        folder, lambda t: t.update({k: v[:2] if "lora_A" in k else v[:, :2] for k, v in t.items() if "up_proj" in k})
    )
    _configure(folder, use_rslora=False, rank_pattern={".*up_proj": 2})
    assert read_adapter(folder).scales[other] == 3.0


def test_dead_adapters_of_the_codec_are_left_out(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    """PEFT's plain target names also match the codec inside CSM, which no training reaches."""
    site = "codec_model.decoder_transformer.layers.0.self_attn.q_proj"
    halves = {f"base_model.model.{site}.lora_A.weight": torch.ones(3, 16)}
    _change(folder, lambda t: t.update(halves | {f"base_model.model.{site}.lora_B.weight": torch.zeros(16, 3)}))
    _insert(bank, tiny_base, folder)
    assert site not in bank.sites
    _change(folder, lambda t: t.update({f"base_model.model.{site}.lora_B.weight": torch.ones(16, 3)}))
    with pytest.raises(AdapterError, match="1 layer is not in this base or not adapted here: codec_model"):
        insert_adapter(bank, "loud", read_adapter(folder), tiny_base.hash)


def test_folders_without_an_adapter_say_what_to_give(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter_config\.json here"):
        read_adapter(tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, FACTS])
def test_damaged_files_are_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=rf"{name} can't be read"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG, FACTS])
def test_files_of_another_form_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text("[1, 2]")
    with pytest.raises(AdapterError, match=rf"{name} is not a JSON object"):
        read_adapter(folder)


@pytest.mark.parametrize("step", ["save_file", "write_json", "replace_folder"])
def test_an_interrupted_save_leaves_the_old_adapter(
    bank: AdapterBank, tiny_base: Base, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    random_adapter(bank, "other", seed=5)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files if step == "replace_folder" else peft_files, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(folder, bank, "other", tiny_base.id, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert list(folder.parent.iterdir()) == [folder], "something was left behind"


def test_saving_replaces_the_whole_folder(bank: AdapterBank, tiny_base: Base, folder: Path) -> None:
    random_adapter(bank, "other", rank=7, seed=5)
    save_adapter(folder, bank, "other", tiny_base.id, {"note": "new"})
    adapter = read_adapter(folder)
    assert adapter.facts == {"note": "new"}
    assert torch.equal(adapter.tensors[SITE][1], bank.sites[SITE].B["other"])
    shutil.rmtree(folder)
    save_adapter(folder, bank, "other", tiny_base.id, {})
    assert (folder.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "down_proj"],
        ["proj"],
        ["self_attn.q_proj"],
        ["backbone_model.layers.0.mlp.up_proj"],
        r"(backbone_model|depth_decoder)\..*\.(q_proj|v_proj)",
        r"q_proj",
        r".*\.layers\.0\..*",
    ],
)
def test_targets_are_understood_as_peft_does(targets: list[str] | str) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    from affetto.adapters.targets import peft_adapts

    layers = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    sites = [f"{part}.layers.{i}.{layer}" for part in ("backbone_model", "depth_decoder.model") for i in (0, 1)
             for layer in layers] + ["depth_decoder.model.inputs_embeds_projector", "q_proj"]  # fmt: skip
    expected = [bool(check_target_module_exists(LoraConfig(target_modules=targets), site)) for site in sites]
    assert [peft_adapts({"target_modules": targets}, site) for site in sites] == expected
    for others in ({"exclude_modules": ["up_proj"]}, {"layers_to_transform": [1]}, {"layers_to_transform": 0}):
        # PEFT refuses the second beside a pattern.
        if isinstance(targets, list):
            config = LoraConfig(target_modules=targets, **others)
            told = [bool(check_target_module_exists(config, site)) for site in sites]
            assert [peft_adapts({"target_modules": targets, **others}, site) for site in sites] == told


def test_an_adapter_of_a_smaller_base_without_facts_asks_for_that(folder: Path) -> None:
    """PEFT's own has no hash to tell bases apart, and training it again would mend nothing."""
    (folder / FACTS).unlink()
    larger = make_model(make_config(hidden_size=128, num_layers=3, depth_size=64, depth_layers=2), seed=0)
    bank = AdapterBank(larger, CsmNetwork(larger).gates)
    config = json.loads((folder / CONFIG).read_text())
    pattern = r"(.*\.)?(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": pattern}))
    with pytest.raises(
        AdapterError, match=r"layers\.2\..*Give the base that it was trained on.*or, if this is that one, copy"
    ):
        insert_adapter(bank, "happy", read_adapter(folder), "another")

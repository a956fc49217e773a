"""Full fine-tuning (`use_adapters: false`): every weight's change, under the same preservation, as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import TINY, read_log, stop_at_step
from transformers import CsmForConditionalGeneration

from affetto.adapters.bank import AdapterBank
from affetto.adapters.checkpoints import load_adapter, read_checkpoint
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import AdapterError, ConfigError, Interrupted
from affetto.files import read_json
from affetto.miniature.base import make_config, make_model
from affetto.model.base import load_base, weights_hash
from affetto.model.batch import collate
from affetto.model.csm import CsmNetwork
from affetto.model.losses import code_losses
from affetto.speak.voice import Voice
from affetto.training.loop import train
from affetto.training.streams import build_streams

Make = Callable[..., Config]
FULL = TINY | {"use_adapters": False, "learning_rate": 1e-3, "target_modules": ("both",)}


def test_the_changes_gradient_is_that_of_the_weights_themselves(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**FULL)
    base = load_base(config.base)
    batch = collate(build_streams(config, "happy", prepared, base).emotional, 8)
    plain = load_base(config.base)
    named = {name: weight for name, weight in plain.model.named_parameters() if "codec" not in name}
    for weight in named.values():
        weight.requires_grad_(True)
    c0, depth = code_losses(plain.network(batch.with_gate(batch.gate_BE[:, :0])), batch)
    torch.autograd.backward(c0.total + depth.total)
    bank = AdapterBank(base.model, base.network.gates)
    bank.add_full("happy")
    c0, depth = code_losses(base.network(batch), batch)
    torch.autograd.backward(c0.total + depth.total)
    assert bank.is_full("happy")
    for name, change in bank.parameters("happy").items():
        assert change.grad is not None
        expected = named[name.replace(".change", ".weight")].grad
        assert expected is not None
        assert expected.abs().max() > 0
        torch.testing.assert_close(change.grad, expected, rtol=1e-3, atol=1e-4)


def test_the_checkpoint_is_the_base_plus_the_change_and_transformers_loads_it(
    config_of: Make, prepared: Prepared
) -> None:
    config = config_of(**FULL)
    before = weights_hash(Path(config.base))
    folder = train(config, "happy", prepared)
    assert weights_hash(Path(config.base)) == before, "the base stays as it is"
    best = folder / "best"
    assert not (best / "adapter_config.json").exists()
    model = CsmForConditionalGeneration.from_pretrained(best)
    base, stored = load_base(config.base), load_file(best / "model.safetensors")
    original = load_file(Path(config.base) / "model.safetensors")
    changed = {name for name, value in original.items() if not torch.equal(stored[name].float(), value.float())}
    bank = AdapterBank(base.model, base.network.gates)
    assert changed == {f"{site}.weight" for site in bank.sites}
    assert any(name.startswith("codec_model.") for name in stored), "transformers wants the codec, too"
    # As a checkpoint of its own it says what the bank says with its change at gate 1.
    load_adapter(bank, "happy", best, base.hash)
    batch = collate(build_streams(config, "happy", prepared, base).emotional, 8)
    with torch.no_grad():
        banked = base.network(batch)
        own = CsmNetwork(load_base(str(best)).model).eval()(batch.with_gate(batch.gate_BE[:, :0]))
    torch.testing.assert_close(banked.c0_NV, own.c0_NV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(banked.depth_MJV, own.depth_MJV, rtol=1e-4, atol=1e-4)
    assert model.config.model_type == "csm"
    assert read_json(best / "affetto.json")["configuration"]["use_adapters"] is False


def test_it_speaks_at_any_strength_beside_lora(config_of: Make, prepared: Prepared) -> None:
    full = train(config_of("full", **FULL), "happy", prepared)
    lora = train(config_of("lora", **TINY), "sad", prepared)
    voice = Voice.load(config_of().base)
    voice.load_adapter("happy", full / "best")
    voice.load_adapter("sad", lora / "best")
    requests = [
        voice.request("red green", emotion, intensity=intensity, temperature=0.0)
        for emotion, intensity in (({}, 0.0), ("happy", 0.0), ("happy", 1.0), ({"happy": 0.5, "sad": 0.5}, 1.0))
    ]
    codes = [spoken.codes_TK.tolist() for spoken in voice.generate(requests)]
    assert codes[0] == codes[1]
    assert codes[2] != codes[0]
    # Half of the change is the weights half-way between.
    base = load_base(config_of().base)
    bank = AdapterBank(base.model, base.network.gates)
    bank.insert("happy", read_checkpoint(full / "best", bank).tensors, {})
    with torch.no_grad():
        x = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0))
        site = next(site for site in bank.sites.values() if site.layer.in_features == 128)
        with base.network.gates.set(torch.tensor([[0.5]])):
            found = site(x)
        expected = torch.nn.functional.linear(x, site.layer.weight + 0.5 * site.A["happy"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_same_terms_hold_it(config_of: Make, prepared: Prepared) -> None:
    """EWC is of the weights' change; the teacher is the frozen original; more of either forgets less."""
    settings = {
        "loose": {"ewc_lambda": 0.0, "distillation_alpha": 0.0, "replay_ratio": 0.0},
        "held": {"ewc_lambda": 20_000.0, "distillation_alpha": 1.0},
    }
    logs = {}
    for name, changes in settings.items():
        logs[name] = read_log(train(config_of(name, **FULL, **changes), "happy", prepared) / "training_log.jsonl")
    assert logs["held"][-1]["terms"]["general_kl"] < 0.6 * logs["loose"][-1]["terms"]["general_kl"]
    terms = [row["terms"] for row in logs["held"] if row["split"] == "train"]
    assert terms[0]["ewc"] == 0
    assert terms[-1]["ewc"] > 0
    assert "rehearsal_kl_depth" in terms[-1]


def test_it_resumes_as_if_nothing_had_happened(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config_of("straight", **FULL), "happy", prepared)
    with monkeypatch.context() as patched:
        stop_at_step(patched, 3)
        with pytest.raises(Interrupted):
            train(config_of("stopped", **FULL), "happy", prepared)
    resumed = train(config_of("stopped", **FULL), "happy", prepared, resume=True)
    for name in ("last/training_state.safetensors", "best/model.safetensors"):
        expected, found = load_file(straight / name), load_file(resumed / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_bad_checkpoints_are_named(config_of: Make, prepared: Prepared) -> None:
    folder = train(config_of(**FULL), "happy", prepared) / "best"
    base = load_base(config_of().base)
    bank = AdapterBank(base.model, base.network.gates)
    with pytest.raises(AdapterError, match="trained on"):
        load_adapter(bank, "happy", folder, "another")
    weights = load_file(folder / "model.safetensors")
    site = next(iter(bank.sites))
    broken = {
        "1 layer of the base has no weights": {
            name: value for name, value in weights.items() if name != f"{site}.weight"
        },
        "give the base it was made from": weights | {f"{site}.weight": weights[f"{site}.weight"][:-1].clone()},
        "NaN": weights | {f"{site}.weight": torch.full_like(weights[f"{site}.weight"], torch.nan)},
        "the base itself": load_file(Path(config_of().base) / "model.safetensors"),
    }
    for number, (said, tensors) in enumerate(broken.items()):
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(AdapterError, match=said):
            load_adapter(bank, f"broken{number}", folder, base.hash)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdapterError, match="can't be read"):
        load_adapter(bank, "torn", folder, base.hash)


def test_a_checkpoint_with_more_than_linear_layers_changed_is_not_half_loaded(
    config_of: Make, prepared: Prepared
) -> None:
    """As PEFT merges whole modules and trained tokens; in fewer bits a checkpoint still is itself."""
    folder = train(config_of(**FULL), "happy", prepared) / "best"
    base = load_base(config_of().base)
    bank = AdapterBank(base.model, base.network.gates)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, folder / "model.safetensors")
    load_adapter(bank, "in bfloat16", folder, base.hash)
    changed = ("lm_head.weight", "backbone_model.norm.weight")
    save_file(weights | {name: 1.01 * weights[name] for name in changed}, folder / "model.safetensors")
    told = r"2 tensors are not the base's, .*: backbone_model\.norm\.weight, lm_head\.weight\. Speak with it as a base"
    with pytest.raises(AdapterError, match=told):
        load_adapter(bank, "more", folder, base.hash)
    assert bank.names == ["in bfloat16"]


def test_it_does_not_build_on_an_expressive_base() -> None:
    from affetto.config import load_config

    with pytest.raises(ConfigError, match="an adapter below others"):
        load_config(None, use_adapters=False, expressive_base=True)


def test_controls_are_of_low_rank_adapters() -> None:
    from affetto.config import load_config

    with pytest.raises(ConfigError, match="of LoRA's A and B"):
        load_config(None, use_adapters=False, ewc_curvature="factors")


def test_a_checkpoint_of_another_base_says_of_which(config_of: Make, prepared: Prepared) -> None:
    """A base of more layers: the facts are looked at before the layers."""
    folder = train(config_of(**FULL), "happy", prepared) / "best"
    config = make_config(hidden_size=128, num_layers=3, depth_size=64, depth_layers=2)
    other = make_model(config, seed=0)
    network = CsmNetwork(other)
    bank = AdapterBank(other, network.gates)
    with pytest.raises(AdapterError, match=r"affetto\.json: trained on .* with weights .* Give that base"):
        load_adapter(bank, "happy", folder, "another")
    (folder / "affetto.json").unlink()
    with pytest.raises(AdapterError, match=r"have no weights in it.*give the base it was made from"):
        load_adapter(bank, "happy", folder, "another")

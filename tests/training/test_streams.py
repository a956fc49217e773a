"""Which clips become which rows, and what the data may not be."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from training_helpers import COUNTS, make_prepared

from affetto.adapters.bank import AdapterBank
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import ConfigError, DataError
from affetto.files import cache_root
from affetto.model.base import Base
from affetto.training import streams as streams_module
from affetto.training.streams import build_streams, general_fisher, loss_weights, teacher_answers


def ids(rows: list[Any]) -> list[str]:
    return [row.clip_id for row in rows]


def test_rows_come_from_their_splits_and_carry_their_prompts(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    streams = build_streams(config_of(), "happy", prepared, tiny_base)
    assert sorted(ids(streams.emotional)) == [f"happy-train-{number}" for number in range(6)]
    assert sorted(ids(streams.validation_emotional)) == ["happy-validation-0", "happy-validation-1"]
    assert sorted(ids(streams.validation_general)) == [f"general-validation-{number}" for number in range(3)]
    assert len(streams.rehearsal) == 6
    assert len(streams.fisher) == 4
    # Ten general clips: the Fisher looks at the four that are not rehearsed.
    assert {*ids(streams.rehearsal), *ids(streams.fisher)} == {f"general-train-{number}" for number in range(10)}
    assert streams.speakers == {"a": 0, "b": 1}
    assert streams.trained_speakers == ["a", "b"]
    by_id = {clip.id: clip for clip in prepared.clips}
    every = [*streams.emotional, *streams.validation_emotional, *streams.rehearsal, *streams.fisher]
    for row in [*every, *streams.validation_general]:
        clip = by_id[row.clip_id]
        assert clip.text is not None
        wording = f"Say this with emotion: {clip.text}" if clip.emotion else clip.text
        assert row.turns[-1].text_ids == tiny_base.prompt_ids(wording, streams.speakers[clip.speaker])
        assert row.gate == (1.0,)


def test_weaker_acting_trains_under_a_smaller_gate_and_general_speech_under_the_whole(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    acted = {"happy-train-0": 0.5, "happy-train-1": 0.25, "happy-validation-0": 0.5}
    clips = tuple(replace(clip, intensity=acted.get(clip.id)) for clip in prepared.clips)
    streams = build_streams(config_of(), "happy", replace(prepared, clips=clips), tiny_base, (0.0, 1.0, 1.0))
    for row in (*streams.emotional, *streams.validation_emotional):
        intensity = acted.get(row.clip_id, 1.0)
        assert row.gate == (0.0, intensity, intensity)
    for row in (*streams.rehearsal, *streams.fisher, *streams.validation_general):
        assert row.gate == (0.0, 1.0, 1.0)
    plain = build_streams(config_of(), "happy", prepared, tiny_base)
    assert streams.hash != plain.hash, "a run can't be resumed under other labels"
    assert plain.hash == build_streams(config_of(), "happy", prepared, tiny_base, (0.0, 1.0)).hash
    assert "goes beyond" not in capsys.readouterr().err
    weak = tuple(replace(clip, intensity=0.5 if clip.emotion else None) for clip in prepared.clips)
    build_streams(config_of(), "happy", replace(prepared, clips=weak), tiny_base)
    assert "no clip above intensity 0.5" in capsys.readouterr().err


def test_fisher_takes_rehearsed_clips_where_there_are_no_others(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    streams = build_streams(config_of(fisher_clips=7), "happy", prepared, tiny_base)
    assert len(set(ids(streams.fisher))) == 7
    assert len({*ids(streams.fisher)} & {*ids(streams.rehearsal)}) == 3
    everything = build_streams(config_of(fisher_clips=50, rehearsal_buffer_size=50), "happy", prepared, tiny_base)
    assert sorted(ids(everything.fisher)) == sorted(ids(everything.rehearsal))
    assert len(everything.fisher) == 10


def test_limits_take_every_speaker(tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]) -> None:
    """The first clips of a corpus are often one speaker's."""
    ordered = replace(prepared, clips=tuple(sorted(prepared.clips, key=lambda clip: clip.speaker)))
    streams = build_streams(config_of(fisher_clips=4, validation_clips=2), "happy", ordered, tiny_base)
    by_id = {clip.id: clip for clip in prepared.clips}
    for rows in (streams.fisher, streams.validation_general, streams.validation_emotional):
        assert {by_id[name].speaker for name in ids(rows)} == {"a", "b"}


def test_pitfall_20_a_text_that_is_also_held_out_stops_the_run(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    held = next(clip for clip in prepared.clips if clip.id == "happy-test-0")
    assert held.text is not None
    shared = tuple(
        replace(clip, text=held.text.upper() + "!") if clip.id == "general-train-3" else clip for clip in prepared.clips
    )
    with pytest.raises(DataError, match="rehearsal and Fisher clips and validation and test clips share 1 text"):
        build_streams(config_of(rehearsal_buffer_size=50), "happy", replace(prepared, clips=shared), tiny_base)
    build_streams(config_of(rehearsal_buffer_size=50), "happy", prepared, tiny_base)


def test_pitfall_20_an_id_in_two_splits_stops_the_run(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    twin = replace(prepared.clips[0], id="general-train-3", split="test", text="something else")
    doubled = replace(prepared, clips=(*prepared.clips, twin))
    with pytest.raises(DataError, match="share 1 id: 'general-train-3'"):
        build_streams(config_of(rehearsal_buffer_size=50), "happy", doubled, tiny_base)


@pytest.mark.parametrize(
    ("without", "changes", "message"),
    [
        ([("happy", "train")], {}, "no training clip is labelled 'happy'; the data has general, happy, sad"),
        ([("happy", "validation")], {}, "no validation clip is labelled 'happy'.*add clips with other texts"),
        ([(None, "train")], {}, r"preservation needs general speech.*add general clips \(LJSpeech.*--general self"),
        ([(None, "train")], {"ewc_lambda": 0}, "preservation needs general speech"),
        ([(None, "train")], {"replay_ratio": 0}, "preservation needs general speech"),
    ],
)
def test_data_that_lacks_something_is_told(
    tiny_base: Base, config_of: Callable[..., Config], tmp_path: Any, without: Any, changes: Any, message: str
) -> None:
    counts = {key: count for key, count in COUNTS.items() if key not in without}
    with pytest.raises(DataError, match=message):
        build_streams(config_of(**changes), "happy", make_prepared(tmp_path / "few", counts), tiny_base)


def test_a_label_that_is_written_otherwise_is_among_what_is_told(
    tiny_base: Base, config_of: Callable[..., Config], prepared: Prepared
) -> None:
    """Only the emotion's own clips are prepared, so the others are told from all that the sources hold."""
    general = tuple(clip for clip in prepared.clips if clip.emotion is None)
    found = replace(prepared, clips=general, labels=("hapy", "sad"))
    message = r"labelled 'happy' \(did you mean 'hapy'\?\); the data has general, hapy, sad"
    with pytest.raises(DataError, match=message):
        build_streams(config_of(), "happy", found, tiny_base)


def test_general_speech_is_not_needed_where_nothing_is_preserved(
    tiny_base: Base, config_of: Callable[..., Config], tmp_path: Any
) -> None:
    counts = {key: count for key, count in COUNTS.items() if key[0] is not None}
    config = config_of(ewc_lambda=0, replay_ratio=0)
    streams = build_streams(config, "happy", make_prepared(tmp_path / "few", counts), tiny_base)
    assert (streams.rehearsal, streams.fisher, streams.validation_general) == ([], [], [])
    weights = loss_weights(config, streams, tiny_base)
    assert weights.ewc == 0.0
    assert general_fisher(config, tiny_base, [], streams.fisher) is None
    assert teacher_answers(config, tiny_base, streams, weights) is None


def test_weights_are_the_configurations(tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]) -> None:
    config = config_of(replay_ratio=0.25, distillation_alpha=0.75, temperature=2.0, first_codebook_weight=0.125)
    streams = build_streams(config, "happy", prepared, tiny_base)
    weights = loss_weights(config, streams, tiny_base)
    codes = sum(row.num_frames for row in streams.fisher) * 8 / 4
    assert weights.ewc == pytest.approx(100.0 / codes)
    assert (weights.replay, weights.alpha, weights.temperature, weights.first_codebook) == (0.25, 0.75, 2.0, 0.125)


def test_hash_of_the_rows_tells_streams_and_orders_apart(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    streams = build_streams(config_of(), "happy", prepared, tiny_base)
    hashes = {
        streams.hash,
        replace(streams, emotional=streams.emotional[::-1]).hash,
        replace(streams, rehearsal=streams.fisher, fisher=streams.rehearsal).hash,
        replace(streams, validation_general=streams.validation_general[1:]).hash,
        replace(streams, validation_emotional=streams.validation_emotional[1:]).hash,
    }
    assert len(hashes) == 5
    assert build_streams(config_of(), "happy", prepared, tiny_base).hash == streams.hash


def test_one_fisher_serves_every_emotion(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj", "down_proj"))
    sites = list(bank.sites)
    happy = build_streams(config_of(), "happy", prepared, tiny_base)
    first = general_fisher(config_of(), tiny_base, sites, happy.fisher)
    assert first is not None
    assert set(first.tensors["inputs"]) == set(sites)

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("estimated again")

    monkeypatch.setattr(streams_module, "estimate_fisher", unexpected)
    sad = build_streams(config_of(learning_rate=1.0), "sad", prepared, tiny_base)
    second = general_fisher(config_of(learning_rate=1.0), tiny_base, sites, sad.fisher)
    assert second is not None
    for kind, by_site in first.tensors.items():
        assert all(torch.equal(by_site[site], second.tensors[kind][site]) for site in sites)
    assert len(list((cache_root() / "fisher").glob("[!.]*"))) == 1
    for changed in (
        lambda: general_fisher(config_of(fisher_kind="empirical"), tiny_base, sites, happy.fisher),
        lambda: general_fisher(config_of(), tiny_base, sites[1:], happy.fisher),
        lambda: general_fisher(config_of(), tiny_base, sites, happy.fisher[1:]),
        lambda: general_fisher(config_of(), replace(tiny_base, hash="another"), sites, happy.fisher),
    ):
        with pytest.raises(AssertionError, match="estimated again"):
            changed()


def test_emotions_side_by_side_estimate_one_fisher(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find none at first; one makes it and the other waits for it."""
    made: list[str] = []
    estimate = streams_module.estimate_fisher

    def slowly(*args: Any, **options: Any) -> Any:
        made.append("fisher")
        time.sleep(0.5)
        return estimate(*args, **options)

    monkeypatch.setattr(streams_module, "estimate_fisher", slowly)
    happy = build_streams(config_of(), "happy", prepared, tiny_base)
    sites = list(AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj",)).sites)
    # Clips of no other test's Fisher.
    rows = [replace(row, clip_id=f"side-by-side-{row.clip_id}") for row in happy.fisher]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: general_fisher(config_of(), tiny_base, sites, rows), range(2)))
    assert made == ["fisher"]
    assert None not in found


def test_one_teacher_serves_every_emotion(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    paths = set()
    for emotion in ("happy", "sad"):
        streams = build_streams(config_of(), emotion, prepared, tiny_base)
        answers = teacher_answers(config_of(), tiny_base, streams, loss_weights(config_of(), streams, tiny_base))
        assert answers is not None
        paths.add(answers.path)
        assert answers[streams.rehearsal[0].clip_id].c0_TV.shape[0] == streams.rehearsal[0].num_frames
    assert len(paths) == 1


def test_the_teacher_is_asked_again_where_base_codes_or_template_change(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    """Each change is another cache; what doesn't reach the teacher's rows changes none."""

    def cached(changed: Prepared = prepared, base: Base = tiny_base, **changes: Any) -> Any:
        config = config_of(**{"distill_on": "both"} | changes)
        streams = build_streams(config, "happy", changed, base)
        answers = teacher_answers(config, base, streams, loss_weights(config, streams, base))
        assert answers is not None
        return answers.path

    first = cached()
    other_codes = replace(prepared, keys={**prepared.keys, "happy-train-0": "key-sad-train-0"})
    other_texts = tuple(
        replace(clip, text="something else") if clip.id == "happy-train-0" else clip for clip in prepared.clips
    )
    changed = {
        "base": cached(base=replace(tiny_base, hash="another")),
        "codes": cached(other_codes),
        "text": cached(replace(prepared, clips=other_texts)),
        "template": cached(prompt_template="Feel it: {text}"),
        "share of frames": cached(teacher_frames_share=0.25),
        "stream": cached(distill_on="rehearsal"),
    }
    assert len({first, *changed.values()}) == 1 + len(changed), changed
    assert cached(learning_rate=1.0, seed=0, depth_frames_share=0.25, teacher_frames_share=0.5) == first
    # Rehearsed rows are plain: their teacher never saw the template.
    assert cached(distill_on="rehearsal", prompt_template="Feel it: {text}") == changed["stream"]


def test_the_teachers_frames_have_a_share_of_their_own(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config]
) -> None:
    def kept(**changes: Any) -> dict[str, int]:
        config = config_of(**changes)
        streams = build_streams(config, "happy", prepared, tiny_base)
        answers = teacher_answers(config, tiny_base, streams, loss_weights(config, streams, tiny_base))
        assert answers is not None
        return {row.clip_id: len(answers[row.clip_id].depth_frames) for row in streams.rehearsal}

    lengths = {clip.id: len(prepared.codes(clip)) + 1 for clip in prepared.clips}
    half, quarter = kept(depth_frames_share=0.5), kept(depth_frames_share=1.0, teacher_frames_share=0.25)
    assert half == {name: round(0.5 * lengths[name]) for name in half}
    assert quarter == {name: max(1, round(0.25 * lengths[name])) for name in quarter}
    assert half != quarter


def test_a_manifests_context_is_heard_and_what_is_too_long_is_said_once(
    tiny_base: Base, prepared: Prepared, config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two emotional clips and a general one answer earlier turns; only the last turns' frames are predicted."""
    context = {"happy-train-0": ("general-train-0", "general-train-1"), "happy-train-1": ("general-train-2",)}
    context["general-train-5"] = ("general-train-3",)
    clips = tuple(replace(clip, context=context.get(clip.id, ())) for clip in prepared.clips)
    talking = replace(prepared, clips=clips)
    told: list[str] = []
    monkeypatch.setattr(streams_module, "say", told.append)
    streams = build_streams(config_of(rehearsal_buffer_size=10), "happy", talking, tiny_base)
    alone = build_streams(config_of(rehearsal_buffer_size=10), "happy", prepared, tiny_base)
    assert told == []
    before = {row.clip_id: row for row in [*alone.emotional, *alone.rehearsal]}
    for row in [*streams.emotional, *streams.rehearsal]:
        assert len(row.turns) == 1 + len(context.get(row.clip_id, ()))
        assert row.num_frames == before[row.clip_id].num_frames
        assert row.turns[-1].text_ids == before[row.clip_id].turns[-1].text_ids
    assert streams.hash != alone.hash, "what is heard belongs to the run's key"
    longest = max(row.num_positions for row in [*streams.emotional, *streams.rehearsal])
    monkeypatch.setattr(tiny_base.network, "window", longest - 1)
    build_streams(config_of(rehearsal_buffer_size=10), "happy", talking, tiny_base)
    assert len(told) == 1
    assert told[0].startswith("1 conversation exceeds")


def test_a_curvature_of_gigabytes_is_told_with_what_others_take_and_refused_where_it_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {f"layer {number}": (8192, 2048) for number in range(20)}
    monkeypatch.setattr(streams_module, "free_bytes", lambda _: 6 * 10**9)
    cpu = torch.device("cpu")
    streams_module._check_size(Config(), layers, 120, cpu)
    told = " ".join(capsys.readouterr().err.split())
    # 20 layers of 4 bytes times (8192² + 2048²).
    assert "ewc_curvature: kfac takes 5.7 GB on these layers; in GB: rank1 0.0" in told
    streams_module._check_size(Config(ewc_curvature="rank1"), layers, 120, cpu)
    streams_module._check_size(Config(), {"layer": (192, 192)}, 120, cpu)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(streams_module, "free_bytes", lambda _: 5 * 10**9)
    with pytest.raises(ConfigError, match=r"kfac takes 5\.7 GB .* Only 5\.0 GB are free here: .* such as rank1"):
        streams_module._check_size(Config(), layers, 120, cpu)
    streams_module._check_size(Config(ewc_curvature="rank1"), layers, 120, cpu)

"""`affetto miniature build` in small: every stage runs, is resumed where it stopped, and gives the same again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from affetto.codes.cache import CodeCache
from affetto.judges.choice import load_judge
from affetto.miniature import base, build, corpus, judges
from affetto.model.packed import unpacked
from affetto.speak.voice import Voice


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of a few clips and steps."""
    work = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        build.build(work)
    return work


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "CODEC_CLIPS", {"plain": 18, "acted by judging voices": 6, "acted texts": 1})
    patch.setattr(build, "BASE_CLIPS", 36)
    patch.setattr(build, "BASE_VALIDATION_CLIPS", 6)
    patch.setattr(build, "JUDGING_CLIPS", 12)
    patch.setattr(build, "JUDGING_VALIDATION_CLIPS", 4)
    patch.setattr(build, "RECOGNISER_PLAIN_CLIPS", 8)
    patch.setattr(judges, "RECOGNISER", replace(judges.RECOGNISER, num_epochs=1, hidden_size=32, num_layers=1))
    patch.setattr(judges, "EMOTION", replace(judges.EMOTION, num_epochs=1, hidden_size=32, num_layers=1))
    recipe = base.BaseRecipe(cycles=(2, 1), positions_per_batch=400)
    patch.setattr(base, "BaseRecipe", lambda seed: replace(recipe, seed=seed))


def stages(work: Path) -> dict[str, int]:
    """When each file was written."""
    return {path.relative_to(work).as_posix(): path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}


def test_what_is_built_loads_as_the_product_loads_it(built: Path) -> None:
    voice = Voice.load(str(built / "base" / "model"))
    samples, rate = voice.speak("The cat ran")
    assert rate == 24_000
    assert len(samples) > 0
    assert load_judge("emotion", str(built / "judges" / "emotion")).labels == corpus.EMOTIONS
    assert len(load_judge("words", str(built / "judges" / "words")).transcribe([samples])) == 1


def test_every_clip_is_coded_and_only_those_of_the_recogniser_have_places(built: Path) -> None:
    coded = CodeCache(built / "codes")
    assert all(line.id in coded for line in corpus.general_lines(36, "base", "train"))
    for folder, wanted in (("words", 8 + 12 + 4), ("places", 8 + 12 + 4)):
        found = [key for path in (built / "features" / folder).iterdir() for key in load_file(path)]
        assert len(found) == len(set(found)) == wanted
    acted = {key for path in (built / "features" / "emotion").iterdir() for key in load_file(path)}
    assert acted
    assert all(key.startswith("judging") for key in acted)


def test_the_recogniser_hears_nobody_who_acts(built: Path) -> None:
    speakers = {line.id: int(line.speaker) for line in corpus.general_lines(36, "base", "train")}
    plain = {key for path in (built / "features" / "words").glob("plain-*") for key in load_file(path)}
    assert len(plain) == 8
    assert not {speakers[key] for key in plain} & set(corpus.ACTORS)


def test_a_finished_build_does_nothing_again_and_a_lost_stage_comes_back_the_same(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    before = stages(built)
    build.build(built)
    assert stages(built) == before
    lost = sorted((built / "features" / "words").glob("train-*"))[0]
    values = load_file(lost)
    lost.unlink()
    build.build(built)
    again = load_file(lost)
    assert all((again[key] == values[key]).all() for key in values)
    changed = {name for name, time in stages(built).items() if time != before[name]}
    assert {name.split("/")[0] for name in changed} == {"features"}


def test_installing_replaces_what_was_there(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ASSETS", tmp_path)
    stale = tmp_path / "judges" / "words" / "of-an-older-judge.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    build.install_assets(built)
    assert not stale.exists()
    names = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("model.*safetensors")}
    assert names == {"base", "judges/words", "judges/emotion"}
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    assert load_judge("words", str(unpacked(tmp_path / "judges" / "words"))).transcribe([]) == []
    before = load_file(built / "base" / "model" / "model.safetensors")
    after = load_file(unpacked(tmp_path / "base") / "model.safetensors")
    assert before.keys() == after.keys()

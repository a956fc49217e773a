from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from affetto.metrics import resampling, statistics
from affetto.metrics.statistics import Estimate

NUM_WORLDS = 1000


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    successes, n = counts
    theirs = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert statistics.wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_pitfall_27_a_ratio_is_sums_over_sums_and_not_a_mean_of_ratios() -> None:
    edits, words = [2, 0, 1], [2, 10, 8]
    estimate = statistics.bootstrap_ratio(edits, words, ["a", "b", "c"])
    assert estimate.value == 3 / 20
    assert estimate.value != pytest.approx(np.mean([1, 0, 1 / 8]))


def test_the_interval_is_that_of_a_plain_loop_over_resamples() -> None:
    rng = np.random.default_rng(5)
    clusters = [f"p{index % 15}" for index in range(40)]
    edits, words = rng.poisson(2, 40), rng.integers(5, 12, 40)
    estimate = statistics.bootstrap_ratio(edits, words, clusters, num_resamples=20_000)
    draw = np.random.default_rng(6)
    names = sorted(set(clusters))
    rows = {name: [index for index, cluster in enumerate(clusters) if cluster == name] for name in names}
    resampled = []
    for _ in range(20_000):
        picked = [index for name in draw.choice(names, len(names)) for index in rows[str(name)]]
        resampled.append(edits[picked].sum() / words[picked].sum())
    tail = stats.norm.cdf(stats.t.ppf(0.025, 14) * math.sqrt(15 / 14))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    assert estimate.low == pytest.approx(low, abs=0.01)
    assert estimate.high == pytest.approx(high, abs=0.01)
    assert high - low > 0.05, "the fixture must have a width to get wrong"


def test_for_many_independent_rows_the_interval_is_students() -> None:
    values = np.random.default_rng(7).normal(3, 2, 800)
    estimate = statistics.bootstrap_mean(values)
    theirs = stats.t.interval(0.95, 799, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx(theirs, abs=0.01)


def _world(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """40 prompts, 3 files each, whose errors go together; edits, words, prompts. The true rate is 0.2."""
    prompts = [f"p{index // 3}" for index in range(120)]
    words = np.repeat(rng.integers(5, 15, 40), 3).astype(float)
    hardness = np.repeat(rng.gamma(4, 0.25, 40), 3)
    return rng.poisson(0.2 * words * hardness).astype(float), words, prompts


def _coverage(truth: float, intervals: list[Estimate]) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals if i.low is not None and i.high is not None]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(8)
    ratios, means, differences = [], [], []
    for _ in range(NUM_WORLDS):
        edits, words, prompts = _world(rng)
        ratios.append(statistics.bootstrap_ratio(edits, words, prompts, num_resamples=2000))
        offsets = np.repeat(rng.normal(0, 1, 40), 3) + rng.normal(1, 1, 120)
        means.append(statistics.bootstrap_mean(offsets, prompts, num_resamples=2000))
        worse = edits + rng.poisson(0.05 * words)
        pair = statistics.paired_difference((worse, words), (edits, words), prompts, num_resamples=2000)
        differences.append(pair)
    assert 0.93 <= _coverage(0.2, ratios) <= 0.97
    assert 0.93 <= _coverage(1.0, means) <= 0.97
    assert 0.93 <= _coverage(0.05, differences) <= 0.97


def test_files_of_one_prompt_are_not_independent() -> None:
    rng = np.random.default_rng(9)
    worlds = [_world(rng) for _ in range(300)]
    ignored = [statistics.bootstrap_ratio(edits, words, num_resamples=2000) for edits, words, _ in worlds]
    assert _coverage(0.2, ignored) < 0.92, "intervals that ignore the prompts cover too little"


def test_pitfall_28_two_runs_and_any_order_give_the_same_bits() -> None:
    rng = np.random.default_rng(10)
    edits, words, prompts = _world(rng)
    rates = np.tile([1e16, 1.0, -1e16], 40) + rng.normal(size=120)  # sums of these depend on their order
    order = rng.permutation(len(prompts))
    shuffled = [prompts[index] for index in order]
    for columns in ((edits, words), (rates, np.ones(120))):
        first = statistics.bootstrap_ratio(*columns, prompts)
        assert statistics.bootstrap_ratio(*columns, prompts) == first
        assert statistics.bootstrap_ratio(columns[0][order], columns[1][order], shuffled) == first
        assert statistics.bootstrap_ratio(columns[0], columns[1], None) == statistics.bootstrap_ratio(
            columns[0][order], columns[1][order], None
        )


def _votes(rng: np.random.Generator, size: tuple[int, int], spreads: tuple[float, float, float]) -> list[list[float]]:
    """Made-up votes (raters, items): raters, items and the rest spread so much around a true mean of 3."""
    raters, items, rest = spreads
    of_raters, of_items = rng.normal(0, raters, (size[0], 1)), rng.normal(0, items, size[1])
    return (3 + of_raters + of_items + rng.normal(0, rest, size)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("size", "spreads", "most"),
    [((12, 12), (0.6, 0.5, 0.3), 0.97), ((20, 8), (0.1, 0.6, 0.3), 0.97), ((5, 8), (0.4, 0.4, 0.8), 1.0)],
    ids=["effects of both", "fewer items than raters", "mostly the rest: conservative"],
)
def test_intervals_over_raters_and_items_cover_the_truth_as_often_as_they_say(
    size: tuple[int, int], spreads: tuple[float, float, float], most: float
) -> None:
    """Between 93 and 97 % where raters and items matter; more where they don't, which is the bootstrap's nature."""
    rng = np.random.default_rng(16)
    raters = [str(rater) for rater in range(size[0]) for _ in range(size[1])]
    items = [str(item) for _ in range(size[0]) for item in range(size[1])]
    ours, naive = [], []
    for world in range(NUM_WORLDS):
        values = np.ravel(_votes(rng, size, spreads))
        ours.append(statistics.pigeonhole_mean(values, raters, items, num_resamples=1000, seed=world))
        naive.append(statistics.bootstrap_mean(values, num_resamples=200))
    assert 0.93 <= _coverage(3.0, ours) <= most
    assert _coverage(3.0, naive) < 0.9, "votes are not independent"


def test_the_pigeonhole_bootstrap_is_its_definition() -> None:
    """Raters and items drawn by name, every vote as often as both were drawn; votes are missing here and there."""
    rng = np.random.default_rng(17)
    rows = [(f"r{r}", f"i{i}", float(rng.normal(r, 2))) for r in range(6) for i in range(9) if rng.random() < 0.7]
    raters, items, values = ([row[place] for row in rows] for place in range(3))
    estimate = statistics.pigeonhole_mean(values, raters, items)
    assert estimate.value == pytest.approx(np.mean(values))
    table = {(rater, item): value for rater, item, value in rows}
    means = []
    for _ in range(10_000):
        drawn_raters, drawn_items = rng.integers(6, size=6), rng.integers(9, size=9)
        picked = [table[f"r{r}", f"i{i}"] for r in drawn_raters for i in drawn_items if (f"r{r}", f"i{i}") in table]
        if picked:
            means.append(np.mean(picked))
    tail = stats.norm.cdf(stats.t.ppf(0.025, 5) * math.sqrt(6 / 5))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [tail, 1 - tail])), abs=0.2)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.low > 3, "the fixture must have a width to get wrong"
    order = rng.permutation(len(rows))
    shuffled = ([column[place] for place in order] for column in (values, raters, items))
    assert statistics.pigeonhole_mean(*shuffled) == estimate


def test_one_rater_or_one_item_gives_no_interval_but_a_reason() -> None:
    reason = "one rater or one item gives no interval"
    assert statistics.pigeonhole_mean([1, 2], ["a", "a"], ["x", "y"]) == Estimate(1.5, None, None, 2, reason)
    assert statistics.pigeonhole_mean([1, 2], ["a", "b"], ["x", "x"]) == Estimate(1.5, None, None, 2, reason)
    assert statistics.pigeonhole_mean([], [], []).value is None


def test_votes_that_all_agree_do_not_prove_certainty() -> None:
    raters, items = ["a", "a", "a", "b", "b", "b"], ["x", "y", "z"] * 2
    equal = statistics.pigeonhole_mean([4.0] * 6, raters, items)
    assert equal == Estimate(4.0, None, None, 6, "votes that are all equal give no interval")
    for heard in (0.0, 1.0):
        share = statistics.pigeonhole_mean([heard] * 6, raters, items, is_share=True)
        theirs = stats.binomtest(2 * int(heard), 2).proportion_ci(0.95, method="wilson")
        assert (share.value, share.n) == (heard, 6)
        assert (share.low, share.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_pairing_takes_out_what_the_prompts_share() -> None:
    rng = np.random.default_rng(11)
    base = rng.normal(0, 10, 60)
    system = base + rng.normal(0.5, 0.1, 60)
    prompts, ones = [str(index) for index in range(60)], np.ones(60)
    difference = statistics.paired_difference((system, ones), (base, ones), prompts)
    expected = stats.t.interval(0.95, 59, loc=(system - base).mean(), scale=stats.sem(system - base))
    assert (difference.low, difference.high) == pytest.approx(expected, abs=0.005)
    assert difference.p_value is not None
    assert difference.p_value < 0.001
    unpaired = statistics.bootstrap_mean(system)
    assert unpaired.high is not None
    assert unpaired.low is not None
    assert unpaired.high - unpaired.low > 10 * 0.05


def test_the_p_value_of_no_difference_is_uniform_enough() -> None:
    rng = np.random.default_rng(12)
    ones = np.ones(50)
    prompts = [str(index) for index in range(50)]
    p_values = []
    for _ in range(400):
        system, base = rng.normal(0, 1, (2, 50))
        p_values.append(statistics.paired_difference((system, ones), (base, ones), prompts, num_resamples=2000).p_value)
    assert stats.kstest(np.array(p_values, dtype=float), "uniform").pvalue > 0.01


def test_no_errors_in_a_few_prompts_do_not_prove_perfection() -> None:
    estimate = statistics.bootstrap_ratio([0] * 20, [8] * 20, is_count=True)
    bound = stats.binomtest(0, 20).proportion_ci(0.95, method="wilson").high
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high == pytest.approx(bound / 8)
    tied = ([1, 0] * 10, [8] * 20)
    difference = statistics.paired_difference(tied, tied, [str(index) for index in range(20)], is_count=True)
    assert difference.high == pytest.approx(bound / 8)
    assert difference.low == pytest.approx(-bound / 8)
    assert statistics.non_inferiority(difference, 0.01, "higher") == ("undecided", None)


def test_few_prompts_or_none_give_no_interval_but_a_reason() -> None:
    assert statistics.bootstrap_ratio([1, 2], [4, 4], ["p", "p"]) == Estimate(
        3 / 8, None, None, 2, "1 prompt is too few for an interval (at least 6)"
    )
    many = [str(index % 5) for index in range(40)]
    values = np.arange(40.0)
    assert statistics.bootstrap_mean(values, many).reason == "5 prompts are too few for an interval (at least 6)"
    few = statistics.paired_difference((values, np.ones(40)), (values**2, np.ones(40)), many)
    assert (few.low, few.high, few.p_value) == (None, None, None)
    assert statistics.non_inferiority(few, 1e9, "higher") == (None, few.reason), "nor is there a verdict"
    assert statistics.bootstrap_mean(values[:6]).low is not None
    assert statistics.bootstrap_mean([]).value is None
    assert statistics.bootstrap_mean([]).reason
    assert statistics.share([]).reason


@pytest.mark.parametrize("num_prompts", [6, 8, 12])
def test_intervals_and_p_values_of_a_few_prompts_are_as_sure_as_they_say(num_prompts: int) -> None:
    """Many files of few prompts: what is the same in all of a prompt's files tells no more than one would."""
    rng = np.random.default_rng(18)
    prompts, ones = [str(index) for index in range(num_prompts) for _ in range(4)], np.ones(4 * num_prompts)
    found = []
    for world in range(NUM_WORLDS):
        base = rng.normal(0, 1, 4 * num_prompts)
        system = base + np.repeat(rng.normal(0, 1, num_prompts), 4)
        found.append(
            statistics.paired_difference((system, ones), (base, ones), prompts, num_resamples=1000, seed=world)
        )
    assert 0.92 <= _coverage(0.0, list(found)) <= 0.97
    p_values = np.asarray([one.p_value for one in found], dtype=float)
    assert np.mean(p_values <= 0.05) == pytest.approx(1 - _coverage(0.0, list(found)), abs=0.02)
    assert np.mean(p_values <= 0.01) < 0.03


def test_a_p_value_is_where_the_interval_touches_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(19)
    base = rng.normal(0, 1, 30)
    pair = ((base + rng.normal(0.4, 1, 30), np.ones(30)), (base, np.ones(30)))
    prompts = [str(index) for index in range(30)]
    p_value = statistics.paired_difference(*pair, prompts).p_value
    assert p_value is not None
    assert 0.001 < p_value < 0.5
    monkeypatch.setattr(statistics, "CONFIDENCE", 1 - p_value)
    touching = statistics.paired_difference(*pair, prompts)
    assert touching.low == pytest.approx(0.0, abs=0.01)
    fewer = [column[:19] for side in pair for column in side]
    assert statistics.paired_difference(tuple(fewer[:2]), tuple(fewer[2:]), prompts[:19]).p_value is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_prompts", "num_files"), [(24, 2), (12, 4)])
def test_shares_of_files_that_say_the_same_prompts_cover_the_truth(num_prompts: int, num_files: int) -> None:
    rng = np.random.default_rng(20)
    prompts = [str(index) for index in range(num_prompts) for _ in range(num_files)]
    ours, ignored = [], []
    for _ in range(NUM_WORLDS):
        of_prompts = np.repeat(rng.random(num_prompts) < 0.7, num_files)
        of_files = rng.random(num_prompts * num_files) < 0.7
        events = [bool(one) for one in np.where(rng.random(num_prompts * num_files) < 0.7, of_prompts, of_files)]
        ours.append(statistics.share(events, prompts))
        ignored.append(statistics.share(events))
    assert 0.93 <= _coverage(0.7, ours) <= 0.975
    assert _coverage(0.7, ignored) < 0.92, "files of one prompt are not independent"


def test_the_size_of_a_share_is_that_of_the_linearised_variance_narrowed_by_students_t() -> None:
    """Kish's design effect by the ratio's own residuals, prompts of unlike many files; Korn and Graubard's factor."""
    rng = np.random.default_rng(24)
    sizes_C = rng.integers(1, 6, 9)
    prompts = np.repeat(np.arange(9), sizes_C)
    events = rng.random(len(prompts)) < rng.random(9)[prompts]
    share, n = events.mean(), len(events)
    residuals_C = [float((events[prompts == one] - share).sum()) / n for one in range(9)]
    told = (
        share * (1 - share) / (9 * np.var(residuals_C, ddof=1)) * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 8)) ** 2
    )
    assert told < n, "the case is one where prompts matter"
    found = statistics.share(events.tolist(), prompts.astype(str).tolist())
    assert (found.low, found.high) == pytest.approx(statistics.wilson_interval(share * told, told))


def test_shares_with_one_file_a_prompt_are_wilsons_and_those_all_alike_count_prompts() -> None:
    events = [True] * 17 + [False] * 6
    assert statistics.share(events, [str(index) for index in range(23)]) == statistics.share(events)
    alike = statistics.share([False] * 24, [str(index % 2) for index in range(24)])
    assert (alike.low, alike.high) == (0.0, statistics.wilson_interval(0, 2)[1])
    sure = statistics.share([True] * 24, [str(index % 8) for index in range(24)])
    assert (sure.low, sure.high) == (statistics.wilson_interval(8, 8)[0], 1.0)


def test_no_event_in_a_few_prompts_of_many_files_proves_little() -> None:
    """An event may be the prompt's, and then in every file that says it."""
    prompts = [str(index % 6) for index in range(24)]
    ones, none = [1.0] * 24, [0] * 24
    equal = statistics.paired_difference((none, ones), (none, ones), prompts, is_count=True)
    assert equal.high == pytest.approx(statistics.wilson_interval(0, 6)[1])
    errors = statistics.bootstrap_ratio(none, [8] * 24, prompts, is_count=True)
    assert errors.high == pytest.approx(statistics.wilson_interval(0, 6)[1] / 8)


@pytest.mark.parametrize("num_prompts", [1, 5])
def test_no_event_in_fewer_prompts_gives_no_interval_either(num_prompts: int) -> None:
    prompts = [str(index % num_prompts) for index in range(20)]
    ones, none = [1.0] * 20, [0] * 20
    errors = statistics.bootstrap_ratio(none, [8] * 20, prompts, is_count=True)
    equal = statistics.paired_difference((none, ones), (none, ones), prompts, is_count=True)
    for found in (errors, equal):
        assert (found.value, found.low, found.high) == (0.0, None, None)
        assert "too few for an interval (at least 6)" in str(found.reason)
    assert equal.p_value is None
    assert statistics.non_inferiority(equal, 0.02, "higher") == (None, equal.reason)


def test_a_difference_within_strata_is_welchs() -> None:
    rng = np.random.default_rng(21)
    ours, theirs = rng.normal(1, 2, 25), rng.normal(0, 1, 14)
    found = statistics.stratified_difference({"ann": ours}, {"ann": theirs, "bob": [3.0]})
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high, found.p_value) == pytest.approx((interval.low, interval.high, test.pvalue))
    assert found.n == 25
    assert statistics.stratified_difference({"ann": ours}, {"bob": theirs}).value is None
    assert statistics.stratified_difference({"ann": ours}, {"ann": [1.0]}).low is None


def test_differences_within_two_strata_cover_the_truth_of_these_two() -> None:
    rng = np.random.default_rng(22)
    found = [
        statistics.stratified_difference(
            {"ann": rng.normal(6, 1, 30), "bob": rng.normal(-2, 3, 10)},
            {"ann": rng.normal(5, 2, 12), "bob": rng.normal(-4, 1, 8)},
        )
        for _ in range(NUM_WORLDS)
    ]
    assert 0.93 <= _coverage(1 * 30 / 40 + 2 * 10 / 40, list(found)) <= 0.97


def test_means_over_pairs_are_as_sure_as_they_say() -> None:
    """Files are points, a pair's value their product: the mean over all pairs, and its interval by pseudo-values."""
    rng = np.random.default_rng(23)
    names = [str(index) for index in range(24)]
    ours, plain = [], []
    for world in range(NUM_WORLDS):
        points = rng.normal(1, 0.3, 24)
        values = points * (points.sum() - points) / 23
        pseudo = resampling.jackknifed(values.tolist(), ["ann"] * 24, names)
        assert np.mean(pseudo) == pytest.approx(values.mean())
        ours.append(statistics.bootstrap_mean(pseudo, names, num_resamples=500, seed=world))
        plain.append(statistics.bootstrap_mean(values, names, num_resamples=500, seed=world))
    assert 0.92 <= _coverage(1.0, ours) <= 0.97
    assert _coverage(1.0, plain) < 0.8
    leaving_out = [
        24 * values.mean() - 23 * np.mean([points[i] * points[j] for i in rest for j in rest if i != j])
        for rest in ([i for i in range(24) if i != out] for out in range(24))
    ]
    assert pseudo == pytest.approx(leaving_out), "the jackknife's definition"
    twice = resampling.jackknifed([*values, *values], ["ann"] * 48, [*names, *names])
    assert twice == pytest.approx([*pseudo, *pseudo]), "files that say one text are one member"


@pytest.mark.parametrize(
    ("low", "high", "worse", "verdict"),
    [
        (-0.02, 0.009, "higher", "preserved"),
        (-0.02, 0.011, "higher", "undecided"),
        (0.009, 0.03, "higher", "undecided"),
        (0.011, 0.03, "higher", "worse"),
        (-0.5, -0.4, "higher", "preserved"),
        (-0.009, 0.02, "lower", "preserved"),
        (-0.011, 0.02, "lower", "undecided"),
        (-0.03, -0.011, "lower", "worse"),
        (0.4, 0.5, "lower", "preserved"),
    ],
)
def test_verdicts_hold_the_whole_interval_against_the_margin(
    low: float, high: float, worse: statistics.Worse, verdict: str
) -> None:
    estimate = Estimate((low + high) / 2, low, high, 20)
    assert statistics.non_inferiority(estimate, 0.01, worse) == (verdict, None)


def test_there_is_no_verdict_under_twenty_pairs() -> None:
    verdict, reason = statistics.non_inferiority(Estimate(0.0, 0.0, 0.0, 19), 0.01, "higher")
    assert verdict is None
    assert reason is not None
    assert "19" in reason


def test_a_harmless_change_is_called_worse_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(13)
    prompts, ones = [str(index) for index in range(60)], np.ones(60)
    verdicts = []
    for _ in range(500):
        base = rng.normal(0, 1, 60)
        pair = ((base + 0.1 + rng.normal(0, 0.3, 60), ones), (base, ones))
        difference = statistics.paired_difference(*pair, prompts, num_resamples=2000)
        verdicts.append(statistics.non_inferiority(difference, 0.1, "higher")[0])
    assert verdicts.count("worse") / 500 < 0.045, "at the margin itself, 2.5 % may be called worse"
    assert verdicts.count("preserved") / 500 < 0.045, "and 2.5 % preserved"
    assert verdicts.count("undecided") / 500 > 0.9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    for p, ours in zip(p_values, adjusted, strict=True):
        ranked = sorted(p_values)
        steps = [(len(ranked) - rank) * ranked[rank] for rank in range(len(ranked)) if ranked[rank] <= p]
        assert ours == pytest.approx(min(1.0, max(steps)))


def test_holm_on_a_textbook_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_wilsons_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(14)
    truths = rng.uniform(0.1, 0.9, NUM_WORLDS)
    shares = [statistics.share(list(rng.random(40) < truth)) for truth in truths]
    covered = [s.low <= truth <= s.high for s, truth in zip(shares, truths, strict=True)]  # type: ignore[operator]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_are_about_scipys_own_bootstraps() -> None:
    rng = np.random.default_rng(15)
    values = rng.gamma(2.0, 1.0, 60)
    ours = statistics.bootstrap_mean(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    widening = float(stats.t.ppf(0.975, 59) / stats.norm.ppf(0.975)) * math.sqrt(60 / 59)
    assert ours.low is not None
    assert ours.high is not None
    assert (ours.high - ours.low) / (theirs.high - theirs.low) == pytest.approx(widening, rel=0.03)


def test_statsmodels_agrees_where_it_is_installed() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion", reason="statsmodels is no dependency")
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is no dependency")
    for successes, n in ((0, 7), (3, 20), (19, 20), (150, 500)):
        theirs = proportion.proportion_confint(successes, n, method="wilson")
        assert statistics.wilson_interval(successes, n) == pytest.approx(theirs, abs=1e-12)
    p_values = [0.01, 0.04, 0.03, 0.005, 0.2, 0.9]
    assert statistics.holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def test_resamples_in_blocks_are_those_of_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    top_C, bottom_C = rng.normal(size=37), rng.uniform(1, 2, size=37)
    whole_RC = np.random.default_rng(11).integers(37, size=(1001, 37))
    for most in (1, 1000, 10**9):
        monkeypatch.setattr(resampling, "MOST_AT_ONCE", most)
        for sums, column in zip(resampling.resampled_sums((top_C, bottom_C), 1001, 11), (top_C, bottom_C), strict=True):
            np.testing.assert_allclose(sums, column[whole_RC].sum(axis=1), rtol=1e-12)
        counts_RC = np.concatenate([resampling.counts(drawn, 37) for drawn in resampling.draws(37, 1001, 11, 250)])
        np.testing.assert_allclose(counts_RC @ top_C, top_C[whole_RC].sum(axis=1), rtol=1e-9)


def test_memory_of_intervals_grows_neither_with_clusters_nor_with_how_many_there_are() -> None:
    import tracemalloc

    random = np.random.default_rng(0)
    statistics.bootstrap_mean(random.normal(size=10))
    tracemalloc.start()
    for size in (3998, 3999, 4000):
        statistics.bootstrap_mean(random.normal(size=size), num_resamples=2000)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1e6
    assert peak < 20e6, "all counts together take 64 MB, twice"

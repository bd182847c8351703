"""Published orderings: their files, their configs, the judgement of claims, and a tiny ordering."""

import json

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from benchmarks.orderings.__main__ import main, run_ordering
from benchmarks.orderings.data_sets import draw_images
from benchmarks.orderings.judging import (
    Judgement,
    Predictions,
    combine_outcomes,
    judge,
    mark_untested,
)
from benchmarks.orderings.plan import make_arm_configs, make_block_rates, make_source_config
from benchmarks.orderings.protocol import (
    Adaptation,
    Claim,
    Ordering,
    Setup,
    list_orderings,
    load_ordering,
)
from benchmarks.orderings.running import train_ordering
from finetune_core.config import make_config
from finetune_core.errors import ConfigError, DataError
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.models.catalogue import PACKAGED
from finetune_core.runs.design import arm_key
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore, summarize_run
from finetune_core.training.strategies.stage_plan import list_stages, plan_strategy
from tests.factories import TINY_BACKBONE, tiny_weights

CLASSES, IMAGES = 3, 400
BETTER = Claim(better="a", than="b", on="test")
WITHIN = Claim(better="a", than="b", on="test", margin=0.05)


SETUPS = [
    pytest.param(ordering, setup, id=f"{ordering.name}-{setup.data}")
    for ordering in map(load_ordering, list_orderings())
    for setup in (ordering.online, ordering.offline)
    if not setup.why_not
]


@pytest.mark.parametrize(("ordering", "setup"), SETUPS)
def test_every_file_makes_configs_whose_strategies_and_settings_exist(ordering, setup, tmp_path):
    stages = list_stages(make_config({"data": "x", "backbone": setup.backbone}))
    source = tmp_path / "run" if ordering.adaptation else None
    configs = make_arm_configs(
        ordering, setup, tmp_path, [stage.name for stage in stages], 3, source
    )
    assert set(configs) == {name for name, arm in ordering.arms.items() if not arm.of}
    for name, by_seed in configs.items():
        assert len(by_seed) == 3
        for config in (config for members in by_seed for config in members):
            assert len(plan_strategy(config, stages)) == len(stages)
            assert (config.from_run is not None) == bool(ordering.adaptation)
        if ordering.arms[name].runs == 1:
            assert len({arm_key(config) for [config] in by_seed}) == 1
        else:
            seeds = [config.seed for members in by_seed for config in members]
            assert len(set(seeds)) == len(seeds)
            assert all(len({config.head_seed for config in members}) == 1 for members in by_seed)
    if ordering.adaptation:
        assert make_source_config(ordering, setup, tmp_path).strategy == "full"


def test_every_ordering_says_where_it_can_be_tried_and_why_not_elsewhere():
    tested = {
        name: (not load_ordering(name).online.why_not, not load_ordering(name).offline.why_not)
        for name in list_orderings()
    }
    assert tested.pop("frankle_2021_norms") == (False, False)
    assert all(online for online, _ in tested.values())
    assert {name for name, (_, offline) in tested.items() if not offline} == {
        "lee_2023_feature",
        "mai_2025_many",
    }


def test_blocks_are_the_first_stages_the_middle_one_and_the_last_with_the_head():
    stages = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert list(make_block_rates(stages, "first")) == ["stem", "layer1", "head"]
    assert list(make_block_rates(stages, "middle")) == ["layer2", "head"]
    assert list(make_block_rates(stages, "last")) == ["layer4", "head"]


TINY = {"epochs": 1, "image_size": 32, "precision": "fp32", "learning_rate": 1e-3}


ARMS = {
    "probe": {"strategy": "linear_probe"},
    "full": {"strategy": "full"},
    "wise": {"of": "full", "how": "wise"},
}
IMAGES_ONE = {"train": 1, "val": 1, "test": 1}


def ordering(**changes):
    given = {
        "name": "tiny",
        "authors": "Nobody",
        "year": 2026,
        "title": "None",
        "claim": "None.",
        "seeds": 2,
        "shift": {"corruptions": ["noise", "blur"], "severity": 3},
        "arms": ARMS,
        "claims": [
            {"better": "full", "than": "probe", "on": "test"},
            {"better": "wise", "than": "full", "on": "shifted"},
        ],
        "online": {"why_not": "There is no connection."},
        "offline": {
            "data": "digits",
            "backbone": TINY_BACKBONE,
            "images": {"train": 32, "val": 20, "test": 30},
            "settings": TINY | {"weights": str(tiny_weights())},
        },
    }
    return Ordering.model_validate(given | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": [{"better": "full", "than": "nobody", "on": "test"}]},
        {"arms": ARMS | {"probe": {"strategy": "no_such"}}},
        {"shift": None},
        {"shift": {"corruptions": ["snow"], "severity": 1}},
        {"adaptation": {"kind": "mirrored", "source_settings": {"no_such": 1}}},
        {"seeds": 1},
        {"online": {"data": "digits"}},
        {"online": {"data": "imagenet", "backbone": PACKAGED, "images": IMAGES_ONE}},
        {"arms": ARMS | {"full": {"strategy": "full", "settings": {"no_such": 1}}}},
        {
            "arms": ARMS
            | {"full": {"strategy": "full", "runs": 2}, "wise": {"of": "full", "how": "soup"}}
        },
    ],
)
def test_what_is_no_ordering_is_refused(changes):
    assert ordering().claims
    with pytest.raises(ValidationError):
        ordering(**changes)


def test_an_ordering_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="kumar_2022"):
        load_ordering("no_such")


def predictions(seeds, **rights):
    """Return arms that are right on the first images. Each seed is wrong on another image."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, IMAGES)
    logits = {}
    for arm, right in rights.items():
        given = np.tile(labels, (seeds, 1))
        given[:, right:] = (labels[right:] + 1) % CLASSES
        for seed in range(seeds):
            given[seed, seed] = (labels[seed] + 1) % CLASSES
        logits[arm] = 3.0 * np.eye(CLASSES)[given]
    return {"test": Predictions(labels, logits, frozenset(rights))}


@pytest.mark.parametrize(
    ("claim", "rights", "outcome"),
    [
        (BETTER, {"a": 360, "b": 300}, "reproduced"),
        (BETTER, {"a": 300, "b": 360}, "opposite"),
        (BETTER, {"b": 360, "a": 300}, "opposite"),  # the order of the arms does not matter
        (BETTER, {"a": 301, "b": 300}, "not distinguishable"),
        (WITHIN, {"a": 300, "b": 301}, "reproduced"),
        (WITHIN, {"a": 280, "b": 300}, "not distinguishable"),
        (WITHIN, {"a": 200, "b": 300}, "opposite"),
    ],
)
def test_a_claim_holds_is_reversed_or_cannot_be_told(claim, rights, outcome):
    [judged], standings = judge([claim], predictions(3, **rights))
    assert judged.outcome == outcome
    assert judged.difference.value == pytest.approx((rights["a"] - rights["b"]) / IMAGES)
    assert judged.difference.low < judged.difference.value < judged.difference.high
    assert {one.arm: one.score.value for one in standings} == {
        arm: pytest.approx((right - 1) / IMAGES) for arm, right in rights.items()
    }


def test_claims_without_other_seeds_or_shifted_predictions_are_not_tested():
    [judged], _ = judge([BETTER], predictions(1, a=390, b=200))
    assert (judged.outcome, judged.difference) == ("could not be tested", None)
    assert "seeds" in judged.why
    [judged], _ = judge([Claim(better="a", than="b", on="shifted")], predictions(3, a=390, b=200))
    assert judged.outcome == "could not be tested"


def test_a_claim_on_two_arms_is_corrected_for_all_pairs():
    [alone], _ = judge([BETTER], predictions(3, a=307, b=300))
    [among], _ = judge([BETTER], predictions(3, a=307, b=300, c=302, d=304))
    assert alone.p < among.p


@pytest.mark.parametrize(
    ("outcomes", "together"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "opposite"], "opposite"),
        (["reproduced", "not distinguishable"], "not distinguishable"),
        (["could not be tested"], "could not be tested"),
        ([], "could not be tested"),
    ],
)
def test_an_ordering_is_reproduced_where_all_of_it_is(outcomes, together):
    assert (
        combine_outcomes([Judgement(BETTER, outcome, Interval(0, 0, 0)) for outcome in outcomes])
        == together
    )


IDS = pd.DataFrame(
    {
        "id": [f"{number:03d}" for number in range(100)],
        "class": [f"c{number % 5}" for number in range(100)],
    }
)


def setup(**images):
    return Setup(
        data="digits", backbone=PACKAGED, images={"train": 30, "val": 10, "test": 20} | images
    )


def test_no_image_is_drawn_twice_and_mirrored_labels_are_those_of_the_target_only():
    parts = draw_images(IDS, setup(source_train=30, source_val=10), Adaptation(kind="mirrored"))
    assert {key: len(rows) for key, rows in parts.items()} == {
        ("source", "train"): 30,
        ("source", "val"): 10,
        ("data", "train"): 30,
        ("data", "val"): 10,
        ("data", "test"): 20,
    }
    assert len(set(pd.concat(parts.values())["id"])) == 100
    own = dict(zip(IDS["id"], IDS["class"], strict=True))
    for (part, _), rows in parts.items():
        numbers = [int(own[name][1]) for name in rows["id"]]
        wanted = [f"c{4 - number if part == 'data' else number}" for number in numbers]
        assert list(rows["class"]) == wanted


def test_groups_are_classes_whose_members_change():
    groups = {
        "even": {"source": ["C0"], "target": ["c2", "c4"]},
        "odd": {"source": ["c1"], "target": ["c3"]},
    }
    parts = draw_images(
        IDS, setup(source_train=20, source_val=10), Adaptation(kind="groups", groups=groups)
    )
    own = dict(zip(IDS["id"], IDS["class"], strict=True))
    seen = {"source": set(), "data": set()}
    for (part, _), rows in parts.items():
        seen[part] |= {(own[name], group) for name, group in rows[["id", "class"]].values}
    assert seen["source"] == {("c0", "even"), ("c1", "odd")}
    assert seen["data"] == {("c2", "even"), ("c4", "even"), ("c3", "odd")}


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="there are 100"):
        draw_images(IDS, setup(train=90), None)


def test_what_cannot_be_tried_says_why(capsys, tmp_path):
    main(["frankle_2021_norms", "mai_2025_many"], "offline", None, tmp_path, as_json=True)
    norms, many = json.loads(capsys.readouterr().out)["orderings"]
    assert norms["outcome"] == many["outcome"] == "could not be tested"
    assert norms["why"] == load_ordering("frankle_2021_norms").offline.why_not
    assert {claim["why"] for claim in many["claims"]} == {
        load_ordering("mai_2025_many").offline.why_not
    }
    assert len(many["claims"]) == 4
    assert not list(tmp_path.iterdir())


def test_a_public_set_that_cannot_be_fetched_is_a_result(monkeypatch, tmp_path):
    def refused(*_):
        raise DataError("There is no connection.")
        yield

    monkeypatch.setattr("benchmarks.orderings.running.fetch_public", refused)
    result = run_ordering(load_ordering("kumar_2022"), "online", 2, tmp_path)
    assert result.judged == mark_untested(
        load_ordering("kumar_2022").claims, "There is no connection."
    )


@pytest.mark.train
def test_a_tiny_ordering_from_end_to_end(tmp_path):
    tiny = ordering()
    result = run_ordering(tiny, "offline", 2, tmp_path)
    store = RunStore(tmp_path / "runs")
    runs = store.list_runs()
    assert len(runs) == 6
    assert result.why == ""
    accuracies = {}
    for run in runs:
        key = "wise" if run.config.averaged else run.config.strategy
        accuracies.setdefault(key, []).append(summarize_run(run)["test_accuracy"])
    first = result.judged[0]
    assert first.difference.value == pytest.approx(
        np.mean(accuracies["full"]) - np.mean(accuracies["linear_probe"])
    )
    shifted = {one.arm: one.score.value for one in result.standings if one.on == "shifted"}
    assert result.judged[1].difference.value == pytest.approx(shifted["wise"] - shifted["full"])
    again = run_ordering(tiny, "offline", 2, tmp_path)
    assert again.to_json() == result.to_json()
    assert len(store.list_runs()) == 6
    json.dumps(result.to_json())
    assert "| full > probe | test images |" in result.to_text()


@pytest.mark.train
def test_all_arms_go_on_from_one_run_and_one_that_was_stopped_is_gone_on_with(tmp_path):
    blocks = ordering(
        shift=None,
        adaptation={
            "kind": "corrupted",
            "corrupted": {"corruptions": ["noise"], "severity": 2},
            "source_settings": {"weights": str(tiny_weights())},
        },
        arms={"first": {"block": "first"}, "last": {"block": "last"}},
        claims=[{"better": "first", "than": "last", "on": "test"}],
        offline={
            "data": "digits",
            "backbone": TINY_BACKBONE,
            "images": {"train": 32, "val": 20, "test": 30, "source_train": 32, "source_val": 20},
            "settings": TINY,
        },
    )
    found = train_ordering(blocks, blocks.offline, 1, tmp_path)
    source = next(
        run for run in RunStore(tmp_path / "runs").list_runs() if run.config.strategy == "full"
    )
    for [run] in found.arms.values():
        assert run.config.from_run == str(source.run_dir)
        assert summarize_run(run)["head_kept"]
    stopped = create_run(
        found.arms["first"][0].config.model_copy(update={"seed": 1}), tmp_path / "runs"
    )
    request_stop(stopped.run_dir)
    assert [type(event).__name__ for event in execute(stopped)] == ["RunStopped"]
    more = train_ordering(blocks, blocks.offline, 2, tmp_path)
    assert more.arms["first"][1].run_dir == stopped.run_dir
    assert more.arms["first"][0].run_dir == found.arms["first"][0].run_dir

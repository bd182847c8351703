import html
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.layer_diagnostics import (
    Layers,
    StageChange,
    linear_cka,
    load_layers,
    measure_layers,
    representative_run,
)
from finetune_core.evaluation.comparison.thaw_next import RULE, advise_next_stage
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import load_run_images
from finetune_core.figures.layer_diagnostics import MEASURES
from finetune_core.inspection.features import iterate_inputs
from finetune_core.inspection.learned import Probe
from finetune_core.inspection.suggestion import suggest_cut
from finetune_core.models.network import build_network
from finetune_core.reports.build import build_report, plot_layer_diagnostics
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.factories import copy_run, shared_images, tiny_config, train, trained_run

STRATEGIES = ("feature_extraction", "last_block")


@pytest.fixture(scope="module")
def trained(home_of_shared_fixtures, tmp_path_factory):
    """Return runs by strategy, with measured layers, and the steps of the measurement."""
    runs_dir = tmp_path_factory.mktemp("runs")
    data = shared_images(red=40, green=40, blue=40)
    originals = {name: trained_run(tiny_config(data, strategy=name)) for name in STRATEGIES}
    runs = {name: read_run(copy_run(run.run_dir, runs_dir)) for name, run in originals.items()}
    assert not any(load_layers(run) for run in runs.values())
    return runs, list(measure_layers(list(runs.values())))


@pytest.fixture(scope="module")
def layers(trained):
    return {strategy: load_layers(run) for strategy, run in trained[0].items()}


@pytest.mark.train
def test_progress_is_reported_and_the_beginning_that_runs_share_is_measured_once(trained, layers):
    phases = [step.phase for step in trained[1]]
    assert set(phases) <= {"index", "decode", "features", "probe"}
    assert all(0 <= step.done <= step.total for step in trained[1])
    images = 84 + 18  # of the split, as the features of the beginning
    whole = [step.done for step in trained[1] if step.phase == "features" and step.total == images]
    assert whole == sorted(set(whole)), "once, though two runs were measured"
    assert layers["last_block"].judged == 18
    assert layers["last_block"].probes == layers["feature_extraction"].probes


def test_frozen_stages_have_not_moved_at_all(layers):
    for result in layers.values():
        frozen = [stage for stage in result.stages if not stage.trains]
        assert frozen
        for stage in frozen:
            assert stage.change == 0
            assert stage.likeness == pytest.approx(1, abs=1e-6)
            assert stage.gradient_share is None
            assert stage.pull > 0, "it would move if it could"


def initial_weights(run):
    """Return the initial weights of a run of the tiny network."""
    network = build_network(run.config.backbone, run.config.weights, 3, run.config.seed)
    return network.model.state_dict()


def test_changes_are_those_of_the_checkpoint(trained, layers):
    run = trained[0]["last_block"]
    tuned, start = load_predictor(run).network, initial_weights(run)
    moved = layers["last_block"].stages
    assert [stage.name for stage in moved] == [stage.name for stage in tuned.stages]
    for result, stage in zip(moved, tuned.stages, strict=True):
        now, then = (
            torch.cat([weights[name].detach().ravel() for name in stage.parameters])
            for weights in (tuned.model.state_dict(), start)
        )
        assert result.change == pytest.approx(float((now - then).norm() / then.norm()), rel=1e-4)
    last, head = moved[-2:]
    assert last.trains
    assert 0 < last.change < 1
    assert -0.2 < last.likeness < 0.9999
    assert head.likeness is None


def test_gradient_shares_are_those_that_the_run_recorded(trained, layers):
    squares = [
        {name: one["gradient_norm"] ** 2 for name, one in row["stages"].items()}
        for row in trained[0]["last_block"].history.epochs
    ]
    moved = layers["last_block"].stages
    shares = {one.name: one.gradient_share for one in moved if one.gradient_share is not None}
    assert sum(shares.values()) == pytest.approx(1)
    assert len(shares) == 2
    for name, share in shares.items():
        assert share == pytest.approx(np.mean([row[name] / sum(row.values()) for row in squares]))
    frozen = layers["feature_extraction"].stages
    assert [stage.gradient_share for stage in frozen if stage.trains] == [1.0]


def test_the_pull_is_the_gradient_of_the_mean_loss_relative_to_the_weights(trained, layers):
    run, result = trained[0]["last_block"], layers["last_block"]
    predictor = load_predictor(run)
    images = finish(load_run_images(run, {"train": 500}))
    rows = images.rows["train"]
    assert result.pulled == len(rows)
    batches = iterate_inputs(predictor.network, images.pixels, rows, 32, predictor.device)
    model = predictor.network.model.eval().requires_grad_(True)
    labels = torch.tensor(images.dataset.table["label"].to_numpy()[rows])
    logits = model(torch.cat([batch for _, batch in batches]))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    fitted = float((logits.argmax(1) == labels).float().mean())
    assert result.fitted == pytest.approx(fitted)
    for moved, stage in zip(result.stages, predictor.network.stages, strict=True):
        own = [model.get_parameter(name) for name in stage.parameters]
        gradient = torch.cat([one.grad.ravel() for one in own]).norm()
        weights = torch.cat([one.detach().ravel() for one in own]).norm()
        assert moved.pull == pytest.approx(float(gradient / weights), rel=1e-2), stage.name


@pytest.mark.train
def test_probes_that_end_after_different_stages_do_not_share_a_beginning(trained, tmp_path):
    data = trained[0]["last_block"].config.data
    stages = ("layer2", "layer3")
    probe = {"strategy": "linear_probe"}
    runs = [train(tiny_config(data, **probe, features_from=stage), tmp_path) for stage in stages]
    list(measure_layers(runs))
    assert [load_layers(run).stages[-2].name for run in runs] == [*stages]


def test_what_is_kept_belongs_to_the_weights(trained):
    run = trained[0]["feature_extraction"]
    file = run.run_dir / "layers.json"
    kept = file.read_text()
    assert load_layers(run)
    file.write_text(json.dumps(json.loads(kept) | {"predictions": 1}))
    assert load_layers(run) is None
    file.write_text("[]")
    assert load_layers(run) is None
    file.write_text(kept)
    assert load_layers(run)


def test_the_run_of_an_arm_that_was_measured_stands_for_it(trained):
    run = trained[0]["feature_extraction"]
    new = replace(run, run_dir=run.run_dir.with_name("not-measured"))
    assert representative_run([new, run]) is run
    assert representative_run([new]) is new


@pytest.mark.train
def test_the_report_holds_what_moved_or_says_that_it_was_not_measured(trained):
    compared = compare_runs(list(trained[0].values()))
    page = build_report(compared)
    section = page[page.index("<h2>Layer diagnostics</h2>") : page.index("<h2>Runs</h2>")]
    assert "Which stage to thaw next" in section
    assert html.escape(RULE) in section
    headings = [heading for heading, _ in plot_layer_diagnostics(compared)]
    assert len(headings) == 5
    assert all(f"<h3>{html.escape(heading)}</h3>" in section for heading in headings)
    assert section.count("Plotly.newPlot(") == len(headings)
    for run in trained[0].values():
        (run.run_dir / "layers.json").rename(run.run_dir / "kept")
    try:
        assert "Not measured when this report was made" in build_report(compared)
    finally:
        for run in trained[0].values():
            (run.run_dir / "kept").rename(run.run_dir / "layers.json")


def test_images_that_are_gone_are_named_as_the_reason(trained, tmp_path):
    run = trained[0]["feature_extraction"]
    moved = replace(run, config=run.config.model_copy(update={"data": str(tmp_path / "nowhere")}))
    with pytest.raises(FinetuneError, match="nowhere"):
        list(measure_layers([moved]))


def draw_features(count, width, seed):
    return np.random.default_rng(seed).normal(size=(count, width))


def test_likeness_is_blind_to_rotation_scale_and_offset_only():
    one = draw_features(40, 12, 0)
    turned = 3 * one @ ortho_group.rvs(12, random_state=1) + 5
    assert linear_cka(one, one) == pytest.approx(1)
    assert linear_cka(one, turned) == pytest.approx(1)
    stretched = one * np.linspace(0.1, 5, 12)
    assert linear_cka(one, stretched) < 0.95
    assert np.isnan(linear_cka(one, np.ones((40, 3))))


def test_unrelated_features_are_unlike_although_images_are_fewer():
    """The usual, biased estimate says 0.9 here."""
    result = [
        linear_cka(draw_features(50, 800, seed), draw_features(50, 800, 100 + seed))
        for seed in range(20)
    ]
    assert abs(np.mean(result)) < 0.03


def test_likeness_is_built_on_the_unbiased_hsic_of_its_definition():
    """Song et al. 2012, equation 4: a mean over all quadruples of different images."""

    def hsic(k, n):
        terms = [
            k[0][i, j] * (k[1][i, j] + k[1][q, r] - 2 * k[1][i, q])
            for i, j, q, r in permutations(range(n), 4)
        ]
        return np.mean(terms)

    one, other = draw_features(7, 3, 0), draw_features(7, 2, 1) + draw_features(7, 3, 0)[:, :2]
    grams = one @ one.T, other @ other.T
    cross, first, second = hsic(grams, 7), hsic((grams[0],) * 2, 7), hsic((grams[1],) * 2, 7)
    assert linear_cka(one, other) == pytest.approx(cross / np.sqrt(first * second))


NAMES = ("stem", "block1", "block2", "block3", "block4", "block5", "block6", "block7")


def make_layers(first_trained, accuracies, fitted=0.9, likeness=1.0, error=0.01):
    moves = (
        StageChange(name, at >= first_trained, 0.1, likeness, None, 0.01 * (1 + at))
        for at, name in enumerate((*NAMES, "head"))
    )
    probes = (Probe(name, one, error) for name, one in zip(NAMES, accuracies, strict=False))
    return Layers(tuple(moves), tuple(probes), 100, 100, fitted)


PEAK_AT_BLOCK5 = (0.6, 0.7, 0.8, 0.85, 0.93, 0.96, 0.94, 0.88)
RISING = (0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96)
# block5 within the standard error of 2.2 points
BLOCK6_JUST_BEST = (0.5, 0.6, 0.7, 0.75, 0.78, 0.807, 0.82, 0.77)


def find_stages(sentence):
    return {name for name in NAMES if name in sentence}


def test_a_run_is_advised_to_train_from_the_stage_that_the_probes_suggest():
    advice = advise_next_stage(make_layers(8, PEAK_AT_BLOCK5))
    assert (advice.stage, advice.what) == ("block6", "train from block6 on")
    assert find_stages(advice.reason) == {"block5", "block6"}
    assert all(number in advice.reason for number in ("88.0 %", "96.0 %", "± 1.0 points"))
    assert advise_next_stage(make_layers(7, PEAK_AT_BLOCK5)).stage == "block6"
    trains = advise_next_stage(make_layers(6, PEAK_AT_BLOCK5))
    assert (trains.stage, trains.what) == (None, "nothing advised")
    assert "This run trains block6." in trains.reason


@pytest.mark.parametrize("accuracies", [PEAK_AT_BLOCK5, RISING, BLOCK6_JUST_BEST])
def test_a_linear_probe_is_advised_what_the_dataset_page_suggests(accuracies):
    """The Dataset page once said "last block" where the same numbers advised nothing here."""
    layers = make_layers(8, accuracies, error=0.022)
    suggestion = suggest_cut(layers.probes, [stage.name for stage in layers.stages])
    advice = advise_next_stage(layers)
    assert (advice.stage, advice.reason) == (suggestion.cut, suggestion.reason)


def test_nothing_is_advised_within_one_standard_error_which_is_the_rule_that_is_printed():
    assert advise_next_stage(make_layers(8, (*PEAK_AT_BLOCK5[:7], 0.951))).stage is None
    assert advise_next_stage(make_layers(8, (*PEAK_AT_BLOCK5[:7], 0.949))).stage == "block6"
    assert "one standard error" in " ".join(RULE.split())


def test_features_that_get_better_to_the_last_frozen_stage_give_no_reason_to_thaw_it():
    for first_trained in (8, 7, 4):
        assert advise_next_stage(make_layers(first_trained, RISING)).stage is None


def test_the_gradient_of_frozen_stages_plays_no_part_and_its_chart_says_so():
    pulled = make_layers(8, RISING)
    stages = tuple(replace(stage, pull=stage.pull * 100) for stage in pulled.stages)
    assert advise_next_stage(replace(pulled, stages=stages)) == advise_next_stage(pulled)
    help_text = next(measure.help for measure in MEASURES if measure.field == "pull")
    assert "plays no part" in help_text


def advise(first_trained, **shares):
    """Return the advice if the stages had ``shares`` of the gradient while they trained."""
    layers = make_layers(first_trained, PEAK_AT_BLOCK5)
    stages = (replace(one, gradient_share=shares.get(one.name)) for one in layers.stages)
    return advise_next_stage(replace(layers, stages=tuple(stages)))


def test_where_the_stage_behind_hardly_trained_no_earlier_one_is_advised():
    """Unlike the pull of a frozen stage, this share was measured during training."""
    assert advise(7, block7=0.011, head=0.989).stage == "block6"
    advice = advise(7, block7=0.004, head=0.996)
    assert (advice.stage, advice.what) == (None, "nothing advised")
    assert "block7, the first stage that trains, got 0.4 % of the gradient only" in advice.reason
    assert "less than 1 % of the gradient" in RULE
    # the head alone always gets all of it, which says nothing
    assert advise(8, head=0.001).stage == "block6"


def test_little_is_expected_where_everything_is_classified_correctly():
    assert "expect little" in advise_next_stage(make_layers(8, PEAK_AT_BLOCK5, fitted=1.0)).reason
    assert "expect little" not in advise_next_stage(make_layers(8, PEAK_AT_BLOCK5)).reason


def test_without_probes_nothing_is_advised():
    advice = advise_next_stage(make_layers(5, ()))
    assert (advice.stage, advice.what) == (None, "nothing advised")
    assert "No linear model could be evaluated" in advice.reason


def test_where_all_trains_the_steady_stages_are_named():
    advice = advise_next_stage(make_layers(0, RISING, likeness=0.99))
    assert (advice.stage, advice.what) == (None, "nothing left to thaw")
    assert "stem to block7" in advice.reason
    assert "CKA" not in advise_next_stage(make_layers(0, RISING, likeness=0.5)).reason

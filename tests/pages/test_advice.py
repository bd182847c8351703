"""Configure → Compare backbones: the options, the ranking, and the queue that follows."""

import numpy as np
import pytest
import torch

from finetune_core.errors import DataError
from finetune_core.evaluation.advice import probes
from finetune_core.inspection.features import Features
from finetune_core.runs.worker import Worker
from finetune_core.training.devices.speed_book import Speed
from finetune_core.work import Step
from pages.shared.configure import advice as page
from tests.factories import shared_images
from tests.pages.harness import open_page, page_text

LITES = ("efficientnet_lite0", "efficientnet_lite1")
STAGES = ("stem", "block1")
SPEED = Speed(
    trunk=0.01, step=0.02, forward=0.01, activation_bytes=1000, step_bytes=1000, exact=0.0
)


@pytest.fixture
def folder(monkeypatch):
    images = shared_images(red=30, blue=30)
    monkeypatch.setenv("THAW_DATA_ROOTS", str(images.parent))
    return images


@pytest.fixture
def configure(folder, data_id_of):
    """Open the page with the box open, and other state of the session: ``configure(…)``."""

    return lambda **state: open_page(
        "configure", data=data_id_of(folder), state={"advice_open": True} | state
    )


@pytest.fixture
def probed_networks(monkeypatch):
    """Return (network, image size) of each network whose features were computed.

    The features are made up. Those of ``block1`` tell the classes apart, but for a few images more
    with each network.
    """
    asked = []

    def features(sample, backbone, image_size, fit):
        asked.append((backbone, image_size))
        yield Step(0, 1, "features")
        random, labels = np.random.default_rng(0), sample.table["label"].to_numpy()
        mixed_up = random.permutation(len(labels))[: 2 * len(asked)]
        shown = np.where(np.isin(np.arange(len(labels)), mixed_up), 1 - labels, labels)
        noise = random.normal(0, 1, (len(labels), 1)).astype(np.float32)
        clear = (20 * shown[:, None] + noise).astype(np.float32)
        return Features(np.arange(len(labels)), STAGES, (noise, clear))

    def timed(configs, dataset, book):
        yield Step(0, 1)
        for config in configs:
            book.learn(config, SPEED)
            book.learn_decoding(dataset.fingerprint, config.image_size, 0.001)

    monkeypatch.setattr(probes, "compute_features", features)
    monkeypatch.setattr(probes, "calibrate", timed)
    return asked


@pytest.fixture
def submitted_configs(monkeypatch):
    """Return the configs that were queued; nothing trains."""
    found = []

    def submit(_worker, config, *_, **__):
        found.append(config)
        return f"run-{len(found)}"

    monkeypatch.setattr(Worker, "submit", submit)
    return found


def table(at, column):
    return next(one.value for one in at.dataframe if column in one.value.columns)


@pytest.mark.train
def test_the_ranking_is_shown_with_intervals_forecasts_and_what_it_cannot_say(
    configure, probed_networks, wait_until_finished, data_id_of
):
    at = configure(advice_networks=list(LITES))
    at = wait_until_finished(at.button(key="advice_ask").click().run())
    assert [name for name, _ in probed_networks] == list(LITES)
    ranking = table(at, "Against the best")
    assert list(ranking["Network"]) == list(LITES)
    assert list(ranking["Stage"]) == ["block1", "block1"]
    assert list(ranking["Against the best"]) == ["best", "not distinguishable"]
    assert ranking["95 % interval"].str.contains(" to ").all()
    assert list(table(at, "Last block")["Network"]) == list(LITES)
    assert not table(at, "Last block").eq("not timed").any(axis=None)
    assert len(table(at, "Training what follows")) == 4
    assert at.get("plotly_chart")
    shown = page_text(at)
    assert "validation and test images are not used" in shown
    assert "cannot predict how much fine-tuning will add" in shown
    assert "The best probe" in shown
    assert "None of these networks has a published ImageNet accuracy" in shown

    # The answer stays while settings change, and goes with its data.
    at.session_state["form_epochs"] = 7
    at.run()
    assert len(table(at, "Against the best")) == 2
    at.session_state["data_id"] = data_id_of(shared_images(red=12, blue=12))
    at.run()
    assert not [one for one in at.dataframe if "Against the best" in one.value.columns]
    assert "advice_queue" not in {one.key for one in at.button}


@pytest.mark.train
def test_all_that_are_ready_are_probed_at_the_chosen_size_where_none_is_named(
    configure, wait_until_finished, monkeypatch
):
    asked = []

    def note(_dataset, config, networks, *_, own_sizes):
        asked.append((config.image_size, networks, own_sizes))
        raise DataError("There are too few *training* images.")
        yield

    monkeypatch.setattr(page, "list_ready_backbones", lambda: list(LITES))
    monkeypatch.setattr(page, "advise", note)
    at = configure(form_image_size=64)
    assert at.button(key="advice_ask").label == "Probe 2 networks"
    wait_until_finished(at.button(key="advice_ask").click().run())
    assert [one.value.replace("\\", "") for one in at.error] == [
        "There are too few *training* images."
    ]
    assert "advice_queue" not in {one.key for one in at.button}
    at.session_state["advice_size"] = "form"
    wait_until_finished(at.run().button(key="advice_ask").click().run())
    assert asked == [(64, list(LITES), True), (64, list(LITES), False)]


@pytest.mark.train
def test_a_network_that_fails_is_named_beside_the_ranking_of_the_others(
    configure, probed_networks, wait_until_finished, monkeypatch, tmp_path
):
    def refused(*_, **__):
        raise OSError("there is <no> route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", refused)
    at = configure(advice_networks=["resnet18", LITES[0]])
    assert "The weights of resnet18 are downloaded first" in page_text(at)
    at = wait_until_finished(at.button(key="advice_ask").click().run())
    (said,) = (one.value for one in at.warning if "resnet18" in one.value)
    assert said.startswith("**resnet18** was left out: ")
    assert "there is \\<no\\> route" in said
    assert list(table(at, "Against the best")["Network"]) == [LITES[0]]
    assert at.button(key="advice_queue").label == "Queue it with its linear probe"


@pytest.mark.train
def test_both_proposals_are_queued_with_their_linear_probes_as_one_comparison(
    configure, probed_networks, submitted_configs, wait_until_finished
):
    at = configure(
        advice_networks=list(LITES),
        advice_size="form",
        compare_seeds=2,
        form_epochs=3,
        form_strategy="full",
    )
    at = wait_until_finished(at.button(key="advice_ask").click().run())
    assert "6 runs: last block with 2 seeds" in page_text(at)
    at.button(key="advice_queue").click().run()
    assert {(one.backbone, one.strategy, one.seed, one.epochs) for one in submitted_configs} == {
        (name, strategy, seed, 3)
        for name in LITES
        for strategy, seed in (("last_block", 0), ("last_block", 1), ("linear_probe", 0))
    }
    assert at.query_params["runs"] == [f"run-{number}" for number in range(1, 7)]


def test_it_asks_for_data_first():
    at = open_page("configure", state={"advice_open": True})
    assert "Choose data, and settings that can be used, first." in page_text(at)

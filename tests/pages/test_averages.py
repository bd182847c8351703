"""Averaged weights on the pages: the box on Compare that makes them, why it refuses, and what the run's own pages show."""

import shutil

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from finetune_core.training.parents import averaged_config
from tests.deadline import wait_until
from tests.pages.harness import open_page, unescaped

QUICK = {"image_size": 32, "epochs": 1, "batch_size": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """(data, runs folder, names): two seeds that began with the same head, and one that did not; WiSE-FT and a greedy soup of the two."""
    base = tmp_path_factory.mktemp("averaged")
    data = image_folder_once(base / "images", {"red": 20, "blue": 20, "green": 20})
    folders = []
    for seed, head in ((0, 5), (1, 5), (2, 6)):
        reservation = create_run(
            make_config(QUICK | {"data": str(data), "seed": seed, "head_seed": head}), base / "runs"
        )
        list(execute(reservation))
        folders.append(reservation.run_dir)
    for how, some in (("wise", folders[:1]), ("greedy_soup", folders[:2])):
        reservation = create_run(averaged_config(how, some), base / "runs")
        list(execute(reservation))
        folders.append(reservation.run_dir)
    return data, base / "runs", [folder.name for folder in folders]


@pytest.fixture
def runs(trained, monkeypatch):
    """The runs in the app's own folder, in the order in which they were made: their names tell seconds only."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained[0].parent))
    shutil.copytree(trained[1], paths.runs_dir())
    store = RunStore(paths.runs_dir())
    return [store.run(name) for name in trained[2]]


def compared(runs):
    at = open_page("compare", runs=[run.run_id for run in runs])
    assert at.button_group(key="average_how").value == "greedy_soup"
    return at


def test_one_click_makes_a_soup_of_an_arms_seeds(runs):
    at = compared(runs[:2])
    assert at.selectbox(key="average_of_greedy_soup").options == ["Last block (2 runs)"]
    at.button_group(key="average_how").set_value("soup").run()
    at.button(key="average").click().run()
    assert not at.exception
    store = RunStore(paths.runs_dir())
    [made] = [run for run in store.runs() if run.run_id not in {run.run_id for run in runs}]
    assert made.config.averaged.how == "soup"
    assert set(made.config.averaged.runs) == {str(run.run_dir) for run in runs[:2]}
    assert at.query_params["runs"] == [*(run.run_id for run in runs[:2]), made.run_id]
    wait_until(lambda: not store.run(made.run_id).active)
    assert store.run(made.run_id).status == "finished"
    at.run()
    assert not at.exception
    assert "Soup of 2 runs: Last block" in unescaped(at)
    assert at.selectbox(key="average_of_soup").options == ["Last block (2 runs)"]


def test_one_click_makes_an_ensemble_of_runs_that_began_differently(runs):
    at = compared(runs[:3])
    at.button_group(key="average_how").set_value("ensemble").run()
    at.selectbox(key="average_of_ensemble").set_value("All of these runs").run()
    at.button(key="average").click().run()
    assert not at.exception
    store = RunStore(paths.runs_dir())
    [made] = [run for run in store.runs() if run.config.is_ensemble]
    wait_until(lambda: not store.run(made.run_id).active)
    assert store.run(made.run_id).status == "finished"
    at.run()
    assert not at.exception
    assert (
        "Left out, because each of its networks has stages of its own: Ensemble of 3 runs"
        in unescaped(at)
    )
    text = unescaped(open_page("train", run=made.run_id))
    assert "The mean of the probabilities of 3 networks" in text
    assert "Its networks answer together." in text
    for page in ("evaluate", "predict", "runs"):
        open_page(page, run=made.run_id)


def test_the_reason_is_shown_where_runs_cannot_be_averaged(runs):
    at = compared(runs[:3])
    at.selectbox(key="average_of_greedy_soup").set_value("All of these runs").run()
    at.button(key="average").click().run()
    assert not at.exception
    [said] = [one.value.replace("\\", "") for one in at.error]
    assert (
        f"{runs[2].run_id}: its head began with other weights than that of {runs[0].run_id} (seed 6, not 5)"
        in said
    )
    assert len(RunStore(paths.runs_dir()).runs()) == len(runs)


def test_a_single_run_is_for_wise_alone(runs):
    at = compared(runs[:1])
    assert "A soup takes two runs or more." in unescaped(at)
    at.button_group(key="average_how").set_value("wise").run()
    assert at.selectbox(key="average_of_wise").options == ["Last block"]
    assert at.button(key="average").label == "Average its weights"


def test_the_run_shows_what_it_was_made_of(runs):
    by_how = {run.config.averaged.how: run for run in runs if run.config.averaged}
    text = unescaped(open_page("train", run=by_how["greedy_soup"].run_id))
    assert "The mean of the weights of 2 runs" in text
    assert all(run.run_id in text for run in runs[:2])
    assert "Its weights are averaged." in text
    assert "no epochs to follow" in text
    at = open_page("train", run=by_how["wise"].run_id)
    assert "WiSE-FT" in unescaped(at)
    assert len(at.get("plotly_chart")) == 1
    assert "mixing coefficients" in unescaped(at)


@pytest.mark.parametrize("page", ["evaluate", "predict", "runs", "compare"])
def test_other_pages_show_it_like_any_run(runs, page):
    soup = next(
        run for run in runs if run.config.averaged and run.config.averaged.how == "greedy_soup"
    )
    at = (
        open_page(page, runs=[soup.run_id])
        if page == "compare"
        else open_page(page, run=soup.run_id)
    )
    if page == "runs":
        assert "Greedy soup of 2 runs: Last block" in set(at.dataframe[0].value["Strategy"])


def test_its_settings_can_be_used_again_to_train(runs):
    soup = next(run for run in runs if run.config.averaged)
    at = open_page("train", run=soup.run_id)
    next(one for one in at.button if one.label == "Use these settings again").click().run()
    assert not at.exception
    assert at.session_state["form_head_seed"] == 5

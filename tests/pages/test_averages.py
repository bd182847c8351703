"""Averaged weights: the box on Compare that averages runs, and the pages of such a run."""

import pytest

from finetune_core import paths
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints.parents import make_averaged_config
from tests.deadline import wait_until
from tests.factories import shared_images, train, trained_run
from tests.pages.harness import open_page, place_run, press, unescaped_text


@pytest.fixture
def runs(monkeypatch):
    """Copy two seeds that began with the same head, and one that did not."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(shared_images()))
    return [
        place_run(trained_run(epochs=1, seed=seed, head_seed=head), f"seed-{seed}")
        for seed, head in ((0, 5), (1, 5), (2, 6))
    ]


def average(how, runs):
    return train(make_averaged_config(how, [run.run_dir for run in runs]), paths.runs_dir())


def compared(runs):
    at = open_page("compare", runs=[run.run_id for run in runs], averages="true", layers="true")
    assert at.button_group(key="average_how").value == "greedy_soup"
    return at


def wait_for_new():
    """Return the averaged run once it has finished."""
    store = RunStore(paths.runs_dir())
    [made] = [run for run in store.list_runs() if run.config.averaged]
    wait_until(lambda: not store.get_run(made.run_id).is_active)
    assert store.get_run(made.run_id).status == "finished"
    return made


@pytest.mark.train
def test_one_click_makes_a_soup_of_an_arms_seeds(runs):
    at = compared(runs[:2])
    [option] = at.selectbox(key="average_of_greedy_soup").options
    assert option.endswith(" (2 runs)")
    at.button_group(key="average_how").set_value("soup").run()
    at.button(key="average").click().run()
    made = wait_for_new()
    assert made.config.averaged.how == "soup"
    assert set(made.config.averaged.runs) == {str(run.run_dir) for run in runs[:2]}
    assert at.query_params["runs"] == [*(run.run_id for run in runs[:2]), made.run_id]
    at.run()
    titles = list(at.dataframe[0].value["Strategy"])
    assert f"Soup of 2 runs: {option.removesuffix(' (2 runs)')}" in titles
    assert at.selectbox(key="average_of_soup").options == [option]


@pytest.mark.train
def test_one_click_makes_an_ensemble_of_runs_that_began_differently(runs):
    at = compared(runs)
    at.button_group(key="average_how").set_value("ensemble").run()
    at.selectbox(key="average_of_ensemble").set_value("All of these runs").run()
    at.button(key="average").click().run()
    made = wait_for_new()
    assert made.config.is_ensemble
    at.run()
    assert (
        "Left out, because each of its networks has stages of its own: Ensemble of 3 runs"
        in unescaped_text(at)
    )
    text = unescaped_text(open_page("train", run=made.run_id))
    assert "The mean of the probabilities of 3 networks" in text
    assert "Its networks answer together." in text
    for page in ("evaluate", "predict", "runs"):
        open_page(page, run=made.run_id)


@pytest.mark.train
def test_the_reason_is_shown_where_runs_cannot_be_averaged(runs):
    at = compared(runs)
    at.selectbox(key="average_of_greedy_soup").set_value("All of these runs").run()
    at.button(key="average").click().run()
    [said] = [one.value.replace("\\", "") for one in at.error]
    first, third = runs[0].run_id, runs[2].run_id
    reason = f"{third}: its head began with other weights than that of {first} (seed 6, not 5)"
    assert reason in said
    assert len(RunStore(paths.runs_dir()).list_runs()) == len(runs)


def test_wise_takes_one_of_the_runs(runs):
    at = compared(runs[:2])
    at.button_group(key="average_how").set_value("wise").run()
    assert len(at.selectbox(key="average_of_wise").options) == 2
    assert at.button(key="average").label == "Average its weights"


@pytest.mark.train
def test_a_soup_shows_what_it_was_made_of_on_all_pages(runs):
    soup = average("greedy_soup", runs[:2])
    at = open_page("train", run=soup.run_id, state={"details_box": True})
    assert "The mean of the weights of 2 runs" in unescaped_text(at)
    assert all(run.run_id in unescaped_text(at) for run in runs[:2])
    assert "Its weights are averaged." in unescaped_text(at)
    assert "no epochs to follow" in unescaped_text(at)
    open_page("evaluate", run=soup.run_id)
    open_page("predict", run=soup.run_id)
    open_page("compare", runs=[soup.run_id])
    strategies = open_page("runs").dataframe[0].value["Strategy"]
    assert any(title.startswith("Greedy soup of 2 runs: ") for title in strategies)
    press(at, "Use these settings again")
    assert at.session_state["form_head_seed"] == 5


@pytest.mark.train
def test_wise_shows_its_mixing_coefficients(runs):
    at = open_page("train", run=average("wise", runs[:1]).run_id)
    assert "WiSE-FT" in unescaped_text(at)
    assert len(at.get("plotly_chart")) == 1
    assert "mixing coefficients" in unescaped_text(at)

"""Choices of a user persist: data and settings in the address, the split with the data."""

import json
from types import SimpleNamespace

import pytest

from finetune_core import paths
from finetune_core.data.entry import entry_folder, load_split
from finetune_core.runs.store import RunStore
from finetune_core.saved_settings import save_settings
from finetune_core.work import Step
from tests.factories import image_folder
from tests.pages.harness import (
    ANN,
    BEN,
    address,
    button,
    button_labels,
    open_page,
    press,
    read_facts,
    unescaped_text,
)

NASTY = "[x](a) <b>"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    return image_folder(tmp_path / "images", {"red": 12, "blue": 12})


@pytest.fixture
def other(tmp_path):
    return image_folder(tmp_path / NASTY, {"red": 12, "blue": 12, "green": 12})


def name_folder(at, folder, now=""):
    """Type a folder into the box of data sources, which is closed once a data set is chosen.

    Args:
        now: the data set that is chosen.
    """
    at.session_state[f"source-{now}"] = True
    at.run()
    at.text_input(key="data_folder").set_value(str(folder)).run()


def reload_session(name, at):
    """Open a new session at the same address."""
    return open_page(name, **address(at))


def start_training(at):
    """Start training and return the run, which waits for its turn."""
    press(at, "Start training")
    (run,) = RunStore(paths.runs_dir()).list_runs()
    return run


@pytest.mark.train
def test_a_reload_keeps_the_data_and_the_settings_and_trains_on_them(
    folder, data_id_of, device_is_taken
):
    at = open_page("dataset")
    at.text_input(key="data_folder").set_value(str(folder)).run()
    assert address(at) == {"data": data_id_of(folder)}
    at.switch_page("pages/configure.py").run()
    at.number_input(key="form_epochs").set_value(1)
    at.text_input(key="form_learning_rate").set_value("0.000123456789")
    at.session_state["form_strategy"] = "custom"
    at.run()
    at.selectbox(key="custom_cut").set_value("block3").run()
    again = reload_session("configure", at)
    assert f"Training on {folder}" in unescaped_text(again).replace("*", "")
    assert again.number_input(key="form_epochs").value == 1
    assert again.selectbox(key="custom_cut").value == "block3"
    assert address(again) == address(at)
    config = start_training(again).config
    assert (config.data, config.epochs, config.cut) == (str(folder), 1, "block3")
    assert config.learning_rate == 0.000123456789


@pytest.mark.train
def test_stage_rates_and_a_file_of_weights_survive_a_reload(folder, data_id_of):
    at = open_page(
        "configure",
        data=data_id_of(folder),
        form={"strategy": "custom"},
        state={"custom_how": "A rate for each stage"},
    )
    at.number_input(key="custom_rate_block5").set_value(0.3)
    at.selectbox(key="weights_from").set_value("A file").run()
    at.text_input(key="weights_file").set_value("/nowhere/w.pth").run()
    again = reload_session("configure", at)
    assert again.number_input(key="custom_rate_block5").value == 0.3
    assert again.number_input(key="custom_rate_head").value == 1.0
    assert again.text_input(key="weights_file").value == "/nowhere/w.pth"


@pytest.mark.train
def test_what_cannot_be_used_is_not_kept_but_all_else_is(folder, data_id_of):
    at = open_page("configure", data=data_id_of(folder))
    assert set(address(at)) == {"data"}, "settings that nobody has touched need no place there"
    at.number_input(key="form_epochs").set_value(-4)
    at.number_input(key="form_batch_size").set_value(7)
    at.run()
    assert set(address(at)) == {"data", "settings"}
    again = reload_session("configure", at)
    assert again.number_input(key="form_epochs").value is None
    assert again.number_input(key="form_batch_size").value == 7
    again.number_input(key="form_batch_size").set_value(32).run()
    assert set(address(again)) == {"data"}


@pytest.mark.train
def test_what_was_set_up_to_be_compared_survives_a_reload(
    folder, data_id_of, wait_until_finished, monkeypatch
):
    def find_rate(*_):
        yield Step(0, 1)
        return SimpleNamespace(suggestion=0.00123)

    monkeypatch.setattr("pages.shared.configure.comparison_form.find_rate", find_rate)
    at = open_page("compare", data=data_id_of(folder), form={"image_size": 32, "batch_size": 4})
    at.button_group(key="compare_strategies").set_value(["feature_extraction"])
    at.number_input(key="compare_seeds").set_value(2)
    at.multiselect(key="compare_cuts").set_value(["block6"])
    at.run()
    press(at, "Find a learning rate for each")
    wait_until_finished(at)
    assert set(at.dataframe[0].value["Learning rate"]) == {"0.00123"}
    assert "Undo the search" in button_labels(at)
    again = reload_session("compare", at)
    assert "Start 4 runs" in button_labels(again)
    assert set(again.dataframe[0].value["Learning rate"]) == {"0.00123"}


def settings_problem(at):
    return "The settings in this address cannot be used" in unescaped_text(at)


@pytest.mark.parametrize("damage", ["{", '{"settings": {}, "comparison": {}}', None])
def test_settings_that_cannot_be_had_are_the_defaults_and_the_page_says_so(
    folder, data_id_of, damage
):
    named = save_settings({"settings": {"epochs": 3}, "comparison": {}})
    file = paths.home() / "settings" / f"{named}.json"
    file.unlink() if damage is None else file.write_text(damage)
    at = open_page("configure", data=data_id_of(folder), settings=named)
    assert settings_problem(at)
    assert at.number_input(key="form_epochs").value is None, "follows from the data set"
    assert not button(at, "Start training").disabled


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"backbone": "no-such-net"},
        {"unknown": 3},
        [],
        {"strategy": "custom", "stage_rates": {"x": -1}},
    ],
)
def test_settings_that_no_form_could_hold_are_refused(settings):
    named = save_settings({"settings": settings, "comparison": {}})
    at = open_page("runs", settings=named)
    assert settings_problem(at)
    assert at.session_state["form_epochs"] is None


def test_settings_for_a_comparison_that_no_form_could_hold_are_passed_over(folder, data_id_of):
    bad = {
        "strategies": ["full", "<b>", 3],
        "seeds": 10**9,
        "backbones": "x",
        "fractions": [7],
        "cuts": [None],
        "rates": {"a": "b"},
    }
    named = save_settings({"settings": {"epochs": 2}, "comparison": bad})
    at = open_page("compare", data=data_id_of(folder), settings=named)
    assert at.button_group(key="compare_strategies").value == ["full"]
    assert "Start 3 runs" in button_labels(at)


@pytest.mark.train
def test_recent_data_sets_are_listed_and_opened_in_one_click(folder, other, data_id_of):
    data_id_of(folder)
    data_id_of(other)
    for name in ("home", "dataset", "configure", "compare"):
        at = open_page(name)
        assert folder.name in unescaped_text(at)
        assert NASTY in unescaped_text(at)
        assert not any("](a)" in element.value for element in at.markdown)
    at = open_page("configure")
    at.button(key=f"open-{entry_folder(folder).name}").click().run()
    assert f"Training on {folder}" in unescaped_text(at).replace("*", "")
    at = open_page("home")
    at.button(key=f"open-{entry_folder(other).name}").click().run()
    assert " · 3 classes · " in read_facts(at)


def test_a_wrong_name_changes_nothing_that_was_chosen(folder, data_id_of, tmp_path):
    at = open_page("dataset", data=data_id_of(folder))
    name_folder(at, tmp_path / "nowhere", folder)
    assert "There is no folder" in unescaped_text(at)
    assert address(at)["data"] == data_id_of(folder)
    assert read_facts(at).startswith("24 images · ")


def test_where_people_sign_in_each_sees_the_data_sets_they_have_open_page(folder):
    ann = open_page("dataset", user=ANN)
    ann.text_input(key="data_folder").set_value(str(folder)).run()
    assert str(folder.name) in unescaped_text(open_page("home", user=ANN))
    assert "Recent data sets" not in unescaped_text(open_page("home", user=BEN))
    # a link that Ann has sent
    ben = open_page("dataset", user=BEN, data=entry_folder(folder).name)
    assert read_facts(ben)
    assert "Recent data sets" in unescaped_text(open_page("home", user=BEN))


@pytest.mark.train
def test_a_split_is_kept_with_its_data_set_and_others_have_their_own(
    folder, other, data_id_of, device_is_taken
):
    at = open_page("dataset", data=data_id_of(folder), state={"dataset_view": "Classes and splits"})
    at.text_input(key="form_val_fraction").set_value("40 %")
    at.number_input(key="form_split_seed").set_value(5)
    at.run()
    again = open_page("dataset", state={"dataset_view": "Classes and splits"}, **address(at))
    assert ", 10 validation" in read_facts(again)
    assert again.text_input(key="form_val_fraction").value == "0.4"
    assert again.number_input(key="form_split_seed").value == 5
    name_folder(at, other, folder)
    at.session_state["dataset_view"] = "Classes and splits"
    at.run()
    assert at.text_input(key="form_val_fraction").value == "0.15"
    assert load_split(folder)["val_fraction"] == 0.4
    config = start_training(open_page("configure", data=data_id_of(folder))).config
    assert (config.val_fraction, config.split_seed) == (0.4, 5)


def test_a_split_that_cannot_be_used_is_said_and_changes_nothing(folder, data_id_of):
    at = open_page("dataset", data=data_id_of(folder), state={"dataset_view": "Classes and splits"})
    before = read_facts(at)
    at.text_input(key="form_val_fraction").set_value("lots").run()
    assert "Validation fraction must be a number" in unescaped_text(at)
    assert read_facts(at) == before != ""
    assert not (entry_folder(folder) / "split.json").exists()


def test_a_damaged_split_is_said_and_nothing_is_trained(folder, data_id_of):
    entry_folder(folder).mkdir(parents=True, exist_ok=True)
    (entry_folder(folder) / "split.json").write_text(json.dumps({"val_fraction": "all"}))
    for name in ("dataset", "configure", "compare"):
        at = open_page(name, data=data_id_of(folder))
        assert "Repair or delete that file" in unescaped_text(at)
        assert not [label for label in button_labels(at) if label.startswith("Start ")]

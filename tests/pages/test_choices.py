"""What a person has chosen is kept: data and settings live in the address, the split with the data set; nothing is trained on the
sample unless it was chosen."""

import json
from urllib.parse import parse_qs

import pytest

from finetune_core import paths
from finetune_core.data.entry import entry_folder, load_split
from finetune_core.runs.store import RunStore
from finetune_core.saved_settings import save_settings
from tests.pages.harness import ANN, BEN, address, button, labels, open_page, unescaped

NASTY = "[x](a) <b>"


@pytest.fixture
def other(image_folder, tmp_path):
    return image_folder(tmp_path / NASTY, {"red": 12, "blue": 12, "green": 12})


def name_folder(at, folder, now=""):
    """Type a folder into the box of data sources, which is closed once a data set, ``now``, is chosen."""
    at.session_state[f"source-{now}"] = True
    at.run()
    at.text_input(key="data_folder").set_value(str(folder)).run()


def reloaded(name, at):
    """A new session at the same address."""
    return open_page(name, **address(at))


@pytest.mark.parametrize("name", ["dataset", "configure", "compare"])
def test_with_nothing_chosen_there_is_no_data_and_nothing_can_be_trained(name):
    at = open_page(name)
    assert "Use the sample" in labels(at)
    assert "Start training" not in labels(at)
    assert not [label for label in labels(at) if label.startswith("Start ")]
    assert not at.metric
    assert "data" not in address(at)
    assert not (paths.data_dir() / "digits").exists()


def test_a_reload_keeps_the_data_and_the_settings_and_trains_on_them(folder, known):
    at = open_page("dataset")
    at.text_input(key="data_folder").set_value(str(folder)).run()
    assert not at.exception
    assert address(at) == {"data": known(folder)}
    at.switch_page("pages/configure.py").run()
    at.number_input(key="form_epochs").set_value(1)
    at.number_input(key="form_image_size").set_value(32)
    at.text_input(key="form_learning_rate").set_value("0.000123456789")
    at.session_state["form_strategy"] = "custom"
    at.run()
    at.selectbox(key="custom_cut").set_value("block3").run()
    again = reloaded("configure", at)
    assert f"Training on {folder}" in unescaped(again).replace("*", "")
    assert again.number_input(key="form_epochs").value == 1
    assert again.selectbox(key="custom_cut").value == "block3"
    assert address(again) == address(at)
    button(again, "Start training").click().run()
    assert not again.exception
    (run,) = RunStore(paths.runs_dir()).runs()
    assert (run.config.data, run.config.epochs, run.config.cut) == (str(folder), 1, "block3")
    assert run.config.learning_rate == 0.000123456789


def test_stage_rates_and_a_file_of_weights_survive_a_reload(folder, known):
    at = open_page("configure", data=known(folder))
    at.session_state["form_strategy"] = "custom"
    at.run()
    at.button_group(key="custom_how").set_value("A rate for each stage").run()
    at.number_input(key="custom_rate_block5").set_value(0.3)
    at.selectbox(key="weights_from").set_value("A file").run()
    at.text_input(key="weights_file").set_value("/nowhere/w.pth").run()
    again = reloaded("configure", at)
    assert again.number_input(key="custom_rate_block5").value == 0.3
    assert again.number_input(key="custom_rate_head").value == 1.0
    assert again.text_input(key="weights_file").value == "/nowhere/w.pth"


def test_what_cannot_be_used_is_not_kept_but_all_else_is(folder, known):
    at = open_page("configure", data=known(folder))
    at.number_input(key="form_epochs").set_value(-4)
    at.number_input(key="form_batch_size").set_value(7)
    at.run()
    again = reloaded("configure", at)
    assert again.number_input(key="form_epochs").value == 10
    assert again.number_input(key="form_batch_size").value == 7


def test_settings_nobody_has_touched_need_no_place_in_the_address(folder, known):
    at = open_page("configure", data=known(folder))
    assert set(address(at)) == {"data"}
    at.number_input(key="form_epochs").set_value(3).run()
    assert set(address(at)) == {"data", "settings"}
    at.number_input(key="form_epochs").set_value(10).run()
    assert set(address(at)) == {"data"}


@pytest.mark.train
def test_what_was_set_up_to_be_compared_survives_a_reload(folder, known, finished):
    at = open_page("configure", data=known(folder))
    at.number_input(key="form_image_size").set_value(32)
    at.number_input(key="form_batch_size").set_value(4)
    at.run()
    at.switch_page("pages/compare.py").run()
    at.button_group(key="compare_strategies").set_value(["feature_extraction"])
    at.number_input(key="compare_seeds").set_value(2)
    at.multiselect(key="compare_cuts").set_value(["block6"])
    at.run()
    button(at, "Find a learning rate for each").click().run()
    finished(at)
    rates = list(at.dataframe[0].value["Learning rate"])
    assert "One rate for all" in labels(at)
    again = reloaded("compare", at)
    assert "Start 4 runs" in labels(again)
    assert list(again.dataframe[0].value["Learning rate"]) == rates


@pytest.mark.parametrize("name", ["home", "dataset", "configure", "train", "compare"])
def test_every_link_takes_the_choices_along(folder, known, name):
    at = open_page("configure", data=known(folder))
    at.number_input(key="form_epochs").set_value(3).run()
    chosen = address(at)
    at = open_page(name, **chosen)
    links = at.get("page_link")
    assert len(links) >= 7
    assert all(
        parse_qs(link.proto.query_string) == {key: [value] for key, value in chosen.items()}
        for link in links
    )
    assert address(at) == chosen


@pytest.mark.parametrize(
    "asked",
    [
        "nothing-0123456789ab",
        "../../../etc",
        "<script>alert(1)</script>",
        "x" * 5000,
        "[a](http://b)",
    ],
)
@pytest.mark.parametrize("name", ["dataset", "configure", "compare"])
def test_an_address_that_names_no_known_data_set_says_so_and_takes_no_other(name, asked):
    at = open_page(name, data=asked)
    assert "that the address names is not known here" in unescaped(at)
    assert not any(
        "](http://b)" in element.value for kind in ("error", "markdown") for element in at.get(kind)
    )
    assert not at.metric
    assert not [label for label in labels(at) if label.startswith("Start ")]


@pytest.mark.parametrize("name", ["dataset", "configure", "compare"])
def test_an_address_cannot_name_data_outside_the_folders_that_may_be_read(
    name, folder, known, image_folder, tmp_path_factory
):
    secret = image_folder(tmp_path_factory.mktemp("elsewhere"), {"red": 12, "blue": 12})
    at = open_page(name, data=known(secret))
    assert "outside the folders that Thaw may read" in unescaped(at)
    assert not at.metric
    assert not at.get("image")
    assert f"open-{known(secret)}" not in [one.key for one in at.button]


@pytest.mark.parametrize("damage", ["{", '{"settings": {}, "comparison": {}}', None])
def test_settings_that_cannot_be_had_are_the_defaults_and_the_page_says_so(folder, known, damage):
    at = open_page("configure", data=known(folder))
    at.number_input(key="form_epochs").set_value(3).run()
    file = paths.home() / "settings" / f"{address(at)['settings']}.json"
    file.unlink() if damage is None else file.write_text(damage)
    again = reloaded("configure", at)
    assert "The settings in this address cannot be used" in unescaped(again)
    assert again.number_input(key="form_epochs").value == 10
    assert not button(again, "Start training").disabled


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
def test_settings_that_no_form_could_hold_are_refused(folder, known, settings):
    again = open_page(
        "configure",
        data=known(folder),
        settings=save_settings({"settings": settings, "comparison": {}}),
    )
    assert "The settings in this address cannot be used" in unescaped(again)
    assert again.number_input(key="form_epochs").value == 10


def test_settings_for_a_comparison_that_no_form_could_hold_are_passed_over(folder, known):
    bad = {
        "strategies": ["full", "<b>", 3],
        "seeds": 10**9,
        "backbones": "x",
        "fractions": [7],
        "cuts": [None],
        "rates": {"a": "b"},
    }
    at = open_page(
        "compare",
        data=known(folder),
        settings=save_settings({"settings": {"epochs": 2}, "comparison": bad}),
    )
    assert at.button_group(key="compare_strategies").value == ["full"]
    assert "Start 3 runs" in labels(at)


def test_recent_data_sets_are_listed_and_opened_in_one_click(folder, other):
    at = open_page("dataset")
    for one, now in ((folder, ""), (other, folder)):
        name_folder(at, one, now)
        assert not at.exception
        assert {metric.label for metric in at.metric} >= {"Images", "Classes"}
    for name in ("home", "dataset", "configure", "compare"):
        again = open_page(name)
        assert folder.name in unescaped(again)
        assert NASTY in unescaped(again)
        assert not any("](a)" in element.value for element in again.markdown)
    at = open_page("configure")
    next(one for one in at.button if one.key == f"open-{entry_folder(folder).name}").click().run()
    assert f"Training on {folder}" in unescaped(at).replace("*", "")
    at = open_page("home")
    next(one for one in at.button if one.key == f"open-{entry_folder(other).name}").click().run()
    assert not at.exception
    assert {metric.label: metric.value for metric in at.metric}["Classes"] == "3"


def test_a_wrong_name_changes_nothing_that_was_chosen(folder, known, tmp_path):
    at = open_page("dataset", data=known(folder))
    name_folder(at, tmp_path / "nowhere", folder)
    assert "There is no folder" in unescaped(at)
    assert address(at)["data"] == known(folder)
    assert {metric.label: metric.value for metric in at.metric}["Images"] == "24"


def test_where_people_sign_in_each_sees_the_data_sets_they_have_open_page(folder, other):
    ann = open_page("dataset", user=ANN)
    ann.text_input(key="data_folder").set_value(str(folder)).run()
    assert not ann.exception
    assert str(folder.name) in unescaped(open_page("home", user=ANN))
    assert "Recent data sets" not in unescaped(open_page("home", user=BEN))
    ben = open_page("dataset", user=BEN, data=entry_folder(folder).name)  # a link that Ann has sent
    assert {metric.label for metric in ben.metric} >= {"Images", "Classes"}
    assert "Recent data sets" in unescaped(open_page("home", user=BEN))


def test_a_split_is_kept_with_its_data_set_and_others_have_their_own(folder, other, known):
    at = open_page("dataset", data=known(folder))
    at.session_state["dataset_view"] = "Classes and splits"
    at.run()
    at.text_input(key="form_val_fraction").set_value("40 %")
    at.number_input(key="form_split_seed").set_value(5)
    at.run()
    assert not at.exception
    again = reloaded("dataset", at)
    assert {metric.label: metric.value for metric in again.metric}["Validation"] == "10"
    again.session_state["dataset_view"] = "Classes and splits"
    again.run()
    assert again.text_input(key="form_val_fraction").value == "0.4"
    assert again.number_input(key="form_split_seed").value == 5
    name_folder(at, other, folder)
    at.session_state["dataset_view"] = "Classes and splits"
    at.run()
    assert at.text_input(key="form_val_fraction").value == "0.15"
    assert load_split(folder)["val_fraction"] == 0.4
    run_page = open_page("configure", data=known(folder))
    button(run_page, "Start training").click().run()
    (run,) = RunStore(paths.runs_dir()).runs()
    assert (run.config.val_fraction, run.config.split_seed) == (0.4, 5)


def test_a_split_that_cannot_be_used_is_said_and_changes_nothing(folder, known):
    at = open_page("dataset", data=known(folder))
    at.session_state["dataset_view"] = "Classes and splits"
    at.run()
    before = {metric.label: metric.value for metric in at.metric}
    at.text_input(key="form_val_fraction").set_value("lots").run()
    assert not at.exception
    assert "Validation fraction must be a number" in unescaped(at)
    assert {metric.label: metric.value for metric in at.metric} == before
    assert not (entry_folder(folder) / "split.json").exists()


def test_a_damaged_split_is_said_and_nothing_is_trained(folder, known):
    entry_folder(folder).mkdir(parents=True, exist_ok=True)
    (entry_folder(folder) / "split.json").write_text(json.dumps({"val_fraction": "all"}))
    for name in ("dataset", "configure", "compare"):
        at = open_page(name, data=known(folder))
        assert "Repair or delete that file" in unescaped(at)
        assert not [label for label in labels(at) if label.startswith("Start ")]

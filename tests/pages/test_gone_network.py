"""Pages whose network is gone: they stay usable, name what is missing and keep the settings."""

import json
import os
import shutil

import pytest
import timm
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_core import paths
from finetune_core.config import setting_names
from finetune_core.config.metadata import SPLIT
from finetune_core.runs.store import RunStore
from finetune_core.saved_settings import save_settings
from tests.factories import image_folder, tiny_config, train
from tests.pages.harness import (
    button,
    button_labels,
    evaluate_state,
    open_page,
    press,
    unescaped_text,
)

PAGES = ("home", "dataset", "configure", "train", "runs", "evaluate", "compare", "predict")
HUB = "hf-hub:somebody/mine"
EARLIER = "timm/vanished_vit.r160_in1k"  # of another version of timm
STRATEGIES = {
    "last_block": {"strategy": "last_block"},
    "cut": {"strategy": "custom", "cut": "block4"},
    "rates": {"strategy": "custom", "stage_rates": {"block5": 0.5, "head": 1.0}},
    "features": {"strategy": "prototypes", "features_from": "block3"},
}


def write_network(folder):
    """Write a network of timm: its description and its weights."""
    folder.mkdir(parents=True)
    config = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "pretrained_cfg": config})
    )
    save_file(timm.create_model("test_vit").state_dict(), folder / "model.safetensors")


def fill_hub_cache(hub):
    """Fill the folder in which the Hub's cache keeps ``HUB``, and return it."""
    repository = hub / "models--somebody--mine"
    write_network(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    return repository


def rename_backbone(run, here, name):
    """Let all files of a run name another backbone."""
    for file in (run.run_dir / "config.json", run.run_dir / "events.jsonl"):
        file.write_text(file.read_text().replace(here, name))
    for file in run.run_dir.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
        save_file(tensors, file, {key: text.replace(here, name) for key, text in metadata.items()})


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """Return a folder of images, networks and two runs of each network, which is gone since."""
    base = tmp_path_factory.mktemp("gone")
    images = image_folder(base / "images", {"red": 12, "blue": 12})
    here = EARLIER.replace("vanished_vit", "test_vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(base / "hub"))
        write_network(base / "mine")
        fill_hub_cache(base / "hub")
        for name in (f"local-dir:{base / 'mine'}", HUB, here):
            weights = {"weights": "none"} if name == here else {}
            for strategy in ("last_block", "feature_extraction"):
                config = tiny_config(images, backbone=name, strategy=strategy, epochs=1, **weights)
                run = train(config, base / "runs")
                if name == here:
                    rename_backbone(run, here, EARLIER)
    shutil.move(base / "mine", base / "mine elsewhere")
    shutil.move(base / "hub", base / "hub elsewhere")
    return base


@pytest.fixture(params=["folder", "hub"])
def gone_network(request, trained_folder, monkeypatch):
    """Return the name of a network that is gone, with runs that were trained from it."""
    name = {"folder": f"local-dir:{trained_folder / 'mine'}", "hub": HUB, "timm": EARLIER}[
        request.param
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(trained_folder / "hub"))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_folder))
    for run in RunStore(trained_folder / "runs").list_runs():
        if run.config.backbone == name:
            shutil.copytree(run.run_dir, paths.runs_dir() / run.run_id)
    return name


def runs():
    return sorted(RunStore(paths.runs_dir()).list_runs(), key=lambda run: run.config.strategy)


def what_is_missing(name):
    if name == HUB:
        return f"The description of {HUB} is not on this machine"
    if name == EARLIER:
        return "timm has no network 'vanished_vit', though other versions of it may"
    folder = name.removeprefix("local-dir:")
    return f"there is no folder {folder}: put it back there, or choose another network"


@pytest.fixture
def address(gone_network, trained_folder, data_id_of):
    """Return the address of a page whose form held the network before: ``address(**settings)``."""

    def kept(**changes):
        config = tiny_config("any", **{"backbone": gone_network} | changes)
        settings = config.model_dump(mode="json", exclude={"data", "edits", *setting_names(SPLIT)})
        comparison = {"backbones": [gone_network, "resnet18"], "cuts": ["block2"]}
        return {
            "settings": save_settings({"settings": settings, "comparison": comparison}),
            "data": data_id_of(trained_folder / "images"),
        }

    return kept


def stages_drawn(at):
    drawn = [json.loads(one.proto.json) for one in at.get("bidi_component")]
    return [tile["name"] for one in drawn for tile in one.get("tiles", [])]


@pytest.mark.train
@pytest.mark.parametrize(
    ("gone_network", "name", "strategy"),
    [
        *(("folder", name, "rates") for name in PAGES),
        *(("folder", "configure", strategy) for strategy in ("last_block", "cut", "features")),
        *((gone, name, "cut") for gone in ("hub", "timm") for name in ("configure", "predict")),
        ("timm", "compare", "features"),
        ("hub", "home", "features"),
    ],
    indirect=["gone_network"],
)
def test_every_page_opens_says_what_is_missing_and_keeps_the_settings(
    gone_network, address, name, strategy
):
    asked = address(**STRATEGIES[strategy])
    at = open_page(
        name,
        state={"start_box-0": True},
        run=runs()[0].run_id,
        runs=[run.run_id for run in runs()],
        **asked,
    )
    if name in ("configure", "compare", "predict"):
        assert what_is_missing(gone_network) in unescaped_text(at)
    assert ("Another run can be chosen above." in unescaped_text(at)) == (name == "predict")
    assert at.session_state["settings_id"] == asked["settings"]
    at.run()
    assert at.session_state["settings_id"] == asked["settings"]


@pytest.mark.train
@pytest.mark.parametrize("gone_network", ["folder", "timm"], indirect=True)
def test_what_was_measured_of_a_run_is_still_there(gone_network):
    assert RunStore(paths.runs_dir()).list_damaged() == []
    for tab in ("Metrics", "Calibration", "Robustness"):
        at = open_page("evaluate", state=evaluate_state(tab))
        assert [one.label for one in at.metric][:1] == ["Test accuracy"]
        assert not at.error
    at = open_page("compare", runs=[run.run_id for run in runs()])
    assert any(one.value == "Test accuracy" for one in at.header)
    press(at, "Fit a linear probe as the baseline")
    assert what_is_missing(gone_network) in unescaped_text(at)


@pytest.mark.train
def test_nothing_can_be_started_until_another_network_is_chosen_or_it_is_back(
    gone_network, address, trained_folder
):
    at = open_page("configure", **address(strategy="custom", cut="block4"))
    assert button(at, "Start training").disabled
    assert button_labels(at).count("Look it up") == (gone_network == HUB)
    assert not stages_drawn(at)
    for name in ("mine", "hub"):
        shutil.copytree(trained_folder / f"{name} elsewhere", trained_folder / name)
    try:
        at.run()
        assert not button(at, "Start training").disabled
        assert stages_drawn(at)[:2] == ["stem", "block1"]
    finally:
        for name in ("mine", "hub"):
            shutil.rmtree(trained_folder / name)
    at.run()
    assert button(at, "Start training").disabled
    at.selectbox(key="form_backbone").set_value("efficientnet_lite0").run()
    assert not button(at, "Start training").disabled


@pytest.mark.train
@pytest.mark.parametrize("gone_network", ["folder", "timm"], indirect=True)
def test_settings_of_a_run_are_used_again(gone_network):
    at = open_page("train", run=runs()[-1].run_id)
    press(at, "Use these settings again")
    assert at.session_state["form_backbone"] == gone_network
    assert at.session_state["form_image_size"] == 32
    assert what_is_missing(gone_network) in unescaped_text(at)


@pytest.mark.train
@pytest.mark.parametrize("gone_network", ["folder"], indirect=True)
def test_a_network_that_is_gone_can_be_taken_out_of_a_comparison(
    gone_network, trained_folder, data_id_of
):
    at = open_page(
        "compare",
        data=data_id_of(trained_folder / "images"),
        form={"backbone": "efficientnet_lite0", "image_size": 32},
        state={"start_box-0": True, "compare_backbones": [gone_network, "efficientnet_lite0"]},
    )
    assert what_is_missing(gone_network) in unescaped_text(at)
    assert "Start 10 runs" not in button_labels(at)
    at.multiselect(key="compare_backbones").set_value(["efficientnet_lite0"]).run()
    assert any(label.startswith("Start ") for label in button_labels(at))


@pytest.mark.train
@pytest.mark.parametrize("gone_network", ["hub"], indirect=True)
def test_boxes_that_look_at_networks_open_without_it(gone_network, address):
    at = open_page(
        "configure",
        state={"networks_open": True, "advice_open": True, "more_settings": True},
        **address(),
    )
    assert what_is_missing(gone_network) in unescaped_text(at)
    at.text_input(key="networks_named").set_value(gone_network).run()


@pytest.mark.train
@pytest.mark.parametrize("gone_network", ["folder"], indirect=True)
def test_weights_gone_from_a_folder_are_missed_there_and_not_downloaded(
    trained_folder, address, tmp_path, monkeypatch
):
    folder = shutil.copytree(trained_folder / "mine elsewhere", tmp_path / "described")
    (folder / "model.safetensors").unlink()
    monkeypatch.setenv("THAW_DATA_ROOTS", os.pathsep.join(map(str, (trained_folder, tmp_path))))
    at = open_page("configure", **address(backbone=f"local-dir:{folder}"))
    weights = folder / "model.safetensors"
    assert f"There are no weights at {weights}: put them there" in unescaped_text(at)
    assert button(at, "Start training").disabled
    assert not [label for label in button_labels(at) if label.startswith("Download")]

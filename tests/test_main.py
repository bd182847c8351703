import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.config import Edit, make_config
from finetune_core.data.edits import save_edits
from finetune_core.data.entry import load_split, save_split
from finetune_core.errors import DataError
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from tests.deadline import wait_until

ROOT = Path(__file__).resolve().parent.parent
QUICK = [
    "--epochs",
    "2",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--lr",
    "0.001",
    "--precision",
    "fp32",
]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def thaw(*arguments):
    """The command line in this process: a start of its own takes seconds."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """(data, runs folder, JSON of the run) of one small run that the tests of this file share."""
    base = tmp_path_factory.mktemp("cli")
    data = image_folder_once(base / "images", {"red": 12, "blue <b>": 12})
    done = thaw("train", data, *QUICK, "--runs-dir", base / "runs", "--seed", 3, "--json")
    assert done.returncode == 0, done.stderr
    return data, base / "runs", json.loads(done.stdout), done


def test_train_prints_one_json_object_and_progress_elsewhere(trained):
    _, runs, result, done = trained
    assert done.stdout.count("\n") == 1
    assert "epoch 2/2" in done.stderr
    wanted = "run_id run_dir strategy backbone trainable_parameters total_parameters epochs best_epoch val_accuracy seconds device precision"
    assert set(wanted.split()) <= set(result)
    assert result["strategy"] == "last_block"
    assert result["backbone"] == "efficientnet_lite0"
    assert result["epochs"] == 2
    assert result["precision"] == "fp32"
    assert 0 < result["trainable_parameters"] < result["total_parameters"]
    assert Path(result["run_dir"]) == runs / result["run_id"]


def test_the_config_of_a_run_repeats_it(trained, tmp_path):
    _, _, result, _ = trained
    again = thaw(
        "train",
        "--config",
        Path(result["run_dir"], "config.json"),
        "--runs-dir",
        tmp_path,
        "--json",
    )
    assert again.returncode == 0, again.stderr
    repeated = json.loads(again.stdout)
    assert (
        Path(repeated["run_dir"], "config.json").read_bytes()
        == Path(result["run_dir"], "config.json").read_bytes()
    )
    assert (
        Path(repeated["run_dir"], "best.safetensors").read_bytes()
        == Path(result["run_dir"], "best.safetensors").read_bytes()
    )


def test_evaluate_and_predict_json(trained):
    data, _, result, _ = trained
    evaluated = json.loads(thaw("evaluate", result["run_dir"], "--json").stdout)
    assert evaluated["split"] == "test"
    assert evaluated["accuracy_low"] <= evaluated["accuracy"] <= evaluated["accuracy_high"]
    assert [row["class"] for row in evaluated["per_class"]] == ["blue <b>", "red"]
    numbers = evaluated["scores"]
    assert numbers["accuracy"]["value"] == evaluated["accuracy"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in numbers.values())
    assert (evaluated["resamples"], evaluated["absent_classes"]) == (1000, [])
    files = sorted(Path(data, "red").iterdir())[:2]
    named = json.loads(thaw("predict", result["run_dir"], *files, "--json").stdout)
    assert [row["image"] for row in named["predictions"]] == [str(file) for file in files]
    assert sum(named["predictions"][0]["probabilities"].values()) == pytest.approx(1)


def test_predict_reports_what_it_cannot_read_and_names_the_rest(trained, tmp_path):
    data, _, result, _ = trained
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    done = thaw("predict", result["run_dir"], text, next(Path(data, "red").iterdir()), "--json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert [row["image"] for row in answer["skipped"]] == [str(text)]
    assert len(answer["predictions"]) == 1
    assert "text.jpg" in done.stderr


def test_results_are_written_into_regular_files_only_and_keep_permissions(trained, tmp_path):
    data, _, result, _ = trained
    image = next(Path(data, "red").iterdir())
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        for arguments in (
            ["predict", result["run_dir"], image, "--csv"],
            ["compare", result["run_dir"], "--report"],
        ):
            done = thaw(*arguments, tmp_path / name)
            assert done.returncode == 2
            assert f"is a {name if name == 'link' else 'FIFO'}" in " ".join(done.stderr.split())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "target").read_text() == "mine"
    (tmp_path / "target").chmod(0o600)
    assert thaw("predict", result["run_dir"], image, "--csv", tmp_path / "target").returncode == 0
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").read_text().startswith("file,")


def test_an_export_keeps_the_permissions_of_the_empty_folder_and_follows_no_link(trained, tmp_path):
    _, _, result, _ = trained
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("empty")
    command = ["export", result["run_dir"], "--format", "card", "--output"]
    done = thaw(*command, tmp_path / "link")
    assert done.returncode == 2
    assert "is a link" in " ".join(done.stderr.split())
    assert thaw(*command, tmp_path / "empty").returncode == 0
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


def test_plain_words_for_people(trained):
    _, _, result, _ = trained
    done = thaw("evaluate", result["run_dir"])
    assert "95 % interval" in done.stdout
    assert "Balanced accuracy" in done.stdout
    assert "blue <b>" in done.stdout


def test_backbones_json():
    rows = {row["name"]: row for row in json.loads(thaw("backbones", "--json").stdout)["backbones"]}
    assert rows["efficientnet_lite0"]["ready"] is True
    assert rows["resnet18"]["parameters"] == 11_689_512
    assert len(rows) > 1500
    assert rows["timm/convnextv2_atto.fcmae_ft_in1k"]["research_only"] is True
    assert rows["timm/convnextv2_atto.fcmae_ft_in1k"]["licence"] == "cc-by-nc-4.0"
    assert rows["timm/convnextv2_atto.fcmae_ft_in1k"]["image_size"] == 224


def test_backbones_can_be_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    rows = json.loads(thaw("backbones", "ConvNeXtV2_Atto", "--json").stdout)["backbones"]
    assert {"convnextv2_atto" in row["name"] for row in rows} == {True}
    assert {row["parameters"] > 3e6 for row in rows} == {True}  # of few they are counted
    table = thaw("backbones", "convnextv2_atto.fcmae_ft").stdout
    assert "· research only" in table
    assert "top-1 is what torchvision states" not in table
    table = thaw("backbones", "resnet18").stdout
    assert "69.8 %" in table
    assert "top-1 is what torchvision states" in table
    assert json.loads(thaw("backbones", "--ready", "resnet18", "--json").stdout)["backbones"] == []


def test_inspect_json(trained, tmp_path):
    data, _, _, _ = trained
    result = json.loads(thaw("inspect", data, "--json").stdout)
    assert result["counts"]["red"] == {"train": 8, "val": 2, "test": 2}
    assert result["findings"] != []  # fewer than ten training images a class


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "/not/there"], ["DATA: there is no folder"]),
        (["train"], ["DATA: is needed"]),
        (
            ["train", "digits", "--epochs", "0", "--lr", "-1", "--batch-size", "many"],
            ["--epochs", "--lr", "--batch-size"],
        ),
        (["train", "digits", "--backbone", "resnet0", "--strategy", "last_block"], ["--backbone"]),
        (["train", "digits", "--strategy", "thaw_it_all"], ["--strategy"]),
        (["train", "digits", "--device", "cuda:9"], ["--device"]),
        (["train", "--config", "/not/there.json"], ["--config", "cannot be read"]),
        (["inspect", "/not/there"], ["There is no folder"]),
        (["evaluate", "/not/there"], ["There is no run"]),
        (["predict", "/not/there", "x.jpg"], ["There is no run"]),
        (["train", "digits", "--no-such-option"], ["No such option"]),
        (["app", "--port", "0"], ["--port"]),
    ],
)
def test_wrong_requests_end_with_2_and_words(arguments, words):
    done = thaw(*arguments)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


def test_a_single_class_is_refused_with_the_reason(image_folder, tmp_path):
    done = thaw(
        "train",
        image_folder(tmp_path / "images", {"red": 12}),
        *QUICK,
        "--runs-dir",
        tmp_path / "runs",
    )
    assert done.returncode == 2
    assert "There is only one class with training images: “red”." in " ".join(done.stderr.split())


def test_weights_that_cannot_be_had_name_the_way_out(trained, tmp_path, monkeypatch):
    data, *_ = trained
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for command in (
        ["train", data, *QUICK, "--backbone", "resnet18"],
        ["compare", data, *QUICK, "--backbones", "efficientnet_lite0,resnet18", "--seeds", "0"],
    ):
        done = thaw(*command, "--runs-dir", tmp_path / "runs", "--json")
        assert done.returncode == 2
        assert "efficientnet_lite0" in done.stderr
        assert "--weights FILE" in done.stderr
        assert done.stdout == ""
        assert not (tmp_path / "runs").exists(), "a run was made that cannot begin"


@pytest.mark.processes
def test_a_process_of_its_own_ends_with_the_same_status_and_no_traceback():
    command = [sys.executable, "-m", "finetune_core", "train", "/not/there", "--epochs", "none"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "--epochs: must be a whole number" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_interrupt_stops_in_good_order(trained, tmp_path):
    data, *_ = trained
    command = [
        sys.executable,
        "-m",
        "finetune_core",
        "train",
        str(data),
        *QUICK,
        "--epochs",
        "1000",
        "--runs-dir",
        str(tmp_path),
        "--json",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: process.poll() is not None or list(tmp_path.glob("*/best.safetensors")))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert json.loads(stdout)["status"] == "stopped"
    assert "Traceback" not in stderr


INTERRUPTED_OUTSIDE_OF_COMMANDS = """
import signal
import finetune_core.__main__ as command

def interrupted(**_):
    for _ in range(5):
        signal.raise_signal(signal.SIGINT)

command.app = interrupted
command.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_several_interrupts_before_a_command_runs_end_with_one_message():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_OUTSIDE_OF_COMMANDS], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Aborted.\n")


def test_a_stopped_run_is_resumed_from_the_command_line(trained, tmp_path):
    data, *_ = trained
    reservation = create_run(
        make_config({"data": str(data), "image_size": 32, "epochs": 2}), tmp_path
    )
    request_stop(reservation.run_dir)
    list(execute(reservation))
    done = thaw("resume", reservation.run_dir, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    again = thaw("resume", reservation.run_dir)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is finished" in again.stderr


def test_rates_for_stages_from_the_command_line(trained, tmp_path):
    data, *_ = trained
    rates = ["--strategy", "custom", "--stage-rates", "block7=0.1,head=1"]
    done = thaw("train", data, *QUICK, *rates, "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    config = json.loads(Path(json.loads(done.stdout)["run_dir"], "config.json").read_text())
    assert config["stage_rates"] == {"block7": 0.1, "head": 1.0}
    assert (
        "--stage-rates"
        in thaw(
            "train", data, "--strategy", "custom", "--stage-rates", "block7", "--runs-dir", tmp_path
        ).stderr
    )


def test_settings_by_the_size_of_the_data_give_way_to_what_is_said(trained, tmp_path):
    data, *_ = trained
    done = thaw(
        "train",
        data,
        "--by-size",
        "--epochs",
        1,
        "--image-size",
        32,
        "--runs-dir",
        tmp_path / "runs",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert "are a small data set: 50 epochs" in done.stderr
    written = json.loads(Path(json.loads(done.stdout)["run_dir"], "config.json").read_text())
    assert {
        name: written[name]
        for name in ("optimizer", "schedule", "learning_rate", "epochs", "image_size")
    } == {
        "optimizer": "sgd",
        "schedule": "step",
        "learning_rate": 0.003,
        "epochs": 1,
        "image_size": 32,
    }


def test_half_of_the_images_balanced_and_blended(trained, tmp_path):
    data, *_ = trained
    blended = ["--train-fraction", 0.5, "--sampling", "balanced", "--mixup", 0.2, "--cutmix", 1]
    done = thaw("train", data, *QUICK, *blended, "--runs-dir", tmp_path / "runs", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["images"]
    assert counts["train"] < trained[2]["images"]["train"]
    assert counts["val"] == trained[2]["images"]["val"]


def test_a_runs_folder_that_cannot_be_written_is_a_wrong_request(trained, tmp_path):
    data, *_ = trained
    (tmp_path / "file").write_text("")
    done = thaw("train", data, *QUICK, "--runs-dir", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_the_cache_can_be_switched_off(trained, tmp_path):
    data, *_ = trained
    done = thaw("train", data, *QUICK, "--cache", "off", "--runs-dir", tmp_path, "--json")
    first = Path(json.loads(done.stdout)["run_dir"], "events.jsonl").read_text()
    assert '"where": "off"' in first


@pytest.fixture
def small(monkeypatch):
    """Deep inspections at 32 pixels."""
    monkeypatch.setattr("finetune_core.models.catalogue.usual_image_size", lambda _: 32)


def zipped(folder, file, inside=""):
    """``inside`` the archive the classes lie in that folder."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(Path(folder).rglob("*.png")):
            archive.write(path, Path(inside, path.relative_to(folder)))
    return file


def test_a_deep_inspection_is_one_json_object(image_folder, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 36, "blue <b>": 36})
    done = thaw("inspect", data, "--deep", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert result["deep"]["backbone"] == "efficientnet_lite0"
    assert result["deep"]["image_size"] == 224
    assert [one["stage"] for one in result["deep"]["probes"]] == [
        "stem",
        *(f"block{n}" for n in range(1, 8)),
    ]
    assert set(result["deep"]["suggestion"]) == {"strategy", "cut", "reason"}
    assert set(result["deep"]["auc"]) == {"val", "test"}
    in_words = thaw("inspect", data, "--deep")
    assert "Accuracy of a linear probe" in in_words.stdout
    assert result["deep"]["suggestion"]["reason"] in in_words.stdout
    assert "blue <b>" in in_words.stdout


def test_a_deep_inspection_takes_images_of_the_networks_own_size(trained, monkeypatch):
    data, *_ = trained
    asked = []

    def inspected(_dataset, backbone, image_size, **_):
        asked.append((backbone, image_size))
        raise DataError("enough")
        yield

    monkeypatch.setattr("finetune_core.inspection.deep.inspect_deeply", inspected)
    assert thaw("inspect", data, "--deep", "--backbone", "efficientnet_lite1").returncode == 2
    assert asked == [("efficientnet_lite1", 240)]


def test_without_deep_nothing_is_computed(trained, monkeypatch):
    data, *_ = trained
    monkeypatch.setattr("finetune_core.inspection.deep.inspect_deeply", None)
    assert "deep" not in json.loads(thaw("inspect", data, "--json").stdout)


def test_a_deep_inspection_computes_no_map_that_nothing_shows(trained, small, monkeypatch):
    monkeypatch.setattr("finetune_core.inspection.deep.lay_out", None)
    assert thaw("inspect", trained[0], "--deep").returncode == 0


def test_a_deep_inspection_where_nothing_can_be_probed(trained, small):
    data, *_ = trained
    done = thaw("inspect", data, "--deep", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deep"]["suggestion"] is None  # four validation images
    assert thaw("inspect", data, "--deep").returncode == 0


def test_what_features_find_is_among_the_findings(image_folder, tmp_path, small):
    data = image_folder(
        tmp_path / "images", {"train/red": 20, "train/blue": 20, "val/red": 12, "val/blue": 12}
    )
    for file in (data / "val").rglob("*.png"):
        ImageOps.invert(Image.open(file)).save(file)
    found = json.loads(thaw("inspect", data, "--deep", "--json").stdout)["findings"]
    shift = next(one for one in found if one["kind"] == "shift")
    assert shift["count"] == 24
    assert shift["action"] is None
    assert "shift" not in [
        one["kind"] for one in json.loads(thaw("inspect", data, "--json").stdout)["findings"]
    ]


def test_inspect_takes_an_archive(trained, tmp_path):
    data, *_ = trained
    done = thaw("inspect", zipped(data, tmp_path / "pictures.zip", inside="holiday"), "--json")
    assert done.returncode == 0, done.stderr
    result, plain = json.loads(done.stdout), json.loads(thaw("inspect", data, "--json").stdout)
    assert result["images"] == plain["images"] == 24
    assert result["counts"] == plain["counts"]
    assert Path(result["data"]).is_dir()


def test_inspect_takes_a_manifest(trained, tmp_path):
    data, *_ = trained
    files = sorted(Path(data).rglob("*.png"))
    rows = [
        f"{file},{file.parent.name.upper()},{'val' if number % 4 == 0 else 'train'}"
        for number, file in enumerate(files)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    result = json.loads(thaw("inspect", tmp_path / "list.csv", "--json").stdout)
    assert result["given_splits"] is True
    assert result["counts"] == {"BLUE <B>": {"train": 9, "val": 3}, "RED": {"train": 9, "val": 3}}


def no_archive(file):
    file.write_bytes(b"PK\x03\x04 and then nothing that makes sense")


def escaping(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../outside.png", b"x")


def empty(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")


@pytest.mark.parametrize("make", [no_archive, escaping, empty])
@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--deep"], ["train"]])
def test_a_refused_archive_ends_with_2_and_one_line(tmp_path, make, command):
    make(tmp_path / "pictures.zip")
    done = thaw(*command, tmp_path / "pictures.zip", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pictures.zip was not imported: ")
    assert not (tmp_path / "outside.png").exists()


def test_a_manifest_that_cannot_be_used_ends_with_2_and_one_line(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.png,\n")
    done = thaw("inspect", tmp_path / "list.csv", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "rows without a label: 2" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_backbone_ends_with_2(trained):
    data, *_ = trained
    done = thaw("inspect", data, "--deep", "--backbone", "resnet0", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--backbone: ")


def test_saved_edits_show_and_can_be_left_out(trained):
    data, *_ = trained
    ids = ("red/000.png", "red/001.png")
    save_edits(
        data,
        [
            Edit(action="exclude", paths=ids),
            Edit(action="ignore", paths=("red", "blue <b>"), kind="few_images"),
        ],
    )
    result = json.loads(thaw("inspect", data, "--json").stdout)
    assert result["images"] == 22
    assert [edit["action"] for edit in result["edits"]] == ["exclude", "ignore"]
    assert "few_images" not in [one["kind"] for one in result["findings"]]
    assert "2 images excluded" in thaw("inspect", data).stdout
    result = json.loads(thaw("inspect", data, "--as-is", "--json").stdout)
    assert (result["images"], result["edits"]) == (24, [])
    assert "few_images" in [one["kind"] for one in result["findings"]]


def test_train_records_saved_edits_and_says_so(trained, tmp_path):
    data, *_ = trained
    excluded = Edit(action="exclude", paths=("red/000.png",))
    relabelled = Edit(action="relabel", paths=("red/001.png",), to="blue <b>")
    save_edits(
        data, [excluded, Edit(action="ignore", paths=("red",), kind="few_images"), relabelled]
    )
    done = thaw("train", data, *QUICK, "--epochs", 1, "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert "1 image excluded, 1 image relabelled" in done.stderr
    run = Path(json.loads(done.stdout)["run_dir"])
    config = json.loads((run / "config.json").read_text())
    assert config["edits"] == [excluded.model_dump(mode="json"), relabelled.model_dump(mode="json")]
    assert '"images": 24' not in (run / "events.jsonl").read_text()
    # The run repeats with its own edits, whatever is made of the data set since.
    save_edits(data, [])
    again = json.loads(
        thaw(
            "train", "--config", run / "config.json", "--runs-dir", tmp_path / "again", "--json"
        ).stdout
    )
    assert json.loads(Path(again["run_dir"], "config.json").read_text()) == config
    assert (
        Path(again["run_dir"], "best.safetensors").read_bytes()
        == (run / "best.safetensors").read_bytes()
    )


def test_train_as_is_leaves_saved_edits_out(trained, tmp_path):
    data, *_ = trained
    save_edits(data, [Edit(action="exclude", paths=("red/000.png",))])
    done = thaw("train", data, *QUICK, "--epochs", 1, "--as-is", "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert "excluded" not in done.stderr
    assert (
        json.loads(Path(json.loads(done.stdout)["run_dir"], "config.json").read_text())["edits"]
        == []
    )


def test_train_takes_an_archive(trained, tmp_path):
    data, _, result, _ = trained
    archive = zipped(data, tmp_path / "pictures.zip")
    done = thaw("train", archive, *QUICK, "--runs-dir", tmp_path / "runs", "--seed", 3, "--json")
    assert done.returncode == 0, done.stderr
    run = Path(json.loads(done.stdout)["run_dir"])
    unpacked = Path(json.loads((run / "config.json").read_text())["data"])
    assert sorted(path.name for path in unpacked.iterdir()) == ["blue <b>", "red"]
    assert (run / "best.safetensors").read_bytes() == Path(
        result["run_dir"], "best.safetensors"
    ).read_bytes()
    archive.unlink()
    again = thaw(
        "train", "--config", run / "config.json", "--runs-dir", tmp_path / "again", "--json"
    )
    assert again.returncode == 0, again.stderr


def test_public_sets_are_listed_with_sizes_and_licences():
    rows = {row["name"]: row for row in json.loads(thaw("fetch", "--json").stdout)["public_sets"]}
    assert {"oxford_pets", "flowers102", "eurosat", "fashion_mnist", "cifar10"} == set(rows)
    for row in rows.values():
        assert row["licence"]
        assert row["source"].startswith("https://")
        assert row["download_bytes"] > 1e7
        assert row["images"] > row["classes"] > 1
        assert row["fetched"] is False
    output = thaw("fetch").stdout
    assert all(name in output for name in rows)
    assert "CC BY-SA 4.0" in output


def test_a_set_that_is_there_is_not_fetched_again(home, image_folder):
    folder = image_folder(home / "data" / "eurosat", {"Forest": 3})
    rows = {row["name"]: row for row in json.loads(thaw("fetch", "--json").stdout)["public_sets"]}
    assert [name for name, row in rows.items() if row["fetched"]] == ["eurosat"]
    done = thaw("fetch", "eurosat", "--json")
    assert json.loads(done.stdout) == {"name": "eurosat", "data": str(folder)}
    assert "Licence: MIT" in thaw("fetch", "eurosat").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "imagenet"], ["no public set 'imagenet'", "fetch` lists them"]),
        (
            ["inspect", "cifar10"],
            ["CIFAR-10 is not on this machine yet", "fetch cifar10", "170.5 MB"],
        ),
        (["train", "cifar10"], ["CIFAR-10 is not on this machine yet"]),
    ],
)
def test_a_public_set_that_cannot_be_had_ends_with_2_and_one_line(arguments, words):
    done = thaw(*arguments, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("\n") == 1


def test_fetching_without_a_network_ends_with_2_and_words(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = thaw("fetch", "eurosat", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "EuroSAT" in done.stderr


def test_the_split_set_in_the_app_is_used_and_said_unless_an_option_or_as_is_goes_before_it(
    trained,
):
    data = trained[0]
    save_split(data, load_split(data) | {"val_fraction": 0.5, "test_fraction": 0.0})
    done = thaw("inspect", data, "--json")
    assert json.loads(done.stdout)["splits"] == {"train": 12, "val": 12}
    assert "--val-fraction 0.5, --test-fraction 0.0" in done.stderr
    other = thaw("inspect", data, "--val-fraction", "0.25", "--json")
    assert json.loads(other.stdout)["splits"] == {"train": 18, "val": 6}
    usual = thaw("inspect", data, "--as-is", "--json")
    assert "test" in json.loads(usual.stdout)["splits"]
    assert "Split as it was set" not in usual.stderr


def test_a_run_starts_from_another_one_and_says_so(trained, tmp_path):
    data, _, parent, _ = trained
    done = thaw(
        "train",
        data,
        "--from",
        parent["run_dir"],
        "--epochs",
        1,
        "--strategy",
        "full",
        "--runs-dir",
        tmp_path,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["started_from"] == {
        "run": parent["run_id"],
        "data": "images",
        "backbone": parent["backbone"],
        "strategy": "last_block",
        "epoch": parent["best_epoch"],
        "accuracy": pytest.approx(parent["val_accuracy"]),
        "weights": "pretrained",
    }
    assert result["head_kept"] is True
    assert parent["started_from"] is None
    assert f"Started from run {parent['run_id']} (last block on images, best epoch " in " ".join(
        done.stderr.split()
    )
    config = json.loads((Path(result["run_dir"]) / "config.json").read_text())
    assert (config["from_run"], config["image_size"], config["weights"]) == (
        parent["run_dir"],
        32,
        "pretrained",
    )


@pytest.mark.parametrize("command", ["train", "compare"])
def test_another_backbone_than_that_of_the_run_to_start_from_is_refused(trained, tmp_path, command):
    data, _, parent, _ = trained
    done = thaw(
        command,
        data,
        "--from",
        parent["run_dir"],
        "--backbone",
        "resnet18",
        "--runs-dir",
        tmp_path / "runs",
    )
    assert done.returncode == 2
    words = " ".join(done.stderr.split())
    assert "--backbone: follows from the run to start from" in words
    assert "has efficientnet_lite0, not resnet18" in words
    done = thaw(command, data, "--from", tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")
    assert (done.returncode, "--from: There is no run in" in done.stderr) == (2, True)

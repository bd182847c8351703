"""timm's networks from the Hugging Face Hub.

The Hub's own client downloads them from a local server that speaks the necessary part of the
protocol.
"""

import contextlib
import hashlib
import inspect
import json
import math
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.commands.compare import design_comparison
from finetune_core.commands.train import build_config
from finetune_core.errors import ConfigError, WeightsError
from finetune_core.models import hub, timm_networks
from finetune_core.models.catalogue import (
    PACKAGED,
    backbone_info,
    build_recipe,
    list_ready_backbones,
)
from finetune_core.models.network import build_network, head_paths
from finetune_core.models.timm_networks import is_timm_name
from finetune_core.models.weights import PRETRAINED, download, fetch_description
from finetune_core.work import finish
from tests.factories import shared_images

NAME, REPOSITORY = "timm/test_vit.r160_in1k", "timm/test_vit.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = {
    "status": 401,
    "X-Error-Code": "GatedRepo",
    "X-Error-Message": "Access to this model is restricted.",
}
MISSING = {"status": 401, "X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


class Hub(BaseHTTPRequestHandler):
    """A server of ``/REPOSITORY/resolve/REVISION/FILE`` for given files and refusals."""

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        self.server.asked.append((self.command, self.path))
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        refusal = self.server.refusals.get(repository)
        content = self.server.files.get(f"{repository}/{rest.partition('/')[2]}")
        if refusal is None and content is None:
            known = any(file.startswith(f"{repository}/") for file in self.server.files)
            refusal = {"status": 404, "X-Error-Code": "EntryNotFound"} if known else MISSING
        if refusal:
            self.send_response(refusal["status"])
            for name, value in refusal.items():
                if name != "status":
                    self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.server.gate.wait(60)
            with contextlib.suppress(ConnectionError):  # the client has given up
                self.wfile.write(content[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.refusals, server.asked, server.gate = {}, {}, [], threading.Event()
    server.gate.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return timm.create_model("test_vit.r160_in1k").eval()


@pytest.fixture(scope="module")
def weights(published, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(published.state_dict(), file)
    return file.read_bytes()


def description(**changes):
    config = {
        "input_size": [3, 160, 160],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "license": "cc-by-nc-4.0",
    }
    config |= {"crop_pct": 0.9, "interpolation": "bilinear"}
    return json.dumps(
        {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": config} | changes
    ).encode()


def thaw(*arguments):
    """Run a command, check that it succeeds, and return the JSON object that it prints."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def same_but_head(model, other):
    expected = other.state_dict()
    return all(
        torch.equal(t, expected[n])
        for n, t in model.state_dict().items()
        if not n.startswith("head.")
    )


def test_a_network_of_timm_is_downloaded_into_the_hubs_cache_and_loaded(server, published, weights):
    server.files[f"{REPOSITORY}/model.safetensors"] = weights
    info = backbone_info(NAME)
    assert not info.is_ready
    with pytest.raises(WeightsError, match="not on this machine"):
        build_network(NAME, PRETRAINED, 3, 0)
    steps = list(download(info))
    assert steps == sorted(steps)
    assert (steps[-1].done, steps[-1].total) == (len(weights), len(weights))
    network = build_network(NAME, PRETRAINED, 3, 0)
    assert backbone_info(NAME).is_ready
    assert same_but_head(network.model, published)
    assert network.model(torch.zeros(1, 3, 160, 160)).shape == (1, 3)


def test_those_that_are_in_the_hubs_cache_are_found_in_one_look_at_it(server, weights, tmp_path):
    file, described, missing = "model.safetensors", "somebody/described", "somebody/missing"
    assert hub.find_cached_repositories(file, [REPOSITORY]) == set()
    assert NAME not in list_ready_backbones()
    server.files |= {f"{REPOSITORY}/{file}": weights, f"{described}/config.json": description()}
    finish(hub.fetch(REPOSITORY, file))
    finish(fetch_description(f"hf-hub:{described}"))
    (tmp_path / "hub" / "version.txt").write_text("1")
    asked = [REPOSITORY, f"{REPOSITORY}@main", f"{REPOSITORY}@v1", described, missing]
    assert (
        hub.find_cached_repositories(file, asked)
        == {REPOSITORY, f"{REPOSITORY}@main"}
        == {one for one in asked if hub.find_cached_path(one, file)}
    )
    assert hub.find_cached_repositories("config.json", asked) == {described}
    assert [name for name in list_ready_backbones() if is_timm_name(name)] == [NAME]


def test_what_was_downloaded_is_used_without_a_connection(server, published, weights, monkeypatch):
    server.files[f"{REPOSITORY}/model.safetensors"] = weights
    finish(download(backbone_info(NAME)))
    asked = len(server.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert list(download(backbone_info(NAME))) == []
    assert same_but_head(build_network(NAME, PRETRAINED, 3, 1).model, published)
    assert len(server.asked) == asked


def test_offline_nothing_is_asked_for_and_the_error_says_why(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        finish(download(backbone_info(NAME)))
    assert "--weights FILE" in str(caught.value)
    assert PACKAGED in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_network_names_the_page_where_its_licence_is_accepted(server, status):
    server.refusals[REPOSITORY] = GATED | {"status": status}
    with pytest.raises(WeightsError) as caught:
        finish(download(backbone_info(NAME)))
    message = str(caught.value)
    assert f"accept its licence at https://huggingface.co/{REPOSITORY}," in message
    assert "--weights FILE" in message
    assert PACKAGED in message


def test_a_repository_that_is_not_there_or_private_is_said_to_be(server):
    with pytest.raises(WeightsError, match="The Hub has no nobody/nothing"):
        finish(fetch_description("hf-hub:nobody/nothing"))


@pytest.mark.train  # the Hub's client retries for a while
def test_an_unreachable_hub_names_page_file_and_packaged_network(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError) as caught:
        finish(download(backbone_info(NAME)))
    for way_out in (f"https://huggingface.co/{REPOSITORY}", "--weights FILE", PACKAGED):
        assert way_out in str(caught.value)


def test_a_repository_with_pickles_only_is_refused(server):
    server.files["somebody/pickled/pytorch_model.bin"] = b"never read"
    server.files["somebody/pickled/config.json"] = description()
    name = "hf-hub:somebody/pickled"
    finish(fetch_description(name))
    with pytest.raises(
        WeightsError, match=r"has no model\.safetensors\. Other formats can run code"
    ):
        finish(download(backbone_info(name)))
    assert not [path for _, path in server.asked if path.endswith(".bin")]


def test_a_network_by_its_repository_is_built_as_its_description_says(server, published, weights):
    name = "hf-hub:somebody/mine"
    server.files |= {
        "somebody/mine/config.json": description(),
        "somebody/mine/model.safetensors": weights,
    }
    with pytest.raises(WeightsError, match="not on this machine yet"):
        backbone_info(name)
    finish(fetch_description(name))
    info = backbone_info(name)
    assert (info.crop, info.interpolation) == (0.9, "bilinear")
    assert (info.mean, info.image_size, info.licence) == ((0.1, 0.2, 0.3), 160, "cc-by-nc-4.0")
    assert info.is_research_only
    assert info.page == "https://huggingface.co/somebody/mine"
    finish(download(info))
    assert same_but_head(build_network(name, PRETRAINED, 3, 0).model, published)


def test_a_local_folder_is_read_where_it_lies(tmp_path, published, weights):
    (tmp_path / "config.json").write_bytes(
        description(num_classes=0, model_args={"num_classes": 0})
    )
    without_head = {
        name: tensor
        for name, tensor in published.state_dict().items()
        if not name.startswith("head.")
    }
    save_file(without_head, tmp_path / "model.safetensors")
    name = f"local-dir:{tmp_path}"
    network = build_network(name, PRETRAINED, 3, 0)
    assert head_paths(name) == ("head",)  # the network was published without a head
    assert same_but_head(network.model, published)
    assert build_recipe(name, 160)["options"]["num_classes"] == 1000


def test_position_embeddings_are_fitted_to_another_size(tmp_path, published, weights):
    (tmp_path / "config.json").write_bytes(description())
    (tmp_path / "model.safetensors").write_bytes(weights)
    network = build_network(f"local-dir:{tmp_path}", PRETRAINED, 3, 0, image_size=96)
    positions = network.model.state_dict()["pos_embed"]
    assert positions.shape == (1, 36 + 1, 64)
    assert positions.shape != published.state_dict()["pos_embed"].shape
    assert network.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    again = timm.create_model(
        "test_vit",
        img_size=96,
        dynamic_img_size=False,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors"), "hf_hub_id": None},
    )
    assert torch.equal(positions, again.state_dict()["pos_embed"])


def test_weights_that_a_kill_left_while_they_were_resized_are_swept(
    tmp_path, monkeypatch, published
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / ".thaw-resizing-0123abcd"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    os.utime(left, (0, 0))
    tensors = timm_networks.resize_embeddings(
        timm_networks.find("timm/test_vit.r160_in1k"), published.state_dict(), 1000, 96
    )
    assert tensors["pos_embed"].shape == (1, 36 + 1, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no JSON", "config.json"),
        (b"[]", "a JSON object was expected"),
        (description(architecture="os.system"), "timm has no network 'os.system'"),
        (description(model_args={"img_size": {"a": 1}}), "model_args"),
        (description(pretrained_cfg={"mean": "white"}), "mean and std"),
        (description(pretrained_cfg={"input_size": [1, 28, 28]}), "input_size"),
        (description(num_classes=-4), "num_classes"),
        (description(pretrained_cfg={"crop_pct": 0}), "crop_pct"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused_in_words(tmp_path, content, said):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        backbone_info(f"local-dir:{tmp_path}")
    assert said in caught.value.problems["backbone"]


class Harmful:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    "name", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained", "cache_dir", "pruned"]
)
def test_a_description_cannot_have_files_opened(tmp_path, monkeypatch, name):
    torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "model.pth")
    opened = []
    monkeypatch.setattr(
        "timm.models._helpers.load_state_dict", lambda *file, **_: opened.append(file)
    )
    (tmp_path / "config.json").write_bytes(
        description(model_args={name: str(tmp_path / "model.pth"), "depth": 6})
    )
    with pytest.raises(ConfigError) as caught:
        head_paths(f"local-dir:{tmp_path}")
    assert f"its model_args name '{name}', which" in caught.value.problems["backbone"]
    assert not opened
    assert not (tmp_path / "ran").exists()


def test_a_description_cannot_name_where_weights_come_from(tmp_path, published, weights):
    config = json.loads(description())
    config["pretrained_cfg"] |= {
        "state_dict": {"head.weight": [0.0]},
        "file": "/etc/hostname",
        "source": "local-dir",
        "custom_load": True,
        "hf_hub_id": "somebody/else",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(weights)
    model = build_network(f"local-dir:{tmp_path}", PRETRAINED, 3, 0).model
    assert same_but_head(model, published)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 10**7}, "depth of its model_args has to stay within ±65,536"),
        ({"embed_dim": -(10**5)}, "embed_dim of its model_args has to stay"),
        ({"img_size": [96, 10**30]}, "img_size of its model_args has to stay"),
        ({"mlp_ratio": math.inf}, "mlp_ratio of its model_args has to stay"),
        ({"drop_rate": math.nan}, "drop_rate of its model_args has to stay"),
        ({"depth": 5000}, "depth of its model_args has to add up to 1,024"),
        ({"layers": [600, 600, 1, 1]}, "layers of its model_args has to add up"),
    ],
)
def test_description_cannot_ask_for_a_network_without_end(tmp_path, monkeypatch, arguments, said):
    architecture = "test_resnet" if "layers" in arguments else "test_vit"
    content = description(architecture=architecture, model_args=arguments)
    (tmp_path / "config.json").write_bytes(content)
    monkeypatch.setattr(timm_networks, "build", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(ConfigError) as caught:
        head_paths(f"local-dir:{tmp_path}")
    assert said in caught.value.problems["backbone"]


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_vit", {"depth": 2, "global_pool": "avg", "no_embed_class": True}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}),
        ("test_resnet", {"drop_rate": 0.1, "layers": [1, 1, 1, 1]}),
    ],
)
def test_arguments_of_the_architecture_itself_are_admitted(tmp_path, architecture, arguments):
    (tmp_path / "config.json").write_bytes(
        description(architecture=architecture, model_args=arguments)
    )
    options = build_recipe(f"local-dir:{tmp_path}", 96)["options"]
    assert options["num_classes"] == 1000
    assert arguments.items() <= options.items()


def test_no_constructor_of_timm_takes_what_its_builder_opens_files_for():
    opening = {
        name
        for function in (timm.create_model, timm.models.build_model_with_cfg)
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is not one.VAR_KEYWORD
    }
    networks = {
        found
        for name in timm.list_models()
        if isinstance(
            found := inspect.signature(timm.model_entrypoint(name)).return_annotation, type
        )
    }
    assert len(networks) > 60
    taken = {name for one in networks for name in inspect.signature(one.__init__).parameters}
    assert taken & opening == set()


def test_weights_of_another_network_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(description())
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="does not belong to"):
        build_network(f"local-dir:{tmp_path}", PRETRAINED, 3, 0)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_network(f"local-dir:{tmp_path}", PRETRAINED, 3, 0)
    shutil.rmtree(tmp_path)
    with pytest.raises(ConfigError, match=f"there is no folder {tmp_path}: put it back there"):
        build_network(f"local-dir:{tmp_path}", PRETRAINED, 3, 0)


def test_a_folder_is_looked_at_again_when_what_describes_it_has_changed(tmp_path):
    name = f"local-dir:{tmp_path}"
    with pytest.raises(ConfigError, match=f"there is no config.json in {tmp_path}"):
        head_paths(name)
    (tmp_path / "elsewhere.json").write_bytes(description(model_args={"depth": "six"}))
    (tmp_path / "config.json").symlink_to("elsewhere.json")
    with pytest.raises(ConfigError, match="cannot be built"):
        head_paths(name)
    (tmp_path / "elsewhere.json").write_bytes(description())
    assert head_paths(name) == ("head",)


NOBODYS = ["timm/no_such_network", "timm/test_vit.no_such_tag", "local-dir: ", "local-dir:a\0b"]
NOBODYS += ["local-dir:~nobody/mine", "hf-hub:nothing", "hf-hub:a/../b", "hf-hub:user/model.git"]
NOBODYS += ["hf-hub:a--b/c", "hf-hub:user/-model", "hf-hub:user/model@../../other"]


@pytest.mark.parametrize("name", [*NOBODYS, "hf-hub:user/model@/etc/hostname"])
def test_names_that_can_be_nobodys_are_refused(name):
    with pytest.raises(ConfigError) as caught:
        backbone_info(name)
    assert list(caught.value.problems) == ["backbone"]


def test_a_revision_can_be_a_branch_a_tag_or_a_request():
    for revision in ("main", "v1.0", "refs/pr/3", COMMIT):
        with pytest.raises(WeightsError, match="not on this machine yet"):
            backbone_info(f"hf-hub:user/model@{revision}")


def test_a_download_that_is_given_up_ends_and_is_not_taken_for_whole(server, weights):
    server.files[f"{REPOSITORY}/model.safetensors"] = weights + bytes(30 << 20)
    server.gate.clear()  # the second half waits
    work = hub.fetch(REPOSITORY, "model.safetensors")
    assert next(work).done < 30 << 20
    (downloading,) = (thread for thread in threading.enumerate() if thread.name == "hub-download")
    work.close()
    server.gate.set()
    downloading.join(60)
    assert not downloading.is_alive()
    assert hub.find_cached_path(REPOSITORY, "model.safetensors") is None


def test_network_is_trained_at_its_own_size_unless_another_is_named(tmp_path, weights):
    (tmp_path / "config.json").write_bytes(description())
    (tmp_path / "model.safetensors").write_bytes(weights)
    folder, name = str(shared_images(red=4, blue=4)), f"local-dir:{tmp_path}"
    for settings, size in (
        ({"backbone": name}, 160),
        ({"backbone": name, "image_size": 96}, 96),
        ({"backbone": "resnet18"}, 224),
    ):
        config = build_config(settings, folder, None, as_is=True)
        assert config.image_size == size
    designs = design_comparison({"backbone": name}, folder, None, as_is=True)
    assert {config.image_size for config in designs} == {160}


@pytest.mark.train
def test_inspect_looks_at_a_data_set_with_a_network_of_timm(server, weights):
    server.files[f"{REPOSITORY}/model.safetensors"] = weights
    folder = shared_images(red=36, blue=36)
    found = thaw("inspect", folder, "--deep", "--backbone", NAME)["deep"]
    assert found["backbone"] == NAME
    assert [probe["stage"] for probe in found["probes"]][:2] == ["stem", "block1"]


@pytest.mark.train
def test_networks_of_timm_are_compared_by_their_names(server, tmp_path, weights):
    server.files[f"{REPOSITORY}/model.safetensors"] = weights
    mine = {"config.json": description(), "model.safetensors": weights}
    server.files |= {f"somebody/mine/{name}": content for name, content in mine.items()}
    folder, names = shared_images(red=12, blue=12), [NAME, "hf-hub:somebody/mine"]
    quick = ["--strategies", "feature_extraction", "--seeds", 0, "--epochs", 1]
    quick += ["--image-size", 64, "--precision", "fp32", "--runs-dir", tmp_path / "runs"]
    found = thaw("compare", folder, "--backbones", ",".join(names), *quick)
    assert sorted(run["backbone"] for run in found["runs"]) == sorted(names)
    assert (len(found["pairs"]), found["failed"]) == (1, [])

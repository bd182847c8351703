import dataclasses
import hashlib
import os
import pickle
import socket
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torchvision.models import ResNet18_Weights

from finetune_core.errors import WeightsError
from finetune_core.models import catalogue, network, weights
from finetune_core.models.catalogue import PACKAGED, backbone_info, create, packages
from finetune_core.models.weights import (
    PRETRAINED,
    download,
    load_state_tensors,
    load_weights,
    state_hash,
)
from finetune_core.work import Step

SMALL, SMALL_HEAD = "squeezenet1_1", ("classifier.1",)


def test_tensors_go_into_a_network_that_asks_for_the_version_of_its_layers():
    """Load a plain mapping without versions, which MNASNet refuses on its own."""
    one, other = create("mnasnet0_5"), create("mnasnet0_5")
    load_state_tensors(other, dict(one.state_dict()))
    assert all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )
    load_state_tensors(other, {"classifier.1.bias": torch.ones(1000)})
    assert torch.equal(other.state_dict()["classifier.1.bias"], torch.ones(1000))


def serve_weights(name, content, served, tmp_path, *, backbone="resnet18"):
    """Serve ``content`` under ``name`` and return a backbone entry that points there."""
    folder, address = served
    (folder / name).write_bytes(content)
    return dataclasses.replace(
        backbone_info(backbone), url=f"{address}/{name}", file=tmp_path / "cache" / name
    )


def start_server(reply):
    """Return the address of a server that answers any first request with ``reply``."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = server.accept()
        with server, connection:
            connection.recv(1 << 16)
            connection.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/weights"


def named_by_hash(content):
    return f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def small_state(seed=0):
    torch.manual_seed(seed)
    return create(SMALL).state_dict()


def equal_but_head(model, state, head):
    return all(
        torch.equal(t, state[n])
        for n, t in model.state_dict().items()
        if not n.startswith(f"{head}.")
    )


@pytest.mark.train
def test_a_real_state_dict_is_downloaded_verified_and_loaded(file_server, tmp_path):
    torch.manual_seed(5)
    published = create("resnet18").state_dict()
    torch.save(published, tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    info = serve_weights(named_by_hash(content), content, file_server, tmp_path)
    assert not info.is_ready
    steps = list(download(info))
    assert info.is_ready
    assert steps[-1] == Step(len(content), len(content))
    assert len(steps) > 10
    assert steps == sorted(set(steps))
    assert os.listdir(info.file.parent) == [info.file.name]
    model = create("resnet18")
    head_before = model.fc.weight.clone()
    assert load_weights(model, ("fc",), info, PRETRAINED) == state_hash(model.state_dict(), ("fc",))
    assert equal_but_head(model, published, "fc")
    assert torch.equal(model.fc.weight, head_before)
    assert not torch.equal(model.fc.weight, published["fc.weight"])


def test_refused_download_keeps_the_file_that_was_there(file_server, tmp_path):
    info = serve_weights("resnet18-00000000.pth", b"not what was published", file_server, tmp_path)
    with pytest.raises(WeightsError, match=r"resnet18-00000000\.pth is damaged"):
        list(download(info))
    assert os.listdir(info.file.parent) == []
    info.file.write_bytes(b"before")
    with pytest.raises(WeightsError):
        list(download(info))
    assert info.file.read_bytes() == b"before"


def test_a_download_that_is_given_up_leaves_nothing(file_server, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_CHUNK", 4)
    content = b"some bytes to send"
    info = serve_weights(named_by_hash(content), content, file_server, tmp_path)
    downloading = download(info)
    assert next(downloading) == Step(4, len(content))
    downloading.close()
    assert os.listdir(info.file.parent) == []


def test_a_download_cut_short_is_refused(tmp_path):
    whole = b"whole file of weights"
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole[:5]
    info = dataclasses.replace(
        backbone_info("resnet18"), url=start_server(reply), file=tmp_path / named_by_hash(whole)
    )
    with pytest.raises(WeightsError):
        list(download(info))
    assert os.listdir(tmp_path) == []


def point_nowhere(served):
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}/resnet18-12345678.pth"


BROKEN_OFF = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"
UNREACHABLE = {
    "no network": (point_nowhere, ""),
    "no such file": (lambda served: f"{served[1]}/no-such-file.pth", "File not found"),
    "garbage": (lambda served: start_server(b"garbage\r\n\r\n"), ""),
    "broken off": (lambda served: start_server(BROKEN_OFF), ""),
}


@pytest.mark.parametrize(("address", "reason"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_download_that_fails_is_said_with_a_way_out(file_server, tmp_path, address, reason):
    file = tmp_path / "resnet18-12345678.pth"
    info = dataclasses.replace(backbone_info("resnet18"), url=address(file_server), file=file)
    with pytest.raises(WeightsError) as caught:
        list(download(info))
    for words in (info.name, PACKAGED, "--weights", reason):
        assert words in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_package_cannot_be_downloaded():
    with pytest.raises(WeightsError, match=PACKAGED):
        list(download(dataclasses.replace(backbone_info(PACKAGED), file=None)))


def load_small(file, source=None):
    """Load a file of weights into a new network of ``SMALL``, and return the network."""
    model = create(SMALL)
    load_weights(model, SMALL_HEAD, source or backbone_info(SMALL), str(file))
    return model


def test_weights_that_are_not_there_are_said_with_a_way_out(tmp_path):
    info = dataclasses.replace(backbone_info("resnet18"), file=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=f"{PACKAGED}.*--weights"):
        load_weights(create(SMALL), ("fc",), info, PRETRAINED)


def test_a_damaged_file_of_published_weights_is_refused(tmp_path):
    info = dataclasses.replace(backbone_info(SMALL), file=tmp_path / "squeezenet1_1-00000000.pth")
    torch.save(small_state(), info.file)
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(create(SMALL), SMALL_HEAD, info, PRETRAINED)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_is_loaded_and_the_head_left_alone(tmp_path, suffix):
    state = small_state(1)
    file = tmp_path / f"mine{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    torch.manual_seed(2)
    model = create(SMALL)
    head = model.classifier[1].weight.clone()
    load_weights(model, SMALL_HEAD, backbone_info(SMALL), str(file))
    assert equal_but_head(model, state, *SMALL_HEAD)
    assert torch.equal(model.classifier[1].weight, head)


def replace_head(state):
    del state[f"{SMALL_HEAD[0]}.bias"]
    return state | {f"{SMALL_HEAD[0]}.weight": torch.zeros(3, 512, 1, 1)}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"state_dict": s},
        lambda s: {"model": s},
        lambda s: {f"module.{n}": t for n, t in s.items()},
        replace_head,
    ],
)
def test_usual_wrappings_and_another_head_do_not_matter(tmp_path, change):
    state = small_state(1)
    torch.save(change(dict(state)), tmp_path / "mine.pth")
    assert equal_but_head(load_small(tmp_path / "mine.pth"), state, *SMALL_HEAD)


def lacking(state):
    return {name: tensor for name, tensor in state.items() if name != "features.0.weight"}


def reshaped(state):
    return state | {"features.0.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, r"lacks 1 tensors, features\.0\.weight"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, r"1 tensors too many, extra\.weight"),
        (reshaped, r"1 tensors have another shape, features\.0\.weight"),
        (lambda s: {}, "lacks 50 tensors"),
    ],
    ids=["lacking", "extra", "reshaped", "empty"],
)
def test_a_file_of_another_network_is_refused_and_the_model_left_alone(tmp_path, change, said):
    torch.save(change(small_state(1)), tmp_path / "mine.pth")
    model = create(SMALL)
    before = state_hash(model.state_dict(), "none")
    with pytest.raises(WeightsError, match=f"does not belong to {SMALL}: .*{said}"):
        load_weights(model, SMALL_HEAD, backbone_info(SMALL), str(tmp_path / "mine.pth"))
    assert state_hash(model.state_dict(), "none") == before


def test_file_of_another_architecture_is_refused(tmp_path):
    torch.save(create("shufflenet_v2_x0_5").state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=f"does not belong to {SMALL}"):
        load_small(tmp_path / "other.pth")


class Malicious:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_not_executed(tmp_path, form):
    trap, file = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"features.0.weight": Malicious(trap)}
    torch.save(content, file) if form == "torch" else file.write_bytes(pickle.dumps(content))
    with pytest.raises(
        WeightsError, match=r"evil\.pth is not a file of weights that can be loaded safely"
    ):
        load_weights(create(SMALL), SMALL_HEAD, backbone_info(SMALL), str(file))
    assert not trap.exists()
    torch.load(file, weights_only=False) if form == "torch" else pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"this is no file of weights"])
def test_file_of_anything_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_small(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "no state dict"),
        ({"a": 1}, "no state dict"),
        (torch.zeros(3), "no state dict"),
        ({0: torch.zeros(1)}, "."),  # any reason: invalid names
    ],
)
def test_file_that_holds_no_state_dict_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=reason):
        load_small(tmp_path / "mine.pth")


@pytest.mark.train
def test_densenets_published_names_are_understood(tmp_path):
    torch.manual_seed(3)
    state = create("densenet121").state_dict()
    published = {}
    for name, tensor in state.items():
        if ".denselayer" in name:
            for kind in ("norm", "conv"):
                for number in "12":
                    name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        published[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "dense.pth")
    model = create("densenet121")
    load_weights(model, ("classifier",), backbone_info("densenet121"), str(tmp_path / "dense.pth"))
    assert equal_but_head(model, state, "classifier")


@pytest.mark.train
def test_googlenets_auxiliary_classifiers_in_the_file_are_dropped(tmp_path):
    import torchvision

    published = torchvision.models.googlenet(
        weights=None, aux_logits=True, init_weights=False
    ).state_dict()
    assert any(name.startswith("aux1.") for name in published)
    torch.save(published, tmp_path / "google.pth")
    model = create("googlenet")
    load_weights(model, ("fc",), backbone_info("googlenet"), str(tmp_path / "google.pth"))
    assert equal_but_head(model, published, "fc")


def test_the_hash_depends_on_names_and_numbers():
    state = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    assert state_hash(state, ("head",)) == state_hash(
        {name: tensor.clone() for name, tensor in state.items()}, ("head",)
    )
    assert len(state_hash(state, ("head",))) == 16
    for other in (
        state | {"a": torch.arange(4.0) + 1e-6},
        state | {"b": torch.tensor(4)},
        {"c": state["a"], "b": state["b"]},
    ):
        assert state_hash(other, ("head",)) != state_hash(state, ("head",))


@pytest.fixture(scope="module", params=list(packages()))
def packaged(request):
    """Return (name, network) of a package, with the 1,000-class head of its file.

    Thaw loads the rest of the network, and leaves out this head.
    """
    info, head = backbone_info(request.param), network.head_paths(request.param)
    model = create(request.param).eval()
    load_weights(model, head, info, PRETRAINED)
    *_, weight, bias = torch.load(info.file, map_location="cpu", weights_only=True).values()
    with torch.no_grad():
        model.get_submodule(*head).weight.copy_(weight)
        model.get_submodule(*head).bias.copy_(bias)
    return request.param, model


def test_the_packaged_weights_hash_the_same_each_time():
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, head = create(PACKAGED), network.head_paths(PACKAGED)
        load_weights(model, head, backbone_info(PACKAGED), PRETRAINED)
        hashes.add(state_hash(model.state_dict(), head))
    assert len(hashes) == 1


@pytest.mark.train
@pytest.mark.parametrize(("photograph", "name"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_the_packaged_weights_recognise_real_photographs(packaged, photograph, name):
    backbone, model = packaged
    if (backbone, name) == ("efficientnet_lite2", "daisy"):
        name = "honeycomb"  # the flower is a dahlia, and the network sees its petals' pattern
    info, names = backbone_info(backbone), ResNet18_Weights.DEFAULT.meta["categories"]
    side = (info.image_size, info.image_size)
    pixels = np.array(
        Image.fromarray(load_sample_image(photograph)).crop((106, 0, 533, 427)).resize(side)
    )
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    image = (image - torch.tensor(info.mean)[:, None, None]) / torch.tensor(info.std)[:, None, None]
    with torch.no_grad():
        assert names[model(image[None]).argmax()] == name
        untrained = network.build_network(backbone, "none", 1000, 0).model
        assert names[untrained(image[None]).argmax()] != name


def test_random_weights_are_never_a_fallback(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="no weights for resnet34"):
        network.build_network("resnet34", PRETRAINED, 2, 0)
    assert catalogue.backbone_info("resnet34").is_ready is False

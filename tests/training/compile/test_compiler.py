"""Tests of compiled passes: when they are made and used, how exact they are, what they leave."""

import copy
import json
import os
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from finetune_core import paths
from finetune_core.data.rowcache import CACHE
from finetune_core.models.network import build_network
from finetune_core.training import events
from finetune_core.training.compile import compiler as compiled
from finetune_core.training.compile.child import find_difference
from finetune_core.training.compile.compiler import Compiler, Part, is_worthwhile, match_batch
from finetune_core.training.compile.packages import load_package
from finetune_core.training.compile.process import KILLED, CompilerProcess
from finetune_core.training.data_pipeline import feeding
from finetune_core.training.data_pipeline.trunk import split_network
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.out_of_memory import run_in_parts
from finetune_core.training.devices.speed_book import Compilation, SpeedBook
from finetune_core.training.loop import StopRequested, fit
from tests.deadline import wait_until
from tests.factories import TINY_BACKBONE, shared_images, tiny_config
from tests.other_user import AS_ROOT, as_another_user, open_to_all

BF16, FP32 = Device("cpu", "CPU", "bf16"), Device("cpu", "CPU", "fp32")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled under Linux only")
# A smaller network's compiled pass may round a little worse than its eager one, and is refused.
COMPILED = "resnet18"
NETWORKS = [
    COMPILED,
    *(
        pytest.param(name, marks=pytest.mark.exhaustive)
        for name in ("efficientnet_lite0", "mobilenet_v3_small")
    ),
]


class Doubling(nn.Module):
    def forward(self, inputs):
        return 2 * inputs


@pytest.fixture
def process(fake_compiler):
    """Replace the compiler by one whose package returns three where the eager pass returns two."""
    fake_compiler.factor = 1.5
    return fake_compiler


def factors(compiler, count, batch=4, label="part", weights="weights"):
    """Return what a part makes of ones, per batch: 2 where it is eager, 3 where it is compiled."""
    forward = compiler.forward(Part(Doubling(), label, lambda: weights))
    return [int(forward(torch.ones(batch, 2)).unique().item()) for _ in range(count)]


def factors_and_report(count, images=1000, device=BF16, batch=4, **part):
    with Compiler(device, images, batch) as compiler:
        found = factors(compiler, count, batch, **part)
    return found, compiler.report


EAGER = [2] * 10


def test_it_pays_when_it_saves_more_than_it_takes():
    expected = Compilation(seconds=10, saved=0.5)
    assert is_worthwhile(2100, 0.01, expected)
    assert not is_worthwhile(1900, 0.01, expected)
    assert not is_worthwhile(10**9, 0.01, Compilation(10, 0.0))
    assert not is_worthwhile(10**9, 0.01, Compilation(10, -0.2))


def test_the_book_knows_each_part_and_guesses_others_from_them():
    book = SpeedBook()
    usual = book.get_compilation("a")
    book.learn_compilation("a", Compilation(12, 0.6))
    book.learn_compilation("b", Compilation(20, 0.4))
    book.learn_compilation("c", Compilation(50, 0.0))
    assert usual.seconds > 0
    assert book.get_compilation("a") == Compilation(12, 0.6)
    assert book.get_compilation("c") == Compilation(50, 0.0)
    # the median of those that could be compiled
    assert book.get_compilation("unknown") == Compilation(16, 0.5)


@LINUX
def test_it_is_eager_until_the_package_is_there(process):
    with Compiler(BF16, 1000, 4) as compiler:
        assert factors(compiler, 20) == [2] * 20
        assert process.started == 1
        process.result = b"package"
        assert factors(compiler, 3) == [3] * 3
    assert compiler.report == "compiled after 80 images"
    assert factors_and_report(2) == ([3, 3], "compiled before")
    assert process.started == 1


@LINUX
@pytest.mark.parametrize(
    "changed",
    ["label", "weights", "batch", "precision", "threads", "torch", "torchvision", "timm", "thaw"],
)
def test_a_package_is_for_what_it_was_made_for_only(process, changed, monkeypatch):
    process.result = b"package"
    assert factors_and_report(7)[0][-1] == 3  # too few to measure what it saves
    threads = torch.get_num_threads()
    try:
        if changed == "threads":
            torch.set_num_threads(threads + 1)
        installed = metadata.distribution
        if changed == "thaw":
            monkeypatch.setattr(compiled, "__version__", "x")
        monkeypatch.setattr(
            metadata,
            "distribution",
            lambda name: SimpleNamespace(version="x") if name == changed else installed(name),
        )
        others = {
            "label": {"label": "another"},
            "weights": {"weights": "others"},
            "batch": {"batch": 5},
            "precision": {"device": FP32},
        }
        assert factors_and_report(1, **others.get(changed, {}))[0] == [2]
    finally:
        torch.set_num_threads(threads)


@LINUX
def test_a_package_that_saved_nothing_is_not_used_again(process):
    process.result = b"package"
    assert factors_and_report(9)[0][-1] == 3
    known = json.loads((paths.home() / "speeds.json").read_text())["compilations"]
    (key,) = [key for key in known if key != "another part"]
    SpeedBook().learn_compilation(key, Compilation(seconds=10, saved=-0.1))
    assert factors_and_report(10, images=10**9)[0] == EAGER
    assert process.started == 1


def test_few_images_are_not_worth_it(process):
    SpeedBook().learn_compilation("another part", Compilation(seconds=10, saved=0.5))
    report = "not compiled: not worth it for 40 images"
    assert factors_and_report(10, images=40) == (EAGER, report)
    assert process.started == 0


@pytest.mark.parametrize("device", [Device("cuda", "GPU", "bf16"), Device("mps", "GPU", "fp32")])
def test_other_devices_are_left_alone(process, device):
    found, report = factors_and_report(10, device=device)
    assert (found, process.started) == (EAGER, 0)
    assert "processors" in report


@LINUX
@pytest.mark.parametrize(("variable", "value"), [("PATH", ""), ("CXX", "no-such-compiler")])
def test_without_a_compiler_it_says_so(monkeypatch, variable, value):
    SpeedBook().learn_compilation("another part", Compilation(seconds=1e-9, saved=0.5))
    monkeypatch.setenv(variable, value)
    assert factors_and_report(10) == (EAGER, "not compiled: there is no C++ compiler")


@LINUX
def test_what_failed_is_said_and_not_tried_again(process):
    process.result = "SomeError: it does not work"
    assert factors_and_report(10) == (EAGER, "not compiled: SomeError: it does not work")
    assert factors_and_report(10, images=10**9)[0] == EAGER
    assert process.started == 1


@LINUX
def test_a_compiler_that_was_killed_may_be_tried_again(process):
    process.result = KILLED
    for tries in (1, 2):
        _, report = factors_and_report(10)
        assert process.started == tries
    assert "memory" in report


@LINUX
def test_what_is_not_ready_at_the_end_is_ended(process):
    assert factors_and_report(10) == (EAGER, "not compiled: it was not ready in time")
    assert process.closed == 1


def fail_with(message):
    def fail(inputs):
        raise RuntimeError(message)

    return lambda content: fail


@LINUX
def test_a_compiled_pass_that_fails_gives_way_to_the_eager_one(process, monkeypatch):
    failing = fail_with("run_func_( container_handle_, ...) API call failed")
    monkeypatch.setattr(compiled, "load_package", failing)
    process.result = b"package"
    assert factors_and_report(10) == (EAGER, "not compiled: the compiled pass failed")


@LINUX
def test_where_memory_runs_out_smaller_parts_go_through_the_eager_pass(process, monkeypatch):
    hungry = fail_with("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(compiled, "load_package", hungry)
    process.result = b"package"
    with Compiler(BF16, 1000, 4) as compiler:
        forward = compiler.forward(Part(Doubling(), "part", lambda: "weights"))
        size = 4
        for _ in range(10):
            output, size = run_in_parts(forward, torch.ones(4, 2), size)
            assert torch.equal(output, torch.full((4, 2), 2.0))
    assert size == 2


def test_a_smaller_batch_is_filled_up_and_others_are_left_alone():
    like = torch.empty(8, 3, 4, 4, device="meta").contiguous(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert match_batch(images, like) is images
    some = match_batch(images[:5], like)
    assert some.stride() == like.stride()
    assert torch.equal(some, torch.cat([images[:5], images[4:5].expand(3, -1, -1, -1)]))
    other_strides = match_batch(images.contiguous(), like)
    assert other_strides.stride() == like.stride()
    assert torch.equal(other_strides, images)
    unfit = images[:4], images[:0], images.repeat(2, 1, 1, 1), images[..., :3], images.double()
    assert [match_batch(one, like) for one in unfit] == [None] * 5


@LINUX
def test_a_forged_one_is_compiled_again(process):
    process.result = b"package"
    for tries in (1, 2):
        found, report = factors_and_report(7)  # too few to measure what it saves
        assert (found[0], process.started, report[:15]) == (2, tries, "compiled after ")
        (file,) = paths.private_dir().glob("*.pt2")
        file.write_bytes(bytes(32) + b"package")


def randomize_statistics(network):
    """Randomise BatchNorms so that they are no identities, and folding them away can go wrong."""
    generator = torch.Generator().manual_seed(0)
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network


def photographs(cells=12, count=8, size=96):
    """Return smooth noise, in which neighbouring pixels are alike, as in photographs."""
    coarse = torch.randn(count, 3, cells, cells, generator=torch.Generator().manual_seed(cells))
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return images.contiguous(memory_format=torch.channels_last)


def compile_module(module, device):
    """Return the compiled forward pass of a module for ``photographs()``."""
    process = CompilerProcess(module, photographs(), device)
    try:
        wait_until(lambda: process.poll() is not None, "it compiles for ever")
        ended = process.poll()
        assert isinstance(ended, bytes), ended
        return load_package(ended)
    finally:
        process.close()


def passes(module, device):
    @torch.no_grad()
    def run(images):
        with device.autocast():
            return module(images)

    return run


@pytest.fixture(scope="module")
def parts():
    """Return the trunk of a network, and the trunk compiled in bf16. Each is compiled once."""
    made = {}

    def of(name):
        if name not in made:
            if name == "efficientnet_lite0":
                network = build_network(name, "pretrained", 3, 0)
            else:
                network = randomize_statistics(build_network(name, "none", 3, 0))
            network.model.to(memory_format=torch.channels_last)
            trunk = split_network(network).part(None, len(network.stages) - 1).eval()
            made[name] = trunk, compile_module(trunk, BF16)
        return made[name]

    return of


@LINUX
@pytest.mark.processes
@pytest.mark.parametrize("name", NETWORKS)
def test_in_bf16_it_is_no_further_from_fp32_than_the_eager_pass(parts, name):
    trunk, fast = parts(name)
    distances = []
    for cells in range(4, 26, 3):  # other images than those that the compiler compared
        images = photographs(cells)
        exact, eager, found = passes(trunk, FP32)(images), passes(trunk, BF16)(images), fast(images)
        assert (found.shape, found.dtype, found.stride()) == (
            eager.shape,
            eager.dtype,
            eager.stride(),
        )
        distances.append(
            [((one.float() - exact).norm() / exact.norm()).item() for one in (eager, found)]
        )
    usual, found = torch.tensor(distances).mean(0)
    assert 0 < found <= 1.05 * usual, "roundings are never the same"
    assert usual < 0.2, "bf16 is not compared with noise"


@LINUX
@pytest.mark.processes
def test_a_filled_up_batch_gives_what_a_whole_one_does(parts):
    _, fast = parts(COMPILED)
    images = photographs()
    assert torch.equal(fast(match_batch(images[:5], images))[:5], fast(images)[:5])


@LINUX
@pytest.mark.processes
@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_may_use_it_at_once(parts, threads):
    _, fast = parts(COMPILED)
    images, found, before = photographs(), {}, torch.get_num_threads()
    wanted = fast(images)

    def run(number):
        with torch.no_grad():
            found[number] = [fast(images) for _ in range(5)]

    torch.set_num_threads(threads)
    try:
        working = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for one in working:
            one.start()
        for one in working:
            one.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 4
    assert all(torch.equal(one, wanted) for some in found.values() for one in some)


@LINUX
@pytest.mark.processes
def test_in_fp32_it_gives_the_same_labels():
    network = randomize_statistics(build_network(TINY_BACKBONE, "none", 3, 0))
    model = network.model.to(memory_format=torch.channels_last).eval()
    found, wanted = compile_module(model, FP32)(photographs()), passes(model, FP32)(photographs())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), wanted.argmax(1))


def test_one_that_is_further_from_fp32_is_refused():
    torch.manual_seed(0)
    part, images = nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8)
    worse = copy.deepcopy(part)
    with torch.no_grad():
        worse.weight.mul_(1.05)
    assert find_difference(part, passes(part, BF16), images, BF16) == ""
    assert find_difference(part, passes(part, FP32), images, FP32) == ""
    assert "from fp32" in find_difference(part, passes(worse, BF16), images, BF16)
    assert "from fp32" in find_difference(part, passes(worse, FP32), images, FP32)
    assert "from fp32" in find_difference(
        part, lambda images: part(images).bfloat16() * float("nan"), images, BF16
    )
    assert "layout" in find_difference(part, lambda images: part(images).double(), images, BF16)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Replace the system's temporary folder by an empty one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def compile_a_little(device=BF16):
    """Start to compile something that takes long enough to be ended meanwhile."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU()).eval()
    return CompilerProcess(module, torch.zeros(2, 3, 16, 16), device)


@LINUX
@AS_ROOT
@pytest.mark.processes
def test_other_users_do_not_get_at_what_is_handed_to_the_compiler(temporary, tmp_path, monkeypatch):
    for variable in ("THAW_HOME", "THAW_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
        open_to_all(tmp_path / variable)
    open_to_all(tmp_path)
    # Sticky, as a system's temporary folder is: in others nothing is handed over at all.
    for shared in (tmp_path, temporary):
        shared.chmod(0o1777)
    process = compile_a_little()
    try:
        (request,) = tmp_path.rglob("request.pt")
        (private,) = temporary.iterdir()
        assert request.is_relative_to(private)
        assert not as_another_user(request.read_bytes)
        assert not as_another_user(lambda: request.with_name("package.pt2").write_bytes(b"evil"))
        assert not as_another_user(lambda: private.rename(private.with_name("away")))
    finally:
        process.close()
    assert not list(temporary.iterdir())


@LINUX
def test_a_part_that_cannot_be_compiled_says_why(temporary):
    class Refusing(nn.Module):
        def __reduce__(self):
            raise TypeError("it stays here")

    SpeedBook().learn_compilation("another part", Compilation(seconds=1e-9, saved=0.5))
    with Compiler(BF16, 1000, 4) as compiler:
        module = Refusing()
        module.forward = lambda inputs: inputs
        forward = compiler.forward(Part(module, "part", lambda: "weights"))
        for _ in range(10):
            forward(torch.ones(4, 2))
    assert "another process (TypeError)" in compiler.report
    assert not list(temporary.iterdir())


def members(group):
    """Return the names of the living processes of a process group."""
    found = []
    for one in psutil.process_iter(["name", "status"]):
        try:
            if os.getpgid(one.pid) == group and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one.info["name"])
        except ProcessLookupError:
            pass
    return found


@LINUX
@pytest.mark.processes
def test_stopping_leaves_no_process_and_no_files(temporary):
    process = compile_a_little()
    group = process._process.pid
    wait_until(lambda: any("cc1plus" in name for name in members(group)))
    process.close()
    assert not members(group)
    assert not list(temporary.iterdir())


def compile_until_killed(line):
    line.send(compile_a_little()._process.pid)
    line.poll(300)


@LINUX
@pytest.mark.processes
def test_a_parent_that_is_killed_leaves_no_process(processes):
    line, far_end = processes.Pipe()
    parent = processes.Process(target=compile_until_killed, args=(far_end,))
    parent.start()
    assert line.poll(300)
    group = line.recv()
    assert members(group)
    parent.kill()
    parent.join(300)
    wait_until(lambda: not members(group), "it compiles on")


@pytest.fixture
def config(monkeypatch, native_bf16):
    """Make configs of runs in bf16, on more images than a pass of the trunk takes at a time."""
    monkeypatch.setattr(feeding, "_BATCH", 4)
    usual = {"epochs": 1, "batch_size": 8, "precision": "bf16", "strategy": "feature_extraction"}
    return lambda **settings: tiny_config(shared_images(red=24, blue=24), **usual | settings)


def report(found):
    return next(event.cache.compilation for event in found if isinstance(event, events.RunStarted))


@pytest.mark.train
@LINUX
def test_a_run_says_what_was_done(process, config, tmp_path):
    process.factor, process.result = 1, b"package"
    for folder in ("off", "fp32", "run"):
        (tmp_path / folder).mkdir()
    off = report(fit(config(compile="off"), tmp_path / "off"))
    assert off == "not compiled: switched off for this run"
    CACHE.clear()
    assert "fp32" in report(fit(config(precision="fp32"), tmp_path / "fp32"))
    assert process.started == 0
    CACHE.clear()
    found = list(fit(config(), tmp_path / "run"))
    assert report(found) == "compiled after 20 images"
    assert isinstance(found[-1], events.RunFinished)


@LINUX
def test_a_run_that_is_stopped_ends_the_process(process, config, tmp_path):
    running = fit(config(), tmp_path)
    while not process.started:
        assert isinstance(next(running), events.Progress | events.ImagesSkipped)
    assert process.closed == 0
    stopped = running.throw(StopRequested())
    assert isinstance(stopped, events.RunStopped)
    running.close()
    assert process.closed == 1

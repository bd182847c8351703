"""Dataset, Label: a folder is added, and answers of the component become edits."""

import shutil
from types import SimpleNamespace

import pytest
import streamlit as st

from finetune_core.data import edits as edits_module
from finetune_core.data.edits import load_edits
from finetune_core.data.recent import remember_source
from finetune_core.labelling import session
from finetune_core.labelling.answers import NONE_OF_THESE, SKIPPED
from finetune_core.labelling.pool import add_folder, load_unlabelled
from finetune_core.labelling.session import ORDERS
from pages.shared import labeller
from tests.deadline import wait_until
from tests.factories import image_folder
from tests.labelling.stand_in import draw_features
from tests.pages.harness import ANN, address, button_labels, open_page, press, unescaped_text

IMAGES = 12


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "compute_features", draw_features)
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    image_folder(tmp_path / "loose", {"any": IMAGES})
    return image_folder(tmp_path / "data", {"red": 12, "green": 12})


@pytest.fixture
def component(monkeypatch):
    """Return the labeller's latest arguments. ``sends`` arrives when the page is drawn next."""
    found = SimpleNamespace(data=None, sends=None)

    def drawn(*, data, key, on_answers_change, **callbacks):
        assert callbacks.keys() == {"on_like_change", "on_more_change"}
        if found.sends is not None:
            st.session_state[key], found.sends = SimpleNamespace(answers=found.sends), None
            on_answers_change()
            del st.session_state[key]
            st.rerun()
        found.data = data

    monkeypatch.setattr(labeller, "_LABELLER", drawn)
    return found


@pytest.fixture
def at(data, component):
    add_folder(data, str(data.parent / "loose"))
    return opened(data)


def opened(data, **kwargs):
    return open_page(
        "dataset", data=remember_source(str(data)), state={"dataset_view": "Label"}, **kwargs
    )


def answers(*given, token="one"):
    numbered = [{"number": number, **answer} for number, answer in enumerate(given, start=1)]
    return {"token": token, "sent": 1, "answers": numbered}


def label(image, name):
    return {"path": image["id"], "action": "label", "label": name}


def act(image, action):
    return {"path": image["id"], "action": action, "label": ""}


def kept(data):
    return [(edit.action, edit.to or edit.kind) for edit in load_edits(data)]


def send(at, component, sends):
    component.sends = sends
    at.run()
    assert not at.exception
    return component.data


def add(at, folder):
    box = next(one for one in at.text_input if one.label == "Folder or archive of images")
    box.set_value(str(folder))
    return press(at, "Add images")


def test_a_folder_is_added_and_its_images_wait(data, component):
    at = add(opened(data), data.parent / "gone")
    assert "There is no folder" in unescaped_text(at)
    at = add(at, data.parent / "loose")
    assert load_unlabelled(data).folders == (str(data.parent / "loose"),)
    assert f"0 labelled · {IMAGES} to label" in unescaped_text(at)
    assert "never enter validation or test" in unescaped_text(at)
    assert len(component.data["images"]) == IMAGES
    first = component.data["images"][0]
    assert first["src"].startswith("/")
    assert first["src"].endswith(".jpg")
    assert first["proposal"] in component.data["classes"] == ["green", "red"]
    assert first["note"].startswith(f"Proposed: {first['proposal']}, ")


def test_answers_are_kept_and_acknowledged_once_however_often_they_are_sent(data, at, component):
    one, two, three, *_ = component.data["images"]
    given = [label(one, "red"), act(two, "skip"), act(three, "none")]
    for some in (given[:1], given, given):
        drawn = send(at, component, answers(*some))
        assert (drawn["token"], drawn["answered"]) == ("one", len(some))
    assert kept(data) == [("label", "red"), ("ignore", SKIPPED), ("ignore", NONE_OF_THESE)]
    assert not {one["id"], two["id"], three["id"]} & {image["id"] for image in drawn["images"]}
    # a reload has another token and numbers, and sends what it does not know to be kept
    drawn = send(at, component, answers(given[2], act(one, "undo"), token="two"))
    assert kept(data) == [("ignore", SKIPPED), ("ignore", NONE_OF_THESE)]
    assert (drawn["token"], drawn["answered"]) == ("two", 2)
    press(at, "Bring back 1 skipped")
    assert kept(data) == [("ignore", NONE_OF_THESE)]
    assert len(component.data["images"]) == IMAGES - 1


def test_images_that_are_not_in_the_queue_are_passed_over(data, at, component):
    stranger = {"path": "/etc/passwd", "action": "label", "label": "red"}
    drawn = send(at, component, answers(stranger, label(component.data["images"][0], "red")))
    assert kept(data) == [("label", "red")]
    assert drawn["answered"] == 2


@pytest.mark.parametrize("sent", [7, {"token": 1}, {"token": "a", "answers": [{"number": 1}]}])
def test_what_is_no_answer_is_refused(data, at, component, sent):
    drawn = send(at, component, sent)
    assert "could not be read" in drawn["problem"]
    assert kept(data) == []


def test_what_cannot_be_kept_is_said_and_taken_when_it_is_sent_again(
    data, at, component, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    sends = answers(label(component.data["images"][0], "red"))
    with monkeypatch.context() as patch:
        patch.setattr(edits_module, "write_bytes", full)
        drawn = send(at, component, sends)
        assert "No space left" in drawn["problem"]
        assert "No space left" in unescaped_text(at)
        assert (kept(data), drawn["answered"]) == ([], 0)
    drawn = send(at, component, sends)
    assert kept(data) == [("label", "red")]
    assert (drawn["problem"], drawn["answered"]) == ("", 1)


def test_the_probe_is_fitted_again_after_some_labels(data, at, component, monkeypatch):
    fits = []
    fit = session.Labelling.fit

    def count(self, labels):
        fits.append(labels.count)
        return fit(self, labels)

    monkeypatch.setattr(session.Labelling, "fit", count)
    given = [label(image, "red") for image in component.data["images"]]
    send(at, component, answers(*given[:4]))
    assert fits == []
    drawn = send(at, component, answers(*given[:5]))
    assert drawn["more"]
    wait_until(lambda: not at.run() or not component.data["more"])
    assert fits == [5]


def test_images_like_one_and_probably_of_a_class_come_first(data, at, component):
    order = next(box for box in at.selectbox if box.label == "Order")
    assert order.options == [ORDERS["uncertain"], ORDERS["probable"]]
    image = component.data["images"][3]
    # as the button does before the page is drawn
    at.session_state[f"label-like-{address(at)['data']}"] = image["id"]
    at.run()
    next(box for box in at.selectbox if box.label == "Order").set_value("similar").run()
    assert component.data["order"] == f"similar/{image['id']}"
    assert component.data["images"][0]["id"] == image["id"]
    assert f"Like {image['alt']}" in unescaped_text(at)
    order = next(box for box in at.selectbox if box.label == "Order")
    order.set_value("probable").run()
    assert component.data["order"] == "probable/green"
    assert component.data["images"][0]["proposal"] == "green"


def test_a_class_that_no_image_has_yet_gets_the_next_key(data, at, component):
    for name, shown in (("a\tpe", "cannot be named 'a\\tpe'"), ("zebra", ""), ("ape", "")):
        box = next(one for one in at.text_input if one.label == "New class")
        box.set_value(name).run()
        assert "\n".join(one.value for one in at.error).replace("\\\\", "\\").count(shown)
    assert component.data["classes"] == ["green", "red", "zebra", "ape"]
    send(at, component, answers(label(component.data["images"][0], "ape")))
    assert kept(data) == [("label", "ape")]
    assert component.data["classes"] == ["green", "red", "zebra", "ape"]


def test_a_tenth_is_set_aside_and_has_no_proposal(data, component):
    image_folder(data.parent / "many", {"any": 100})
    at = opened(data)
    at.checkbox(key=f"label-aside-{address(at)['data']}").check()
    add(at, data.parent / "many")
    assert load_unlabelled(data).set_aside
    assert "A random tenth was set aside" in unescaped_text(at)
    first = component.data["images"][0]
    assert (first["proposal"], first["note"][:10]) == ("", "Test image")
    send(at, component, answers(label(first, "red")))
    assert kept(data) == [("label_test", "red")]


def test_a_folder_that_is_gone_is_named_and_can_be_removed(data, component):
    add_folder(data, str(data.parent / "loose"))
    shutil.rmtree(data.parent / "loose")
    at = opened(data)
    assert "There is no folder" in unescaped_text(at)
    assert component.data is None
    press(at, "Remove")
    assert load_unlabelled(data).folders == ()
    assert "There is no folder" not in unescaped_text(at)


def test_another_persons_upload_is_no_folder_to_label(data, component, home):
    mine = image_folder(home / "data" / "mine", {"any": 4})
    at = opened(data, user=ANN)
    assert "Add images" in button_labels(at)
    at = add(at, mine)
    assert "is not shown to people who sign in" in unescaped_text(at)
    assert load_unlabelled(data).folders == ()

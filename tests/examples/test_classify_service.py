"""The service of the examples, on loopback: the prediction that Python gives, and errors as one line."""

import http.client
import importlib.util
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msf.config import RECIPES, DataConfig, TaskConfig, UNetConfig
from msf.data import load_pictures
from msf.medsymmflow import MedSymmFlow

FILE = Path(__file__).parents[2] / "examples" / "classify_service.py"
NAMES = ("pale", "round", "lobed")


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    recipe = RECIPES["demo"]
    network = UNetConfig(
        base_channels=8, n_groups=4, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=8
    )
    experiment = recipe.__class__(code=recipe.code, network=network, data=DataConfig(image_size=8))
    torch.manual_seed(0)
    made = MedSymmFlow(TaskConfig(n_classes=3, image_channels=3, class_names=NAMES), experiment)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("run")
    made.save_pretrained(folder)
    return folder, MedSymmFlow.from_pretrained(folder)


@pytest.fixture(scope="module")
def post(flow):
    spec = importlib.util.spec_from_file_location("classify_service", FILE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    server = example.make_server(str(flow[0]), port=0)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(body, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request("POST", "/", body, headers or {})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content

    yield ask
    server.shutdown()
    server.server_close()
    thread.join(10)


def picture(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def test_the_answer_is_the_prediction(post, flow, tmp_path):
    status, content = post(picture())
    assert status == 200
    (tmp_path / "p.png").write_bytes(picture())
    images = load_pictures([tmp_path / "p.png"], 8, 3).images
    expected = flow[1].classify(images, value_range="signed").to_records(NAMES)[0]
    assert content == json.loads(json.dumps(expected))
    assert content["label_name"] in NAMES
    assert set(content["probability"]) == set(NAMES)


def test_one_picture_after_another(post):
    first, second = post(picture(1)), post(picture(2))
    assert first[0] == second[0] == 200
    assert first[1]["class_distance"] != second[1]["class_distance"]
    assert post(picture(1)) == first


def test_what_is_no_picture_is_told_and_the_next_one_is_served(post):
    status, content = post(b"no picture")
    assert status == 400
    assert content["error"].startswith("the body must be an intact picture")
    assert post(picture())[0] == 200


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "99999999999"])
def test_a_length_that_cannot_be_is_refused_before_it_is_read(post, length):
    status, content = post(b"", {"Content-Length": length})
    assert status == 400
    assert "Content-Length" in content["error"]
    assert post(picture())[0] == 200

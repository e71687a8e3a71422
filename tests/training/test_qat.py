"""Quantization-aware training: the torch graph is the Q/DQ graph, gradients are LSQ's, and what comes back fits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx_ir as ir  # noqa: E402
from qat_graphs import SCHEMES, TENSORRT, X86, contract, simulated, tools_of, write_net  # noqa: E402

from edgecnn import data as data_room  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.quantize.calibration.ranges import storable_scales  # noqa: E402
from edgecnn.quantize.ladder import checkpoint  # noqa: E402
from edgecnn.quantize.ladder.candidate import Candidate, Tools  # noqa: E402
from edgecnn.quantize.rungs.qat import qat  # noqa: E402
from edgecnn.quantize.torch.fake_quant import rounded, storable  # noqa: E402
from edgecnn.quantize.torch.qat_child import work  # noqa: E402
from edgecnn.quantize.torch.quantized import Feed, GraphNet  # noqa: E402
from edgecnn.quantize.write.rewrite import Overrides  # noqa: E402
from edgecnn.quantize.write.weights import IntegerWeight, integer_weight  # noqa: E402
from edgecnn.recipe.device import Scheme  # noqa: E402
from edgecnn.recipe.io_contract import KEY  # noqa: E402
from edgecnn.recipe.recipe import QatSpec, QuantizeSpec  # noqa: E402
from edgecnn.store.stage import Artifact  # noqa: E402

pytestmark = pytest.mark.train
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, digits: Artifact) -> Path:
    return write_net(tmp_path_factory.mktemp("net") / "model.onnx", digits.path)


def images(digits: Artifact, count: int = 200) -> np.ndarray:
    return data_room.images(digits.path, "select").batch(0, count)


def answers(net: GraphNet, pixels: np.ndarray) -> np.ndarray:
    """The network's logits for uint8 NHWC images, fed as training feeds it."""
    with torch.no_grad():
        logits: np.ndarray = net(Feed(contract(), CPU)(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()
    return logits


def job_of(tools: Tools, candidate: Candidate, out: Path, **changes: object) -> dict[str, object]:
    """What the rung hands to the child process, for calling the child's work here."""
    out.mkdir(exist_ok=True)
    assert tools.network is not None
    for name, graph in (("float.onnx", candidate.model), ("teacher.onnx", tools.graph.model)):
        (out / name).write_bytes(checkpoint.model_bytes(graph))
    checkpoint.write(out / "start.npz", candidate, candidate.model, {"scheme": tools.scheme.model_dump()})
    return {
        "model": tools.network.model.model_dump(mode="json", exclude={"weights"}),
        "train": {**tools.network.qat.model_dump(mode="json"), **changes},
        "images": tools.network.images.model_dump(mode="json"),
        "data": str(tools.network.data), "graph": str(out / "float.onnx"), "placement": str(out / "start.npz"),
        "reference": str(out / "teacher.onnx"), "out": str(out),
    }  # fmt: skip


def agree(torch_logits: np.ndarray, onnx_logits: np.ndarray) -> None:
    """Equal but for sums in another order, which now and then carry a value over a rounding boundary."""
    difference, size = np.abs(torch_logits - onnx_logits).max(axis=1), np.abs(onnx_logits).max()
    assert np.median(difference) < 1e-5 * size
    assert np.mean(difference > 1e-4 * size) < 0.1
    assert difference.max() < 0.1 * size


@pytest.mark.parametrize("name", SCHEMES)
def test_torch_answers_as_the_written_graph(name: str, model: Path, digits: Artifact, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    _, candidate = tools_of(model, digits.path, tmp_path, scheme)
    net = GraphNet(candidate.model, "logits", (candidate, scheme)).eval()
    pixels = images(digits)
    agree(answers(net, pixels), simulated(candidate, scheme, pixels))
    plain = GraphNet(candidate.model, "logits").eval()
    assert np.abs(answers(plain, pixels) - answers(net, pixels)).max() > 1e-3  # there is something to agree on


@pytest.mark.parametrize("name", SCHEMES)
def test_what_was_learned_is_what_is_written(name: str, model: Path, digits: Artifact, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    _, candidate = tools_of(model, digits.path, tmp_path, scheme)
    net = GraphNet(candidate.model, "logits", (candidate, scheme))
    net.refit()
    pixels = images(digits)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    feed, truth = Feed(contract(), CPU), torch.from_numpy(data_room.labels(digits.path, "select")[: len(pixels)])
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(net(feed(torch.from_numpy(pixels).permute(0, 3, 1, 2))), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = net.eval().learned()
    assert learned.placement == candidate.placement
    assert all(learned.ranges[tensor] != candidate.ranges[tensor] for tensor in candidate.ranges)
    steps = net.grids.steps().tolist()
    grids = learned.grids(scheme)
    assert all(grids[tensor].scale == steps[group] for tensor, group in net.groups.items())
    assert {t: g.zero_point for t, g in grids.items()} == {t: g.zero_point for t, g in candidate.grids(scheme).items()}
    agree(answers(net, pixels), simulated(learned, scheme, pixels))
    changed = learned.model.graph.initializers["first.weight"].const_value.numpy()
    assert not np.array_equal(changed, candidate.model.graph.initializers["first.weight"].const_value.numpy())


@pytest.mark.parametrize("keep_float", [(), ("first",), ("second",)], ids=["int8", "first float", "second float"])
def test_a_weight_that_two_layers_read(keep_float: tuple[str, ...], digits: Artifact, tmp_path: Path) -> None:
    model = write_net(tmp_path / "model.onnx", digits.path, shared=True)
    _, candidate = tools_of(model, digits.path, tmp_path, SCHEMES["few-bits"], keep_float)
    net = GraphNet(candidate.model, "logits", (candidate, SCHEMES["few-bits"]))
    assert len(net.weights) == 3
    net.refit()
    pixels = images(digits)
    agree(answers(net, pixels), simulated(net.learned(), SCHEMES["few-bits"], pixels))


def edges_of(model: ir.Model) -> set[tuple[str | None, int]]:
    """(node, input index) of every reading of a dequantized activation in a Q/DQ graph."""
    made = {
        node.outputs[0].name for node in model.graph
        if node.op_type == "DequantizeLinear" and not node.inputs[0].is_initializer()
    }  # fmt: skip
    return {
        (node.name, index) for node in model.graph for index, value in enumerate(node.inputs)
        if value is not None and value.name in made and node.op_type != "QuantizeLinear"
    }  # fmt: skip


@pytest.mark.parametrize("scheme", [TENSORRT, X86], ids=["tensorrt", "x86"])
def test_edges_are_exactly_the_placed_ones(scheme: Scheme, model: Path, digits: Artifact, tmp_path: Path) -> None:
    _, candidate = tools_of(model, digits.path, tmp_path, scheme)
    placed = {(edge.node, edge.index) for a in candidate.placement.activations for edge in a.edges}
    net = GraphNet(candidate.model, "logits", (candidate, scheme))
    assert {key for key in net.read if key[0]} == placed
    learned = net.learned()
    assert edges_of(learned.quantized(scheme)) == placed
    integers = {node.name for node in learned.quantized(scheme).graph if node.inputs[1:] and node.op_type != "Conv"
                and node.inputs[1] is not None and (node.inputs[1].name or "").startswith("head.weight")}  # fmt: skip
    assert set(learned.overrides.weights) == {weight.tensor for weight in candidate.placement.weights}
    assert "head" in integers


def test_tensors_of_one_group_share_one_step(model: Path, digits: Artifact, tmp_path: Path) -> None:
    _, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    net = GraphNet(candidate.model, "logits", (candidate, TENSORRT))
    shared = [members for members in candidate.placement.groups().values() if len(members) > 1]
    assert shared  # the pool and what it reads
    assert len(net.grids.growth) == len(candidate.placement.groups())
    with torch.no_grad():
        net.grids.growth.add_(torch.linspace(0.1, 0.4, len(net.grids.growth)))
    ranges = net.learned().ranges
    for members in shared:
        assert len({ranges[member.tensor] for member in members}) == 1


@pytest.mark.parametrize("name", ["tensorrt", "x86"])
def test_gradients_reach_weights_biases_and_steps(name: str, model: Path, digits: Artifact, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    _, candidate = tools_of(model, digits.path, tmp_path, scheme)
    net = GraphNet(candidate.model, "logits", (candidate, scheme))
    net(Feed(contract(), CPU)(torch.from_numpy(images(digits, 64)).permute(0, 3, 1, 2))).square().mean().backward()
    assert bool((net.grids.growth.grad != 0).all())
    assert len(net.weights) == 4
    assert len(net.biases) == 4
    for weight in net.weights.values():
        assert bool((weight.relative.grad.flatten(1) != 0).any(dim=1).all())  # every channel
        assert bool((weight.growth.grad != 0).all())
    for bias in net.biases.values():
        assert bool((bias.moved.grad != 0).all())


def test_rounding_and_its_gradients_by_hand() -> None:
    x = torch.tensor([0.6, 1.25, 2.5, -9.0], requires_grad=True)  # in steps of 0.5: 1.2, 2.5, 5, -18
    step = torch.tensor(0.5, requires_grad=True)
    out = rounded(x, step, -4, 3)
    assert out.tolist() == [0.5, 1.0, 1.5, -2.0]  # 2.5 goes to even
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (out * weights).sum().backward()
    assert x.grad.tolist() == [1.0, 10.0, 0.0, 0.0]
    # LSQ: rounded - scaled inside, the end outside; shared by the square root of count times the largest integer.
    by_hand = (1.0 * (1 - 1.2) + 10.0 * (2 - 2.5) + 100.0 * 3 + 1000.0 * -4) / np.sqrt(4 * 4)
    assert float(step.grad) == pytest.approx(by_hand, rel=1e-6)


def test_steps_of_channels_have_gradients_of_their_own() -> None:
    x = torch.tensor([[0.2, 0.6], [20.0, 60.0]])
    step = torch.tensor([[0.25], [25.0]], requires_grad=True)
    rounded(x, step, -2, 1).sum().backward()
    assert step.grad[0, 0] == pytest.approx(((1 - 0.8) + 1) / 2)
    assert step.grad[0, 0] == pytest.approx(float(step.grad[1, 0]), rel=1e-5)


def test_storable_steps_are_those_of_the_graph() -> None:
    steps = torch.exp(torch.linspace(-9, 9, 1000))
    for islands in ("float16", "float32"):
        scheme = TENSORRT.model_copy(update={"islands": islands})
        mine = storable(steps, islands == "float16").numpy()
        np.testing.assert_array_equal(mine, storable_scales(steps.numpy(), scheme))
        np.testing.assert_array_equal(storable(torch.from_numpy(mine), islands == "float16").numpy(), mine)


def test_begins_where_adaround_ended(model: Path, digits: Artifact, tmp_path: Path) -> None:
    _, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    rng, overrides = np.random.default_rng(0), {}
    for weight in candidate.placement.weights:
        array = candidate.model.graph.initializers[weight.tensor].const_value.numpy()
        nearest = integer_weight(weight.tensor, array, weight.axis, TENSORRT)
        moved = nearest.values + rng.integers(-1, 2, array.shape)  # other integers than the nearest
        overrides[weight.tensor] = IntegerWeight(np.clip(moved, -127, 127).astype(np.int8), nearest.scales, weight.axis)
    biases = {"stem": np.linspace(-1, 1, 8).astype(np.float32)}
    given = replace(candidate, overrides=Overrides(overrides, biases))
    net = GraphNet(given.model, "logits", (given, TENSORRT))
    net.refit()  # leaves what a rung has chosen
    learned = net.learned()
    for name, integer in overrides.items():
        np.testing.assert_array_equal(learned.overrides.weights[name].values, integer.values)
        np.testing.assert_array_equal(learned.overrides.weights[name].scales, integer.scales)
    np.testing.assert_array_equal(learned.overrides.biases["stem"], biases["stem"])


def test_refit_lessens_the_error_of_few_bits(model: Path, digits: Artifact, tmp_path: Path) -> None:
    scheme = SCHEMES["few-bits"]
    _, candidate = tools_of(model, digits.path, tmp_path, scheme)
    net = GraphNet(candidate.model, "logits", (candidate, scheme))

    def errors() -> list[float]:
        with torch.no_grad():
            return [float((w.values(w.steps()) - w.plain()).square().sum()) for w in net.weights.values()]

    before = errors()
    net.refit()
    assert all(after <= first for after, first in zip(errors(), before, strict=True))
    assert sum(errors()) < 0.9 * sum(before)


# --- training ---


def trained(tools: Tools, candidate: Candidate, out: Path, **changes: object) -> bytes:
    work(json.loads(json.dumps(job_of(tools, candidate, out, **changes))))
    return (out / "finetuned.npz").read_bytes()


def other_labels(data: Path, out: Path) -> Path:
    """The same data with every training label another class."""
    shutil.copytree(data, out)
    with np.load(out / "index.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["labels"][arrays["train"]] = (arrays["labels"][arrays["train"]] + 1) % 10
    np.savez(out / "index.npz", **arrays)
    return out


def test_the_float_model_teaches_and_labels_only_when_asked(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, SCHEMES["few-bits"], epochs=1)
    assert tools.network is not None
    swapped = replace(tools, network=replace(tools.network, data=other_labels(digits.path, tmp_path / "swapped")))
    taught = trained(tools, candidate, tmp_path / "a")
    assert trained(tools, candidate, tmp_path / "again") == taught
    assert trained(swapped, candidate, tmp_path / "b") == taught  # alpha 1: the teacher alone
    half = {"distill": {"alpha": 0.5}}
    assert trained(swapped, candidate, tmp_path / "c", **half) != trained(tools, candidate, tmp_path / "d", **half)
    other = ir.serde.deserialize_model(ir.serde.serialize_model(tools.graph.model))
    head = other.graph.initializers["head.bias"]
    head.const_value = ir.tensor(np.arange(10, dtype=np.float32), name="head.bias")
    graph = replace(tools.graph, model=other)
    assert trained(replace(tools, graph=graph), candidate, tmp_path / "e") != taught
    alone = {"distill": None}
    assert trained(replace(tools, graph=graph), candidate, tmp_path / "f", **alone) == trained(
        tools, candidate, tmp_path / "g", **alone
    )


def test_continues_to_the_same_bytes(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, TENSORRT, schedule="constant", ema=0.9, augment="shift")
    whole = trained(tools, candidate, tmp_path / "whole", epochs=3)
    trained(tools, candidate, tmp_path / "broken", epochs=1)
    assert trained(tools, candidate, tmp_path / "broken", epochs=3) == whole


def test_the_rung_recovers_and_is_not_trained_twice(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, SCHEMES["few-bits"], epochs=4, lr=0.01)
    found = qat(candidate, tools)
    assert found.rungs == (*candidate.rungs, "qat")
    assert found.placement == candidate.placement
    assert set(found.methods.values()) == {"learned"}
    pixels, truth = images(digits, 10_000), data_room.labels(digits.path, "select")
    right = [float(np.mean(simulated(c, tools.scheme, pixels).argmax(1) == truth)) for c in (candidate, found)]
    assert right[1] > right[0]
    assert f"{100 * right[0]:.2f} % → {100 * right[1]:.2f} %" in found.notes[-1]
    (result,) = (tmp_path / "qat").glob("*/finetuned.npz")
    stamp = result.stat().st_mtime_ns
    assert checkpoint.digest(qat(candidate, tools)) == checkpoint.digest(found)
    assert result.stat().st_mtime_ns == stamp


RUNG = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from qat_graphs import TENSORRT, tools_of
from edgecnn.quantize.rungs.qat import qat
qat(*reversed(tools_of(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), TENSORRT, epochs=6, augment="shift")))
"""


@pytest.mark.slow
@pytest.mark.full(reason="test_continues_to_the_same_bytes and the kills of test_resume find what goes wrong here")
def test_killed_and_continued(model: Path, digits: Artifact, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-c", RUNG, str(Path(__file__).parent), str(model), str(digits.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(whole)], check=True, env=environment)
    child = subprocess.Popen([*command, str(broken)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline and not list(broken.glob("qat/*/resume/last.pt")):
        time.sleep(0.01)
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert list(broken.glob("qat/*/resume/last.pt"))
    assert not list(broken.glob("qat/*/finetuned.npz"))
    subprocess.run([*command, str(broken)], check=True, env=environment)
    (first,), (second,) = whole.glob("qat/*/finetuned.npz"), broken.glob("qat/*/finetuned.npz")
    assert first.read_bytes() == second.read_bytes()


# --- bad inputs ---


def test_no_network_leaves_the_candidate(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    found = qat(candidate, replace(tools, network=None))
    assert checkpoint.digest(found) == checkpoint.digest(candidate)
    assert found.rungs == candidate.rungs
    assert "no torch model" in found.notes[-1]


def test_a_loss_that_is_not_a_number(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    with pytest.raises(EdgeError, match="not a number") as caught:
        trained(tools, candidate, tmp_path / "out", lr=1e4, warmup_epochs=0)
    assert "`quantize.qat.lr`" in caught.value.hint
    assert not (tmp_path / "out" / "finetuned.npz").exists()


def test_an_operator_that_torch_cannot_run(digits: Artifact, tmp_path: Path) -> None:
    model = write_net(tmp_path / "model.onnx", digits.path, extra="Softsign")
    tools, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    with pytest.raises(EdgeError, match="`extra` cannot be trained: Softsign"):
        trained(tools, candidate, tmp_path / "out")


def test_a_task_that_is_not_trained_here(model: Path, digits: Artifact, tmp_path: Path) -> None:
    tools, candidate = tools_of(model, digits.path, tmp_path, TENSORRT)
    other = ir.serde.deserialize_model(ir.serde.serialize_model(candidate.model))
    other.metadata_props[KEY] = other.metadata_props[KEY].replace('"classify"', '"detect"')
    with pytest.raises(EdgeError, match="is for `task: classify`"):
        trained(tools, replace(candidate, model=other), tmp_path / "out")


def test_without_torch_the_rung_says_what_to_install(model: Path, digits: Artifact, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    command = [sys.executable, "-c", RUNG, str(Path(__file__).parent), str(model), str(digits.path), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    )
    assert done.returncode != 0
    assert "the rung `qat` needs `torch`, which is not installed" in done.stderr


def test_the_recipe_refuses_zero_epochs() -> None:
    with pytest.raises(ValueError, match="epochs"):
        QuantizeSpec.model_validate({"qat": {"epochs": 0}})
    assert QuantizeSpec.model_validate({"qat": {"lr": 0.01}}).qat == QatSpec(lr=0.01)
